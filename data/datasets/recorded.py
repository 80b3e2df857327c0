"""Windows of labelled recordings: the events of [t - window_us, t) for every labelled time t, read at random.

Published layouts (`{...}` is the split):

    gen1         ROOT/{train,val,test}/NAME_td.dat + NAME_bbox.npy   (also below detection_dataset_duration_60s_ratio_1.0/)
    ncaltech101  ROOT/Caltech101/CLASS/image_0001.bin + ROOT/Caltech101_annotations/CLASS/annotation_0001.bin; the split is by
                 number: 0, 10, 20 ... are "test", 5, 15, 25 ... are "val", the others "train"
    pedro        ROOT/numpy/{...}/NAME.npy + ROOT/xml/{...}/NAME.xml, or both beside each other in ROOT (any split)
    folder       ROOT/{...}/ or ROOT: event files of any known format, each NAME.* with NAME_bbox.npy (Prophesee), NAME.json
                 (COCO; an image's `t_us`, or else the recording's end, is the time of its boxes) or NAME.xml (Pascal VOC, at the
                 recording's end); a final _td is not part of NAME; event files without any of these are left out, and counted

A recording in .dat stays on disk and is searched by time; one of another format is held in memory while it is used.
"""

from __future__ import annotations

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from evburst.data.boxes import Detections, read_prophesee_boxes
from evburst.data.datasets import DatasetSpec, LabelledWindow, Part
from evburst.data.datasets.caltech import read_caltech_annotation
from evburst.data.errors import DataError, LabelError
from evburst.data.events import Events, EventWindow, SensorSize
from evburst.data.readers import open_events
from evburst.data.readers.dat import DatFile

_OPEN_FILES = 64
_MOST_EVENTS = 100_000_000
_SACCADES_US = 300_000
_FROM_ZERO_US = 100_000
_NOT_OBJECTS = {"Faces_easy", "BACKGROUND_Google"}
_EVENT_SUFFIXES = {".dat", ".raw", ".bin", ".aedat4", ".h5", ".hdf5", ".npy", ".npz", ".csv", ".txt"}


@dataclass(frozen=True)
class Recording:
    """An event file and what is in it.

    Attributes:
        events: the file.
        labels: the boxes of every labelled time, unclipped; a time of None is the recording's end.
    """

    events: Path
    labels: tuple[tuple[int | None, Detections], ...]


class Layout(NamedTuple):
    """What a folder holds.

    Attributes:
        spec: what is looked for.
        recordings: the labelled ones, in order.
        unlabelled: event files without labels.
    """

    spec: DatasetSpec
    recordings: list[Recording]
    unlabelled: int = 0


class RecordedWindows:
    """A Dataset of recordings.

    Args:
        layout: the files and their labels; files that do not say their sensor's size have the spec's.
        window_us: length of a window.
        n_windows: at most so many, spread evenly; 0 for all.

    Attributes:
        unlabelled: event files that were left out because they have no labels.
    """

    def __init__(self, layout: Layout, window_us: int, n_windows: int = 0) -> None:
        self.spec, self.unlabelled, self._window_us = layout.spec, layout.unlabelled, window_us
        items = [(recording, k) for recording in layout.recordings for k in range(len(recording.labels))]
        if n_windows:
            items = [items[i] for i in np.linspace(0, len(items) - 1, min(n_windows, len(items))).astype(int)]
        self._items = items
        self._open: OrderedDict[Path, DatFile | Events] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> LabelledWindow:
        boxes, size = self.labels(i), self.spec.sensor_size
        path = self._items[i][0].events
        window = _window(self._events(path), boxes.t_us - self._window_us, boxes.t_us)
        clipped = np.clip(boxes.boxes_xyxy, 0, [*size, *size]).astype(np.float32)
        inside = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(1)
        found = Detections(clipped[inside], boxes.scores[inside], boxes.labels[inside], boxes.t_us)
        return LabelledWindow(window, found, path.name)

    def labels(self, i: int) -> Detections:
        """See Dataset."""
        recording, k = self._items[i]
        t, boxes = recording.labels[k]
        return replace(boxes, t_us=_end(self._events(recording.events)) if t is None else t)

    def window_before(self, i: int, t_us: int) -> EventWindow:
        """The window of item i's recording that ends at another time than its label."""
        return _window(self._events(self._items[i][0].events), t_us - self._window_us, t_us)

    def start_us(self, i: int) -> int:
        """See Dataset. A clock that shows less than 0.1 s at the first event counts from the recording's start."""
        first = _first(self._events(self._items[i][0].events))
        return 0 if 0 <= first < _FROM_ZERO_US else first

    def parts(self) -> list[Part]:
        """See Dataset."""
        found, first = [], 0
        for _, items in groupby(self._items, key=lambda item: item[0].events):
            (recording, *_), numbers = zip(*items, strict=True)
            chosen = [recording.labels[k] for k in numbers]
            found.append(Part(recording.events.stem, range(first, first + len(chosen)), _identity(recording.events, chosen)))
            first += len(chosen)
        return found

    def _events(self, path: Path) -> DatFile | Events:
        """The recording, among the last used ones or opened now."""
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        stream = open_events(path, self._size(path))
        source: DatFile | Events
        if isinstance(stream, DatFile):
            source = stream
        else:
            parts, total = [], 0
            for packet in stream.packets():
                parts.append(packet)
                total += len(packet)
                if total > _MOST_EVENTS:
                    raise DataError(
                        f"{path}: too long to be held in memory; make it a .dat: python -m evburst.app.events convert"
                    )
            if not parts:
                raise DataError(f"{path}: holds no event")
            source = np.concatenate(parts)
        self._open[path] = source
        self._held += _held(source)
        while len(self._open) > 1 and (len(self._open) > _OPEN_FILES or self._held > _MOST_EVENTS):
            self._held -= _held(self._open.popitem(last=False)[1])
        return source

    def _size(self, path: Path) -> Any:
        return None if path.suffix in (".dat", ".raw", ".aedat4") else self.spec.sensor_size


