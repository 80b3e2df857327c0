"""Windows of events, by duration or by count, from packets of any length.

Windows by duration are half-open and start on multiples of their length: [k * window_us, (k + 1) * window_us). A dataset
whose labels lie elsewhere shifts them by a phase (evburst.data.random_access). They run from the window of the first sound
event to that of the last one, empty windows included. The empty windows of a silence of ten minutes or more are skipped
(`Faults.long_silences`), because a corrupt 64-bit time may lie a million years ahead. With window_us = 1000:

    packets    t = 1500 1900 | 1700 2000 | 4100
    windows    [1000, 2000): 1500 1900 1700    [2000, 3000): 2000    [3000, 4000): none    [4000, 5000): 4100

Faulty times are handled as in `evburst.data.readers.dat`, so that all formats behave the same:

- events may be out of order inside a window, and keep their order;
- an event older than the current window is dropped (`Faults.late_events`);
- an event beyond the current window, or beyond its first second, has a corrupt time if it is more than a second ahead of one
  of the next eight events; it is dropped (`Faults.time_glitches`).

An event is classified once the eight events after it are available, possibly from later packets. Memory holds one packet
and the events of one window.

A source that is read as it arrives (`EventStream.finite` is False) may reset its clock, for example when a camera is restarted
or a recording begins again. There, windows continue at the new time (`Faults.clock_resets`): see `clock_runs`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import dropwhile, groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import EVENT_DTYPE, Events, EventStream, EventWindow, Faults, joined

GLITCH_US = 1_000_000
GLITCH_EVENTS = 8
LONG_SILENCE_US = 600_000_000
MAX_START_S = 1e9
"""Latest start of a part of a recording, in seconds after its first event."""

_LOG = logging.getLogger(__name__)
_BEFORE_ALL = np.iinfo(np.int64).min // 2


class Mark(NamedTuple):
    """A sound event from which windows can be read: it lies at or after the start of a window, and no earlier one is as late.

    Attributes:
        number: its index in the recording, from 0.
        epoch_us: offset to add to its recorded time.
        t_us: its time, offset included.
    """

    number: int
    epoch_us: int
    t_us: int


def windows_by_duration(packets: Iterable[Events], window_us: int, faults: Faults, phase_us: int = 0) -> Iterator[EventWindow]:
    """Yield consecutive windows of `window_us`; see the module's docstring.

    Args:
        packets: EVENT_DTYPE arrays in file order, possibly empty; they must not be modified afterwards.
        window_us: length of a window in microseconds.
        faults: counters; `late_events`, `time_glitches` and `long_silences` are incremented.
        phase_us: windows start at phase_us + k * window_us.

    Raises:
        ValueError: window_us is not positive.
    """
    if window_us <= 0:
        raise ValueError(f"window_us must be positive, received {window_us}")
    t0: int | None = None
    parts: list[Events] = []
    for events, decided in _with_lookahead(packets):
        t, start = events["t"], 0
        if t0 is None:
            start = _first_sound(t, decided)
            faults.time_glitches += start
            if start == decided:
                continue
            t0 = window_start(int(t[start]), window_us, phase_us)
        keep = np.ones(decided, np.bool_)
        while start < decided:
            stop, late, glitches = _find_window_end(t, start, decided, t0, t0 + window_us, keep)
            faults.late_events += late
            faults.time_glitches += glitches
            parts.append(events[start:stop][keep[start:stop]] if late or glitches else events[start:stop])
            if stop < decided:
                yield EventWindow(t0, t0 + window_us, joined(parts))
                parts, t0 = [], next_start(t0 + window_us, int(t[stop]), window_us, phase_us, faults)
            start = stop
    if t0 is not None:
        yield EventWindow(t0, t0 + window_us, joined(parts))


def live_windows(packets: Iterable[Events], window_us: int, faults: Faults) -> Iterator[EventWindow]:
    """Yield the windows of a source that is read as it arrives: those of `windows_by_duration`, for every run of its clock."""
    for run in clock_runs(packets, faults):
        yield from windows_by_duration(run, window_us, faults)


def clock_runs(packets: Iterable[Events], faults: Faults) -> Iterator[Iterator[Events]]:
    """Split packets where their clock is reset: yield the packets of one run of the clock after the other.

    The clock is reset if nine consecutive events are more than a second older than a sound one before them. Smaller steps back
    are disorder. The runs must be read in order, each to its end.
    """
    for _, run in groupby(_numbered(packets, faults), itemgetter(0)):
        yield (events for _, events in run)


class ClockWatch:
    """Finds resets of a clock, by the rule of `clock_runs`, in packets that are not held back.

    Attributes:
        latest_us: latest sound time of the current run of the clock; None if there is none yet.
        undecided: `(n,)` times of the last eight events, of which later ones decide whether they are sound.
    """

    def __init__(self) -> None:
        self.undecided, self._latest = np.empty(0, np.int64), _BEFORE_ALL

    @property
    def latest_us(self) -> int | None:
        """See above."""
        return None if self._latest == _BEFORE_ALL else int(self._latest)

    def find(self, t: NDArray[np.int64], faults: Faults) -> int | None:
        """Return the index of the first event after the last reset, 0 if it lies in a packet before; None without a reset.

        Args:
            t: `(n,)` times of the next packet, in order of arrival.
            faults: counters; `clock_resets` is incremented.
        """
        times, begin = np.concatenate([self.undecided, t]), None
        start, decided = 0, max(len(times) - GLITCH_EVENTS, 0)
        while start < decided:
            start, self._latest = _find_reset(times, start, decided, self._latest)
            if start < decided:
                count_reset(faults, int(self._latest - times[start]))
                begin, self._latest = max(start - len(self.undecided), 0), _BEFORE_ALL
        self.undecided = times[decided:]
        return begin


def count_reset(faults: Faults, back_us: int) -> None:
    """Count a reset of a live source's clock, which has jumped back by `back_us`, and log a warning."""
    faults.clock_resets += 1
    _LOG.warning("the clock of the source jumped back by %.1f s: windows continue at its new time", back_us * 1e-6)


