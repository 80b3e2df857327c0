"""The contenders of bench/events.py: how each library reads a file and makes grids. `tests/test_bench_peers.py` uses them too.

A contender is a generator function of a path. It imports its library on its first run, so that a missing library is reported
then. Each library is used in the way that was fastest in our measurements: in packets or windows if it supports them.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 5
WINDOW_US = 50_000
MAX_COUNT = 10
CHUNK_EVENTS = 1 << 20
CHECKED_WINDOWS = 40
WIDTH, HEIGHT = 304, 240

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
Run = Callable[[Path], Iterator[Any]]

# ---------------------------------------------------------------- reading: columns t, x, y, p


def evburst(path: Path) -> Iterator[Columns]:
    """Ours, in packets; if the file does not state a sensor size, an arbitrary large one is used."""
    from evburst.data.errors import SensorSizeError
    from evburst.data.events import SensorSize
    from evburst.data.readers import open_events

    try:
        stream = open_events(path)
    except SensorSizeError:
        stream = open_events(path, SensorSize(2048, 2048))
    for packet in stream.packets():
        yield _columns(packet, "txyp")


def expelliarmus(path: Path, encoding: str) -> Iterator[Columns]:
    """In chunks: `read` of a whole file takes up to eight times as long, because it allocates fresh memory for everything."""
    from expelliarmus import Wizard

    for chunk in Wizard(encoding=encoding, fpath=path, chunk_size=CHUNK_EVENTS).read_chunk():
        yield _columns(chunk, "txyp")


def faery(path: Path) -> Iterator[Columns]:
    """In packets, as the library streams them."""
    import faery as library

    for packet in library.events_stream_from_file(path):
        yield _columns(packet, ("t", "x", "y", "on"))


def evlib(path: Path) -> Iterator[Columns]:
    """The whole file as a Polars frame, because the library has no packets."""
    # evlib imports torchvision for networks that are not needed here. It tolerates a missing torchvision, but not one built for
    # another torch, so torchvision is hidden.
    hidden = sys.modules.setdefault("torchvision", None) is None  # type: ignore[arg-type]
    try:
        import evlib as library
    finally:
        if hidden:
            del sys.modules["torchvision"]
    frame = library.load_events(str(path)).collect()
    yield frame["t"].to_physical().to_numpy(), *(frame[name].to_numpy() for name in ("x", "y", "polarity"))  # type: ignore[misc]


def aedat(path: Path) -> Iterator[Columns]:
    """The library on which our AEDAT4 reader is built, on its own."""
    from aedat import Decoder

    for packet in Decoder(path):
        if "events" in packet:
            yield _columns(packet["events"], ("t", "x", "y", "on"))


def dv_processing(path: Path) -> Iterator[Columns]:
    """In batches."""
    import dv_processing as library

    recording = library.io.MonoCameraRecording(str(path))
    while recording.isRunning():
        batch = recording.getNextEventBatch()
        if batch is not None:
            yield _columns(batch.numpy(), ("timestamp", "x", "y", "polarity"))


def tonic(path: Path) -> Iterator[Columns]:
    """tonic's reader of N-Caltech101 and N-MNIST."""
    from tonic.io import read_mnist_file

    yield _columns(read_mnist_file(str(path), np.dtype([("x", "u2"), ("y", "u2"), ("t", "i8"), ("p", "u1")])), "txyp")


def _columns(events: Any, names: str | tuple[str, ...]) -> Columns:
    t, x, y, p = (events[name] for name in names)
    return t, x, y, p


READING: dict[str, dict[str, Run]] = {
    "dat": {"evburst": evburst, "expelliarmus": partial(expelliarmus, encoding="dat"), "faery": faery},
    "evt2": {"evburst": evburst, "expelliarmus": partial(expelliarmus, encoding="evt2"), "faery": faery, "evlib": evlib},
    "evt3": {"evburst": evburst, "expelliarmus": partial(expelliarmus, encoding="evt3"), "faery": faery, "evlib": evlib},
    "bin": {"evburst": evburst, "tonic": tonic},
    "aedat4": {"evburst": evburst, "aedat": aedat, "dv-processing": dv_processing, "faery": faery, "evlib": evlib},
}
"""Contenders by format; no other format is supported by two of these libraries."""

