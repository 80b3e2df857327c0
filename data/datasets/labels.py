"""Label files: boxes by time, with class names as written in the file. A new format is one registered function here:

@label_file("_bbox.npy")
def prophesee(path): ...

    NAME_bbox.npy   Prophesee: structured array with class ids; several times
    NAME_bbox.csv   columns t_us, class (a name or a number) and x, y, w, h or x0, y0, x1, y1 in pixels; several times
    NAME.json       COCO; time of an image's boxes: its `t_us`, or else the end of its `file_name`, as in a_000000500000us.png,
                    or else, of one image, the recording's end; `width`, `height`: the sensor
    NAME.xml        Pascal VOC, boxes at the recording's end; `size` is the sensor

`ClassMatcher` maps these names to the classes of a dataset: by name, never by the order of another dataset's classes.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import read_prophesee_boxes
from evburst.data.datasets import DatasetSpec
from evburst.data.errors import ConfigError, LabelError
from evburst.data.events import MAX_SENSOR_SIDE, SensorSize
from evburst.data.extensions import refuse_taken
from evburst.data.notices import warn_once
from evburst.data.readers import recording_suffixes
from evburst.data.text import number_of

_LOG = logging.getLogger(__name__)
_CORNERS, _SIDES = ("x0", "y0", "x1", "y1"), ("x", "y", "w", "h")
_LONG_NUMBER = 20
_TIMED_PICTURE = re.compile(r"(?:.*[/\\])?(?P<recording>.*)_(?P<t_us>\d{1,18})us(?:\.\w+|(?<=\d{12}us)[._-].*)", re.DOTALL)
"""Name of a picture that ends in a time, as `evburst events frames` writes it, and perhaps in what an exporter appends."""
_PREFIX = r"(?:[0-9A-Fa-f]+-)?"
"""What labelling programs write before the name of a picture, so that no two are equal."""
IGNORED_CLASS = "ignore"
"""Mapping target of classes whose boxes are dropped on purpose."""


class NamedBoxes(NamedTuple):
    """The boxes of one instant, with class names.

    Attributes:
        t_us: time on the recording's clock; None: the recording's end.
        boxes_xyxy: `(n, 4)` float32 px, unclipped.
        names: their class names; an integer is a class id of a format without names.
    """

    t_us: int | None
    boxes_xyxy: NDArray[np.float32]
    names: Sequence[str | int]


class LabelFile(NamedTuple):
    """Contents of a label file.

    Attributes:
        instants: its boxes, one entry per labelled time, in order.
        sensor_size: (W, H) px, or None if the file does not state it.
    """

    instants: tuple[NamedBoxes, ...]
    sensor_size: SensorSize | None = None


Reader = Callable[[Path], LabelFile]
LABEL_FILES: dict[str, Reader] = {}
"""Readers by the text that follows a recording's name; the first file that exists is read."""


def label_file(ending: str) -> Callable[[Reader], Reader]:
    """Register a reader of label files called NAME + `ending`; raises ConfigError if another one has this ending."""

    def register(reader: Reader) -> Reader:
        refuse_taken("ending of label files", ending, reader, LABEL_FILES)
        LABEL_FILES[ending] = reader
        return reader

    return register


def labelled_name(recording: Path) -> str:
    """Return what the names of a recording's label files begin with: NAME of NAME.raw, and of NAME_td.dat."""
    return recording.stem.removesuffix("_td")


def is_label_file(path: Path) -> bool:
    """Whether a file's name says that it holds labels: NAME_bbox.npy, NAME_bbox.csv, or DVS128 Gesture's NAME_labels.csv."""
    return path.name.endswith(("_labels.csv", *(ending for ending in LABEL_FILES if ending.startswith("_"))))


def holds_yolo_labels(path: Path) -> bool:
    """Whether a text file beside recordings begins with a label of YOLO, is empty, as that of a picture without objects, or
    lists YOLO's classes."""
    if path.suffix.lower() != ".txt":
        return False
    if path.name.lower() == "classes.txt":
        return True
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 10)
    except OSError:
        return False  # who reads it says why
    return not line.strip() or _is_yolo_label(line)


def _is_yolo_label(line: bytes) -> bool:
    """Whether a line of text is a label of YOLO: a class id, then fractions of the picture, x and y first."""
    number, *values = line.split()[:5] or [b""]
    try:
        x, y, *sides = map(float, values)
    except ValueError:
        return False
    return number.isdigit() and 0 < x < 1 and 0 < y < 1 and len(sides) == 2 and all(0 <= side <= 1 for side in sides)


def is_recording_name(path: Path) -> bool:
    """Whether a file's name is that of a recording in a folder of recordings and labels."""
    return path.suffix.lower() in recording_suffixes() and not is_label_file(path)


