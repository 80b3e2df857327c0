"""From a head's raw maps to boxes: box decoding of each kind of head, non-maximum suppression, and box voting."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.boxes import Detections, iou_matrix
from evburst.data.errors import require_all, require_within
from evburst.data.events import SensorSize

MAX_CANDIDATES = 1000
VOTING_SHARE = 0.5
"""A candidate has to score this share of the score of a box to vote on its coordinates."""


@dataclass(frozen=True)
class HeadSpec:
    """What a head's maps mean.

    Attributes:
        kind: "yolo", "ssd", or "classes" of a classifier, whose only map holds class logits; chooses the task (models/tasks).
        strides: pixels per cell of each map.
        reg_max: yolo: bins of the distance distribution of each box side.
        classes: class names in the order of their indices.
        anchors: ssd: (width, height) px of the default boxes of a cell, for every map.
    """

    kind: str
    strides: tuple[int, ...]
    reg_max: int
    classes: tuple[str, ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()


@dataclass(frozen=True)
class PostConfig:
    """Post-processing.

    Attributes:
        score: lowest score kept, 0 to 1.
        nms_iou: a box that overlaps a better one of its class by more than this is dropped.
        vote_iou: the coordinates of a box are the mean, weighted by score, of the candidates of its class that overlap it by at
            least this and score at least half as much, dropped ones included; 1: its own alone.
        max_detections: most boxes per window.
    """

    score: float = 0.3
    nms_iou: float = 0.45
    vote_iou: float = 0.6
    max_detections: int = 100

    def __post_init__(self) -> None:
        require_within(self, score=(0, 1), nms_iou=(0, 1), vote_iou=(0, 1))
        require_all({"max_detections must be positive": self.max_detections > 0}, self)


SCORED = PostConfig(score=0.001)
"""Thresholds of the boxes that are scored: average precision also counts boxes with low scores."""


def decode(
    maps: list[Tensor], spec: HeadSpec, config: PostConfig, sensor_size: SensorSize, t_us: list[int]
) -> list[Detections]:
    """Boxes of each image, best first, clipped to the sensor.

    Args:
        maps: box maps of every stride, then class maps of every stride. yolo: `(N, 4 * reg_max, h, w)` and
            `(N, classes, h, w)` logits; ssd, with A default boxes per cell: `(N, 4 A, h, w)` and `(N, (1 + classes) A, h, w)`
            logits, background first.
        spec: what they mean.
        config: thresholds.
        sensor_size: (W, H) px.
        t_us: the instant of each of the N images.
    """
    candidates = {"yolo": _yolo_candidates, "ssd": _ssd_candidates}[spec.kind]
    levels, least = len(spec.strides), VOTING_SHARE * config.score
    boxes, classes = maps[:levels], maps[levels:]
    found = []
    for index, t in enumerate(t_us):
        parts = [candidates(boxes[k][index].float(), classes[k][index].float(), k, spec, least) for k in range(levels)]
        xyxy, scores, labels = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
        found.append(_select(xyxy, scores, labels, config, sensor_size, t))
    return found


def _yolo_candidates(boxes: Tensor, classes: Tensor, level: int, spec: HeadSpec, score: float) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes px, scores, labels) of one map: distances to a cell's four sides, each the mean of a distribution (YOLOv8)."""
    scores = torch.sigmoid(classes)
    label, row, column = torch.nonzero(scores >= score, as_tuple=True)
    if not len(label):
        return boxes.new_zeros(0, 4), scores.new_zeros(0), label
    distribution = boxes[:, row, column].reshape(4, spec.reg_max, -1).softmax(1)
    bins = torch.arange(spec.reg_max, dtype=torch.float32, device=distribution.device)
    left, top, right, bottom = torch.tensordot(bins, distribution, ([0], [1]))
    x, y = column + 0.5, row + 0.5
    xyxy = torch.stack([x - left, y - top, x + right, y + bottom], 1) * spec.strides[level]
    return xyxy, scores[label, row, column], label


SSD_GAINS = (10.0, 10.0, 5.0, 5.0)
SSD_LARGEST = 4.135  # log(1000 / 16), as torchvision's box coder


def _ssd_candidates(boxes: Tensor, classes: Tensor, level: int, spec: HeadSpec, score: float) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes px, scores, labels) of one map: offsets from a cell's default boxes (SSD)."""
    anchors = torch.tensor(spec.anchors[level], device=boxes.device)
    n, (h, w) = len(anchors), boxes.shape[1:]
    scores = classes.reshape(n, -1, h, w).softmax(1)[:, 1:]
    anchor, label, row, column = torch.nonzero(scores >= score, as_tuple=True)
    offsets = boxes.reshape(n, 4, h, w)[anchor, :, row, column] / boxes.new_tensor(SSD_GAINS)
    wh = anchors[anchor]
    centre = (torch.stack([column, row], 1) + 0.5) * spec.strides[level] + offsets[:, :2] * wh
    half = wh * offsets[:, 2:].clamp(max=SSD_LARGEST).exp() / 2
    return torch.cat([centre - half, centre + half], 1), scores[anchor, label, row, column], label


def _select(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    config: PostConfig,
    sensor_size: SensorSize,
    t_us: int,
) -> Detections:
    """The best of the candidates that overlap no better one of their class, clipped to the sensor, after voting."""
    boxes = np.clip(boxes, 0, [*sensor_size, *sensor_size]).astype(np.float32)
    solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    best = np.flatnonzero(solid)[np.argsort(-scores[solid], kind="stable")[:MAX_CANDIDATES]]
    boxes, scores, labels = boxes[best], scores[best], labels[best]
    n = np.count_nonzero(scores >= np.float32(config.score))
    kept = non_maximum_suppression(boxes[:n], scores[:n], labels[:n], config.nms_iou)[: config.max_detections]
    return Detections(vote(boxes, scores, labels, kept, config.vote_iou), scores[kept], labels[kept], t_us)


def vote(
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    kept: NDArray[np.int64],
    iou: float,
) -> NDArray[np.float32]:
    """Return the coordinates of kept boxes after box voting (Gidaris and Komodakis, ICCV 2015, section 4).

    Neighbouring cells see an object with rounding errors of their own, which the mean lessens.

    Args:
        boxes_xyxy, scores, labels: `(n, 4)`, `(n,)` and `(n,)` of all candidates.
        kept: `(k,)` indices of the boxes that remain.
        iou: see `PostConfig.vote_iou`.

    Returns:
        `(k, 4)` float32.
    """
    if iou == 1:
        return boxes_xyxy[kept]
    near = iou_matrix(boxes_xyxy[kept], boxes_xyxy) >= np.float32(iou)
    voters = near & (labels[kept, None] == labels) & (scores >= np.float32(VOTING_SHARE) * scores[kept, None])
    weights = np.where(voters, np.maximum(scores, np.finfo(np.float32).tiny), np.float32(0))
    means: NDArray[np.float32] = (weights @ boxes_xyxy) / weights.sum(1, keepdims=True)
    return means


def non_maximum_suppression(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], iou: float
) -> NDArray[np.int64]:
    """Indices of the boxes to keep, best first; class by class, by OpenCV."""
    if not len(scores):
        return np.zeros(0, np.int64)
    xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], 1)
    survivors = cv2.dnn.NMSBoxesBatched(xywh.tolist(), scores.tolist(), labels.tolist(), -1.0, iou)
    kept: NDArray[np.int64] = np.asarray(survivors, np.int64).reshape(-1)
    return kept[np.argsort(-scores[kept], kind="stable")]
