"""How good class scores are: top-1, top-5, per class, confusion, calibration, and what one network loses against another.

A recording's scores are the mean of those of its windows; a window that was not run (idle) has no say in it. A recording
none of whose windows was run counts as wrong. Figures are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.eval.bootstrap import RESAMPLES, Interval, interval_of
from evburst.eval.matching import BINS

TOP = 5


@dataclass(frozen=True)
class ClassScores:
    """Scores of windows or recordings, and their classes.

    Attributes:
        scores: `(n, K)` float, rows that sum to 1; NaN where nothing was run.
        labels: `(n,)` int64.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def rank(self) -> NDArray[np.int64]:
        """`(n,)` how many other classes score at least as much as the right one; K where nothing was run."""
        own = np.take_along_axis(self.scores, self.labels[:, None], 1)
        rank: NDArray[np.int64] = (self.scores >= own).sum(1) - 1
        rank[np.isnan(own[:, 0])] = self.scores.shape[1]
        return rank

    def by_recording(self, names: Sequence[str]) -> tuple[ClassScores, list[str]]:
        """The mean over the windows of each recording, in order of appearance, and the recordings' names."""
        order = list(dict.fromkeys(names))
        place = {name: k for k, name in enumerate(order)}
        number = np.array([place[name] for name in names], np.int64)
        ran = ~np.isnan(self.scores[:, 0])
        total, count = np.zeros((len(order), self.scores.shape[1])), np.zeros((len(order), 1))
        np.add.at(total, number[ran], self.scores[ran])
        np.add.at(count, number[ran], 1)
        labels = np.zeros(len(order), np.int64)
        labels[number] = self.labels
        return ClassScores(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0), labels), order


def top(found: ClassScores, k: int = 1) -> float:
    """Share whose class is among the k best, in percent; NaN without any."""
    return float(100 * (found.rank < k).mean()) if len(found.labels) else float("nan")


def per_class(found: ClassScores, classes: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Of every class: how many there are, and how many of them are found (recall), in percent."""
    right = found.rank < 1
    out: dict[str, dict[str, float | int | None]] = {}
    for k, name in enumerate(classes):
        own = found.labels == k
        out[name] = {"count": int(own.sum()), "top1": float(100 * right[own].mean()) if own.any() else None}
    return out


def confusion(found: ClassScores) -> NDArray[np.int64]:
    """`(K, K)` counts: rows are classes, columns what was said; what was not run is in none."""
    n = found.scores.shape[1]
    ran = ~np.isnan(found.scores[:, 0])
    counts = np.zeros((n, n), np.int64)
    np.add.at(counts, (found.labels[ran], found.scores[ran].argmax(1)), 1)
    return counts


def calibration(found: ClassScores, bins: int = BINS) -> tuple[float | None, list[int], list[float | None], list[float | None]]:
    """Whether scores mean what they say (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    Returns:
        The expected calibration error: mean |share that is right - score| over bins of the best class's score, weighted by
        their counts, in [0, 1]; and of every bin its count, mean score and share that is right.
    """
    ran = ~np.isnan(found.scores[:, 0])
    best, right = found.scores[ran].max(1), found.rank[ran] < 1
    number = np.minimum((best * bins).astype(int), bins - 1)
    count = np.bincount(number, minlength=bins)
    score, share = (np.bincount(number, weights, bins) / np.maximum(count, 1) for weights in (best, right.astype(float)))
    error = float((np.abs(score - share) * count).sum() / count.sum()) if count.sum() else None
    known = count > 0
    means = [[float(v) if k else None for v, k in zip(values, known, strict=True)] for values in (score, share)]
    return error, count.tolist(), means[0], means[1]


def top1_loss(first: ClassScores, second: ClassScores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Top-1 of the first network minus that of the second, in points, with a paired bootstrap over recordings.

    Raises:
        ValueError: the two were not scored on the same recordings.
    """
    if not np.array_equal(first.labels, second.labels):
        raise ValueError("a paired bootstrap needs both networks scored on the same recordings")
    difference = 100.0 * ((first.rank < 1).astype(float) - (second.rank < 1))
    n = len(difference)
    rng, drawn = np.random.default_rng(seed), np.zeros(0)
    if n > 1 and resamples:
        drawn = np.array([difference[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    return interval_of(float(difference.mean()), drawn, n)
