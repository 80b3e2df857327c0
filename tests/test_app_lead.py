"""Boxes for a moment ahead: the camera's motion, objects' own motion, and the settings that lead to them."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evburst.app import lead
from evburst.app.cli import detect_main
from evburst.app.detect import DetectConfig, result_filter
from evburst.app.evaluate import latency
from evburst.app.evaluate.boxes import BoxEvaluation
from evburst.app.evaluate.config import EvaluateConfig
from evburst.app.lead import CameraMotion, LeadPredictor
from evburst.app.library import Detector
from evburst.data.boxes import Detections, iou_matrix, load_prophesee_boxes, read_prophesee_boxes
from evburst.data.datasets.registry import DatasetConfig
from evburst.data.events import SensorSize
from evburst.eval.coco import average_precision
from evburst.eval.streaming import NOTHING_YET
from evburst.models.bundle import Bundle
from tests.conftest import SAMPLE

SIZE = SensorSize(300, 200)
WINDOW_US, LEAD_US = 50_000, 50_000


def found(t_us: int, boxes: list[list[float]], scores: float = 0.9, labels: int = 0) -> Detections:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(corners, np.full(len(corners), scores, np.float32), np.full(len(corners), labels), t_us)


def predictor(step_us: int = WINDOW_US, lead_us: int = LEAD_US) -> LeadPredictor:
    return LeadPredictor(lead_us, SIZE, WINDOW_US, step_us)


def test_the_first_window_s_boxes_stay_and_their_time_is_ahead() -> None:
    before = found(70_000, [[10, 20, 40, 60], [100, 100, 150, 140]])
    after = predictor().moved(before)
    assert after.boxes_xyxy.tolist() == before.boxes_xyxy.tolist()
    assert (after.t_us, after.scores.tolist()) == (120_000, before.scores.tolist())
    assert len(predictor().moved(Detections.empty(70_000))) == 0


@pytest.mark.parametrize("step_us", [10_000, 25_000, 50_000])
def test_an_object_that_moves_is_found_where_it_will_be(step_us: int) -> None:
    """One object crosses before a camera at rest, so that it is the object's own motion; a second one stands."""

    def at(t_us: int) -> list[float]:
        x = 20 + 120e-6 * t_us
        return [x, 60, x + 40, 100]

    standing, ahead = [200.0, 30.0, 230.0, 90.0], predictor(step_us)
    for t_us in range(WINDOW_US, 1_000_001, step_us):
        after = ahead.moved(found(t_us, [at(t_us), standing]))
    will_be = np.array([at(t_us + LEAD_US), standing], np.float32)
    assert np.abs(after.boxes_xyxy - will_be).max() < 2
    assert iou_matrix(after.boxes_xyxy[:1], np.array([at(t_us)], np.float32)) < 0.85  # they would be late


def test_camera_motion_moves_objects_seen_for_the_first_time() -> None:
    """A camera drives forward through standing objects: what a new one does follows from the others."""
    focal, speed = 300.0, 7.0

    def seen(x: float, z: float, t_s: float) -> list[float]:
        depth = z - speed * t_s
        u, top, foot = 150 + focal * x / depth, 100 - focal * 0.4 / depth, 100 + focal * 1.35 / depth
        return [u - focal * 0.4 / depth, top, u + focal * 0.4 / depth, foot]

    places, ahead = [(-2.5, 16), (-3, 22), (2.5, 19), (3, 25), (-2, 28)], predictor()
    for t_us in range(WINDOW_US, 700_001, WINDOW_US):
        boxes = [seen(x, z, t_us * 1e-6) for x, z in places]
        after = ahead.moved(found(t_us, [*boxes, seen(1.6, 12.9, 0.7)] if t_us == 700_000 else boxes))
    new, was = np.array([seen(1.6, 12.9, 0.75)], np.float32), np.array([seen(1.6, 12.9, 0.7)], np.float32)
    assert iou_matrix(after.boxes_xyxy[-1:], new) > 0.93
    assert iou_matrix(was, new) < 0.87
    low = ahead.moved(found(750_000, [seen(1.6, 12.9, 0.75)], scores=0.05))  # too low for a link, but moved with the camera
    assert iou_matrix(low.boxes_xyxy, np.array([seen(1.6, 12.9, 0.8)], np.float32)) > 0.93


