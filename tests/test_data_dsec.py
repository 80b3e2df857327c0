"""DSEC-Detection in its published layout: its splits, its clock, and times of pictures without a box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evburst.data.datasets.recorded import RecordedWindows
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.errors import DataError, LabelError
from evburst.data.events import SensorSize

SIZE = SensorSize(640, 480)
OFFSET_US = 51_648_500_652
TRACKS = np.dtype([("t", "<u8"), ("x", "<f8"), ("y", "<f8"), ("h", "<f8"), ("w", "<f8"), ("class_id", "u1"),
                   ("class_confidence", "<f8"), ("track_id", "<u4")])  # fmt: skip


def dsec_sequence(folder: Path, classes: tuple[int, ...] = (0, 2, 4)) -> None:
    """One of 0.2 s, with a picture every 50 ms, whose boxes are all in the third."""
    h5py = pytest.importorskip("h5py")
    for name in ("events/left", "object_detections/left", "images"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "events" / "left" / "events.h5", "w") as file:
        file["events/t"] = np.arange(0, 200_000, 100, np.uint32)
        file["events/x"], file["events/y"] = (rng.integers(0, side, 2000).astype(np.uint16) for side in SIZE)
        file["events/p"] = rng.integers(0, 2, 2000).astype(np.uint8)
        file["t_offset"], file["ms_to_idx"] = np.int64(OFFSET_US), np.arange(0, 2000, 10, np.uint64)
    pictures = OFFSET_US + np.arange(50_000, 200_001, 50_000)
    np.savetxt(folder / "images" / "timestamps.txt", pictures, "%d")
    tracks = np.zeros(len(classes), TRACKS)
    tracks["t"], tracks["class_id"], tracks["track_id"] = pictures[2], classes, range(len(classes))
    tracks["x"], tracks["y"], tracks["w"], tracks["h"] = 100, 50, 30, 20
    np.save(folder / "object_detections" / "left" / "tracks.npy", tracks)


def dsec_tree(root: Path, *others: str) -> Path:
    """The sequences of these names below `root`, and one of each split."""
    for name in ("train/zurich_city_04_a", "train/zurich_city_16_a", "test/zurich_city_12_a", *others):
        dsec_sequence(root / name)
    return root


def dsec_tree_without_pictures(root: Path) -> Path:
    """With the times of boxes only."""
    dsec_tree(root)
    for times in root.rglob("timestamps.txt"):
        times.unlink()
    return root


def windows(root: Path, split: str, spec: str = "street", **classes: str) -> RecordedWindows:
    data = open_dataset(DatasetConfig("dsec", str(root), spec, classes=classes), Request(split, 50_000, cache=root / "cache"))
    assert isinstance(data, RecordedWindows)
    return data


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_picture_is_a_labelled_time(tmp_path: Path, split: str) -> None:
    data = windows(dsec_tree(tmp_path), split)
    assert data.spec.sensor_size == SIZE
    assert [data[i].window.t1_us - OFFSET_US for i in range(len(data))] == [50_000, 100_000, 150_000, 200_000]
    assert [len(data[i].boxes) for i in range(len(data))] == [0, 0, 2, 0]
    assert [len(data[i].window) for i in range(len(data))] == [500] * 4
    names = [data.spec.classes[k] for k in data[2].boxes.labels]
    assert names == ["pedestrian", "car"]  # `street` has no class for the truck
    assert data[2].boxes.boxes_xyxy.tolist() == [[100, 50, 130, 70]] * 2


def test_trucks_and_buses_can_count_as_cars(tmp_path: Path) -> None:
    data = windows(dsec_tree(tmp_path), "val", truck="car", bus="car")
    assert [data.spec.classes[k] for k in data[2].boxes.labels] == ["pedestrian", "car", "car"]


def test_all_eight_classes_can_be_learned(tmp_path: Path) -> None:
    data = windows(dsec_tree(tmp_path), "val", "dsec")
    assert [data.spec.classes[k] for k in data[2].boxes.labels] == ["pedestrian", "car", "truck"]


def test_validation_sequences_are_those_of_the_authors_and_drives_are_held_out_as_a_whole(tmp_path: Path) -> None:
    drives = [f"train/{drive}_{part}" for drive in ("thun_00", *(f"zurich_city_{k:02}" for k in range(5, 12))) for part in "ab"]
    root = dsec_tree(tmp_path, "train/zurich_city_21_a", *drives)
    opened = {split: windows(root, split) for split in ("train", "select", "val", "test")}
    sequences = {split: {data[i].name for i in range(len(data))} for split, data in opened.items()}
    assert sequences["val"] == {"zurich_city_16_a", "zurich_city_21_a"}
    assert sequences["test"] == {"zurich_city_12_a"}
    assert len(sequences["train"]) + len(sequences["select"]) == 17
    drive = {split: {name.rpartition("_")[0] for name in names} for split, names in sequences.items()}
    assert drive["select"]
    assert not drive["select"] & drive["train"]


def test_without_times_of_pictures_those_of_boxes_are_labelled(tmp_path: Path) -> None:
    data = windows(dsec_tree_without_pictures(tmp_path), "test")
    assert [len(data[i].boxes) for i in range(len(data))] == [2]


def test_what_is_missing_or_damaged_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = dsec_tree(tmp_path)
    sequence = root / "test" / "zurich_city_12_a"
    times, tracks = sequence / "images" / "timestamps.txt", sequence / "object_detections" / "left" / "tracks.npy"
    times.write_text("12.5 pictures\n")
    with pytest.raises(LabelError, match=r"timestamps\.txt: expected one time in microseconds per line"):
        windows(root, "test")
    times.unlink()
    tracks.unlink()
    with pytest.raises(DataError, match=r"expected .*<sequence>/events/left/events\.h5 .*; 1 event file without labels"):
        windows(root, "test")
