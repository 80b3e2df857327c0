"""From a window to its result: the one way events reach a network, whoever asks.

    windows ──► binning ──► grids ──► network ──► boxes or a class ──► WindowResult
                thread                batches     (Detector)           (energy, latency)

`detect`, `live`, `evaluate`, the validation of `train` and the checks of `convert` all go through `Inference`: binning, windows
left out as idle, events outside the sensor, boxes and energy are decided here and nowhere else. Callers differ in where windows
come from: a recording (`Inference.stream`), a live source (`bin`, then `run`), or a data set (`over_dataset`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.classification import Classification
from evburst.data.datasets import Dataset
from evburst.data.errors import ConfigError, EvburstError
from evburst.data.events import EventWindow, Faults, SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig, padded_size, pooled, voxel_histogram
from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.energy import COST_TABLES, HEADLINE, CostTable, EnergyReport, EnergyTotals, energy_report
from evburst.models.detector import Detector
from evburst.models.tasks import Found

Stats = SpikeStats | ActivityStats
Maps = dict[str, NDArray[np.float32]]
Answer = tuple[Found, Stats | None, Maps]

BATCH = 8
"""Windows computed together where latency does not matter."""

_AHEAD = 2
"""Windows binned ahead, besides the next batch."""


class GridNetwork(Protocol):
    """What turns grids into boxes or class scores: `models.detector.Detector`, or a network in training."""

    classes: tuple[str, ...]
    stride: int

    def detect(
        self, grids: NDArray[np.uint8], sensor_size: SensorSize, t_us: Sequence[int]
    ) -> tuple[Sequence[Found], Stats | None]:
        """What is found in each grid `(N, 2 * bins, H, W)` uint8, and what was counted (None: nothing)."""
        ...

    def dense_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the ordinary network for one grid of this size."""
        ...


@dataclass(frozen=True)
class BinnedWindow:
    """A window's grid.

    Attributes:
        t0_us, t1_us: the window on the recording's clock.
        grid: `(2 * bins, H, W)` uint8, padded.
        events: how many lie on the sensor.
        outside: how many do not, and were left out.
        seconds: how long reading and binning took; live, since the window's last event could be had.
    """

    t0_us: int
    t1_us: int
    grid: NDArray[np.uint8]
    events: int
    outside: int
    seconds: float


@dataclass(frozen=True)
class WindowResult:
    """What is known of one window.

    Attributes:
        t0_us, t1_us: the window on the recording's clock.
        grid: `(2 * bins, H, W)` uint8, padded to the network's stride; reused after the next result unless copied.
        detections: boxes at the window's end, in sensor pixels; none of a classifier.
        events: events of the window that lie on the sensor.
        idle: the window had too few events and did not go through the network: no boxes, no energy.
        stats: spikes and operations layer by layer (of the ANN: activity, where it was counted); None if idle or not counted.
        energy: the spiking network's account of this window, beside the dense ANN's and the quantised network's; None if
            idle or the ANN ran.
        spikes: spikes of all neurons, bursts with multiplicity; None for the ANN.
        spikes_per_neuron: their mean over neurons; None for the ANN.
        timesteps: timesteps used; None for the ANN, 0 if idle.
        energy_pj: energy of the network that ran, in the table that was asked for; 0 if idle.
        ann_energy_pj: energy of the dense ANN for the same window; 0 if idle, so that both sides count the same windows.
        latency_ms: binning, network, decoding and NMS of this window (of its whole batch, if there were several).
        maps: the read-outs that the boxes are decoded from, `(C, h, w)` float32 each, by name; None unless asked for.
        classification: class scores; None of a detector, or if the window was idle.
    """

    t0_us: int
    t1_us: int
    grid: NDArray[np.uint8]
    detections: Detections
    events: int
    idle: bool
    stats: Stats | None
    energy: EnergyReport | None
    spikes: float | None
    spikes_per_neuron: float | None
    timesteps: int | None
    energy_pj: float
    ann_energy_pj: float
    latency_ms: float
    maps: Maps | None = None
    classification: Classification | None = None

    @property
    def found(self) -> Found:
        """The class scores, or of a detector the boxes; no boxes if the window was idle."""
        return self.classification or self.detections

    def count_into(self, totals: EnergyTotals) -> None:
        """Add this window to the energy account of a run: as idle, by its spikes, or as one of the ANN."""
        if self.idle:
            totals.add_idle()
        elif isinstance(self.stats, SpikeStats):
            totals.add(self.stats)
        else:
            totals.add_dense(1)

    @property
    def events_per_s(self) -> float:
        """Event rate in the window."""
        return self.events / ((self.t1_us - self.t0_us) * 1e-6)


