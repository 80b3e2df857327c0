"""AP, or top-1, and operations of a network on labelled windows: what conversion chooses by and reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from evburst.app.console import show_progress
from evburst.app.inference import Answers, Inference, answers
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
    return scored, _operations(stats)


def detect_all(detector: Detector, windows: Dataset, batch: int = 16) -> tuple[Score, list[SpikeStats]]:
    """AP (COCO) or top-1 over labelled windows, and the spikes of every window that went through the network (none for the
    ANN)."""
    found = _answers(detector, windows, batch)
    scored = scoring_of(detector.bundle.head).score(found.labels, found.found, found.names, windows.spec.classes)
    return scored, _spikes(found)


def check(bundle: DetectorBundle, windows: Dataset) -> dict[str, Any]:
    """AP or top-1 of the ANN and the SNN on the same labelled windows, the loss with its interval, and the SNN's energy.

    Returns:
        In JSON types: windows, split, ann and snn (their figures; of the snn also energy_of_ann, its share of the dense ANN's
        energy by number format), loss (mean, low, high, units: how much lower the snn scores, see Scoring).
    """
    scoring, classes = scoring_of(bundle.head), windows.spec.classes
    results: dict[str, Any] = {**scoring.protocol, "windows": len(windows), "split": "val"}
    both = [_answers(Detector(bundle, PostConfig(score=0.001), ann=ann), windows) for ann in (True, False)]
    for name, one in zip(("ann", "snn"), both, strict=True):
        scored = scoring.score(one.labels, one.found, one.names, classes)
        figures = {figure: round(value, 2) for figure, value in scored.figures.items()}
        results[name] = {**figures, "per_class": scored.per_class}
    macs = sum(dense_macs(bundle.graph, *voxel_size(bundle.voxel, windows, bundle.stride)).values())
    operations = _operations(_spikes(both[1]))
    results["snn"]["energy_of_ann"] = {
        name: round(operations * table.ac_pj / (macs * table.mac_pj), 4) for name, table in COST_TABLES.items()
    }
    loss = scoring.loss(both[0].labels, both[0].found, both[1].found, both[0].names, classes)
    bounds = {name: None if value is None else round(value, 2) for name, value in (("low", loss.low), ("high", loss.high))}
    results["loss"] = {"mean": round(loss.mean, 2), **bounds, "units": loss.units}
    return results


def _answers(detector: Detector, windows: Dataset, batch: int = 16) -> Answers:
    inference = Inference(detector, detector.bundle.voxel, windows.spec.sensor_size)
    with tqdm(total=len(windows), desc="score", leave=False, disable=not show_progress()) as bar:
        return answers(inference, windows, bar.update, batch)


def _spikes(found: Answers) -> list[SpikeStats]:
    return [one for one in found.stats if isinstance(one, SpikeStats)]


def _operations(stats: Sequence[SpikeStats]) -> float:
    """Synaptic operations per window."""
    return sum(float(synaptic_ops(one).sum()) for one in stats) / max(len(stats), 1)


def voxel_size(voxel: VoxelConfig, windows: Dataset, stride: int) -> tuple[int, int, int]:
    """(channels, H, W) of the padded grids."""
    shape = voxel_batch([windows[0].window], voxel, windows.spec.sensor_size, stride).shape
    return shape[1], shape[2], shape[3]
