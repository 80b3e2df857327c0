"""Tracing and folding: the graph computes what the module computes, at any size, and says what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    next(network.children()).eval()  # frozen
    before = [part.training for part in network.modules()]
    trace(network, torch.zeros(1, 4, 16, 16))
    assert [part.training for part in network.modules()] == before
    assert len({*before}) == 2


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


class _Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class _Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.relu().reshape(1, 4, 64)
        return (flat @ (flat.mT @ flat).softmax(-1)).reshape(x.shape)


class _MeanAdded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return x + F.adaptive_avg_pool2d(x, 1)


class _HalfAdded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return torch.add(x, x, alpha=0.5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.SiLU(), r"'layer'.*silu.*train.py --relu-from"),  # an activation without a spiking form
        (_Attention(), r"'layer'.*reshape.*attention has no spiking equivalent.*yolov8n"),
        (nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2)), r"'layer\.1'.*conv_transpose2d.*equivalent$"),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 2, padding="same")), r"'layer\.1'.*even side is not symmetric"),
        (_Of(lambda x: x.relu()[:, ::2].repeat(1, 2, 1, 1)), r"'layer'.*a slice of axis 1 in steps of 2"),
        (_Of(lambda x: x.relu()[:, :, 1:]), r"'layer'.*a slice of axis 2"),
        (_Of(lambda x: x.relu()[..., -8:]), r"'layer'.*a slice of axis 3"),  # all of the example, but not of other sizes
        (_Of(lambda x: torch.ops.aten.slice(x.relu(), 2, 0, 8)), r"'layer'.*a slice of axis 2"),
        (_Of(lambda x: x.relu().half().float()), r"'layer'.*float16"),
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
        (
            nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (4, 8, 8))),
            r"'layer\.1'.*global average pool can be flattened$",
        ),
        (nn.Hardtanh(), r"'layer'.*clip to \[-1\.0, 1\.0\]"),
        (_Of(lambda x: x.clamp(max=1)), r"'layer'.*clip to \[None, 1\]"),
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


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(1, 2)), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding="valid", stride=2), nn.ReLU()),
        nn.Sequential(nn.ReLU(), nn.Dropout2d(0.5), nn.Dropout(0.5)),
        _Of(lambda x: x.clamp(0) + x.clamp(min=0) + x.clamp_min(0.0) + x.clone().clamp_(min=0)),
        _Of(lambda x: x.clamp(0, 0.5) + x.clamp(max=2, min=0) + F.hardtanh(x, 0, 0.3)),
        _Of(lambda x: torch.cat(x.relu().split(2, 1)[::-1], 1)),
        _Of(lambda x: torch.cat(x.relu().tensor_split(3, -3)[::-1], -3)),  # pieces of 2, 1 and 1 channels
        _Of(lambda x: torch.cat([x.relu()[:, 3:], x.relu()[:, :-1]], 1)),
        _Of(lambda x: x.relu()[:, :4].clone().float().contiguous(memory_format=torch.channels_last)),
        _Of(lambda x: F.interpolate(F.max_pool2d(x.relu(), 2), size=x.shape[2:])),
        _Of(lambda x: F.interpolate(x.relu(), scale_factor=3, mode="nearest-exact")),
    ],
)
def test_other_ways_to_write_what_can_spike(layer: nn.Module) -> None:
    net, x = _Wrapped(layer).eval(), torch.randn(3, 2, 12, 20)
    graph = trace(net, torch.zeros(1, 2, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(Runner(graph)(x)[0], net(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "flattened",
    [
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape(-1, 4),
        lambda x: x.squeeze(-1).squeeze(-1),
        lambda x: x.squeeze((2, 3)),
        lambda x: x[..., 0, 0],
        lambda x: x[:, :, -1:].flatten(1),
        lambda x: torch.cat([x.flatten(1)[:, :2], x.flatten(1)[:, 2:]], -1),
    ],
)
def test_every_way_to_a_vector_behind_a_global_pool(flattened: Callable[[Tensor], Tensor]) -> None:
    conv, linear = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)
    net = _Of(lambda x: [linear(flattened(F.adaptive_avg_pool2d(conv(x).relu(), 1)))])
    net.conv, net.linear = conv, linear  # so that their weights are those of a module
    graph, x = trace(net, torch.zeros(2, 2, 8, 8)), torch.randn(5, 2, 12, 20)
    with torch.no_grad():
        torch.testing.assert_close(Runner(graph)(x)[0].flatten(1), net(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda y: [y, y], "returned twice"),
        (lambda y: [y, None], "returns None, which is no map"),
        (lambda y: [y, len(y)], "returns 1, which is no map"),
        (lambda y: [y.softmax(1)], "softmax.*equivalent; leave it out"),
        (lambda y: [y if y.sum() > 0 else -y], "torch.export cannot trace the network.*whatever values"),
    ],
)
def test_what_cannot_be_returned_is_named(returned: Callable[[Tensor], Any], message: str) -> None:
    conv = nn.Conv2d(2, 4, 3)
    net = _Of(lambda x: returned(conv(x)))
    net.conv = conv
    with pytest.raises(ConversionError, match=message):
        trace(net, torch.zeros(1, 2, 8, 8))


def test_a_network_of_two_inputs_is_refused() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
            return [x + y]

    with pytest.raises(ConversionError, match=r"cannot trace.*one batch of grids, here \[1, 2, 8, 8\]"):
        trace(Both(), torch.zeros(1, 2, 8, 8))
