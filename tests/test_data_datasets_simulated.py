"""Pictures by split, and processes that simulate windows."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from evburst.data.datasets import SPECS, LabelledWindow, simulated
from evburst.data.datasets.pictures import PictureFolder
from evburst.data.datasets.simulated import SimulatedConfig, SimulatedWindows
from evburst.data.encoding import columns, unpack
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.data.simulation.scenes.stills import StillSceneConfig
from evburst.data.simulation.scenes.stops import RAMP_S, clock, draw_stops
from tests.conftest import ROOT, SHARED
from tests.helpers.in_use import refuse_files_in_use
from tests.helpers.pictures import street_folder
from tests.helpers.simulation import simulated_here

PARENT = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from evburst.data.datasets.simulated import end_with_parent
pool = ProcessPoolExecutor(1, get_context("spawn"), end_with_parent)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(100)
"""


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    try:
        parent.communicate(timeout=30)  # the pipe is the worker's, too: it closes when both have ended
    except subprocess.TimeoutExpired:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker outlived its parent")


def test_workers_begin_and_are_not_too_many_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Private, because patches do not reach processes that are spawned.
    with monkeypatch.context() as patch:
        patch.delattr(os, "nice")
        simulated._begin_worker()
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert simulated._processes(0) == 64
    monkeypatch.setattr(sys, "platform", "win32")
    for workers in (0, 100):
        ProcessPoolExecutor(simulated._processes(workers)).shutdown()
    assert simulated._processes(4) == 4


def table(root: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    """boxes.csv with (set, file, split, frame)."""
    with (root / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "file", "split", "frame", "class", "x0", "y0", "x1", "y1"])
        writer.writerows([[*row, "car", 0, 0, 9, 9] for row in rows])
    return root


def files(root: Path, split: str) -> dict[str, set[str]]:
    return {name: {file for file, _ in found} for name, found in PictureFolder(root, split, SPECS["street"]).sets.items()}


def test_pictures_with_nothing_in_them_need_no_box(tmp_path: Path) -> None:
    """The published table of street pictures has rows of class "none" whose corners are empty."""
    header = "set,file,width,height,split,frame,class,x0,y0,x1,y1,flag\n"
    (tmp_path / "boxes.csv").write_text(header + "camvid,a.png,8,8,val,,none,,,,,\ncamvid,b.png,8,8,val,,,,,,,\n")
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / "camvid").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / "camvid" / name), np.zeros((8, 8), np.uint8))
    folder = PictureFolder(tmp_path, "val", SPECS["street"])
    assert [len(folder.get(*place).labels) for place in folder.names()] == [0, 0]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "spec"), [("street", "street"), ("caltech6", "caltech6")])
@pytest.mark.parametrize("split", ["train", "select", "val"])
def test_tables_of_the_developers_pictures_are_read(name: str, spec: str, split: str) -> None:
    folder = PictureFolder(SHARED / name, split, SPECS[spec])
    assert sum(len(folder.get(*place).labels) for place in folder.names()[:40]) > 0


def test_an_eighth_of_every_set_is_held_out_to_choose_on(tmp_path: Path) -> None:
    """Whole pictures, whatever their number of boxes; "val" is left alone."""
    rows = [(kind, f"{k:03d}.jpg", "train", "") for kind, n in (("voc", 80), ("camvid", 16), ("coco", 1)) for k in range(n)]
    root = table(tmp_path, [*rows, *rows, ("voc", "v.jpg", "val", "")])
    train, select = files(root, "train"), files(root, "select")
    assert {name: (len(train[name]), len(select.get(name, ()))) for name in train} == {
        "voc": (70, 10),
        "camvid": (14, 2),
        "coco": (1, 0),
    }
    assert not any(train[name] & select[name] for name in select)
    assert files(root, "val") == {"voc": {"v.jpg"}}


def test_more_pictures_move_few_others(tmp_path: Path) -> None:
    """The choice hangs on names, so that what was held out stays held out, mostly."""
    rows = [("voc", f"{k:03d}.jpg", "train", "") for k in range(160)]
    before = files(table(tmp_path, rows[:152]), "select")["voc"]
    assert len(before - files(table(tmp_path, rows), "select")["voc"]) <= 2


