"""Energy of windows from none to many events: plain counts and differences from silence, of the spiking network and the ANN.

    python bench/silence.py [--weights street] [--recording FILE] [--real FILE] [--picture docs/silence.png] [--json FILE]
    python bench/silence.py --draw docs/results/silence.json --picture docs/silence.png

The second form measures nothing.

Noise: events scattered evenly over the sensor and the window, means of 20 draws. Objects: windows of the recording (the
bundled street), slowed down: the events of the first part of a window, stretched to its length, as if everything moved that
much less. The table also has unaltered windows of `--real`. The last lines are a recording of 60 s in which one window in five
is from the recording and the others are still, with three levels of noise everywhere; means over all windows of the recording
and over 50 drawn still ones, weighted by their shares. Windows without events are run, too.

INT8, operations only (docs/method.md#energy). On a smaller sensor than the weights' own, figures per window are smaller.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from evburst.app.plots import new_figure  # noqa: E402
from evburst.app.provenance import provenance  # noqa: E402
from evburst.data.encoding import unpack  # noqa: E402
from evburst.data.events import EVENT_DTYPE, Events, EventWindow, SensorSize  # noqa: E402
from evburst.data.readers import open_events  # noqa: E402
from evburst.data.representations.voxel_grid import padded_size, voxel_histogram  # noqa: E402
from evburst.data.samples import STREET  # noqa: E402
from evburst.eval.energy import EnergyReport, energy_report  # noqa: E402
from evburst.eval.report.tables import Table  # noqa: E402
from evburst.models.activity import ActivityRunner  # noqa: E402
from evburst.models.bundle import Bundle  # noqa: E402
from evburst.models.runtime import open_engine  # noqa: E402

NOISE = (0, 1, 10, 100, 400, 1300, 5000, 20_000)
DRAWS = 20
"""Windows of each number of scattered events: what one event costs depends on where it is."""
SLOWNESS = (500, 100, 30, 10, 5, 2, 1)
STILL_NOISE, STILL_WINDOWS, BUSY_SHARE = (0, 100, 1300), 50, 0.2
COLOURS = {"spiking": "#0969da", "spiking, beyond silence": "#1a7f37", "zero-skipping ANN": "#bc4c00"}
COLOURS |= {"zero-skipping ANN, beyond silence": "#8250df", "zero-skipping QNN": "#bf3989"}
COLOURS |= {"zero-skipping QNN, beyond silence": "#9a6700", "dense ANN": "#57606a"}


ENERGIES = slice(2, 9)
"""The energies among the fields of a row."""


@dataclass(frozen=True)
class Row:
    """Mean over windows of one kind: events, uJ in INT8, and operations per multiply-accumulate of the dense ANN."""

    kind: str
    events: float
    spiking_uj: float
    beyond_uj: float
    zero_skipping_uj: float
    zero_skipping_beyond_uj: float
    qnn_uj: float
    qnn_beyond_uj: float
    dense_uj: float
    per_mac: float
    per_mac_beyond: float


class Meter:
    """Measures windows of one sensor.

    Args:
        weights: name or path.
        size: of the sensor.
        engine: see models/runtime.
    """

    def __init__(self, weights: str, size: SensorSize, engine: str) -> None:
        self.bundle, self.size = Bundle.load(weights), size
        self._network = open_engine(engine, self.bundle.spiking, self.bundle.parameters, self.bundle.voxel.max_count)
        self._ann = ActivityRunner(self.bundle.graph)

    def window(self, events: Events) -> EventWindow:
        """Events with times from 0 as a window."""
        return EventWindow(0, self.bundle.voxel.window_us, np.sort(events, order="t"))

    def scattered(self, n: int, rng: np.random.Generator) -> Events:
        """Events of noise."""
        events = np.zeros(n, EVENT_DTYPE)
        events["t"], events["p"] = rng.integers(0, self.bundle.voxel.window_us, n), rng.integers(0, 2, n)
        events["x"], events["y"] = rng.integers(0, self.size.width, n), rng.integers(0, self.size.height, n)
        return events

    def of_recording(self, path: Path) -> list[Events]:
        """Events of every full window of a recording, with times from 0."""
        found = []
        for window in open_events(path).windows(self.bundle.voxel.window_us):
            events = unpack(window)
            events["t"] -= window.t0_us
            found.append(events)
        return found[1:-1]

    def measure(self, kind: str, windows: Sequence[Events], ann: bool = True) -> Row:
        """Run windows one by one; `ann`: the zero-skipping ANN, too."""
        reports = [self._report(self.window(events), ann) for events in windows]
        macs = reports[0].dense_macs

        def mean(values: Iterator[float | None]) -> float:
            return float(np.mean([np.nan if value is None else value for value in values])) / 1e6

        plain, beyond = [r.energies() for r in reports], [r.energies_beyond_silence() for r in reports]
        row = Row(
            kind,
            float(np.mean([len(events) for events in windows])),
            mean(e.snn_pj for e in plain),
            mean(e.snn_pj for e in beyond),
            mean(e.ann_zero_skipping_pj for e in plain),
            mean(e.ann_zero_skipping_pj for e in beyond),
            mean(e.qnn_pj for e in plain),
            mean(e.qnn_pj for e in beyond),
            mean(e.ann_pj for e in plain),
            1e6 * mean(r.synaptic_ops for r in reports) / macs,
            1e6 * mean(r.beyond_silence.synaptic_ops for r in reports) / macs,
        )
        print(line(row), flush=True)
        return row

    def _report(self, window: EventWindow, ann: bool) -> EnergyReport:
        width, height = padded_size(self.size, self.bundle.stride)
        grid = np.zeros((1, self.bundle.voxel.channels, height, width), np.uint8)
        voxel_histogram(window, self.bundle.voxel, self.size, grid[0])
        _, stats = self._network.run(torch.from_numpy(grid))
        return energy_report(stats, self._ann.run(torch.from_numpy(grid).float())[1] if ann else None)


def slowed(events: Events, slowness: int, window_us: int) -> Events:
    """The events of the first part of a window, stretched to its length."""
    kept = events[events["t"] < window_us / slowness].copy()
    kept["t"] *= slowness
    return kept


def line(row: Row) -> str:
    """A row of the table."""
    energies = list(asdict(row).values())[ENERGIES]
    cells = "".join(f"{'-' if np.isnan(uj) else format(uj, '.1f'):>10}" for uj in energies)
    return f"{row.kind:28}{row.events:10,.0f}{cells}{row.per_mac:9.3f}{row.per_mac_beyond:9.3f}"


_COLUMNS = ("plain", "beyond", "zs ANN", "zs beyond", "QNN", "QNN bey.", "dense")
HEAD = f"{'':28}{'events':>10}{''.join(f'{name:>10}' for name in _COLUMNS)}{'ops/MAC':>9}{'beyond':>9}"


def measure_all(meter: Meter, recording: Path, real: Path | None, seed: int) -> list[Row]:
    """All rows of the table."""
    rng, window_us = np.random.default_rng(seed), meter.bundle.voxel.window_us
    rows = [meter.measure("noise", [meter.scattered(n, rng) for _ in range(DRAWS if n else 1)]) for n in NOISE]
    busy = meter.of_recording(recording)
    few = busy[:: max(len(busy) // 4, 1)]
    rows += [meter.measure("objects", [slowed(events, k, window_us) for events in few]) for k in SLOWNESS]
    if real is not None:
        rows.append(meter.measure(real.name, meter.of_recording(real)[:4]))
    for noise in STILL_NOISE:
        moving = [np.concatenate([events, meter.scattered(noise, rng)]) for events in busy]
        still = [meter.scattered(rng.poisson(noise), rng) for _ in range(STILL_WINDOWS if noise else 1)]
        parts = [meter.measure(f"moving, noise {noise}", moving, False), meter.measure(f"still, noise {noise}", still, False)]
        rows += [*parts, mixed(f"60 s, noise {noise}", parts[0], parts[1])]
        print(line(rows[-1]), flush=True)
    return rows


def mixed(kind: str, moving: Row, still: Row) -> Row:
    """Mean over a recording in which BUSY_SHARE of the windows are moving."""
    pairs = zip(list(asdict(moving).values())[1:], list(asdict(still).values())[1:], strict=True)
    return Row(kind, *(BUSY_SHARE * a + (1 - BUSY_SHARE) * b for a, b in pairs))


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw energy against events, for noise and for objects, as PNG."""
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("noise", "objects"), strict=True):
        own = sorted((row for row in rows if row.kind == kind), key=lambda row: row.events)
        columns = zip(*(list(asdict(row).values())[ENERGIES] for row in own), strict=True)
        for (label, colour), energies in zip(COLOURS.items(), columns, strict=True):
            style = {"color": colour, "marker": "o", "markersize": 4, "linestyle": "--" if "beyond" in label else "-"}
            axes.plot([row.events for row in own], energies, label=label, **style)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=-0.15 if kind == "noise" else 1)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.set_title("scattered events (noise)" if kind == "noise" else "objects, from slow to full speed", fontsize=10)
        axes.set_xlabel("events per window")
    panels[0].set_ylabel("energy per window, µJ (INT8)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def table(record: dict[str, Any]) -> str:
    """Operations per MAC of the dense ANN as a Markdown table for docs/method.md."""
    rows = [Row(**row) for row in record["rows"]]
    head = [f"`{record['weights']}`, operations per MAC of the dense ANN", "as they are", "beyond silence"]
    shown = [[name, f"{row.per_mac:.2f}", f"{row.per_mac_beyond:.2f}"] for row in rows if (name := _described(row))]
    return Table(head, shown).markdown()


def _described(row: Row) -> str:
    """The row's name in the documentation; empty: not shown there."""
    kind, _, noise = row.kind.rpartition(", noise ")
    if row.kind == "noise":
        several = "no event" if row.events == 0 else f"{row.events:,.0f} scattered event{'s' if row.events > 1 else ''}"
        return several if row.events in (0, 1, 100, 1300, 20_000) else ""
    if row.kind == "objects":
        return (
            f"a drawn street, slow: {row.events:,.0f} events"
            if 500 < row.events < 1000
            else (f"a drawn street: {row.events:,.0f} events" if row.events > 5000 else "")
        )
    if kind == "60 s":
        return "60 s, a fifth of them in motion, " + ("no noise" if noise == "0" else f"{noise} noise events per window")
    return "" if kind else f"a real Gen1 recording, {row.events:,.0f} events per window"


def main() -> None:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="street")
    parser.add_argument("--recording", type=Path, default=STREET)
    parser.add_argument("--real", type=Path, help="a real recording of the same sensor size")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--draw", type=Path, metavar="FILE", help="draw the rows of such a file, and print docs/method.md's table"
    )
    args = parser.parse_args()
    if args.draw:
        record = json.loads(args.draw.read_text())
        print(table(record))
    else:
        record = measured(args)
    if args.picture:
        title = f"{record['weights']}, T = {record['timesteps']}: energy of a window"
        draw([Row(**row) for row in record["rows"]], title, args.picture)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print all rows."""
    meter, started = Meter(args.weights, open_events(args.recording).sensor_size, args.engine), provenance()
    print(f"{args.weights}, {meter.size.width}x{meter.size.height}, uJ per window in INT8\n{HEAD}")
    rows = measure_all(meter, args.recording, args.real, args.seed)
    names = {"weights": Path(args.weights).stem, "timesteps": meter.bundle.parameters.timesteps}
    # JSON has no NaN, which stands for what was not measured.
    return {
        **names,
        "provenance": started,
        "rows": [{k: v if v == v else None for k, v in asdict(row).items()} for row in rows],
    }


if __name__ == "__main__":
    main()
