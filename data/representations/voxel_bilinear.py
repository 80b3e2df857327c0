"""Voxel grids with separate polarities, bilinear in time: an event is shared between the two nearest bin centres.

Shape and channels are those of `voxel_grid`: channel = p * bins + bin. With w = (t1 - t0) / bins, the centre of bin b lies at
t0 + (b + 1/2) w. An event between two centres adds 1 minus its distance in units of w to each of them; one before the first
centre or after the last adds 1 to that bin. So every event adds 1 to the grid in total, and the grid is a continuous function
of the event times. (Zhu et al., CVPR 2019, eq. 1-3, place the first and last centre on the window's first and last event
instead, and sum polarities with their sign.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.encoding import columns, unpack
from evburst.data.events import EventWindow, SensorSize
from evburst.data.representations import clear, representation
from evburst.data.representations.voxel_grid import VoxelConfig

DTYPES = ("float32",)


def voxel_bilinear_reference(window: EventWindow, config: VoxelConfig, sensor_size: SensorSize) -> NDArray[np.float32]:
    """NumPy reference of `voxel_bilinear`, without padding: `(2 * bins, H, W)` float32."""
    events = unpack(window)
    width, height = sensor_size
    events = events[(events["x"] < width) & (events["y"] < height)]
    position = (events["t"] - window.t0_us) * config.bins / (window.t1_us - window.t0_us) - 0.5
    position = position.clip(0, config.bins - 1)
    grid = np.zeros((config.channels, height, width))
    for b in range(config.bins):
        share = (1 - abs(position - b)).clip(0)
        np.add.at(grid, (events["p"] * config.bins + b, events["y"], events["x"]), share)
    return grid.astype(np.float32)


@representation("voxel_bilinear", VoxelConfig, voxel_bilinear_reference, DTYPES)
def voxel_bilinear(
    window: EventWindow, config: VoxelConfig, sensor_size: SensorSize, out: NDArray[np.float32]
) -> tuple[int, int]:
    """Distribute a window's events over the bins of `out`.

    Args:
        window: the events.
        config: bins; `max_count` is not used.
        sensor_size: (W, H) px; events outside it are dropped.
        out: `(2 * bins, >= H, >= W)` float32, C-contiguous, overwritten; its margin stays 0.

    Returns:
        Number of events placed, and of events outside the sensor.
    """
    clear(out, config.channels, sensor_size, DTYPES)
    outside = _share(*columns(window), window.t0_us, window.t1_us, config.bins, *sensor_size, out)
    return len(window) - outside, outside


@njit(cache=True, nogil=True)
def _share(ts, xs, ys, ps, t0, t1, bins, width, height, out):  # type: ignore[no-untyped-def]
    per_us = bins / (t1 - t0)
    outside = 0
    for i in range(len(ts)):
        x, y = xs[i], ys[i]
        if x >= width or y >= height:
            outside += 1
            continue
        position = min(max((ts[i] - t0) * per_us - 0.5, 0.0), bins - 1.0)
        b = np.int64(position)
        channel = np.int64(ps[i] != 0) * bins + b
        out[channel, y, x] += np.float32(1 - (position - b))
        if b < bins - 1:
            out[channel + 1, y, x] += np.float32(position - b)
    return outside
