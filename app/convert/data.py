"""The windows that a conversion uses: of the training's data, of another folder, or of recordings without labels.

The network learns from the split "train"; choices are made on "select" (data/datasets/selection.py), and the result is
measured on "val", or on "test" of recordings with a class each.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from evburst.app.console import absolute_progress, show_progress
from evburst.app.convert.config import ConvertConfig
from evburst.app.recordings import find_recordings
from evburst.app.runs import block_side
from evburst.app.train.config import TrainConfig
from evburst.data.datasets import Dataset, DatasetSpec
from evburst.data.datasets.recorded import Reading, unlabelled_windows
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset, reported_split
from evburst.data.datasets.simulated import SimulatedWindows
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.data.readers import DEFAULT_OPTIONS
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.tasks import CLASSIFICATION, task_of

UNLABELLED = "recordings without labels"
"""Name of such data in records."""
_SEED_STEP = 1_000_000
"""Distance between the seeds of conversions; it exceeds every number of a showing."""
_LOG = logging.getLogger(__name__)


class ConversionData:
    """Windows and grids for the conversion of one network.

    Args:
        config: settings of the conversion.
        settings: settings of the network's training.
        head: the network's head.
        stride: sides of grids are multiples of it.
        trained_size: (W, H) px of the sensor that it was trained on; None: unknown.

    Attributes:
        fresh: whether every showing of the data is different, as in a simulation.
        reported_split: the split on which results are measured.
    """

    def __init__(
        self, config: ConvertConfig, settings: TrainConfig, head: HeadSpec, stride: int, trained_size: SensorSize | None
    ) -> None:
        self._config, self._settings, self._head, self._stride = config, settings, head, stride
        out = os.fsencode(Path(config.out).resolve())
        self._own = Path(config.cache) / f"descent-{hashlib.sha256(out).hexdigest()[:16]}"
        self._trained_size = trained_size
        self.fresh = settings.data.kind == "simulated" and not config.unlabelled
        self.reported_split = reported_split(settings.data, task_of(head).name)

    def windows(self, split: str, n: int, showing: int = 0, once: bool = False) -> Dataset:
        """Open windows of a split.

        Args:
            split: e.g. "select".
            n: number of windows; 0: all.
            showing: for simulated data, each number shows the same pictures with different motion and noise.
            once: simulate them for this conversion alone, which deletes them (`discard`, `discard_all`).

        Raises:
            DataError: the data cannot be used.
        """
        c, s = self._config, self._settings
        if c.unlabelled:
            return self._unlabelled_windows(split, n)
        data: DatasetConfig = replace(s.data, root=c.root) if c.root else s.data
        task = task_of(self._head).name
        classes = self._head.classes if task == CLASSIFICATION else ()  # a detector's data define their own
        seed = s.schedule.seed + _SEED_STEP * c.seed + showing
        with tqdm(desc=f"windows of {split}", unit="win", disable=showing > 0 or not show_progress()) as bar:
            progress = absolute_progress(bar)
            cache = self._own if once else Path(c.cache)
            request = Request(split, s.voxel.window_us, n, cache, seed, progress=progress, task=task, classes=classes)
            try:
                opened = open_dataset(data, request)
            except DataError as error:
                if split == "train" and c.root and _has_recordings(c.root):
                    raise DataError(f"{error}; to use the recordings in {c.root} without labels, pass --unlabelled") from None
                if not c.root and not Path(data.root).is_dir():
                    raise DataError(
                        f"{error}; this is the folder of the training: pass another one with --calibration"
                    ) from None
                raise
        left_out = getattr(opened, "left_out", ())
        if left_out and showing == 0:
            _LOG.info(
                "split %r: pictures of %s are left out; data.simulated does not name these sets", split, ", ".join(left_out)
            )
        return opened

    def grids(self, windows: Dataset, index: Sequence[int]) -> Tensor:
        """Bin the windows with these indices into grids `(N, 2 * bins, H, W)` float32."""
        return self.counts(windows, index).float()

    def counts(self, windows: Dataset, index: Sequence[int]) -> Tensor:
        """Return `grids` as uint8."""
        items = [windows[i].window for i in index]
        size = windows.spec.sensor_size
        return torch.from_numpy(voxel_batch(items, self._settings.voxel, size, self._stride, self.block(size)))

    def block(self, sensor_size: SensorSize) -> int:
        """Return the side of the blocks of pixels in which the network sees a sensor, as in detect."""
        return block_side(0, sensor_size, self._trained_size)

    def discard(self, windows: Dataset) -> None:
        """Delete windows that were opened `once`."""
        if isinstance(windows, SimulatedWindows):
            windows.delete()

    def discard_all(self) -> None:
        """Delete what is left of windows that were opened `once`, also by an earlier run with the same `--out`."""
        shutil.rmtree(self._own, ignore_errors=True)

    def _unlabelled_windows(self, split: str, n: int) -> Dataset:
        size = SensorSize.of_setting(self._config.sensor_size)
        options = self._config.reading if self._config.reading != DEFAULT_OPTIONS else self._settings.data.reading
        reading = Reading(self._settings.voxel.window_us, size, cache=Path(self._config.cache), options=options)
        spec = DatasetSpec(UNLABELLED, self._head.classes, size or SensorSize(1, 1), "", {})
        return unlabelled_windows(find_recordings([self._config.root]), spec, reading, split, n)


def _has_recordings(folder: str) -> bool:
    try:
        return Path(folder).exists() and bool(find_recordings([folder]))
    except ConfigError:
        return False
