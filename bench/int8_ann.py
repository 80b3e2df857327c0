"""Measure the AP of the ANN in 8 bits, beside the float ANN and the spiking network, on the windows of docs/results.

    python bench/int8_ann.py street=STREET caltech6=CALTECH6 caltech6-ssd=CALTECH6 --json docs/results/int8_ann.json

The network is the one that bench/inference.py times: quantised after training by onnxruntime (8 bits, weights
per channel, activations per tensor) and run by OpenVINO. Ranges of activations are taken from windows of the split `select`;
AP is COCO's on the windows of `val` that `evburst evaluate` scores. Losses have the same paired bootstrap over pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.contenders import contenders
from evburst.app.dataset_runs import run_dataset
from evburst.app.evaluate.config import load_evaluation
from evburst.app.inference import Inference
from evburst.app.provenance import provenance
from evburst.data.datasets import Dataset
from evburst.data.datasets.registry import Request, open_dataset
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.eval.bootstrap import Interval, ap_losses, number_units
from evburst.eval.coco import CocoResult, coco_result, frames_of
from evburst.eval.report.tables import Table, interval
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.tasks import Prediction, task_of

TIMED_AS = "openvino int8"
"""Its name in bench/contenders.py, where "fixed size" is the same network compiled for one size of grids."""
CALIBRATION = 128
"""Number of windows from which the ranges of activations are taken."""
NETWORKS = {"ann": "ANN", "int8": "ANN, INT8", "snn": "SNN"}


class QuantisedAnn:
    """The ANN in 8 bits as a GridNetwork.

    Args:
        bundle: the weights.
        grids: `(N, C, H, W)` uint8, from which the ranges of activations are taken.
        post: thresholds.
    """

    has_memory = False

    def __init__(self, bundle: Bundle, grids: NDArray[np.uint8], post: PostConfig) -> None:
        self.classes, self.stride, self._head, self._post = bundle.head.classes, bundle.stride, bundle.head, post
        self._run = contenders(bundle, torch.from_numpy(grids))[TIMED_AS]().run

    def detect(
        self, grids: NDArray[np.uint8], sensor_size: SensorSize, t_us: Sequence[int]
    ) -> tuple[Sequence[Prediction], None]:
        """See GridNetwork."""
        maps = [torch.from_numpy(np.array(output)) for output in self._run(torch.from_numpy(grids)).to_tuple()]
        return task_of(self._head).decode(maps, self._head, self._post, sensor_size, t_us), None

    def dense_macs(self, height: int, width: int) -> int:
        """Not counted."""
        return 0


def calibration_grids(bundle: Bundle, windows: Dataset) -> NDArray[np.uint8]:
    """Return the grids of all windows, `(N, C, H, W)` uint8."""
    shown = [windows[i].window for i in range(len(windows))]
    return voxel_batch(shown, bundle.voxel, windows.spec.sensor_size, bundle.stride)


def measure(weights: str, root: str, cache: str, limit: int = 0, calibration: int = CALIBRATION) -> dict[str, Any]:
    """Return AP and AP50 of each network of NETWORKS, and what each loses against another, with intervals."""
    config, bundle = load_evaluation(None, [f"weights={weights}", f"data.root={root}", f"cache={cache}"])

    def windows(split: str, number: int) -> Dataset:
        request = Request(split, bundle.voxel.window_us, number, Path(cache), config.seed, spread=True)
        return open_dataset(config.data, request)

    scored = windows("val", limit)
    networks = {
        "ann": GridDetector(bundle, config.post, ann=True),
        "int8": QuantisedAnn(bundle, calibration_grids(bundle, windows("select", calibration)), config.post),
        "snn": GridDetector(bundle, config.post),
    }
    found: dict[str, CocoResult] = {}
    for name, network in networks.items():
        done = run_dataset(Inference(network, bundle.voxel, scored.spec.sensor_size, spiking=name == "snn"), scored)
        found[name] = coco_result(frames_of(done.labels, done.predictions), bundle.head.classes)
    units = number_units(done.names)

    def lost(first: str, second: str) -> dict[str, Any]:
        losses = ap_losses(found[first].matches, found[second].matches, units)
        return {"ap": asdict(losses.ap), "ap50": asdict(losses.ap50)}

    return {
        "windows": len(scored),
        "calibration": {"split": "select", "windows": calibration},
        "networks": {name: {"ap": one.summary.ap, "ap50": one.summary.ap50} for name, one in found.items()},
        "int8_of_ann": lost("ann", "int8"),
        "snn_of_int8": lost("int8", "snn"),
    }


def table(record: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    head = ["weights", "windows", *(f"AP, AP50: {name}" for name in NETWORKS.values())]
    head += ["AP lost by ANN, INT8", "AP lost by SNN against ANN, INT8"]
    rows = []
    for weights, one in record["weights"].items():
        figures = ["{ap:.1f}, {ap50:.1f}".format(**one["networks"][name]) for name in NETWORKS]
        losses = [interval(Interval(**one[pair]["ap"]), 1) for pair in ("int8_of_ann", "snn_of_int8")]
        rows.append([weights, f"{one['windows']:,}", *figures, *losses])
    return Table(head, rows).markdown()


def measured(description: str, measure: Callable[[str, str, str, int], dict[str, Any]]) -> dict[str, Any]:
    """Read a command line of weights with their pictures, and measure each; return the figures by weights.

    A file of --json keeps the figures of other weights that it contains.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("weights", nargs="+", metavar="NAME=FOLDER", help="weights, and the pictures to measure them on")
    parser.add_argument("--cache", default="runs/cache", help="folder of simulated windows")
    parser.add_argument("--limit", type=int, default=0, help="number of windows (0: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file, beside those of other "
                        "weights that it contains")  # fmt: skip
    args = parser.parse_args()
    pairs = (pair.partition("=")[::2] for pair in args.weights)
    found = {Path(name).stem: measure(name, root, args.cache, args.limit) | provenance() for name, root in pairs}
    if args.json:
        before = json.loads(args.json.read_text())["weights"] if args.json.exists() else {}
        args.json.write_text(json.dumps({"weights": before | found}, indent=1) + "\n")
    return found


def main() -> None:
    """Command line."""
    print(table({"weights": measured((__doc__ or "").splitlines()[0], measure)}))


if __name__ == "__main__":
    main()
