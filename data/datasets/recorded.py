"""Windows of labelled recordings: the events of [t - window_us, t) for every labelled time t, with random access.

Events are read only through `open_events` and `evburst.data.random_access`. A window therefore holds what a pass over the
recording would return, repairs and filters included, and the faults of every recording are counted once. A .dat recording stays
on disk, with an index in the cache; recordings of other formats are held in memory while they are used.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec, LabelledWindow, Part, evenly_spread
from evburst.data.datasets.selection import SELECT, held_out
from evburst.data.datasets.splits import LabelledSplit, Recording
from evburst.data.errors import DataError, LabelError, NoEventsError, SensorSizeError
from evburst.data.events import EventStream, SensorSize, check_sensor_size
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.notices import warn_once
from evburst.data.random_access import (
    MAX_HELD_EVENTS,
    EmptyRecording,
    EventIndex,
    RecentIndices,
    first_sensor_size,
    index_recording,
)
from evburst.data.readers import DEFAULT_OPTIONS, ReadOptions, open_events, open_sized
from evburst.data.text import number_of

_LOG = logging.getLogger(__name__)
_OPEN_FILES = 64
_FROM_ZERO_US = 100_000
_BEFORE_LABELS_US = 1_000_000
"""Time before its first label at which a recording without events is taken to begin, if that is not before zero."""

_STRETCHES = 8
_IDENTITY_VERSION = 2


@dataclass(frozen=True)
class Reading:
    """How the recordings of a dataset are read.

    Attributes:
        window_us: length of a window.
        sensor_size: (W, H) px as given by the user; None: as stated by files, labels or the layout.
        filters: event filters.
        cache: folder for the indices of recordings; None: they are computed again each time.
        options: unit of time and order of columns, for files that do not state them.
    """

    window_us: int
    sensor_size: SensorSize | None = None
    filters: FiltersConfig = FiltersConfig()  # noqa: RUF009 (frozen)
    cache: Path | None = None
    options: ReadOptions = DEFAULT_OPTIONS

    def open(self, path: Path, stated: SensorSize | None) -> EventStream:
        """Open a recording, with filters.

        Args:
            path: the file.
            stated: the sensor size stated by labels or a layout.

        Raises:
            EventFileError: see `open_events`.
            SensorSizeError: the sensor's size is unknown, or two sources contradict each other.
        """
        given = self.sensor_size or stated
        if stated is not None and given != stated:
            warn_once(
                f"{path}: its labels or its layout state a {stated} sensor, and --sensor-size {given}; boxes are read as they "
                "are: if pictures of another size were labelled, export them in the sensor's size"
            )
        try:
            stream = open_sized(path, given, None, options=self.options)
        except SensorSizeError as error:
            if self.sensor_size or stated is None:
                raise
            text = f"{path}: its labels or its layout state a {stated} sensor"
            try:
                own = open_events(path, options=self.options).sensor_size
            except DataError:
                raise SensorSizeError(f"{text}, but: {error}") from None
            raise SensorSizeError(
                f"{text}, the file a {own} sensor: if pictures of another size were labelled, or were resized when they were "
                "exported, export them in the sensor's size; otherwise pass the true size: --sensor-size WxH"
            ) from None
        return FilteredStream(stream, self.filters) if self.filters.any_on else stream


def unlabelled_windows(
    recordings: Sequence[Path], spec: DatasetSpec, reading: Reading, split: str, n_windows: int
) -> RecordedWindows:
    """The windows of recordings without labels, those without events left out, as a Dataset without boxes.

    Each recording is divided into eight stretches of consecutive windows; an eighth of all windows, in whole stretches, is the
    split "select".

    Args:
        recordings: the files, of one sensor.
        spec: classes; its sensor is replaced by that of the recordings.
        reading: how they are read.
        split: "train" or "select".
        n_windows: maximum number of windows, spread evenly; 0 for all.

    Raises:
        DataError: a recording cannot be read, or they have fewer than two windows with events together.
    """
    ends: dict[tuple[int, int], list[int]] = {}
    for number, path in enumerate(recordings):
        own = [window.t1_us for window in reading.open(path, None).windows(reading.window_us) if len(window)]
        for k, t_us in enumerate(own):
            ends.setdefault((number, _STRETCHES * k // len(own)), []).append(t_us)
    names = {stretch: f"{recordings[stretch[0]].name}/{stretch[0]}/{stretch[1]}" for stretch in ends}
    held = held_out("unlabelled", {names[stretch]: len(times) for stretch, times in ends.items()})
    if not held:
        windows, files = sum(map(len, ends.values())), ", ".join(map(str, recordings[:3]))
        raise DataError(f"{files}: {number_of(windows, 'window')} with events in these recordings; at least two are needed")
    found: dict[int, list[int]] = {}
    for stretch, times in ends.items():
        if (names[stretch] in held) == (split == SELECT):
            found.setdefault(stretch[0], []).extend(times)
    root = Path(os.path.commonpath([path.parent for path in recordings]))
    labelled = [Recording(recordings[k], tuple((t_us, Detections.empty(t_us)) for t_us in times)) for k, times in found.items()]
    return RecordedWindows(LabelledSplit(root, spec, labelled), reading, n_windows)


class RecordedWindows:
    """A Dataset of recordings.

    The windows of a recording without events are empty: nothing can be found in them, and their labels count as missed.

    Args:
        split: the files and their labels.
        reading: how they are read.
        n_windows: maximum number of windows, spread evenly; 0 for all.

    Attributes:
        spec: classes, and the sensor of the recordings.
        unlabelled: number of event files skipped because they have no labels.

    Raises:
        EventFileError, SensorSizeError: the first recording cannot be opened, or none has events.
        LabelError: no label lies within its recording.
    """

    def __init__(self, split: LabelledSplit, reading: Reading, n_windows: int) -> None:
        self.unlabelled, self._root, self._reading = split.unlabelled, split.root, reading
        items = [(recording, k) for recording in split.recordings for k in range(len(recording.labels))]
        if n_windows:
            items = [items[i] for i in evenly_spread(len(items), n_windows)]
        self._items = items
        self._open = RecentIndices[Path](_OPEN_FILES, MAX_HELD_EVENTS)
        self._faults: dict[str, dict[str, int]] = {}
        openers = (partial(reading.open, recording.events, recording.sensor_size) for recording in split.recordings)
        self.spec = replace(split.spec, sensor_size=first_sensor_size(openers, self._root))
        self._check_clocks([next(items_of_file)[0] for _, items_of_file in groupby(items, key=_path)])
        self._check_places()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> LabelledWindow:
        boxes, clipped = self._labelled(i)
        recording = self._items[i][0]
        window = self._index(recording).window(boxes.t_us)
        return LabelledWindow(window, replace(boxes, boxes_xyxy=clipped), recording.title)

    def faults_of(self, i: int) -> dict[str, int]:
        """Return the faults of item i's recording, which is read for this purpose if necessary."""
        self._index(self._items[i][0])
        return dict(self._faults[self._name(self._items[i][0])])

    def labels(self, i: int) -> Detections:
        """See Dataset. Boxes without area, or outside the sensor, are left out."""
        return self._labelled(i)[0]

    def window_before(self, i: int, t_us: int) -> LabelledWindow:
        """Return the window of item i's recording that ends at `t_us` instead of its label's time, without labels."""
        recording = self._items[i][0]
        return LabelledWindow(self._index(recording).window(t_us), Detections.empty(t_us), recording.title)

    def ends_between(self, before: int | None, i: int) -> range:
        """Return the ends, µs, of the windows that lead up to that of item i without a gap.

        Args:
            before: an item of the same recording, after whose window they begin; None: they begin with the first event.
            i: the item.
        """
        end_us, window_us = self.labels(i).t_us, self._reading.window_us
        first_us = self._index(self._items[i][0]).first_us + 1 if before is None else self.labels(before).t_us + window_us
        return range(end_us - max(0, end_us - first_us) // window_us * window_us, end_us, window_us)

    def start_us(self, i: int) -> int:
        """See Dataset. A clock that shows less than 0.1 s at the first event is taken to start with the recording."""
        first = self._index(self._items[i][0]).first_us
        return 0 if 0 <= first < _FROM_ZERO_US else first

    def parts(self) -> list[Part]:
        """See Dataset."""
        found, first = [], 0
        for path, items in groupby(self._items, key=_path):
            own = list(items)
            chosen = [recording.labels[k] for recording, k in own]
            identity, group = _identity(path, self._reading, chosen), own[0][0].group
            found.append(Part(own[0][0].name or path.stem, range(first, first + len(chosen)), identity, group))
            first += len(chosen)
        return found

    def _labelled(self, i: int) -> tuple[Detections, NDArray[np.float32]]:
        """Return the boxes of item i that lie on the sensor, as labelled, and clipped to it, `(n, 4)`."""
        recording, k = self._items[i]
        t, boxes = recording.labels[k]
        clipped, inside = _clipped(boxes.boxes_xyxy, self.spec.sensor_size)
        t_us = self._index(recording).end_us if t is None else t
        return replace(boxes.take(inside), t_us=t_us), clipped[inside]

    def _name(self, recording: Recording) -> str:
        path = recording.events
        return (path.relative_to(self._root) if path.is_relative_to(self._root) else path).as_posix()

    def _index(self, recording: Recording) -> EventIndex:
        """Return the recording's index, from the recently used ones or computed now."""
        return self._open.get(recording.events, lambda: self._new_index(recording))

    def _new_index(self, recording: Recording) -> EventIndex:
        path, index = recording.events, self._computed_index(recording)
        times = [t for t, _ in recording.labels]
        if None in times and index.end_us in times:
            raise LabelError(
                f"{path}: labels without a time are of the recording's end, {index.end_us} µs, and others have this time; "
                "give all of them a time"
            )
        if self._name(recording) not in self._faults:
            self._faults[self._name(recording)] = index.faults.found()
            self._warn_outside(recording, index)
        return index

    def _computed_index(self, recording: Recording) -> EventIndex:
        path, window_us, cache = recording.events, self._reading.window_us, self._reading.cache
        file = cache / "recordings" / f"{_identity(path, self._reading, [])}.json" if cache else None
        open_stream = partial(self._reading.open, path, recording.sensor_size)
        try:
            return index_recording(str(path), open_stream, self.spec.sensor_size, window_us, file)
        except NoEventsError:
            first_us = min((t for t, _ in recording.labels if t is not None), default=0) - _BEFORE_LABELS_US
            return EmptyRecording(max(first_us, 0), window_us)

    def _times_outside(self, recording: Recording, index: EventIndex) -> list[int]:
        """Return the labelled times whose windows do not overlap the recording."""
        times = [t for t, _ in recording.labels if t is not None]
        return [t for t in times if t <= index.first_us or t - self._reading.window_us >= index.end_us]

    def _warn_outside(self, recording: Recording, index: EventIndex) -> None:
        if isinstance(index, EmptyRecording):
            text = "%s: contains no events: nothing can be found at its labelled times (%d)"
            _LOG.warning(text, recording.events, len(recording.labels))
            return
        outside = self._times_outside(recording, index)
        if outside:
            _LOG.warning(
                "%s: %d of %d labelled times lie outside the recording: %s",
                recording.events, len(outside), len(recording.labels), _ranges(outside, index),
            )  # fmt: skip

    def _check_clocks(self, recordings: Sequence[Recording]) -> None:
        """Raise LabelError if no label lies within its recording; stops at the first one that does."""
        message = ""
        for recording in recordings:
            index = self._index(recording)
            if isinstance(index, EmptyRecording):
                continue
            outside = self._times_outside(recording, index)
            if len(outside) < len(recording.labels):
                return
            if outside and not message:
                message = f"{recording.events}: {_ranges(outside, index)}"
        if message:
            raise LabelError(f"no labelled time lies within its recording; do labels and events use the same clock? {message}")

    def _check_places(self) -> None:
        """Tell how many boxes have no area, are repeated or lie outside the sensor; stop if many lie outside."""
        boxes = np.concatenate([np.zeros((0, 4), np.float32)] + [r.labels[k][1].boxes_xyxy for r, k in self._items])
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        _, inside = _clipped(boxes, self.spec.sensor_size)
        flat, outside = int((~has_area).sum()), int((has_area & ~inside).sum())
        check_sensor_size(str(self._root), self.spec.sensor_size, len(boxes) - flat - outside, outside, "labelled boxes")
        for count, what in ((outside, f"lie outside the {self.spec.sensor_size} sensor"), (flat, "have no width or no height")):
            if count:
                _LOG.warning("%s: %d of %d labelled boxes %s and are left out", self._root, count, len(boxes), what)
        if repeated := self._count_repeated(boxes):
            text = "%s: %d of %d labelled boxes equal another one in time, class and place; each counts as an object"
            _LOG.warning(text, self._root, repeated, len(boxes))

    def _count_repeated(self, boxes: NDArray[np.float32]) -> int:
        """Return how many of the boxes `(n, 4)` of all items equal one before in the same item, of the same class."""
        own = [recording.labels[k][1].labels for recording, k in self._items]
        items = np.repeat(np.arange(len(own)), [len(labels) for labels in own])
        classes = np.concatenate([np.zeros(0, np.int64), *own])
        return len(boxes) - len(np.unique(np.column_stack([items, classes, boxes]), axis=0))


def _clipped(boxes: NDArray[np.float32], size: SensorSize) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes `(n, 4)` as far as they lie on the sensor, and which of them do at all, `(n,)`."""
    clipped = np.clip(boxes, 0, [*size, *size]).astype(np.float32)
    inside = np.logical_and(*(clipped[:, 2:] > clipped[:, :2]).T)
    return clipped, inside


def _path(item: tuple[Recording, int]) -> Path:
    return item[0].events


def _ranges(times: Sequence[int], index: EventIndex) -> str:
    return f"labels from {min(times)} to {max(times)} µs, events from {index.first_us} to {index.end_us - 1} µs"


def _identity(events: Path, reading: Reading, labels: Sequence[tuple[int | None, Detections]]) -> str:
    """Return a digest of the file's size and modification time, of how it is read, and of these labels."""
    try:
        status = events.stat()
    except OSError as error:
        raise DataError(f"{events}: cannot be read ({error.strerror})") from None
    settings = [
        _IDENTITY_VERSION,
        reading.window_us,
        astuple(reading.filters),
        astuple(reading.options),
        reading.sensor_size and tuple(reading.sensor_size),
    ]
    digest = hashlib.sha256(
        f"{events.resolve()} {status.st_size} {status.st_mtime_ns} {settings}".encode(errors="surrogatepass")
    )
    for t, boxes in labels:
        digest.update(f"{t}".encode() + boxes.boxes_xyxy.tobytes() + boxes.labels.tobytes())
    return digest.hexdigest()
