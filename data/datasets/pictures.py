"""Folders of labelled pictures: `boxes.csv` and `images/`.

There are two layouts. With a column `set`, a picture is images/<set>/<file>. Without it, a picture is
images/<class>/<file>, and folders that boxes.csv does not name contain pictures without objects, which only the split
"train" uses. Columns: file, split, class, x0, y0, x1, y1 in pixels of the picture, which is turned as its EXIF data say;
optional: set, flag (`ok`, `small`; `difficult` and `ignore`: neither object nor background), frame (number of a picture in a
sequence).

For classification (DatasetSpec.whole) the label is the class of the whole picture: either labels.csv with columns file,
class and split lists images/<class>/<file>, or there are class folders, ROOT/{train,test}/CLASS/* or ROOT/CLASS/*; of the
latter a tenth is the split "test".

If boxes.csv has no split "select", it is taken out of "train" (see selection.py); sequences, which have frame numbers, are
divided into contiguous stretches.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.data.datasets import DatasetSpec
from evburst.data.datasets.selection import SELECT, STRETCH, held_out, tenth
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.data.simulation.scenes.picture import IGNORE, Picture

Row = dict[str, str]
Files = dict[str, list[Row]]
"""Rows of boxes.csv by file."""


_SIDES = ("x0", "y0", "x1", "y1")
_NO_OBJECT = ("", "none")
"""Classes of a row that only says that its picture belongs to a split; it needs no box."""


def _read_rows(table: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a table.

    Raises:
        DataError: it cannot be read, lacks a column, has an object without a box, or has a picture in two splits.
    """
    splits: dict[tuple[str, str], str] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            for name in columns:
                if name not in (reader.fieldnames or ()):
                    raise DataError(f"{table}: column {name!r} is missing")
            for row in reader:
                where = f"{table}: line {reader.line_num}"
                if row["class"] not in _NO_OBJECT and "x0" in columns:
                    _check_box(where, row)
                known = splits.setdefault((row.get("set") or row["class"], row["file"]), row["split"])
                if known != row["split"]:
                    raise DataError(f"{where}: {row['file']} is in the splits {known!r} and {row['split']!r}; give it one")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a table of labels ({error})") from None


def _check_box(where: str, row: Row) -> None:
    """Raise DataError unless a row's box has four numbers and no negative side."""
    for name in _SIDES:
        if not _is_number(row[name]):
            raise DataError(f"{where}: {name} {row[name][:40]!r} is not a number")
    x0, y0, x1, y1 = (float(row[name]) for name in _SIDES)
    if x1 < x0 or y1 < y0:
        raise DataError(f"{where}: the box is {x1 - x0:g} px wide and {y1 - y0:g} px high: negative")


