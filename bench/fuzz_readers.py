"""Feed damaged files to every reader: python bench/fuzz_readers.py --files 100000 [--reader dat] [--seed 0] [--jobs 1]

Sound recordings of all formats (`fuzz_seeds`) are damaged (`fuzz_mutate`) and opened as a user would: recognised by their
content and, where that names another format, by `--format` too. All packets and all windows are read. A file passes if

- nothing comes out but events, or one error of the project on one printable line;
- it takes less than `LIMIT_S` seconds and no more than `MEMORY_BYTES` beyond what the process held before;
- windows are aligned and follow each other, times lie in their window, p is 0 or 1, packets keep to their length;
- `voxel_histogram` writes nothing beside its buffer (guard bands of `GUARD_BYTES` on both sides), and the numba kernels
  index no array outside (every fiftieth file is read again in a process with NUMBA_BOUNDSCHECK=1);
- nothing is lost in silence: what is in the file, what was delivered and what `Faults` counts add up (`fuzz_accounts` has
  the sum of each format), and events of all windows + late + glitches = events of all packets.

Files are read in a separate process, which is restarted if a library crashes or hangs. Everything is determined by (reader,
seed, index): `--index N` damages and reads one file again in this process, with a traceback. Files that fail are kept in
`--keep`, and the exit code is then 1. Crashes and hangs inside h5py and aedat are counted but are not failures: see `NATIVE`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.fuzz_accounts import ACCOUNTS, require
from bench.fuzz_mutate import mutate, mutate_archive
from bench.fuzz_seeds import SEEDS, SIZE
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, EventFileError, SensorSizeError
from evburst.data.events import EVENT_DTYPE, MAX_SENSOR_SIDE, PACKET_EVENTS, EventStream, EventWindow
from evburst.data.readers import READERS, open_events, recognise_format
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_histogram

NATIVE = {"aedat4": "aedat", "hdf5": "h5py"}
"""Readers based on a compiled library, whose crashes on corrupt files Python code cannot prevent."""

WINDOW_US = 50_000
LONG_US = 1 << 32
MAX_WINDOWS = 200
LIMIT_S = 5.0
WAIT_S = 600.0
"""Limits of processor time per file, and of wall time per file, which on a busy machine may be minutes."""

MEMORY_BYTES = 1 << 30
GUARD_BYTES = 1 << 13
GUARD = 0xA5
MAX_GRID_BYTES = 1 << 21
CHECKED_SHARE = 50

FIELDS = ("current", "files", "refused", "faulty", "failures", "crashes", "hangs", "slowest_s", "slowest")


@dataclass(frozen=True)
class Verdict:
    """Outcome of one file.

    Attributes:
        refused: text of the project's error, or None.
        faults: fault counters of a file that was read.
    """

    refused: str | None
    faults: dict[str, int]


class GuardedGrid:
    """A grid for `voxel_histogram` between two guard bands."""

    config = VoxelConfig()

    def __init__(self) -> None:
        self._bytes = np.full(MAX_GRID_BYTES + 2 * GUARD_BYTES, GUARD, np.uint8)

    def bin(self, window: EventWindow, stream: EventStream) -> None:
        """Bin a window and check the guard bands; a sensor too large for the buffer is skipped."""
        width, height = stream.sensor_size
        shape = (self.config.channels, height, width)
        stop = GUARD_BYTES + int(np.prod(shape))
        if stop > len(self._bytes) - GUARD_BYTES:
            return
        self._bytes[stop : stop + GUARD_BYTES] = GUARD
        grid = self._bytes[GUARD_BYTES:stop].reshape(shape)
        binned, outside = voxel_histogram(window, self.config, stream.sensor_size, grid)
        require(binned + outside == len(window), "binned + outside is not the window's length")
        require(int(grid.sum()) <= binned, "more counts than events")
        for band in (self._bytes[:GUARD_BYTES], self._bytes[stop : stop + GUARD_BYTES]):
            require(bool((band == GUARD).all()), "voxel_histogram wrote outside its buffer")


def damaged(reader: str, seed: int, index: int) -> bytes:
    """Return the content of a reader's damaged file number `index`."""
    rng = Random(f"{reader}/{seed}/{index}")
    return (mutate_archive if reader == "npz" else mutate)(rng.choice(_seeds(reader)), rng)


def examine(path: Path, reader: str, grid: GuardedGrid) -> Verdict:
    """Read a file by the recognised format and by `reader`, and return the verdict for `reader`.

    Raises:
        BrokenPromiseError: an invariant does not hold.
        Exception: any other exception of a reader, which is a failure as well.
    """
    try:
        recognised = recognise_format(path)
    except EventFileError:
        recognised = None
    if recognised not in (None, reader):
        _examine(path, recognised, None, grid)
    return _examine(path, reader, None if recognised == reader else reader, grid)


