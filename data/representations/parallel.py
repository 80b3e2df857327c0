"""Windows binned ahead by a few threads, in order, in flat memory.

The kernels hold no GIL, so that threads bin windows side by side while the caller uses the grid before. Grids live in a ring
of buffers made once. Reading ahead means that a stream's faults may already count windows that the caller has not seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import NamedTuple

import numpy as np
from evburst.data.events import EventStream, EventWindow
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_histogram
from numpy.typing import NDArray


class WindowGrid(NamedTuple):
    """A window and its grid.

    Attributes:
        window: the events.
        grid: `(2 * bins, H, W)` uint8; valid until the next one is asked for, then overwritten.
        outside: events outside the sensor, left out.
    """

    window: EventWindow
    grid: NDArray[np.uint8]
    outside: int


def voxel_grids(
    stream: EventStream, config: VoxelConfig, out: NDArray[np.uint8] | None = None, workers: int = 1
) -> Iterator[WindowGrid]:
    """The stream's windows of `config.window_us` with their voxel grids, in order.

    Args:
        stream: where the events come from; its `faults.outside_sensor` is added to as grids are handed out.
        config: bins, saturation, length of a window.
        out: `(n, 2 * bins, >= H, >= W)` uint8 buffers to use, n >= workers + 1 (n >= 1 for one worker); by default
            2 * workers + 1 buffers (one for one worker) of the sensor's size are made.
        workers: threads that bin; 1 bins in the caller's thread, exactly when a grid is asked for.

    Raises:
        ValueError: workers is not positive, or out holds too few buffers.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, received {workers}")
    needed = 1 if workers == 1 else workers + 1
    if out is None:
        width, height = stream.sensor_size
        out = np.empty((1 if workers == 1 else 2 * workers + 1, config.channels, height, width), np.uint8)
    if len(out) < needed:
        raise ValueError(f"out: {workers} workers need at least {needed} buffers, received {len(out)}")
    return _serial(stream, config, out[0]) if workers == 1 else _ahead(stream, config, out, workers)


def _serial(stream: EventStream, config: VoxelConfig, grid: NDArray[np.uint8]) -> Iterator[WindowGrid]:
    for window in stream.windows(config.window_us):
        _, outside = voxel_histogram(window, config, stream.sensor_size, grid)
        stream.faults.outside_sensor += outside
        yield WindowGrid(window, grid, outside)


def _ahead(stream: EventStream, config: VoxelConfig, out: NDArray[np.uint8], workers: int) -> Iterator[WindowGrid]:
    waiting: deque[tuple[EventWindow, NDArray[np.uint8], Future[tuple[int, int]]]] = deque()
    buffers = cycle(out)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="voxel")
    try:
        for window in stream.windows(config.window_us):
            grid = next(buffers)
            waiting.append((window, grid, pool.submit(voxel_histogram, window, config, stream.sensor_size, grid)))
            # One buffer is the caller's, the others may be in the making.
            if len(waiting) == len(out) - 1:
                yield _finished(stream, *waiting.popleft())
        while waiting:
            yield _finished(stream, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(stream: EventStream, window: EventWindow, grid: NDArray[np.uint8], future: Future[tuple[int, int]]) -> WindowGrid:
    _, outside = future.result()
    stream.faults.outside_sensor += outside
    return WindowGrid(window, grid, outside)
