"""The report of an evaluation: results.json, a self-contained HTML page, and the tables as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.extras import require
from evburst.data.files import make_folder, read_json, refuse_foreign, replacing
from evburst.eval.coco import IOUS
from evburst.eval.matching import BINS
from evburst.eval.report import charts, tables
from evburst.eval.report.charts import COLOURS, Labels, Series, colour
from evburst.eval.results import NetworkResult, Results, parse, to_json

FILES = ("results.json", "results.md", "report.html", "confusion.svg")
"""What reports consist of; the last one only of classifiers."""

_MAX_CURVES = 12
_MAX_CONFUSION_ROWS = 13


@dataclass(frozen=True)
class ReportPicture:
    """A picture for the page; `data` is a data URL."""

    title: str
    data: str
    best: bool = True


def write_report(
    results: dict[str, Any], out: Path, shots: Sequence[ReportPicture] = (), maps: Sequence[ReportPicture] = ()
) -> None:
    """Write results.json, results.md and report.html.

    Raises:
        DataError: the folder cannot be written, or the results do not match `evburst.eval.results`.
    """
    checked = parse(results)
    assert isinstance(checked, Results)  # parse chose the class by the task
    content = {
        "results.json": to_json(checked),
        "results.md": markdown_report(checked),
        "report.html": html_report(checked, shots, maps),
    }
    write_files(out, content)


def write_files(out: Path, content: dict[str, str]) -> None:
    """Write text files into a folder, each replaced when the new one is whole; raises DataError if that fails."""
    writable(out)
    for name, text in content.items():
        with replacing(out / name) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")


def writable(out: Path) -> Path:
    """Create the folder of a report that is written later, if it is missing, and check the required packages.

    Raises:
        ConfigError: the folder contains files of these names that evburst has not written.
        DataError: the folder cannot be created.
        MissingPackageError: a package that is needed to write reports is not installed.
    """
    for package in ("jinja2", "matplotlib", "pydantic"):
        require(package, "eval", "a report")
    make_folder(out)
    refuse_foreign((out / name for name in FILES), {"version", "results"} <= read_json(out / FILES[0]).keys())
    return out


def html_report(results: Results, shots: Sequence[ReportPicture] = (), maps: Sequence[ReportPicture] = ()) -> str:
    """Return the HTML page.

    Args:
        results: results, with details.
        shots: pictures of the best and worst windows.
        maps: pictures of spike rates.
    """
    rows = results.results
    curves = _curves(rows, results.classes)
    return render(
        "report.html.j2",
        results=results,
        main=results.main,
        ann=next((r for r in rows if r.model == "ann"), None),
        networks=[(r.label, colour(k)) for k, r in enumerate(rows)],
        curves=curves,
        iou_chart=_iou_chart(rows),
        energy_charts=_energy_charts(results),
        layer_charts=_layer_charts(rows),
        reliability_chart=_reliability_chart(rows),
        confusion=_confusion(results.main),
        latency_chart=_latency_chart(rows),
        shots=[("Best", [s for s in shots if s.best]), ("Worst", [s for s in shots if not s.best])],
        maps=maps,
        record=_record(results),
    )


def markdown_report(results: Results) -> str:
    """Return the tables as Markdown, for pasting into documents and discussions."""
    return render("results.md.j2", results=results)


def render(template: str, **values: Any) -> str:
    """A template of this folder, filled in."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("evburst.eval.report")
    environment = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(t=tables, bins=BINS, **values)


