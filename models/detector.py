"""A network as it is used: grids in, boxes or class scores and spike counts out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.errors import CheckpointError, ConfigError
from evburst.data.events import SensorSize
from evburst.data.stats import ActivityStats, MemoryGeometry, SpikeStats
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.graph import Memory, Runner
from evburst.models.runtime import ENGINES, choose, open_engine
from evburst.models.spiking.adaptive import each_timestep, run_adaptive
from evburst.models.spiking.cost import dense_macs, memory_geometry
from evburst.models.spiking.integer_form import is_integer
from evburst.models.spiking.network import SpikingNetwork
from evburst.models.tasks import Prediction, task_of


class GridDetector:
    """Grids in; out come boxes, or of a classifier class scores (models/tasks).

    Args:
        bundle: the weights.
        post: score, NMS and number of boxes; not used by a classifier.
        ann: run the ANN instead of the spiking network.
        timesteps: T; None for what the weights were calibrated for.
        device: cpu or cuda.
        engine: how the spiking network is run, see models/runtime.
        adaptive: stop the timesteps of a window once it has settled this far (see models/spiking/adaptive.py); None: never.
        count_every: spikes will be counted in every N-th window, for which `auto` chooses the engine; None: as is the default
            of the engine. The caller of `detect` selects these windows.

    `adaptive` takes one grid a call, and is run by the reference engine. Threads may share a detector; their calls run one
    after the other, because engines reuse their buffers.

    Attributes:
        timesteps: T; None for the ANN.
        count_every: as above, resolved.
        has_memory: whether boxes depend on earlier windows, so that windows have to follow each other.

    Raises:
        ConfigError: the engine cannot run this network, or a network with memory is to have several timesteps.
    """

    def __init__(
        self,
        bundle: Bundle,
        post: PostConfig,
        ann: bool = False,
        timesteps: int | None = None,
        device: str = "cpu",
        engine: str = "auto",
        adaptive: float | None = None,
        count_every: int | None = 1,
    ) -> None:
        self.bundle, self.post, self.device = bundle, post, torch.device(device)
        self.classes, self.stride, self.task = bundle.head.classes, bundle.stride, task_of(bundle.head)
        self.has_memory = bool(bundle.graph.memories)
        self._adaptive, self._lock = adaptive, Lock()
        self._geometries: dict[tuple[int, int, int], MemoryGeometry] = {}
        self._ann = Runner(bundle.graph.on(self.device)) if ann else None
        timesteps = resolve_timesteps(bundle, ann, timesteps)
        self.timesteps = None if ann else timesteps
        self.engine = resolve_engine(bundle, ann, timesteps, self.device.type, engine, adaptive, count_every)
        self.count_every = 1 if ann else count_every or ENGINES[self.engine].count_every
        self._spiking = None if ann else self._open(timesteps)

    def _open(self, timesteps: int) -> SpikingNetwork:
        parameters = replace(self.bundle.parameters.on(self.device), timesteps=timesteps)
        graph, max_count = self.bundle.spiking.on(self.device), self.bundle.voxel.max_count
        return open_engine(self.engine, graph, parameters, max_count, self.device.type)

    @property
    def _snn(self) -> SpikingNetwork:
        if self._spiking is None:
            raise ConfigError("ann: the ANN has no timesteps: make the detector of the spiking network")
        return self._spiking

    def detect(
        self,
        grids: NDArray[np.uint8],
        sensor_size: SensorSize,
        t_us: Sequence[int],
        readouts: dict[str, NDArray[np.float32]] | None = None,
        count: bool = True,
        memory: Memory | None = None,
    ) -> tuple[Sequence[Prediction], SpikeStats | ActivityStats | None]:
        """What is found in each grid, and the spikes it took (None for the ANN, or if not counted).

        Args:
            grids: `(N, 2 * bins, H, W)` uint8, padded to the stride.
            sensor_size: (W, H) px, to which boxes are clipped.
            t_us: the instant of each grid: its window's end.
            readouts: filled with copies of the maps that are decoded, `(N, C, h, w)` each, by name (not if `adaptive`).
            count: whether spikes and operations are counted (always if `adaptive`).
            memory: what the network remembers of each sequence's window before, replaced by what it remembers of these grids;
                None: nothing. See `has_memory`.

        Raises:
            CheckpointError: the weights are damaged.
            ConfigError: several grids, if `adaptive`; or this process was forked after its parent had run a network.
        """
        if self._adaptive is not None and len(grids) != 1:
            raise ConfigError(f"adaptive: {len(grids)} grids in one call; timesteps adapt to one grid: pass one a call")
        _refuse_forked_process()
        x = torch.from_numpy(grids).to(self.device)
        with self._lock:  # until the outputs, which may be the engine's buffers, have been decoded and copied
            if self._adaptive is not None and self._ann is None:
                decode = self._decoder(sensor_size, t_us)
                found, stats = run_adaptive(self._snn, x, self._adaptive, decode, self.task.settled)
                return [found], stats
            maps, own = self._run(x, count, memory)
            if readouts is not None:
                copies = (output.float().cpu().numpy().copy() for output in maps)
                readouts.update(zip(self.bundle.graph.outputs, copies, strict=True))
            return self._decoded(maps, sensor_size, t_us), own

    def _run(self, x: Tensor, count: bool, memory: Memory | None) -> tuple[list[Tensor], SpikeStats | ActivityStats | None]:
        """Compute the maps of grids, valid until the next run, and the spikes that they took; see `detect`."""
        if self._ann is not None:
            return self._ann(x.float(), memory), None
        if count:
            return self._snn.run(x, memory)
        return self._snn.run_uncounted(x, memory), None

    def _decoded(self, maps: list[Tensor], sensor_size: SensorSize, t_us: Sequence[int]) -> Sequence[Prediction]:
        """What is found in maps; raises CheckpointError if one is not finite."""
        for name, output in zip(self.bundle.graph.outputs, maps, strict=True):
            # A finite sum proves that all are finite, at a tenth of the time of looking at each. NumPy's sum waits for no other
            # thread: torch's would, for a core that bins the next window.
            with np.errstate(all="ignore"):
                total = output.sum() if output.is_cuda else output.numpy().sum()
            if not (np.isfinite(float(total)) or torch.isfinite(output).all()):
                raise CheckpointError(f"output {name!r} of the network is NaN or infinite: its weights are damaged")
        return self.task.decode(maps, self.bundle.head, self.post, sensor_size, t_us)

    def step_by_step(self, grid: NDArray[np.uint8], sensor_size: SensorSize) -> list[Prediction]:
        """What is found in one grid `(1, 2 * bins, H, W)` after each timestep."""
        x = torch.from_numpy(grid).to(self.device)
        with self._lock:
            return [found for found, _ in each_timestep(self._snn, x, self._decoder(sensor_size, [0]))]

    def _decoder(self, sensor_size: SensorSize, t_us: Sequence[int]) -> Callable[[list[Tensor]], Prediction]:
        return lambda maps: self._decoded(maps, sensor_size, t_us)[0]

    def memory_geometry(self, channels: int, height: int, width: int) -> MemoryGeometry:
        """Sizes that memory traffic depends on, for one grid of this size; computed once."""
        size = channels, height, width
        if size not in self._geometries:
            graph = self.bundle.spiking if self.bundle.converted else self.bundle.graph
            self._geometries[size] = memory_geometry(graph, *size)
        return self._geometries[size]

    def dense_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the ANN for one grid of this size."""
        return sum(dense_macs(self.bundle.graph, self.bundle.voxel.channels, height, width).values())


