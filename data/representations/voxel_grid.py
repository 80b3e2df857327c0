"""Voxel grids with separate polarities: event counts per polarity, time bin and pixel (docs/method.md#events-and-grids; RVT).

Channel = p * bins + bin, shape (2 * bins, H, W). An event at t falls into bin floor((t - t0) * bins / (t1 - t0)).
Counts saturate at `max_count`, so they cannot overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.encoding import columns, is_packed, p_of, time_of, unpack, word_fields, words_64, x_of, y_of
from evburst.data.errors import require_within
from evburst.data.events import EventWindow, SensorSize
from evburst.data.representations import clear, representation

DTYPES = ("uint8", "float32")
BLOCK = 64
"""Number of events that `_bin_words` tests together."""


BIN_LIMITS = (1, 64)
COUNT_LIMITS = (1, 255)
WINDOW_LIMITS_MS = (0.1, 60_000.0)
"""Smallest and largest `bins`, `max_count` and `window_ms` of VoxelConfig."""

DOWNSAMPLE_LIMITS = (0, 16)
"""Smallest and largest setting of the side of a block of pixels; 0 chooses it by the sensor's size."""


@dataclass(frozen=True)
class VoxelConfig:
    """Settings of a voxel grid.

    Attributes:
        bins: time bins B per window (1 to 64); the grid has 2 * B channels.
        max_count: counts of a histogram saturate here (1 to 255).
        window_ms: length of a window in milliseconds (0.1 to 60000).
    """

    bins: int = 5
    max_count: int = 10
    window_ms: float = 50.0

    def __post_init__(self) -> None:
        require_within(self, bins=BIN_LIMITS, max_count=COUNT_LIMITS, window_ms=WINDOW_LIMITS_MS)

    @property
    def channels(self) -> int:
        """Number of channels of the grid, 2 * bins."""
        return 2 * self.bins

    @property
    def window_us(self) -> int:
        """Length of a window in microseconds."""
        return round(self.window_ms * 1000)


