"""What is given as a recording and is none: named, with the way out; pipes, folders, devices; sizes beyond memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import select
import zipfile
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest

from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS
from evburst.data.readers import open_events, packets, pipes, recognise_format, stream_format
from tests.event_files import SAMPLE, SIZE, bin_bytes, collect, dat_bytes, fed, rows

CSV = b"".join(b"%d,%d,%d,%d\n" % event for event in SAMPLE.tolist())


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


FOREIGN = {
    "gzip": (gzip.compress(dat_bytes(SAMPLE)), "compressed with gzip: gunzip it first"),
    "bzip2": (bz2.compress(dat_bytes(SAMPLE)), "compressed with bzip2: bunzip2 it first"),
    "xz": (lzma.compress(dat_bytes(SAMPLE)), "compressed with xz: unxz it first"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "compressed with zstd: unzstd it first"),
    "zip": (zipped("a.dat", dat_bytes(SAMPLE)), "a zip archive without arrays: unzip it first"),
    "PyTorch": (zipped("best/data.pkl", b"\x80\x02."), "a PyTorch file without events"),
    "mp4": (b"\x00\x00\x00\x20ftypisom" + bytes(99), "evburst live --video FILE"),
    "avi": (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(99), "evburst live --video FILE"),
    "mkv": (b"\x1a\x45\xdf\xa3" + bytes(99), "evburst live --video FILE"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a picture, not an event recording"),
    "pickle": (pickle.dumps({"t": [1]}), "a Python pickle, which can execute arbitrary code when loaded and is not supported"),
    "AppleDouble": (b"\x00\x05\x16\x07" + bytes(60), "a side file of macOS"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html>", "did the download fail?"),
    "ROS": (b"#ROSBAG V1.2\n" + bytes(99), "a ROS bag of another version"),
}


@pytest.mark.parametrize(("content", "message"), FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize(
    "name", ["a_td.dat", "a.raw", "a.npy", "a.npz", "a.h5", "a.aedat", "a.csv", "a.bin", "a.xyz", "._a_td.dat"]
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EventFileError) as error:
        open_events(tmp_path / name, SIZE)
    assert message in str(error.value)


@pytest.mark.parametrize("format", ["dat", "evt", "npz", "hdf5", "aedat4"])
def test_also_if_a_format_is_named(tmp_path: Path, format: str) -> None:
    (tmp_path / "a").write_bytes(FOREIGN["gzip"][0])
    with pytest.raises(EventFileError, match="gunzip it first"):
        open_events(tmp_path / "a", SIZE, format)


@pytest.mark.parametrize("name", ["image_0010 (1).bin", "image 10 – Kopie.bin", "IMAGE.BIN"])
def test_names_of_copies(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bin_bytes(SAMPLE.tolist()))
    assert recognise_format(tmp_path / name) == "bin"
    assert collect(open_events(tmp_path / name)).tolist() == SAMPLE.tolist()


def test_pickled_arrays_are_refused_without_advice_to_load_them(tmp_path: Path) -> None:
    objects = np.array([{"t": 1}, 2], object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", events=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(EventFileError, match=r"an array of Python objects .* is not supported") as error:
            open_events(tmp_path / name, SIZE)
        assert "allow_pickle" not in str(error.value)


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match="a folder, not a regular file; name a recording in it"):
        open_events(tmp_path)


def test_a_device_is_no_recording() -> None:
    with pytest.raises(EventFileError, match="a device, not a regular file"):
        open_events("/dev/zero")


def test_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "a.dat").symlink_to(tmp_path / "b.dat")
    (tmp_path / "b.dat").symlink_to(tmp_path / "a.dat")
    with pytest.raises(EventFileError, match="cannot be read"):
        open_events(tmp_path / "a.dat")


@pytest.mark.parametrize("header", [b"", b"t,x,y,p\n", b"# sensor_size 32x24\n"])
def test_text_is_read_from_a_pipe_once(tmp_path: Path, header: bytes) -> None:
    lines = header + CSV * 20_000  # More than the pipe and the head hold.
    writer = fed(tmp_path / "a", lines)
    stream = open_events(tmp_path / "a", SIZE)
    assert stream_format(stream) == "csv"
    assert len(collect(stream)) == 5 * 20_000
    writer.join()
    with pytest.raises(EventFileError, match="a pipe can be read only once: save it to a file first"):
        collect(stream)


def test_a_window_does_not_wait_for_more_than_the_next_event(tmp_path: Path) -> None:
    """Of a pipe whose writer pauses, the windows that are complete are read."""
    lines = b"".join(b"%d,1,1,1\n" % t for t in range(0, 500_000, 50))
    assert 2 * pipes._READ_BYTES > len(lines) > pipes._READ_BYTES  # private: more than is read to recognise the format
    seen, waited = Event(), list[bool]()

    def write() -> None:
        with (tmp_path / "a").open("wb", 0) as file:
            file.write(lines)
            waited.append(seen.wait(20))

    os.mkfifo(tmp_path / "a")
    (writer := Thread(target=write)).start()
    windows = open_events(tmp_path / "a", SIZE).windows(50_000)
    assert [len(window) for window in islice(windows, 9)] == [1000] * 9
    seen.set()
    writer.join()
    assert waited == [True]


def test_other_formats_are_not_read_from_a_pipe(tmp_path: Path) -> None:
    writer = fed(tmp_path / "a", dat_bytes(SAMPLE))
    with pytest.raises(
        EventFileError, match="a pipe; dat recordings can only be read from regular files: save it to a file first"
    ):
        open_events(tmp_path / "a")
    writer.join()


def test_a_pipe_that_nobody_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "WAIT_S", 0.0)
    os.mkfifo(tmp_path / "a.dat")
    with pytest.raises(EventFileError, match="a pipe, not a regular file, and nothing was written into it"):
        open_events(tmp_path / "a.dat")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="an unnamed pipe is known by /proc")
def test_an_unnamed_pipe_is_empty_once_it_has_no_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can write into it any more, so that nothing is waited for; a writer that has not written yet is."""
    monkeypatch.setattr(pipes, "WAIT_S", 1e6)
    reading, writing = os.pipe()

    def select_after_writing(*descriptors: list[int]) -> None:
        os.write(writing, CSV)
        os.close(writing)
        monkeypatch.undo()
        select.select(*descriptors)

    monkeypatch.setattr(pipes, "select", SimpleNamespace(select=select_after_writing))
    assert len(collect(open_events(Path(f"/dev/fd/{reading}"), SIZE))) == 5
    monkeypatch.setattr(pipes, "WAIT_S", 1e6)
    with pytest.raises(EventFileError, match=rf"^/dev/fd/{reading}: the pipe is empty \(0 bytes\)$"):
        open_events(Path(f"/dev/fd/{reading}"), SIZE)
    os.close(reading)


