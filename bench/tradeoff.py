"""Measure AP against energy for bursts, allocation, compression and adaptive timesteps, as a table and a plot.

    python bench/tradeoff.py --root PICTURES --json docs/results/tradeoff.json --picture docs/tradeoff.png
    python bench/tradeoff.py --draw docs/results/tradeoff.json --picture docs/tradeoff.png

The second form measures nothing.

For every row, the ANN of a weights file is converted and scored (COCO AP) on the validation windows of its training data. All
rows use light calibration on the same windows, except those marked as advanced (budgets: --advanced) and the network as it is
in the weights file. With --showings 3, every validation picture is
simulated three times with different motion and noise, because the AP of few pictures is sensitive to rounding. Energy is per
window, as a share of the dense ANN's in the same number format; every spike is counted with its multiplicity. `QNN%` is the
share of the energy of the same network as a zero-skipping quantised one, in which a burst is one MAC.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.conversion import Conversion
from evburst.app.convert.scores import score_detector
from evburst.app.convert.search import choose, sensitivity_table
from evburst.app.plots import new_figure
from evburst.app.provenance import provenance
from evburst.app.scoring import Score
from evburst.data.datasets import DatasetSpec
from evburst.data.stats import SpikeStats
from evburst.eval.energy import energy_report, is_a_qnn
from evburst.eval.report.tables import number, percent
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import SCORED
from evburst.models.spiking.convert.allocate import pareto_frontier
from evburst.models.spiking.convert.calibrate import Choice

BELOW, ABOVE = 6.5, 0.7
"""Points of AP below and above the ANN's that the picture shows; rows further below are named at its lower edge."""
UNIFORM = (1.5, 2.0, 2.5, 3.0)
BUDGETS = (0.162, 0.119, 0.136, 0.102, 0.187, 0.085, 0.239)
ALONE, ADVANCED = (0.162,), [0.102, 0.136]


@dataclass(frozen=True)
class Row:
    """Result of one network.

    Attributes:
        kind: group in the plot.
        name: description of the network.
        timesteps: T, or its mean if it is adaptive; 0 for the ANN.
        ap, ap50: COCO AP in percent.
        energy: share of the dense ANN's energy in FP32.
        of_qnn: share of the zero-skipping QNN's energy in INT8; None for the ANN, and for mean timesteps other than 1.
        int8: share of the dense ANN's energy in INT8.
        spikes_per_neuron: per window, over all timesteps.
    """

    kind: str
    name: str
    timesteps: float
    ap: float
    ap50: float
    energy: float = 1.0
    of_qnn: float | None = None
    int8: float = 1.0
    spikes_per_neuron: float = 0.0


class _Showings(ConcatDataset):
    """Concatenated datasets of the same pictures."""

    @property
    def spec(self) -> DatasetSpec:
        return self.datasets[0].spec


