"""Folder layouts of recorded datasets: where the event files and their labels are. A new one is a registered function here:

@layout("gen1", expected="{split}/NAME_td.dat", sensor_size=SensorSize(304, 240), class_ids=("car", "pedestrian"))
def gen1(source): ...  # yields a LabelledFile for each

Published layouts (`{...}` is the split):

    gen1         ROOT/{train,val,test}/NAME_td.dat + NAME_bbox.npy   (also below detection_dataset_duration_60s_ratio_1.0/)
    1mpx         the same for the 1 megapixel dataset, which has other class ids
    ncaltech101  ROOT/Caltech101/CLASS/image_0001.bin + ROOT/Caltech101_annotations/CLASS/annotation_0001.bin; the number gives
                 the split: 0, 10, 20 ... are "test", 5, 15, 25 ... are "val", the others "train"
    pedro        ROOT/numpy/{...}/NAME.npy + ROOT/xml/{...}/NAME.xml, or both in ROOT (any split)
    dsec         ROOT/{train,test}/SEQUENCE/events/left/events.h5 + SEQUENCE/object_detections/left/tracks.npy; "val" are the
                 sequences zurich_city_16 to 21 of train; times of SEQUENCE/images/timestamps.txt without a box have none
    folder       ROOT/{...}/ or ROOT: event files of any known format, each NAME.* with a label file in the same folder
                 (evburst.data.datasets.labels); a final _td is not part of NAME

If there is no split "select", an eighth of the recordings of "train" is used, of gen1, 1mpx and dsec in whole drives, of pedro
in stretches of frames (evburst.data.datasets.selection).
Event files without labels are skipped and counted; so are `._*` files, which macOS leaves on foreign disks, and files whose
name or annotation does not fit the layout.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evburst.data.datasets import DSEC, DatasetSpec
from evburst.data.datasets.caltech import read_caltech_box
from evburst.data.datasets.checks import check_layout
from evburst.data.datasets.labels import (
    LABEL_FILES,
    LabelFile,
    NamedBoxes,
    holds_yolo_labels,
    is_recording_name,
    labelled_name,
    timed_recording,
)
from evburst.data.datasets.selection import STRETCH, drive_of
from evburst.data.errors import LabelError
from evburst.data.events import SensorSize
from evburst.data.extensions import refuse_taken
from evburst.data.files import shown_files
from evburst.data.notices import warn_once

ONE_MPX_CLASSES = ("pedestrian", "two wheeler", "car", "truck", "bus", "traffic sign", "traffic light")
"""Names of the class ids in the 1 megapixel dataset (Perot et al. 2020)."""

NESTED = "detection_dataset_duration_60s_ratio_1.0"
ONE_MPX = SensorSize(1280, 720)
_DSEC_VAL = re.compile(r"zurich_city_(1[6-9]|2[01])_")
_SACCADE_ENDS_US = (100_000, 200_000, 300_000)
_NOT_OBJECTS = {"Faces_easy", "BACKGROUND_Google"}


class LabelledFile(NamedTuple):
    """An event file and its labels, as found by a layout.

    Attributes:
        events: the event file.
        labels: contents of its label file.
        group: recordings with the same value, e.g. those of one drive, are in the same of "train" and "select"; "": none.
        name: what the recording is called; "": by its file.
    """

    events: Path
    labels: LabelFile
    group: str = ""
    name: str = ""


@dataclass
class LayoutFolder:
    """The folder that a layout function searches, and the files that it skips.

    Attributes:
        root, split: the folder of the dataset, and the split to find.
        spec: the dataset's classes; a layout may replace them with those in the folder.
        undivided: whether the folder has no folders of splits, so that every split has all of its files.
        nested: whether every recording has a folder of its own, so that "select" is held out of all together.
        unlabelled: event files without labels.
        skipped: other skipped files, with the reason.
    """

    root: Path
    split: str
    spec: DatasetSpec
    undivided: bool = False
    nested: bool = False
    unlabelled: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def files(self, folder: Path, pattern: str) -> list[Path]:
        """See `shown_files`."""
        return shown_files(folder, pattern, notes=self.skipped)

    def labelled(
        self, events: Path, labels: Path, read: Callable[[Path], LabelFile], group: str = "", name: str = ""
    ) -> Iterator[LabelledFile]:
        """Yield the event file with its labels; if one of the two is missing, or no time is labelled, record that instead."""
        if not labels.is_file():
            self.unlabelled.append(events)
        elif not events.is_file():
            self.skipped.append(f"{labels}: {events.name} is missing")
        elif (
            not isinstance(found := read(labels), LabelFile) or found.instants
        ):  # of another form: refused with all of a layout
            yield LabelledFile(events, found, group, name)
        else:
            self.skipped.append(f"{labels}: states no labelled time, so that {events.name} has no window to score or learn")


Finder = Callable[[LayoutFolder], Iterator[LabelledFile]]


class Layout(NamedTuple):
    """One entry of the registry.

    Attributes:
        find: yields the labelled files of a LayoutFolder, in order.
        expected: expected contents of the folder, for the error message.
        sensor_size: sensor of the dataset, if it has one; files that state another are of another dataset.
        class_ids: names of the label files' class ids; None: those of the spec, or of the 1 megapixel dataset for its sensor.
    """

    find: Finder
    expected: str
    sensor_size: SensorSize | None
    class_ids: tuple[str, ...] | None


LAYOUTS: dict[str, Layout] = {}


def layout(
    *names: str, expected: str, sensor_size: SensorSize | None = None, class_ids: tuple[str, ...] | None = None
) -> Callable[[Finder], Finder]:
    """Register a layout under one or several names; see Layout.

    Raises:
        ConfigError: another layout has one of them, or what is registered is no layout.
    """

    def register(find: Finder) -> Finder:
        for name in names:
            check_layout(f"layout {name!r}", find, sensor_size)
            refuse_taken("layout", name, find, {known: entry.find for known, entry in LAYOUTS.items()})
        LAYOUTS.update(dict.fromkeys(names, Layout(find, expected, sensor_size, class_ids)))
        return find

    return register


@layout("gen1", expected="*_td.dat with *_bbox.npy", sensor_size=SensorSize(304, 240), class_ids=("car", "pedestrian"))
def gen1(source: LayoutFolder) -> Iterator[LabelledFile]:
    """Prophesee's Gen1 automotive detection dataset (de Tournemire et al. 2020)."""
    nested = source.root / NESTED
    yield from _prophesee(source, (nested if nested.is_dir() else source.root) / source.split)


