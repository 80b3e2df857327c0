"""Windows read and binned ahead by one thread while the network is at the ones before: kernels and network hold no GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import numpy as np
from evburst.app.outputs.sinks import WindowResult
from evburst.data.errors import EvburstError
from evburst.data.events import EventWindow
from numpy.typing import NDArray

BATCH = 8
"""Windows of a batch where latency is not asked for."""

_AHEAD = 2
"""Windows binned ahead, besides the next batch."""


@dataclass(frozen=True)
class BinnedWindow:
    """A window's grid, the events in it and outside the sensor, and how long binning took."""

    t1_us: int
    grid: NDArray[np.uint8]
    events: int
    outside: int
    seconds: float


class Pipeline(Protocol):
    """What bins windows and runs the network; see evburst.app.detect.WindowPipeline."""

    def new_grid(self) -> NDArray[np.uint8]:
        """An empty grid."""
        ...

    def bin_apart(self, window: EventWindow, grid: NDArray[np.uint8]) -> BinnedWindow:
        """Called by the thread that bins ahead."""
        ...

    def infer_batch(self, batch: list[BinnedWindow], size: int) -> Iterator[WindowResult]:
        """Results in order."""
        ...


def results_ahead(pipeline: Pipeline, windows: Iterator[EventWindow], batch: int) -> Generator[WindowResult, None, None]:
    """The results of all windows, in order; a result's grid holds until the next one is asked for.

    Args:
        pipeline: bins and infers.
        windows: read by the thread that bins, a few ahead.
        batch: so many go through the network together.

    Raises:
        EvburstError: from `windows`, after the results of the windows before it.
    """
    ahead, waiting = _binned(pipeline, windows, batch), list[BinnedWindow]()
    try:
        for binned in ahead:
            waiting.append(binned)
            if len(waiting) == batch:
                yield from pipeline.infer_batch(waiting, batch)
                waiting.clear()
    except EvburstError:
        if waiting:
            yield from pipeline.infer_batch(waiting, batch)
        raise
    finally:
        ahead.close()
    if waiting:
        yield from pipeline.infer_batch(waiting, batch)


def _binned(pipeline: Pipeline, windows: Iterator[EventWindow], batch: int) -> Generator[BinnedWindow, None, None]:
    pool, waiting = ThreadPoolExecutor(1, "binning"), deque[Future[BinnedWindow | None]]()
    # Those of the batch in use, those binned ahead, and one in the making.
    grids = cycle([pipeline.new_grid() for _ in range(2 * batch + _AHEAD + 1)])

    def bin_next(grid: NDArray[np.uint8]) -> BinnedWindow | None:
        window = next(windows, None)
        return None if window is None else pipeline.bin_apart(window, grid)

    try:
        while True:
            while len(waiting) < batch + _AHEAD:
                waiting.append(pool.submit(bin_next, next(grids)))
            binned = waiting.popleft().result()
            if binned is None:
                return
            yield binned
    finally:
        pool.shutdown(cancel_futures=True)
