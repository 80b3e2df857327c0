"""Windows of a training run: the split "select", and for every epoch the windows to learn from."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evburst.app.console import absolute_progress
from evburst.app.processes import barrier
from evburst.app.train.config import TrainConfig
from evburst.data.classification import DETECTION
from evburst.data.datasets import Dataset
from evburst.data.datasets.pictures import PictureFolder, class_spec
from evburst.data.datasets.registry import Request, open_dataset, spec_of
from evburst.data.datasets.simulated import SimulatedWindows
from evburst.data.errors import ConfigError, EvburstError

_SEEDS = 100_003
"""Difference between the seeds of two epochs' windows."""


def open_split(config: TrainConfig, task: str, split: str, n_windows: int, show_progress: bool) -> Dataset:
    """Open windows of a split; missing ones are simulated.

    Raises:
        EvburstError: the data cannot be used.
    """
    with tqdm(desc=f"simulate {split}", unit="win", disable=not show_progress) as bar:
        request = _request(config, task, split, n_windows, config.schedule.seed, progress=absolute_progress(bar))
        return open_dataset(config.data, request)


def has_split(config: TrainConfig, task: str, split: str) -> bool:
    """Return whether the data of a run have windows of a split; nothing is simulated to find out."""
    data, root = config.data, Path(config.data.root)
    try:
        if data.kind == "simulated":
            spec = spec_of(data) if task == DETECTION else class_spec(root, frozenset(data.classes), (), None)
            PictureFolder(root, split, spec)
        else:
            open_dataset(data, _request(config, task, split, 1, config.schedule.seed))
    except EvburstError:
        return False
    return True


def _request(config: TrainConfig, task: str, split: str, n_windows: int, seed: int, **others: Any) -> Request:
    workers, cache = config.schedule.workers, Path(config.cache)
    return Request(split, config.voxel.window_us, n_windows, cache, seed, workers, task=task, **others)


class EpochWindows:
    """Opens the training windows of an epoch: the same ones for all epochs, or new ones if `schedule.fresh`.

    New windows are simulated one epoch ahead, in the first process, while the others wait for them; windows of epochs gone by
    are deleted. Copies in other processes only open what has been simulated.

    Args:
        config: settings of the run.
        task: DETECTION or CLASSIFICATION.
        first: the windows of the first epoch, from `open_split`.
        rank, world: number of this process, and of all processes.

    Raises:
        ConfigError: the windows are to be fresh, but are not simulated.
    """

    def __init__(self, config: TrainConfig, task: str, first: Dataset, rank: int = 0, world: int = 1) -> None:
        if config.schedule.fresh and config.data.kind != "simulated":
            raise ConfigError(f"schedule.fresh: only simulated windows can be new, not those of data.kind {config.data.kind!r}")
        self._config, self._task, self._rank, self._world = config, task, rank, world
        self._opened = {0: first}
        opened: Future[Dataset] = Future()
        opened.set_result(first)
        self._simulating = {0: opened}
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, epoch: int) -> Dataset:
        """Return the windows of an epoch, which `begin` has prepared in the first process."""
        number = epoch if self._config.schedule.fresh else 0
        if number not in self._opened:
            self._opened = {number: self._open(number)}
        return self._opened[number]

    def begin(self, epoch: int) -> None:
        """Wait until an epoch's windows have been simulated, and let those of the next one be simulated meanwhile."""
        if not self._config.schedule.fresh:
            return
        if self._rank == 0:
            self._pool = self._pool or ThreadPoolExecutor(1)
            for number in range(epoch, min(epoch + 2, self._config.schedule.epochs)):
                if number not in self._simulating:
                    self._simulating[number] = self._pool.submit(self._open, number)
            self._simulating[epoch].result()
            for number in [n for n in self._simulating if n < epoch - 1]:  # processes may still open those of epoch - 1
                windows = self._simulating.pop(number).result()
                assert isinstance(windows, SimulatedWindows)
                windows.delete()
        barrier(self._world)

    def _open(self, number: int) -> Dataset:
        s = self._config.schedule
        return open_dataset(self._config.data, _request(self._config, self._task, "train", s.windows, s.seed + number * _SEEDS))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_simulating": {}, "_pool": None}
