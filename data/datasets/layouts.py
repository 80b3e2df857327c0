"""Folder layouts of recorded data sets: which event files there are, where their labels lie. A new one is a function here.

@layout("gen1", sensor_size=SensorSize(304, 240), class_ids=("car", "pedestrian"))
def gen1(folder): ...

Published layouts (`{...}` is the split):

    gen1         ROOT/{train,val,test}/NAME_td.dat + NAME_bbox.npy   (also below detection_dataset_duration_60s_ratio_1.0/)
    1mpx, gen4   the same of the 1 megapixel data set, whose class ids are others
    ncaltech101  ROOT/Caltech101/CLASS/image_0001.bin + ROOT/Caltech101_annotations/CLASS/annotation_0001.bin; the split is by
                 number: 0, 10, 20 ... are "test", 5, 15, 25 ... are "val", the others "train"
    pedro        ROOT/numpy/{...}/NAME.npy + ROOT/xml/{...}/NAME.xml, or both beside each other in ROOT (any split)
    folder       ROOT/{...}/ or ROOT: event files of any known format, each NAME.* with a label file of evburst.data.datasets.labels
                 beside it; a final _td is not part of NAME

Where there is no split "select", an eighth of the recordings of "train" is it (evburst.data.datasets.selection).
Event files without labels are left out and counted; so are `._*` files, which macOS leaves on foreign disks, and names and
annotations that a layout cannot make sense of.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec
from evburst.data.datasets.caltech import read_caltech_annotation
from evburst.data.datasets.labels import LABEL_FILES, ClassMatcher, LabelFile, NamedBoxes
from evburst.data.datasets.selection import SELECT, held_out
from evburst.data.errors import DataError, LabelError
from evburst.data.events import SensorSize

_LOG = logging.getLogger("evburst")

ONE_MPX_CLASSES = ("pedestrian", "two wheeler", "car", "truck", "bus", "traffic sign", "traffic light")
"""Names of the 1 megapixel data set's class ids (Perot et al. 2020)."""

_NESTED = "detection_dataset_duration_60s_ratio_1.0"
_ONE_MPX = SensorSize(1280, 720)
_SACCADE_ENDS_US = (100_000, 200_000, 300_000)
_NOT_OBJECTS = {"Faces_easy", "BACKGROUND_Google"}
_EVENT_SUFFIXES = {".dat", ".raw", ".bin", ".aedat", ".aedat4", ".h5", ".hdf5", ".npy", ".npz", ".csv", ".txt"}


class Found(NamedTuple):
    """An event file, and what a layout says of it.

    Attributes:
        events: the file.
        labels: its boxes.
    """

    events: Path
    labels: LabelFile


@dataclass
class Place:
    """The folder that a layout function looks into, and what it leaves out there.

    Attributes:
        root, split: as asked for.
        spec: what is looked for; a layout may put in its folder's classes.
        unlabelled: event files without labels.
        odd: other files left out, with the reason.
    """

    root: Path
    split: str
    spec: DatasetSpec
    unlabelled: list[Path] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)

    def files(self, folder: Path, pattern: str) -> list[Path]:
        """Sorted files of a folder, without those that macOS adds."""
        found = sorted(folder.glob(pattern)) if folder.is_dir() else []
        strange = [path for path in found if path.name.startswith("._")]
        self.odd += [f"{path}: made by macOS" for path in strange]
        return [path for path in found if path.is_file() and path not in strange]

    def labelled(self, events: Path, labels: Path, read: Callable[[Path], LabelFile]) -> Iterator[Found]:
        """The event file with its label file; counted as unlabelled where one of them is missing."""
        if not labels.is_file():
            self.unlabelled.append(events)
        elif not events.is_file():
            self.odd.append(f"{labels}: {events.name} is missing")
        else:
            yield Found(events, read(labels))


Finder = Callable[[Place], Iterator[Found]]


class LayoutKind(NamedTuple):
    """One entry of the registry.

    Attributes:
        find: the recordings of a Place, in order.
        expected: what the folder should hold, for the error when it does not.
        sensor_size: of the data set, where it has one; files that say another are of another data set.
        class_ids: names of the label files' class ids; None: those of the spec, or of 1 Mpx for its sensor.
    """

    find: Finder
    expected: str
    sensor_size: SensorSize | None
    class_ids: tuple[str, ...] | None


LAYOUTS: dict[str, LayoutKind] = {}