def test_of_sequences_whole_stretches_are_held_out(tmp_path: Path) -> None:
    root = table(tmp_path, [("highway", f"{k:04d}.jpg", "train", f"{k}") for k in range(512)])
    held = sorted(int(name[:4]) for name in files(root, "select")["highway"])
    assert Counter(frame // 32 for frame in held) == dict.fromkeys({frame // 32 for frame in held}, 32)
    assert len(held) == 64


def test_a_split_of_that_name_is_kept(tmp_path: Path) -> None:
    root = table(tmp_path, [("voc", "a.jpg", "train", ""), ("voc", "b.jpg", "train", ""), ("voc", "c.jpg", "select", "")])
    assert (files(root, "train"), files(root, "select")) == ({"voc": {"a.jpg", "b.jpg"}}, {"voc": {"c.jpg"}})


def test_one_picture_is_too_few_to_hold_one_out(tmp_path: Path) -> None:
    root = table(tmp_path, [("voc", "a.jpg", "train", "")])
    assert files(root, "train") == {"voc": {"a.jpg"}}
    with pytest.raises(DataError, match="no picture of split 'select'"):
        files(root, "select")


STANDING = StillSceneConfig(stops=1.0, zoom=0, roll_rad=0, shake_px=0, pan_px=4, object_px=0, still=0, mosaic=0, closest=1)
"""Scenes that stop and go, in which only the camera moves, slowly."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Windows are simulated in this process, 32 at a time."""
    with simulated_here():
        monkeypatch.setattr(simulated, "_BLOCK", 32)
        yield


def opened(root: Path, seed: int, n: int, sequence: int) -> list[LabelledWindow]:
    config = SimulatedConfig(drive=STANDING, sequence=sequence)
    found = SimulatedWindows(root, SPECS["street"], config, 50_000, "train", n, root / "cache", seed=seed)
    assert len(found) == n
    return [found[i] for i in range(n)]


@pytest.mark.usefixtures("here")
def test_the_cache_tells_sensors_and_labels_apart(tmp_path: Path) -> None:
    root, spec = street_folder(tmp_path), SPECS["street"]
    small = replace(spec, sensor_size=SensorSize(152, 120))
    others = small, replace(spec, source_names={"car": 0}), replace(spec, ignored_names=frozenset({"bus"}))
    for one in (spec, *others):
        found = SimulatedWindows(root, one, SimulatedConfig(), 50_000, "train", 4, root / "cache")
        assert max(int(columns(found[i].window)[1].max(initial=0)) for i in range(4)) < one.sensor_size.width
    assert len(list((root / "cache").iterdir())) == 4


def test_windows_of_changed_labels_or_pictures_are_simulated_again(tmp_path: Path) -> None:
    root, identities = street_folder(tmp_path), set[str]()

    def found(is_new: bool) -> list[list[float]]:
        made: list[int] = []
        windows = SimulatedWindows(
            root, SPECS["street"], SimulatedConfig(), 50_000, "val", 0, root / "cache", progress=made.append
        )
        identities.add(windows.parts()[0].identity)
        assert bool(made) == is_new
        return [box for item in windows for box in item.boxes.boxes_xyxy.tolist()]

    with simulated_here():
        before = found(True)
        assert found(False) == before
        path, (train, val) = root / "boxes.csv", (root / "images" / "voc" / f"{name}.png" for name in ("train0", "val0"))
        *rows, last = path.read_text().splitlines()
        x1 = last.split(",")[9]
        path.write_text("\n".join([*rows, last.replace(f",{x1},", f",{int(x1) - 30},")]) + "\n")
        assert found(True) != before
        os.utime(train, ns=(0, 0))
        found(False)  # which shows no picture of another split
        os.utime(val, ns=(0, 0))
        found(True)
        cv2.imwrite(str(val), np.zeros((240, 320), np.uint8))
        assert found(True) != before
    assert len(identities) == 4


@pytest.mark.parametrize("what", ["words.npy", "index.npy", "boxes.npy", "names.json"])
def test_damaged_windows_in_the_cache_are_simulated_again(tmp_path: Path, what: str) -> None:
    root = street_folder(tmp_path)

    def found() -> list[tuple[str, list[list[int]]]]:
        windows = SimulatedWindows(root, SPECS["street"], SimulatedConfig(), 50_000, "train", 2, root / "cache")
        return [(item.name, item.window.words.tolist()) for item in windows]

    with simulated_here():
        before = found()
        (path,) = (root / "cache").glob(f"*/00000_{what}")
        content = path.read_bytes()
        header = b"\x93NUMPY\x01\x00v\x00" + b"{" * 118  # of which NumPy says tokenize.TokenError
        for damage in (content[:-1], b"", b"PK\x03\x04", header, None):
            path.unlink() if damage is None else path.write_bytes(damage)
            assert found() == before, damage
            assert path.read_bytes() == content


def test_pictures_whose_names_opencv_cannot_open_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = street_folder(tmp_path / "Straße")
    monkeypatch.setattr(cv2, "imread", lambda path, *_: None)  # as there
    assert PictureFolder(root, "train", SPECS["street"]).get("voc", 0).grey.shape == (240, 320)
    for path in (root / "images" / "voc").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="missing or unreadable"):
        PictureFolder(root, "train", SPECS["street"]).get("voc", 0)


