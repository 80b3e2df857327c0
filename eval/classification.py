"""Accuracy of class scores: top-1, top-5, per class, confusion, calibration, and the loss of one network against another.

A recording's scores are the mean of its windows' scores; idle windows are excluded, also from the accuracy of windows. A
recording with only idle windows counts as wrong. Figures are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.eval.bootstrap import RESAMPLES, Interval, interval_of
from evburst.eval.matching import binned


@dataclass(frozen=True)
class ClassScores:
    """Scores of windows or recordings, and their labels.

    Attributes:
        scores: `(n, K)` float, rows that sum to 1; NaN for idle windows.
        labels: `(n,)` int64.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def rank(self) -> NDArray[np.int64]:
        """`(n,)` number of other classes that score at least as high as the labelled one; K for idle windows."""
        labelled = np.take_along_axis(self.scores, self.labels[:, None], 1)
        rank: NDArray[np.int64] = (self.scores >= labelled).sum(1) - 1
        rank[np.isnan(labelled[:, 0])] = self.scores.shape[1]
        return rank

    @property
    def ran(self) -> ClassScores:
        """Those that are not idle."""
        kept = ~np.isnan(self.scores[:, 0])
        return ClassScores(self.scores[kept], self.labels[kept])

    def by_recording(self, names: Sequence[str]) -> tuple[ClassScores, list[str]]:
        """Return the mean scores of each recording, in order of appearance, and the recordings' names."""
        order = list(dict.fromkeys(names))
        index = {name: k for k, name in enumerate(order)}
        number = np.array([index[name] for name in names], np.int64)
        ran = ~np.isnan(self.scores[:, 0])
        total, count = np.zeros((len(order), self.scores.shape[1])), np.zeros((len(order), 1))
        np.add.at(total, number[ran], self.scores[ran])
        np.add.at(count, number[ran], 1)
        labels = np.zeros(len(order), np.int64)
        labels[number] = self.labels
        return ClassScores(np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0), labels), order


def top(scored: ClassScores, k: int = 1) -> float:
    """Return the share of labels among the k highest scores, in percent; NaN for an empty set."""
    return float(100 * (scored.rank < k).mean()) if len(scored.labels) else float("nan")


def per_class(scored: ClassScores, classes: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    """Return the number of samples of each class, and the share of them classified correctly (recall), in percent."""
    right = scored.rank < 1
    out: dict[str, dict[str, float | int | None]] = {}
    for k, name in enumerate(classes):
        members = scored.labels == k
        top1 = float(100 * right[members].mean()) if members.any() else None
        out[name] = {"count": int(members.sum()), "top1": top1}
    return out


def confusion(scored: ClassScores) -> NDArray[np.int64]:
    """Return the confusion matrix `(K, K)`: rows are labels, columns predicted classes; idle windows are not counted."""
    n = scored.scores.shape[1]
    ran = ~np.isnan(scored.scores[:, 0])
    counts = np.zeros((n, n), np.int64)
    np.add.at(counts, (scored.labels[ran], scored.scores[ran].argmax(1)), 1)
    return counts


def class_calibration(scored: ClassScores) -> tuple[float | None, list[int], list[float | None], list[float | None]]:
    """Compare scores with accuracy (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).

    Returns:
        The expected calibration error in [0, 1], which is the mean of |accuracy - score| over bins of the highest score,
        weighted by their counts; then the count, mean score and accuracy of each bin.
    """
    ran = ~np.isnan(scored.scores[:, 0])
    count, right, total = binned(scored.scores[ran].max(1), scored.rank[ran] < 1)
    score, share = total / np.maximum(count, 1), right / np.maximum(count, 1)
    error = float((np.abs(score - share) * count).sum() / count.sum()) if count.sum() else None
    known = count > 0
    means = [[float(v) if k else None for v, k in zip(values, known, strict=True)] for values in (score, share)]
    return error, count.tolist(), means[0], means[1]


def top1_loss(first: ClassScores, second: ClassScores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Return the top-1 of the first network minus that of the second, in percentage points, with a paired bootstrap interval.

    Raises:
        ValueError: the networks were not scored on the same recordings.
    """
    if not np.array_equal(first.labels, second.labels):
        raise ValueError("a paired bootstrap needs both networks scored on the same recordings")
    difference = 100.0 * ((first.rank < 1).astype(float) - (second.rank < 1))
    n = len(difference)
    rng, drawn = np.random.default_rng(seed), np.zeros(0)
    if n > 1 and resamples:
        drawn = np.array([difference[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    return interval_of(float(difference.mean()), drawn, n)
