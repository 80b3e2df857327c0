"""Classification layouts: a tiny tree of each, its splits, its classes, and skipped files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evburst.data.datasets.class_layouts import CLASS_LAYOUTS, GESTURES, SPLITS
from evburst.data.datasets.classes import Excerpt, open_classes
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, DataError, LabelError, SensorSizeUnknownError
from evburst.data.events import EventArray, Events, SensorSize
from evburst.data.readers.aedat3 import Aedat3File
from evburst.data.writers import write_events
from tests.event_files import aedat3_bytes, aedat4_bytes, bin_bytes, collect
from tests.test_data_datasets_recorded import events


def put_bin(path: Path, size: SensorSize) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bin_bytes(events(50, 90_000, size, len(path.name)).tolist()))


def put_aedat4(path: Path, size: SensorSize) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(aedat4_bytes([events(900, 900_000, size)], size))


def nmnist_tree(root: Path) -> None:
    for split, count in (("Train", 30), ("Test", 4)):
        for digit in "07":
            for k in range(count):
                put_bin(root / split / digit / f"{k:05d}.bin", SensorSize(34, 34))


def ncaltech_tree(root: Path) -> None:
    for name in ("airplanes", "BACKGROUND_Google", "Faces_easy"):
        for k in range(1, 11):
            put_bin(root / "Caltech101" / name / f"image_{k:04d}.bin", SensorSize(240, 180))


def ncars_tree(root: Path) -> None:
    for split, count in (("train", 30), ("test", 3)):
        for name in ("cars", "background"):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                size = SensorSize(120, 100)
                write_events(root / split / name / f"obj_{k:06d}_td.dat", events(50, 90_000, size), size)


def cifar_tree(root: Path) -> None:
    for name in ("airplane", "truck"):
        for k in range(10):
            put_aedat4(root / name / f"cifar10_{name}_{k}.aedat4", SensorSize(128, 128))


def gesture_tree(root: Path) -> None:
    for person in (*range(1, 24, 2), 24, 29):
        put_aedat4(root / f"user{person:02d}_fluorescent.aedat4", SensorSize(128, 128))
        table = "class,startTime_usec,endTime_usec\n1,100000,200000\n11,500000,777777\n"
        (root / f"user{person:02d}_fluorescent_labels.csv").write_text(table)


def folder_tree(root: Path) -> None:
    for name in ("up", "down"):
        (root / name).mkdir(parents=True)
        for k in range(40):
            size = SensorSize(64, 48)
            write_events(root / name / f"{k}.dat", events(20, 90_000, size), size)


TREES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "nmnist": (nmnist_tree, tuple("0123456789")),
    "ncaltech101": (ncaltech_tree, ("BACKGROUND_Google", "Faces_easy", "airplanes")),
    "ncars": (ncars_tree, ("background", "cars")),
    "cifar10dvs": (cifar_tree, ("airplane", "truck")),
    "dvsgesture": (gesture_tree, GESTURES),
    "folder": (folder_tree, ("down", "up")),
}


@pytest.mark.parametrize("name", list(CLASS_LAYOUTS))
def test_every_layout_divides_its_recordings_into_splits(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """All splits contain recordings of all classes, none is in two splits, and the path of the folder does not matter."""
    make, classes = TREES[name]
    make(tmp_path / "data")
    seen: dict[str, set[str]] = {}
    for split in ("train", "select", "test"):
        found = open_classes(name, tmp_path / "data", split)
        assert found.classes == classes
        for recording in found.recordings:
            stream = recording.open()
            assert stream.sensor_size == (found.sensor_size or (64, 48))
            assert len(collect(stream)) == sum(map(len, stream.windows(30_000))) > 0
        seen[split] = {recording.name for recording in found.recordings}
        assert len({recording.label for recording in found.recordings}) > 1
    assert len(set.union(*seen.values())) == sum(map(len, seen.values()))
    assert len(seen["train"]) > 2 * len(seen["select"])
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    again = open_classes(name, tmp_path / "elsewhere", "select")
    assert {recording.name for recording in again.recordings} == seen["select"]
    assert not caplog.records
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no recording found of split 'test'; expected"):
        open_classes(name, tmp_path / "empty", "test")


def counts(root: Path, *classes: str) -> list[list[int]]:
    """Number of recordings of each class in train, select and test."""
    found = [[r.label for r in open_classes("folder", root, split, classes=classes).recordings] for split in SPLITS]
    return [[labels.count(k) for labels in found] for k in range(len(classes))]


def test_every_split_gets_one_of_few_recordings(tmp_path: Path) -> None:
    """Of every class; which one depends on names only, and a split that the digests fill stays as it is."""
    size = SensorSize(32, 24)
    for name, number in (("cup", 2), ("mug", 3), ("pen", 5)):
        (tmp_path / name).mkdir()
        for k in range(number):
            write_events(tmp_path / name / f"{k}.dat", events(9, 90, size), size)
        if name == "cup":
            with pytest.raises(
                DataError, match="none of the 2 recordings is of split 'test': they are too few to hold some out"
            ):
                open_classes("folder", tmp_path, "test")
    assert counts(tmp_path, "cup", "mug", "pen") == [[1, 1, 0], [1, 1, 1], [3, 1, 1]]


def test_the_size_of_files_that_do_not_state_it_is_asked_for_or_that_of_the_network(tmp_path: Path) -> None:
    for k in range(40):
        put_bin(tmp_path / "up" / f"{k}.bin", SensorSize(34, 34))
    with pytest.raises(SensorSizeUnknownError, match="does not say the sensor's size; pass --sensor-size"):
        open_classes("folder", tmp_path, "train").recordings[0].open()
    trained = open_classes("folder", tmp_path, "train", trained_size=SensorSize(34, 34))
    assert trained.recordings[0].open().sensor_size == (34, 34)
    given = open_classes("folder", tmp_path, "train", SensorSize(64, 48), trained_size=SensorSize(34, 34))
    assert given.recordings[0].open().sensor_size == (64, 48)


def test_published_test_splits_are_kept(tmp_path: Path) -> None:
    nmnist_tree(tmp_path)
    test = open_classes("nmnist", tmp_path, "test").recordings
    assert [(r.name, r.label) for r in test] == [(f"Test/{d}/{k:05d}.bin", d) for d in (0, 7) for k in range(4)]


@pytest.mark.parametrize("content", [b"class,startTime_usec,endTime_usec\n\xe9,1,2\n", b"class," + b"1" * 200_000])
def test_a_table_of_gestures_that_is_none(tmp_path: Path, content: bytes) -> None:
    gesture_tree(tmp_path)
    (tmp_path / "user24_fluorescent_labels.csv").write_bytes(content)
    with pytest.raises(LabelError, match="not a table of labels"):
        open_classes("dvsgesture", tmp_path, "test")


def test_a_listed_name_that_is_too_long(tmp_path: Path) -> None:
    folder_tree(tmp_path)
    (tmp_path / "labels.csv").write_text(f"file,class,split\nup/1.dat,up,test\n{'a' * 300}.dat,up,test\n")
    assert len(open_classes("folder", tmp_path, "test").recordings) == 1


def test_a_gesture_is_a_part_of_its_file(tmp_path: Path) -> None:
    gesture_tree(tmp_path)
    first, second = open_classes("dvsgesture", tmp_path, "test").recordings[:2]
    assert (first.name, first.label, second.label) == ("user24_fluorescent.aedat4@100000", 0, 10)
    whole = events(900, 900_000, SensorSize(128, 128))
    inside = whole[(whole["t"] >= 500_000) & (whole["t"] < 777_777)]
    np.testing.assert_array_equal(collect(second.open()), inside)
    windows = list(second.open().windows(60_000))
    assert [windows[0].t0_us, windows[-1].t0_us] == [480_000, 720_000]
    np.testing.assert_array_equal(np.concatenate([unpack(window) for window in windows]), inside)
    table = tmp_path / "user24_fluorescent_labels.csv"
    table.write_text(table.read_text().replace("100000,200000", "100000,300000"))
    longer = open_classes("dvsgesture", tmp_path, "test").recordings[0]
    assert longer.name == first.name
    assert longer.identity != first.identity  # so that nothing measured before is reused
    names = {r.name.partition("_")[0] for r in open_classes("dvsgesture", tmp_path, "select").recordings}
    assert names.isdisjoint(r.name.partition("_")[0] for r in open_classes("dvsgesture", tmp_path, "train").recordings)


def test_a_gesture_is_read_without_the_others_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of DVS128 Gesture holds twelve; to decode all of them for each would take minutes where seconds do."""
    whole = events(12_000, 120_000_000, SensorSize(128, 128))
    (tmp_path / "user24_lab.aedat").write_bytes(aedat3_bytes(np.split(whole, 120), "DVS128"))
    spans = [(10_000_000 * k, 10_000_000 * k + 6_000_000) for k in range(12)]
    lines = [f"{k % 11 + 1},{start},{end}" for k, (start, end) in enumerate(spans)]
    (tmp_path / "user24_lab_labels.csv").write_text("\n".join(["class,startTime_usec,endTime_usec", *lines]))
    decoded: list[int] = []
    original = Aedat3File._events

    def counted(self: Aedat3File, parts: list[NDArray[np.uint32]], overflows: list[int]) -> Events:
        decoded.append(sum(map(len, parts)))
        return original(self, parts, overflows)

    monkeypatch.setattr(Aedat3File, "_events", counted)
    for recording, (start, end) in zip(open_classes("dvsgesture", tmp_path, "test").recordings, spans, strict=True):
        np.testing.assert_array_equal(collect(recording.open()), whole[(whole["t"] >= start) & (whole["t"] < end)])
    assert sum(decoded) < 1.5 * len(whole)


