"""Inference: the single path from a window of events to its result, shared by all commands.

    windows ──► binning ──► grids ──► network ──► boxes or a class ──► WindowResult
                thread                batches     (GridDetector)           (energy, latency)

`detect`, `live`, `evaluate`, the validation in `train` and the checks in `convert` all use `Inference`. Binning, idle windows,
events outside the sensor, boxes and energy are handled here and nowhere else. Callers differ only in where windows come from:
a recording (`Inference.stream`), a live source (`bin`, then `run`), or a data set (dataset_runs.py).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from evburst.app.worker import Worker
from evburst.data.boxes import Detections
from evburst.data.classification import Classification
from evburst.data.events import EventWindow, Faults, SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig, blocked_size, padded_size, pooled, voxel_histogram
from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.energy import COST_TABLES, HEADLINE, CostTable, EnergyReport, EnergyTotals
from evburst.models.detector import GridDetector
from evburst.models.graph import Memory
from evburst.models.tasks import Prediction

Stats = SpikeStats | ActivityStats
Maps = dict[str, NDArray[np.float32]]
Output = tuple[Prediction, Stats | None, Maps]

BATCH = 8
"""Number of windows per batch where latency does not matter."""

_AHEAD = 2
"""Number of windows binned in advance, in addition to the next batch."""


class GridNetwork(Protocol):
    """A network that turns grids into boxes or class scores: `models.detector.GridDetector`, or a network in training."""

    classes: tuple[str, ...]
    stride: int
    has_memory: bool

    def detect(
        self, grids: NDArray[np.uint8], sensor_size: SensorSize, t_us: Sequence[int]
    ) -> tuple[Sequence[Prediction], Stats | None]:
        """Return the prediction for each grid `(N, 2 * bins, H, W)` uint8, and the operation counts (None: not counted).

        Networks with memory also take a keyword `memory`, and those whose maps are kept, or of which only some windows are
        counted, `readouts` and `count`: see `GridDetector.detect`.
        """
        ...

    def dense_macs(self, height: int, width: int) -> int:
        """Return the multiply-accumulates of the ANN for one grid of this size."""
        ...


@dataclass(frozen=True)
class BinnedWindow:
    """A window's grid.

    Attributes:
        t0_us: start of the window on the recording's clock.
        t1_us: its end.
        grid: `(2 * bins, H, W)` uint8, padded.
        events: number of events on the sensor.
        outside: number of events outside the sensor, which were ignored.
        seconds: time spent on reading and binning; for a live source, time since the window's last event was available.
    """

    t0_us: int
    t1_us: int
    grid: NDArray[np.uint8]
    events: int
    outside: int
    seconds: float

    @classmethod
    def of(cls, window: EventWindow, voxel: VoxelConfig, sensor_size: SensorSize, grid: NDArray[np.uint8]) -> BinnedWindow:
        """Count a window's events into an empty grid."""
        started = time.perf_counter()
        events, outside = voxel_histogram(window, voxel, sensor_size, grid)
        return cls(window.t0_us, window.t1_us, grid, events, outside, time.perf_counter() - started)


