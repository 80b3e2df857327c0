"""Evaluation of detectors: average precision by a named protocol, energy and latency. The pipeline behind evaluate.py;
classes.py extends it to classifiers."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from tqdm import tqdm

from evburst.app.config import load_config, to_dict
from evburst.app.console import absolute_progress, show_progress
from evburst.app.dataset_runs import concatenate
from evburst.app.evaluate.account import Stats, account, layer_figures, neurobench_metrics
from evburst.app.evaluate.distributed import gather
from evburst.app.evaluate.examples import best_and_worst, rate_maps
from evburst.app.evaluate.latency import CLOCK, Timing, spread, streaming_figures, time_networks
from evburst.app.evaluate.predict import Network, PartResult, Predictor, Run, check_order
from evburst.app.inference import BATCH
from evburst.app.lead import MOST_LEAD_MS
from evburst.app.processes import process_group
from evburst.app.provenance import provenance
from evburst.app.runs import pick_device, with_memory_if_asked
from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.datasets import SPECS, Dataset
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.errors import ConfigError, DataError
from evburst.data.files import only_writer
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.stats import ActivityStats, SpikeStats
from evburst.data.text import number_of
from evburst.eval.bootstrap import RESAMPLES, Interval, ap_losses, number_units
from evburst.eval.coco import CocoResult
from evburst.eval.energy import COST_TABLES
from evburst.eval.memory import memory_figures
from evburst.eval.protocol import Protocol, match
from evburst.eval.report.write import Picture, writable, write_report
from evburst.eval.results import VERSION, finite, network_label
from evburst.eval.scoring import ap_figures, describe, detail_figures, find_protocol, score
from evburst.models.activity import ActivityRunner
from evburst.models.bundle import DetectorBundle, find_weights
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.runtime import check_engine
from evburst.models.spiking.cost import memory_geometry
from evburst.models.tasks import task_of

_OWN_SPECS = ("pedro", "1mpx")
"""Kinds of data that define their own classes and sensor, independent of the training data."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of evaluate.

    Attributes:
        data: the data set; its spec and its simulation, and for the kind of data that was trained on its mapping of classes,
            are taken from the weights unless set.
        split: train, val or test; for classifiers train, select or test, and val is the same as test.
        weights: name of bundled weights, or a file.
        ann, snn: whether to evaluate the ANN, and the spiking network.
        timesteps: timesteps T of the spiking network, with one result for each; empty: the number for which the weights were
            calibrated.
        protocol: prophesee, prophesee-toolbox, cordone or coco; None: prophesee for gen1 and for box files, otherwise coco.
        limit: largest number of windows, spread evenly; 0: all.
        workers: number of processes that simulate (0: one per core).
        latency_windows: number of windows that are timed, one at a time.
        streaming_windows: number of labelled times for which latency-aware AP is also computed.
        lead_ms: for latency-aware AP, predict boxes for this long after the end of their window, as in detect.
        stride_ms: for latency-aware AP, time from the end of one window to the end of the next; None: their length.
        energy_table: number format of single energy figures: int8, fp16 or fp32; tables have all three.
        resamples: number of bootstrap resamples for the interval of the spiking network's loss.
        device: device to run on.
        engine: engine that runs the spiking network, as in detect.
        cache: folder of simulated windows.
        seed: seed of simulated windows.
        downsample: side of the blocks of pixels that the network sees as one, as in detect; 0: automatic.
        memory: give a YOLO detector a memory, as in detect; the windows between labelled ones are run as well.
        post: thresholds of the boxes.
    """

    data: DatasetConfig = field(default_factory=DatasetConfig)
    split: str = "val"
    weights: str = "street"
    ann: bool = False
    snn: bool = True
    timesteps: tuple[int, ...] = ()
    protocol: str | None = None
    limit: int = 0
    workers: int = 0
    latency_windows: int = 100
    streaming_windows: int = 256
    lead_ms: float = 0.0
    stride_ms: float | None = None
    energy_table: str = "int8"
    resamples: int = RESAMPLES
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: str = "auto"
    cache: str = "runs/cache"
    seed: int = 0
    downsample: int = 0
    memory: bool = False
    post: PostConfig = field(default_factory=lambda: PostConfig(score=0.001))

    def __post_init__(self) -> None:
        checks = {
            "timesteps must be 1 to 64": all(1 <= t <= 64 for t in self.timesteps),
            "limit must not be negative": self.limit >= 0,
            f"lead_ms must be 0 to {MOST_LEAD_MS:g}": 0 <= self.lead_ms <= MOST_LEAD_MS,
            "stride_ms must be 0.1 to 60000": self.stride_ms is None or 0.1 <= self.stride_ms <= 60_000,
            "latency_windows must be positive": self.latency_windows > 0,
            "downsample must be 0 to 16": 0 <= self.downsample <= 16,
            "resamples must be 0 to 100000": 0 <= self.resamples <= 100_000,
            "ann or snn must be true": self.ann or self.snn,
            "the ANN has no timesteps and engine: leave them out, or evaluate both networks": self.snn
            or (not self.timesteps and self.engine == "auto"),
            f"energy_table must be one of {', '.join(COST_TABLES)}": self.energy_table in COST_TABLES,
            "device must be auto, cpu or cuda": self.device in ("auto", "cpu", "cuda"),
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)
        check_engine(self.engine)


def load_evaluation(file: Path | None, assignments: list[str]) -> tuple[EvaluateConfig, DetectorBundle]:
    """Load the configuration, with defaults from the training data of the weights, and the weights.

    Raises:
        EvburstError: a setting or the weights cannot be used.
    """
    given = load_config(EvaluateConfig, file, assignments)
    bundle = DetectorBundle.load(given.weights)
    training_data = bundle.record.get("training", {}).get("config", {}).get("data", {})
    if task_of(bundle.head).name == CLASSIFICATION:
        return load_config(EvaluateConfig, file, assignments, {"data": _class_data(training_data, file, assignments)}), bundle
    spec = training_data.get("spec", bundle.record.get("dataset"))
    base: dict[str, Any] = {"spec": given.data.kind if given.data.kind in _OWN_SPECS else spec if spec in SPECS else "street"}
    names = ("simulated", "classes") if given.data.kind == training_data.get("kind") else ("simulated",)
    base |= {name: training_data[name] for name in names if name in training_data}
    return load_config(EvaluateConfig, file, assignments, {"data": base}), bundle


def _class_data(training_data: dict[str, Any], file: Path | None, assignments: list[str]) -> dict[str, Any]:
    """Return default settings of the data for a classifier: its training data, unless another kind is set."""
    kind_in_training = {"kind": training_data["kind"]} if "kind" in training_data else {}
    kind = load_config(EvaluateConfig, file, assignments, {"data": kind_in_training}).data.kind
    names = ("kind", "classes", "held", "simulated") if kind == training_data.get("kind") else ("simulated",)
    return {name: training_data[name] for name in names if name in training_data}


def evaluate(config: EvaluateConfig, bundle: DetectorBundle, out: Path) -> dict[str, Any] | None:
    """Evaluate, write results.json, results.md and report.html to `out`, and return the content of results.json.

    Returns None in all but the first of several processes.

    Under torchrun every process takes its share of the recordings; the first one gathers, measures latency and writes.

    Raises:
        EvburstError: the data cannot be used, or do not go with the weights; another process writes into `out`.
    """
    with process_group() as (rank, world), only_writer(out) if rank == 0 else nullcontext():
        started = time.perf_counter()
        evaluation = evaluation_of(bundle)(config, bundle, out, rank, world)
        parts = gather(evaluation.predict(), world)
        if rank > 0:
            return None
        results = evaluation.results(parts)
        results["timing"] = {
            "wall_s": round(time.perf_counter() - started, 2),
            "processes": world,
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        evaluation.write(results, parts, out)
        return results


def evaluation_of(bundle: DetectorBundle) -> type[Evaluation]:
    """Return the kind of evaluation for the task of these weights."""
    from evburst.app.evaluate.classes import ClassEvaluation

    return {DETECTION: Evaluation, CLASSIFICATION: ClassEvaluation}[task_of(bundle.head).name]


class Measured(NamedTuple):
    """Measurements of one network, for any task.

    Attributes:
        network: the network.
        parts: its result on each part.
        timing: its latencies.
        row: its figures in the results except accuracy: model, timesteps, engine, energy, latency, memory, NeuroBench.
        layers: energy by layer.
    """

    network: Network
    parts: list[PartResult]
    timing: Timing
    row: dict[str, Any]
    layers: list[dict[str, Any]]


class Evaluation:
    """One evaluation, in one of `world` processes."""

    def __init__(self, config: EvaluateConfig, bundle: DetectorBundle, out: Path, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        self.bundle = bundle = with_memory_if_asked(bundle, config.memory, config.stride_ms)
        self._provenance = provenance()
        self.voxel = self.binning()
        self.dataset = self._open()
        if bundle.graph.memories:
            check_order(self.dataset, self.voxel.window_us)
        device = pick_device(config.device)
        size = self.dataset.spec.sensor_size
        self.networks = [
            Network(bundle, run, config.post, self.voxel, size, device, config.engine, config.downsample)
            for run in runs(config, bundle)
        ]
        settings = {
            "weights": hashlib.sha256(find_weights(config.weights).read_bytes()).hexdigest(),
            "voxel": asdict(self.voxel),
            "post": asdict(config.post),
            "sensor_size": self.dataset.spec.sensor_size,
            "device": device,
            "engine": self.networks[-1].engine,
            "downsample": self.networks[-1].timed.downsample,
            "memory": bool(bundle.graph.memories),
        }
        self.predictor = Predictor(self.dataset, self.networks, writable(out) / "parts", settings)

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol of the settings, or the default of the data set."""
        return find_protocol(self.config.protocol or ("prophesee" if self.config.data.kind == "gen1" else "coco"))

    def binning(self) -> VoxelConfig:
        """Return the binning of the training, with the window length of the protocol if it defines one."""
        window_us = self.protocol.window_us
        return replace(self.bundle.voxel, window_ms=window_us / 1000) if window_us else self.bundle.voxel

    def predict(self) -> dict[int, list[PartResult]]:
        """Compute this process's share of the parts: the results of each network, by the number of the part."""
        parts = list(enumerate(self.dataset.parts()))
        hidden = self.rank > 0 or not show_progress()
        mine = parts[self.rank :: self.world]
        with tqdm(total=sum(len(part.items) for _, part in mine), desc="evaluate", unit="win", disable=hidden) as bar:
            return {number: self.predictor.predict(part, number, bar.update) for number, part in mine}

    def results(self, parts: Sequence[list[PartResult]]) -> dict[str, Any]:
        """Return the figures of each network over all parts."""
        rows, scored = [], []
        for measured in self.measure(parts):
            row, result = self._row(measured)
            rows.append(row)
            scored.append(result)
        self._add_losses(rows, scored, parts)
        main = next((row for row in rows if row["model"] == "snn"), rows[0])
        spec = self.dataset.spec
        return {
            "results": rows,
            "ap_loss": main["ap_loss"],
            "ap50_loss": main["ap50_loss"],
            **describe(self.protocol, spec.sensor_size, spec.classes),
            "unlabelled_files": getattr(self.dataset, "unlabelled", 0),
            "memory": bool(self.bundle.graph.memories),
            **self.metadata(parts),
        }

    def measure(self, parts: Sequence[list[PartResult]]) -> list[Measured]:
        """Measure the energy, latency and memory of each network."""
        c = self.config
        total = min(len(self.dataset), c.latency_windows)
        with tqdm(total=total, desc="time", unit="win", disable=not show_progress()) as bar:
            timings = time_networks(self.predictor, c.latency_windows, bar.update)
        per_network = [[part[k] for part in parts] for k in range(len(self.networks))]
        stats = [_counts(results) for results in per_network]
        geometry = memory_geometry(self.bundle.graph, *self.predictor.shape)
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
            "faults": _sum_of_faults(parts),
            "window_ms": self.voxel.window_ms,
            "downsample": self.predictor.downsample,
            "weights": Path(c.weights).stem,
            "clock": CLOCK,
            "config": to_dict(c),
            "weights_record": finite(self.bundle.record),
            "provenance": self._provenance,
        }

    def pictures(self, parts: Sequence[list[PartResult]]) -> tuple[list[Picture], list[Picture]]:
        """Return pictures of the best and worst windows of the first spiking network (or the ANN), and of its spike rates."""
        k = next((k for k, network in enumerate(self.networks) if network.run.model == "snn"), 0)
        pairs = [(part, results[k]) for part, results in zip(self.dataset.parts(), parts, strict=True)]
        shots, item = best_and_worst(self.predictor, pairs, self.protocol)
        if self.networks[k].run.model == "ann":
            return shots, []
        return shots, rate_maps(self.predictor, self.bundle, self.networks[k].run.timesteps, item)

    def write(self, results: dict[str, Any], parts: Sequence[list[PartResult]], out: Path) -> None:
        """Write results.json and the reports."""
        write_report(results, out, *self.pictures(parts))

    def _count(self, network: Network) -> SpikeStats:
        """Return the counts of the reference engine in a few windows."""
        return network.count(self._sample())

    def _row(self, measured: Measured) -> tuple[dict[str, Any], CocoResult]:
        spec, results, timing = self.dataset.spec, measured.parts, measured.timing
        scored, left_out, frames = score([result.boxes for result in results], self.protocol, spec.sensor_size, spec.classes)
        pairs = list(zip(self.dataset.parts(), results, strict=True))
        p50_ms, c = measured.row["latency_ms"]["p50"], self.config
        streaming = streaming_figures(
            self.predictor, measured.network, pairs, self.protocol, p50_ms, c.streaming_windows, c.lead_ms, c.stride_ms
        )
        details = {**detail_figures(scored, frames, spec.classes), "layers": measured.layers}
        further = {"timing": timing.figures(streaming), "left_out": asdict(left_out), "details": details}
        return {**measured.row, **ap_figures(scored), **further}, scored

    def _add_losses(self, rows: list[dict[str, Any]], scored: list[CocoResult], parts: Sequence[list[PartResult]]) -> None:
        """Add to each row the loss against the ANN with intervals; None if the ANN was not evaluated."""
        ann = next((k for k, row in enumerate(rows) if row["model"] == "ann"), None)
        units, unit = self._units([results[0] for results in parts])
        for row, result in zip(rows, scored, strict=True):
            row |= {"ap_loss": None, "ap50_loss": None, "ap_loss_by_iou": None}
            if ann is None or row["model"] == "ann":
                continue
            losses = ap_losses(scored[ann].matches, result.matches, units, self.config.resamples, self.config.seed)
            row["ap_loss"], row["ap50_loss"] = rounded(losses.ap, unit), rounded(losses.ap50, unit)
            row["ap_loss_by_iou"] = {iou: rounded(loss, unit) for iou, loss in losses.by_iou.items()}

    def _units(self, results: Sequence[PartResult]) -> tuple[NDArray[np.int64], str]:
        """Return the index of each scored frame's unit, `(frames,)`, and the kind of unit: recording, or picture."""
        names: list[tuple[int, str]] = []
        recorded = False
        for number, (part, result) in enumerate(zip(self.dataset.parts(), results, strict=True)):
            frames, _ = match([result.boxes], self.protocol, self.dataset.spec.sensor_size)
            recorded = result.boxes.start_us is not None
            if recorded:
                names += [(number, part.name)] * len(frames)
            else:
                at = np.searchsorted(_times(result), [frame.t_us for frame in frames])
                names += [(0, self.dataset[part.items[int(k)]].name) for k in at]
        return number_units(names), "recording" if recorded else "picture"

    def _activity_sample(self) -> ActivityStats:
        """Return the ANN's activity in a few windows, for the energy with skipped zeros if the ANN is not evaluated.

        Nothing is held in them.
        """
        runner = ActivityRunner(self.bundle.graph)
        return runner.run(torch.from_numpy(self._sample()).float())[1]

    def _sample(self) -> NDArray[np.uint8]:
        """Return the grids of a few windows, spread evenly."""
        return np.stack([self.predictor.seen(self.dataset[int(i)].window) for i in spread(len(self.dataset), BATCH)])

    def _open(self) -> Dataset:
        """Open the data set; the first process simulates missing windows, and the others wait for it."""
        c = self.config
        if self.rank > 0:
            dist.barrier()
        hidden = self.rank > 0 or not show_progress()
        with tqdm(desc="simulate", unit="win", disable=hidden or c.data.kind != "simulated") as bar:
            progress = absolute_progress(bar)
            task, head = task_of(self.bundle.head).name, self.bundle.head
            known = head.classes if task == CLASSIFICATION else ()
            request = Request(
                c.split, self.voxel.window_us, c.limit, Path(c.cache), c.seed, c.workers, progress, True, task, known
            )  # fmt: skip
            dataset = open_dataset(c.data, request)
        if self.rank == 0 and self.world > 1:
            dist.barrier()
        if dataset.spec.classes != self.bundle.head.classes:
            raise ConfigError(
                f"weights {c.weights} have the classes {', '.join(self.bundle.head.classes)}; the dataset has "
                f"{', '.join(dataset.spec.classes)} (data.spec {c.data.spec}): use other weights, or another --set data.spec"
            )
        if not len(dataset):
            raise DataError(f"{c.data.root}: no labels in split {c.split!r}")
        return dataset


