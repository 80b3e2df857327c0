"""Accuracy figures of classifiers against values counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from evburst.eval.classification import ClassScores, class_calibration, confusion, per_class, top, top1_loss

NAN = float("nan")
FOUND = ClassScores(
    np.array([
        [0.7, 0.2, 0.1],  # right
        [0.2, 0.3, 0.5],  # second best
        [0.1, 0.1, 0.8],  # a tie for the last place
        [NAN, NAN, NAN],  # was not run
    ]),
    np.array([0, 1, 0, 2]),
)  # fmt: skip


def test_rank_counts_ties_and_idle_windows_as_wrong() -> None:
    assert FOUND.rank.tolist() == [0, 1, 2, 3]
    assert (top(FOUND), top(FOUND, 2), top(FOUND, 3)) == (25, 50, 75)
    uniform = ClassScores(np.full((1, 4), 0.25), np.array([0]))
    assert top(uniform) == 0
    assert np.isnan(top(ClassScores(np.zeros((0, 3)), np.zeros(0, np.int64))))


def test_windows_that_were_not_run_are_not_wrong_windows() -> None:
    assert FOUND.ran.labels.tolist() == [0, 1, 0]
    assert top(FOUND.ran) == pytest.approx(100 / 3)


def test_scores_of_a_recording_are_the_mean_over_windows_that_are_not_idle() -> None:
    recordings, names = FOUND.by_recording(["b", "a", "b", "c"])
    assert names == ["b", "a", "c"]
    assert recordings.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(recordings.scores[:2], [[0.4, 0.15, 0.45], [0.2, 0.3, 0.5]])
    assert np.isnan(recordings.scores[2]).all()
    assert recordings.rank.tolist() == [1, 1, 3]


def test_classes_and_confusion() -> None:
    found = per_class(FOUND, ("x", "y", "z"))
    assert found == {"x": {"count": 2, "top1": 50}, "y": {"count": 1, "top1": 0}, "z": {"count": 1, "top1": 0}}
    assert per_class(ClassScores(FOUND.scores[:1], FOUND.labels[:1]), ("x", "y", "z"))["y"] == {"count": 0, "top1": None}
    assert confusion(FOUND).tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_calibration_error_is_the_weighted_gap() -> None:
    error, count, score, right = class_calibration(FOUND)
    assert sum(count) == 3
    assert (count[5], count[7] + count[6], count[8]) == (1, 1, 1)
    assert error == pytest.approx((0.3 + 0.5 + 0.8) / 3)
    assert score[5] == pytest.approx(0.5)
    assert (right[5], score[0]) == (0, None)
    empty = ClassScores(np.full((1, 3), NAN), np.array([0]))
    assert class_calibration(empty)[0] is None


def test_losses_are_paired() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    good = ClassScores(np.eye(3)[labels] * 0.8 + 0.1, labels)
    wrong = rng.random(200) < 0.1
    bad = ClassScores(np.where(wrong[:, None], np.roll(good.scores, 1, 1), good.scores), labels)
    loss = top1_loss(good, bad, 500)
    assert loss.mean == pytest.approx(100 * wrong.mean())
    assert loss.low is not None
    assert loss.high is not None
    assert 0 < loss.low < loss.mean < loss.high
    assert loss == top1_loss(good, bad, 500)
    assert (top1_loss(good, good, 100).low, top1_loss(good, good, 100).high) == (0, 0)
    assert top1_loss(good, bad, 0).low is None
    with pytest.raises(ValueError, match="same recordings"):
        top1_loss(good, ClassScores(bad.scores, labels[::-1].copy()))
