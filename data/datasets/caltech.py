"""N-Caltech101's `annotation_XXXX.bin`: the box and the outline of the object in one recording.

The file holds two int16 matrices, column by column, each preceded by its number of rows (2: x and y) and of columns: the
corners of the box, with the first repeated at the end, then the outline. In `Faces_easy` the box is unusable, and
`BACKGROUND_Google` has no class (docs/method.md#label-files).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import LabelError
from evburst.data.events import SensorSize
from evburst.data.readers.bin import N_CALTECH101

_MIN_CORNERS = 4


def read_caltech_box(path: Path, sensor_size: SensorSize = N_CALTECH101) -> NDArray[np.float32]:
    """Return the box in an `annotation_XXXX.bin` file: `(4,)` float32, x0 y0 x1 y1 px, clipped to the sensor.

    Corners can be negative in the file. Its outline is checked, but not used.

    Raises:
        LabelError: the file is missing, truncated or of another layout, or its box lies outside the sensor or is empty.
    """
    try:
        values = np.frombuffer(path.read_bytes()[: path.stat().st_size // 2 * 2], "<i2")
    except FileNotFoundError:
        raise LabelError(f"{path}: no such annotation") from None
    corners, contour_start = _matrix(path, values, 0)
    _matrix(path, values, contour_start)
    if len(corners) < _MIN_CORNERS:
        raise LabelError(f"{path}: the box has {len(corners)} corners, expected at least {_MIN_CORNERS}")
    ends = np.stack([corners.min(0), corners.max(0)])
    box: NDArray[np.float32] = np.clip(ends, 0, np.array(sensor_size)).astype(np.float32).reshape(4)
    if not (box[0] < box[2] and box[1] < box[3]):
        raise LabelError(f"{path}: the box {ends.reshape(4).tolist()} covers no pixel of the {sensor_size} sensor")
    return box


def _matrix(path: Path, values: NDArray[np.int16], start: int) -> tuple[NDArray[np.int16], int]:
    """Return the `(columns, 2)` matrix that starts at int16 index `start`, and the index after it."""
    shape = values[start : start + 2].tolist()
    if len(shape) < 2 or shape[0] != 2 or shape[1] < 0:
        raise LabelError(f"{path}: rows and columns at byte {2 * start} are {shape}, expected [2, n]: not an annotation")
    stop = start + 2 + 2 * shape[1]
    if stop > len(values):
        raise LabelError(f"{path}: truncated: {shape[1]} points need {2 * stop} bytes, the file has {2 * len(values)}")
    return values[start + 2 : stop].reshape(-1, 2), stop
