"""Windows of recordings that are of one class each: what a classifier learns from and is evaluated on.

A recording is cut into the windows that a pass over it yields, on multiples of their length. A first or last window that
the recording fills by less than half is left out where there is another one. The class of a recording is decided by the
mean of its windows' scores.

Whole recordings are held out (classes.py); where there are few, long ones, a part of the time of each is (HeldTime).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec, LabelledWindow, Part
from evburst.data.datasets.classes import ClassDataset, LabelledRecording, open_classes
from evburst.data.encoding import columns
from evburst.data.errors import DataError, SensorSizeError
from evburst.data.events import EventStream, EventWindow, SensorSize
from evburst.data.files import replacing
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.random_access import EventIndex, index_events

_LOG = logging.getLogger("evburst")
_VERSION = 1
_MOST_HELD = 20_000_000
"""Events of all open recordings together, 260 MB."""
_OPEN_RECORDINGS = 2048


@dataclass(frozen=True)
class HeldTime:
    """A block of every recording's time as the split "select"; the others, but for a gap beside it, are "train".

    Attributes:
        blocks: equal parts that a recording's time is divided into; 0: recordings are held out, not time.
        block: number of the one that is held out, from 0; -1: none.
        gap_s: time beside it that is in neither split.
    """

    blocks: int = 0
    block: int = 0
    gap_s: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.blocks <= 1000 or self.blocks == 1 or not -1 <= self.block < max(self.blocks, 1) or self.gap_s < 0:
            raise ValueError("held.blocks must be 0, or 2 to 1000, held.block one of them or -1, and held.gap_s not negative")

    def of(self, split: str, ends: Sequence[int], window_us: int) -> list[int]:
        """Those window ends of a recording that belong to a split."""
        if not self.blocks or not ends:
            return list(ends)
        first, span = ends[0] - window_us, ends[-1] - ends[0] + window_us
        low, high = (first + span * (self.block + k) // self.blocks for k in (0, 1))
        if self.block < 0:
            return list(ends) if split == "train" else []
        if split == "select":
            return [end for end in ends if end - window_us >= low and end <= high]
        gap = round(1e6 * self.gap_s)
        return [end for end in ends if end <= low - gap or end - window_us >= high + gap]


def filled(first_us: int, end_us: int, window_us: int) -> range:
    """Numbers k of the windows [k w, (k + 1) w) of a recording [first_us, end_us), without ends that are less than half
    filled."""
    first, last = first_us // window_us, (end_us - 1) // window_us
    if last > first and 2 * ((first + 1) * window_us - first_us) < window_us:
        first += 1
    if last > first and 2 * (end_us - last * window_us) < window_us:
        last -= 1
    return range(first, last + 1)


def filled_windows(windows: Iterator[EventWindow]) -> Iterator[EventWindow]:
    """The same for consecutive windows of a recording as they are read."""
    first = next((window for window in windows if len(window)), None)
    if first is None:
        return
    begin_us = int(columns(first)[0].min())
    held, wanted, any_yielded = first, 2 * (first.t1_us - begin_us) >= first.t1_us - first.t0_us, False
    for window in windows:
        if wanted:
            yield held
        any_yielded |= wanted
        held, wanted = window, True
    last = columns(held)[0]
    if not any_yielded or not len(last) or 2 * (int(last.max()) + 1 - held.t0_us) >= held.t1_us - held.t0_us:
        yield held


def whole_window(label: int, size: SensorSize, t_us: int) -> Detections:
    """A class as the only box of its window: the sensor's area."""
    return Detections(np.array([[0, 0, *size]], np.float32), np.ones(1, np.float32), np.array([label], np.int64), t_us)


def open_class_windows(
    kind: str,
    root: Path,
    split: str,
    window_us: int,
    n_windows: int = 0,
    cache: Path | None = None,
    held: HeldTime = HeldTime(),
    filters: FiltersConfig = FiltersConfig(),  # noqa: B008 (frozen)
    **reading: Any,
) -> ClassWindows:
    """The windows of one split of a classification data set.

    Args:
        kind, root: see open_classes.
        split: "train", "select", "test", or "val", which is "test".
        window_us, n_windows, cache, held, filters: see ClassWindows.
        reading: what else open_classes takes.
    """
    split = "test" if split == "val" else split
    found = open_classes(kind, root, split, in_time=held.blocks > 0, **reading)
    return ClassWindows(found, split, window_us, n_windows, cache, HeldTime() if split == "test" else held, filters)


