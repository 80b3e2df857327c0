"""Sinks: where results of a run go, a file each, or the files of a pattern. A new one is a class under @sink,
here or in a module of yours.

    @sink("boxes-per-class", "counts.csv")
    class CountSink:
        def __init__(self, path: Path, run: RunInfo) -> None: ...
        def write(self, result: WindowResult) -> None: ...
        def close(self) -> None: ...

`--sinks jsonl,csv` (setting `sinks`) chooses which are written. Whatever ends a run, `close` is called and leaves a readable
file.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from evburst.app.inference import WindowResult
from evburst.app.outputs.folder import OWN_FILES, write_json
from evburst.app.outputs.paths import is_inside, may_coincide
from evburst.app.outputs.render import Renderer, events_picture, picture_scale
from evburst.app.outputs.video import VideoFile
from evburst.data.boxes import BBOX_DTYPE
from evburst.data.errors import ConfigError, DataError, SettingValueError
from evburst.data.events import SensorSize
from evburst.data.extensions import check_callable, missing_methods, refuse_taken

_LOG = logging.getLogger(__name__)

_PAGE = "docs/extending.md#a-sink"
MOST_CROPS, CROP_EVERY_US = 500, 500_000


@dataclass(frozen=True)
class RunInfo:
    """What sinks know of a run before its first result.

    Attributes:
        classes: class names.
        sensor_size: (W, H) px.
        step_us: time from one window's end to the next one's; None: each window has its own length.
        start_us: start of the first window on the recording's clock.
        network: what runs, e.g. "SNN T=1".
        frames_per_s: windows per second of the video; None for the recording's own pace.
        slow: how many times slower than the recording the video is, where there are no `frames_per_s`.
        tracks: boxes are tracked.
        lead_ms: time from a window's end to the time of its boxes.
        clock_us: what the video's clock counts from; None: start_us.
    """

    classes: tuple[str, ...]
    sensor_size: SensorSize
    step_us: int | None
    start_us: int
    network: str
    frames_per_s: float | None = None
    slow: float = 1.0
    tracks: bool = False
    lead_ms: float = 0.0
    clock_us: int | None = None


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
"""By name: the file that it writes in the run's folder, or a pattern of files, and how it is made."""


def sink(name: str, file: str) -> Callable[[Builder], Builder]:
    """Register a sink under `name`; `file` is what it writes in the run's folder, possibly a pattern such as crops/*.png.

    Raises:
        ConfigError: another sink has the name, `file` is outside the run's folder or is one that every run writes, or a class
            has no `write` or no `close`.
    """

    def register(build: Builder) -> Builder:
        _check_file(name, file)
        check_callable(f"sink {name!r}", build, _PAGE)
        if isinstance(build, type):
            _check_methods(name, build)
        refuse_taken("sink", name, build, {known: entry.build for known, entry in SINKS.items()})
        SINKS[name] = _Entry(file, build)
        return build

    return register


def _check_file(name: str, file: str) -> None:
    """Raise ConfigError if a sink would write outside the run's folder, or what every run writes."""
    if not isinstance(file, str) or not is_inside(file):
        raise ConfigError(f"sink {name!r}: its file {file!r} is not inside the run's folder; give a name such as {name}.csv")
    for own in OWN_FILES:
        if may_coincide(file, own):
            raise ConfigError(f"sink {name!r}: its file {file!r} may be {own}, which evburst writes; give it another name")


def _check_methods(name: str, sink: object) -> None:
    """Raise ConfigError if a sink or its class lacks a method."""
    if missing := missing_methods(sink, ("write", "close")):
        kind = sink if isinstance(sink, type) else type(sink)
        raise ConfigError(f"sink {name!r}: {kind.__qualname__} has no {missing}; see {_PAGE}")


