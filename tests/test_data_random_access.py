"""Windows at random against a pass over the recording, in every format, with every fault it can express."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.encoding import unpack
from evburst.data.errors import DataError, EvburstError
from evburst.data.events import EVENT_DTYPE, EventArray, Events, EventWindow, Faults, SensorSize
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.random_access import EventIndex, RecentIndices, index_events
from evburst.data.readers import READERS, open_events
from evburst.data.readers.dat import DatFile
from evburst.data.slicing import windows_by_duration
from evburst.data.writers import write_events
from tests.event_files import (
    SIZE,
    aedat2_bytes,
    aedat3_bytes,
    aedat4_bytes,
    bin_bytes,
    dat_bytes,
    encode_evt2,
    encode_evt3,
    encode_evt4,
    encode_evt21,
    ros_array,
    write_bag,
)  # fmt: skip

W = 50_000


def recording(n: int = 4000, last_us: int = 900_000, start_us: int = 0) -> Events:
    rng = np.random.default_rng(n)
    events = np.zeros(n, EVENT_DTYPE)
    events["t"] = np.sort(rng.integers(0, last_us, n)) + start_us
    events["x"], events["y"] = rng.integers(0, SIZE.width, n), rng.integers(0, SIZE.height, n)
    events["p"] = rng.integers(0, 2, n)
    return events


# ---------------------------------------------------------------- any phase, against a pass with that phase


def assert_equals_pass(index: EventIndex, windows: list[EventWindow], window_us: int, ends: list[int]) -> None:
    """`windows` is a pass of the phase that all `ends` have."""
    by_end = {window.t1_us: unpack(window) for window in windows}
    for end in ends:
        found = index.window(end)
        assert (found.t0_us, found.t1_us) == (end - window_us, end)
        np.testing.assert_array_equal(unpack(found), by_end.get(end, np.empty(0, EVENT_DTYPE)))


unsteady = st.lists(
    st.one_of(st.integers(0, 3000), st.integers(-3000, 50), st.integers(-900_000, 2_500_000), st.just(700_000_000)), max_size=60
)


def at(times: list[int]) -> Events:
    events = np.zeros(len(times), EVENT_DTYPE)
    events["t"], events["x"], events["y"] = times, np.arange(len(times)) % 32, np.arange(len(times)) // 32
    return events


@settings(deadline=None)
@given(steps=unsteady, window_us=st.sampled_from([2000, 20_000, 1_500_000]), phase=st.integers(0, 10**7), dense=st.booleans())
def test_held_windows_are_those_of_a_pass(steps: list[int], window_us: int, phase: int, dense: bool) -> None:
    times = [int(t) for t in 40_000_000 + np.cumsum([0, *steps])]
    events, faults = at(times), Faults()
    with pytest.MonkeyPatch.context() as patch:
        if dense:
            patch.setattr("evburst.data.random_access.MARK_EVENTS", 3)
        index = index_events(EventArray(events, SIZE), window_us)
    windows = list(windows_by_duration([events], window_us, faults, phase % window_us))
    ends = sorted({(t - phase) // window_us * window_us + phase % window_us + k * window_us for t in times for k in (0, 1, 2)})
    ends = [end - (end - phase) % window_us for end in ends]
    assert_equals_pass(index, windows, window_us, ends)
    list(windows_by_duration([events], window_us, expected := Faults()))
    assert index.faults == expected
    assert index.end_us == 1 + max(t for t, ok in zip(times, sound(times), strict=True) if ok)


def sound(times: list[int]) -> list[bool]:
    return [not any(t - later > 1_000_000 for later in times[i + 1 : i + 9]) for i, t in enumerate(times)]


@settings(deadline=None)
@given(
    steps=st.lists(
        st.one_of(st.integers(0, 20_000), st.integers(-400_000, 20_000), st.integers(0, 900_000_000)), min_size=1, max_size=60
    ),
    flipped=st.lists(st.integers(0, 59), max_size=3),
    window_us=st.sampled_from([20_000, 1_500_000]),
    phase=st.integers(0, 10**7),
    dense=st.booleans(),
)
def test_dat_windows_are_those_of_a_pass(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], flipped: list[int], window_us: int, phase: int, dense: bool
) -> None:
    """Over several wraps of the clock, with corrupt times; as far as seeking promises it (evburst.data.readers.dat)."""
    steps = [min(step, 1000 * window_us) for step in steps]  # more empty windows in a row show nothing more
    times = (1 << 32) - 5_000_000 + np.cumsum([0, *steps])
    events = at(times.tolist())
    for k in flipped:
        if 0 < k < len(events) - 9:
            events["t"][k] ^= 1 << 31
    events["t"] %= 1 << 32
    path = tmp_path_factory.mktemp("dat") / "a.dat"
    path.write_bytes(dat_bytes(events))
    with pytest.MonkeyPatch.context() as patch:
        if dense:
            patch.setattr("evburst.data.random_access.MARK_EVENTS", 3)
        index = index_events(DatFile(path), window_us)
    stream = DatFile(path)
    every = list(stream.windows(window_us))
    assert index.faults == stream.faults
    assert_equals_pass(index, every, window_us, [window.t1_us for window in every][:200])
    begin = next(stream.marked_windows(window_us))[0]
    shifted = list(stream.windows_after(begin, window_us, phase % window_us))
    assert_equals_pass(index, shifted, window_us, [window.t1_us for window in shifted][:200])


def test_before_between_and_after_events_windows_are_empty(tmp_path: Path) -> None:
    events = at([100_000, 100_010, 2_000_000_000, 2_000_000_001])
    write_events(tmp_path / "a.dat", events, SIZE)
    for stream in (EventArray(events, SIZE), DatFile(tmp_path / "a.dat")):
        index = index_events(stream, W)
        assert (index.first_us, index.end_us) == (100_000, 2_000_000_002)
        expected = {-7: 0, 100_000: 0, 100_001: 1, 123_456: 2, 900_000_000: 0, 2_000_000_001: 1, 2_000_050_001: 1, 10**10: 0}
        assert {end: len(index.window(end)) for end in expected} == expected
        assert index.faults.found() == {"long_silences": 1}


def test_nothing_is_counted_twice_and_windows_are_views_of_the_file(tmp_path: Path) -> None:
    events = recording()
    write_events(tmp_path / "a.dat", events, SIZE)
    stream = DatFile(tmp_path / "a.dat")
    index = index_events(stream, W)
    for end in (200_001, 200_001, 300_000):
        assert np.shares_memory(index.window(end).words, stream.words)
    assert index.held_events == 0
    assert index_events(EventArray(events, SIZE), W).held_events == len(events)


def test_a_kept_index_is_used_and_a_broken_one_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = recording()
    events["t"][2000] += 5_000_000
    (tmp_path / "a.dat").write_bytes(dat_bytes(events) + b"abc")
    file = tmp_path / "cache" / "index.json"
    first = index_events(DatFile(tmp_path / "a.dat"), W, file)
    assert first.faults.found() == {"truncated_bytes": 3, "time_glitches": 1}
    assert sorted(path.name for path in file.parent.iterdir()) == ["index.json"]
    with monkeypatch.context() as patch:
        patch.setattr(DatFile, "marked_windows", lambda *args: pytest.fail("read again"))
        again = index_events(DatFile(tmp_path / "a.dat"), W, file)
    assert (again.faults, again.first_us, again.end_us) == (first.faults, first.first_us, first.end_us)
    assert np.array_equal(again.window(333_333).words, first.window(333_333).words)
    for broken in ("", "{}", '{"version": 0}', '{"version": 1, "marks": 3}', "[]"):
        file.write_text(broken)
        assert index_events(DatFile(tmp_path / "a.dat"), W, file).end_us == first.end_us


def test_recordings_too_long_for_memory_and_without_events_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="holds no event"):
        index_events(EventArray(recording()[:0], SIZE), W)
    monkeypatch.setattr("evburst.data.random_access.MAX_HELD_EVENTS", 10)
    with pytest.raises(DataError, match=r"too many to hold in memory; convert it to \.dat"):
        index_events(EventArray(recording(), SIZE), W)


@pytest.mark.parametrize("kind", ["dat", "array"])
def test_filters_see_the_recording_once(tmp_path: Path, kind: str) -> None:
    events, config = recording(40_000), FiltersConfig(100.0, 2000, 3000)
    write_events(tmp_path / "a.dat", events, SIZE)

    def stream() -> FilteredStream:
        return FilteredStream(DatFile(tmp_path / "a.dat") if kind == "dat" else EventArray(events, SIZE), config)

    index, whole = index_events(stream(), W), list(stream().windows(W))
    assert 0 < sum(map(len, whole)) < len(events)
    assert_equals_pass(index, whole, W, [window.t1_us for window in whole])
    kept = np.concatenate([unpack(window) for window in whole])
    inside = kept[(kept["t"] >= 183_456) & (kept["t"] < 233_456)]
    np.testing.assert_array_equal(unpack(index.window(233_456)), inside)


# ---------------------------------------------------------------- data sets, in every format

Encoder = Callable[[Path, Events], None]


def raw(encode: Callable[[Events], bytes], name: str) -> Encoder:
    header = f"% evt {name}\n% geometry {SIZE}\n% end\n".encode()
    return lambda path, events: _write(path, header + encode(events))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _hdf5(path: Path, events: Events) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name in "txyp":
            file[f"events/{name}"] = events[name]


def _csv(path: Path, events: Events) -> None:
    _write(path, b"".join(b"%d %d %d %d\n" % event for event in events.tolist()))


ENCODERS: dict[str, tuple[str, str, Encoder, int]] = {
    "dat": ("dat", ".dat", lambda path, events: _write(path, dat_bytes(events)), 1 << 32),
    "evt2": ("evt", ".raw", raw(encode_evt2, "2.0"), 1 << 34),
    "evt2.1": ("evt", ".raw", raw(encode_evt21, "2.1"), 1 << 34),
    "evt3": ("evt", ".raw", raw(encode_evt3, "3.0"), 1 << 24),
    "evt4": ("evt", ".raw", lambda path, events: _write(path, b"% format EVT4\n" + encode_evt4(events)), 1 << 34),
    "bin": ("bin", ".bin", lambda path, events: _write(path, bin_bytes(events.tolist())), 1 << 23),
    "aedat4": ("aedat4", ".aedat4", lambda path, events: _write(path, aedat4_bytes([events[:999], events[999:]])), 1 << 62),
    "hdf5": ("hdf5", ".h5", _hdf5, 1 << 62),
    "npy": ("npy", ".npy", lambda path, events: np.save(path, events), 1 << 62),
    "npz": ("npz", ".npz", lambda path, events: np.savez(path, **{name: events[name] for name in "txyp"}), 1 << 62),
    "csv": ("csv", ".txt", _csv, 1 << 62),
    "aedat2": ("aedat2", ".aedat", lambda path, events: _write(path, aedat2_bytes(events, "DVS128", DVS128)), 1 << 32),
    "aedat3": (
        "aedat3",
        ".aedat",
        lambda path, events: _write(path, aedat3_bytes([events[:999], events[999:]], "DVS128")),
        1 << 62,
    ),
    "rosbag": (
        "rosbag",
        ".bag",
        lambda path, events: write_bag(path, "dvs_msgs/msg/EventArray", map(ros_array, (events[:999], events[999:]))),
        1 << 52,  # of the seconds, 32 bits
    ),
}
"""Format, ending, encoder, and when its clock wraps, by name of the encoding."""

DVS128 = SensorSize(128, 128)
FAULTS = ("sound", "flipped", "wrapped", "disorder", "truncated", "all")


def test_every_format_is_tried() -> None:
    assert set(READERS) <= {format for format, *_ in ENCODERS.values()}, "an encoder for tests/test_data_random_access.py"


def damaged(fault: str, wrap_us: int) -> Events:
    """A recording of 0.9 s."""
    events = recording()
    if fault in ("disorder", "all"):
        moved = np.arange(700, 3500, 333)
        events["t"][moved] -= np.minimum(events["t"][moved], 70_000)
    if fault in ("wrapped", "all"):
        events["t"] += wrap_us - 400_000 if wrap_us < 1 << 40 else 0
    if fault in ("flipped", "all"):
        events["t"][[1234, 2345]] ^= min(wrap_us // 2, 1 << 31)
    events["t"] %= wrap_us
    return events


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("encoding", list(ENCODERS))
def test_data_sets_and_detection_read_the_same_events(tmp_path: Path, encoding: str, fault: str) -> None:
    _, ending, encode, wrap_us = ENCODERS[encoding]
    path = tmp_path / f"a_td{ending}"
    encode(path, damaged(fault, wrap_us))
    if fault in ("truncated", "all"):
        path.write_bytes(path.read_bytes()[:-3])
    size = DVS128 if encoding in ("aedat2", "aedat3") else SIZE
    config = DatasetConfig("folder", str(tmp_path), sensor_size=str(size))
    request = Request("any", W, cache=tmp_path / "c")
    try:
        stream = open_events(path, size)
        whole = list(stream.windows(W))
    except EvburstError:
        whole = []
    if not whole:
        labels(tmp_path / "a_bbox.npy", [100_000])
        with pytest.raises(EvburstError, match="a_td"):
            open_dataset(config, request)
        assert fault in ("truncated", "all")
        return
    ends = [window.t1_us for window in whole]
    labels(tmp_path / "a_bbox.npy", ends)
    data = open_dataset(config, request)
    assert len(data) == len(ends)
    for i, window in enumerate(whole):
        np.testing.assert_array_equal(unpack(data[i].window), unpack(window))
    assert data.faults_of(0) == stream.faults.found()  # type: ignore[attr-defined]
    if fault == "wrapped" and wrap_us < 1 << 40:
        assert stream.faults.time_wraps == 1


def labels(path: Path, times: list[int]) -> None:
    boxes = np.zeros(len(times), BBOX_DTYPE)
    boxes["t"], boxes["w"], boxes["h"] = times, 10, 10
    np.save(path, boxes)


def test_one_flipped_bit_empties_no_window(tmp_path: Path) -> None:
    """What went wrong once: windows searched by bisection, in times as they are in the file."""
    events = recording(20_000, 1_000_000)
    events["t"][9_999] ^= 1 << 31
    (tmp_path / "a.dat").write_bytes(dat_bytes(events))
    labels(tmp_path / "a_bbox.npy", [700_000])
    data = open_dataset(DatasetConfig("folder", str(tmp_path)), Request("any", W, cache=tmp_path / "c"))
    assert len(data[0].window) == np.count_nonzero((events["t"] >= 650_000) & (events["t"] < 700_000)) > 900
    assert data.faults_of(0) == {"time_glitches": 1}  # type: ignore[attr-defined]


# ---------------------------------------------------------------- how many are kept


@pytest.mark.parametrize(
    ("most", "most_events", "kept"),
    [
        (3, 10_000, ["a", "c", "d"]),  # "b" was used longest ago
        (9, 250, ["c", "d"]),
        (9, 50, ["d"]),  # the last one is kept even if it holds more
    ],
)
def test_the_indices_used_last_are_kept(most: int, most_events: int, kept: list[str]) -> None:
    recent, made = RecentIndices[str](most, most_events), list[str]()

    def index(name: str) -> Callable[[], EventIndex]:
        def make() -> EventIndex:
            made.append(name)
            return index_events(EventArray(recording(100), SIZE), W)

        return make

    for name in ("a", "b", "a", "c", "d"):
        recent.get(name, index(name))
    made.clear()
    for name in reversed(kept):  # the newest first: one that has to be made again replaces the oldest
        recent.get(name, index(name))
    assert made == []
    for name in {"a", "b", "c", "d"} - set(kept):
        recent.get(name, index(name))
    assert sorted(made) == sorted({"a", "b", "c", "d"} - set(kept))
