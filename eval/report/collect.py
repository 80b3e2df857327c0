"""Tables over many evaluations: all values are read from results.json files, and missing ones are listed.

find(folders) -> Found          the files, ordered by weights and data
headline_table(files) -> table  a row for each detection network: AP, loss, energy
summary_tables(files) -> tables the same, AP, energy, latency, spread over seeds, provenance
gaps(files, expected) -> lines  what is missing for complete tables
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from evburst.data.errors import DataError
from evburst.data.text import number_of
from evburst.eval.class_results import ClassNetworkResult, ClassResults
from evburst.eval.report.tables import (
    Table,
    bootstrap,
    headline_pj,
    interval,
    memory_traffic_rows,
    micro,
    number,
    of_qnn,
    percent,
)
from evburst.eval.result_parts import in_blocks
from evburst.eval.results import NetworkResult, Results, read_results

NAME = "results.json"
_SEED = re.compile(r"[-_](?:s|seed)[-_]?\d+$")
_SAMPLE = " (the zero-skipping ANN over a sample of them, if the ANN was not evaluated)"
_LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}"}
_LATEX |= {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "|": r"$|$", "<": r"$<$", ">": r"$>$"}
_LATEX |= {"µ": r"$\mu$", "±": r"$\pm$", "+": "{+}"}


File = tuple[Path, Results | ClassResults]


@dataclass(frozen=True)
class Found:
    """Results files by path, and one line for each file that could not be read."""

    files: list[File]
    problems: list[str]


@dataclass(frozen=True)
class TitledTable:
    """A table with its title, and a note that explains its values."""

    title: str
    table: Table
    note: str


def find(places: Sequence[Path]) -> Found:
    """Find every results.json in and below folders (or the given files), ordered by weights, data and name.

    Raises:
        DataError: a path does not exist.
    """
    paths: list[Path] = []
    for place in places:
        if not place.exists():
            raise DataError(f"{place}: no such file or folder")
        paths += sorted(place.rglob(NAME)) if place.is_dir() else [place]
    files, problems = [], []
    for path in dict.fromkeys(paths):
        try:
            files.append((path, read_results(path)))
        except DataError as error:
            problems.append(str(error))
    return Found(sorted(files, key=lambda item: (item[1].title, item[1].protocol, str(item[0]))), problems)


def summary_tables(all_files: Sequence[File]) -> list[TitledTable]:
    """Return all tables for which these files have values."""
    files = [(path, results) for path, results in all_files if isinstance(results, Results)]
    classes = [(path, results) for path, results in all_files if isinstance(results, ClassResults)]
    found = [
        TitledTable(
            "Detection",
            headline_table(files),
            "AP in percent, by COCO's protocol unless another one is named. Lost: the ANN's AP minus the network's, in points, "
            "with the 95 % interval of a paired bootstrap. Energy in INT8, every spike counted: of the dense ANN, of the ANN "
            "that skips zeros (over a sample of windows, if it was not evaluated), and of the same network as a quantised "
            "network (QNN) that skips zeros.",
        ),
        TitledTable(
            "Classification",
            _classification(classes),
            "Percent of recordings, each by the mean of its windows' scores. Lost: the ANN's top-1 minus the network's, "
            "in points, with the "
            "95 % interval of a paired bootstrap over recordings.",
        ),
        TitledTable(
            "Average precision",
            _accuracy(files),
            "COCO AP in percent by the named protocol. Lost: the ANN's AP minus the network's, in points, with the 95 % "
            "interval of a paired bootstrap over pictures or recordings (units).",
        ),
        TitledTable(
            "AP by IoU",
            _by_iou(files),
            "AP in percent at each IoU, by COCO's protocol unless another one is named.",
        ),
        TitledTable(
            "Energy per window",
            _energy(all_files),
            f"µJ, mean over the same windows for every column{_SAMPLE}. Per spike: every spike of a burst is an accumulate. "
            "QNN: the same network, every burst one multiply-accumulate. 45 nm, Horowitz, ISSCC 2014, without memory traffic.",
        ),
        TitledTable(
            "Energy with memory traffic",
            _memory_traffic(all_files),
            f"µJ per window in the number format of the settings, mean over the same windows{_SAMPLE}. Arithmetic includes "
            "biases and resets, which the table above leaves out. Model: Lemaire et al., ICONIP 2022, one memory per layer and "
            "kind of data, no reuse.",
        ),
        TitledTable("Latency", _latency(all_files), "One window at a time: binning, network, decoding and NMS."),
        TitledTable(
            "Spread over seeds", _spread(files), "Mean and standard deviation over files whose weights differ only in `_seedN`."
        ),
        TitledTable(
            "Where the figures come from", _origin(all_files), "Commit of this project, processor and date of each evaluation."
        ),
    ]
    return [one for one in found if one.table.rows]


def headline_table(files: Sequence[tuple[Path, Results]]) -> Table:
    """Tabulate every detection network in one row."""
    head = [*_KEY_COLUMNS, "AP", "AP50", "AP lost [95 %]", "energy, of ANN", "of zero-skipping", "of QNN"]
    table = []
    for results, row, (weights, data, network) in _rows(files):
        energies = row.energy.tables["int8"] if row.energy and row.model == "snn" else None
        shares = *((energies.of_ann, energies.of_ann_zero_skipping) if energies else (None, None)), of_qnn(row)
        cells = [number(row.ap, 1), number(row.ap50, 1), interval(row.ap_loss, 1), *(percent(share) for share in shares)]
        table.append([weights, f"{data}{_other_protocol(results)}, {row.frames:,}", network, *cells])
    return Table(head, table, len(_KEY_COLUMNS))


def gaps(files: Sequence[File], expected: Iterable[str] = ()) -> list[str]:
    """List what is missing: weights without results, networks without a partner, values that were not measured."""
    lines = []
    known = {results.weights for _, results in files}
    replaced = _replaced([(path, results) for path, results in files if isinstance(results, Results)])
    lines += [f"weights {name}: no {NAME}" for name in expected if name not in known]
    for path, results in files:
        models = {row.model for row in results.results}
        where = f"{results.title} ({path})"
        if results.weights and models == {"snn"}:
            lines.append(f"{where}: the ANN was not evaluated, so the loss is unknown: evaluate with --both")
        if results.weights and models == {"ann"}:
            lines.append(f"{where}: no spiking network was evaluated: evaluate with --both")
        loss = results.ap_loss if isinstance(results, Results) else results.top1_loss
        if loss and loss.low is None:
            lines.append(f"{where}: {bootstrap(loss)}")
        if path in replaced:
            lines.append(f"{where}: left out of the spread over seeds, which has these weights once, from {replaced[path]}")
        if results.timing is None and results.weights:
            lines.append(f"{where}: no date")
        if results.provenance.commit.endswith("+changes"):
            lines.append(f"{where}: measured with uncommitted changes ({results.provenance.commit})")
        if results.provenance.commit == "unknown":
            lines.append(f"{where}: the commit is unknown")
    return lines


def render(tables: Sequence[TitledTable], missing: Sequence[str], form: str) -> str:
    """Format all tables as "markdown", "csv" (each below a line with its title) or "latex"."""
    if form == "csv":
        return "\n".join(f"# {one.title}\n{_csv(one.table)}" for one in tables)
    if form == "latex":
        return "\n".join(_latex(one) for one in tables)
    parts = [f"## {one.title}\n\n{one.table.markdown()}\n\n{one.note}\n" for one in tables]
    if missing:
        parts.append("## Missing\n\n" + "\n".join(f"- {line}" for line in missing) + "\n")
    return "\n".join(parts)


def _what(results: Results | ClassResults, row: NetworkResult | ClassNetworkResult) -> list[str]:
    """The cells that say what a network is."""
    return [results.weights or "box files", _data(results), row.label]


def _data(results: Results | ClassResults) -> str:
    """The cell that says on which data networks were evaluated, and what was not as usual."""
    split = f" {results.split}" if results.split else ""
    memory = ", with memory" if isinstance(results, Results) and results.memory else ""
    return f"{results.dataset}{split}{memory}{in_blocks(results.downsample)}"


def _other_protocol(results: Results) -> str:
    """What is added to that cell where no column names the protocol; nothing for COCO's."""
    return "" if results.protocol == "coco" else f", protocol {results.protocol}"


