"""Folders of labelled pictures: `boxes.csv` and `images/`.

Two layouts: with a column `set` the picture is images/<set>/<file>; without one it is images/<class>/<file>, and folders
that boxes.csv never names hold pictures with nothing to find, which only the split "train" draws. Columns: file, split, class,
x0, y0, x1, y1 in pixels of the picture; optional: set, flag (`ok`, `small`; `difficult` and `ignore`: neither object nor background),
frame (number of a picture in a sequence).

Where boxes.csv names no split "select" it is taken out of "train" (see selection.py); of sequences, which have frame numbers, whole stretches.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.data.datasets import DatasetSpec
from evburst.data.datasets.selection import SELECT, held_out
from evburst.data.errors import DataError

IGNORE = -1
"""Label of a box that is neither object nor background."""
_STRETCH = 32
"""Consecutive frames of a sequence, which look much the same and stay together."""


@dataclass(frozen=True)
class Picture:
    """A labelled photograph.

    Attributes:
        name: `<set>/<file>`.
        grey: `(H, W)` uint8.
        boxes_xyxy: `(n, 4)` float32 in its pixels.
        labels: `(n,)` int64; IGNORE for what is neither object nor background.
    """

    name: str
    grey: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


Row = dict[str, str]
Files = dict[str, list[Row]]
"""Rows of boxes.csv by file."""


def _read_table(table: Path) -> tuple[dict[str, dict[str, Files]], bool]:
    """Rows of boxes.csv by split, set and file, and whether sets are classes, so that there may be unlisted ones."""
    found: dict[str, dict[str, Files]] = {}
    unlisted = False
    try:
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                unlisted = "set" not in row
                sets = found.setdefault(row["split"], {})
                sets.setdefault(row.get("set") or row["class"], {}).setdefault(row["file"], []).append(row)
    except FileNotFoundError:
        raise DataError(f"{table}: no such file; the root of a simulated dataset holds boxes.csv and images/") from None
    except KeyError as column:
        raise DataError(f"{table}: column {column} is missing") from None
    return found, unlisted


def _share(set_name: str, files: Files, chosen: bool) -> Files:
    """The training pictures of a set that belong to the split "select" (`chosen`), or those that do not."""
    groups: dict[str, list[str]] = {}
    for file, rows in files.items():
        frame = rows[0].get("frame") or ""
        groups.setdefault(f"stretch {int(frame) // _STRETCH}" if frame.isdigit() else file, []).append(file)
    groups_held = held_out(set_name, {name: len(members) for name, members in groups.items()})
    held = {file for name in groups_held for file in groups[name]}
    return {file: rows for file, rows in files.items() if (file in held) == chosen}


class PictureFolder:
    """The labelled pictures of one split, by set; a picture is read when asked for.

    Args:
        root: the folder.
        split: as in boxes.csv, or "select".
        spec: what is looked for.

    Attributes:
        spec: what is looked for.
        sets: for every set its files, sorted, each with its rows of boxes.csv.

    Raises:
        DataError: boxes.csv is missing, lacks a column, or has no picture of the split.
    """

    def __init__(self, root: Path, split: str, spec: DatasetSpec) -> None:
        self._root, self.spec = root, spec
        found, unlisted = _read_table(root / "boxes.csv")
        rows = found.get(split, {})
        if split in ("train", SELECT) and SELECT not in found:
            rows = {name: _share(name, files, split == SELECT) for name, files in found.get("train", {}).items()}
            rows = {name: files for name, files in rows.items() if files}
        if not rows:
            raise DataError(f"{root / 'boxes.csv'}: no picture of split {split!r}")
        if split == "train" and unlisted:
            named = {name for sets in found.values() for name in sets}
            for folder in sorted((root / "images").glob("*/")):
                if folder.name not in named:
                    rows[folder.name] = {path.name: [] for path in folder.iterdir()}
        self.sets = {name: sorted(files.items()) for name, files in rows.items()}

    def draw(self, set_name: str, rng: np.random.Generator) -> Picture:
        """A picture of the set, at random."""
        file, rows = self.sets[set_name][rng.integers(len(self.sets[set_name]))]
        return self._read(set_name, file, rows)

    def names(self, sets: list[str] | None = None) -> list[tuple[str, int]]:
        """(set, number) of every picture, in order: of the given sets that there are, or of all."""
        chosen = [name for name in sets or [] if name in self.sets] or self.sets
        return [(name, k) for name in sorted(chosen) for k in range(len(self.sets[name]))]

    def get(self, set_name: str, number: int) -> Picture:
        """A picture by its place in its set."""
        return self._read(set_name, *self.sets[set_name][number])

    def _read(self, set_name: str, file: str, rows: list[Row]) -> Picture:
        path = self._root / "images" / set_name / file
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise DataError(f"{path}: no such picture, or not a picture")
        labelled = [(row, self._label(row)) for row in rows]
        kept = [(row, label) for row, label in labelled if label is not None]
        boxes = [[float(row[name]) for name in ("x0", "y0", "x1", "y1")] for row, _ in kept]
        return Picture(
            f"{set_name}/{file}",
            np.asarray(grey, np.uint8),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array([label for _, label in kept], np.int64),
        )

    def _label(self, row: Row) -> int | None:
        name = row["class"]
        if name in self.spec.ignored_names:
            return IGNORE
        if name in self.spec.source_names and row.get("flag") in ("difficult", "ignore"):
            return IGNORE
        return self.spec.source_names.get(name)
