"""Measure the mean and spread of AP loss and energy over conversions that differ only in the windows they learn from.

    python bench/seeds.py --weights caltech6 --root PICTURES --json seeds_caltech6.json --set budget=0.14

Each seed calibrates on other training pictures with other motion; `--set level=advanced` adds the gradient descent. All results
are scored (COCO AP) on the same validation windows. Energy counts every spike, as a share of the dense ANN's (INT8). The file
is written after every seed, and the same command continues it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.config import load_config
from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.conversion import Conversion
from evburst.app.convert.run import convert
from evburst.app.convert.scores import score
from evburst.app.provenance import provenance
from evburst.eval.report.tables import Table
from evburst.models.bundle import Bundle

FIGURES = ("lost_ap", "energy_int8")
HEAD = ["weights", "settings", "seeds", "windows", "AP of the ANN", "AP lost", "least to most", "of dense ANN, INT8", "minutes"]


def converted(config: ConvertConfig, windows: Any, ann: float, share_per_operation: float) -> dict[str, float]:
    """Convert once; return the points of AP lost, the energy as a share of the dense ANN's, and the seconds it took."""
    began = time.perf_counter()
    convert(config)
    scored, operations = score(Bundle.load(config.out), windows)
    seconds = round(time.perf_counter() - began, 1)
    return {"lost_ap": ann - scored.value, "energy_int8": operations * share_per_operation, "seconds": seconds}


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean, standard deviation and extremes of every figure."""
    statistics_by_figure = {}
    for name in FIGURES:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.fmean(values)
        statistics_by_figure[name] = {"mean": mean, "sd": spread, "least": min(values), "most": max(values)}
    return statistics_by_figure


def table(files: list[Path]) -> str:
    """Return a Markdown table with one line for each file."""
    rows = []
    for path in files:
        record = json.loads(path.read_text())
        lost, energy = (record["summary"][name] for name in FIGURES)
        settings = " ".join(f"`{setting}`" for setting in record["settings"])
        counts = str(len(record["rows"])), str(record["windows"]), f"{record['ann_ap']:.2f}"
        spread = f"{lost['mean']:.2f} ± {lost['sd']:.2f}", f"{lost['least']:.2f} to {lost['most']:.2f}"
        cost = f"{100 * energy['mean']:.2f} ± {100 * energy['sd']:.2f} %"
        minutes = f"{statistics.fmean(row['seconds'] for row in record['rows']) / 60:.0f}"
        rows.append([record["weights"], settings, *counts, *spread, cost, minutes])
    return Table(HEAD, rows, 2).markdown()


def begun(path: Path, identity: dict[str, Any]) -> list[dict[str, float]]:
    """Return the rows of an earlier run; exit if the file is of other settings."""
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    if any(record.get(name) != value for name, value in identity.items()):
        raise SystemExit(f"{path}: holds results of other settings; delete it, or name another file with --json")
    rows: list[dict[str, float]] = record["rows"]
    return rows


def measure(args: argparse.Namespace, folder: str) -> None:
    """Convert with the seeds that the file does not hold yet."""
    fixed = {"weights": args.weights, "root": args.root, "cache": args.cache, "check_windows": -1}

    def config(seed: int) -> ConvertConfig:
        return load_config(ConvertConfig, None, args.set, {**fixed, "seed": seed, "out": f"{folder}/{seed}.safetensors"})

    identity = {"weights": Path(args.weights).stem, "settings": args.set, "limit": args.limit}
    rows = begun(args.json, identity)
    first = Conversion(config(0))
    windows = first.data.windows("val", args.limit)
    ann = score(first.unconverted, windows, ann=True)[0].value
    for seed in range(len(rows), args.seeds):
        rows.append({"seed": seed} | converted(config(seed), windows, ann, first.share_per_operation()))
        found = {"windows": len(windows), "ann_ap": ann, "rows": rows, "summary": summary(rows), **provenance()}
        args.json.write_text(json.dumps(identity | found, indent=1))
        print(f"seed {seed}: {rows[-1]['lost_ap']:5.2f} points lost, {100 * rows[-1]['energy_int8']:5.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="caltech6", help="bundled weights by name, or a file")
    parser.add_argument("--root", required=True, help="folder of the pictures")
    parser.add_argument("--seeds", type=int, default=7, help="number of conversions (default: 7)")
    parser.add_argument("--limit", type=int, default=0, help="number of validation windows; 0: every picture once")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="settings of convert")
    parser.add_argument("--cache", default="runs/cache", help="folder of simulated windows")
    parser.add_argument("--json", type=Path, required=True, help="file of the results")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, folder)
    print(table([args.json]))


if __name__ == "__main__":
    main()