class Bench:
    """Conversions of one ANN at several T, with shared calibration and validation windows.

    Args:
        args: arguments of the command line.
        folder: temporary folder for sensitivity tables.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args, self._folder = args, folder
        self._conversions: dict[int, Conversion] = {}
        self.windows = _Showings([self.at(1).data.windows("val", args.limit, k) for k in range(args.showings)])

    def at(self, timesteps: int) -> Conversion:
        """Return the conversion for T timesteps with light calibration."""
        if timesteps not in self._conversions:
            self._conversions[timesteps] = Conversion(self._config(timesteps))
        return self._conversions[timesteps]

    def _config(self, timesteps: int, **settings: Any) -> ConvertConfig:
        out = str(self._folder / f"T{timesteps}.safetensors")  # its sensitivity table is measured once and reused
        return ConvertConfig(self._args.weights, out, self._args.root, timesteps=timesteps, cache=self._args.cache, **settings)

    def rows(self) -> Iterator[Row]:
        """Yield all rows as they are computed, the ANN first."""
        yield self._row("ANN", "ANN", 0, self.at(1).calibrated(Choice(8)), ann=True)
        bundled = Bundle.load(self._args.weights)
        timesteps = bundled.parameters.timesteps
        yield self._row("as bundled", f"as in the weights file, T = {timesteps}", timesteps, bundled)
        for timesteps in (1, 2, 4):
            yield self._uniform("bursts", f"phi = 8, T = {timesteps}", timesteps, Choice(8))
        yield self._uniform("longer bursts", "phi = 32, T = 1", 1, Choice(32))
        for ratio in UNIFORM:
            yield self._uniform("one ratio for all layers", f"phi = 8, thresholds x {ratio:g}, T = 1", 1, Choice(8, ratio))
        for timesteps in (1, 2, 4, 8):
            yield self._uniform("without bursts", f"phi = 1, T = {timesteps}", timesteps, Choice(1))
        yield from self._searched()
        for timesteps in (2, 4):
            choice = Choice(8, signed=True)
            yield self._uniform("signed bursts", f"phi = 8, signed, T = {timesteps}", timesteps, choice)
        for timesteps in self._args.adaptive:
            yield self._adaptive(timesteps)
        for budget in self._args.advanced:
            conversion = Conversion(self._config(1, level="advanced", budget=budget))
            bundle, _ = conversion.distilled(choose(conversion)[0], budget)
            conversion.finish()
            yield self._row("advanced", f"both, advanced calibration, budget {budget:g}, T = 1", 1, bundle)

    def _searched(self) -> Iterator[Row]:
        """Yield rows at T = 1 that choose per layer burst limits only, thresholds only, and both."""
        conversion = self.at(1)
        table, share = sensitivity_table(conversion), conversion.share_per_operation()
        kinds = {
            "allocation and compression": table,
            "allocation alone": table.only(lambda c: c.rho == 1),
            "compression alone": table.only(lambda c: c.phi == 8),
        }
        for kind, part in kinds.items():
            frontier = pareto_frontier(part)
            for budget in BUDGETS if kind == "allocation and compression" else ALONE:
                if frontier.cost[0] * share <= budget:
                    choices = frontier.point(frontier.within_budget(budget / share))
                    yield self._row(kind, f"{kind}, budget {budget:g}, T = 1", 1, conversion.calibrated(choices))

    def _uniform(self, kind: str, name: str, timesteps: int, choice: Choice) -> Row:
        return self._row(kind, name, timesteps, self.at(timesteps).calibrated(choice))

    def _row(self, kind: str, name: str, timesteps: int, bundle: Bundle, ann: bool = False) -> Row:
        detector = GridDetector(bundle, SCORED, ann=ann, engine=self._args.engine)
        return _make_row(kind, name, timesteps, *score_detector(detector, self.windows))

    def _adaptive(self, timesteps: int) -> Row:
        """Return the row in which each window stops once its boxes agree; the threshold is chosen on the split "select"."""
        bundle = self.at(timesteps).calibrated(Choice(8))
        tau = self.at(timesteps).adaptive(bundle).get("adaptive", {"tau": 1.0})["tau"]  # 1: boxes must not change at all
        detector = GridDetector(bundle, SCORED, adaptive=tau)
        scored, stats = score_detector(detector, self.windows, 1)
        mean_timesteps = float(np.mean([energy_report(batch).timesteps or 0 for batch in stats]))
        return _make_row("adaptive timesteps", f"phi = 8, adaptive, T <= {timesteps}", mean_timesteps, scored, stats)


def _make_row(kind: str, name: str, timesteps: float, scored: Score, stats: list[SpikeStats]) -> Row:
    if not stats:
        return Row(kind, name, timesteps, scored.figures["ap"], scored.figures["ap50"])
    figures, images = [], [len(batch.layers[0].spikes) for batch in stats]
    for batch in stats:
        report = energy_report(batch)
        fp32, int8 = report.energies("fp32"), report.energies("int8")
        figures.append((fp32.ratio or 0, int8.as_dict()["of_qnn"] or 0, int8.ratio or 0, report.spikes_per_neuron or 0))
    energy, of_qnn, *rest = np.average(figures, axis=0, weights=images).tolist()
    share = of_qnn if is_a_qnn(timesteps) else None
    return Row(kind, name, timesteps, scored.figures["ap"], scored.figures["ap50"], energy, share, *rest)


STYLES = {
    "without bursts": ("#cc0000", "o--", "one spike per timestep (phi = 1)"),
    "bursts": ("#4e9a06", "o-", "bursts (phi = 8)"),
    "longer bursts": ("#c4a000", "P", "bursts (phi = 32)"),
    "signed bursts": ("#8ae234", "^", "bursts, signed neurons"),
    "one ratio for all layers": ("#888a85", "s--", "bursts, every threshold raised by one ratio"),
    "allocation alone": ("#3465a4", "v", "burst limits per layer"),
    "compression alone": ("#729fcf", "<", "thresholds per layer"),
    "allocation and compression": ("#204a87", "D-", "both per layer (Pareto)"),
    "advanced": ("#75507b", "p-", "both, advanced calibration"),
    "adaptive timesteps": ("#f57900", "X", "bursts, adaptive timesteps"),
    "as bundled": ("#000000", "*", "as bundled"),
}


def draw(rows: list[Row], title: str, path: Path) -> None:
    """Plot AP against energy near the ANN's AP; rows below it are named at the lower edge."""
    figure = new_figure(9, 6)
    axes = figure.subplots()
    ann = rows[0].ap
    low = ann - BELOW
    axes.axhline(ann, color="black", linewidth=1)
    axes.axhspan(ann - 1, ann, color="black", alpha=0.07, linewidth=0)
    note = f"the ANN, {ann:.1f} AP at 100 % (band: one point below)"
    axes.annotate(note, (0.01, ann), xytext=(0, 4), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=9)
    for kind in STYLES:
        _draw_kind(axes, kind, [row for row in rows if row.kind == kind], low)
    axes.set(xscale="log", xlabel="energy per window, % of the dense ANN's (INT8, every spike counted)", ylabel="COCO AP, %")
    axes.set_title(title)
    ticks = [2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150]
    shares = [100 * row.int8 for row in rows[1:]]
    axes.set_xlim(0.85 * min(shares), 1.15 * max(*shares, 100))
    inside = [tick for tick in ticks if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    axes.set_xticks(inside, [f"{tick} %" for tick in inside])
    axes.set_xticks([], minor=True)
    axes.set_ylim(low, ann + ABOVE)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def _draw_kind(axes: Any, kind: str, rows: list[Row], low: float) -> None:
    """Plot the rows of one kind; those with an AP below `low` as arrows at the lower edge."""
    if not rows:
        return
    colour, style, label = STYLES[kind]
    timesteps = ", ".join(dict.fromkeys(f"{row.timesteps:.2g}" for row in rows))
    shown = sorted((row for row in rows if row.ap >= low), key=lambda row: row.int8)
    points = [100 * row.int8 for row in shown], [row.ap for row in shown]
    size = 14 if kind == "as bundled" else 7
    axes.plot(*points, style, color=colour, label=f"{label}, T = {timesteps}", markersize=size, zorder=3)
    named, height = 0.0, 0
    for row in sorted(rows, key=lambda row: row.int8):
        if row.ap < low:
            at = 100 * row.int8, low + 0.035 * (BELOW + ABOVE)
            axes.annotate("", at, xytext=(0, 14), textcoords="offset points", arrowprops={"arrowstyle": "->", "color": colour})
            if kind == "without bursts":
                height = height + 24 if row.int8 < 1.15 * named else 0  # above a name that it would cover
                named, name = row.int8, f"T = {row.timesteps:g}\n{row.ap:.1f} AP"
                axes.annotate(
                    name, at, xytext=(0, 15 + height), textcoords="offset points", fontsize=8, ha="center", color=colour
                )
        elif kind in ("bursts", "without bursts"):
            at = 100 * row.int8, row.ap
            axes.annotate(f"T = {row.timesteps:g}", at, xytext=(6, -12), textcoords="offset points", fontsize=8)


def table(record: dict[str, Any]) -> str:
    """Return the rows as a Markdown table."""
    head = ["network", "T", "AP", "AP50", "AP lost", "of dense ANN", "of QNN", "spikes per neuron"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    ann = record["rows"][0]
    for row in record["rows"]:
        scores = f"{row['ap']:.1f} | {row['ap50']:.1f}"
        if row["kind"] == "ANN":
            lines.append(f"| ANN | | {scores} | | 100 % | | |")
            continue
        name = row["name"].rpartition(", T ")[0]
        of_qnn = percent(row["of_qnn"] if is_a_qnn(row["timesteps"]) else None)
        cost = f"{100 * row['int8']:.1f} % | {of_qnn} | {row['spikes_per_neuron']:.2f}"
        lines.append(f"| {name} | {row['timesteps']:.2g} | {scores} | {ann['ap'] - row['ap']:.1f} | {cost} |")
    return "\n".join(lines)


def line(row: Row, ann: float) -> str:
    """Format a row of the table."""
    share = number(None if row.of_qnn is None else 100 * row.of_qnn, 1)
    return (
        f"{row.name:52}{row.timesteps:5.2f}{row.ap:7.2f}{row.ap50:7.2f}{ann - row.ap:7.2f}"
        f"{100 * row.energy:8.1f}{share:>8}{100 * row.int8:8.1f}{row.spikes_per_neuron:8.2f}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="street", help="bundled weights or a file (default: street)")
    parser.add_argument("--root", help="folder of the data that the weights were trained on")
    parser.add_argument("--limit", type=int, default=0, help="validation windows (default: all)")
    parser.add_argument("--showings", type=int, default=1, help="simulated windows per validation picture (default: 1)")
    parser.add_argument("--advanced", type=float, nargs="*", default=ADVANCED, metavar="BUDGET", help="with gradient descent")
    parser.add_argument("--adaptive", type=int, nargs="*", default=[2, 4], metavar="T", help="with adaptive timesteps up to T")
    parser.add_argument("--engine", default="auto", help="see models/runtime (adaptive timesteps: always reference)")
    parser.add_argument("--cache", default="runs/cache", help="folder of simulated windows")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="print and draw the rows of such a file")
    args = parser.parse_args()
    if args.draw:
        record = json.loads(args.draw.read_text())
    elif args.root:
        record = measured(args)
    else:
        parser.error("--root is needed")
    print(f"\n{table(record)}")
    if args.picture:
        rows = [Row(**row) for row in record["rows"]]
        draw(rows, f"{record['weights']}: AP against energy, {record['windows']} validation windows", args.picture)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all rows; after each, write the file."""
    rows: list[Row] = []
    print(f"{'':52}{'T':>5}{'AP':>7}{'AP50':>7}{'lost':>7}{'energy%':>8}{'QNN%':>8}{'int8%':>8}{'spikes':>8}")
    with tempfile.TemporaryDirectory() as folder:
        bench, started = Bench(args, Path(folder)), provenance()
        record: dict[str, Any] = {"weights": Path(args.weights).stem, "windows": len(bench.windows), "provenance": started}
        for row in bench.rows():
            rows.append(row)
            record["rows"] = [asdict(row) for row in rows]
            print(line(row, rows[0].ap), flush=True)
            if args.json:
                args.json.write_text(json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    main()
