"""From a trained network to a weights file of burst neurons: the steps behind convert.py.

Fold, measure each layer's sensitivity, choose burst limits and thresholds on the Pareto frontier, calibrate, check, save.
Beside the weights file lie NAME_sensitivity.npz (resumes, and lets another point be picked), NAME_frontier.csv and .png,
NAME_report.json and .png.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from evburst.app.config import build
from evburst.app.console import show_progress
from evburst.app.inference import Inference, detections_and_labels
from evburst.app.plots.conversion import draw_frontier, draw_report, load_table, save_table, write_frontier
from evburst.app.provenance import provenance
from evburst.app.train import TrainConfig
from evburst.data.boxes import Detections
from evburst.data.datasets import Dataset
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.errors import CheckpointError, ConfigError
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_batch
from evburst.data.stats import SpikeStats
from evburst.eval.coco import AveragePrecision, average_precision
from evburst.eval.energy import COST_TABLES, synaptic_ops
from evburst.models.bundle import DetectorBundle, find_weights, load_tensors, read_kind
from evburst.models.detector import Detector
from evburst.models.detectors import NetworkConfig, build_network
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.adaptive import least_tau
from evburst.models.spiking.convert.allocate import Frontier, pareto_frontier
from evburst.models.spiking.convert.calibrate import LEVELS, Choice, calibrate, record_targets
from evburst.models.spiking.convert.distil import distil
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.importance import confidence
from evburst.models.spiking.convert.report import conversion_report
from evburst.models.spiking.convert.sensitivity import SensitivityTable, default_choices, measure
from evburst.models.spiking.cost import dense_macs
from torch import Tensor
from tqdm import tqdm

_LOG = logging.getLogger(__name__)
_PATHS = ("root", "out", "weights", "blend_with", "init")
_SEARCH_ROUNDS = 6
_DISTIL_BATCH = 2
_ADAPTIVE_WINDOWS = 128
_ADAPTIVE_LOSS = 0.3


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of convert.

    Attributes:
        weights: best.safetensors of a training run, a file that was converted before, or bundled weights by name.
        blend_with: another such file, of the network that this one was fine-tuned from, to average with.
        blend: share of `weights` in the mean of both, which is often better than either (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
        out: the weights file to write.
        root: folder of the data to calibrate on; "" for the one the network was trained with.
        timesteps: timesteps T.
        phi_max: most spikes of a neuron in one timestep.
        level: level of calibration (models/spiking/convert/calibrate.py); advanced adjusts the weights as well. After a search, the advanced one
            keeps to the budget, or else to the energy that the choice was expected to cost.
        thresholds: "error", of the least squared error, or "typical", in units of each channel's typical activation, as training
            with `schedule.rounding` rounds to: for networks that were trained so.
        signed: neurons that take back, by negative spikes, what they fired too early: of use from T = 2 on.
        budget: energy per window, as a share of the ANN's (FP32, per spike), that the choice may cost; None: no search.
        max_loss: instead of a budget: points of AP that may be lost on labelled calibration windows, by light calibration:
            the gradient descent of the advanced one comes after the choice.
        compress: instead: divergence from the ANN, summed over layers, that the cheapest choice may have.
        pick: instead: number of a point of the frontier, as in NAME_frontier.csv.
        calibration_windows: windows of the training split to calibrate on.
        sensitivity_windows: of those, for measuring sensitivities.
        advanced_windows: windows of the training split that advanced calibration goes on with, each once, without labels
            (models/spiking/convert/distil.py); 0: not at all.
        tuning_windows: windows of the training split on which `max_loss` is measured.
        check_windows: windows of the validation split to measure AP and energy on; 0: all, -1: none.
        cache: folder of simulated windows.
        note: free text for the record, e.g. where the pictures come from.
    """

    weights: str
    out: str
    root: str = ""
    blend_with: str = ""
    blend: float = 0.5
    timesteps: int = 1
    phi_max: int = 8
    level: Literal["none", "light", "advanced"] = "light"
    thresholds: Literal["error", "typical"] = "error"
    signed: bool = False
    budget: float | None = None
    max_loss: float | None = None
    compress: float | None = None
    pick: int | None = None
    calibration_windows: int = 64
    sensitivity_windows: int = 32
    advanced_windows: int = 1024
    tuning_windows: int = 256
    check_windows: int = 0
    cache: str = "runs/cache"
    note: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.timesteps <= 64 or not 1 <= self.phi_max <= 255:
            raise ValueError("timesteps must be 1 to 64 and phi_max 1 to 255")
        if not 0 <= self.blend <= 1:
            raise ValueError("blend must be 0 to 1")
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        if self.thresholds not in ("error", "typical"):
            raise ValueError("thresholds must be error or typical")
        if sum(x is not None for x in self._wishes) > 1:
            raise ValueError("budget, max_loss, compress and pick are four ways of choosing one point: give one")

    @property
    def searches(self) -> bool:
        """Whether burst limits and thresholds are chosen layer by layer."""
        return any(x is not None for x in self._wishes)

    @property
    def uniform(self) -> Choice:
        """All layers alike."""
        return Choice(self.phi_max, signed=self.signed, typical=self.thresholds == "typical")

    @property
    def _wishes(self) -> tuple[float | None, ...]:
        return self.budget, self.max_loss, self.compress, self.pick


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Fold, choose, calibrate, measure, save; returns the record that is saved with the weights."""
    started = time.perf_counter()
    run = Conversion(config)
    choices, found = run.choose() if config.searches else (config.uniform, {})
    bundle = run.calibrated(choices)
    if config.level == "advanced" and config.advanced_windows:
        bundle = run.distilled(bundle, found.get("expected_share") if config.budget is None else config.budget)
    seconds = time.perf_counter() - started
    out = Path(config.out)
    report = conversion_report(bundle.graph, bundle.spiking, bundle.parameters, run.grids[: config.sensitivity_windows])
    run.beside("report.json").write_text(json.dumps(report.to_dict(), indent=1))
    draw_report(report, run.beside("report.png"))
    _LOG.info(report.table())
    record = {
        "dataset": run.settings.name,
        "training": {k: _portable(run.trained[k]) for k in ("config", "epoch", "validation", "commit", "machine")},
        "conversion": {
            **_portable(asdict(config)),
            **found,
            **run.adaptive(bundle),
            "seconds": round(seconds, 1),
            **provenance(),
        },
    }
    if config.check_windows >= 0:
        record["check"] = check(bundle, run.windows("val", config.check_windows))
    replace(bundle, record=record).save(out)
    return record


def _read_ann(weights: str) -> tuple[Graph, HeadSpec, dict[str, Any]]:
    """The folded ANN as it will be stored, its head, and the record of its training.

    Args:
        weights: best.safetensors of a training run; or a file that was converted before, whose ANN is converted anew.
    """
    path = find_weights(weights)
    if read_kind(path) == "detector":
        bundle = DetectorBundle.load(path)
        if "training" not in bundle.record:
            raise CheckpointError(f"{path}: no record of how it was trained; give the training run's best.safetensors instead")
        return bundle.graph, bundle.head, bundle.record["training"]
    tensors, trained = load_tensors(path, "ann")
    model: Any = build_network(build(NetworkConfig, trained["network"]))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its own configuration ({str(error).splitlines()[0]})") from None
    graph = trace(model, torch.zeros(1, model.config.channels, 128, 128))
    return graph.in_float16(), model.head_spec, trained


def _blended(graph: Graph, other: Graph, share: float) -> Graph:
    """The weighted mean of two networks' folded weights; raises CheckpointError if they are not the same network."""
    if graph.to_json() != other.to_json():
        raise CheckpointError("blend_with: not the same network as the weights it is to be blended with")
    mean = {name: share * tensor + (1 - share) * other.tensors[name] for name, tensor in graph.tensors.items()}
    return Graph(graph.nodes, graph.outputs, mean).in_float16()


