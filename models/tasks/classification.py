"""Classification: class scores are the softmax of the mean, over all positions, of a map of class logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evburst.data.classification import Classification
from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.tasks import CLASSIFICATION, task

TEMPERATURE = 2.0
"""Temperature of the softmax for the divergence: without it, a trained classifier's other classes would have almost no
gradient (Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015)."""


def class_logits(maps: list[Tensor]) -> Tensor:
    """Return logits `(N, K)` of a class map `(N, K, h, w)` by global average pooling.

    Pooling after the last 1x1 convolution is equivalent to pooling before it.
    """
    return maps[0].float().mean((2, 3))


@task("classes")
class ClassificationTask:
    """See Task: one map `(N, K, h, w)` of class logits."""

    name = CLASSIFICATION

    def decode(
        self, maps: list[Tensor], spec: HeadSpec, post: PostConfig, sensor_size: SensorSize, t_us: Sequence[int]
    ) -> list[Classification]:
        """See Task."""
        scores = class_logits(maps).softmax(1).cpu().numpy().astype(np.float32)
        return [Classification(row, t) for row, t in zip(scores, t_us, strict=True)]

    def divergence(self, ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False) -> Tensor:
        """See Task: symmetric Kullback-Leibler divergence of both softmaxes at TEMPERATURE.

        It is multiplied by the square of the temperature, so that the size of gradients does not depend on it.
        """
        p, q = ((class_logits(maps) / TEMPERATURE).log_softmax(1) for maps in (ann, snn))
        return TEMPERATURE**2 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()

    def confidence(self, maps: list[Tensor], spec: HeadSpec) -> Tensor:
        """See Task: all positions have equal weight, as in the mean of the logits."""
        n, _, h, w = maps[0].shape
        return torch.ones(n, 1, h, w, device=maps[0].device)

    def independent_logits(self, outputs: Sequence[str], spec: HeadSpec) -> Sequence[str]:
        """See Task: classes share a softmax."""
        return ()

    def settled(self, predictions: Sequence[Classification], tau: float) -> bool:
        """See Task: stable when 1 - H(p) / ln K of the mean so far exceeds tau.

        Source: Wang et al., arXiv 2412.16219, input-aware timesteps.
        """
        return predictions[-1].certainty > tau