def windows_from(windows: Iterator[EventWindow], start_us: int | None) -> Iterator[EventWindow]:
    """Yield the windows that end after `start_us`; all of them for None."""
    return windows if start_us is None else dropwhile(lambda window: window.t1_us <= start_us, windows)


def overlapping(windows: Iterator[EventWindow], length_us: int) -> Iterator[EventWindow]:
    """Join consecutive short windows to long ones: the `length_us` up to the end of each, in EVENT_DTYPE.

    Args:
        windows: of one length, of which `length_us` is a multiple; at the beginning there is less to join.
        length_us: length of the windows to yield.
    """
    parts = deque[tuple[int, Events]]()
    for window in windows:
        if parts and window.t0_us < parts[-1][0]:
            parts.clear()  # the clock was reset
        parts.append((window.t0_us, unpack(window)))
        begin_us = window.t1_us - length_us
        while parts[0][0] < begin_us:
            parts.popleft()
        yield EventWindow(begin_us, window.t1_us, joined(events for _, events in parts))


def windows_by_count(stream: EventStream, n_events: int, start_us: int | None = None) -> Iterator[EventWindow]:
    """Yield consecutive windows of `n_events` events in stream order; the last one may hold fewer, but is never empty.

    A window spans [its earliest t, its latest t + 1), in sorted events the times of the first and the last one. It ends before
    a silence of ten minutes or more, also with fewer events, which is counted (`Faults.long_silences`). Two windows
    overlap if events with the same timestamp are split between them. Faulty times follow the rules above, where an event is
    late if it is older than the latest one of the window before.

    Args:
        stream: its `faults` are added to.
        n_events: events of a window.
        start_us: leave out the events before this time.

    Raises:
        ValueError: n_events is not positive.
    """
    if n_events <= 0:
        raise ValueError(f"n_events must be positive, received {n_events}")
    packets = (packet if start_us is None else packet[packet["t"] >= start_us] for packet in stream.packets())
    for run in [packets] if stream.finite else clock_runs(packets, stream.faults):
        yield from _windows_by_count(run, n_events, stream.faults)


