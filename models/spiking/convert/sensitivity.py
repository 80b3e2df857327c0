"""What a layer's burst limit and threshold cost and save, one layer at a time: the table that allocation chooses from.

For every layer and every Choice, only that layer spikes and all others stay analogue (docs/method.md#allocation). Its
sensitivity is how far the detector's output moves, its cost the synaptic operations of its spikes, both per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.detectors.postprocess import SSD_GAINS, SSD_LARGEST, HeadSpec
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.calibrate import Choice, raised, thresholds_for
from evburst.models.spiking.convert.importance import confidence, position_weights
from evburst.models.spiking.cost import fan_out_maps
from evburst.models.spiking.neurons import steady_counts

BOXES = 8.0
"""Weight of boxes against scores that count everywhere, as most of those are background's. Training's own is 18 (3 and 15 for YOLO's two
losses of boxes, against scores); of 1, 8 and 20, 8 lost least on `street`."""
OVERLAP = 2.0
"""Weight of what decoded boxes fail to overlap, likewise. Distributions can come nearer while their means, which are the edges, do not. Of 8 it
was the largest part on `street`, whose scores then suffered (AP50)."""


def default_choices(phi_max: int, signed: bool = False, typical: bool = False) -> tuple[Choice, ...]:
    """Thresholds raised at the largest burst limit, up to phi_max / 2 times and at least 4, and smaller limits at their own thresholds.

    Where bursts are long, limits below 8 and the factor 1.75 would be chosen here and there, but the frontier is the same without them,
    to 0.3 % of the divergence (`street`, phi_max 32).
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
    fast = graph.channels_last()
    for number in range(table.batches, len(batches)):
        ann = _Prefix(fast)
        expected = ann(batches[number].contiguous(memory_format=torch.channels_last))
        sure = confidence(expected, spec)
        cost, moved = np.zeros(shape), np.zeros(shape)
        for k, node in enumerate(relus):
            name = node.name
            activation = ann.values[name]
            weights = position_weights(sure, *activation.shape[-2:])
            thresholds: dict[Choice, Tensor] = {}
            for c, choice in enumerate(choices):
                base = replace(choice, rho=1.0)
                if base not in thresholds:
                    thresholds[base] = thresholds_for(node, base, activation, activation, weights, timesteps)
                layer = raised(node, thresholds[base], choice)
                spikes = steady_counts(activation, layer, timesteps)
                outputs = ann.rerun(name, spikes * layer.theta[:, None, None] / timesteps)
                moved[k, c] = float(divergence(expected, outputs, spec))
                cost[k, c] = float((spikes.abs() * fan_out[name]).sum()) / len(activation)
            progress()
        done = table.batches
        mean = [(old * done + new) / (done + 1) for old, new in ((table.cost, cost), (table.sensitivity, moved))]
        table = SensitivityTable(layers, choices, mean[0], mean[1], done + 1)
        save(table)
    return table


def divergence(
    ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False, overlap: float = OVERLAP
) -> Tensor:
    """How far a detector's output has moved, per image: symmetric Kullback-Leibler on scores and box distributions.

    Each position counts by its confidence: of the surer of the two networks for scores, so that a false alarm counts as much
    as a miss, and of the ANN for boxes. SSD's boxes, which are no distributions, count by their absolute difference. Gradients do
    not go through confidences.

    Args:
        ann, snn: outputs of both networks.
        spec: what they mean.
        everywhere: whether scores count alike at every position instead, boxes `BOXES` times, and 1 minus the overlap (IoU) of the
            boxes that a position decodes to `overlap` times.
    """
    n = len(spec.strides)
    total = torch.zeros(())
    for level in range(n):
        boxes, other_boxes, classes, other = ann[level], snn[level], ann[n + level], snn[n + level]
        if spec.kind == "ssd":
            per_cell = len(spec.anchors[level])
            p, q = (_split(x, per_cell).log_softmax(2) for x in (classes, other))
            sure, other_sure = 1 - p[:, :, 0].exp(), 1 - q[:, :, 0].exp()
            scores = ((p.exp() - q.exp()) * (p - q)).sum(2)
            moved = _split((boxes - other_boxes).abs(), per_cell).mean(2)
            edges = _split(boxes, per_cell), _split(other_boxes, per_cell)
        else:
            p, q = torch.sigmoid(classes), torch.sigmoid(other)
            sure, other_sure = p.amax(1), q.amax(1)
            scores = ((p - q) * (classes - other)).sum(1)
            a, b = (_split(x, 4).log_softmax(2) for x in (boxes, other_boxes))
            moved = ((a.exp() - b.exp()) * (a - b)).sum(2).mean(1)
            edges = a.exp(), b.exp()
        surer = torch.maximum(sure, other_sure).detach()
        moved = sure.detach() * moved
        if everywhere:
            apart = sure.detach() * (1 - _overlap(*edges, spec))
            total = total + (scores + BOXES * moved + overlap * apart).sum()
        else:
            total = total + (surer * scores + moved).sum()
    return total / len(ann[0])


def _overlap(boxes: Tensor, others: Tensor, spec: HeadSpec) -> Tensor:
    """Intersection over union of the boxes that the same cell decodes to in two networks; see detectors/postprocess.py.

    Args:
        boxes, others: yolo: probabilities `(N, 4, reg_max, h, w)` of the distances to a cell's sides; ssd: offsets `(N, A, 4, h, w)`.
        spec: what they mean.
    """
    corners = [_corners(x, spec) for x in (boxes, others)]
    (x0, y0, x1, y1), (u0, v0, u1, v1) = corners
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp_min(0)
    height = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp_min(0)
    both = width * height
    return both / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both).clamp_min(1e-6)


def _corners(boxes: Tensor, spec: HeadSpec) -> tuple[Tensor, ...]:
    """Left, top, right and bottom edges from the centre of each cell: in cells (yolo), or in default boxes (ssd)."""
    if spec.kind == "yolo":
        bins = torch.arange(spec.reg_max, dtype=boxes.dtype)
        left, top, right, bottom = torch.einsum("nskhw,k->snhw", boxes, bins)
        return -left, -top, right, bottom
    x, y, log_w, log_h = (boxes / boxes.new_tensor(SSD_GAINS)[:, None, None]).unbind(2)
    half_w, half_h = (log.clamp(max=SSD_LARGEST).exp() / 2 for log in (log_w, log_h))
    return x - half_w, y - half_h, x + half_w, y + half_h


def _split(x: Tensor, groups: int) -> Tensor:
    """`(N, groups * k, h, w)` as `(N, groups, k, h, w)`."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])


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
        changed = {name: value}
        for node in self.graph.nodes:
            if changed.keys() & set(node.inputs):
                arguments = [changed.get(source, self.values[source]) for source in node.inputs]
                changed[node.name] = getattr(self, node.op)(node, *arguments)
        return [changed.get(output, self.values[output]) for output in self.graph.outputs]
