"""Windows of recordings with one class each, for training and evaluating classifiers.

A recording is cut into windows that start at multiples of their length. Its first or last window is skipped if the recording
fills less than half of it, unless it is the only one. A recording is classified by the mean of its windows' scores.

Splits consist of whole recordings (classes.py). If there are only a few long recordings, a part of the time of each can be held
out instead (HeldTime).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec, LabelledWindow, Part, evenly_spread
from evburst.data.datasets.classes import ClassDataset, LabelledRecording, open_classes
from evburst.data.datasets.selection import warn_of_unseen
from evburst.data.encoding import columns
from evburst.data.errors import DataError, NoEventsError, SettingValueError
from evburst.data.events import EventStream, EventWindow, SensorSize
from evburst.data.files import replacing
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.random_access import EmptyRecording, EventIndex, RecentIndices, first_sensor_size, index_recording

_LOG = logging.getLogger(__name__)
_VERSION = 1
_MAX_HELD_EVENTS = 20_000_000
"""Largest number of events kept in memory for all open recordings together, which is 260 MB."""
_OPEN_RECORDINGS = 2048
_MANY = 2000
"""Smallest number of recordings for which a message states that they are read first, which takes seconds or minutes."""


@dataclass(frozen=True)
class HeldTime:
    """Holds out blocks of every recording's time as the splits "select" and "test"; the rest, except for gaps, is "train".

    Attributes:
        blocks: number of equal blocks into which a recording's time is divided; 0: whole recordings are held out instead.
        block: index of the block that is "select", from 0; -1: none.
        gap_s: time before and after each of these blocks that is not learned from.
        test_block: index of the block that is "test", from 0; -1: none, so that "test" is what the data set publishes as such.
    """

    blocks: int = 0
    block: int = 0
    gap_s: float = 0.5
    test_block: int = -1

    def __post_init__(self) -> None:
        given = [block for block in (self.block, self.test_block) if block != -1]
        if not 0 <= self.blocks <= 1000 or self.blocks == 1 or any(not 0 <= block < max(self.blocks, 1) for block in given):
            raise SettingValueError("held.blocks must be 0, or 2 to 1000, held.block and held.test_block less than that or -1")
        if (len(given) == 2 and self.block == self.test_block) or self.gap_s < 0:
            raise SettingValueError("held.block and held.test_block must differ, and held.gap_s must not be negative")

    def holds(self, split: str) -> bool:
        """Return whether a split is a part of every recording's time."""
        return self.blocks > 0 and (split != "test" or self.test_block >= 0)

    def select(self, split: str, ends: Sequence[int], window_us: int) -> list[int]:
        """Return those of a recording's window ends that belong to a split."""
        if not self.holds(split) or not ends:
            return list(ends)
        first, span = ends[0] - window_us, ends[-1] - ends[0] + window_us
        held = {
            name: tuple(first + span * (block + k) // self.blocks for k in (0, 1))
            for name, block in (("select", self.block), ("test", self.test_block))
            if block >= 0
        }
        if split != "train":
            return [end for end in ends if split in held and end - window_us >= held[split][0] and end <= held[split][1]]
        gap = round(1e6 * self.gap_s)
        return [end for end in ends if all(end <= low - gap or end - window_us >= high + gap for low, high in held.values())]


def filled_numbers(first_us: int, end_us: int, window_us: int) -> range:
    """Return the numbers k of the windows [k w, (k + 1) w) of a recording [first_us, end_us).

    The first and the last window are excluded if the recording fills less than half of them, unless no other window is left.
    """
    first, last = first_us // window_us, (end_us - 1) // window_us
    if last > first and 2 * ((first + 1) * window_us - first_us) < window_us:
        first += 1
    if last > first and 2 * (end_us - last * window_us) < window_us:
        last -= 1
    return range(first, last + 1)


def filled_windows(windows: Iterator[EventWindow], window_events: int | None = None) -> Iterator[EventWindow]:
    """Yield the windows of a recording that it fills by at least half, while they are read; without any, the last with events.

    Consecutive windows are those of `filled_numbers`; windows may also overlap, or hold a number of events.

    Args:
        windows: in order of time.
        window_events: number of events that a window can hold; None: windows have a fixed length.
    """
    waiting, last, begin_us, any_yielded = deque[EventWindow](), None, 0, False
    for window in windows:
        if len(window):
            begin_us = int(columns(window)[0].min()) if last is None else begin_us
            last = window
        if last is None:
            continue
        if 2 * len(window) >= window_events if window_events else 2 * (window.t1_us - begin_us) >= _length_us(window):
            waiting.append(window)
        while waiting and (window_events or 2 * (last.t0_us - waiting[0].t0_us) >= _length_us(waiting[0])):
            any_yielded = True
            yield waiting.popleft()
    if last is None:
        return
    end_us = int(columns(last)[0].max()) + 1
    filled = [window for window in waiting if 2 * (end_us - window.t0_us) >= _length_us(window)]
    yield from filled if filled or any_yielded else [last]


def _length_us(window: EventWindow) -> int:
    return window.t1_us - window.t0_us


def whole_window(label: int, size: SensorSize, t_us: int) -> Detections:
    """Return a class label as one box that covers the whole sensor."""
    return Detections(np.array([[0, 0, *size]], np.float32), np.ones(1, np.float32), np.array([label], np.int64), t_us)


def open_class_windows(
    kind: str,
    root: Path,
    split: str,
    window_us: int,
    n_windows: int,
    cache: Path | None,
    held: HeldTime,
    filters: FiltersConfig = FiltersConfig(),  # noqa: B008 (frozen)
    **reading: Any,
) -> ClassWindows:
    """Open the windows of one split of a classification data set.

    Args:
        kind, root: see open_classes.
        split: "train", "select" or "test".
        window_us, n_windows, cache, held, filters: see ClassWindows.
        reading: further arguments of open_classes.
    """
    whole = "train" if held.holds(split) else split
    dataset = open_classes(kind, root, whole, in_time=held.holds(split), **reading)
    if split == "train":
        warn_of_unseen(root, dataset.classes, {dataset.classes[recording.label] for recording in dataset.recordings})
    return ClassWindows(dataset, split, window_us, n_windows, cache, held, filters)


class ClassWindows:
    """A Dataset of class recordings; the only box of a window covers the whole sensor.

    A recording without events has one empty window, which no network can classify.

    Args:
        dataset: the recordings of the split.
        split: name of the split.
        window_us: length of a window.
        n_windows: largest number of windows, spread evenly; 0: all.
        cache: folder for a list of the recordings' times and faults; None: the recordings are read again each time.
        held: which part of the recordings' time belongs to the split.
        filters: filters that remove events.

    Attributes:
        spec: the classes, and the sensor of the recordings.

    Raises:
        EvburstError: a recording cannot be read.
        SensorSizeError: the recordings have different sensor sizes.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        split: str,
        window_us: int,
        n_windows: int = 0,
        cache: Path | None = None,
        held: HeldTime = HeldTime(),
        filters: FiltersConfig = FiltersConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self._dataset, self._window_us, self._filters = dataset, window_us, filters
        self._open = RecentIndices[int](_OPEN_RECORDINGS, _MAX_HELD_EVENTS)
        size = first_sensor_size((partial(self._stream, recording) for recording in dataset.recordings), dataset.name)
        self.spec = DatasetSpec(dataset.name, dataset.classes, size, "", {}, whole=True)
        self._key = hashlib.sha256(repr((dataset.name, window_us, filters, size)).encode()).hexdigest()
        self._spans = self._measure(cache)
        spans = zip(dataset.recordings, self._spans, strict=True)
        if empty := [recording.name for recording, (first_us, end_us, _) in spans if first_us == end_us]:
            _LOG.warning("%s", _without_events(empty))
        items = []
        for number, (first_us, end_us, _) in enumerate(self._spans):
            ends = [(k + 1) * window_us for k in filled_numbers(first_us, end_us, window_us)] or [first_us + window_us]
            items += [(number, end) for end in held.select(split, ends, window_us)]
        if not items:
            raise DataError(f"{dataset.name}: the recordings are too short for a window of split {split!r}")
        if n_windows:
            items = [items[i] for i in evenly_spread(len(items), n_windows)]
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> LabelledWindow:
        number, end_us = self._items[i]
        return LabelledWindow(self._index(number).window(end_us), self.labels(i), self._dataset.recordings[number].name)

    def labels(self, i: int) -> Detections:
        """See Dataset."""
        number, end_us = self._items[i]
        return whole_window(self._dataset.recordings[number].label, self.spec.sensor_size, end_us)

    def start_us(self, i: int) -> int:
        """See Dataset."""
        return self._spans[self._items[i][0]][0]

    def faults_of(self, i: int) -> dict[str, int]:
        """See Dataset."""
        return dict(self._spans[self._items[i][0]][2])

    def parts(self) -> list[Part]:
        """See Dataset: one part for each recording."""
        numbers = [number for number, _ in self._items]
        firsts = [i for i, number in enumerate(numbers) if not i or number != numbers[i - 1]]
        parts = []
        for first, stop in zip(firsts, [*firsts[1:], len(numbers)], strict=True):
            recording = self._dataset.recordings[numbers[first]]
            identity = f"{self._key} {recording.name} {recording.identity} {recording.label} {self._items[first:stop]}"
            parts.append(Part(Path(recording.name).stem, range(first, stop), hashlib.sha256(identity.encode()).hexdigest()))
        return parts

    def _stream(self, recording: LabelledRecording) -> EventStream:
        stream = recording.open()
        return FilteredStream(stream, self._filters) if self._filters.any_on else stream

    def _measure(self, cache: Path | None) -> list[tuple[int, int, dict[str, int]]]:
        """Return the first microsecond, one past the last, and the faults of each recording, cached or by reading it."""
        recordings = self._dataset.recordings
        named = [f"{recording.name} {recording.identity}" for recording in recordings]
        digest = hashlib.sha256("\n".join([self._key, *named]).encode()).hexdigest()[:16]
        file = cache / "classes" / f"{digest}.json" if cache and all(recording.identity for recording in recordings) else None
        if file and (kept := _load(file, len(recordings))):
            return kept
        if len(recordings) >= _MANY:
            kept_in = f"; the times are kept in {file.parent}" if file else ""
            _LOG.info("%s: reading %d recordings once%s", self._dataset.name, len(recordings), kept_in)
        measured = []
        for number, recording in enumerate(recordings):
            index = self._index(number)
            faults = index.faults.found()
            if faults:
                _LOG.info("%s: repaired: %s", recording.name, index.faults)
            measured.append((index.first_us, index.end_us, faults))
        if file:
            with replacing(file) as part:
                part.write_text(json.dumps([_VERSION, measured]))
        return measured

    def _index(self, number: int) -> EventIndex:
        """Return a recording's index, from the recently used ones or computed now."""
        return self._open.get(number, lambda: self._new_index(self._dataset.recordings[number]))

    def _new_index(self, recording: LabelledRecording) -> EventIndex:
        try:
            return index_recording(recording.name, partial(self._stream, recording), self.spec.sensor_size, self._window_us)
        except NoEventsError:
            return EmptyRecording(0, self._window_us)


def _without_events(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]}: contains no events, so that its class cannot be found"
    return f"{len(names):,} recordings contain no events, so that their classes cannot be found; the first one: {names[0]}"


def _load(file: Path, n: int) -> list[tuple[int, int, dict[str, int]]] | None:
    """Return cached measurements; None if there are none that this version can use."""
    try:
        version, kept = json.loads(file.read_text())
        found = [(int(first), int(end), dict(faults)) for first, end, faults in kept]
    except (OSError, ValueError, TypeError):
        return None
    return found if version == _VERSION and len(found) == n else None
