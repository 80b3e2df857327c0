"""Classification: a map of class logits, whose mean over the window's area is what softmax is taken of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evburst.data.classification import Classification as Scores
from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.tasks import CLASSIFICATION, task

TEMPERATURE = 2.0
"""Of the softmax that divergence is measured on: a trained classifier is so certain that its other classes would teach nothing
(Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015)."""


def class_logits(maps: list[Tensor]) -> Tensor:
    """`(N, K)` of a class map `(N, K, h, w)`: a global average pool, after the last convolution instead of before it, which
    is the same."""
    return maps[0].float().mean((2, 3))


@task("classes")
class ClassificationTask:
    """See Task: one map `(N, K, h, w)` of class logits."""

    name = CLASSIFICATION

    def decode(
        self, maps: list[Tensor], spec: HeadSpec, post: PostConfig, sensor_size: SensorSize, t_us: Sequence[int]
    ) -> list[Scores]:
        """See Task."""
        scores = class_logits(maps).softmax(1).cpu().numpy().astype(np.float32)
        return [Scores(own, t) for own, t in zip(scores, t_us, strict=True)]

    def divergence(self, ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False) -> Tensor:
        """See Task: symmetric Kullback-Leibler of both softmaxes at TEMPERATURE, times its square, so that gradients keep
        their size."""
        p, q = ((class_logits(maps) / TEMPERATURE).log_softmax(1) for maps in (ann, snn))
        return TEMPERATURE**2 * ((p.exp() - q.exp()) * (p - q)).sum(1).mean()

    def confidence(self, maps: list[Tensor], spec: HeadSpec) -> Tensor:
        """See Task: all positions count the same, as in the mean of the logits."""
        n, _, h, w = maps[0].shape
        return torch.ones(n, 1, h, w, device=maps[0].device)

    def settled(self, found: Sequence[Scores], tau: float) -> bool:
        """See Task: once 1 - H(p) / ln K of the mean so far exceeds tau (Wang et al., arXiv 2412.16219, input-aware
        timesteps)."""
        return found[-1].certainty > tau
