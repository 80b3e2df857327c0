"""What `evburst events info` says about a recording."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.encoding import unpack
from evburst.data.events import PACKET_EVENTS, Events, EventStream, SensorSize, joined, list_counts, no_usable_events
from evburst.data.readers.columns import UNIT_SYMBOLS

RATE_WINDOW_US = 10_000
HOT_DEVIATIONS = 10.0
HOT_LISTED = 5


@dataclass
class _Totals:
    """Running totals of a recording; memory is one event count per pixel, independent of the length."""

    sensor_size: SensorSize
    events: int = 0
    on: int = 0
    outside: int = 0
    first_us: int | None = None
    last_us: int = 0
    peak: int = 0
    gap_us: int = 0
    gap_at_us: int = 0
    per_pixel: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.per_pixel = np.zeros(self.sensor_size.width * self.sensor_size.height, np.int64)

    def add(self, events: Events) -> None:
        """Add the events of whole windows, all inside the sensor; they need not be sorted."""
        width, height = self.sensor_size
        t = np.sort(events["t"])
        previous_us = t[0] if self.first_us is None else self.last_us
        gaps = np.diff(t, prepend=previous_us)
        if gaps.max() > self.gap_us:
            widest = int(gaps.argmax())
            self.gap_us, self.gap_at_us = int(gaps[widest]), int(t[widest] - gaps[widest])
        self.first_us, self.last_us = int(t[0]) if self.first_us is None else self.first_us, int(t[-1])
        self.events += len(events)
        self.on += int(np.count_nonzero(events["p"]))
        pixels = events["y"].astype(np.int64) * width + events["x"]
        self.per_pixel += np.bincount(pixels, minlength=width * height)

    def smallest_size(self) -> list[int] | None:
        """Return the smallest [W, H] that holds all events inside the sensor; None if there are none."""
        active = self.per_pixel.reshape(self.sensor_size.height, self.sensor_size.width) > 0
        if not active.any():
            return None
        return [int(np.flatnonzero(active.any(axis)).max()) + 1 for axis in (0, 1)]

    def hot_pixels(self) -> tuple[int, list[dict[str, int]]]:
        """Return the number of hot pixels and the HOT_LISTED hottest.

        A pixel is hot if its event count exceeds the mean of the active pixels by HOT_DEVIATIONS standard deviations.
        """
        active = self.per_pixel[self.per_pixel > 0]
        if not len(active):
            return 0, []
        hot = np.flatnonzero(self.per_pixel > active.mean() + HOT_DEVIATIONS * active.std())
        worst = hot[np.argsort(-self.per_pixel[hot], kind="stable")][:HOT_LISTED]
        y, x = np.divmod(worst, self.sensor_size.width)
        counts = self.per_pixel[worst]
        return len(hot), [{"x": int(a), "y": int(b), "events": int(c)} for a, b, c in zip(x, y, counts, strict=True)]


def describe(stream: EventStream, path: Path) -> dict[str, Any]:
    """Describe a recording in the form that `info --json` prints.

    `smallest_sensor` is the smallest size that holds all events. Rates are in events per second; the peak rate is taken over
    windows of 10 ms on the recording's clock. Events outside the sensor, and those that arrive after their window, are dropped
    and counted as faults, as in detection.

    Raises:
        NoEventsError: the recording contains no usable events.
    """
    totals = _Totals(stream.sensor_size)
    for events in _batches(stream, totals):
        totals.add(events)
    stream.faults.outside_sensor += totals.outside
    if totals.first_us is None:
        raise no_usable_events(path, stream.faults)
    duration_s = (totals.last_us - totals.first_us) * 1e-6
    mean_rate = totals.events / duration_s if duration_s else 0.0
    hot, worst = totals.hot_pixels()
    return {
        "sensor": list(stream.sensor_size),
        "smallest_sensor": totals.smallest_size(),
        "events": totals.events,
        "first_us": totals.first_us,
        "last_us": totals.last_us,
        "duration_s": round(duration_s, 6),
        "mean_rate": round(mean_rate) if duration_s else None,
        "peak_rate": round(max(totals.peak / (RATE_WINDOW_US * 1e-6), mean_rate)),
        "on_share": round(totals.on / totals.events, 4) if totals.events else None,
        "longest_gap_us": totals.gap_us,
        "longest_gap_after_s": round((totals.gap_at_us - totals.first_us) * 1e-6, 6) if totals.gap_us else None,
        "hot_pixels": hot,
        "hottest": worst,
        "faults": stream.faults.found(),
    }


def _batches(stream: EventStream, totals: _Totals) -> Iterator[Events]:
    """Yield the events inside the sensor, of several windows at a time to amortise the pass over all pixels; update the peak
    window count and the number of events outside."""
    pending: list[Events] = []
    count = 0
    width, height = stream.sensor_size
    for window in stream.windows(RATE_WINDOW_US):
        if not len(window):
            continue
        events = unpack(window)
        inside = events[(events["x"] < width) & (events["y"] < height)]
        totals.peak = max(totals.peak, len(inside))
        totals.outside += len(events) - len(inside)
        if len(inside):
            pending.append(inside)
            count += len(inside)
        if count >= PACKET_EVENTS:
            yield joined(pending)
            pending, count = [], 0
    if pending:
        yield joined(pending)


def human_description(info: dict[str, Any]) -> str:
    """Format `describe`'s result as lines for the terminal."""
    hottest = "; ".join(f"({pixel['x']}, {pixel['y']}) {pixel['events']}" for pixel in info["hottest"])
    gap = "none" if info["longest_gap_after_s"] is None else f"{info['longest_gap_us'] / 1000:.3f} ms"
    sensor, smallest = ("x".join(map(str, info[key] or ())) for key in ("sensor", "smallest_sensor"))
    unknown = f"unknown: the file does not state it; all events fit in {smallest}; other commands need --sensor-size WxH"
    lines = {
        "format": info["format"],
        "time unit": UNIT_SYMBOLS[info["time_unit"]],
        "sensor": sensor or unknown,
        "events": f"{info['events']}",
        "duration": f"{info['duration_s']:.6f} s, from {info['first_us']} to {info['last_us']} µs",
        "mean rate": _rate(info["mean_rate"]),
        "peak rate": f"{_rate(info['peak_rate'])} in 10 ms",
        "ON share": "unknown" if info["on_share"] is None else f"{100 * info['on_share']:.2f} %",
        "longest gap": gap if gap == "none" else f"{gap}, {info['longest_gap_after_s']:.6f} s after the first event",
        "hot pixels": f"{info['hot_pixels']}" + (f": {hottest}" if hottest else ""),
        "faults": list_counts(info["faults"]) or "none",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in lines.items())


def _rate(per_second: int | None) -> str:
    return "unknown" if per_second is None else f"{per_second / 1e6:.3f} million events/s"