class Conversion:
    """The network, its calibration grids, and what is done with them; see ConvertConfig."""

    def __init__(self, config: ConvertConfig) -> None:
        self.config = config
        self.graph, self.head, self.trained = _read_ann(config.weights)
        if config.blend_with:
            self.graph = _blended(self.graph, _read_ann(config.blend_with)[0], config.blend)
        self.settings, self.stride = build(TrainConfig, self.trained["config"]), max(self.head.strides)
        calibration = self.windows("train", config.calibration_windows)
        self.grids = self._grids(calibration, range(len(calibration)))
        self.targets = record_targets(self.graph, self.grids, confidence(Runner(self.graph)(self.grids), self.head))

    def windows(self, split: str, n: int, showing: int = 0) -> Dataset:
        """Windows of the data that the network was trained on, or of the root given instead.

        Args:
            split: e.g. "val".
            n: how many; 0: all.
            showing: of simulated data, another number shows the same pictures with other motion and noise.
        """
        c, s = self.config, self.settings
        data: DatasetConfig = replace(s.data, root=c.root) if c.root else s.data
        with tqdm(desc=f"windows of {split}", unit="win", disable=not show_progress()) as bar:
            progress = _absolute(bar)
            seed = s.schedule.seed + showing
            return open_dataset(data, Request(split, s.voxel.window_us, n, Path(c.cache), seed, progress=progress))

    def beside(self, what: str) -> Path:
        """A file beside the weights file."""
        out = Path(self.config.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        return out.with_name(f"{out.stem}_{what}")

    def calibrated(self, choices: dict[str, Choice] | Choice) -> DetectorBundle:
        """The detector with these choices, calibrated layer by layer."""
        spiking, parameters = calibrate(self.graph, self.targets, self.config.timesteps, choices, self.config.level)
        return DetectorBundle(self.graph, spiking, parameters, self.head, self.settings.voxel, {})

    def distilled(self, bundle: DetectorBundle, share: float | None) -> DetectorBundle:
        """What was calibrated, nearer to the ANN.

        Args:
            share: of the ANN's energy, that it shall learn to do with; None: as much as it likes.
        """
        operations = None if share is None else share / self.share_per_operation()
        windows = self.windows("train", self.config.advanced_windows)
        batches = [range(i, min(i + _DISTIL_BATCH, len(windows))) for i in range(0, len(windows), _DISTIL_BATCH)]
        with tqdm(total=len(batches), desc="distil", disable=not show_progress()) as bar:

            def progress(moved: float) -> None:
                bar.set_postfix(divergence=f"{moved:.2f}", refresh=False)
                bar.update()

            grids = (self._grids(windows, batch) for batch in batches)
            spiking, parameters = distil(
                self.graph, bundle.spiking, bundle.parameters, self.head, grids, len(batches), operations, progress
            )
        return replace(bundle, spiking=spiking, parameters=parameters)

    def adaptive(self, bundle: DetectorBundle) -> dict[str, Any]:
        """The agreement of boxes after which `detect.py --adaptive` may stop, and the mean timesteps it needs."""
        if self.config.timesteps == 1:
            return {}
        windows = self.windows("train", min(self.config.tuning_windows, _ADAPTIVE_WINDOWS))
        detector = Detector(bundle, PostConfig(score=0.001), engine="reference")
        size, labels, steps = windows.spec.sensor_size, [], []
        for item in (windows[i] for i in range(len(windows))):
            grid = voxel_batch([item.window], bundle.voxel, size, bundle.stride)
            steps.append(detector.step_by_step(grid, size))
            labels.append(item.boxes)
        ap: Callable[[list[Detections]], float] = lambda found: average_precision(labels, found, windows.spec.classes).ap  # noqa: E731
        tau, used = least_tau(steps, ap, _ADAPTIVE_LOSS)
        return {
            "adaptive": {"tau": tau, "mean_timesteps": round(used, 2), "windows": len(windows), "max_loss_ap": _ADAPTIVE_LOSS}
        }

    def choose(self) -> tuple[dict[str, Choice], dict[str, Any]]:
        """A point of the frontier, and the record of the search."""
        frontier = pareto_frontier(self.table())
        share = frontier.cost * self.share_per_operation()
        index, tried = self._point(frontier, share)
        write_frontier(frontier, share, self.beside("frontier.csv"))
        draw_frontier(frontier, share, index, tried, self.beside("frontier.png"))
        return frontier.point(index), {"point": index, "expected_share": round(float(share[index]), 4), "tried": tried}

    def _point(self, frontier: Frontier, share: np.ndarray) -> tuple[int, list[dict[str, float]]]:
        c = self.config
        if c.pick is not None:
            if not 0 <= c.pick < len(frontier):
                raise ConfigError(f"pick {c.pick}: the frontier has points 0 to {len(frontier) - 1}")
            return c.pick, []
        if c.budget is not None:
            return frontier.within_budget(c.budget / self.share_per_operation()), []
        if c.compress is not None:
            return frontier.within_tolerance(c.compress), []
        return self._cheapest_within_loss(frontier, share, float(c.max_loss or 0.0))

    def _cheapest_within_loss(
        self, frontier: Frontier, share: np.ndarray, max_loss: float
    ) -> tuple[int, list[dict[str, float]]]:
        """Halve the interval of (log) cost between what loses too much and what does not."""
        windows = self.windows("train", self.config.tuning_windows)
        start = self.calibrated(self.config.uniform)
        ann = score(start, windows, ann=True)[0].ap
        low, high = np.log(share[0]), np.log(share[-1])
        best, tried = len(frontier) - 1, []
        for _ in tqdm(range(_SEARCH_ROUNDS), desc="search", disable=not show_progress()):
            middle = int(np.clip(np.searchsorted(share, np.exp((low + high) / 2)), 0, len(frontier) - 1))
            scored, operations = score(self.calibrated(frontier.point(middle)), windows)
            lost = ann - scored.ap
            tried.append({"share": float(operations * self.share_per_operation()), "lost_ap": round(lost, 2), "point": middle})
            if lost <= max_loss:
                best, high = middle, np.log(share[middle])
            else:
                low = np.log(share[middle])
        return best, tried

    def table(self) -> SensitivityTable:
        """Measured, or read if the same network was measured before."""
        c, path = self.config, self.beside("sensitivity.npz")
        grids, choices = self.grids[: c.sensitivity_windows], default_choices(c.phi_max, c.signed, c.uniform.typical)
        batches = [grids[i : i + 8] for i in range(0, len(grids), 8)]
        start = load_table(path, self.graph, c.timesteps, choices)
        layers = sum(node.op == "relu" for node in self.graph.nodes)
        done = start.batches if start else 0
        with tqdm(total=layers * len(batches), initial=layers * done, desc="sensitivity", disable=not show_progress()) as bar:
            save: Callable[[SensitivityTable], None] = lambda table: save_table(path, table, self.graph, c.timesteps)  # noqa: E731
            return measure(self.graph, self.head, batches, c.timesteps, choices, start, save, bar.update)

    def share_per_operation(self) -> float:
        """Energy of one synaptic operation as a share of the ANN's energy per window."""
        table = COST_TABLES["fp32"]
        macs = sum(dense_macs(self.graph, *self.grids.shape[1:]).values())
        return table.ac_pj / (macs * table.mac_pj)

    def _grids(self, windows: Dataset, index: range) -> Tensor:
        items = [windows[i].window for i in index]
        return torch.from_numpy(voxel_batch(items, self.settings.voxel, windows.spec.sensor_size, self.stride)).float()


def score(
    bundle: DetectorBundle, windows: Dataset, ann: bool = False, timesteps: int | None = None, engine: str = "auto"
) -> tuple[AveragePrecision, float]:
    """AP (COCO) over labelled windows, and synaptic operations per window (0 for the ANN)."""
    detector = Detector(bundle, PostConfig(score=0.001), ann=ann, timesteps=timesteps, engine=engine)
    scored, stats = detect_all(detector, windows)
    return scored, sum(float(synaptic_ops(spent).sum()) for spent in stats) / max(len(stats), 1)


def detect_all(detector: Detector, windows: Dataset, batch: int = 16) -> tuple[AveragePrecision, list[SpikeStats]]:
    """AP (COCO) over labelled windows, and the spikes of every window that went through the network (none for the ANN)."""
    inference = Inference(detector, detector.bundle.voxel, windows.spec.sensor_size)
    with tqdm(total=len(windows), desc="score", leave=False, disable=not show_progress()) as bar:
        predictions, labels, stats = detections_and_labels(inference, windows, bar.update, batch)
    return average_precision(labels, predictions, windows.spec.classes), [s for s in stats if isinstance(s, SpikeStats)]


def check(bundle: DetectorBundle, windows: Dataset) -> dict[str, Any]:
    """AP of the ANN and the SNN on the same labelled windows, and the SNN's energy."""
    results: dict[str, Any] = {"protocol": "coco", "windows": len(windows), "split": "val"}
    for name in ("ann", "snn"):
        scored, operations = score(bundle, windows, ann=name == "ann")
        results[name] = {"ap": round(scored.ap, 2), "ap50": round(scored.ap50, 2), "per_class": scored.per_class}
        if operations:
            grid = voxel_size(bundle.voxel, windows, bundle.stride)
            macs = sum(dense_macs(bundle.graph, *grid).values())
            table = COST_TABLES["fp32"]
            results[name]["energy_ratio_fp32_per_spike"] = round(operations * table.ac_pj / (macs * table.mac_pj), 4)
    return results


def voxel_size(voxel: VoxelConfig, windows: Dataset, stride: int) -> tuple[int, int, int]:
    """(channels, H, W) of the padded grids."""
    shape = voxel_batch([windows[0].window], voxel, windows.spec.sensor_size, stride).shape
    return shape[1], shape[2], shape[3]


def _absolute(bar: Any) -> Callable[[int], object]:
    return lambda done: bar.update(done - bar.n)


def _portable(value: Any) -> Any:
    """A record without this machine's folders: paths keep their last part."""
    if isinstance(value, dict):
        return {k: Path(v).name if k in _PATHS and v else _portable(v) for k, v in value.items() if k != "cache"}
    return value
