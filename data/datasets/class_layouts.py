"""Folder layouts of classification datasets: event recordings, each of one class. A new one is a registered function here:

@class_layout("ncars", expected="...", sensor_size=SensorSize(120, 100))
def ncars(dataset_folder): ...

    nmnist       ROOT/{Train,Test}/DIGIT/NNNNN.bin
    ncaltech101  ROOT/Caltech101/CLASS/image_0001.bin
    ncars        ROOT/{train,test}/{cars,background}/*.dat   (also below n-cars_train/, n-cars_test/)
    cifar10dvs   ROOT/CLASS/*.aedat, *.aedat4
    dvsgesture   ROOT/*.aedat, each with NAME_labels.csv (class, startTime_usec, endTime_usec)
    folder       ROOT/{train,test}/CLASS/* (either folder, in any case) or ROOT/CLASS/*, files of any known format; or
                 ROOT/* with a CSV table of labels: columns file, class and optionally split (train, select or test); by
                 default ROOT/recordings.csv or ROOT/labels.csv
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

from evburst.data.datasets.checks import check_attribute, check_layout, checked_items
from evburst.data.datasets.labels import is_recording_name
from evburst.data.errors import ConfigError, LabelError
from evburst.data.events import SensorSize
from evburst.data.extensions import refuse_taken
from evburst.data.files import shown_files

SPLITS = ("train", "select", "test")
TABLES = ("recordings.csv", "labels.csv")
"""Names of tables of labels that the layout "folder" looks for."""
SET_CLASSIFIER = "to train a classifier, set its architecture, e.g. --set architecture=resnet18x0.25"
"""What to do with data for classifiers that are used with a detector."""
GESTURES = (
    "hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter clockwise",
    "left arm clockwise", "left arm counter clockwise", "arm roll", "air drums", "air guitar", "other gestures",
)  # fmt: skip
"""Classes of DVS128 Gesture, whose numbers start at 1 (Amir et al. 2017)."""


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
        """See `shown_files`."""
        return shown_files(folder, *patterns, notes=self.skipped)

    def recordings(self, folder: Path) -> list[Path]:
        """Return the sorted files of a folder that are recordings by their names."""
        recordings: list[Path] = []
        for path in self.files(folder, "*"):
            if is_recording_name(path):
                recordings.append(path)
            else:
                self.skipped.append(f"{path}: by its name not a recording")
        return recordings

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
    """Register a layout; see ClassLayout.

    Raises:
        ConfigError: another layout has its name, or what is registered is no layout.
    """

    def register(find: Finder) -> Finder:
        check_layout(f"layout {name!r}", find, sensor_size)
        refuse_taken("layout of class recordings", name, find, {known: kind.find for known, kind in CLASS_LAYOUTS.items()})
        CLASS_LAYOUTS[name] = ClassLayout(find, expected, sensor_size, classes)
        return find

    return register


def find_samples(name: str, dataset_folder: ClassFolder) -> list[Sample]:
    """Return the recordings that the layout `name` finds; raises ConfigError if its function yields something else."""
    return checked_items(f"layout {name!r}", CLASS_LAYOUTS[name].find(dataset_folder), Sample, _check_sample)


def _check_sample(what: str, sample: Sample) -> None:
    span, splits = sample.span_us, ("training", "unknown", *SPLITS)
    check_attribute(what, sample, "path", isinstance(sample.path, Path), "a Path")
    check_attribute(what, sample, "class_name", isinstance(sample.class_name, str), "the name of its class")
    check_attribute(what, sample, "split", sample.split in splits, f"one of {', '.join(splits)}")
    check_attribute(what, sample, "group", isinstance(sample.group, str), "text")
    is_span = span is None or (isinstance(span, tuple) and len(span) == 2 and all(isinstance(t, Integral) for t in span))
    check_attribute(what, sample, "span_us", is_span, "two whole numbers of µs or None")


def has_classes(name: str, root: Path) -> bool:
    """Return whether a folder has recordings with a class each in the layout of this name, if there is such a layout.

    Names of splits are no classes.
    """
    try:
        samples = find_samples(name, ClassFolder(root)) if name in CLASS_LAYOUTS else []
        return not {sample.class_name for sample in samples} <= {*SPLITS, "val"}
    except (ConfigError, LabelError):
        return False


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
    for line, row in _rows(table):
        try:
            number, start, end = (int(row[name]) for name in ("class", "startTime_usec", "endTime_usec"))
            if not (1 <= number <= len(GESTURES) and 0 <= start < end):
                raise ValueError(f"class {number} from {start} to {end} µs")
        except (KeyError, TypeError, ValueError) as error:
            raise LabelError(f"{table}: line {line}: not a gesture ({error})") from None
        yield number, (start, end)


def _rows(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the number of the line and the row of a table with a header line; raises LabelError if it cannot be read."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{table}: not a table of labels ({error})") from None


@class_layout("folder", "{train,test}/CLASS/* or CLASS/*, or a table of labels")
def folder(dataset_folder: ClassFolder) -> Iterator[Sample]:
    """Class folders of event files of any known format, or event files with a table of labels; without a table, the folders
    train and test divide them, if these hold class folders."""
    tables = (dataset_folder.root / name for name in TABLES)
    table = dataset_folder.table or next((path for path in tables if path.is_file()), None)
    if table:
        yield from _listed(dataset_folder, table)
        return
    inside = dataset_folder.folders(dataset_folder.root)
    published = [path for path in inside if path.name.lower() in ("train", "test") and dataset_folder.folders(path)]
    if published:
        others = [path for path in inside if path not in published]
        dataset_folder.skipped += [f"{path}: only train/ and test/ are read" for path in others]
    for parent in published or [dataset_folder.root]:
        split = {"train": "training", "test": "test"}[parent.name.lower()] if published else "unknown"
        for kind in dataset_folder.folders(parent):
            for path in dataset_folder.recordings(kind):
                yield Sample(path, kind.name, split, f"{kind.name}/{path.name}")


def _listed(dataset_folder: ClassFolder, table: Path) -> Iterator[Sample]:
    """Yield the files of a table of labels."""
    rows = _rows(table)
    divided = any(row.get("split") == "select" for _, row in rows)
    listed: dict[Path, int] = {}
    for number, row in rows:
        name, kind, split = row.get("file"), row.get("class"), row.get("split") or "unknown"
        if not name or not kind or split not in (*SPLITS, "unknown"):
            raise LabelError(
                f"{table}: line {number}: expected columns file and class, and split {', '.join(SPLITS)} or nothing"
            )
        path = dataset_folder.root / name
        if (first := listed.setdefault(path, number)) != number:
            raise LabelError(f"{table}: line {number}: {name} is also in line {first}; a recording has one class and one split")
        if os.path.isfile(path):  # a name that is too long is an error to Path.is_file
            yield Sample(path, kind, "training" if split == "train" and not divided else split, name)
        else:
            dataset_folder.skipped.append(f"{path}: is in {table.name} but missing")