@layout("1mpx", expected="*_td.dat with *_bbox.npy", sensor_size=ONE_MPX, class_ids=ONE_MPX_CLASSES)
def one_mpx(source: LayoutFolder) -> Iterator[LabelledFile]:
    """Prophesee's 1 megapixel automotive detection dataset (Perot et al. 2020)."""
    yield from _prophesee(source, source.root / source.split)


def _prophesee(source: LayoutFolder, folder: Path) -> Iterator[LabelledFile]:
    for events in source.files(folder, "*_td.dat"):
        boxes = events.with_name(events.name.removesuffix("_td.dat") + "_bbox.npy")
        yield from source.labelled(events, boxes, LABEL_FILES["_bbox.npy"], drive_of(labelled_name(events)))
    for boxes in source.files(folder, "*_bbox.npy"):
        if not boxes.with_name(boxes.name.removesuffix("_bbox.npy") + "_td.dat").is_file():
            source.skipped.append(f"{boxes}: its _td.dat is missing")


@layout("ncaltech101", expected="Caltech101/<class>/image_*.bin", sensor_size=SensorSize(240, 180))
def ncaltech101(source: LayoutFolder) -> Iterator[LabelledFile]:
    """N-Caltech101 (Orchard et al. 2015); a spec without classes gets all classes in the folder."""
    events_root = source.root / "Caltech101"
    if not source.spec.classes:
        folders = sorted(path.name for path in events_root.glob("*/") if path.name not in _NOT_OBJECTS)
        names = tuple(name for name in folders if not name.startswith("."))
        source.spec = replace(source.spec, classes=names, source_names={name: k for k, name in enumerate(names)})
    elif events_root.is_dir() and not any((events_root / name).is_dir() for name in source.spec.source_names):
        wanted = ", ".join(source.spec.source_names)
        source.skipped.append(f"{events_root}: no folder {wanted}; for all of its folders set data.spec to ncaltech101")
    for name, _ in sorted(source.spec.source_names.items(), key=lambda item: item[1]):
        for path in source.files(events_root / name, "*.bin"):
            number = re.fullmatch(r"image_(\d+)\.bin", path.name)
            if number is None:
                source.skipped.append(f"{path}: its name is not image_NUMBER.bin")
            elif {0: "test", 5: "val"}.get(int(number[1]) % 10, "train") == source.split:
                annotation = source.root / "Caltech101_annotations" / name / f"annotation_{number[1]}.bin"
                yield from _caltech(source, path, annotation, name)


