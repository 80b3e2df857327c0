"""Folder layouts: a tiny tree of each, which files are skipped and reported, and which clock and sensor apply."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets.layouts import LAYOUTS
from evburst.data.datasets.recorded import RecordedWindows
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.datasets.selection import drive_of
from evburst.data.errors import ConfigError, DataError, LabelError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, SensorSize
from evburst.data.filters import FiltersConfig
from evburst.data.writers import write_events
from tests.event_files import dat_bytes
from tests.test_data_datasets_recorded import events, gen1_tree, ncaltech_tree
from tests.test_data_dsec import dsec_tree_without_pictures

W = 50_000
BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
VOC = f"<annotation>{{size}}<object><name>{{name}}</name>{BOX}</object></annotation>"


def boxes(path: Path, times: list[int], classes: list[int]) -> None:
    found = np.zeros(len(times), BBOX_DTYPE)
    found["t"], found["class_id"], found["w"], found["h"] = times, classes, 20, 20
    np.save(path, found)


def prophesee_tree(root: Path, size: SensorSize, classes: list[int]) -> Path:
    (root / "val").mkdir(parents=True)
    write_events(root / "val" / "a_td.dat", events(5000, 400_000, size), size)
    boxes(root / "val" / "a_bbox.npy", [200_000] * len(classes), classes)
    return root


def pedro_tree(root: Path) -> Path:
    for folder in ("numpy", "xml"):
        (root / folder / "val").mkdir(parents=True)
    np.save(root / "numpy" / "val" / "a.npy", events(500, 40_000, SensorSize(346, 260)))
    (root / "xml" / "val" / "a.xml").write_text(VOC.format(size="", name="person"))
    return root


def folder_tree(root: Path) -> Path:
    root.mkdir(parents=True)
    write_events(root / "a.dat", events(500, 90_000, SensorSize(64, 48)), SensorSize(64, 48))
    boxes(root / "a_bbox.npy", [60_000], [1])
    return root


TREES: dict[str, tuple[Callable[[Path], Path], str, SensorSize]] = {
    "gen1": (lambda root: prophesee_tree(root, SensorSize(304, 240), [0, 1]), "street", SensorSize(304, 240)),
    "1mpx": (lambda root: prophesee_tree(root, SensorSize(1280, 720), [0, 2]), "1mpx", SensorSize(1280, 720)),
    "ncaltech101": (ncaltech_tree, "caltech6", SensorSize(240, 180)),
    "pedro": (pedro_tree, "pedro", SensorSize(346, 260)),
    "dsec": (dsec_tree_without_pictures, "dsec", SensorSize(640, 480)),
    "folder": (folder_tree, "street", SensorSize(64, 48)),
}


def open_windows(kind: str, root: Path, spec: str, split: str = "val", **config: object) -> RecordedWindows:
    data = open_dataset(DatasetConfig(kind, str(root), spec, **config), Request(split, W, cache=root / "cache"))  # type: ignore[arg-type]
    assert isinstance(data, RecordedWindows)
    return data


@pytest.mark.parametrize("kind", list(LAYOUTS))
def test_the_contract_of_a_layout(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    make, spec, size = TREES[kind]
    data = open_windows(kind, make(tmp_path / "data"), spec)
    assert data.spec.sensor_size == size
    assert len(data) > 0
    for i in range(len(data)):
        assert (len(data[i].boxes) > 0, len(data[i].window) > 0) == (True, True)
        assert data[i].window.t1_us - data[i].window.t0_us == W
    assert [i for part in data.parts() for i in part.items] == list(range(len(data)))
    assert (data.faults_of(0), data.unlabelled) == ({}, 0)
    assert not caplog.records
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no recording found of split 'val'; expected"):
        open_windows(kind, empty, spec)


@pytest.mark.parametrize("kind", ["gen1", "1mpx", "pedro", "folder", "ncaltech101"])
def test_files_of_macos_and_files_without_labels_are_skipped_and_reported(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, spec, _ = TREES[kind]
    root = make(tmp_path / "data")
    before = len(open_windows(kind, root, spec))
    first = next(path for path in sorted(root.rglob("*")) if path.suffix in (".dat", ".npy", ".bin") and "bbox" not in path.name
                 and (kind != "ncaltech101" or path.match("airplanes/image_0005.bin")))  # fmt: skip
    first.with_name(f"._{first.name}").write_bytes(b"\0\5\x16\7Mac OS X")
    shutil.copy(first, first.with_name(f".{first.name}"))  # hidden, as an unfinished copy
    other = first.with_name("image_0015.bin" if kind == "ncaltech101" else f"other_{first.name}")
    shutil.copy(first, other)
    data = open_windows(kind, root, spec)
    assert (len(data), data.unlabelled) == (before, 1)
    log = " ".join(record.message for record in caplog.records)
    assert f"1 event file without labels skipped, the first one: {other}" in log
    assert "created by macOS" in log


def test_classes_that_ncaltech101_does_not_have_are_named(tmp_path: Path) -> None:
    """With the classes of `street`, the default, nothing is found; the data are there."""
    with pytest.raises(DataError, match=r"Caltech101: no folder car, vehicle, person; for all of its folders set data\.spec"):
        open_windows("ncaltech101", ncaltech_tree(tmp_path), "street")


def test_odd_names_and_annotations_of_ncaltech101_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = ncaltech_tree(tmp_path)
    shutil.copy(root / "Caltech101/Faces/image_0005.bin", root / "Caltech101/Faces/image_0005 (1).bin")
    annotation = root / "Caltech101_annotations/Faces/annotation_0005.bin"
    annotation.write_bytes(annotation.read_bytes()[:9])
    data = open_windows("ncaltech101", root, "caltech6")
    assert len(data) == 3
    (record,) = caplog.records
    assert "2 files skipped, the first one:" in record.message
    assert "image_0005 (1).bin: its name is not image_NUMBER.bin" in record.message
    other = root / "Caltech101_annotations/airplanes/annotation_0005.bin"
    other.write_bytes(b"")
    with pytest.raises(DataError, match=r"no recording found.*; skipped: .*annotation_0005\.bin: .*not an annotation"):
        open_windows("ncaltech101", root, "caltech6")


def test_boxes_without_events_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = prophesee_tree(tmp_path, SensorSize(304, 240), [0])
    boxes(root / "val" / "gone_bbox.npy", [200_000], [0])
    assert len(open_windows("gen1", root, "street")) == 1
    assert "gone_bbox.npy: its _td.dat is missing" in caplog.text


# ---------------------------------------------------------------- classes and sensors


def test_class_ids_mean_what_their_data_set_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """1 Mpx: 0 pedestrian, 1 two wheeler, 2 car; Gen1: 0 car, 1 pedestrian."""
    root = prophesee_tree(tmp_path, SensorSize(1280, 720), [0, 1, 2, 4])
    for kind in ("1mpx", "folder"):
        data = open_windows(kind, root, "street")
        assert data.labels(0).labels.tolist() == [1, 0]
        assert "boxes of other classes are ignored: 'two wheeler' (1), 'bus' (1)" in caplog.text
        caplog.clear()
    mapped = open_windows("1mpx", root, "street", classes={"two wheeler": "pedestrian", "4": "car"})
    assert mapped.labels(0).labels.tolist() == [1, 1, 0, 0]
    assert "of other classes" not in caplog.text
    (root / "val" / "0_td.dat").write_bytes(dat_bytes(np.zeros(0, EVENT_DTYPE), SensorSize(1280, 720)))
    boxes(root / "val" / "0_bbox.npy", [200_000] * 4, [0, 1, 2, 4])
    assert open_windows("folder", root, "street").labels(0).labels.tolist() == [1, 0]  # by the sensor of the others


def test_one_megapixel_recordings_are_no_gen1(tmp_path: Path) -> None:
    root = prophesee_tree(tmp_path, SensorSize(1280, 720), [0])
    with pytest.raises(
        SensorSizeError, match=r"layout state a 304x240 sensor, the file a 1280x720 sensor: if .*; otherwise pass the"
    ):
        open_windows("gen1", root, "street")


def test_capitals_of_voc_names_make_no_difference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "a.npy", events(500, 40_000, SensorSize(64, 48)))
    size = "<size><width>64</width><height>48</height></size>"
    (tmp_path / "a.xml").write_text(VOC.format(size=size, name="Car"))
    data = open_windows("folder", tmp_path, "street")
    assert (data.spec.sensor_size, data[0].boxes.labels.tolist()) == ((64, 48), [0])
    (tmp_path / "a.xml").write_text(VOC.format(size=size, name="Tram"))
    with pytest.raises(LabelError, match="no labelled box is of a known class: 'Tram'"):
        open_windows("folder", tmp_path, "street")
    assert open_windows("folder", tmp_path, "street", classes={"tram": "car"})[0].boxes.labels.tolist() == [0]
    assert not caplog.records


@pytest.mark.parametrize("size", [SensorSize(64, 48), SensorSize(1280, 720)])
def test_classes_of_ones_own_are_found_by_name_and_by_id(tmp_path: Path, size: SensorSize) -> None:
    """Their ids are not those of the 1 megapixel data set, whose sensor has the same size as one of these."""
    for name in ("a", "b"):
        write_events(tmp_path / f"{name}.dat", events(500, 90_000, size), size)
    (tmp_path / "a_bbox.csv").write_text("t_us,class,x0,y0,x1,y1\n60000,Sea bird,1,1,20,20\n60000,car,1,1,20,20\n")
    boxes(tmp_path / "b_bbox.npy", [60_000], [0])
    data = open_windows("folder", tmp_path, "street", own_classes=("drone", "sea_bird"))
    assert data.spec.classes == ("drone", "sea_bird")
    assert [data[i].boxes.labels.tolist() for i in range(2)] == [[1], [0]]
    data = open_windows(
        "folder", tmp_path, "street", own_classes=("drone", "sea_bird"), classes={"car": "drone", "0": "sea bird"}
    )
    assert [data[i].boxes.labels.tolist() for i in range(2)] == [[1, 0], [1]]


@pytest.mark.parametrize("names", [("drone", "Drone"), ("sea_bird", "sea bird"), ("drone", " "), ("ignore", "drone")])
def test_names_that_cannot_be_classes_of_ones_own_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.own_classes: .* (stands twice|cannot be the name of a class)"):
        open_windows("folder", folder_tree(tmp_path / "data"), "street", own_classes=names)


@pytest.mark.parametrize("name", ["a.npy", "a.bin"])
def test_no_sensor_size_is_assumed(tmp_path: Path, name: str) -> None:
    recording = events(500, 40_000, SensorSize(64, 48))
    if name == "a.npy":
        np.save(tmp_path / name, recording)
    else:
        from tests.event_files import bin_bytes

        (tmp_path / name).write_bytes(bin_bytes(recording.tolist()))
    boxes(tmp_path / "a_bbox.npy", [30_000], [0])
    with pytest.raises(SensorSizeError, match="--sensor-size"):
        open_windows("folder", tmp_path, "street")
    assert open_windows("folder", tmp_path, "street", sensor_size="64x48").spec.sensor_size == (64, 48)


def test_sizes_that_contradict_each_other_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_tree(tmp_path / "data")
    with pytest.raises(SensorSizeError, match="the file says 64x48, --sensor-size says 99x99"):
        open_windows("folder", tmp_path / "data", "street", sensor_size="99x99")
    (tmp_path / "data" / "a_bbox.npy").unlink()
    coco = {
        "images": [{"id": 1, "width": 99, "height": 99}], "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }  # fmt: skip
    (tmp_path / "data" / "a.json").write_text(json.dumps(coco))
    with pytest.raises(
        SensorSizeError, match=r"a\.dat: its labels or its layout state a 99x99 sensor, the file a 64x48 sensor"
    ):
        open_windows("folder", tmp_path / "data", "street")
    open_windows("folder", tmp_path / "data", "street", sensor_size="64x48")
    assert (
        "a.dat: its labels or its layout state a 99x99 sensor, and --sensor-size 64x48; boxes are read as they" in caplog.text
    )


def test_recordings_of_two_sensors_are_two_data_sets(tmp_path: Path) -> None:
    folder_tree(tmp_path / "data")
    size = SensorSize(32, 24)
    write_events(tmp_path / "data" / "b.dat", events(500, 90_000, size), size)
    boxes(tmp_path / "data" / "b_bbox.npy", [60_000], [1])
    data = open_windows("folder", tmp_path / "data", "street")
    with pytest.raises(SensorSizeError, match=r"b\.dat: a 32x24 sensor among recordings of 64x48"):
        _ = data[1]


# ---------------------------------------------------------------- clocks, faults, filters


def test_labels_outside_the_recording_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = SensorSize(304, 240)
    (tmp_path / "val").mkdir()
    write_events(tmp_path / "val" / "a_td.dat", events(5000, 400_000, size), size)
    boxes(tmp_path / "val" / "a_bbox.npy", [200_000, 449_000, 451_000, 9_000_000], [0] * 4)
    data = open_windows("gen1", tmp_path, "street")
    assert [len(data[i].window) > 0 for i in range(4)] == [True, True, False, False]
    (record,) = caplog.records
    first = int(events(5000, 400_000, size)["t"][0])
    last = int(events(5000, 400_000, size)["t"][-1])
    assert "2 of 4 labelled times lie outside the recording: labels from 451000 to 9000000 µs" in record.message
    assert f"events from {first} to {last} µs" in record.message


def test_labels_on_another_clock_are_an_error(tmp_path: Path) -> None:
    gen1_tree(tmp_path)
    for path in (tmp_path / "val").glob("*_bbox.npy"):
        labels = np.load(path)
        labels["t"] += 1_674_050_002_090_794
        np.save(path, labels)
    message = r"no labelled time lies within its recording; do labels and events use the same clock\? .*labels from 16740500"
    with pytest.raises(LabelError, match=message):
        open_windows("gen1", tmp_path, "street")
    # One recording with sound labels is enough.
    last = sorted((tmp_path / "val").glob("*_bbox.npy"))[-1]
    labels["t"] -= 1_674_050_002_090_794
    np.save(last, labels)
    assert len(open_windows("gen1", tmp_path, "street")) == 4


def test_boxes_outside_the_sensor_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Labels of another sensor, which a box file does not name."""
    root = prophesee_tree(tmp_path, SensorSize(304, 240), [0] * 20)
    path = next(root.rglob("*_bbox.npy"))
    labels = np.load(path)
    labels["x"][0] = 700
    np.save(path, labels)
    data = open_windows("gen1", root, "street")
    assert f"1 of {len(labels)} labelled boxes lie outside the 304x240 sensor and are left out" in caplog.text
    assert len(data.labels(0)) == len(data[0].boxes) == len(labels) - 1
    labels["x"] += 700
    np.save(path, labels)
    with pytest.raises(SensorSizeError, match=f"{len(labels)} of {len(labels)} labelled boxes lie outside 304x240"):
        open_windows("gen1", root, "street")


