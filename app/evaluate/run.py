"""Detectors on labelled data: average precision by a named protocol, energy, latency. The pipeline behind evaluate.py."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from evburst.app.config import load_config, to_dict
from evburst.app.detect import pick_device
from evburst.app.evaluate.account import Stats, energy_figures, layer_figures, memory_figures, neurobench_metrics
from evburst.app.evaluate.distributed import gather, process_group
from evburst.app.evaluate.examples import gallery, rate_maps
from evburst.app.evaluate.latency import CLOCK, Timing, spread, streaming_figures, time_networks
from evburst.app.evaluate.predict import BATCH, Network, PartResult, Predictor, Run, concatenate
from evburst.app.provenance import provenance
from evburst.data.datasets import SPECS, Dataset
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.errors import ConfigError, DataError
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.stats import ActivityStats, MemoryGeometry
from evburst.eval.energy import COST_TABLES, EXCLUDED
from evburst.eval.report.write import Picture, writable, write_report
from evburst.eval.scoring import ap_figures, describe, detail_figures, find_protocol, score
from evburst.models.bundle import DetectorBundle, find_weights
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.spiking.cost import memory_geometry
from numpy.typing import NDArray
from tqdm import tqdm


@dataclass(frozen=True)
class EvaluateConfig:
    """What evaluate.py can be told.

    Attributes:
        data: which data; its spec and how pictures are shown come from the weights unless given.
        split: e.g. "val".
        weights: bundled weights by name, or a file.
        ann, snn: which networks of the weights.
        timesteps: T of the spiking network, one result for each; empty: what the weights were calibrated for.
        protocol: name in evburst.eval.protocol.PROTOCOLS; None: prophesee for gen1, coco for the others.
        limit: at most so many windows, spread evenly; 0: all.
        workers: processes that simulate (0: as many as cores).
        latency_windows: windows that are timed, one at a time.
        streaming_windows: labelled times for which latency-aware AP is computed, too.
        energy_table: fp32, fp16 or int8.
        device: auto, cpu or cuda.
        engine: auto, or one of models/runtime.
        cache: folder of simulated windows.
        seed: of simulated windows.
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
    energy_table: str = "fp32"
    device: str = "auto"
    engine: str = "auto"
    cache: str = "runs/cache"
    seed: int = 0
    post: PostConfig = field(default_factory=lambda: PostConfig(score=0.001))

    def __post_init__(self) -> None:
        checks = {
            "timesteps must be 1 to 64": all(1 <= t <= 64 for t in self.timesteps),
            "limit must not be negative": self.limit >= 0,
            "latency_windows must be positive": self.latency_windows > 0,
            "ann or snn must be true": self.ann or self.snn,
            f"energy_table must be one of {', '.join(COST_TABLES)}": self.energy_table in COST_TABLES,
            "device must be auto, cpu or cuda": self.device in ("auto", "cpu", "cuda"),
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


def load_evaluation(file: Path | None, assignments: list[str]) -> tuple[EvaluateConfig, DetectorBundle]:
    """The configuration, with what the weights say of their data as its defaults; and the weights.

    Raises:
        EvburstError: a setting or the weights cannot be used.
    """
    given = load_config(EvaluateConfig, file, assignments)
    bundle = DetectorBundle.load(given.weights)
    own = bundle.record.get("training", {}).get("config", {}).get("data", {})
    spec = own.get("spec", bundle.record.get("dataset"))
    base: dict[str, Any] = {"spec": "pedro" if given.data.kind == "pedro" else spec if spec in SPECS else "street"}
    if "simulated" in own:
        base["simulated"] = own["simulated"]
    return load_config(EvaluateConfig, file, assignments, {"data": base}), bundle


def evaluate(config: EvaluateConfig, bundle: DetectorBundle, out: Path) -> dict[str, Any] | None:
    """Evaluate, write results.json, results.md and report.html into `out`, and return what is in the first.

    Returns None in all but the first of several processes.

    Under torchrun every process takes its share of the recordings; the first one gathers, measures latency and writes.

    Raises:
        EvburstError: the data cannot be used, or do not go with the weights.
    """
    with process_group() as (rank, world):
        started = time.perf_counter()
        evaluation = Evaluation(config, bundle, out, rank, world)
        parts = gather(evaluation.predict(), world)
        if rank > 0:
            return None
        results = evaluation.results(parts)
        results["timing"] = {"wall_s": round(time.perf_counter() - started, 2), "processes": world}
        write_report(results, out, *evaluation.pictures(parts))
        return results


class Evaluation:
    """One evaluation, in one of `world` processes."""

    def __init__(self, config: EvaluateConfig, bundle: DetectorBundle, out: Path, rank: int, world: int) -> None:
        self.config, self.bundle, self.rank, self.world = config, bundle, rank, world
        self._provenance = provenance()
        default = "prophesee" if config.data.kind == "gen1" else "coco"
        self.protocol = find_protocol(config.protocol or default)
        self.voxel: VoxelConfig = bundle.voxel
        if self.protocol.window_us:
            self.voxel = replace(bundle.voxel, window_ms=self.protocol.window_us / 1000)
        self.dataset = self._open()
        device = pick_device(config.device)
        self.networks = [Network(bundle, run, config.post, device, config.engine) for run in runs(config, bundle)]
        settings = {
            "weights": hashlib.sha256(find_weights(config.weights).read_bytes()).hexdigest(),
            "voxel": asdict(self.voxel),
            "post": asdict(config.post),
            "sensor_size": self.dataset.spec.sensor_size,
            "device": device,
            "engine": self.networks[0].detector.engine,
        }
        self.predictor = Predictor(self.dataset, bundle, self.networks, self.voxel, writable(out) / "parts", settings)

    def predict(self) -> dict[int, list[PartResult]]:
        """This process's share: the results of every network, by the part's number."""
        parts = list(enumerate(self.dataset.parts()))
        shown = self.rank > 0 or not sys.stderr.isatty()
        mine = parts[self.rank :: self.world]
        with tqdm(total=sum(len(part.items) for _, part in mine), desc="evaluate", unit="win", disable=shown) as bar:
            return {number: self.predictor.predict(part, number, bar.update) for number, part in mine}

    def results(self, parts: Sequence[list[PartResult]]) -> dict[str, Any]:
        """Figures of every network over all parts."""
        c = self.config
        total = min(len(self.dataset), c.latency_windows)
        with tqdm(total=total, desc="time", unit="win", disable=not sys.stderr.isatty()) as bar:
            timings = time_networks(self.predictor, c.latency_windows, bar.update)
        per_network = [[part[k] for part in parts] for k in range(len(self.networks))]
        stats = [concatenate([result.stats for result in found]) for found in per_network]
        geometry = memory_geometry(self.bundle.graph, *self.predictor.shape)
        activity = next((s for s in stats if isinstance(s, ActivityStats)), None)
        rows = [
            self._row(network, found, counted, activity, timing, geometry)
            for network, found, counted, timing in zip(self.networks, per_network, stats, timings, strict=True)
        ]
        spec = self.dataset.spec
        return {
            "results": rows,
            **describe(self.protocol, spec.sensor_size, spec.classes),
            "dataset": c.data.kind,
            "split": c.split,
            "windows": len(self.dataset),
            "recordings": len(parts),
            "unlabelled_files": getattr(self.dataset, "unlabelled", 0),
            "window_ms": self.voxel.window_ms,
            "weights": Path(c.weights).stem,
            "clock": CLOCK,
            "energy_excluded": list(EXCLUDED),
            "config": to_dict(c),
            "weights_record": self.bundle.record,
            "provenance": self._provenance,
        }

    def pictures(self, parts: Sequence[list[PartResult]]) -> tuple[list[Picture], list[Picture]]:
        """Best and worst windows of the spiking network that was asked for first (or of the ANN), and its spike rates."""
        k = next((k for k, network in enumerate(self.networks) if network.run.model == "snn"), 0)
        pairs = [(part, results[k]) for part, results in zip(self.dataset.parts(), parts, strict=True)]
        shots, item = gallery(self.predictor, pairs, self.protocol)
        if self.networks[k].run.model == "ann":
            return shots, []
        return shots, rate_maps(self.predictor, self.bundle, self.networks[k].run.timesteps, item)

    def _row(
        self,
        network: Network,
        found: Sequence[PartResult],
        stats: Stats,
        activity: ActivityStats | None,
        timing: Timing,
        geometry: MemoryGeometry,
    ) -> dict[str, Any]:
        spec, c = self.dataset.spec, self.config
        scored, left_out, frames = score([result.boxes for result in found], self.protocol, spec.sensor_size, spec.classes)
        row = {"model": network.run.model, "timesteps": network.run.timesteps or None, **ap_figures(scored)}
        row["engine"] = None if network.run.model == "ann" else network.detector.engine
        row["energy"] = energy_figures(stats, activity, c.energy_table)
        latency_ms = timing.percentiles()
        row["latency_ms"] = latency_ms
        pairs = list(zip(self.dataset.parts(), found, strict=True))
        row["timing"] = {
            "windows_per_s": timing.windows_per_s,
            "streaming": streaming_figures(
                self.predictor, network, pairs, self.protocol, latency_ms["p50"], c.streaming_windows
            ),
            "latencies_ms": [round(ms, 3) for ms in timing.latency_ms],
        }
        row["memory"] = memory_figures(stats, geometry, c.energy_table)
        row["neurobench"] = asdict(neurobench_metrics(stats, self.bundle, lambda: network.count(self._sample())))
        row["left_out"] = asdict(left_out)
        layers = {"layers": layer_figures(stats, c.energy_table)}
        row["details"] = {**detail_figures(scored, frames, spec.classes), **layers}
        return row

    def _sample(self) -> NDArray[np.uint8]:
        """Grids of a few windows, spread evenly."""
        return np.stack([self.predictor.grid(self.dataset[int(i)].window)[0] for i in spread(len(self.dataset), BATCH)])

    def _open(self) -> Dataset:
        """The windows; the first process makes what is missing, the others wait for it."""
        c = self.config
        if self.rank > 0:
            dist.barrier()
        shown = self.rank > 0 or not sys.stderr.isatty()
        with tqdm(desc="simulate", unit="win", disable=shown or c.data.kind != "simulated") as bar:
            progress = lambda done: bar.update(done - bar.n)  # noqa: E731
            request = Request(c.split, self.voxel.window_us, c.limit, Path(c.cache), c.seed, c.workers, progress, spread=True)
            dataset = open_dataset(c.data, request)
        if self.rank == 0 and self.world > 1:
            dist.barrier()
        if dataset.spec.classes != self.bundle.head.classes:
            raise ConfigError(
                f"weights {c.weights} tell {', '.join(self.bundle.head.classes)} apart; the dataset has "
                f"{', '.join(dataset.spec.classes)} (data.spec {c.data.spec}): other weights, or another --set data.spec"
            )
        if not len(dataset):
            raise DataError(f"{c.data.root}: no label in split {c.split!r}")
        unlabelled = getattr(dataset, "unlabelled", 0)
        if unlabelled and self.rank == 0:
            print(f"note: {unlabelled} event files without labels are left out", file=sys.stderr)
        return dataset


def runs(config: EvaluateConfig, bundle: DetectorBundle) -> list[Run]:
    """The networks asked for."""
    timesteps = config.timesteps or (bundle.parameters.timesteps,)
    return [Run("ann", 0)] * config.ann + [Run("snn", t) for t in timesteps] * config.snn


def human_table(results: dict[str, Any], out: Path) -> str:
    """The results for a person: a table."""
    head = f"{results['dataset']} {results['split']}: {results['windows']} windows of {results['window_ms']:g} ms; protocol {results['protocol']}"
    lines = [head, f"{'':14}{'AP':>7}{'AP50':>7}{'AP75':>7}{'uJ':>9}{'% of ANN':>10}{'p50 ms':>9}{'p99 ms':>9}"]
    for row in results["results"]:
        energy, latency = row["energy"], row["latency_ms"]
        pj = energy["snn_pj"] or energy["ann_pj"]
        name = "ANN" if row["model"] == "ann" else f"SNN, T = {row['timesteps']}"
        ap = "".join(f"{'-' if row[k] is None else format(row[k], '.2f'):>7}" for k in ("ap", "ap50", "ap75"))
        share = 100 * pj / energy["ann_pj"]
        lines.append(f"{name:14}{ap}{pj / 1e6:9,.0f}{share:10.1f}{latency['p50']:9.1f}{latency['p99']:9.1f}")
    return "\n".join([*lines, f"written   {out}/: results.json, results.md, report.html"])
