"""Windows of a finite recording at random, with all that a pass over it repairs.

The window [t - w, t) of a label at time t holds what the stream's own `windows(w)` would hold if its windows lay on t + k * w
instead of k * w: the same late events and glitches are left out, the same clock wraps undone. With w = 50 ms:

    index_events(open_events("a.raw"), 50_000).window(1_234_567)    [1184567, 1234567)

Where a window begins depends on nothing that was read before it: its first event is the first one at or after t - w whose time
is sound (evburst.data.slicing). So it can be read from any *mark* before it, a sound event that no sound event before is as late
as. An index is made by one pass, which also counts the recording's faults, once:

- a stream that can be read from a mark (DAT) stays on disk; its index is a list of marks, kept in a file;
- the events of others are held in memory, at most MOST_EVENTS of them;
- of a filtered stream the events that pass the filters are held: what a filter does depends on all that came before, so it sees
  the recording in the windows [k * w, (k + 1) * w), and windows elsewhere are cut from what it keeps.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from evburst.data.encoding import columns, unpack
from evburst.data.errors import DataError
from evburst.data.events import EVENT_DTYPE, Events, EventStream, EventWindow, Faults
from evburst.data.filters import FilteredStream
from evburst.data.slicing import GLITCH_EVENTS, Mark, find_marks, windows_by_duration

MOST_EVENTS = 100_000_000
"""Events of a recording that are held in memory, 1.3 GB; a longer one has to be a .dat, which is not."""

MARK_EVENTS, MARK_WINDOWS = 1 << 14, 100
"""Two marks are at least this many events, or this many windows, apart."""

_VERSION = 1
_PLAIN = np.dtype((np.void, EVENT_DTYPE.itemsize))


@runtime_checkable
class Markable(Protocol):
    """What a stream offers that can be read from any place."""

    def marked_windows(self, window_us: int) -> Iterator[tuple[Mark, EventWindow]]:
        """The windows of `EventStream.windows`, and where each was read from; faults are counted."""
        ...

    def windows_after(self, mark: Mark, window_us: int, phase_us: int) -> Iterator[EventWindow]:
        """Windows on phase_us + k * window_us from the one with the mark's event on; no faults are counted."""
        ...


class EventIndex(Protocol):
    """The windows of one recording, of one length, at random.

    Attributes:
        faults: what one pass over the recording met, in windows on multiples of their length.
        first_us, end_us: time of the first sound event, and the microsecond after the last one.
        held_events: how many are held in memory.
    """

    faults: Faults
    first_us: int
    end_us: int
    held_events: int

    def window(self, end_us: int) -> EventWindow:
        """The window that ends at `end_us`; empty before the recording, after it, and in a long silence."""
        ...


def index_events(stream: EventStream, window_us: int, file: Path | None = None) -> EventIndex:
    """Pass over a finite stream once and return the index of its windows.

    Args:
        stream: the recording.
        window_us: length of all windows.
        file: where the index of a stream that stays on disk is kept; None: nowhere. Its name must say which recording, in
            which state, and which length of windows it is of.

    Raises:
        EventFileError: the recording cannot be read.
        DataError: it holds no event, or more than MOST_EVENTS that would have to be held in memory.
    """
    if isinstance(stream, Markable):
        return MarkedRecording(stream, window_us, file)
    return HeldRecording(stream, window_us)


class MarkedRecording:
    """An EventIndex of a stream that can be read from a mark; see `index_events`."""

    held_events = 0

    def __init__(self, stream: EventStream, window_us: int, file: Path | None) -> None:
        assert isinstance(stream, Markable)  # said by index_events
        self._stream, self._window_us = stream, window_us
        found = _load(file) if file else None
        if found is None:
            marks, self.end_us = _marks_of(stream, window_us)
            self._marks, self.faults = marks, stream.faults
            if file:
                _save(file, marks, self.end_us, self.faults)
        else:
            self._marks, self.end_us, self.faults = found
        self._times = [mark.t_us for mark in self._marks]
        self.first_us = self._times[0]

    def window(self, end_us: int) -> EventWindow:
        """See EventIndex."""
        mark = self._marks[_before(self._times, end_us - self._window_us)]
        found = self._stream.windows_after(mark, self._window_us, end_us % self._window_us)
        return _pick(found, end_us - self._window_us, end_us)


