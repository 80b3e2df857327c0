"""Compare our conversion with those of SpikingJelly and sinabs on the same ANN, windows and timesteps.

    python bench/conversion.py --root PICTURES --limit 32 --json conversion.json
    python bench/conversion.py --weights nmnist --root NMNIST --split test --contenders bundled evburst spikingjelly-channel

Reports COCO AP (of a classifier: top-1 over recordings), spikes per neuron, and energy and latency per window for each T.
Energy is a share of the dense ANN's in the headline table (INT8). Every converter gets the folded ANN of a
weights file and sees the same grid at every timestep. The networks of SpikingJelly and sinabs do not depend on T: they run once
up to the largest T, and the mean of their outputs is taken at each T. Ours is calibrated for each T. Synaptic operations are
counted in the same way for all: each spike, with its multiplicity, times its fan-out; input events once
(models/spiking/cost.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.converters import CONTENDERS, Contender, Ours, Setting
from evburst.app.config import build
from evburst.app.provenance import provenance
from evburst.app.scoring import scoring_of
from evburst.app.train.config import TrainConfig
from evburst.data.datasets import Dataset, LabelledWindow
from evburst.data.datasets.registry import Request, open_dataset
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.eval.energy import COST_TABLES, HEADLINE, share_of_dense
from evburst.eval.report.tables import Table
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import SCORED, PostConfig
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.cost import dense_macs, fan_out_maps
from evburst.models.tasks import Prediction, task_of

BATCH = 4
POST = PostConfig(score=SCORED.score, vote_iou=1)
"""Boxes keep the coordinates of their own cell, because voting would hide errors of a conversion."""


@dataclass(frozen=True)
class Result:
    """Result of one network at one T.

    Attributes:
        name: the converter and its settings.
        timesteps: T; 0 for the ANN.
        score: COCO AP, or top-1 over recordings, in percent.
        second: AP50, or top-5.
        spikes_per_neuron: per window, over all timesteps.
        energy: energy per window as a share of the dense ANN's (INT8, every spike counted).
        latency_ms: median over single windows.
        seconds: duration of the conversion; for ours, which is repeated for each T, the mean.
    """

    name: str
    timesteps: int
    score: float
    second: float
    spikes_per_neuron: float
    energy: float
    latency_ms: float
    seconds: float


def measure(contender: Contender, setting: Setting) -> list[Result]:
    """Convert, score and time a contender; return one result for each T."""
    setting = replace(setting, timesteps=contender.timesteps(setting))
    started = time.perf_counter()
    contender.convert(setting, setting.timesteps)
    conversions = len(setting.timesteps) if isinstance(contender, Ours) else 1
    seconds = (time.perf_counter() - started) / conversions
    found: dict[int, list[Prediction]] = {t: [] for t in setting.timesteps}
    operations, spikes = dict.fromkeys(setting.timesteps, 0.0), dict.fromkeys(setting.timesteps, 0.0)
    for x in setting.grids:
        for t, outputs, batch_operations, batch_spikes in contender.run(x):
            found[t] += decoded(setting, outputs, len(x))
            operations[t] += batch_operations / len(setting.labels)
            spikes[t] += batch_spikes / len(setting.labels)
    latency = {t: float(np.median(times)) for t, times in timed(contender, setting).items()}
    size = tuple(setting.calibration.shape[1:])
    table, macs = COST_TABLES[HEADLINE], sum(dense_macs(setting.graph, *size).values())  # type: ignore[arg-type]
    neurons = sum(fan.numel() for name, fan in fan_out_maps(setting.graph, *size).items() if name in relus(setting.graph))  # type: ignore[arg-type]
    results = []
    for t in setting.timesteps:
        scores = scored(setting, found[t])
        share = share_of_dense(operations[t], macs, table)
        results.append(Result(contender.name, t, *scores, spikes[t] / neurons, share, latency[t], seconds))
    return results


def timed(contender: Contender, setting: Setting) -> dict[int, list[float]]:
    """Return the latency in ms from a grid to the outputs after T timesteps, of single windows without the first."""
    times: dict[int, list[float]] = {t: [] for t in setting.timesteps}
    singles = [x[:1] for x in setting.grids][: setting.timed + 1]
    for x in singles:
        started = time.perf_counter()
        for t, *_ in contender.run(x):
            now = time.perf_counter()
            times[t].append((now - started) * 1000)
            if isinstance(contender, Ours):  # each T is a separate run
                started = now
    return {t: values[1:] or values for t, values in times.items()}


def ann(setting: Setting) -> Result:
    """Score and time the ANN."""
    runner = Runner(setting.graph)
    found = [one for x in setting.grids for one in decoded(setting, runner(x), len(x))]
    times = []
    for x in [x[:1] for x in setting.grids][: setting.timed + 1]:
        started = time.perf_counter()
        runner(x)
        times.append((time.perf_counter() - started) * 1000)
    return Result("ANN", 0, *scored(setting, found), 0.0, 1.0, float(np.median(times[1:] or times)), 0.0)


def relus(graph: Graph) -> set[str]:
    """Names of the layers of neurons."""
    return {node.name for node in graph.nodes if node.op == "relu"}


def decoded(setting: Setting, outputs: list[Tensor], n: int) -> list[Prediction]:
    """Boxes or classes of n windows."""
    head = setting.bundle.head
    return list(task_of(head).decode(list(outputs), head, POST, setting.size, [0] * n))


def scored(setting: Setting, found: list[Prediction]) -> tuple[float, float]:
    """Return (AP, AP50), or (top-1, top-5), in percent."""
    scores = scoring_of(setting.bundle.head).score(setting.labels, found, setting.names, setting.classes)
    first, second = scores.figures.values()
    return first, second


def prepare(args: argparse.Namespace) -> Setting:
    """Read the weights and open the datasets."""
    bundle = Bundle.load(args.weights)
    settings = build(TrainConfig, bundle.record["training"]["config"])
    data = replace(settings.data, root=args.root)

    def windows(split: str, n: int) -> Dataset:
        seed, task = settings.schedule.seed, task_of(bundle.head).name
        request = Request(
            split, settings.voxel.window_us, n, args.cache, seed, spread=split == "val", task=task, classes=bundle.head.classes
        )
        return open_dataset(data, request)

    size = windows("train", 1).spec.sensor_size

    def grids(items: Sequence[LabelledWindow]) -> Tensor:
        return torch.from_numpy(voxel_batch([item.window for item in items], bundle.voxel, size, bundle.stride)).float()

    train, reported = windows("train", args.calibration), windows(args.split, args.limit)
    items = [reported[i] for i in range(len(reported))]
    batches = [grids(items[first : first + BATCH]) for first in range(0, len(items), BATCH)]
    labels, names = [item.boxes for item in items], [item.name for item in items]
    timesteps = tuple(sorted(args.timesteps))
    calibration = grids([train[i] for i in range(len(train))])
    return Setting(bundle, calibration, size, reported.spec.classes, labels, names, batches, timesteps, args.timed)


def table(results: list[Result], figures: tuple[str, ...] = ("ap", "ap50")) -> str:
    """Return a table with a line for each network and T; `figures` are the names of both scores."""
    first, second = figures
    head = f"{'':46}{'T':>4}{first:>7}{second:>7}{'lost':>7}{'spikes':>8}{'energy':>8}{'ms':>9}{'convert s':>11}"
    best = results[0].score
    return "\n".join(
        [head]
        + [
            f"{r.name:46}{r.timesteps or '-':>4}{r.score:7.1f}{r.second:7.1f}{best - r.score:7.1f}{r.spikes_per_neuron:8.2f}"
            f"{100 * r.energy:7.1f}%{r.latency_ms:9.0f}{r.seconds:11.1f}"
            for r in results
        ]
    )


def document_table(reports: Sequence[dict[str, Any]]) -> str:
    """Return reports as a table for docs/benchmarks.md; the score is that of the ANN's task."""
    rows = []
    for report in reports:
        for r in report["results"]:
            lost = f"{report['results'][0]['score'] - r['score']:.1f}"
            figures = [f"{r['score']:.1f}", lost, f"{100 * r['energy']:.1f} %", f"{r['spikes_per_neuron']:.2f}"]
            first = f"`{report['weights']}`, {report['windows']}"
            latency = f"{r['latency_ms']:.{1 if r['latency_ms'] < 10 else 0}f} ms"
            cells = [first, r["name"], str(r["timesteps"] or "-"), *figures, latency]
            rows.append(cells)
    head = ["weights, windows", "network", "T", "score", "lost", "energy, of dense ANN", "spikes per neuron", "latency"]
    return Table(head, rows, 2).markdown()