@label_file("_bbox.npy")
def prophesee(path: Path) -> LabelFile:
    """Read Prophesee's box file.

    Raises:
        LabelError: see `load_prophesee_boxes`.
    """
    found = read_prophesee_boxes(path)
    return LabelFile(tuple(NamedBoxes(boxes.t_us, boxes.boxes_xyxy, boxes.labels.tolist()) for boxes in found))


@label_file("_bbox.csv")
def csv_boxes(path: Path) -> LabelFile:
    """Read a table with a header line; see above.

    Raises:
        LabelError: a column is missing, or a row's time or box is not a finite number or is negative.
    """
    by_time: dict[int, list[tuple[list[float], str | int]]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            names = [name.strip().lower() for name in table.fieldnames or ()]
            table.fieldnames = names
            time = next((name for name in ("t_us", "t", "ts") if name in names), None)
            sides = next((sides for sides in (_CORNERS, _SIDES) if set(sides) <= set(names)), None)
            if time is None or sides is None or "class" not in names:
                raise LabelError(f"{path}: columns {', '.join(names)}; expected t_us, class and x, y, w, h or x0, y0, x1, y1")
            for row in table:
                where = f"{path}: line {table.line_num}"
                t = _whole_time(where, row[time])
                box = _box(where, [row[side] for side in sides], sides is _SIDES)
                name = (row["class"] or "").strip()
                by_time.setdefault(t, []).append((box, int(name) if name.isdecimal() and len(name) < _LONG_NUMBER else name))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path}: cannot be read as a table of boxes ({error})") from None
    return LabelFile(tuple(_named_boxes(t, *zip(*rows, strict=True)) for t, rows in sorted(by_time.items())))


@label_file(".json")
def coco(path: Path) -> LabelFile:
    """Read COCO boxes; those of pictures at the same time are of one instant.

    Pictures whose names say that they are of other recordings are left out if there are any of this one.

    Raises:
        LabelError: not a COCO file, an annotation refers to an unknown image or category, a time or box is invalid, or the
            pictures are of several other recordings.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {number: str(category["name"]) for number, category in _by_id(path, "categories", raw).items()}
        every = _by_id(path, "images", raw)
        images = _of_recording(path, every)
        rows: dict[Any, list[tuple[list[float], str | int]]] = {number: [] for number in every}
        for k, annotation in enumerate(raw["annotations"]):
            where = f"{path}: annotation {k}"
            for what, value, known in (
                ("image", annotation["image_id"], every),
                ("category", annotation["category_id"], names),
            ):
                if value not in known:
                    raise LabelError(f"{where}: {what} {value!r} is not in the file (known: {_join(known)})")
            rows[annotation["image_id"]].append((_box(where, annotation["bbox"], True), names[annotation["category_id"]]))
        by_time: dict[int | None, list[tuple[list[float], str | int]]] = {}
        timeless: list[Any] = []
        for number, image in images.items():
            t = _time_of(f"{path}: image {number}", image)
            by_time.setdefault(t, []).extend(rows[number])
            timeless += [image.get("file_name", number)] if t is None else []
        if len(timeless) > 1:
            raise LabelError(
                f"{path}: {number_of(len(timeless), 'picture')} without a time, as {str(timeless[0])[:100]!r}: give each a "
                "`t_us` in microseconds, or a `file_name` that ends in it, as in a_000000500000us.png; one picture without is "
                "of the recording's end"
            )
        instants = sorted(by_time.items(), key=lambda item: (item[0] is None, item[0] or 0))
        found = (_named_boxes(t, [box for box, _ in own], [name for _, name in own]) for t, own in instants)
        sizes = {(image.get("width"), image.get("height")) for image in images.values()}
        return LabelFile(tuple(found), _sensor_size(path, sizes))
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise LabelError(
            f"{path}: not a COCO file of boxes ({str(error)[:200] if isinstance(error, ValueError) else repr(error)})"
        ) from None


def timed_recording(name: str) -> str | None:
    """Return the name of the recording that a picture, or a file named like one, is of by its name; None if it says none."""
    found = _TIMED_PICTURE.fullmatch(name)
    return found["recording"] if found else None


def _by_id(path: Path, what: str, raw: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """Return the images or categories of a COCO file by their ids; raises LabelError if two have the same."""
    found: dict[Any, dict[str, Any]] = {}
    for item in raw[what]:
        if found.setdefault(item["id"], item) != item:
            raise LabelError(f"{path}: two {what} have the id {item['id']!r}; give each its own, also in the annotations")
    return found


def _of_recording(path: Path, images: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Return the images of a COCO file but for those whose names say that they are not of the recording beside it."""
    untimed = {number: str(image.get("file_name")) for number, image in images.items() if image.get("t_us") is None}
    named = {number: found for number, name in untimed.items() if (found := _TIMED_PICTURE.fullmatch(name))}
    own = re.compile(_PREFIX + re.escape(path.stem))
    others = {number: found for number, found in named.items() if not own.fullmatch(found["recording"])}
    if not others:
        return images
    example = next(iter(others.values()))[0][:100]
    if len(others) < len(named):
        _LOG.info("note: %s: %s of other recordings left out, such as %s", path, number_of(len(others), "picture"), example)
        return {number: image for number, image in images.items() if number not in others}
    times = {int(found["t_us"]) for found in others.values()}
    if len(times) < len(others) and len({found["recording"] for found in others.values()}) > 1:
        raise LabelError(
            f"{path}: pictures of several recordings, such as {example!r}, and none of {path.stem!r}; export the pictures of "
            "each recording to a file of its own"
        )
    warn_once(f"{path}: no picture is of {path.stem!r} by its name, as {example!r}; are these the labels of another recording?")
    return images


