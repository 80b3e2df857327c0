"""Events, sensor geometry, and the stream every reader returns.

Times are int64 microseconds on the recording's own clock. Windows are half-open: an event at t = 50000 µs belongs to
[50000, 100000), not to [0, 50000). A window without events is still a window.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import ConfigError, EventFileError, NoEventsError, SensorSizeError

EVENT_DTYPE = np.dtype([("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("p", "u1")])
"""One event: t µs, x and y pixels from the top-left corner, p in {0 (OFF), 1 (ON)}. 13 bytes."""

Events = NDArray[np.void]
"""Structured array of EVENT_DTYPE, sorted by t."""

PACKET_EVENTS = 1 << 20
"""Maximum number of events per packet: 13.6 MB, which bounds the memory of a reader whatever the file's size."""

MAX_SENSOR_SIDE = 1 << 14
MAX_SENSOR_PIXELS = 1 << 24
"""Larger sizes come from damaged headers, and buffers of that size would take gigabytes."""

OUTSIDE_LIMIT = 0.1
"""Fraction of events outside the sensor above which its size must be wrong."""

LATE_LIMIT = 0.1
"""Fraction of late events above which a recording is not in order of time."""

_EVENT_AS_BYTES = np.dtype((np.void, EVENT_DTYPE.itemsize))
_ADDING = Lock()


def joined(parts: Iterable[Events]) -> Events:
    """Concatenate events; a single part that holds any is returned without a copy."""
    filled = [part for part in parts if len(part)]
    if len(filled) < 2:
        return filled[0] if filled else np.empty(0, EVENT_DTYPE)
    # NumPy copies structured arrays field by field; the same copy as plain bytes is at least ten times as fast.
    return np.concatenate([part.view(_EVENT_AS_BYTES) for part in filled]).view(EVENT_DTYPE)


class SensorSize(NamedTuple):
    """Width and height of a sensor in pixels, always in this order: (W, H)."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def of(cls, size: tuple[int, int] | str) -> SensorSize:
        """Return a size given as a pair (W, H) of any kind, or as 'WxH'; raises ConfigError on anything else."""
        if isinstance(size, SensorSize):
            return size
        if isinstance(size, str):
            return cls.parse(size)
        try:
            width, height = size
        except (TypeError, ValueError):
            raise ConfigError(f"sensor_size {size!r}: expected (W, H) in pixels, e.g. (304, 240)") from None
        return cls.parse(f"{width}x{height}")

    @classmethod
    def parse(cls, text: str) -> SensorSize:
        """Read 'WxH', e.g. '304x240'; raises ConfigError on anything else."""
        sides = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower())
        size = cls(*map(int, sides.groups())) if sides else cls(0, 0)
        if min(size) <= 0:
            raise ConfigError(f"sensor size {text!r}: write it as WIDTHxHEIGHT in pixels, e.g. 304x240")
        if max(size) > MAX_SENSOR_SIDE:
            raise ConfigError(f"sensor size {text!r}: a side has at most {MAX_SENSOR_SIDE} pixels")
        if size.width * size.height > MAX_SENSOR_PIXELS:
            raise ConfigError(
                f"sensor size {text!r}: {size.width * size.height} pixels; at most {MAX_SENSOR_PIXELS} are supported"
            )
        return size

    @classmethod
    def of_setting(cls, text: str | None) -> SensorSize | None:
        """Read the size that a setting states; None if it is empty."""
        return cls.parse(text) if text else None


def check_sensor_size(what: str, size: SensorSize, inside: int, outside: int, noun: str = "events") -> None:
    """Raise SensorSizeError if more than OUTSIDE_LIMIT of the events (or labels) of `what` lie outside the sensor."""
    if outside > OUTSIDE_LIMIT * (inside + outside):
        raise SensorSizeError(
            f"{what}: {outside} of {inside + outside} {noun} lie outside {size}: pass the sensor's true size (--sensor-size, "
            "in Python sensor_size), unless it is their coordinates that are wrong, e.g. negative"
        )


def check_order(what: str, kept: int, late: int) -> None:
    """Raise EventFileError if more than LATE_LIMIT of the events of `what` are late, so that it has to be sorted."""
    if late > LATE_LIMIT * (kept + late):
        raise EventFileError(
            f"{what}: {late} of {kept + late} events are older than a window before them: the file is not in order of time; "
            "sort its events first: evburst events convert FILE OUT --sort"
        )


@dataclass
class Faults:
    """Counts of what a reader repaired. All are zero for an intact recording.

    Attributes:
        truncated_bytes: bytes after the last complete event, dropped.
        late_events: events older than the current window (time ran backwards), dropped.
        clock_resets: jumps of a live source's clock back by more than a second, after which windows continue at the new time.
        time_glitches: single events whose time jumps ahead of both neighbours, dropped.
        long_silences: gaps of ten minutes or more without an event, live of more than 200 windows, whose empty windows are
            skipped.
        outside_sensor: events whose x or y lies outside the sensor, dropped.
        time_wraps: wrap-arounds of the recording's clock; repaired without loss.
        untimed_events: events before the first time word (RAW), whose time is unknown, dropped.
        unplaced_events: events before the first row or base column (RAW EVT3), whose position is unknown, dropped.
        contradicted_times: time words (RAW) that the next one contradicts, ignored; their events keep the previous time.
        undefined_words: words of a type that the encoding (RAW) does not define, ignored.
    """

    truncated_bytes: int = 0
    late_events: int = 0
    clock_resets: int = 0
    time_glitches: int = 0
    long_silences: int = 0
    outside_sensor: int = 0
    time_wraps: int = 0
    untimed_events: int = 0
    unplaced_events: int = 0
    contradicted_times: int = 0
    undefined_words: int = 0

    def found(self) -> dict[str, int]:
        """Return the nonzero counters by name."""
        return {name: count for name, count in vars(self).items() if count}

    def since(self, before: Faults) -> Faults:
        """Return what a pass over a stream counted that began with the counters `before`; truncated bytes are the file's."""
        own = {name: count - getattr(before, name) for name, count in vars(self).items()}
        return Faults(**{**own, "truncated_bytes": self.truncated_bytes})

    def add(self, of_pass: Faults) -> None:
        """Add what a pass with counters of its own has counted; passes in several threads may do so at once."""
        with _ADDING:
            for name, count in vars(of_pass).items():
                setattr(self, name, count if name == "truncated_bytes" else getattr(self, name) + count)

    def __str__(self) -> str:
        """Return the nonzero counters as text: `truncated bytes 3, late events 2`."""
        return list_counts(self.found())


