"""The fuzz loop over all readers, short; and that it notices what it looks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import fuzz_readers
from bench.fuzz_accounts import ACCOUNTS, BrokenPromiseError
from bench.fuzz_readers import NATIVE, GuardedGrid, damaged, examine, failed, fuzz
from bench.fuzz_seeds import SEEDS
from evburst.data.events import EVENT_DTYPE
from evburst.data.readers import READERS
from evburst.data.readers.dat import DatFile

FILES = 120


def test_every_reader_is_fuzzed() -> None:
    assert READERS.keys() == SEEDS.keys() == ACCOUNTS.keys()


@pytest.mark.parametrize("reader", sorted(READERS.keys() - NATIVE.keys()))
def test_damaged_files_are_read_or_refused(tmp_path: Path, reader: str) -> None:
    path, grid = tmp_path / f"file{SEEDS[reader][0]}", GuardedGrid()
    refused = 0
    for index in range(FILES):
        path.write_bytes(damaged(reader, 1, index))
        refused += examine(path, reader, grid).refused is not None
    assert 0 <= refused < FILES


@pytest.mark.parametrize("reader", sorted(NATIVE))
def test_damaged_files_of_compiled_libraries(tmp_path: Path, reader: str) -> None:
    """In a process of their own, because these libraries may crash."""
    for module in (NATIVE[reader], *(["hdf5plugin"] if reader == "hdf5" else [])):
        pytest.importorskip(module)
    tally = fuzz(reader, 1, range(FILES), tmp_path)
    assert not failed(reader, tally), [path.read_text() for path in tmp_path.glob("*.txt")]
    assert tally["files"] == FILES


def sound(tmp_path: Path) -> Path:
    path = tmp_path / "file.dat"
    path.write_bytes(SEEDS["dat"][1]()[0])
    return path


def test_a_write_beside_the_buffer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(window: Any, config: Any, size: Any, out: np.ndarray) -> tuple[int, int]:
        out.fill(0)
        np.ndarray(1, np.uint8, out.base, fuzz_readers.GUARD_BYTES + out.size)[0] = 1
        return len(window), 0

    monkeypatch.setattr(fuzz_readers, "voxel_histogram", careless)
    with pytest.raises(BrokenPromiseError, match="wrote outside its buffer"):
        examine(sound(tmp_path), "dat", GuardedGrid())


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (lambda packets: packets[:-1], "accounted for"),
        (lambda packets: [np.empty(0, EVENT_DTYPE), *packets], "a packet's type or length"),
        (lambda packets: [packet[["t", "x"]] for packet in packets], "a packet's type or length"),
    ],
    ids=["lost events", "empty packet", "another dtype"],
)
def test_silent_loss_is_noticed(
    tmp_path: Path, broken: Callable[[list], list], promise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = DatFile.packets
    monkeypatch.setattr(DatFile, "packets", lambda self: iter(broken(list(packets(self)))))
    with pytest.raises(BrokenPromiseError, match=promise):
        examine(sound(tmp_path), "dat", GuardedGrid())


def test_what_fails_a_run() -> None:
    tally = dict.fromkeys(fuzz_readers.FIELDS, 0.0)
    assert not failed("dat", tally)
    assert failed("dat", {**tally, "failures": 1})
    assert failed("dat", {**tally, "hangs": 1})
    assert not failed("hdf5", {**tally, "crashes": 1})