def _curves(rows: Sequence[NetworkResult], classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return a precision-recall chart for every class that has labels."""
    found = []
    for name in list(classes)[:_MAX_CURVES]:
        series = []
        for k, row in enumerate(rows):
            for iou, dash in (("0.50", "-"), ("0.75", "--")):
                ys = row.details and row.details.precision_curves[name][iou]
                if row.details and ys:
                    series.append(Series(f"{row.label}, IoU {iou}", row.details.recalls, ys, colour(k), dash))
        if series:
            labels = Labels("recall", "precision", (0, 1), (0, 1.02))
            found.append((name, charts.lines(series, labels, 360, 240)))
    return found


def _iou_chart(rows: Sequence[NetworkResult]) -> str:
    """Return a chart of the loss at each IoU, with intervals; without a pair of networks, of the AP."""
    xs = [float(iou) for iou in IOUS]
    series = []
    for k, row in enumerate(rows):
        if losses := row.ap_loss_by_iou:
            found = [losses[iou] for iou in IOUS]
            bounds = [] if any(one.low is None for one in found) else [(one.low or 0.0, one.high or 0.0) for one in found]
            low, high = ([b[0] for b in bounds], [b[1] for b in bounds])
            series.append(Series(row.label, xs, [one.mean for one in found], colour(k), "o-", low, high))
    if series:
        return charts.lines(series, Labels("IoU", "AP lost, points", y_range=(None, None)))
    series = [Series(row.label, xs, [row.ap_by_iou[iou] or 0 for iou in IOUS], colour(k), "o-") for k, row in enumerate(rows)]
    return charts.lines(series, Labels("IoU", "AP"))


def _energy_charts(results: Results) -> list[tuple[str, str]]:
    """Return charts of the four energies of the main network, and of AP against energy of all networks."""
    energy = results.main.energy
    if energy is None:
        return []
    accounts = (
        ("dense ANN", energy.ann_pj, COLOURS[0]),
        ("zero-skipping ANN", energy.ann_zero_skipping_pj, COLOURS[0]),
        ("zero-skipping QNN", energy.qnn_pj, COLOURS[4]),
        (f"{results.main.label}, per spike", energy.snn_pj, COLOURS[1]),
    )
    known = [(name, pj / 1e6, shade) for name, pj, shade in accounts if pj is not None]
    names, values, colours = (list(column) for column in zip(*known, strict=True))
    bars = charts.ranked(names, values, colours, f"energy per window, µJ ({energy.table.upper()})")
    return [("Energies of the same windows", bars), ("Accuracy against energy", _accuracy_against_energy(results.results))]


def _accuracy_against_energy(rows: Sequence[NetworkResult]) -> str:
    spent = [(k, row, tables.headline_pj(row)) for k, row in enumerate(rows)]
    series = [Series(row.label, [pj / 1e6], [row.ap or 0], colour(k)) for k, row, pj in spent if pj is not None]
    table = next(row.energy.table.upper() for row in rows if row.energy)
    top = charts.nice_top([1.25 * x for one in series for x in one.xs])
    labels = Labels(
        f"energy per window, µJ ({table}, per spike)", "AP", (0, top), (0, charts.nice_top([1.1 * s.ys[0] for s in series]))
    )
    return charts.points(series, labels)


def _layer_charts(rows: Sequence[NetworkResult]) -> list[tuple[str, str]]:
    """Return a chart of the energy by layer for every network."""
    found = []
    for k, row in enumerate(rows):
        layers = row.details.layers if row.details else ()
        if not layers:
            continue
        ys = [layer.pj / 1e6 for layer in layers]
        titles = [f"{layer.name}: {y:,.2f} µJ" for layer, y in zip(layers, ys, strict=True)]
        what = "convolutions" if row.model == "ann" else "sources of spikes (events, neurons, pools)"
        one = Series(row.label, list(range(len(ys))), ys, colour(k))
        found.append((f"{row.label}: {len(ys)} {what}, first to last", charts.bars(one, titles, Labels("", "µJ"))))
    return found


def _reliability_chart(rows: Sequence[NetworkResult]) -> str:
    """Return a reliability diagram: the fraction of correct predictions against their score."""
    series = [Series("ideal", [0, 1], [0, 1], "#afb8c1", ":")]
    for k, row in enumerate(rows):
        if row.details:
            found = row.details.calibration
            pairs = [(c, p) for c, p in zip(found.confidence, found.precision, strict=True) if c is not None and p is not None]
            series.append(Series(row.label, [c for c, _ in pairs], [p for _, p in pairs], colour(k), "o-"))
    return charts.lines(series, Labels("score", "fraction that is correct", (0, 1), (0, 1.02)))


def _confusion(row: NetworkResult) -> list[tuple[str, list[tuple[int, str]]]] | None:
    """Return the rows of the confusion matrix, (label, [(count, colour)]); None if there are too many classes for a table."""
    if row.details is None or len(row.details.confusion.rows) > _MAX_CONFUSION_ROWS:
        return None
    confusion, found = row.details.confusion, []
    for k, (name, counts) in enumerate(zip(confusion.rows, confusion.counts, strict=True)):
        total = max(sum(counts), 1)
        cells = [
            (count, f"rgba({'26,127,55' if k == j else '209,89,10'},{0.75 * count / total:.2f})")
            for j, count in enumerate(counts)
        ]
        found.append((name, cells))
    return found


def _latency_chart(rows: Sequence[NetworkResult]) -> str | None:
    all_ms = [ms for row in rows if row.timing for ms in row.timing.latencies_ms]
    if not all_ms:
        return None
    top = charts.nice_top([float(np.percentile(all_ms, 99.5))])
    edges = np.linspace(0, top, 61)
    series = [
        Series(row.label, edges.tolist(), np.histogram(row.timing.latencies_ms, edges)[0].tolist(), colour(k))
        for k, row in enumerate(rows)
        if row.timing
    ]
    return charts.steps(series, Labels("latency, ms", "windows", (0, top)))


def _record(results: Results) -> str:
    """Return the settings and the weights' record as text."""
    found = asdict(results)
    keys = ("provenance", "timing", "faults", "config", "protocol_rule", "files", "weights_record")
    return json.dumps({key: found[key] for key in keys if found[key]}, indent=1)
