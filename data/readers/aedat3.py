"""AEDAT 3.1 (cAER; DVS128 Gesture): lines of text that begin with '#', then packets of little-endian events.

A packet has a header of 28 bytes: type and source (uint16), then six uint32: bytes per event, offset of the time in it,
overflow count of the 31-bit clock, capacity, number of events, number of valid ones. Only packets of type polarity (1) hold
events, of 8 bytes each: bit 0 valid, bit 1 ON, y bits 2-16, x bits 17-31, from the top-left corner; then the time in µs, int32.
The header names the camera (`#Source 1: DVS128`), which determines the sensor's size.

Dropped and counted: bytes after the last complete event of a truncated file (`faults.truncated_bytes`), events that are marked
invalid (`invalid_events`), and packets of other types.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import EVENT_DTYPE, Events, Faults, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.aedat2 import CHIPS
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, settle_size

MAGIC = b"#!AER-DAT3.1"
END = re.compile(rb"^#!END-HEADER\r?\n", re.MULTILINE)
PACKET_HEADER = struct.Struct("<HHIIIIII")
POLARITY = 1
EVENT_BYTES = 8
_MAX_TIME = _MAX_OVERFLOW = (1 << 31) - 1
_TIME, _TIME_AT = struct.Struct("<I"), PACKET_HEADER.size + 4
_MAX_HEADER_BYTES = 1 << 16
_MAX_EVENT_BYTES = 1 << 24
_JOINED_EVENTS = 1 << 16
_BUFFER_BYTES = 1 << 18
_KEPT_FILES = 256
_DISORDER_US = 1_000_000
"""Largest step back in time for which a part of a recording is the same as if everything before it had been read."""

_SOURCE = re.compile(rb"^#\s*Source\s+\d+:\s*(\S+)", re.MULTILINE | re.IGNORECASE)


class _Packet(NamedTuple):
    """A packet of events: the byte at which they begin, how many are in the file, the overflow count, the first one's time."""

    offset: int
    events: int
    overflow: int
    first_us: int


