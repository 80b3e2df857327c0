"""Evaluation of classifiers: top-1, top-5, confusion, calibration and the spiking network's loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evburst.app.evaluate.evaluation import Evaluation, Measured, interval_figures
from evburst.app.evaluate.predict import PartResult
from evburst.data.classification import CLASSIFICATION
from evburst.data.errors import ConfigError
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.eval.classification import ClassScores, class_calibration, confusion, per_class, top, top1_loss
from evburst.eval.report.classes import write_class_report


class ClassEvaluation(Evaluation):
    """One evaluation of a classifier, in one of `world` processes."""

    def binning(self) -> VoxelConfig:
        """Return the binning of the training; raise ConfigError if a protocol is set, because only detectors have one."""
        if self.config.protocol:
            raise ConfigError(f"protocol {self.config.protocol} is for detectors; {self.config.weights} is a classifier")
        return self.bundle.voxel

    def results(self, parts: Sequence[list[PartResult]]) -> dict[str, Any]:
        """Return the figures of each network over all recordings."""
        measured = self.measure(parts)
        scored = [_scores(network.parts) for network in measured]
        rows = [self._class_row(network, scores) for network, scores in zip(measured, scored, strict=True)]
        ann = next((k for k, row in enumerate(rows) if row["model"] == "ann"), None)
        for row, scores in zip(rows, scored, strict=True):
            row["top1_loss"] = None
            if ann is not None and row["model"] != "ann":
                loss = top1_loss(scored[ann][0], scores[0], self.config.resamples, self.config.seed)
                row["top1_loss"] = interval_figures(loss, "recording")
        spec = self.dataset.spec
        return {
            "task": CLASSIFICATION,
            "results": rows,
            "classes": list(spec.classes),
            "sensor_size": list(spec.sensor_size),
            "top1_loss": next((row["top1_loss"] for row in rows if row["model"] == "snn"), None),
            **self.metadata(parts),
            "recordings": len(scored[0][0].labels),
        }

    def write(self, results: dict[str, Any], parts: Sequence[list[PartResult]], out: Path) -> None:
        """Write results.json, results.md, report.html and confusion.svg."""
        write_class_report(results, out)

    def _class_row(self, measured: Measured, scored: tuple[ClassScores, ClassScores]) -> dict[str, Any]:
        recordings, windows = scored
        error, count, score, right = class_calibration(recordings)
        return {
            **measured.row,
            "timing": measured.timing.figures(),
            "recordings": len(recordings.labels),
            "top1": round(top(recordings), 3),
            "top5": round(top(recordings, 5), 3),
            "window_top1": round(top(windows.ran), 3),
            "per_class": per_class(recordings, self.dataset.spec.classes),
            "calibration": {"error": error, "count": count, "score": score, "right": right},
            "details": {"confusion": confusion(recordings).tolist(), "layers": measured.layers},
        }


def _scores(parts: Sequence[PartResult]) -> tuple[ClassScores, ClassScores]:
    """Return the scores of recordings, and those of their windows."""
    scores = np.concatenate([part.scores for part in parts]).astype(np.float64)
    labels = np.concatenate([part.boxes.labels["class_id"] for part in parts]).astype(np.int64)
    windows = ClassScores(scores, labels)
    return windows.by_recording([name for part in parts for name in part.names])[0], windows