def _examine(path: Path, reader: str, format: str | None, grid: GuardedGrid) -> Verdict:
    def open_recording() -> EventStream:
        try:
            return open_events(path, None, format)
        except SensorSizeError as error:
            _check_message(error)
            return open_events(path, SIZE, format)

    try:
        stream = open_recording()
        require(0 < min(stream.sensor_size) <= max(stream.sensor_size) <= MAX_SENSOR_SIDE, f"sensor {stream.sensor_size}")
        events = sum(_checked_packets(stream))
        refused = None
    except (EventFileError, SensorSizeError, ConfigError) as error:
        _check_message(error)
        refused = str(error)
    else:
        ACCOUNTS[reader](path, stream, events)
        _check_grids(open_recording(), grid)
    _check_windows(open_recording, refused, 0 if refused else events + _left_out(stream))
    return Verdict(refused, {} if refused else stream.faults.found())


def _checked_packets(stream: EventStream) -> Iterator[int]:
    for packet in stream.packets():
        require(packet.dtype == EVENT_DTYPE and 0 < len(packet) <= PACKET_EVENTS, "a packet's type or length")
        require(bool((packet["t"] >= 0).all() and (packet["p"] <= 1).all()), "t below 0 or p above 1")
        yield len(packet)


def _check_grids(stream: EventStream, grid: GuardedGrid) -> None:
    """Check windows of 50 ms, as a detector reads them."""
    t0 = None
    for window in islice(stream.windows(WINDOW_US), MAX_WINDOWS):
        t0 = _check_window(window, WINDOW_US, t0)
        if len(window):
            grid.bin(window, stream)


def _check_windows(open_recording: Callable[[], EventStream], refused: str | None, events: int) -> None:
    """Check that long windows contain or count the same events as the packets, and are refused if the packets were."""
    delivered, t0 = 0, None
    try:
        stream = open_recording()
        for window in stream.windows(LONG_US):
            t0 = _check_window(window, LONG_US, t0)
            delivered += len(window)
    except (EventFileError, SensorSizeError) as error:
        require(refused is not None, f"windows are refused, packets are not: {error}")
        return
    require(refused is None, f"packets are refused, windows are not: {refused}")
    lost = _left_out(stream)
    require(delivered + lost == events, f"{events} events, {delivered} in windows, {lost} counted as left out")


def _left_out(stream: EventStream) -> int:
    return stream.faults.late_events + stream.faults.time_glitches


def _check_window(window: EventWindow, window_us: int, t0: int | None) -> int:
    require(window.t1_us - window.t0_us == window_us and window.t0_us % window_us == 0, "a window's place or length")
    require(t0 is None or window.t0_us > t0, "windows do not follow each other")
    if len(window):
        events = unpack(window)
        inside = (events["t"] >= window.t0_us) & (events["t"] < window.t1_us)
        require(bool(inside.all() and (events["p"] <= 1).all()), "an event outside its window, or p above 1")
    return window.t0_us


def _check_message(error: Exception) -> None:
    text = str(error)
    require(text.isprintable() and len(text) < 1000, f"an error of {len(text)} characters, or not printable: {text[:200]!r}")


_made: dict[str, list[bytes]] = {}


def _seeds(reader: str) -> list[bytes]:
    if reader not in _made:
        _made[reader] = SEEDS[reader][1]()
    return _made[reader]