def first_within(results: list[Result]) -> dict[str, Result | None]:
    """Return each converter's result at the smallest T whose score is within a point of the ANN's, or None."""
    names = dict.fromkeys(r.name for r in results[1:])
    enough = results[0].score - 1.0
    return {name: next((r for r in results[1:] if r.name == name and r.score >= enough), None) for name in names}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="caltech6", help="bundled weights or a file (default: caltech6)")
    parser.add_argument("--root", required=True, help="folder of the data that the weights were trained on")
    parser.add_argument("--split", default="val", help="split that is reported (default: val)")
    parser.add_argument("--limit", type=int, default=0, help="windows of it (default: all)")
    parser.add_argument("--calibration", type=int, default=64, help="calibration windows (default: 64)")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], metavar="T")
    parser.add_argument("--contenders", nargs="+", choices=sorted(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--timed", type=int, default=8, help="windows used to measure latency (default: 8)")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="folder of simulated windows")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    setting = prepare(args)
    results = [ann(setting)]
    for name in args.contenders:
        print(f"{name} ...", file=sys.stderr)
        contender = CONTENDERS[name]()
        try:
            results += measure(contender, setting)
        except ImportError as error:
            print(f"{name}: not installed ({error}); pip install -e '.[bench]'", file=sys.stderr)
        except ValueError as error:  # raised by SpikingJelly if a layer is silent in calibration
            if isinstance(contender, Ours):
                raise
            print(f"{name}: cannot convert this network ({error})", file=sys.stderr)
    print(table(results, scoring_of(setting.bundle.head).figures))
    for name, first in first_within(results).items():
        print(f"{name}: " + (f"within 1.0 point at T = {first.timesteps}" if first else "never within 1.0 point"))
    if args.json:
        conditions = {
            "weights": args.weights,
            "split": args.split,
            "windows": len(setting.labels),
            "threads": torch.get_num_threads(),
            **provenance(),
        }
        args.json.write_text(json.dumps({**conditions, "results": [asdict(r) for r in results]}, indent=1))


if __name__ == "__main__":
    main()
