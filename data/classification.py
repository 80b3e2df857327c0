"""Class scores of a window or a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_TOP = 5
DETECTION, CLASSIFICATION = "detection", "classification"
"""Names of the tasks: boxes in each window, or one class for it."""


@dataclass(frozen=True, eq=False)
class Classification:
    """Scores of all classes at one instant.

    Attributes:
        scores: `(K,)` float32 in [0, 1]; they sum to 1.
        t_us: the time for which they hold, on the recording's clock.

    Raises:
        ValueError: `scores` is not a vector of at least one class.
    """

    scores: NDArray[np.float32]
    t_us: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", np.asarray(self.scores, np.float32))
        if self.scores.ndim != 1 or not len(self.scores):
            raise ValueError(f"Classification.scores: expected shape (K,), received {self.scores.shape}")

    @classmethod
    def mean(cls, windows: Iterable[Classification | None]) -> Classification | None:
        """Return the mean scores of the windows of one recording, at the time of the last one.

        None stands for an idle window, which is excluded; the result is None if all windows are idle.
        """
        total: NDArray[np.float64] | None = None
        count = t_us = 0
        for window in windows:
            if window is not None:
                total = window.scores.astype(np.float64) if total is None else total + window.scores
                count, t_us = count + 1, window.t_us
        return None if total is None else cls((total / count).astype(np.float32), t_us)

    @property
    def label(self) -> int:
        """Index of the class with the highest score; the first one if several are equal."""
        return int(self.scores.argmax())

    @property
    def score(self) -> float:
        """Score of the class `label`."""
        return float(self.scores.max())

    @property
    def top5(self) -> list[tuple[int, float]]:
        """(class index, score) of the five best classes, or of all if there are fewer, best first."""
        best = np.argsort(-self.scores, kind="stable")[:_TOP]
        return [(int(k), float(self.scores[k])) for k in best]

    @property
    def certainty(self) -> float:
        """1 minus the entropy of the scores divided by its maximum, in [0, 1]; 1 for a single class."""
        if len(self.scores) == 1:
            return 1.0
        p = self.scores[self.scores > 0].astype(np.float64)
        return float(1 + (p * np.log(p)).sum() / np.log(len(self.scores)))
