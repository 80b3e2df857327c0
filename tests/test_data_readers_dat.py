"""The DAT reader: bytes by hand, repairs counted, windows equal to a slow reference on clean and on broken clocks."""

from __future__ import annotations

import itertools
import struct
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.encoding import unpack
from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import EventWindow, Faults, SensorSize
from evburst.data.readers import open_events
from evburst.data.readers.dat import DatFile
from evburst.data.writers import write_events
from tests.conftest import SHARED, random_events

HEADER = b"% Data file containing CD events.\n% Version 2\n% Height 240\n% Width 304\n"


def dat(path: Path, times: list[int], header: bytes = HEADER, kind: int = 0x0C, x: int = 1, y: int = 2, p: int = 1) -> Path:
    """A DAT file with events at the given raw times."""
    body = b"".join(struct.pack("<II", t & 0xFFFFFFFF, x | y << 14 | p << 28) for t in times)
    path.write_bytes(header + bytes([kind, 8]) + body)
    return path


def window_times(path: Path, window_us: int) -> tuple[list[tuple[int, list[int]]], dict[str, int]]:
    """[(t0, times of its events)] and the faults found."""
    stream = open_events(path)
    found = [(w.t0_us, unpack(w)["t"].tolist()) for w in stream.windows(window_us)]
    return found, stream.faults.found()


@pytest.mark.parametrize("kind", [0x00, 0x0C])
def test_bytes_by_hand(tmp_path: Path, kind: int) -> None:
    body = struct.pack("<II", 7, 303 | 239 << 14 | 1 << 28) + struct.pack("<II", 9, 5)
    (tmp_path / "a.dat").write_bytes(HEADER + bytes([kind, 8]) + body)
    stream = open_events(tmp_path / "a.dat")
    (window,) = stream.windows(1000)
    assert stream.sensor_size == (304, 240)
    assert unpack(window).tolist() == [(7, 303, 239, 1), (9, 5, 0, 0)]


def test_version_1_packs_9_and_8_bits(tmp_path: Path) -> None:
    header = b"% Data file containing Event2D events.\n% Version 1\n% Height 240\n% Width 304\n"
    body = struct.pack("<II", 3, 300 | 200 << 9 | 1 << 17)
    (tmp_path / "a.dat").write_bytes(header + bytes([0, 8]) + body)
    (window,) = open_events(tmp_path / "a.dat").windows(1000)
    assert unpack(window).tolist() == [(3, 300, 200, 1)]


def test_windows_are_half_open_aligned_and_include_empty_ones(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [120, 199, 200, 450]), 100)
    assert found == [(100, [120, 199]), (200, [200]), (300, []), (400, [450])]
    assert faults == {}


def test_clock_wrap_is_repaired_and_counted(tmp_path: Path) -> None:
    top = 1 << 32
    found, faults = window_times(dat(tmp_path / "a.dat", [top - 30, top - 5, 4, 60]), 50)
    times = [t for _, ts in found for t in ts]
    assert times == [top - 30, top - 5, top + 4, top + 60]
    assert faults == {"time_wraps": 1}


def test_two_wraps(tmp_path: Path) -> None:
    top = 1 << 32
    steps = [k * (top // 4 + 12_345_678) for k in range(11)]
    found, faults = window_times(dat(tmp_path / "a.dat", steps), top // 8)
    assert [t for _, ts in found for t in ts] == steps
    assert faults == {"time_wraps": 2}


def test_time_running_backwards_is_left_out_and_counted(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [10, 120, 90, 95, 130]), 100)
    assert found == [(0, [10]), (100, [120, 130])]
    assert faults == {"late_events": 2}


def test_disorder_within_a_window_is_harmless(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [10, 30, 20, 40]), 100)
    assert found == [(0, [10, 30, 20, 40])]
    assert faults == {}


def test_one_corrupt_time_does_not_end_the_recording(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [10, 20, 3_000_000_000, 30, 110]), 100)
    assert found == [(0, [10, 20, 30]), (100, [110])]
    assert faults == {"time_glitches": 1}


def test_a_corrupt_first_time_does_not_either(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [1_900_000_000, 20, 110]), 100)
    assert found == [(0, [20]), (100, [110])]
    assert faults == {"time_glitches": 1}


def test_a_corrupt_time_far_ahead_is_not_taken_for_a_wrap(tmp_path: Path) -> None:
    """The time after it falls by more than half a clock's turn, but not from where the clock was."""
    found, faults = window_times(dat(tmp_path / "a.dat", [10, 20, 3_000_000_000, 15, 30, 110]), 100)
    assert found == [(0, [10, 20, 15, 30]), (100, [110])]
    assert faults == {"time_glitches": 1}
    found, faults = window_times(dat(tmp_path / "b.dat", [10, 3_000_000_000, 110, 120, 90, 210]), 100)
    assert found == [(0, [10]), (100, [110, 120]), (200, [210])]
    assert faults == {"time_glitches": 1, "late_events": 1}