def _rows(files: Sequence[tuple[Path, Results]]) -> Iterable[tuple[Results, NetworkResult, list[str]]]:
    """Yield every network of a detector with the cells that identify it."""
    for _, results in files:
        for row in results.results:
            yield results, row, _what(results, row)


def _all_rows(files: Sequence[File]) -> Iterable[tuple[Results | ClassResults, NetworkResult | ClassNetworkResult, list[str]]]:
    """The same of detectors and classifiers; a protocol may have windows of its own, whose energy and latency differ."""
    for _, results in files:
        protocol = _other_protocol(results) if isinstance(results, Results) else ""
        for row in results.results:
            weights, data, network = _what(results, row)
            yield results, row, [weights, data + protocol, network]


def _classification(files: Sequence[tuple[Path, ClassResults]]) -> Table:
    head = [*_KEY_COLUMNS, "recordings", "classes", "top-1", "top-5", "top-1 of windows", "top-1 lost", "calibration error"]
    table = []
    for _, results in files:
        for row in results.results:
            figures = [number(v) for v in (row.top1, row.top5, row.window_top1)]
            last = [interval(row.top1_loss), number(row.calibration.error, 3)]
            table.append([*_what(results, row), f"{row.recordings:,}", str(len(results.classes)), *figures, *last])
    return Table(head, table, len(_KEY_COLUMNS))