@pytest.mark.parametrize("row", ["12,1,2", "0,1,2", "1,5,5", "1,-3,5", "a,1,2", "1,1"])
def test_errors_in_gesture_tables_name_the_table(tmp_path: Path, row: str) -> None:
    gesture_tree(tmp_path)
    (tmp_path / "user01_fluorescent_labels.csv").write_text(f"class,startTime_usec,endTime_usec\n1,1,2\n{row}\n")
    with pytest.raises(LabelError, match=r"user01_fluorescent_labels\.csv: line 3: not a gesture"):
        open_classes("dvsgesture", tmp_path, "train")


def test_skipped_files_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ncaltech_tree(tmp_path)
    folder = tmp_path / "Caltech101" / "airplanes"
    shutil.copy(folder / "image_0001.bin", folder / "image_0001 (1).bin")
    shutil.copy(folder / "image_0001.bin", folder / "._image_0001.bin")
    assert len(open_classes("ncaltech101", tmp_path, "train").recordings) == 24
    (record,) = caplog.records
    assert "2 files skipped" in record.message


def test_class_folders_may_be_split_already(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "test"):
        folder_tree(tmp_path / split)
    assert len(open_classes("folder", tmp_path, "test").recordings) == 80
    counts = [len(open_classes("folder", tmp_path, split).recordings) for split in ("train", "select")]
    assert sum(counts) == 80
    assert counts[1] > 0
    assert not caplog.records
    folder_tree(tmp_path / "val")
    open_classes("folder", tmp_path, "train")
    assert f"{tmp_path / 'val'}: only train/ and test/ are read" in caplog.text