# ---------------------------------------------------------------- file to grid: one array per window of 50 ms


def evburst_grids(path: Path, workers: int) -> Iterator[NDArray[np.uint8]]:
    """Ours: `(10, H, W)` uint8, binned directly from the file's words; several workers bin windows in parallel."""
    from evburst.data.readers import open_events
    from evburst.data.representations.voxel_grid import VoxelConfig, voxel_histogram

    stream, config = open_events(path), VoxelConfig(BINS, MAX_COUNT, WINDOW_US / 1000)
    width, height = stream.sensor_size
    grids = cycle(np.empty((1 if workers == 1 else 2 * workers, config.channels, height, width), np.uint8))
    windows = stream.windows(WINDOW_US)
    if workers == 1:
        for window, grid in zip(windows, grids, strict=False):
            voxel_histogram(window, config, stream.sensor_size, grid)
            yield grid
        return
    pending = deque[tuple[NDArray[np.uint8], Future[tuple[int, int]]]]()
    with ThreadPoolExecutor(workers) as pool:
        for window, grid in zip(windows, grids, strict=False):
            pending.append((grid, pool.submit(voxel_histogram, window, config, stream.sensor_size, grid)))
            if len(pending) == 2 * workers - 1:
                grid, future = pending.popleft()
                future.result()
                yield grid
        for grid, future in pending:
            future.result()
            yield grid


def tonic_voxel_grids(path: Path) -> Iterator[NDArray[np.float64]]:
    """A different grid: `(5, 1, H, W)` float64, signed, bilinear in time.

    Each of expelliarmus's windows also contains the first event of the next one.
    """
    from expelliarmus import Wizard
    from tonic.transforms import ToVoxelGrid

    transform = ToVoxelGrid(sensor_size=(WIDTH, HEIGHT, 2), n_time_bins=BINS)
    for events in Wizard(encoding="dat", fpath=path, time_window=WINDOW_US).read_time_window():
        yield transform(events.view(_signed(events.dtype)))


