"""Labelled photographs, which scenes move and data sets read from folders (data/datasets/pictures.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE = -1
"""Label of a box that is neither object nor background."""


@dataclass(frozen=True)
class Picture:
    """A labelled photograph.

    Attributes:
        name: `<set>/<file>`.
        grey: `(H, W)` uint8.
        boxes_xyxy: `(n, 4)` float32 in pixels of the picture.
        labels: `(n,)` int64; IGNORE for regions that are neither object nor background.
    """

    name: str
    grey: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
