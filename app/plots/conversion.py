"""Files that a conversion saves with its weights: sensitivity table, frontier as CSV and plot, and plots of the report."""

from __future__ import annotations

import csv
import hashlib
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from torch import Tensor

from evburst.app.plots import new_figure, save_figure
from evburst.data.files import replacing
from evburst.eval.energy import HEADLINE
from evburst.models.graph import Graph
from evburst.models.spiking.convert.allocate import Frontier
from evburst.models.spiking.convert.calibrate import Choice
from evburst.models.spiking.convert.report import ConversionReport
from evburst.models.spiking.convert.sensitivity import SensitivityTable

FRONTIER = ("point", "synaptic_ops", "energy_share", "sensitivity")
"""First columns of `write_frontier`."""


def save_table(path: Path, table: SensitivityTable, identity: str) -> None:
    """Write a sensitivity table with the identity of what it was measured on, see `table_identity`."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez(
            file,
            identity=identity,
            layers=np.array(table.layers),
            cost=table.cost,
            sensitivity=table.sensitivity,
            batches=table.batches,
        )


class OtherTable(Exception):  # noqa: N818
    """A table of sensitivities was measured on another network or on other windows."""


def load_table(path: Path, identity: str, choices: tuple[Choice, ...]) -> SensitivityTable | None:
    """Read the sensitivity table of these candidates; None if there is none.

    Raises:
        OtherTable: it has another identity.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # NumPy leaves a damaged file open
            if str(file["identity"]) != identity:
                raise OtherTable
            layers = tuple(str(name) for name in file["layers"])
            return SensitivityTable(layers, choices, file["cost"], file["sensitivity"], int(file["batches"]))
    except (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile, zlib.error):  # damaged
        return None


def table_identity(graph: Graph, timesteps: int, choices: tuple[Choice, ...], grids: Tensor) -> str:
    """Return a digest of what a sensitivity table is measured on: network, T, candidates and calibration grids."""
    digest = hashlib.sha256(f"{graph.to_json()} {timesteps} {choices} {tuple(grids.shape)}".encode())
    for tensor in (*(graph.tensors[name] for name in sorted(graph.tensors)), grids):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write_frontier(frontier: Frontier, share: np.ndarray, path: Path) -> None:
    """Write a CSV row per point: index, cost, share of the ANN's energy, sensitivity, and each layer's phi or phi x rho."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*FRONTIER, *frontier.table.layers])
        for k in range(len(frontier)):
            chosen = [f"{c.phi}" if c.rho == 1 else f"{c.phi}x{c.rho:g}" for c in frontier.point(k).values()]
            writer.writerow([k, round(frontier.cost[k]), f"{share[k]:.5f}", f"{frontier.sensitivity[k]:.6g}", *chosen])


def draw_frontier(
    frontier: Frontier, share: np.ndarray, index: int, tried: list[dict[str, float]], unit: str, path: Path
) -> None:
    """Plot the frontier, the chosen point, and all points whose AP was measured."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    axes.plot(
        100 * share, frontier.sensitivity, color="#3465a4", label="Pareto frontier: burst limits and thresholds per layer"
    )
    for k, choice in enumerate(frontier.table.choices):
        if choice.phi == max(c.phi for c in frontier.table.choices):
            name = "one threshold factor for all layers" if choice.rho == 1 else None
            cost, divergence = frontier.table.cost[:, k].sum(), frontier.table.sensitivity[:, k].sum()
            axes.plot(100 * share[-1] * cost / frontier.cost[-1], divergence, "s", color="#999999", markersize=5, label=name)
    axes.plot(100 * share[index], frontier.sensitivity[index], "o", color="#cc0000", label=f"chosen: point {index}")
    for point in (one for one in tried if "lost" in one):
        k = int(point["point"])
        axes.annotate(f"{point['lost']:+.1f} {unit} lost", (100 * share[k], frontier.sensitivity[k]), fontsize=7)
    axes.set(
        xlabel=f"energy, % of the dense ANN's ({HEADLINE.upper()}, every spike counted)",
        ylabel="divergence from the ANN (sum over layers)",
    )
    from matplotlib.ticker import LogFormatter  # after new_figure, which names the package if it is missing

    axes.set(xscale="log", yscale="log", title="Energy against divergence")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_course(rows: list[dict[str, float]], share_per_operation: float, unit: str, path: Path) -> None:
    """Plot the loss and the energy on the split "select", and the training divergence, against minutes of advanced calibration.

    `unit` names what is lost: AP or top-1.
    """
    figure = new_figure(8, 7)
    lost, energy, divergence = figure.subplots(3, 1, sharex=True)
    minutes = [row["minutes"] for row in rows]
    measured, label = "select_lost", f"{unit} lost"
    if measured not in rows[0]:  # without labels
        measured, label = "select_divergence", "divergence"
    lost.plot(minutes, [row[measured] for row in rows], "o-", color="#cc0000")
    lost.axhline(0, color="#999999", linewidth=0.8)
    lost.set(ylabel=label, title="Advanced calibration, on windows held out")
    energy.plot(minutes, [100 * row["select_operations"] * share_per_operation for row in rows], "o-", color="#3465a4")
    energy.set(ylabel=f"energy, % of the dense ANN's ({HEADLINE})")
    training_rows = [row for row in rows if "divergence" in row]
    divergence.plot(
        [row["minutes"] for row in training_rows], [row["divergence"] for row in training_rows], "o-", color="#4e9a06"
    )
    divergence.set(xlabel="minutes", ylabel="divergence, training")
    for axes in (lost, energy, divergence):
        axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_report(report: ConversionReport, path: Path) -> None:
    """Plot the SQNR and the cost of every layer, in network order."""
    figure = new_figure(11, 5)
    top, bottom = figure.subplots(2, 1, sharex=True)
    x = np.arange(len(report.layers))
    neurons = np.array([layer.phi > 0 for layer in report.layers])
    top.bar(x, [layer.sqnr_db for layer in report.layers], color=np.where(neurons, "#3465a4", "#4e9a06"))
    top.set(ylabel="SQNR, dB", title=f"T = {report.timesteps}; green: read-outs; loses most: {report.worst.name}")
    bottom.bar(x, [100 * layer.share for layer in report.layers], color="#f57900")
    bottom.set(ylabel="share of cost, %", xlabel="layer")
    for axes in (top, bottom):
        axes.grid(alpha=0.3, axis="y")
    save_figure(figure, path)
