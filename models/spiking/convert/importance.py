"""Where an error matters: calibration weighs positions by the ANN's confidence that something is there (Task.confidence).

Most cells of a detector's maps show background, so that an unweighted squared error is one of the background: it clips the
few large activations that determine boxes. docs/method.md#conversion weighs the divergence the same way.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BACKGROUND = 0.02
"""Weight of a position where the ANN sees nothing, against 1 where it is certain."""


def position_weights(confidence: Tensor, height: int, width: int) -> Tensor:
    """Weights `(N, 1, height, width)` of a layer's positions, 1 in the mean."""
    coarser = height <= confidence.shape[-2] and width <= confidence.shape[-1]
    resized = F.adaptive_max_pool2d(confidence, (height, width)) if coarser else F.interpolate(confidence, (height, width))
    weights = resized + BACKGROUND
    return weights / weights.mean()