def test_a_folder_may_have_only_a_test_split_and_names_in_capitals(tmp_path: Path) -> None:
    folder_tree(tmp_path / "Test")
    assert len(open_classes("folder", tmp_path, "test").recordings) == 80
    with pytest.raises(DataError, match="no recording found of split 'train'"):
        open_classes("folder", tmp_path, "train")
    folder_tree(tmp_path / "Train")
    assert sum(len(open_classes("folder", tmp_path, split).recordings) for split in ("train", "select")) == 80


def test_train_and_test_may_be_classes(tmp_path: Path) -> None:
    folder_tree(tmp_path)
    (tmp_path / "up").rename(tmp_path / "train")
    assert open_classes("folder", tmp_path, "train").classes == ("down", "train")


def test_files_that_are_no_recordings_are_skipped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_tree(tmp_path)
    for name in ("README.txt.md", "Thumbs.db", ".DS_Store", "0_bbox.npy"):
        (tmp_path / "up" / name).write_bytes(b"no events")
    for split in ("train", "select", "test", "train"):
        open_classes("folder", tmp_path, split)
    assert caplog.messages == [
        f"{tmp_path}: 3 files skipped, the first one: {tmp_path / 'up' / '0_bbox.npy'}: by its name not a recording"
    ]


def test_ignored_classes_that_do_not_exist_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_tree(tmp_path)
    found = open_classes("folder", tmp_path, "train", ignored=frozenset({"upp", "down"}))
    assert found.classes == ("up",)
    assert caplog.messages == [f"{tmp_path}: data.classes ignores upp, but there is no recording of such a class"]


