"""Boxes: shapes checked, Prophesee's files read and written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from evburst.data.boxes import BBOX_DTYPE, Detections, iou_matrix, load_prophesee_boxes, read_prophesee_boxes
from evburst.data.errors import LabelError


def test_prophesee_item_is_40_bytes() -> None:
    assert BBOX_DTYPE.itemsize == 40


@pytest.mark.parametrize("field", ["boxes_xyxy", "scores", "labels"])
def test_wrong_shapes_name_the_field(field: str) -> None:
    arrays = {"boxes_xyxy": np.zeros((2, 4), np.float32), "scores": np.zeros(2, np.float32), "labels": np.zeros(2, np.int64)}
    arrays[field] = np.zeros((3, 3), np.float32)
    with pytest.raises((ValueError, TypeError), match=r"Detections\."):
        Detections(**arrays)


def test_lists_and_other_numbers_become_arrays_of_the_types() -> None:
    found = Detections([[1, 2, 3, 4]], [0.5], [1], 7, [3], [True])  # type: ignore[arg-type]
    assert [array.dtype for array in (found.boxes_xyxy, found.scores, found.labels, found.track_ids, found.held)] == [
        np.float32, np.float32, np.int64, np.int64, np.bool_
    ]  # fmt: skip
    assert found.above(0.4).to_coco()[0]["bbox"] == [1, 2, 2, 2]
    own = np.zeros((1, 4), np.float32)
    assert Detections(own, np.ones(1), np.zeros(1, np.uint8)).boxes_xyxy is own
    for labels, received in (([0.5], "float64"), (["car"], "<U3")):
        with pytest.raises(ValueError, match=rf"Detections\.labels: expected int64, received {received}"):
            Detections(own, [1.0], labels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Detections\.boxes_xyxy: expected float32, received object"):
        Detections(None, [1.0], [0])  # type: ignore[arg-type]


def test_empty_is_0_by_4() -> None:
    assert Detections.empty(5).boxes_xyxy.shape == (0, 4)
    assert len(Detections.empty(5).to_prophesee()) == 0


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    boxes = Detections(
        np.array([[1, 2, 11, 22], [-3, 0, 5, 9]], np.float32), np.array([0.5, 0.25], np.float32), np.array([0, 1]), 777
    )
    np.save(tmp_path / "a_bbox.npy", boxes.to_prophesee())
    (again,) = read_prophesee_boxes(tmp_path / "a_bbox.npy")
    assert again.t_us == 777
    assert np.array_equal(again.boxes_xyxy, boxes.boxes_xyxy)
    assert np.array_equal(again.scores, boxes.scores)
    assert again.labels.tolist() == [0, 1]


def test_old_field_names_and_unsorted_times(tmp_path: Path) -> None:
    old = np.zeros(
        3, [("ts", "<u8"), ("x", "<f4"), ("y", "<f4"), ("w", "<f4"), ("h", "<f4"), ("class_id", "u1"), ("confidence", "<f4")]
    )
    old["ts"], old["w"], old["h"], old["confidence"] = [9, 4, 9], 5, 6, 0.5
    np.save(tmp_path / "a.npy", old)
    found = read_prophesee_boxes(tmp_path / "a.npy")
    assert [(d.t_us, len(d), float(d.scores[0])) for d in found] == [(4, 1, 0.5), (9, 2, 0.5)]


@pytest.mark.parametrize("case", ["missing", "text", "plain", "fields", "pickle"])
def test_bad_files_say_why(tmp_path: Path, case: str) -> None:
    path = tmp_path / "b.npy"
    if case == "text":
        path.write_text("hello")
    elif case == "plain":
        np.save(path, np.zeros((3, 4)))
    elif case == "fields":
        np.save(path, np.zeros(2, [("t", "<i8"), ("x", "<f4")]))
    elif case == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(LabelError, match=r"b\.npy"):
        read_prophesee_boxes(path)


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),  # the same
        ([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3),  # half
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),  # touching
        ([0, 0, 0, 10], [0, 0, 0, 10], 0.0),  # zero width
    ],
)
def test_iou(a: list[float], b: list[float], iou: float) -> None:
    assert iou_matrix(np.array([a], np.float32), np.array([b], np.float32))[0, 0] == pytest.approx(iou)


@pytest.mark.parametrize(
    ("field", "kind", "value"),
    [("t", "<f8", 0.2), ("t", "<f8", 1e300), ("t", "<u8", 2**63 + 5), ("class_id", "<f8", 0.5), ("class_id", "<i8", 1 << 32)],
)
def test_times_and_classes_that_are_no_whole_numbers(tmp_path: Path, field: str, kind: str, value: float) -> None:
    """In seconds, say; they were cut down to whole ones."""
    dtype = [(name, kind if name == field else BBOX_DTYPE[name]) for name in BBOX_DTYPE.names or ()]
    raw = np.ones(3, dtype)
    raw[field][1] = value
    np.save(tmp_path / "a_bbox.npy", raw)
    with pytest.raises(LabelError, match="box 1: " + re.escape(f"{field} is {raw[field][1]}")):
        load_prophesee_boxes(tmp_path / "a_bbox.npy")


@pytest.mark.parametrize(("field", "value"), [("w", -3), ("h", -0.5)])
def test_sides_that_are_negative(tmp_path: Path, field: str, value: float) -> None:
    """COCO's evaluation would leave such a box out, whether it is a label or a prediction."""
    boxes = np.zeros(3, BBOX_DTYPE)
    boxes[field][1] = value
    np.save(tmp_path / "a_bbox.npy", boxes)
    with pytest.raises(LabelError, match=f"box 1: {field} is negative .{value}"):
        load_prophesee_boxes(tmp_path / "a_bbox.npy")


