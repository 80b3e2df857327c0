"""Windows of scattered events, as the noise of a sensor makes them, and what they may cost.

A distillation can learn from them that events without others beside them mean nothing: it limits the operations beyond silence
that they cause (Student.beyond_silence). Nothing is asked of the read-outs for them, because what differs less from silence
comes closer to what is read out in silence.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Noise(NamedTuple):
    """Scattered events.

    Attributes:
        pixels: per event.
        share: of the operations of a training window that their operations beyond silence may come to.
    """

    pixels: int
    share: float


KINDS = Noise(730, 0.1), Noise(56, 0.25)
"""On a sensor of 304 x 240 pixels, 100 events, and the 1,300 of a noisy sensor."""
SIZE = 128, 160
"""Least rows and columns of the grids, which are smaller than a sensor, because noise is the same at every place."""


def noise_grids(channels: int, stride: int, seed: int) -> Tensor:
    """Return one grid of each kind, `(kinds, channels, rows, columns)` float32, whose sides are multiples of `stride`."""
    rows, columns = (-(-side // stride) * stride for side in SIZE)
    rng, grids = np.random.default_rng(seed), np.zeros((len(KINDS), channels, rows, columns), np.float32)
    for grid, kind in zip(grids, KINDS, strict=True):
        events = rng.integers(0, grid.size, rng.poisson(rows * columns / kind.pixels))
        np.add.at(grid.reshape(-1), events, 1)
    return torch.from_numpy(grids)


def relative_cost(operations: Tensor) -> Tensor:
    """Return the mean of operations beyond silence, `(kinds,)`, over the share that they may come to."""
    return (operations / operations.new_tensor([kind.share for kind in KINDS])).mean()
