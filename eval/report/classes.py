"""The report of a classifier's evaluation: results.json, results.md, one HTML page, and the confusion matrix as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evburst.eval.class_results import ClassNetworkResult, ClassResults
from evburst.eval.report import charts, tables
from evburst.eval.report.charts import Labels, Series, colour
from evburst.eval.report.tables import Table, interval, number, percent
from evburst.eval.report.write import render, write_files
from evburst.eval.results import parse, to_json

_MOST_CONFUSED = 12


def write_class_report(results: dict[str, Any], out: Path) -> None:
    """Write the files of the report to the folder `out`.

    Raises:
        DataError: the folder cannot be written, or the results do not match the schema in `evburst.eval.class_results`.
    """
    checked = parse(results)
    assert isinstance(checked, ClassResults)  # parse chose the class by the task
    picture = confusion_picture(checked)
    content = {
        "results.json": to_json(checked),
        "results.md": render("classes.md.j2", results=checked, tables=_tables(checked)),
        "report.html": _page(checked, picture),
        "confusion.svg": picture,
    }
    write_files(out, content)


def class_main_table(results: ClassResults) -> Table:
    """Return a table of top-1, top-5, calibration, energy and latency by network."""
    head = ["network", "top-1", "top-5", "top-1 of windows", "calibration error", "top-1 lost [95 % interval]", "µJ per window"]
    head += ["of dense ANN", "of QNN", "p50, ms", "p99, ms"]
    rows = []
    for r in results.results:
        cells = [number(r.top1), number(r.top5), number(r.window_top1), number(r.calibration.error, 3), interval(r.top1_loss)]
        cells += [tables.micro(tables.headline_pj(r)), percent(r.energy.ratio), percent(tables.of_qnn(r, r.energy))]
        rows.append([r.label, *cells, *(number(r.latency_ms[q], 1) for q in ("p50", "p99"))])
    return Table(head, rows)


def class_table(results: ClassResults) -> Table:
    """Return a table of top-1 by class and network."""
    rows = results.results
    head = ["class", "recordings", *(f"top-1, {r.label}" for r in rows)]
    first = rows[0].per_class
    return Table(head, [[c, f"{first[c].count:,}", *(number(r.per_class[c].top1, 1) for r in rows)] for c in first])


def confused_table(results: ClassResults) -> Table | None:
    """Return a table of the most frequent confusions; None if there are none."""
    details = results.main.details
    if details is None:
        return None
    counts = np.array(details.confusion)
    np.fill_diagonal(counts, 0)
    worst = np.argsort(-counts, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(k), len(counts)) for k in worst if counts.flat[k]]
    rows = [[results.classes[i], results.classes[j], f"{counts[i, j]:,}"] for i, j in pairs]
    return Table([f"{results.main.label}: class", "taken for", "recordings"], rows) if rows else None


def confusion_picture(results: ClassResults) -> str:
    """Return the main network's confusion matrix as `<svg>`: rows are labels, and each row sums to 1."""
    details = results.main.details
    counts = np.array(details.confusion if details else [[0]], float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return charts.matrix(shares, results.classes, "taken for", "class")


def _page(results: ClassResults, picture: str) -> str:
    rows = results.results
    return render(
        "classes.html.j2",
        results=results,
        main=results.main,
        ann=next((r for r in rows if r.model == "ann"), None),
        networks=[(r.label, colour(k)) for k, r in enumerate(rows)],
        tables=_tables(results),
        confusion=picture,
        reliability=_reliability_diagram(rows),
        frontier=_accuracy_against_energy(rows),
        record=json.dumps(
            {key: asdict(results)[key] for key in ("provenance", "timing", "faults", "config", "weights_record")}, indent=1
        ),
    )


def _tables(results: ClassResults) -> dict[str, Table | None]:
    return {"main": class_main_table(results), "classes": class_table(results), "confused": confused_table(results)}


def _reliability_diagram(rows: Sequence[ClassNetworkResult]) -> str:
    """Return a chart of accuracy against score."""
    series = [Series("ideal", [0, 1], [0, 1], "#afb8c1", ":")]
    for k, row in enumerate(rows):
        pairs = [
            (s, r) for s, r in zip(row.calibration.score, row.calibration.right, strict=True) if s is not None and r is not None
        ]
        series.append(Series(row.label, [s for s, _ in pairs], [r for _, r in pairs], colour(k), "o-"))
    return charts.lines(series, Labels("score", "share that is right", (0, 1), (0, 1.02)))


def _accuracy_against_energy(rows: Sequence[ClassNetworkResult]) -> str:
    spent = [(row, tables.headline_pj(row) or 0.0) for row in rows]
    series = [Series(row.label, [pj / 1e6], [row.top1], colour(k)) for k, (row, pj) in enumerate(spent)]
    top = charts.nice_top([1.25 * pj / 1e6 for _, pj in spent])
    table = rows[0].energy.table.upper()
    return charts.points(series, Labels(f"energy per window, µJ ({table}, per spike)", "top-1, %", (0, top), (0, 105)))