def test_camera_motion_equals_least_squares_object_by_object() -> None:
    rng = np.random.default_rng(5)
    before = rng.uniform(20, 90, (6, 4)) + np.array([0, 0, 100, 60])
    now, seconds, weights = before + rng.normal(0, 2, (6, 4)), rng.uniform(0.05, 0.15, (6, 1)), rng.uniform(0.1, 1, (6, 1))
    camera = CameraMotion(SIZE)
    camera.update(0.0, before, now, seconds, weights)
    normal, right = np.diag(lead._CAMERA**-2.0), np.zeros(5)
    for a, b, span, weight in zip(before, now, seconds[:, 0], weights[:, 0], strict=True):
        middle = (a + b) / 2
        near = (middle[3] - middle[1]) / SIZE.width
        for side in range(4):
            velocity, horizontal = (b[side] - a[side]) / span, side % 2 == 0
            offset = middle[side] - (SIZE.width if horizontal else SIZE.height) / 2
            row = np.array([offset * near, near * SIZE.width * horizontal, near * SIZE.width * (not horizontal),
                            SIZE.width * horizontal, SIZE.width * (not horizontal)])  # fmt: skip
            size = b[2] - b[0] if horizontal else b[3] - b[1]
            deviation = np.sqrt(2) * lead._NOISE * size / span
            importance = weight / deviation**2 / (1 + (velocity / deviation / lead._OUTLIER) ** 2)
            normal += importance * np.outer(row, row)
            right += importance * velocity * row
    np.testing.assert_allclose(camera.parameters, np.linalg.solve(normal, right), rtol=1e-9)


def test_own_motion_equals_a_kalman_filter_written_with_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lead, "_CAMERA", np.full(5, 1e-9))
    rng, ahead = np.random.default_rng(3), predictor()
    sizes = np.array([40.0, 20.0])
    centre = np.array([80.0, 70.0])
    state, p = np.stack([centre, np.zeros(2)]), np.diag([lead._NOISE**2, lead._VELOCITY**2])
    for number in range(12):
        if number:
            dt = WINDOW_US * 1e-6
            f = np.array([[1, dt], [0, 1]])
            q = lead._ACCELERATION**2 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
            centre = centre + np.array([4, -1]) + rng.normal(0, 0.5, 2)
            state, p = f @ state, f @ p @ f.T + q
            gain = p[:, :1] / (p[0, 0] + lead._NOISE**2)
            state = state + gain * (centre - state[0])
            p = p - gain @ p[:1]
        box = np.concatenate([centre - sizes / 2, centre + sizes / 2]).astype(np.float32)
        after = ahead.moved(found((number + 1) * WINDOW_US, [box.tolist()]))
    expected = box + np.tile(state[1], 2) * LEAD_US * 1e-6
    np.testing.assert_allclose(after.boxes_xyxy[0], expected, atol=1e-3)


def test_gaps_and_times_that_go_back_start_anew() -> None:
    def moving(t_us: int) -> Detections:
        return found(t_us, [[20 + 60e-6 * t_us, 60, 60 + 60e-6 * t_us, 100]])

    for jump in (-600_000, 3_000_000):
        ahead = predictor()
        for t_us in range(WINDOW_US, 700_001, WINDOW_US):
            after = ahead.moved(moving(t_us))
        assert (after.boxes_xyxy != moving(t_us).boxes_xyxy).any()
        assert (ahead.moved(replace(moving(t_us), t_us=t_us + jump)).boxes_xyxy == moving(t_us).boxes_xyxy).all()


