"""The report of an evaluation: one HTML page that needs nothing from anywhere else, and the tables as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from evburst.data.errors import ConfigError
from evburst.eval.matching import BINS
from evburst.eval.report import page
from evburst.eval.report.charts import Axis, Chart, Series, nice_top

Rows = list[dict[str, Any]]

_MOST_CURVES = 12


@dataclass(frozen=True)
class Picture:
    """A picture for a page: `data` is a data URL."""

    title: str
    data: str
    best: bool = True


def write_report(results: dict[str, Any], out: Path, shots: Sequence[Picture] = (), maps: Sequence[Picture] = ()) -> None:
    """results.json, results.md and report.html; raises ConfigError if the folder cannot be written."""
    writable(out)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "results.md").write_text(markdown_report(results))
    (out / "report.html").write_text(html_report(results, shots, maps))


def writable(out: Path) -> Path:
    """The folder, made if it is missing; raises ConfigError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
    return out


def html_report(results: dict[str, Any], shots: Sequence[Picture] = (), maps: Sequence[Picture] = ()) -> str:
    """The page.

    Args:
        results: as in results.json, details included.
        shots: best and worst windows.
        maps: spike rates.
    """
    rows: Rows = results["results"]
    sections = [_cards(results), _main_table(results), _classes(rows), _curves(rows, results["classes"])]
    if rows[0]["energy"]:
        sections += [_energy(results), _layers(rows), _maps(maps)]
    sections += [_trust(rows)]
    if rows[0]["latency_ms"]:
        sections += [_latency(results), _neurobench(rows)]
    sections += [_shots(shots), _provenance(results)]
    title = f"{results.get('weights', 'predictions')} on {results['dataset']}" + (
        f", {results['split']} split" if results["split"] else ""
    )
    rule = f"{rows[0]['frames']:,} scored frames; protocol {results['protocol']}"
    body = "".join(sections)
    return page.page(title, rule, body)


def label(row: dict[str, Any]) -> str:
    """A network's name in tables."""
    return {"ann": "ANN", "snn": f"SNN, T = {row['timesteps']}"}.get(row["model"], "predictions")


def _main(rows: Rows) -> dict[str, Any]:
    """The network that single figures are of: the first spiking one, or else the first."""
    return next((row for row in rows if row["model"] == "snn"), rows[0])


