"""COCO average precision of named classes, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.extras import require
from evburst.eval.protocol import Frame

STATS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""Names of COCO's twelve summary values, in pycocotools' order."""

IOUS = tuple(f"0.{50 + 5 * k}" for k in range(10))
"""IoU thresholds of COCO, as named in results."""

RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO samples a precision curve."""

_CHUNK = 256
_AREAS = 4


@dataclass(frozen=True)
class AveragePrecision:
    """COCO AP in percent; NaN if there is no label of that kind.

    Attributes:
        ap: AP@[.50:.95].
        ap50, ap75: AP at one IoU.
        ap_small, ap_medium, ap_large: AP by label area (limits 32 and 96 px squared).
        per_class: class name -> {"ap", "ap50"}.
        frames: number of images scored.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: dict[str, dict[str, float]]
    frames: int


@dataclass(frozen=True)
class ClassMatches:
    """The matches from which the AP of one class is computed (boxes of all areas); predictions are sorted by descending score.

    Attributes:
        frame: `(d,)` int64; index of the prediction's frame.
        correct: `(d,)` uint16; bit k is set if the prediction is correct at IOUS[k].
        labels: `(frames,)` int64; number of labels of the class in each frame.
    """

    frame: NDArray[np.int64]
    correct: NDArray[np.uint16]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class CocoResult:
    """Complete result of COCO's evaluation.

    Attributes:
        summary: the AP values, in percent.
        stats: `(12,)` float64 as printed by pycocotools, see STATS: fractions, -1 if there is no label of that kind.
        precision: `(10 IoU, 101 recalls, classes, 4 areas)` float64, at most 100 boxes per image and class; -1 without labels.
        scores: the same shape; lowest score that attains the recall.
        recall: `(10 IoU, classes, 4 areas)` float64.
        matches: one ClassMatches per class.
    """

    summary: AveragePrecision
    stats: NDArray[np.float64]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    recall: NDArray[np.float64]
    matches: tuple[ClassMatches, ...]

    @property
    def ap_by_iou(self) -> dict[str, float]:
        """AP in percent at each of IOUS; NaN without labels."""
        return {iou: mean_percent(self.precision[k, :, :, 0]) for k, iou in enumerate(IOUS)}


def average_precision(
    labels: Sequence[Detections], predictions: Sequence[Detections], classes: Sequence[str]
) -> AveragePrecision:
    """Score predictions against labels, image by image (in the same order; at most 100 predictions per image count).

    Raises:
        ValueError: the two sequences differ in length.
    """
    return coco_result(frames_of(labels, predictions), classes).summary


def frames_of(labels: Sequence[Detections], predictions: Sequence[Detections]) -> list[Frame]:
    """Pair labels and predictions, image by image; raises ValueError if the two sequences differ in length."""
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labelled images, but {len(predictions)} with predictions")
    pairs = zip(labels, predictions, strict=True)
    return [Frame(a.t_us, a.to_prophesee(), b.to_prophesee()) for a, b in pairs]


def coco_result(frames: Sequence[Frame], classes: Sequence[str]) -> CocoResult:
    """Score frames; boxes of classes that are not among `classes` are ignored.

    pycocotools compares a few hundred frames at a time, so that its rows for all boxes never exist at once. It then accumulates
    over what is kept of every frame: which boxes are correct, and their scores.
    """
    require("pycocotools", "eval", "average precision")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        compared = [_compare(frames[first : first + _CHUNK], classes) for first in range(0, len(frames), _CHUNK)]
        scoring = COCOeval(iouType="bbox")
        scoring.params.imgIds, scoring.params.catIds = list(range(len(frames))), list(range(len(classes)))
        scoring._paramsEval = scoring.params
        # Order expected by accumulate: by class, then area, then image.
        groups = len(classes) * len(scoring.params.areaRng)
        scoring.evalImgs = [image for group in range(groups) for chunk in compared for image in chunk[group]]
        scoring.accumulate()
        scoring.summarize()
    found = scoring.eval
    return CocoResult(
        _summary(found["precision"][..., 2], classes, len(frames)),
        np.asarray(scoring.stats),
        found["precision"][..., 2],
        found["scores"][..., 2],
        found["recall"][..., 2],
        tuple(_class_matches([image for chunk in compared for image in chunk[c * _AREAS]]) for c in range(len(classes))),
    )