def test_truncated_in_the_middle_of_an_event(tmp_path: Path) -> None:
    path = dat(tmp_path / "a.dat", [10, 20, 30])
    path.write_bytes(path.read_bytes()[:-3])
    found, faults = window_times(path, 100)
    assert found == [(0, [10, 20])]
    assert faults == {"truncated_bytes": 5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (HEADER, "the file ends after the header"),
        (HEADER + b"\x0c", "the file ends after the header"),
        (HEADER + b"\x0c\x08", "no event after the header, which ends at byte"),
        (HEADER + b"\x0c\x08\x01\x02", "no event after the header, which ends at byte"),  # less than one event
        (b"hello, this is a text file\n", "no .%. header: not a Prophesee DAT file"),
        (b"% a LaTeX comment\n\\documentclass{article}\n", "event type 0x5C"),
        (HEADER + b"\x0c\x10" + bytes(16), "event type 0x0C of 16 bytes"),
        (HEADER + b"\x0e\x08" + bytes(16), "event type 0x0E"),
        (b"%" + b"x" * 70000, "header does not end"),
    ],
    ids=["empty", "header only", "half a type", "no event", "half an event", "text", "latex", "size", "type", "endless"],
)
def test_unusable_files_say_why(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(content)
    with pytest.raises(EventFileError, match=message) as caught:
        open_events(path)
    assert "bad.dat" in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="no such file"):
        open_events(tmp_path / "gone.dat")
    with pytest.raises(EventFileError, match="cannot be read"):
        open_events(tmp_path)


def test_sensor_size_is_asked_for_never_guessed(tmp_path: Path) -> None:
    path = dat(tmp_path / "a.dat", [1], header=b"% Version 2\n")
    with pytest.raises(SensorSizeError, match="--sensor-size"):
        open_events(path)
    assert open_events(path, SensorSize(64, 48)).sensor_size == (64, 48)


@pytest.mark.parametrize(
    ("width", "shown"), [("0", "0x240"), ("20000", "20000x240"), ("9" * 5000, "9" * 40), ("wide", "widex240")]
)
def test_a_size_that_is_none_is_not_believed(tmp_path: Path, width: str, shown: str) -> None:
    path = dat(tmp_path / "a.dat", [1], header=f"% Version 2\n% Height 240\n% Width {width}\n".encode())
    with pytest.raises(SensorSizeError, match=f"{shown}' is invalid; pass --sensor-size"):
        open_events(path)
    assert open_events(path, SensorSize(304, 240)).sensor_size == (304, 240)


def test_the_size_is_asked_for_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SensorSizeError, match="its largest coordinates are x = 1, y = 2: pass --sensor-size 2x3"):
        open_events(dat(tmp_path / "a.dat", [1], header=b"% Version 2\n"))


def test_contradicting_sensor_size(tmp_path: Path) -> None:
    with pytest.raises(SensorSizeError, match="the file says 304x240"):
        open_events(dat(tmp_path / "a.dat", [1]), SensorSize(640, 480))


def test_written_files_read_back(tmp_path: Path) -> None:
    events = random_events(5000, SensorSize(304, 240), 400_000)
    write_events(tmp_path / "a.dat", events, SensorSize(304, 240))
    again = np.concatenate([unpack(w) for w in open_events(tmp_path / "a.dat").windows(50_000)])
    assert np.array_equal(again, events)


def test_windows_are_views_of_the_file(tmp_path: Path) -> None:
    """No copy of the recording: a sound window shares memory with the map."""
    events = random_events(5000, SensorSize(304, 240), 400_000)
    write_events(tmp_path / "a.dat", events, SensorSize(304, 240))
    stream = DatFile(tmp_path / "a.dat")
    assert all(np.shares_memory(window.words, stream.words) for window in stream.windows(50_000) if len(window))


