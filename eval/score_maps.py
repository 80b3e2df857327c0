"""Calibration of a detector's scores: a monotone map per class, after which a score is the probability that a box is correct.

The map is linear in the logit, logit' = scale * logit + bias, fitted by maximum likelihood (Platt, "Probabilistic Outputs for
Support Vector Machines", 1999). It is kept only if it helps on images that it was not fitted on: images are divided into
halves, and the boxes of each half are mapped by the fit to the other half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.eval.matching import Matches, calibration_error

FROM_SCORE = 0.1
"""Minimum score of boxes in the calibration error."""
LOWEST_SCORE = 0.05
"""Minimum score of the boxes to which a map is fitted: the fit describes scores that are shown, not the background."""
FEWEST = 25
"""Correct boxes that each half of the images must have; with fewer, a class keeps its scores."""
_STEPS = 50
_TOLERANCE = 1e-10
_LARGEST_LOGIT = 30.0


@dataclass(frozen=True)
class ScoreMap:
    """A map of scores, logit' = scale * logit + bias.

    Attributes:
        scale: positive in every map that is used.
        bias: added to the scaled logit.
    """

    scale: float = 1.0
    bias: float = 0.0

    def __call__(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Map scores in [0, 1], of any shape."""
        return _sigmoid(self.scale * _logit(scores) + self.bias)


@dataclass(frozen=True)
class Calibrated:
    """The map of one class, and what it achieves.

    Attributes:
        map: the fit to all images; the identity if there are too few boxes, or if it would not lower the error.
        ece_before: expected calibration error of boxes with FROM_SCORE and above; NaN without any.
        ece_after: the same after mapping the boxes of each half by the fit to the other half; `ece_before` for the identity.
        boxes: number of boxes with LOWEST_SCORE and above.
    """

    map: ScoreMap
    ece_before: float
    ece_after: float
    boxes: int


def class_errors(matches: Matches, classes: int) -> list[float | None]:
    """Compute the expected calibration error of each class's boxes with FROM_SCORE and above; None without any."""
    of_class = [matches.classes == k for k in range(classes)]
    return [rounded_or_none(calibration_error(matches.scores[own], matches.correct[own], FROM_SCORE)) for own in of_class]


def calibrate_scores(matches: Matches, classes: int, units: NDArray[np.int64]) -> list[Calibrated]:
    """Fit the map of every class, and check it on images that it was not fitted on.

    Args:
        matches: predictions of an uncut score range, matched to labels.
        classes: number of classes.
        units: `(frames,)` indices of pictures or recordings, of `number_units`; one is never in both halves.
    """
    is_second_half = units % 2 == 1
    if len(units) and not is_second_half.any():  # a single recording: halves in order of time
        is_second_half = np.arange(len(units)) >= len(units) // 2
    results = []
    for k in range(classes):
        own = matches.classes == k
        results.append(_calibrate(matches.scores[own], matches.correct[own], is_second_half[matches.frames[own]]))
    return results


def _calibrate(scores: NDArray[np.float32], correct: NDArray[np.bool_], second: NDArray[np.bool_]) -> Calibrated:
    """Fit and check the map of one class; `second`: whether a box is in the second half."""
    fitted = scores >= LOWEST_SCORE
    before = calibration_error(scores, correct, FROM_SCORE)
    unchanged = Calibrated(ScoreMap(), before, before, int(fitted.sum()))
    if min((correct & fitted & half).sum() for half in (second, ~second)) < FEWEST:
        return unchanged
    held_out = np.zeros(len(scores))
    for half in (second, ~second):
        other = fitted & ~half
        held_out[half] = fit_score_map(scores[other], correct[other])(scores[half])
    after = calibration_error(held_out, correct, FROM_SCORE)
    found = fit_score_map(scores[fitted], correct[fitted])
    return Calibrated(found, before, after, unchanged.boxes) if after < before and found.scale > 0 else unchanged


def fit_score_map(scores: NDArray[np.floating], correct: NDArray[np.bool_]) -> ScoreMap:
    """Fit a map by maximum likelihood, with Platt's smoothed targets, which keep it finite for separable boxes.

    The likelihood is concave; Newton's method with halved steps finds its maximum.

    Args:
        scores: `(m,)` in [0, 1]; at least one.
        correct: `(m,)` bool; whether each box is correct.
    """
    hits, misses = int(correct.sum()), int((~correct).sum())
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (misses + 2))
    features = np.stack([_logit(scores), np.ones(len(scores))])
    point = np.array([1.0, 0.0])
    loss = _loss(point, features, target)
    for _ in range(_STEPS):
        p = _sigmoid(point @ features)
        gradient = features @ (p - target)
        curvature = (features * (p * (1 - p))) @ features.T + 1e-9 * np.eye(2)
        step, length = np.linalg.solve(curvature, gradient), 1.0
        while (reached := _loss(point - length * step, features, target)) > loss and length > _TOLERANCE:
            length /= 2
        if loss - reached <= _TOLERANCE * len(scores):
            break
        point, loss = point - length * step, reached
    return ScoreMap(float(point[0]), float(point[1]))


def record_of(result: Calibrated) -> dict[str, float | int | None]:
    """Return a result in JSON types, rounded; an undefined error is None."""
    errors = {"ece_before": rounded_or_none(result.ece_before), "ece_after": rounded_or_none(result.ece_after)}
    return {"scale": round(result.map.scale, 4), "bias": round(result.map.bias, 4), **errors, "boxes": result.boxes}


def rounded_or_none(value: float) -> float | None:
    """Round to four digits, as in results; None for NaN."""
    return None if math.isnan(value) else round(value, 4)


def _loss(point: NDArray[np.float64], features: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """Negative log likelihood."""
    x = point @ features
    return float((np.logaddexp(0, x) - target * x).sum())


def _logit(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    p = scores.astype(np.float64)
    with np.errstate(divide="ignore"):
        logits: NDArray[np.float64] = np.clip(np.log(p) - np.log1p(-p), -_LARGEST_LOGIT, _LARGEST_LOGIT)
    return logits


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the sigmoid without overflow."""
    return np.exp(-np.logaddexp(0, -logits))
