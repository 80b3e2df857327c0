"""A tiny folder of labelled pictures in the layout of simulated street data."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np

COLUMNS = ["set", "file", "width", "height", "split", "frame", "class", "x0", "y0", "x1", "y1", "flag"]


def street_folder(root: Path) -> Path:
    """Write five pictures with a bright car-sized block each, as boxes.csv and images/<set>/, and return the folder."""
    rng = np.random.default_rng(0)
    rows = []
    for split, n in (("train", 3), ("val", 2)):
        for k in range(n):
            image = rng.integers(60, 120, (240, 320), np.uint8)
            x, y = int(rng.integers(20, 180)), int(rng.integers(20, 120))
            image[y : y + 60, x : x + 90] = 230
            (root / "images" / "voc").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / "images" / "voc" / f"{split}{k}.png"), image)
            rows.append(["voc", f"{split}{k}.png", 320, 240, split, "", "car", x, y, x + 90, y + 60, "ok"])
    with (root / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root
