"""The integer engine: spike counts are uint8, weights 8 or 15 bits, sums exact, neurons fused behind their convolution.

Conversion has rounded the weights already (models/spiking/rounding.py): spikes equal the reference engine's, but for neurons that lie within
float32 rounding of a threshold. Weights that were not rounded before are rounded here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.stats import LayerStats, SpikeStats
from evburst.models.graph import Graph, Node
from evburst.models.runtime.int8.plan import Plan, Signal, Step, reads
from evburst.models.runtime.int8.program import Program
from evburst.models.runtime.int8.quantise import PackedWeights, pack
from evburst.models.spiking.cost import node_shapes
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, SpikingState
from evburst.models.spiking.rounding import spike_values


class IntegerNetwork(SpikingNetwork):
    """A spiking network on small integers; nodes that have no integer form are left to the reference engine.

    Args:
        graph: the network.
        parameters: its neurons.
        max_count: largest count of a grid; other grids are left to the reference engine.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, max_count: int = 255) -> None:
        super().__init__(graph, parameters)
        self._max_count = max_count
        self._order = {node.name: i for i, node in enumerate(graph.nodes)}
        self._packed: dict[str, PackedWeights | None] = {}
        self._programs: dict[tuple[int, ...], tuple[Plan, Program]] = {}

    @torch.inference_mode()
    def run(
        self, grid: Tensor, timesteps: int | None = None, state: SpikingState | None = None
    ) -> tuple[list[Tensor], SpikeStats]:
        """Outputs (valid until the next run) and spike counts; see SpikingNetwork.run.

        Runs that are stopped or carried on, and of another number of timesteps, are left to the reference engine.
        """
        if state is not None or timesteps not in (None, self.parameters.timesteps):
            return super().run(grid, timesteps, state)
        self._timesteps, self._state = self.parameters.timesteps, None
        macs = self.begin(grid)
        counts = self._as_counts(grid)
        plan, program = self._program(tuple(grid.shape))
        totals = None if counts is None else program.pack(counts, plan.sources[0])
        if totals is None or totals[:, 3].max() > self._max_count:
            return super().run(grid.float())
        values: dict[str, Tensor] = {}
        if totals[:, 0].any() or not plan.on_integers:
            values = self._compute(plan, program)
        else:
            program.recall_silence()
        outputs = [self._output(name, plan, program, values) for name in self.graph.outputs]
        return outputs, SpikeStats(self._all_stats(totals, program), macs)

    def _compute(self, plan: Plan, program: Program, skip: bool = True) -> dict[str, Tensor]:
        """Everything behind the input; returns what the reference engine computed."""
        values: dict[str, Tensor] = {}
        for item in program.runs:
            if isinstance(item, slice):
                program.run(item, skip)
            else:
                self._by_reference(item, plan, program, values)
        return values

    def _as_counts(self, grid: Tensor) -> NDArray[np.uint8] | None:
        """The grid as uint8; None if it is something else."""
        if grid.dtype == torch.uint8:
            return grid.contiguous().numpy()
        counts = grid.clamp(0, 255).to(torch.uint8)
        return counts.contiguous().numpy() if torch.equal(counts.to(grid.dtype), grid) else None

    def _program(self, shape: tuple[int, ...]) -> tuple[Plan, Program]:
        if shape not in self._programs:
            shapes, timesteps = node_shapes(self.graph, *shape[1:]), self.parameters.timesteps
            plan = Plan(self.graph, self.parameters.neurons, shapes, timesteps, self._max_count, self._fits)
            biases = {
                name.removesuffix(".bias"): tensor for name, tensor in self.graph.tensors.items() if name.endswith(".bias")
            }
            packed = {name: weights for name, weights in self._packed.items() if weights is not None}
            program = Program(plan, packed, self.parameters, biases, self._fan_out, shape[0])
            self._compute(plan, program, skip=False)
            self._counted.clear()
            program.remember_silence()
            self._programs[shape] = plan, program
        return self._programs[shape]

    def _fits(self, conv: Node, signal: Signal) -> bool:
        """Pack a convolution's weights; False if sums could leave 32 bits."""
        if conv.name not in self._packed:
            weight, values = self.graph.tensors[f"{conv.name}.weight"], spike_values(self.graph, conv, self._theta)
            self._packed[conv.name] = pack(weight, reads(signal), values, self.graph.tensors.get(f"{conv.name}.step"))
        return self._packed[conv.name] is not None

    def _by_reference(self, step: Step, plan: Plan, program: Program, values: dict[str, Tensor]) -> None:
        """A node as the reference engine computes it, from spikes as it has them; emitted spikes come back as counts."""
        if step.node.op == "input":
            return
        arguments = [values[name] if name in values else self._spikes(name, plan, program) for name in step.node.inputs]
        values[step.node.name] = value = getattr(self, step.node.op)(step.node, *arguments)
        if step.out is not None:
            theta = torch.from_numpy(step.out.theta)[:, None, None]
            counts = torch.round(value / theta).reshape(-1, self._images, *value.shape[1:])
            counts = (counts.cumsum(0) if plan.summed else counts).to(torch.uint8)
            timesteps = self.parameters.timesteps
            step.out.view(program.arena, timesteps, self._images)[:] = counts.permute(0, 1, 3, 4, 2).numpy()
            step.out.mark(program.changed, self._images)

    def _spikes(self, name: str, plan: Plan, program: Program) -> Tensor:
        """A node's spikes as the reference engine has them: counts times theta, `(T * N or N, C, H, W)` float32."""
        signal = plan.signals[name]
        length = 1 if all(part.source.constant for part in signal) else self.parameters.timesteps
        channels = max(part.at + part.channels for part in signal)
        total = torch.zeros((length, self._images, channels, *signal[0].source.shape[1:]))
        for part in signal:
            counts = part.source.view(program.arena, self.parameters.timesteps, self._images)
            taken = slice(part.first, part.first + part.channels)
            counts = counts[..., taken].astype(np.float32)
            if plan.summed and not part.source.constant:
                counts = np.diff(counts, axis=0, prepend=0)
            spikes = torch.from_numpy(counts * part.source.theta[taken]).permute(0, 1, 4, 2, 3)
            total[:, :, part.at : part.at + part.channels] += spikes
        return total.flatten(0, 1)

    def _output(self, name: str, plan: Plan, program: Program, values: dict[str, Tensor]) -> Tensor:
        if name in program.maps:
            return torch.from_numpy(program.maps[name])
        return self.read_out(name, values[name] if name in values else self._spikes(name, plan, program))

    def _all_stats(self, events: NDArray[np.int64], program: Program) -> tuple[LayerStats, ...]:
        """The spikes of every layer, in the graph's order."""
        timesteps = self.parameters.timesteps
        name = self.graph.nodes[0].name
        found = [LayerStats(name, "input", 0, timesteps, *events[:, :3].T.astype(np.float64)), *self._layer_stats()]
        totals = program.totals.astype(np.float64)
        for node, neurons, operations in program.layers.values():
            spikes, reached, active, graded = (totals[operations[0]] if len(operations) == 1 else totals[operations].sum(0)).T
            kind: Literal["neuron", "pool"] = "neuron" if neurons else "pool"
            fired = active if neurons else None
            found.append(LayerStats(node.name, kind, neurons, timesteps, spikes, reached, graded, fired))
        return tuple(sorted(found, key=lambda layer: self._order[layer.name]))
