"""Evaluation of detectors: average precision by a named protocol, overall and of the newest results, and the spiking network's
loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.evaluate.evaluation import Evaluation, Measured, interval_figures
from evburst.app.evaluate.examples import best_and_worst, rate_maps
from evburst.app.evaluate.latency import streaming_figures
from evburst.app.evaluate.predict import PartResult
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.eval.bootstrap import ap_losses, number_units
from evburst.eval.coco import CocoResult
from evburst.eval.protocol import Protocol, match
from evburst.eval.report.write import ReportPicture, write_report
from evburst.eval.scoring import ap_figures, describe, detail_figures, find_protocol, score


def default_protocol(kind: str) -> str:
    """Return the name of the protocol by which results of a kind of data are published, or "coco"."""
    return "prophesee" if kind in ("gen1", "1mpx") else "coco"


class BoxEvaluation(Evaluation):
    """One evaluation of a detector, in one of `world` processes."""

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol of the settings, or the default of the data set."""
        return find_protocol(self.config.protocol or default_protocol(self.config.data.kind))

    def binning(self) -> VoxelConfig:
        """Return the binning of the training, with the window length of the protocol if it defines one."""
        window_us = self.protocol.window_us
        return replace(self.bundle.voxel, window_ms=window_us / 1000) if window_us else self.bundle.voxel

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

    def pictures(self, parts: Sequence[list[PartResult]]) -> tuple[list[ReportPicture], list[ReportPicture]]:
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
            row["ap_loss"], row["ap50_loss"] = interval_figures(losses.ap, unit), interval_figures(losses.ap50, unit)
            row["ap_loss_by_iou"] = {iou: interval_figures(loss, unit) for iou, loss in losses.by_iou.items()}

    def _units(self, results: Sequence[PartResult]) -> tuple[NDArray[np.int64], str]:
        """Return the index of each scored frame's unit, `(frames,)`, and the kind of unit: recording, group, or picture."""
        names: list[tuple[int, str]] = []
        parts, recorded = self.dataset.parts(), False
        groups = [part.group for part in parts if part.group]
        for number, (part, result) in enumerate(zip(parts, results, strict=True)):
            frames, _ = match([result.boxes], self.protocol, self.dataset.spec.sensor_size)
            recorded = result.boxes.start_us is not None
            if recorded:
                names += [(-1, part.group) if part.group else (number, part.name)] * len(frames)
            else:
                at = np.searchsorted(np.asarray(result.boxes.times_us), [frame.t_us for frame in frames])
                names += [(0, result.names[int(k)]) for k in at]
        return number_units(names), "group" if len(set(groups)) < len(groups) else "recording" if recorded else "picture"
