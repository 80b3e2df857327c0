"""The spiking network against brute force: step by step, spikes convolved with ones, exact max-pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.graph import Graph, Node, Runner
from models.spiking.convert.fold import trace
from models.spiking.cost import coverage, dense_macs, fan_out_maps, node_shapes
from models.spiking.network import SpikingNetwork, SpikingParameters
from models.spiking.neurons import burst_step
from tests.conftest import spiking


@pytest.fixture
def graph(network: nn.Module) -> Graph:
    return trace(network, torch.zeros(1, 4, 16, 16))


class StepByStep:
    """A second, naive implementation: one timestep at a time, in loops, remembering every spike map."""

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        self.graph, self.parameters = graph, parameters
        self.spikes: dict[str, list[Tensor]] = {}

    def run(self, x: Tensor) -> list[Tensor]:
        v: dict[str, Tensor] = {}
        summed: dict[str, Tensor] = {}
        totals = {name: torch.tensor(0.0) for name in self.graph.outputs}
        plain = Runner(self.graph)
        for _ in range(self.parameters.timesteps):
            values: dict[str, Tensor] = {}
            counts: dict[str, Tensor] = {}  # spikes on their way, for counting
            for node in self.graph.nodes:
                args = [values[name] for name in node.inputs]
                carried = [counts[name] for name in node.inputs if name in counts]
                if node.op == "input":
                    values[node.name], counts[node.name] = x, x
                elif node.op == "relu":
                    layer = self.parameters.neurons[node.name]
                    theta, shift = layer.theta[:, None, None], layer.shift[:, None, None]
                    start = v.get(node.name, (theta / 2).expand(args[0].shape))
                    n, v[node.name] = burst_step(start, args[0] + shift, theta, layer.phi)
                    values[node.name], counts[node.name] = n * theta, n
                elif node.op == "max_pool":
                    before = summed.get(node.name)
                    key = node.name + "/in"
                    summed[key] = summed.get(key, torch.tensor(0.0)) + carried[0]
                    now = plain.max_pool(node, summed[key])
                    n = now - before if before is not None else now
                    summed[node.name] = now
                    values[node.name], counts[node.name] = n * (args[0].amax() * 0 + self._theta(node)), n
                elif node.op == "conv":
                    values[node.name] = plain.conv(node, args[0])
                else:
                    values[node.name] = getattr(plain, node.op)(node, *args)
                    counts[node.name] = getattr(plain, node.op)(node, *carried)
            for name, n in counts.items():
                self.spikes.setdefault(name, []).append(n)
            for name in totals:
                totals[name] = totals[name] + values[name]
        shift = self.parameters.readout_shift
        return [totals[n] / self.parameters.timesteps + shift[n][:, None, None] for n in self.graph.outputs]

    def _theta(self, node: Node) -> Tensor:
        by_name = {n.name: n for n in self.graph.nodes}
        source = by_name[node.inputs[0]]
        while source.op == "max_pool":
            source = by_name[source.inputs[0]]
        return self.parameters.neurons[source.name].theta[:, None, None]


@pytest.mark.parametrize("timesteps", [1, 2, 4])
@pytest.mark.parametrize("phi", [1, 4])
def test_folded_equals_step_by_step(graph: Graph, grid: Tensor, timesteps: int, phi: int) -> None:
    parameters = spiking(graph, grid, timesteps, phi)
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


@pytest.mark.parametrize(("timesteps", "phi"), [(1, 8), (3, 2)])
def test_synaptic_operations_equal_spikes_convolved_with_ones(graph: Graph, grid: Tensor, timesteps: int, phi: int) -> None:
    """Every convolution run again with all weights 1 on the spikes that reach it: the sum of its output is its operations."""
    parameters = spiking(graph, grid, timesteps, phi)
    slow = StepByStep(graph, parameters)
    slow.run(grid)
    _, stats = SpikingNetwork(graph, parameters).run(grid)
    brute = torch.zeros(len(grid), dtype=torch.float64)
    for node in graph.nodes:
        if node.op != "conv":
            continue
        ones = torch.ones_like(graph.tensors[f"{node.name}.weight"]).double()
        arriving = slow.spikes[node.inputs[0]]
        steps = arriving[:1] if node.inputs[0] == graph.nodes[0].name else arriving  # the first current is computed once
        a = node.attrs
        for spikes in steps:
            brute += F.conv2d(spikes.double(), ones, None, a["stride"], a["padding"], a["dilation"], a["groups"]).sum((1, 2, 3))
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
    from models.spiking.neurons import NeuronLayer

    network = SpikingNetwork(graph, SpikingParameters(2, {"relu": NeuronLayer(theta, theta * 0, 4)}, {}))
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
    assert torch.equal(coverage(graph, nodes[1], node_shapes(graph, 2, *size)).float() * 2, x.grad[0, 0])
