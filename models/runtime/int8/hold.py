"""Where a hold lets spikes through, from integer counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit


def active_cells(
    grid: NDArray[np.uint8], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], events: int
) -> NDArray[np.bool_]:
    """Return where at least `events` events lie in a window of a grid, `(N, h, w)`; equals `is_active` (models/graph.py).

    Args:
        grid: `(N, 2 * bins, H, W)` counts.
        kernel, stride, padding: of the windows, rows before columns.
        events: see the hold node (models/operations.py).
    """
    rows, columns = (
        (size + 2 * pad - k) // step + 1 for size, pad, k, step in zip(grid.shape[2:], padding, kernel, stride, strict=True)
    )
    out = np.zeros((len(grid), rows, columns), np.bool_)
    _active(grid, kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1], events, out)
    return out


@njit(cache=True, nogil=True)
def _active(grid, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, events, out):  # type: ignore[no-untyped-def]
    """By a table of sums over all rectangles that begin at the corner."""
    images, channels, height, width = grid.shape
    sums = np.zeros((height + 1, width + 1), np.int64)
    line = np.zeros(width, np.int64)
    for image in range(images):
        for y in range(height):
            line[:] = 0
            for channel in range(channels):
                source = grid[image, channel, y]
                for x in range(width):
                    line[x] += source[x]
            total = 0
            for x in range(width):
                total += line[x]
                sums[y + 1, x + 1] = sums[y, x + 1] + total
        for row in range(out.shape[1]):
            top, bottom = max(row * stride_y - pad_y, 0), min(row * stride_y - pad_y + kernel_y, height)
            for column in range(out.shape[2]):
                left, right = max(column * stride_x - pad_x, 0), min(column * stride_x - pad_x + kernel_x, width)
                count = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
                out[image, row, column] = count >= events