class ClassWindows:
    """A Dataset of class recordings; a window's only box is the sensor's area.

    Args:
        found: the recordings.
        split: of them.
        window_us: length of a window.
        n_windows: at most this many, spread evenly; 0: all.
        cache: folder for a list of the recordings' times and faults; None: they are read anew each time.
        held: which part of their time belongs to the split.
        filters: which events are removed.

    Attributes:
        spec: classes, and the sensor that the recordings have.

    Raises:
        EvburstError: a recording cannot be read.
        SensorSizeError: recordings are of different sensors.
    """

    def __init__(
        self,
        found: ClassDataset,
        split: str,
        window_us: int,
        n_windows: int = 0,
        cache: Path | None = None,
        held: HeldTime = HeldTime(),
        filters: FiltersConfig = FiltersConfig(),  # noqa: B008 (frozen)
    ) -> None:
        self._found, self._window_us, self._filters = found, window_us, filters
        self._open: OrderedDict[int, EventIndex] = OrderedDict()
        size = self._stream(found.recordings[0]).sensor_size
        self.spec = DatasetSpec(found.name, found.classes, size, "", {}, whole=True)
        self._key = hashlib.sha256(repr((found.name, window_us, filters, size)).encode()).hexdigest()
        self._spans = self._measured(cache)
        items = []
        for number, (first_us, end_us, _) in enumerate(self._spans):
            ends = [(k + 1) * window_us for k in filled(first_us, end_us, window_us)]
            items += [(number, end) for end in held.of(split, ends, window_us)]
        if not items:
            raise DataError(f"{found.name}: the recordings are too short for a window of split {split!r}")
        if n_windows:
            items = [items[i] for i in np.linspace(0, len(items) - 1, min(n_windows, len(items))).astype(int)]
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> LabelledWindow:
        number, end_us = self._items[i]
        return LabelledWindow(self._index(number).window(end_us), self.labels(i), self.name_of(i))

    def name_of(self, i: int) -> str:
        """The recording of item i."""
        return self._found.recordings[self._items[i][0]].name

    def labels(self, i: int) -> Detections:
        """See Dataset."""
        number, end_us = self._items[i]
        return whole_window(self._found.recordings[number].label, self.spec.sensor_size, end_us)

    def start_us(self, i: int) -> int:
        """See Dataset."""
        return self._spans[self._items[i][0]][0]

    def faults_of(self, i: int) -> dict[str, int]:
        """See Dataset."""
        return dict(self._spans[self._items[i][0]][2])

    def parts(self) -> list[Part]:
        """See Dataset: one for every recording."""
        numbers = [number for number, _ in self._items]
        firsts = [i for i, number in enumerate(numbers) if not i or number != numbers[i - 1]]
        parts = []
        for first, stop in zip(firsts, [*firsts[1:], len(numbers)], strict=True):
            own = self._found.recordings[numbers[first]]
            identity = f"{self._key} {own.name} {own.identity} {own.label} {self._items[first:stop]}"
            parts.append(Part(Path(own.name).stem, range(first, stop), hashlib.sha256(identity.encode()).hexdigest()))
        return parts

    def _stream(self, recording: LabelledRecording) -> EventStream:
        stream = recording.open()
        return FilteredStream(stream, self._filters) if self._filters.any_on else stream

    def _measured(self, cache: Path | None) -> list[tuple[int, int, dict[str, int]]]:
        """First microsecond, one past the last, and faults of every recording: kept, or found by reading it."""
        recordings = self._found.recordings
        named = [f"{own.name} {own.identity}" for own in recordings]
        digest = hashlib.sha256("\n".join([self._key, *named]).encode()).hexdigest()[:16]
        file = cache / "classes" / f"{digest}.json" if cache and all(own.identity for own in recordings) else None
        if file and (kept := _load(file, len(recordings))):
            return kept
        found = []
        for number, own in enumerate(recordings):
            index = self._index(number)
            faults = index.faults.found()
            if faults:
                _LOG.info("%s: repaired: %s", own.name, index.faults)
            found.append((index.first_us, index.end_us, faults))
        if file:
            with replacing(file) as part:
                part.write_text(json.dumps([_VERSION, found]))
        return found

    def _index(self, number: int) -> EventIndex:
        """A recording's index, among those in memory or made now."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        own = self._found.recordings[number]
        stream = self._stream(own)
        if stream.sensor_size != self.spec.sensor_size:
            raise SensorSizeError(
                f"{own.name}: a {stream.sensor_size} sensor among recordings of "
                f"{self.spec.sensor_size}; use one folder per sensor"
            )
        try:
            index = index_events(stream, self._window_us)
        except DataError as error:
            raise type(error)(str(error) if own.name in str(error) else f"{own.name}: {error}") from None
        self._open[number] = index
        while len(self._open) > 1 and (
            len(self._open) > _OPEN_RECORDINGS or sum(one.held_events for one in self._open.values()) > _MOST_HELD
        ):
            self._open.popitem(last=False)
        return index


def _load(file: Path, n: int) -> list[tuple[int, int, dict[str, int]]] | None:
    """What was measured before; None where there is none, or none that this version can use."""
    try:
        version, kept = json.loads(file.read_text())
        found = [(int(first), int(end), dict(faults)) for first, end, faults in kept]
    except (OSError, ValueError, TypeError):
        return None
    return found if version == _VERSION and len(found) == n else None
