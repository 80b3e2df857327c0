"""Every engine beside the reference: the same spikes where arithmetic allows it, the same counts always."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import ConfigError
from data.stats import SpikeStats
from models.graph import Graph, Node
from models.runtime import ENGINES, choose, open_engine
from models.runtime.plan import reads
from models.runtime.quantise import integer_weights, pack
from models.runtime.simd import AVAILABLE, LANES
from models.spiking.convert.fold import trace
from models.spiking.network import SpikingNetwork, SpikingParameters
from models.spiking.neurons import NeuronLayer, burst_scan
from tests.conftest import spiking

integers = pytest.mark.skipif(not AVAILABLE, reason="needs AVX2")
SIZES = [(12, 20), (8, 8), (20, 36), (16, 44)]


@pytest.fixture
def graph(network: nn.Module) -> Graph:
    return trace(network, torch.zeros(1, 4, 16, 16))


def grids(n: int, size: tuple[int, int], seed: int = 1, rate: float = 0.7) -> Tensor:
    counts = torch.poisson(torch.full((n, 4, *size), rate), generator=torch.Generator().manual_seed(seed))
    return counts.clamp(max=10).to(torch.uint8)


def exact(graph: Graph, parameters: SpikingParameters, largest: int) -> tuple[Graph, SpikingParameters]:
    """Weights that are multiples of the power of two at or above 1 / `largest`, the largest of every channel being `largest`
    of them, and thresholds of 1: sums in float32 and rounding to integers are both exact, so spikes must be equal bit for bit."""
    generator = torch.Generator().manual_seed(5)
    unit = 2.0 ** -int(np.log2(largest))
    tensors = {}
    for name, tensor in graph.tensors.items():
        # Where an addition meets one of its inputs again, two weights add up: together they stay below `largest`.
        drawn = torch.randint(-largest // 3, largest // 3 + 1, tensor.shape, generator=generator).float()
        if tensor.ndim > 1:
            drawn.view(len(drawn), -1)[:, 0] = float(largest)
        tensors[name] = drawn * unit
    neurons = {
        name: NeuronLayer(torch.ones_like(layer.theta), torch.round(layer.shift * 64) / 64 - 1, layer.phi)
        for name, layer in parameters.neurons.items()
    }
    return Graph(graph.nodes, graph.outputs, tensors), replace(parameters, neurons=neurons)


def same_counts(mine: SpikeStats, theirs: SpikeStats) -> None:
    assert mine.dense_macs == theirs.dense_macs
    assert [layer.name for layer in mine.layers] == [layer.name for layer in theirs.layers]
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        assert (a.kind, a.neurons, a.timesteps) == (b.kind, b.neurons, b.timesteps)
        for what in ("spikes", "synaptic_ops", "graded_ops"):
            assert getattr(a, what).tolist() == getattr(b, what).tolist(), (a.name, what)


@integers
@pytest.mark.parametrize(("engine", "largest"), [("int8", 127), ("int15", 128 * 127 + 63)])
@pytest.mark.parametrize("timesteps", [1, 2, 3, 4])
@pytest.mark.parametrize("phi", [1, 2, 8])
def test_bit_for_bit_where_weights_are_integers(graph: Graph, engine: str, largest: int, timesteps: int, phi: int) -> None:
    """Spikes, synaptic operations, graded operations of every layer, and outputs; every operation; many sizes."""
    graph, parameters = exact(graph, spiking(graph, grids(2, (12, 20)).float(), timesteps, phi), largest)
    fast, slow = open_engine(engine, graph, parameters, 10), SpikingNetwork(graph, parameters)
    for seed, size in enumerate(SIZES):
        grid = grids(1 + seed % 2, size, seed)
        outputs, stats = fast.run(grid)
        expected, reference = slow.run(grid)
        same_counts(stats, reference)
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert sum(layer.spikes.sum() for layer in stats.layers if layer.kind == "neuron") > 100