def reference(times: list[int], window_us: int) -> tuple[list[tuple[int, list[int]]], Faults]:
    """[(t0, times of its events)] of the windows that hold any, and faults: the module's rules, event by event."""
    windows: list[tuple[int, list[int]]] = []
    faults = Faults()
    epoch = last = 0
    for i, raw in enumerate(times):
        t0 = windows[-1][0] if windows else 0
        t = raw + epoch
        following = times[i + 1 : i + 9]
        if windows and last - t > 2**31:
            if following and following[0] >= 2**31:
                faults.late_events += 1
                continue
            epoch, t, faults.time_wraps = epoch + 2**32, t + 2**32, faults.time_wraps + 1
        elif t < t0:
            faults.late_events += 1
            continue
        elif not (windows and t < t0 + min(window_us, 1_000_000)) and is_glitch(
            raw, following, last - epoch if windows else None
        ):
            faults.time_glitches += 1
            continue
        start = t // window_us * window_us
        if not windows or start > t0:
            faults.long_silences += bool(windows) and start - t0 - window_us >= 600_000_000
            windows.append((start, []))
        windows[-1][1].append(t)
        last = t
    return windows, faults


def is_glitch(raw: int, following: list[int], last: int | None) -> bool:
    """Whether one of the following takes a time back; across a wrap only one that continues from the time before."""
    wrapped = False
    for before, later in zip([raw, *following], following, strict=False):
        wrapped |= before - later > 2**31
        continues = last is not None and 0 <= later - last <= 1_000_000
        if raw - later > 1_000_000 and (continues or not wrapped):
            return True
    return False


CLOCKS = st.one_of(
    st.lists(st.integers(0, 5_000_000), min_size=1, max_size=40),
    # a steady clock with corrupt times, around a wrap
    st.lists(st.one_of(st.integers(0, 30_000), st.integers(0, 30_000), st.integers(0, 2**32 - 1)), min_size=1, max_size=60).map(
        lambda steps: [int(t) % 2**32 for t in np.cumsum([2**32 - 400_000, *steps])]
    ),
    st.lists(st.one_of(st.integers(0, 2**32 - 1), st.integers(100, 9000), st.just(2**32 - 5)), min_size=1, max_size=40),
)


@settings(deadline=None)
@given(CLOCKS, st.sampled_from([20_000, 50_000, 333_333, 5_000_000, 2**32]))
def test_any_clock_equals_the_reference(tmp_path_factory: pytest.TempPathFactory, times: list[int], window_us: int) -> None:
    path = dat(tmp_path_factory.mktemp("dat") / "a.dat", times)
    stream = open_events(path)
    found = list(stream.windows(window_us))
    expected, faults = reference(times, window_us)
    assert [(w.t0_us, unpack(w)["t"].tolist()) for w in found if len(w)] == expected
    assert stream.faults == faults
    assert all(w.t1_us == w.t0_us + window_us and w.t0_us % window_us == 0 for w in found)
    steps = {after.t0_us - before.t0_us for before, after in itertools.pairwise(found)}
    assert all(step == window_us or step >= 600_000_000 for step in steps)


def test_a_corrupt_time_at_a_windows_end_is_no_wrap(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [10, 20, 3_000_000_000, 130, 140, 125, 230]), 100)
    assert found == [(0, [10, 20]), (100, [130, 140, 125]), (200, [230])]
    assert faults == {"time_glitches": 1}


def test_the_empty_windows_of_a_long_silence_are_left_out(tmp_path: Path) -> None:
    found, faults = window_times(dat(tmp_path / "a.dat", [10, 20, 3_000_000_000]), 100)
    assert found == [(0, [10, 20]), (3_000_000_000, [3_000_000_000])]
    assert faults == {"long_silences": 1}


@pytest.mark.parametrize("window_us", [0, -1, 2**32 + 1])
def test_windows_a_32_bit_clock_cannot_hold(tmp_path: Path, window_us: int) -> None:
    with pytest.raises(ValueError, match="window_us must be positive and at most"):
        next(open_events(dat(tmp_path / "a.dat", [1])).windows(window_us))


def assert_seeks(path: Path, window_us: int, start_us: int) -> dict[str, int]:
    """Windows from `start_us` on are those of the full pass that end after it; returns the faults found."""
    stream = DatFile(path)
    found = [(w.t0_us, unpack(w).tolist()) for w in stream.windows(window_us, start_us)]
    everything = [(w.t0_us, unpack(w).tolist()) for w in DatFile(path).windows(window_us)]
    assert found == [(t0, events) for t0, events in everything if t0 + window_us > start_us]
    return stream.faults.found()


@pytest.mark.parametrize("start_us", [-5, 0, 149, 150, 199, 200, 50_000, 50_099, 50_100, 10**12])
def test_windows_from_a_time_on(tmp_path: Path, start_us: int) -> None:
    assert_seeks(dat(tmp_path / "a.dat", [120, 199, 200, 450, 50_010, 50_000, 50_020]), 50, start_us)


