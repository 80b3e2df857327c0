"""Silence: resting counts, a network that really emits differences from them, and the operations that these cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.stats import BEYOND_SILENCE, COUNTS, LayerStats, SpikeStats
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, SpikingState
from tests.conftest import EveryOperation, FurtherOperations, drawn, spiking
from tests.differences import DifferenceNetwork
from tests.step_by_step import StepByStep, ones_for_synapses


@pytest.fixture(params=[EveryOperation, FurtherOperations])
def graph(request: pytest.FixtureRequest) -> Graph:
    return trace(drawn(request.param), torch.zeros(1, 4, 16, 16))


@pytest.fixture
def grid() -> Tensor:
    """Three windows of 16 x 16: a busy one, one without events, and one with a single event."""
    counts = torch.poisson(torch.full((3, 4, 16, 16), 0.7), generator=torch.Generator().manual_seed(1))
    counts[1:] = 0
    counts[2, 1, 5, 0] = 1
    return counts


def dyadic(graph: Graph, parameters: SpikingParameters) -> tuple[Graph, SpikingParameters]:
    """The network with all values rounded to few binary digits, so that float32 sums are exact in whatever order.

    Shifts are raised, so that it spikes in silence.
    """
    neurons = {
        name: replace(
            layer,
            theta=2.0 ** torch.round(torch.log2(layer.theta)).clamp(-3, 1),
            shift=torch.round(layer.shift * 8) / 8 + 0.125,
            negative_slope=0.125 if layer.negative_slope else 0.0,
        )
        for name, layer in parameters.neurons.items()
    }
    tensors = {name: torch.round(tensor * 8) / 8 for name, tensor in graph.tensors.items()}
    shifts = {name: torch.round(shift * 8) / 8 for name, shift in parameters.readout_shift.items()}
    return Graph(graph.nodes, graph.outputs, tensors), replace(parameters, neurons=neurons, readout_shift=shifts)


def counts_of(layer: LayerStats, names: tuple[str, ...]) -> list[list[float]]:
    return [getattr(layer, name).tolist() for name in names]


def same_differences(emitted: SpikeStats, reference: SpikeStats) -> None:
    """What a network of differences emits is what the reference engine counts as differences."""
    for a, b in zip(emitted.layers, reference.layers, strict=True):
        assert (a.name, a.kind, a.neurons, a.timesteps) == (b.name, b.kind, b.neurons, b.timesteps)
        assert counts_of(a, COUNTS) == counts_of(b, BEYOND_SILENCE), a.name


@pytest.mark.parametrize("timesteps", [1, 2, 3, 4])
@pytest.mark.parametrize(("phi", "signed"), [(1, False), (8, False), (4, True)], ids=["single", "bursts", "signed"])
def test_differences_give_the_same_read_outs_bit_for_bit(
    graph: Graph, grid: Tensor, timesteps: int, phi: int, signed: bool
) -> None:
    graph, parameters = dyadic(graph, spiking(graph, grid[:1], timesteps, phi, signed=signed))
    expected, reference = SpikingNetwork(graph, parameters).run(grid)
    outputs, emitted = DifferenceNetwork(graph, parameters).run(grid)
    for mine, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(mine, theirs)
    same_differences(emitted, reference)
    neurons = [layer for layer in reference.layers if layer.kind == "neuron"]
    assert sum(layer.spikes[1] for layer in neurons) > 50
    for name in BEYOND_SILENCE:
        busy, silent, single = (sum(getattr(layer, name)[i] for layer in reference.layers) for i in range(3))
        assert silent == 0 < single < busy


@pytest.mark.parametrize("timesteps", [1, 2, 4])
@pytest.mark.parametrize("size", [(12, 20), (9, 13)])
def test_of_any_weights_they_are_equal_within_rounding(timesteps: int, size: tuple[int, int]) -> None:
    graph = trace(drawn(FurtherOperations), torch.zeros(1, 4, 16, 16))
    grid = torch.poisson(torch.full((2, 4, *size), 0.3), generator=torch.Generator().manual_seed(2))
    parameters = spiking(graph, grid, timesteps, 8)
    expected, _ = SpikingNetwork(graph, parameters).run(grid)
    outputs, _ = DifferenceNetwork(graph, parameters).run(grid)
    for mine, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_network_of_differences_has_no_memory(graph: Graph, grid: Tensor) -> None:
    network = DifferenceNetwork(graph, spiking(graph, grid[:1], 2, 4))
    with pytest.raises(ValueError, match="has no memory"):
        network.run(grid, {})


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
def test_counts_in_silence_are_those_of_an_empty_window(graph: Graph, grid: Tensor, signed: bool) -> None:
    """Per timestep; a shorter run has the beginning of a longer one; equal at all pixels of a channel away from borders."""
    network = SpikingNetwork(graph, spiking(graph, grid[:1], 4, 8, signed=signed))
    empty = torch.zeros(1, 4, 64, 64)
    long, short = network.resting(empty, 4), SpikingNetwork(graph, network.parameters).resting(empty, 2)
    assert long is not None
    assert short is not None
    _, stats = network.run(empty)
    for layer in stats.layers[1:]:
        counts = long[layer.name]
        assert counts.dtype == torch.int16
        assert counts.shape[0] == 4
        assert counts.abs().sum() == layer.spikes[0]
        assert torch.equal(short[layer.name], counts[:2])
        rows, columns = counts.shape[2:]
        inner = counts[:, :, rows // 2 - 1 : rows // 2 + 1, columns // 2 - 1 : columns // 2 + 1]
        assert torch.equal(inner, inner[:, :, :1, :1].expand_as(inner)), layer.name
    assert any(not torch.equal(counts, counts[:, :, :1, :1].expand_as(counts)) for counts in long.values())


def test_they_are_computed_once_for_each_size(graph: Graph, grid: Tensor) -> None:
    network = SpikingNetwork(graph, spiking(graph, grid[:1], 2, 4))
    network.run(grid)
    kept = network.resting(grid, 2)
    network.run(grid[:1])
    assert network.resting(grid, 1) is kept
    network.run(grid[..., :12])
    assert network.resting(grid, 2) is kept


@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
def test_a_run_that_continues_compares_with_the_same_timesteps(graph: Graph, grid: Tensor, signed: bool) -> None:
    """Operations beyond silence of four single timesteps are those of all at once."""
    network = SpikingNetwork(graph, spiking(graph, grid[:1], 4, 2, signed=signed))
    _, whole = network.run(grid[:1])
    state, totals = SpikingState(), dict.fromkeys(BEYOND_SILENCE, 0.0)
    for _ in range(4):
        _, stats = network.run_timestep(grid[:1], state)
        for name in totals:
            totals[name] += sum(float(getattr(layer, name)[0]) for layer in stats.layers)
    assert state.elapsed == 4
    assert totals == {name: sum(float(getattr(layer, name)[0]) for layer in whole.layers) for name in BEYOND_SILENCE}


def differences_by_force(slow: StepByStep, silent: StepByStep, images: int) -> Tensor:
    """Synaptic operations `(N,)` of the differences between two runs: every convolution again, with all weights 1."""
    graph, plain = slow.graph, Runner(slow.graph)
    brute = torch.zeros(images, dtype=torch.float64)
    for t in range(slow.parameters.timesteps):
        carried: dict[str, Tensor] = {}
        for node in graph.nodes:
            arriving = [carried[name] for name in node.inputs]
            if node.op in ("input", "relu", "max_pool"):
                carried[node.name] = (slow.spikes[node.name][t] - silent.spikes[node.name][t]).abs()
            elif node.op == "conv":
                carried[node.name] = torch.zeros_like(slow.spikes[node.name][t])  # a current
            else:
                carried[node.name] = getattr(plain, node.op)(node, *arriving)
            if node.op == "relu":
                brute += arriving[0].double().sum((1, 2, 3))
            if node.op == "conv" and (t == 0 or node.inputs[0] != graph.nodes[0].name):  # the first current is computed once
                a, ones = node.attrs, ones_for_synapses(graph.tensors[f"{node.name}.weight"]).double()
                settings = None, a["stride"], a["padding"], a["dilation"], a["groups"]
                brute += F.conv2d(arriving[0].double(), ones, *settings).sum((1, 2, 3))
    return brute


@pytest.mark.parametrize(("timesteps", "phi"), [(1, 8), (3, 2)])
def test_operations_equal_differences_convolved_with_ones(grid: Tensor, timesteps: int, phi: int) -> None:
    graph = trace(drawn(EveryOperation), torch.zeros(1, 4, 16, 16))
    graph, parameters = dyadic(graph, spiking(graph, grid[:1], timesteps, phi))
    slow, silent = StepByStep(graph, parameters), StepByStep(graph, parameters)
    slow.run(grid)
    silent.run(torch.zeros_like(grid))
    _, stats = SpikingNetwork(graph, parameters).run(grid)
    counted = sum(torch.from_numpy(layer.synaptic_ops_beyond_silence) for layer in stats.layers)  # type: ignore[arg-type]
    assert counted.tolist() == differences_by_force(slow, silent, len(grid)).tolist()  # type: ignore[union-attr]


def test_counts_of_several_runs_are_put_together(graph: Graph, grid: Tensor) -> None:
    network = SpikingNetwork(graph, spiking(graph, grid[:1], 2, 4))
    _, whole = network.run(grid)
    parts = SpikeStats.concatenate([network.run(grid[:1])[1], network.run(grid[1:])[1]])
    for a, b, c in zip(whole.layers, parts.layers, whole.of_image(2).layers, strict=True):
        assert counts_of(a, BEYOND_SILENCE) == counts_of(b, BEYOND_SILENCE)
        assert counts_of(c, BEYOND_SILENCE) == [own[2:] for own in counts_of(a, BEYOND_SILENCE)]
    uncounted = whole.layers[1]._replace(spikes_beyond_silence=None)
    mixed = SpikeStats.concatenate([SpikeStats((whole.layers[1],), {}), SpikeStats((uncounted,), {})])
    assert mixed.layers[0].spikes_beyond_silence is None
    assert mixed.layers[0].synaptic_ops_beyond_silence is not None