def tonic_frames(path: Path) -> Iterator[NDArray[np.int16]]:
    """The same counts as `(5, 2, H, W)` int16, not saturated."""
    from expelliarmus import Wizard
    from tonic.transforms import ToFrame

    for t0, events in _windows(Wizard(encoding="dat").read(path)):
        bounds = {"start_time": t0, "end_time": t0 + WINDOW_US}
        yield ToFrame(sensor_size=(WIDTH, HEIGHT, 2), time_window=WINDOW_US // BINS, **bounds)(events)


def numpy_add_at(path: Path) -> Iterator[NDArray[np.int64]]:
    """The same counts as `(10, H, W)` int64, not saturated, by `np.add.at`."""
    for t0, events in _windows(_read_with_numpy(path)):
        counts = np.zeros((2 * BINS, HEIGHT, WIDTH), np.int64)
        np.add.at(counts, (_channels(events, t0), events["y"], events["x"]), 1)
        yield counts


def numpy_bincount(path: Path) -> Iterator[NDArray[np.intp]]:
    """The same counts as `(10, H, W)` int64, not saturated, by `np.bincount`."""
    for t0, events in _windows(_read_with_numpy(path)):
        places = (_channels(events, t0) * HEIGHT + events["y"]) * WIDTH + events["x"]
        yield np.bincount(places, minlength=2 * BINS * HEIGHT * WIDTH).reshape(2 * BINS, HEIGHT, WIDTH)


def page_cache(path: Path) -> Iterator[None]:
    """Read the file's bytes into one preallocated array."""
    with path.open("rb", buffering=0) as file:
        target, done = _array(path.stat().st_size).data, 0
        while done < len(target):
            done += file.readinto(target[done:])
    yield None


def page_cache_1mb(path: Path) -> Iterator[None]:
    """Read the file's bytes repeatedly into the same 1 MB, which stays in the CPU's cache."""
    with path.open("rb", buffering=0) as file:
        while file.readinto(_array(1 << 20).data):
            pass
    yield None


def memcpy(path: Path) -> Iterator[None]:
    """Copy the same number of bytes from one array to another."""
    size = path.stat().st_size
    np.copyto(_array(size, 1), _array(size))
    yield None


GRIDS: dict[str, tuple[Run, int]] = {
    "evburst, 1 worker": (partial(evburst_grids, workers=1), 1),
    "evburst, 2 workers": (partial(evburst_grids, workers=2), 2),
    "expelliarmus + tonic ToVoxelGrid": (tonic_voxel_grids, 1),
    "expelliarmus + tonic ToVoxelGrid, 2 cores": (tonic_voxel_grids, 2),
    "expelliarmus + tonic ToFrame": (tonic_frames, 1),
    "NumPy add.at": (numpy_add_at, 1),
    "NumPy bincount": (numpy_bincount, 1),
    "limit: page cache to array": (page_cache, 1),
    "limit: page cache to 1 MB": (page_cache_1mb, 1),
    "limit: memcpy": (memcpy, 1),
}
"""Contenders and the number of cores each may use."""


# ---------------------------------------------------------------- equality checks


def check_columns(packets: Iterator[Columns]) -> tuple[int, dict[str, str]]:
    """Return the number of events and the SHA-256 of each column, converted to t int64, x and y uint16, p 0 or 1."""
    hashes = {name: hashlib.sha256() for name in "txyp"}
    count = 0
    for t, x, y, p in packets:
        count += len(t)
        for name, column in zip("txyp", (t.astype("<i8"), x.astype("<u2"), y.astype("<u2"), p > 0), strict=True):
            hashes[name].update(np.ascontiguousarray(column).tobytes())
    return count, {name: value.hexdigest() for name, value in hashes.items()}


def check_counts(grids: Iterator[NDArray[Any] | None]) -> tuple[int, dict[str, str]]:
    """Return the number of windows, at most 40, and the SHA-256 of their grids in our format; (0, {}) for limits.

    Our format is `(2 * bins, H, W)` uint8, saturated at MAX_COUNT.
    """
    counts = hashlib.sha256()
    windows = 0
    for grid in islice(grids, CHECKED_WINDOWS):
        if grid is None:
            return 0, {}
        windows += 1
        ours = grid.swapaxes(0, 1).reshape(-1, *grid.shape[2:]) if grid.ndim == 4 else grid
        counts.update(np.minimum(ours, MAX_COUNT).astype(np.uint8).tobytes())
    return windows, {"counts": counts.hexdigest()}


# ---------------------------------------------------------------- parts of contenders


def _windows(events: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (t0, events) of the windows [t0, t0 + 50 ms), where t0 is a multiple of 50 ms."""
    t = events["t"]
    edges = np.arange(t[0] // WINDOW_US * WINDOW_US, t[-1] + WINDOW_US, WINDOW_US)
    for t0, (first, last) in zip(edges, np.lib.stride_tricks.sliding_window_view(np.searchsorted(t, edges), 2), strict=False):
        yield int(t0), events[first:last]


def _channels(events: NDArray[Any], t0: int) -> NDArray[np.int64]:
    return np.asarray(events["p"] * BINS + (events["t"] - t0) * BINS // WINDOW_US)


def _read_with_numpy(path: Path) -> NDArray[Any]:
    """Read the events of a DAT version 2 file with masks and shifts on all words at once."""
    from evburst.data.readers.dat import read_header

    words = np.fromfile(path, "<u4", offset=read_header(path)[1]).reshape(-1, 2)
    events = np.empty(len(words), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "<i4")])
    events["t"], packed = words[:, 0], words[:, 1]
    events["x"], events["y"], events["p"] = packed & 0x3FFF, packed >> 14 & 0x3FFF, packed >> 28 & 1
    return events


def _signed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the same layout with p as int8, because tonic writes -1 into it and NumPy 2 rejects that for uint8."""
    fields: Any = dtype.fields
    formats = ["i1" if name == "p" else fields[name][0] for name in fields]
    offsets = [fields[name][1] for name in fields]
    return np.dtype({"names": list(fields), "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize})


@cache
def _array(size: int, number: int = 0) -> NDArray[np.uint8]:
    """Return an array whose memory is already mapped; cached by its arguments."""
    return np.ones(size, np.uint8)