def _class_matches(images: Sequence[dict[str, Any] | None]) -> ClassMatches:
    """Collect the matches of one class from what is kept of every frame (None: neither a label nor a prediction)."""
    found = [(k, image) for k, image in enumerate(images) if image is not None]
    labels = np.zeros(len(images), np.int64)
    for k, image in found:
        labels[k] = np.count_nonzero(image["gtIgnore"] == 0)
    scores = np.concatenate([np.zeros(0), *(image["dtScores"] for _, image in found)])
    frame = np.repeat([k for k, _ in found], [len(image["dtScores"]) for _, image in found]).astype(np.int64)
    is_correct = np.concatenate([np.zeros((len(IOUS), 0), bool), *(image["dtMatches"] for _, image in found)], 1)
    bits = (is_correct * (1 << np.arange(len(IOUS)))[:, None]).sum(0).astype(np.uint16)
    order = np.argsort(-scores, kind="mergesort")  # the sort of pycocotools
    return ClassMatches(frame[order], bits[order], labels)


def _compare(frames: Sequence[Frame], classes: Sequence[str]) -> list[list[dict[str, Any] | None]]:
    """Return pycocotools' result of each frame, for every class and area, reduced to what it accumulates."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    sides = []
    for rows in ([frame.labels for frame in frames], [frame.predictions for frame in frames]):
        side = COCO()
        side.dataset = {
            "images": [{"id": i + 1} for i in range(len(frames))],
            "categories": [{"id": c + 1, "name": name} for c, name in enumerate(classes)],
            "annotations": _annotations(rows),
        }
        side.createIndex()
        sides.append(side)
    scoring = COCOeval(*sides, "bbox")
    scoring.evaluate()
    kept = [
        e
        and {"dtScores": e["dtScores"], "dtMatches": e["dtMatches"] != 0, "dtIgnore": e["dtIgnore"], "gtIgnore": e["gtIgnore"]}
        for e in scoring.evalImgs
    ]
    return [kept[first : first + len(frames)] for first in range(0, len(kept), len(frames))]


def _summary(precision: NDArray[np.float64], classes: Sequence[str], frames: int) -> AveragePrecision:
    """Summarise precisions `(IoU 10, recall 101, class, area 4)`."""
    per_class = {
        name: {"ap": mean_percent(precision[:, :, c, 0]), "ap50": mean_percent(precision[0, :, c, 0])}
        for c, name in enumerate(classes)
    }
    return AveragePrecision(
        ap=mean_percent(precision[:, :, :, 0]),
        ap50=mean_percent(precision[0, :, :, 0]),
        ap75=mean_percent(precision[5, :, :, 0]),
        ap_small=mean_percent(precision[:, :, :, 1]),
        ap_medium=mean_percent(precision[:, :, :, 2]),
        ap_large=mean_percent(precision[:, :, :, 3]),
        per_class=per_class,
        frames=frames,
    )


def _annotations(images: Sequence[NDArray[np.void]]) -> list[dict[str, Any]]:
    """Return COCO's rows. Areas are multiplied in float32, as when pycocotools gets the numbers of a box file directly."""
    rows: list[dict[str, Any]] = []
    for i, boxes in enumerate(images):
        xywh = np.stack([boxes[side] for side in "xywh"], 1).tolist()
        areas = (boxes["w"] * boxes["h"]).tolist()
        for box, area, label, score in zip(
            xywh, areas, boxes["class_id"].tolist(), boxes["class_confidence"].tolist(), strict=True
        ):
            row = {"id": len(rows) + 1, "image_id": i + 1, "category_id": label + 1, "iscrowd": 0, "bbox": box, "area": area}
            rows.append({**row, "score": score})
    return rows


def mean_percent(precision: NDArray[np.float64]) -> float:
    """Return the mean precision in percent; NaN without labels (-1)."""
    valid = precision[precision > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")
