"""AP, or top-1, and operations of a network on labelled windows: what conversion chooses by and reports."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from evburst.app.console import show_progress
from evburst.app.inference import Inference, answers
from evburst.app.scoring import Score, scoring_of
from evburst.data.datasets import Dataset
from evburst.data.representations.voxel_grid import VoxelConfig, voxel_batch
from evburst.data.stats import SpikeStats
from evburst.eval.energy import COST_TABLES, synaptic_ops
from evburst.models.bundle import DetectorBundle
from evburst.models.detector import Detector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.spiking.cost import dense_macs


def score(
    bundle: DetectorBundle, windows: Dataset, ann: bool = False, timesteps: int | None = None, engine: str = "auto"
) -> tuple[Score, float]:
    """AP (COCO) or top-1 over labelled windows, and synaptic operations per window (0 for the ANN)."""
    detector = Detector(bundle, PostConfig(score=0.001), ann=ann, timesteps=timesteps, engine=engine)
    scored, stats = detect_all(detector, windows)
    return scored, sum(float(synaptic_ops(spent).sum()) for spent in stats) / max(len(stats), 1)


def detect_all(detector: Detector, windows: Dataset, batch: int = 16) -> tuple[Score, list[SpikeStats]]:
    """AP (COCO) or top-1 over labelled windows, and the spikes of every window that went through the network (none for the
    ANN)."""
    inference = Inference(detector, detector.bundle.voxel, windows.spec.sensor_size)
    with tqdm(total=len(windows), desc="score", leave=False, disable=not show_progress()) as bar:
        all_ = answers(inference, windows, bar.update, batch)
    scored = scoring_of(detector.bundle.head).score(all_.labels, all_.found, all_.names, windows.spec.classes)
    return scored, [s for s in all_.stats if isinstance(s, SpikeStats)]


def check(bundle: DetectorBundle, windows: Dataset) -> dict[str, Any]:
    """AP or top-1 of the ANN and the SNN on the same labelled windows, and the SNN's energy."""
    results: dict[str, Any] = {**scoring_of(bundle.head).protocol, "windows": len(windows), "split": "val"}
    for name in ("ann", "snn"):
        scored, operations = score(bundle, windows, ann=name == "ann")
        figures = {figure: round(value, 2) for figure, value in scored.figures.items()}
        results[name] = {**figures, "per_class": scored.per_class}
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
