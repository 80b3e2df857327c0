"""Results on their way to the page: the newest one only, made into bytes once for all clients."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from evburst.app.inference import WindowResult
from evburst.app.live.pipeline import LivePipeline
from evburst.data.events import EventWindow, SensorSize
from numpy.typing import NDArray

_LOOK_S = 0.01


class Hub:
    """A viewer that keeps the newest result for whoever asks.

    Args:
        pipeline: whose results they are.

    Attributes:
        clients: how many watch.
    """

    def __init__(self, pipeline: LivePipeline) -> None:
        self._pipeline = pipeline
        self._newest: tuple[int, WindowResult | None] = (0, None)
        self._encoded: tuple[int, bytes] = (0, b"")
        self.clients = 0

    @contextmanager
    def client(self) -> Iterator[None]:
        """While somebody watches."""
        self.clients += 1
        try:
            yield
        finally:
            self.clients -= 1

    def show(self, result: WindowResult, window: EventWindow) -> None:
        """See Viewer: leave the result. Nobody is woken, which would cost the inference thread its turn; who waits looks."""
        self._newest = self._newest[0] + 1, result

    async def next(self, seen: int, timeout_s: float) -> tuple[int, bytes | None]:
        """(number, message) of a result newer than number `seen`; (seen, None) where none comes in time."""
        deadline_s = time.perf_counter() + timeout_s
        while self._newest[0] == seen:
            if time.perf_counter() > deadline_s:
                return seen, None
            await asyncio.sleep(_LOOK_S)
        number, result = self._newest
        if self._encoded[0] != number and result is not None:
            self._encoded = number, encode(result, self._pipeline)
        return self._encoded

    def about(self) -> dict[str, Any]:
        """What a client must know before the first result."""
        pipeline = self._pipeline
        return {
            "sensor_size": list(pipeline.source.sensor_size),
            "classes": list(pipeline.bundle.head.classes),
            "window_ms": pipeline.inference.voxel.window_us / 1000,
            "network": "ann" if pipeline.config.detect.ann else "snn",
            "weights": pipeline.config.detect.weights,
            "energy_table": pipeline.config.detect.energy_table,
        }


def encode(result: WindowResult, pipeline: LivePipeline) -> bytes:
    """A result as the page reads it: the header's length (4 bytes, little-endian), a JSON header, then the picture."""
    found = result.detections
    boxes = np.round(found.boxes_xyxy.astype(float), 1).tolist()
    header = {
        "t_us": found.t_us,
        "boxes": [
            [*box, round(float(score), 3), int(label)]
            for box, score, label in zip(boxes, found.scores, found.labels, strict=True)
        ],
        "events_per_s": round(result.events_per_s),
        "latency_ms": round(result.latency_ms, 2),
        "spikes": result.spikes,
        "energy_uj": round(result.energy_pj * 1e-6, 1),
        "ann_uj": round(pipeline.inference.ann_pj * 1e-6, 1),
        "windows": pipeline.figures.windows,
        "dropped": pipeline.dropped,
    }
    text = json.dumps(header).encode()
    return struct.pack("<I", len(text)) + text + pack_picture(result.grid, pipeline.source.sensor_size).tobytes()


def pack_picture(grid: NDArray[np.uint8], size: SensorSize) -> NDArray[np.uint8]:
    """Pixels in 2 bits, four to a byte, row by row, the first in the lowest bits: 0 nothing, 1 OFF, 2 ON.

    Args:
        grid: `(2 * bins, >= H, >= W)` uint8 counts, OFF channels first.
        size: (W, H) px.

    Returns:
        `(ceil(W * H / 4),)` uint8.
    """
    width, height = size
    bins = len(grid) // 2
    off, on = (grid[k : k + bins, :height, :width].sum(0, np.int32) for k in (0, bins))
    pixels = np.where((on > 0) & (on >= off), 2, (off > 0).astype(np.uint8)).astype(np.uint8).reshape(-1)
    padded = np.zeros(-(-len(pixels) // 4) * 4, np.uint8)
    padded[: len(pixels)] = pixels
    packed: NDArray[np.uint8] = (padded.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(1, dtype=np.uint8)
    return packed
