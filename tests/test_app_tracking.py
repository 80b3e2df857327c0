"""Tracks: objects keep their numbers, and are held while their boxes are silent."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from evburst.app.cli import detect_main
from evburst.app.inference import WindowResult
from evburst.app.library import Detector
from evburst.app.tracking import TrackConfig, Tracker
from evburst.data.boxes import BBOX_DTYPE, Detections, iou_matrix, read_prophesee_boxes
from evburst.data.errors import EvburstError
from evburst.data.events import SensorSize
from evburst.eval.energy import EnergyTotals
from tests.conftest import SAMPLE

SIZE = SensorSize(200, 100)
WINDOW_US = 50_000
Box = tuple[float, float, float, float]


def window(number: int, boxes: list[tuple[Box, float]], firing: list[Box], label: int = 0) -> WindowResult:
    """Window `number` with boxes and their scores; half of the pixels in the boxes `firing` have an event, else 1 %."""
    grid = np.zeros((2, 128, 224), np.uint8)
    rng = np.random.default_rng(number)
    grid[0, : SIZE.height, : SIZE.width] = rng.random((SIZE.height, SIZE.width)) < 0.01
    for x0, y0, x1, y1 in firing:
        grid[1, round(y0) : round(y1) : 2, round(x0) : round(x1)] = 1
    corners = np.array([box for box, _ in boxes], np.float32).reshape(-1, 4)
    scores, t_us = np.array([score for _, score in boxes], np.float32), (number + 1) * WINDOW_US
    found = Detections(corners, scores, np.full(len(boxes), label), t_us)
    return WindowResult(t_us - WINDOW_US, t_us, grid, found, 9, False, None, EnergyTotals(0), None, None, None, 0.0, 0.0, 1.0)


def tracker(**settings: float) -> Tracker:
    return Tracker(TrackConfig(**settings), SIZE, 0.3, WINDOW_US)


def at(x: float, width: float = 30.0) -> Box:
    return (x, 30.0, x + width, 60.0)


def numbers(result: WindowResult) -> list[int]:
    assert result.detections.track_ids is not None
    return result.detections.track_ids.tolist()


def held(result: WindowResult) -> list[bool]:
    assert result.detections.held is not None
    return result.detections.held.tolist()


def approach(tracks: Tracker, steps: list[float] | None = None) -> tuple[int, float, int]:
    """Let an object stop; return its number, its position, and the next window's number."""
    x, number, mine = 20.0, 0, [0]
    for step in steps or [4, 4, 4, 3, 2, 1, 0.5]:
        mine = numbers(tracks.update(window(number, [(at(x), 0.8)], [at(x)])))
        x, number = x + step, number + 1
    return mine[0], x, number


def test_two_objects_keep_their_numbers_in_any_order() -> None:
    tracks, orders = tracker(), list[list[int]]()
    for number in range(8):
        boxes = [(at(10 + 3 * number), 0.9), (at(150 - 3 * number), 0.7)]
        result = tracks.update(window(number, boxes[:: 1 if number % 2 else -1], [box for box, _ in boxes]))
        orders.append([numbers(result)[i] for i in result.detections.boxes_xyxy[:, 0].argsort()])
    assert orders[0] == [0, 0]
    assert sorted(orders[1]) == [1, 2]
    assert orders[2:] == [orders[1]] * 6


def test_boxes_with_low_scores_continue_tracks_but_start_none() -> None:
    tracks = tracker()
    for number in range(3):
        tracks.update(window(number, [(at(20), 0.8)], [at(20)]))
    result = tracks.update(window(3, [(at(20), 0.15), (at(150), 0.15)], [at(20), at(150)]))
    assert (numbers(result), held(result)) == ([1], [False])
    assert result.detections.scores[0] == np.float32(0.15)


def test_an_object_that_stops_is_held_and_keeps_its_number_when_it_moves_again() -> None:
    tracks = tracker()
    mine, x, number = approach(tracks)
    for n in range(number, number + 60):  # three seconds, thrice what a lost track is kept for
        result = tracks.update(window(n, [], []))
        assert (numbers(result), held(result)) == ([mine], [True])
        assert iou_matrix(result.detections.boxes_xyxy, np.array([at(x)], np.float32))[0, 0] > 0.9
    for n in range(number + 60, number + 66):
        x += 2
        result = tracks.update(window(n, [(at(x), 0.8)], [at(x)]))
        assert (numbers(result), held(result)) == ([mine], [False])


def test_a_held_object_has_the_mean_of_the_last_five_scores() -> None:
    tracks = tracker()
    for number, score in enumerate((0.9, 0.9, 0.8, 0.7, 0.6, 0.4, 0.1)):
        tracks.update(window(number, [(at(20), score)], [at(20)]))
    result = tracks.update(window(7, [], []))
    assert held(result) == [True]
    assert result.detections.scores[0] == np.float32(np.mean([0.8, 0.7, 0.6, 0.4, 0.1]))


def test_an_object_that_is_not_held_is_lost() -> None:
    tracks = tracker(hold_s=0.0)
    mine, x, number = approach(tracks)
    results = [tracks.update(window(n, [], [])) for n in range(number, number + 60)]
    assert [numbers(result) for result in results] == [[]] * 60
    again = [numbers(tracks.update(window(n, [(at(x), 0.8)], [at(x)]))) for n in range(number + 60, number + 63)]
    assert again[-1] == [mine + 1]


