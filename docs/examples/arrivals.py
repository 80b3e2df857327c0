"""Events that arrive while a program runs, as in the callback of a ROS node, for `Detector.stream`."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from evburst.data.arrays import as_events
from evburst.data.events import Events, EventWindow, Faults, SensorSize
from evburst.data.slicing import live_windows, windows_from


class Arrivals:
    """An EventStream without an end: one thread puts events in, another one detects in them."""

    finite = False

    def __init__(self, width: int, height: int) -> None:
        self.sensor_size = SensorSize(width, height)
        self.faults = Faults()
        self._queue = SimpleQueue[Events | None]()

    def put(self, events: Any) -> None:
        """Add events in order of time: a structured array, an `(n, 4)` array or a dict of t (us), x, y, p; they are copied."""
        self._queue.put(as_events(events).copy())

    def close(self) -> None:
        """End the stream: the detector finishes the last window."""
        self._queue.put(None)

    def packets(self) -> Iterator[Events]:
        """Yield the events as they arrive; wait for more until the stream is closed."""
        while (packet := self._queue.get()) is not None:
            if len(packet):
                yield packet

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """Yield consecutive windows; a window ends when a later event has arrived, or if the clock jumps back."""
        return windows_from(live_windows(self.packets(), window_us, self.faults), start_us)
