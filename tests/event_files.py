"""Tiny recordings, byte by byte, for the tests of readers, writers and `python -m app.events`."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data.events import EVENT_DTYPE, Events, EventStream, SensorSize

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "real"
SIZE = SensorSize(32, 24)


def rows(*values: tuple[int, int, int, int]) -> Events:
    """Events from (t, x, y, p)."""
    return np.array(list(values), EVENT_DTYPE)


SAMPLE = rows((1000, 3, 4, 1), (1000, 31, 0, 0), (1750, 0, 23, 1), (62_000, 7, 9, 0), (62_001, 7, 9, 1))
"""Five events on a 32x24 sensor in 61 ms."""


def collect(stream: EventStream) -> Events:
    """All packets, which must not be empty, in one array."""
    packets = list(stream.packets())
    assert all(len(packet) for packet in packets)
    return np.concatenate([np.empty(0, EVENT_DTYPE), *packets])


def bin_bytes(events: Iterable[tuple[int, int, int, int]]) -> bytes:
    """(t, x, y, p) as 40-bit ATIS events."""
    return b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for t, x, y, p in events)


def aedat4_bytes(packets: Iterable[Events], size: SensorSize = SIZE, streams: Sequence[str] = ("EVTS",)) -> bytes:
    """An uncompressed AEDAT4 file: flatbuffers laid out by hand. Without a table at its end, as after a crash."""
    infos = "".join(
        f'<node name="{number}" path="/outInfo/{number}/"><attr key="compression" type="string">NONE</attr>'
        f'<attr key="typeIdentifier" type="string">{kind}</attr><node name="info" path="/outInfo/{number}/info/">'
        f'<attr key="sizeX" type="int">{size.width}</attr><attr key="sizeY" type="int">{size.height}</attr></node></node>'
        for number, kind in enumerate(streams)
    )
    xml = f'<dv version="2.0"><node name="outInfo" path="/outInfo/">{infos}</node></dv>'.encode()
    # Root offset, identifier; vtable (compression and dataTablePosition by default, then infoNode); table; string.
    vtable = struct.pack("<HHHHH2x", 10, 8, 0, 0, 4)
    table = struct.pack("<iI", 12, 4)
    header = struct.pack("<I4s", 20, b"IOHE") + vtable + table + struct.pack("<I", len(xml)) + xml + b"\0"
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header + b"".join(map(_aedat4_packet, packets))


def _aedat4_packet(events: Events) -> bytes:
    vtable = struct.pack("<HHH2x", 6, 8, 4)
    table = struct.pack("<iI", 8, 8)
    items = b"".join(struct.pack("<qhh?3x", *event) for event in events.tolist())
    # Four bytes of padding, so that the items, which follow their number, are aligned to 8 bytes.
    buffer = struct.pack("<I4s", 16, b"EVTS") + vtable + table + struct.pack("<II", 0, len(events)) + items
    body = struct.pack("<I", len(buffer)) + buffer
    return struct.pack("<ii", 0, len(body)) + body


def real(name: str) -> Path:
    """A recording of ../shared; the test is skipped where it is not."""
    if not (REAL / name).is_file():
        pytest.skip(f"../shared/data/real/{name} is not here")
    return REAL / name


def digest(events: Events) -> str:
    """The first 16 digits of a SHA-256 over all fields of all events."""
    return hashlib.sha256(np.ascontiguousarray(events).tobytes()).hexdigest()[:16]
