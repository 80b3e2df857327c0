"""Classification datasets: event recordings, each of one class. A new layout is one registered function here:

@class_layout("ncars", expected="...", sensor_size=SensorSize(120, 100))
def ncars(dataset_folder): ...

    nmnist       ROOT/{Train,Test}/DIGIT/NNNNN.bin
    ncaltech101  ROOT/Caltech101/CLASS/image_0001.bin
    ncars        ROOT/{train,test}/{cars,background}/*.dat   (also below n-cars_train/, n-cars_test/)
    cifar10dvs   ROOT/CLASS/*.aedat, *.aedat4
    dvsgesture   ROOT/*.aedat, each with NAME_labels.csv (class, startTime_usec, endTime_usec)
    folder       ROOT/{train,test}/CLASS/* or ROOT/CLASS/*, files of any known format; or ROOT/* with a CSV table
                 of labels: columns file, class and optionally split (train, select or test); by default
                 ROOT/recordings.csv or ROOT/labels.csv
    tonic:NAME   dataset NAME of tonic, which must already be in ROOT/NAME: nothing is downloaded

Splits are "train", "select" and "test". A published test split stays the test split. "select" is for choosing models and
settings: a tenth of the training recordings, selected by a digest of their names (in dvsgesture, of the person), and
hence independent of where the files are. If no test split is published (ncaltech101, cifar10dvs, folder without train/,
some of tonic's), another tenth is the test split. In ncaltech101 and cifar10dvs, recordings whose number ends in 0 are
"test" and those that end in 5 are "select".
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evburst.data.datasets.tonic import from_tonic
from evburst.data.encoding import columns
from evburst.data.errors import ConfigError, DataError, LabelError
from evburst.data.events import EventArray, Events, EventStream, EventWindow, SensorSize
from evburst.data.extras import pip_install
from evburst.data.readers import DEFAULT_OPTIONS, ReadOptions, open_events
from evburst.data.text import number_of

_LOG = logging.getLogger("evburst")
SPLITS = ("train", "select", "test")
TABLES = ("recordings.csv", "labels.csv")
"""Names of tables of labels that the layout "folder" looks for."""
GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter clockwise",
    "left arm clockwise", "left arm counter clockwise", "arm roll", "air drums", "air guitar", "other gestures",
)  # fmt: skip
"""Classes of DVS128 Gesture, whose numbers start at 1 (Amir et al. 2017)."""


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


class Sample(NamedTuple):
    """A recording found by a layout function.

    Attributes:
        path: event file.
        class_name: name of its class.
        split: "training" (divided into "train" and "select" later), "unknown" (also into "test"), or the final split.
        group: recordings with the same value are put into the same split.
        span_us: (first, one past the last) µs of the part that belongs to the class; None: all.
    """

    path: Path
    class_name: str
    split: str
    group: str
    span_us: tuple[int, int] | None = None


@dataclass
class ClassFolder:
    """The folder that a layout function searches, a table of labels if one was given, and the skipped files, with the
    reason."""

    root: Path
    table: Path | None = None
    skipped: list[str] = field(default_factory=list)

    def files(self, folder: Path, *patterns: str) -> list[Path]:
        """Return the sorted files of a folder, without those that macOS adds."""
        found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        self.skipped += [f"{path}: created by macOS" for path in found if path.name.startswith("._")]
        return [path for path in found if not path.name.startswith(".")]

    def folders(self, folder: Path) -> list[Path]:
        """Return the sorted subfolders of a folder."""
        return sorted(path for path in folder.glob("*/") if path.is_dir() and not path.name.startswith("."))


Finder = Callable[[ClassFolder], Iterator[Sample]]


class ClassLayout(NamedTuple):
    """One entry of the registry: the function, its expected files, its sensor, and its classes (None: the folders, sorted)."""

    find: Finder
    expected: str
    sensor_size: SensorSize | None
    classes: tuple[str, ...] | None


CLASS_LAYOUTS: dict[str, ClassLayout] = {}


def class_layout(
    name: str, expected: str, sensor_size: SensorSize | None = None, classes: tuple[str, ...] | None = None
) -> Callable[[Finder], Finder]:
    """Register a layout; see ClassLayout."""

    def register(find: Finder) -> Finder:
        CLASS_LAYOUTS[name] = ClassLayout(find, expected, sensor_size, classes)
        return find

    return register


def open_classes(
    name: str,
    root: Path | str,
    split: str,
    sensor_size: SensorSize | None = None,
    *,
    in_time: bool = False,
    table: Path | None = None,
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
        ignored: classes whose recordings are skipped.
        classes: classes of a network in the order of its outputs, others are skipped; empty: all classes.
        options: unit of time and order of columns, for files that do not state them.

    Raises:
        ConfigError: the layout or the split is unknown.
        DataError: there is no recording of the split.
        LabelError: a label file is malformed.
    """
    root = Path(root)
    if split not in SPLITS:
        raise ConfigError(f"split {split!r} is unknown (known: {', '.join(SPLITS)})")
    if name.startswith("tonic:"):
        return _open_tonic(name.removeprefix("tonic:"), root, split, classes)
    if name not in CLASS_LAYOUTS:
        raise ConfigError(f"data set {name!r} is unknown (known: {', '.join(sorted(CLASS_LAYOUTS))}, tonic:NAME)")
    kind, dataset_folder = CLASS_LAYOUTS[name], ClassFolder(root, table)
    samples = [sample for sample in kind.find(dataset_folder) if sample.class_name not in ignored]
    if dataset_folder.skipped:
        _LOG.warning(
            "%s: %s skipped, the first one: %s", root, number_of(len(dataset_folder.skipped), "file"), dataset_folder.skipped[0]
        )
    present = kind.classes or tuple(sorted({sample.class_name for sample in samples}))
    available = tuple(name for name in present if name not in ignored)
    chosen = [s for s in samples if (s.split != "test" if in_time and split != "test" else _split_of(s) == split)]
    if not chosen and any(_may_be(sample, split) for sample in samples):
        raise DataError(
            f"{root}: none of the {len(samples)} recordings is of split {split!r}, which takes about a tenth of them by their "
            "names; if they are few, name splits in a table (data.kind folder), or hold out a part of their time (data.held)"
        )
    if not chosen:
        raise DataError(f"{root}: no recording found of split {split!r}; expected {kind.expected}")
    known, size = classes or available, sensor_size or kind.sensor_size
    recordings = [_recording(root, s, known, size, options) for s in chosen if s.class_name in known]
    return _warn_about_unknown(ClassDataset(name, known, size, recordings), root, available)


