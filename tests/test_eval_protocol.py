"""Protocols: Prophesee's toolbox rule for rule, the perfect detector, and the known traps."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.boxes import BBOX_DTYPE, load_prophesee_boxes
from evburst.data.errors import LabelError
from evburst.data.events import SensorSize
from evburst.eval.coco import coco_result
from evburst.eval.protocol import NO_BOXES, PROTOCOLS, RecordingBoxes, clip_to_sensor, match

GEN1, MEGAPIXEL = SensorSize(304, 240), SensorSize(1280, 720)
CLASSES = ("car", "pedestrian")


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    """Rows (t, x, y, w, h[, class[, score]])."""
    out = np.zeros(len(rows), BBOX_DTYPE)
    for k, (t, x, y, w, h, *rest) in enumerate(rows):
        label, score = (rest + [0, 1.0][len(rest) :])[:2]
        out[k] = (t, x, y, w, h, label, 0, score)
    return out


def ap(labels: np.ndarray, predictions: np.ndarray, protocol: str = "prophesee", size: SensorSize = GEN1) -> float:
    frames, _ = match([RecordingBoxes(labels, predictions)], PROTOCOLS[protocol], size)
    return coco_result(frames, CLASSES).summary.ap


def toolbox_filter(array: np.ndarray, camera: str) -> list[np.void]:
    """psee_evaluator.py and box_filtering.py, box by box.

    Kept: strictly later than 0.1 s; diagonal of 60 px at least for GEN4, else 30; sides of 20 px at least for GEN1, else 10.
    """
    diagonal, side = (60 if camera == "GEN4" else 30), (20 if camera == "GEN1" else 10)
    kept = []
    for box in array:
        w, h = np.float32(box["w"]), np.float32(box["h"])
        if box["t"] > 100_000 and w * w + h * h >= diagonal**2 and w >= side and h >= side:
            kept.append(box)
    return kept


def toolbox_stats(pairs: list[tuple[np.ndarray, np.ndarray]], camera: str) -> np.ndarray:
    """COCO's twelve numbers as coco_eval.py gets them: one image per time that still has a label, detections within 50 ms."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for labels, predictions in pairs:
        truth, detected = toolbox_filter(labels, camera), toolbox_filter(predictions, camera)
        for t in sorted({int(box["t"]) for box in truth}):
            image = len(images) + 1
            images.append({"id": image, "height": 240, "width": 304})
            for box in truth:
                if box["t"] == t:
                    xywh = [box["x"], box["y"], box["w"], box["h"]]
                    row = {"image_id": image, "bbox": xywh, "area": float(box["w"] * box["h"]), "iscrowd": False}
                    annotations.append({**row, "category_id": int(box["class_id"]) + 1, "id": len(annotations) + 1})
            for box in detected:
                if t - 50_000 <= box["t"] <= t + 50_000:
                    row = {"image_id": image, "bbox": [box["x"], box["y"], box["w"], box["h"]]}
                    score = float(box["class_confidence"])
                    found.append({**row, "category_id": int(box["class_id"]) + 1, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth_side = COCO()
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
        truth_side.dataset = {"images": images, "annotations": annotations, "categories": categories}
        truth_side.createIndex()
        scoring = COCOeval(truth_side, truth_side.loadRes(found), "bbox")
        scoring.params.imgIds = np.arange(1, len(images) + 1)
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return np.array(scoring.stats)


def random_recording(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels at irregular times, some too early, too small, outside the frame or of a third class; detections around them."""
    times = np.sort(rng.choice(np.arange(0, 1_200_000, 10_000), int(rng.integers(1, 12)), replace=False))
    labels = np.zeros(int(rng.integers(1, 30)), BBOX_DTYPE)
    labels["t"] = np.sort(rng.choice(times, len(labels)))
    labels["x"], labels["y"] = rng.uniform(-30, 290, len(labels)), rng.uniform(-30, 220, len(labels))
    labels["w"], labels["h"] = rng.uniform(5, 130, len(labels)), rng.uniform(5, 130, len(labels))
    labels["class_id"] = rng.choice(3, len(labels), p=[0.6, 0.37, 0.03])
    labels["class_confidence"] = 1
    labels[0] = (max(int(labels["t"][0]), 100_001), 40, 40, 60, 50, 0, 0, 1)
    labels = labels[np.argsort(labels["t"], kind="stable")]
    found = labels[rng.integers(0, len(labels), int(rng.integers(1, 80)))]
    found["t"] += rng.choice([0, 0, 49_999, 50_000, 50_001, -50_000, -30_000, 120_000], len(found))
    for side, spread in (("x", 6), ("y", 6), ("w", 8), ("h", 8)):
        found[side] += rng.normal(0, spread * rng.random(), len(found)).astype(np.float32)
    found["class_id"] = np.where(rng.random(len(found)) < 0.1, 1 - found["class_id"].clip(max=1), found["class_id"])
    found["class_confidence"] = np.round(rng.random(len(found)), 1)  # with ties
    found[0] = (labels["t"][-1], 40, 40, 60, 50, 0, 0, 0.3)
    return labels, found[np.argsort(found["t"], kind="stable")]


@pytest.mark.parametrize("seed", range(200))
def test_toolbox_protocol_is_the_published_toolbox(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [random_recording(rng) for _ in range(int(rng.integers(1, 4)))]
    camera, size = (("GEN1", GEN1), ("GEN4", MEGAPIXEL))[seed % 2]
    frames, _ = match([RecordingBoxes(*pair) for pair in pairs], PROTOCOLS["prophesee-toolbox"], size)
    np.testing.assert_array_equal(coco_result(frames, CLASSES).stats, toolbox_stats(pairs, camera))


def test_the_table_is_frozen() -> None:
    rows = {name: (p.skip_us, tuple(p.small), tuple(p.large), p.tolerance_us, p.window_us) for name, p in PROTOCOLS.items()}
    assert rows == {
        "prophesee": (500_000, (30, 10), (60, 20), 0, None),
        "prophesee-toolbox": (100_000, (30, 20), (60, 10), 50_000, None),
        "cordone": (None, (30, 20), (30, 20), 0, 100_000),
        "coco": (None, (0, 0), (0, 0), 0, None),
    }


def labels_at_4_hz() -> np.ndarray:
    return boxes(*((t, 20 + t / 50_000, 30, 50, 60, k % 2) for k, t in enumerate(range(250_000, 3_000_001, 250_000))))


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_a_perfect_detector_scores_100_at_the_labels_times(protocol: str) -> None:
    assert ap(labels_at_4_hz(), labels_at_4_hz(), protocol) == pytest.approx(100)


def test_labels_against_labels_within_the_tolerance_do_not_score_100_in_the_toolbox() -> None:
    """Ground truth at 25 Hz against itself: the neighbours within 50 ms are duplicates there, and only there."""
    truth = boxes(*((t, 20, 30, 50, 60) for t in range(600_000, 1_600_001, 40_000)))
    assert ap(truth, truth) == pytest.approx(100)
    assert ap(truth, truth, "prophesee-toolbox") < 70


def test_a_20_hz_detector_has_duplicates_in_the_toolbox_only() -> None:
    found = boxes(*((t, 20 + (t // 250_000) * 5, 30, 50, 60) for t in range(50_000, 3_000_001, 50_000)))
    truth = found[found["t"] % 250_000 == 0]
    assert ap(truth, found) == pytest.approx(100)
    assert ap(truth, found, "prophesee-toolbox") < 60
    _, left_out = match([RecordingBoxes(truth, found)], PROTOCOLS["prophesee"], GEN1)
    assert left_out.unmatched == (found["t"] > 500_000).sum() - (truth["t"] > 500_000).sum()


def test_boxes_outside_the_frame_are_clipped_for_labels_and_predictions() -> None:
    truth, seen = boxes((600_000, -40, 30, 100, 60)), boxes((600_000, 0, 30, 60, 60))
    assert ap(truth, seen) == pytest.approx(100)
    assert ap(seen, truth) == pytest.approx(100)
    assert ap(truth, seen, "prophesee-toolbox") < 50
    gone = boxes((600_000, 310, 30, 50, 60), (600_000, 20, 30, 50, 60))
    frames, left_out = match([RecordingBoxes(gone, gone)], PROTOCOLS["prophesee"], GEN1)
    assert (len(frames[0].labels), left_out.labels) == (1, 1)


def test_cutting_leaves_boxes_inside_as_they_are_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    inside = boxes(*((0, *rng.uniform(0, 100, 2), *rng.uniform(0, 100, 2)) for _ in range(500)))
    np.testing.assert_array_equal(clip_to_sensor(inside, GEN1), inside)


def test_empty_frames_count_in_coco_and_not_in_the_others() -> None:
    """A labelled time with nothing to find: the false box there costs AP in `coco` only."""
    truth, times = boxes((700_000, 20, 30, 50, 60)), np.array([600_000, 700_000])
    found = boxes((600_000, 100, 100, 60, 60, 0, 0.9), (700_000, 20, 30, 50, 60, 0, 0.5))
    scores = {}
    for name, protocol in PROTOCOLS.items():
        frames, _ = match([RecordingBoxes(truth, found, times)], protocol, GEN1)
        scores[name] = (len(frames), round(coco_result(frames, CLASSES).summary.ap50))
    assert scores.pop("coco") == (2, 50)
    assert set(scores.values()) == {(1, 100)}


def test_no_predictions_score_0_and_no_labels_leave_nothing() -> None:
    assert ap(labels_at_4_hz(), NO_BOXES) == 0
    assert match([RecordingBoxes(NO_BOXES, labels_at_4_hz())], PROTOCOLS["coco"], GEN1)[0] == []


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_order_in_the_file_does_not_matter(protocol: str) -> None:
    rng = np.random.default_rng(5)
    truth, found = random_recording(rng)
    found["class_confidence"] = rng.random(len(found))  # no ties
    a = match([RecordingBoxes(truth, found)], PROTOCOLS[protocol], GEN1)[0]
    shuffled = RecordingBoxes(rng.permutation(truth), rng.permutation(found))
    b = match([shuffled], PROTOCOLS[protocol], GEN1)[0]
    np.testing.assert_allclose(coco_result(a, CLASSES).stats, coco_result(b, CLASSES).stats)


def test_skipping_counts_from_the_recordings_start() -> None:
    shift = 1_674_050_002_090_794
    truth = labels_at_4_hz()
    later = truth.copy()
    later["t"] += shift
    frames, left_out = match([RecordingBoxes(truth, truth)], PROTOCOLS["prophesee"], GEN1)
    assert (len(frames), left_out.labels) == (10, 2)  # 0.25 and 0.5 s are left out
    same, _ = match([RecordingBoxes(later, later, start_us=shift)], PROTOCOLS["prophesee"], GEN1)
    assert [frame.t_us - shift for frame in same] == [frame.t_us for frame in frames]
    windows = RecordingBoxes(truth, truth, start_us=None)
    assert len(match([windows], PROTOCOLS["prophesee"], GEN1)[0]) == 12


def test_small_boxes_are_left_out_by_the_sensor_s_rule() -> None:
    rows = boxes((600_000, 0, 0, 29, 12), (600_000, 0, 0, 40, 9), (600_000, 0, 0, 18, 24), (600_000, 0, 0, 60, 20))
    kept = {
        (name, size): len(match([RecordingBoxes(rows, NO_BOXES)], PROTOCOLS[name], size)[0][0].labels)
        for name in PROTOCOLS
        for size in (GEN1, MEGAPIXEL)
    }
    assert kept[("prophesee", GEN1)] == 3  # 29 x 12 has a diagonal of 31
    assert kept[("prophesee-toolbox", GEN1)] == 1
    assert kept[("prophesee", MEGAPIXEL)] == kept[("prophesee-toolbox", MEGAPIXEL)] == 1
    assert kept[("coco", GEN1)] == 4


def test_old_field_names_are_understood(tmp_path: Path) -> None:
    old = np.zeros(2, [("ts", "<u8"), ("x", "<f4"), ("y", "<f4"), ("w", "<f4"), ("h", "<f4"), ("class_id", "u1"),
                       ("confidence", "<f4"), ("track_id", "<u4")])  # fmt: skip
    old["ts"], old["w"], old["h"], old["confidence"], old["class_id"] = [600_000, 700_000], 40, 50, [0.5, 0.25], [0, 1]
    np.save(tmp_path / "a.npy", old)
    read = load_prophesee_boxes(tmp_path / "a.npy")
    assert read.dtype == BBOX_DTYPE
    assert read["t"].tolist() == [600_000, 700_000]
    assert read["class_confidence"].tolist() == [0.5, 0.25]
    assert ap(read, read) == pytest.approx(100)


@pytest.mark.parametrize("field", ["x", "h", "class_confidence"])
def test_numbers_that_are_none_are_named(tmp_path: Path, field: str) -> None:
    rows = labels_at_4_hz()
    rows[field][3] = np.nan
    np.save(tmp_path / "a_bbox.npy", rows)
    with pytest.raises(LabelError, match=f"box 3: {field} is nan"):
        load_prophesee_boxes(tmp_path / "a_bbox.npy")


def test_a_detection_serves_every_label_it_is_near_in_the_toolbox() -> None:
    truth = boxes((600_000, 20, 30, 50, 60), (680_000, 20, 30, 50, 60))
    assert ap(truth, boxes((640_000, 20, 30, 50, 60)), "prophesee-toolbox") == pytest.approx(100)
    assert ap(truth, boxes((640_000, 20, 30, 50, 60)), "prophesee") == 0