def layout(
    *names: str, expected: str, sensor_size: SensorSize | None = None, class_ids: tuple[str, ...] | None = None
) -> Callable[[Finder], Finder]:
    """Register a layout under one or several names; see LayoutKind."""

    def register(find: Finder) -> Finder:
        LAYOUTS.update(dict.fromkeys(names, LayoutKind(find, expected, sensor_size, class_ids)))
        return find

    return register


@dataclass(frozen=True)
class Recording:
    """An event file and what is in it.

    Attributes:
        events: the file.
        labels: the boxes of every labelled time, unclipped; a time of None is the recording's end.
        sensor_size: (W, H) px as its labels or the layout say it.
    """

    events: Path
    labels: tuple[tuple[int | None, Detections], ...]
    sensor_size: SensorSize | None = None


class Layout(NamedTuple):
    """What a folder holds.

    Attributes:
        root: the folder.
        spec: what is looked for.
        recordings: the labelled ones, in order.
        unlabelled: event files without labels.
    """

    root: Path
    spec: DatasetSpec
    recordings: list[Recording]
    unlabelled: int = 0


def read_layout(
    name: str, root: Path, split: str, spec: DatasetSpec, classes: dict[str, str], size_of: Callable[[Found], SensorSize]
) -> Layout:
    """Find a data set's recordings and read their labels; what is left out is logged.

    Args:
        name: in LAYOUTS.
        root, split: where, and which part of it.
        spec: what is looked for.
        classes: names (or class ids) of label files to classes of the spec; see ClassMatcher.
        size_of: tells the sensor of a recording, which decides the names of class ids where the layout does not.

    Raises:
        DataError: there is no recording.
        LabelError: a label file is malformed, or no box is of a known class.
    """
    kind = LAYOUTS[name]
    if not root.is_dir():
        raise DataError(
            f"{root}: {'a file, not a folder' if root.exists() else 'no such folder'}; expected {kind.expected} in it"
        )
    place, found = _find(kind, root, split, spec)
    _tell(place)
    if not found:
        hint = f"; {len(place.unlabelled)} event files have no labels" if place.unlabelled else ""
        hint += f"; left out: {place.odd[0]}" if place.odd else ""
        raise DataError(f"{root}: no recording found of split {split!r}; expected {kind.expected}{hint}")
    matcher = ClassMatcher(place.spec, classes, kind.class_ids)
    recordings = []
    for item in found:
        recording_matcher = matcher
        if kind.class_ids is None and _has_ids(item.labels) and size_of(item) == _ONE_MPX:
            recording_matcher = matcher.with_ids(ONE_MPX_CLASSES)
        labels = tuple(_detections(instant, recording_matcher) for instant in item.labels.instants)
        recordings.append(Recording(item.events, labels, item.labels.sensor_size or kind.sensor_size))
    matcher.tell(root)
    return Layout(root, place.spec, recordings, len(place.unlabelled))


def _find(kind: LayoutKind, root: Path, split: str, spec: DatasetSpec) -> tuple[Place, list[Found]]:
    """The recordings of a split, in order; where the folder has no split "select", whole recordings held out of "train" are it.

    A folder without splits, whose files are those of any split, is held to be "train" here.
    """
    own = any(path.is_dir() for path in (root / SELECT, root / "numpy" / SELECT, root / _NESTED / SELECT))
    if own or split not in ("train", SELECT):
        place = Place(root, split, spec)
        return place, list(kind.find(place))
    place = Place(root, "train", spec)
    found = list(kind.find(place))
    held: set[Path] = set()
    for folder in sorted({item.events.parent for item in found}):
        sizes = {item.events.name: len(item.labels.instants) for item in found if item.events.parent == folder}
        held |= {folder / name for name in held_out(folder.name, sizes)}
    return place, [item for item in found if (item.events in held) == (split == SELECT)]


def _detections(instant: NamedBoxes, matcher: ClassMatcher) -> tuple[int | None, Detections]:
    labels = matcher.indices(instant.names)
    known = labels >= 0
    scores = np.ones(int(known.sum()), np.float32)
    return instant.t_us, Detections(instant.boxes_xyxy[known], scores, labels[known], instant.t_us or 0)


def _has_ids(labels: LabelFile) -> bool:
    return any(isinstance(name, int) for instant in labels.instants for name in instant.names[:1])


def _tell(place: Place) -> None:
    """Log what the layout left out."""
    for what, paths in (("event files without labels", [str(path) for path in place.unlabelled]), ("files", place.odd)):
        if paths:
            _LOG.warning("%s: %d %s are left out, the first one: %s", place.root, len(paths), what, paths[0])


