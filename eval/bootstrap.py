"""Confidence intervals for the difference of two APs: paired bootstrap over pictures or recordings.

A resample draws as many units as there are, with replacement, and uses all frames of each with the predictions of both
networks; its AP is COCO's. Windows of one recording, or several windows of one picture, are one unit, because they are
not independent. (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; percentile intervals.)

The matches of pycocotools are computed once (evburst.eval.coco.ClassMatches). A resample is then one pass over the sorted
predictions, each weighted by how often its unit was drawn. `resampled_ap_reference` repeats rows instead, exactly as
pycocotools would.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.eval.coco import IOUS, RECALLS, ClassMatches

CONFIDENCE = 0.95
RESAMPLES = 1000
_MIN_UNITS = 2


@dataclass(frozen=True)
class Interval:
    """A difference of AP, or of top-1, in percentage points.

    Attributes:
        mean: the difference on the whole set.
        low, high: bounds that contain CONFIDENCE of the resamples; None with fewer than two units.
        resamples: number of resamples drawn.
        units: number of pictures or recordings drawn from.
    """

    mean: float
    low: float | None
    high: float | None
    resamples: int
    units: int


@dataclass(frozen=True)
class Losses:
    """AP of one network minus that of another, in percentage points.

    Attributes:
        ap, ap50: COCO's AP and AP at IoU 0.50.
        by_iou: AP at each of IOUS.
    """

    ap: Interval
    ap50: Interval
    by_iou: dict[str, Interval]


def number_units(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return unit indices `(frames,)`: frames of the same name share an index, from 0 in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def ap_losses(
    first: Sequence[ClassMatches],
    second: Sequence[ClassMatches],
    units: NDArray[np.int64],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Losses:
    """Return the AP of the first network minus that of the second, with intervals.

    Args:
        first, second: matches of the same frames, by class.
        units: `(frames,)` unit indices, see `number_units`.
        resamples: number of resamples; the result is deterministic for a seed.
        seed: seed of the draws.

    Raises:
        ValueError: the two networks were not scored on the same labels.
    """
    if any(not np.array_equal(a.labels, b.labels) for a, b in zip(first, second, strict=True)):
        raise ValueError("a paired bootstrap needs both networks scored on the same frames")
    count = int(units.max(initial=-1)) + 1
    whole = np.ones((1, len(units)), np.int64)
    (measured,) = resampled_ap(first, whole) - resampled_ap(second, whole)
    drawn = np.zeros((0, len(IOUS)))
    if count >= _MIN_UNITS and resamples > 0:
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
        repeats = draws[:, units]
        drawn = resampled_ap(first, repeats) - resampled_ap(second, repeats)
    by_iou = {iou: interval_of(measured[k], drawn[:, k], count) for k, iou in enumerate(IOUS)}
    return Losses(interval_of(measured.mean(), drawn.mean(1), count), by_iou["0.50"], by_iou)


def resampled_ap(classes: Sequence[ClassMatches], repeats: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the AP in percent of every resample at each of IOUS, `(R, 10)`; NaN without a label.

    Args:
        classes: the matches.
        repeats: `(R, frames)`; weight of each frame.
    """
    out = np.full((len(repeats), len(classes), len(IOUS)), np.nan)
    for c, matches in enumerate(classes):
        _resample(np.ascontiguousarray(repeats), matches.frame, matches.correct, matches.labels, RECALLS, out[:, c])
    return _over_classes(out)


def resampled_ap_reference(classes: Sequence[ClassMatches], repeats: NDArray[np.int64]) -> NDArray[np.float64]:
    """NumPy reference of `resampled_ap`: repeats rows, then follows pycocotools' `accumulate`."""
    out = np.full((len(repeats), len(classes), len(IOUS)), np.nan)
    for r, times in enumerate(repeats):
        for c, matches in enumerate(classes):
            labels = int((matches.labels * times).sum())
            if not labels:
                continue
            correct = np.repeat(matches.correct, times[matches.frame])
            for k in range(len(IOUS)):
                right = (correct >> k & 1).astype(bool)
                tp, fp = np.cumsum(right).astype(float), np.cumsum(~right).astype(float)
                precision = np.maximum.accumulate((tp / (fp + tp + np.spacing(1)))[::-1])[::-1]
                at = np.searchsorted(tp / labels, RECALLS, side="left")
                out[r, c, k] = np.append(precision, np.zeros(1))[at].mean()
    return _over_classes(out)


def _over_classes(ap: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over the classes that have labels, in percent: `(R, classes, 10)` to `(R, 10)`."""
    known = ~np.isnan(ap)
    total, count = np.where(known, ap, 0).sum(1), known.sum(1)
    mean: NDArray[np.float64] = np.divide(100 * total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def interval_of(measured: float, drawn: NDArray[np.float64], units: int) -> Interval:
    """A difference with the interval that CONFIDENCE of the resamples `drawn` lie in; without any, alone."""
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(float(measured), None, None, 0, units)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail]).tolist()
    return Interval(float(measured), low, high, len(drawn), units)


@njit(cache=True, nogil=True)
def _resample(repeats, frame, correct, labels, recalls, out):  # type: ignore[no-untyped-def]
    """Fill `out` (R, 10) for one class; rows of resamples without a label are not changed.

    Precision increases only at a correct prediction, so interpolation only needs to consider those.
    """
    ious = out.shape[1]
    tp, rows = np.zeros(ious, np.int64), np.zeros(ious, np.int64)
    reached = np.empty((ious, len(frame)), np.int64)
    precision = np.empty((ious, len(frame)))
    for r in range(len(repeats)):
        total_labels = 0
        for f in range(len(labels)):
            total_labels += labels[f] * repeats[r, f]
        if total_labels == 0:
            continue
        tp[:], rows[:], seen = 0, 0, 0
        for i in range(len(frame)):
            times = repeats[r, frame[i]]
            seen += times
            if times == 0 or correct[i] == 0:
                continue
            for k in range(ious):
                if correct[i] >> k & 1:
                    tp[k] += times
                    reached[k, rows[k]] = tp[k]
                    precision[k, rows[k]] = tp[k] / (float(seen) + 2.220446049250313e-16)
                    rows[k] += 1
        for k in range(ious):
            for j in range(rows[k] - 2, -1, -1):
                precision[k, j] = max(precision[k, j], precision[k, j + 1])
            j, total = 0, 0.0
            for recall in recalls:
                while j < rows[k] and reached[k, j] / total_labels < recall:
                    j += 1
                if j == rows[k]:
                    break
                total += precision[k, j]
            out[r, k] = total / len(recalls)
