"""Detection: boxes of every stride, then class scores of every stride, of two kinds of head.

YOLO has independent class scores, and a distribution for the distance to each side of a box. SSD has one distribution over the
classes and the background for each default box, and boxes are offsets from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.boxes import Detections
from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import SSD_GAINS, SSD_LARGEST, HeadSpec, PostConfig, decode
from evburst.models.spiking.adaptive import boxes_settled
from evburst.models.tasks import DETECTION, task

BOXES = 8.0
"""Weight of boxes relative to scores with `everywhere`, where most scores belong to the background.

Training uses 18 (3 and 15 for YOLO's two box losses). Of 1, 8 and 20, 8 lost the least AP on `street`."""
OVERLAP = 2.0
"""Weight of 1 - IoU of the decoded boxes with `everywhere`. It is needed because two distributions can become more similar
while their means, which are the edges of the boxes, do not. With 8 it dominated on `street`, and AP50 became lower."""


class LevelDivergence(NamedTuple):
    """Differences between two networks' maps of one stride, at each position.

    Attributes:
        confidence, other_confidence: confidence of each network that there is an object.
        scores: divergence of class scores.
        boxes: divergence of boxes, or of their distributions.
        overlap: returns the intersection over union of the boxes decoded from both networks.
    """

    confidence: Tensor
    other_confidence: Tensor
    scores: Tensor
    boxes: Tensor
    overlap: Callable[[], Tensor]


class Detection:
    """See Task; subclasses implement the parts that depend on the kind of head."""

    name = DETECTION

    def decode(
        self, maps: list[Tensor], spec: HeadSpec, post: PostConfig, sensor_size: SensorSize, t_us: Sequence[int]
    ) -> list[Detections]:
        """See Task."""
        return decode(maps, spec, post, sensor_size, list(t_us))

    def independent_logits(self, outputs: Sequence[str], spec: HeadSpec) -> Sequence[str]:
        """See Task: SSD's classes and background share a softmax."""
        return ()

    def settled(self, predictions: Sequence[Detections], tau: float) -> bool:
        """See Task: stable when the boxes agree with those of the previous timestep."""
        return boxes_settled(predictions, tau)

    def confidence(self, maps: list[Tensor], spec: HeadSpec) -> Tensor:
        """See Task: the ANN's highest class score at each position over all maps, in the size of the finest map."""
        scores = [self.class_confidence(classes, spec, level) for level, classes in enumerate(maps[len(spec.strides) :])]
        size = scores[0].shape[-2:]
        return torch.stack([F.interpolate(score, size) for score in scores]).amax(0)

    def divergence(
        self, ann: list[Tensor], snn: list[Tensor], spec: HeadSpec, everywhere: bool = False, overlap: float = OVERLAP
    ) -> Tensor:
        """See Task: symmetric Kullback-Leibler divergence of scores and of the distributions of boxes.

        Each position is weighted by its confidence: scores by the higher confidence of the two networks, so that a false alarm
        weighs as much as a miss, and boxes by the ANN's. SSD's boxes are not distributions, so their absolute difference is
        used. Confidences have no gradient.

        Args:
            ann, snn, spec: see Task.
            everywhere: give scores equal weight at every position instead, multiply the term of boxes by `BOXES`, and add
                `overlap` times 1 - IoU of the decoded boxes.
            overlap: weight of that term.
        """
        n = len(spec.strides)
        total = snn[0].new_zeros(())
        for level in range(n):
            level_divergence = self.compare(ann[level], snn[level], ann[n + level], snn[n + level], spec, level)
            confidence = level_divergence.confidence.detach()
            boxes = confidence * level_divergence.boxes
            if everywhere:
                apart = confidence * (1 - level_divergence.overlap())
                total = total + (level_divergence.scores + BOXES * boxes + overlap * apart).sum()
            else:
                higher = torch.maximum(confidence, level_divergence.other_confidence.detach())
                total = total + (higher * level_divergence.scores + boxes).sum()
        return total / len(ann[0])

    def class_confidence(self, classes: Tensor, spec: HeadSpec, level: int) -> Tensor:
        """Return the highest class score at each position of a class map: `(N, 1, h, w)`."""
        raise NotImplementedError

    def compare(
        self, boxes: Tensor, other_boxes: Tensor, classes: Tensor, other_classes: Tensor, spec: HeadSpec, level: int
    ) -> LevelDivergence:
        """Compare the maps of one stride of both networks."""
        raise NotImplementedError


@task("yolo")
class YoloDetection(Detection):
    """YOLO's head: independent class scores, distributions of distances."""

    def independent_logits(self, outputs: Sequence[str], spec: HeadSpec) -> Sequence[str]:
        """See Task: the class maps of every stride."""
        return outputs[len(spec.strides) :]

    def class_confidence(self, classes: Tensor, spec: HeadSpec, level: int) -> Tensor:
        """See Detection."""
        return torch.sigmoid(classes).amax(1, keepdim=True)

    def compare(
        self, boxes: Tensor, other_boxes: Tensor, classes: Tensor, other_classes: Tensor, spec: HeadSpec, level: int
    ) -> LevelDivergence:
        """See Detection."""
        p, q = torch.sigmoid(classes), torch.sigmoid(other_classes)
        scores = ((p - q) * (classes - other_classes)).sum(1)
        a, b = (_split(x, 4).log_softmax(2) for x in (boxes, other_boxes))
        box_divergence = ((a.exp() - b.exp()) * (a - b)).sum(2).mean(1)
        overlap: Callable[[], Tensor] = lambda: overlap_of(self._edges(a, spec), self._edges(b, spec))  # noqa: E731
        return LevelDivergence(p.amax(1), q.amax(1), scores, box_divergence, overlap)

    def _edges(self, log_distribution: Tensor, spec: HeadSpec) -> tuple[Tensor, ...]:
        """Return the edges of boxes relative to the centres of their cells, in cells."""
        bins = torch.arange(spec.reg_max, dtype=log_distribution.dtype, device=log_distribution.device)
        left, top, right, bottom = torch.einsum("nskhw,k->snhw", log_distribution.exp(), bins)
        return -left, -top, right, bottom


@task("ssd")
class SsdDetection(Detection):
    """SSD's head: a distribution over background and classes, and offsets, for each default box."""

    def class_confidence(self, classes: Tensor, spec: HeadSpec, level: int) -> Tensor:
        """See Detection."""
        return _split(classes, len(spec.anchors[level])).softmax(2)[:, :, 1:].amax((1, 2))[:, None]

    def compare(
        self, boxes: Tensor, other_boxes: Tensor, classes: Tensor, other_classes: Tensor, spec: HeadSpec, level: int
    ) -> LevelDivergence:
        """See Detection."""
        per_cell = len(spec.anchors[level])
        p, q = (_split(x, per_cell).log_softmax(2) for x in (classes, other_classes))
        confidence, other = 1 - p[:, :, 0].exp(), 1 - q[:, :, 0].exp()
        scores = ((p.exp() - q.exp()) * (p - q)).sum(2)
        box_divergence = _split((boxes - other_boxes).abs(), per_cell).mean(2)
        overlap: Callable[[], Tensor] = lambda: overlap_of(*(self._edges(_split(x, per_cell)) for x in (boxes, other_boxes)))  # noqa: E731
        return LevelDivergence(confidence, other, scores, box_divergence, overlap)

    def _edges(self, offsets: Tensor) -> tuple[Tensor, ...]:
        """Return the edges of boxes relative to the centres of their default boxes, in sizes of the default box."""
        x, y, log_w, log_h = (offsets / offsets.new_tensor(SSD_GAINS)[:, None, None]).unbind(2)
        half_w, half_h = (log.clamp(max=SSD_LARGEST).exp() / 2 for log in (log_w, log_h))
        return x - half_w, y - half_h, x + half_w, y + half_h


def overlap_of(box: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    """Return the intersection over union of boxes (left, top, right, bottom) at the same positions."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = box, other
    width = (torch.minimum(x1, u1) - torch.maximum(x0, u0)).clamp_min(0)
    height = (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp_min(0)
    both = width * height
    return both / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both).clamp_min(1e-6)


def _split(x: Tensor, groups: int) -> Tensor:
    """Reshape `(N, groups * k, h, w)` to `(N, groups, k, h, w)`."""
    return x.reshape(len(x), groups, -1, *x.shape[2:])