def test_missing_folders_and_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder; expected \{Train,Test\}"):
        open_classes("nmnist", tmp_path / "nowhere", "train")
    with pytest.raises(LabelError, match=r"none\.csv: no such file; expected a table of labels"):
        open_classes("folder", tmp_path, "train", table=tmp_path / "none.csv")


def test_unknown_names_list_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known: cifar10dvs, dvsgesture"):
        open_classes("mnist", tmp_path, "train")
    with pytest.raises(ConfigError, match="split 'val' is unknown"):
        open_classes("nmnist", tmp_path, "val")


def test_an_excerpt_of_an_array() -> None:
    whole = events(500, 100_000, SensorSize(64, 48))
    part = Excerpt(EventArray(whole, SensorSize(64, 48)), 20_000, 70_000)
    inside = whole[(whole["t"] >= 20_000) & (whole["t"] < 70_000)]
    np.testing.assert_array_equal(np.concatenate([unpack(window) for window in part.windows(7_000)]), inside)
    late = list(part.windows(7_000, 50_000))
    assert late[0].t0_us == 49_000


# ---------------------------------------------------------------- tonic


def test_data_sets_of_tonic_are_read_by_its_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("tonic.datasets")
    nmnist_tree(tmp_path / "NMNIST")
    with pytest.raises(DataError, match="tonic does not find its dataset NMNIST there; download it with tonic first"):
        open_classes("tonic:NMNIST", tmp_path, "train")
    monkeypatch.setattr(
        datasets.NMNIST, "_check_exists", lambda self: True
    )  # tonic's own: the files here are not the real ones
    splits = {split: open_classes("tonic:NMNIST", tmp_path, split) for split in ("train", "select", "test")}
    assert (splits["test"].sensor_size, splits["test"].classes) == ((34, 34), ("0", "7"))
    assert len(splits["test"].recordings) == 8
    assert len(splits["train"].recordings) + len(splits["select"].recordings) == 60
    ours = {r.name: r for r in open_classes("nmnist", tmp_path / "NMNIST", "test").recordings}
    np.testing.assert_array_equal(collect(splits["test"].recordings[5].open()), collect(ours["Test/7/00001.bin"].open()))


@pytest.mark.parametrize(
    ("name", "message"), [("Nothing", "tonic has no dataset"), ("NCALTECH101", "does not define a sensor size")]
)
def test_data_sets_of_tonics_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    pytest.importorskip("tonic.datasets")
    with pytest.raises(ConfigError, match=message):
        open_classes(f"tonic:{name}", tmp_path, "train")