def _windows_by_count(packets: Iterable[Events], n_events: int, faults: Faults) -> Iterator[EventWindow]:
    parts: list[Events] = []
    floor = latest = _BEFORE_ALL
    missing = n_events
    for events, decided in _with_lookahead(packets):
        t, start = events["t"], 0
        keep = np.ones(decided, np.bool_)
        while start < decided:
            before = latest
            stop, taken, latest, late, glitches = _find_count_end(t, start, decided, missing, floor, latest, keep)
            faults.late_events += late
            faults.time_glitches += glitches
            part = events[start:stop][keep[start:stop]] if late or glitches else events[start:stop]
            start, missing = stop, missing - taken
            first, *others = np.split(part, _ends_of_long_silences(part["t"], before))
            parts.append(first)
            for piece in others:
                faults.long_silences += 1
                if len(whole := joined(parts)):
                    window = _spanning(whole)
                    yield window
                    floor = window.t1_us - 1
                parts, missing = [piece], n_events - len(piece)
            if missing == 0:
                yield _spanning(joined(parts))
                parts, missing, floor = [], n_events, latest
    if n_events > missing:
        yield _spanning(joined(parts))


def _ends_of_long_silences(t: NDArray[np.int64], latest: int) -> NDArray[np.intp]:
    """Return the indices in `t`, the times of events that follow one at `latest`, of those before which none was for long."""
    begin = int(t[0]) if len(t) and latest == _BEFORE_ALL else latest
    if not len(t) or int(t.max()) - begin < LONG_SILENCE_US:
        return np.empty(0, np.intp)
    before = np.maximum.accumulate(np.concatenate([[begin], t[:-1]]))
    return np.flatnonzero(t - before >= LONG_SILENCE_US)


def window_start(t_us: int, window_us: int, phase_us: int = 0) -> int:
    """Return the start of the window that contains t_us, where windows start at phase_us + k * window_us."""
    return (t_us - phase_us) // window_us * window_us + phase_us


def next_start(t1_us: int, next_us: int, window_us: int, phase_us: int, faults: Faults) -> int:
    """Return the start of the window after one ending at t1_us: t1_us, or that of the event at next_us after a long silence."""
    after = window_start(next_us, window_us, phase_us)
    if after - t1_us < LONG_SILENCE_US:
        return t1_us
    faults.long_silences += 1
    return after


def first_sound_us(t: NDArray[np.int64]) -> int:
    """Return the first time of a recording that is sound, among its first ones `(n,)` in file order, n > 0."""
    return int(t[_first_sound(t, len(t))])


def first_us(stream: EventStream) -> int | None:
    """Return the time of a stream's first sound event, or None if it has none; its `faults` stay as they are.

    Raises:
        ConfigError: the stream can be read only once, so that its first events would be lost.
    """
    if not stream.finite:
        name = getattr(stream, "path", "the stream")
        raise ConfigError(
            f"{name}: can only be read once, and a start in seconds after the first event needs its first time: "
            "save it to a file first, or leave the start out"
        )
    before = replace(stream.faults)
    packet = next(stream.packets(), None)
    vars(stream.faults).update(vars(before))
    return None if packet is None else first_sound_us(packet["t"])


def find_marks(t: NDArray[np.int64], min_events: int, min_us: int) -> tuple[list[Mark], int]:
    """Find the marks of a recording whose times `(n,)` are in memory, and its latest sound time.

    Args:
        t: times in file order, n > 0.
        min_events, min_us: minimum distance of two marks; one of the two suffices.
    """
    found, latest = _find_marks(t, min_events, min_us)
    return [Mark(int(i), 0, int(t[i])) for i in found], int(latest)


def _with_lookahead(packets: Iterable[Events]) -> Iterator[tuple[Events, int]]:
    """Yield (events, number of them that can be classified); the last eight are carried over to the next packet, if any."""
    held = np.empty(0, EVENT_DTYPE)
    for packet in packets:
        if not isinstance(packet, np.ndarray) or packet.dtype != EVENT_DTYPE or packet.ndim != 1:
            kind = f"an array {packet.shape} of {packet.dtype}" if isinstance(packet, np.ndarray) else type(packet).__name__
            raise DataError(
                f"a packet of events is {kind}; expected a one-dimensional array of evburst.data.events.EVENT_DTYPE: "
                "evburst.data.arrays.as_events makes one"
            )
        events = joined([held, packet])
        decided = max(len(events) - GLITCH_EVENTS, 0)
        if decided:
            yield events, decided
        held = events[decided:].copy()
    if len(held):
        yield held, len(held)


