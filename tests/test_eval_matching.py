"""Confusion, per-frame F1 and calibration on cases worked out by hand; counts against COCO's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evburst.eval.coco import coco_result
from evburst.eval.matching import calibration, match_predictions
from evburst.eval.protocol import PROTOCOLS, Frame, RecordingBoxes, match
from tests.test_eval_protocol import CLASSES, GEN1, boxes, random_recording


def frame(labels: list[tuple[float, ...]], found: list[tuple[float, ...]]) -> Frame:
    return Frame(0, boxes(*((0, *row) for row in labels)), boxes(*((0, *row) for row in found)))


def test_confusion_by_hand() -> None:
    """A car found; a person taken for a car; a car missed; a person where there is nothing; a duplicate; a low score."""
    one = frame(
        [(0, 0, 40, 40, 0), (100, 0, 40, 40, 1), (200, 0, 40, 40, 0)],
        [(0, 0, 40, 40, 0, 0.9), (100, 0, 40, 40, 0, 0.8), (0, 100, 40, 40, 1, 0.7),
         (1, 0, 40, 40, 0, 0.5), (200, 0, 40, 40, 0, 0.1)],
    )  # fmt: skip
    matches = match_predictions([one], 2)
    assert matches.confusion.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert matches.correct.tolist() == [True, False, False, False, True]
    assert matches.frame_f1.tolist() == [2 * 1 / (4 + 3)]
    assert matches.frame_iou.tolist() == [1]


def test_frames_with_nothing() -> None:
    matches = match_predictions([frame([], []), frame([(0, 0, 40, 40)], []), frame([], [(0, 0, 40, 40, 0, 0.9)])], 2)
    assert matches.frame_f1.tolist() == [1, 0, 0]
    assert matches.confusion.sum() == 2
    assert math.isnan(calibration(match_predictions([], 2)).error)


def test_calibration_by_hand() -> None:
    """Scores 0.9 right, 0.9 wrong, 0.5 right, and one below 0.3 that counts in its bin only."""
    frames = [
        frame([(0, 0, 40, 40)], [(0, 0, 40, 40, 0, 0.9)]),
        frame([], [(0, 0, 40, 40, 0, 0.9)]),
        frame([(0, 0, 40, 40)], [(0, 0, 40, 40, 0, 0.5)]),
        frame([], [(0, 0, 40, 40, 0, 0.2)]),
    ]
    found = calibration(match_predictions(frames, 2))
    assert found.count[[2, 5, 9]].tolist() == [1, 1, 2]
    assert found.precision[[2, 5, 9]].tolist() == [0, 1, 0.5]
    assert found.error == pytest.approx((2 * abs(0.9 - 0.5) + abs(0.5 - 1)) / 3)


@pytest.mark.parametrize("seed", range(20))
def test_right_ones_are_those_that_coco_counts(seed: int) -> None:
    """Recall at IoU 0.5 over all classes, at most 100 boxes: COCO's own number."""
    frames, _ = match([RecordingBoxes(*random_recording(np.random.default_rng(seed)))], PROTOCOLS["coco"], GEN1)
    result, matches = coco_result(frames, CLASSES), match_predictions(frames, 2)
    labels = np.concatenate([f.labels["class_id"] for f in frames])
    per_class = np.bincount(labels, minlength=3)[:2]
    expected = sum(r * n for r, n in zip(result.recall[0, :, 0], per_class, strict=True) if n)
    assert matches.correct.sum() == pytest.approx(expected)