def check_sinks(names: tuple[str, ...]) -> None:
    """Raise SettingValueError if one of the names is not a sink's or is there twice, or two sinks may write the same file."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise SettingValueError(f"sinks: expected names, such as ('jsonl', 'csv'), received {names!r}")
    unknown = [name for name in names if name not in SINKS]
    if unknown:
        raise SettingValueError(f"sinks: {unknown[0]!r} is unknown (known: {', '.join(SINKS)})")
    if len(set(names)) < len(names):
        raise SettingValueError(f"sinks: {', '.join(names)}: name each sink only once")
    for one, other in combinations(names, 2):
        files = SINKS[one].file, SINKS[other].file
        if may_coincide(*files):
            raise SettingValueError(
                f"sinks: {one} ({files[0]}) and {other} ({files[1]}) may write the same file; leave one out"
            )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a file into an error of this project: disk full, no permission, folder gone."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def _lead(run: RunInfo) -> dict[str, float]:
    """Return what files state about the time of boxes: nothing if it is the end of their window."""
    return {"lead_ms": run.lead_ms} if run.lead_ms else {}


@sink("jsonl", "detections.jsonl")
class JsonlSink:
    """A line per window, flushed with it."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._classes, self._uneven = path, run.classes, run.step_us is None
        self._lead = _lead(run)
        with writing(path):
            self._file = path.open("w", encoding="utf-8")

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        found = result.detections
        line = {
            "t_us": found.t_us,
            **self._lead,
            "boxes_xyxy": np.round(found.boxes_xyxy.astype(float), 2).tolist(),
            "scores": np.round(found.scores.astype(float), 4).tolist(),
            "labels": found.labels.tolist(),
            "classes": [self._classes[label] for label in found.labels],
            "events": result.events,
            "spikes": result.spikes,
            "energy_pj": None if result.energy_pj is None else round(result.energy_pj),
        }
        if result.idle:
            line["idle"] = True
        if self._uneven:
            line = {"t0_us": result.t0_us, **line}
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
    """Boxes in Prophesee's dtype, grown row by row; the header counts every window that was written.

    Only the header's number of rows is rewritten: NumPy keeps room for 21 digits of it.
    """

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._rows = path, 0
        with writing(path):
            self._file = path.open("w+b")
            header = {"descr": np.lib.format.dtype_to_descr(BBOX_DTYPE), "fortran_order": False, "shape": (0,)}
            np.lib.format.write_array_header_1_0(self._file, header)
            self._file.seek(0)
            self._shape_at = self._file.read().index(b"(0,)")

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        if not len(result.detections):
            return
        with writing(self._path):
            self._file.write(result.detections.to_prophesee().tobytes())
            self._rows += len(result.detections)
            self._file.seek(self._shape_at)  # writes the rows, so that the header never counts rows that are not there yet
            self._file.write(b"(%d,), }" % self._rows)
            self._file.seek(0, 2)

    def close(self) -> None:
        """See Sink."""
        with writing(self._path):
            self._file.close()


@sink("csv", "boxes.csv")
class CsvSink:
    """A row per box: t_us, class, score, x0, y0, x1, y1; track_id and whether it is held (1) if boxes are tracked; lead_ms if
    boxes are ahead of their window."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._classes, self._lead = path, run.classes, _lead(run)
        with writing(path):
            self._file = path.open("w", newline="", encoding="utf-8")
            self._rows = csv.writer(self._file)
            tracks = ["track_id", "held"] if run.tracks else []
            self._rows.writerow(["t_us", "class", "score", "x0", "y0", "x1", "y1", *tracks, *self._lead])

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        found = result.detections
        with writing(self._path):
            for i, (box, score, label) in enumerate(zip(found.boxes_xyxy, found.scores, found.labels, strict=True)):
                corners = [f"{side:.2f}" for side in box]
                tracks = [] if found.track_ids is None or found.held is None else [found.track_ids[i], int(found.held[i])]
                self._rows.writerow([found.t_us, self._classes[label], f"{score:.4f}", *corners, *tracks, *self._lead.values()])
            self._file.flush()

    def close(self) -> None:
        """See Sink."""
        with writing(self._path):
            self._file.close()


@sink("coco", "coco.json")
class CocoSink:
    """One COCO file of all windows, written at the end; an image is a window, `t_us` the time of its boxes, which is its
    end without `lead_ms`."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._run = path, run
        self._images: list[dict[str, object]] = []
        self._boxes: list[dict[str, object]] = []

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        size, image = self._run.sensor_size, len(self._images) + 1
        entry = {"id": image, "width": size.width, "height": size.height, "t_us": result.detections.t_us}
        self._images.append({**entry, **_lead(self._run)})
        for box in result.detections.to_coco(image):
            self._boxes.append({"id": len(self._boxes) + 1, **box})

    def close(self) -> None:
        """See Sink."""
        categories = [{"id": number, "name": name} for number, name in enumerate(self._run.classes)]
        write_json(self._path, {"images": self._images, "annotations": self._boxes, "categories": categories})


