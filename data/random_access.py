"""Random access to the windows of a finite recording, with the same repairs as a pass over it.

The window [t - w, t) of a label at time t holds what the stream's `windows(w)` would hold if its windows started at t + k * w
instead of k * w: the same late events and glitches are dropped, the same clock wraps are undone. With w = 50 ms:

    index_events(open_events("a.raw"), 50_000).window(1_234_567)    [1184567, 1234567)

The start of a window does not depend on what was read before: its first event is the first one at or after t - w whose time
is sound (evburst.data.slicing). So it can be read from any *mark* before it, a sound event that is later than all sound
events before it. One pass over the recording creates the index, and counts its faults once:

- a stream that can be read from a mark (DAT) stays on disk; its index is a list of marks, which is cached in a file;
- the events of other streams are held in memory, at most MAX_HELD_EVENTS of them;
- of a filtered stream, the events that pass the filters are held in memory. The output of a filter depends on all earlier
  events, so the filter sees the recording in windows [k * w, (k + 1) * w), and other windows are cut from what it keeps.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from evburst.data.encoding import columns, unpack
from evburst.data.errors import DataError, NoEventsError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, Events, EventStream, EventWindow, Faults, SensorSize, check_order, joined
from evburst.data.files import replacing
from evburst.data.filters import FilteredStream
from evburst.data.slicing import GLITCH_EVENTS, Mark, find_marks, windows_by_duration

MAX_HELD_EVENTS = 100_000_000
"""Maximum number of events of a recording held in memory, 1.3 GB; longer recordings must be .dat files, which stay on disk."""

MARK_EVENTS, MARK_WINDOWS = 1 << 14, 100
"""Minimum distance of two marks, in events or in windows; one of the two suffices."""

_Key = TypeVar("_Key", bound=Hashable)
_VERSION = 2


@runtime_checkable
class Markable(Protocol):
    """A stream that can be read from any mark."""

    def marked_windows(self, window_us: int) -> Iterator[tuple[Mark, EventWindow]]:
        """Yield the windows of `EventStream.windows`, each with the mark that it was read from; faults are counted."""
        ...

    def windows_after(self, mark: Mark, window_us: int, phase_us: int) -> Iterator[EventWindow]:
        """Yield windows on phase_us + k * window_us, starting with the one of the mark's event; faults are not counted."""
        ...


@runtime_checkable
class Skipping(Protocol):
    """A stream that finds a part of a recording without decoding what lies before and after it."""

    def packets_between(self, first_us: int, end_us: int) -> Iterator[Events]:
        """Yield packets that hold the events of [first_us, end_us), and others; of a recording whose time runs backwards by
        more than a second some may be missing. Faults are counted in what is read."""
        ...


class EventIndex(Protocol):
    """Random access to the windows of one recording, all of the same length.

    Attributes:
        faults: faults found by one pass over the recording, in windows on multiples of their length.
        first_us, end_us: time of the first sound event, and one microsecond after the last.
        events: number of events in that pass, without those that were dropped.
        held_events: number of events held in memory.
    """

    faults: Faults
    first_us: int
    end_us: int
    events: int
    held_events: int

    def window(self, end_us: int) -> EventWindow:
        """The window that ends at `end_us`; empty before the recording, after it, and in a long silence."""
        ...


class RecentIndices(Generic[_Key]):
    """The indices of the recordings that were used last.

    Args:
        most: largest number of indices.
        most_events: largest number of events that all of them hold together; the last one is kept even if it holds more.
    """

    def __init__(self, most: int, most_events: int) -> None:
        self._most, self._most_events = most, most_events
        self._indices: OrderedDict[_Key, EventIndex] = OrderedDict()

    def get(self, key: _Key, make: Callable[[], EventIndex]) -> EventIndex:
        """Return a recording's index, from memory if it is there, or else made now."""
        if key in self._indices:
            self._indices.move_to_end(key)
            return self._indices[key]
        index = self._indices[key] = make()
        while len(self._indices) > 1 and self._are_too_many():
            self._indices.popitem(last=False)
        return index

    def _are_too_many(self) -> bool:
        return len(self._indices) > self._most or sum(own.held_events for own in self._indices.values()) > self._most_events