def test_boxes_ahead_do_not_depend_on_where_the_clock_starts() -> None:
    """An object is not found in every window, so that times between sightings are multiples of a window's length."""
    rng, low, high = np.random.default_rng(8), [90, 20, 120, 60], [110, 40, 140, 80]
    moments = [
        (t_us, [[20 + 9e-5 * t_us, 60, 60 + 9e-5 * t_us, 100], rng.uniform(low, high).tolist()])
        for t_us in range(WINDOW_US, 2_000_001, WINDOW_US)
        if rng.random() < 0.7
    ]

    def boxes(start_us: int) -> list[list[list[float]]]:
        ahead = predictor()
        return [ahead.moved(found(start_us + t_us, here)).boxes_xyxy.tolist() for t_us, here in moments]

    for start_us in (1_000_000, 5_000_000, 60_000_000, 4_294_950_000, 1_700_000_000_000_000):
        assert boxes(start_us) == boxes(0)


@pytest.mark.parametrize("start_us", [0, 150_000, 1_700_000_000_000_000])
def test_a_gap_of_a_second_is_too_long_and_a_shorter_one_is_not(start_us: int) -> None:
    for gap_us, starts_anew in ((1_000_000, True), (999_999, False)):
        ahead = predictor()
        for t_us in range(WINDOW_US, 700_001, WINDOW_US):
            ahead.moved(found(start_us + t_us, [[20 + 60e-6 * t_us, 60, 60 + 60e-6 * t_us, 100]]))
        camera = ahead._camera  # private: what is forgotten, without another box to show it
        ahead.moved(found(start_us + 700_000 + gap_us, []))
        assert (ahead._camera is not camera) == starts_anew


def test_held_objects_are_not_moved_and_boxes_that_leave_the_sensor_are_removed() -> None:
    ahead = predictor(lead_us=150_000)
    for t_us in range(WINDOW_US, 450_001, WINDOW_US):
        x = 150 + 300e-6 * t_us
        boxes = found(t_us, [[x, 60, min(x + 30, 300), 100], [100, 110, 130, 150]])
        after = ahead.moved(replace(boxes, track_ids=np.array([1, 2]), held=np.array([False, True])))
    assert x == 285
    assert after.boxes_xyxy.tolist() == [[100, 110, 130, 150]]
    assert after.track_ids is not None
    assert after.track_ids.tolist() == [2]


@pytest.mark.parametrize("seed", range(20))
def test_any_boxes_stay_on_the_sensor(seed: int) -> None:
    rng, ahead = np.random.default_rng(seed), predictor(lead_us=1_000_000)
    for t_us in range(WINDOW_US, 600_001, WINDOW_US):
        n = int(rng.integers(0, 6))
        corners = np.sort(rng.uniform(0, 1, (n, 2, 2)), 1).reshape(n, 4) * [*SIZE, *SIZE]
        boxes = Detections(corners.astype(np.float32), rng.random(n).astype(np.float32), rng.integers(0, 2, n), t_us)
        after = ahead.moved(boxes)
        assert np.isfinite(after.boxes_xyxy).all()
        assert ((after.boxes_xyxy >= 0) & (after.boxes_xyxy <= [*SIZE, *SIZE])).all()
        assert (after.boxes_xyxy[:, 2:] - after.boxes_xyxy[:, :2] > 0.99).all()


def test_files_and_summary_state_the_lead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--events", str(SAMPLE), "--max-windows", "8", "--no-video", "--json", "--sinks", "jsonl,bbox,csv,coco"]
    assert detect_main([*common, "--out", str(tmp_path / "now")]) == 0
    assert "lead_ms" not in json.loads(capsys.readouterr().out)
    assert detect_main([*common, "--out", str(tmp_path / "ahead"), "--lead-ms", "50", "--stride-ms", "25"]) == 0
    assert json.loads(capsys.readouterr().out)["lead_ms"] == 50
    lines = [json.loads(line) for line in (tmp_path / "ahead" / "detections.jsonl").read_text().splitlines()]
    assert [line["t_us"] for line in lines] == [25_000 * k + 75_000 for k in range(8)]
    assert all(line["lead_ms"] == 50 for line in lines)
    assert set(load_prophesee_boxes(tmp_path / "ahead" / "bbox.npy")["t"]) <= {line["t_us"] for line in lines}
    with (tmp_path / "ahead" / "boxes.csv").open(newline="") as file:
        assert {row["lead_ms"] for row in csv.DictReader(file)} == {"50.0"}
    assert {image["lead_ms"] for image in json.loads((tmp_path / "ahead" / "coco.json").read_text())["images"]} == {50}
    assert "lead_ms" not in (tmp_path / "now" / "detections.jsonl").read_text() + (tmp_path / "now" / "boxes.csv").read_text()