def test_a_sensor_beyond_memory(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(
        dat_bytes(SAMPLE).replace(b"Height 24", b"Height 16384").replace(b"Width 32", b"Width 16384")
    )
    with pytest.raises(SensorSizeError, match="16384x16384"):
        open_events(tmp_path / "a.dat")


def test_items_beyond_memory(tmp_path: Path) -> None:
    padded = np.zeros(3, [*EVENT_DTYPE.descr, ("pad", "V1000000")])
    np.savez_compressed(tmp_path / "a.npz", events=padded)
    np.save(tmp_path / "a.npy", padded)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(EventFileError, match="an event of 1000013 bytes; at most 256 are supported: save t, x, y, p only"):
            open_events(tmp_path / name, SIZE)


@pytest.mark.parametrize("name", ["a.npy", "a.dat"])
def test_more_events_in_a_window_than_memory(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from evburst.data.readers import dat

    for module in (packets, dat):
        monkeypatch.setattr(module, "MAX_WINDOW_EVENTS", PACKET_EVENTS)
    events = np.zeros(2 * PACKET_EVENTS + 1, EVENT_DTYPE)
    if name == "a.npy":
        np.save(tmp_path / name, events)
    else:
        (tmp_path / name).write_bytes(dat_bytes(events))
    with pytest.raises(
        EventFileError, match=r"more than 1048576 events within 0.05 s from 0 µs: check the unit of time \(--time-unit\)"
    ):
        list(open_events(tmp_path / name, SIZE).windows(50_000))


def test_a_second_of_a_dat_holds_more_than_a_window_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evburst.data.readers import dat

    monkeypatch.setattr(dat, "MAX_WINDOW_EVENTS", 10)
    events = rows(*((t, 1, 1, 1) for t in range(0, 2000, 100)))
    (tmp_path / "a.dat").write_bytes(dat_bytes(events))
    stream = open_events(tmp_path / "a.dat", SIZE)
    assert sum(map(len, stream.packets())) == len(events)
    with pytest.raises(EventFileError, match=r"events within 0\.05 s"):
        list(stream.windows(50_000))


def test_many_events_in_many_windows_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "MAX_WINDOW_EVENTS", PACKET_EVENTS)
    events = np.zeros(3 * PACKET_EVENTS, EVENT_DTYPE)
    events["t"] = np.arange(len(events))
    events["t"][7] = 1 << 40  # A corrupt time is no window of its own.
    np.save(tmp_path / "a.npy", events)
    assert sum(map(len, open_events(tmp_path / "a.npy", SIZE).windows(50_000))) == len(events) - 1
