"""Classification datasets: event recordings, each of one class, in a layout of class_layouts.py, or tonic:NAME, the dataset
NAME of tonic, which must already be in ROOT/NAME: nothing is downloaded.

Splits are "train", "select" and "test". A published test split stays the test split. "select" is for choosing models and
settings: a tenth of the training recordings, selected by a digest of their names (in dvsgesture, of the person), and
hence independent of where the files are. If no test split is published (ncaltech101, cifar10dvs, folder without train/ and
test/, some of tonic's), another tenth is the test split. If the digests give a class with few recordings none in one of these
splits, it gets the recording with the lowest digest, as long as one is left to learn from. In ncaltech101 and cifar10dvs,
recordings whose number ends in 0 are "test" and those that end in 5 are "select".
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evburst.data.datasets.checks import check_root
from evburst.data.datasets.class_layouts import CLASS_LAYOUTS, SPLITS, ClassFolder, Sample, find_samples
from evburst.data.datasets.selection import digest, tenth
from evburst.data.datasets.tonic import from_tonic
from evburst.data.encoding import columns
from evburst.data.errors import ConfigError, DataError, LabelError
from evburst.data.events import EventArray, Events, EventStream, EventWindow, SensorSize
from evburst.data.extras import pip_install
from evburst.data.notices import warn_once
from evburst.data.random_access import Skipping
from evburst.data.readers import DEFAULT_OPTIONS, ReadOptions, open_sized
from evburst.data.text import number_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledRecording:
    """A recording, or a part of one, and its class.

    Attributes:
        name: path below the root.
        label: class index.
        open: opens the recording again on each call, as a finite EventStream.
        identity: changes if the file or the part changes; empty if there is no file.
    """

    name: str
    label: int
    open: Callable[[], EventStream]
    identity: str = ""


class ClassDataset(NamedTuple):
    """Labelled recordings of one split.

    Attributes:
        name: name of the layout.
        classes: class names, in the order of their indices.
        sensor_size: (W, H) px if the dataset has one sensor.
        recordings: the recordings, in order.
    """

    name: str
    classes: tuple[str, ...]
    sensor_size: SensorSize | None
    recordings: list[LabelledRecording]


def open_classes(
    name: str,
    root: Path | str,
    split: str,
    sensor_size: SensorSize | None = None,
    *,
    in_time: bool = False,
    table: Path | None = None,
    trained_size: SensorSize | None = None,
    ignored: frozenset[str] = frozenset(),
    classes: tuple[str, ...] = (),
    options: ReadOptions = DEFAULT_OPTIONS,
) -> ClassDataset:
    """Return the labelled recordings of one split; logs what is skipped.

    Args:
        name: name in CLASS_LAYOUTS, or "tonic:NAME".
        root: folder of the dataset.
        split: name in SPLITS.
        sensor_size: (W, H) px of files that do not state it, if it differs from the layout's.
        in_time: "train" and "select" are parts of the same recordings (class_windows.py), so both get all recordings but
            those of a published split "test".
        table: CSV file of labels, for the layout "folder".
        trained_size: (W, H) px that a network was trained on: the size of files for which it is not known otherwise.
        ignored: classes whose recordings are skipped.
        classes: classes of a network in the order of its outputs, others are skipped; empty: all classes.
        options: unit of time and order of columns, for files that do not state them.

    Raises:
        ConfigError: the layout or the split is unknown, or the layout's function does not yield samples.
        DataError: there is no recording of the split.
        LabelError: a label file is malformed.

    Opening a recording raises SensorSizeError if nothing says the size of its sensor.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown (known: {', '.join(SPLITS)})")
    if name.startswith("tonic:"):
        return _open_tonic(name.removeprefix("tonic:"), root, split, classes)
    if name not in CLASS_LAYOUTS:
        raise ConfigError(f"data set {name!r} is unknown (known: {', '.join(sorted(CLASS_LAYOUTS))}, tonic:NAME)")
    kind, dataset_folder = CLASS_LAYOUTS[name], ClassFolder(root, table)
    check_root(root, kind.expected)
    if table is not None and not table.is_file():
        raise LabelError(f"{table}: no such file; expected a table of labels with the columns file and class")
    found = find_samples(name, dataset_folder)
    samples = [sample for sample in found if sample.class_name not in ignored]
    if skipped := dataset_folder.skipped:
        warn_once(f"{root}: {number_of(len(skipped), 'file')} skipped, the first one: {skipped[0]}")
    present = kind.classes or tuple(sorted({sample.class_name for sample in samples}))
    available = tuple(name for name in present if name not in ignored)
    if in_time and split != "test":
        chosen = [sample for sample in samples if sample.split != "test"]
    else:
        chosen = [sample for sample, own in zip(samples, divide(samples), strict=True) if own == split]
    if not chosen and any(_may_be(sample.split, split) for sample in samples):
        raise DataError(
            f"{root}: none of the {len(samples)} recordings is of split {split!r}: they are too few to hold some out; name "
            "splits in a table (data.kind folder), or hold out a part of their time (data.held)"
        )
    if not chosen:
        raise DataError(f"{root}: no recording found of split {split!r}; expected {kind.expected}")
    if split == "train" and (unknown := sorted(ignored - {sample.class_name for sample in found} - set(present))):
        warn_once(f"{root}: data.classes ignores {', '.join(unknown)}, but there is no recording of such a class")
    known, size = classes or available, sensor_size or kind.sensor_size
    recordings = [
        _recording(root, s, known.index(s.class_name), size, trained_size, options) for s in chosen if s.class_name in known
    ]
    return _warn_about_unknown(ClassDataset(name, known, size, recordings), root, available)


