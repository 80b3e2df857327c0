"""Where an error matters to a detector: calibration weighs positions by how sure the ANN is that something is there.

Most cells of a detector's maps show background, so that an unweighted squared error is one of the background: it clips the
few large activations that boxes are made of. docs/method.md#conversion weighs the divergence the same way.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.models.detectors.postprocess import HeadSpec

BACKGROUND = 0.02
"""Weight of a position where the ANN sees nothing, against 1 where it is certain."""


def confidence(maps: list[Tensor], spec: HeadSpec) -> Tensor:
    """The ANN's highest class score around each position, over all maps: `(N, 1, h, w)` in [0, 1], of the finest map's size."""
    scores = []
    for level, classes in enumerate(maps[len(spec.strides) :]):
        if spec.kind == "ssd":
            per_box = classes.reshape(len(classes), len(spec.anchors[level]), -1, *classes.shape[2:]).softmax(2)[:, :, 1:]
            scores.append(per_box.amax((1, 2))[:, None])
        else:
            scores.append(torch.sigmoid(classes).amax(1, keepdim=True))
    size = scores[0].shape[-2:]
    return torch.stack([F.interpolate(score, size) for score in scores]).amax(0)


def position_weights(sure: Tensor, height: int, width: int) -> Tensor:
    """Weights `(N, 1, height, width)` of a layer's positions, 1 in the mean."""
    coarser = height <= sure.shape[-2] and width <= sure.shape[-1]
    resized = F.adaptive_max_pool2d(sure, (height, width)) if coarser else F.interpolate(sure, (height, width))
    weights = resized + BACKGROUND
    return weights / weights.mean()
