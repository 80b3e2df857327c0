"""Grids binned ahead by threads equal those binned one by one, in order, in the caller's buffers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from evburst.data.events import EVENT_DTYPE, EventArray, Events, SensorSize
from evburst.data.readers.dat import DatFile
from evburst.data.representations.parallel import voxel_grids
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_histogram_reference

from tests.event_files import dat_bytes

SIZE = SensorSize(40, 30)
CONFIG = VoxelConfig(bins=5, max_count=3, window_ms=1.0)


def random_events(n: int, duration_us: int, seed: int = 0) -> Events:
    """Sorted events, a few of them outside the sensor, with a gap of empty windows in the middle."""
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT_DTYPE)
    t = np.sort(rng.integers(0, duration_us, n))
    events["t"] = t + np.where(t > duration_us // 2, 5000, 0)
    events["x"], events["y"] = rng.integers(0, SIZE.width + 2, n), rng.integers(0, SIZE.height + 1, n)
    events["p"] = rng.integers(0, 2, n)
    return events


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("as_file", [False, True])
def test_equal_to_the_reference_in_order(tmp_path: Path, workers: int, as_file: bool) -> None:
    events = random_events(20_000, 30_000)
    stream: EventArray | DatFile = EventArray(events, SIZE)
    if as_file:
        (tmp_path / "a.dat").write_bytes(dat_bytes(events, SIZE))
        stream = DatFile(tmp_path / "a.dat")
    seen = 0
    for k, (window, grid, outside) in enumerate(voxel_grids(stream, CONFIG, workers=workers)):
        assert window.t0_us == k * 1000
        assert np.array_equal(grid, voxel_histogram_reference(window, CONFIG, SIZE))
        seen += len(window)
        assert outside <= len(window)
    assert (k, seen) == (34, len(events))
    assert stream.faults.outside_sensor == np.count_nonzero((events["x"] >= 40) | (events["y"] >= 30))


@pytest.mark.parametrize("n", [0, 1, 2, 64, 65])
def test_fewer_windows_than_buffers(n: int) -> None:
    stream = EventArray(random_events(n, 500), SIZE)
    total = sum(len(window) for window, _, _ in voxel_grids(stream, CONFIG, workers=2))
    assert total == n


def test_grids_lie_in_the_callers_buffers() -> None:
    out = np.full((3, 10, 32, 64), 99, np.uint8)
    for _, grid, _ in voxel_grids(EventArray(random_events(500, 9000), SIZE), CONFIG, out, workers=2):
        assert np.shares_memory(grid, out)
        assert grid[:, 30:].sum() == grid[:, :, 40:].sum() == 0


def test_stopping_early_ends_the_threads() -> None:
    grids = voxel_grids(EventArray(random_events(5000, 90_000), SIZE), CONFIG, workers=2)
    next(grids)
    grids.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("workers", "buffers"), [(0, 1), (2, 2), (1, 0)])
def test_too_few_workers_or_buffers_are_refused(workers: int, buffers: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        voxel_grids(EventArray(random_events(5, 10), SIZE), CONFIG, np.empty((buffers, 10, 30, 40), np.uint8), workers)


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    stream = EventArray(random_events(500, 9000), SIZE)
    with pytest.raises(ValueError, match="out: expected uint8"):
        list(voxel_grids(stream, CONFIG, np.empty((3, 9, 30, 40), np.uint8), workers=2))
