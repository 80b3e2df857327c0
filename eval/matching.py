"""Predictions one by one: which of them are right, what they are mistaken for, and whether their scores can be believed.

At one IoU and by COCO's rule: best score first, each prediction takes the free label of its class that it overlaps most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import iou_matrix
from evburst.eval.protocol import Frame

BINS = 10


@dataclass(frozen=True)
class Matches:
    """Every prediction of all frames.

    Attributes:
        scores: `(m,)` float32.
        correct: `(m,)` bool; it is the best prediction of a label of its class.
        confusion: `(classes + 1, classes + 1)` int64 of predictions with `score` and above: rows are what there is, columns what
            was predicted; the last row is "nothing there", the last column "not found".
        frame_f1: `(frames,)` float64 F1 of the same predictions; 1 where there is nothing and nothing was predicted.
        frame_iou: `(frames,)` float64 mean IoU of the right ones among them; 0 where there is none.
    """

    scores: NDArray[np.float32]
    correct: NDArray[np.bool_]
    confusion: NDArray[np.int64]
    frame_f1: NDArray[np.float64]
    frame_iou: NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Scores against precision, in BINS bins of equal width.

    Attributes:
        count, confidence, precision: of each bin: predictions, their mean score, the share that is right (NaN: none).
        error: expected calibration error of the predictions with `from_score` and above (D-ECE without position; Kueppers et
            al., CVPR workshops 2020); NaN without any.
        from_score: see above.
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]
    error: float
    from_score: float


def match_predictions(frames: Sequence[Frame], classes: int, score: float = 0.3, iou: float = 0.5) -> Matches:
    """Match the predictions of every frame; `score` is where confusion and F1 begin to count."""
    scores, correct = [np.zeros(0, np.float32)], [np.zeros(0, bool)]
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    f1, mean_iou = np.zeros(len(frames)), np.zeros(len(frames))
    for k, frame in enumerate(frames):
        labels = frame.labels[frame.labels["class_id"] < classes]
        found = frame.predictions[frame.predictions["class_id"] < classes]
        found = found[np.argsort(-found["class_confidence"], kind="stable")]
        overlap = iou_matrix(_xyxy(found), _xyxy(labels))
        taken = _greedy(np.where(found["class_id"][:, None] == labels["class_id"], overlap, 0), iou)
        scores.append(found["class_confidence"])
        correct.append(taken >= 0)
        shown = found["class_confidence"] >= score
        right = taken[shown] >= 0
        f1[k] = 2 * right.sum() / (shown.sum() + len(labels)) if shown.sum() + len(labels) else 1.0
        if right.any():
            mean_iou[k] = overlap[np.flatnonzero(shown)[right], taken[shown][right]].mean()
        any_class = _greedy(overlap[shown], iou, prefer=taken[shown])
        for label, column in zip(found["class_id"][shown], any_class, strict=True):
            confusion[labels["class_id"][column] if column >= 0 else classes, label] += 1
        missed = np.setdiff1d(np.arange(len(labels)), any_class)
        confusion[:classes, classes] += np.bincount(labels["class_id"][missed], minlength=classes)
    return Matches(np.concatenate(scores), np.concatenate(correct), confusion, f1, mean_iou)


def calibration(matches: Matches, from_score: float = 0.3) -> Calibration:
    """How far scores are from the share of predictions that are right."""
    bins = np.minimum((matches.scores * BINS).astype(int), BINS - 1)
    count, right, total = _binned(bins, matches.scores, matches.correct)
    with np.errstate(invalid="ignore"):
        confidence, precision = total / count, right / count
    kept = matches.scores >= from_score
    n, hits, sums = _binned(bins[kept], matches.scores[kept], matches.correct[kept])
    error = float(np.abs(sums - hits).sum() / n.sum()) if n.sum() else float("nan")
    return Calibration(count, confidence, precision, error, from_score)


def _binned(
    bins: NDArray[np.int64], scores: NDArray[np.float32], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    count = np.bincount(bins, minlength=BINS).astype(np.int64)
    right, total = (np.bincount(bins, of, BINS).astype(np.float64) for of in (correct, scores))
    return count, right, total


def _greedy(overlap: NDArray[np.float32], iou: float, prefer: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """For each row in order, the free column it overlaps most, from `iou` on; -1: none. `prefer`: columns fixed beforehand."""
    taken = np.full(len(overlap), -1, np.int64)
    free = np.ones(overlap.shape[1], bool)
    if prefer is not None:
        taken[:] = prefer
        free[prefer[prefer >= 0]] = False
    for row in np.flatnonzero(taken < 0):
        if free.any():
            best = int(np.argmax(np.where(free, overlap[row], -1)))
            if overlap[row, best] >= iou:
                taken[row], free[best] = best, False
    return taken


def _xyxy(boxes: NDArray[np.void]) -> NDArray[np.float32]:
    return np.stack([boxes["x"], boxes["y"], boxes["x"] + boxes["w"], boxes["y"] + boxes["h"]], 1)
