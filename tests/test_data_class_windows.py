"""Windows of class recordings: their number, their events, time that is held out, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from evburst.data.datasets.class_windows import ClassWindows, HeldTime, filled_numbers, filled_windows, open_class_windows
from evburst.data.datasets.classes import ClassDataset, LabelledRecording, open_classes
from evburst.data.encoding import pack, unpack
from evburst.data.errors import ConfigError, DataError, EventFileError, LabelError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, EventArray, EventWindow, SensorSize
from evburst.data.readers import ReadOptions
from evburst.data.writers import write_events
from tests.event_files import dat_bytes, rows
from tests.test_data_datasets_recorded import events

SIZE = SensorSize(48, 32)
W = 100_000


def recording(start_us: int, span_us: int, n: int = 500, size: SensorSize = SIZE) -> EventArray:
    found = events(n, span_us, size)
    found["t"] += start_us - found["t"][0]
    return EventArray(found, size)


@pytest.mark.parametrize(("first_us", "end_us", "windows"), [
    (0, W, [0]),
    (0, 2 * W, [0, 1]),
    (0, 2 * W + 49_999, [0, 1]),  # the last one is less than half filled
    (0, 2 * W + 50_000, [0, 1, 2]),
    (50_001, 2 * W, [1]),
    (50_000, 2 * W, [0, 1]),
    (90_000, W + 20_000, [1]),  # both are: the last one stays
    (10_000, 20_000, [0]),
])  # fmt: skip
def test_first_and_last_windows_must_be_half_filled(first_us: int, end_us: int, windows: list[int]) -> None:
    assert list(filled_numbers(first_us, end_us, W)) == windows
    t = np.arange(first_us, end_us, 1000)
    t[-1] = end_us - 1
    found = np.zeros(len(t), [("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
    found["t"] = t
    assert [w.t0_us // W for w in filled_windows(EventArray(found, SIZE).windows(W))] == windows


def test_windows_that_overlap_must_be_half_filled() -> None:
    source = recording(1_000, 350_000)
    windows = list(source.windows(W // 4))
    first, end = int(source.events["t"][0]), int(source.events["t"][-1]) + 1
    overlapping = [
        EventWindow(t0, t0 + W, pack(source.events[(source.events["t"] >= t0) & (source.events["t"] < t0 + W)]))
        for t0 in range(windows[0].t0_us - 3 * W // 4, windows[-1].t0_us + 1, W // 4)
    ]
    found = list(filled_windows(iter(overlapping)))
    expected = [w for w in overlapping if min(w.t1_us, end) - max(w.t0_us, first) >= W / 2]
    assert found == expected
    assert 0 < len(expected) < len(overlapping)


@pytest.mark.parametrize(("events", "sizes"), [(2_499, [1000, 1000]), (2_500, [1000, 1000, 500]), (400, [400])])
def test_windows_of_a_number_of_events_must_be_half_full(events: int, sizes: list[int]) -> None:
    source = np.zeros(events, EVENT_DTYPE)
    source["t"] = np.arange(events)
    parts = [source[k : k + 1000] for k in range(0, events, 1000)]
    windows = (EventWindow(int(part["t"][0]), int(part["t"][-1]) + 1, pack(part)) for part in parts)
    assert [len(window) for window in filled_windows(windows, 1000)] == sizes


def test_recordings_without_events_have_no_windows() -> None:
    assert list(filled_windows(iter(()))) == []


def dataset(*recordings: EventArray) -> ClassDataset:
    named = [LabelledRecording(f"{k}.dat", k % 2, lambda own=own: own) for k, own in enumerate(recordings)]  # type: ignore[misc]
    return ClassDataset("folder", ("a", "b"), SIZE, named)


def test_windows_equal_those_of_a_pass_over_the_recording() -> None:
    sources = [recording(1_000, 350_000), recording(5_040_000, 260_000)]
    found = ClassWindows(dataset(*sources), "train", W)
    expected = [(k, window) for k, own in enumerate(sources) for window in filled_windows(own.windows(W))]
    assert (
        len(found)
        == len(expected)
        == 3 + 3 + (1 if filled_numbers(1_000, int(sources[0].events["t"][-1]) + 1, W).stop == 4 else 0)
    )
    for i, (k, window) in enumerate(expected):
        item = found[i]
        assert (item.window.t0_us, item.window.t1_us, item.name) == (window.t0_us, window.t1_us, f"{k}.dat")
        np.testing.assert_array_equal(unpack(item.window), unpack(window))
        assert item.boxes.boxes_xyxy.tolist() == [[0, 0, 48, 32]]
        assert item.boxes.labels.tolist() == [k]
        assert item.boxes.t_us == window.t1_us
    assert [part.name for part in found.parts()] == ["0", "1"]
    assert [i for part in found.parts() for i in part.items] == list(range(len(found)))
    assert found.start_us(0) == 1_000
    assert found.faults_of(0) == {}


def test_a_recording_without_events_has_one_empty_window(caplog: pytest.LogCaptureFixture) -> None:
    """So that an evaluation counts it, as not classified."""
    found = ClassWindows(dataset(EventArray(events(0, 1, SIZE), SIZE), recording(0, 200_000)), "test", W)
    assert [(found[i].name, len(found[i].window) > 0) for i in range(3)] == [("0.dat", False), *[("1.dat", True)] * 2]
    assert [found.labels(i).labels.tolist() for i in range(3)] == [[0], [1], [1]]
    assert caplog.messages == ["0.dat: contains no events, so that its class cannot be found"]


def test_limited_windows_are_spread_evenly() -> None:
    found = ClassWindows(dataset(*(recording(0, 300_000) for _ in range(6))), "train", W, 4)
    assert sorted({found[i].name for i in range(4)}) == ["0.dat", "1.dat", "3.dat", "5.dat"]


def test_time_is_held_out_with_a_gap() -> None:
    held = HeldTime(5, 2, 0.1)
    ends = [W * k for k in range(1, 21)]
    select, train = held.select("select", ends, W), held.select("train", ends, W)
    assert select == [W * k for k in range(9, 13)]
    assert train == [W * k for k in (*range(1, 8), *range(14, 21))]
    assert HeldTime(5, -1).select("train", ends, W) == ends
    assert HeldTime(5, -1).select("select", ends, W) == []
    assert HeldTime().select("select", ends, W) == ends
    blocks = [HeldTime(5, k, 0).select("select", ends, W) for k in range(5)]
    assert sorted(end for block in blocks for end in block) == ends
    three = HeldTime(5, 3, 0.1, test_block=4)
    assert three.select("test", ends, W) == [W * k for k in range(17, 21)]
    assert three.select("select", ends, W) == [W * k for k in range(13, 17)]
    assert three.select("train", ends, W) == [W * k for k in range(1, 12)]
    assert HeldTime(5, 3, 0.1).select("test", ends, W) == ends  # a published split
    wrongs = ({"blocks": 1}, {"blocks": 5, "block": 5}, {"blocks": 3, "gap_s": -1.0}, {"blocks": 3, "test_block": 3})
    for wrong in (*wrongs, {"blocks": 3, "block": 1, "test_block": 1}):
        with pytest.raises(ValueError, match="held"):
            HeldTime(**wrong)  # type: ignore[arg-type]


def test_recordings_of_another_sensor_are_refused() -> None:
    with pytest.raises(SensorSizeError, match="among recordings of 48x32"):
        ClassWindows(dataset(recording(0, 200_000), recording(0, 200_000, size=SensorSize(64, 64))), "train", W)


def table_tree(root: Path) -> Path:
    root.mkdir()
    for name in "ab":
        write_events(root / f"{name}.dat", recording(0, 2_000_000).events, SIZE)
    (root / "recordings.csv").write_text("file,class\na.dat,mug\nb.dat,pen\nmissing.dat,pen\n")
    return root


def test_recordings_out_of_order_are_refused() -> None:
    shuffled = recording(0, 3 * W)
    shuffled.events["t"] = shuffled.events["t"][::-1].copy()
    with pytest.raises(EventFileError, match=r"1\.dat: \d+ of 500 events are older .* not in order of time; sort its events"):
        ClassWindows(dataset(recording(0, 3 * W), shuffled), "train", W)


def test_a_message_states_that_many_recordings_are_read_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evburst.data.datasets.class_windows._MANY", 2)
    (tmp_path / "data" / "a").mkdir(parents=True)
    for name in (f"{k}.dat" for k in range(20)):
        (tmp_path / "data" / "a" / name).write_bytes(dat_bytes(rows((0, 0, 0, 1), (50_000, 1, 1, 0))))
    with caplog.at_level("INFO", "evburst"):
        for _ in range(2):
            open_class_windows("folder", tmp_path / "data", "train", 100_000, 0, tmp_path / "cache", HeldTime())
    stated = [message for message in caplog.messages if "recordings once" in message]
    assert len(stated) == 1
    assert f" recordings once; the times are kept in {tmp_path / 'cache' / 'classes'}" in stated[0]


def test_a_table_of_labels_and_time_that_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, cache, held = table_tree(tmp_path / "data"), tmp_path / "cache", HeldTime(4, 3, 0.0)
    found = {split: open_class_windows("folder", root, split, W, 0, cache, held) for split in ("train", "select")}
    assert found["train"].spec.classes == ("mug", "pen")
    assert {item.name for item in map(found["select"].__getitem__, range(len(found["select"])))} == {"a.dat", "b.dat"}
    assert len(found["train"]) + len(found["select"]) == 40
    with pytest.raises(DataError, match="none of the 2 recordings is of split 'test'"):
        open_class_windows("folder", root, "test", W, 0, cache, held)
    three = HeldTime(4, 3, 0.0, test_block=2)
    lengths = [len(open_class_windows("folder", root, name, W, 0, cache, three)) for name in ("train", "select", "test")]
    assert lengths == [20, 10, 10]
    assert "missing.dat: is in recordings.csv but missing" in caplog.text
    assert list((cache / "classes").glob("*.json"))
    again = open_class_windows("folder", root, "select", W, 0, cache, held)
    assert [again.start_us(i) for i in range(len(again))] == [found["select"].start_us(i) for i in range(len(again))]
    (file,) = (cache / "classes").glob("*.json")
    file.write_text("{}")  # of another version
    assert len(open_class_windows("folder", root, "select", W, 0, cache, held)) == len(again)
    other = open_class_windows("folder", root, "select", W, 0, cache, held, options=ReadOptions(allow_external=True))
    assert {part.identity for part in other.parts()}.isdisjoint(part.identity for part in again.parts())
    assert len(list((cache / "classes").glob("*.json"))) == 2


def test_a_recording_is_listed_once(tmp_path: Path) -> None:
    """In one split and with one class."""
    root = table_tree(tmp_path / "data")
    (root / "recordings.csv").write_text("file,class,split\na.dat,mug,train\nb.dat,pen,test\n./a.dat,mug,test\n")
    with pytest.raises(LabelError, match=r"line 4: \./a\.dat is also in line 2"):
        open_classes("folder", root, "test")


def test_classes_of_a_network_and_classes_that_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = table_tree(tmp_path / "data")
    known = open_classes("folder", root, "train", in_time=True, classes=("pen", "cup"))
    assert (known.classes, [own.label for own in known.recordings]) == (("pen", "cup"), [0])
    assert "recordings of mug are skipped" in caplog.text
    assert open_classes("folder", root, "train", in_time=True, ignored=frozenset({"mug"})).classes == ("pen",)
    with pytest.raises(ConfigError, match="its classes are mug, pen"):
        open_classes("folder", root, "train", in_time=True, classes=("cup",))
    (root / "recordings.csv").write_text("file,kind\na.dat,mug\n")
    with pytest.raises(LabelError, match="line 2: expected columns file and class"):
        open_classes("folder", root, "train", in_time=True)


def test_recordings_that_are_too_short_for_a_held_block() -> None:
    with pytest.raises(DataError, match="too short"):
        ClassWindows(dataset(recording(0, 90_000)), "select", W, held=HeldTime(5, 0))


def test_a_class_without_a_recording_to_learn_from_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train/cup/a", "train/cup/b", "test/cup/c", "test/mug/d"):
        path = tmp_path / f"{name}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_events(path, events(500, 300_000, SIZE), SIZE)
    for split, messages in (
        ("test", []),
        ("train", [f"{tmp_path}: the split 'train' has nothing of mug, which cannot be learned from it"]),
    ):
        assert open_class_windows("folder", tmp_path, split, W, 0, None, HeldTime()).spec.classes == ("cup", "mug")
        assert caplog.messages == messages