def no_usable_events(name: Path | str, faults: Faults, start_s: float = 0.0) -> NoEventsError:
    """Create the error for a recording without a usable event, or without one later than `start_s` after the first."""
    part = f" after {start_s:g} s" if start_s else ""
    repaired = f" (repaired: {faults})" if faults.found() else ""
    return NoEventsError(f"{name}: contains no usable events{part}{repaired}")


def sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Add up counts of the same name, e.g. faults of several recordings."""
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(total)


def list_counts(counts: dict[str, int]) -> str:
    """Format counts by name as text: `truncated bytes 3, late events 2`."""
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items())


@dataclass(frozen=True, eq=False)
class EventWindow:
    """The events of one half-open window [t0_us, t1_us), still in the recording's own encoding.

    Attributes:
        t0_us: start of the window on the recording's clock.
        t1_us: its end.
        words: the events, as input to a representation's kernel: packed `(n, 2)` uint32 (see evburst.data.encoding; a view
            of the file if nothing was repaired), or an `(n,)` EVENT_DTYPE array.
        epoch_us: offset to add to the 32-bit times in `words`; 0 for EVENT_DTYPE.
        version: version of the packed encoding (1: 9 + 8 bit coordinates; 2: 14 + 14 bit).
    """

    t0_us: int
    t1_us: int
    words: NDArray[Any]
    epoch_us: int = 0
    version: int = 2

    def __len__(self) -> int:
        return len(self.words)


class EventStream(Protocol):
    """A source of events.

    Attributes:
        sensor_size: (W, H) px.
        finite: whether it can be read to its end, and again from its beginning, like a file; False for a camera and a pipe.
        faults: counts of what was repaired so far.
    """

    sensor_size: SensorSize
    finite: bool
    faults: Faults

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """Yield consecutive windows of `window_us` that start on its multiples, empty ones included (see evburst.data.slicing).

        With `start_us`, a time on the recording's clock, windows that end at or before it are skipped. A reader need not read
        them: `faults` counts only what was found in the part that was read.
        """
        ...

    def packets(self) -> Iterator[Events]:
        """Yield the events in file order, as non-empty EVENT_DTYPE arrays of at most PACKET_EVENTS, not changed afterwards."""
        ...


@dataclass(eq=False)
class EventArray:
    """An EventStream over an array of events in memory."""

    events: Events
    sensor_size: SensorSize
    finite: bool = True
    faults: Faults = field(default_factory=Faults)

    def __post_init__(self) -> None:
        self.sensor_size = SensorSize.of(self.sensor_size)

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """See EventStream.windows."""
        from evburst.data.slicing import windows_by_duration, windows_from  # it imports this module

        return windows_from(windows_by_duration(self.packets(), window_us, self.faults), start_us)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        for start in range(0, len(self.events), PACKET_EVENTS):
            yield self.events[start : start + PACKET_EVENTS]
