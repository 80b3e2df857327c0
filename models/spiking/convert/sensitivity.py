"""What a layer's burst limit and threshold cost and save, one layer at a time: the table that allocation chooses from.

For every layer and every Choice, only that layer spikes and all others stay analogue (docs/method.md#allocation). Its
sensitivity is the divergence of the network's output from the ANN's (models/tasks), its cost the synaptic operations of its
spikes, both per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.calibrate import Choice, raised, thresholds_for
from evburst.models.spiking.convert.importance import position_weights
from evburst.models.spiking.cost import fan_out_maps
from evburst.models.spiking.neurons import steady_counts
from evburst.models.tasks import task_of


def default_choices(phi_max: int, signed: bool = False, typical: bool = False) -> tuple[Choice, ...]:
    """Thresholds raised at the largest burst limit, up to phi_max / 2 times and at least 4, and smaller limits at their own
    thresholds.

    Where bursts are long, limits below 8 and the factor 1.75 would be chosen here and there, but the frontier is the same
    without them, to 0.3 % of the divergence (`street`, phi_max 32).
    """
    long = phi_max > 8
    factors = (1.0, 1.25, 1.5, *(() if long else (1.75,)), 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
    raised = tuple(Choice(phi_max, rho, signed, typical) for rho in factors if rho <= max(4.0, phi_max / 2))
    limits = (8, 16, 32, 64, 128) if long else (1, 2, 3, 4, 6)
    return raised + tuple(Choice(phi, 1.0, signed, typical) for phi in limits if phi < phi_max)


@dataclass(frozen=True)
class SensitivityTable:
    """The measurements.

    Attributes:
        layers: names of the relu nodes.
        choices: the candidates, the same for every layer.
        cost: `(layers, choices)` synaptic operations per image.
        sensitivity: `(layers, choices)` divergence of the output per image.
        batches: how many batches have been measured (of the number asked for).
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    cost: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    batches: int

    def only(self, keep: Callable[[Choice], bool]) -> SensitivityTable:
        """The table of some of its candidates."""
        index = [k for k, choice in enumerate(self.choices) if keep(choice)]
        chosen = tuple(self.choices[k] for k in index)
        return SensitivityTable(self.layers, chosen, self.cost[:, index], self.sensitivity[:, index], self.batches)


def measure(
    graph: Graph,
    spec: HeadSpec,
    batches: Sequence[Tensor],
    timesteps: int,
    choices: tuple[Choice, ...],
    start: SensitivityTable | None = None,
    save: Callable[[SensitivityTable], object] = lambda table: None,
    progress: Callable[[], object] = lambda: None,
) -> SensitivityTable:
    """Measure every layer with every candidate.

    Args:
        graph: the network.
        spec: what its outputs mean.
        batches: grids, `(N, 2 * bins, H, W)` float32 each.
        timesteps: T.
        choices: the candidates.
        start: an unfinished table of the same network and batches, to go on with.
        save: called with the table after every batch.
        progress: called after every layer.
    """
    relus = [node for node in graph.nodes if node.op == "relu"]
    layers = tuple(node.name for node in relus)
    shape = len(layers), len(choices)
    table = start or SensitivityTable(layers, choices, np.zeros(shape), np.zeros(shape), 0)
    fan_out = fan_out_maps(graph, *batches[0].shape[1:])
    fast, task = graph.channels_last(), task_of(spec)
    for number in range(table.batches, len(batches)):
        ann = _Prefix(fast)
        expected = ann(batches[number].contiguous(memory_format=torch.channels_last))
        confidence = task.confidence(expected, spec)
        cost, divergences = np.zeros(shape), np.zeros(shape)
        for k, node in enumerate(relus):
            name = node.name
            activation = ann.values[name]
            weights = position_weights(confidence, *activation.shape[-2:])
            thresholds: dict[Choice, Tensor] = {}
            for c, choice in enumerate(choices):
                base = replace(choice, rho=1.0)
                if base not in thresholds:
                    thresholds[base] = thresholds_for(node, base, activation, activation, weights, timesteps)
                layer = raised(node, thresholds[base], choice)
                spikes = steady_counts(activation, layer, timesteps)
                outputs = ann.rerun(name, spikes * layer.theta[:, None, None] / timesteps)
                divergences[k, c] = float(task.divergence(expected, outputs, spec))
                cost[k, c] = float((spikes.abs() * fan_out[name]).sum()) / len(activation)
            progress()
        done = table.batches
        mean = [(old * done + new) / (done + 1) for old, new in ((table.cost, cost), (table.sensitivity, divergences))]
        table = SensitivityTable(layers, choices, mean[0], mean[1], done + 1)
        save(table)
    return table


class _Prefix(Runner):
    """Keeps every node's value, so that what follows a changed one can be computed again by itself."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.values: dict[str, Tensor] = {}

    def observe(self, node: Node, value: Tensor) -> None:
        self.values[node.name] = value

    @torch.inference_mode()
    def rerun(self, name: str, value: Tensor) -> list[Tensor]:
        """The outputs if a node had another value."""
        self._memory = {}  # nothing is held from the candidate before
        changed = {name: value}
        for node in self.graph.nodes:
            if changed.keys() & set(node.inputs):
                arguments = [changed.get(source, self.values[source]) for source in node.inputs]
                changed[node.name] = getattr(self, node.op)(node, *arguments)
        return [changed.get(output, self.values[output]) for output in self.graph.outputs]
