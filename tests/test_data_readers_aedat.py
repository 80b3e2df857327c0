"""AEDAT 2.0 and 3.1: byte fixtures, chips, wraps, cuts, corrupt packets, and real recordings against a slow reference."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, SensorSize
from evburst.data.readers import open_events, recognise_format
from evburst.data.readers.aedat2 import Aedat2File
from evburst.data.readers.aedat3 import Aedat3File
from evburst.data.readers.clock import new_clock, unwrap
from tests.event_files import REAL, SAMPLE, aedat2_bytes, aedat3_bytes, collect, real, rows

DVS128 = SensorSize(128, 128)
JAER = "ch.unizh.ini.jaer.chip.retina.DVS128"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_bytes_of_a_dvs128(tmp_path: Path) -> None:
    # y = 2 from the bottom, x = 3 from the right, bit 0 clear: ON at t = 0x102 µs
    content = b"#!AER-DAT2.0\r\n# AEChip: " + JAER.encode() + b"\r\n" + bytes.fromhex("00000206 00000102")
    stream = open_events(write(tmp_path / "a.aedat", content))
    assert (recognise_format(tmp_path / "a.aedat"), stream.sensor_size) == ("aedat2", DVS128)
    assert collect(stream).tolist() == [(258, 124, 125, 1)]


def test_bytes_of_a_davis(tmp_path: Path) -> None:
    # y = 2 in bits 22-30, x = 3 in bits 12-21, bit 11 set: ON
    content = b"#!AER-DAT2.0\r\n# AEChip: eu.seebetter.ini.chips.davis.Davis346blue\r\n" + bytes.fromhex("00803800 00000102")
    stream = open_events(write(tmp_path / "a.aedat", content))
    assert stream.sensor_size == (346, 260)
    assert collect(stream).tolist() == [(258, 342, 257, 1)]


def test_bytes_of_aedat3(tmp_path: Path) -> None:
    header = bytes.fromhex("0100 0100 08000000 04000000 01000000 01000000 01000000 01000000")
    content = b"#!AER-DAT3.1\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n" + header + bytes.fromhex("0b000600 02010000")
    stream = open_events(write(tmp_path / "a.aedat", content))
    assert (recognise_format(tmp_path / "a.aedat"), stream.sensor_size) == ("aedat3", DVS128)
    assert collect(stream).tolist() == [((1 << 31) + 258, 3, 2, 1)]


@pytest.mark.parametrize(
    ("chip", "size"),
    [
        (JAER, DVS128),
        ("", DVS128),
        ("eu.seebetter.ini.chips.davis.DAVIS240C", SensorSize(240, 180)),
        ("eu.seebetter.ini.chips.davis.Davis346B", SensorSize(346, 260)),
        ("eu.seebetter.ini.chips.davis.DAVIS640", SensorSize(640, 480)),
    ],
)
def test_chips(tmp_path: Path, chip: str, size: SensorSize) -> None:
    stream = open_events(write(tmp_path / "a.aedat", aedat2_bytes(SAMPLE, chip, size)))
    assert (stream.sensor_size, collect(stream).tolist(), stream.faults.found()) == (size, SAMPLE.tolist(), {})


def test_a_davis_without_its_name_is_asked_for(tmp_path: Path) -> None:
    size = SensorSize(240, 180)
    content = aedat2_bytes(SAMPLE, "DAVIS240", size).replace(b"# AEChip: DAVIS240\r\n", b"")
    path = write(tmp_path / "a.aedat", content)
    with pytest.raises(
        EventFileError, match=r"does not name the chip; pass its size with --sensor-size: .*240x180 \(davis240\)"
    ):
        open_events(path)
    assert collect(open_events(path, size)).tolist() == SAMPLE.tolist()


def test_unknown_chips_and_wrong_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.aedat", aedat2_bytes(SAMPLE, "x.CochleaAMS1c", DVS128))
    with pytest.raises(EventFileError, match="the chip 'CochleaAMS1c' is unknown"):
        open_events(path)
    write(path, aedat2_bytes(SAMPLE, JAER, DVS128))
    with pytest.raises(SensorSizeError, match="the file says 128x128, --sensor-size says 346x260"):
        open_events(path, SensorSize(346, 260))


def test_events_of_two_cameras_are_not_mixed(tmp_path: Path) -> None:
    content, end = aedat3_bytes([SAMPLE, SAMPLE], "DVS128"), b"#!END-HEADER\r\n"
    second = content.index(end) + len(end) + 28 + 8 * len(SAMPLE)
    other = bytearray(content)
    other[second + 2] = 2  # the source of the second packet
    path = write(tmp_path / "a.aedat", bytes(other))
    with pytest.raises(EventFileError, match=r"several cameras \(sources 1 and 2\): write one of them to a file of its own"):
        collect(open_events(path))


def test_special_events_are_no_events(tmp_path: Path) -> None:
    special = np.array([[0x8000, 5], [0x80000001, 6], [0x8000 | 2, 7]], ">u4").tobytes()
    stream = open_events(write(tmp_path / "a.aedat", aedat2_bytes(SAMPLE, JAER, DVS128) + special))
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert isinstance(stream, Aedat2File)
    assert stream.skipped_events == 3


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_cut_event_is_counted(tmp_path: Path, cut: int) -> None:
    for content, left in ((aedat2_bytes(SAMPLE, JAER, DVS128), 4), (aedat3_bytes([SAMPLE[:3], SAMPLE[3:]], "DVS128"), 4)):
        stream = open_events(write(tmp_path / "a.aedat", content[:-cut]))
        assert len(collect(stream)) == left
        assert stream.faults.found() == {"truncated_bytes": 8 - cut}


def test_the_clock_wraps(tmp_path: Path) -> None:
    raw = rows(((1 << 32) - 9, 1, 2, 1), ((1 << 32) - 5, 1, 2, 0), (3, 1, 2, 1), (4, 5, 6, 1))
    stream = open_events(write(tmp_path / "a.aedat", aedat2_bytes(raw, JAER, DVS128)))
    assert (collect(stream)["t"] - (1 << 32)).tolist() == [-9, -5, 3, 4]
    assert stream.faults.found() == {"time_wraps": 1}


def test_the_clock_wraps_after_a_long_silence(tmp_path: Path) -> None:
    """Of more than half of its period, which a single corrupt time could look like."""
    times = np.concatenate([np.arange(0, 10**6, 1000), np.arange(3 * 10**9, 4.5 * 10**9, 10**6)]).astype(np.int64)
    raw = rows(*((int(t) % (1 << 32), 1, 2, 1) for t in times))
    stream = open_events(write(tmp_path / "a.aedat", aedat2_bytes(raw, JAER, DVS128)))
    np.testing.assert_array_equal(collect(stream)["t"], times)
    assert stream.faults.found() == {"time_wraps": 1}


@given(
    st.lists(st.sampled_from([0, 1, 5, 1 << 31, (1 << 31) + 5, (1 << 32) - 2, (1 << 32) - 1]), max_size=40), st.integers(1, 40)
)
def test_unwrap_in_pieces_equals_the_reference(raw: list[int], piece: int) -> None:
    epoch, last, ahead, expected = 0, -1, list[int](), list[int]()
    for i, now in enumerate(raw):
        after = raw[min(i + 1, len(raw) - 1)]
        if last - now > 1 << 31 and last - after > 1 << 31:
            epoch, last = epoch + (1 << 32), now
        elif last < 0 or abs(last - now) <= 1 << 31:
            last, ahead = now, []
        elif now > last:
            ahead = [*ahead, now] if not ahead or abs(now - ahead[-1]) <= 1 << 31 else [now]
            if len(ahead) == 16:
                last, ahead = now, []
        expected.append(now + epoch)
    times, clock, found = np.array(raw, np.uint32), new_clock(), list[int]()
    for start in range(0, len(raw), piece):
        out = np.empty(min(piece, len(raw) - start), np.int64)
        unwrap(times[start : start + piece + 1], clock, out)
        found += out.tolist()
    assert found == expected


def test_data_that_begin_with_the_byte_of_a_comment(tmp_path: Path) -> None:
    size = SensorSize(240, 180)
    events = rows((7, 1, 179 - 0x23 * 4, 1), (8, 1, 3, 1))
    content = aedat2_bytes(events, "DAVIS240", size)
    assert content[-16:-15] == b"#"
    assert collect(open_events(write(tmp_path / "a.aedat", content))).tolist() == events.tolist()


def test_packets_of_other_types_and_invalid_events(tmp_path: Path) -> None:
    stream = open_events(write(tmp_path / "a.aedat", aedat3_bytes([SAMPLE[:2], SAMPLE[2:]], "DVS128", other=True)))
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert stream.faults.found() == {}


def test_a_large_packet_is_bounded(tmp_path: Path) -> None:
    events = np.zeros(PACKET_EVENTS + 70_000, EVENT_DTYPE)
    events["t"] = np.arange(len(events))
    for content in (aedat3_bytes([events], "DVS128"), aedat2_bytes(events, JAER, DVS128)):
        packets = list(open_events(write(tmp_path / "a.aedat", content)).packets())
        assert max(map(len, packets)) <= PACKET_EVENTS
        np.testing.assert_array_equal(np.concatenate(packets), events)


def test_a_part_of_aedat3_is_read_alone(tmp_path: Path) -> None:
    """Ten minutes in packets of a second, the clock overflowing in between; one packet begins with a corrupt time."""
    whole = np.zeros(6000, EVENT_DTYPE)
    whole["t"] = np.arange(6000, dtype=np.int64) * 100_000 + (1 << 31) - 300_000_000
    packets = np.split(whole, 600)
    content = bytearray(aedat3_bytes(packets, "DVS128"))
    corrupt = content.index(b"END-HEADER\r\n") + 12 + 500 * (28 + 80) + 28 + 4
    content[corrupt : corrupt + 4] = b"\xff\xff\xff\x7f"
    stream = Aedat3File(write(tmp_path / "a.aedat", bytes(content)))
    for first in (0, 1234, 2990, 5000, 5990):
        first_us, end_us = int(whole["t"][first]), int(whole["t"][first]) + 5_000_000
        found = np.concatenate(list(stream.packets_between(first_us, end_us)))
        inside = found[(found["t"] >= first_us) & (found["t"] < end_us)]
        expected = whole[(whole["t"] >= first_us) & (whole["t"] < end_us)]
        np.testing.assert_array_equal(inside, np.setdiff1d(expected, whole[5000:5001]))
        assert len(found) <= 100
    assert not list(stream.packets_between(int(whole["t"][-1]) + 10_000_000, int(whole["t"][-1]) + 20_000_000))[1:]
    write(tmp_path / "a.aedat", bytes(content[:-3]))
    list(stream.packets_between(0, 1))
    assert stream.faults.truncated_bytes == 0  # of the file's end, which is in another part
    list(stream.packets_between(0, 1 << 60))
    assert stream.faults.truncated_bytes == 5


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (4, 9, "1, 9 bytes per event"),
        (20, 99, "1, 8 bytes per event, capacity 5, 99 events, 5 of them valid"),
        (24, 99, "1, 8 bytes per event, capacity 5, 5 events, 99 of them valid"),
    ],
)
def test_a_corrupt_packet_is_named(tmp_path: Path, place: int, value: int, message: str) -> None:
    content = bytearray(aedat3_bytes([SAMPLE], "DVS128"))
    start = content.index(b"END-HEADER\r\n") + 12
    content[start + place] = value
    with pytest.raises(EventFileError, match=f"the packet at byte {start} is corrupt: type {message}"):
        collect(open_events(write(tmp_path / "a.aedat", bytes(content))))


def test_a_clock_beyond_64_bits_is_named(tmp_path: Path) -> None:
    content = bytearray(aedat3_bytes([SAMPLE], "DVS128"))
    start = content.index(b"END-HEADER\r\n") + 12
    content[start + 12 : start + 16] = b"\xff\xff\xff\xff"
    with pytest.raises(EventFileError, match=f"the packet at byte {start} is corrupt: its header counts 42949"):
        collect(open_events(write(tmp_path / "a.aedat", bytes(content))))
    content[start + 15] = 0x7F
    stream = open_events(write(tmp_path / "a.aedat", bytes(content)))
    assert collect(stream)["t"][0] >> 31 == 0x7FFFFFFF
    assert sum(len(window) for window in stream.windows(1 << 32)) == len(SAMPLE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#!AER-DAT2.0\r\n", "no event after the header, which ends at byte 14"),
        (b"#!AER-DAT2.0\r\n1234567", "no event after the header"),
        (b"#!AER-DAT3.1\r\n#!END-HEADER\r\n", "no packet after the header, which ends at byte 28"),
        (b"#!AER-DAT3.1\r\n# no end", "no AEDAT 3.1 header that ends with #!END-HEADER"),
        (b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + bytes(9), "no event in the whole file"),
        (b"#!AER-DAT1.0\r\n" + bytes(60), "#!AER-DAT1.0; supported are AEDAT 2.0, 3.1 and 4"),
        (b"something else", "no AEDAT header; supported are AEDAT 2.0, 3.1 and 4"),
    ],
)
def test_files_without_events(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(EventFileError, match=message):
        collect(open_events(write(tmp_path / "a.aedat", content), DVS128))


def slowly(path: Path) -> Events:
    """jAER's decoder of the DVS128, event by event, counted from the top-left corner."""
    content, offset = path.read_bytes(), 0
    while content[offset : offset + 1] == b"#":
        offset = content.index(b"\n", offset) + 1
    found = []
    for place in range(offset, len(content) // 8 * 8 + offset % 8 - 7, 8):
        address, t = (int.from_bytes(content[place + k : place + k + 4], "big") for k in (0, 4))
        if address < 0x8000:
            found.append((t, 127 - (address >> 1 & 127), 127 - (address >> 8 & 127), 1 - (address & 1)))
    return rows(*found)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["box_s1", "pencil_s1", "person_walking_a"])
def test_real_recordings_equal_the_reference(name: str) -> None:
    path = real(f"dvs128/{name}.aedat")
    np.testing.assert_array_equal(collect(open_events(path)), slowly(path))


@pytest.mark.shared
def test_events_lie_in_the_boxes_around_them() -> None:
    """Right only with x counted from the left and y from the top: mirrored, a tenth to six tenths of the events fit."""
    path = real("dvs128/cutter_s1.aedat")
    events = collect(open_events(path))
    t = events["t"] - events["t"][0]
    inside = total = 0
    with (REAL / "dvs128" / "boxes_auto_50ms.csv").open() as file:
        boxes = [row for row in csv.DictReader(file) if row["file"] == path.name][::20]
    for box in boxes:
        first, last = np.searchsorted(t, [int(box["t0_us"]), int(box["t1_us"])])
        window = events[first:last]
        fits = (window["x"] >= int(box["x0"])) & (window["x"] <= int(box["x1"]))
        inside += int((fits & (window["y"] >= int(box["y0"])) & (window["y"] <= int(box["y1"]))).sum())
        total += len(window)
    assert inside / total > 0.9
