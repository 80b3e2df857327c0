"""Time per window against its number of events, from none to many.

    python bench/quiet.py [--weights street] [--json docs/results/quiet.json]

Events are noise, scattered evenly over the sensor and the window; the last row is a window of the bundled recording. Two
engines take turns on the same windows: the one that `auto` chooses, which counts spikes in its default sample of windows, and
`int8`, which takes from silence what does not differ from it. Medians over all turns, the first run of a turn not measured, two
threads.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.inference import Contender, Turns, contenders, window_grid

if TYPE_CHECKING:
    import torch

    from evburst.models.bundle import DetectorBundle

RECORDING = Path(__file__).resolve().parent.parent / "data" / "samples" / "street_td.dat"
WINDOW = 30
NOISE = (0, 1, 10, 100, 1000, 5000, 20_000)
NAMES = {"auto": "snn auto T=1", "int8": "snn int8 T=1"}


@dataclass(frozen=True)
class Row:
    """Events of a window, and the ms that each engine takes for it."""

    kind: str
    events: int
    ms: dict[str, float]


def scattered(n: int, bundle: DetectorBundle, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Return a grid `(1, C, rows, columns)` uint8 of n events."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    grid = np.zeros((1, bundle.voxel.channels, rows, columns), np.int64)
    np.add.at(grid[0], tuple(rng.integers(0, side, n) for side in grid.shape[1:]), 1)
    return torch.from_numpy(grid.clip(max=bundle.voxel.max_count).astype(np.uint8))


def measure(grids: dict[str, torch.Tensor], networks: dict[str, Contender], rounds: int) -> list[Row]:
    """Return the times of every network on every grid, over rounds in which each pair takes a turn."""
    turns = {(kind, name): Turns(name, lambda c=own: c, None) for kind in grids for name, own in networks.items()}
    for (kind, _), turn in turns.items():
        turn.start(grids[kind])
    for _ in range(rounds):
        for (kind, _), turn in turns.items():
            turn.turn(grids[kind])
    return [
        Row(kind, int(grid.sum()), {name: turns[kind, name].result()["ms"] for name in networks})
        for kind, grid in grids.items()
    ]


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table; the last is the one that the others are divided by."""
    busy, names = rows[-1], list(rows[-1].ms)
    heads = [f"{name}, {what}" for name in names for what in ("ms", "of the last row")]
    lines = [f"| window | events | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 2)]
    for row in rows:
        cells = [cell for name in names for cell in (f"{row.ms[name]:.2f}", f"{row.ms[name] / busy.ms[name]:.2f}")]
        lines.append(f"| {row.kind} | {row.events:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="street")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(args.threads)

    import torch

    from evburst.app.provenance import provenance
    from evburst.models.bundle import DetectorBundle
    from evburst.models.runtime import choose, machine

    torch.set_num_threads(args.threads)
    bundle = DetectorBundle.load(args.weights)
    busy = window_grid(RECORDING, bundle, WINDOW)
    grids = {f"noise {n}": scattered(n, bundle, *busy.shape[2:]) for n in NOISE} | {"recording": busy}
    build = contenders(bundle, busy)
    rows = measure(grids, {name: build[full]() for name, full in NAMES.items()}, args.rounds)
    print(table(rows))
    if args.json:
        record = {"weights": args.weights, "window": WINDOW, "rounds": args.rounds, "machine": machine()}
        record |= {"auto": choose("auto"), "rows": [asdict(row) for row in rows], "provenance": provenance()}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