@sink("video", "annotated.mp4")
class VideoSink:
    """Events and boxes as H.264 video: at the recording's own pace, slower by a factor, or at fixed windows per second."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        clock_us = run.start_us if run.clock_us is None else run.clock_us
        self._renderer = Renderer(run.sensor_size, run.classes, run.network, clock_us)
        own = None if run.step_us is None else 1e6 / (run.slow * run.step_us)
        pace = run.frames_per_s or own
        self._slow = run.slow if pace is None else 0.0
        self._file = VideoFile(path, self._renderer.picture_size, pace)

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        self._file.write(self._renderer.draw(result), self._slow * (result.t1_us - result.t0_us) * 1e-6)

    def close(self) -> None:
        """See Sink."""
        self._file.close()


@sink("crops", "crops/*us_*.png")
class CropSink:
    """The contents of the boxes as pictures, `crops/NUMBER_TIMEus_CLASS.png`; the track's number follows if there is one.

    Objects that are held are left out. At most MOST_CROPS pictures, and of a track at most one in CROP_EVERY_US.
    """

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._folder, self._run, self._written = path.parent, run, 0
        self._scale = picture_scale(run.sensor_size)
        self._last = dict[int, int]()
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)

    def write(self, result: WindowResult) -> None:
        """See Sink."""
        found = result.detections
        if not len(found) or self._written == MOST_CROPS:
            return
        picture = events_picture(result.grid, self._run.sensor_size, self._scale)
        for i, (box, label) in enumerate(zip(found.boxes_xyxy, found.labels, strict=True)):
            number = 0 if found.track_ids is None else int(found.track_ids[i])
            recent = number in self._last and found.t_us - self._last[number] < CROP_EVERY_US
            x0, y0, x1, y1 = (box * self._scale).round().astype(int).clip(0)
            crop = picture[y0:y1, x0:x1]
            if recent or not crop.size or self._written == MOST_CROPS or (found.held is not None and found.held[i]):
                continue
            if number:
                self._last[number] = found.t_us
            self._written += 1
            name = "".join(letter if letter.isalnum() else "-" for letter in self._run.classes[label])
            track = f"_{number}" if number else ""
            path = self._folder / f"{self._written:04}_{found.t_us}us_{name}{track}.png"
            with writing(path):
                path.write_bytes(cv2.imencode(".png", crop)[1].tobytes())

    def close(self) -> None:
        """See Sink."""
        if self._written == MOST_CROPS:
            _LOG.warning("%s: stopped after %d crops", self._folder, MOST_CROPS)


def open_sink(name: str, folder: Path, run: RunInfo) -> Sink:
    """A sink of the run's folder, by name; raises ConfigError if there is none of that name, or it lacks a method."""
    if name not in SINKS:
        raise ConfigError(f"sink {name!r} is unknown (known: {', '.join(SINKS)})")
    entry = SINKS[name]
    opened = entry.build(folder / entry.file, run)
    _check_methods(name, opened)
    return opened