class HeldRecording:
    """An EventIndex of events in memory, in file order and with all that windows leave out; see `index_events`."""

    def __init__(self, stream: EventStream, window_us: int) -> None:
        parts = _kept_events(stream, window_us)
        self.faults, self._window_us = stream.faults, window_us
        self._events = np.concatenate([part.view(_PLAIN) for part in parts]).view(EVENT_DTYPE)
        self.held_events = len(self._events)
        self._marks, latest = find_marks(self._events["t"], MARK_EVENTS, MARK_WINDOWS * window_us)
        self._times = [mark.t_us for mark in self._marks]
        self.first_us, self.end_us = self._times[0], latest + 1

    def window(self, end_us: int) -> EventWindow:
        """See EventIndex."""
        t0 = end_us - self._window_us
        first = self._marks[_before(self._times, t0)].number
        after = bisect_left(self._times, end_us)
        # Whether the event that ends the window is sound depends on those that follow it.
        stop = self._marks[after].number + 1 + GLITCH_EVENTS if after < len(self._marks) else len(self._events)
        found = windows_by_duration([self._events[first:stop]], self._window_us, Faults(), end_us % self._window_us)
        return _pick(found, t0, end_us)


def _before(times: list[int], t_us: int) -> int:
    """The last mark before `t_us`, or the first one."""
    return max(bisect_left(times, t_us) - 1, 0)


def _pick(windows: Iterable[EventWindow], t0_us: int, t1_us: int) -> EventWindow:
    """The window that begins at `t0_us`; an empty one if there is none."""
    for window in windows:
        if window.t0_us >= t0_us:
            return window if window.t0_us == t0_us else EventWindow(t0_us, t1_us, np.empty(0, EVENT_DTYPE))
    return EventWindow(t0_us, t1_us, np.empty(0, EVENT_DTYPE))


def _kept_events(stream: EventStream, window_us: int) -> list[Events]:
    """The events to hold, in parts; counts the stream's faults as `stream.windows` does."""
    parts: list[Events] = []
    total = 0

    def hold(packets: Iterable[Events]) -> Iterator[Events]:
        nonlocal total
        for packet in packets:
            parts.append(packet)
            total += len(packet)
            if total > MOST_EVENTS:
                raise DataError(
                    f"more than {MOST_EVENTS:,} events, too many to be held in memory; make it a .dat, which is read from "
                    "disk: evburst events convert"
                )
            yield packet

    if isinstance(stream, FilteredStream):
        for _ in hold(unpack(window) for window in stream.windows(window_us)):
            pass
    else:
        for _ in windows_by_duration(hold(stream.packets()), window_us, stream.faults):
            pass
    if not total:
        raise DataError("holds no event")
    return parts


def _marks_of(stream: Markable, window_us: int) -> tuple[list[Mark], int]:
    """Marks spread over the recording, and the microsecond after its last sound event."""
    marks: list[Mark] = []
    last: EventWindow | None = None
    for mark, window in stream.marked_windows(window_us):
        far = (
            not marks or mark.number - marks[-1].number >= MARK_EVENTS or mark.t_us - marks[-1].t_us >= MARK_WINDOWS * window_us
        )
        if far:
            marks.append(mark)
        last = window if len(window) else last
    if last is None:
        raise DataError("holds no event")
    return marks, int(columns(last)[0].max()) + 1


def _save(file: Path, marks: list[Mark], end_us: int, faults: Faults) -> None:
    """Keep an index; readers see a whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(json.dumps({"version": _VERSION, "end_us": end_us, "faults": asdict(faults), "marks": marks}))
    part.replace(file)


def _load(file: Path) -> tuple[list[Mark], int, Faults] | None:
    """A kept index; None where there is none, or none that this version can use."""
    try:
        kept = json.loads(file.read_text())
        if kept["version"] != _VERSION:
            return None
        return [Mark(*mark) for mark in kept["marks"]], int(kept["end_us"]), Faults(**kept["faults"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
