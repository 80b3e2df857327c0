"""HDF5 in RVT's and DSEC's layouts, compressed, cut and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import SensorSize
from evburst.data.readers import hdf5, open_events

from tests.event_files import SAMPLE, SIZE, collect, rows

h5py = pytest.importorskip("h5py")


def write(path: Path, extra: dict[str, Any] | None = None, **columns: Any) -> Path:
    """`events/{t,x,y,p}` from SAMPLE unless given (None leaves one out), and further datasets."""
    with h5py.File(path, "w") as file:
        for name in "txyp":
            values = columns.get(name, SAMPLE[name])
            if values is not None:
                file.create_dataset(f"events/{name}", data=values)
        for name, value in (extra or {}).items():
            file[name] = value
    return path


def test_rvt_says_the_size(tmp_path: Path) -> None:
    stream = open_events(write(tmp_path / "a.h5", {"events/width": 32, "events/height": 24}))
    assert stream.sensor_size == SIZE
    assert collect(stream).tolist() == SAMPLE.tolist()


def test_dsec_adds_its_offset_to_32_bit_times(tmp_path: Path) -> None:
    extra = {"t_offset": np.int64(51_648_500_652), "ms_to_idx": np.array([0, 0, 3], np.uint64)}
    stream = open_events(write(tmp_path / "a.h5", extra, t=SAMPLE["t"].astype(np.uint32)), SensorSize(640, 480))
    assert collect(stream)["t"].tolist() == (SAMPLE["t"] + 51_648_500_652).tolist()


def test_the_size_is_asked_for_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SensorSizeError, match="reach x = 31, y = 23: pass --sensor-size 32x24, or the sensor's true size"):
        open_events(write(tmp_path / "a.h5"))


def test_sizes_may_be_attributes(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "a.h5"), "a") as file:
        file.attrs["width"], file.attrs["height"] = 640, 480
    assert open_events(tmp_path / "a.h5").sensor_size == (640, 480)


def test_signed_polarity(tmp_path: Path) -> None:
    stream = open_events(write(tmp_path / "a.h5", p=np.array([1, -1, 1, -1, 1], np.int8)), SIZE)
    assert collect(stream)["p"].tolist() == [1, 0, 1, 0, 1]


def test_slices_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "PACKET_EVENTS", 2)
    packets = list(open_events(write(tmp_path / "a.h5"), SIZE).packets())
    assert [len(packet) for packet in packets] == [2, 2, 1]
    assert np.concatenate(packets).tolist() == SAMPLE.tolist()


def test_blosc(tmp_path: Path) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=SAMPLE[name], chunks=(2,), **plugin.Blosc())
    assert collect(open_events(tmp_path / "a.h5", SIZE)).tolist() == SAMPLE.tolist()


def test_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EventFileError, match="not a whole HDF5 file"):
        open_events(path, SIZE)


def test_a_corrupt_chunk(tmp_path: Path) -> None:
    t = np.arange(5000)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "xyp":
            file[f"events/{name}"] = np.zeros(len(t), np.uint8)
        dataset = file.create_dataset("events/t", data=t, chunks=(1000,), compression="gzip")
        chunk = dataset.id.get_chunk_info(3)
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\x00" * chunk.size
    (tmp_path / "a.h5").write_bytes(content)
    stream = open_events(tmp_path / "a.h5", SIZE)
    with pytest.raises(EventFileError, match="/events/t from event 0 cannot be read"):
        collect(stream)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": np.empty(0, np.int64), "x": [], "y": [], "p": []}, "events/t is empty"),
        ({"p": None}, "group 'events': no column p; it has t, x, y"),
        ({"x": np.zeros(4, np.uint16)}, "the columns' lengths differ: {'t': 5, 'x': 4, 'y': 5, 'p': 5}"),
    ],
)
def test_layouts_that_are_none(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(EventFileError) as error:
        open_events(write(tmp_path / "a.h5", **columns), SIZE)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("frames", "no group 'events'; it has frames"), ("CD/events", "Prophesee's own HDF5 layout")]
)
def test_other_hdf5_files(tmp_path: Path, name: str, message: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = 1
    with pytest.raises(EventFileError, match=message):
        open_events(tmp_path / "a.h5", SIZE)


@pytest.mark.parametrize("offset", [-1, 2**62, np.arange(2), "soon"])
def test_an_offset_that_is_no_time(tmp_path: Path, offset: Any) -> None:
    with pytest.raises(EventFileError, match=r"t_offset is|not a whole HDF5 file"):
        open_events(write(tmp_path / "a.h5", {"t_offset": offset}), SIZE)


def test_chunks_that_are_missing_are_no_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "xyp":
            file[f"events/{name}"] = np.zeros(5000, np.uint8)
        file.create_dataset("events/t", (5000,), np.int64, chunks=(1000,))[:3000] = np.arange(3000)
    with pytest.raises(EventFileError, match=r"not a whole HDF5 file \(/events/t has 3 of its 5 chunks\)"):
        open_events(tmp_path / "a.h5", SIZE)


def test_a_corrupt_group_is_refused(tmp_path: Path) -> None:
    """The library raises RuntimeError, KeyError and others than OSError here."""
    path = write(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes().replace(b"HEAP", b"HEEP").replace(b"SNOD", b"SNAD"))
    with pytest.raises(EventFileError, match="not a whole HDF5 file"):
        open_events(path, SIZE)


def test_times_in_seconds_are_refused(tmp_path: Path) -> None:
    stream = open_events(write(tmp_path / "a.h5", t=SAMPLE["t"] * 1e-6), SIZE)
    with pytest.raises(EventFileError, match="t is float64, expected whole numbers; are they seconds"):
        collect(stream)


def test_pixels_beyond_16_bits_are_left_out(tmp_path: Path) -> None:
    stream = open_events(write(tmp_path / "a.h5", x=np.array([-1, 70_000, 1, 2, 3])), SIZE)
    assert collect(stream)["x"].tolist() == [1, 2, 3]
    assert stream.faults.found() == {"outside_sensor": 2}


def test_falling_times_are_kept_in_order(tmp_path: Path) -> None:
    events = rows((10, 0, 0, 1), (5, 0, 0, 1), (20, 0, 0, 1), (20, 0, 0, 0), (21, 0, 0, 1))
    assert collect(open_events(write(tmp_path / "a.h5", t=events["t"]), SIZE))["t"].tolist() == [10, 5, 20, 20, 21]