def _check_inside(path: Path, boxes: NDArray[np.float32], height: int, width: int) -> None:
    """Raise DataError if a box `(n, 4)` lies outside its picture."""
    outside = (boxes[:, :2] >= [width, height]).any(1) | (boxes[:, 2:] <= 0).any(1)
    if outside.any():
        corners = ", ".join(f"{value:g}" for value in boxes[int(outside.argmax())])
        raise DataError(
            f"{path}: the box {corners} (x0, y0, x1, y1) lies outside the picture of {width}x{height} px; correct boxes.csv, "
            "which refers to the picture as its EXIF data turn it"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read_table(table: Path) -> tuple[dict[str, dict[str, Files]], bool]:
    """Return the rows of boxes.csv by split, set and file, and whether sets are classes, so that there may be unlisted ones."""
    if not table.is_file():
        raise DataError(f"{table}: no such file; the root of a simulated dataset must contain boxes.csv and images/")
    found: dict[str, dict[str, Files]] = {}
    unlisted = False
    for row in _read_rows(table, ("file", "split", "class", *_SIDES)):
        unlisted = "set" not in row
        sets = found.setdefault(row["split"], {})
        sets.setdefault(row.get("set") or row["class"], {}).setdefault(row["file"], []).append(row)
    return found, unlisted


LABELS = "labels.csv"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_SACCADES_SENSOR = SensorSize(240, 180)


def _read_classes(root: Path) -> dict[str, dict[str, Files]]:
    """The pictures of labels.csv, or of class folders, by split, class and file; a row holds the class and where the
    picture is."""
    found: dict[str, dict[str, Files]] = {}

    def add(split: str, name: str, path: Path) -> None:
        row = {"class": name, "path": path.as_posix()}
        found.setdefault(split, {}).setdefault(name, {})[path.name] = [row]

    if (root / LABELS).is_file():
        for row in _read_rows(root / LABELS, ("file", "class", "split")):
            add(row["split"], row["class"], Path("images") / row["class"] / row["file"])
        return found
    split_folders = [name for name in ("train", "test") if (root / name).is_dir()]
    for split in split_folders or ["."]:
        for name, paths in _folders_of_pictures(root / split):
            for path in paths:
                place = path.relative_to(root)
                held = tenth(place.as_posix()) == 0
                add(split if split_folders else "test" if held else "train", name, place)
    return found


def _folders_of_pictures(root: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield name and sorted pictures of every folder that has any; hidden files and folders are skipped."""
    for folder in sorted(path for path in root.glob("*/") if path.is_dir() and not path.name.startswith(".")):
        paths = [p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith(".")]
        if paths:
            yield folder.name, sorted(paths)


def class_spec(root: Path, ignored: frozenset[str], classes: tuple[str, ...], size: SensorSize | None) -> DatasetSpec:
    """What a classifier tells apart in a folder of pictures.

    Args:
        root: the folder.
        ignored: classes that are left out.
        classes: those of a network, in the order of its outputs; empty: all that the folder has.
        size: (W, H) px of the sensor they are shown to; None for N-Caltech101's.

    Raises:
        DataError: there is no picture, or labels.csv lacks a column.
        ConfigError: none of the folder's classes is among `classes`.
    """
    own = sorted({name for sets in _read_classes(root).values() for name in sets} - ignored)
    if not own:
        raise DataError(f"{root}: no picture; expected {LABELS} and images/, or class folders of pictures")
    known = classes or tuple(own)
    if not set(own) & set(known):
        raise ConfigError(f"{root}: its classes are {', '.join(own)}; the network's are {', '.join(known)}")
    digest = hashlib.sha256(os.fsencode("/".join(known))).hexdigest()[:8]
    names = {name: index for index, name in enumerate(known) if name in own}
    return DatasetSpec(f"classes-{digest}", known, size or _SACCADES_SENSOR, "saccades", names, whole=True)


def _select_files(set_name: str, files: Files, chosen: bool) -> Files:
    """Return the training pictures of a set that belong to the split "select" (`chosen`), or those that do not."""
    groups: dict[str, list[str]] = {}
    for file, rows in files.items():
        frame = rows[0].get("frame") or ""
        groups.setdefault(f"stretch {int(frame) // STRETCH}" if frame.isdecimal() else file, []).append(file)
    held_groups = held_out(set_name, {name: len(members) for name, members in groups.items()})
    held = {file for name in held_groups for file in groups[name]}
    return {file: rows for file, rows in files.items() if (file in held) == chosen}


class PictureFolder:
    """The labelled pictures of one split, by set; a picture is read when it is requested.

    Args:
        root: the folder.
        split: as in boxes.csv, or "select".
        spec: the dataset's classes.

    Attributes:
        spec: the dataset's classes.
        sets: the sorted files of every set, each with its rows of boxes.csv.

    Raises:
        DataError: boxes.csv is missing, lacks a column, has a box that is none, or has no picture of the split.
    """

    def __init__(self, root: Path, split: str, spec: DatasetSpec) -> None:
        self._root, self.spec = root, spec
        if spec.whole:
            table, unlisted = root / LABELS, False
            found = {
                s: {name: own for name, own in sets.items() if name in spec.source_names}
                for s, sets in _read_classes(root).items()
            }
            split = split if split in found or split == SELECT else {"val": "test", "test": "val"}.get(split, split)
        else:
            table = root / "boxes.csv"
            found, unlisted = _read_table(table)
        rows = found.get(split, {})
        if split in ("train", SELECT) and SELECT not in found:
            rows = {name: _select_files(name, files, split == SELECT) for name, files in found.get("train", {}).items()}
            rows = {name: files for name, files in rows.items() if files}
        if not rows:
            known = ", ".join(sorted(found)) or "none"
            raise DataError(f"{table}: no picture of split {split!r} (splits with pictures: {known})")
        if split == "train" and unlisted:
            named = {name for sets in found.values() for name in sets}
            for name, paths in _folders_of_pictures(root / "images"):
                if name not in named:
                    rows[name] = {path.name: [] for path in paths}
        self.sets = {name: sorted(files.items()) for name, files in rows.items()}

    def digest(self, sets: Collection[str]) -> str:
        """Return a digest of the labels of these sets, and of the sizes and times of their pictures, of which none is read."""
        digest = hashlib.sha256()
        for name, files in self.sets.items():
            for file, rows in files if name in sets else ():
                state: tuple[int, ...] = ()
                with suppress(OSError):  # reading the picture says why
                    found = self._path(name, file, rows).stat()
                    state = found.st_size, found.st_mtime_ns
                digest.update(json.dumps([name, file, rows, state]).encode())
        return digest.hexdigest()

    def draw(self, set_name: str, rng: np.random.Generator) -> Picture:
        """Return a random picture of the set."""
        file, rows = self.sets[set_name][rng.integers(len(self.sets[set_name]))]
        return self._read(set_name, file, rows)

    def names(self, sets: Sequence[str] = ()) -> list[tuple[str, int]]:
        """Return (set, index) of every picture, in order: of those given sets that exist, or of all sets."""
        chosen = [name for name in sets if name in self.sets] or self.sets
        return [(name, k) for name in sorted(chosen) for k in range(len(self.sets[name]))]

    def get(self, set_name: str, number: int) -> Picture:
        """Return a picture by its index in its set."""
        return self._read(set_name, *self.sets[set_name][number])

    def _path(self, set_name: str, file: str, rows: list[Row]) -> Path:
        return self._root / (rows[0]["path"] if self.spec.whole else Path("images") / set_name / file)

    def _read(self, set_name: str, file: str, rows: list[Row]) -> Picture:
        path = self._path(set_name, file, rows)
        grey = None
        with suppress(OSError, cv2.error):  # of an empty file
            # Not imread, which on Windows opens no name with other letters than those of the system's language.
            grey = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise DataError(f"{path}: the picture is missing or unreadable")
        if self.spec.whole:
            boxes_xyxy = np.array([[0, 0, grey.shape[1], grey.shape[0]]], np.float32)
            label = np.array([self.spec.source_names[set_name]], np.int64)
            return Picture(f"{set_name}/{file}", np.asarray(grey, np.uint8), boxes_xyxy, label)
        labelled = [(row, self._label(row)) for row in rows]
        kept = [(row, label) for row, label in labelled if label is not None]
        boxes = np.array([[float(row[name]) for name in _SIDES] for row, _ in kept], np.float32).reshape(-1, 4)
        _check_inside(path, boxes, *grey.shape)
        return Picture(
            f"{set_name}/{file}",
            np.asarray(grey, np.uint8),
            boxes,
            np.array([label for _, label in kept], np.int64),
        )

    def _label(self, row: Row) -> int | None:
        name = row["class"]
        if name in self.spec.ignored_names:
            return IGNORE
        if name in self.spec.source_names and row.get("flag") in ("difficult", "ignore"):
            return IGNORE
        return self.spec.source_names.get(name)
