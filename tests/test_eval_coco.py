"""AP: perfect, empty, and mixed cases whose value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evburst.data.boxes import Detections
from evburst.eval.coco import average_precision, coco_result
from evburst.eval.protocol import PROTOCOLS, RecordingBoxes, match
from tests.test_eval_protocol import GEN1, random_recording

CLASSES = ("car", "pedestrian")


def boxes(*rows: tuple[float, float, float, float], label: int = 0, score: float = 1.0) -> Detections:
    n = len(rows)
    return Detections(np.array(rows, np.float32).reshape(-1, 4), np.full(n, score, np.float32), np.full(n, label, np.int64))


def test_labels_against_themselves_score_100() -> None:
    labels = [boxes((0, 0, 40, 40), (50, 50, 90, 90)), boxes((10, 10, 60, 60), label=1)]
    scored = average_precision(labels, labels, CLASSES)
    assert scored.ap == pytest.approx(100)
    assert scored.per_class["pedestrian"]["ap50"] == pytest.approx(100)
    assert scored.frames == 2


def test_no_predictions_score_0() -> None:
    scored = average_precision([boxes((0, 0, 40, 40))], [Detections.empty()], CLASSES)
    assert (scored.ap, scored.ap50) == (0, 0)


def test_wrong_class_scores_0() -> None:
    assert average_precision([boxes((0, 0, 40, 40))], [boxes((0, 0, 40, 40), label=1)], CLASSES).ap50 == 0


def test_a_class_without_labels_is_nan_and_not_averaged() -> None:
    scored = average_precision([boxes((0, 0, 40, 40))], [boxes((0, 0, 40, 40))], CLASSES)
    assert math.isnan(scored.per_class["pedestrian"]["ap"])
    assert scored.ap == pytest.approx(100)


def test_iou_of_0_6_counts_at_50_only() -> None:
    """Shifted by a quarter of its width: IoU 0.6, so correct at 0.50, 0.55 and 0.60: AP 30."""
    scored = average_precision([boxes((0, 0, 40, 40))], [boxes((10, 0, 50, 40))], CLASSES)
    assert (scored.ap50, scored.ap75) == (pytest.approx(100), 0)
    assert scored.ap == pytest.approx(30)


def test_a_better_scored_false_box_halves_precision() -> None:
    found = Detections(
        np.array([[0, 0, 40, 40], [60, 60, 90, 90]], np.float32), np.array([0.5, 0.9], np.float32), np.zeros(2, np.int64)
    )
    assert average_precision([boxes((0, 0, 40, 40))], [found], CLASSES).ap50 == pytest.approx(50)


@pytest.mark.parametrize("sides", [(100.0, 10.0), (50.0, 50.0), (120.0, 100.0)], ids=["small", "medium", "large"])
def test_boxes_count_as_small_medium_or_large_by_their_area(sides: tuple[float, float]) -> None:
    """Below 32 x 32 px and from 96 x 96 px on; a long and low box of 1000 px is small. Only one of three labels is found."""
    labels = [boxes((0, 0, 100, 10), (0, 20, 50, 70), (0, 80, 120, 180))]
    y = {10.0: 0, 50.0: 20, 100.0: 80}[sides[1]]
    scored = average_precision(labels, [boxes((0, y, sides[0], y + sides[1]))], CLASSES)
    expected = [100.0 * (area == sides[0] * sides[1]) for area in (1000, 2500, 12_000)]
    assert [scored.ap_small, scored.ap_medium, scored.ap_large] == pytest.approx(expected)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 labelled images, but 0 with predictions"):
        average_precision([Detections.empty()], [], CLASSES)


def test_frames_compared_a_few_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    frames, _ = match([RecordingBoxes(*random_recording(rng)) for _ in range(4)], PROTOCOLS["coco"], GEN1)
    whole = coco_result(frames, CLASSES)
    monkeypatch.setattr("evburst.eval.coco._CHUNK", 3)  # private: it must make no difference
    parts = coco_result(frames, CLASSES)
    for name in ("stats", "precision", "scores", "recall"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