def resolve_timesteps(bundle: Bundle, ann: bool, timesteps: int | None) -> int:
    """Return the number of timesteps, 1 for the ANN; raises ConfigError for several of a network with memory."""
    resolved = 1 if ann else timesteps or bundle.parameters.timesteps
    if bundle.graph.memories and resolved > 1:
        raise ConfigError("timesteps: a network with memory has one timestep per window; pass --timesteps 1")
    return resolved


def resolve_engine(
    bundle: Bundle, ann: bool, timesteps: int, device: str, engine: str, adaptive: float | None, count_every: int | None
) -> str:
    """Return the name of the engine; raises ConfigError if it cannot run this network on this device. See `GridDetector`."""
    is_whole = ann or is_integer(bundle.spiking, bundle.parameters)
    return choose(engine if adaptive is None else "reference", device, timesteps, is_whole, count_every)


_first_run_in: int | None = None
"""Number of the process in which the first network ran."""


def _refuse_forked_process() -> None:
    """Raise ConfigError in a process that was forked after a network had run, if GNU OpenMP runs the kernels.

    It would end the process, and who waits for a result would wait for ever.
    """
    global _first_run_in
    own = os.getpid()
    if _first_run_in not in (None, own) and _forks_are_ended():
        raise ConfigError(
            "this process was forked after its parent had run a network, so that OpenMP would end it: start processes with "
            'multiprocessing.get_context("spawn")'
        )
    _first_run_in = own


def _forks_are_ended() -> bool:
    """Whether parallel kernels run on GNU OpenMP, which ends processes that are forked after it was used."""
    try:
        from numba.np.ufunc.omppool import openmp_vendor

        return bool(openmp_vendor == "GNU" and numba.threading_layer() == "omp")
    except (ImportError, ValueError):  # it is not there, or no parallel kernel has run
        return False
