"""Maps of scores: the fit on drawn boxes, the check on the other half, and boxes that are too few."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from evburst.eval.matching import Matches, calibration_error
from evburst.eval.score_maps import FROM_SCORE, ScoreMap, calibrate_scores, class_errors, fit_score_map, record_of


def drawn(scale: float, bias: float, n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores of boxes that are correct with the probability that a map gives."""
    rng = np.random.default_rng(seed)
    scores = (1 / (1 + np.exp(-rng.uniform(-2.5, 3, n)))).astype(np.float32)
    return scores, rng.random(n) < ScoreMap(scale, bias)(scores)


def matches(scores: NDArray[np.float32], correct: NDArray[np.bool_], per_frame: int = 10) -> Matches:
    """One class, `per_frame` boxes in each frame."""
    n = len(scores)
    frames = np.arange(n) // per_frame
    return Matches(scores, np.zeros(n, np.int64), frames, correct, np.zeros((2, 2), np.int64), np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (1.4, 0.74), (0.95, 0.7), (0.3, -1.5), (3.0, 2.0)])
def test_the_fit_recovers_the_map(scale: float, bias: float) -> None:
    found = fit_score_map(*drawn(scale, bias, 40_000))
    assert found.scale == pytest.approx(scale, rel=0.05, abs=0.03)
    assert found.bias == pytest.approx(bias, abs=0.08)


def test_the_fit_is_the_maximum_of_the_likelihood() -> None:
    scores, correct = drawn(1.4, 0.7, 500)
    hits, misses = correct.sum(), (~correct).sum()
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (misses + 2))

    def likelihood(scale: float, bias: float) -> float:
        p = ScoreMap(scale, bias)(scores)
        return float((target * np.log(p) + (1 - target) * np.log(1 - p)).sum())

    found = fit_score_map(scores, correct)
    best = likelihood(found.scale, found.bias)
    assert all(likelihood(found.scale + a, found.bias + b) < best for a, b in [(0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)])


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.8, 0.9], [0.0, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.5]])
@pytest.mark.parametrize("correct", [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_the_fit_stays_finite(scores: list[float], correct: list[int]) -> None:
    found = fit_score_map(np.array(scores, np.float32), np.array(correct, bool))
    assert math.isfinite(found.scale)
    assert math.isfinite(found.bias)


def test_a_map_keeps_the_order_and_the_bounds() -> None:
    scores = np.linspace(0, 1, 101, dtype=np.float32)
    mapped = ScoreMap(1.4, 0.7)(scores)
    assert (np.diff(mapped) > 0).all()
    assert 0 <= mapped[0] < 1e-9
    assert 1 - 1e-9 < mapped[-1] <= 1


def test_a_map_that_helps_is_kept_and_fits_again_to_nothing() -> None:
    scores, correct = drawn(1.4, 0.74, 4000)
    (found,) = calibrate_scores(matches(scores, correct), 1, np.arange(400))
    assert found.ece_before == pytest.approx(calibration_error(scores, correct, FROM_SCORE))
    assert found.ece_after < found.ece_before / 2
    again = fit_score_map(found.map(scores), correct)
    assert (again.scale, again.bias) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.01))


def test_a_map_that_does_not_help_is_not_used() -> None:
    """Calibrated in one half, overconfident in the other: what is learned from either is wrong for the other."""
    (first, right), (second, wrong) = drawn(1, 0, 300, 1), drawn(1, -3, 300, 2)
    scores, correct = np.concatenate([first, second]), np.concatenate([right, wrong])
    halves = np.repeat([0, 1], 30)
    (found,) = calibrate_scores(matches(scores, correct), 1, halves)
    assert found.map == ScoreMap()
    assert found.ece_after == found.ece_before > 0


def test_falling_scores_are_not_turned_around() -> None:
    scores, correct = drawn(-1, 0, 2000)
    (found,) = calibrate_scores(matches(scores, correct), 1, np.arange(200))
    assert found.map == ScoreMap()


@pytest.mark.parametrize("boxes", [0, 1, 40])
def test_too_few_boxes_keep_their_scores(boxes: int) -> None:
    scores, correct = drawn(2, 2, boxes)
    (found,) = calibrate_scores(matches(scores, correct), 1, np.arange(max(1, boxes // 10)))
    assert found.map == ScoreMap()
    record = record_of(found)
    assert (record["scale"], record["bias"]) == (1, 0)
    assert record["ece_after"] == record["ece_before"]
    assert (record["ece_before"] is None) == (boxes == 0)


def test_classes_are_mapped_apart_and_one_recording_is_halved_in_time() -> None:
    scores, correct = drawn(1.4, 0.74, 4000)
    both = matches(np.tile(scores, 2), np.concatenate([correct, np.zeros_like(correct)]))
    of_class = np.repeat([0, 1], 4000)
    both = Matches(both.scores, of_class, both.frames, both.correct, both.confusion, both.frame_f1, both.frame_iou)
    found = calibrate_scores(both, 2, np.zeros(800, np.int64))
    assert found[1].map == ScoreMap()
    assert found[0].map == ScoreMap(), "all boxes of the first class are in the first half"
    in_turn = Matches(scores, of_class[:4000], np.arange(4000) // 10, correct, both.confusion, both.frame_f1, both.frame_iou)
    (alone,) = calibrate_scores(in_turn, 1, np.zeros(400, np.int64))
    assert alone.map.scale == pytest.approx(1.4, rel=0.15)


def test_errors_by_class() -> None:
    """A score of 0.9 that is right, one of 0.8 that is wrong, one below the lowest; and a class without boxes."""
    scores, correct = np.array([0.9, 0.8, 0.05], np.float32), np.array([True, False, False])
    assert class_errors(matches(scores, correct), 2) == [pytest.approx((0.1 + 0.8) / 2), None]
