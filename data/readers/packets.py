"""Shared parts of the readers: the base class of recordings, bounded windows, errors of libraries, the sensor size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from evburst.data.errors import ConfigError, EvburstError, EventFileError, SensorSizeError, SensorSizeUnknownError
from evburst.data.events import MAX_SENSOR_PIXELS, MAX_SENSOR_SIDE, PACKET_EVENTS, Events, EventWindow, Faults, SensorSize
from evburst.data.slicing import live_windows, windows_by_duration, windows_from

MAX_WINDOW_EVENTS = 1 << 25
"""Maximum number of events per window: 436 MB, ten times what the busiest sensor sends in 50 ms. More means a broken clock."""

_SIZE_PACKETS = 10
PASS_SIZE = "pass --sensor-size WIDTHxHEIGHT"


class PacketFile:
    """A recording that is read packet by packet; an EventStream. A subclass implements `packets`.

    Attributes:
        path: the file.
        sensor_size: (W, H) px.
        faults: counts of what was repaired so far.
    """

    finite = True
    sensor_size: SensorSize

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults = Faults()

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        raise NotImplementedError

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """See EventStream.windows. Events before `start_us` are read as well."""
        packets = bounded_packets(self.path, self.packets(), window_us)
        cut = windows_by_duration if self.finite else live_windows
        return windows_from(cut(packets, window_us, self.faults), start_us)


def bounded_packets(path: Path, packets: Iterable[Events], window_us: int) -> Iterator[Events]:
    """Pass packets on, and raise before a window could hold many more than MAX_WINDOW_EVENTS.

    Raises:
        EventFileError: too many consecutive packets lie in one window, for example because all times are equal.
    """
    # Judged by the event in the middle of a packet, because a single time may be corrupt.
    current, count = -1, 0
    for packet in packets:
        if len(packet) and (index := int(packet["t"][len(packet) // 2]) // window_us) != current:
            current, count = index, 0
        count += len(packet)
        if count > MAX_WINDOW_EVENTS:
            raise too_many_in_window(path, current * window_us, window_us)
        yield packet


def too_many_in_window(path: Path, t0_us: int, window_us: int) -> EventFileError:
    """Create the error for a window of more than MAX_WINDOW_EVENTS."""
    return EventFileError(
        f"{path}: more than {MAX_WINDOW_EVENTS} events within {window_us * 1e-6:g} s from {t0_us} µs: check the unit of time "
        "(--time-unit), or use shorter windows"
    )


def split_packet(events: Events) -> Iterator[Events]:
    """Split events into packets of 1 to PACKET_EVENTS."""
    for start in range(0, len(events), PACKET_EVENTS):
        yield events[start : start + PACKET_EVENTS]


@contextmanager
def library_errors(meaning: str) -> Iterator[None]:
    """Convert any exception that a library raises on corrupt content to an EventFileError: `meaning` and its first line.

    Parsers that trust their input raise almost anything. A Rust panic is not even an Exception, and is recognised by name.
    """
    try:
        yield
    except EvburstError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first_line = str(error).partition("\n")[0]
        raise EventFileError(f"{meaning} ({first_line[:200]})") from None


def settle_size(
    path: Path, stated: str | None, given: SensorSize | None, packets: Callable[[], Iterator[Events]]
) -> SensorSize:
    """Return the sensor's size as stated in the file ("WxH"), or else as given by the caller.

    Raises:
        SensorSizeError: both are known and disagree.
        SensorSizeUnknownError: neither is known; the error suggests the smallest size that contains the events.
    """
    if stated is None:
        if given is None:
            raise _size_unknown(path, packets())
        return given
    try:
        size = SensorSize.parse(stated)
    except ConfigError:
        if given is None:
            raise SensorSizeError(f"{path}: the file's sensor size {stated[:40]!r} is invalid; {PASS_SIZE}") from None
        return given
    if given is not None and given != size:
        raise SensorSizeError(
            f"{path}: the file says {size}, --sensor-size says {given}; leave the flag out, and give it in a separate run to "
            "files that do not state their size"
        )
    return size


def _size_unknown(path: Path, packets: Iterator[Events]) -> SensorSizeUnknownError:
    """Create the error that asks for the size and suggests one, based on the first ten packets."""
    size = extent(islice(packets, _SIZE_PACKETS))
    if size is None or math.prod(size) > MAX_SENSOR_PIXELS:
        return SensorSizeUnknownError(f"{path}: the file does not say the sensor's size; {PASS_SIZE}")
    return SensorSizeUnknownError(
        f"{path}: the file does not say the sensor's size; its largest coordinates are x = {size.width - 1}, "
        f"y = {size.height - 1}: pass --sensor-size {size}, or the sensor's true size if that is larger"
    )


def extent(packets: Iterable[Events]) -> SensorSize | None:
    """Return the size of the smallest sensor with all events, except those that no sensor can have; None without others."""
    width = height = 0
    for packet in packets:
        possible = (packet["x"] < MAX_SENSOR_SIDE) & (packet["y"] < MAX_SENSOR_SIDE)
        events = packet if possible.all() else packet[possible]
        if len(events):
            width, height = max(width, int(events["x"].max()) + 1), max(height, int(events["y"].max()) + 1)
    return SensorSize(width, height) if width else None
