"""Decoding, suppression and voting against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evburst.data.boxes import iou_matrix
from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import HeadSpec, PostConfig, decode, non_maximum_suppression, vote


def suppress_reference(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, limit: float) -> list[int]:
    """Greedy suppression, class by class, in a loop."""
    overlap, kept = iou_matrix(boxes, boxes), []
    for i in np.argsort(-scores, kind="stable"):
        if all(labels[i] != labels[j] or overlap[i, j] <= limit for j in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("seed", range(20))
def test_suppression_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (60, 2))], 1).astype(np.float32)
    scores, labels = rng.permutation(60).astype(np.float32) / 60, rng.integers(0, 3, 60)
    assert non_maximum_suppression(boxes, scores, labels, 0.45).tolist() == suppress_reference(boxes, scores, labels, 0.45)


def vote_reference(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, kept: np.ndarray, limit: float) -> np.ndarray:
    """Weighted means of what overlaps each kept box, in loops."""
    overlap, means = iou_matrix(boxes, boxes), []
    for i in kept:
        voters = [
            j for j in range(len(boxes)) if labels[j] == labels[i] and overlap[i, j] >= limit and scores[j] >= scores[i] / 2
        ]
        means.append(sum(scores[j] * boxes[j].astype(float) for j in voters) / sum(scores[j] for j in voters))
    return np.array(means)


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_voting_equals_the_loop(seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (80, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 40, (80, 2))], 1).astype(np.float32)
    scores, labels = rng.permutation(np.arange(1, 81)).astype(np.float32) / 80, rng.integers(0, 2, 80)
    kept = non_maximum_suppression(boxes, scores, labels, 0.45)
    found, expected = vote(boxes, scores, labels, kept, limit), vote_reference(boxes, scores, labels, kept, limit)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (limit > 0.6) or not np.allclose(found, boxes[kept], atol=0.5)


def test_a_box_votes_for_itself_alone() -> None:
    """Where nothing else scores half as much, is of its class or overlaps enough; scores of 0 included."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [30, 0, 40, 10], [0, 0, 10, 5]], np.float32)
    scores, labels = np.array([0.8, 0.39, 0.8, 0, 0.8], np.float32), np.array([0, 0, 1, 0, 0])
    kept = np.array([0, 3])
    assert np.array_equal(vote(boxes, scores, labels, kept, 0.6), boxes[kept])
    assert np.array_equal(vote(boxes, scores, labels, kept, 1), boxes[kept])
    np.testing.assert_allclose(vote(boxes, scores, labels, kept, 0.5)[0], [0, 0, 10, 7.5])


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_score_changes_no_box_above_it(seed: int) -> None:
    """Candidates below the threshold vote, so that detect draws the boxes that evaluate scores."""
    generator = torch.Generator().manual_seed(seed)
    spec = HeadSpec("yolo", (8,), 4, ("car", "pedestrian"))
    maps = [3 * torch.randn(1, 16, 6, 8, generator=generator), torch.randn(1, 2, 6, 8, generator=generator)]
    (few,), (many,) = (decode(maps, spec, PostConfig(score=score), SensorSize(64, 48), [0]) for score in (0.6, 0.001))
    shown = many.scores >= 0.6
    assert 2 < len(few) == shown.sum() < len(many)
    np.testing.assert_allclose(few.boxes_xyxy, many.boxes_xyxy[shown], rtol=1e-5)
    (alone,) = decode(maps, spec, PostConfig(score=0.6, vote_iou=1), SensorSize(64, 48), [0])
    assert not np.allclose(few.boxes_xyxy, alone.boxes_xyxy)


def test_no_boxes() -> None:
    empty = np.zeros((0, 4), np.float32)
    assert len(non_maximum_suppression(empty, np.zeros(0, np.float32), np.zeros(0, np.int64), 0.5)) == 0


def test_a_cell_decodes_to_the_box_it_says() -> None:
    """Cell (row 2, column 3) of stride 8 with distances 1, 2, 3, 1 cells: x 20..52, y 4..28."""
    spec = HeadSpec("yolo", (8,), 4, ("car", "pedestrian"))
    boxes, classes = torch.zeros(1, 16, 6, 8), torch.full((1, 2, 6, 8), -9.0)
    for side, distance in enumerate((1, 2, 3, 1)):
        boxes[0, side * 4 + distance, 2, 3] = 50.0
    classes[0, 1, 2, 3] = 2.0
    (found,) = decode([boxes, classes], spec, PostConfig(score=0.5), SensorSize(64, 48), [77])
    np.testing.assert_allclose(found.boxes_xyxy, [[20, 4, 52, 28]], atol=1e-4)
    assert found.labels.tolist() == [1]
    assert found.t_us == 77
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-2)), rtol=1e-6)


def test_boxes_are_clipped_to_the_sensor_and_those_outside_dropped() -> None:
    """The padding right of a 30-pixel sensor can hold cells, but never boxes."""
    spec = HeadSpec("yolo", (8,), 4, ("car",))
    boxes, classes = torch.zeros(1, 16, 6, 8), torch.full((1, 1, 6, 8), -9.0)
    boxes[0, 3::4] = 50.0
    classes[0, 0, 1, 3] = 3.0  # centre x 28: reaches over the edge
    classes[0, 0, 1, 7] = 3.0  # centre x 60, left edge 36: wholly outside
    (found,) = decode([boxes, classes], spec, PostConfig(score=0.5), SensorSize(30, 48), [0])
    np.testing.assert_allclose(found.boxes_xyxy, [[4, 0, 30, 36]], atol=1e-4)


def test_nothing_above_the_score() -> None:
    spec = HeadSpec("yolo", (8,), 4, ("car",))
    (found,) = decode([torch.zeros(1, 16, 2, 2), torch.full((1, 1, 2, 2), -9.0)], spec, PostConfig(), SensorSize(16, 16), [3])
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.t_us == 3
