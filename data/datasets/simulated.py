"""Windows simulated from labelled pictures: computed once in parallel, cached as events, with random access.

The root is a PictureFolder. Window i of a split is a pure function of (root's pictures, configuration, length, seed, i), so the
cache can be deleted at any time. Its folders are named after all of these, so that changed labels or pictures have new windows.
For training, pictures are drawn at random, up to four per scene; for validation and evaluation, every picture is shown once,
alone. A scene has one window, or with `sequence` several consecutive ones: windows 0 to L - 1 are the first scene, L to 2 L - 1
the second.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec, LabelledWindow, Part, evenly_spread
from evburst.data.datasets.blocks import Block, read_block, write_block
from evburst.data.datasets.class_windows import whole_window
from evburst.data.datasets.pictures import PictureFolder
from evburst.data.encoding import pack
from evburst.data.errors import ConfigError, DataError, require_all, require_within
from evburst.data.events import Events, EventWindow, SensorSize
from evburst.data.simulation.scenes import Scene, record
from evburst.data.simulation.scenes.picture import IGNORE
from evburst.data.simulation.scenes.saccades import SACCADE_US, SaccadeConfig, SaccadeScene
from evburst.data.simulation.scenes.stills import StillScene, StillSceneConfig
from evburst.data.simulation.sensor import SimulatorConfig

_BLOCK = 64
_VERSION = 5


@dataclass(frozen=True)
class SimulatedConfig:
    """Settings of simulated datasets.

    Attributes:
        sets: relative frequency of each set of pictures in training; sets that are not named are not used. Empty: every
            picture equally often.
        val_sets: the sets used for validation; empty: all.
        step_ms: time between rendered frames.
        min_side_px: minimum width and height of a labelled box.
        min_visible: minimum visible fraction of a labelled box.
        min_events: minimum number of events per pixel, beyond noise, of a labelled object (and never fewer than 20).
        uneven: see `draw_sensor`, in training.
        drive: motion of pictures in training for specs with the scene "drive"; outside training, StillSceneConfig's defaults,
            or these settings for sequences.
        saccades: the same for "saccades".
        sequence: number of consecutive windows of a scene, a power of two up to 64, to evaluate networks with memory. With more
            than one, objects keep their labels while they stand still, from the first window in which they can be seen.
    """

    sets: dict[str, float] = field(default_factory=dict)
    val_sets: tuple[str, ...] = ()
    step_ms: float = 5.0
    min_side_px: float = 8.0
    min_visible: float = 0.35
    min_events: float = 0.04
    uneven: float = 0.0
    drive: StillSceneConfig = field(default_factory=StillSceneConfig)
    saccades: SaccadeConfig = field(default_factory=SaccadeConfig)
    sequence: int = 1

    def __post_init__(self) -> None:
        require_within(self, step_ms=(0.1, 1000), min_visible=(0, 1))
        least = {"min_side_px": self.min_side_px, "min_events": self.min_events, "uneven": self.uneven}
        checks = {
            "sets must be numbers that are not negative, one of them above 0": all(
                0 <= share < math.inf for share in self.sets.values()
            )
            and (not self.sets or max(self.sets.values()) > 0),
            **{f"{name} must be a number that is not negative": 0 <= value < math.inf for name, value in least.items()},
            f"sequence must be a power of two, 1 to {_BLOCK}": self.sequence >= 1 and _BLOCK % self.sequence == 0,
        }
        require_all(checks, self)


def draw_sensor(rng: np.random.Generator, uneven: float) -> SimulatorConfig:
    """Draw the properties of a sensor from the range of real sensors and their bias settings.

    Args:
        rng: random generator.
        uneven: maximum additional ratio of OFF to ON threshold, beyond the usual spread (natural log).
    """
    threshold = float(np.exp(rng.uniform(np.log(0.12), np.log(0.5))))
    off = threshold * rng.uniform(0.65, 1.15)
    return SimulatorConfig(
        threshold_on=threshold,
        threshold_off=off * float(np.exp(rng.uniform(-uneven, uneven))) if uneven else off,
        mismatch=threshold * rng.uniform(0.05, 0.25),
        refractory_us=float(np.exp(rng.uniform(np.log(50), np.log(1500)))),
        cutoff_hz=0.0 if rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(60), np.log(600)))),
        leak_hz=rng.uniform(0, 0.3),
        shot_hz=float(np.exp(rng.uniform(np.log(0.02), np.log(1.5)))),
    )


def simulate_scene(
    folder: PictureFolder, config: SimulatedConfig, window_us: int, rng: np.random.Generator, number: int | None
) -> list[LabelledWindow]:
    """Simulate the `config.sequence` labelled windows of one scene, from [0, window_us) on, as packed events.

    Args:
        folder: the pictures.
        config: how they are shown.
        window_us: length of a window.
        rng: draws the motion, the sensor and (in training) the pictures.
        number: index of the picture to show, alone; None draws pictures for training.
    """
    spec = folder.spec
    single = number is not None
    if number is not None:  # Beyond the last picture the first ones are shown again, with other motion.
        names = folder.names(config.val_sets)
        pictures = [folder.get(*names[number % len(names)])]
    else:
        sets = [name for name in config.sets if name in folder.sets] or sorted(folder.sets)
        weights = np.array([config.sets.get(name, len(folder.sets[name])) for name in sets], float)
        several = 4 if spec.scene == "drive" else 1
        pictures = [folder.draw(rng.choice(sets, p=weights / weights.sum()), rng) for _ in range(several)]
    scene: Scene
    start_us = 0
    if spec.scene == "saccades":
        shown = SaccadeConfig(vary=False) if single else config.saccades
        scene = SaccadeScene(pictures[0], spec.sensor_size, shown, rng)
        start_us = int(rng.integers(3)) * SACCADE_US
        if not single and rng.random() < 0.5:
            start_us += int(rng.integers(SACCADE_US))
    else:
        in_motion = config.drive if config.sequence > 1 else StillSceneConfig()
        shown_drive = replace(in_motion, mosaic=0.0) if single else config.drive
        scene = StillScene(pictures, spec.sensor_size, shown_drive, rng, spec.source_names.get("person", 0))
    seed = int(rng.integers(1 << 31))
    sensor = draw_sensor(rng, 0.0 if single else config.uneven)
    events = record(scene, sensor, start_us, start_us + config.sequence * window_us, round(config.step_ms * 1000), seed)
    events["t"] -= start_us
    if spec.whole:
        boxes = whole_window(int(pictures[0].labels[0]), spec.sensor_size, window_us)
        return [LabelledWindow(EventWindow(0, window_us, pack(events)), boxes, pictures[0].name)]
    labeller = _Labeller(spec.sensor_size, config, (sensor.leak_hz + sensor.shot_hz) * window_us * 1e-6)
    windows = []
    for t0_us in range(0, config.sequence * window_us, window_us):
        first, last = np.searchsorted(events["t"], [t0_us, t0_us + window_us])
        shown_events, boxes = labeller.label(events[first:last], scene.boxes(start_us + t0_us + window_us))
        window = EventWindow(t0_us, t0_us + window_us, pack(shown_events))
        windows.append(LabelledWindow(window, replace(boxes, t_us=window.t1_us), pictures[0].name))
    return windows


class _Labeller:
    """Labels consecutive windows of a scene.

    Args:
        size: (W, H) px.
        config: minimum sizes and events of labelled objects.
        noise: number of events per pixel and window that the sensor makes by itself.
    """

    def __init__(self, size: SensorSize, config: SimulatedConfig, noise: float) -> None:
        self._size, self._config, self._noise = size, config, noise
        self._seen: set[int] = set()

    def label(self, events: Events, boxes: Detections) -> tuple[Events, Detections]:
        """Clip the boxes to the sensor, drop objects that cannot have been seen, and remove the events of ignored regions.

        An object can be seen if it has `config.min_events` more events per pixel than the sensor's noise, in this window or
        in an earlier one of the sequence.
        """
        size, config = self._size, self._config
        clipped = np.clip(boxes.boxes_xyxy, 0, [*size, *size]).astype(np.float32)
        sides = clipped[:, 2:] - clipped[:, :2]
        share = sides.prod(1) / np.maximum((boxes.boxes_xyxy[:, 2:] - boxes.boxes_xyxy[:, :2]).prod(1), 1)
        is_visible = (sides.min(1, initial=np.inf) >= config.min_side_px) & (share >= config.min_visible)
        pixels = events["y"].astype(np.int64) * size.width + events["x"]
        activity = np.bincount(pixels, minlength=size.width * size.height).reshape(size.height, size.width)
        numbers = boxes.track_ids
        for index in np.flatnonzero(is_visible & (boxes.labels != IGNORE)):
            x0, y0, x1, y1 = clipped[index].astype(int)
            area, number = (x1 - x0) * (y1 - y0), -1 if numbers is None else int(numbers[index])
            fires = activity[y0:y1, x0:x1].sum() - self._noise * area >= max(20, config.min_events * area)
            if fires and number > 0:
                self._seen.add(number)
            is_visible[index] = fires or number in self._seen
        blank = np.zeros(activity.shape, bool)
        for index in np.flatnonzero(boxes.labels == IGNORE):
            x0, y0, x1, y1 = clipped[index].astype(int)
            blank[y0:y1, x0:x1] = True
        keep = is_visible & (boxes.labels != IGNORE)
        for x0, y0, x1, y1 in clipped[keep].astype(int):
            blank[y0:y1, x0:x1] = False
        visible_boxes = Detections(clipped[keep], boxes.scores[keep], boxes.labels[keep], boxes.t_us)
        return events[~blank[events["y"], events["x"]]], visible_boxes


class SimulatedWindows:
    """A Dataset of simulated windows of one split, read from the cache.

    Args:
        root: folder with boxes.csv and images/.
        spec: classes, and how the pictures move.
        config: settings of the simulation.
        window_us: length of a window.
        split: as in boxes.csv, or "select" (see PictureFolder). "train" draws pictures; other splits show each one alone.
        n_windows: number of windows, rounded down to whole scenes; 0 for one scene per picture, in splits other than "train".
        cache: folder for the events; 8 bytes each, about 300 kB per window.
        seed: seed of all randomness.
        workers: number of processes that simulate (0: one per core).
        progress: called with the number of windows created so far.
        spread: use `n_windows` pictures chosen evenly from the split, instead of the first ones.

    Attributes:
        left_out: sets of pictures of this split that are not shown, because the configuration does not name them.

    Raises:
        DataError: the root or a picture is missing or malformed.
    """

    def __init__(
        self,
        root: Path,
        spec: DatasetSpec,
        config: SimulatedConfig,
        window_us: int,
        split: str,
        n_windows: int,
        cache: Path,
        seed: int = 0,
        workers: int = 0,
        progress: Callable[[int], object] = lambda done: None,
        spread: bool = False,
    ) -> None:
        self.spec = spec
        self._window_us = window_us
        folder = PictureFolder(root, split, spec)
        names = folder.names(config.val_sets)
        pictures = len(names)
        shown = {name for name, _ in names} if split != "train" else set(config.sets) & set(folder.sets) or set(folder.sets)
        self.left_out = tuple(sorted(set(folder.sets) - shown))
        self._per_scene = config.sequence
        if config.sequence > 1 and not spec.has_sequences:
            raise ConfigError("data.simulated.sequence: pictures that are shown in saccades have no sequences; leave it at 1")
        scenes = max(1, n_windows // config.sequence) if n_windows else pictures
        numbers = evenly_spread(pictures, scenes) if spread and 0 < scenes < pictures else None
        n_windows = scenes * config.sequence
        labels = sorted(spec.source_names.items()), sorted(spec.ignored_names)
        shown_as = [spec.name, list(spec.sensor_size), *labels]
        key = [_VERSION, _BLOCK, str(root.resolve()), folder.digest(shown), shown_as, asdict(config), window_us, split, seed]
        identity = json.dumps(key + ([numbers] if numbers else []), sort_keys=True)
        self._folder = cache / hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "config.json").write_text(identity, encoding="utf-8", errors="backslashreplace")
        n_blocks = -(-n_windows // _BLOCK)
        self._blocks = {block: found for block in range(n_blocks) if (found := read_block(self._folder, block))}
        missing = [block for block in range(n_blocks) if block not in self._blocks]
        if missing:
            make_block = partial(_make_block, root, spec, config, window_us, split, seed, self._folder, numbers)
            with ProcessPoolExecutor(_processes(workers), get_context("spawn"), _begin_worker) as pool:
                for done, _ in enumerate(pool.map(make_block, missing)):
                    progress((n_blocks - len(missing) + done + 1) * _BLOCK)
        self._n = n_windows
        for block in missing:
            made = read_block(self._folder, block)
            if made is None:
                raise DataError(f"{self._folder}: windows that were just written cannot be read; is the disk damaged?")
            self._blocks[block] = made

    def delete(self) -> None:
        """Delete the windows from the cache; this object can no longer be read."""
        self._blocks.clear()  # Windows deletes no file that is mapped
        shutil.rmtree(self._folder, ignore_errors=True)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> LabelledWindow:
        if not 0 <= i < self._n:
            raise IndexError(i)
        number, k = divmod(i, _BLOCK)
        block = self._blocks[number]
        first, last = block.offsets[k : k + 2]
        rows = block.boxes[block.boxes[:, 0] == k]
        scores, labels = np.ones(len(rows), np.float32), rows[:, 5].astype(np.int64)
        t0_us = i % self._per_scene * self._window_us
        boxes = Detections(rows[:, 1:5].astype(np.float32), scores, labels, t0_us + self._window_us)
        window = EventWindow(t0_us, t0_us + self._window_us, block.words[first:last])
        return LabelledWindow(window, boxes, block.names[k])

    def labels(self, i: int) -> Detections:
        """See Dataset."""
        return self[i].boxes

    def start_us(self, i: int) -> None:
        """See Dataset."""
        return

    def faults_of(self, i: int) -> dict[str, int]:
        """See Dataset."""
        return {}

    def parts(self) -> list[Part]:
        """See Dataset. Each block is one Part."""
        firsts = range(0, self._n, _BLOCK)
        return [Part(f"windows_{first:06d}", range(first, min(first + _BLOCK, self._n)), self._folder.name) for first in firsts]


def _processes(workers: int) -> int:
    """Return the number of processes: as given, or one per core; on Windows, which can wait for no more, at most 61."""
    wanted = workers or os.cpu_count() or 1
    return min(wanted, 61) if sys.platform == "win32" else wanted


def end_with_parent() -> None:
    """Make a worker process exit when its parent is killed, instead of waiting for work forever; used as its initialiser."""

    def wait_for_parent() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait_for_parent, daemon=True).start()


def _begin_worker() -> None:
    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)  # a network may be learning from other windows meanwhile
    end_with_parent()


def _make_block(
    root: Path,
    spec: DatasetSpec,
    config: SimulatedConfig,
    window_us: int,
    split: str,
    seed: int,
    folder: Path,
    numbers: list[int] | None,
    block: int,
) -> None:
    """Simulate one block of windows and write it.

    A block is always simulated as a whole, so that a larger dataset can extend it, unless `numbers` selects the windows.
    """
    cv2.setNumThreads(1)
    numba.set_num_threads(1)
    pictures = PictureFolder(root, split, spec)
    words: list[NDArray[np.uint32]] = []
    rows: list[list[float]] = []
    names: list[str] = []
    offsets = [0]
    per_block = _BLOCK // config.sequence
    own = slice(block * per_block, (block + 1) * per_block)
    scene_numbers = range(own.start, own.stop) if numbers is None else numbers[own]
    for number in scene_numbers:
        rng = np.random.default_rng([seed, number])
        for item in simulate_scene(pictures, config, window_us, rng, None if split == "train" else number):
            words.append(item.window.words)
            rows += [[len(names), *box, label] for box, label in zip(item.boxes.boxes_xyxy, item.boxes.labels, strict=True)]
            names.append(item.name)
            offsets.append(offsets[-1] + len(item.window))
    boxes = np.array(rows, np.float32).reshape(-1, 6)
    write_block(folder, block, Block(np.concatenate(words), np.array(offsets), boxes, names))
