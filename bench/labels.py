"""How many labels a detector for classes of one's own takes.

    python bench/labels.py --data FOLDER [--json docs/results/labels.json]

FOLDER holds recordings of a real sensor that are not part of evburst: dvs128/*_s1.aedat, one hand-sized object each in front of
a static DVS128, for about 19 s, and boxes_auto_50ms.csv, their boxes, which a program found. The first 60 % of each recording
are learned from, with a number of labelled times, evenly spread; the last 25 % are measured on. The commands are those of
docs/train.md, with default settings, from `street` and from random weights.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.convert.cli import convert_main
from evburst.app.evaluate.cli import evaluate_main
from evburst.app.provenance import provenance
from evburst.app.train.cli import train_main
from evburst.data.datasets import evenly_spread
from evburst.data.readers import open_events
from evburst.data.writers import write_events
from evburst.eval.report.tables import Table
from evburst.eval.results import read_results

LEARNED, MEASURED = 0.6, 0.75
"""Shares of a recording's time at which learning ends and measuring begins."""

_WINDOW_US = 50_000
_COLUMNS = "t_us", "class", "x0", "y0", "x1", "y1"


def write_split(folder: Path, data: Path, labels: int) -> list[str]:
    """Write folder/train and folder/val with their labels; `labels` per recording to learn from. Returns the classes."""
    rows = defaultdict(list)
    with (data / "boxes_auto_50ms.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["file"].endswith("_s1.aedat"):
                rows[row["file"]].append({**row, "t_us": int(row["t1_us"])})
    for name, own in sorted(rows.items()):
        stream = open_events(data / name)
        events = np.concatenate(list(stream.packets()))
        events["t"] -= events["t"][0]
        end = own[-1]["t_us"]
        learned, measured = (round(share * end) // _WINDOW_US * _WINDOW_US for share in (LEARNED, MEASURED))
        known = [row for row in own if row["t_us"] <= learned]
        known = [known[i] for i in evenly_spread(len(known), labels)]
        later = [row for row in own if row["t_us"] > measured]
        for split, first, last, kept in (("train", 0, learned, known), ("val", measured, end, later)):
            path = folder / split / f"{own[0]['class']}.dat"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_events(path, events[(events["t"] >= first) & (events["t"] < last)], stream.sensor_size)
            with path.with_name(f"{path.stem}_bbox.csv").open("w", newline="") as file:
                table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
                table.writeheader()
                table.writerows(kept)
    return sorted(own[0]["class"] for own in rows.values())


def measure(folder: Path, data: Path, labels: int, init: str) -> dict[str, Any]:
    """Train, convert and evaluate; returns the figures of one row."""
    classes, started = write_split(folder, data, labels), time.perf_counter()
    root = ["--dataset", "folder", "--root", str(folder)]
    run, weights = folder / "run", str(folder / "own.safetensors")
    initial = ["--init", init] if init else []
    cache = ["--set", f"cache={folder / 'cache'}"]
    steps = [
        (train_main, [*root, "--own-classes", ",".join(classes), *initial, "--out", str(run), *cache]),
        (convert_main, ["--weights", str(run / "best.safetensors"), "--out", weights, *cache]),
    ]
    for command, arguments in steps:
        if command(arguments):
            raise SystemExit(1)
    minutes = (time.perf_counter() - started) / 60
    if evaluate_main([*root, "--weights", weights, "--both", "--out", str(folder / "results"), *cache]):
        raise SystemExit(1)
    results = read_results(folder / "results" / "results.json")
    row: dict[str, Any] = {"labels": labels, "objects": len(classes), "init": init, "minutes": round(minutes, 1)}
    row["windows"] = results.windows
    return row | {one.model: {"ap": round(one.ap or 0.0, 1), "ap50": round(one.ap50 or 0.0, 1)} for one in results.results}


def table(results: dict[str, Any]) -> str:
    """AP by the number of labels and the initial weights, as a Markdown table."""
    head = ["labels of each object", "initial weights", "ANN: AP", "AP50", "SNN: AP", "AP50", "minutes"]
    rows = [
        [
            str(row["labels"]),
            f"`{row['init']}`" if row["init"] else "random",
            *(f"{row[network][name]:.1f}" for network in ("ann", "snn") for name in ("ap", "ap50")),
            f"{row['minutes']:.0f}",
        ]
        for row in results["rows"]
    ]
    return Table(head, rows, 2).markdown()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds dvs128/")
    parser.add_argument("--labels", type=int, nargs="+", default=[5, 20, 80], help="labels of each object")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    results: dict[str, Any] = {"rows": [], "provenance": provenance()}
    for labels in args.labels:
        for init in ("street", ""):
            with tempfile.TemporaryDirectory() as folder:
                results["rows"].append(measure(Path(folder), args.data / "dvs128", labels, init))
            print(table(results), flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