def _warn_about_unknown(dataset: ClassDataset, root: Path, available: tuple[str, ...]) -> ClassDataset:
    """Return the data set; warn of classes that the network does not have, and raise ConfigError if none is left."""
    unknown = [name for name in available if name not in dataset.classes]
    if not dataset.recordings:
        raise ConfigError(f"{root}: its classes are {', '.join(available)}; the network's are {', '.join(dataset.classes)}")
    if unknown:
        _LOG.warning("%s: recordings of %s are skipped: not among the network's classes", root, ", ".join(unknown))
    return dataset


def divide(samples: Sequence[Sample]) -> list[str]:
    """Return the final split of each sample: by the digest of its group, or by need; see the module.

    Groups that have several classes, such as a person who performs all gestures, are counted together.
    """
    keys = [(sample.split, sample.group) for sample in samples]
    final = {key: _split_of(*key) for key in keys}
    classes: dict[tuple[str, str], set[str]] = {}
    for key, sample in zip(keys, samples, strict=True):
        classes.setdefault(key, set()).add(sample.class_name)
    by_class: dict[frozenset[str], list[tuple[str, str]]] = {}
    for key, names in classes.items():
        by_class.setdefault(frozenset(names) if len(names) == 1 else frozenset(), []).append(key)
    for own in by_class.values():
        for split in ("select", "test"):
            free = [key for key in own if final[key] == "train" and _may_be(key[0], split)]
            if len(free) > 1 and split not in {final[key] for key in own}:
                final[min(free, key=lambda key: digest(key[1]))] = split
    return [final[key] for key in keys]


def _split_of(split: str, group: str) -> str:
    """Return the split of recordings of a group by its digest, see Sample."""
    if split == "training":
        return "select" if tenth(group) == 0 else "train"
    if split == "unknown":
        return {0: "select", 1: "test"}.get(tenth(group), "train")
    return split


def _may_be(found: str, split: str) -> bool:
    """Return whether the digest of a group decides whether it is of a split, by the split of its sample."""
    return split in {"training": ("train", "select"), "unknown": SPLITS}.get(found, ())


