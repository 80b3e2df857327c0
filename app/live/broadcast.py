"""Broadcast of results to the page's clients: keep the newest result and encode it once for all of them."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.app.inference import Inference, WindowResult
from evburst.app.live.frames import FrameSource
from evburst.app.live.networks import Prepared
from evburst.app.live.pipeline import LivePipeline
from evburst.app.live.sources import RecordingSource
from evburst.app.outputs.render import palette
from evburst.app.runs import traffic_figures
from evburst.data.classification import DETECTION
from evburst.data.events import SensorSize
from evburst.models.bundle import bundled_weights

_POLL_S = 0.01
_MOST_UNDER_WAY = 3


@dataclass
class View:
    """What one client sees; it changes nothing for the others.

    Attributes:
        inset: send the source's picture with each result.
        paused: send no results.
        sent: number of results sent.
        received: number of results that the client has reported as received; None if it does not report.
    """

    inset: bool = False
    paused: bool = False
    sent: int = 0
    received: int | None = None

    @property
    def waits(self) -> bool:
        """Whether no result is to be sent now: it would be out of date before a client with a slow connection sees it."""
        return self.paused or (self.received is not None and self.sent - self.received >= _MOST_UNDER_WAY)


class Broadcaster:
    """A viewer that keeps the newest result for the page's clients.

    Args:
        pipeline: the pipeline whose results are shown.
    """

    def __init__(self, pipeline: LivePipeline) -> None:
        self._pipeline = pipeline
        self._newest: tuple[int, _Shown | None] = (0, None)
        self._counted: _Counted | None = None
        self._views: list[View] = []
        self._encoded: dict[bool, tuple[int, bytes]] = {}
        self._weights = weights_choices(pipeline.config.detect.weights)

    @property
    def clients(self) -> int:
        """Number of connected clients."""
        return len(self._views)

    @property
    def paused(self) -> bool | None:
        """See Viewer."""
        return all(view.paused for view in self._views) if self._views else None

    @contextmanager
    def client(self) -> Iterator[View]:
        """Count a client while the context is open, and give it a view."""
        view, source = View(), self._pipeline.source
        if isinstance(source, RecordingSource):
            source.measure()
        self._views = [*self._views, view]  # replaced, not modified: other threads read it
        try:
            yield view
        finally:
            self._views = [other for other in self._views if other is not view]

    def show(self, result: WindowResult) -> None:
        """Store a result. Clients poll for it, because notifying them would make the inference thread release the GIL."""
        pipeline = self._pipeline
        source = pipeline.source
        picture = source.picture if isinstance(source, FrameSource) else None
        if result.energy_pj is not None and not result.idle:
            self._counted = _Counted(pipeline.shown.inference, result)
        shown = _Shown(result, pipeline.shown, picture, pipeline.figures.windows, pipeline.dropped, self._counted)
        self._newest = self._newest[0] + 1, shown

    async def next(self, seen: int, timeout_s: float, view: View) -> tuple[int, bytes | None]:
        """Wait for a result newer than number `seen`, and until the view no longer waits.

        Returns:
            Its (number, message), or (seen, None) after the timeout.
        """
        deadline_s = time.perf_counter() + timeout_s
        while self._newest[0] == seen or view.waits:
            if time.perf_counter() > deadline_s:
                return seen, None
            await asyncio.sleep(_POLL_S)
        number, shown = self._newest
        encoded = self._encoded.get(view.inset)
        if encoded is None or encoded[0] != number:
            encoded = number, b"" if shown is None else encode(shown, shown.network.inference.sensor_size, view.inset)
            self._encoded[view.inset] = encoded
        return encoded

    def about(self) -> dict[str, Any]:
        """Return what a client needs before the first result and after a change of network, in JSON types."""
        network = self._pipeline.network
        return {
            "sensor_size": list(network.inference.sensor_size),
            "classes": list(network.classes),
            "palette": palette(),
            "window_ms": network.inference.voxel.window_us / 1000,
            "network": "ann" if network.detect.ann else "snn",
            "timesteps_used": network.timesteps,
            "weights": Path(network.detect.weights).stem,
            "weights_choices": list(self._weights),
            "energy_table": network.detect.energy_table,
            "count_every": network.detector.count_every,
            "lead_ms": network.detect.lead_ms,
        }


class _Counted(NamedTuple):
    """The result of the last window whose spikes were counted, and the network that made it."""

    inference: Inference
    result: WindowResult


class _Shown(NamedTuple):
    result: WindowResult
    network: Prepared
    picture: NDArray[np.uint8] | None
    windows: int
    dropped: int
    counted: _Counted | None = None


def encode(shown: _Shown, size: SensorSize, with_picture: bool) -> bytes:
    """Encode a result for the page.

    The message is the header's length (4 bytes, little-endian), a JSON header, the event picture of `pack_picture`, and the
    source's picture as JPEG, which may be absent. Boxes are [x0, y0, x1, y1, score, label, class name] in px. Spikes and
    energies are those of the last counted window if this one was not counted; null if there is none. The ANN has no spikes and
    no differences from silence.
    """
    result, network = shown.result, shown.network
    detections, counted = result.detections, result
    if result.energy_pj is None and shown.counted is not None and shown.counted.inference is network.inference:
        counted = shown.counted.result
    boxes = np.round(detections.boxes_xyxy.astype(float), 1).tolist()
    header = {
        "t_us": result.t1_us,
        "boxes": [
            [*box, round(float(score), 3), int(label), network.classes[label]]
            for box, score, label in zip(boxes, detections.scores, detections.labels, strict=True)
        ],
        "events": result.events,
        "events_per_s": round(result.events_per_s),
        "latency_ms": round(result.latency_ms, 2),
        "spikes": counted.spikes,
        "idle": result.idle,
        "energy_uj": _uj(counted.energy_pj),
        "beyond_silence_uj": _uj(_beyond_silence_pj(counted, network)),
        "ann_uj": _uj(network.inference.ann_pj),
        "traffic": _traffic(counted, network.inference),
        "windows": shown.windows,
        "dropped": shown.dropped,
    }
    text = json.dumps(header).encode()
    picture = b""
    if with_picture and shown.picture is not None:
        picture = cv2.imencode(".jpg", shown.picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    return struct.pack("<I", len(text)) + text + pack_picture(result.grid, size).tobytes() + picture


def _uj(pj: float | None) -> float | None:
    return None if pj is None else round(pj * 1e-6, 1)


def _beyond_silence_pj(result: WindowResult, network: Prepared) -> float | None:
    """Energy of a window if neurons sent only what differs from silence; None for the ANN or if not counted."""
    if result.idle and network.inference.spiking:
        return 0.0
    energy = result.energy
    return None if energy is None else energy.energies_beyond_silence(network.inference.table.name).snn_pj


def _traffic(result: WindowResult, inference: Inference) -> dict[str, float] | None:
    """Energy of a window with memory traffic, as in the summary of `detect`; None for the ANN, or if idle or not counted."""
    if result.energy is None:
        return None
    figures = traffic_figures(result.totals, inference, inference.table.name)
    return figures and {"uj": round(figures["total_pj"] * 1e-6, 1), "share_of_ann": round(figures["share_of_ann"], 4)}


def weights_choices(initial: str) -> dict[str, str]:
    """Return the weights that the page offers, by displayed name: the bundled detectors and those the run was started with."""
    return {name: name for name in bundled_weights(DETECTION)} | {Path(initial).stem: initial}


def pack_picture(grid: NDArray[np.uint8], size: SensorSize) -> NDArray[np.uint8]:
    """Pack a grid's pixels into 2 bits each (0 no event, 1 OFF, 2 ON), row by row, four per byte, lowest bits first.

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
