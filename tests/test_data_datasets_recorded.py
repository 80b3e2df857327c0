"""Recorded datasets: tiny trees in exactly the published layouts, read window by window, and trained on as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evburst.app.config import load_config
from evburst.app.convert.cli import convert_main
from evburst.app.evaluate.cli import evaluate_main
from evburst.app.train.cli import train_main
from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets import SPECS
from evburst.data.datasets.recorded import RecordedWindows
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, DataError, EventFileError, LabelError
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.writers import write_events
from evburst.models.bundle import Bundle
from tests.conftest import ROOT
from tests.event_files import bin_bytes, dat_bytes
from tests.helpers import tiny  # noqa: F401  (registers the family)

W50 = 50_000
NO_EVENTS = dat_bytes(np.zeros(0, EVENT_DTYPE), SPECS["street"].sensor_size)


def events(n: int, t1: int, size: SensorSize, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    out = np.zeros(n, EVENT_DTYPE)
    out["t"] = np.sort(rng.integers(0, t1, n))
    out["x"], out["y"] = rng.integers(0, size.width, n), rng.integers(0, size.height, n)
    out["p"] = rng.integers(0, 2, n)
    return out


def gen1_tree(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    size = SPECS["street"].sensor_size
    for split in splits:
        (root / split).mkdir(parents=True)
        for k in range(2):
            name = f"17-03-30_12-53-58_{k}_60500000"
            write_events(root / split / f"{name}_td.dat", events(20_000, 600_000, size, k), size)
            boxes = np.zeros(3, BBOX_DTYPE)
            boxes["t"] = [200_000, 200_000, 500_000]
            boxes["x"], boxes["y"], boxes["w"], boxes["h"] = [10, 250, -5], [20, 30, 40], [60, 100, 50], [40, 50, 60]
            boxes["class_id"] = [0, 1, 0]
            np.save(root / split / f"{name}_bbox.npy", boxes)
    return root


def in_two_drives(folder: Path) -> None:
    """Rename the second recording of a folder of `gen1_tree`, because one drive alone has no interval."""
    for path in list(folder.glob("*_1_60500000_*")):
        path.rename(path.with_name(path.name.replace("17-03-30", "17-03-31")))


def ncaltech_tree(root: Path) -> Path:
    size = SPECS["caltech6"].sensor_size
    for name in ("airplanes", "Faces", "Faces_easy", "BACKGROUND_Google", "accordion"):
        (root / "Caltech101" / name).mkdir(parents=True)
        (root / "Caltech101_annotations" / name).mkdir(parents=True)
        for number in (1, 2, 5, 10):
            recording = events(4000, 300_000, size, number)
            (root / "Caltech101" / name / f"image_{number:04d}.bin").write_bytes(bin_bytes(recording.tolist()))
            corners = np.array([[20, 30], [100, 30], [100, 120], [20, 120], [20, 30]], "<i2")
            annotation = np.concatenate([[2, 5], corners.reshape(-1), [2, 1], [20, 30]]).astype("<i2")
            (root / "Caltech101_annotations" / name / f"annotation_{number:04d}.bin").write_bytes(annotation.tobytes())
    return root


def test_gen1_windows_end_at_their_labels(tmp_path: Path) -> None:
    data = open_dataset(DatasetConfig("gen1", str(gen1_tree(tmp_path)), "street"), Request("val", W50))
    assert len(data) == 4
    item = data[1]
    assert (item.window.t0_us, item.window.t1_us) == (450_000, 500_000)
    whole = events(20_000, 600_000, data.spec.sensor_size, 0)
    inside = whole[(whole["t"] >= 450_000) & (whole["t"] < 500_000)]
    assert np.array_equal(unpack(item.window), inside)
    assert item.boxes.boxes_xyxy.tolist() == [[0, 40, 45, 100]]  # clipped at the left edge
    assert data[0].boxes.labels.tolist() == [0, 1]
    assert data[0].boxes.boxes_xyxy[1].tolist() == [250, 30, 304, 80]


def test_windows_between_labels_follow_each_other(tmp_path: Path) -> None:
    """From the window of the first event to the first label, and from each label to the next, however far apart they lie."""
    size = SPECS["street"].sensor_size
    late = events(20_000, 400_000, size)
    late["t"] += 130_000
    write_events(tmp_path / "a_td.dat", late, size)
    boxes = np.zeros(4, BBOX_DTYPE)
    boxes["t"], boxes["w"], boxes["h"] = [290_000, 340_000, 380_000, 530_000], 50, 50
    np.save(tmp_path / "a_bbox.npy", boxes)
    data = open_dataset(DatasetConfig("folder", str(tmp_path), "street"), Request("val", W50))
    assert isinstance(data, RecordedWindows)
    assert data[0].window.t0_us == 240_000
    found = [list(data.ends_between(*pair)) for pair in ((None, 0), (0, 1), (1, 2), (2, 3), (None, 3))]
    assert found[0] == [140_000, 190_000, 240_000]  # the first event lies at 130,000 or shortly after
    assert found[1:4] == [[], [], [430_000, 480_000]]
    assert found[4] == [180_000, 230_000, 280_000, 330_000, 380_000, 430_000, 480_000]
    window = data.window_before(3, 430_000)
    assert (window.window.t1_us, len(window.boxes)) == (430_000, 0)


@pytest.mark.parametrize("filters", ["", "{refractory_us: 10}"])
@pytest.mark.parametrize("suffix", [".dat", ".csv"])
def test_a_recording_out_of_order_is_refused(tmp_path: Path, suffix: str, filters: str) -> None:
    root = gen1_tree(tmp_path, ("val",)) / "val"
    first = min(root.glob("*_td.dat"))
    shuffled = events(2_000, 600_000, SPECS["street"].sensor_size)
    first.unlink()
    write_events(first.with_suffix(suffix), np.concatenate([shuffled[1000:], shuffled[:1000]]), SPECS["street"].sensor_size)
    config = load_config(DatasetConfig, None, ["kind=folder", f"root={root}", "spec=street", f"filters={filters or '{}'}"])
    for _ in range(2):  # the second time, the index is in the cache
        message = rf"{first.stem}{suffix}: \d+ of 2000 events are older .* not in order of time; sort its events"
        with pytest.raises(EventFileError, match=message):
            open_dataset(config, Request("val", W50, cache=tmp_path / "cache"))


def test_the_labels_of_a_recording_without_events_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = gen1_tree(tmp_path, ("val",)) / "val"
    empty, other = sorted(root.glob("*_td.dat"))
    whole = open_dataset(DatasetConfig("gen1", str(tmp_path), "street"), Request("val", W50))
    empty.write_bytes(NO_EVENTS)
    data = open_dataset(DatasetConfig("gen1", str(tmp_path), "street"), Request("val", W50))
    assert data.spec == whole.spec
    assert [len(data[i].window) for i in range(2)] == [0, 0]
    assert [data[i].window.t1_us for i in range(4)] == [200_000, 500_000] * 2
    assert len(data[2].window) > 0
    for i in range(4):
        assert data[i].boxes.boxes_xyxy.tolist() == whole[i].boxes.boxes_xyxy.tolist()
        assert (data.start_us(i), data.faults_of(i)) == (0, {})
    assert caplog.messages == [f"{empty}: contains no events: nothing can be found at its labelled times (2)"]
    assert isinstance(data, RecordedWindows)
    assert list(data.ends_between(None, 0)) == [50_000, 100_000, 150_000]
    other.write_bytes(NO_EVENTS)
    with pytest.raises(DataError, match="no recording contains events"):
        open_dataset(DatasetConfig("gen1", str(tmp_path), "street"), Request("val", W50))


def test_a_recording_without_events_begins_shortly_before_its_labels(tmp_path: Path) -> None:
    """Its clock may count from 1970."""
    gen1_tree(tmp_path, ("val",))
    path = sorted((tmp_path / "val").glob("*_bbox.npy"))[0]
    boxes = np.load(path)
    boxes["t"] += 1_674_050_002_000_000
    np.save(path, boxes)
    path.with_name(path.name.replace("_bbox.npy", "_td.dat")).write_bytes(NO_EVENTS)
    data = open_dataset(DatasetConfig("gen1", str(tmp_path), "street"), Request("val", W50))
    assert isinstance(data, RecordedWindows)
    assert data[0].window.t1_us - data.start_us(0) == 1_000_000
    assert len(data.ends_between(None, 0)) == 19


def test_gen1_is_also_found_in_the_folder_it_unpacks_to(tmp_path: Path) -> None:
    gen1_tree(tmp_path / "detection_dataset_duration_60s_ratio_1.0")
    assert len(open_dataset(DatasetConfig("gen1", str(tmp_path), "street"), Request("val", W50, n_windows=3))) == 3


def test_ncaltech101_boxes_are_not_shifted_and_splits_are_fixed(tmp_path: Path) -> None:
    root = str(ncaltech_tree(tmp_path))
    train = open_dataset(DatasetConfig("ncaltech101", root, "caltech6"), Request("train", 100_000))
    select = open_dataset(DatasetConfig("ncaltech101", root, "caltech6"), Request("select", 100_000))
    names = [[data[i].name for i in range(0, len(data), 3)] for data in (train, select)]
    assert len(names[0]) == len(names[1]) == 2  # of two training recordings of each class, one is held out
    assert all({a, b} == {"image_0001.bin", "image_0002.bin"} for a, b in zip(*names, strict=True))
    assert [train[i].window.t1_us for i in range(3)] == [100_000, 200_000, 300_000]
    assert train[0].boxes.boxes_xyxy.tolist() == [[20, 30, 100, 120]]
    assert {int(train[i].boxes.labels[0]) for i in range(len(train))} == {0, 2}
    for split, number in (("val", 5), ("test", 10)):
        found = open_dataset(DatasetConfig("ncaltech101", root, "caltech6"), Request(split, 100_000))
        assert {found[i].name for i in range(len(found))} == {f"image_{number:04d}.bin"}


def test_ncaltech101_without_a_class_list_takes_every_class_with_boxes(tmp_path: Path) -> None:
    data = open_dataset(DatasetConfig("ncaltech101", str(ncaltech_tree(tmp_path)), "ncaltech101"), Request("val", 100_000))
    assert data.spec.classes == ("Faces", "accordion", "airplanes")


@pytest.mark.parametrize("nested", [True, False])
def test_pedro_slices_end_at_their_last_event(tmp_path: Path, nested: bool) -> None:
    numpy, xml = (tmp_path / "numpy" / "val", tmp_path / "xml" / "val") if nested else (tmp_path, tmp_path)
    for folder in {numpy, xml}:
        folder.mkdir(parents=True, exist_ok=True)
    start = 1_674_050_002_090_794
    rows = np.array([[start, 5, 6, 1], [start + 39_999, 7, 8, 0]], np.int64)
    np.save(numpy / "frame1.npy", rows)
    box = "<object><name>person</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>50</xmax><ymax>120</ymax></bndbox></object>"
    (xml / "frame1.xml").write_text(f"<annotation>{box}</annotation>")
    data = open_dataset(DatasetConfig("pedro", str(tmp_path), "pedro"), Request("val", 40_000))
    assert len(data) == 1
    assert data[0].window.t1_us == start + 40_000
    assert len(data[0].window) == 2
    assert (data[0].boxes.labels.tolist(), data[0].boxes.boxes_xyxy.tolist()) == ([1], [[10, 20, 50, 120]])


def test_a_plain_folder_takes_prophesee_and_coco_boxes(tmp_path: Path) -> None:
    size = SPECS["street"].sensor_size
    gen1_tree(tmp_path, ("val",))
    np.save(tmp_path / "val" / "other.npy", events(500, 100_000, size))
    coco = {
        "images": [{"id": 1, "width": 304, "height": 240}, {"id": 2, "t_us": 60_000, "width": 304, "height": 240}],
        "categories": [{"id": 3, "name": "person"}, {"id": 4, "name": "tree"}],
        "annotations": [{"image_id": 2, "category_id": 3, "bbox": [1, 2, 30, 40]},
                        {"image_id": 2, "category_id": 4, "bbox": [0, 0, 9, 9]}],
    }  # fmt: skip
    (tmp_path / "val" / "other.json").write_text(json.dumps(coco))
    data = open_dataset(DatasetConfig("folder", str(tmp_path), "street"), Request("val", W50))
    assert len(data) == 6
    assert (data[4].window.t1_us, data[4].boxes.labels.tolist()) == (60_000, [1])
    assert len(data[5].boxes) == 0
    coco["images"][1]["t_us"] = data[5].window.t1_us  # type: ignore[index]
    (tmp_path / "val" / "other.json").write_text(json.dumps(coco))
    data = open_dataset(DatasetConfig("folder", str(tmp_path), "street"), Request("val", W50))
    with pytest.raises(LabelError, match=r"other\.npy: labels without a time are of the recording's end"):
        data[5]


@pytest.mark.parametrize("kind", ["gen1", "ncaltech101", "pedro", "folder"])
def test_an_empty_root_says_what_is_expected(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="expected"):
        open_dataset(DatasetConfig(kind, str(tmp_path), "pedro" if kind == "pedro" else "street"), Request("val", W50))


def test_bad_requests_and_labels_are_named() -> None:
    for config, message in ((DatasetConfig("gen2", "x"), "data.kind"), (DatasetConfig("gen1", "x", "cats"), "data.spec"),
                            (DatasetConfig("gen1", ""), "data.root")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            open_dataset(config, Request("val", W50))


@pytest.mark.parametrize(("config", "make"), [("gen1", gen1_tree), ("ncaltech101", ncaltech_tree)])
def test_published_layouts_train_with_the_shipped_configs(tmp_path: Path, config: str, make) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path / "data")
    run = ["--config", str(ROOT / "configs" / f"train_{config}.yaml"), "--root", str(tmp_path / "data")]
    small = ["schedule.epochs=1", "schedule.windows=4", "schedule.batch=2", "schedule.val_windows=2", "architecture=tiny"]
    sets = [part for setting in small for part in ("--set", setting)]
    assert train_main([*run, "--out", str(tmp_path / "run"), *sets]) == 0
    assert (tmp_path / "run" / "best.safetensors").exists()
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def test_whole_recordings_are_held_out_to_choose_on(tmp_path: Path) -> None:
    """An eighth of them, the same ones whoever asks; a folder that has such a split keeps it."""
    tree = gen1_tree(tmp_path, ("train", "val"))
    for k in range(2, 16):
        for ending in ("_td.dat", "_bbox.npy"):
            (tree / "train" / f"r{k}{ending}").write_bytes(
                (tree / "train" / f"17-03-30_12-53-58_0_60500000{ending}").read_bytes()
            )
    config = DatasetConfig("gen1", str(tree), "street")

    def names(split: str) -> set[str]:
        data = open_dataset(config, Request(split, W50))
        return {data[i].name for i in range(len(data))}

    assert (len(names("select")), len(names("train"))) == (2, 14)
    assert not names("select") & names("train")
    assert names("select") == names("select")
    (tree / "val").rename(tree / "select")
    assert len(names("train")) == 16
    assert names("select") == {f"17-03-30_12-53-58_{k}_60500000_td.dat" for k in range(2)}


def split_names(kind: str, root: Path, split: str) -> set[str]:
    """The files of a split."""
    data = open_dataset(DatasetConfig(kind, str(root), "street"), Request(split, W50))
    return {data[i].name for i in range(len(data))}


def test_the_recordings_of_a_drive_are_in_one_split(tmp_path: Path) -> None:
    """Recordings of Gen1 and 1 Mpx are the minutes of drives: the next minute shows the same street, and often the same car."""
    first = gen1_tree(tmp_path / "one", ("train",)) / "train" / "17-03-30_12-53-58_0_60500000"
    train = tmp_path / "gen1" / "train"
    train.mkdir(parents=True)
    for day in range(12):
        for minute in range(4):
            for ending in ("_td.dat", "_bbox.npy"):
                name = f"17-04-{day + 1:02d}_12-53-58_{minute * 60_000_000}_{(minute + 1) * 60_000_000}{ending}"
                (train / name).write_bytes(first.with_name(first.name + ending).read_bytes())
    select, kept = (split_names("gen1", tmp_path / "gen1", split) for split in ("select", "train"))
    assert (len(select), len(kept), select & kept) == (8, 40, set())
    assert not {name[:8] for name in select} & {name[:8] for name in kept}
    for path in train.iterdir():
        if not path.name.startswith("17-04-01"):
            path.unlink()
    select, kept = (split_names("gen1", tmp_path / "gen1", split) for split in ("select", "train"))
    assert (len(select), len(kept), select & kept) == (1, 3, set())  # of a single drive, single recordings


def test_frames_of_pedro_are_held_out_in_stretches(tmp_path: Path) -> None:
    """They follow each other after 40 ms."""
    for folder in ("numpy", "xml"):
        (tmp_path / folder / "train").mkdir(parents=True)
    slice_of = np.array([[t, 9, 9, 1] for t in range(0, 40_000, 500)])
    for k in range(320):
        np.save(tmp_path / "numpy" / "train" / f"frame{k:07d}.npy", slice_of)
        box = "<xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>90</ymax>"
        text = f"<annotation><object><name>person</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / "xml" / "train" / f"frame{k:07d}.xml").write_text(text)
    select, kept = (split_names("pedro", tmp_path, split) for split in ("select", "train"))
    assert len(select | kept) == 320
    assert len(select) == 64  # two stretches of 32 are the first to reach an eighth
    assert not {int(name[5:12]) // 32 for name in select} & {int(name[5:12]) // 32 for name in kept}


def labelled_recording(path: Path, labels: dict[int, str]) -> None:
    """A recording of 10 s of a 64x48 sensor, with a box of a class at each of some times (in units of 100 ms)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_events(path, events(4000, 10_000_000, SensorSize(64, 48)), SensorSize(64, 48))
    rows = "".join(f"{100_000 * t},{name},5,5,40,30\n" for t, name in labels.items())
    path.with_name(f"{path.stem}_bbox.csv").write_text(f"t_us,class,x0,y0,x1,y1\n{rows}")


