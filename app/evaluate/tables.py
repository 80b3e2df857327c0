"""Results of evaluations as tables in plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evburst.data.classification import CLASSIFICATION
from evburst.data.events import list_counts
from evburst.data.text import number_of
from evburst.eval.results import network_label


def human_table(results: dict[str, Any], out: Path) -> str:
    """Return the results, which lie in the folder `out`, as a table in plain text."""
    return _class_table(results, out) if results.get("task") == CLASSIFICATION else _box_table(results, out)


def _box_table(results: dict[str, Any], out: Path) -> str:
    windows = f"{number_of(results['windows'], 'window')} of {results['window_ms']:g} ms"
    if (side := results["downsample"]) > 1:
        windows += f" in blocks of {side}x{side} px"
    if results["memory"]:
        windows += ", with memory"
    head = f"{results['dataset']} {results['split']}: {windows}; protocol {results['protocol']}"
    lines = [head, f"{'':14}{'AP':>7}{'AP50':>7}{'AP75':>7}{'uJ':>9}{'% ANN':>8}{'% QNN':>8}{'p50 ms':>9}{'p99 ms':>9}"]
    for row in results["results"]:
        latency, name = row["latency_ms"], network_label(row["model"], row["timesteps"])
        ap = "".join(f"{'-' if row[k] is None else format(row[k], '.2f'):>7}" for k in ("ap", "ap50", "ap75"))
        lines.append(f"{name:14}{ap}{_energy_columns(row['energy'], 0)}{latency['p50']:9.1f}{latency['p99']:9.1f}")
    lines += [_loss_line(row["ap_loss"], "AP", row["timesteps"]) for row in results["results"] if row["ap_loss"]]
    energy = results["results"][-1]["energy"]
    lines.append(f"energy    {energy['table']}, per spike; ANN: dense; QNN: zero-skipping, a burst one multiply-accumulate")
    return "\n".join([*lines, *_repaired_lines(results), f"written   {out}/: results.json, results.md, report.html"])


def _class_table(results: dict[str, Any], out: Path) -> str:
    head = (
        f"{results['dataset']} {results['split']}: {number_of(results['recordings'], 'recording')}, "
        f"{number_of(results['windows'], 'window')} of {results['window_ms']:g} ms"
    )
    lines = [head, f"{'':14}{'top-1':>7}{'top-5':>7}{'window':>8}{'ECE':>7}{'uJ':>9}{'% ANN':>8}{'% QNN':>8}{'p50 ms':>9}"]
    for row in results["results"]:
        error, name = row["calibration"]["error"], network_label(row["model"], row["timesteps"])
        figures = (
            f"{row['top1']:7.2f}{row['top5']:7.2f}{row['window_top1']:8.2f}{'-' if error is None else format(error, '.3f'):>7}"
        )
        lines.append(f"{name:14}{figures}{_energy_columns(row['energy'], 2)}{row['latency_ms']['p50']:9.1f}")
    for row in results["results"]:
        if loss := row["top1_loss"]:
            lines.append(_loss_line(loss, "points of top-1", row["timesteps"]))
    energy = results["results"][-1]["energy"]
    lines.append(
        f"energy    {energy['table']}, per window and spike; ANN: dense; QNN: zero-skipping, a burst one multiply-accumulate"
    )
    return "\n".join(
        [*lines, *_repaired_lines(results), f"written   {out}/: results.json, results.md, report.html, confusion.svg"]
    )


def _repaired_lines(results: dict[str, Any]) -> list[str]:
    """Return a line on the faults of the recordings in plain text; none if they are intact."""
    return [f"repaired  {list_counts(results['faults'])}"] if results["faults"] else []


def _energy_columns(energy: dict[str, Any], decimals: int) -> str:
    """Return the columns uJ, % ANN and % QNN of a table in plain text."""
    pj = energy["ann_pj"] if energy["snn_pj"] is None else energy["snn_pj"]
    of_qnn = "-" if energy["of_qnn"] is None else f"{100 * energy['of_qnn']:.1f}"
    return f"{pj / 1e6:9,.{decimals}f}{100 * pj / energy['ann_pj']:8.1f}{of_qnn:>8}"


def _loss_line(loss: dict[str, Any], what: str, timesteps: int) -> str:
    """Return a line about the loss against the ANN in plain text; `what` is the name of the figure."""
    bounds = ""
    if loss["low"] is not None:
        bounds = f" [{loss['low']:.2f}, {loss['high']:.2f}], 95 % of {loss['units']} {loss['unit']}s"
    return f"loses     {loss['mean']:.2f} {what} against the ANN{bounds} (T = {timesteps})"
