"""AEDAT4: a file laid out by hand, cut and broken ones, a real recording."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from evburst.data.errors import EventFileError, MissingPackageError, SensorSizeError
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from tests.event_files import SAMPLE, SIZE, aedat4_bytes, collect, digest, real, rows

LATER = rows((70_000, 1, 1, 0))


@pytest.fixture(autouse=True)
def _aedat() -> None:
    pytest.importorskip("aedat")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_bytes_by_hand(tmp_path: Path) -> None:
    stream = open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE, LATER])))
    assert [packet.tolist() for packet in stream.packets()] == [SAMPLE.tolist(), LATER.tolist()]
    assert stream.sensor_size == SIZE
    assert stream.faults.found() == {}


def test_times_stay_64_bits_wide(tmp_path: Path) -> None:
    late = rows((1_605_537_493_718_345, 1, 2, 1))
    assert collect(open_events(written(tmp_path / "a.aedat4", aedat4_bytes([late])))).tolist() == late.tolist()


@pytest.mark.parametrize("cut", [1, 20, 39])
def test_truncated_in_the_last_packet(tmp_path: Path, cut: int) -> None:
    whole = aedat4_bytes([SAMPLE, LATER])
    lost = len(whole) - len(aedat4_bytes([SAMPLE])) - cut
    stream = open_events(written(tmp_path / "a.aedat4", whole[:-cut]))
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert stream.faults.found() == {"truncated_bytes": lost}


@pytest.mark.parametrize("length", [0x7FFFFFF0, 0x40000000, -1, 200])
def test_a_packet_longer_than_the_file(tmp_path: Path, length: int) -> None:
    """The library would allocate what the packet claims, and end the process where that fails."""
    content = bytearray(aedat4_bytes([SAMPLE, LATER]))
    start = len(aedat4_bytes([SAMPLE]))
    content[start + 4 : start + 8] = struct.pack("<i", length)
    stream = open_events(written(tmp_path / "a.aedat4", bytes(content)))
    assert collect(stream).tolist() == SAMPLE.tolist()
    assert stream.faults.found() == {"truncated_bytes": len(content) - start}


def test_the_table_at_the_end_is_no_packet(tmp_path: Path) -> None:
    stream = open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE, LATER], table=bytes(range(50)))))
    assert collect(stream).tolist() == [*SAMPLE.tolist(), *LATER.tolist()]
    assert not stream.faults.found()


@pytest.mark.parametrize("length", [14, 18, 25, 60])
def test_truncated_in_the_header(tmp_path: Path, length: int) -> None:
    with pytest.raises(EventFileError, match="corrupt or cut short"):
        open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE])[:length]))


def test_a_description_that_is_no_text(tmp_path: Path) -> None:
    """The library would abort the process while quoting the byte."""
    with pytest.raises(EventFileError, match=r"corrupt or cut short .*can't decode byte 0xe1"):
        open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE]).replace(b'version="2.0"', b'versi\xe1n="2.0"')))


def test_a_corrupt_last_time_does_not_mean_millions_of_windows(tmp_path: Path) -> None:
    stream = open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE, rows((2**61, 1, 1, 0))])))
    assert [len(window) for window in stream.windows(50_000)] == [3, 2, 1]
    assert stream.faults.found() == {"long_silences": 1}


def test_a_corrupt_packet_is_named(tmp_path: Path) -> None:
    content = bytearray(aedat4_bytes([SAMPLE, LATER]))
    at = len(aedat4_bytes([SAMPLE])) + 8
    content[at : at + 24] = b"\xff" * 24
    stream = open_events(written(tmp_path / "a.aedat4", bytes(content)))
    with pytest.raises(EventFileError, match="packet 1 is corrupt"):
        collect(stream)


@pytest.mark.parametrize("packets_of", [[], [rows()]])
def test_no_event(tmp_path: Path, packets_of: list) -> None:
    stream = open_events(written(tmp_path / "a.aedat4", aedat4_bytes(packets_of)))
    with pytest.raises(EventFileError, match="no event in the whole file"):
        collect(stream)


@pytest.mark.parametrize(("streams", "message"), [((), "0 event streams (none)"), (("EVTS", "EVTS"), "2 event streams (0, 1)")])
def test_exactly_one_event_stream(tmp_path: Path, streams: tuple[str, ...], message: str) -> None:
    path = written(tmp_path / "a.aedat4", aedat4_bytes([], streams=(*streams, "TRIG")))
    with pytest.raises(EventFileError) as error:
        open_events(path)
    assert str(error.value) == f"{path}: {message}; expected one: export one"


def test_older_versions_are_named(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match=r"#!AER-DAT1.0; supported are AEDAT 2.0, 3.1 and 4"):
        open_events(written(tmp_path / "a.aedat", b"#!AER-DAT1.0\r\n#Format: RAW\r\n\x00\x01"))


def test_a_contradicting_sensor_size(tmp_path: Path) -> None:
    with pytest.raises(SensorSizeError, match="the file says 32x24, --sensor-size says 346x260"):
        open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE])), SensorSize(346, 260))


def test_without_the_library_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(MissingPackageError, match=r'a.aedat4: this format needs aedat: pip install "aedat>=2.3"$'):
        open_events(written(tmp_path / "a.aedat4", aedat4_bytes([SAMPLE])))


@pytest.mark.shared
def test_a_real_recording() -> None:
    stream = open_events(real("davis_sample.aedat4"))
    events = collect(stream)
    assert (len(events), stream.sensor_size) == (111_954, (320, 240))
    assert (int(events["t"][0]), int(events["t"][-1])) == (1_605_537_493_718_345, 1_605_537_494_308_262)
    assert digest(events) == "8e8467d9ac3912a5"


@pytest.mark.shared
def test_a_real_recording_cut_short(tmp_path: Path) -> None:
    path = written(tmp_path / "a.aedat4", real("davis_sample.aedat4").read_bytes()[:500_000])
    stream = open_events(path)
    assert len(collect(stream)) == 59_065
    assert list(stream.faults.found()) == ["truncated_bytes"]
