"""Measure what box voting (`post.vote_iou`) gives the ANN and the spiking network.

    python bench/voting.py street=STREET --json docs/results/voting.json
    python bench/voting.py caltech6=CALTECH6 caltech6-ssd=CALTECH6 --limit 1902 --json docs/results/voting.json

COCO AP with several overlaps on windows of `select`, on which the default was chosen, and on the windows of `val` that
`evburst evaluate` scores, without voting and with the default. Each network runs once per window; its maps are decoded with
every setting.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.int8_ann import measured
from evburst.app.evaluate.config import load_evaluation
from evburst.data.boxes import Detections
from evburst.data.datasets import Dataset
from evburst.data.datasets.registry import Request, open_dataset
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.eval.bootstrap import Interval, ap_losses, number_units
from evburst.eval.coco import CocoResult, coco_result, frames_of
from evburst.eval.report.tables import Table, interval
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import SCORED, PostConfig, decode

DEFAULT = SCORED.vote_iou
SELECT = 1024
"""Number of windows of `select`."""
OVERLAPS = {"select": (1.0, 0.8, 0.7, 0.6, 0.5), "val": (1.0, DEFAULT)}
"""Settings measured on each split; with 1, no box votes on another."""


def found_with(
    detector: GridDetector, grid: NDArray[np.uint8], size: SensorSize, posts: Sequence[PostConfig]
) -> list[Detections]:
    """Return the boxes of one grid `(1, 2 * bins, H, W)` with each setting; none if it is empty."""
    if not grid.any():
        return [Detections.empty(0) for _ in posts]
    maps: dict[str, NDArray[np.float32]] = {}
    detector.detect(grid, size, [0], maps, count=False)
    head = detector.bundle.head
    return [decode([torch.from_numpy(one) for one in maps.values()], head, post, size, [0])[0] for post in posts]


def score(bundle: Bundle, windows: Dataset, overlaps: Sequence[float]) -> list[dict[str, Any]]:
    """Return AP and AP50 of both networks, and the AP lost, for each setting."""
    networks = GridDetector(bundle, SCORED, ann=True), GridDetector(bundle, SCORED)
    posts = [PostConfig(score=SCORED.score, vote_iou=overlap) for overlap in overlaps]
    items, size = [windows[i] for i in range(len(windows))], windows.spec.sensor_size
    grids = [voxel_batch([item.window], bundle.voxel, size, bundle.stride) for item in items]
    boxes = [[found_with(network, grid, size, posts) for grid in grids] for network in networks]
    labels, units = [item.boxes for item in items], number_units([item.name for item in items])
    rows = []
    for k, overlap in enumerate(overlaps):
        ann, snn = (coco_result(frames_of(labels, [own[k] for own in one]), bundle.head.classes) for one in boxes)
        losses = ap_losses(ann.matches, snn.matches, units)
        rows.append({"vote_iou": overlap, "ann": _ap(ann), "snn": _ap(snn), "ap_loss": asdict(losses.ap)})
    return rows


def _ap(result: CocoResult) -> dict[str, float]:
    return {"ap": result.summary.ap, "ap50": result.summary.ap50}


def measure(weights: str, root: str, cache: str, limit: int = 0) -> dict[str, Any]:
    """Return the rows of both splits; `limit`: number of windows of `val`, 0 for all."""
    config, bundle = load_evaluation(None, [f"weights={weights}", f"data.root={root}", f"cache={cache}"])
    found = {}
    for split, overlaps in OVERLAPS.items():
        request = Request(
            split, bundle.voxel.window_us, SELECT if split == "select" else limit, Path(cache), config.seed, spread=True
        )
        windows = open_dataset(config.data, request)
        found[split] = {"windows": len(windows), "rows": score(bundle, windows, overlaps)}
    return found


def table(record: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    head = ["weights", "split", "windows", "vote_iou", "AP, AP50: ANN", "AP, AP50: SNN", "AP lost by SNN"]
    rows = []
    for weights, splits in record["weights"].items():
        for split, found in ((name, splits[name]) for name in OVERLAPS):
            for row in found["rows"]:
                networks = (f"{row[name]['ap']:.1f}, {row[name]['ap50']:.1f}" for name in ("ann", "snn"))
                overlap = "no voting" if row["vote_iou"] == 1 else f"{row['vote_iou']:g}"
                first = f"`{weights}`", f"`{split}`", f"{found['windows']:,}", overlap
                rows.append([*first, *networks, interval(Interval(**row["ap_loss"]))])
    return Table(head, rows).markdown()


def main() -> None:
    """Command line."""
    print(table({"weights": measured((__doc__ or "").splitlines()[0], measure)}))


if __name__ == "__main__":
    main()
