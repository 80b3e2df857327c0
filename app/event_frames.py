"""Pictures of a recording on which objects are labelled (`evburst events frames`).

Any labelling program that writes COCO will do. Its file is read as the labels of the recording (data/datasets/labels.py), as
the name of every picture ends in the time of its window's end: `NAME_000000500000us.png`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np

from evburst.app.outputs.render import events_picture
from evburst.data.datasets.labels import labelled_name
from evburst.data.errors import ConfigError, DataError, EvburstError
from evburst.data.events import EventStream, check_order, check_sensor_size, no_usable_events
from evburst.data.files import make_folder, replacing
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_histogram

_EVERY_MS = 500.0


def write_frames(stream: EventStream, path: Path, folder: Path, window_ms: float, every_ms: float | None) -> list[Path]:
    """Draw windows of a recording as PNG files of the sensor's size, so that boxes in them are in pixels of the sensor.

    Windows without events are left out.

    Args:
        stream: the recording.
        path: its file; pictures are named like it.
        folder: of the pictures.
        window_ms: length of a window.
        every_ms: time from picture to picture; None: the multiple of `window_ms` that is nearest to 500.

    Returns:
        The files, in order of time.

    Raises:
        ConfigError: a time cannot be used, or the folder holds pictures of this recording.
        EventFileError: there are no events, or they are not in order of time.
        DataError: no window that would be drawn contains events.
        SensorSizeError: too many of the drawn events lie outside the sensor.
    """
    try:
        voxel = VoxelConfig(bins=1, window_ms=window_ms)
    except ValueError as error:
        raise ConfigError(f"--window-ms {window_ms:g}: {error}") from None
    wanted = _EVERY_MS if every_ms is None or not math.isfinite(every_ms) else every_ms
    nearest = max(round(wanted * 1000 / voxel.window_us), 1) * voxel.window_us / 1000
    every_ms = nearest if every_ms is None else every_ms
    every_us = round(every_ms * 1000) if math.isfinite(every_ms) else 0
    if every_us < voxel.window_us or every_us % voxel.window_us:
        raise ConfigError(
            f"--every-ms {every_ms:g} is not a multiple of the window's length, --window-ms {window_ms:g}: "
            f"pass --every-ms {nearest:g}, for example"
        )
    name = labelled_name(path)
    drawn_before = re.compile(rf"{re.escape(name)}_\d+us\.png")
    if before := next((path for path in folder.glob("*us.png") if drawn_before.fullmatch(path.name)), None):
        raise ConfigError(f"{before}: exists already; choose another folder")
    total = drawn = outside = 0
    written: list[Path] = []
    width, height = stream.sensor_size
    grid = np.zeros((voxel.channels, height, width), np.uint8)
    try:
        for window in stream.windows(voxel.window_us):
            total += len(window)
            if window.t1_us % every_us or not len(window):
                continue
            counted, left_out = voxel_histogram(window, voxel, stream.sensor_size, grid)
            drawn, outside = drawn + counted, outside + left_out
            picture = events_picture(grid, stream.sensor_size, 1)
            file = make_folder(folder) / f"{name}_{window.t1_us:012d}us.png"
            with replacing(file) as part:
                part.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            written.append(file)
        stream.faults.outside_sensor += outside
        if not total:
            raise no_usable_events(path, stream.faults)
        if not written:
            raise DataError(
                f"{path}: no window that ends at a multiple of {every_ms:g} ms contains events; pass a smaller --every-ms"
            )
        check_sensor_size(str(path), stream.sensor_size, drawn, outside)
        check_order(str(path), total, stream.faults.late_events)
    except EvburstError:
        for file in written:  # wrong pictures, which would also stand in the way of the next run
            file.unlink(missing_ok=True)
        raise
    return written
