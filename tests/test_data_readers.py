"""open_events: content before name, a named format before both; the contract of every reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.errors import ConfigError, DataError, EventFileError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, EventArray, SensorSize
from evburst.data.readers import READERS, open_events, recognise_format, recording_suffixes, stream_format
from evburst.data.writers import write_events
from tests.conftest import ROOT
from tests.event_files import SAMPLE, SIZE, aedat4_bytes, bin_bytes, collect

KNOWN = ", ".join(sorted(READERS))


def make_hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name in "txyp":
            file[f"events/{name}"] = SAMPLE[name]


def make_aedat4(path: Path) -> None:
    pytest.importorskip("aedat")
    path.write_bytes(aedat4_bytes([SAMPLE]))


MAKERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "aedat4": ("a.aedat4", make_aedat4),
    "bin": ("a.bin", lambda path: path.write_bytes(bin_bytes(SAMPLE.tolist()))),
    "csv": ("a.csv", lambda path: write_events(path, SAMPLE, SIZE)),
    "dat": ("a.dat", lambda path: write_events(path, SAMPLE, SIZE)),
    "hdf5": ("a.h5", make_hdf5),
    "npy": ("a.npy", lambda path: np.save(path, SAMPLE)),
    "npz": ("a.npz", lambda path: write_events(path, SAMPLE, SIZE)),
}


@pytest.fixture(params=sorted(MAKERS))
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """SAMPLE in each format."""
    name, make = MAKERS[request.param]
    make(tmp_path / name)
    return request.param, tmp_path / name


def test_a_file_is_recognised_and_gives_its_events(recording: tuple[str, Path]) -> None:
    name, path = recording
    assert recognise_format(path) == name
    stream = open_events(path, SIZE)
    events = collect(stream)
    assert events.dtype == EVENT_DTYPE
    assert events.tolist() == SAMPLE.tolist()
    assert (stream.sensor_size, stream.finite, stream.faults.found()) == (SIZE, True, {})


def test_content_goes_before_the_name(recording: tuple[str, Path]) -> None:
    name, path = recording
    if name == "bin":
        pytest.skip("has nothing but its name")
    other = path.rename(path.with_suffix(".xyz"))
    assert recognise_format(other) == name
    assert recognise_format(other.rename(path.with_suffix(".bin"))) == name


def test_windows_hold_every_event(recording: tuple[str, Path]) -> None:
    pytest.importorskip("evburst.data.slicing")
    windows = list(open_events(recording[1], SIZE).windows(10_000))
    assert [(w.t0_us, w.t1_us, len(w)) for w in windows] == [
        (10_000 * k, 10_000 * (k + 1), n) for k, n in enumerate([3, 0, 0, 0, 0, 0, 2])
    ]


@pytest.mark.parametrize("start_us", [-1, 999, 1000, 9999, 10_000, 61_999, 62_001, 70_000, 80_000])
def test_windows_from_a_time_on_are_those_that_end_after_it(recording: tuple[str, Path], start_us: int) -> None:
    stream = open_events(recording[1], SIZE)
    found = [(w.t0_us, len(w)) for w in stream.windows(10_000, start_us)]
    assert found == [(w.t0_us, len(w)) for w in stream.windows(10_000) if w.t1_us > start_us]


def test_packets_can_be_read_twice(recording: tuple[str, Path]) -> None:
    stream = open_events(recording[1], SIZE)
    assert collect(stream).tolist() == collect(stream).tolist()


def test_a_named_format_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "events.raw5"
    path.write_bytes(bin_bytes(SAMPLE.tolist()))
    assert collect(open_events(path, format="bin")).tolist() == SAMPLE.tolist()


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        open_events(tmp_path / "a.dat", format="avi")
    assert str(error.value) == f"format 'avi' is unknown (known: {KNOWN})"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty (0 bytes)"),
        (b"\x00\x01\x02", f"not an event recording of a known format (known: {KNOWN}); select one with --format"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.xyz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EventFileError) as error:
        open_events(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize("value", [5, None])
def test_what_is_no_path_is_one_clear_error(value: Any) -> None:
    with pytest.raises(DataError, match="expected the path of a recording, received"):
        open_events(value)


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="cannot be read"):
        open_events(tmp_path)


@pytest.mark.parametrize("suffix", [".dat", ".aedat4", ".h5", ".npy", ".npz", ".csv", ".bin"])
@pytest.mark.parametrize("content", [b"\x00", b"\xff" * 700, b"%" * 3, b"1 2", bytes(range(256)) * 3])
def test_rubbish_under_every_name_is_an_event_file_error(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(EventFileError) as error:
        open_events(path, SIZE)
    assert str(error.value).startswith(str(path))


def test_long_recordings_come_in_packets_of_bounded_length(tmp_path: Path) -> None:
    events = np.zeros(PACKET_EVENTS + 3, EVENT_DTYPE)
    events["t"] = np.arange(len(events))
    events["x"] = events["t"] % 7
    for suffix in (".dat", ".npz"):
        write_events(tmp_path / f"a{suffix}", events, SensorSize(8, 8))
    np.save(tmp_path / "a.npy", events)
    for suffix in (".dat", ".npz", ".npy"):
        packets = list(open_events(tmp_path / f"a{suffix}", None if suffix != ".npy" else SensorSize(8, 8)).packets())
        assert max(map(len, packets)) <= PACKET_EVENTS
        np.testing.assert_array_equal(np.concatenate(packets), events)


def test_the_page_of_formats_lists_their_names_and_suffixes() -> None:
    rows = [line.split("|")[2:4] for line in (ROOT / "docs" / "formats.md").read_text().splitlines() if line.startswith("| ")]
    table = [row for row in rows if row[0].strip().startswith("`.")]
    names = [name for _, cell in table for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(READERS)
    assert {suffix for cell, _ in table for suffix in re.findall(r"`(\.\w+)`", cell)} == recording_suffixes()


def _of_size(size: Any) -> EventArray:
    stream = EventArray(np.zeros(1, EVENT_DTYPE), SensorSize(34, 34))
    stream.sensor_size = size
    return stream


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (None, "returned no EventStream, but NoneType"),
        ((packet for packet in ()), "returned no EventStream, but generator"),
        (_of_size(SensorSize(*np.array([34, 34]))), "states the sensor size"),
        (_of_size("34x34"), "states the sensor size '34x34'"),
    ],
)
def test_what_an_own_reader_returns_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: object, message: str
) -> None:
    (tmp_path / "a.dat").write_bytes(b"own")
    monkeypatch.setitem(READERS, "csv", lambda *_: stream)
    with pytest.raises(EventFileError, match=rf"a\.dat: the reader of 'csv' {message}"):
        open_events(tmp_path / "a.dat", format="csv")


def test_an_own_reader_may_return_a_stream_without_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unhashable(EventArray):
        __hash__ = None  # type: ignore[assignment]

    (tmp_path / "a.dat").write_bytes(b"own")
    array = Unhashable(np.zeros(1, EVENT_DTYPE), SensorSize(34, 34))
    monkeypatch.setitem(READERS, "csv", lambda *_: array)
    assert (stream := open_events(tmp_path / "a.dat", format="csv")) is array
    assert stream_format(stream) == "own"
