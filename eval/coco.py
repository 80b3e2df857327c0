"""Average precision by pycocotools: COCO AP and its relatives, over named classes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.boxes import Detections

_STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class AveragePrecision:
    """COCO AP in percent; NaN where there is no label of that kind.

    Attributes:
        ap: AP@[.50:.95]. ap50, ap75: at one IoU. ap_small, ap_medium, ap_large: by label area (32, 96 px squared).
        per_class: class name -> {"ap", "ap50"}.
        frames: images scored.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: dict[str, dict[str, float]]
    frames: int


def average_precision(
    labels: Sequence[Detections], predictions: Sequence[Detections], classes: Sequence[str]
) -> AveragePrecision:
    """Score predictions against labels, image by image (same order; at most 100 predictions each count).

    Raises:
        ValueError: the two sequences differ in length.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labelled images, {len(predictions)} predicted ones")
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i + 1} for i in range(len(labels))],
        "categories": [{"id": c + 1, "name": name} for c, name in enumerate(classes)],
        "annotations": [
            {**row, "id": k + 1, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]} for k, row in enumerate(_rows(labels))
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(_rows(predictions)) if any(len(p) for p in predictions) else COCO()
        scoring = COCOeval(truth, found, "bbox")
        scoring.params.imgIds = [i + 1 for i in range(len(labels))]
        scoring.params.catIds = [c + 1 for c in range(len(classes))]
        if found.dataset:
            scoring.evaluate()
            scoring.accumulate()
    if not found.dataset:
        none = dict.fromkeys(_STATS, 0.0)
        return AveragePrecision(**none, per_class={c: {"ap": 0.0, "ap50": 0.0} for c in classes}, frames=len(labels))
    precision = scoring.eval["precision"]  # (IoU 10, recall 101, class, area 4, max detections 3)
    per_class = {
        name: {"ap": _mean(precision[:, :, c, 0, 2]), "ap50": _mean(precision[0, :, c, 0, 2])} for c, name in enumerate(classes)
    }
    return AveragePrecision(
        ap=_mean(precision[:, :, :, 0, 2]),
        ap50=_mean(precision[0, :, :, 0, 2]),
        ap75=_mean(precision[5, :, :, 0, 2]),
        ap_small=_mean(precision[:, :, :, 1, 2]),
        ap_medium=_mean(precision[:, :, :, 2, 2]),
        ap_large=_mean(precision[:, :, :, 3, 2]),
        per_class=per_class,
        frames=len(labels),
    )


def _rows(images: Sequence[Detections]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": i + 1,
            "category_id": int(label) + 1,
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "score": float(score),
        }
        for i, image in enumerate(images)
        for (x0, y0, x1, y1), score, label in zip(image.boxes_xyxy, image.scores, image.labels, strict=True)
    ]


def _mean(precision: np.ndarray) -> float:
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")