def test_the_filter_of_results_predicts_ahead_after_tracks() -> None:
    plain, ahead = (list(Detector("street", lead_ms=ms, max_windows=12).stream(SAMPLE)) for ms in (0, 40))
    assert [one.detections.t_us - two.detections.t_us for one, two in zip(ahead, plain, strict=True)] == [40_000] * 12
    assert all(len(one.detections) <= len(two.detections) for one, two in zip(ahead, plain, strict=True))
    inference = Detector("street")._inference(SensorSize(304, 240))
    untouched = result_filter(inference, DetectConfig())(plain[5])
    assert untouched is plain[5]


@pytest.mark.parametrize("lead_ms", [-1.0, 1001.0, float("nan")])
def test_the_setting_is_checked(lead_ms: float) -> None:
    with pytest.raises(ValueError, match="lead_ms must be 0 to 1000"):
        DetectConfig(lead_ms=lead_ms)


@pytest.mark.parametrize(("lead_ms", "stride_ms"), [(0.0, None), (40.0, None), (40.0, 25.0)])
def test_streaming_figures_are_those_of_boxes_predicted_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lead_ms: float, stride_ms: float | None
) -> None:
    """The bundled recording with a latency of 20 ms: the same boxes as from running through all of it."""
    monkeypatch.setattr(latency, "_HISTORY_US", 10_000_000)
    for name in (SAMPLE.name, "street_bbox.npy"):
        shutil.copy(SAMPLE.with_name(name), tmp_path)
    config = EvaluateConfig(DatasetConfig(kind="folder", root=str(tmp_path)), limit=8, protocol="coco")
    evaluation = BoxEvaluation(config, Bundle.load("street"), tmp_path / "out", 0, 1)
    (part,), ((result,),) = evaluation.dataset.parts(), evaluation.predict().values()
    figures = latency.streaming_figures(
        evaluation.predictor, evaluation.networks[0], [(part, result)], evaluation.protocol, 20.0, 8, lead_ms, stride_ms
    )
    assert figures is not None
    assert (figures["lead_ms"], figures["stride_ms"], figures["frames"]) == (lead_ms, stride_ms, 8)
    step_us = round(1000 * (stride_ms or 50))
    detector = Detector("street", score=0.001, stride_ms=step_us / 1000)
    ahead = LeadPredictor(40_000, SensorSize(304, 240), WINDOW_US, step_us)
    results = [one for one in detector.stream(SAMPLE) if one.t1_us >= WINDOW_US]
    by_end = {one.t1_us: (ahead.update(one) if lead_ms else one).detections for one in results}
    truth = {one.t_us: one for one in read_prophesee_boxes(SAMPLE.with_name("street_bbox.npy"))}
    assert result.boxes.times_us is not None
    times = result.boxes.times_us.tolist()
    in_force = [by_end.get((t_us - 20_000) // step_us * step_us, Detections.empty()) for t_us in times]
    expected = average_precision([truth[t_us] for t_us in times], in_force, detector.classes)
    assert figures["streaming_ap"] == pytest.approx(expected.ap, abs=0.01)


def test_the_windows_needed_for_boxes_ahead_precede_them_by_the_history() -> None:
    processed = np.arange(50, 2_000, 50)
    ends = np.array([NOTHING_YET, 400, 400, 1_000])
    assert latency._needed(ends, processed, 0).tolist() == [400, 1_000]
    assert latency._needed(ends, processed, 100).tolist() == [300, 350, 400, 900, 950, 1_000]
    assert latency._needed(np.array([NOTHING_YET]), processed, 100).tolist() == []