@pytest.mark.parametrize("start", [0, 3, 20, 1000, 34_000_000_000])
def test_an_object_found_again_after_exactly_the_setting_keeps_its_number_wherever_the_clock_starts(start: int) -> None:
    for windows, kept in ((6, True), (7, False)):
        tracks = tracker(hold_s=0.0, lost_s=0.3)
        for number in range(start, start + 6):
            mine = numbers(tracks.update(window(number, [(at(20), 0.8)], [at(20)])))
        for n in range(number + 1, number + windows):
            tracks.update(window(n, [], []))
        again = [numbers(tracks.update(window(n, [(at(20), 0.8)], [at(20)]))) for n in (number + windows, number + windows + 1)]
        assert (again[-1] == mine) == kept


def test_objects_are_held_no_longer_than_the_setting() -> None:
    tracks = tracker(hold_s=0.5)
    _, _, number = approach(tracks)
    results = [tracks.update(window(n, [], [])) for n in range(number, number + 20)]
    assert [held(result) for result in results] == [[True]] * 10 + [[]] * 10


def test_windows_that_end_at_the_same_time_continue_tracks() -> None:
    """Those of a number of events, of which more can be at one time; ByteTrack warns if a time is not later."""
    tracks = tracker()
    mine, x, number = approach(tracks)
    same = [numbers(tracks.update(window(number, [(at(x), 0.8)], [at(x)]))) for _ in range(3)]
    assert [*same, numbers(tracks.update(window(number + 1, [(at(x), 0.8)], [at(x)])))] == [[mine]] * 4


def test_after_a_reset_of_the_clock_tracks_begin_anew_under_other_numbers() -> None:
    tracks = tracker()
    mine, _, _ = approach(tracks)
    again, _, number = approach(tracks)
    assert (mine, again) == (1, 2)
    still = tracks.update(window(number, [], []))
    assert (numbers(still), held(still)) == ([again], [True])


def test_events_without_a_box_end_the_holding_for_good() -> None:
    tracks = tracker()
    _, x, number = approach(tracks)
    assert held(tracks.update(window(number, [], []))) == [True]
    assert held(tracks.update(window(number + 1, [], [at(x)]))) == []
    assert held(tracks.update(window(number + 2, [], []))) == []


def test_an_object_passing_in_front_does_not_end_the_holding() -> None:
    tracks = tracker()
    mine, x, number = approach(tracks)
    tracks.update(window(number, [], []))
    for k in range(1, 20):
        passing = at(x - 60 + 6 * k, 40)
        result = tracks.update(window(number + k, [(passing, 0.9)], [passing]))
        assert (mine in numbers(result), mine + 1 in numbers(result) or k < 2) == (True, True), k


@pytest.mark.parametrize(
    ("start", "step"),
    [(100.0, 10.0), (2.0, -1.0)],
    ids=["fast: behind something", "slowly over the edge"],
)
def test_an_object_that_leaves_is_not_held(start: float, step: float) -> None:
    tracks = tracker()
    for number in range(6):
        x = start + step * number
        box = (max(x, 0.0), 30.0, x + 30, 60.0)
        tracks.update(window(number, [(box, 0.8)], [box]))
    assert numbers(tracks.update(window(6, [], []))) == []


def test_nothing_is_held_while_the_camera_moves() -> None:
    tracks = tracker()
    _, _, number = approach(tracks)
    everything: list[Box] = [(0.0, 0.0, 200.0, 100.0)]
    assert numbers(tracks.update(window(number, [], everything))) == []


def test_every_output_contains_the_tracks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "--events",
        str(SAMPLE),
        "--out",
        str(tmp_path),
        "--track",
        "--sinks",
        "jsonl,bbox,csv,coco,video",
        "--max-windows",
        "12",
    ]
    assert detect_main([*args, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "detections.jsonl").read_text().splitlines()]
    ids = [number for line in lines for number in line["track_ids"]]
    assert summary["tracks"] == len(set(ids) - {0}) > 2
    assert summary["held"] == sum(sum(line["held"]) for line in lines)
    boxes = np.load(tmp_path / "bbox.npy")
    assert boxes.dtype == BBOX_DTYPE
    assert boxes["track_id"].tolist() == ids
    rows = list(csv.DictReader((tmp_path / "boxes.csv").read_text().splitlines()))
    assert [int(row["track_id"]) for row in rows] == ids
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [box["track_id"] for box in coco["annotations"]] == ids
    assert (tmp_path / "annotated.mp4").stat().st_size > 10_000


def test_tracks_of_the_sample_follow_its_objects() -> None:
    """Nearly all windows of a tracked labelled object have the same track number."""
    truth = {found.t_us: found for found in read_prophesee_boxes(SAMPLE.with_name("street_bbox.npy"))}
    names = {}
    raw = np.load(SAMPLE.with_name("street_bbox.npy"))
    for t_us in truth:
        names[t_us] = raw["track_id"][raw["t"] == t_us]
    followed: dict[int, list[int]] = {}
    for result in Detector("street", track=True, max_windows=40).stream(SAMPLE):
        found = result.detections
        assert found.track_ids is not None
        if found.t_us not in truth:
            continue
        overlap = iou_matrix(found.boxes_xyxy, truth[found.t_us].boxes_xyxy)
        for i, number in enumerate(found.track_ids):
            if number and overlap[i].max() > 0.5:
                followed.setdefault(int(names[found.t_us][overlap[i].argmax()]), []).append(int(number))
    assert len(followed) >= 3
    same = sum(max(map(ids.count, set(ids))) for ids in followed.values())
    assert same >= 0.9 * sum(map(len, followed.values()))


def test_without_the_package_a_message_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(EvburstError, match=r'--track needs trackers: pip install "supervision>=0.26" "trackers>=2.6"$'):
        tracker()


@pytest.mark.parametrize("settings", [{"start_score": 0.05}, {"hold_s": -1.0}, {"lost_s": float("nan")}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"start_score|hold_s must|lost_s must"):
        TrackConfig(**settings)
