"""Input-aware adaptive timesteps (docs/method.md#adaptive-timesteps): stop as soon as one more timestep changes nothing.

After every timestep the running mean of the outputs is decoded, and the network's task (models/tasks) decides whether it
has settled: a classifier by the entropy of its scores (Wang et al., arXiv 2412.16219, input-aware adaptive timesteps), a
detector once it finds no box of at least CONFIDENT, or such boxes agree with those of the timestep before. Neurons keep
their membrane potentials between timesteps, so that nothing is computed twice. The threshold `tau` is set on calibration
data (`least_tau`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evburst.data.boxes import Detections, iou_matrix
from evburst.data.stats import SpikeStats, merged
from evburst.models.spiking.network import SpikingNetwork, SpikingState

CONFIDENT = 0.3
"""Boxes with a lower score are not compared."""

TAUS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Candidates of `least_tau`, from the quickest to stop."""

_SAME_IOU = 0.5

Found = Any
"""What is found in a window: Detections, or a Classification."""
Decode = Callable[[list[Tensor]], Found]
Settled = Callable[[Sequence[Found], float], bool]


def agreement(before: Detections, now: Detections) -> float:
    """How well two sets of boxes agree, in [0, 1]: the minimum over all boxes of IoU x (1 - difference of scores).

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


def boxes_settled(found: Sequence[Detections], tau: float) -> bool:
    """Whether the boxes after each timestep so far show that another one is not needed."""
    last = [boxes.above(CONFIDENT) for boxes in found[-2:]]
    return not len(last[-1]) or (len(last) > 1 and agreement(*last) >= tau)


def each_timestep(network: SpikingNetwork, grid: Tensor, decode: Decode) -> Iterator[tuple[Found, SpikeStats]]:
    """What is found after each timestep, and the spikes of that timestep.

    Args:
        network: of as many timesteps as its parameters say.
        grid: `(1, 2 * bins, H, W)` float32 counts.
        decode: of the output maps.
    """
    state, total = SpikingState(), list[Tensor]()
    for t in range(1, network.parameters.timesteps + 1):
        outputs, stats = network.run_timestep(grid, state)
        total = [a + b for a, b in zip(total, outputs, strict=True)] if total else outputs
        yield decode([sum_ / t for sum_ in total]), stats


def run_adaptive(
    network: SpikingNetwork, grid: Tensor, tau: float, decode: Decode, settled: Settled = boxes_settled
) -> tuple[Found, SpikeStats]:
    """What is found in one window, and the spikes it took, whose layers hold the number of timesteps; see `each_timestep`."""
    found: list[Found] = []
    spent: SpikeStats | None = None
    for now, stats in each_timestep(network, grid, decode):
        found.append(now)
        spent = stats if spent is None else added(spent, stats)
        if settled(found, tau):
            break
    assert spent is not None  # T is at least 1
    return found[-1], spent


def least_tau(
    steps: Sequence[Sequence[Found]],
    score_fn: Callable[[list[Found]], float],
    max_loss: float,
    settled: Settled = boxes_settled,
) -> tuple[float, float] | None:
    """The quickest of TAUS that loses at most `max_loss` against all timesteps, and the mean timesteps it uses; None if each
    loses more.

    Args:
        steps: for each calibration window, what is found after every timestep.
        score_fn: of what is found in all windows: AP, or top-1.
        max_loss: in its units.
        settled: of the network's task.
    """
    full = score_fn([window[-1] for window in steps])
    for tau in TAUS:
        ends = [next((t for t in range(1, len(w)) if settled(w[:t], tau)), len(w)) for w in steps]
        if score_fn([window[end - 1] for window, end in zip(steps, ends, strict=True)]) >= full - max_loss:
            return tau, float(np.mean(ends))
    return None


def added(first: SpikeStats, second: SpikeStats) -> SpikeStats:
    """The spikes of two runs over the same images, one after the other."""
    layers = []
    for a, b in zip(first.layers, second.layers, strict=True):
        layers.append(merged([a, b], sum)._replace(timesteps=a.timesteps + b.timesteps))  # type: ignore[arg-type]
    return SpikeStats(tuple(layers), first.dense_macs)