@dataclass(frozen=True, eq=False, repr=False)
class WindowResult:
    """The result of one window.

    Attributes:
        t0_us: start of the window on the recording's clock.
        t1_us: its end.
        grid: `(2 * bins, H, W)` uint8, padded to the network's stride; reused for a later result, but not by the Python API.
        detections: boxes at the window's end, or ahead of it (`lead_ms`), in sensor pixels; empty for a classifier.
        events: number of the window's events on the sensor.
        idle: whether the window had too few events to be run through the network: no boxes, no energy.
        stats: spikes and operations by layer (for the ANN: activity, if it was counted); None if idle or not counted
            (`count_every`).
        totals: operation counts of this window alone, to be merged into those of a run.
        spikes: spikes of all neurons, counting every spike of a burst; None for the ANN or if not counted.
        spikes_per_neuron: mean number of spikes per neuron; None for the ANN or if not counted.
        timesteps: timesteps used; None for the ANN, 0 if idle.
        energy_pj: energy of the network that ran, by the selected energy table; 0 if idle, None if not counted.
        ann_energy_pj: energy of the dense ANN for the same window; 0 if idle, so that both networks count the same windows.
        latency_ms: time for binning, network, decoding and NMS of this window (or of its batch, if it has several).
        maps: the output maps from which boxes are decoded, `(C, h, w)` float32 each, by name; None unless requested.
        classification: class scores; None for a detector, or if the window was idle.
        outside: number of the window's events outside the sensor.
    """

    t0_us: int
    t1_us: int
    grid: NDArray[np.uint8]
    detections: Detections
    events: int
    idle: bool
    stats: Stats | None
    totals: EnergyTotals
    spikes: float | None
    spikes_per_neuron: float | None
    timesteps: int | None
    energy_pj: float | None
    ann_energy_pj: float
    latency_ms: float
    maps: Maps | None = None
    classification: Classification | None = None
    outside: int = 0

    @property
    def prediction(self) -> Prediction:
        """The class scores, or for a detector the boxes; no boxes if the window was idle."""
        return self.classification or self.detections

    @property
    def energy(self) -> EnergyReport | None:
        """The spiking network's energy for this window, compared with the dense ANN's and the quantised network's; None if the
        window was idle or not counted, or the ANN ran."""
        return self.totals.report() if isinstance(self.stats, SpikeStats) else None

    @property
    def events_per_s(self) -> float:
        """Event rate in the window."""
        return self.events / ((self.t1_us - self.t0_us) * 1e-6)

    def __repr__(self) -> str:
        boxes, scores = self.detections, self.classification
        found = f"{len(boxes)} boxes" if scores is None else f"class {scores.label}, score {scores.score:.2f}"
        energy = "energy not counted" if self.energy_pj is None else f"{self.energy_pj / 1e6:.3g} uJ"
        run = "idle" if self.idle else f"{found}, {energy}"
        return f"WindowResult({self.t0_us} to {self.t1_us} us, {self.events} events, {run})"


