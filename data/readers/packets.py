"""What readers of packets share: the stream's skeleton, bounded windows, errors of libraries, the unknown sensor size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from evburst.data.errors import ConfigError, EvburstError, EventFileError, SensorSizeError
from evburst.data.events import PACKET_EVENTS, Events, EventWindow, Faults, SensorSize
from evburst.data.slicing import windows_by_duration, windows_from

MAX_WINDOW_EVENTS = 1 << 25
"""Most events of one window: 436 MB, ten times what the busiest sensor sends in 50 ms. More have a broken clock."""

_SIZE_PACKETS = 10
_ASK = "pass --sensor-size WIDTHxHEIGHT"


class PacketFile:
    """A recording read packet by packet: an EventStream. A format implements `packets`.

    Attributes:
        path: the file.
        sensor_size: (W, H) px.
        faults: what was repaired so far, counted.
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
        """See EventStream.windows. What lies before `start_us` is read, too."""
        packets = bounded_packets(self.path, self.packets(), window_us)
        return windows_from(windows_by_duration(packets, window_us, self.faults), start_us)


def bounded_packets(path: Path, packets: Iterable[Events], window_us: int) -> Iterator[Events]:
    """The same packets; an error before a window would hold many more than MAX_WINDOW_EVENTS.

    Raises:
        EventFileError: packet after packet lies in one window: a file of one time, say.
    """
    # By the event in the middle of a packet: a single corrupt time is no reason to count on.
    current, count = -1, 0
    for packet in packets:
        if len(packet) and (index := int(packet["t"][len(packet) // 2]) // window_us) != current:
            current, count = index, 0
        count += len(packet)
        if count > MAX_WINDOW_EVENTS:
            raise too_many_in_window(path, current * window_us, window_us)
        yield packet


def too_many_in_window(path: Path, t0_us: int, window_us: int) -> EventFileError:
    """The error for a window of more than MAX_WINDOW_EVENTS."""
    return EventFileError(
        f"{path}: more than {MAX_WINDOW_EVENTS} events in the {window_us * 1e-6:g} s from {t0_us} µs on: are the times right "
        "(--time-unit)? else take shorter windows"
    )


def split_packets(packets: Iterable[Events]) -> Iterator[Events]:
    """The same events in packets of 1 to PACKET_EVENTS."""
    for packet in packets:
        for start in range(0, len(packet), PACKET_EVENTS):
            yield packet[start : start + PACKET_EVENTS]


@contextmanager
def library_errors(meaning: str) -> Iterator[None]:
    """Make whatever a library raises on corrupt content into an EventFileError: `meaning` and the first line it says.

    Parsers that trust their input raise nearly anything; a panic of Rust's is not even an Exception, and has only a name.
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


def settle_size(path: Path, said: str | None, given: SensorSize | None, packets: Callable[[], Iterator[Events]]) -> SensorSize:
    """The sensor's size as the file says it ("WxH"), else as the caller does.

    Raises:
        SensorSizeError: both do and disagree; or neither does, then with the smallest size that holds the events.
    """
    if said is None:
        if given is None:
            raise _size_unknown(path, packets())
        return given
    try:
        size = SensorSize.parse(said)
    except ConfigError:
        if given is None:
            raise SensorSizeError(f"{path}: the file says {said[:40]!r} for the sensor's size, which is none; {_ASK}") from None
        return given
    if given is not None and given != size:
        raise SensorSizeError(f"{path}: the file says {size}, --sensor-size says {given}; leave the flag out")
    return size


def _size_unknown(path: Path, packets: Iterator[Events]) -> SensorSizeError:
    """The error that asks for the size, suggesting one from the first ten packets."""
    reach = [(int(packet["x"].max()), int(packet["y"].max())) for packet in islice(packets, _SIZE_PACKETS)]
    if not reach:
        return SensorSizeError(f"{path}: the file does not say the sensor's size; {_ASK}")
    x, y = (max(axis) for axis in zip(*reach, strict=True))
    return SensorSizeError(
        f"{path}: the file does not say the sensor's size; its events reach x = {x}, y = {y}: "
        f"pass --sensor-size {SensorSize(x + 1, y + 1)}, or the sensor's true size if that is larger"
    )