def _sum_of_faults(parts: Sequence[list[PartResult]]) -> dict[str, int]:
    """Return the number of repaired faults in all recordings, by kind."""
    total: Counter[str] = Counter()
    for results in parts:
        total.update(results[0].faults)
    return dict(total)


def _counts(results: Sequence[PartResult]) -> Stats:
    """Return the counts of a network over all parts; raise DataError if all windows were idle."""
    counted = [result.stats for result in results if result.stats is not None]
    if not counted:
        raise DataError("no labelled window contains an event")
    return concatenate(counted)


def _times(result: PartResult) -> NDArray[np.int64]:
    """Return the labelled times of a part, in order."""
    times = result.boxes.times_us
    return np.zeros(0, np.int64) if times is None else times


def rounded(loss: Interval, unit: str) -> dict[str, Any]:
    """Return an interval in JSON types, rounded to four decimals."""
    bounds = {name: None if value is None else round(value, 4) for name, value in (("low", loss.low), ("high", loss.high))}
    return {"mean": round(loss.mean, 4), **bounds, "resamples": loss.resamples, "units": loss.units, "unit": unit}


def runs(config: EvaluateConfig, bundle: DetectorBundle) -> list[Run]:
    """Return the networks to evaluate."""
    timesteps = config.timesteps or (bundle.parameters.timesteps,)
    return [Run("ann", 0)] * config.ann + [Run("snn", t) for t in timesteps] * config.snn


