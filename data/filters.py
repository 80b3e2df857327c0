"""Event filters: hot pixels, refractory period, background activity. All are off by default, and keep state between windows.

They run in this order, each on the events that the previous one kept, and treat both polarities the same:

- hot pixel: an event is removed if its pixel fired faster than `hot_pixel_hz` in the preceding 100 ms period of the clock,
  where periods are [k * 100 ms, (k + 1) * 100 ms). So nothing is removed in the first 100 ms or after a silence of 100 ms,
  and a pixel that calms down is used again;
- refractory: an event is removed if the last kept event of its pixel is less than `refractory_us` away, as in the pixel of a
  sensor: a pixel that fires continuously is thinned out, not silenced. (tonic measures from the last event, kept or not);
- background activity (Delbruck 2008, "Frame-free dynamic digital vision"; jAER, libcaer): an event is kept if one of the 8
  neighbouring pixels fired at most `background_us` away. A pixel does not support itself, and events that this filter
  removes still support others.

"Away" means the absolute time difference to events that came before in the stream: some disorder is harmless, and a corrupt
time does not block its pixel until the clock gets there. Events outside the sensor pass; representations drop and count them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.encoding import columns
from evburst.data.errors import SettingValueError
from evburst.data.events import Events, EventStream, EventWindow, SensorSize

HOT_PERIOD_US = 100_000

_NEVER = np.iinfo(np.int64).min // 2


@dataclass(frozen=True)
class FiltersConfig:
    """Thresholds of the event filters; 0 switches a filter off.

    Attributes:
        hot_pixel_hz: maximum rate of a pixel, in events per second.
        refractory_us: minimum time between two events of a pixel.
        background_us: maximum time to an event of one of the 8 neighbouring pixels.
    """

    hot_pixel_hz: float = 0.0
    refractory_us: int = 0
    background_us: int = 0

    def __post_init__(self) -> None:
        if not min(self.hot_pixel_hz, self.refractory_us, self.background_us) >= 0:
            raise SettingValueError("hot_pixel_hz, refractory_us and background_us must not be negative")

    @property
    def any_on(self) -> bool:
        """Whether at least one filter is on."""
        return any(vars(self).values())


@dataclass
class Removed:
    """Numbers of events removed so far, by filter."""

    hot_pixel: int = 0
    refractory: int = 0
    background: int = 0


class EventFilter:
    """Applies the filters in one pass over a recording; keeps the last event times of every pixel.

    Args:
        config: thresholds of the filters.
        sensor_size: (W, H) px.

    Attributes:
        removed: numbers of events removed so far.
    """

    def __init__(self, config: FiltersConfig, sensor_size: SensorSize) -> None:
        shape = sensor_size.height, sensor_size.width
        self.removed = Removed()
        self._limits = config.hot_pixel_hz * HOT_PERIOD_US * 1e-6, config.refractory_us, config.background_us
        self._period = np.array([_NEVER])
        self._counts = np.zeros((2, *shape), np.int64)
        self._kept, self._fired = np.full(shape, _NEVER), np.full(shape, _NEVER)

    def keep(self, t: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which of the next events, `(n,)` each, to keep."""
        keep = np.ones(len(t), np.bool_)
        removed = _filter(t, x, y, *self._limits, self._period, self._counts, self._kept, self._fired, keep)
        self.removed.hot_pixel += removed[0]
        self.removed.refractory += removed[1]
        self.removed.background += removed[2]
        return keep


class FilteredStream:
    """An EventStream that applies the filters to another one.

    Args:
        stream: source of the events.
        config: thresholds of the filters; if all are off, events pass unchanged.

    Attributes:
        sensor_size: that of `stream`.
        finite: that of `stream`.
        faults: those of `stream`.
        removed: numbers of events that the latest pass has removed so far.
        passed: number of events that the latest pass has read so far, before the filters.
    """

    def __init__(self, stream: EventStream, config: FiltersConfig) -> None:
        self.sensor_size, self.finite, self.faults = stream.sensor_size, stream.finite, stream.faults
        self.removed, self.passed = Removed(), 0
        self._stream, self._config = stream, config

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """See EventStream.windows; the filters do not see events before the window of `start_us`."""
        event_filter = self._new_filter()
        for window in self._stream.windows(window_us, start_us):
            self.passed += len(window)
            if event_filter is None:
                yield window
            else:
                keep = event_filter.keep(*columns(window)[:3])
                yield replace(window, words=window.words.compress(keep, 0))

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        event_filter = self._new_filter()
        for packet in self._stream.packets():
            self.passed += len(packet)
            columns_txy = packet["t"], packet["x"], packet["y"]
            kept = packet if event_filter is None else packet.compress(event_filter.keep(*columns_txy), 0)
            if len(kept):
                yield kept

    def _new_filter(self) -> EventFilter | None:
        """Return the filters for a pass; None if all are off."""
        self.passed = 0
        if not self._config.any_on:
            return None
        event_filter = EventFilter(self._config, self.sensor_size)
        self.removed = event_filter.removed
        return event_filter


