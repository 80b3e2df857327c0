"""Input-aware adaptive timesteps (docs/method.md#adaptive-timesteps): stop as soon as one more timestep changes nothing.

After every timestep the running mean of the outputs is decoded. The network stops when there is no sure box, or when the sure
boxes agree with those of the timestep before. Neurons keep their membrane potentials between timesteps, so that nothing is
computed twice. How much agreement is enough (`tau`) is set on calibration data (`least_tau`).

The idea is that of Wang et al., arXiv 2412.16219 (input-aware adaptive timesteps), who stop a classifier by its entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from evburst.data.boxes import Detections, iou_matrix
from evburst.data.stats import SpikeStats
from evburst.models.spiking.network import SpikingNetwork, SpikingState

SURE = 0.3
"""Score from which a box has a say."""

TAUS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Candidates of `least_tau`, from the quickest to stop."""

_SAME_IOU = 0.5

Decode = Callable[[list[Tensor]], Detections]


def agreement(before: Detections, now: Detections) -> float:
    """How alike two sets of boxes are, in [0, 1]: the least, over all boxes, of IoU x (1 - difference of scores).

    A box without a partner of its class and an IoU of at least 0.5 makes it 0; two empty sets agree fully.
    """
    if len(before) != len(now):
        return 0.0
    if not len(now):
        return 1.0
    overlap = iou_matrix(before.boxes_xyxy, now.boxes_xyxy)
    overlap[before.labels[:, None] != now.labels[None]] = 0.0
    partner = overlap.argmax(1)
    iou = overlap.max(1)
    if len(set(partner.tolist())) < len(partner) or iou.min() < _SAME_IOU:
        return 0.0
    return float((iou * (1 - np.abs(before.scores - now.scores[partner]))).min())


def settled(found: Sequence[Detections], tau: float) -> bool:
    """Whether the boxes after each timestep so far say that one more is not needed."""
    sure = [boxes.above(SURE) for boxes in found[-2:]]
    return not len(sure[-1]) or (len(sure) > 1 and agreement(*sure) >= tau)


def each_timestep(
    network: SpikingNetwork, grid: Tensor, decode: Decode, state: SpikingState
) -> Iterator[tuple[Detections, SpikeStats]]:
    """Boxes after each timestep, and the spikes of that timestep.

    Args:
        network: of as many timesteps as its parameters say.
        grid: `(1, 2 * bins, H, W)` float32 counts.
        decode: from output maps to boxes.
        state: of the network; new for an independent window.
    """
    total: list[Tensor] = []
    for t in range(1, network.parameters.timesteps + 1):
        outputs, stats = network.run(grid, 1, state)
        total = [a + b for a, b in zip(total, outputs, strict=True)] if total else outputs
        yield decode([sum_ / t for sum_ in total]), stats


def run_adaptive(
    network: SpikingNetwork, grid: Tensor, tau: float, decode: Decode, state: SpikingState
) -> tuple[Detections, SpikeStats]:
    """Boxes of one window, and the spikes they took (whose layers tell the number of timesteps); see `each_timestep`."""
    found: list[Detections] = []
    spent: SpikeStats | None = None
    for boxes, stats in each_timestep(network, grid, decode, state):
        found.append(boxes)
        spent = stats if spent is None else added(spent, stats)
        if settled(found, tau):
            break
    assert spent is not None  # T is at least 1
    return found[-1], spent


def least_tau(
    steps: Sequence[Sequence[Detections]], score_fn: Callable[[list[Detections]], float], max_loss: float
) -> tuple[float, float]:
    """The quickest of TAUS that loses at most `max_loss` against all timesteps, and the mean timesteps it uses.

    Args:
        steps: for each calibration window, the boxes after every timestep.
        score_fn: how good the boxes of all windows are (AP, say).
        max_loss: in its units.
    """
    full = score_fn([window[-1] for window in steps])
    for tau in TAUS:
        ends = [next((t for t in range(1, len(w)) if settled(w[:t], tau)), len(w)) for w in steps]
        if score_fn([window[end - 1] for window, end in zip(steps, ends, strict=True)]) >= full - max_loss:
            break
    return tau, float(np.mean(ends))


def added(first: SpikeStats, second: SpikeStats) -> SpikeStats:
    """The spikes of two runs over the same images, one after the other."""
    layers = []
    for a, b in zip(first.layers, second.layers, strict=True):
        active = None if a.active is None or b.active is None else a.active + b.active
        counts = {name: getattr(a, name) + getattr(b, name) for name in ("spikes", "synaptic_ops", "graded_ops")}
        layers.append(replace(a, timesteps=a.timesteps + b.timesteps, active=active, **counts))
    return SpikeStats(tuple(layers), first.dense_macs)
