"""Tiny recordings, byte by byte, for the tests of readers, writers and `python -m evburst.app.events`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evburst.data.encoding import pack
from evburst.data.events import EVENT_DTYPE, Events, EventStream, SensorSize
from evburst.data.readers import ecf
from evburst.data.readers.dat import dat_header

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


def dat_bytes(events: Events, size: SensorSize = SIZE) -> bytes:
    """A DAT version 2 file; unlike `write_events` with events outside the sensor, too."""
    return dat_header(size) + pack(events).tobytes()


def bin_bytes(events: Iterable[tuple[int, int, int, int]]) -> bytes:
    """(t, x, y, p) as 40-bit ATIS events."""
    return b"".join((x << 32 | y << 24 | p << 23 | t).to_bytes(5, "big") for t, x, y, p in events)


def aedat2_bytes(events: Events, chip: str, size: SensorSize) -> bytes:
    """An AEDAT 2.0 file of jAER; `chip` as its header names it, or empty for an old header."""
    named = f"# AEChip: {chip}\r\n" if chip else ""
    text = f"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick: 1 us\r\n{named}"
    x, y, p = size.width - 1 - events["x"].astype("u4"), size.height - 1 - events["y"].astype("u4"), events["p"].astype("u4")
    addresses = x << 12 | y << 22 | p << 11 if "DAVIS" in chip.upper() else x << 1 | y << 8 | 1 - p
    return text.encode() + np.stack([addresses, events["t"].astype("u4")], 1).astype(">u4").tobytes()


def aedat3_bytes(packets: Iterable[Events], source: str, other: bool = False) -> bytes:
    """An AEDAT 3.1 file of cAER; with `other`, packets of another type and invalid events between those of polarity."""
    content = f"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: {source}\r\n#!END-HEADER\r\n".encode()
    for events in packets:
        data = 1 | events["p"].astype("u4") << 1 | events["y"].astype("u4") << 2 | events["x"].astype("u4") << 17
        words = np.stack([data, events["t"].astype("u8") & 0x7FFFFFFF], 1).astype("<u4")
        n_valid, overflow = len(words), int(events["t"][0]) >> 31
        if other:
            content += struct.pack("<HHIIIIII", 3, 1, 36, 4, 0, 2, 1, 1) + bytes(72)
            words = np.concatenate([words, words[:1] & ~np.array([1, 0], "<u4")])
        content += struct.pack("<HHIIIIII", 1, 1, 8, 4, overflow, len(words), len(words), n_valid) + words.tobytes()
    return content


def aedat4_bytes(
    packets: Iterable[Events], size: SensorSize = SIZE, streams: Sequence[str] = ("EVTS",), table: bytes = b""
) -> bytes:
    """An uncompressed AEDAT4 file: flatbuffers laid out by hand. Without a `table` at its end, as after a crash."""
    infos = "".join(
        f'<node name="{number}" path="/outInfo/{number}/"><attr key="compression" type="string">NONE</attr>'
        f'<attr key="originalModuleName" type="string">test</attr><attr key="originalOutputName" type="string">{kind}</attr>'
        f'<attr key="typeIdentifier" type="string">{kind}</attr><node name="info" path="/outInfo/{number}/info/">'
        f'<attr key="sizeX" type="int">{size.width}</attr><attr key="sizeY" type="int">{size.height}</attr>'
        '<attr key="source" type="string">test</attr></node></node>'
        for number, kind in enumerate(streams)
    )
    xml = f'<dv version="2.0"><node name="outInfo" path="/outInfo/">{infos}</node></dv>'.encode()
    body = b"".join(map(_aedat4_packet, packets))
    text = struct.pack("<I", len(xml)) + xml + b"\0"
    # Root offset, identifier; vtable (compression by default, dataTablePosition, infoNode); table; string.
    start = struct.pack("<I4s", 20, b"IOHE") + struct.pack("<HHHHH2x", 10, 16, 0, 4 if table else 0, 12)
    place = len(b"#!AER-DAT4.0\r\n") + 4 + len(start) + 16 + len(text) + len(body)
    header = start + struct.pack("<iqI", 12, place, 4) + text
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header + body + table


def _aedat4_packet(events: Events) -> bytes:
    vtable = struct.pack("<HHH2x", 6, 8, 4)
    table = struct.pack("<iI", 8, 8)
    items = b"".join(struct.pack("<qhh?3x", *event) for event in events.tolist())
    # Four bytes of padding, so that the items, which follow their number, are aligned to 8 bytes.
    buffer = struct.pack("<I4s", 16, b"EVTS") + vtable + table + struct.pack("<II", 0, len(events)) + items
    body = struct.pack("<I", len(buffer)) + buffer
    return struct.pack("<ii", 0, len(body)) + body


# Words of RAW files, as the specification lays them out.


def evt2_cd(p: int, t: int, x: int, y: int) -> int:
    return p << 28 | (t & 63) << 22 | x << 11 | y


def evt2_high(t: int) -> int:
    return 8 << 28 | (t >> 6) & 0xFFFFFFF


def evt21_cd(p: int, t: int, x: int, y: int, valid: int) -> int:
    return evt2_cd(p, t, x, y) << 32 | valid


def evt21_high(t: int) -> int:
    return evt2_high(t) << 32


def evt4_cd(p: int, t: int, x: int, y: int, vector: bool = False) -> int:
    return (12 if vector else 10) + p << 28 | (t & 63) << 22 | x << 11 | y


def evt4_high(t: int) -> int:
    return 14 << 28 | (t >> 6) & 0xFFFFFFF


def evt3_y(y: int) -> int:
    return 0x0000 | y


def evt3_x(p: int, x: int) -> int:
    return 0x2000 | p << 11 | x


def evt3_base(p: int, x: int) -> int:
    return 0x3000 | p << 11 | x


def evt3_vect(valid: int, width: int) -> int:
    return (0x4000 if width == 12 else 0x5000) | valid


def evt3_low(t: int) -> int:
    return 0x6000 | t & 0xFFF


def evt3_high(t: int) -> int:
    return 0x8000 | (t >> 12) & 0xFFF


def encode_evt2(events: Events) -> bytes:
    """EVT2 words: a TIME_HIGH whenever the bits above the lowest six change, then an event a word."""
    words, high = [], -1
    for t, x, y, p in events.tolist():
        if t >> 6 != high:
            words.append(evt2_high(t))
        high = t >> 6
        words.append(evt2_cd(p, t, x, y))
    return np.array(words, "<u4").tobytes()


def encode_evt21(events: Events, legacy: bool = False) -> bytes:
    """EVT2.1 words; events that follow each other in one row, of one time and polarity, share a word of 32 pixels."""
    words, high = [], -1
    for t, x, y, p, valid in _vectors(events, 32):
        if t >> 6 != high:
            words.append(evt21_high(t))
        high = t >> 6
        words.append(evt21_cd(p, t, x, y, valid))
    halves = np.array(words, "<u8").view("<u4").reshape(-1, 2)
    return (halves[:, ::-1] if legacy else halves).tobytes()


def encode_evt3(events: Events) -> bytes:
    """EVT3 words; events that follow each other in one row, of one time and polarity, share VECT_12 or VECT_8 words."""
    words, high, low, row, base = [], -1, -1, -1, (-1, -1)
    for t, x, y, p, valid in _vectors(events, 12):
        if t >> 12 != high:
            words.append(evt3_high(t))
            low = -1
        if t & 0xFFF != low:
            words.append(evt3_low(t))
        if y != row:
            words.append(evt3_y(y))
        high, low, row = t >> 12, t & 0xFFF, y
        if valid == 1:
            words.append(evt3_x(p, x))
            continue
        if (x, p) != base:
            words.append(evt3_base(p, x))
        width = 12 if valid >> 8 else 8
        words.append(evt3_vect(valid, width))
        base = (x + width, p)
    return np.array(words, "<u2").tobytes()


def encode_evt4(events: Events) -> bytes:
    """EVT4 words; events that follow each other in one row, of one time and polarity, share a vector of 32 pixels."""
    words, high = [], -1
    for t, x, y, p, valid in _vectors(events, 32):
        if t >> 6 != high:
            words.append(evt4_high(t))
        high = t >> 6
        words.append(evt4_cd(p, t, x, y, valid != 1))
        if valid != 1:
            words.append(valid)
    return np.array(words, "<u4").tobytes()


def _vectors(events: Events, width: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(t, x, y, p, valid): runs of events of one t, y and p and of rising x, as bits of up to `width` pixels from x on."""
    key, first, valid = (0, 0, 0), 0, 0
    for t, x, y, p in events.tolist():
        step = x - first
        if valid and key == (t, y, p) and 0 < step < width and valid < 1 << step:
            valid |= 1 << step
            continue
        if valid:
            yield key[0], first, *key[1:], valid
        key, first, valid = (t, y, p), x, 1
    if valid:
        yield key[0], first, *key[1:], valid


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each value with the number of times that it is repeated."""
    for value, same in groupby(values):
        yield value, len(list(same))


def _ecf_times(t: Sequence[int]) -> bytes:
    """Times as in ecf.py, which must not fall."""
    out, before = [struct.pack("<Q", t[0])], t[0]
    for time, n in _runs(t):
        step, before = time - before, time
        if step > 14:
            while step:
                out.append(bytes([0xF0 | step & 15]))
                step >>= 4
        out.append(bytes([step << 4 | min(n, 15)]) + (struct.pack("<H", n) if n >= 15 else b""))
    return b"".join(out)


def _ecf_runs(values: Sequence[int], code: str, bits: int) -> bytes:
    """Rows or polarities."""
    longest = (1 << bits) - 1
    parts = (
        struct.pack(f"<{code}", value << bits | min(n, longest)) + (struct.pack("<H", n) if n >= longest else b"")
        for value, n in _runs(values)
    )
    return b"".join(parts)


def _ecf_columns(x: Sequence[int]) -> bytes:
    """Columns; the bits beyond the last event are set."""
    out, i = [], 0
    while i < len(x):
        first, mask = x[i], 0
        i += 1
        for k in range(5):
            if i >= len(x) or x[i] == first + 1 + k:
                mask |= 16 >> k
                i += 1
        out.append(struct.pack("<H", first << 5 | mask))
    return b"".join(out)


def _ecf_packed(values: Sequence[int], code: str) -> bytes:
    """Four values, of three quarters of a number each, in three numbers; the last ones are padded."""
    bits = 8 * struct.calcsize(f"<{code}")
    quarter, out = bits // 4, []
    for i in range(0, len(values), 4):
        a, b, c, d = [*values[i : i + 4], 5, 5, 5][:4]
        low_b, low_c = b & (1 << quarter) - 1, c & (1 << 2 * quarter) - 1
        numbers = a << quarter | low_b, b >> quarter << 2 * quarter | low_c, c >> 2 * quarter << 3 * quarter | d
        out.append(struct.pack(f"<3{code}", *numbers))
    return b"".join(out)


def ecf_bytes(events: NDArray[Any], form: int) -> bytes:
    """A chunk in form 0, 1 or 2."""
    t, x, y, p = (events[name].tolist() for name in "txyp")
    head = struct.pack("<I", len(t) << 2 | form) + _ecf_times(t)
    if form == 2:
        return head + _ecf_packed([b << 12 | a << 1 | c for a, b, c in zip(x, y, p, strict=True)], "I")
    if form == 1:
        return head + _ecf_runs(y, "H", 5) + _ecf_packed([a << 1 | c for a, c in zip(x, p, strict=True)], "H")
    return head + _ecf_runs(y, "H", 5) + _ecf_columns(x) + _ecf_runs(p, "B", 7)


def put_metavision(file: Any, events: Events, chunk: int, form: int, change: Callable[[bytes], bytes] = bytes) -> None:
    """Put the data sets of a recording of Metavision into an h5py file; `change` is applied to the last chunk."""
    import h5py

    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((chunk,))
    settings.set_filter(ecf.FILTER, h5py.h5z.FLAG_OPTIONAL)
    group, space = h5py.h5g.create(file.id, b"CD"), h5py.h5s.create_simple((len(events),), (h5py.h5s.UNLIMITED,))
    dataset = h5py.h5d.create(group, b"events", h5py.h5t.py_create(ecf.ROW), space, settings)
    for first in range(0, len(events), chunk):
        content = ecf_bytes(events[first : first + chunk], form)
        dataset.write_direct_chunk((first,), change(content) if first + chunk >= len(events) else content)
    file["CD/indexes"] = np.zeros(3, [("id", "<u8"), ("ts", "<i8")])
    file["EXT_TRIGGER/events"] = np.zeros(1, [("p", "<i2"), ("t", "<i8"), ("id", "<i2")])


def ros_header(size: SensorSize = SIZE) -> bytes:
    """How messages of ROS 1 with events begin: header, height, width."""
    return struct.pack("<4I3s2I", 7, 1, 2, 3, b"cam", size.height, size.width)


def ros_array(events: Events) -> bytes:
    """An EventArray of ROS 1."""
    each = (struct.pack("<2H2IB", x, y, t // 10**6, t % 10**6 * 1000, p) for t, x, y, p in events.tolist())
    return ros_header() + struct.pack("<I", len(events)) + b"".join(each)


def encode_mono(events: Events, base_ns: int) -> bytes:
    """Packets of the encoding "mono"."""
    t, x, y, p = (events[name].astype(np.uint64) for name in "txyp")
    return (t * 1000 - base_ns | x << 32 | y << 48 | p << 63).astype("<u8").tobytes()


def write_bag(path: Path, kind: str, messages: Iterable[bytes]) -> None:
    """A bag of ROS 1 with messages of one topic."""
    rosbag1 = pytest.importorskip("rosbags.rosbag1")
    path.unlink(missing_ok=True)  # the library replaces no file
    with rosbag1.Writer(path) as writer:
        connection = writer.add_connection("/events", kind, msgdef="-", md5sum="*")
        for k, message in enumerate(messages):
            writer.write(connection, k, message)


def real(name: str) -> Path:
    """A recording of ../shared; the test is skipped where it is not."""
    if not (REAL / name).is_file():
        pytest.skip(f"../shared/data/real/{name} is not here")
    return REAL / name


def digest(events: Events) -> str:
    """The first 16 digits of a SHA-256 over all fields of all events."""
    return hashlib.sha256(np.ascontiguousarray(events).tobytes()).hexdigest()[:16]


def fed(path: Path, content: bytes, until: threading.Event | None = None) -> threading.Thread:
    """A pipe and who writes into it; with `until`, it stays open until that is set."""
    os.mkfifo(path)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as pipe:  # The reader may have seen enough.
            pipe.write(content)
            pipe.flush()
            assert until is None or until.wait(300)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    return writer
