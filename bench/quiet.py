"""Time per window against its number of events, from none to many.

    python bench/quiet.py [--weights street] [--json docs/results/quiet.json]

Events are noise, scattered evenly over the sensor and the window, with means of ten draws, because what an event costs depends
on its place; the last row is a window of the bundled recording. Two engines take turns on the same windows: the one that `auto`
chooses, which counts spikes in its default sample of windows, and `int8`, which takes from silence what does not differ from
it. Medians over all turns, the first run of a turn not measured, two threads.

How much an engine can save at most, if it computes every output that reads something else than in silence: the share of the
convolutions' arithmetic at such outputs, and in the bounding boxes of these. An engine that leaves out more would have to know
without computing it that an output does not change.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.contenders import Contender, contenders
from bench.inference import Turns, window_grid
from evburst.data.samples import STREET
from evburst.eval.report.tables import Table

if TYPE_CHECKING:
    import torch

    from evburst.models.bundle import Bundle
    from evburst.models.graph import Graph, Node
    from evburst.models.spiking.network import SpikingParameters

DRAWS = 10
WINDOW = 30
NOISE = (0, 1, 10, 100, 1000, 5000, 20_000)
NAMES = {"auto": "snn auto T=1", "int8": "snn int8 T=1"}


@dataclass(frozen=True)
class Row:
    """A window.

    Attributes:
        kind, events: what it is, and its number of events.
        ms: that each engine takes for it.
        affected, boxed: of `affected_shares`.
    """

    kind: str
    events: int
    ms: dict[str, float]
    affected: float
    boxed: float


def scattered(n: int, bundle: Bundle, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Return a grid `(1, C, rows, columns)` uint8 of n events."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    grid = np.zeros((1, bundle.voxel.channels, rows, columns), np.int64)
    np.add.at(grid[0], tuple(rng.integers(0, side, n) for side in grid.shape[1:]), 1)
    return torch.from_numpy(grid.clip(max=bundle.voxel.max_count).astype(np.uint8))


def affected_shares(graph: Graph, parameters: SpikingParameters, grid: torch.Tensor) -> tuple[float, float]:
    """Return the share of a network's arithmetic at outputs that read something else than in silence, and in their boxes.

    Args:
        graph, parameters: the network; its number of timesteps is not used, there is one.
        grid: `(1, C, H, W)`.
    """
    import torch
    import torch.nn.functional as F

    from evburst.models.spiking.cost import dense_macs
    from evburst.models.spiking.network import SpikingNetwork

    macs = dense_macs(graph, *grid.shape[1:])
    differs: dict[str, torch.Tensor] = {}
    affected, boxed = dict.fromkeys(macs, 0.0), dict.fromkeys(macs, 0.0)

    class Compared(SpikingNetwork):
        def observe(self, node: Node, value: torch.Tensor) -> None:
            super().observe(node, value)
            differs[node.name] = (value[0] != value[1]).any(0)
            if node.op == "conv":
                a, size = node.attrs, graph.tensors[f"{node.name}.weight"].shape[2:]
                source = differs[node.inputs[0]][None, None].float()
                reads = F.conv2d(source, torch.ones(1, 1, *size), None, a["stride"], a["padding"], a["dilation"])[0, 0] > 0
                rows, columns = reads.any(1).nonzero(), reads.any(0).nonzero()
                area = int((rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)) if len(rows) else 0
                affected[node.name] = macs[node.name] * float(reads.double().mean())
                boxed[node.name] = macs[node.name] * area / reads.numel()

    Compared(graph, replace(parameters, timesteps=1)).run(torch.cat([grid, torch.zeros_like(grid)]))
    total = sum(macs.values())
    return sum(affected.values()) / total, sum(boxed.values()) / total


def measure(
    grids: dict[str, list[torch.Tensor]],
    networks: dict[str, Contender],
    rounds: int,
    shares: Callable[[torch.Tensor], tuple[float, float]],
) -> list[Row]:
    """Return the times of every network on every grid, over rounds in which each pair takes a turn, and its `shares`; means
    over the grids of a kind."""
    turns = [
        (kind, grid, name, Turns(name, lambda c=own: c, None))
        for kind, draws in grids.items()
        for grid in draws
        for name, own in networks.items()
    ]
    for _, grid, _, turn in turns:
        turn.start(grid)
    for _ in range(rounds):
        for _, grid, _, turn in turns:
            turn.turn(grid)

    def mean_ms(kind: str, name: str) -> float:
        return mean(turn.result()["ms"] for own, _, network, turn in turns if (own, network) == (kind, name))

    rows = []
    for kind, draws in grids.items():
        affected, boxed = (mean(values) for values in zip(*map(shares, draws), strict=True))
        times = {name: round(mean_ms(kind, name), 3) for name in networks}
        rows.append(Row(kind, round(mean(int(grid.sum()) for grid in draws)), times, affected, boxed))
    return rows


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table; the last is the one that the others are divided by."""
    busy, names = rows[-1], list(rows[-1].ms)
    heads = [f"{name}, {what}" for name in names for what in ("ms", "of the last row")]
    heads, lines = ["window", "events", *heads, "arithmetic affected", "in bounding boxes"], []
    for row in rows:
        cells = [cell for name in names for cell in (f"{row.ms[name]:.2f}", f"{row.ms[name] / busy.ms[name]:.2f}")]
        cells += [f"{100 * share:.0f} %" for share in (row.affected, row.boxed)]
        lines.append([row.kind, f"{row.events:,}", *cells])
    return Table(heads, lines, texts=len(heads)).markdown()


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
    from evburst.models.bundle import Bundle
    from evburst.models.runtime import choose, machine

    torch.set_num_threads(args.threads)
    bundle = Bundle.load(args.weights)
    busy = window_grid(STREET, bundle, WINDOW)
    sides = busy.shape[2:]
    grids = {f"noise {n}": [scattered(n, bundle, *sides, seed) for seed in range(DRAWS if n else 1)] for n in NOISE}
    grids["recording"] = [busy]
    build = contenders(bundle, busy)
    networks = {name: build[full]() for name, full in NAMES.items()}
    rows = measure(grids, networks, args.rounds, lambda grid: affected_shares(bundle.spiking, bundle.parameters, grid))
    print(table(rows))
    if args.json:
        record = {"weights": args.weights, "window": WINDOW, "rounds": args.rounds, "machine": machine()}
        record |= {"auto": choose("auto"), "rows": [asdict(row) for row in rows], "provenance": provenance()}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