def _held(source: DatFile | Events) -> int:
    """Events in memory."""
    return 0 if isinstance(source, DatFile) else len(source)


def _identity(events: Path, labels: Sequence[tuple[int | None, Detections]]) -> str:
    """A digest of the file's size and age and of these labels."""
    try:
        status = events.stat()
    except OSError as error:
        raise DataError(f"{events}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(f"{events} {status.st_size} {status.st_mtime_ns}".encode())
    for t, boxes in labels:
        digest.update(f"{t}".encode() + boxes.boxes_xyxy.tobytes() + boxes.labels.tobytes())
    return digest.hexdigest()


def _first(source: DatFile | Events) -> int:
    return int(source.words[0, 0] if isinstance(source, DatFile) else source["t"][0])


def _end(source: DatFile | Events) -> int:
    return int(source.words[-1, 0] if isinstance(source, DatFile) else source["t"][-1]) + 1


def _window(source: DatFile | Events, t0: int, t1: int) -> EventWindow:
    if isinstance(source, DatFile):
        t: Callable[[int], int] = lambda i: int(source.words[i, 0])  # noqa: E731
        first, last = (bisect_left(range(len(source)), edge, key=t) for edge in (t0, t1))
        return EventWindow(t0, t1, source.words[first:last], 0, source.version)
    first, last = np.searchsorted(source["t"], [t0, t1])
    return EventWindow(t0, t1, source[first:last])


def gen1(root: Path, split: str, spec: DatasetSpec) -> Layout:
    """Prophesee's Gen1 automotive detection dataset (de Tournemire et al. 2020)."""
    nested = root / "detection_dataset_duration_60s_ratio_1.0"
    folder = (nested if nested.is_dir() else root) / split
    found = []
    for path in sorted(folder.glob("*_bbox.npy")):
        events = path.with_name(path.name.removesuffix("_bbox.npy") + "_td.dat")
        found.append(Recording(events, tuple((boxes.t_us, boxes) for boxes in _known(path, spec))))
    return Layout(spec, _some(found, folder, "*_td.dat with *_bbox.npy"))


def ncaltech101(root: Path, split: str, spec: DatasetSpec) -> Layout:
    """N-Caltech101 (Orchard et al. 2015); a spec without classes gets all that the folder holds."""
    events_root = root / "Caltech101"
    if not spec.classes:
        names = sorted(path.name for path in events_root.glob("*/") if path.name not in _NOT_OBJECTS)
        spec = replace(spec, classes=tuple(names), source_names={name: k for k, name in enumerate(names)})
    found = []
    for name, label in sorted(spec.source_names.items(), key=lambda item: item[1]):
        for path in sorted((events_root / name).glob("image_*.bin")):
            number = path.stem.removeprefix("image_")
            if {0: "test", 5: "val"}.get(int(number) % 10, "train") != split:
                continue
            annotation = root / "Caltech101_annotations" / name / f"annotation_{number}.bin"
            box = read_caltech_annotation(annotation, spec.sensor_size).box_xyxy[None]
            boxes = Detections(box, np.ones(1, np.float32), np.array([label]))
            found.append(Recording(path, tuple((t, boxes) for t in range(100_000, _SACCADES_US + 1, 100_000))))
    return Layout(spec, _some(found, events_root, f"<class>/image_*.bin of split {split!r}"))


def pedro(root: Path, split: str, spec: DatasetSpec) -> Layout:
    """PEDRo (Boretti et al. 2023): people, DAVIS346, one file per labelled slice; labels are Pascal VOC's."""
    folder, labels = (root / "numpy" / split, root / "xml" / split) if (root / "numpy").is_dir() else (root, root)
    found = []
    for path in sorted(folder.glob("*.npy")):
        file = labels / f"{path.stem}.xml"
        if not file.exists():
            raise LabelError(f"{file}: no such label file (for {path.name})")
        found.append(Recording(path, ((None, _read_voc(file, spec)[0]),)))
    return Layout(spec, _some(found, folder, "*.npy with *.xml"))


def folder(root: Path, split: str, spec: DatasetSpec) -> Layout:
    """Any event files with Prophesee, COCO or Pascal VOC boxes beside them; VOC files say the sensor's size, too."""
    place = root / split if (root / split).is_dir() else root
    found: list[Recording] = []
    sizes: set[SensorSize] = set()
    unlabelled = 0
    for path in sorted(place.iterdir()) if place.is_dir() else []:
        if path.suffix.lower() not in _EVENT_SUFFIXES or path.name.endswith("_bbox.npy"):
            continue
        name = path.stem.removesuffix("_td")
        boxes, coco, voc = (path.with_name(name + suffix) for suffix in ("_bbox.npy", ".json", ".xml"))
        if boxes.exists():
            found.append(Recording(path, tuple((b.t_us, b) for b in _known(boxes, spec))))
        elif coco.exists():
            found.append(Recording(path, _read_coco(coco, spec)))
        elif voc.exists():
            labels, size = _read_voc(voc, spec)
            sizes |= {size} if size else set()
            found.append(Recording(path, ((None, labels),)))
        else:
            unlabelled += 1
    if len(sizes) > 1:
        raise LabelError(f"{place}: recordings of several sensors ({', '.join(map(str, sizes))}); one folder for each, please")
    spec = replace(spec, sensor_size=sizes.pop()) if sizes else spec
    what = "event files with NAME_bbox.npy, NAME.json or NAME.xml beside them"
    return Layout(spec, _some(found, place, what), unlabelled)


LAYOUTS: dict[str, Callable[[Path, str, DatasetSpec], Layout]] = {
    "gen1": gen1,
    "ncaltech101": ncaltech101,
    "pedro": pedro,
    "folder": folder,
}


def _known(path: Path, spec: DatasetSpec) -> list[Detections]:
    """Prophesee boxes, those of classes that the spec does not know left out."""
    kept = []
    for boxes in read_prophesee_boxes(path):
        known = boxes.labels < len(spec.classes)
        kept.append(Detections(boxes.boxes_xyxy[known], boxes.scores[known], boxes.labels[known], boxes.t_us))
    return kept


def _read_voc(path: Path, spec: DatasetSpec) -> tuple[Detections, SensorSize | None]:
    """Boxes of a Pascal VOC file, those of classes that the spec does not know left out, and the picture's size if it says it."""
    names = {**spec.source_names, **{name: k for k, name in enumerate(spec.classes)}}
    try:
        tree = ElementTree.parse(path)
        rows = []
        for thing in tree.iter("object"):
            name = thing.findtext("name", "")
            if name in names:
                corners = [float(thing.findtext(f"bndbox/{k}", "")) for k in ("xmin", "ymin", "xmax", "ymax")]
                rows.append([*corners, names[name]])
        size = [int(tree.findtext(f"size/{side}", "0")) for side in ("width", "height")]
    except (ElementTree.ParseError, ValueError) as error:
        raise LabelError(f"{path}: not a Pascal VOC label ({error})") from None
    found = np.array(rows, np.float32).reshape(-1, 5)
    boxes = Detections(found[:, :4], np.ones(len(found), np.float32), found[:, 4].astype(np.int64))
    return boxes, SensorSize(*size) if min(size) > 0 else None


def _read_coco(path: Path, spec: DatasetSpec) -> tuple[tuple[int | None, Detections], ...]:
    try:
        raw = json.loads(path.read_text())
        names = {c["id"]: spec.source_names.get(c["name"]) for c in raw["categories"]}
        names |= {c["id"]: spec.classes.index(c["name"]) for c in raw["categories"] if c["name"] in spec.classes}
        found = []
        for image in raw["images"]:
            rows = [a for a in raw["annotations"] if a["image_id"] == image["id"] and names[a["category_id"]] is not None]
            xywh = np.array([a["bbox"] for a in rows], np.float32).reshape(-1, 4)
            xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
            labels = np.array([names[a["category_id"]] for a in rows], np.int64)
            found.append((image.get("t_us"), Detections(xyxy, np.ones(len(rows), np.float32), labels)))
    except (KeyError, TypeError, ValueError) as error:
        raise LabelError(f"{path}: not COCO boxes ({error!r})") from None
    return tuple(found)


def _some(found: list[Recording], folder: Path, what: str) -> list[Recording]:
    if not found:
        raise DataError(f"{folder}: no recording found; expected {what}")
    return found
