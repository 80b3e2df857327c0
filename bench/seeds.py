"""Measure the mean and spread of AP loss and energy over conversions that differ only in their calibration windows.

    python bench/seeds.py --weights caltech6 --root PICTURES --seeds 7 --json seeds.json --set timesteps=1

Each seed calibrates on other training pictures with other motion; `--set level=advanced` adds advanced calibration. All results
are scored (COCO AP) on the same validation windows. Energy counts every spike, as a share of the dense ANN's (FP32).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.config import load_config
from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.conversion import Conversion
from evburst.app.convert.run import convert
from evburst.app.convert.scores import score
from evburst.app.provenance import provenance
from evburst.models.bundle import DetectorBundle

FIGURES = ("lost_ap", "energy_int8")


def converted(config: ConvertConfig, windows: Any, ann: float) -> dict[str, float]:
    """Convert once; return the points of AP lost and the energy as a share of the dense ANN's."""
    convert(config)
    scored, operations = score(DetectorBundle.load(config.out), windows)
    return {"lost_ap": ann - scored.value, "energy_int8": operations * Conversion(config).share_per_operation()}


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean, standard deviation and extremes of every figure."""
    statistics_by_figure = {}
    for name in FIGURES:
        values = [row[name] for row in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.fmean(values)
        statistics_by_figure[name] = {"mean": mean, "sd": spread, "least": min(values), "most": max(values)}
    return statistics_by_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="caltech6", help="bundled weights by name, or a file")
    parser.add_argument("--root", required=True, help="folder of the pictures")
    parser.add_argument("--seeds", type=int, default=7, help="number of conversions (default: 7)")
    parser.add_argument("--limit", type=int, default=0, help="number of validation windows; 0: every picture once")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="settings of convert")
    parser.add_argument("--cache", default="runs/cache", help="folder of simulated windows")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fixed = {
            "weights": args.weights,
            "root": args.root,
            "cache": args.cache,
            "check_windows": -1,
            "out": f"{folder}/x.safetensors",
        }
        config = lambda seed: load_config(ConvertConfig, None, args.set, {**fixed, "seed": seed})  # noqa: E731
        first = Conversion(config(0))
        windows = first.data.windows("val", args.limit)
        ann, rows = score(first.unconverted, windows, ann=True)[0].value, []
        for seed in range(args.seeds):
            rows.append({"seed": seed} | converted(config(seed), windows, ann))
            print(f"seed {seed}: {rows[-1]['lost_ap']:5.2f} points lost, {100 * rows[-1]['energy_int8']:5.2f} %", flush=True)
    spread = summary(rows)
    for name, figures in spread.items():
        print(name, *(f"{key} {value:.4g}" for key, value in figures.items()))
    if args.json:
        record = {"settings": args.set, "windows": len(windows), "ann_ap": ann, "rows": rows, "summary": spread, **provenance()}
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
