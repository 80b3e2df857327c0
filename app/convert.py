"""From a trained network to a weights file of burst neurons: the steps behind convert.py."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from app.config import build
from app.provenance import provenance
from app.train import TrainConfig
from data.datasets import Dataset
from data.datasets.catalog import DatasetConfig, Request, open_dataset
from data.errors import CheckpointError
from data.representations.voxel_grid import VoxelConfig, voxel_batch
from eval.coco import average_precision
from eval.energy import COST_TABLES, synaptic_ops
from models.checkpoint import load_tensors
from models.detector import Detector, DetectorBundle
from models.detectors import NetworkConfig, build_network
from models.detectors.postprocess import PostConfig
from models.spiking.convert.calibrate import calibrate
from models.spiking.convert.fold import trace

_PATHS = ("root", "out", "weights")


@dataclass(frozen=True)
class ConvertConfig:
    """What convert.py can be told.

    Attributes:
        weights: best.safetensors of a training run.
        out: the weights file to write.
        root: folder of labelled pictures for calibration; "" for the one the network was trained with.
        timesteps: T.
        phi: most spikes of a neuron in one timestep.
        light: correct the biases layer by layer.
        calibration_windows: windows of the training split to calibrate on.
        check_windows: windows of the validation split to measure AP and energy on; 0: all, -1: none.
        cache: folder of simulated windows.
        note: free text for the record, e.g. where the pictures come from.
    """

    weights: str
    out: str
    root: str = ""
    timesteps: int = 2
    phi: int = 8
    light: bool = True
    calibration_windows: int = 128
    check_windows: int = 0
    cache: str = "runs/cache"
    note: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.timesteps <= 64 or not 1 <= self.phi <= 255:
            raise ValueError("timesteps must be 1 to 64 and phi 1 to 255")


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Fold, calibrate, measure, save; returns the record that is saved with the weights."""
    started = time.perf_counter()
    tensors, trained = load_tensors(Path(config.weights), "ann")
    settings = build(TrainConfig, trained["config"])
    network = build(NetworkConfig, trained["network"])
    model: Any = build_network(network)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{config.weights}: does not fit its own configuration ({str(error).splitlines()[0]})") from None
    graph = trace(model, torch.zeros(1, settings.voxel.channels, 128, 128))
    graph.tensors = {name: tensor.half().float() for name, tensor in graph.tensors.items()}  # as they will be stored
    data = replace(settings.data, root=config.root) if config.root else settings.data
    windows = _windows(config, data, settings.voxel, "train", config.calibration_windows, settings.schedule.seed)
    items = [windows[i].window for i in range(len(windows))]
    stride, size = max(model.head_spec.strides), windows.spec.sensor_size
    batches = [
        torch.from_numpy(voxel_batch(items[i : i + 32], settings.voxel, size, stride)).float() for i in range(0, len(items), 32)
    ]
    parameters = calibrate(graph, batches, config.timesteps, config.phi, config.light)
    record = {
        "dataset": settings.name,
        "training": {k: _portable(trained[k]) for k in ("config", "epoch", "validation", "commit", "machine") if k in trained},
        "conversion": {**_portable(asdict(config)), "seconds": round(time.perf_counter() - started, 1), **provenance()},
    }
    bundle = DetectorBundle(graph, parameters, model.head_spec, settings.voxel, record)
    if config.check_windows >= 0:
        record["check"] = check(
            bundle, _windows(config, data, settings.voxel, "val", config.check_windows, settings.schedule.seed)
        )
    bundle.save(Path(config.out))
    return record


def check(bundle: DetectorBundle, windows: Dataset) -> dict[str, Any]:
    """AP of the ANN and the SNN on the same labelled windows, and the SNN's energy."""
    post = PostConfig(score=0.001)
    size = windows.spec.sensor_size
    results: dict[str, Any] = {"protocol": "coco", "windows": len(windows), "split": "val (simulated)"}
    for name in ("ann", "snn"):
        detector = Detector(bundle, post, ann=name == "ann")
        labels, predictions, operations, macs = [], [], 0.0, 0
        for first in tqdm(range(0, len(windows), 16), desc=f"check {name}", disable=not sys.stderr.isatty()):
            items = [windows[i] for i in range(first, min(first + 16, len(windows)))]
            grids = voxel_batch([item.window for item in items], bundle.voxel, size, bundle.stride)
            found, stats = detector.detect(grids, size, [0] * len(items))
            labels += [item.boxes for item in items]
            predictions += found
            if stats is not None:
                operations += float(synaptic_ops(stats).sum())
                macs = sum(stats.dense_macs.values())
        scored = average_precision(labels, predictions, windows.spec.classes)
        results[name] = {"ap": round(scored.ap, 2), "ap50": round(scored.ap50, 2), "per_class": scored.per_class}
        if macs:
            table = COST_TABLES["fp32"]
            ratio = operations / len(windows) * table.ac_pj / (macs * table.mac_pj)
            results[name]["energy_ratio_fp32_per_spike"] = round(ratio, 4)
    return results


def _windows(config: ConvertConfig, data: DatasetConfig, voxel: VoxelConfig, split: str, n: int, seed: int) -> Dataset:
    with tqdm(desc=f"simulate {split}", unit="win", disable=not sys.stderr.isatty()) as bar:
        progress = lambda done: bar.update(done - bar.n)  # noqa: E731
        return open_dataset(data, Request(split, voxel.window_us, n, Path(config.cache), seed, progress=progress))


def _portable(value: Any) -> Any:
    """A record without this machine's folders: paths keep their last part."""
    if isinstance(value, dict):
        return {k: Path(v).name if k in _PATHS and v else _portable(v) for k, v in value.items() if k != "cache"}
    return value