@pytest.fixture(scope="module")
def over_two_wraps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, list[int]]]]:
    """2.8 hours, 100 events a second, some times corrupt, also of events that the search looks at; and all its windows."""
    times = np.arange(0, 10_000_000_000, 10_000)
    times[[3, 1000, 245, 245 * 2000, 245 * 2001, 429_496, 429_497, 900_000]] = [
        2**31 + 5,
        7,
        2**32 - 9,
        5,
        2**32 - 1,
        9,
        2**31,
        5,
    ]
    path = dat(tmp_path_factory.mktemp("wraps") / "a.dat", times.tolist())
    return path, [(w.t0_us, unpack(w)["t"].tolist()) for w in DatFile(path).windows(10_000_000)]


@pytest.mark.parametrize("start_s", [0, 2000, 4290, 4294, 4295, 4300, 7000, 8589, 8590, 9000, 9999, 10_001])
def test_seeking_over_two_wraps_reads_little(
    over_two_wraps: tuple[Path, list[tuple[int, list[int]]]], start_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, everything = over_two_wraps
    stream = DatFile(path)
    read: list[int] = []
    monkeypatch.setattr(stream._mapped, "release_until", read.append)  # private: how much of the file was read
    found = [(w.t0_us, unpack(w)["t"].tolist()) for w in stream.windows(10_000_000, start_s * 1_000_000)]
    assert found == [(t0, ts) for t0, ts in everything if t0 + 10_000_000 > start_s * 1_000_000]
    assert not read or read[0] > start_s * 100 - 3000
    assert stream.faults.time_wraps == (2 if found else stream.faults.time_wraps)


unsteady_clock = st.lists(
    st.one_of(
        st.integers(0, 20_000),
        st.integers(-400_000, 20_000),  # disorder of less than a second
        st.integers(0, 900_000_000),  # up to 15 minutes of silence
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(
    steps=unsteady_clock,
    corrupt=st.dictionaries(st.integers(0, 60), st.integers(0, 2**32 - 1), max_size=2),
    window_us=st.sampled_from([7_000_000, 60_000_000]),
    where=st.floats(-0.1, 1.1),
    probes=st.sampled_from([2, 5, 20, 100]),
)
def test_seeking_equals_a_full_pass(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[int],
    corrupt: dict[int, int],
    window_us: int,
    where: float,
    probes: int,
) -> None:
    times = np.cumsum([3_000_000_000, *steps])
    start_us = int(times[0] + where * (times[-1] - times[0]))
    for i, t in corrupt.items():
        times[i % len(times)] = t
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evburst.data.readers.dat.SEEK_PROBES", probes)
        assert_seeks(dat(tmp_path_factory.mktemp("dat") / "a.dat", times.tolist()), window_us, start_us)


@pytest.mark.shared
def test_real_gen1_recording() -> None:
    stream = open_events(SHARED / "real" / "gen1_street_td.dat")
    assert stream.sensor_size == (304, 240)
    windows = list(stream.windows(50_000))
    assert sum(map(len, windows)) == 1_018_739
    assert (windows[0].t0_us, windows[-1].t1_us, len(windows)) == (0, 750_000, 15)
    assert stream.faults.found() == {}


@pytest.mark.shared
def test_real_ncars_recordings_have_no_size_in_their_header() -> None:
    path = SHARED / "real" / "ncars_obj_004397_td.dat"
    with pytest.raises(SensorSizeError):
        open_events(path)
    assert sum(len(w) for w in open_events(path, SensorSize(120, 100)).windows(10_000)) > 4000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from /proc")
@pytest.mark.parametrize("behind", [0, 20])
def test_pages_already_read_are_given_back(tmp_path: Path, behind: int) -> None:
    """Resident file pages while passing twice over 160 MB stay far below it: a 10 GB recording needs no more.

    So they do if each window is read again when the reader is 20 windows (8 MB) ahead, as by threads that bin.
    """

    def resident_file_kb() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssFile")))

    times = np.repeat(np.arange(20_000, dtype="<u4") * 1000, 1000)
    words = np.stack([times, np.zeros_like(times)], 1)
    (tmp_path / "a.dat").write_bytes(HEADER + b"\x0c\x08" + words.tobytes())
    stream = open_events(tmp_path / "a.dat")
    next(stream.windows(50_000))
    before = resident_file_kb()
    for _ in range(2):
        waiting: deque[EventWindow] = deque()
        count = 0
        for window in stream.windows(50_000):
            waiting.append(window)
            if len(waiting) > behind:
                count += len(waiting[0]) + int(waiting.popleft().words[:, 1].sum())
        assert count + sum(map(len, waiting)) == len(times)
        assert resident_file_kb() - before < 40_000