@pytest.mark.usefixtures("here")
def test_windows_that_were_read_are_deleted_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = street_folder(tmp_path)
    found = SimulatedWindows(root, SPECS["street"], SimulatedConfig(), 50_000, "train", 4, root / "cache")
    assert len(found[0].window)
    refuse_files_in_use(monkeypatch)
    found.delete()
    assert list((root / "cache").iterdir()) == []


@pytest.mark.usefixtures("here")
def test_windows_of_a_sequence_follow_each_other(tmp_path: Path) -> None:
    """An object keeps its label while it stands, where it has too few events to be labelled otherwise."""
    windows, silent = opened(street_folder(tmp_path), 5, 32, 32), 0  # of seeds 0 to 13, the one that moves most
    assert len({item.name for item in windows}) == 1
    for i, item in enumerate(windows):
        bounds = 50_000 * i, 50_000 * (i + 1)
        assert (item.window.t0_us, item.window.t1_us, item.boxes.t_us) == (*bounds, bounds[1])
        times = unpack(item.window)["t"]
        assert len(times) == 0 or (bounds[0] <= times.min() and times.max() < bounds[1])
    for before, now in pairwise(windows):
        assert len(now.boxes) >= len(before.boxes)
        if len(before.boxes) and np.array_equal(before.boxes.boxes_xyxy, now.boxes.boxes_xyxy):
            events, (x0, y0, x1, y1) = unpack(now.window), now.boxes.boxes_xyxy[0]
            inside = (events["x"] >= x0) & (events["x"] < x1) & (events["y"] >= y0) & (events["y"] < y1)
            silent += inside.sum() < 0.1 * (x1 - x0) * (y1 - y0)
    assert silent > 10


@pytest.mark.usefixtures("here")
def test_single_windows_are_scenes_of_their_own(tmp_path: Path) -> None:
    windows = opened(street_folder(tmp_path), 0, 8, 1)
    assert {item.window.t0_us for item in windows} == {0}
    assert len({item.name for item in windows}) > 1


@pytest.mark.parametrize("length", [0, 3, 128])
def test_lengths_of_sequences(length: int) -> None:
    with pytest.raises(ValueError, match="sequence must be a power of two"):
        SimulatedConfig(sequence=length)


def test_saccades_have_no_sequences(tmp_path: Path) -> None:
    spec, two = replace(SPECS["street"], scene="saccades"), SimulatedConfig(sequence=2)
    with pytest.raises(ConfigError, match="have no sequences"):
        SimulatedWindows(street_folder(tmp_path), spec, two, 50_000, "train", 4, tmp_path)


def test_the_clock_of_something_that_stops() -> None:
    """It stands during its stops, brakes and starts smoothly, and never runs back."""
    stops = ((1.0, 2.0), (4.0, 4.5))
    times = [clock(t / 100, stops) for t in range(600)]
    steps = np.diff(times)
    assert times[0] == 0
    assert steps.min() >= 0
    assert steps.max() <= 0.01 + 1e-9
    assert len({round(t, 9) for t in times[100:201]}) == len({round(t, 9) for t in times[400:451]}) == 1
    assert np.allclose(steps[280:340], 0.01)
    drawn = draw_stops(np.random.default_rng(0))
    assert all(later[0] - earlier[1] >= 2 * RAMP_S for earlier, later in pairwise(drawn))
