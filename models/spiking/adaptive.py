"""Input-aware adaptive timesteps for detection (METHOD section 6): stop as soon as one more timestep changes nothing.

After every timestep the running mean of the outputs is decoded. The network stops when nothing is above the score threshold,
or when the boxes agree with those of the timestep before. Neurons keep their membrane potentials between timesteps, so that
what was computed is never computed again. How much agreement is enough (`tau`) is set on calibration data.

The idea is that of Wang et al., arXiv 2412.16219 (input-aware adaptive timesteps), who stop a classifier by its entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor

from data.boxes import Detections, iou_matrix
from data.stats import SpikeStats
from models.spiking.network import SpikingNetwork, SpikingState

_SAME_IOU = 0.5


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


def run_adaptive(
    network: SpikingNetwork, grid: Tensor, tau: float, decode: Callable[[list[Tensor]], Detections], state: SpikingState
) -> tuple[Detections, SpikeStats, int]:
    """Boxes of one window, the spikes they took, and the number of timesteps used.

    Args:
        network: of at most as many timesteps as its parameters say.
        grid: `(1, 2 * bins, H, W)` float32 counts.
        tau: agreement that is enough.
        decode: from output maps to the boxes that would be kept.
        state: of the network; new for an independent window.
    """
    most = network.parameters.timesteps
    total, stats = network.run(grid, 1, state)
    found = decode(total)
    for t in range(2, most + 1):
        if not len(found):
            return found, stats, t - 1
        outputs, more = network.run(grid, 1, state)
        total = [(a * (t - 1) + b) / t for a, b in zip(total, outputs, strict=True)]
        before, found = found, decode(total)
        stats = added(stats, more)
        if agreement(before, found) >= tau:
            return found, stats, t
    return found, stats, most


def added(first: SpikeStats, second: SpikeStats) -> SpikeStats:
    """The spikes of two runs over the same images, one after the other."""
    layers = []
    for a, b in zip(first.layers, second.layers, strict=True):
        active = None if a.active is None or b.active is None else a.active + b.active
        counts = {name: getattr(a, name) + getattr(b, name) for name in ("spikes", "synaptic_ops", "graded_ops")}
        layers.append(replace(a, timesteps=a.timesteps + b.timesteps, active=active, **counts))
    return SpikeStats(tuple(layers), first.dense_macs)
