"""Measure AP against energy for bursts, allocation, compression and adaptive timesteps, as a table and a plot.

    python bench/tradeoff.py --weights street --root PICTURES --picture tradeoff.png --json tradeoff.json

For every row, the ANN of a weights file is converted and scored (COCO AP) on the validation windows of its training data. All
rows use light calibration on the same windows, except those marked as advanced. With --showings 3, every validation picture is
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
from evburst.app.plots.conversion import new_figure
from evburst.app.provenance import provenance
from evburst.app.scoring import Score
from evburst.data.datasets import DatasetSpec
from evburst.data.stats import SpikeStats
from evburst.eval.energy import energy_report
from evburst.models.bundle import DetectorBundle
from evburst.models.detector import Detector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.spiking.convert.allocate import pareto_frontier
from evburst.models.spiking.convert.calibrate import Choice

UNIFORM = (1.5, 2.0, 2.5, 3.0)
BUDGETS = (0.085, 0.102, 0.119, 0.136, 0.162, 0.187, 0.239)
ALONE, ADVANCED = (0.162,), (0.085, 0.102, 0.136)


@dataclass(frozen=True)
class Row:
    """Result of one network.

    Attributes:
        kind: group in the plot.
        name: description of the network.
        timesteps: T, or its mean if it is adaptive; 0 for the ANN.
        ap, ap50: COCO AP in percent.
        energy: share of the dense ANN's energy in FP32.
        of_qnn: share of the zero-skipping QNN's energy in INT8.
        int8: share of the dense ANN's energy in INT8.
        spikes_per_neuron: per window, over all timesteps.
    """

    kind: str
    name: str
    timesteps: float
    ap: float
    ap50: float
    energy: float = 1.0
    of_qnn: float = 1.0
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
        for timesteps in (1, 2, 4, 8):
            yield self._uniform("without bursts", f"phi = 1, T = {timesteps}", timesteps, Choice(1))
        for timesteps in (1, 2, 4):
            yield self._uniform("bursts", f"phi = 8, T = {timesteps}", timesteps, Choice(8))
        for timesteps in (2, 4):
            choice = Choice(8, signed=True)
            yield self._uniform("signed bursts", f"phi = 8, signed, T = {timesteps}", timesteps, choice)
        for ratio in UNIFORM:
            yield self._uniform("one ratio for all layers", f"phi = 8, thresholds x {ratio:g}, T = 1", 1, Choice(8, ratio))
        yield from self._searched()
        for budget in ADVANCED:
            conversion = Conversion(self._config(1, level="advanced", budget=budget))
            bundle, _ = conversion.distilled(conversion.calibrated(choose(conversion)[0]), budget)
            yield self._row("advanced", f"both, advanced calibration, budget {budget:g}, T = 1", 1, bundle)
        yield self._adaptive(2)
        yield self._adaptive(4)

    def _searched(self) -> Iterator[Row]:
        """Yield rows at T = 1 that choose per layer burst limits only, thresholds only, and both."""
        conversion = self.at(1)
        table, share = sensitivity_table(conversion), conversion.share_per_operation()
        kinds = {
            "allocation alone": table.only(lambda c: c.rho == 1),
            "compression alone": table.only(lambda c: c.phi == 8),
            "allocation and compression": table,
        }
        for kind, part in kinds.items():
            frontier = pareto_frontier(part)
            for budget in BUDGETS if kind == "allocation and compression" else ALONE:
                if frontier.cost[0] * share <= budget:
                    choices = frontier.point(frontier.within_budget(budget / share))
                    yield self._row(kind, f"{kind}, budget {budget:g}, T = 1", 1, conversion.calibrated(choices))

    def _uniform(self, kind: str, name: str, timesteps: int, choice: Choice) -> Row:
        return self._row(kind, name, timesteps, self.at(timesteps).calibrated(choice))

    def _row(self, kind: str, name: str, timesteps: int, bundle: DetectorBundle, ann: bool = False) -> Row:
        detector = Detector(bundle, PostConfig(score=0.001), ann=ann, engine=self._args.engine)
        return _make_row(kind, name, timesteps, *score_detector(detector, self.windows))

    def _adaptive(self, timesteps: int) -> Row:
        """Return the row in which each window stops once its boxes agree; the threshold is chosen on the split "select"."""
        bundle = self.at(timesteps).calibrated(Choice(8))
        tau = self.at(timesteps).adaptive(bundle)["adaptive"]["tau"]
        detector = Detector(bundle, PostConfig(score=0.001), adaptive=tau)
        scored, stats = score_detector(detector, self.windows, 1)
        mean_timesteps = float(np.mean([energy_report(batch).timesteps or 0 for batch in stats]))
        return _make_row("adaptive timesteps", f"phi = 8, T <= {timesteps}, adaptive", mean_timesteps, scored, stats)


def _make_row(kind: str, name: str, timesteps: float, scored: Score, stats: list[SpikeStats]) -> Row:
    if not stats:
        return Row(kind, name, timesteps, scored.figures["ap"], scored.figures["ap50"])
    figures, images = [], [len(batch.layers[0].spikes) for batch in stats]
    for batch in stats:
        report = energy_report(batch)
        fp32, int8 = report.energies("fp32"), report.energies("int8")
        figures.append((fp32.ratio or 0, int8.as_dict()["of_qnn"] or 0, int8.ratio or 0, report.spikes_per_neuron or 0))
    means = np.average(figures, axis=0, weights=images).tolist()
    return Row(kind, name, timesteps, scored.figures["ap"], scored.figures["ap50"], *means)


STYLES = {
    "without bursts": ("#cc0000", "o--", "one spike per timestep (phi = 1), T = 1, 2, 4, 8"),
    "bursts": ("#4e9a06", "o-", "bursts (phi = 8), T = 1, 2, 4"),
    "signed bursts": ("#8ae234", "^", "bursts, signed neurons, T = 2, 4"),
    "one ratio for all layers": ("#888a85", "s--", "bursts, every threshold raised by one ratio, T = 1"),
    "allocation and compression": ("#204a87", "D-", "bursts and thresholds chosen per layer (Pareto), T = 1"),
    "advanced": ("#75507b", "p-", "the same, advanced calibration"),
    "adaptive timesteps": ("#f57900", "*", "bursts, adaptive timesteps"),
}


def draw(rows: list[Row], title: str, path: Path) -> None:
    """Plot AP against energy."""
    figure = new_figure(9, 5.4)
    axes = figure.subplots()
    ann = rows[0].ap
    axes.axhline(ann, color="black", linewidth=1)
    axes.axhspan(ann - 1, ann, color="black", alpha=0.07)
    axes.annotate(
        "the ANN, 100 % (band: one point of AP below)", (2.2, ann), xytext=(0, 4), textcoords="offset points", fontsize=9
    )
    for kind, (colour, style, label) in STYLES.items():
        points = sorted((row for row in rows if row.kind == kind), key=lambda row: row.energy)
        if not points:
            continue
        axes.plot(
            [100 * row.energy for row in points], [row.ap for row in points], style, color=colour, label=label, markersize=7
        )
        for row in points if kind in ("bursts", "without bursts") else ():
            axes.annotate(
                f"T={row.timesteps:g}", (100 * row.energy, row.ap), xytext=(5, -11), textcoords="offset points", fontsize=8
            )
    axes.set(
        xscale="log", xlabel="energy per window, % of the ANN's (FP32, every spike counted)", ylabel="AP (COCO), %", title=title
    )
    ticks = [2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks])
    axes.set_ylim(0, ann * 1.1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    figure.savefig(path, dpi=110)


def line(row: Row, ann: float) -> str:
    """Format a row of the table."""
    return (
        f"{row.name:52}{row.timesteps:5.2f}{row.ap:7.2f}{row.ap50:7.2f}{ann - row.ap:7.2f}"
        f"{100 * row.energy:8.1f}{100 * row.of_qnn:8.1f}{100 * row.int8:8.1f}{row.spikes_per_neuron:8.2f}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", default="caltech6", help="bundled weights or a file (default: caltech6)")
    parser.add_argument("--root", required=True, help="folder of the data that the weights were trained on")
    parser.add_argument("--limit", type=int, default=0, help="validation windows (default: all)")
    parser.add_argument("--showings", type=int, default=1, help="simulated windows per validation picture (default: 1)")
    parser.add_argument("--engine", default="auto", help="see models/runtime (adaptive timesteps: always reference)")
    parser.add_argument("--cache", default="runs/cache", help="folder of simulated windows")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    args = parser.parse_args()
    rows: list[Row] = []
    print(f"{'':52}{'T':>5}{'AP':>7}{'AP50':>7}{'lost':>7}{'energy%':>8}{'QNN%':>8}{'int8%':>8}{'spikes':>8}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        windows = len(bench.windows)
        for row in bench.rows():
            rows.append(row)
            print(line(row, rows[0].ap), flush=True)
            if args.json:
                record = {"windows": windows, **provenance(), "rows": [asdict(row) for row in rows]}
                args.json.write_text(json.dumps(record, indent=1))
            if args.picture:
                draw(rows, f"{args.weights}: AP against energy ({windows} validation windows)", args.picture)


if __name__ == "__main__":
    main()