def _caltech(source: LayoutFolder, events: Path, annotation: Path, name: str) -> Iterator[LabelledFile]:
    """Yield the recording with its box at the end of each saccade, unless the annotation is missing or invalid."""
    try:
        yield from source.labelled(events, annotation, lambda path: _caltech_labels(path, name))
    except LabelError as error:
        source.skipped.append(str(error))


def _caltech_labels(path: Path, name: str) -> LabelFile:
    box = read_caltech_box(path)[None]
    return LabelFile(tuple(NamedBoxes(t, box, (name,)) for t in _SACCADE_ENDS_US))


@layout("pedro", expected="*.npy with *.xml", sensor_size=SensorSize(346, 260))
def pedro(source: LayoutFolder) -> Iterator[LabelledFile]:
    """PEDRo (Boretti et al. 2023): people, DAVIS346, one file per labelled slice; labels in Pascal VOC format."""
    folder = labels = source.root
    source.undivided = not (source.root / "numpy").is_dir()
    if not source.undivided:
        folder, labels = (source.root / name / source.split for name in ("numpy", "xml"))
    for path in source.files(folder, "*.npy"):
        number = re.search(r"(\d+)$", path.stem)  # frames of 25 Hz: the next one shows nearly the same
        stretch = f"stretch {int(number[1]) // STRETCH}" if number else ""
        yield from source.labelled(path, labels / f"{path.stem}.xml", LABEL_FILES[".xml"], stretch)


@layout(
    "dsec",
    expected="{train,test}/<sequence>/events/left/events.h5 with <sequence>/object_detections/left/tracks.npy",
    sensor_size=SensorSize(640, 480),
    class_ids=DSEC,
)
def dsec(source: LayoutFolder) -> Iterator[LabelledFile]:
    """DSEC-Detection (Gehrig and Scaramuzza 2024): the left event cameras of DSEC's drives, 640x480, labelled at 20 Hz."""
    source.nested = True
    for events in source.files(source.root / ("test" if source.split == "test" else "train"), "*/events/left/events.h5"):
        sequence = events.parents[2]
        if source.split != "test" and (source.split == "val") != bool(_DSEC_VAL.match(sequence.name)):
            continue
        drive, _, _ = sequence.name.rpartition("_")
        yield from source.labelled(
            events, sequence / "object_detections" / "left" / "tracks.npy", _dsec_labels, drive, sequence.name
        )


def _dsec_labels(path: Path) -> LabelFile:
    """Read the boxes, and the times of pictures in which nothing was labelled."""
    instants = LABEL_FILES["_bbox.npy"](path).instants
    pictures = path.parents[2] / "images" / "timestamps.txt"
    if pictures.is_file():
        try:
            times = np.loadtxt(pictures, np.int64, ndmin=1).tolist()
        except (OSError, ValueError) as error:
            raise LabelError(f"{pictures}: expected one time in microseconds per line ({error})") from None
        labelled = {instant.t_us for instant in instants}
        empty = (NamedBoxes(t, np.zeros((0, 4), np.float32), ()) for t in times if t not in labelled)
        instants = tuple(sorted((*instants, *empty), key=lambda instant: instant.t_us or 0))
    return LabelFile(instants)


@layout("folder", expected=f"event files NAME.* with label files {', '.join(f'NAME{end}' for end in LABEL_FILES)}")
def folder(source: LayoutFolder) -> Iterator[LabelledFile]:
    """Event files of any format with label files in the same folder."""
    source.undivided = not (source.root / source.split).is_dir()
    folder_path = source.root if source.undivided else source.root / source.split
    first: dict[Path, Path] = {}
    recordings = [path for path in source.files(folder_path, "*") if is_recording_name(path)]
    named = Counter(map(labelled_name, recordings))
    for path in recordings:
        name = labelled_name(path)
        picture = timed_recording(path.name)
        if (picture or named[name] > 1 or path.parent.name == "labels") and holds_yolo_labels(path):
            source.skipped.append(f"{path}: labels of YOLO are not read; export them as COCO, to {picture or name}.json")
            continue
        candidates = {ending: path.with_name(name + ending) for ending in LABEL_FILES}
        endings = [ending for ending, file in candidates.items() if file.is_file()] or list(candidates)[:1]
        labels = candidates[endings[0]]
        if first.setdefault(labels, path) != path and labels.is_file():
            raise LabelError(f"{labels}: belongs to {first[labels].name} and {path.name}: keep one of the two in the folder")
        if len(endings) > 1:
            warn_once(f"{labels}: these labels are read, and not those of {candidates[endings[1]].name} beside them")
        yield from source.labelled(path, labels, LABEL_FILES[endings[0]])
