"""A graph run as a burst-spiking network: every relu is a layer of burst neurons, everything else passes spikes on.

All T timesteps of a node are computed together, folded into the batch as `(T * N, C, H, W)`, time outermost. What is the
same at every timestep (the grid, and the first convolution's current) is `(N, C, H, W)` and computed once. The outputs are
currents of the last convolutions, averaged over T and never spiking.

Max-pool: a unit emits, at every timestep, by how much the largest accumulated spike count in its window has grown. The sum
over time is then exactly the max-pool of the summed counts (taking the maximum of every timestep's counts is not). Where
negative spikes arrive it can shrink, and the pool's spike is negative. Average pooling is linear and passes spikes on, each
worth its share of the window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.stats import LayerStats, SpikeStats
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.cost import dense_macs, fan_out_maps
from evburst.models.spiking.neurons import NeuronLayer, at_rest, burst_scan, burst_scan_fused


@dataclass(frozen=True)
class SpikingParameters:
    """What conversion adds to a graph.

    Attributes:
        timesteps: T.
        neurons: for every relu node, its neurons.
        readout_shift: for every output node, `(C,)` float32 added to the averaged current.
    """

    timesteps: int
    neurons: dict[str, NeuronLayer]
    readout_shift: dict[str, Tensor]


@dataclass
class SpikingState:
    """What a network remembers between two runs, so that the second one goes on where the first one stopped.

    Attributes:
        neurons: of every layer of neurons, see `at_rest`.
        accumulated: summed counts `(N, C, H, W)` of what every max-pool reads.
        constant: of this window, what is the same at every timestep: the first currents.
    """

    neurons: dict[str, Tensor] = field(default_factory=dict)
    accumulated: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Tensor] = field(default_factory=dict)


class Counted(NamedTuple):
    """What was counted at a node: `(N, 4)` float64, spikes, synaptic operations, these with a burst counted once, and bursts."""

    name: str
    kind: Literal["input", "neuron", "pool"]
    neurons: int
    totals: Tensor


class SpikingNetwork(Runner):
    """The spiking engine that every other one is compared with.

    Args:
        graph: the network.
        parameters: its neurons.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        super().__init__(graph)
        self.parameters = parameters
        self._theta = signal_thresholds(graph, parameters.neurons)
        self._costs: dict[tuple[object, ...], tuple[dict[str, Tensor], dict[str, int]]] = {}
        self._constant = _constant_nodes(graph)
        self._counted: list[Counted] = []
        self._images, self._timesteps = 0, parameters.timesteps
        self._fan_out: dict[str, Tensor] = {}
        self._state: SpikingState | None = None

    def run(
        self, grid: Tensor, timesteps: int | None = None, state: SpikingState | None = None
    ) -> tuple[list[Tensor], SpikeStats]:
        """Outputs, averaged over the timesteps of this run, and spike counts.

        Args:
            grid: `(N, 2 * bins, H, W)` counts, float32 or uint8.
            timesteps: how many; None for the parameters' T.
            state: to go on from, and updated: the same grid's earlier timesteps.
        """
        self._timesteps, self._state = timesteps or self.parameters.timesteps, state
        macs = self.begin(grid)
        outputs = self(grid.float())
        return outputs, SpikeStats(tuple(self._layer_stats()), macs)

    def with_layers(self, tensors: dict[str, Tensor], neurons: dict[str, NeuronLayer]) -> SpikingNetwork:
        """The same network, begun with the same batch, with other weights and neurons."""
        graph = Graph(self.graph.nodes, self.graph.outputs, tensors)
        other = SpikingNetwork(graph, replace(self.parameters, neurons=neurons))
        other._costs, other._images, other._fan_out = self._costs, self._images, self._fan_out
        return other

    def begin(self, grid: Tensor) -> dict[str, int]:
        """Prepare for a batch `(N, 2 * bins, H, W)`; returns the ANN's multiply-accumulates by node."""
        self._counted, self._images = [], len(grid)
        channels, height, width = grid.shape[1:]
        key = channels, height, width, grid.device
        if key not in self._costs:
            maps = {name: counts.to(grid.device) for name, counts in fan_out_maps(self.graph, channels, height, width).items()}
            self._costs[key] = maps, dense_macs(self.graph, channels, height, width)
        self._fan_out, macs = self._costs[key]
        return macs

    def _layer_stats(self) -> list[LayerStats]:
        """What has been counted since `begin`, fetched from the device at once."""
        if not self._counted:
            return []
        totals, found = torch.stack([counted.totals for counted in self._counted]).cpu().numpy(), []
        for (name, kind, neurons, _), own in zip(self._counted, totals, strict=True):
            spikes, reached, graded, bursts = own.T
            active = bursts if kind == "neuron" else None
            found.append(LayerStats(name, kind, neurons, self._timesteps, spikes, reached, graded, active))
        return found

    def input(self, node: Node, x: Tensor) -> Tensor:
        totals = _count(x[None], self._fan_out[node.name])
        if self._state is not None and self._state.constant:  # its events have been added up in an earlier run
            totals = torch.zeros_like(totals)
        self._counted.append(Counted(node.name, "input", 0, totals))
        return x

    def conv(self, node: Node, x: Tensor) -> Tensor:
        if self._state is None or node.name not in self._constant:
            return super().conv(node, x)
        if node.name not in self._state.constant:
            self._state.constant[node.name] = super().conv(node, x)
        return self._state.constant[node.name]

    def relu(self, node: Node, x: Tensor) -> Tensor:
        layer, timesteps = self.parameters.neurons[node.name], self._timesteps
        current = x.reshape(-1, self._images, *x.shape[1:]).contiguous()
        fan_out = self._fan_out[node.name]
        state = None
        if self._state is not None:
            state = self._state.neurons.setdefault(node.name, at_rest(layer, current[0]))
        out, totals = self._scan(current, layer, timesteps, fan_out, state)
        self._counted.append(Counted(node.name, "neuron", int(np.prod(x.shape[1:])), totals))
        return out.flatten(0, 1)

    def _scan(
        self, current: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `burst_scan_fused`."""
        if current.device.type == "cpu":
            return burst_scan_fused(current, layer, timesteps, fan_out, state)
        counts = burst_scan(current, layer, timesteps, state)
        return counts * layer.theta[:, None, None], _count(counts, fan_out)

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        theta = self._theta[node.inputs[0]]
        assert theta is not None  # the tracer lets max-pool read spikes only
        scale = theta.to(x.device)[:, None, None]
        summed = torch.round(x / scale).reshape(-1, self._images, *x.shape[1:]).cumsum(0)
        before = torch.zeros_like(summed[:1])
        if self._state is not None:
            before = before + self._state.accumulated.get(node.name, 0)
            summed = summed + before
            self._state.accumulated[node.name] = summed[-1]
        counts = self._growth(node, torch.cat([before, summed]))
        self._counted.append(Counted(node.name, "pool", 0, _count(counts, self._fan_out[node.name])))
        return (counts * scale).flatten(0, 1)

    def _growth(self, node: Node, summed: Tensor) -> Tensor:
        """By how much the largest of every window has grown at each of T timesteps; `summed`: `(1 + T, N, C, H, W)`."""
        pooled = F.max_pool2d(summed.flatten(0, 1), node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"])
        return torch.diff(pooled.reshape(-1, self._images, *pooled.shape[1:]), dim=0)

    def add(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        return torch.add(*self._aligned(a, b))

    def concat(self, node: Node, *parts: Tensor) -> Tensor:
        return torch.cat(self._aligned(*parts), 1)

    def read_out(self, name: str, value: Tensor) -> Tensor:
        mean = value.reshape(-1, self._images, *value.shape[1:]).mean(0)
        return mean + self.parameters.readout_shift[name][:, None, None]

    def _aligned(self, *signals: Tensor) -> list[Tensor]:
        """Signals that do not change in time repeated, if others do."""
        length = max(len(signal) for signal in signals)
        return [s if len(s) == length else s.repeat(length // len(s), 1, 1, 1) for s in signals]


def _constant_nodes(graph: Graph) -> frozenset[str]:
    """Nodes that no neuron comes before: the same at every timestep."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or (node.op != "relu" and found.issuperset(node.inputs)):
            found.add(node.name)
    return frozenset(found)


def signal_thresholds(graph: Graph, neurons: Mapping[str, NeuronLayer]) -> dict[str, Tensor | None]:
    """What one count of each channel of each node is worth, where its values are whole multiples of that; None for the others.

    Of neurons, and of what passes their spikes on, the threshold; of a sum of spikes whose thresholds differ by powers of two
    (calibration sees to it), the lowest.
    """
    found: dict[str, Tensor | None] = {}
    for node in graph.nodes:
        sources = [found[name] for name in node.inputs]
        known = [theta for theta in sources if theta is not None]
        if node.op == "relu":
            found[node.name] = neurons[node.name].theta if node.name in neurons else None
        elif node.op in ("max_pool", "upsample", "concat") and len(known) == len(sources):
            found[node.name] = torch.cat(known)
        elif node.op == "slice" and known:
            found[node.name] = known[0][node.attrs["start"] : node.attrs["stop"]]
        elif node.op == "add" and len(known) == len(sources):
            found[node.name] = _common_unit(*known)
        else:
            found[node.name] = None
    return found


def _common_unit(a: Tensor, b: Tensor) -> Tensor | None:
    """The lower of two thresholds of each channel, if the other is a power of two of it."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    power = torch.round(torch.log2(high / low))
    return low if bool((low * 2.0**power == high).all()) else None


def _count(counts: Tensor, fan_out: Tensor) -> Tensor:
    """The totals of `Counted` of counts `(T, N, C, H, W)`; spikes of either sign count alike."""
    summed, bursts = counts.abs().sum(0), (counts != 0).sum(0)
    columns = summed, summed * fan_out, bursts * fan_out, bursts
    return torch.stack([column.double().flatten(1).sum(1) for column in columns], 1)
