"""HDF5 as Metavision writes it: ECF chunks in each form, the last one shorter, the sensor's size; cut and corrupt chunks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from evburst.data.errors import ConfigError, EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.readers import ReadOptions, ecf, open_events
from tests.event_files import SAMPLE, collect, ecf_bytes, put_metavision

h5py = pytest.importorskip("h5py")
CHUNK = 512
SIZE = SensorSize(1280, 720)


def scan(n: int, seed: int = 0) -> Events:
    """Events that sweep along rows, in bursts and after silences of up to a day, with long runs of each value."""
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    steps = np.where(rng.random(n) < 0.1, rng.choice([1, 14, 15, 16, 300, 86_400_000_000], n), 0)
    events["t"] = np.cumsum(steps) + 5_000_000_000
    events["x"] = np.cumsum(rng.integers(0, 3, n)) % 1280
    events["y"] = np.repeat(rng.integers(0, 720, n), rng.choice([1, 3, 30, 31, 32, 400], n))[:n]
    events["p"] = np.repeat(np.arange(n) % 2, rng.choice([1, 126, 127, 300], n))[:n]
    return events


def table(events: Events, n: int = 0) -> NDArray[Any]:
    """The events as Metavision's rows, padded to n."""
    out = np.zeros(max(n, len(events)), ecf.ROW)
    for name in "txyp":
        out[name][: len(events)] = events[name]
    return out


def write(path: Path, events: Events, form: int = 0, change: Callable[[bytes], bytes] = bytes, **attributes: str) -> Path:
    """A recording as Metavision's; `change` is applied to its last chunk."""
    with h5py.File(path, "w") as file:
        put_metavision(file, events, CHUNK, form, change)
        for name, value in attributes.items():
            file.attrs[name] = value
    return path


@pytest.mark.parametrize("form", [0, 1, 2])
@pytest.mark.parametrize("n", [1, 2, 3, 5, CHUNK, 3 * CHUNK + 7])
def test_every_form(tmp_path: Path, form: int, n: int) -> None:
    stream = open_events(write(tmp_path / "a.hdf5", scan(n, n), form, geometry="1280x720"))
    assert stream.sensor_size == SIZE
    assert len(stream) == n
    assert stream.time_unit == "us"
    assert collect(stream).tolist() == scan(n, n).tolist()


def test_packets_begin_in_the_middle_of_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evburst.data.readers.hdf5.PACKET_EVENTS", 300)
    path = write(tmp_path / "a.hdf5", scan(1500), 1, geometry="1280x720")
    assert [len(packet) for packet in open_events(path).packets()] == 5 * [300]
    assert collect(open_events(path)).tolist() == scan(1500).tolist()


def test_the_size_may_be_missing_and_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", SAMPLE)
    with pytest.raises(SensorSizeError, match="pass --sensor-size 32x24"):
        open_events(path)
    assert collect(open_events(path, SensorSize(32, 24))).tolist() == SAMPLE.tolist()
    with pytest.raises(SensorSizeError, match="the file says 1280x720"):
        open_events(write(tmp_path / "b.hdf5", SAMPLE, geometry="1280x720"), SensorSize(32, 24))


def test_tables_may_be_compressed_otherwise(tmp_path: Path) -> None:
    """As h5repack leaves them."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("CD/events", data=table(SAMPLE), compression="gzip")
        file.attrs["geometry"] = np.bytes_("32x24")
    assert collect(open_events(tmp_path / "a.hdf5")).tolist() == SAMPLE.tolist()


def test_a_chunk_without_the_filter(tmp_path: Path) -> None:
    """HDF5 leaves an optional filter out of a chunk if it fails."""
    path = write(tmp_path / "a.hdf5", SAMPLE, geometry="32x24")
    with h5py.File(path, "r+") as file:
        file["CD/events"].id.write_direct_chunk((0,), table(SAMPLE, CHUNK).tobytes(), 1)
    assert collect(open_events(path)).tolist() == SAMPLE.tolist()


@pytest.mark.parametrize("form", [0, 1, 2])
def test_a_chunk_that_is_cut_anywhere(form: int) -> None:
    chunk = ecf_bytes(scan(40), form)
    assert ecf.decode(chunk) is not None
    assert [ecf.decode(chunk[:n]) for n in range(len(chunk))] == len(chunk) * [None]


def test_any_bytes_are_refused_or_decoded() -> None:
    rng = np.random.default_rng(0)
    chunk, refused = np.frombuffer(b"".join(ecf_bytes(scan(90), form) for form in (0, 1, 2)), np.uint8), 0
    for _ in range(2000):
        n = int(rng.integers(1, 120))
        start = rng.integers(0, len(chunk) - n)
        head = struct.pack("<I", int(rng.integers(0, 60)) << 2 | int(rng.integers(0, 4)))
        rows = ecf.decode(head + chunk[start : start + n].tobytes())
        refused += rows is None
        assert rows is None or len(rows) == struct.unpack("<I", head)[0] >> 2
    assert 200 < refused < 2000


@pytest.mark.parametrize(
    "change",
    [
        lambda chunk: chunk[:-1],
        lambda chunk: struct.pack("<I", 4 << 2) + chunk[4:],
        lambda chunk: struct.pack("<I", 65_536 << 2) + chunk[4:],
        lambda chunk: chunk[:2],
    ],
    ids=["cut", "too few events", "too many", "no head"],
)
def test_corrupt_chunks_are_named(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    events = scan(2 * CHUNK + 5)
    path = write(tmp_path / "a.hdf5", events, 0, change, geometry="1280x720")
    with pytest.raises(EventFileError, match=f"CD/events: the compressed chunk from event {2 * CHUNK} on is corrupt"):
        collect(open_events(path))


def test_no_events_and_other_columns(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="CD/events is empty: no event"):
        open_events(write(tmp_path / "a.hdf5", SAMPLE[:0], geometry="32x24"))
    with pytest.raises(ConfigError, match="the columns have names"):
        open_events(write(tmp_path / "b.hdf5", SAMPLE, geometry="32x24"), options=ReadOptions(columns="x,y,p,t"))