def work(reader: str, seed: int, indices: range, tally: SynchronizedArray, keep: Path) -> None:
    """Examine some files in this process; results go to the shared `tally`, failures to `keep`."""
    warnings.simplefilter("error")
    grid = GuardedGrid()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder) / f"file{SEEDS[reader][0]}"
        for content in _seeds(reader):
            path.write_bytes(content)
            verdict = examine(path, reader, grid)
            require(verdict.refused is None and not verdict.faults.keys() - {"time_wraps"}, f"a seed is not sound: {verdict}")
        # Behind the seeds, which have brought in the libraries.
        if (held := Path("/proc/self/statm")).exists():
            most = int(held.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # Rust tells of its panics there, before they become exceptions.
        for index in indices:
            path.write_bytes(damaged(reader, seed, index))
            start = time.process_time()
            _set(tally, current=index)
            try:
                verdict = examine(path, reader, grid)
            except Exception:
                _add(tally, failures=1)
                _keep(reader, seed, index, keep, traceback.format_exc())
            else:
                _add(tally, refused=verdict.refused is not None, faulty=bool(verdict.faults))
            _add(tally, files=1)
            seconds = time.process_time() - start
            if seconds > tally[FIELDS.index("slowest_s")]:
                _set(tally, slowest_s=seconds, slowest=index)


def _set(tally: SynchronizedArray, **values: float) -> None:
    for name, value in values.items():
        tally[FIELDS.index(name)] = value


def _add(tally: SynchronizedArray, **values: float) -> None:
    for name, value in values.items():
        tally[FIELDS.index(name)] += value


def _keep(reader: str, seed: int, index: int, keep: Path, why: str) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    path = keep / f"{reader}-{seed}-{index}{SEEDS[reader][0]}"
    path.write_bytes(damaged(reader, seed, index))
    path.with_suffix(".why.txt").write_text(why)


def fuzz(reader: str, seed: int, indices: range, keep: Path, progress: bool = False) -> dict[str, float]:
    """Examine files in a separate process, restarted after each file that ends it; return the tally by name."""
    context = multiprocessing.get_context("spawn")
    tally = context.Array("d", len(FIELDS))
    while len(indices):
        _set(tally, current=-1)
        process = context.Process(target=work, args=(reader, seed, indices, tally, keep), daemon=True)
        process.start()
        hung = _watch(process, tally, reader if progress else "")
        index = int(tally[0])
        if process.exitcode == 0:
            break
        if index < 0:
            raise RuntimeError(f"{reader}: the process ended before its first file (exit code {process.exitcode})")
        _add(tally, files=1, hangs=hung, crashes=not hung)
        _keep(reader, seed, index, keep, f"{'hang' if hung else f'crash, exit code {process.exitcode}'}\n")
        indices = indices[indices.index(index) + 1 :]
    return dict(zip(FIELDS, tally, strict=True))


def fuzz_sharded(reader: str, seed: int, files: int, jobs: int, keep: Path) -> dict[str, float]:
    """Run `fuzz` in several processes in parallel; return the summed counts and the slowest file of all."""
    shards = [range(k, files, jobs) for k in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        tallies = list(pool.map(lambda shard: fuzz(reader, seed, shard, keep, progress=not shard.start), shards))
    slowest = max(tallies, key=lambda tally: tally["slowest_s"])
    total = {name: sum(tally[name] for tally in tallies) for name in FIELDS}
    return {**total, "slowest_s": slowest["slowest_s"], "slowest": slowest["slowest"]}


def _watch(process: Any, tally: SynchronizedArray, shown: str) -> bool:
    """Wait for a process; return True if it was killed because one file took too long."""
    current, since, used = -1.0, time.monotonic(), 0.0
    while process.is_alive():
        process.join(0.5)
        if tally[0] != current:
            current, since, used = tally[0], time.monotonic(), _cpu_s(process.pid)
        if shown and sys.stderr.isatty():
            print(f"\r{shown}: {int(tally[1])} files, {int(tally[4])} failures ", end="", file=sys.stderr, flush=True)
        if time.monotonic() - since > WAIT_S or (current >= 0 and _cpu_s(process.pid) - used > LIMIT_S):
            process.kill()
            process.join()
            return True
    return False


def _cpu_s(pid: int) -> float:
    """Seconds that a process has had a processor for; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def failed(reader: str, tally: dict[str, float]) -> bool:
    """Return whether a tally contains failures, or crashes and hangs outside compiled libraries."""
    return bool(tally["failures"] or (reader not in NATIVE and tally["crashes"] + tally["hangs"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="damaged files per reader (default: 100000)")
    parser.add_argument("--reader", choices=sorted(READERS), action="append", help="only this reader; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel processes (default: 1)")
    parser.add_argument("--index", type=int, help="examine only this file, in this process, with a traceback")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for files that fail (default: runs/fuzz)")
    args = parser.parse_args()
    readers = args.reader or sorted(READERS)
    if args.index is not None:
        _keep(readers[0], args.seed, args.index, args.keep, "asked for\n")
        path = args.keep / f"{readers[0]}-{args.seed}-{args.index}{SEEDS[readers[0]][0]}"
        print(path, examine(path, readers[0], GuardedGrid()))
        return 0
    print("reader     files    read  refused  with faults  slowest ms (file)  failures  crashes  hangs  bounds-checked    s")
    bad = False
    for reader in readers:
        start = time.monotonic()
        tally = fuzz_sharded(reader, args.seed, args.files, args.jobs, args.keep)
        with tempfile.TemporaryDirectory() as cache:
            os.environ.update(NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=cache)
            checked = fuzz(reader, args.seed, range(0, args.files, CHECKED_SHARE), args.keep)
            del os.environ["NUMBA_BOUNDSCHECK"], os.environ["NUMBA_CACHE_DIR"]
        bad |= failed(reader, tally) or failed(reader, checked)
        print(_row(reader, tally, checked, time.monotonic() - start), flush=True)
    return int(bad)


def _row(reader: str, tally: dict[str, float], checked: dict[str, float], seconds: float) -> str:
    count = {name: int(value) for name, value in tally.items()}
    read = count["files"] - count["refused"] - count["failures"] - count["crashes"] - count["hangs"]
    return (
        f"{reader:<7}{count['files']:>9}{read:>8}{count['refused']:>9}{count['faulty']:>13}"
        f"{1000 * tally['slowest_s']:>9.0f} ({count['slowest']:>6}){count['failures'] + int(checked['failures']):>10}"
        f"{count['crashes']:>9}{count['hangs']:>7}{int(checked['files']):>16}{seconds:>5.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
