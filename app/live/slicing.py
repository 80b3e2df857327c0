"""From packets to whole windows, and the queue that drops the oldest."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from evburst.app.live.sources import NO_EVENTS
from evburst.data.events import Events, EventWindow, Faults

T = TypeVar("T")

_MOST_EMPTY = 200


class DueWindow(NamedTuple):
    """A window, and when (time.perf_counter) its last event could be had."""

    window: EventWindow
    due_s: float


class WindowAssembler:
    """Cuts live packets into windows on multiples of their length: [k * window_us, (k + 1) * window_us).

    A window is complete once its source says that it has delivered everything before the window's end, whether that was an event
    or not. Events older than the window being collected are left out and counted (`Faults.late_events`).

    Args:
        window_us: length of a window.
        faults: where what is left out is counted.
    """

    def __init__(self, window_us: int, faults: Faults) -> None:
        self._window_us, self._faults = window_us, faults
        self._t0: int | None = None
        self._parts: list[Events] = []

    def restart(self) -> None:
        """Forget the window being collected: the source has been opened again."""
        self._t0, self._parts = None, []

    def set_window(self, window_us: int) -> None:
        """Another length, from the window on that is being collected, which may begin before what is still to come."""
        if self._t0 is not None and window_us != self._window_us:
            self._t0 = self._t0 // window_us * window_us
        self._window_us = window_us

    def push(self, events: Events, until_us: int, due_s: float) -> list[DueWindow]:
        """Take a packet, and return the windows that are complete now."""
        if self._t0 is None:
            first_us = int(events["t"][0]) if len(events) else until_us
            self._t0 = first_us // self._window_us * self._window_us
        t = events["t"]
        late = int(np.searchsorted(t, self._t0))
        self._faults.late_events += late
        if late < len(events):
            self._parts.append(events[late:])
        windows = []
        while until_us >= self._t0 + self._window_us:
            if until_us - self._t0 > _MOST_EMPTY * self._window_us and not self._parts:
                # A clock that leaps: minutes without events are left out.
                self._t0 = until_us // self._window_us * self._window_us
                break
            t1 = self._t0 + self._window_us
            held = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts or [NO_EVENTS])
            n = int(np.searchsorted(held["t"], t1))
            windows.append(DueWindow(EventWindow(self._t0, t1, held[:n]), due_s))
            self._parts = [held[n:]] if n < len(held) else []
            self._t0 = t1
        return windows


class DropOldest(Generic[T]):
    """A queue for one reader that never makes the writer wait: where it is full, the oldest item is dropped and counted."""

    def __init__(self, size: int) -> None:
        self._items: deque[T] = deque()
        self._size, self._changed, self._closed = size, Condition(), False
        self.dropped = 0

    def put(self, item: T) -> None:
        """Append."""
        with self._changed:
            if len(self._items) >= self._size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify()

    def get(self, timeout_s: float) -> T | None:
        """The oldest; None where there is none within that time."""
        with self._changed:
            if not self._items and not self._closed:
                self._changed.wait(timeout_s)
            return self._items.popleft() if self._items else None

    def close(self) -> None:
        """No more will be put: `get` does not wait any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Closed and empty."""
        return self._closed and not self._items
