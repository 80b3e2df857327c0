"""Class scores of a window or a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOP = 5
DETECTION, CLASSIFICATION = "detection", "classification"
"""Names of tasks: boxes in a window, or a class of it."""


@dataclass(frozen=True)
class Classification:
    """Scores of all classes at one instant.

    Attributes:
        scores: `(K,)` float32 in [0, 1]; they sum to 1.
        t_us: the instant they hold for, on the recording's clock.

    Raises:
        ValueError: `scores` is not a vector of at least one class.
    """

    scores: NDArray[np.float32]
    t_us: int = 0

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or not len(self.scores):
            raise ValueError(f"Classification.scores: expected shape (K,), received {self.scores.shape}")

    @classmethod
    def mean(cls, found: Iterable[Classification | None]) -> Classification | None:
        """Of several windows of one recording: the mean of their scores, at the time of the last one.

        None stands for an idle window, which has no say; the result is None if there is no other.
        """
        total: NDArray[np.float64] | None = None
        count = t_us = 0
        for one in found:
            if one is not None:
                total = one.scores.astype(np.float64) if total is None else total + one.scores
                count, t_us = count + 1, one.t_us
        return None if total is None else cls((total / count).astype(np.float32), t_us)

    @property
    def label(self) -> int:
        """Index of the class with the highest score; of equal ones the first."""
        return int(self.scores.argmax())

    @property
    def score(self) -> float:
        """Its score."""
        return float(self.scores.max())

    @property
    def top5(self) -> list[tuple[int, float]]:
        """(class index, score) of up to five classes, best first."""
        best = np.argsort(-self.scores, kind="stable")[:_TOP]
        return [(int(k), float(self.scores[k])) for k in best]

    @property
    def certainty(self) -> float:
        """1 minus the entropy of the scores as a share of the largest possible one, in [0, 1]; 1 for a single class."""
        if len(self.scores) == 1:
            return 1.0
        p = self.scores[self.scores > 0].astype(np.float64)
        return float(1 + (p * np.log(p)).sum() / np.log(len(self.scores)))
