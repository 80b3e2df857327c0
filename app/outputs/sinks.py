"""Where results go. A sink is `write(result)` for every window and `close()`, which leaves a readable file however the run ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from evburst.app.outputs.render import Meters, Renderer
from evburst.data.boxes import BBOX_DTYPE, Detections
from evburst.data.errors import DataError
from numpy.typing import NDArray


@dataclass(frozen=True)
class WindowResult:
    """What is known of one window.

    Attributes:
        grid: `(2 * bins, H, W)` uint8, padded; valid until the next window.
        detections: boxes at the window's end.
        events: events in the window.
        spikes: spikes of all neurons; None for the ANN.
        spikes_per_neuron: their mean over neurons; None for the ANN.
        energy_pj: of the network that ran.
        meters: figures for the picture.
        timesteps: that were used; None for the ANN.
    """

    grid: NDArray[np.uint8]
    detections: Detections
    events: int
    spikes: float | None
    spikes_per_neuron: float | None
    energy_pj: float
    meters: Meters
    timesteps: int | None = None


class Sink(Protocol):
    """A place for results."""

    def write(self, result: WindowResult) -> None:
        """Take one window's result."""
        ...

    def close(self) -> None:
        """Finish; called once, also after an error or Ctrl-C."""
        ...


class JsonlSink:
    """detections.jsonl: a line per window."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self._file, self._classes = path.open("w"), classes

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        found = result.detections
        line = {
            "t_us": found.t_us,
            "boxes_xyxy": np.round(found.boxes_xyxy.astype(float), 2).tolist(),
            "scores": np.round(found.scores.astype(float), 4).tolist(),
            "labels": found.labels.tolist(),
            "classes": [self._classes[label] for label in found.labels],
            "events": result.events,
            "spikes": result.spikes,
            "energy_pj": round(result.energy_pj),
        }
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """See Sink."""
        self._file.close()


class BoxSink:
    """bbox.npy in Prophesee's dtype, grown row by row: the header's count is brought up to date now and then and at the end."""

    _UPDATE_EVERY = 256

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._rows, self._windows = 0, 0
        self._header()

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        self._file.write(result.detections.to_prophesee().tobytes())
        self._rows += len(result.detections)
        self._windows += 1
        if self._windows % self._UPDATE_EVERY == 0:
            self._header()

    def close(self) -> None:
        """See Sink."""
        self._header()
        self._file.close()

    def _header(self) -> None:
        """NumPy keeps room for 21 digits of the first axis, so that the header's length never changes."""
        self._file.seek(0)
        description = np.lib.format.dtype_to_descr(BBOX_DTYPE)
        header = {"descr": description, "fortran_order": False, "shape": (self._rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.seek(0, 2)


class VideoSink:
    """annotated.mp4 at the recording's own pace."""

    def __init__(self, path: Path, renderer: Renderer, frames_per_s: float) -> None:
        self._renderer = renderer
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), frames_per_s, renderer.picture_size)
        if not self._writer.isOpened():
            raise DataError(f"{path}: OpenCV cannot write mp4 here; use --no-video")

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        self._writer.write(self._renderer.draw(result.grid, result.detections, result.meters))

    def close(self) -> None:
        """See Sink."""
        self._writer.release()