def keep_reference(events: Events, config: FiltersConfig, sensor_size: SensorSize) -> tuple[NDArray[np.bool_], Removed]:
    """Reference implementation of `EventFilter`, event by event, for a recording from its beginning."""
    hot_events = config.hot_pixel_hz * HOT_PERIOD_US * 1e-6
    period, before, now = None, dict[tuple[int, int], int](), dict[tuple[int, int], int]()
    kept, fired = dict[tuple[int, int], int](), dict[tuple[int, int], int]()
    keep, removed = np.ones(len(events), np.bool_), Removed()
    for i, (t, x, y, _) in enumerate(events.tolist()):
        pixel = x, y
        if x >= sensor_size.width or y >= sensor_size.height:
            continue
        if config.hot_pixel_hz:
            # A late event of the previous period counts towards the current one.
            if period is None or t // HOT_PERIOD_US - period not in (0, -1):
                before, now = (now if period == t // HOT_PERIOD_US - 1 else {}), {}
                period = t // HOT_PERIOD_US
            now[pixel] = now.get(pixel, 0) + 1
            if before.get(pixel, 0) > hot_events:
                keep[i], removed.hot_pixel = False, removed.hot_pixel + 1
                continue
        if config.refractory_us:
            if pixel in kept and abs(t - kept[pixel]) < config.refractory_us:
                keep[i], removed.refractory = False, removed.refractory + 1
                continue
            kept[pixel] = t
        if config.background_us:
            neighbours = [(x + dx, y + dy) for dx, dy in product((-1, 0, 1), repeat=2) if dx or dy]
            fired[pixel] = t
            if not any(abs(t - fired[other]) <= config.background_us for other in neighbours if other in fired):
                keep[i], removed.background = False, removed.background + 1
    return keep, removed


@njit(cache=True, nogil=True)
def _filter(ts, xs, ys, hot_events, refractory, background, period, counts, kept, fired, keep):  # type: ignore[no-untyped-def]
    """Clear `keep` for events to remove; returns the numbers removed per filter. The arrays before `keep` hold the state."""
    height, width = kept.shape
    hot, too_soon, unsupported = 0, 0, 0
    for i in range(len(ts)):
        t, x, y = ts[i], np.int64(xs[i]), np.int64(ys[i])
        if x >= width or y >= height:
            continue
        if hot_events > 0:
            _turn_period(t // HOT_PERIOD_US, period, counts)
            counts[1, y, x] += 1
            if counts[0, y, x] > hot_events:
                keep[i] = False
                hot += 1
                continue
        if refractory > 0:
            if abs(t - kept[y, x]) < refractory:
                keep[i] = False
                too_soon += 1
                continue
            kept[y, x] = t
        if background > 0:
            fired[y, x] = t
            if not _supported(t, x, y, background, fired):
                keep[i] = False
                unsupported += 1
    return hot, too_soon, unsupported


@njit(cache=True, nogil=True)
def _turn_period(now, period, counts):  # type: ignore[no-untyped-def]
    """Start a new period of hot-pixel counts if the event is in another one; late events of the previous period do not."""
    if now == period[0] or now == period[0] - 1:
        return
    if now == period[0] + 1:
        counts[0] = counts[1]
    else:
        counts[0] = 0
    counts[1] = 0
    period[0] = now


@njit(cache=True, nogil=True)
def _supported(t, x, y, background, fired):  # type: ignore[no-untyped-def]
    """Return whether one of the 8 neighbouring pixels fired at most `background` µs away."""
    height, width = fired.shape
    for row in range(max(y - 1, 0), min(y + 2, height)):
        for column in range(max(x - 1, 0), min(x + 2, width)):
            if (row != y or column != x) and abs(t - fired[row, column]) <= background:
                return True
    return False
