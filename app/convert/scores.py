"""The figures by which conversion selects and reports: AP or top-1 with labels, divergence from the ANN without, and synaptic
operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from evburst.app.console import show_progress
from evburst.app.dataset_runs import DatasetResults, run_dataset
from evburst.app.inference import Inference
from evburst.app.runs import block_side
from evburst.app.scoring import Score, scoring_of
from evburst.data.datasets import Dataset
from evburst.data.stats import SpikeStats
from evburst.eval.energy import COST_TABLES, share_of_dense, synaptic_ops
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import SCORED
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.network import SpikingNetwork
from evburst.models.tasks import divergence

_COUNTED_BATCH = 8


@dataclass(frozen=True)
class Measurement:
    """Figures of a network on windows that it does not learn from.

    Attributes:
        lost: AP or top-1 of the ANN minus that of the network, in points; None without labels.
        operations: synaptic operations per window that is not idle.
        burst: mean spikes per burst, weighted by fan-out.
        divergence: from the ANN; None with labels.
    """

    lost: float | None
    operations: float
    burst: float
    divergence: float | None = None


def score(bundle: Bundle, windows: Dataset, ann: bool = False) -> tuple[Score, float]:
    """Return the AP (COCO) or top-1 over labelled windows, and the synaptic operations per window (0 for the ANN)."""
    result, stats = score_detector(GridDetector(bundle, SCORED, ann=ann), windows)
    return result, _operations(stats)


def score_detector(detector: GridDetector, windows: Dataset, batch: int = 16) -> tuple[Score, list[SpikeStats]]:
    """Return the AP (COCO) or top-1 over labelled windows, and the spike counts of every window that is not idle.

    There are no spike counts for the ANN.
    """
    results = predict_windows(detector, windows, batch)
    scoring = scoring_of(detector.bundle.head)
    return scoring.score(results.labels, results.predictions, results.names, windows.spec.classes), _spikes(results)


def measure_labelled(bundle: Bundle, windows: Dataset, ann_score: float) -> Measurement:
    """Measure the loss and the operations on labelled windows, given the ANN's AP or top-1 on them."""
    scored, stats = score_detector(GridDetector(bundle, SCORED), windows)
    layers = [layer for batch in stats for layer in batch.layers]
    spent, graded = (sum(float(getattr(x, name).sum()) for x in layers) for name in ("synaptic_ops", "graded_ops"))
    return Measurement(ann_score - scored.value, _operations(stats), spent / max(graded, 1.0))


def operations_per_image(bundle: Bundle, grids: Tensor) -> float:
    """Return the mean number of synaptic operations on grids `(N, 2 * bins, H, W)` float32; at least one grid."""
    network, spent = SpikingNetwork(bundle.spiking, bundle.parameters), 0.0
    for batch in torch.split(grids, _COUNTED_BATCH):  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            spent += float(synaptic_ops(network.run(batch)[1]).sum())
    return spent / len(grids)


def measure_unlabelled(bundle: Bundle, ann: Graph, batches: Iterable[Tensor]) -> Measurement:
    """Measure the divergence and the operations on batches of grids `(N, 2 * bins, H, W)` float32; at least one grid."""
    network, teacher = SpikingNetwork(bundle.spiking, bundle.parameters), Runner(ann)
    diverged = spent = graded = 0.0
    count = 0
    for grids in batches:
        with torch.inference_mode():
            outputs, stats = network.run(grids)
            diverged += len(grids) * float(divergence(teacher(grids), outputs, bundle.head))
        spent += sum(float(layer.synaptic_ops.sum()) for layer in stats.layers)
        graded += sum(float(layer.graded_ops.sum()) for layer in stats.layers)
        count += len(grids)
    return Measurement(None, spent / count, spent / max(graded, 1.0), diverged / count)


def compare_with_ann(bundle: Bundle, windows: Dataset, split: str) -> dict[str, Any]:
    """Score the ANN and the SNN on the same labelled windows of a split: AP or top-1, the SNN's loss with its interval, and its
    energy.

    Returns:
        In JSON types: windows, split, ann and snn (their figures; for the snn also energy_of_ann, its share of the dense ANN's
        energy by number format), loss (mean, low, high, units: how much lower the snn scores, see Scoring).
    """
    scoring, classes = scoring_of(bundle.head), windows.spec.classes
    results: dict[str, Any] = {**scoring.protocol, "windows": len(windows), "split": split}
    ann, snn = (predict_windows(GridDetector(bundle, SCORED, ann=is_ann), windows) for is_ann in (True, False))
    for name, network in (("ann", ann), ("snn", snn)):
        scored = scoring.score(network.labels, network.predictions, network.names, classes)
        figures = {figure: round(value, 2) for figure, value in scored.figures.items()}
        results[name] = {**figures, "per_class": scored.per_class}
    stats = _spikes(snn)
    operations, macs = _operations(stats), sum(stats[0].dense_macs.values()) if stats else math.inf
    results["snn"]["energy_of_ann"] = {
        name: round(share_of_dense(operations, macs, table), 4) for name, table in COST_TABLES.items()
    }
    loss = scoring.loss(ann.labels, ann.predictions, snn.predictions, ann.names, classes)
    bounds = {name: None if value is None else round(value, 2) for name, value in (("low", loss.low), ("high", loss.high))}
    results["loss"] = {"mean": round(loss.mean, 2), **bounds, "units": loss.units}
    return results


def predict_windows(detector: GridDetector, windows: Dataset, batch: int = 16) -> DatasetResults:
    """Return a network's predictions for labelled windows, with the labels and the spike counts."""
    size, bundle = windows.spec.sensor_size, detector.bundle
    inference = Inference(detector, bundle.voxel, size, downsample=block_side(0, size, bundle.trained_size))
    with tqdm(total=len(windows), desc="score", leave=False, disable=not show_progress()) as bar:
        return run_dataset(inference, windows, bar.update, batch)


def _spikes(results: DatasetResults) -> list[SpikeStats]:
    return [stats for stats in results.stats if isinstance(stats, SpikeStats)]


def _operations(stats: Sequence[SpikeStats]) -> float:
    """Return the synaptic operations per window."""
    return sum(float(synaptic_ops(window).sum()) for window in stats) / max(len(stats), 1)
