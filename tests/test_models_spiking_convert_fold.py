"""Tracing and folding: the graph computes what the module computes, at any size, and says what it cannot do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.data.errors import CheckpointError, ConversionError
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.convert.fold import trace
from tests.conftest import FurtherOperations, drawn


def test_graph_equals_module_at_another_size(network: nn.Module) -> None:
    graph = trace(network, torch.zeros(1, 4, 16, 16))
    x = torch.randn(3, 4, 20, 28)
    with torch.no_grad():
        expected = network(x)
    for mine, theirs in zip(Runner(graph)(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_further_operations_equal_the_module_s_at_another_size() -> None:
    module = drawn(FurtherOperations)
    graph = trace(module, torch.zeros(1, 4, 16, 16))
    assert {node.op for node in graph.nodes} == {"input", "conv", "relu", "add", "concat", "max_pool", "avg_pool"}
    x = 3 * torch.randn(3, 4, 20, 28)
    with torch.no_grad():
        map_, vector = module(x)
    mine = Runner(graph)(x)
    torch.testing.assert_close(mine[0], map_, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine[1].flatten(1), vector, rtol=1e-5, atol=1e-5)  # a linear layer is a 1 x 1 convolution


def test_parallel_convolutions_become_one() -> None:
    graph = trace(drawn(FurtherOperations), torch.zeros(1, 4, 16, 16))
    wide = next(node for node in graph.nodes if node.name == "wide")
    assert wide.attrs["merged"] == ["narrow"]
    assert "narrow.weight" not in graph.tensors


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
        (nn.Conv2d(4, 4, 3, 2, padding=1), nn.Conv2d(4, 4, 2, 2)),  # even kernels have no centre
        (nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.Conv2d(4, 4, (3, 1), padding=(1, 0))),  # neither lies in the other
    ],
)
def test_convolutions_that_are_not_nested_stay_two(a: nn.Module, b: nn.Module) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.out = nn.Conv2d(2, 4, 1), a, b, nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = torch.relu(self.stem(x))
            return [self.out(torch.relu(self.a(x) + self.b(x)))]

    x = torch.randn(2, 2, 8, 8)
    net = Two()
    graph = trace(net, x[:1])
    assert {"a.weight", "b.weight"} <= graph.tensors.keys()
    with torch.no_grad():
        torch.testing.assert_close(Runner(graph)(x)[0], net(x)[0], rtol=1e-5, atol=1e-5)


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
        Graph.from_json(graph.to_json(), tensors).shapes(4, 16, 16)


class _Wrapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.conv, self.layer, self.out = nn.Conv2d(2, 4, 3, padding=1), layer, nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.out(self.layer(self.conv(x)))]


class _Shifted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + self.by


class _MeanAdded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return x + F.adaptive_avg_pool2d(x, 1)


class _HalfAdded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return torch.add(x, x, alpha=0.5)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.SiLU(), r"'layer'.*silu.*train.py --relu-from"),  # an activation without a spiking form
        (nn.Softmax(1), r"'layer'.*softmax.*attention has no spiking equivalent.*yolov8n"),
        (nn.Sigmoid(), r"'layer'.*sigmoid"),
        (nn.MaxPool2d(3, 1, 1), r"'layer'.*max-pool must read spikes"),  # pooling currents is not pooling spikes
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), r"'layer\.1'.*folded"),  # nothing to fold it into
        (nn.Conv2d(4, 4, 1), r"'layer'.*current of 'conv'.*activation"),  # its products are no accumulates
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.MaxPool2d(2)), r"'layer\.2'.*single neurons, not sums"),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)), r"'layer\.1'.*ceil_mode"),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(3, 1, 1, count_include_pad=False)), r"'layer\.1'.*count_include_pad=False"),
        (nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2)), r"'layer\.1'.*1 x 1 only"),
        (nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d((2, 3))), r"'layer\.1'.*1 x 1 only"),  # not the axes of a map
        (nn.BatchNorm2d(4, track_running_stats=False), r"'layer'.*without running statistics"),
        (_Shifted(), r"'layer'.*parameter"),
        (_MeanAdded(), r"'layer'.*different shapes, \[1, 4, 8, 8\] and \[1, 4, 1, 1\]"),
        (_HalfAdded(), r"'layer'.*alpha=0\.5"),
        (nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (4, 8, 8))), r"'layer\.1'.*global average pool"),
        (nn.Hardtanh(), r"'layer'.*clip to \[-1\.0, 1\.0\]"),
        (nn.LeakyReLU(1.5), r"'layer'.*slope 1\.5"),
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


def test_a_batch_norm_without_gain_is_folded() -> None:
    net, x = _Wrapped(nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU())).eval(), torch.randn(2, 2, 8, 8)
    net.get_submodule("layer.0").running_mean[:] = 0.5  # type: ignore[index, operator]
    with torch.no_grad():
        torch.testing.assert_close(Runner(trace(net, x[:1]))(x)[0], net(x)[0], rtol=1e-5, atol=1e-5)
