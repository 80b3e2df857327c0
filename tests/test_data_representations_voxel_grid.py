"""The voxel kernel equals its NumPy reference on anything, from raw words and from events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.events import EventArray, EventWindow, SensorSize
from evburst.data.representations.voxel_grid import (
    BLOCK,
    VoxelConfig,
    padded_size,
    pooled,
    pooled_reference,
    voxel_batch,
    voxel_histogram,
    voxel_histogram_reference,
)
from tests.conftest import make_events

SIZE = SensorSize(13, 7)


def as_words(window: EventWindow, epoch: int = 0) -> EventWindow:
    """The same window as DAT words."""
    events = window.words
    packed = events["x"].astype(np.uint32) | events["y"].astype(np.uint32) << 14 | events["p"].astype(np.uint32) << 28
    words = np.stack([(events["t"] - epoch).astype(np.uint32), packed], 1)
    return EventWindow(window.t0_us, window.t1_us, words, epoch)


def both(window: EventWindow, config: VoxelConfig) -> np.ndarray:
    """The kernel's grid from events and from words, checked to be the same; (2 * bins, 32, 32)."""
    out = np.full((config.channels, 32, 32), 99, np.uint8)
    binned, outside = voxel_histogram(window, config, SIZE, out)
    again = np.full_like(out, 99)
    assert voxel_histogram(as_words(window), config, SIZE, again) == (binned, outside)
    assert np.array_equal(out, again)
    assert binned + outside == len(window)
    return out


@st.composite
def windows(draw: st.DrawFn) -> EventWindow:
    t0, duration = draw(st.integers(0, 10**6)), draw(st.integers(1, 1000))
    n = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    t = t0 + rng.integers(0, duration, n)
    events = make_events(t, rng.integers(0, 20, n), rng.integers(0, 10, n), rng.integers(0, 2, n))
    return EventWindow(t0, t0 + duration, events)


@settings(deadline=None)
@given(windows(), st.integers(1, 9), st.integers(1, 255))
def test_kernel_equals_reference(window: EventWindow, bins: int, max_count: int) -> None:
    config = VoxelConfig(bins, max_count)
    grid = both(window, config)
    assert np.array_equal(grid[:, :7, :13], voxel_histogram_reference(window, config, SIZE))
    assert grid[:, 7:].sum() == grid[:, :, 13:].sum() == 0


def test_channel_is_polarity_times_bins_plus_bin() -> None:
    window = EventWindow(0, 100, make_events([0, 19, 20, 99], 3, 4, [0, 0, 1, 1]))
    grid = both(window, VoxelConfig(bins=5))
    assert {tuple(map(int, where)) for where in np.argwhere(grid)} == {(0, 4, 3), (6, 4, 3), (9, 4, 3)}
    assert grid[0, 4, 3] == 2


@pytest.mark.parametrize("before", [0, 1, BLOCK - 1, BLOCK])
def test_the_first_microsecond_of_a_bin_belongs_to_it(before: int) -> None:
    """Also where all events before it, in its block, are of the bin before."""
    grid = both(EventWindow(0, 100, make_events([19] * before + [20], 3, 4, 0)), VoxelConfig(bins=5, max_count=255))
    assert grid[:2, 4, 3].tolist() == [before, 1]


def test_empty_window_and_single_timestamp() -> None:
    assert both(EventWindow(0, 50, make_events([])), VoxelConfig()).sum() == 0
    assert both(EventWindow(0, 1, make_events([0, 0, 0])), VoxelConfig()).sum() == 3


def test_counts_saturate_and_never_wrap() -> None:
    window = EventWindow(0, 10, make_events([5] * 1000))
    assert both(window, VoxelConfig(bins=1, max_count=255)).max() == 255
    assert both(window, VoxelConfig(bins=1, max_count=10)).max() == 10


