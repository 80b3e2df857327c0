"""Windows simulated from labelled pictures: made once in parallel, kept as sparse grids in a cache, read at random.

The root holds `boxes.csv` (columns set, file, split, class, x0, y0, x1, y1, flag) and `images/<set>/<file>`. Window i of a
split is a pure function of (root's pictures, configuration, seed, i): the cache can be thrown away at any time.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from data.boxes import Detections
from data.datasets import SPECS, DatasetSpec
from data.errors import DataError
from data.events import EventWindow, SensorSize
from data.representations.voxel_grid import VoxelConfig, voxel_histogram
from data.scenes import record
from data.scenes.stills import IGNORE, Picture, StillScene, StillSceneConfig
from data.simulator import SimulatorConfig

_BLOCK = 64


@dataclass(frozen=True)
class SimulatedConfig:
    """What is simulated.

    Attributes:
        root: folder with boxes.csv and images/.
        spec: name in data.datasets.SPECS.
        sets: how often each set of pictures is drawn (relative).
        step_ms: time between rendered frames.
        min_side_px: smaller boxes are not labelled.
        min_visible: share of a box that must be in view to be labelled.
        scene: how the pictures are moved.
    """

    root: str = ""
    spec: str = "street"
    sets: dict[str, float] = field(
        default_factory=lambda: {"voc": 0.42, "camvid": 0.24, "highway": 0.1, "kaggle": 0.1, "carla": 0.14}
    )
    step_ms: float = 5.0
    min_side_px: float = 8.0
    min_visible: float = 0.35
    scene: StillSceneConfig = field(default_factory=StillSceneConfig)


class PictureFolder:
    """The labelled pictures of one split, by set; pictures are read when asked for."""

    def __init__(self, root: Path, split: str, spec: DatasetSpec) -> None:
        self._root, self._spec = root, spec
        rows: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
        table = root / "boxes.csv"
        try:
            with table.open(newline="") as file:
                for row in csv.DictReader(file):
                    if row["split"] == split:
                        rows[row["set"]][row["file"]].append(row)
        except FileNotFoundError:
            raise DataError(f"{table}: no such file; the root of a simulated dataset holds boxes.csv and images/") from None
        except KeyError as column:
            raise DataError(f"{table}: column {column} is missing") from None
        if not rows:
            raise DataError(f"{table}: no picture of split {split!r}")
        self.sets = {name: sorted(files.items()) for name, files in rows.items()}

    def draw(self, set_name: str, rng: np.random.Generator) -> Picture:
        """A picture of the set, at random."""
        file, rows = self.sets[set_name][rng.integers(len(self.sets[set_name]))]
        path = self._root / "images" / set_name / file
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if grey is None:
            raise DataError(f"{path}: no such picture, or not a picture")
        labelled = [(row, self._label(row)) for row in rows]
        kept = [(row, label) for row, label in labelled if label is not None]
        boxes = [[float(row[name]) for name in ("x0", "y0", "x1", "y1")] for row, _ in kept]
        return Picture(
            np.asarray(grey, np.uint8),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array([label for _, label in kept], np.int64),
        )

    def _label(self, row: dict[str, str]) -> int | None:
        name, flag = row["class"], row["flag"]
        if name in self._spec.ignored_names or (name in self._spec.source_names and flag in ("difficult", "ignore")):
            return IGNORE
        return self._spec.source_names.get(name)


def draw_sensor(rng: np.random.Generator) -> SimulatorConfig:
    """A sensor with properties drawn over what real ones and their bias settings show."""
    threshold = float(np.exp(rng.uniform(np.log(0.12), np.log(0.5))))
    return SimulatorConfig(
        threshold_on=threshold,
        threshold_off=threshold * rng.uniform(0.65, 1.15),
        mismatch=threshold * rng.uniform(0.05, 0.25),
        refractory_us=float(np.exp(rng.uniform(np.log(50), np.log(1500)))),
        cutoff_hz=0.0 if rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(60), np.log(600)))),
        leak_hz=rng.uniform(0, 0.3),
        shot_hz=float(np.exp(rng.uniform(np.log(0.02), np.log(1.5)))),
    )


def simulate_window(
    folder: PictureFolder, config: SimulatedConfig, voxel: VoxelConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Detections]:
    """One labelled window: the grid `(2 * bins, H, W)` uint8, and the boxes at its end."""
    spec = SPECS[config.spec]
    names = [name for name in config.sets if name in folder.sets]
    weights = np.array([config.sets[name] for name in names])
    pictures = [folder.draw(rng.choice(names, p=weights / weights.sum()), rng) for _ in range(4)]
    scene = StillScene(pictures, spec.sensor_size, config.scene, rng)
    seed = int(rng.integers(1 << 31))
    events = record(scene, draw_sensor(rng), 0, voxel.window_us, round(config.step_ms * 1000), seed)
    grid = np.zeros((voxel.channels, spec.sensor_size.height, spec.sensor_size.width), np.uint8)
    voxel_histogram(EventWindow(0, voxel.window_us, events), voxel, spec.sensor_size, grid)
    return grid, _label(grid, scene.boxes(voxel.window_us), spec.sensor_size, config)


def _label(grid: NDArray[np.uint8], boxes: Detections, size: SensorSize, config: SimulatedConfig) -> Detections:
    """Clip the boxes to the sensor, leave out what cannot be seen, and blank the ignored regions of `grid`."""
    clipped = np.clip(boxes.boxes_xyxy, 0, [*size, *size]).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(1) / np.maximum((boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]).prod(1), 1)
    seen = (sides.min(1) >= config.min_side_px) & (share >= config.min_visible)
    activity = grid.sum(0, dtype=np.int32)
    for index in np.flatnonzero(seen & (boxes.labels != IGNORE)):
        x0, y0, x1, y1 = clipped[index].astype(int)
        seen[index] = activity[y0:y1, x0:x1].sum() >= max(20, 0.03 * (x1 - x0) * (y1 - y0))
    blank = np.zeros(activity.shape, bool)
    for index in np.flatnonzero(boxes.labels == IGNORE):
        x0, y0, x1, y1 = clipped[index].astype(int)
        blank[y0:y1, x0:x1] = True
    keep = seen & (boxes.labels != IGNORE)
    for x0, y0, x1, y1 in clipped[keep].astype(int):
        blank[y0:y1, x0:x1] = False
    grid[:, blank] = 0
    return Detections(clipped[keep], boxes.scores[keep], boxes.labels[keep], boxes.t_us)


class SimulatedWindows:
    """Labelled windows of one split, from the cache; `len` and `[i]` -> (grid, boxes).

    Args:
        config: what is simulated.
        voxel: the representation.
        split: as in boxes.csv.
        n_windows: how many.
        cache: folder for the sparse grids; about 100 kB a window.
        seed: of everything random.
        workers: processes that simulate.
        progress: called with the number of windows made so far.

    Raises:
        DataError: the root or a picture is missing or malformed.
    """

    def __init__(
        self,
        config: SimulatedConfig,
        voxel: VoxelConfig,
        split: str,
        n_windows: int,
        cache: Path,
        seed: int = 0,
        workers: int = 0,
        progress: Callable[[int], object] = lambda done: None,
    ) -> None:
        self.spec = SPECS[config.spec]
        self._voxel = voxel
        identity = json.dumps([_BLOCK, asdict(config), asdict(voxel), split, seed], sort_keys=True)
        self._folder = cache / hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "config.json").write_text(identity)
        n_blocks = -(-n_windows // _BLOCK)
        missing = [block for block in range(n_blocks) if not self._path(block).exists()]
        if missing:
            PictureFolder(Path(config.root), split, self.spec)  # fail here, not in a worker
            make = partial(_make_block, config, voxel, split, seed, self._folder)
            with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
                for done, _ in enumerate(pool.map(make, missing)):
                    progress((n_blocks - len(missing) + done + 1) * _BLOCK)
        self._n = n_windows
        self._blocks = [np.load(self._path(block), mmap_mode="r") for block in range(n_blocks)]
        self._offsets = [np.load(self._path(block, "index")) for block in range(n_blocks)]
        self._boxes = [np.load(self._path(block, "boxes")) for block in range(n_blocks)]

    def _path(self, block: int, what: str = "cells") -> Path:
        return self._folder / f"{block:05d}_{what}.npy"

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], Detections]:
        if not 0 <= i < self._n:
            raise IndexError(i)
        block, k = divmod(i, _BLOCK)
        first, last = self._offsets[block][k : k + 2]
        cells = self._blocks[block][first:last]
        size = self.spec.sensor_size
        grid = np.zeros((self._voxel.channels, size.height, size.width), np.uint8)
        grid.reshape(-1)[cells >> 8] = cells & 255
        rows = self._boxes[block][self._boxes[block][:, 0] == k]
        boxes = Detections(rows[:, 1:5].astype(np.float32), np.ones(len(rows), np.float32), rows[:, 5].astype(np.int64))
        return grid, boxes


def _make_block(config: SimulatedConfig, voxel: VoxelConfig, split: str, seed: int, folder: Path, block: int) -> None:
    """Simulate one block of windows and write it; `cells` last, so that its presence means the block is whole."""
    cv2.setNumThreads(1)
    numba.set_num_threads(1)
    pictures = PictureFolder(Path(config.root), split, SPECS[config.spec])
    cells, rows, offsets = [], [], [0]
    for k in range(_BLOCK):
        rng = np.random.default_rng([seed, block * _BLOCK + k])
        grid, boxes = simulate_window(pictures, config, voxel, rng)
        where = np.flatnonzero(grid).astype(np.uint32)
        cells.append(where << 8 | grid.reshape(-1)[where])
        offsets.append(offsets[-1] + len(where))
        rows += [[k, *box, label] for box, label in zip(boxes.boxes_xyxy, boxes.labels, strict=True)]
    np.save(folder / f"{block:05d}_index.npy", np.array(offsets))
    np.save(folder / f"{block:05d}_boxes.npy", np.array(rows, np.float32).reshape(-1, 6))
    part = folder / f"{block:05d}_cells.part.npy"
    np.save(part, np.concatenate(cells))
    part.rename(folder / f"{block:05d}_cells.npy")
