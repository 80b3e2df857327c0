"""HDF5 in RVT's and DSEC's layouts, compressed, cut and broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import SensorSize
from evburst.data.readers import ReadOptions, hdf5, open_events
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


def test_offsets_in_nanoseconds_are_added_before_times_are_rounded(tmp_path: Path) -> None:
    times = SAMPLE["t"] * 1000 + 600
    stream = open_events(write(tmp_path / "a.h5", {"t_offset": np.int64(5600)}, t=times), SIZE, options=ReadOptions("ns"))
    assert collect(stream)["t"].tolist() == (SAMPLE["t"] + 6).tolist()


def test_the_size_is_asked_for_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(
        SensorSizeError, match="largest coordinates are x = 31, y = 23: pass --sensor-size 32x24, or the sensor's true size"
    ):
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
    with pytest.raises(EventFileError, match="not a complete HDF5 file"):
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
    with pytest.raises(EventFileError, match="/events/t from event 0 cannot be read"):
        open_events(tmp_path / "a.h5", SIZE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"t": np.empty(0, np.int64), "x": [], "y": [], "p": []}, "events/t is empty"),
        ({"p": None}, "group 'events': no column p; found t, x, y"),
        ({"x": np.zeros(4, np.uint16)}, "the columns' lengths differ: {'t': 5, 'x': 4, 'y': 5, 'p': 5}"),
    ],
)
def test_layouts_that_are_none(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(EventFileError) as error:
        open_events(write(tmp_path / "a.h5", **columns), SIZE)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("frames", "no group 'events'; found frames"), ("CD/events", "group 'CD/events' is int64")]
)
def test_other_hdf5_files(tmp_path: Path, name: str, message: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = 1
    with pytest.raises(EventFileError, match=message):
        open_events(tmp_path / "a.h5", SIZE)


@pytest.mark.parametrize("offset", [-1, 2**62, np.arange(2), "soon"])
def test_an_offset_that_is_no_time(tmp_path: Path, offset: Any) -> None:
    with pytest.raises(EventFileError, match=r"t_offset is|not a complete HDF5 file"):
        open_events(write(tmp_path / "a.h5", {"t_offset": offset}), SIZE)


def test_chunks_that_are_missing_are_no_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "xyp":
            file[f"events/{name}"] = np.zeros(5000, np.uint8)
        file.create_dataset("events/t", (5000,), np.int64, chunks=(1000,))[:3000] = np.arange(3000)
    with pytest.raises(EventFileError, match=r"/events/t has 3 of its 5 chunks"):
        open_events(tmp_path / "a.h5", SIZE)


def test_a_corrupt_group_is_refused(tmp_path: Path) -> None:
    """The library raises RuntimeError, KeyError and others than OSError here."""
    path = write(tmp_path / "a.h5")
    path.write_bytes(path.read_bytes().replace(b"HEAP", b"HEEP").replace(b"SNOD", b"SNAD"))
    with pytest.raises(EventFileError, match="not a complete HDF5 file"):
        open_events(path, SIZE)


def test_times_with_fractions_are_seconds(tmp_path: Path) -> None:
    assert collect(open_events(write(tmp_path / "a.h5", t=SAMPLE["t"] * 1e-6), SIZE)).tolist() == SAMPLE.tolist()


@pytest.mark.parametrize("kind", ["u4", "f8"])
def test_v2e_keeps_one_table(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = np.stack([SAMPLE[name] for name in "txyp"], 1).astype(kind)
    assert collect(open_events(tmp_path / "a.h5", SIZE)).tolist() == SAMPLE.tolist()


def test_a_table_in_another_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = np.stack([SAMPLE[name] for name in "xypt"], 1)
    with pytest.raises(EventFileError, match="look like x,y,p,t: pass --columns x,y,p,t"):
        open_events(tmp_path / "a.h5", SIZE)
    stream = open_events(tmp_path / "a.h5", SIZE, options=ReadOptions(columns="x,y,p,t"))
    assert collect(stream).tolist() == SAMPLE.tolist()


def test_a_table_of_fields_and_names_of_event_utils(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = SAMPLE
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for name in "xyp":
            file[f"events/{name}s"] = SAMPLE[name]
        file["events/ts"] = SAMPLE["t"] * 1e-6
    for name in "ab":
        assert collect(open_events(tmp_path / f"{name}.h5", SIZE)).tolist() == SAMPLE.tolist()


@pytest.mark.parametrize("offset", [5, np.array([5]), np.array([[5.0]])])
def test_an_offset_may_be_an_array(tmp_path: Path, offset: object) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["t_offset"] = offset
    assert collect(open_events(path, SIZE))["t"].tolist() == (SAMPLE["t"] + 5).tolist()


def test_an_offset_of_several_numbers_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["t_offset"] = [5, 6]
    with pytest.raises(EventFileError, match=r"t_offset is int64 \(2,\); expected one number"):
        open_events(path, SIZE)


def test_a_file_that_is_being_written_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    script = (
        "import sys; from evburst.data.readers import open_events\nfrom evburst.data.events import SensorSize\n"
        "try: open_events(sys.argv[1], SensorSize(32, 24))\nexcept Exception as error: print(error)\n"
    )
    with h5py.File(path, "a"):
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "another program has it open for writing: close it there, or read a copy" in done.stdout


def link_to_another_file(file: h5py.File, other: Path) -> None:
    file["events"] = h5py.ExternalLink(other, "/events")


def link_by_a_soft_link(file: h5py.File, other: Path) -> None:
    file["elsewhere"] = h5py.ExternalLink(other, "/")
    file["events"] = h5py.SoftLink("/elsewhere/events")


def one_column_elsewhere(file: h5py.File, other: Path) -> None:
    for name in "typ":
        file[f"events/{name}"] = SAMPLE[name]
    file["events/x"] = h5py.ExternalLink(other, "/events/x")


def a_size_elsewhere(file: h5py.File, other: Path) -> None:
    for name in "txyp":
        file[f"events/{name}"] = SAMPLE[name]
    file["t_offset"] = h5py.ExternalLink(other, "/t_offset")


def external_storage(file: h5py.File, other: Path) -> None:
    for name in "typ":
        file[f"events/{name}"] = SAMPLE[name]
    file["events"].create_dataset("x", shape=(5,), dtype="u1", external=[(other, 0, 5)])


def virtual_data_set(file: h5py.File, other: Path) -> None:
    for name in "typ":
        file[f"events/{name}"] = SAMPLE[name]
    layout = h5py.VirtualLayout((5,), "u2")
    layout[:] = h5py.VirtualSource(other, "events/x", (5,))
    file["events"].create_virtual_dataset("x", layout)


MAKERS = [link_to_another_file, link_by_a_soft_link, one_column_elsewhere, a_size_elsewhere, external_storage, virtual_data_set]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_other_files_are_not_opened(tmp_path: Path, make: Callable[[h5py.File, Path], None], kind: str) -> None:
    """A pipe that nobody writes to would hang whoever opened it."""
    other = tmp_path / "other.h5"
    if kind == "file":
        with h5py.File(write(other), "a") as file:
            file["t_offset"] = 0
    else:
        os.mkfifo(other)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, other)
    with pytest.raises(EventFileError, match="which is not followed by default; pass --allow-external to follow it"):
        open_events(tmp_path / "a.h5", SIZE)


@pytest.mark.parametrize("make", [link_to_another_file, link_by_a_soft_link, one_column_elsewhere, virtual_data_set])
def test_other_files_are_read_when_allowed(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, write(tmp_path / "other.h5"))
    stream = open_events(tmp_path / "a.h5", SIZE, options=ReadOptions(allow_external=True))
    assert collect(stream).tolist() == SAMPLE.tolist()


def test_links_inside_the_file_are_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.move("events", "camera")
        file["events"] = h5py.SoftLink("camera")
    assert collect(open_events(path, SIZE)).tolist() == SAMPLE.tolist()


def test_a_circle_of_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events"] = h5py.SoftLink("/events")
    with pytest.raises(EventFileError, match="events is a link that leads back to itself"):
        open_events(tmp_path / "a.h5", SIZE)


def test_sizes_that_the_file_does_not_hold(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", shape=(1 << 40,), dtype="i8")
    with pytest.raises(EventFileError, match="declares 1099511627776 events, but the file holds only 0 bytes of them"):
        open_events(tmp_path / "a.h5", SIZE)


def test_chunks_too_large_to_unpack(tmp_path: Path) -> None:
    n = 1 << 26
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "txyp":
            dataset = file.create_dataset(f"events/{name}", shape=(n,), dtype="i8", chunks=(n,), compression="gzip")
            dataset.id.write_direct_chunk((0,), b"x")
    with pytest.raises(EventFileError, match="is compressed in chunks of 536870912 bytes; at most 268435456 are supported"):
        open_events(tmp_path / "a.h5", SIZE)


def test_text_is_no_column(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "typ":
            file[f"events/{name}"] = SAMPLE[name]
        file.create_dataset("events/x", data=["a"] * 5, dtype=h5py.string_dtype())
    with pytest.raises(EventFileError, match="x is object, expected numbers"):
        collect(open_events(tmp_path / "a.h5", SIZE))


def test_frames_are_no_events(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.zeros((2, 20, 4, 4), np.uint8)
    with pytest.raises(EventFileError, match=r"frames computed from events, \(2, 20, 4, 4\)"):
        open_events(tmp_path / "a.h5", SIZE)


def test_pixels_beyond_16_bits_are_left_out(tmp_path: Path) -> None:
    stream = open_events(write(tmp_path / "a.h5", x=np.array([-1, 70_000, 1, 2, 3])), SIZE)
    assert collect(stream)["x"].tolist() == [1, 2, 3]
    assert stream.faults.found() == {"outside_sensor": 2}


def test_falling_times_are_kept_in_order(tmp_path: Path) -> None:
    events = rows((10, 0, 0, 1), (5, 0, 0, 1), (20, 0, 0, 1), (20, 0, 0, 0), (21, 0, 0, 1))
    assert collect(open_events(write(tmp_path / "a.h5", t=events["t"]), SIZE))["t"].tolist() == [10, 5, 20, 20, 21]