class Aedat3File(PacketFile):
    """The polarity events of an AEDAT 3.1 recording; an EventStream.

    Attributes:
        offset: number of bytes before the first packet.
        invalid_events: number of events marked invalid so far.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            head = file.read(_MAX_HEADER_BYTES)
        end = END.search(head)
        if not head.startswith(MAGIC) or end is None:
            raise EventFileError(f"{path}: no AEDAT 3.1 header that ends with #!END-HEADER")
        self.offset, self.invalid_events = end.end(), 0
        if path.stat().st_size <= self.offset:
            raise EventFileError(f"{path}: no packet after the header, which ends at byte {self.offset}")
        self.sensor_size = settle_size(path, _stated_size(head[: self.offset]), sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a packet is corrupt; the message states its byte offset.
        """
        with self._opened() as file:
            any_events = False
            for events in self._decoded(file, _packets(self.path, file, self.offset, self.faults)):
                any_events |= len(events) > 0
                yield events
        if not any_events:
            raise NoEventsError(f"{self.path}: no event in the whole file")

    def packets_between(self, first_us: int, end_us: int) -> Iterator[Events]:
        """See evburst.data.random_access.Skipping; of the other packets only the headers are read, once for several parts."""
        status = self.path.stat()
        found, truncated = _found(self.path, self.offset, (status.st_size, status.st_mtime_ns))
        first = found[:, _Packet._fields.index("first_us")]
        following = np.append(first[1:], first[-1:])
        # A packet lasts until the next one begins. One of the two times may be corrupt.
        early = np.maximum(first, following) < first_us - _DISORDER_US
        late = np.minimum(first, following) >= end_us + _DISORDER_US
        early[-1:] = False
        if not late[-1:].any():  # the file's end belongs to this part
            self.faults.truncated_bytes = truncated
        with self._opened() as file:
            yield from self._decoded(file, map(_Packet._make, found[~(early | late)].tolist()))

    def _opened(self) -> BinaryIO:
        return self.path.open("rb", buffering=_BUFFER_BYTES)

    def _decoded(self, file: BinaryIO, packets: Iterable[_Packet]) -> Iterator[Events]:
        """Yield the events of packets, of several small ones together and of a large one in parts."""
        waiting: list[NDArray[np.uint32]] = []
        overflows: list[int] = []
        count = 0
        for packet in packets:
            for start in range(0, packet.events, _JOINED_EVENTS):
                file.seek(packet.offset + start * EVENT_BYTES)
                data = file.read(min(_JOINED_EVENTS, packet.events - start) * EVENT_BYTES)
                waiting.append(np.frombuffer(data[: len(data) // EVENT_BYTES * EVENT_BYTES], "<u4").reshape(-1, 2))
                overflows.append(packet.overflow)
                count += len(waiting[-1])
                if count >= _JOINED_EVENTS:
                    yield self._events(waiting, overflows)
                    waiting, overflows, count = [], [], 0
        if count:
            yield self._events(waiting, overflows)

    def _events(self, parts: list[NDArray[np.uint32]], overflows: list[int]) -> Events:
        """Decode the words `(n, 2)` of several packets, each with its overflow count."""
        words = np.concatenate(parts)
        epochs = np.repeat(np.array(overflows, np.int64) << 31, [len(part) for part in parts])
        is_valid = (words[:, 0] & 1) == 1
        if not is_valid.all():
            self.invalid_events += len(words) - int(is_valid.sum())
            words, epochs = words[is_valid], epochs[is_valid]
        data = words[:, 0]
        events = np.empty(len(data), EVENT_DTYPE)
        events["t"] = (words[:, 1] & _MAX_TIME).astype(np.int64) + epochs
        events["x"], events["y"], events["p"] = data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1
        return events


@reader("aedat3", recognise=lambda head, path: head.startswith(MAGIC))
def open_aedat3(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> Aedat3File:
    """Open an AEDAT 3.1 file; see Aedat3File."""
    return Aedat3File(path, sensor_size)


def _packets(path: Path, file: BinaryIO, offset: int, faults: Faults) -> Iterator[_Packet]:
    """Yield the packets of events in a file from a byte on; the file may be read between them."""
    end, position, camera = file.seek(0, 2), offset, None
    while position < end:
        file.seek(position)
        head = file.read(PACKET_HEADER.size + EVENT_BYTES)
        if len(head) < PACKET_HEADER.size:
            faults.truncated_bytes = len(head)
            return
        kind, source, size, overflow, capacity, number = _check_packet(path, head[: PACKET_HEADER.size], position)
        position += PACKET_HEADER.size
        events = min(number, (end - position) // size) if kind == POLARITY else 0
        if events:
            camera = source if camera is None else camera
            if source != camera:
                raise EventFileError(
                    f"{path}: events of several cameras (sources {camera} and {source}): write one of them to a file of its own"
                )
            yield _Packet(position, events, overflow, (overflow << 31) + (_TIME.unpack_from(head, _TIME_AT)[0] & _MAX_TIME))
        if position + capacity * size > end:
            faults.truncated_bytes = end - position - events * size
            return
        position += capacity * size


@lru_cache(_KEPT_FILES)
def _found(path: Path, offset: int, state: tuple[int, int]) -> tuple[NDArray[np.int64], int]:
    """Return all packets of events of a file whose size and time of change are `state`, `(n, 4)`, and the truncated bytes."""
    faults = Faults()
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        return np.array(list(_packets(path, file, offset, faults)), np.int64).reshape(-1, 4), faults.truncated_bytes


def _check_packet(path: Path, header: bytes, position: int) -> tuple[int, int, int, int, int, int]:
    """Check a packet's header and return (type, source, bytes per event, overflow, capacity, number of events)."""
    kind, source, size, t_place, overflow, capacity, number, valid = PACKET_HEADER.unpack(header)
    is_polarity = size == EVENT_BYTES and t_place == 4 if kind == POLARITY else 0 < size <= _MAX_EVENT_BYTES
    if not is_polarity or not valid <= number <= capacity:
        raise EventFileError(
            f"{path}: the packet at byte {position} is corrupt: type {kind}, {size} bytes per event, "
            f"capacity {capacity}, {number} events, {valid} of them valid"
        )
    if overflow > _MAX_OVERFLOW:
        raise EventFileError(
            f"{path}: the packet at byte {position} is corrupt: its header counts {overflow} overflows of the clock"
        )
    return kind, source, size, overflow, capacity, number


def _stated_size(header: bytes) -> str | None:
    """Return the size of the camera that the header names, or None if it is unknown."""
    for source in _SOURCE.finditer(header):
        for chip, (size, _) in CHIPS.items():
            if source[1].decode("latin-1").lower().startswith(chip):
                return str(size)
    return None
