"""Live sources of events. Unlike `evburst.data.events.EventStream`, a source can fail and be reopened.

A source is opened, read packet by packet and closed, all on one thread. Each packet states the time on the source's clock up
to which all events have been delivered, so that windows without events can be completed, and the earliest time at which its
events were available, from which latency is measured. A source that fails raises SourceError and is reopened later.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from threading import Event, Lock, Thread
from typing import NamedTuple, Protocol

import numpy as np

from evburst.data.encoding import unpack
from evburst.data.errors import EvburstError, SourceError
from evburst.data.events import EVENT_DTYPE, Events, EventStream, EventWindow, Faults, SensorSize, joined
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.readers import DEFAULT_OPTIONS, ReadOptions, open_events
from evburst.data.readers.foreign import is_pipe
from evburst.data.slicing import window_start

POLL_S = 0.1
"""Longest time that `read` waits for the device."""

NO_EVENTS: Events = np.zeros(0, EVENT_DTYPE)

_SLICES = 5
_MAX_LAG_S = 0.5


class Packet(NamedTuple):
    """A packet of events from a live source.

    Attributes:
        events: sorted by time; may be empty.
        until_us: time on the source's clock before which all events have been delivered; None if the clock is not known yet,
            before a device's first event.
        due_s: earliest time at which these events were available, on time.perf_counter's clock.
        restarted: whether the source's clock restarts with this packet, because a recording continues at another position or in
            windows of another length, or a device was reset.
        cut: whether another scene begins with this packet although the clock continues, because a recording starts again, or
            after a time from which nothing is known.
    """

    events: Events
    until_us: int | None
    due_s: float
    restarted: bool = False
    cut: bool = False


def check_size(expected: SensorSize, found: SensorSize) -> None:
    """Raise SourceError if a source that was reopened has another sensor size, for which nothing has been prepared."""
    if found != expected:
        raise SourceError(f"the sensor is now {found}, not {expected}; restart evburst")


def recut(windows: Iterable[EventWindow], window_us: int) -> Iterator[EventWindow]:
    """Yield the events of windows as windows of another length, in EVENT_DTYPE; the first one lacks what came before them.

    Where the windows are not consecutive, because the clock was reset or after a long silence, they begin anew.
    """
    t0 = end_us = 0
    held = NO_EVENTS
    for window in windows:
        if window.t0_us != end_us:
            if len(held):
                yield EventWindow(t0, t0 + window_us, held)
            t0, held = window_start(window.t0_us, window_us), NO_EVENTS
        held, end_us = joined([held, unpack(window)]), window.t1_us
        while t0 + window_us <= end_us:
            is_inside = held["t"] < t0 + window_us
            yield EventWindow(t0, t0 + window_us, held[is_inside])
            t0, held = t0 + window_us, held[~is_inside]
    if len(held):
        yield EventWindow(t0, t0 + window_us, held)


class LiveSource(Protocol):
    """A source of live events.

    Attributes:
        name: name shown to the user, without passwords.
        kind: "measured" by a sensor, "recorded" (a file does not state whether it was measured or simulated), "simulated" from
            video, or "drawn": simulated from the drawn street scene.
        simulated: whether the events are simulated.
        sensor_size: (W, H) px; known after `open`.
        finite: whether the source ends by itself.
        faults: counters of repaired faults.
    """

    name: str
    kind: str
    simulated: bool
    sensor_size: SensorSize
    finite: bool
    faults: Faults

    @property
    def behind_s(self) -> float:
        """Total time in s by which a replay was delayed because this machine could not keep up."""
        ...

    def open(self) -> None:
        """Open the device; raise SourceError if that fails but may succeed later."""
        ...

    def read(self) -> Packet | None:
        """Return the next packet within about POLL_S, or None if the source has ended; raise SourceError if it fails."""
        ...

    def close(self) -> None:
        """Close the device; may be called twice."""
        ...


class Pacer:
    """Paces events that are available ahead of time by the clock, in slices of a fifth of a window, shorter in slow motion.

    Args:
        window_us: window length.
        speed: playback speed; 0.1 is ten times slower than real time.
        waits: whether the events may be made while they are read (a pipe), so that they arrive after a silence all at once.
            Such a delay is not added up: what follows is returned at once until the clock has been caught up with.
    """

    def __init__(self, window_us: int, speed: float = 1.0, waits: bool = False) -> None:
        self._window_us, self._speed, self._waits = window_us, speed, waits
        self._slices = max(_SLICES, math.ceil(window_us * 1e-6 / speed / POLL_S))
        self._zero_s: float | None = None
        self._at_us = 0
        self._events, self._until_us, self._given_s = NO_EVENTS, 0, 0.0
        self.behind_s = 0.0

    @property
    def empty(self) -> bool:
        """Whether all events have been returned."""
        return self._at_us >= self._until_us

    def give(self, events: Events, until_us: int) -> None:
        """Set the next events and the time up to which they are complete; the clock starts at the first call of `next`."""
        self._events, self._until_us, self._given_s = events, until_us, time.perf_counter()

    def next(self) -> Packet:
        """Wait until the end of the next slice and return it; a lag above 0.5 s delays the clock and adds to `behind_s`."""
        k = self._at_us * self._slices // self._window_us + 1
        self._at_us = min(-(-k * self._window_us // self._slices), self._until_us)
        if self._zero_s is None:
            self._zero_s = time.perf_counter()
        due_s = self._zero_s + self._at_us * 1e-6 / self._speed
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        elif self._waits:
            due_s = max(due_s, self._given_s)
        elif -wait_s > _MAX_LAG_S:
            self._zero_s -= wait_s
            self.behind_s -= wait_s
            due_s -= wait_s
        n = int(np.searchsorted(self._events["t"], self._at_us))
        events, self._events = self._events[:n], self._events[n:]
        return Packet(events, self._at_us, due_s)

    def hold(self) -> None:
        """Stop the clock for POLL_S."""
        began_s = time.perf_counter()
        time.sleep(POLL_S)
        if self._zero_s is not None:
            self._zero_s += time.perf_counter() - began_s


class RecordingSource:
    """A recording played in real time: `--events FILE`. It can be sought while it plays, once `measure` is done.

    A pipe cannot be sought or held.

    Args:
        path: the file.
        window_us: window length, by which the recording is paced.
        sensor_size, format: as in `open_events`.
        loop: start again at the end; a pipe, which can be read only once, ends there.
        speed: playback speed; 0.1 plays it ten times slower.
        options: as in `open_events`.

    Attributes:
        is_pipe: whether it is a pipe, which cannot be opened again once it has been closed.
        passed, late: number of events of the windows read so far, and of those that were late for them (`Faults.late_events`)
            and are not in a part that was skipped.
        duration_s: time from the start of the first window to the end of the last one, on the recording's clock; None while
            it is not known, so that the recording cannot be sought.
    """

    simulated, kind = False, "recorded"

    def __init__(
        self,
        path: Path,
        window_us: int,
        sensor_size: SensorSize | None = None,
        format: str | None = None,
        loop: bool = False,
        speed: float = 1.0,
        options: ReadOptions = DEFAULT_OPTIONS,
    ) -> None:
        self.is_pipe = is_pipe(path)
        self.name, self.finite, self._speed = path.name, not loop or self.is_pipe, speed
        self._path, self._window_us, self._size, self._format, self._options = path, window_us, sensor_size, format, options
        self._stream = self._open_stream()
        self.sensor_size, self.faults = self._stream.sensor_size, self._stream.faults
        self.duration_s: float | None = None
        self._extent_us: tuple[int, int] | None = None
        self._measured = Lock()
        self._windows: Iterator[EventWindow] = iter(())
        self._playing: EventWindow | None = None
        self._pacer = self._new_pacer()
        self._start_us = self._window_start_us = self._end_us = 0
        self._targets_us: deque[int] = deque(maxlen=1)
        self._is_recut = False
        self._wants_length = False
        self.passed = self.late = 0
        self._late_before: int | None = None
        self._closed = Event()
        self._closed.set()

    @property
    def behind_s(self) -> float:
        """See LiveSource."""
        return self._pacer.behind_s

    @property
    def position_s(self) -> float:
        """Start of the window being played, in s from the start of the first window; while seeking, the new position."""
        at_us = self._window_start_us
        with suppress(IndexError):  # the reading thread may take the position at any time
            at_us = self._targets_us[-1]
        return max(at_us - self._start_us, 0) * 1e-6

    def seek(self, position_s: float) -> None:
        """Continue with the window at this position, limited to the recording. May be called from any thread.

        Raises:
            ValueError: `duration_s` is not known.
        """
        if self.duration_s is None:
            raise ValueError(f"{self.name}: cannot be sought, because its length is not known")
        last_s = self.duration_s - self._window_us * 1e-6
        self._targets_us.append(self._start_us + round(1e6 * min(max(position_s, 0.0), last_s)))

    def set_window(self, window_us: int) -> None:
        """Set the window length. The reading thread calls it.

        A recording that is open continues with the window that contains the start of the one being played, so that all windows
        are those of the new length. A pipe cannot go back: its first window of the new length may lack its beginning.
        """
        if window_us != self._window_us:
            self._window_us, self._is_recut = window_us, not self._closed.is_set()
            self._set_length()

    def open(self) -> None:
        """See LiveSource. A file that has been played in part continues after the window played last."""
        start_us = None if self.is_pipe or self._playing is None else self._playing.t1_us
        self._windows, self._end_us, self._is_recut = self._stream.windows(self._window_us, start_us), 0, False
        self._pacer = self._new_pacer(self.behind_s)
        self._late_before = self.faults.late_events if start_us is None else None
        self._closed = Event()
        if self._wants_length:
            self._start_measuring()

    def measure(self) -> None:
        """Measure `duration_s` while the source is open, by one pass over the file on a background thread.

        Whoever may seek calls it. Further calls have no effect. May be called from any thread.
        """
        if not self._wants_length:
            self._wants_length = True
            if not self._closed.is_set():
                self._start_measuring()

    def hold(self) -> bool:
        """Let the recording stand still for POLL_S and return True; return False at once for a pipe."""
        if self.is_pipe:
            return False
        self._pacer.hold()
        return True

    def read(self) -> Packet | None:
        """See LiveSource."""
        restarted, cut = self._go_to_target(), False
        if self._pacer.empty:
            window = self._next_window()
            if window is None and not self.finite:
                self._windows = self._stream.windows(self._window_us)
                window, cut = self._next_window(), True
            if window is None:
                self._playing = None
                return None
            if self._playing is not None and window.t0_us != self._playing.t1_us:
                cut = True  # after a silence of which the windows are skipped, or a reset of the clock
            events = unpack(window)
            events["t"] += self._end_us - window.t0_us
            self._playing, self._window_start_us = window, window.t0_us
            self._end_us += self._window_us
            self._pacer.give(events[np.argsort(events["t"], kind="stable")], self._end_us)
        return self._pacer.next()._replace(restarted=restarted, cut=cut)

    def close(self) -> None:
        """See LiveSource."""
        self._windows = iter(())
        self._closed.set()

    def _open_stream(self) -> EventStream:
        return FilteredStream(open_events(self._path, self._size, self._format, options=self._options), FiltersConfig())

    def _next_window(self) -> EventWindow | None:
        """Return the next window, and count its events."""
        window, late = next(self._windows, None), self.faults.late_events
        if self._late_before is not None:  # else the position was sought, perhaps by reading what is before it
            self.late += late - self._late_before
        self._late_before = late
        self.passed += 0 if window is None else len(window)
        return window

    def _go_to_target(self) -> bool:
        """Restart the source's clock where it was sought last, or if only the window length has changed, where it is; return
        False if there is neither."""
        if not self._targets_us and not self._is_recut:
            return False
        playing = [] if self._playing is None or self._pacer.empty else [self._playing]
        if self.is_pipe:
            self._windows = recut(chain(playing, self._windows), self._window_us)
        else:
            start_us = None
            if self._targets_us:
                start_us = self._targets_us.pop()
            elif self._playing is not None:
                start_us = self._playing.t0_us if playing else self._playing.t1_us
            self._windows = self._stream.windows(self._window_us, start_us)
            self._window_start_us, self._late_before = self._start_us if start_us is None else start_us, None
        self._end_us, self._is_recut, self._pacer = 0, False, self._new_pacer(self.behind_s)
        return True

    def _new_pacer(self, behind_s: float = 0.0) -> Pacer:
        pacer = Pacer(self._window_us, self._speed, waits=self.is_pipe)
        pacer.behind_s = behind_s
        return pacer

    def _start_measuring(self) -> None:
        if self.duration_s is None and not self.is_pipe:
            Thread(target=self._measure, args=(self._closed,), name="measure", daemon=True).start()

    def _measure(self, closed: Event) -> None:
        """Measure the length on a stream of its own, so that faults are counted once; stop when the source is closed."""
        first, last = None, None
        with suppress(EvburstError):  # `read` raises it when it gets there
            for window in self._open_stream().windows(self._window_us):
                first, last = window if first is None else first, window
                if closed.is_set():
                    return
            if first is not None and last is not None:
                first_us, last_us = unpack(first)["t"].min(initial=first.t1_us - 1), unpack(last)["t"].max(initial=last.t0_us)
                self._extent_us = int(first_us), int(last_us)
                self._set_length()

    def _set_length(self) -> None:
        """Set what the present window length makes of the times of the first and the last event, once they are known."""
        with self._measured:
            if self._extent_us is not None:
                self._start_us, last_us = (window_start(t_us, self._window_us) for t_us in self._extent_us)
                self.duration_s = (last_us + self._window_us - self._start_us) * 1e-6
