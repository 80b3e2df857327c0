"""Tracing and folding: the graph computes what the module computes, at any size, and says what it cannot do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from data.errors import CheckpointError, ConversionError
from models.graph import Graph, Runner
from models.spiking.convert.fold import trace


def test_graph_equals_module_at_another_size(network: nn.Module) -> None:
    graph = trace(network, torch.zeros(1, 4, 16, 16))
    x = torch.randn(3, 4, 20, 28)
    with torch.no_grad():
        expected = network(x)
    for mine, theirs in zip(Runner(graph)(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_no_batch_norm_is_left_and_names_are_the_modules(network: nn.Module) -> None:
    graph = trace(network, torch.zeros(1, 4, 16, 16))
    assert {node.op for node in graph.nodes} == {"input", "conv", "relu", "slice", "add", "concat", "max_pool", "upsample"}
    assert {"stem.conv", "deep.conv", "out_a"} <= {node.name for node in graph.nodes}


def test_training_mode_is_restored(network: nn.Module) -> None:
    network.train()
    trace(network, torch.zeros(1, 4, 16, 16))
    assert network.training


def test_graph_survives_json(network: nn.Module, grid: Tensor) -> None:
    graph = trace(network, torch.zeros(1, 4, 16, 16))
    again = Graph.from_json(graph.to_json(), graph.tensors)
    for a, b in zip(Runner(graph)(grid), Runner(again)(grid), strict=True):
        assert torch.equal(a, b)


def test_json_with_a_missing_tensor_is_refused(network: nn.Module) -> None:
    graph = trace(network, torch.zeros(1, 4, 16, 16))
    tensors = {name: t for name, t in graph.tensors.items() if name != "deep.conv.bias"}
    with pytest.raises(CheckpointError, match=r"deep\.conv"):
        Graph.from_json(graph.to_json(), tensors)


class _Wrapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer, self.out = nn.Conv2d(2, 4, 3, padding=1), layer, nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.out(self.layer(self.conv(x)))]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.SiLU(), r"'layer'.*silu.*ReLU"),  # an activation without a spiking form
        (nn.Sigmoid(), r"'layer'.*sigmoid"),
        (nn.MaxPool2d(3, 1, 1), r"'layer'.*max-pool must read spikes"),  # pooling currents is not pooling spikes
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), r"'layer\.1'.*folded"),  # nothing to fold it into
        (nn.Conv2d(4, 4, 1), r"'layer'.*current of 'conv'.*activation"),  # its products are no accumulates
        (nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=1.5)), r"'layer\.1'.*whole factor"),
    ],
)
def test_what_cannot_spike_is_named(layer: nn.Module, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        trace(_Wrapped(layer).eval(), torch.zeros(1, 2, 8, 8))


def test_an_output_that_is_no_current_is_refused() -> None:
    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [torch.relu(self.conv(x))]

    with pytest.raises(ConversionError, match="read-out"):
        trace(Spiking().eval(), torch.zeros(1, 2, 8, 8))