_KEY_COLUMNS = ["weights", "data, split", "network"]


def _accuracy(files: Sequence[tuple[Path, Results]]) -> Table:
    head = [*_KEY_COLUMNS, "protocol", "frames", "AP", "AP50", "AP75", "AP lost", "AP50 lost", "units"]
    table = []
    for results, row, key_cells in _rows(files):
        units = number_of(row.ap_loss.units, row.ap_loss.unit) if row.ap_loss else "-"
        figures = [number(v) for v in (row.ap, row.ap50, row.ap75)]
        losses = [interval(row.ap_loss), interval(row.ap50_loss)]
        table.append([*key_cells, results.protocol, f"{row.frames:,}", *figures, *losses, units])
    return Table(head, table, len(_KEY_COLUMNS))


def _by_iou(files: Sequence[tuple[Path, Results]]) -> Table:
    ious = list(files[0][1].results[0].ap_by_iou) if files else []
    table = [
        [weights, data + _other_protocol(results), network, *(number(row.ap_by_iou[iou], 1) for iou in ious)]
        for results, row, (weights, data, network) in _rows(files)
    ]
    return Table([*_KEY_COLUMNS, *ious], table, len(_KEY_COLUMNS))


def _energy(files: Sequence[File]) -> Table:
    head = [*_KEY_COLUMNS, "windows", "format", "dense ANN", "zero-skipping ANN", "zero-skipping QNN", "SNN, per spike"]
    head += ["of dense ANN", "of zero-skipping ANN", "of QNN", "spikes per burst"]
    table = []
    for _, row, key_cells in _all_rows(files):
        if row.energy is None or row.model != "snn":
            continue
        for name in ("int8", "fp32"):
            e = row.energy.tables[name]
            cells = [micro(pj) for pj in (e.ann_pj, e.ann_zero_skipping_pj, e.qnn_pj, e.snn_pj)]
            shares = [percent(share) for share in (e.of_ann, e.of_ann_zero_skipping, of_qnn(row, e))]
            table.append([*key_cells, f"{row.energy.windows:,}", name.upper(), *cells, *shares, number(row.energy.mean_burst)])
    return Table(head, table, len(_KEY_COLUMNS))


def _memory_traffic(files: Sequence[File]) -> Table:
    head = [*_KEY_COLUMNS, "arithmetic", "memory traffic", "sum"]
    head += ["SNN relative to it: arithmetic", "SNN relative to it: sum"]
    table = [[*key_cells[:2], *cells] for _, row, key_cells in _all_rows(files) for cells in memory_traffic_rows(row)]
    return Table(head, table, len(_KEY_COLUMNS))


