"""Sinks: where results of a run go, a file each. A new one is a class here, or in a module of yours, under @sink.

    @sink("boxes-per-class", "counts.csv")
    class CountSink:
        def __init__(self, path: Path, run: RunInfo) -> None: ...
        def write(self, result: WindowResult) -> None: ...
        def close(self) -> None: ...

`--set sinks=[jsonl,csv]` chooses which are written. Whatever ends a run, `close` is called and leaves a readable file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from evburst.app.inference import WindowResult
from evburst.app.outputs.folder import write_json
from evburst.app.outputs.render import Renderer
from evburst.app.outputs.video import VideoFile
from evburst.data.boxes import BBOX_DTYPE
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize


@dataclass(frozen=True)
class RunInfo:
    """What sinks know of a run before its first result.

    Attributes:
        classes: class names.
        sensor_size: (W, H) px.
        window_us: length of a window.
        start_us: start of the first window on the recording's clock.
        network: what runs, e.g. "SNN T=1".
        frames_per_s: pace of the video; None for the recording's own.
        tracks: boxes are tracked.
    """

    classes: tuple[str, ...]
    sensor_size: SensorSize
    window_us: int
    start_us: int
    network: str
    frames_per_s: float | None = None
    tracks: bool = False


class Sink(Protocol):
    """A place for results."""

    def write(self, result: WindowResult) -> None:
        """Take one window's result."""
        ...

    def close(self) -> None:
        """Finish; called once, also after an error or Ctrl-C."""
        ...


Builder = Callable[[Path, RunInfo], Sink]


class _Entry(NamedTuple):
    file: str
    build: Builder


SINKS: dict[str, _Entry] = {}
"""By name: the file it writes in the run's folder, and how it is made."""


def sink(name: str, file: str) -> Callable[[Builder], Builder]:
    """Register a sink under `name`; `file` is what it writes in the run's folder."""

    def register(build: Builder) -> Builder:
        SINKS[name] = _Entry(file, build)
        return build

    return register


def check_sinks(names: tuple[str, ...]) -> None:
    """Raise ValueError if one of the names is not a sink's."""
    unknown = [name for name in names if name not in SINKS]
    if unknown:
        raise ValueError(f"sinks: {unknown[0]!r} is unknown (known: {', '.join(SINKS)})")
    if len(set(names)) < len(names):
        raise ValueError(f"sinks: {', '.join(names)}: each at most once")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a file into an error of this project: disk full, no permission, folder gone."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


@sink("jsonl", "detections.jsonl")
class JsonlSink:
    """A line per window, flushed with it."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._classes = path, run.classes
        with writing(path):
            self._file = path.open("w")

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
        if found.track_ids is not None and found.held is not None:
            line |= {"track_ids": found.track_ids.tolist(), "held": found.held.tolist()}
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """See Sink."""
        with writing(self._path):
            self._file.close()


@sink("bbox", "bbox.npy")
class BoxSink:
    """Boxes in Prophesee's dtype, grown row by row; the header counts every window that was written."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._rows = path, 0
        with writing(path):
            self._file = path.open("w+b")
            self._header()

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        if not len(result.detections):
            return
        with writing(self._path):
            self._file.write(result.detections.to_prophesee().tobytes())
            self._file.flush()
            self._rows += len(result.detections)
            self._header()

    def close(self) -> None:
        """See Sink."""
        with writing(self._path):
            self._file.close()

    def _header(self) -> None:
        """NumPy keeps room for 21 digits of the first axis, so that the header's length never changes."""
        self._file.seek(0)
        description = np.lib.format.dtype_to_descr(BBOX_DTYPE)
        header = {"descr": description, "fortran_order": False, "shape": (self._rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()
        self._file.seek(0, 2)


@sink("csv", "boxes.csv")
class CsvSink:
    """A row per box: t_us, class, score, x0, y0, x1, y1, and its track_id and whether it is held (1) if boxes are tracked."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._classes = path, run.classes
        with writing(path):
            self._file = path.open("w", newline="")
            self._rows = csv.writer(self._file)
            tracks = ["track_id", "held"] if run.tracks else []
            self._rows.writerow(["t_us", "class", "score", "x0", "y0", "x1", "y1", *tracks])

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        found = result.detections
        with writing(self._path):
            for i, (box, score, label) in enumerate(zip(found.boxes_xyxy, found.scores, found.labels, strict=True)):
                corners = [f"{side:.2f}" for side in box]
                tracks = [] if found.track_ids is None or found.held is None else [found.track_ids[i], int(found.held[i])]
                self._rows.writerow([found.t_us, self._classes[label], f"{score:.4f}", *corners, *tracks])
            self._file.flush()

    def close(self) -> None:
        """See Sink."""
        with writing(self._path):
            self._file.close()


@sink("coco", "coco.json")
class CocoSink:
    """One COCO file of all windows, written at the end; an image is a window, `t_us` its end."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._run = path, run
        self._images: list[dict[str, object]] = []
        self._boxes: list[dict[str, object]] = []

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        size, image = self._run.sensor_size, len(self._images) + 1
        self._images.append({"id": image, "width": size.width, "height": size.height, "t_us": result.detections.t_us})
        for box in result.detections.to_coco(image):
            self._boxes.append({"id": len(self._boxes) + 1, **box})

    def close(self) -> None:
        """See Sink."""
        categories = [{"id": number, "name": name} for number, name in enumerate(self._run.classes)]
        write_json(self._path, {"images": self._images, "annotations": self._boxes, "categories": categories})


@sink("video", "annotated.mp4")
class VideoSink:
    """Events and boxes as H.264 video, at the recording's own pace unless `frames_per_s` is given."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._renderer = Renderer(run.sensor_size, run.classes, run.network, run.start_us)
        pace = run.frames_per_s or 1e6 / run.window_us
        self._file = VideoFile(path, self._renderer.picture_size, pace)

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        self._file.write(self._renderer.draw(result))

    def close(self) -> None:
        """See Sink."""
        self._file.close()


def open_sink(name: str, folder: Path, run: RunInfo) -> Sink:
    """A sink of the run's folder, by name; raises ConfigError if there is none of that name."""
    if name not in SINKS:
        raise ConfigError(f"sink {name!r} is unknown (known: {', '.join(SINKS)})")
    entry = SINKS[name]
    return entry.build(folder / entry.file, run)