def main_table(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of figures."""
    rows: Rows = results["results"]
    head = ["network", "AP", "AP50", "AP75", "AP small", "medium", "large"]
    table = [[label(r), *(number(r[k]) for k in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"))] for r in rows]
    if rows[0]["energy"]:
        head += ["energy, µJ", "% of ANN", "spikes/neuron", "p50, ms", "p99, ms", "windows/s"]
        for cells, r in zip(table, rows, strict=True):
            e = r["energy"]
            cells += [number((e["snn_pj"] or e["ann_pj"]) / 1e6, 0), number(100 * (e["ratio"] or 1), 1)]
            cells += [number(e["spikes_per_neuron"]), number(r["latency_ms"]["p50"], 1), number(r["latency_ms"]["p99"], 1)]
            cells.append(number(r["timing"]["windows_per_s"], 1))
        if any(r["timing"]["streaming"] for r in rows):
            head.append("streaming AP")
            for cells, r in zip(table, rows, strict=True):
                cells.append(number((r["timing"]["streaming"] or {}).get("streaming_ap")))
    return head, table


def markdown_report(results: dict[str, Any]) -> str:
    """The tables, to be pasted where figures are discussed."""
    head, table = main_table(results)
    classes = [["network", *results["classes"]]]
    classes += [[label(r), *(number(r["per_class"][name]["ap50"]) for name in results["classes"])] for r in results["results"]]
    lines = [
        f"# {results.get('weights', 'predictions')} on {results['dataset']} {results['split'] or ''}".rstrip(),
        "",
        f"Protocol `{results['protocol']}` ({results['protocol_rule']['source']}); {results['results'][0]['frames']} scored frames.",
        "",
        *page.markdown_table([head, *table]),
        "",
        "AP50 by class:",
        "",
        *page.markdown_table(classes),
        "",
        *(f"- {name}: {text}" for name, text in results.get("clock", {}).items()),
        *([f"- energy leaves out: {', '.join(results['energy_excluded'])}"] if "energy_excluded" in results else []),
        f"- commit {results['provenance']['commit']}, {results['provenance']['machine']}",
    ]
    return "\n".join(lines) + "\n"


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def _cards(results: dict[str, Any]) -> str:
    rows: Rows = results["results"]
    main = _main(rows)
    ann = next((r for r in rows if r["model"] == "ann"), None)
    against = f", ANN {number(ann['ap'], 1)}" if ann and ann is not main else ""
    cards = [(number(main["ap"], 1), f"AP, {label(main)}{against}"), (number(main["ap50"], 1), f"AP50, {label(main)}")]
    if main["energy"] and main["energy"]["ratio"]:
        cards.append(
            (f"{100 * main['energy']['ratio']:.1f} %", f"of the ANN's energy ({main['energy']['table'].upper()}, per spike)")
        )
    elif main["energy"]:
        cards.append((f"{main['energy']['ann_pj'] / 1e6:,.0f} µJ", "per window, ANN"))
    if main["latency_ms"]:
        cards.append((f"{main['latency_ms']['p50']:.1f} ms", f"median latency, {label(main)}, one window at a time"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{a}</b><span>{escape(b)}</span></div>' for a, b in cards)
        + "</div>"
    )


def _main_table(results: dict[str, Any]) -> str:
    head, table = main_table(results)
    rule = results["protocol_rule"]
    box = rule["smallest_box"]
    parts = [
        f"Protocol {results['protocol']}: {rule['source']}.",
        f"Boxes at or before {rule['skip_us'] / 1e6:g} s are left out." if rule["skip_us"] else "",
        f"Smallest box: diagonal {box['min_diagonal_px']:g}, side {box['min_side_px']:g} pixels." if box["min_diagonal_px"] else "",
        f"Predictions within {rule['tolerance_us'] / 1000:g} ms of a label." if rule["tolerance_us"] else "Predictions at the labels' times.",
        "AP in percent.",
    ]  # fmt: skip
    return page.section("Results", page.table(head, table) + page.note(" ".join(p for p in parts if p)))


def _classes(rows: Rows) -> str:
    names = list(rows[0]["per_class"])
    head = ["class", *(f"{key}, {label(r)}" for key in ("AP", "AP50") for r in rows)]
    table = [[name, *(number(r["per_class"][name][key], 1) for key in ("ap", "ap50") for r in rows)] for name in names]
    main = _main(rows)
    sizes, recalls = main["details"]["ap_by_size"], main["details"]["recall_50"]
    by_size = [
        [name, *(number(sizes[name][size], 1) for size in ("small", "medium", "large")), number(_percent(recalls[name]), 1)]
        for name in names
    ]
    size_head = [f"{label(main)}, by size", "AP small", "AP medium", "AP large", "recall at IoU 0.5"]
    note = page.note("Small: below 32² pixels; large: above 96² pixels. A dash: no label of that kind.")
    return page.section("Classes and sizes", page.table(head, table) + "<br>" + page.table(size_head, by_size) + note)


def _curves(rows: Rows, classes: Sequence[str]) -> str:
    charts = []
    for name in list(classes)[:_MOST_CURVES]:
        chart = Chart(Axis("recall", 0, 1), Axis("precision", 0, 1), 344, 235)
        drawn = False
        for k, row in enumerate(rows):
            curves = row["details"]["precision_curves"]
            for iou, dash in (("0.50", ""), ("0.75", "4 3")):
                ys = curves[name][iou]
                if ys:
                    chart.line(Series(f"{label(row)}, IoU {iou}", curves["recall"], ys, page.colour(k)), dash)
                    drawn = True
        if drawn:
            charts.append(f"<div><h3>{escape(name)}</h3>{chart.svg()}</div>")
    note = page.note("Solid: IoU 0.50; dashed: IoU 0.75. COCO's 101 recalls, precision made monotonic.")
    return page.section(
        "Precision and recall", page.legend([label(r) for r in rows]) + f'<div class="row">{"".join(charts)}</div>' + note
    )


def _energy(results: dict[str, Any]) -> str:
    rows: Rows = results["results"]
    head = ["µJ per window", "SNN, per spike", "zero-skipping QNN", "zero-skipping ANN", "dense ANN", "SNN / dense ANN"]
    table = []
    for row in rows:
        for name, e in row["energy"]["tables"].items():
            cells = [e["snn_pj"], e["qnn_pj"], e["ann_zero_skipping_pj"], e["ann_pj"]]
            ratio = "–" if e["ratio"] is None else f"{100 * e['ratio']:.1f} %"
            table.append([f"{label(row)}, {name.upper()}", *(number(None if c is None else c / 1e6, 1) for c in cells), ratio])
    table_name = rows[0]["energy"]["table"]
    costs = [(r["energy"]["snn_pj"] or r["energy"]["ann_pj"]) / 1e6 for r in rows]
    aps = [r["ap"] or 0 for r in rows]
    cost_axis = Axis(f"energy per window, µJ ({table_name.upper()}, per spike)", 0, nice_top(costs))
    chart = Chart(cost_axis, Axis("AP", 0, nice_top(aps)), 400, 300)
    for k, (row, cost, ap) in enumerate(zip(rows, costs, aps, strict=True)):
        chart.points(Series(label(row), [cost], [ap], page.colour(k)))
    note = page.note(
        "Per window, mean. Per spike: a burst of 3 is 3 accumulates; QNN: the same network, every burst one multiply-accumulate. "
        f"Zero-skipping: without products with 0. Left out of all: {', '.join(results['energy_excluded'])}. 45 nm, Horowitz, ISSCC 2014."
    )
    plot = f'<div style="flex:0 0 400px"><h3>Accuracy against energy</h3>{page.legend([label(r) for r in rows])}{chart.svg()}</div>'
    both = f'<div class="row" style="flex-wrap:nowrap"><div style="flex:1 1 auto">{page.table(head, table)}</div>{plot}</div>'
    return page.section("Energy", both + note + _memory(rows))


def _memory(rows: Rows) -> str:
    found = [row for row in rows if row.get("memory")]
    if not found:
        return ""
    table = []
    for row in found:
        m = row["memory"]
        cells = (m["operations_pj"], m["weights_pj"], m["potentials_pj"], m["signals_pj"], m["total_pj"])
        table.append([label(row), *(number(c / 1e6, 0) for c in cells), f"{100 * m['share_of_ann']:.1f} %"])
    head = ["µJ per window", "operations", "weights and biases", "potentials", "inputs and outputs", "total", "of the ANN's"]
    return f"<h3>Another model: with memory traffic</h3>{page.table(head, table)}{page.note(found[0]['memory']['model'])}"


def _layers(rows: Rows) -> str:
    charts = []
    for k, row in enumerate(rows):
        layers = row["details"]["layers"]
        ys = [layer["pj"] / 1e6 for layer in layers]
        names = [f"{layer['name']}: {pj:,.1f} µJ" for layer, pj in zip(layers, ys, strict=True)]
        chart = Chart(Axis("", -1, len(layers)), Axis("µJ", 0, nice_top(ys)), 538, 190)
        chart.bars(Series(label(row), list(range(len(layers))), ys, page.colour(k), names), 0.8)
        what = "convolutions" if row["model"] == "ann" else "sources of spikes (events, neurons, pools)"
        charts.append(f"<div><h3>{label(row)}: {len(layers)} {what}, first to last</h3>{chart.svg()}</div>")
    return page.section(
        "Energy by layer", f'<div class="row">{"".join(charts)}</div>' + page.note("Hover over a bar for its layer.")
    )


def _trust(rows: Rows) -> str:
    chart = Chart(Axis("score", 0, 1), Axis("share that is right", 0, 1), 400, 280)
    chart.line(Series("as it should be", [0, 1], [0, 1], "#afb8c1"), "3 3")
    for k, row in enumerate(rows):
        found = row["details"]["calibration"]
        points = [(c, p) for c, p in zip(found["confidence"], found["precision"], strict=True) if c is not None]
        if points:
            xs, ys = zip(*points, strict=True)
            chart.line(Series(label(row), xs, ys, page.colour(k)))
    errors = "; ".join(f"{label(r)} {number(r['details']['calibration']['error'], 3)}" for r in rows)
    main = _main(rows)
    confusion = main["details"]["confusion"]
    matrix = _matrix(confusion) if len(confusion["rows"]) <= 13 else ""
    note = page.note(
        f"Left: {BINS} bins of scores at IoU 0.5; expected calibration error from score 0.3 on: {errors}. Right: predictions of score "
        f"{confusion['score']} and above at IoU {confusion['iou']}; rows are what there is, columns what was predicted."
    )
    right = f"<div><h3>Confusion, {label(main)}</h3>{matrix}</div>" if matrix else ""
    return page.section(
        "Scores and confusion",
        page.legend([label(r) for r in rows]) + f'<div class="row"><div>{chart.svg()}</div>{right}</div>' + note,
    )


def _matrix(confusion: dict[str, Any]) -> str:
    counts = np.array(confusion["counts"])
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f"<th>{escape(name)}</th>" for name in confusion["columns"])
    body = ""
    for k, name in enumerate(confusion["rows"]):
        cells = ""
        for j, count in enumerate(counts[k]):
            share = count / totals[k, 0]
            colour = "26,127,55" if k == j else "209,89,10"
            cells += f'<td style="background:rgba({colour},{0.75 * share:.2f})">{count:,}</td>'
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    return f'<table class="matrix"><tr><th></th>{head}</tr>{body}</table>'


def _latency(results: dict[str, Any]) -> str:
    rows: Rows = results["results"]
    everything = [ms for row in rows for ms in row["timing"]["latencies_ms"]]
    top = nice_top([float(np.percentile(everything, 99.5))])
    edges = np.linspace(0, top, 61)
    counts = [np.histogram(row["timing"]["latencies_ms"], edges)[0] for row in rows]
    chart = Chart(Axis("latency, ms", 0, top), Axis("windows", 0, nice_top([int(c.max()) for c in counts])), 1100, 240)
    for k, (row, count) in enumerate(zip(rows, counts, strict=True)):
        xs = np.repeat(edges, 2)[1:-1].tolist()
        chart.line(Series(label(row), xs, np.repeat(count, 2).tolist(), page.colour(k)))
    head = ["network", "p50", "p90", "p99", "windows/s", "streaming AP", "offline AP", "age of a result, ms"]
    table = []
    for row in rows:
        s = row["timing"]["streaming"] or dict.fromkeys(("streaming_ap", "offline_ap", "mean_age_ms"))
        latency = [number(row["latency_ms"][q], 1) for q in ("p50", "p90", "p99")]
        rest = [number(s["streaming_ap"]), number(s["offline_ap"]), number(s["mean_age_ms"], 1)]
        table.append([label(row), *latency, number(row["timing"]["windows_per_s"], 1), *rest])
    clock = " ".join(f"{name.replace('_', ' ')}: {text}." for name, text in results["clock"].items())
    return page.section(
        "Latency", page.legend([label(r) for r in rows]) + chart.svg() + page.table(head, table) + page.note(clock)
    )


def _neurobench(rows: Rows) -> str:
    head = [
        "network",
        "footprint, MB",
        "connection sparsity",
        "activation sparsity",
        "dense, M",
        "effective MACs, M",
        "effective ACs, M",
    ]
    table = []
    for row in rows:
        m = row["neurobench"]
        shares = [number(_percent(m[k]), 2) for k in ("connection_sparsity", "activation_sparsity")]
        counts = [number(m[k] / 1e6, 1) for k in ("dense_synops", "effective_macs", "effective_acs")]
        table.append([label(row), number(m["footprint_bytes"] / 1e6, 1), *(f"{s} %" for s in shares), *counts])
    note = page.note(
        "NeuroBench counts a layer with bursts, or with counts above 1 at its input, as multiply-accumulates; a burst is one."
    )
    return page.section("NeuroBench", page.table(head, table) + note)


def _maps(maps: Sequence[Picture]) -> str:
    if not maps:
        return ""
    figures = "".join(f'<figure><img src="{m.data}" alt=""><figcaption>{escape(m.title)}</figcaption></figure>' for m in maps)
    note = page.note("Spikes per neuron on the first window of the gallery, averaged over a layer's channels, by layer and timestep; each picture has its own scale.")  # fmt: skip
    return page.section("Where spikes are", f'<div class="maps">{figures}</div>' + note)


def _shots(shots: Sequence[Picture]) -> str:
    out = ""
    for best, title in ((True, "Best"), (False, "Worst")):
        chosen = [s for s in shots if s.best is best]
        figures = "".join(
            f'<figure><img src="{s.data}" alt=""><figcaption>{escape(s.title)}</figcaption></figure>' for s in chosen
        )
        out += f'<h3>{title}</h3><div class="shots">{figures}</div>' if chosen else ""
    note = page.note("Green: labels; orange: predictions with a score of 0.3 and above. ON events white, OFF events blue.")
    return page.section("Best and worst windows", out + note) if out else ""


def _provenance(results: dict[str, Any]) -> str:
    keys = ("provenance", "timing", "config", "protocol_rule", "files", "weights_record")
    found = {key: results[key] for key in keys if key in results}
    p = results["provenance"]
    versions = ", ".join(f"{name} {v}" for name, v in p["versions"].items())
    line = f"Commit {p['commit']}; {p['machine']}; {versions}."
    text = escape(json.dumps(found, indent=1))
    return page.section(
        "Provenance",
        f"<p>{escape(line)}</p><details><summary>Settings and the weights' record</summary><pre>{text}</pre></details>",
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