def times_of(root: Path, split: str, *classes: str) -> dict[str, list[int]]:
    """The labelled times of each recording, in units of 100 ms."""
    data, found = (
        open_dataset(DatasetConfig("folder", str(root), own_classes=classes), Request(split, W50)),
        dict[str, list[int]](),
    )
    for i in range(len(data)):
        found.setdefault(data[i].name, []).append(data[i].window.t1_us // 100_000)
    return found


def test_a_recording_that_alone_has_a_class_is_not_held_out(tmp_path: Path) -> None:
    for k in range(16):
        labelled_recording(tmp_path / "train" / f"{k}.dat", {10: "cat" if k < 3 else f"bird {k}" if k < 10 else "dog"})
    birds = [f"bird {k}" for k in range(3, 10)]
    held, kept = (set(times_of(tmp_path, split, "cat", "dog", *birds)) for split in ("select", "train"))
    assert (len(held), len(kept), held & kept) == (2, 14, set())
    assert not held & {f"{k}.dat" for k in range(3, 10)}


def test_if_no_recording_can_be_missed_the_end_of_each_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a second between what is learned from and what is chosen on, unless nothing would be left."""
    labelled_recording(tmp_path / "train" / "a.dat", dict.fromkeys(range(10, 90, 5), "cat"))
    labelled_recording(tmp_path / "train" / "b.dat", {10: "dog", 12: "dog"})
    assert times_of(tmp_path, "select", "cat", "dog") == {"a.dat": [80, 85], "b.dat": [12]}
    assert not caplog.records
    with caplog.at_level("INFO"):
        assert times_of(tmp_path, "train", "cat", "dog") == {"a.dat": list(range(10, 75, 5)), "b.dat": [10]}
    assert [record.levelname for record in caplog.records] == ["INFO"]
    (tmp_path / "train" / "b.dat").unlink()
    assert times_of(tmp_path, "select", "cat", "dog") == {"a.dat": [80, 85]}
    times_of(tmp_path, "train", "cat", "dog")
    assert "the split 'train' has nothing of dog, which cannot be learned from it" in caplog.text


def test_one_label_is_too_few_to_hold_one_out(tmp_path: Path) -> None:
    labelled_recording(tmp_path / "train" / "a.dat", {10: "cat"})
    assert times_of(tmp_path, "train", "cat") == {"a.dat": [10]}
    with pytest.raises(DataError, match="split 'select'"):
        times_of(tmp_path, "select", "cat")


def test_a_recording_in_two_formats_is_refused(tmp_path: Path) -> None:
    """It would count twice, and what is learned from would be chosen on."""
    labelled_recording(tmp_path / "train" / "a_td.dat", {10: "cat"})
    (tmp_path / "train" / "a_td_bbox.csv").rename(tmp_path / "train" / "a_bbox.csv")
    assert times_of(tmp_path, "train", "cat") == {"a_td.dat": [10]}
    np.save(tmp_path / "train" / "a.npy", events(9, 900, SensorSize(64, 48)))
    with pytest.raises(LabelError, match=r"a_bbox\.csv: belongs to a\.npy and a_td\.dat: keep one of the two"):
        times_of(tmp_path, "train", "cat")


def test_labels_of_yolo_are_no_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled_recording(tmp_path / "train" / "a.dat", {10: "cat"})
    path = tmp_path / "train" / "a.txt"
    for text in ("0 0.5 0.5 1 0.25\n1 0.1 0.2 0.3 0.4\n", "3 0.1 0.2 0.3 0.4 0.5 0.6 0.7\n", ""):
        path.write_text(text)
        assert times_of(tmp_path, "train", "cat") == {"a.dat": [10]}
    assert f"the first one: {path}: labels of YOLO are not read; export them as COCO, to a.json" in caplog.text
    path.unlink()
    (tmp_path / "train" / "labels").mkdir()
    for name in ("b_000000000010us.txt", "labels/c.txt", "labels/b_000000000020us.txt"):  # as labelling programs name them
        (tmp_path / "train" / name).write_text("0 0.5 0.5 1 0.25\n")
        caplog.clear()
        assert times_of(tmp_path, "train", "cat") == {"a.dat": [10]}
        assert "without labels" not in caplog.text
        (tmp_path / "train" / name).unlink()
    for text in ("10 0 1 1\n", "10 1 1 1 0.5\n", "0.1 0 1 0 1\n", "t x y p\n10 1 1 1\n"):  # events
        path.write_text(text)
        with pytest.raises(LabelError, match=r"a\.dat and a\.txt: keep one of the two"):
            times_of(tmp_path, "train", "cat")


def test_a_second_label_file_and_one_without_times_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled_recording(tmp_path / "train" / "a.dat", {10: "cat"})
    labelled_recording(tmp_path / "train" / "b.dat", {})
    (tmp_path / "train" / "a.json").write_text("{}")
    assert times_of(tmp_path, "train", "cat") == {"a.dat": [10]}
    csv_of_a, csv_of_b = (tmp_path / "train" / f"{name}_bbox.csv" for name in "ab")
    assert f"{csv_of_a}: these labels are read, and not those of a.json beside them" in caplog.messages
    reason = "states no labelled time, so that b.dat has no window to score or learn"
    assert f"{tmp_path}: 1 file skipped, the first one: {csv_of_b}: {reason}" in caplog.messages


def test_columns_of_text_and_filters_are_those_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train/a", "train/b", "val/c"):
        labelled_recording(tmp_path / "data" / f"{name}.dat", {10: "cat", 30: "cat", 50: "cat"})
        path = (tmp_path / "data" / f"{name}.dat").rename(tmp_path / "data" / f"{name}.tmp")
        own = events(4000, 10_000_000, SensorSize(64, 48))
        np.savetxt(path.with_suffix(".csv"), np.stack([own[c] for c in "xypt"], 1), "%d", ",")
        path.unlink()
    data = ["--dataset", "folder", "--root", "data"]
    small = ["--schedule.epochs", "1", "--schedule.batch", "2", "--schedule.passes", "1", "--architecture", "tiny"]
    reading = ["--sensor-size", "64x48", "--columns", "x,y,p,t", "--data.filters.refractory-us", "3"]
    own_settings = ["--own-classes", "cat", *reading]
    assert train_main([*data, *own_settings, *small, "--out", "runs/mine"]) == 0
    assert convert_main(["--weights", "runs/mine/best.safetensors", "--out", "mine.safetensors"]) == 0
    assert evaluate_main(["--weights", "mine.safetensors", *data, "--resamples", "0", "--both", "--out", "out"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["config"]["data"]["reading"]["columns"] == "x,y,p,t"
    assert found["config"]["data"]["filters"]["refractory_us"] == 3
    capsys.readouterr()
    unlabelled = ["--calibration", "data/val", "--unlabelled", "--sensor-size", "64x48"]
    assert convert_main(["--weights", "mine.safetensors", "--out", "again.safetensors", *unlabelled]) == 0
    assert convert_main(["--weights", "mine.safetensors", "--out", "x.safetensors", *unlabelled, "--columns", "t,x,y,p"]) == 1


def test_classes_of_ones_own_are_trained_converted_and_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train/a", "train/b", "val/c"):
        path = tmp_path / "data" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, events(3000, 400_000, SensorSize(64, 48)))
        path.with_name(f"{path.stem}_bbox.csv").write_text(
            "t_us,class,x0,y0,x1,y1\n"
            + "".join(f"{t},{kind},5,5,40,30\n" for t in (100_000, 300_000) for kind in ("drone", "bird"))
        )
    data = ["--dataset", "folder", "--root", "data"]
    small = ["--schedule.epochs", "1", "--schedule.batch", "2", "--schedule.passes", "1", "--architecture", "tiny"]
    own = ["--own-classes", "drone,bird", "--sensor-size", "64x48"]
    assert train_main([*data, *own, *small, "--out", "runs/mine"]) == 0
    assert convert_main(["--weights", "runs/mine/best.safetensors", "--out", "mine.safetensors", "--check-windows", "-1"]) == 0
    bundle = Bundle.load("mine.safetensors")
    assert (bundle.head.classes, bundle.record["dataset"]) == (("drone", "bird"), "mine")
    assert evaluate_main(["--weights", "runs/mine/best.safetensors", *data, "--ann", "--resamples", "0"]) == 0
    capsys.readouterr()
    assert evaluate_main(["--weights", "mine.safetensors", *data, "--json", "--resamples", "0"]) == 0
    assert set(json.loads(capsys.readouterr().out)["results"][0]["per_class"]) == {"drone", "bird"}