def index_recording(
    name: str, open_stream: Callable[[], EventStream], sensor_size: SensorSize, window_us: int, file: Path | None = None
) -> EventIndex:
    """Open one recording of a data set and return the index of its windows.

    Args:
        name: name of the recording, for errors.
        open_stream: opens it.
        sensor_size: (W, H) px of the data set.
        window_us, file: see `index_events`.

    Raises:
        SensorSizeError: the recording is of another sensor.
        EventFileError: it cannot be read, or is not in order of time (NoEventsError: it contains no event).
        DataError: see `index_events`.
    """
    try:
        stream = open_stream()
        if stream.sensor_size != sensor_size:
            raise SensorSizeError(
                f"{name}: a {stream.sensor_size} sensor among recordings of {sensor_size}: use one folder per sensor"
            )
        index = index_events(stream, window_us, file)
        check_order(name, index.events, index.faults.late_events)
        return index
    except NoEventsError:
        raise
    except DataError as error:
        raise type(error)(str(error) if name in str(error) else f"{name}: {error}") from None


def index_events(stream: EventStream, window_us: int, file: Path | None = None) -> EventIndex:
    """Pass over a finite stream once and return the index of its windows.

    Args:
        stream: the recording.
        window_us: length of all windows.
        file: cache file for the index of a stream that stays on disk; None disables the cache. Its name must identify the
            recording, its state on disk, and the length of the windows.

    Raises:
        EventFileError: the recording cannot be read (NoEventsError: it contains no event).
        DataError: it contains more than MAX_HELD_EVENTS, which would have to be held in memory.
    """
    if isinstance(stream, Markable):
        return MarkedRecording(stream, window_us, file)
    return HeldRecording(stream, window_us)


class MarkedRecording:
    """An EventIndex of a stream that can be read from a mark; see `index_events`."""

    held_events = 0

    def __init__(self, stream: EventStream, window_us: int, file: Path | None) -> None:
        assert isinstance(stream, Markable)  # checked by index_events
        self._stream, self._window_us = stream, window_us
        cached = _load(file) if file else None
        if cached is None:
            self._marks, self.end_us, self.events = _marks_of(stream, window_us)
            self.faults = stream.faults
            if file:
                _save(file, self._marks, self.end_us, self.events, self.faults)
        else:
            self._marks, self.end_us, self.events, self.faults = cached
        self._times = [mark.t_us for mark in self._marks]
        self.first_us = self._times[0]

    def window(self, end_us: int) -> EventWindow:
        """See EventIndex."""
        mark = self._marks[_mark_before(self._times, end_us - self._window_us)]
        windows = self._stream.windows_after(mark, self._window_us, end_us % self._window_us)
        return _pick(windows, end_us - self._window_us, end_us)


class HeldRecording:
    """An EventIndex of events held in memory, in file order, faulty ones included; see `index_events`."""

    def __init__(self, stream: EventStream, window_us: int) -> None:
        parts, self.events = _read_events(stream, window_us)
        self.faults, self._window_us = stream.faults, window_us
        self._events = joined(parts)
        self.held_events = len(self._events)
        self._marks, latest = find_marks(self._events["t"], MARK_EVENTS, MARK_WINDOWS * window_us)
        self._times = [mark.t_us for mark in self._marks]
        self.first_us, self.end_us = self._times[0], latest + 1

    def window(self, end_us: int) -> EventWindow:
        """See EventIndex."""
        t0 = end_us - self._window_us
        first = self._marks[_mark_before(self._times, t0)].number
        after = bisect_left(self._times, end_us)
        # Whether the event that ends the window is sound depends on the events that follow it.
        stop = self._marks[after].number + 1 + GLITCH_EVENTS if after < len(self._marks) else len(self._events)
        windows = windows_by_duration([self._events[first:stop]], self._window_us, Faults(), end_us % self._window_us)
        return _pick(windows, t0, end_us)


