"""Live sources: events as they happen. A relative of `evburst.data.events.EventStream` that can fail and be opened again.

A source is opened, read packet by packet, and closed, all on one thread. It says of every packet until which time of its own
clock all events have been delivered, so that a window without events is a window, too, and when these events could be had
at the earliest: latency counts from there. A source that dies raises SourceError and is opened again later.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from evburst.data.encoding import unpack
from evburst.data.events import EVENT_DTYPE, Events, Faults, SensorSize
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.readers import open_events

POLL_S = 0.1
"""Longest time that `read` waits for its device."""

NO_EVENTS: Events = np.zeros(0, EVENT_DTYPE)

_SLICES = 5
_FALLEN_BEHIND_S = 0.5


class Packet(NamedTuple):
    """Some events of a source.

    Attributes:
        events: sorted by time; may be empty.
        until_us: every event before this time of the source's clock has been delivered; None before the first event of a
            device whose clock is not known yet.
        due_s: when, on time.perf_counter's clock, these events could be had.
    """

    events: Events
    until_us: int | None
    due_s: float


class LiveSource(Protocol):
    """Where live events come from.

    Attributes:
        name: for people; holds no password.
        kind: "measured" by a sensor, "recorded" (the file does not say whether measured or simulated), "simulated" from video, or
            "drawn": simulated from this project's drawn street.
        simulated: whether the events are made from video.
        sensor_size: (W, H) px; known once opened.
        finite: whether it ends by itself.
        faults: what was repaired, counted.
    """

    name: str
    kind: str
    simulated: bool
    sensor_size: SensorSize
    finite: bool
    faults: Faults

    @property
    def behind_s(self) -> float:
        """By how much a replay had to be held up because this machine could not keep up, s."""
        ...

    def open(self) -> None:
        """Get hold of the device; SourceError where that fails now and may succeed later."""
        ...

    def read(self) -> Packet | None:
        """The next packet, after POLL_S at the latest; None where the source has ended. SourceError: it has died."""
        ...

    def close(self) -> None:
        """Let go of the device; may be called twice."""
        ...


class Pacer:
    """Hands out events, known ahead, at the pace of the clock: in slices of a fifth of a window.

    Args:
        window_us: length of a window.
        speed: seconds of events in a second.
    """

    def __init__(self, window_us: int, speed: float = 1.0) -> None:
        self._window_us, self._speed = window_us, speed
        self._zero_s: float | None = None
        self._at_us = 0
        self._events, self._until_us = NO_EVENTS, 0
        self.behind_s = 0.0

    @property
    def empty(self) -> bool:
        """Whether all that was given has been handed out."""
        return self._at_us >= self._until_us

    def give(self, events: Events, until_us: int) -> None:
        """Add what happens until a time; the clock's zero is when the first of it is asked for."""
        self._events, self._until_us = events, until_us

    def next(self) -> Packet:
        """Wait until the next slice's end, and hand it out. Who falls behind by half a second is given that time back."""
        k = self._at_us * _SLICES // self._window_us + 1
        self._at_us = min(-(-k * self._window_us // _SLICES), self._until_us)
        if self._zero_s is None:
            self._zero_s = time.perf_counter()
        due_s = self._zero_s + self._at_us * 1e-6 / self._speed
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        elif -wait_s > _FALLEN_BEHIND_S:
            self._zero_s -= wait_s
            self.behind_s -= wait_s
            due_s -= wait_s
        n = int(np.searchsorted(self._events["t"], self._at_us))
        events, self._events = self._events[:n], self._events[n:]
        return Packet(events, self._at_us, due_s)


class RecordingSource:
    """A recording, played at its own pace: `--events FILE --realtime`.

    Args:
        path: the file.
        window_us: length of the windows that are wanted.
        sensor_size, format: as in `open_events`.
        loop: begin again at its end.
        speed: of its clock; 0.1 plays it ten times slower.
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
    ) -> None:
        self.name, self.finite, self._speed = path.name, not loop, speed
        self._path, self._window_us, self._size, self._format = path, window_us, sensor_size, format
        self._stream = FilteredStream(open_events(path, sensor_size, format), FiltersConfig())
        self.sensor_size, self.faults = self._stream.sensor_size, self._stream.faults
        self._windows: Iterator[Any] = iter(())
        self._pacer = Pacer(window_us, speed)
        self._end_us = 0

    @property
    def behind_s(self) -> float:
        """See LiveSource."""
        return self._pacer.behind_s

    def open(self) -> None:
        """See LiveSource."""
        self._windows, self._pacer, self._end_us = self._stream.windows(self._window_us), Pacer(self._window_us, self._speed), 0

    def read(self) -> Packet | None:
        """See LiveSource."""
        if self._pacer.empty:
            window = next(self._windows, None)
            if window is None and not self.finite:
                self._windows = self._stream.windows(self._window_us)
                window = next(self._windows, None)
            if window is None:
                return None
            events = unpack(window)
            events["t"] += self._end_us - window.t0_us
            self._end_us += self._window_us
            self._pacer.give(events[np.argsort(events["t"], kind="stable")], self._end_us)
        return self._pacer.next()

    def close(self) -> None:
        """See LiveSource."""
        self._windows = iter(())
