"""What evaluations of every task share: the data, the networks, energy, latency and memory; boxes.py and classes.py score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from evburst.app.config import to_dict
from evburst.app.console import absolute_progress, show_progress
from evburst.app.dataset_runs import concatenate
from evburst.app.evaluate.account import account, layer_figures, neurobench_metrics
from evburst.app.evaluate.config import EvaluateConfig
from evburst.app.evaluate.latency import CLOCK, Timing, time_networks
from evburst.app.evaluate.predict import EvaluatedNetwork, PartResult, Predictor, Run, check_consecutive
from evburst.app.inference import BATCH, Stats
from evburst.app.processes import barrier
from evburst.app.provenance import provenance
from evburst.app.recordings import warn_of_other_sensor
from evburst.app.runs import pick_device, step_of, with_memory_if_asked
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import Dataset, spread_with_events
from evburst.data.datasets.registry import Request, open_dataset
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import sum_counts
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.bootstrap import Interval
from evburst.eval.memory import memory_figures
from evburst.eval.report.write import writable
from evburst.eval.results import VERSION, finite
from evburst.models.activity import ActivityRunner
from evburst.models.bundle import Bundle, weights_digest
from evburst.models.tasks import task_of


class Measured(NamedTuple):
    """Measurements of one network, for any task.

    Attributes:
        network: the network.
        parts: its result on each part.
        timing: its latencies.
        row: its figures in the results except accuracy: model, timesteps, engine, energy, latency, memory, NeuroBench.
        layers: energy by layer.
    """

    network: EvaluatedNetwork
    parts: list[PartResult]
    timing: Timing
    row: dict[str, Any]
    layers: list[dict[str, Any]]


class Evaluation:
    """One evaluation, in one of `world` processes; tasks add how it is binned and scored."""

    def __init__(self, config: EvaluateConfig, bundle: Bundle, out: Path, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.bundle = bundle = with_memory_if_asked(bundle, config.memory, config.stride_ms)
        self._provenance = provenance()
        self.voxel = self.binning()
        step_of(config.stride_ms, self.voxel.window_us)
        self.dataset = self._open()
        if bundle.graph.memories:
            check_consecutive(self.dataset, self.voxel.window_us, self.config.limit > 0)
        device = pick_device(config.device)
        size = self.dataset.spec.sensor_size
        self.networks = [
            EvaluatedNetwork(bundle, run, config.post, self.voxel, size, device, config.engine, config.downsample)
            for run in _runs(config, bundle)
        ]
        settings = {
            "weights": weights_digest(config.weights),
            "voxel": asdict(self.voxel),
            "post": asdict(config.post),
            "sensor_size": self.dataset.spec.sensor_size,
            "device": device,
            "engine": self.networks[-1].engine,
            "downsample": self.networks[-1].timed.downsample,
            "memory": bool(bundle.graph.memories),
        }
        self.predictor = Predictor(self.dataset, self.networks, writable(out) / "parts", settings)

    def binning(self) -> VoxelConfig:
        """Return how windows are binned."""
        raise NotImplementedError

    def results(self, parts: Sequence[list[PartResult]]) -> dict[str, Any]:
        """Return the figures of each network over all parts."""
        raise NotImplementedError

    def write(self, results: dict[str, Any], parts: Sequence[list[PartResult]], out: Path) -> None:
        """Write results.json and the reports."""
        raise NotImplementedError

    def predict(self) -> dict[int, list[PartResult]]:
        """Compute this process's share of the parts: the results of each network, by the number of the part."""
        parts = list(enumerate(self.dataset.parts()))
        hidden = self.rank > 0 or not show_progress()
        mine = parts[self.rank :: self.world]
        with tqdm(total=sum(len(part.items) for _, part in mine), desc="evaluate", unit="win", disable=hidden) as bar:
            return {number: self.predictor.predict(part, number, bar.update) for number, part in mine}

    def measure(self, parts: Sequence[list[PartResult]]) -> list[Measured]:
        """Measure the energy, latency and memory of each network."""
        c = self.config
        total = min(len(self.dataset), c.latency_windows)
        with tqdm(total=total, desc="time", unit="win", disable=not show_progress()) as bar:
            timings = time_networks(self.predictor, c.latency_windows, bar.update)
        per_network = [[part[k] for part in parts] for k in range(len(self.networks))]
        stats = [_counts(results) for results in per_network]
        geometry = self.networks[0].memory_geometry()
        activity = next((s for s in stats if isinstance(s, ActivityStats)), None) or self._activity_sample()
        measured = []
        for network, results, counted, timing in zip(self.networks, per_network, stats, timings, strict=True):
            row: dict[str, Any] = {"model": network.run.model, "timesteps": network.run.timesteps or None}
            row["engine"] = network.engine
            row["energy"] = account(counted, activity, c.energy_table, sum(result.idle for result in results))
            row["latency_ms"] = timing.percentiles()
            row["memory"] = memory_figures(counted, activity, geometry, c.energy_table)
            row["neurobench"] = asdict(neurobench_metrics(counted, self.bundle, partial(self._count, network)))
            measured.append(Measured(network, results, timing, row, layer_figures(counted, c.energy_table)))
        return measured

    def metadata(self, parts: Sequence[list[PartResult]]) -> dict[str, Any]:
        """Return the entries of the results about the data, the settings and the code."""
        c = self.config
        return {
            "version": VERSION,
            "dataset": c.data.kind,
            "split": c.split,
            "windows": len(self.dataset),
            "idle_windows": sum(part[0].idle for part in parts),
            "recordings": len(parts),
            "faults": sum_counts(results[0].faults for results in parts),
            "window_ms": self.voxel.window_ms,
            "downsample": self.networks[0].timed.downsample,
            "weights": Path(c.weights).stem,
            "clock": CLOCK,
            "config": to_dict(c),
            "weights_record": finite(self.bundle.record),
            "provenance": self._provenance,
        }

    def _count(self, network: EvaluatedNetwork) -> SpikeStats:
        """Return the counts of the reference engine in a few windows."""
        return network.count(self._sample())

    def _activity_sample(self) -> ActivityStats:
        """Return the ANN's activity in a few windows, for the energy with skipped zeros if the ANN is not evaluated.

        Nothing is held in them.
        """
        runner = ActivityRunner(self.bundle.graph)
        return runner.run(torch.from_numpy(self._sample()).float())[1]

    def _sample(self) -> NDArray[np.uint8]:
        """Return the grids of a few windows that are not idle, spread evenly."""
        return np.stack([self.predictor.seen(self.dataset[i].window) for i in spread_with_events(self.dataset, BATCH)])

    def _open(self) -> Dataset:
        """Open the data set; the first process simulates missing windows, and the others wait for it."""
        c = self.config
        if self.rank > 0:
            barrier(self.world)
        hidden = self.rank > 0 or not show_progress()
        with tqdm(desc="simulate", unit="win", disable=hidden or c.data.kind != "simulated") as bar:
            progress = absolute_progress(bar)
            task, head = task_of(self.bundle.head).name, self.bundle.head
            known = head.classes if task == CLASSIFICATION else ()
            request = Request(
                c.split,
                self.voxel.window_us,
                n_windows=c.limit,
                cache=Path(c.cache),
                seed=c.seed,
                workers=c.workers,
                progress=progress,
                spread=True,
                task=task,
                classes=known,
                trained_size=self.bundle.sensor_size,
            )
            dataset = open_dataset(c.data, request)
        if self.rank == 0:
            barrier(self.world)
            if task == CLASSIFICATION and not c.data.sensor_size:
                warn_of_other_sensor(Path(c.data.root), dataset.spec.sensor_size, self.bundle)
        if dataset.spec.classes != self.bundle.head.classes:
            raise ConfigError(
                f"weights {c.weights} have the classes {', '.join(self.bundle.head.classes)}; the dataset has "
                f"{', '.join(dataset.spec.classes)} (data.spec {c.data.spec}): use other weights, or another --set data.spec"
            )
        if not len(dataset):
            raise DataError(f"{c.data.root}: no labels in split {c.split!r}")
        return dataset


def _counts(results: Sequence[PartResult]) -> Stats:
    """Return the counts of a network over all parts; raise DataError if all windows were idle."""
    counted = [result.stats for result in results if result.stats is not None]
    if not counted:
        raise DataError("no labelled window contains an event")
    return concatenate(counted)


def interval_figures(loss: Interval, unit: str) -> dict[str, Any]:
    """Return an interval in JSON types, rounded to four decimals."""
    bounds = {name: None if value is None else round(value, 4) for name, value in (("low", loss.low), ("high", loss.high))}
    return {"mean": round(loss.mean, 4), **bounds, "resamples": loss.resamples, "units": loss.units, "unit": unit}


def _runs(config: EvaluateConfig, bundle: Bundle) -> list[Run]:
    """Return the networks to evaluate."""
    runs = [Run("ann", 0)] if config.ann else []
    if config.snn:
        runs += [Run("snn", t) for t in config.timesteps or (bundle.parameters.timesteps,)]
    return runs