def test_boxes_without_area_do_not_lie_outside_the_sensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many they are, the sensor's size is not doubted."""
    root = prophesee_tree(tmp_path, SensorSize(304, 240), [0] * 4)
    path = next(root.rglob("*_bbox.npy"))
    labels = np.load(path)
    labels["w"][:2], labels["h"][2] = 0, 0
    np.save(path, labels)
    data = open_windows("gen1", root, "street")
    assert "3 of 4 labelled boxes have no width or no height and are left out" in caplog.text
    assert "outside" not in caplog.text
    assert len(data.labels(0)) == len(data[0].boxes) == 1


def test_repeated_boxes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Boxes of another class or of another time are not repeated."""
    root = prophesee_tree(tmp_path, SensorSize(304, 240), [0, 0, 1, 0])
    path = next(root.rglob("*_bbox.npy"))
    labels = np.load(path)
    labels["t"][3] += 10_000
    np.save(path, labels)
    assert len(open_windows("gen1", root, "street")) == 2
    assert "1 of 4 labelled boxes equal another one in time, class and place; each counts as an object" in caplog.text
    caplog.clear()
    np.save(path, labels[1:])
    open_windows("gen1", root, "street")
    assert not caplog.records


@pytest.mark.parametrize("kind", ["folder", "pedro"])
def test_a_folder_without_splits_is_reported_when_it_is_learned_from(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its split "val" holds the recordings of "train"."""
    size = "<size><width>346</width><height>260</height></size>"
    for name in "abc":
        np.save(tmp_path / f"{name}.npy", events(500, 40_000, SensorSize(346, 260)))
        (tmp_path / f"{name}.xml").write_text(VOC.format(size=size, name="car"))
    assert len(open_windows(kind, tmp_path, "street")) == 3
    assert not caplog.records
    assert len(open_windows(kind, tmp_path, "street", "train")) == 2
    assert "the split 'val' is the whole folder, with all that is learned from" in caplog.text


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such folder; expected"), ("file", "a file, not a folder")])
def test_a_root_that_is_no_folder(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=message):
        open_windows("gen1", tmp_path / name, "street")


