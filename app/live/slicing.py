"""Assembly of packets into windows, and a queue that drops the oldest item when full."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from threading import Condition
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from evburst.app.live.sources import NO_EVENTS
from evburst.data.events import Events, EventWindow, Faults
from evburst.data.slicing import window_start

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_MAX_EMPTY_WINDOWS = 200


class DueWindow(NamedTuple):
    """A window and the earliest time (time.perf_counter) at which its last event was available."""

    window: EventWindow
    due_s: float


class WindowAssembler:
    """Cuts live packets into windows [k * window_us, (k + 1) * window_us).

    A window is complete once its source has delivered all events before the window's end, even if there are none. Events older
    than the current window are dropped and counted (`Faults.late_events`). If the source's clock jumps ahead, the empty windows
    of the gap are skipped (`Faults.long_silences`).

    Args:
        window_us: window length.
        faults: counters of dropped events and skipped gaps.
    """

    def __init__(self, window_us: int, faults: Faults) -> None:
        self._window_us, self._faults = window_us, faults
        self._t0: int | None = None
        self._parts: list[Events] = []

    def restart(self) -> None:
        """Discard the current window, because the source was reopened."""
        self._t0, self._parts = None, []

    def set_window(self, window_us: int) -> None:
        """Set the window length, from the current window on; its start is aligned to the new length."""
        if self._t0 is not None and window_us != self._window_us:
            self._t0 = self._t0 // window_us * window_us
        self._window_us = window_us

    def push(self, events: Events, until_us: int, due_s: float) -> list[DueWindow]:
        """Add a packet and return the windows that are now complete."""
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
            if self._skip_gap(until_us):
                continue
            t1 = self._t0 + self._window_us
            pending = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts or [NO_EVENTS])
            n = int(np.searchsorted(pending["t"], t1))
            windows.append(DueWindow(EventWindow(self._t0, t1, pending[:n]), due_s))
            self._parts = [pending[n:]] if n < len(pending) else []
            self._t0 = t1
        return windows

    def _skip_gap(self, until_us: int) -> bool:
        """Begin the current window at the next event, or at until_us without one, if that is too many empty windows ahead."""
        assert self._t0 is not None
        next_us = min((int(part["t"].min()) for part in self._parts), default=until_us)
        after_us = window_start(next_us, self._window_us)
        if after_us - self._t0 <= _MAX_EMPTY_WINDOWS * self._window_us:
            return False
        self._faults.long_silences += 1
        _LOG.warning("the clock of the source jumped ahead by %.1f s: windows continue there", (after_us - self._t0) * 1e-6)
        self._t0 = after_us
        return True


class DropOldest(Generic[T]):
    """A queue for one reader that never blocks the writer: if it is full, the oldest items are dropped and counted.

    Items that arrive together are dropped together, because even a reader that keeps up has only read some of them when the
    next ones arrive.

    Args:
        size: maximum number of arrivals of which items wait.
    """

    def __init__(self, size: int) -> None:
        self._arrivals: deque[deque[T]] = deque()
        self._size, self._changed, self._closed = size, Condition(), False
        self.dropped = 0

    def put(self, items: Iterable[T], dropped: int = 0) -> None:
        """Append items that arrive together, without those of them that the writer has `dropped`; never blocks."""
        arrival = deque(items)
        self.dropped += dropped
        if not arrival:
            return
        with self._changed:
            if len(self._arrivals) >= self._size:
                self.dropped += len(self._arrivals.popleft())
            self._arrivals.append(arrival)
            self._changed.notify()

    def get(self, timeout_s: float) -> T | None:
        """Remove and return the oldest item, or None if there is none within the timeout."""
        with self._changed:
            if not self._arrivals and not self._closed:
                self._changed.wait(timeout_s)
            if not self._arrivals:
                return None
            item = self._arrivals[0].popleft()
            if not self._arrivals[0]:
                self._arrivals.popleft()
            return item

    def close(self) -> None:
        """End the queue: `get` no longer waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Whether the queue is closed and empty."""
        return self._closed and not self._arrivals
