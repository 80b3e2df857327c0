"""Windows of labelled recordings: the events of [t - window_us, t) for every labelled time t, read at random.

Events come from `open_events` and `evburst.data.random_access` alone: a window holds what a pass over the recording would, its
repairs and filters included, and every recording's faults are counted once. A recording in .dat stays on disk, with an index in
the cache; one of another format is held in memory while it is used.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.datasets import LabelledWindow, Part
from evburst.data.datasets.layouts import Layout, Recording
from evburst.data.errors import DataError, LabelError, SensorSizeError
from evburst.data.events import EventStream, EventWindow, SensorSize, check_sensor_size
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.random_access import MOST_EVENTS, EventIndex, index_events
from evburst.data.readers import DEFAULT_OPTIONS, ReadOptions, open_events, recognise_format

_LOG = logging.getLogger("evburst")
_OPEN_FILES = 64
_FROM_ZERO_US = 100_000
_IDENTITY_VERSION = 2
_SIZELESS_FORMATS = {"bin"}
"""Formats whose reader takes one data set's sensor for every file."""


@dataclass(frozen=True)
class Reading:
    """How the recordings of a data set are read.

    Attributes:
        window_us: length of a window.
        sensor_size: (W, H) px as the user says it; None: as files, labels or the layout say it.
        filters: which events are removed.
        cache: folder for indices of recordings; None: they are made anew each time.
        options: unit of time and order of columns, for files that do not state them.
    """

    window_us: int
    sensor_size: SensorSize | None = None
    filters: FiltersConfig = FiltersConfig()  # noqa: RUF009 (frozen)
    cache: Path | None = None
    options: ReadOptions = DEFAULT_OPTIONS

    def open(self, path: Path, said: SensorSize | None) -> EventStream:
        """A recording, filtered.

        Args:
            path: the file.
            said: the sensor as labels or a layout say it.

        Raises:
            EventFileError: see `open_events`.
            SensorSizeError: nobody says the sensor's size, or two contradict each other.
        """
        given = self.sensor_size or said
        if given is None and recognise_format(path) in _SIZELESS_FORMATS:
            raise SensorSizeError(f"{path}: the file does not say the sensor's size; pass --sensor-size WIDTHxHEIGHT")
        try:
            stream = open_events(path, given, options=self.options)
        except SensorSizeError as error:
            if self.sensor_size or said is None:
                raise
            raise SensorSizeError(f"{path}: a {said} sensor by its labels or its layout, but: {error}") from None
        return FilteredStream(stream, self.filters) if self.filters.any_on else stream