def _recording(
    root: Path, sample: Sample, label: int, size: SensorSize | None, trained: SensorSize | None, options: ReadOptions
) -> LabelledRecording:
    def open_sample() -> EventStream:
        stream = open_sized(sample.path, size, trained, options=options)
        return Excerpt(stream, *sample.span_us) if sample.span_us else stream

    part = f"@{sample.span_us[0]}" if sample.span_us else ""
    name, status = sample.path.relative_to(root).as_posix() + part, sample.path.stat()
    identity = f"{status.st_size} {status.st_mtime_ns} {options} {sample.span_us or ''}"
    return LabelledRecording(name, label, open_sample, identity)


class Excerpt:
    """An EventStream of the events in [start_us, end_us) of another one; `faults` covers what is read for it."""

    finite = True

    def __init__(self, stream: EventStream, start_us: int, end_us: int) -> None:
        self.sensor_size, self.faults = stream.sensor_size, stream.faults
        self._stream, self._start_us, self._end_us = stream, start_us, end_us

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """See EventStream.windows."""
        begin = self._start_us if start_us is None else max(start_us, self._start_us)
        for window in takewhile(lambda w: w.t0_us < self._end_us, self._stream.windows(window_us, begin)):
            if window.t0_us >= self._start_us and window.t1_us <= self._end_us:
                yield window
            else:
                t = columns(window)[0]
                yield replace(window, words=window.words.compress((t >= self._start_us) & (t < self._end_us), 0))

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        stream, start_us, end_us = self._stream, self._start_us, self._end_us
        for packet in stream.packets_between(start_us, end_us) if isinstance(stream, Skipping) else stream.packets():
            inside = packet.compress((packet["t"] >= start_us) & (packet["t"] < end_us), 0)
            if len(inside):
                yield inside


def _open_tonic(name: str, root: Path, split: str, classes: tuple[str, ...]) -> ClassDataset:
    """Open a dataset of tonic through tonic's own class, which must have `data`, `targets` and `sensor_size`."""
    try:
        known = importlib.import_module("tonic.datasets")
    except ImportError:
        raise DataError(f"tonic's datasets need the package tonic: {pip_install('tonic')}") from None
    kind: Any = getattr(known, name, None)
    if not inspect.isclass(kind):
        raise ConfigError(f"tonic has no dataset {name!r}")

    def refuse(self: object) -> None:
        raise DataError(f"{root / name}: tonic does not find its dataset {name} there; download it with tonic first")

    # tonic looks into ROOT/NAME, where NAME is the name of the class.
    dataset_class: Any = type(name, (kind,), {"download": refuse})
    if not dataset_class.sensor_size:
        raise ConfigError(f"tonic's {name} does not define a sensor size; use another layout to read it")
    size = SensorSize(*dataset_class.sensor_size[:2])
    has_split = "train" in inspect.signature(kind.__init__).parameters
    dataset = dataset_class(str(root), train=split != "test") if has_split else dataset_class(str(root))
    found = ("test" if split == "test" else "training") if has_split else "unknown"
    chosen = [k for k in range(len(dataset)) if _split_of(found, str(k)) == split]
    names = _tonic_classes(dataset)
    if not chosen:
        raise DataError(f"{root / name}: no recording of split {split!r}")
    wanted = classes or tuple(names)
    recordings = [
        LabelledRecording(f"{name}/{k}", wanted.index(str(dataset.targets[k])), partial(_tonic_stream, dataset, k, size))
        for k in chosen
        if str(dataset.targets[k]) in wanted
    ]
    return _warn_about_unknown(ClassDataset(f"tonic:{name}", wanted, size, recordings), root / name, tuple(names))


def _tonic_classes(dataset: Any) -> list[str]:
    """Return the targets as text, with numbers in numeric order."""
    targets = set(dataset.targets)
    return [str(target) for target in sorted(targets, key=lambda t: (not isinstance(t, int | np.integer), t))]


def _tonic_stream(dataset: Any, number: int, size: SensorSize) -> EventArray:
    events = from_tonic(dataset[number][0])
    return EventArray(events[np.argsort(events["t"], kind="stable")], size)