def padded_size(sensor_size: SensorSize, stride: int) -> SensorSize:
    """Return the sensor's size rounded up to multiples of `stride`; padding is on the right and at the bottom."""
    return SensorSize(-(-sensor_size.width // stride) * stride, -(-sensor_size.height // stride) * stride)


def voxel_histogram_reference(window: EventWindow, config: VoxelConfig, sensor_size: SensorSize) -> NDArray[np.uint8]:
    """NumPy reference of `voxel_histogram`, without padding: `(2 * bins, H, W)` uint8."""
    events = unpack(window)
    width, height = sensor_size
    events = events[(events["x"] < width) & (events["y"] < height)]
    bin_index = (events["t"] - window.t0_us) * config.bins // (window.t1_us - window.t0_us)
    counts = np.zeros((config.channels, height, width), np.int64)
    np.add.at(counts, (events["p"] * config.bins + bin_index, events["y"], events["x"]), 1)
    return np.minimum(counts, config.max_count).astype(np.uint8)


@representation("voxel_histogram", VoxelConfig, voxel_histogram_reference, DTYPES)
def voxel_histogram(
    window: EventWindow, config: VoxelConfig, sensor_size: SensorSize, out: NDArray[np.uint8] | NDArray[np.float32]
) -> tuple[int, int]:
    """Count a window's events into `out`, without unpacking packed events.

    Args:
        window: the events.
        config: bins and saturation.
        sensor_size: (W, H) px; events outside it are dropped.
        out: `(2 * bins, >= H, >= W)` uint8 or float32, C-contiguous, overwritten; its margin stays 0.

    Returns:
        Number of events counted (saturated ones included), and of events outside the sensor.
    """
    width, height = sensor_size
    clear(out, config.channels, sensor_size, DTYPES)
    edges = _bin_edges(window.t0_us, window.t1_us, config.bins)
    if is_packed(window):
        words = words_64(window.words)
        outside = _bin_words(words, edges - window.epoch_us, window.version, width, height, config.max_count, out)
    else:
        outside = _bin_events(*columns(window), edges, width, height, config.max_count, out)
    return len(window) - outside, outside


def voxel_batch(
    windows: list[EventWindow], config: VoxelConfig, sensor_size: SensorSize, stride: int, block: int = 1
) -> NDArray[np.uint8]:
    """Return the grids of several windows, `(N, 2 * bins, H, W)` uint8, padded to the stride (see `padded_size`).

    With a `block` they are those of a sensor whose pixels are blocks of that many pixels squared (see `blocked_size`).
    """
    width, height = padded_size(blocked_size(sensor_size, block), stride)
    out = np.empty((len(windows), config.channels, height, width), np.uint8)
    if block == 1:
        for grid, window in zip(out, windows, strict=True):
            voxel_histogram(window, config, sensor_size, grid)
        return out
    fine, unlimited = np.empty((config.channels, height * block, width * block), np.uint8), replace(config, max_count=255)
    for grid, window in zip(out, windows, strict=True):
        voxel_histogram(window, unlimited, sensor_size, fine)
        pooled(fine, block, config.max_count, grid)
    return out


def blocked_size(sensor_size: SensorSize, block: int) -> SensorSize:
    """Return a sensor's size in blocks of pixels; blocks at the right and lower edge may be partial."""
    return SensorSize(-(-sensor_size.width // block), -(-sensor_size.height // block))


def pooled_reference(grid: NDArray[np.uint8], factor: int, max_count: int) -> NDArray[np.uint8]:
    """NumPy reference of `pooled`."""
    channels, height, width = grid.shape
    blocks = grid.reshape(channels, height // factor, factor, width // factor, factor)
    sums: NDArray[np.int64] = blocks.sum((2, 4), np.int64)
    return np.minimum(sums, max_count).astype(np.uint8)


def pooled(grid: NDArray[np.uint8], factor: int, max_count: int, out: NDArray[np.uint8]) -> None:
    """Sum counts over blocks of `factor` x `factor` pixels: the grid of a sensor with that much larger pixels.

    Equal to the grid that the events would have on the coarser sensor, as long as `grid` did not saturate below `max_count`.

    Args:
        grid: `(C, H, W)` uint8, C-contiguous; H and W are multiples of `factor`.
        factor: length of a block's side, px.
        max_count: sums saturate here.
        out: `(C, H / factor, W / factor)` uint8, C-contiguous, overwritten.
    """
    channels, height, width = grid.shape
    if height % factor or width % factor or out.shape != (channels, height // factor, width // factor):
        raise ValueError(f"blocks of {factor} px of a grid {grid.shape} do not fill one of {out.shape}")
    _pool(grid, factor, max_count, out)


@njit(cache=True, nogil=True)
def _pool(grid, factor, max_count, out):  # type: ignore[no-untyped-def]
    channels, height, width = out.shape
    rows = np.empty(width * factor, np.uint32)  # summed over the rows of a block first: contiguous, so that it vectorises
    for c in range(channels):
        for y in range(height):
            rows[:] = grid[c, y * factor]
            for dy in range(1, factor):
                rows += grid[c, y * factor + dy]
            if factor == 2:  # the usual one; as a loop it does not vectorise
                for x in range(width):
                    out[c, y, x] = min(rows[2 * x] + rows[2 * x + 1], max_count)
            else:
                for x in range(width):
                    total = rows[x * factor]
                    for dx in range(1, factor):
                        total += rows[x * factor + dx]
                    out[c, y, x] = min(total, max_count)


def _bin_edges(t0_us: int, t1_us: int, bins: int) -> NDArray[np.int64]:
    """Return the first microsecond of every bin, and the window's end: `(bins + 1,)`."""
    index = np.arange(bins + 1, dtype=np.int64)
    return t0_us + -(-index * (t1_us - t0_us) // bins)


@njit(cache=True, nogil=True)
def _bin_words(words, edges, version, width, height, max_count, out):  # type: ignore[no-untyped-def]
    """Count the packed events of words `(n,)` uint64 into `out`; returns the number of events outside the sensor."""
    fields = word_fields(version)
    bins = len(edges) - 1
    rows, columns = out.shape[1], out.shape[2]
    plane, row = np.uint64(bins * rows * columns), np.uint64(columns)
    counts = out.reshape(-1)
    limit = np.uint8(max_count)
    offsets = np.empty(BLOCK, np.uint32)
    outside = 0
    b = 0
    for first in range(0, len(words), BLOCK):
        block = words[first : first + BLOCK]
        # SIMD test whether the whole block falls into the bin of the last event and onto the sensor.
        low, high = edges[b], edges[b + 1]
        strays = 0
        for i in range(len(block)):
            t, x, y = time_of(block[i]), x_of(block[i], fields), y_of(block[i], fields)
            strays += (t < low) | (t >= high) | (x >= width) | (y >= height)
            offsets[i] = np.uint32(p_of(block[i], fields) * plane + y * row + x)
        bin_offset = np.uint32(b * rows * columns)
        if strays == 0:
            for i in range(len(block)):
                offset = offsets[i] + bin_offset
                # Branch-free, because a branch on saturation would be mispredicted.
                counts[offset] += np.uint8(counts[offset] < limit)
            continue
        for i in range(len(block)):
            x, y = x_of(block[i], fields), y_of(block[i], fields)
            if x >= width or y >= height:
                outside += 1
                continue
            t = time_of(block[i])
            if t < edges[b] or t >= edges[b + 1]:
                b = 0
                while b < bins - 1 and t >= edges[b + 1]:
                    b += 1
            offset = offsets[i] + np.uint32(b * rows * columns)
            counts[offset] += np.uint8(counts[offset] < limit)
    return outside


@njit(cache=True, nogil=True)
def _bin_events(ts, xs, ys, ps, edges, width, height, max_count, out):  # type: ignore[no-untyped-def]
    bins = len(edges) - 1
    limit = np.uint8(max_count)
    outside = 0
    for i in range(len(ts)):
        b = 0
        while b < bins - 1 and ts[i] >= edges[b + 1]:
            b += 1
        x, y = xs[i], ys[i]
        if x >= width or y >= height:
            outside += 1
            continue
        channel = np.int64(ps[i] != 0) * bins + b
        if out[channel, y, x] < limit:
            out[channel, y, x] += np.uint8(1)
    return outside
