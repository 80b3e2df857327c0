"""Matching of single predictions to labels: correct ones, confusions between classes, and calibration of the scores.

Predictions are matched at one IoU by COCO's rule: in order of descending score, each takes the free label of its class with
the largest overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import iou_matrix
from evburst.eval.protocol import Frame

BINS = 10
"""Number of bins of scores, of equal width, in calibration."""
SHOWN_SCORE, SAME_IOU = 0.3, 0.5
"""Score from which predictions count in confusion, F1 and the calibration error, and IoU at which they match a label."""


@dataclass(frozen=True)
class Matches:
    """Matches of the predictions of all frames.

    Attributes:
        scores: `(m,)` float32.
        classes: `(m,)` int64; the predicted class.
        frames: `(m,)` int64; index of the prediction's frame.
        correct: `(m,)` bool; whether the prediction is the best one of a label of its class.
        confusion: `(classes + 1, classes + 1)` int64, for predictions with `score` and above: rows are true classes, columns
            predicted ones; the last row is background, the last column missed labels.
        frame_f1: `(frames,)` float64 F1 of the same predictions; 1 in a frame with neither labels nor predictions.
        frame_iou: `(frames,)` float64 mean IoU of the correct ones among them; 0 if there is none.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    frames: NDArray[np.int64]
    correct: NDArray[np.bool_]
    confusion: NDArray[np.int64]
    frame_f1: NDArray[np.float64]
    frame_iou: NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """Scores compared with precision, in BINS bins of equal width.

    Attributes:
        count, confidence, precision: of each bin: number of predictions, their mean score, the fraction that is correct (NaN
            in an empty bin).
        error: expected calibration error of the predictions with `from_score` and above (D-ECE without position; Kueppers et
            al., CVPR workshops 2020); NaN without any.
        from_score: minimum score for `error`.
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    precision: NDArray[np.float64]
    error: float
    from_score: float


def match_predictions(frames: Sequence[Frame], classes: int) -> Matches:
    """Match the predictions of every frame; those below SHOWN_SCORE do not count for confusion and F1."""
    scores, predicted, correct = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    confusion = np.zeros((classes + 1, classes + 1), np.int64)
    f1, mean_iou = np.zeros(len(frames)), np.zeros(len(frames))
    for k, frame in enumerate(frames):
        labels = frame.labels[frame.labels["class_id"] < classes]
        predictions = frame.predictions[frame.predictions["class_id"] < classes]
        predictions = predictions[np.argsort(-predictions["class_confidence"], kind="stable")]
        overlap = iou_matrix(_xyxy(predictions), _xyxy(labels))
        matched = _greedy(np.where(predictions["class_id"][:, None] == labels["class_id"], overlap, 0))
        scores.append(predictions["class_confidence"])
        predicted.append(predictions["class_id"].astype(np.int64))
        correct.append(matched >= 0)
        is_shown = predictions["class_confidence"] >= SHOWN_SCORE
        is_correct = matched[is_shown] >= 0
        f1[k] = 2 * is_correct.sum() / (is_shown.sum() + len(labels)) if is_shown.sum() + len(labels) else 1.0
        if is_correct.any():
            mean_iou[k] = overlap[np.flatnonzero(is_shown)[is_correct], matched[is_shown][is_correct]].mean()
        any_class = _greedy(overlap[is_shown], matched[is_shown])
        for label, column in zip(predictions["class_id"][is_shown], any_class, strict=True):
            confusion[labels["class_id"][column] if column >= 0 else classes, label] += 1
        missed = np.setdiff1d(np.arange(len(labels)), any_class)
        confusion[:classes, classes] += np.bincount(labels["class_id"][missed], minlength=classes)
    of_frame = np.repeat(np.arange(len(frames)), [len(found) for found in scores[1:]])
    of_class = np.concatenate(predicted)
    return Matches(np.concatenate(scores), of_class, of_frame, np.concatenate(correct), confusion, f1, mean_iou)


def calibration(matches: Matches) -> Calibration:
    """Compare scores with the fraction of predictions that are correct."""
    count, is_correct, total = binned(matches.scores, matches.correct)
    with np.errstate(invalid="ignore"):
        confidence, precision = total / count, is_correct / count
    error = calibration_error(matches.scores, matches.correct, SHOWN_SCORE)
    return Calibration(count, confidence, precision, error, SHOWN_SCORE)


def calibration_error(scores: NDArray[np.floating], correct: NDArray[np.bool_], from_score: float) -> float:
    """Compute the expected calibration error of the predictions with `from_score` and above; NaN without any.

    Args:
        scores: `(m,)` scores.
        correct: `(m,)` bool.
        from_score: minimum score.
    """
    kept = scores >= from_score
    if not kept.any():
        return float("nan")
    count, hits, sums = binned(scores[kept], correct[kept])
    return float(np.abs(sums - hits).sum() / count.sum())


def binned(
    scores: NDArray[np.floating], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the number of predictions, the number of correct ones and the sum of scores, `(BINS,)` each."""
    bins = np.minimum((scores * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bins, minlength=BINS).astype(np.int64)
    is_correct, total = (np.bincount(bins, weights, BINS).astype(np.float64) for weights in (correct, scores))
    return count, is_correct, total


def _greedy(overlap: NDArray[np.float32], prefer: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Return, for each row in order, the free column of largest overlap >= SAME_IOU, or -1. Columns in `prefer` are fixed."""
    matched = np.full(len(overlap), -1, np.int64)
    free = np.ones(overlap.shape[1], bool)
    if prefer is not None:
        matched[:] = prefer
        free[prefer[prefer >= 0]] = False
    for row in np.flatnonzero(matched < 0):
        if free.any():
            best = int(np.argmax(np.where(free, overlap[row], -1)))
            if overlap[row, best] >= SAME_IOU:
                matched[row], free[best] = best, False
    return matched


def _xyxy(boxes: NDArray[np.void]) -> NDArray[np.float32]:
    return np.stack([boxes["x"], boxes["y"], boxes["x"] + boxes["w"], boxes["y"] + boxes["h"]], 1)