class EmptyRecording:
    """An EventIndex of a recording without events, whose windows are all empty.

    Args:
        first_us: time at which it is taken to begin and to end, because no event shows it.
        window_us: length of all windows.
    """

    events = held_events = 0

    def __init__(self, first_us: int, window_us: int) -> None:
        self.faults, self._window_us = Faults(), window_us
        self.first_us = self.end_us = first_us

    def window(self, end_us: int) -> EventWindow:
        """See EventIndex."""
        return EventWindow(end_us - self._window_us, end_us, np.empty(0, EVENT_DTYPE))


def first_sensor_size(openers: Iterable[Callable[[], EventStream]], where: object) -> SensorSize:
    """Return the sensor size of the first recording that has events; raises NoEventsError, naming `where`, if none has."""
    for open_recording in openers:
        with suppress(NoEventsError):
            return open_recording().sensor_size
    raise NoEventsError(f"{where}: no recording contains events")


def _mark_before(times: list[int], t_us: int) -> int:
    """Return the index of the last mark before `t_us`, or 0."""
    return max(bisect_left(times, t_us) - 1, 0)


def _pick(windows: Iterable[EventWindow], t0_us: int, t1_us: int) -> EventWindow:
    """Return the window that starts at `t0_us`, or an empty one if it does not occur."""
    for window in windows:
        if window.t0_us >= t0_us:
            return window if window.t0_us == t0_us else EventWindow(t0_us, t1_us, np.empty(0, EVENT_DTYPE))
    return EventWindow(t0_us, t1_us, np.empty(0, EVENT_DTYPE))


def _read_events(stream: EventStream, window_us: int) -> tuple[list[Events], int]:
    """Read the events to hold in memory, in parts; counts the stream's faults as `stream.windows` does.

    Returns:
        The events, and the number of those that the windows hold, before filters.
    """
    parts: list[Events] = []
    total = 0

    def hold(packets: Iterable[Events]) -> Iterator[Events]:
        nonlocal total
        for packet in packets:
            parts.append(packet)
            total += len(packet)
            if total > MAX_HELD_EVENTS:
                raise DataError(
                    f"more than {MAX_HELD_EVENTS:,} events, too many to hold in memory; convert it to .dat, which is "
                    "read from disk: evburst events convert"
                )
            yield packet

    if isinstance(stream, FilteredStream):
        for _ in hold(unpack(window) for window in stream.windows(window_us)):
            pass
        kept = stream.passed
    else:
        kept = sum(map(len, windows_by_duration(hold(stream.packets()), window_us, stream.faults)))
    if not total:
        raise NoEventsError("holds no event")
    return parts, kept


def _marks_of(stream: Markable, window_us: int) -> tuple[list[Mark], int, int]:
    """Return marks spread over the recording, the time one microsecond after its last sound event, and the number of events."""
    marks: list[Mark] = []
    last: EventWindow | None = None
    events = 0
    for mark, window in stream.marked_windows(window_us):
        events += len(window)
        previous = marks[-1] if marks else None
        if (
            previous is None
            or mark.number - previous.number >= MARK_EVENTS
            or mark.t_us - previous.t_us >= MARK_WINDOWS * window_us
        ):
            marks.append(mark)
        last = window if len(window) else last
    if last is None:
        raise NoEventsError("holds no event")
    return marks, int(columns(last)[0].max()) + 1, events


def _save(file: Path, marks: list[Mark], end_us: int, events: int, faults: Faults) -> None:
    """Write an index to its cache file atomically."""
    content = {"version": _VERSION, "end_us": end_us, "events": events, "faults": asdict(faults), "marks": marks}
    with replacing(file) as part:
        part.write_text(json.dumps(content))


def _load(file: Path) -> tuple[list[Mark], int, int, Faults] | None:
    """Read a cached index; returns None if there is none, or none that this version can read."""
    try:
        cached = json.loads(file.read_text())
        if cached["version"] != _VERSION:
            return None
        marks = [Mark(*mark) for mark in cached["marks"]]
        return marks, int(cached["end_us"]), int(cached["events"]), Faults(**cached["faults"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