def test_faults_are_counted_by_recording(tmp_path: Path) -> None:
    gen1_tree(tmp_path)
    first, second = sorted((tmp_path / "val").glob("*_td.dat"))
    for path, extra in ((first, b"abc"), (second, b"a")):
        path.write_bytes(path.read_bytes() + extra)
    data = open_windows("gen1", tmp_path, "street")
    for i in (0, 1, 0, 2, 3, 1):
        _ = data[i]
    assert data.faults_of(0) == {"truncated_bytes": 3}
    assert data.faults_of(3) == {"truncated_bytes": 1}


def test_filters_are_applied_and_change_what_results_are_kept_under(tmp_path: Path) -> None:
    gen1_tree(tmp_path)
    plain = open_windows("gen1", tmp_path, "street")
    filtered = open_windows("gen1", tmp_path, "street", filters=FiltersConfig(background_us=2000))
    assert 0 < len(filtered[0].window) < len(plain[0].window)
    assert filtered.parts()[0].identity != plain.parts()[0].identity
    assert (
        filtered.parts()[0].identity
        == open_windows("gen1", tmp_path, "street", filters=FiltersConfig(background_us=2000)).parts()[0].identity
    )


def test_a_layout_can_be_registered_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after data sets have been opened."""
    monkeypatch.setitem(LAYOUTS, "mine", LAYOUTS["folder"])
    assert len(open_windows("mine", folder_tree(tmp_path / "data"), "street")) == 1


@pytest.mark.parametrize(
    ("name", "drive"),
    [
        ("17-03-30_12-53-58_1037500000_1097500000", "17-03-30_12-53-58"),
        ("moorea_2019-06-26_test_02_000_976500000_1037500000", "moorea_2019-06-26_test_02_000"),
        ("street_20261129_123456", "street_20261129_123456"),
        ("a_1", "a_1"),
    ],
)
def test_a_drive_is_a_name_without_its_part(name: str, drive: str) -> None:
    assert drive_of(name) == drive


def test_parts_of_one_drive_are_a_group(tmp_path: Path) -> None:
    """So are neighbouring frames of PEDRo; other recordings stand alone."""
    size = SensorSize(304, 240)
    prophesee_tree(tmp_path, size, [0])
    for name in ("17-03-30_12-53-58_0_60000000", "17-03-30_12-53-58_60000000_120000000", "17-04-06_09-57-37_0_60000000"):
        write_events(tmp_path / "val" / f"{name}_td.dat", events(5000, 400_000, size), size)
        boxes(tmp_path / "val" / f"{name}_bbox.npy", [200_000], [0])
    drive, other = "17-03-30_12-53-58", "17-04-06_09-57-37"
    assert [part.group for part in open_windows("gen1", tmp_path, "street").parts()] == [drive, drive, other, "a"]
    folder_tree(tmp_path / "own")
    assert [part.group for part in open_windows("folder", tmp_path / "own", "street").parts()] == [""]