@layout("gen1", expected="*_td.dat with *_bbox.npy", sensor_size=SensorSize(304, 240), class_ids=("car", "pedestrian"))
def gen1(place: Place) -> Iterator[Found]:
    """Prophesee's Gen1 automotive detection dataset (de Tournemire et al. 2020)."""
    nested = place.root / _NESTED
    yield from _prophesee(place, (nested if nested.is_dir() else place.root) / place.split)


@layout("1mpx", "gen4", expected="*_td.dat with *_bbox.npy", sensor_size=_ONE_MPX, class_ids=ONE_MPX_CLASSES)
def one_mpx(place: Place) -> Iterator[Found]:
    """Prophesee's 1 megapixel automotive detection dataset (Perot et al. 2020)."""
    yield from _prophesee(place, place.root / place.split)


def _prophesee(place: Place, folder: Path) -> Iterator[Found]:
    for events in place.files(folder, "*_td.dat"):
        boxes = events.with_name(events.name.removesuffix("_td.dat") + "_bbox.npy")
        yield from place.labelled(events, boxes, LABEL_FILES["_bbox.npy"])
    for boxes in place.files(folder, "*_bbox.npy"):
        if not boxes.with_name(boxes.name.removesuffix("_bbox.npy") + "_td.dat").is_file():
            place.odd.append(f"{boxes}: its _td.dat is missing")


@layout("ncaltech101", expected="Caltech101/<class>/image_*.bin", sensor_size=SensorSize(240, 180))
def ncaltech101(place: Place) -> Iterator[Found]:
    """N-Caltech101 (Orchard et al. 2015); a spec without classes gets all that the folder holds."""
    events_root = place.root / "Caltech101"
    if not place.spec.classes:
        folders = sorted(path.name for path in events_root.glob("*/") if path.name not in _NOT_OBJECTS)
        names = tuple(name for name in folders if not name.startswith("."))
        place.spec = replace(place.spec, classes=names, source_names={name: k for k, name in enumerate(names)})
    for name, _ in sorted(place.spec.source_names.items(), key=lambda item: item[1]):
        for path in place.files(events_root / name, "*.bin"):
            number = re.fullmatch(r"image_(\d+)\.bin", path.name)
            if number is None:
                place.odd.append(f"{path}: its name is not image_NUMBER.bin")
            elif {0: "test", 5: "val"}.get(int(number[1]) % 10, "train") == place.split:
                annotation = place.root / "Caltech101_annotations" / name / f"annotation_{number[1]}.bin"
                yield from _caltech(place, path, annotation, name)


def _caltech(place: Place, events: Path, annotation: Path, name: str) -> Iterator[Found]:
    """The recording with its box at the end of each saccade, unless the annotation is missing or odd."""
    try:
        yield from place.labelled(events, annotation, lambda path: _caltech_labels(path, name))
    except LabelError as error:
        place.odd.append(str(error))


def _caltech_labels(path: Path, name: str) -> LabelFile:
    box = read_caltech_annotation(path).box_xyxy[None]
    return LabelFile(tuple(NamedBoxes(t, box, (name,)) for t in _SACCADE_ENDS_US))


@layout("pedro", expected="*.npy with *.xml", sensor_size=SensorSize(346, 260))
def pedro(place: Place) -> Iterator[Found]:
    """PEDRo (Boretti et al. 2023): people, DAVIS346, one file per labelled slice; labels are Pascal VOC's."""
    folder = labels = place.root
    if (place.root / "numpy").is_dir():
        folder, labels = (place.root / name / place.split for name in ("numpy", "xml"))
    for path in place.files(folder, "*.npy"):
        yield from place.labelled(path, labels / f"{path.stem}.xml", LABEL_FILES[".xml"])


@layout("folder", expected=f"event files, each NAME.* with {', '.join(f'NAME{end}' for end in LABEL_FILES)} beside it")
def folder(place: Place) -> Iterator[Found]:
    """Any event files with label files beside them."""
    here = place.root / place.split if (place.root / place.split).is_dir() else place.root
    endings = tuple(ending for ending in LABEL_FILES if ending.startswith("_"))
    for path in place.files(here, "*"):
        if path.suffix.lower() not in _EVENT_SUFFIXES or path.name.endswith(endings):
            continue
        name = path.stem.removesuffix("_td")
        beside = {ending: path.with_name(name + ending) for ending in LABEL_FILES}
        ending = next((ending for ending, file in beside.items() if file.is_file()), next(iter(beside)))
        yield from place.labelled(path, beside[ending], LABEL_FILES[ending])
