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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import EVENT_DTYPE, Events, SensorSize, joined
from evburst.data.readers import reader
from evburst.data.readers.aedat2 import CHIPS
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, settle_size

MAGIC = b"#!AER-DAT3.1"
END = re.compile(rb"^#!END-HEADER\r?\n", re.MULTILINE)
PACKET_HEADER = struct.Struct("<HHIIIIII")
POLARITY = 1
EVENT_BYTES = 8
_MAX_OVERFLOW = (1 << 31) - 1
_MAX_HEADER_BYTES = 1 << 16
_MAX_EVENT_BYTES = 1 << 24
_JOINED_EVENTS = 1 << 16
_SOURCE = re.compile(rb"^#\s*Source\s+\d+:\s*(\S+)", re.MULTILINE | re.IGNORECASE)


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
        waiting: list[Events] = []
        total = count = 0
        for events in self._decoded():
            waiting.append(events)
            count += len(events)
            if count >= _JOINED_EVENTS:
                yield joined(waiting)
                total, count = total + count, 0
                waiting = []
        if count:
            yield joined(waiting)
        if total + count == 0:
            raise NoEventsError(f"{self.path}: no event in the whole file")

    def _decoded(self) -> Iterator[Events]:
        """Yield the events of each packet, at most _JOINED_EVENTS at a time."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            position = self.offset
            while header := file.read(PACKET_HEADER.size):
                if len(header) < PACKET_HEADER.size:
                    self.faults.truncated_bytes = len(header)
                    return
                kind, size, overflow, capacity, number = self._check_packet(header, position)
                position += PACKET_HEADER.size
                left = capacity * size
                for start in range(0, number, _JOINED_EVENTS) if kind == POLARITY else ():
                    expected = min(_JOINED_EVENTS, number - start) * size
                    data = file.read(expected)
                    left -= len(data)
                    whole = len(data) // size * size
                    yield self._events(np.frombuffer(data[:whole], "<u4").reshape(-1, 2), overflow)
                    if len(data) < expected:
                        self.faults.truncated_bytes = len(data) - whole
                        return
                position += capacity * size
                if left and file.seek(0, 2) < position:
                    self.faults.truncated_bytes = max(left - (position - file.tell()), 0)
                    return
                file.seek(position)

    def _check_packet(self, header: bytes, position: int) -> tuple[int, int, int, int, int]:
        """Check a packet's header and return (type, bytes per event, overflow, capacity, number of events)."""
        kind, _, size, t_place, overflow, capacity, number, valid = PACKET_HEADER.unpack(header)
        is_polarity = size == EVENT_BYTES and t_place == 4 if kind == POLARITY else 0 < size <= _MAX_EVENT_BYTES
        if not is_polarity or not valid <= number <= capacity:
            raise EventFileError(
                f"{self.path}: the packet at byte {position} is corrupt: type {kind}, {size} bytes per event, "
                f"capacity {capacity}, {number} events, {valid} of them valid"
            )
        if overflow > _MAX_OVERFLOW:
            raise EventFileError(
                f"{self.path}: the packet at byte {position} is corrupt: its header counts {overflow} overflows of the clock"
            )
        return kind, size, overflow, capacity, number

    def _events(self, words: NDArray[np.uint32], overflow: int) -> Events:
        data = words[:, 0]
        is_valid = (data & 1) == 1
        self.invalid_events += len(data) - int(is_valid.sum())
        data = data[is_valid]
        events = np.empty(len(data), EVENT_DTYPE)
        events["t"] = (words[is_valid, 1] & 0x7FFFFFFF).astype(np.int64) + (overflow << 31)
        events["x"], events["y"], events["p"] = data >> 17, data >> 2 & 0x7FFF, data >> 1 & 1
        return events


@reader("aedat3", recognise=lambda head, path: head.startswith(MAGIC))
def open_aedat3(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> Aedat3File:
    """Open an AEDAT 3.1 file; see Aedat3File."""
    return Aedat3File(path, sensor_size)


def _stated_size(header: bytes) -> str | None:
    """Return the size of the camera that the header names, or None if it is unknown."""
    for source in _SOURCE.finditer(header):
        for chip, (size, _) in CHIPS.items():
            if source[1].decode("latin-1").lower().startswith(chip):
                return str(size)
    return None
