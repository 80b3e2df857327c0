"""Measure what the margin of silence (models/spiking/convert/margin.py) costs in AP, and saves in windows of few events.

    python bench/margin.py --weights street --root STREET [--json docs/results/margin_street.json]

The margin is set in weights that were converted without one. For each: AP of the spiking network on the validation
windows, and its energy there; then, of windows with scattered events, the operations beyond silence and the time of the `int8`
engine, both relative to those of a window of the bundled recording. Operations are means over five windows, times the fastest
of many turns on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from bench.inference import window_grid
from bench.quiet import scattered
from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.conversion import Conversion, with_margin
from evburst.app.convert.scores import score
from evburst.app.provenance import provenance
from evburst.data.samples import STREET
from evburst.eval.report.tables import Table
from evburst.models.bundle import Bundle
from evburst.models.runtime import open_engine
from evburst.models.spiking.network import SpikingNetwork

MARGINS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
EVENTS = (1, 10, 100, 1300)
BUSY_MS = 1500
"""Where the window of the recording begins."""
SEEDS, TURNS = 5, 40


@dataclass(frozen=True)
class Row:
    """A margin.

    Attributes:
        margin: in thresholds.
        ap, lost_ap: of the spiking network, in percent, and the points that it loses against its ANN.
        energy_int8: share of the dense ANN's energy in INT8.
        operations, time: by number of events, relative to the window of the recording.
    """

    margin: float
    ap: float
    lost_ap: float
    energy_int8: float
    operations: dict[str, float]
    time: dict[str, float]


def relative_operations(bundle: Bundle, busy: torch.Tensor) -> dict[str, float]:
    """Return the operations beyond silence of windows with scattered events, relative to those of a window, by events."""
    network = SpikingNetwork(bundle.spiking, bundle.parameters)

    def operations(grid: torch.Tensor) -> float:
        return sum(float(layer.synaptic_ops_beyond_silence.sum()) for layer in network.run(grid)[1].layers)  # type: ignore[union-attr]

    whole = operations(busy)
    means = {n: statistics.fmean(operations(grid) for grid in _noise(bundle, busy, n)) for n in EVENTS}
    return {str(n): mean / whole for n, mean in means.items()}


def relative_times(bundle: Bundle, busy: torch.Tensor) -> dict[str, float]:
    """Return the time of the int8 engine for windows with scattered events, relative to that for a window, by events."""
    network = open_engine("int8", bundle.spiking, bundle.parameters, bundle.voxel.max_count)
    fastest: dict[tuple[int, int], float] = {}
    windows = {(0, 0): busy} | {(n, k): grid for n in EVENTS for k, grid in enumerate(_noise(bundle, busy, n))}
    for _ in range(TURNS):
        for key, grid in windows.items():
            started = time.perf_counter()
            network.run(grid)
            fastest[key] = min(fastest.get(key, 1e9), time.perf_counter() - started)
    return {str(n): statistics.fmean(fastest[n, k] for k in range(SEEDS)) / fastest[0, 0] for n in EVENTS}


def _noise(bundle: Bundle, busy: torch.Tensor, events: int) -> list[torch.Tensor]:
    return [scattered(events, bundle, int(busy.shape[2]), int(busy.shape[3]), seed) for seed in range(SEEDS)]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return a Markdown table of the results of several networks."""
    events = [f"{n:,} event{'s' if n > 1 else ''}" for n in EVENTS]
    heads = [f"{what} of {name}" for what in ("operations", "time") for name in events]
    head = ["weights", "windows", "margin", "AP", "AP lost", "of dense ANN, INT8", *heads]
    rows = []
    for record, row in ((found, own) for found in records for own in found["rows"]):
        shares = [f"{100 * row[what][str(n)]:.0f} %" for what in ("operations", "time") for n in EVENTS]
        name = f"`{record['weights']}`", f"{record['windows']:,}", f"{row['margin']:g}"
        rows.append([*name, f"{row['ap']:.1f}", f"{row['lost_ap']:.1f}", f"{100 * row['energy_int8']:.1f} %", *shares])
    return Table(head, rows).markdown()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every margin; returns the record of the results."""
    bundle = Bundle.load(args.weights)
    conversion = Conversion(ConvertConfig(args.weights, "unused.safetensors", args.root, continues=True, cache=args.cache))
    windows = conversion.data.windows("val", args.limit)
    busy = window_grid(STREET, bundle, int(BUSY_MS / bundle.voxel.window_ms))
    ann, rows = score(bundle, windows, ann=True)[0].value, []
    found = {"weights": Path(args.weights).stem, "windows": len(windows), "ann_ap": ann}
    for margin in args.margins:
        own = with_margin(bundle, (int(busy.shape[2]), int(busy.shape[3])), margin)
        scored, operations = score(own, windows)
        energy = operations * conversion.share_per_operation()
        shares = relative_operations(own, busy), relative_times(own, busy)
        rows.append(Row(margin, scored.value, ann - scored.value, energy, *shares))
        print(table([found | {"rows": [asdict(rows[-1])]}]).splitlines()[-1], flush=True)
    return found | {"rows": [asdict(row) for row in rows], **provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="street", help="bundled weights by name, or a converted file")
    parser.add_argument("--root", required=True, help="folder of the pictures")
    parser.add_argument("--margins", type=float, nargs="+", default=MARGINS)
    parser.add_argument("--limit", type=int, default=0, help="number of validation windows; 0: every picture once")
    parser.add_argument("--cache", default="runs/cache", help="folder of simulated windows")
    parser.add_argument("--json", type=Path, help="file of the results")
    args = parser.parse_args()
    record = measure(args)
    print(table([record]))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
