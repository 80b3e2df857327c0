"""Windows by duration and by count, against a plain restatement of the rules and against DatFile.windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.encoding import unpack
from evburst.data.errors import DataError
from evburst.data.events import EVENT_DTYPE, EventArray, Events, EventWindow, Faults, SensorSize, joined
from evburst.data.readers.dat import DatFile
from evburst.data.slicing import clock_runs, live_windows, overlapping, windows_by_count, windows_by_duration
from evburst.data.writers import write_events
from tests.conftest import random_events

SIZE = SensorSize(64, 48)


def events_at(times: list[int]) -> Events:
    """Events at these times, distinguished by x and y."""
    events = np.zeros(len(times), EVENT_DTYPE)
    events["t"] = times
    events["x"], events["y"] = np.arange(len(times)) % 64, np.arange(len(times)) // 64
    events["p"] = np.arange(len(times)) % 2
    return events


def cut(events: Events, length: int) -> Iterator[Events]:
    """The events in packets of `length`, an empty one first."""
    yield events[:0]
    for start in range(0, len(events), length):
        yield events[start : start + length]


def reference(times: list[int], window_us: int) -> tuple[list[tuple[int, list[int]]], Faults]:
    """[(t0, indices of the events)] and faults: the rules of `evburst.data.slicing`, word by word."""
    glitch = [any(t - later > 1_000_000 for later in times[i + 1 : i + 9]) for i, t in enumerate(times)]
    windows: list[tuple[int, list[int]]] = []
    late = glitches = silences = 0
    for i, t in enumerate(times):
        t0 = windows[-1][0] if windows else math.inf
        if windows and t < t0:
            late += 1
        elif glitch[i] and not t0 <= t < t0 + min(window_us, 1_000_000):
            glitches += 1
        elif not windows or t // window_us * window_us - (t0 + window_us) >= 600_000_000:
            silences += bool(windows)
            windows.append((t // window_us * window_us, [i]))
        else:
            while t >= windows[-1][0] + window_us:
                windows.append((windows[-1][0] + window_us, []))
            windows[-1][1].append(i)
    return windows, Faults(late_events=late, time_glitches=glitches, long_silences=silences)


def assert_windows(windows: list[EventWindow], expected: list[tuple[int, list[int]]], events: Events, window_us: int) -> None:
    assert [(w.t0_us, w.t1_us) for w in windows] == [(t0, t0 + window_us) for t0, _ in expected]
    for window, (_, indices) in zip(windows, expected, strict=True):
        np.testing.assert_array_equal(window.words, events[indices])


CASES = [
    # an event on the border belongs to the later window
    ("border", [0, 999, 1000, 2000], 1000, [(0, [0, 1]), (1000, [2]), (2000, [3])], 0, 0),
    # the first window is the first event's, on a multiple of the length
    ("first", [5400], 1000, [(5000, [0])], 0, 0),
    # windows without events are windows
    ("empty windows", [10, 3010], 1000, [(0, [0]), (1000, []), (2000, []), (3000, [1])], 0, 0),
    ("disorder inside a window", [1500, 1900, 1200, 1700], 1000, [(1000, [0, 1, 2, 3])], 0, 0),
    ("late", [1500, 2100, 1999, 2200], 1000, [(1000, [0]), (2000, [1, 3])], 1, 0),
    # a leap of more than a second that the next event takes back
    ("glitch", [100, 9_000_000, 200], 1000, [(0, [0, 2])], 0, 1),
    # the same leap that nothing takes back is time that passed
    ("gap", [100, 2_000_100], 1_000_000, [(0, [0]), (1_000_000, []), (2_000_000, [1])], 0, 0),
    ("glitch first", [9_000_000, 100, 200], 1000, [(0, [1, 2])], 0, 1),
    # the first of nine leaps is taken back only by the ninth event after it, which is too far to tell
    ("nine leaps", [0, *[5_000_000] * 9, 1], 5_000_000, [(0, [0]), (5_000_000, list(range(1, 10)))], 1, 0),
    # a time that falls costs itself, not the eight events before it
    ("fall", [*[5_000_000] * 9, 3, 5_000_002], 1000, [(5_000_000, [*range(9), 10])], 1, 0),
    ("one timestamp", [7, 7, 7], 10, [(0, [0, 1, 2])], 0, 0),
    ("times before zero", [-1500, -10, 5], 1000, [(-2000, [0]), (-1000, [1]), (0, [2])], 0, 0),
    ("nothing", [], 1000, [], 0, 0),
]


@pytest.mark.parametrize("packet_events", [1, 3, 100])
@pytest.mark.parametrize(
    ("times", "window_us", "expected", "late", "glitches"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_rules_for_times(
    times: list[int], window_us: int, expected: list[tuple[int, list[int]]], late: int, glitches: int, packet_events: int
) -> None:
    events, faults = events_at(times), Faults()
    windows = list(windows_by_duration(cut(events, packet_events), window_us, faults))
    assert_windows(windows, expected, events, window_us)
    assert (faults.late_events, faults.time_glitches) == (late, glitches)


unsteady = st.lists(
    st.one_of(
        st.integers(0, 3000),
        st.integers(-3000, 50),  # small steps back
        st.integers(-2_500_000, 2_500_000),  # leaps, taken back or not
    ),
    max_size=60,
)


@settings(deadline=None)
@given(steps=unsteady, window_us=st.sampled_from([2000, 20_000, 1_000_000, 3_000_000]), packet_events=st.integers(1, 70))
def test_equals_the_reference_on_unsteady_time(steps: list[int], window_us: int, packet_events: int) -> None:
    times = [int(t) for t in np.cumsum(steps)]
    events, faults = events_at(times), Faults()
    windows = list(windows_by_duration(cut(events, packet_events), window_us, faults))
    expected, found = reference(times, window_us)
    assert_windows(windows, expected, events, window_us)
    assert faults == found


@settings(deadline=None)
@given(steps=unsteady, window_us=st.sampled_from([2000, 20_000, 1_000_000]), packet_events=st.integers(1, 70))
def test_equals_dat_windows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], window_us: int, packet_events: int
) -> None:
    """The same events from a DAT file and through the slicer: the same windows and the same counts."""
    times = [int(t) for t in 40_000_000 + np.cumsum([0, *steps])]
    if min(times) < 0:
        return
    events, faults = events_at(times), Faults()
    path = tmp_path_factory.mktemp("dat") / "events.dat"
    write_events(path, events, SIZE)
    recording = DatFile(path)
    from_dat = list(recording.windows(window_us))
    from_packets = list(windows_by_duration(cut(events, packet_events), window_us, faults))
    assert [(w.t0_us, w.t1_us) for w in from_packets] == [(w.t0_us, w.t1_us) for w in from_dat]
    for ours, theirs in zip(from_packets, from_dat, strict=True):
        np.testing.assert_array_equal(ours.words, unpack(theirs))
    assert faults == recording.faults


@pytest.mark.parametrize("t", [601_000_000, 2**62, 1_674_050_002_090_794])
def test_the_empty_windows_of_a_long_silence_are_left_out(t: int) -> None:
    """Nothing takes the last time back; at 50 ms, a time of 2**62 would mean 10**14 windows."""
    faults = Faults()
    windows = list(windows_by_duration([events_at([10, 20, t])], 1000, faults))
    assert [(w.t0_us, len(w)) for w in windows] == [(0, 2), (t // 1000 * 1000, 1)]
    assert faults.found() == {"long_silences": 1}


def test_ten_minutes_of_silence_are_long() -> None:
    faults = Faults()
    minute = 60_000_000
    assert len(list(windows_by_duration([events_at([0, 10 * minute])], minute, faults))) == 11
    assert faults.found() == {}
    assert len(list(windows_by_duration([events_at([0, 11 * minute])], minute, faults))) == 2
    assert faults.found() == {"long_silences": 1}


def test_sorted_events_are_cut_by_their_times() -> None:
    rng = np.random.default_rng(0)
    events = events_at(sorted(rng.integers(0, 300_000, 5000).tolist()))
    starts = range(0, int(events["t"][-1]) + 1, 7000)
    for ours, t0_us in zip(windows_by_duration(cut(events, 333), 7000, Faults()), starts, strict=True):
        first, last = np.searchsorted(events["t"], [t0_us, t0_us + 7000])
        assert (ours.t0_us, ours.t1_us) == (t0_us, t0_us + 7000)
        np.testing.assert_array_equal(ours.words, events[first:last])


def test_events_in_memory_skip_a_long_silence_as_well() -> None:
    """One zero before absolute times would otherwise mean 10**10 windows."""
    array = EventArray(events_at([0, 1_674_050_002_090_794]), SIZE)
    assert [(w.t0_us, len(w)) for w in array.windows(50_000)] == [(0, 1), (1_674_050_002_050_000, 1)]
    assert array.faults.found() == {"long_silences": 1}


def test_packets_are_read_only_as_far_as_a_window_needs() -> None:
    """Memory is bounded by a window's events: the packet after the next window's first eight events is not asked for."""
    asked = []

    def packets() -> Iterator[Events]:
        for k in range(100):
            asked.append(k)
            yield events_at([1000 * k + j for j in range(20)])

    windows = windows_by_duration(packets(), 1000, Faults())
    assert len(next(windows)) == 20
    assert asked == [0, 1]


@pytest.mark.parametrize("window_us", [0, -1])
def test_length_must_be_positive(window_us: int) -> None:
    with pytest.raises(ValueError, match="window_us must be positive"):
        next(windows_by_duration([events_at([1])], window_us, Faults()))
    with pytest.raises(ValueError, match="n_events must be positive"):
        next(windows_by_count(EventArray(events_at([1]), SIZE), window_us))


@pytest.mark.parametrize("packet_events", [1, 4, 5, 7, 100])
def test_windows_by_count(packet_events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evburst.data.events.PACKET_EVENTS", packet_events)
    events = events_at([10, 11, 12, 12, 12, 12, 20, 30, 31, 40, 41])
    windows = list(windows_by_count(EventArray(events, SIZE), 5))
    assert [len(w) for w in windows] == [5, 5, 1]
    assert [(w.t0_us, w.t1_us) for w in windows] == [(10, 13), (12, 41), (41, 42)]
    np.testing.assert_array_equal(np.concatenate([w.words for w in windows]), events)


def test_windows_by_count_without_a_rest_and_without_events() -> None:
    assert [len(w) for w in windows_by_count(EventArray(events_at([1, 2, 3, 4]), SIZE), 2)] == [2, 2]
    assert list(windows_by_count(EventArray(events_at([]), SIZE), 3)) == []


def test_windows_by_count_span_disordered_events() -> None:
    """A representation bins by [t0, t1): every event of the window lies inside."""
    (window,) = windows_by_count(EventArray(events_at([20, 10, 30, 25]), SIZE), 4)
    assert (window.t0_us, window.t1_us) == (10, 31)


@pytest.mark.parametrize("packet_events", [1, 3, 100])
def test_windows_by_count_end_before_a_long_silence(packet_events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evburst.data.events.PACKET_EVENTS", packet_events)
    hour = 3_600_000_000
    runs = [list(range(7)), [hour + k for k in range(3)], [2 * hour + k for k in range(11)], [3 * hour]]
    stream = EventArray(events_at([t for run in runs for t in run]), SIZE)
    windows = list(windows_by_count(stream, 5))
    assert [(w.t0_us, len(w)) for w in windows] == [
        *[(0, 5), (5, 2), (hour, 3)],
        *[(2 * hour, 5), (2 * hour + 5, 5), (2 * hour + 10, 1), (3 * hour, 1)],
    ]
    assert stream.faults == Faults(long_silences=3)


def test_windows_by_count_begin_at_a_time() -> None:
    events = events_at(list(range(100)))
    windows = list(windows_by_count(EventArray(events, SIZE), 10, start_us=35))
    assert [(w.t0_us, w.t1_us) for w in windows][:2] == [(35, 45), (45, 55)]
    assert sum(len(w) for w in windows) == 65


def test_windows_by_count_leave_out_faulty_times() -> None:
    """A time that leaps years ahead, and an event older than all of the window before."""
    t = list(range(0, 4000, 100))
    t[7], t[25] = 10**15, 50
    stream = EventArray(events_at(t), SIZE)
    windows = list(windows_by_count(stream, 10))
    assert [len(w) for w in windows] == [10, 10, 10, 8]
    assert stream.faults.found() == {"time_glitches": 1, "late_events": 1}
    assert windows[-1].t1_us == 3901


@pytest.mark.parametrize("packet_events", [1, 9, 64, 1000])
def test_windows_by_count_do_not_depend_on_packets(packet_events: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    t = np.sort(rng.integers(0, 30_000_000, 500))
    t[rng.integers(0, 500, 5)] += 10**12
    t[rng.integers(0, 500, 5)] -= 5_000_000
    whole = list(windows_by_count(EventArray(events_at(t), SIZE), 37))
    monkeypatch.setattr("evburst.data.events.PACKET_EVENTS", packet_events)
    parts = list(windows_by_count(EventArray(events_at(t), SIZE), 37))
    assert [(w.t0_us, w.t1_us) for w in parts] == [(w.t0_us, w.t1_us) for w in whole]
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(a.words, b.words)


@settings(deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=60), st.integers(1, 5))
def test_overlapping_windows_hold_what_their_length_covers(times: list[int], parts: int) -> None:
    events = events_at(sorted(times))
    stream = EventArray(events, SIZE)
    for window in overlapping(stream.windows(100), 100 * parts):
        expected = events[(events["t"] >= window.t0_us) & (events["t"] < window.t1_us)]
        assert window.t1_us - window.t0_us == 100 * parts
        assert window.t1_us % 100 == 0
        np.testing.assert_array_equal(window.words, expected)


# Sources that are read as they arrive


@pytest.mark.parametrize("packet_events", [1, 7, 1000])
def test_windows_of_a_live_source_continue_after_its_clock_was_reset(
    packet_events: int, caplog: pytest.LogCaptureFixture
) -> None:
    first = [9_000_000 + 100 * k for k in range(30)]
    first[5] += 10**9  # a single time that is wrong
    first[20] -= 5_000_000
    first[22] -= 900  # disorder
    second = [2_000_000 + 100 * k for k in range(30)]
    events, faults = events_at(first + second), Faults()
    windows = list(live_windows(cut(events, packet_events), 1000, faults))
    assert [(w.t0_us, len(w)) for w in windows] == [
        (9_000_000, 9), (9_001_000, 10), (9_002_000, 8), (2_000_000, 10), (2_001_000, 10), (2_002_000, 10)
    ]  # fmt: skip
    assert faults.found() == {"late_events": 2, "time_glitches": 1, "clock_resets": 1}
    assert caplog.messages == ["the clock of the source jumped back by 7.0 s: windows continue at its new time"]
    # A file is read as before: it can be entered at any time, which must be unique.
    windows = list(windows_by_duration(cut(events, packet_events), 1000, Faults()))
    assert [w.t0_us for w in windows] == [9_000_000, 9_001_000, 9_002_000]


def test_windows_by_count_of_a_live_source_continue_after_its_clock_was_reset() -> None:
    times = [9_000_000 + k for k in range(15)] + list(range(20))
    found = [(w.t0_us, len(w)) for w in windows_by_count(EventArray(events_at(times), SIZE, finite=False), 10)]
    assert found == [(9_000_000, 10), (9_000_010, 5), (0, 10), (10, 10)]


@settings(deadline=None)
@given(st.lists(st.sampled_from([0, 1_000_000, 1_000_001, 2_000_002, 5_000_000]), max_size=60), st.integers(1, 30))
def test_runs_of_a_clock_end_where_nine_events_are_far_older(times: list[int], packet_events: int) -> None:
    t = [time for time in times for _ in range(4)]
    ends, latest = [], -math.inf
    for i, time in enumerate(t):
        later = t[i : i + 9]
        if len(later) == 9 and latest - max(later) > 1_000_000:
            ends.append(i)
            latest = -math.inf
        if time > latest and all(time - other <= 1_000_000 for other in later):
            latest = time
    runs = [[int(u) for events in run for u in events["t"]] for run in clock_runs(cut(events_at(t), packet_events), Faults())]
    borders = [0, *ends, len(t)]
    assert runs == [t[i:k] for i, k in pairwise(borders) if i < k]


def test_overlapping_windows_do_not_join_what_lies_before_a_reset() -> None:
    windows = [EventWindow(t0, t0 + 100, events_at([t0])) for t0 in (900, 1000, 0, 100)]
    assert [w.words["t"].tolist() for w in overlapping(iter(windows), 200)] == [[900], [900, 1000], [0], [0, 100]]


@pytest.mark.parametrize(
    "packet",
    [
        np.zeros(20, [("t", ">i8"), ("x", ">u2"), ("y", ">u2"), ("p", "u1")]),
        np.zeros(20, [("t", "<i8"), ("y", "<u2"), ("x", "<u2"), ("p", "u1")]),
        np.zeros((20, 1), EVENT_DTYPE),
        np.zeros((20, 4), np.int64),
        [(0, 1, 2, 1)],
    ],
    ids=["big-endian", "another order", "two dimensions", "numbers", "list"],
)
def test_packets_of_another_form_are_refused(packet: Events) -> None:
    """Those of 13 bytes per event would be read as something else."""
    with pytest.raises(DataError, match="as_events makes one"):
        list(windows_by_duration([packet], 1000, Faults()))
    with pytest.raises(DataError, match="as_events makes one"):
        list(clock_runs([packet], Faults()))


def test_events_are_joined_as_numpy_would_and_a_single_part_is_not_copied() -> None:
    events = random_events(300, SensorSize(32, 24), 50_000)
    parts = [events[:100], events[:0], events[100::2]]
    assert np.array_equal(joined(parts), np.concatenate(parts))
    assert joined([events[:0], events]) is events
    assert joined([]).dtype == EVENT_DTYPE
