"""The int8 engine: uint8 spike counts, weights of 8 or 15 bits, exact sums, and neurons fused with their convolution.

The first run at an input size goes through four phases: plan (which operations, plan.py), layout (where buffers lie,
layout.py), tables (what the kernel reads, tables.py) and program (the buffers themselves, program.py). Later runs reuse the
program.

The conversion has already rounded the weights (models/spiking/rounding.py); weights that it has not rounded are rounded here.
Layers in integer form (models/spiking/integer_form.py) fire the same spikes as in the reference engine. In other layers,
neurons within float32 rounding of their threshold can differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.stats import LayerStats, SpikeStats
from evburst.models.graph import Graph, Memory, Node
from evburst.models.runtime.counting import FanOut, count_spikes, grid_counts
from evburst.models.runtime.int8.hold import active_cells
from evburst.models.runtime.int8.layout import lay_out
from evburst.models.runtime.int8.plan import Planner, Reading, Step
from evburst.models.runtime.int8.program import Program
from evburst.models.runtime.int8.quantise import PackedWeights, Unpacked, pack
from evburst.models.runtime.int8.signals import Signal, Source, reads
from evburst.models.runtime.int8.tables import Tabulator
from evburst.models.spiking.network import Counted, SpikingNetwork, SpikingParameters
from evburst.models.spiking.rounding import input_sizes
from evburst.models.spiking.silence import as_counts

_AS_LAYER_STATS = [0, 1, 3, 2, 4, 5, 7]
"""Counters of kernels.py in the order of LayerStats; differences have no number of active neurons there."""


class IntegerNetwork(SpikingNetwork):
    """A spiking network in integer arithmetic; the reference engine computes the nodes that cannot be.

    Args:
        graph: the network.
        parameters: thresholds, burst limits and shifts.
        max_count: largest count of a grid; the reference engine takes over for grids that exceed it.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, max_count: int = 255) -> None:
        super().__init__(graph, parameters)
        self._max_count = max_count
        self._order = {node.name: i for i, node in enumerate(graph.nodes)}
        self._hold_fan_out: dict[tuple[str, tuple[int, ...]], FanOut] = {}
        self._grid: NDArray[np.uint8] | None = None
        self._programs: dict[tuple[int, ...], Program] = {}
        self._weights: dict[tuple[str, ...], PackedWeights | None] = {}

    @torch.inference_mode()
    def run(self, grid: Tensor, memory: Memory | None = None) -> tuple[list[Tensor], SpikeStats]:
        """Run the network on a batch; see SpikingNetwork.run. The outputs are valid until the next run."""
        macs = self.begin(grid)
        counts = grid_counts(grid)
        program = self._program(tuple(grid.shape))
        totals = None if counts is None else program.pack(counts)
        if totals is None or totals[:, 3].max() > self._max_count:
            return super().run(grid.float(), memory)
        self._resting = program.resting
        self._memory, self._grid = {} if memory is None else memory, counts
        values: dict[str, Tensor] = {}
        if totals[:, 0].any() or not program.plan.on_integers:
            values = self._compute(program)
        else:
            program.recall_silence()
        self._memory = {}
        outputs = [self._output(name, program, values) for name in self.graph.outputs]
        return outputs, SpikeStats(self._all_stats(totals, program), macs)

    def _compute(self, program: Program, skip: bool = True) -> dict[str, Tensor]:
        """Compute all nodes after the input; returns the values of those that the reference engine computed."""
        values: dict[str, Tensor] = {}
        for item in program.tables.runs:
            if isinstance(item, slice):
                program.run(item, skip)
            elif item.node.op == "hold" and item.out is not None:
                self._hold_counts(item.node, item.out, program)
            else:
                self._by_reference(item, program, values)
        return values

    def _program(self, shape: tuple[int, ...]) -> Program:
        """The program for grids of a shape `(N, C, H, W)`, made at its first use."""
        if shape not in self._programs:
            shapes, parameters = self.graph.shapes(*shape[1:]), self.parameters
            plan = Planner(self.graph, parameters.neurons, shapes, parameters.timesteps, self._max_count, self._packed).plan()
            layout = lay_out(plan, parameters.timesteps, shape[0])
            tables = Tabulator(plan, layout, parameters, self.graph.tensors, self._fan_out).tables()
            program = Program(plan, layout, tables, self._fan_out[plan.sources[0].name])
            values = self._compute(program, skip=False)
            self._counted.clear()
            self._memory = {}
            program.remember_silence()
            program.resting |= self._resting_of_values(values)
            self._programs[shape] = program
        return self._programs[shape]

    def _resting_of_values(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Counts `(T, C, H, W)` of nodes that the reference engine computed, given their values for a window without events."""
        return {
            node.name: as_counts(value.reshape(-1, self._images, *value.shape[1:])[:, 0], self.sizes[node.name])
            for node in self.graph.nodes
            if node.op in ("relu", "max_pool") and (value := values.get(node.name)) is not None
        }

    def _packed(self, readings: Sequence[Reading]) -> PackedWeights | None:
        """Pack the weights of convolutions, once for all shapes of grids; see plan.Pack."""
        key = tuple(
            f"{conv.name} {part.source.name} {part.first} {part.channels} {part.at}"
            for conv, signal in readings
            for part in signal
        )
        if key not in self._weights:
            self._weights[key] = pack([self._unpacked(*reading) for reading in readings])
        return self._weights[key]

    def _unpacked(self, conv: Node, signal: Signal) -> Unpacked:
        tensors, read = self.graph.tensors, input_sizes(self.graph, conv, self.sizes)
        return Unpacked(tensors[f"{conv.name}.weight"], reads(signal), read, tensors.get(f"{conv.name}.step"))

    def _by_reference(self, step: Step, program: Program, values: dict[str, Tensor]) -> None:
        """Compute a node with the reference engine; spikes that it emits are written to the arena as counts."""
        if step.node.op == "input":
            return
        arguments = [values[name] if name in values else self._spikes(name, program) for name in step.node.inputs]
        values[step.node.name] = value = getattr(self, step.node.op)(step.node, *arguments)
        if step.out is not None:
            theta = torch.from_numpy(step.out.theta)[:, None, None]
            counts = torch.round(value / theta).reshape(-1, self._images, *value.shape[1:])
            counts = (counts.cumsum(0) if program.plan.summed else counts).to(torch.uint8)
            program.counts(step.out)[:] = counts.permute(0, 1, 3, 4, 2).numpy()
            program.mark(step.out)

    def _hold_counts(self, node: Node, out: Source, program: Program) -> None:
        """Compute a hold on counts; equals `SpikingNetwork.hold`."""
        (part,) = program.plan.signals[node.inputs[0]]
        held, found = program.counts(out)[0], program.counts(part.source)[0]
        before, theta = self._memory.get(node.name), torch.from_numpy(out.theta)[:, None, None]
        held[:] = found
        if before is not None and self._grid is not None:
            active = active_cells(self._grid, **node.attrs)
            counts = torch.round(before / theta).to(torch.uint8).permute(0, 2, 3, 1).numpy()
            np.copyto(held, counts, where=~active[..., None])
        own = np.ascontiguousarray(held.transpose(0, 3, 1, 2))
        self._memory[node.name] = torch.from_numpy(own) * theta
        program.mark(out)
        resting = program.resting.setdefault(node.name, torch.from_numpy(own[:1].astype(np.int16)))
        key = node.name, own.shape[1:]
        if key not in self._hold_fan_out:
            self._hold_fan_out[key] = FanOut.of(self._fan_out[node.name].numpy())
        totals = count_spikes(own[None], resting.numpy().astype(np.uint8), self._hold_fan_out[key])
        self._counted.append(Counted(node.name, "memory", 0, torch.from_numpy(totals)))

    def _spikes(self, name: str, program: Program) -> Tensor:
        """Spikes of a node in the format of the reference engine: counts times theta, `(T * N or N, C, H, W)` float32."""
        signal = program.plan.signals[name]
        length = 1 if all(part.source.constant for part in signal) else self.parameters.timesteps
        channels = max(part.at + part.channels for part in signal)
        total = torch.zeros((length, self._images, channels, *signal[0].source.shape[1:]))
        for part in signal:
            taken = slice(part.first, part.first + part.channels)
            counts = program.counts(part.source)[..., taken].astype(np.float32)
            if program.plan.summed and not part.source.constant:
                counts = np.diff(counts, axis=0, prepend=0)
            spikes = torch.from_numpy(counts * part.source.theta[taken]).permute(0, 1, 4, 2, 3)
            total[:, :, part.at : part.at + part.channels] += spikes
        return total.flatten(0, 1)

    def _output(self, name: str, program: Program, values: dict[str, Tensor]) -> Tensor:
        if name in program.maps:
            return torch.from_numpy(program.maps[name])
        return self.read_out(name, values[name] if name in values else self._spikes(name, program))

    def _all_stats(self, events: NDArray[np.int64], program: Program) -> tuple[LayerStats, ...]:
        """Statistics of every layer, in network order."""
        timesteps = self.parameters.timesteps
        name = self.graph.nodes[0].name
        spikes, synaptic_ops, graded = own = events[:, :3].T.astype(np.float64)
        stats = [LayerStats(name, "input", 0, timesteps, spikes, synaptic_ops, graded, None, *own)]
        operations, images, counters = program.totals.shape
        by_operation = program.totals.reshape(operations, images * counters).astype(np.float64)
        layers = program.tables.layers
        by_layer = (program.tables.members @ by_operation).reshape(len(layers), images, counters)
        rows = iter(by_layer.swapaxes(1, 2)[:, _AS_LAYER_STATS].reshape(-1, images))
        for layer, counts in zip(layers, zip(*[rows] * len(_AS_LAYER_STATS), strict=True), strict=True):
            if layer.neurons:
                stats.append(LayerStats(layer.node.name, "neuron", layer.neurons, timesteps, *counts))
            else:
                stats.append(LayerStats(layer.node.name, "pool", 0, timesteps, *counts)._replace(active=None))
        if others := self._layer_stats():
            return tuple(sorted([*stats, *others], key=lambda layer: self._order[layer.name]))
        return tuple(stats)