def _time_of(where: str, image: dict[str, Any]) -> int | None:
    if image.get("t_us") is not None:
        return _whole_time(where, image["t_us"])
    named = _TIMED_PICTURE.fullmatch(str(image.get("file_name")))
    return int(named["t_us"]) if named else None


@label_file(".xml")
def pascal_voc(path: Path) -> LabelFile:
    """Read Pascal VOC boxes.

    Raises:
        LabelError: not a Pascal VOC file, or a box is invalid.
    """
    boxes, names = [], []
    try:
        tree = ElementTree.parse(path)
        for k, annotation in enumerate(tree.iter("object")):
            corners = [annotation.findtext(f"bndbox/{name}", "") for name in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append(_box(f"{path}: object {k}", corners, False))
            names.append(annotation.findtext("name", "").strip())
        size = tuple(float(tree.findtext(f"size/{side}", "").strip() or 0) for side in ("width", "height"))
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise LabelError(f"{path}: not a Pascal VOC label ({error})") from None
    return LabelFile((_named_boxes(None, boxes, names),), _sensor_size(path, {size}))


class ClassMatcher:
    """Maps the classes of label files to those of a dataset, by name; boxes without a match are counted and logged.

    Case, blanks, `_`, `-` and the form of Unicode make no difference. A class id that is itself the name of a class means that
    class; other ids are first converted to names with `ids`.

    Args:
        spec: the dataset's classes.
        mapping: names (or class ids) in label files to classes of the spec, or to "ignore".
        ids: names of class ids 0, 1, 2 ...; None: the spec's classes.

    Attributes:
        matched: number of boxes by class of the spec.
        unmatched: number of dropped boxes by name.

    Raises:
        ConfigError: the mapping refers to a class that the spec does not have.
    """

    def __init__(self, spec: DatasetSpec, mapping: Mapping[str, str] | None = None, ids: Sequence[str] | None = None) -> None:
        self._spec, self._ids = spec, spec.classes if ids is None else ids
        self.matched, self.unmatched = Counter[str](), Counter[str]()
        known = {_normalise(name): k for names in (spec.source_names, _numbered(spec.classes)) for name, k in names.items()}
        self._index: dict[str, int | None] = dict(known)
        for name, target in (mapping or {}).items():
            if _normalise(target) not in known and target != IGNORED_CLASS:
                raise ConfigError(
                    f"data.classes: {name}={target}: {target!r} is not a class of {spec.name} "
                    f"(its classes: {', '.join(spec.classes)}; or {IGNORED_CLASS})"
                )
            self._index[_normalise(name)] = known.get(_normalise(target))
        self._mapped = {_normalise(name) for name in mapping or {}}

    def with_ids(self, ids: Sequence[str]) -> ClassMatcher:
        """Return a matcher with the same counters, for label files whose class ids have these names."""
        other = ClassMatcher(self._spec, None, ids)
        other.matched, other.unmatched, other._index, other._mapped = self.matched, self.unmatched, self._index, self._mapped
        return other

    def indices(self, names: Sequence[str | int]) -> NDArray[np.int64]:
        """Return the class index of each box; -1 for boxes that are dropped."""
        found = [self._find(name) for name in names]
        return np.array(found, np.int64).reshape(len(names))

    def _find(self, name: str | int) -> int:
        text = str(name)
        if isinstance(name, int) and _normalise(text) not in self._index:
            text = self._ids[name] if 0 <= name < len(self._ids) else f"class id {name}"
        index = self._index.get(_normalise(text))
        if index is not None:
            self.matched[self._spec.classes[index]] += 1
        elif _normalise(text) not in self._mapped:
            self.unmatched[text] += 1
        return -1 if index is None else index

    def log_unmatched(self, place: Path) -> None:
        """Log the dropped boxes; raises LabelError if all were dropped."""
        if not self.unmatched:
            return
        names = ", ".join(f"{name[:40]!r} ({count})" for name, count in self.unmatched.most_common(12))
        classes = ", ".join(self._spec.classes) or "none"
        advice = f"the classes are {classes}; --classes 'NAME=CLASS,...' maps names to them, or to {IGNORED_CLASS}"
        advice += " (evburst train: --data.classes '{NAME: CLASS}', or classes of your own: --own-classes A,B,...)"
        if not self.matched:
            raise LabelError(f"{place}: no labelled box is of a known class: {names}; {advice}")
        _LOG.warning("%s: boxes of other classes are ignored: %s; %s", place, names, advice)


def with_own_classes(spec: DatasetSpec, names: Sequence[str]) -> DatasetSpec:
    """Return a spec with other classes, which label files call by the same names.

    Raises:
        ConfigError: a name is empty, stands twice, or means that boxes are ignored.
    """
    same = Counter(map(_normalise, names))
    for name in names:
        if not _normalise(name) or same[_normalise(name)] > 1 or name == IGNORED_CLASS:
            reason = "stands twice" if same[_normalise(name)] > 1 else "cannot be the name of a class"
            raise ConfigError(f"data.own_classes: {name!r} {reason} (case, blanks, _ and - make no difference)")
    own = replace(spec, name="data.own_classes", classes=tuple(names), own_ids=True)
    return replace(own, source_names=_numbered(names), ignored_names=frozenset())


def parse_classes(text: str) -> dict[str, str]:
    """Parse "Car=car,Person=pedestrian"; raises ConfigError on anything else."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(name.strip() and target.strip() for name, _, target in pairs):
        raise ConfigError(f"classes {text!r}: write them as NAME=CLASS,NAME=CLASS, e.g. Car=car,Person=pedestrian")
    found: dict[str, str] = {}
    for name, _, target in pairs:
        if found.setdefault(name.strip(), target.strip()) != target.strip():
            raise ConfigError(f"classes {text!r}: {name.strip()} is mapped to two classes")
    return found


def _normalise(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: k for k, name in enumerate(names)}


def _named_boxes(t_us: int | None, boxes: Sequence[Any], names: Sequence[str | int]) -> NamedBoxes:
    return NamedBoxes(t_us, np.array(boxes, np.float32).reshape(-1, 4), names)


def _box(where: str, values: Sequence[Any], sides: bool) -> list[float]:
    """Convert a box given as x0 y0 x1 y1, or with `sides` as x y w h, to x0 y0 x1 y1."""
    try:
        a, b, c, d = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise LabelError(f"{where}: the box is {values!r}, expected four numbers") from None
    if not all(map(math.isfinite, (a, b, c, d))):
        raise LabelError(f"{where}: the box is {values!r}: not finite")
    width, height = (c, d) if sides else (c - a, d - b)
    if width < 0 or height < 0:
        raise LabelError(f"{where}: the box is {width:g} px wide and {height:g} px high: negative")
    return [a, b, a + width, b + height]


def _whole_time(where: str, value: Any) -> int:
    """Parse a time in whole, non-negative microseconds."""
    try:
        number = float(value)
        whole = int(value) if isinstance(value, int | str) and str(value).strip().isdecimal() else int(number)
    except (TypeError, ValueError, OverflowError):
        raise LabelError(f"{where}: the time is {value!r}, expected microseconds") from None
    if number < 0 or number != whole:
        raise LabelError(f"{where}: the time is {value!r}, expected whole microseconds, not negative")
    return whole


def _sensor_size(path: Path, sizes: set[Any]) -> SensorSize | None:
    """Return the sensor's size if the file states exactly one; without numbers, or with zeros, a size is none."""
    sizes = {tuple(_whole(side) for side in size) for size in sizes} - {(None, None), (0, 0)}
    if not sizes:
        return None
    if len(sizes) > 1:
        raise LabelError(f"{path}: pictures of several sizes ({_join(sizes)}); a recording has one sensor")
    width, height = sizes.pop()
    if not all(isinstance(side, int) and 0 < side <= MAX_SENSOR_SIDE for side in (width, height)):
        raise LabelError(f"{path}: the picture's size is {width!r} x {height!r}; expected 1 to {MAX_SENSOR_SIDE} pixels each")
    return SensorSize(width, height)


def _whole(side: Any) -> Any:
    return int(side) if isinstance(side, float) and side.is_integer() else side


def _join(values: Any) -> str:
    return ", ".join(sorted(map(str, values))[:12]) or "none"
