"""Blocks of simulated windows in the cache: words.npy, index.npy, boxes.npy and names.json of each, after its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data.encoding import Packed
from evburst.data.files import replacing


class Block(NamedTuple):
    """Consecutive windows.

    Attributes:
        words: their packed events.
        offsets: where each window begins in `words`, and where the last one ends.
        boxes: `(n, 6)` float32: number of the window in the block, x0, y0, x1, y1, label.
        names: the picture of each window.
    """

    words: Packed
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    names: list[str]


def _paths(folder: Path, number: int) -> list[Path]:
    """The files of a block, in the order of its attributes."""
    return [folder / f"{number:05d}_{what}" for what in ("words.npy", "index.npy", "boxes.npy", "names.json")]


def read_block(folder: Path, number: int) -> Block | None:
    """Read a block; None if a file is missing or damaged, or if the files disagree."""
    words_path, index_path, boxes_path, names_path = _paths(folder, number)
    try:
        names = json.loads(names_path.read_text(encoding="utf-8"))
        words = np.lib.format.open_memmap(words_path, mode="r")  # unlike np.load, never leaves the file open after an error
        with index_path.open("rb") as index_file, boxes_path.open("rb") as boxes_file:
            offsets, boxes = (np.lib.format.read_array(file) for file in (index_file, boxes_file))
        agree = offsets.shape == (len(names) + 1,) and offsets[-1] == len(words) and boxes.shape[1:] == (6,)
    except Exception:  # of NumPy, which raises errors of many classes if a file is damaged
        return None
    return Block(words, offsets, boxes, names) if agree else None


def write_block(folder: Path, number: int, block: Block) -> None:
    """Write the files of a block, each at once, so that several processes can write the same block and others read it.

    Raises:
        DataError: one cannot be written.
    """
    *array_paths, names_path = _paths(folder, number)
    with replacing(names_path) as part:
        part.write_text(json.dumps(block.names), encoding="utf-8")
    arrays: tuple[NDArray[Any], ...] = block.words, block.offsets, block.boxes
    for path, array in zip(array_paths, arrays, strict=True):
        with replacing(path) as part:
            np.save(part, array)