class RecordedWindows:
    """A Dataset of recordings.

    Args:
        layout: the files and their labels.
        reading: how they are read.
        n_windows: at most so many, spread evenly; 0 for all.

    Attributes:
        spec: classes, and the sensor that the recordings have.
        unlabelled: event files that were left out because they have no labels.

    Raises:
        EventFileError, SensorSizeError: the first recording cannot be opened.
        LabelError: no label lies within its recording.
    """

    def __init__(self, layout: Layout, reading: Reading, n_windows: int = 0) -> None:
        self.unlabelled, self._root, self._reading = layout.unlabelled, layout.root, reading
        items = [(recording, k) for recording in layout.recordings for k in range(len(recording.labels))]
        if n_windows:
            items = [items[i] for i in np.linspace(0, len(items) - 1, min(n_windows, len(items))).astype(int)]
        self._items = items
        self._open: OrderedDict[Path, EventIndex] = OrderedDict()
        self._faults: dict[str, dict[str, int]] = {}
        first = layout.recordings[0]
        self.spec = replace(layout.spec, sensor_size=reading.open(first.events, first.sensor_size).sensor_size)
        self._check_clocks([next(same)[0] for _, same in groupby(items, key=_path)])
        self._check_places()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> LabelledWindow:
        boxes, size = self.labels(i), self.spec.sensor_size
        recording = self._items[i][0]
        window = self._index(recording).window(boxes.t_us)
        clipped, inside = _clipped(boxes.boxes_xyxy, size)
        found = Detections(clipped[inside], boxes.scores[inside], boxes.labels[inside], boxes.t_us)
        return LabelledWindow(window, found, recording.events.name)

    @property
    def faults(self) -> dict[str, dict[str, int]]:
        """What was repaired in the recordings read so far, each counted once: by path below the root, then by kind of fault."""
        return {name: dict(counts) for name, counts in sorted(self._faults.items()) if counts}

    @property
    def fault_totals(self) -> dict[str, int]:
        """The sums of `faults` over recordings."""
        total: Counter[str] = Counter()
        for counts in self._faults.values():
            total.update(counts)
        return dict(total)

    def faults_of(self, i: int) -> dict[str, int]:
        """The faults of item i's recording, which is read for it if it was not before."""
        self._index(self._items[i][0])
        return dict(self._faults[self._name(self._items[i][0])])

    def labels(self, i: int) -> Detections:
        """See Dataset."""
        recording, k = self._items[i]
        t, boxes = recording.labels[k]
        return replace(boxes, t_us=self._index(recording).end_us if t is None else t)

    def window_before(self, i: int, t_us: int) -> EventWindow:
        """The window of item i's recording that ends at another time than its label."""
        return self._index(self._items[i][0]).window(t_us)

    def start_us(self, i: int) -> int:
        """See Dataset. A clock that shows less than 0.1 s at the first event counts from the recording's start."""
        first = self._index(self._items[i][0]).first_us
        return 0 if 0 <= first < _FROM_ZERO_US else first

    def parts(self) -> list[Part]:
        """See Dataset."""
        found, first = [], 0
        for path, items in groupby(self._items, key=_path):
            chosen = [recording.labels[k] for recording, k in items]
            identity = _identity(path, self._reading, chosen)
            found.append(Part(path.stem, range(first, first + len(chosen)), identity))
            first += len(chosen)
        return found

    def _name(self, recording: Recording) -> str:
        path = recording.events
        return (path.relative_to(self._root) if path.is_relative_to(self._root) else path).as_posix()

    def _index(self, recording: Recording) -> EventIndex:
        """The recording's index, among the last used ones or made now."""
        path = recording.events
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        stream = self._reading.open(path, recording.sensor_size)
        if stream.sensor_size != self.spec.sensor_size:
            raise SensorSizeError(
                f"{path}: a {stream.sensor_size} sensor among recordings of {self.spec.sensor_size}; one folder for each, please"
            )
        file = (
            self._reading.cache / "recordings" / f"{_identity(path, self._reading, [])}.json" if self._reading.cache else None
        )
        try:
            index = index_events(stream, self._reading.window_us, file)
        except DataError as error:
            raise type(error)(str(error) if str(path) in str(error) else f"{path}: {error}") from None
        if self._name(recording) not in self._faults:
            self._faults[self._name(recording)] = index.faults.found()
            self._note_outside(recording, index)
        self._open[path] = index
        while len(self._open) > 1 and (len(self._open) > _OPEN_FILES or self._held() > MOST_EVENTS):
            self._open.popitem(last=False)
        return index

    def _held(self) -> int:
        return sum(index.held_events for index in self._open.values())

    def _outside(self, recording: Recording, index: EventIndex) -> list[int]:
        """Labelled times whose windows share no microsecond with the recording."""
        times = [t for t, _ in recording.labels if t is not None]
        return [t for t in times if t <= index.first_us or t - self._reading.window_us >= index.end_us]

    def _note_outside(self, recording: Recording, index: EventIndex) -> None:
        outside = self._outside(recording, index)
        if outside:
            _LOG.warning(
                "%s: %d of %d labelled times lie outside the recording: %s",
                recording.events, len(outside), len(recording.labels), _ranges(outside, index),
            )  # fmt: skip

    def _check_clocks(self, recordings: Sequence[Recording]) -> None:
        """Stop if no label lies within its recording; looks only as far as the first one that does."""
        message = ""
        for recording in recordings:
            index = self._index(recording)
            outside = self._outside(recording, index)
            if len(outside) < len(recording.labels):
                return
            if outside and not message:
                message = f"{recording.events}: {_ranges(outside, index)}"
        if message:
            raise LabelError(f"no labelled time lies within its recording; are labels and events on the same clock? {message}")

    def _check_places(self) -> None:
        """Tell how many boxes lie outside the sensor; stop if most of them do."""
        boxes = [recording.labels[k][1].boxes_xyxy for recording, k in self._items]
        inside = _clipped(np.concatenate(boxes), self.spec.sensor_size)[1] if boxes else np.ones(0, np.bool_)
        outside = int((~inside).sum())
        check_sensor_size(str(self._root), self.spec.sensor_size, len(inside) - outside, outside, "labelled boxes")
        if outside:
            _LOG.warning("%s: %d of %d labelled boxes lie outside the %s sensor and are left out",
                         self._root, outside, len(inside), self.spec.sensor_size)  # fmt: skip


def _clipped(boxes: NDArray[np.float32], size: SensorSize) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes `(n, 4)` as far as they lie on the sensor, and which of them do at all, `(n,)`."""
    clipped = np.clip(boxes, 0, [*size, *size]).astype(np.float32)
    inside: NDArray[np.bool_] = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(1)
    return clipped, inside


def _path(item: tuple[Recording, int]) -> Path:
    return item[0].events


def _ranges(times: Sequence[int], index: EventIndex) -> str:
    return f"labels from {min(times)} to {max(times)} µs, events from {index.first_us} to {index.end_us - 1} µs"


def _identity(events: Path, reading: Reading, labels: Sequence[tuple[int | None, Detections]]) -> str:
    """A digest of the file's size and age, of how it is read, and of these labels."""
    try:
        status = events.stat()
    except OSError as error:
        raise DataError(f"{events}: cannot be read ({error.strerror})") from None
    how = [
        _IDENTITY_VERSION,
        reading.window_us,
        astuple(reading.filters),
        astuple(reading.options),
        reading.sensor_size and tuple(reading.sensor_size),
    ]
    digest = hashlib.sha256(f"{events.resolve()} {status.st_size} {status.st_mtime_ns} {how}".encode(errors="surrogatepass"))
    for t, boxes in labels:
        digest.update(f"{t}".encode() + boxes.boxes_xyxy.tobytes() + boxes.labels.tobytes())
    return digest.hexdigest()
