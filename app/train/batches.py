"""Batches of augmented training windows, prepared in a thread while the network learns."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.app.train.config import TrainConfig
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import Dataset
from evburst.data.datasets.augment import AugmentConfig, augment
from evburst.data.representations.voxel_grid import voxel_batch

_AHEAD = 4
"""Number of batches prepared in advance."""


class Batch(NamedTuple):
    """One process's share of a batch.

    Attributes:
        grids: `(N, 2 * bins, H, W)` float32, channels last.
        boxes_xyxy: `(M, 4)` boxes of all windows, in pixels.
        labels: `(M,)` int64, classes of the boxes; of a classifier one per window.
        grid_index: `(M,)` int64, the grid that each box belongs to.
    """

    grids: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    grid_index: Tensor


class Batches:
    """Batches of a run's training windows.

    Args:
        windows: the training windows.
        config: settings of the run.
        task: DETECTION or CLASSIFICATION.
        stride: the sides of the grids are multiples of it.
        rank, world: number of this process, and of all processes.
    """

    def __init__(self, windows: Dataset, config: TrainConfig, task: str, stride: int, rank: int, world: int) -> None:
        self._windows, self._config, self._task, self._stride = windows, config, task, stride
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        """Number of batches in an epoch; incomplete batches are left out."""
        return len(self._windows) // self._config.schedule.batch

    def of_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield an epoch's batches; order and augmentation depend on the seed and the epoch only."""
        s = self._config.schedule
        order = np.random.default_rng([s.seed, epoch]).permutation(len(self._windows))
        numbers = order[: len(self) * s.batch].reshape(-1, s.batch)
        change = self._augmentation(epoch)
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(self._collate, row, epoch, change) for row in numbers[:_AHEAD]]
            for number in range(len(numbers)):
                yield pending.pop(0).result()
                if number + _AHEAD < len(numbers):
                    pending.append(pool.submit(self._collate, numbers[number + _AHEAD], epoch, change))

    def _augmentation(self, epoch: int) -> AugmentConfig:
        change, s = self._config.augment, self._config.schedule
        if self._task == CLASSIFICATION:
            change = replace(change, mosaic=0.0)  # a mosaic of four windows would have four classes
        if epoch >= s.epochs - s.plain_epochs:
            change = replace(change, mosaic=0.0, zoom=0.0, stretch=0.0, erase=0.0, rotate=0.0, shake=0.0)
        return change

    def _collate(self, numbers: NDArray[np.int64], epoch: int, change: AugmentConfig) -> Batch:
        c, size = self._config, self._windows.spec.sensor_size
        windows, found = [], []
        for i in numbers[self._rank :: self._world]:
            rng = np.random.default_rng([c.schedule.seed, epoch, int(i)])
            others = rng.integers(0, len(self._windows), 3).tolist() if change.mosaic else []
            window, boxes = augment([self._windows[int(k)] for k in (i, *others)], size, change, rng)
            windows.append(window)
            found.append(boxes)
        grids = torch.from_numpy(voxel_batch(windows, c.voxel, size, self._stride))
        return Batch(
            grids.contiguous(memory_format=torch.channels_last).float(),  # in this thread, during the previous step
            torch.from_numpy(np.concatenate([boxes.boxes_xyxy for boxes in found])),
            torch.from_numpy(np.concatenate([boxes.labels for boxes in found])),
            torch.from_numpy(np.concatenate([np.full(len(boxes), k) for k, boxes in enumerate(found)])),
        )