def _latency(files: Sequence[File]) -> Table:
    head = [*_KEY_COLUMNS, "engine", "p50, ms", "p99, ms", "windows/s", "machine, threads"]
    table = []
    for results, row, key_cells in _all_rows(files):
        if row.latency_ms and row.timing:
            threads = f", {results.timing.threads}" if results.timing else ""
            figures = [number(row.latency_ms[q], 1) for q in ("p50", "p99")]
            engine = row.engine or "torch"
            table.append([*key_cells, engine, *figures, number(row.timing.windows_per_s, 1), f"{_machine(results)}{threads}"])
    return Table(head, table, len(_KEY_COLUMNS))


def _spread(files: Sequence[tuple[Path, Results]]) -> Table:
    """Tabulate losses and energies of weights that differ only in their seed; of weights with several files, the newest."""
    table = []
    for key_cells, by_weights in _seeds(files).items():
        rows = [_newest(found)[2] for found in by_weights.values()]
        if len(rows) < 2:
            continue
        columns = (
            ([row.ap_loss.mean for row in rows if row.ap_loss], 2),
            ([100 * (row.energy.ratio or 0) for row in rows if row.energy], 2),
            ([(headline_pj(row) or 0) / 1e6 for row in rows], 1),
        )
        table.append([*key_cells, str(len(rows)), *(f"{mean(v):.{d}f} ± {stdev(v):.{d}f}" for v, d in columns)])
    return Table(["weights", "data, split", "protocol", "network", "seeds", "AP lost", "% of dense ANN", "µJ"], table, 4)


_Dated = tuple[str, Path, NetworkResult]
"""When a network was evaluated, the file, and its figures."""


def _seeds(files: Sequence[tuple[Path, Results]]) -> dict[tuple[str, ...], dict[str, list[_Dated]]]:
    """Group spiking networks whose weights differ only in their seed: by the cells that they share, then by their weights."""
    groups: dict[tuple[str, ...], dict[str, list[_Dated]]] = {}
    for path, results in files:
        for row in results.results:
            weights, data, network = _what(results, row)
            if row.model == "snn" and row.ap_loss and row.energy and _SEED.search(weights):
                key_cells = (_SEED.sub("", weights), data, results.protocol, network)
                found = groups.setdefault(key_cells, {}).setdefault(weights, [])
                found.append((results.timing.date if results.timing else "", path, row))
    return groups


def _newest(found: Sequence[_Dated]) -> _Dated:
    return max(found, key=lambda one: one[0])


def _replaced(files: Sequence[tuple[Path, Results]]) -> dict[Path, Path]:
    """Return the files of which the spread over seeds has a newer one of the same weights, each with that one."""
    several = (found for by_weights in _seeds(files).values() if len(by_weights) > 1 for found in by_weights.values())
    return {path: _newest(found)[1] for found in several for _, path, _ in found if path != _newest(found)[1]}


def _origin(files: Sequence[File]) -> Table:
    head = ["weights", "data, split", "protocol", "windows", "idle", "faults", "date", "commit", "machine", "engine"]
    table = []
    for _, results in files:
        faults = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in results.faults.items()) or "none"
        windows = "-" if results.windows is None else f"{results.windows:,}"
        date = results.timing.date[:10] if results.timing else "-"
        cells = [results.weights or "box files", _data(results), results.protocol]
        cells += [windows, f"{results.idle_windows:,}", faults]
        engines = ", ".join(sorted({row.engine for row in results.results if row.engine})) or "-"
        table.append([*cells, date, results.provenance.commit, _machine(results), engines])
    return Table(head, table, len(_KEY_COLUMNS))


def _machine(results: Results | ClassResults) -> str:
    return results.provenance.machine or "-"


def _csv(table: Table) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([table.head, *table.rows])
    return file.getvalue()


def _latex(one: TitledTable) -> str:
    """Format a booktabs table."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"

    columns = "l" * one.table.texts + "r" * (len(one.table.head) - one.table.texts)
    body = "\n".join(line(row) for row in one.table.rows)
    caption = line([f"{one.title}. {one.note}"]).removesuffix(r" \\")
    return (
        f"\\begin{{table}}\n\\caption{{{caption}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(one.table.head)}\n\\midrule\n"
        f"{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