def test_scores_of_predictions_may_be_rounded(tmp_path: Path) -> None:
    boxes = np.zeros(2, BBOX_DTYPE)
    boxes["class_confidence"] = 1 + 1e-7, -1e-8
    np.save(tmp_path / "a.npy", boxes)
    assert load_prophesee_boxes(tmp_path / "a.npy", predictions=True)["class_confidence"].tolist() == [1, 0]


@pytest.mark.parametrize(("score", "mend"), [(95, "divide percent by 100"), (-1.5, "logits need a sigmoid")])
def test_scores_of_predictions_are_0_to_1(tmp_path: Path, score: float, mend: str) -> None:
    """They are compared with shares of correct boxes; what labels have in this field is not used."""
    boxes = np.zeros(3, BBOX_DTYPE)
    boxes["class_confidence"] = [0, score, 1]
    np.save(tmp_path / "a_bbox.npy", boxes)
    assert load_prophesee_boxes(tmp_path / "a_bbox.npy")["class_confidence"][1] == score
    with pytest.raises(LabelError, match=rf"a_bbox\.npy: box 1: the score is {score}.*{mend}"):
        load_prophesee_boxes(tmp_path / "a_bbox.npy", predictions=True)
    boxes["class_confidence"][1] = 0.5
    np.save(tmp_path / "a_bbox.npy", boxes)
    assert len(load_prophesee_boxes(tmp_path / "a_bbox.npy", predictions=True)) == 3


def test_what_is_no_box_file_is_named_without_advice(tmp_path: Path) -> None:
    (tmp_path / "a_bbox.npy").write_bytes(bytes(100))
    with pytest.raises(LabelError, match=r"a_bbox.npy: not a NumPy box file \(it does not begin like one\)"):
        load_prophesee_boxes(tmp_path / "a_bbox.npy")
    os.mkfifo(tmp_path / "b_bbox.npy")
    with pytest.raises(LabelError, match="not a regular file"):
        load_prophesee_boxes(tmp_path / "b_bbox.npy")
