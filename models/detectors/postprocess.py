"""From a head's raw maps to boxes: distribution decoding and non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.boxes import Detections
from data.events import SensorSize

MAX_CANDIDATES = 1000


@dataclass(frozen=True)
class HeadSpec:
    """What a head's maps mean.

    Attributes:
        kind: "yolo".
        strides: pixels per cell of each map.
        reg_max: bins of the distance distribution of each box side.
        classes: class names in the order of their indices.
    """

    kind: str
    strides: tuple[int, ...]
    reg_max: int
    classes: tuple[str, ...]


@dataclass(frozen=True)
class PostConfig:
    """Post-processing.

    Attributes:
        score: lowest score kept.
        nms_iou: a box that overlaps a better one of its class by more than this is dropped.
        max_detections: most boxes per window.
    """

    score: float = 0.3
    nms_iou: float = 0.45
    max_detections: int = 100


def decode(
    maps: list[Tensor], spec: HeadSpec, config: PostConfig, sensor_size: SensorSize, t_us: list[int]
) -> list[Detections]:
    """Boxes of each image, best first, clipped to the sensor.

    Args:
        maps: box maps `(N, 4 * reg_max, h, w)` of every stride, then class maps `(N, classes, h, w)`.
        spec: what they mean.
        config: thresholds.
        sensor_size: (W, H) px.
        t_us: the instant of each of the N images.
    """
    levels = len(spec.strides)
    scores = [torch.sigmoid(m.float()) for m in maps[levels:]]
    return [_decode_one(maps, scores, index, spec, config, sensor_size, t) for index, t in enumerate(t_us)]


def _decode_one(
    maps: list[Tensor],
    scores: list[Tensor],
    index: int,
    spec: HeadSpec,
    config: PostConfig,
    sensor_size: SensorSize,
    t_us: int,
) -> Detections:
    found_boxes, found_scores, found_labels = [], [], []
    for level, stride in enumerate(spec.strides):
        label, row, column = torch.nonzero(scores[level][index] >= config.score, as_tuple=True)
        if not len(label):
            continue
        distribution = maps[level][index][:, row, column].float().reshape(4, spec.reg_max, -1).softmax(1)
        bins = torch.arange(spec.reg_max, dtype=torch.float32, device=distribution.device)
        left, top, right, bottom = torch.tensordot(bins, distribution, ([0], [1]))
        x, y = column + 0.5, row + 0.5
        found_boxes.append(torch.stack([x - left, y - top, x + right, y + bottom], 1) * stride)
        found_scores.append(scores[level][index][label, row, column])
        found_labels.append(label)
    if not found_boxes:
        return Detections.empty(t_us)
    boxes = torch.cat(found_boxes).cpu().numpy()
    boxes = np.clip(boxes, 0, [*sensor_size, *sensor_size]).astype(np.float32)
    values, labels = torch.cat(found_scores).cpu().numpy(), torch.cat(found_labels).cpu().numpy()
    solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, values, labels = boxes[solid], values[solid], labels[solid]
    best = np.argsort(-values, kind="stable")[:MAX_CANDIDATES]
    kept = best[non_maximum_suppression(boxes[best], values[best], labels[best], config.nms_iou)]
    kept = kept[: config.max_detections]
    return Detections(boxes[kept], values[kept], labels[kept], t_us)


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