def _warn_about_unknown(dataset: ClassDataset, root: Path, available: tuple[str, ...]) -> ClassDataset:
    """Return the data set; warn of classes that the network does not have, and raise ConfigError if none is left."""
    unknown = [name for name in available if name not in dataset.classes]
    if not dataset.recordings:
        raise ConfigError(f"{root}: its classes are {', '.join(available)}; the network's are {', '.join(dataset.classes)}")
    if unknown:
        _LOG.warning("%s: recordings of %s are skipped: not among the network's classes", root, ", ".join(unknown))
    return dataset


def _split_of(sample: Sample) -> str:
    if sample.split == "training":
        return "select" if _tenth(sample.group) == 0 else "train"
    if sample.split == "unknown":
        return {0: "select", 1: "test"}.get(_tenth(sample.group), "train")
    return sample.split


def _may_be(sample: Sample, split: str) -> bool:
    """Return whether a digest of the sample's group decides whether it is of the split."""
    return split in {"training": ("train", "select"), "unknown": SPLITS}.get(sample.split, ())


def _tenth(text: str) -> int:
    """Return a number from 0 to 9 that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:4]) % 10


def _recording(
    root: Path, sample: Sample, classes: tuple[str, ...], size: SensorSize | None, options: ReadOptions
) -> LabelledRecording:
    def open_sample() -> EventStream:
        stream = open_events(sample.path, size, options=options)
        return Excerpt(stream, *sample.span_us) if sample.span_us else stream

    part = f"@{sample.span_us[0]}" if sample.span_us else ""
    name, status = sample.path.relative_to(root).as_posix() + part, sample.path.stat()
    identity = f"{status.st_size} {status.st_mtime_ns} {options} {sample.span_us or ''}"
    return LabelledRecording(name, classes.index(sample.class_name), open_sample, identity)


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
        for packet in self._stream.packets():
            inside = packet.compress((packet["t"] >= self._start_us) & (packet["t"] < self._end_us), 0)
            if len(inside):
                yield inside


@class_layout("nmnist", "{Train,Test}/DIGIT/NNNNN.bin", SensorSize(34, 34), tuple("0123456789"))
def nmnist(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """N-MNIST (Orchard et al. 2015)."""
    for split, folder in (("training", "Train"), ("test", "Test")):
        for digit in "0123456789":
            for path in dataset_folder.files(dataset_folder.root / folder / digit, "*.bin"):
                yield Sample(path, digit, split, path.name)


@class_layout("ncaltech101", "Caltech101/CLASS/image_*.bin", SensorSize(240, 180))
def ncaltech101(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """N-Caltech101 (Orchard et al. 2015), with all of its 101 folders."""
    for folder in dataset_folder.folders(dataset_folder.root / "Caltech101"):
        yield from _numbered(dataset_folder, folder, r"image_(\d+)\.bin", "*.bin")


@class_layout("cifar10dvs", "CLASS/*.aedat or *.aedat4", SensorSize(128, 128))
def cifar10dvs(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """CIFAR10-DVS (Li et al. 2017)."""
    for folder in dataset_folder.folders(dataset_folder.root):
        yield from _numbered(dataset_folder, folder, r".*?(\d+)\.aedat4?", "*.aedat", "*.aedat4")


def _numbered(dataset_folder: ClassFolder, folder: Path, name: str, *patterns: str) -> Iterator[Sample]:
    """Yield files whose number decides the split."""
    for path in dataset_folder.files(folder, *patterns):
        number = re.fullmatch(name, path.name)
        if number is None:
            dataset_folder.skipped.append(f"{path}: its name contains no number")
        else:
            yield Sample(path, folder.name, {0: "test", 5: "select"}.get(int(number[1]) % 10, "train"), path.name)


@class_layout("ncars", "{train,test}/{cars,background}/*.dat", SensorSize(120, 100), ("background", "cars"))
def ncars(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """N-CARS (Sironi et al. 2018)."""
    for split, folders in (("training", ("train", "n-cars_train")), ("test", ("test", "n-cars_test"))):
        for folder in folders:
            for name in ("background", "cars"):
                for path in dataset_folder.files(dataset_folder.root / folder / name, "*.dat"):
                    yield Sample(path, name, split, path.name)


@class_layout("dvsgesture", "*.aedat with *_labels.csv", SensorSize(128, 128), GESTURES)
def dvsgesture(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """DVS128 Gesture: persons 24 to 29 are the test split; the other splits hold out persons as well, not single gestures."""
    for path in dataset_folder.files(dataset_folder.root, "*.aedat", "*.aedat4"):
        table, person = path.with_name(f"{path.stem}_labels.csv"), re.match(r"user(\d+)", path.name)
        if person is None or not table.is_file():
            dataset_folder.skipped.append(
                f"{path}: " + ("its name is not userNN_*" if person is None else f"{table.name} is missing")
            )
            continue
        split = "test" if int(person[1]) >= 24 else "training"
        for number, span in _gestures(table):
            yield Sample(path, GESTURES[number - 1], split, person[0], span)


def _gestures(table: Path) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield (class from 1, span in µs) of each row."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for row in rows:
            try:
                number, start, end = (int(row[name]) for name in ("class", "startTime_usec", "endTime_usec"))
                if not (1 <= number <= len(GESTURES) and 0 <= start < end):
                    raise ValueError(f"class {number} from {start} to {end} µs")
            except (KeyError, TypeError, ValueError) as error:
                raise LabelError(f"{table}: line {rows.line_num}: not a gesture ({error})") from None
            yield number, (start, end)


@class_layout("folder", "{train,test}/CLASS/* or CLASS/*, or a table of labels")
def folder(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """Class folders of event files of any known format, or event files with a table of labels; without a table, the splits of
    a divided folder are train/ and test/."""
    tables = (dataset_folder.root / name for name in TABLES)
    table = dataset_folder.table or next((path for path in tables if path.is_file()), None)
    if table:
        yield from _listed(dataset_folder, table)
        return
    published = (dataset_folder.root / "train").is_dir()
    if published:
        others = [path for path in dataset_folder.folders(dataset_folder.root) if path.name not in ("train", "test")]
        dataset_folder.skipped += [f"{path}: beside train/, only test/ is read" for path in others]
    for split, parent in (("training", "train"), ("test", "test")) if published else (("unknown", "."),):
        for kind in dataset_folder.folders(dataset_folder.root / parent):
            for path in dataset_folder.files(kind, "*"):
                yield Sample(path, kind.name, split, f"{kind.name}/{path.name}")


def _listed(dataset_folder: ClassFolder, table: Path) -> Iterator[Sample]:
    """Yield the files of a table of labels."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table}: not a table of labels ({error})") from None
    divided = any(row.get("split") == "select" for row in rows)
    listed: dict[Path, int] = {}
    for number, row in enumerate(rows, 2):
        name, kind, split = row.get("file"), row.get("class"), row.get("split") or "unknown"
        if not name or not kind or split not in (*SPLITS, "unknown"):
            raise LabelError(
                f"{table}: line {number}: expected columns file and class, and split {', '.join(SPLITS)} or nothing"
            )
        path = dataset_folder.root / name
        if (first := listed.setdefault(path, number)) != number:
            raise LabelError(f"{table}: line {number}: {name} is also in line {first}; a recording has one class and one split")
        if path.is_file():
            yield Sample(path, kind, "training" if split == "train" and not divided else split, name)
        else:
            dataset_folder.skipped.append(f"{path}: is in {table.name} but missing")


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
    chosen = [k for k in range(len(dataset)) if _split_of(_tonic_sample(k, split, has_split)) == split]
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


def _tonic_sample(number: int, split: str, has_split: bool) -> Sample:
    kind = ("test" if split == "test" else "training") if has_split else "unknown"
    return Sample(Path(), "", kind, str(number))


def _tonic_classes(dataset: Any) -> list[str]:
    """Return the targets as text, with numbers in numeric order."""
    targets = set(dataset.targets)
    return [str(target) for target in sorted(targets, key=lambda t: (not isinstance(t, int | np.integer), t))]


def _tonic_stream(dataset: Any, number: int, size: SensorSize) -> EventArray:
    events = from_tonic(dataset[number][0])
    return EventArray(events[np.argsort(events["t"], kind="stable")], size)
