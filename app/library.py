"""`evburst.Detector` and `evburst.Classifier`: the Python API for recordings, streams and arrays. Writes nothing to disk."""

from __future__ import annotations

import logging
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from copy import copy
from dataclasses import fields, replace
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from evburst.app.classify import ClassifyConfig
from evburst.app.config import build
from evburst.app.console import warn_of_repairs
from evburst.app.detect import DetectConfig, class_numbers, result_filter
from evburst.app.inference import Inference, WindowResult
from evburst.app.recordings import open_recording
from evburst.app.runs import (
    RunConfig,
    check_machine,
    check_network,
    cut_windows,
    load_weights,
    open_inference,
    refuse_ignored,
    run_windows,
    start_time,
)
from evburst.app.tracking import require_trackers
from evburst.data.arrays import as_events
from evburst.data.classification import Classification
from evburst.data.datasets.class_windows import filled_windows
from evburst.data.errors import ConfigError
from evburst.data.events import EventArray, EventStream, EventWindow, Faults, SensorSize, joined, no_usable_events
from evburst.data.filters import FilteredStream
from evburst.data.readers import open_events
from evburst.data.readers.dat import DatFile
from evburst.data.readers.packets import PacketFile
from evburst.models.detector import resolve_timesteps

_LOG = logging.getLogger(__name__)

MOST_SIZES = 4
"""Number of sensor sizes, those used last, whose networks a Detector or a Classifier keeps."""

_OF_FILES = ("sinks", "slow", "fps", "overwrite")
"""Settings of the files that `evburst detect` writes."""


