"""The spiking network against brute force: step by step, spikes convolved with ones, exact max-pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.models.graph import Graph, Node
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.cost import coverage, dense_macs, fan_out_maps
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from tests.conftest import EveryOperation, FurtherOperations, drawn, spiking
from tests.step_by_step import StepByStep, operations_by_force


@pytest.fixture(params=[EveryOperation, FurtherOperations])
def graph(request: pytest.FixtureRequest) -> Graph:
    return trace(drawn(request.param), torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize("timesteps", [1, 2, 4])
@pytest.mark.parametrize(("phi", "signed"), [(1, False), (4, False), (4, True)])
def test_folded_equals_step_by_step(graph: Graph, grid: Tensor, timesteps: int, phi: int, signed: bool) -> None:
    parameters = spiking(graph, grid, timesteps, phi, signed=signed)
    slow = StepByStep(graph, parameters)
    expected = slow.run(grid)
    network = SpikingNetwork(graph, parameters)
    outputs, stats = network.run(grid)
    for mine, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    for layer in stats.layers:
        if layer.kind != "input":
            spikes = torch.stack(slow.spikes[layer.name]).double().sum((0, 2, 3, 4))
            assert layer.spikes.tolist() == spikes.tolist(), layer.name


@pytest.mark.parametrize("zeros", [0.0, 0.06, 0.6])
@pytest.mark.parametrize(("timesteps", "phi"), [(1, 8), (3, 2)])
def test_synaptic_operations_equal_spikes_convolved_with_ones(
    graph: Graph, grid: Tensor, timesteps: int, phi: int, zeros: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in graph.tensors.items():
        if name.endswith(".weight"):
            tensor[torch.rand(tensor.shape, generator=generator) < zeros] = 0
    parameters = spiking(graph, grid, timesteps, phi)
    slow = StepByStep(graph, parameters)
    slow.run(grid)
    _, stats = SpikingNetwork(graph, parameters).run(grid)
    brute = operations_by_force(slow, len(grid))
    counted = sum(torch.from_numpy(layer.synaptic_ops) for layer in stats.layers)
    assert counted.tolist() == brute.tolist()


def test_bursts_are_counted_with_multiplicity(graph: Graph, grid: Tensor) -> None:
    """The seed's code counts a burst once: per-spike must exceed graded as soon as there are bursts, and equal it without."""
    _, bursts = SpikingNetwork(graph, spiking(graph, grid, 1, 8)).run(grid)
    _, single = SpikingNetwork(graph, spiking(graph, grid, 4, 1)).run(grid)
    neurons = [layer for layer in bursts.layers if layer.kind == "neuron"]
    assert sum(layer.synaptic_ops.sum() for layer in neurons) > 1.5 * sum(layer.graded_ops.sum() for layer in neurons)
    for layer in single.layers:
        if layer.kind == "neuron":
            assert layer.synaptic_ops.tolist() == layer.graded_ops.tolist()


def test_counters_do_not_pile_up_over_batches(graph: Graph, grid: Tensor) -> None:
    network = SpikingNetwork(graph, spiking(graph, grid, 2, 4))
    first, second = network.run(grid)[1], network.run(grid)[1]
    assert [layer.spikes.tolist() for layer in first.layers] == [layer.spikes.tolist() for layer in second.layers]


def test_images_of_a_batch_do_not_touch_each_other(graph: Graph, grid: Tensor) -> None:
    network = SpikingNetwork(graph, spiking(graph, grid, 2, 4))
    both, _ = network.run(grid)
    alone, _ = network.run(grid[1:])
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=1e-5, atol=1e-5)


def test_max_pool_is_exact_over_the_window() -> None:
    """Two neurons that fire at different times: the pool of the counts is 2, the sum of the steps' pools would be 3."""
    counts = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).reshape(2, 1, 1, 1, 2)  # (T, N, C, H, W)
    node = Node("pool", "max_pool", ("relu",), {"kernel": [1, 2], "stride": [1, 1], "padding": [0, 0]})
    graph = Graph([Node("input", "input", ()), Node("relu", "relu", ("input",)), node], [], {})
    theta = torch.tensor([0.3])
    from evburst.models.spiking.neurons import NeuronLayer

    network = SpikingNetwork(graph, SpikingParameters(2, {"relu": NeuronLayer(theta, theta * 0, 4)}, {}))
    # Private, what `run` sets first: the pool alone, given spikes that no grid of this size would bring about.
    network._images, network._fan_out = 1, {"pool": torch.ones(1, 1, 1)}
    out = network.max_pool(node, (counts * 0.3).flatten(0, 1))
    torch.testing.assert_close(out.flatten(), torch.tensor([0.6, 0.0]))


def test_macs_and_fan_out_of_a_small_convolution() -> None:
    """3x3, stride 1, padding 1 on 2x3 pixels: every output reaches 4 or 6 inputs; by hand 28 taps, x 2 x 5 channels."""
    graph = Graph(
        [
            Node("input", "input", ()),
            Node("c", "conv", ("input",), {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}),
        ],
        ["c"],
        {"c.weight": torch.ones(5, 2, 3, 3), "c.bias": torch.zeros(5)},
    )
    assert dense_macs(graph, 2, 2, 3) == {"c": 28 * 2 * 5}
    assert fan_out_maps(graph, 2, 2, 3)["input"].tolist() == [[[20.0, 30.0, 20.0], [20.0, 30.0, 20.0]]] * 2


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(7, 9), (10, 8)])
def test_coverage_equals_gradient(stride: int, padding: int, dilation: int, size: tuple[int, int]) -> None:
    attrs = {"stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2, "groups": 2}
    nodes = [Node("input", "input", ()), Node("c", "conv", ("input",), attrs)]
    graph = Graph(nodes, ["c"], {"c.weight": torch.ones(4, 1, 3, 3), "c.bias": torch.zeros(4)})
    x = torch.zeros(1, 2, *size, requires_grad=True)
    F.conv2d(x, graph.tensors["c.weight"], None, stride, padding, dilation, 2).sum().backward()
    assert x.grad is not None
    assert torch.equal(coverage(graph, nodes[1], graph.shapes(2, *size)).float() * 2, x.grad[0, 0])
