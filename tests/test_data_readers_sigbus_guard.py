"""Recordings that become shorter while they are read: an error that says so, never a bus error, wherever words are accessed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evburst.data.errors import EventFileError
from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.readers import open_events, sigbus_guard
from evburst.data.readers.mapping import MappedWords
from evburst.data.writers import write_events
from tests.event_files import collect

SIZE = SensorSize(240, 180)
N = 2_400_000

guarded = pytest.mark.skipif(not sigbus_guard.available(), reason="maps are guarded on 64-bit Linux only")


def make_events() -> Events:
    events = np.zeros(N, EVENT_DTYPE)
    events["t"], events["x"], events["y"] = np.arange(N), np.arange(N) % 240, 7
    return events


def write(path: Path) -> Path:
    """Three packets, in the format of the name."""
    events = make_events()
    if path.suffix == ".dat":
        write_events(path, events, SIZE)
    elif path.suffix == ".npy":
        np.save(path, events)
    elif path.suffix == ".bin":
        t = events["t"]
        columns = [events["x"], events["y"], t >> 16, t >> 8 & 255, t & 255]
        np.stack(columns, 1).astype(np.uint8).tofile(path)
    else:
        high = 8 << 28 | events["t"] >> 6
        words = np.stack([high, (events["t"] & 63) << 22 | events["x"].astype(np.int64) << 11 | 7], 1).astype("<u4")
        path.write_bytes(b"% evt 2.0\n% geometry 240x180\n% end\n" + words.tobytes())
    return path


@guarded
@pytest.mark.parametrize("name", ["a.dat", "a.npy", "a.bin", "a.raw"])
@pytest.mark.parametrize("size", [0, 4096, 1_000_000])
def test_windows(tmp_path: Path, name: str, size: int) -> None:
    path = write(tmp_path / name)
    windows = open_events(path, SIZE).windows(20_000)
    handed_out = [next(windows), next(windows)]
    os.truncate(path, size)
    with pytest.raises(EventFileError, match=rf"{name}: was shortened while it was read: {size} of its [0-9]+ bytes"):
        list(windows)
    for window in handed_out:
        window.words.view(np.uint8).sum()


@guarded
@pytest.mark.parametrize("name", ["a.dat", "a.npy", "a.bin", "a.raw"])
def test_shortened_between_opening_and_reading(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    stream = open_events(path, SIZE)
    os.truncate(path, 8192)
    with pytest.raises(EventFileError, match="was shortened while it was read"):
        collect(stream)


@guarded
def test_zeros_are_laid_only_behind_the_new_end(tmp_path: Path) -> None:
    np.arange(1 << 20, dtype="<u4").tofile(tmp_path / "a")
    words = MappedWords(tmp_path / "a", "<u4", 0, (1 << 20,))
    words.check()
    os.truncate(tmp_path / "a", 1 << 20)
    assert words.array[:: 1 << 10].tolist() == [k << 10 if k < 256 else 0 for k in range(1 << 10)]
    with pytest.raises(EventFileError):
        words.check()


@guarded
def test_a_grown_file_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dat")
    stream = open_events(path)
    with path.open("ab") as file:
        file.write(bytes(800))
    assert len(collect(stream)) == N


@guarded
def test_places_in_the_table_are_given_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy")
    before = len(sigbus_guard._free)  # private: no reader shows how many places are left
    for _ in range(3):
        collect(open_events(path, SIZE))
    assert len(sigbus_guard._free) == before


@guarded
def test_other_bus_errors_go_to_the_handler_before(tmp_path: Path) -> None:
    """Those of maps that are not ours still end the process, with Python's report."""
    write(tmp_path / "a.npy")
    script = (
        "import faulthandler, mmap, os, sys; faulthandler.enable()\n"
        "from evburst.data.readers import open_events\n"
        "from evburst.data.events import SensorSize\n"
        "open_events(sys.argv[1], SensorSize(240, 180)); file = open(sys.argv[1], 'rb')\n"
        "words = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "os.truncate(sys.argv[1], 4096); words[100_000]\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.npy")], capture_output=True, text=True)
    assert done.returncode == -7
    assert "Bus error" in done.stderr
