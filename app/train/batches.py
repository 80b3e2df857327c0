"""Batches of augmented training windows, prepared in a thread or in processes while the network learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from evburst.app.train.config import TrainConfig
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import Dataset
from evburst.data.datasets.augment import AugmentConfig, augment
from evburst.data.errors import ConfigError
from evburst.data.representations.voxel_grid import voxel_batch

_AHEAD = 4
"""Number of batches prepared in advance, by each process."""

_LEAST_SHOWN = 512
"""Number of windows that an epoch shows at least, by passes over fewer ones, unless settings say otherwise."""

Opener = Callable[[int], Dataset]
"""Returns the training windows of an epoch. Called in several processes, so it can be pickled; it is called again only when
the epoch changes."""


class Batch(NamedTuple):
    """One process's share of a batch.

    Attributes:
        grids: `(N, 2 * bins, H, W)` counts: uint8 if processes prepare the batches, else float32, channels last.
        boxes_xyxy: `(M, 4)` boxes of all windows, in pixels.
        labels: `(M,)` int64, classes of the boxes; of a classifier one per window.
        grid_index: `(M,)` int64, the grid that each box belongs to.
    """

    grids: Tensor
    boxes_xyxy: Tensor
    labels: Tensor
    grid_index: Tensor


class Batches:
    """Batches of a run's training windows, epoch by epoch.

    A batch depends on the seed, the epoch and its position only, however it is prepared: in one thread of this process, or in
    `schedule.loaders` processes, which keep a GPU busy.

    Args:
        opened: returns the windows of an epoch; see Opener.
        n_windows: number of windows of an epoch.
        config: settings of the run.
        task: DETECTION or CLASSIFICATION.
        stride: the sides of the grids are multiples of it.
        rank, world: number of this process, and of all processes.
        begin: called with the number of an epoch before any of its batches is prepared.

    Raises:
        ConfigError: there are too few windows for one batch, or a batch has fewer windows than there are processes.
    """

    def __init__(
        self,
        opened: Opener,
        n_windows: int,
        config: TrainConfig,
        task: str,
        stride: int,
        rank: int = 0,
        world: int = 1,
        begin: Callable[[int], object] = lambda epoch: None,
    ) -> None:
        if n_windows < config.schedule.batch:
            raise ConfigError(
                f"schedule.batch {config.schedule.batch}: there are only {n_windows} windows to learn from; set it lower"
            )
        if config.schedule.batch < world:
            raise ConfigError(
                f"schedule.batch {config.schedule.batch}: fewer windows than the {world} processes; set it higher"
            )
        self._work = _Work(opened, n_windows, config, task, stride, rank, world)
        self._epochs, self._loaders, self._begin = config.schedule.epochs, config.schedule.loaders, begin
        self._rest: Iterator[Batch] = iter(())
        self._next_epoch = -1

    def __len__(self) -> int:
        """Number of batches in an epoch; incomplete batches are left out."""
        return len(self._work)

    def of_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield an epoch's batches. The first batches of the epoch that follows are prepared before this one ends."""
        if epoch != self._next_epoch:
            self._rest = self._all_from(epoch)
        self._next_epoch = epoch + 1
        yield from islice(self._rest, len(self))

    def _all_from(self, first: int) -> Iterator[Batch]:
        places = self._places(first)
        if self._loaders:
            loader: DataLoader[Batch] = DataLoader(
                self._work,
                batch_size=None,
                sampler=places,  # type: ignore[arg-type]  # any iterable, and it is read lazily
                num_workers=self._loaders,
                prefetch_factor=_AHEAD,
                multiprocessing_context="spawn",
                worker_init_fn=_use_one_thread,
                pin_memory=torch.cuda.is_available(),
            )
            yield from loader
            return
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(self._work.__getitem__, place) for place in islice(places, _AHEAD)]
            while pending:
                yield pending.pop(0).result()
                pending += [pool.submit(self._work.__getitem__, place) for place in islice(places, 1)]

    def _places(self, first: int) -> Iterator[tuple[int, int]]:
        for epoch in range(first, self._epochs):
            self._begin(epoch)
            for number in range(len(self)):
                yield epoch, number


def _use_one_thread(_: int) -> None:
    torch.set_num_threads(1)
    numba.set_num_threads(1)


@dataclass
class _Work(TorchDataset[Batch]):
    """A run's batches by (epoch, number), as DataLoader expects them; the fields are those of Batches."""

    opened: Opener
    n_windows: int
    config: TrainConfig
    task: str
    stride: int
    rank: int
    world: int

    def __len__(self) -> int:
        s = self.config.schedule
        wanted = min(s.windows or _LEAST_SHOWN, _LEAST_SHOWN)
        return self.n_windows // s.batch * (s.passes or max(1, math.ceil(wanted / self.n_windows)))

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        epoch, number = place
        s, windows = self.config.schedule, self.opened(epoch)
        done, row = divmod(number, self.n_windows // s.batch)
        order = np.random.default_rng([s.seed, epoch, done]).permutation(self.n_windows)
        return self._collate(windows, order[row * s.batch : (row + 1) * s.batch], epoch, done)

    def _augmentation(self, epoch: int) -> AugmentConfig:
        change, s = self.config.augment, self.config.schedule
        if self.task == CLASSIFICATION:
            change = replace(change, mosaic=0.0)  # a mosaic of four windows would have four classes
        if epoch >= s.epochs - s.plain_epochs:
            change = replace(change, mosaic=0.0, zoom=0.0, stretch=0.0, erase=0.0, rotate=0.0, shake=0.0)
        return change

    def _collate(self, windows: Dataset, numbers: NDArray[np.int64], epoch: int, done: int) -> Batch:
        c, size, change = self.config, windows.spec.sensor_size, self._augmentation(epoch)
        changed, found = [], []
        for i in numbers[self.rank :: self.world]:
            rng = np.random.default_rng([c.schedule.seed, epoch, done, int(i)])
            others = rng.integers(0, len(windows), 3).tolist() if change.mosaic else []
            window, boxes = augment([windows[int(k)] for k in (i, *others)], size, change, rng)
            changed.append(window)
            found.append(boxes)
        grids = torch.from_numpy(voxel_batch(changed, c.voxel, size, self.stride))
        if not c.schedule.loaders:  # in this thread, during the previous step
            grids = grids.contiguous(memory_format=torch.channels_last).float()
        return Batch(
            grids,
            torch.from_numpy(np.concatenate([boxes.boxes_xyxy for boxes in found])),
            torch.from_numpy(np.concatenate([boxes.labels for boxes in found])),
            torch.from_numpy(np.concatenate([np.full(len(boxes), k) for k, boxes in enumerate(found)])),
        )
