"""What readers of packets share: the stream's skeleton, columns of any type made into events, the unknown sensor size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from evburst.data.errors import ConfigError, EvburstError, EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, EventWindow, Faults, SensorSize
from evburst.data.slicing import windows_by_duration, windows_from
from numpy.typing import NDArray

COLUMN_NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps", "t_us", "timestamp_us"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
"""Names under which files keep the four columns, in lower case."""

_SIZE_PACKETS = 10
_MAX_COORDINATE = np.iinfo(np.uint16).max
_MAX_TIME_US = 1 << 62
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
        return windows_from(windows_by_duration(self.packets(), window_us, self.faults), start_us)


def columns_to_events(columns: Mapping[str, NDArray[Any]], place: str, faults: Faults) -> Events:
    """Columns t, x, y, p of any whole-number type as EVENT_DTYPE (a copy).

    p may be bool, {0, 1} or {-1, 1}. Pixels that 16 bits cannot hold are left out and counted in `faults.outside_sensor`;
    others outside the sensor stay, as in every format: who places the events counts them.

    Args:
        columns: four `(n,)` arrays.
        place: file and events meant, for the errors, e.g. "a.npy: events 0 to 99".
        faults: where events left out are counted.

    Raises:
        EventFileError: a column is not of whole numbers, a time is not in [0, 2**62], or a polarity is none of -1, 0, 1.
    """
    for name, column in columns.items():
        if column.ndim != 1:
            raise EventFileError(f"{place}: {name} is {column.shape}, expected one number per event")
        if column.dtype.kind not in ("iub" if name == "p" else "iu"):
            hint = "; are they seconds? save microseconds" if name == "t" else ""
            raise EventFileError(f"{place}: {name} is {column.dtype}, expected whole numbers{hint}")
    t, x, y, p = (columns[name] for name in "txyp")
    if len(t) and (t.min() < 0 or t.max() > _MAX_TIME_US):
        raise EventFileError(f"{place}: times from {t.min()} to {t.max()} µs: is t the first column? expected t x y p")
    wrong = (p != 1) & (p != 0) & (p != -1) if p.dtype.kind == "i" else p > 1
    if wrong.any():
        index = int(np.argmax(wrong))
        raise EventFileError(f"{place}: polarity {p[index]} at number {index} of these; expected 0 and 1, or -1 and 1")
    events = np.empty(len(t), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = t, x.astype(np.uint16), y.astype(np.uint16), p > 0
    fits = (x >= 0) & (x <= _MAX_COORDINATE) & (y >= 0) & (y <= _MAX_COORDINATE)
    if not fits.all():
        faults.outside_sensor += int(len(fits) - fits.sum())
        events = events[fits]
    return events


def find_columns(names: Sequence[str], place: str) -> dict[str, str]:
    """Which of `names` is t, which x, y and p, e.g. {"t": "timestamp", ...}.

    Raises:
        EventFileError: one of them is missing.
    """
    lower = {name.strip().lower(): name for name in names}
    found = {column: lower[alias] for column, aliases in COLUMN_NAMES.items() for alias in aliases if alias in lower}
    missing = [column for column in COLUMN_NAMES if column not in found]
    if missing:
        raise EventFileError(f"{place}: no column {', '.join(missing)}; it has {', '.join(names)[:200] or 'none'}")
    return found


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
