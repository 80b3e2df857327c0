"""Reference execution of a graph as a burst-spiking network: every relu is a layer of burst neurons.

All T timesteps of a node are computed together, as a batch `(T * N, C, H, W)` with time outermost. Values that are equal at
every timestep (the grid, and the current of the first convolution) are computed once, as `(N, C, H, W)`. The outputs are
the currents of the last convolutions, averaged over T; these do not spike.

Max-pool: at every timestep a unit emits the growth of the largest accumulated spike count in its window. Summed over time,
that is exactly the max-pool of the summed counts, which the maximum of every timestep's counts is not. With negative spikes
in its input, the largest count can also shrink; the pool then emits negative spikes. Average pooling is linear: it passes
spikes on, each with its fraction of the window.

Hold: passes the spikes of a layer of neurons on where events are; elsewhere it emits again what it emitted in the window
before. Networks with memory have one timestep: a window is their timestep, and what is held outlives it.
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
from evburst.models.graph import Graph, Memory, Node, Runner
from evburst.models.spiking.cost import dense_macs, fan_out_maps
from evburst.models.spiking.neurons import NeuronLayer, at_rest, burst_scan, burst_scan_fused
from evburst.models.spiking.silence import resting_counts


@dataclass(frozen=True, eq=False)
class SpikingParameters:
    """Parameters that turn a graph into a spiking network.

    Attributes:
        timesteps: T.
        neurons: parameters of the neurons of every relu node, by its name.
        readout_shift: `(C,)` float32 added to the averaged current of every output node, by its name.
    """

    timesteps: int
    neurons: dict[str, NeuronLayer]
    readout_shift: dict[str, Tensor]

    def on(self, device: torch.device, copy: bool = False) -> SpikingParameters:
        """Return the parameters on a device; `copy` as in `Graph.on`."""

        def placed(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, copy=copy)

        neurons = {name: replace(own, theta=placed(own.theta), shift=placed(own.shift)) for name, own in self.neurons.items()}
        return SpikingParameters(self.timesteps, neurons, {name: placed(own) for name, own in self.readout_shift.items()})


@dataclass
class SpikingState:
    """State of a network between runs, so that one run can continue where another one stopped.

    Attributes:
        neurons: state of every layer of neurons, see `at_rest`.
        accumulated: spike counts `(N, C, H, W)` summed over time, of the input of every max-pool.
        constant: currents of this window that are equal at every timestep.
        elapsed: number of timesteps that have been run.
    """

    neurons: dict[str, Tensor] = field(default_factory=dict)
    accumulated: dict[str, Tensor] = field(default_factory=dict)
    constant: dict[str, Tensor] = field(default_factory=dict)
    elapsed: int = 0


class Counted(NamedTuple):
    """Counts of a node.

    Attributes:
        name, kind: of the node.
        neurons: number of neurons, 0 for an input, a pool or a memory.
        totals: `(N, 4)` float64: spikes, synaptic operations, synaptic operations with each burst counted once, and bursts; or
            `(N, 7)`: also the first three of the differences from silence.
    """

    name: str
    kind: Literal["input", "neuron", "pool", "memory"]
    neurons: int
    totals: Tensor


class SpikingNetwork(Runner):
    """The reference engine, which all others are compared with.

    Args:
        graph: the network.
        parameters: thresholds, burst limits and shifts.

    Attributes:
        parameters: as given.
        sizes: by node, see `spike_sizes`.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        super().__init__(graph)
        self.parameters = parameters
        self.sizes = spike_sizes(graph, parameters.neurons)
        self._costs: dict[tuple[object, ...], tuple[dict[str, Tensor], dict[str, int]]] = {}
        self._constant = _constant_nodes(graph)
        self._counted: list[Counted] = []
        self._silent_counts: dict[tuple[object, ...], tuple[int, dict[str, Tensor]]] = {}
        self._resting: dict[str, Tensor] | None = None
        self._elapsed = 0
        self._images, self._timesteps = 0, parameters.timesteps
        self._fan_out: dict[str, Tensor] = {}
        self._state: SpikingState | None = None

    def run(self, grid: Tensor, memory: Memory | None = None) -> tuple[list[Tensor], SpikeStats]:
        """Run the network on a batch, from rest.

        Args:
            grid: `(N, 2 * bins, H, W)` counts, float32 or uint8.
            memory: of the window before, replaced by that of this one; see `Runner.compute`.

        Returns:
            Outputs averaged over the timesteps, and the spike counts.
        """
        return self._run(grid, self.parameters.timesteps, None, memory)

    def run_timestep(self, grid: Tensor, state: SpikingState) -> tuple[list[Tensor], SpikeStats]:
        """Run one timestep of a batch.

        Args:
            grid: as for `run`.
            state: after the earlier timesteps of the same grid; it is updated.

        Returns:
            Outputs and spike counts of this timestep.
        """
        return self._run(grid, 1, state, None)

    def _run(
        self, grid: Tensor, timesteps: int, state: SpikingState | None, memory: Memory | None
    ) -> tuple[list[Tensor], SpikeStats]:
        macs = self.begin(grid, timesteps, state)
        self._resting = self.resting(grid, self._elapsed + timesteps)
        outputs = self(grid.float(), memory)
        if state is not None:
            state.elapsed += timesteps
        return outputs, SpikeStats(tuple(self._layer_stats()), macs)

    def run_uncounted(self, grid: Tensor, memory: Memory | None = None) -> list[Tensor]:
        """Run the network on a batch and return its outputs only; faster than `run` for engines in which counting takes time.

        Args:
            grid: as for `run`.
            memory: as for `run`.
        """
        return self.run(grid, memory)[0]

    def with_layers(self, tensors: dict[str, Tensor], neurons: dict[str, NeuronLayer]) -> SpikingNetwork:
        """Return a network with other weights and neurons that is prepared for the same batch; of pruned weights, it counts the
        synapses of this one."""
        graph = Graph(self.graph.nodes, self.graph.outputs, tensors)
        other = SpikingNetwork(graph, replace(self.parameters, neurons=neurons))
        other._costs, other._images, other._fan_out = self._costs, self._images, self._fan_out
        return other

    def resting(self, grid: Tensor, timesteps: int) -> dict[str, Tensor] | None:
        """Spike counts in silence, for grids of this size and at least this many timesteps; see `resting_counts`.

        They are computed once for each size. None: this engine does not count differences from silence.
        """
        key = *grid.shape[1:], grid.device
        known, counts = self._silent_counts.get(key, (0, {}))
        if known < timesteps:
            silent = self.with_layers(self.graph.tensors, self.parameters.neurons)
            counts = resting_counts(silent, torch.zeros_like(grid[:1]).float(), timesteps)
            self._silent_counts[key] = timesteps, counts
        return counts

    def synapses(self) -> Graph:
        """The graph whose weights are counted."""
        return self.graph

    def begin(self, grid: Tensor, timesteps: int | None = None, state: SpikingState | None = None) -> dict[str, int]:
        """Prepare for a batch `(N, 2 * bins, H, W)`; returns the ANN's multiply-accumulates by node.

        Differences from silence are not counted unless `run` adds what it needs for that.

        Args:
            grid: as for `run`.
            timesteps: number of timesteps; None: T.
            state: after earlier timesteps of the same grid; None: at rest.
        """
        self._timesteps, self._state = timesteps or self.parameters.timesteps, state
        self._elapsed, self._resting = 0 if state is None else state.elapsed, None
        self._counted, self._images = [], len(grid)
        channels, height, width = grid.shape[1:]
        key = channels, height, width, grid.device
        if key not in self._costs:
            maps = {name: own.to(grid.device) for name, own in fan_out_maps(self.synapses(), channels, height, width).items()}
            self._costs[key] = maps, dense_macs(self.graph, channels, height, width)
        self._fan_out, macs = self._costs[key]
        return macs

    def _layer_stats(self) -> list[LayerStats]:
        """Convert all counts since `begin`, transferring them from the device in one go."""
        if not self._counted:
            return []
        totals, layers = torch.stack([counted.totals for counted in self._counted]).cpu().numpy(), []
        for (name, kind, neurons, _), own in zip(self._counted, totals, strict=True):
            spikes, operations, graded, bursts, *beyond = own.T
            active = bursts if kind == "neuron" else None
            layers.append(LayerStats(name, kind, neurons, self._timesteps, spikes, operations, graded, active, *beyond))
        return layers

    def input(self, node: Node, x: Tensor) -> Tensor:
        totals = count_spikes(x[None], self._fan_out[node.name], None if self._resting is None else torch.zeros_like(x[:1]))
        if self._state is not None and self._state.constant:  # an earlier run has counted its events
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
        out, totals = self._scan(current, layer, timesteps, fan_out, state, self._resting_of(node))
        self._counted.append(Counted(node.name, "neuron", int(np.prod(x.shape[1:])), totals))
        return out.flatten(0, 1)

    def _scan(
        self,
        current: Tensor,
        layer: NeuronLayer,
        timesteps: int,
        fan_out: Tensor,
        state: Tensor | None,
        resting: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run a layer of neurons; see `burst_scan_fused`."""
        if current.device.type == "cpu":
            return burst_scan_fused(current, layer, timesteps, fan_out, state, resting)
        counts = burst_scan(current, layer, timesteps, state)
        return counts * layer.theta[:, None, None], count_spikes(counts, fan_out, resting)

    def _resting_of(self, node: Node) -> Tensor | None:
        """Counts of a node in silence at the timesteps of this run, `(T, C, H, W)`; None: differences are not counted."""
        return None if self._resting is None else self._resting[node.name][self._elapsed : self._elapsed + self._timesteps]

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        size = self.sizes[node.inputs[0]]
        assert size is not None  # the tracer accepts a max-pool on spikes only
        scale = size.to(x.device)[:, None, None]
        summed = torch.round(x / scale).reshape(-1, self._images, *x.shape[1:]).cumsum(0)
        before = torch.zeros_like(summed[:1])
        if self._state is not None:
            before = before + self._state.accumulated.get(node.name, 0)
            summed = summed + before
            self._state.accumulated[node.name] = summed[-1]
        counts = self._growth(node, torch.cat([before, summed]))
        totals = count_spikes(counts, self._fan_out[node.name], self._resting_of(node))
        self._counted.append(Counted(node.name, "pool", 0, totals))
        return (counts * scale).flatten(0, 1)

    def _growth(self, node: Node, summed: Tensor) -> Tensor:
        """Growth of the largest value of every window at each of T timesteps; `summed` is `(1 + T, N, C, H, W)`."""
        pooled = F.max_pool2d(summed.flatten(0, 1), node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"])
        return torch.diff(pooled.reshape(-1, self._images, *pooled.shape[1:]), dim=0)

    def hold(self, node: Node, x: Tensor, grid: Tensor) -> Tensor:
        spikes, size = super().hold(node, x, grid), self.sizes[node.name]
        assert size is not None  # it holds spikes of neurons
        counts = torch.round(spikes / size.to(spikes.device)[:, None, None]).reshape(-1, self._images, *spikes.shape[1:])
        totals = count_spikes(counts, self._fan_out[node.name], self._resting_of(node))
        self._counted.append(Counted(node.name, "memory", 0, totals))
        return spikes

    def add(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        return torch.add(*self._aligned(a, b))

    def concat(self, node: Node, *parts: Tensor) -> Tensor:
        return torch.cat(self._aligned(*parts), 1)

    def read_out(self, name: str, value: Tensor) -> Tensor:
        mean = value.reshape(-1, self._images, *value.shape[1:]).mean(0)
        return mean + self.parameters.readout_shift[name][:, None, None]

    def _aligned(self, *signals: Tensor) -> list[Tensor]:
        """Repeat signals that are constant in time if others are not."""
        length = max(len(signal) for signal in signals)
        return [s if len(s) == length else s.repeat(length // len(s), 1, 1, 1) for s in signals]


def _constant_nodes(graph: Graph) -> frozenset[str]:
    """Names of the nodes before any neuron, whose values are equal at every timestep."""
    constant: set[str] = set()
    for node in graph.nodes:
        if node.op == "input" or (node.op != "relu" and constant.issuperset(node.inputs)):
            constant.add(node.name)
    return frozenset(constant)


def spike_sizes(graph: Graph, neurons: Mapping[str, NeuronLayer]) -> dict[str, Tensor | None]:
    """Value of one spike, per channel, for every node whose values are integer multiples of it; None for the others.

    For neurons and nodes that pass their spikes on, it is the threshold. For a sum of spikes whose thresholds differ by powers
    of two (as calibration arranges), it is the lowest of them.
    """
    sizes: dict[str, Tensor | None] = {}
    for node in graph.nodes:
        sources = [sizes[name] for name in node.inputs]
        known = [size for size in sources if size is not None]
        if node.op == "relu":
            sizes[node.name] = neurons[node.name].theta if node.name in neurons else None
        elif node.op == "hold":
            sizes[node.name] = sources[0]
        elif node.op in ("max_pool", "upsample", "concat") and len(known) == len(sources):
            sizes[node.name] = torch.cat(known)
        elif node.op == "slice" and known:
            sizes[node.name] = known[0][node.attrs["start"] : node.attrs["stop"]]
        elif node.op == "add" and len(known) == len(sources):
            sizes[node.name] = _common_size(*known)
        else:
            sizes[node.name] = None
    return sizes


def _common_size(a: Tensor, b: Tensor) -> Tensor | None:
    """Per channel, the lower of two thresholds if the other is a power-of-two multiple of it everywhere; else None."""
    same = torch.frexp(a).mantissa == torch.frexp(b).mantissa
    return torch.minimum(a, b) if bool(same.all()) else None


def count_spikes(counts: Tensor, fan_out: Tensor, resting: Tensor | None = None) -> Tensor:
    """Count spikes into the totals of `Counted`; negative spikes count like positive ones.

    Args:
        counts: `(T, N, C, H, W)`.
        fan_out: `(C, H, W)`.
        resting: `(T, C, H, W)` counts in silence, to count the differences as well.
    """
    summed, bursts = counts.abs().sum(0), (counts != 0).sum(0)
    columns = [summed, summed * fan_out, bursts * fan_out, bursts]
    if resting is not None:
        differences = counts - resting[:, None]
        summed, changed = differences.abs().sum(0), (differences != 0).sum(0)
        columns += [summed, summed * fan_out, changed * fan_out]
    return torch.stack([column.double().flatten(1).sum(1) for column in columns], 1)