class _Network:
    """Base of Detector and Classifier: runs recordings, streams and arrays through a network.

    Attributes:
        classes: class names, indexed by the labels of results.
        config: the settings.
    """

    def __init__(self, config: RunConfig, maps: bool) -> None:
        refuse_ignored(config)
        self.config = config
        self._size = SensorSize.of_setting(config.sensor_size)
        self._bundle = load_weights(config)
        self.classes = self._bundle.head.classes
        check_machine(check_network(self._bundle, config), config)
        self._maps = maps
        self._inferences: OrderedDict[SensorSize, Inference] = OrderedDict()
        self._lock = Lock()

    def stream(self, source: Any) -> Generator[WindowResult, None, None]:
        """Run through a recording and yield the result of each window as soon as it is computed.

        Windows start at multiples of their length on the recording's clock. A recording without usable events has no results,
        which is logged as a warning.

        Args:
            source: path of a recording in any supported format, an EventStream (`evburst.open_events`; its `faults` include
                those of a pass once that has ended), or events in memory in any form that `as_events` accepts.

        Raises:
            EvburstError: the recording cannot be used, its sensor size is unknown, or it ends before `start_s`.
        """
        stream: EventStream
        if isinstance(source, str | os.PathLike):
            name = os.fsdecode(source)
            stream = self._open(Path(name))
        elif hasattr(source, "windows") and hasattr(source, "sensor_size") and not isinstance(source, EventArray):
            stream, name = source, "stream"
        else:
            stream, name = self._as_stream(source), "events"
        apart = _counting_apart(stream)
        filtered, start_us = FilteredStream(apart, self.config.filters), start_time(apart, self.config.start_s)
        inference = self._inference(filtered.sensor_size)
        windows = self._cut_windows(filtered, inference.voxel.window_us, start_us)
        return self._results(inference, filtered, windows, name, stream.faults)

    def __call__(self, events: Any) -> list[WindowResult]:
        """Run through events in memory, in any form that `as_events` accepts.

        Events that span less than one window's length give one result; longer recordings, and with `start_s` all, give one
        result per window, as `stream` does.

        Raises:
            EvburstError: the events cannot be used, the sensor size is unknown, or the events end before `start_s`.
        """
        array = self._as_stream(events)
        window_us, t = self._inference(array.sensor_size).voxel.window_us, array.events["t"]
        cut_otherwise = (self.config.window_events, self.config.stride_ms, self.config.start_s) != (None, None, 0)
        if not len(t) or cut_otherwise or t[-1] // window_us == t[0] // window_us or t[-1] - t[0] >= window_us:
            return list(self.stream(array))
        filtered = FilteredStream(_counting_apart(array), self.config.filters)
        kept = joined(filtered.packets())
        window = EventWindow(int(t[0]), int(t[0]) + window_us, kept)
        return list(self._results(self._inference(array.sensor_size), filtered, iter([window]), "events", array.faults))

    def _results(
        self, inference: Inference, stream: FilteredStream, windows: Iterator[EventWindow], name: str, total: Faults
    ) -> Generator[WindowResult, None, None]:
        """Yield the results of one pass, whose faults are then added to `total` if `stream` counts them apart from it."""
        inference.faults, before, is_empty = stream.faults, replace(stream.faults), True
        results = run_windows(inference, stream, windows, self.config, name, before)
        try:
            with closing(results):
                for result in map(self._result_filter(inference), results):
                    is_empty = False
                    yield replace(result, grid=result.grid.copy())
        finally:
            if total is not stream.faults:
                total.add(stream.faults)
        faults = stream.faults.since(before)
        if not is_empty:
            warn_of_repairs(name, faults)
        elif self.config.start_s:
            raise no_usable_events(name, faults, self.config.start_s)
        else:
            _LOG.warning("%s", no_usable_events(name, faults))

    def _open(self, path: Path) -> EventStream:
        return open_events(path, self._size, self.config.format, options=self.config.reading)

    def _result_filter(self, inference: Inference) -> Callable[[WindowResult], WindowResult]:
        """Return a function that is applied to each result in order; see `result_filter`."""
        return lambda result: result

    def _cut_windows(self, stream: EventStream, window_us: int, start_us: int | None) -> Iterator[EventWindow]:
        return cut_windows(stream, window_us, self.config, start_us)

    def _as_stream(self, events: Any) -> EventArray:
        if isinstance(events, EventArray):
            return replace(events, events=as_events(events.events))
        array = as_events(events)
        if self._size is None:
            raise ConfigError("events in memory do not state their sensor size: pass it, Detector(..., sensor_size=(304, 240))")
        return EventArray(array, self._size)

    def _inference(self, size: SensorSize) -> Inference:
        """Return an inference for a sensor size; those of one size share the network, and nothing that a run changes.

        Networks of the MOST_SIZES sizes used last are kept. Runs that have begun keep theirs.
        """
        with self._lock:
            opened = self._inferences.get(size)
        if opened is None:
            opened = open_inference(self._bundle, self.config, size, maps=self._maps)
        with self._lock:
            opened = self._inferences.setdefault(size, opened)  # another thread may have been faster
            self._inferences.move_to_end(size)
            while len(self._inferences) > MOST_SIZES:
                self._inferences.popitem(last=False)
        return copy(opened)

    def __getstate__(self) -> dict[str, Any]:
        """A copy prepares its own networks: their buffers are views of each other, which copies would not be."""
        _TensorsAsArrays(weights := BytesIO()).dump(self._bundle)
        rest = {name: value for name, value in vars(self).items() if name not in ("_inferences", "_lock")}
        return {**rest, "_bundle": weights.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _bundle=pickle.loads(state["_bundle"]), _inferences=OrderedDict(), _lock=Lock())

    def __repr__(self) -> str:
        t = "ANN" if self.config.ann else f"T={resolve_timesteps(self._bundle, False, self.config.timesteps)}"
        return f"{type(self).__name__}({self.config.weights!r}, {t}, classes: {', '.join(self.classes)})"


class _TensorsAsArrays(pickle.Pickler):
    """Pickles tensors as arrays, because multiprocessing would pass each of them as an open file, of which there are few."""

    def reducer_override(self, value: object) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