def test_epoch_times_need_64_bits() -> None:
    t0 = 1_670_000_000_000_000
    window = EventWindow(t0, t0 + 50_000, make_events([t0, t0 + 49_999], 1, 1, 1))
    grid = np.zeros((10, 7, 13), np.uint8)
    voxel_histogram(window, VoxelConfig(), SIZE, grid)
    assert (grid[5, 1, 1], grid[9, 1, 1]) == (1, 1)


def test_words_of_a_later_clock_epoch() -> None:
    epoch = 3 << 32
    window = as_words(EventWindow(epoch, epoch + 100, make_events([epoch + 10, epoch + 90], 2, 2, 0)), epoch)
    grid = np.zeros((10, 7, 13), np.uint8)
    assert voxel_histogram(window, VoxelConfig(), SIZE, grid) == (2, 0)
    assert (grid[0, 2, 2], grid[4, 2, 2]) == (1, 1)


@pytest.mark.parametrize("shape", [(9, 7, 13), (10, 6, 13), (10, 7, 12)])
def test_a_buffer_of_the_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="out: expected uint8"):
        voxel_histogram(EventWindow(0, 1, make_events([0])), VoxelConfig(), SIZE, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("size", "padded"), [((304, 240), (320, 256)), ((320, 256), (320, 256)), ((1, 1), (32, 32)), ((346, 260), (352, 288))]
)
def test_padding(size: tuple[int, int], padded: tuple[int, int]) -> None:
    assert padded_size(SensorSize(*size), 32) == padded


def test_event_array_windows_equal_a_mask() -> None:
    events = make_events(np.sort(np.random.default_rng(0).integers(130, 900, 200)))
    for window in EventArray(events, SIZE).windows(100):
        expected = events[(events["t"] >= window.t0_us) & (events["t"] < window.t1_us)]
        assert np.array_equal(window.words, expected)


@pytest.mark.parametrize("start_us", [-100, 0, 130, 399, 400, 880, 10_000])
def test_event_array_windows_from_a_time_on(start_us: int) -> None:
    stream = EventArray(make_events(np.sort(np.random.default_rng(0).integers(130, 900, 200))), SIZE)
    expected = [w.t0_us for w in stream.windows(100) if w.t1_us > start_us]
    assert [w.t0_us for w in stream.windows(100, start_us)] == expected


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 255), st.integers(0, 2**32))
def test_pooling_equals_the_reference(factor: int, max_count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, rng.integers(1, 256), (3, 4 * factor, 6 * factor), np.uint8)
    out = np.full((3, 4, 6), 99, np.uint8)
    pooled(grid, factor, max_count, out)
    np.testing.assert_array_equal(out, pooled_reference(grid, factor, max_count))


def test_pooling_is_binning_on_a_coarser_sensor() -> None:
    rng = np.random.default_rng(3)
    events = make_events(
        rng.integers(0, 100, 3000), rng.integers(0, 13, 3000), rng.integers(0, 7, 3000), rng.integers(0, 2, 3000)
    )
    fine, coarse, expected = (np.zeros((4, *shape), np.uint8) for shape in ((8, 16), (4, 8), (4, 8)))
    voxel_histogram(EventWindow(0, 100, events), VoxelConfig(2, 255), SIZE, fine)
    pooled(fine, 2, 40, coarse)
    whole = events.copy()
    events["x"] //= 2
    events["y"] //= 2
    voxel_histogram(EventWindow(0, 100, events), VoxelConfig(2, 40), SensorSize(7, 4), expected)
    np.testing.assert_array_equal(coarse, expected)
    original = make_events(*(whole[name] for name in "txyp"))
    blocks = voxel_batch([EventWindow(0, 100, original)], VoxelConfig(2, 40), SensorSize(13, 7), 4, 2)
    np.testing.assert_array_equal(blocks[0], expected)
    with pytest.raises(ValueError, match="blocks of 3 px"):
        pooled(fine, 3, 40, coarse)