class Inference:
    """Runs the windows of one sensor through one network.

    Args:
        network: the network to run.
        voxel: how windows are binned.
        sensor_size: (W, H) px.
        faults: counter to which events outside the sensor are added; None: they are not reported.
        spiking: whether the network counts spikes; False for an ANN.
        table: energies per operation.
        idle_events: windows with at most this many events are idle and are not run through the network; -1: none is idle.
        maps: keep in each result the maps from which boxes are decoded; requires a GridDetector that is not adaptive.
        downsample: side of the square blocks of pixels that the network sees as one pixel. Grids and boxes of results remain in
            pixels of the sensor.
        count_every: spikes are counted in one of N windows that are run, beginning with the first; a batch is counted as a
            whole or not at all. The others have no energy.

    A network with memory runs windows one after the other; no window is idle, because objects that have been seen can be
    found without events. Memory is kept from a window to the next one as long as no more than a window's length lies between
    them, and lost otherwise: after a longer gap, and when a recording is wound back.

    Attributes:
        shape: `(2 * bins, H, W)` of a grid in pixels of the sensor, padded.
        seen_shape: the same of a grid as the network sees it.
    """

    def __init__(
        self,
        network: GridNetwork,
        voxel: VoxelConfig,
        sensor_size: SensorSize,
        faults: Faults | None = None,
        *,
        spiking: bool = True,
        table: CostTable = COST_TABLES[HEADLINE],
        idle_events: int = 0,
        maps: bool = False,
        downsample: int = 1,
        count_every: int = 1,
    ) -> None:
        self._count_every, self._ran, self._counted = count_every, 0, 0
        self._maps, self.downsample = maps, downsample
        self.network, self.voxel, self.sensor_size = network, voxel, sensor_size
        self.faults = Faults() if faults is None else faults
        self.spiking, self.table = spiking, table
        self.idle_events = -1 if network.has_memory else idle_events
        self._memory: Memory = {}
        self._end_us = 0
        self._seen = blocked_size(sensor_size, downsample)
        width, height = padded_size(self._seen, network.stride)
        self.shape = (voxel.channels, height * downsample, width * downsample)
        self.seen_shape = (voxel.channels, height, width)
        self._binning = voxel if downsample == 1 else replace(voxel, max_count=255)
        self.dense_macs = network.dense_macs(height, width)
        self.ann_pj = self.dense_macs * table.mac_pj

    def new_grid(self) -> NDArray[np.uint8]:
        """Return an empty grid: `(2 * bins, H, W)` uint8 in pixels of the sensor, padded."""
        return np.zeros(self.shape, np.uint8)

    def bin(self, window: EventWindow, grid: NDArray[np.uint8]) -> BinnedWindow:
        """Count a window's events into a grid from `new_grid`; those outside the sensor are a fault when `run` reports them."""
        return BinnedWindow.of(window, self._binning, self.sensor_size, grid)

    def warm_up(self, window: EventWindow, batch: int = 1) -> None:
        """Compile the kernels for the encoding of these events and let the network plan its memory; no fault is counted."""
        grid = self.new_grid()
        for _ in range(2):
            voxel_histogram(window, self._binning, self.sensor_size, grid)
            for count in (True,) if self._count_every == 1 else (True, False):
                self._predict(self.as_seen([grid] * batch, batch), [0] * batch, None, count)

    def begin(self) -> None:
        """Begin another recording: nothing is held, even if its clock continues that of the one before."""
        self._ran, self._counted, self._memory = 0, 0, {}  # another dict: a copy of this object keeps its own

    def run(self, batch: Sequence[BinnedWindow], size: int = 0) -> list[WindowResult]:
        """Return the results of windows that are run through the network as one batch.

        Args:
            batch: the windows.
            size: pad the batch to this size with empty grids, because an engine plans its memory for each size; 0: no padding.
        """
        if self.network.has_memory:
            size = 1
            if len(batch) > 1:
                return [result for binned in batch for result in self.run([binned])]
        started = time.perf_counter()
        busy = [binned for binned in batch if binned.events > self.idle_events]
        outputs = iter(self._detect(busy, max(size, len(busy))) if busy else [])
        seconds = time.perf_counter() - started
        results = []
        for binned in batch:
            self.faults.outside_sensor += binned.outside
            output = next(outputs) if binned.events > self.idle_events else None
            results.append(self._result(binned, output, binned.seconds + seconds))
        return results

    def stream(
        self, windows: Iterator[EventWindow], batch: int = 1, finite: bool = True
    ) -> Generator[WindowResult, None, None]:
        """Yield the results of all windows, in order; a result's grid is valid until the next result is requested.

        One thread reads and bins in advance while the network computes: both release Python's global lock.

        Args:
            windows: read in advance by the binning thread.
            batch: number of windows per batch.
            finite: whether `windows` end by themselves. Otherwise their source may be silent for ever, and a generator that is
                closed does not wait for the thread, which ends after the next window.

        Raises:
            Exception: from `windows`, after the results of the windows before it.
        """
        self.begin()
        ahead, waiting, failure = self._binned_ahead(windows, batch, finite), list[BinnedWindow](), None
        try:
            while True:
                try:
                    binned = next(ahead, None)
                except Exception as error:  # of any kind: `windows` may be a user's source
                    failure = error
                    break
                if binned is None:
                    break
                waiting.append(binned)
                if len(waiting) == batch:
                    yield from self.run(waiting, batch)
                    waiting.clear()
        finally:
            ahead.close()
        if waiting:
            yield from self.run(waiting, batch)
        if failure is not None:
            raise failure

    def _binned_ahead(self, windows: Iterator[EventWindow], batch: int, finite: bool) -> Generator[BinnedWindow, None, None]:
        worker, waiting = Worker("binning"), deque[Future[BinnedWindow | None]]()
        # Those of the batch in use, those binned ahead, and the one being binned.
        grids = cycle([self.new_grid() for _ in range(2 * batch + _AHEAD + 1)])
        voxel, size = self._binning, self.sensor_size  # not `self`: a thread that frees tensors as the program ends aborts it

        def bin_next(grid: NDArray[np.uint8]) -> BinnedWindow | None:
            window = next(windows, None)
            return None if window is None else BinnedWindow.of(window, voxel, size, grid)

        try:
            while True:
                while len(waiting) < batch + _AHEAD:
                    waiting.append(worker.submit(partial(bin_next, next(grids))))
                binned = waiting.popleft().result()
                if binned is None:
                    return
                yield binned
        finally:
            for future in waiting:
                future.cancel()
            worker.end(wait=finite)

    def _detect(self, batch: Sequence[BinnedWindow], size: int) -> list[Output]:
        """Return the prediction, counts and maps of each window, from a batch of `size` grids."""
        grids = self.as_seen([binned.grid for binned in batch], size)
        times = [binned.t1_us for binned in batch] + [0] * (size - len(batch))
        readouts: Maps = {}
        is_counted = self._counted * self._count_every <= self._ran
        self._ran += len(batch)
        self._counted += len(batch) * is_counted
        memory = self._memory_before(batch[0]) if self.network.has_memory else None
        predictions, stats = self._predict(grids, times, readouts if self._maps else None, is_counted, memory)
        if self.downsample > 1:
            predictions = [
                boxes.scaled(self.downsample, *self.sensor_size) if isinstance(boxes, Detections) else boxes
                for boxes in predictions
            ]
        each = [None if stats is None else stats.of_image(i) for i in range(len(batch))]
        maps = [{name: values[i] for name, values in readouts.items()} for i in range(len(batch))]
        return list(zip(predictions, each, maps, strict=False))

    def _memory_before(self, binned: BinnedWindow) -> Memory:
        """Return the memory of the window before, empty if there is none."""
        if not 0 <= binned.t0_us - self._end_us <= binned.t1_us - binned.t0_us:
            self._memory.clear()
        self._end_us = binned.t1_us
        return self._memory

    def _predict(
        self, grids: NDArray[np.uint8], times: Sequence[int], readouts: Maps | None, count: bool, memory: Memory | None = None
    ) -> tuple[Sequence[Prediction], Stats | None]:
        """Run the network on grids as it sees them; see `GridNetwork.detect`."""
        options: dict[str, Any] = {} if count else {"count": False}
        options |= {name: own for name, own in (("readouts", readouts), ("memory", memory)) if own is not None}
        return self.network.detect(grids, self._seen, times, **options)

    def as_seen(self, grids: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
        """Return grids from `bin` as the network sees them, `(size, 2 * bins, H, W)` uint8: downsampled, and followed by empty
        ones up to `size`."""
        if size == 1 and self.downsample == 1:
            return grids[0][None]
        seen = np.zeros((size, *self.seen_shape), np.uint8)
        for grid, target in zip(grids, seen, strict=False):
            if self.downsample == 1:
                target[:] = grid
            else:
                pooled(grid, self.downsample, self.voxel.max_count, target)
        return seen

    def _result(self, binned: BinnedWindow, output: Output | None, seconds: float) -> WindowResult:
        """Return the window's result from the network's output, which is None if the window was idle."""
        prediction, stats, maps = output or (Detections.empty(binned.t1_us), None, {})
        totals, idle = EnergyTotals(self.dense_macs), output is None
        energy_pj: float | None = 0.0 if idle else self.ann_pj
        spikes, per_neuron, timesteps = (0.0, 0.0, 0) if self.spiking and idle else (None, None, None)
        if idle:
            totals.add_idle()
        elif isinstance(stats, SpikeStats):
            totals.add(stats)
            energy = totals.report()
            energy_pj, timesteps = energy.energies(self.table.name).snn_pj or 0.0, round(energy.timesteps or 0)
            spikes, per_neuron = energy.spikes or 0.0, energy.spikes_per_neuron or 0.0
        else:
            totals.add_uncounted(1)
            if self.spiking:
                energy_pj = None
                timesteps = self.network.timesteps if isinstance(self.network, GridDetector) else None
        return WindowResult(
            t0_us=binned.t0_us,
            t1_us=binned.t1_us,
            grid=binned.grid,
            detections=prediction if isinstance(prediction, Detections) else Detections.empty(binned.t1_us),
            events=binned.events,
            idle=idle,
            stats=stats,
            totals=totals,
            spikes=spikes,
            spikes_per_neuron=per_neuron,
            timesteps=timesteps,
            energy_pj=energy_pj,
            ann_energy_pj=0.0 if idle else self.ann_pj,
            latency_ms=1000 * seconds,
            maps=maps or None,
            classification=prediction if isinstance(prediction, Classification) else None,
            outside=binned.outside,
        )