def _numbered(packets: Iterable[Events], faults: Faults) -> Iterator[tuple[int, Events]]:
    """Yield (number of resets of the clock before them, events)."""
    number, latest = 0, _BEFORE_ALL
    for events, decided in _with_lookahead(packets):
        t, start = events["t"], 0
        while start < decided:
            stop, latest = _find_reset(t, start, decided, latest)
            if stop > start:
                yield number, events[start:stop]
            if stop < decided:
                count_reset(faults, int(latest - t[stop]))
                number, latest = number + 1, _BEFORE_ALL
            start = stop


def _spanning(events: Events) -> EventWindow:
    return EventWindow(int(events["t"].min()), int(events["t"].max()) + 1, events)


@njit(cache=True, nogil=True)
def _is_glitch(t, i):  # type: ignore[no-untyped-def]
    """Return whether event i is more than GLITCH_US ahead of one of the next GLITCH_EVENTS events."""
    for k in range(i + 1, min(i + 1 + GLITCH_EVENTS, len(t))):  # noqa: SIM110  (numba has no any() of a generator)
        if t[i] - t[k] > GLITCH_US:
            return True
    return False


@njit(cache=True, nogil=True)
def _find_reset(t, start, decided, latest):  # type: ignore[no-untyped-def]
    """Return (index of the first event of nine that are all more than GLITCH_US older than a sound one, latest sound time)."""
    for i in range(start, decided):
        if t[i] > latest:
            if not _is_glitch(t, i):
                latest = t[i]
            continue
        nine = t[i : i + GLITCH_EVENTS + 1]
        if latest - t[i] > GLITCH_US and len(nine) > GLITCH_EVENTS and latest - nine.max() > GLITCH_US:
            return i, latest
    return decided, latest


@njit(cache=True, nogil=True)
def _first_sound(t, decided):  # type: ignore[no-untyped-def]
    """Return the index of the first event with a sound time, or `decided` if there is none."""
    for i in range(decided):
        if not _is_glitch(t, i):
            return i
    return decided


@njit(cache=True, nogil=True)
def _find_marks(t, min_events, min_us):  # type: ignore[no-untyped-def]
    """Return (indices of marks, latest sound time)."""
    found = [_first_sound(t, len(t))]
    latest = t[found[0]]
    for i in range(found[0] + 1, len(t)):
        if t[i] > latest and not _is_glitch(t, i):
            latest = t[i]
            if i - found[-1] >= min_events or latest - t[found[-1]] >= min_us:
                found.append(i)
    return np.array(found), latest


@njit(cache=True, nogil=True)
def _find_window_end(t, start, decided, t0, t1, keep):  # type: ignore[no-untyped-def]
    """Return (index of the first sound event at or after t1, late events, glitches); clears `keep` for the latter two."""
    late, glitches = 0, 0
    trusted_until = min(t1, t0 + GLITCH_US)
    for i in range(start, decided):
        if t[i] < t0:
            late += 1
            keep[i] = False
        elif t[i] >= trusted_until and _is_glitch(t, i):
            glitches += 1
            keep[i] = False
        elif t[i] >= t1:
            return i, late, glitches
    return decided, late, glitches


@njit(cache=True, nogil=True)
def _find_count_end(t, start, decided, missing, floor, latest, keep):  # type: ignore[no-untyped-def]
    """(end index, events taken, latest time, late events, glitches) of `missing` events; clears `keep` for the last two."""
    taken, late, glitches = 0, 0, 0
    for i in range(start, decided):
        if t[i] < floor:
            late += 1
            keep[i] = False
        elif t[i] > latest + GLITCH_US and _is_glitch(t, i):
            glitches += 1
            keep[i] = False
        else:
            latest = max(latest, t[i])
            taken += 1
            if taken == missing:
                return i + 1, taken, latest, late, glitches
    return decided, taken, latest, late, glitches