def energy_columns(energy: dict[str, Any], decimals: int) -> str:
    """Return the columns uJ, % ANN and % QNN of a table in plain text."""
    pj = energy["ann_pj"] if energy["snn_pj"] is None else energy["snn_pj"]
    of_qnn = "-" if energy["of_qnn"] is None else f"{100 * energy['of_qnn']:.1f}"
    return f"{pj / 1e6:9,.{decimals}f}{100 * pj / energy['ann_pj']:8.1f}{of_qnn:>8}"


def loss_line(loss: dict[str, Any], what: str, timesteps: int) -> str:
    """Return a line about the loss against the ANN in plain text; `what` is the name of the figure."""
    bounds = ""
    if loss["low"] is not None:
        bounds = f" [{loss['low']:.2f}, {loss['high']:.2f}], 95 % of {loss['units']} {loss['unit']}s"
    return f"loses     {loss['mean']:.2f} {what} against the ANN{bounds} (T = {timesteps})"


def human_table(results: dict[str, Any], out: Path) -> str:
    """Return the results as a table in plain text."""
    windows = f"{number_of(results['windows'], 'window')} of {results['window_ms']:g} ms"
    if (side := results["downsample"]) > 1:
        windows += f" in blocks of {side}x{side} px"
    if results["memory"]:
        windows += ", with memory"
    head = f"{results['dataset']} {results['split']}: {windows}; protocol {results['protocol']}"
    lines = [head, f"{'':14}{'AP':>7}{'AP50':>7}{'AP75':>7}{'uJ':>9}{'% ANN':>8}{'% QNN':>8}{'p50 ms':>9}{'p99 ms':>9}"]
    for row in results["results"]:
        latency, name = row["latency_ms"], network_label(row["model"], row["timesteps"])
        ap = "".join(f"{'-' if row[k] is None else format(row[k], '.2f'):>7}" for k in ("ap", "ap50", "ap75"))
        lines.append(f"{name:14}{ap}{energy_columns(row['energy'], 0)}{latency['p50']:9.1f}{latency['p99']:9.1f}")
    lines += [loss_line(row["ap_loss"], "AP", row["timesteps"]) for row in results["results"] if row["ap_loss"]]
    energy = results["results"][-1]["energy"]
    lines.append(f"energy    {energy['table']}, per spike; ANN: dense; QNN: zero-skipping, a burst one multiply-accumulate")
    return "\n".join([*lines, f"written   {out}/: results.json, results.md, report.html"])
