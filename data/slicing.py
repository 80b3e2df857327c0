"""Windows of events, by duration or by count, from packets of any length.

Windows by duration are half-open and lie on multiples of their length: [k * window_us, (k + 1) * window_us); a data set whose
labels lie elsewhere shifts them by a phase (evburst.data.random_access). They run from
the one with the first sound event to the last one's, empty windows included; of a silence of ten minutes or more they are
left out (`Faults.long_silences`), because a corrupt 64-bit time may lie a million years ahead. With window_us = 1000:

    packets    t = 1500 1900 | 1700 2000 | 4100
    windows    [1000, 2000): 1500 1900 1700    [2000, 3000): 2000    [3000, 4000): none    [4000, 5000): 4100

The rules for faulty times are those of `evburst.data.readers.dat`, so that every format behaves alike:

- disorder inside a window does no harm, and events keep the order they came in;
- an event older than the window being read is left out (`Faults.late_events`);
- an event beyond the window being read, or beyond its first second, is a corrupt time if it is more than a second ahead of
  one of its next eight, and left out (`Faults.time_glitches`).

An event is decided on once the eight after it are there, whichever packets they lie in. Memory holds one packet and the
events of one window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import dropwhile
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.events import EVENT_DTYPE, Events, EventStream, EventWindow, Faults

GLITCH_US = 1_000_000
GLITCH_EVENTS = 8
LONG_SILENCE_US = 600_000_000

_PLAIN = np.dtype((np.void, EVENT_DTYPE.itemsize))


class Mark(NamedTuple):
    """A sound event at or after the start of some window, before which no sound event is as late: windows can be read from it.

    Attributes:
        number: its place in the recording, from 0.
        epoch_us: what its recorded time has to be added to.
        t_us: its time.
    """

    number: int
    epoch_us: int
    t_us: int


def windows_by_duration(packets: Iterable[Events], window_us: int, faults: Faults, phase_us: int = 0) -> Iterator[EventWindow]:
    """Consecutive windows of `window_us`, see above.

    Args:
        packets: EVENT_DTYPE arrays in file order, empty ones allowed; they must not be written to afterwards.
        window_us: length of a window in microseconds.
        faults: `late_events`, `time_glitches` and `long_silences` are added to.
        phase_us: windows lie on phase_us + k * window_us.

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
                yield EventWindow(t0, t0 + window_us, _joined(parts))
                parts, t0 = [], next_start(t0 + window_us, int(t[stop]), window_us, phase_us, faults)
            start = stop
    if t0 is not None:
        yield EventWindow(t0, t0 + window_us, _joined(parts))


def windows_from(windows: Iterator[EventWindow], start_us: int | None) -> Iterator[EventWindow]:
    """The windows that end after `start_us`; None for all."""
    return windows if start_us is None else dropwhile(lambda window: window.t1_us <= start_us, windows)


def windows_by_count(stream: EventStream, n_events: int) -> Iterator[EventWindow]:
    """Consecutive windows of `n_events` events of a stream, in the order of its packets; the last one holds what is left, and is never empty.

    A window spans [its earliest t, its latest t + 1), which for sorted events is the first and the last one's; two
    windows overlap where events with one timestamp are split between them.

    Raises:
        ValueError: n_events is not positive.
    """
    if n_events <= 0:
        raise ValueError(f"n_events must be positive, received {n_events}")
    parts: list[Events] = []
    missing = n_events
    for packet in stream.packets():
        start = 0
        while start < len(packet):
            part = packet[start : start + missing]
            parts.append(part)
            start += len(part)
            missing -= len(part)
            if missing == 0:
                yield _spanning(_joined(parts))
                parts, missing = [], n_events
    if parts:
        yield _spanning(_joined(parts))


def window_start(t_us: int, window_us: int, phase_us: int = 0) -> int:
    """Start of the window on phase_us + k * window_us that holds t_us."""
    return (t_us - phase_us) // window_us * window_us + phase_us


def next_start(t1_us: int, next_us: int, window_us: int, phase_us: int, faults: Faults) -> int:
    """Start of the window after one that ends at t1_us, the next sound event being at next_us: t1_us, or after a long silence."""
    after = window_start(next_us, window_us, phase_us)
    if after - t1_us < LONG_SILENCE_US:
        return t1_us
    faults.long_silences += 1
    return after


def find_marks(t: NDArray[np.int64], least_events: int, least_us: int) -> tuple[list[Mark], int]:
    """Marks of a recording whose times `(n,)` are held in memory, and the latest sound time.

    Args:
        t: times in file order, n > 0.
        least_events, least_us: two marks are at least this many events, or this much time, apart.
    """
    found, latest = _find_marks(t, least_events, least_us)
    return [Mark(int(i), 0, int(t[i])) for i in found], int(latest)


def _with_lookahead(packets: Iterable[Events]) -> Iterator[tuple[Events, int]]:
    """(events, how many of them can be decided on): the last eight wait for the packet after, unless there is none."""
    held = np.empty(0, EVENT_DTYPE)
    for packet in packets:
        events = _joined([held, packet])
        decided = max(len(events) - GLITCH_EVENTS, 0)
        if decided:
            yield events, decided
        held = events[decided:].copy()
    if len(held):
        yield held, len(held)


def _joined(parts: list[Events]) -> Events:
    """The parts as one array: a part itself where the others are empty, else a copy."""
    parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        return parts[0] if parts else np.empty(0, EVENT_DTYPE)
    # NumPy copies structured arrays field by field; as plain bytes the same copy takes a thirtieth of the time.
    return np.concatenate([part.view(_PLAIN) for part in parts]).view(EVENT_DTYPE)


def _spanning(events: Events) -> EventWindow:
    return EventWindow(int(events["t"].min()), int(events["t"].max()) + 1, events)


@njit(cache=True, nogil=True)
def _is_glitch(t, i):  # type: ignore[no-untyped-def]
    """Whether event i is more than GLITCH_US ahead of one of its next GLITCH_EVENTS."""
    for k in range(i + 1, min(i + 1 + GLITCH_EVENTS, len(t))):  # noqa: SIM110  (numba has no any() of a generator)
        if t[i] - t[k] > GLITCH_US:
            return True
    return False


@njit(cache=True, nogil=True)
def _first_sound(t, decided):  # type: ignore[no-untyped-def]
    """Index of the first event whose time can be trusted; `decided` where there is none."""
    for i in range(decided):
        if not _is_glitch(t, i):
            return i
    return decided


@njit(cache=True, nogil=True)
def _find_marks(t, least_events, least_us):  # type: ignore[no-untyped-def]
    """(indices of marks, latest sound time)."""
    found = [_first_sound(t, len(t))]
    latest = t[found[0]]
    for i in range(found[0] + 1, len(t)):
        if t[i] > latest and not _is_glitch(t, i):
            latest = t[i]
            if i - found[-1] >= least_events or latest - t[found[-1]] >= least_us:
                found.append(i)
    return np.array(found), latest


@njit(cache=True, nogil=True)
def _find_window_end(t, start, decided, t0, t1, keep):  # type: ignore[no-untyped-def]
    """(index of the first sound event at or after t1, late events, glitches); clears `keep` for the last two."""
    late, glitches = 0, 0
    sure = min(t1, t0 + GLITCH_US)
    for i in range(start, decided):
        if t[i] < t0:
            late += 1
            keep[i] = False
        elif t[i] >= sure and _is_glitch(t, i):
            glitches += 1
            keep[i] = False
        elif t[i] >= t1:
            return i, late, glitches
    return decided, late, glitches