class Detector(_Network):
    """A detector with bundled weights or a weights file.

        for result in Detector("street").stream("recording.dat"):
            print(result.detections.boxes_xyxy, result.energy_pj)

    Args:
        weights: name of bundled weights, or a file.
        sensor_size: (W, H) px, or "WxH"; required for arrays and for files that do not state it.
        score: minimum score of a box.
        maps: keep the head's output maps, from which boxes are decoded, in `result.maps`, by name.
        settings: any other setting of `evburst detect` (evburst.app.detect.DetectConfig), except for its files: timesteps, ann,
            engine, device, count_every (here 1, so that every result has its energy), window_ms, window_events, stride_ms,
            classes, track, lead_ms, batch, idle_events, filters={"background_us": 5000}, post={"nms_iou": 0.5} ...

    Attributes:
        classes: class names, indexed by `Detections.labels`.
        config: the settings.

    Raises:
        EvburstError: the weights or a setting cannot be used, or the weights are a classifier's.
    """

    config: DetectConfig

    def __init__(
        self,
        weights: str | os.PathLike[str] = "street",
        *,
        sensor_size: tuple[int, int] | str | None = None,
        score: float | None = None,
        maps: bool = False,
        **settings: Any,
    ) -> None:
        if files := [name for name in _OF_FILES if name in settings]:
            raise ConfigError(f"{', '.join(files)}: for the files of `evburst detect`; a Detector writes none, so leave it out")
        _refuse_unknown(settings, DetectConfig, "score", "maps")
        if score is not None and isinstance(post := settings.get("post", {}), dict):
            settings["post"] = {**post, "score": score}
        super().__init__(build(DetectConfig, _settings(weights, sensor_size, settings)), maps)
        class_numbers(self.config.classes, self.classes)
        if self.config.track:
            require_trackers()

    def _result_filter(self, inference: Inference) -> Callable[[WindowResult], WindowResult]:
        return result_filter(inference, self.config)


class Classifier(_Network):
    """A classifier with bundled weights or a weights file; it is used like a Detector.

        print(Classifier("nmnist").classify("00001.bin").label)
        for result in Classifier("dvs128-objects").stream("mug.aedat"):
            print(result.classification)

    Args:
        weights: name of bundled weights, or a file.
        sensor_size: (W, H) px, or "WxH"; None: as stated in the file, or else the size used in training.
        maps: keep the head's output maps, from which class scores are decoded, in `result.maps`, by name.
        settings: any other setting of `evburst classify` (evburst.app.classify.ClassifyConfig).

    Attributes:
        classes: class names, in the order of `Classification.scores`.
        config: the settings.

    Raises:
        EvburstError: the weights or a setting cannot be used, or the weights are a detector's.
    """

    config: ClassifyConfig

    def __init__(
        self,
        weights: str | os.PathLike[str] = "nmnist",
        *,
        sensor_size: tuple[int, int] | str | None = None,
        maps: bool = False,
        **settings: Any,
    ) -> None:
        _refuse_unknown(settings, ClassifyConfig, "maps")
        super().__init__(build(ClassifyConfig, _settings(weights, sensor_size, settings)), maps)
        self._size = self._size or self._bundle.sensor_size

    def classify(self, source: Any) -> Classification | None:
        """Return the mean class scores over a recording's windows; None if every window was idle.

        Args:
            source: see `stream`.
        """
        return Classification.mean(result.classification for result in self.stream(source))

    def _open(self, path: Path) -> EventStream:
        return open_recording(path, self.config, self._bundle)

    def _cut_windows(self, stream: EventStream, window_us: int, start_us: int | None) -> Iterator[EventWindow]:
        return filled_windows(super()._cut_windows(stream, window_us, start_us), self.config.window_events)


def _counting_apart(stream: EventStream) -> EventStream:
    """Return a recording with counters of its own, because other passes over it may run at the same time.

    A live source has one pass, and the counters of a stream that reads from another one are those of that one: both stay as
    they are.
    """
    if not stream.finite or not isinstance(stream, PacketFile | DatFile | EventArray):
        return stream
    apart = copy(stream)
    apart.faults = Faults(truncated_bytes=stream.faults.truncated_bytes)
    return apart


def _refuse_unknown(settings: dict[str, Any], kind: type[RunConfig], *own: str) -> None:
    """Raise ConfigError, which lists the arguments of the class, for a name that is no setting of `kind`."""
    known = [*own, *(field.name for field in fields(kind) if field.name not in _OF_FILES)]
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown setting {name!r}; {hint}")


def _settings(
    weights: str | os.PathLike[str], sensor_size: tuple[int, int] | str | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return settings in the form that the command line produces; every window is counted unless the settings differ."""
    if not isinstance(weights, str | os.PathLike):
        raise ConfigError(f"weights: expected the name of bundled weights or a path, received {type(weights).__name__}")
    given = {"count_every": 1, **_plain(settings), "weights": os.fsdecode(weights)}
    return given if sensor_size is None else {**given, "sensor_size": str(SensorSize.of(sensor_size))}


def _plain(value: Any) -> Any:
    """Return a setting with Python's numbers in place of NumPy's, in sections and lists, too."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_plain(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value
