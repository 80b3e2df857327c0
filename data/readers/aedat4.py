"""AEDAT4 (iniVation), decoded by the `aedat` library, packet by packet.

`aedat` was chosen over iniVation's own `dv-processing`: it reads a truncated recording up to the cut, where the other rejects
it; it has 1 MB instead of 56; and it returns NumPy arrays without a conversion. Both decode the sample recording to the same
events.

Times are absolute (µs since the epoch). Bytes after the last complete packet are dropped and counted (`truncated_bytes`). If
the library panics, it also prints its own messages on stderr.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import Events, SensorSize
from evburst.data.extras import require
from evburst.data.readers import reader
from evburst.data.readers.columns import columns_to_events
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, library_errors, settle_size, split_packet

MAGIC = b"#!AER-DAT4.0\r\n"
HEADER_IDENTIFIER = b"IOHE"
_TABLE_FIELD, _DESCRIPTION_FIELD = 6, 8
_TRUNCATED = "fill whole buffer"


class Aedat4File(PacketFile):
    """The single event stream of an AEDAT4 recording; an EventStream. Frames, IMU samples and triggers are skipped."""

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        self._aedat = require("aedat", "aedat4", f"{path}: this format")
        _check_header(path)
        with library_errors(f"{path}: the header is corrupt or cut short"):
            described = self._aedat.Decoder(path).id_to_stream()
        streams = {number: stream for number, stream in described.items() if stream["type"] == "events"}
        if len(streams) != 1:
            ids = ", ".join(str(number) for number in sorted(streams))
            raise EventFileError(f"{path}: {len(streams)} event streams ({ids or 'none'}); expected one: export one")
        self._stream_id, stream = streams.popitem()
        self.sensor_size = settle_size(path, f"{stream['width']}x{stream['height']}", sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a packet is corrupt; the message states the number of events before it.
        """
        count = 0
        for packet in self._decoded():
            if packet["stream_id"] != self._stream_id or not len(packet["events"]):
                continue
            events = packet["events"]
            columns = {"t": events["t"], "x": events["x"], "y": events["y"], "p": events["on"]}
            place = f"{self.path}: events {count} to {count + len(events) - 1}"
            count += len(events)
            yield from split_packet(columns_to_events(columns, place, self.faults))
        if count == 0:
            raise NoEventsError(f"{self.path}: no event in the whole file")

    def _decoded(self) -> Iterator[dict[str, Any]]:
        """Yield the library's packets and convert its errors to ours; ends early if the file is truncated.

        The library allocates what a packet says it needs, and ends the process if there is no such memory. So it is asked
        for packets only while they are complete.
        """
        decoder = self._aedat.Decoder(self.path)
        with library_errors(f"{self.path}: the header at byte {len(MAGIC)} is corrupt or cut short"):
            packets = _CompletePackets(self.path)
        for count, _ in enumerate(packets):
            try:
                with library_errors(f"{self.path}: packet {count} is corrupt"):
                    packet = next(decoder, None)
            except EventFileError as error:
                if _TRUNCATED not in str(error):
                    raise
                break
            if packet is None:
                return
            yield packet
        self.faults.truncated_bytes = packets.rest()


@reader("aedat4", recognise=lambda head, path: head.startswith(MAGIC), suffixes=(".aedat4",))
def open_aedat4(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> Aedat4File:
    """Open an AEDAT4 file; see Aedat4File."""
    return Aedat4File(path, sensor_size)


def _check_header(path: Path) -> None:
    """Raise EventFileError unless version and header are those of AEDAT4.

    The library panics on some invalid headers, and aborts the process if it has to quote a byte of them that is not UTF-8.
    """
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            version = magic.decode("latin-1").strip() if magic.startswith(b"#!AER-DAT") else "no AEDAT header"
            raise EventFileError(f"{path}: {version}; not an AEDAT4 file")
        with library_errors(f"{path}: the header at byte {len(MAGIC)} is corrupt or cut short"):
            header = file.read(*struct.unpack("<I", file.read(4)))
            if header[4:8] != HEADER_IDENTIFIER:
                raise ValueError("no identifier")
            _description(header).decode()


def _field(header: bytes, field: int) -> int:
    """Return the offset of a field in the header, a flatbuffer, 0 if it is not set; raises struct.error for invalid offsets."""
    (table,) = struct.unpack_from("<I", header)
    fields = table - struct.unpack_from("<i", header, table)[0]
    if field >= struct.unpack_from("<H", header, fields)[0]:
        return 0
    (offset,) = struct.unpack_from("<H", header, fields + field)
    return int(table + offset) if offset else 0


def _description(header: bytes) -> bytes:
    """Return the XML in the header, its third field."""
    string_offset = _field(header, _DESCRIPTION_FIELD)
    start = string_offset + struct.unpack_from("<I", header, string_offset)[0]
    (length,) = struct.unpack_from("<I", header, start)
    return header[start + 4 : start + 4 + length]


class _CompletePackets:
    """Walks over the packets of a file by their stated lengths, up to the first one that the file does not hold as a whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, path.stat().st_size
        with path.open("rb") as file:
            file.seek(len(MAGIC))
            header = file.read(*struct.unpack("<I", file.read(4)))
        self._position = len(MAGIC) + 4 + len(header)
        # A recording that was closed properly ends with a table of its packets.
        if offset := _field(header, _TABLE_FIELD):
            (table,) = struct.unpack_from("<q", header, offset)
            self._end = table if self._position <= table < self._end else self._end

    def __iter__(self) -> Iterator[int]:
        """Yield the length of each complete packet in bytes."""
        with self._path.open("rb") as file:
            while self._position + 8 <= self._end:
                file.seek(self._position + 4)
                length = int(struct.unpack("<i", file.read(4))[0])
                if length < 0 or self._position + 8 + length > self._end:
                    return
                self._position += 8 + length
                yield length

    def rest(self) -> int:
        """Number of bytes between the last complete packet and the table, or the end of the file."""
        for _ in self:
            pass
        return self._end - self._position