class Inference:
    """Windows of one sensor through one network.

    Args:
        network: what runs.
        voxel: how windows are binned.
        sensor_size: (W, H) px.
        faults: where events outside the sensor are counted; None: nowhere.
        spiking: the network counts spikes; False for an ANN.
        table: energies per operation.
        idle_events: windows with at most this many events are idle and do not go through the network; -1: all do.
        maps: keep the maps that boxes are decoded from in each result; only of a Detector, and not if it is adaptive.
        downsample: the network sees blocks of this many pixels, squared, as one. Grids and boxes of results remain in pixels of
            the sensor.
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
    ) -> None:
        self._maps, self.downsample = maps, downsample
        self.network, self.voxel, self.sensor_size = network, voxel, sensor_size
        self.faults = Faults() if faults is None else faults
        self.spiking, self.table, self.idle_events = spiking, table, idle_events
        self._seen = coarser(sensor_size, downsample)
        width, height = padded_size(self._seen, network.stride)
        self.shape = (voxel.channels, height * downsample, width * downsample)
        self._binning = voxel if downsample == 1 else replace(voxel, max_count=255)
        self.dense_macs = network.dense_macs(height, width)
        self.ann_pj = self.dense_macs * table.mac_pj

    def new_grid(self) -> NDArray[np.uint8]:
        """An empty grid: `(2 * bins, H, W)` uint8 in pixels of the sensor, padded."""
        return np.zeros(self.shape, np.uint8)

    def bin(self, window: EventWindow, grid: NDArray[np.uint8], started: float | None = None) -> BinnedWindow:
        """Count a window's events into a grid from `new_grid`.

        `started` (time.perf_counter) is when its latency began, now if None. Events outside the sensor are counted as a
        fault by `run`, so that a thread may bin ahead of what has been reported.
        """
        started = time.perf_counter() if started is None else started
        events, outside = voxel_histogram(window, self._binning, self.sensor_size, grid)
        return BinnedWindow(window.t0_us, window.t1_us, grid, events, outside, time.perf_counter() - started)

    def warm_up(self, window: EventWindow, batch: int = 1) -> None:
        """Compile the kernels for these events' encoding and let the network plan its memory; nothing is counted."""
        grid = self.new_grid()
        for _ in range(2):
            voxel_histogram(window, self._binning, self.sensor_size, grid)
            self.network.detect(self._as_seen([grid] * batch, batch), self._seen, [0] * batch)

    def run(self, batch: Sequence[BinnedWindow], size: int = 0) -> list[WindowResult]:
        """Results of windows that go through the network together.

        Args:
            batch: the windows.
            size: fill the batch up to this size with empty grids, because an engine plans its memory for every size; 0: do not.
        """
        started = time.perf_counter()
        busy = [binned for binned in batch if binned.events > self.idle_events]
        answers = iter(self._detect(busy, max(size, len(busy))) if busy else [])
        seconds = time.perf_counter() - started
        results = []
        for binned in batch:
            self.faults.outside_sensor += binned.outside
            answer = next(answers) if binned.events > self.idle_events else None
            results.append(self._result(binned, answer, binned.seconds + seconds))
        return results

    def stream(self, windows: Iterator[EventWindow], batch: int = 1) -> Generator[WindowResult, None, None]:
        """The results of all windows, in order; a result's grid holds until the next one is asked for.

        One thread reads and bins ahead while the network computes: kernels and network release Python's lock.

        Args:
            windows: read by the thread that bins, a few ahead.
            batch: number of windows that go through the network together.

        Raises:
            EvburstError: from `windows`, after the results of the windows before it.
        """
        ahead, waiting = self._binned_ahead(windows, batch), list[BinnedWindow]()
        try:
            for binned in ahead:
                waiting.append(binned)
                if len(waiting) == batch:
                    yield from self.run(waiting, batch)
                    waiting.clear()
        except EvburstError:
            if waiting:
                yield from self.run(waiting, batch)
            raise
        finally:
            ahead.close()
        if waiting:
            yield from self.run(waiting, batch)

    def _binned_ahead(self, windows: Iterator[EventWindow], batch: int) -> Generator[BinnedWindow, None, None]:
        pool, waiting = ThreadPoolExecutor(1, "binning"), deque[Future[BinnedWindow | None]]()
        # Those of the batch in use, those binned ahead, and the one being binned.
        grids = cycle([self.new_grid() for _ in range(2 * batch + _AHEAD + 1)])

        def bin_next(grid: NDArray[np.uint8]) -> BinnedWindow | None:
            window = next(windows, None)
            return None if window is None else self.bin(window, grid)

        try:
            while True:
                while len(waiting) < batch + _AHEAD:
                    waiting.append(pool.submit(bin_next, next(grids)))
                binned = waiting.popleft().result()
                if binned is None:
                    return
                yield binned
        finally:
            pool.shutdown(cancel_futures=True)

    def _detect(self, batch: Sequence[BinnedWindow], size: int) -> list[Answer]:
        """Boxes and counts of each window, from a batch of `size` grids."""
        grids = self._as_seen([binned.grid for binned in batch], size)
        times = [binned.t1_us for binned in batch] + [0] * (size - len(batch))
        readouts: Maps = {}
        stats: Stats | None
        if self._maps and isinstance(self.network, Detector):
            found, stats = self.network.detect(grids, self._seen, times, readouts)
        else:
            found, stats = self.network.detect(grids, self._seen, times)
        if self.downsample > 1:
            found = [one.scaled(self.downsample, *self.sensor_size) if isinstance(one, Detections) else one for one in found]
        each = [stats.of_image(i) if stats is not None and size > 1 else stats for i in range(len(batch))]
        maps = [{name: values[i] for name, values in readouts.items()} for i in range(len(batch))]
        return list(zip(found, each, maps, strict=False))

    def _as_seen(self, grids: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
        """A batch of `size` grids as the network sees them, filled up with empty ones."""
        if size == 1 and self.downsample == 1:
            return grids[0][None]
        channels, height, width = self.shape
        seen = np.zeros((size, channels, height // self.downsample, width // self.downsample), np.uint8)
        for grid, own in zip(grids, seen, strict=False):
            if self.downsample == 1:
                own[:] = grid
            else:
                pooled(grid, self.downsample, self.voxel.max_count, own)
        return seen

    def _result(self, binned: BinnedWindow, answer: Answer | None, seconds: float) -> WindowResult:
        """The result of what the network answered; None: it was idle."""
        found, stats, maps = answer or (Detections.empty(binned.t1_us), None, {})
        scores = found if isinstance(found, Classification) else None
        energy, idle = None, answer is None
        energy_pj = 0.0 if idle else self.ann_pj
        spikes, per_neuron, timesteps = (0.0, 0.0, 0) if self.spiking else (None, None, None)
        if isinstance(stats, SpikeStats):
            energy = energy_report(stats)
            energy_pj, timesteps = energy.energies(self.table.name).snn_pj or 0.0, round(energy.timesteps or 0)
            spikes, per_neuron = energy.spikes or 0.0, energy.spikes_per_neuron or 0.0
        return WindowResult(
            t0_us=binned.t0_us,
            t1_us=binned.t1_us,
            grid=binned.grid,
            detections=found if isinstance(found, Detections) else Detections.empty(binned.t1_us),
            events=binned.events,
            idle=idle,
            stats=stats,
            energy=energy,
            spikes=spikes,
            spikes_per_neuron=per_neuron,
            timesteps=timesteps,
            energy_pj=energy_pj,
            ann_energy_pj=0.0 if idle else self.ann_pj,
            latency_ms=1000 * seconds,
            maps=maps or None,
            classification=scores,
        )


def coarser(size: SensorSize, factor: int) -> SensorSize:
    """The size of a sensor with pixels that are `factor` times larger; those at its edges may be filled in part."""
    return SensorSize(-(-size.width // factor), -(-size.height // factor))


@dataclass(frozen=True)
class DatasetBatch:
    """Some items of a data set and what each of several networks made of them.

    Attributes:
        items: their numbers.
        labels: the boxes to be found, clipped to the sensor.
        names: the recording or picture of each.
        events, outside: events in these windows that lie on the sensor, and that do not.
        results: of every network, for every item.
    """

    items: Sequence[int]
    labels: list[Detections]
    names: list[str]
    events: int
    outside: int
    results: list[list[WindowResult]]


def over_dataset(
    networks: Sequence[Inference], dataset: Dataset, items: Iterable[int], batch: int = BATCH
) -> Iterator[DatasetBatch]:
    """Run networks over items of a data set, each window read and binned once for all of them.

    The networks have one binning and one stride in common.
    """
    numbers = list(items)
    groups = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]

    def read(some: Sequence[int]) -> tuple[list[Detections], list[str], list[BinnedWindow]]:
        windows = [dataset[i] for i in some]
        binned = [networks[0].bin(item.window, networks[0].new_grid()) for item in windows]
        return [item.boxes for item in windows], [item.name for item in windows], binned

    with ThreadPoolExecutor(1, "reading") as pool:
        waiting = deque(pool.submit(read, some) for some in groups[:2])
        for number, some in enumerate(groups):
            labels, names, binned = waiting.popleft().result()
            if number + 2 < len(groups):
                waiting.append(pool.submit(read, groups[number + 2]))
            yield DatasetBatch(
                some,
                labels,
                names,
                sum(window.events for window in binned),
                sum(window.outside for window in binned),
                [network.run(binned) for network in networks],
            )


@dataclass
class Answers:
    """What a network made of a whole data set.

    Attributes:
        found: in every item; of a window that was idle no boxes.
        labels: the boxes to be found, or the class.
        names: the recording or picture of each.
        stats: counts of the windows that went through the network.
    """

    found: list[Found] = field(default_factory=list)
    labels: list[Detections] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)


def answers(
    network: Inference, dataset: Dataset, progress: Callable[[int], object] = lambda windows: None, batch: int = 2 * BATCH
) -> Answers:
    """What a network finds in a whole data set, beside the labels."""
    all_ = Answers()
    for done in over_dataset([network], dataset, range(len(dataset)), batch):
        all_.found += [result.found for result in done.results[0]]
        all_.stats += [result.stats for result in done.results[0] if result.stats is not None]
        all_.labels += done.labels
        all_.names += done.names
        progress(len(done.items))
    return all_


def concatenate(stats: Sequence[Stats]) -> Stats:
    """The counts of one network on several batches as those of one run."""
    one: Any = type(stats[0])
    return one.concatenate(stats)  # type: ignore[no-any-return]


def pick_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` as a device of this machine; raises ConfigError for a GPU that it does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no CUDA device here; use --device cpu")
    return name
