"""Write the tables of README.md and docs/ that results files hold.

    python bench/doc_tables.py                                 rewrite every table in its page
    python bench/doc_tables.py --format latex --out tables     write each as tables/NAME.tex (or csv)

The results files are those in docs/results/, which the other benches and `evburst evaluate` write. A table is found by the
heading above it and its number below that heading.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import (  # noqa: E402
    conversion,
    events,
    gpu,
    inference,
    int8_ann,
    late,
    margin,
    memory,
    quiet,
    real,
    seeds,
    silence,
    simulator,
    spikes,
    tracks,
    tradeoff,
)
from evburst.data.errors import DataError  # noqa: E402
from evburst.eval.bootstrap import Interval  # noqa: E402
from evburst.eval.energy import COST_TABLES  # noqa: E402
from evburst.eval.report import collect  # noqa: E402
from evburst.eval.report.tables import Table, interval, number, of_qnn, percent  # noqa: E402
from evburst.eval.results import NetworkResult, Results, read_results  # noqa: E402
from evburst.models.bundle import DetectorBundle  # noqa: E402
from evburst.models.spiking.network import SpikingParameters  # noqa: E402

RESULTS = ROOT / "docs" / "results"
DETECTORS = ("street", "caltech6", "caltech6-ssd")
"""All of one timestep, so that each is the same network as a quantised one."""
CLASSIFIERS = ("nmnist", "dvs128-objects", "caltech101")
TRAINED_QNN = "street-16-levels"
"""Results of the network of configs/convert_street_qnn.yaml, whose weights do not come with evburst."""
OTHER_DRIVES = "-other-drives"
"""Suffix of results on windows without those of a drive that training has seen other frames of."""
_TABLE = re.compile(r"^\|.*\n(?:\|.*\n)+", re.MULTILINE)
_SUFFIXES = {"csv": "csv", "latex": "tex"}


@dataclass(frozen=True)
class DocTable:
    """A table of the documentation.

    Attributes:
        name: of its file, with --out.
        page: path from the root of the repository.
        heading: the heading above it.
        make: returns it as Markdown, without a newline at its end.
        number: its number among the tables below that heading, from 0.
    """

    name: str
    page: str
    heading: str
    make: Callable[[], str]
    number: int = 0

    def place(self, text: str) -> tuple[int, int]:
        """Return where the table begins and ends in the text of its page.

        Raises:
            DataError: the page has no such heading, or no such table below it.
        """
        section = re.search(rf"^#+ {re.escape(self.heading)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
        found = list(_TABLE.finditer(section.group(1))) if section else []
        if section is None or len(found) <= self.number:
            raise DataError(f"{self.page}: no table {self.number} below the heading {self.heading!r}")
        return section.start(1) + found[self.number].start(), section.start(1) + found[self.number].end()


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _files(names: tuple[str, ...]) -> list[collect.File]:
    return collect.find([RESULTS / name for name in names]).files


def _evaluation(names: tuple[str, ...], title: str) -> str:
    """A table of `evburst results`, of these weights."""
    return next(one.table for one in collect.summary_tables(_files(names)) if one.title == title).markdown()


def window_times() -> dict[tuple[str, str], str]:
    """ms per window by weights and network: "ann" and "int8" in their fastest runtime; "qnn", the spiking network at T = 1
    where no spikes are counted; "snn T", the spiking network in the fastest engine that counts every spike."""
    times: dict[tuple[str, str], str] = {}
    for path in sorted(RESULTS.glob("inference*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        ms = {name: result["ms"] for name, result in record["results"].items() if "ms" in result}
        found = {"ann": ms[inference.baseline(record["results"])], "int8": _fastest(ms, "(openvino|onnxruntime) int8.*")}
        found["qnn"] = _fastest(ms, "snn .* T=1 uncounted")
        found |= {f"snn {steps}": _fastest(ms, rf"snn (reference|int8) T={steps}") for steps in inference.TIMESTEPS}
        times |= {(record["weights"], name): f"{value:.1f}" for name, value in found.items() if value is not None}
    return times


def _fastest(ms: dict[str, float], names: str) -> float | None:
    """The shortest time of the networks whose names match; None if there is none."""
    return min((value for name, value in ms.items() if re.fullmatch(names, name)), default=None)


@cache
def _bundle(weights: str) -> DetectorBundle:
    return DetectorBundle.load(weights)


def _parameters(weights: str) -> SpikingParameters:
    return _bundle(weights).parameters


def _limits(weights: str) -> Counter[int]:
    """Number of layers with each burst limit."""
    return Counter(int(layer.burst_limits.max()) for layer in _parameters(weights).neurons.values())


def levels(weights: str) -> int:
    """Levels of an activation of the network as a quantised one, in the layers with the most."""
    return 1 + max(_limits(weights))


def _detectors(names: tuple[str, ...] = DETECTORS) -> Iterator[Results]:
    for name in names:
        results = read_results(RESULTS / name / "results.json")
        if isinstance(results, Results):
            yield results


class _Account(NamedTuple):
    """Scores of a spiking network as cells, and energies as shares of the dense ANN's: of an ANN that skips zeros, of the QNN
    that the network is at T = 1, and of the network."""

    scores: list[str]
    arithmetic: dict[str, float]
    with_memory: dict[str, float]


def _account(results: Results) -> _Account:
    snn = results.results[1]
    if snn.energy is None or snn.memory is None or snn.memory.alternatives is None:
        raise DataError(f"{results.weights}: results.json lacks the energy with memory traffic; run evburst evaluate again")
    e, memory = snn.energy.tables["int8"], snn.memory
    with_memory = {name: one.total_pj / memory.alternatives["ann"].total_pj for name, one in memory.alternatives.items()}
    spent = {"ann_zero_skipping": e.ann_zero_skipping_pj, "qnn": e.qnn_pj, "snn": e.snn_pj}
    return _Account(
        [number(snn.ap, 1), number(snn.ap50, 1), interval(snn.ap_loss, 1)],
        {name: (pj or 0) / e.ann_pj for name, pj in spent.items()},
        with_memory | {"snn": memory.share_of_ann},
    )


def headline() -> str:
    """The README's table: `street`, and the network with 16 levels, on drives that training has not seen."""
    (trained,) = _detectors((TRAINED_QNN + OTHER_DRIVES,))
    (results,) = _detectors(("street" + OTHER_DRIVES,))
    ann, int8, *others = _networks(results, _read("int8_ann" + OTHER_DRIVES))
    found, few = _account(trained), _recorded_levels(trained)
    rows = [
        [f"QNN, {few} levels, energy unlimited", *found.scores, *_qnn_cells(found, TRAINED_QNN), "-"],
        [f"SNN, the same, up to {few - 1} spikes", *found.scores, *_snn_cells(found), "-"],
    ]
    return Table(_NETWORKS_HEAD, [ann, int8, *rows, *others], 1).markdown()


_NETWORKS_HEAD = ["network", "AP", "AP50", "AP lost [95 %]", "arithmetic", "with memory traffic", "ms"]


def other_networks() -> str:
    """The same of `caltech6`, for docs/results.md."""
    (results,) = _detectors(("caltech6",))
    return Table(_NETWORKS_HEAD, _networks(results, _read("int8_ann")), 1).markdown()


def _networks(results: Results, eight_bits: dict[str, Any]) -> list[list[str]]:
    """ANN, ANN in 8 bits, QNN and spiking network of a weights file of one timestep."""
    name, found, times = results.weights or "", _account(results), window_times()
    ann, measured = results.results[0], eight_bits["weights"][name]
    quantised, loss, many = measured["networks"]["int8"], measured["int8_of_ann"]["ap"], levels(name)
    eight = [f"{quantised['ap']:.1f}", f"{quantised['ap50']:.1f}", interval(Interval(**loss), 1)]
    zeros = [percent(share["ann_zero_skipping"]) for share in (found.arithmetic, found.with_memory)]
    return [
        ["ANN", number(ann.ap, 1), number(ann.ap50, 1), *["-"] * 3, times[name, "ann"]],
        ["ANN, INT8", *eight, *zeros, times[name, "int8"]],
        [f"QNN, {many} levels, bundled", *found.scores, *_qnn_cells(found, name), times[name, "qnn"]],
        [f"**SNN, the same, up to {many - 1} spikes**", *found.scores, *_snn_cells(found), times[name, "snn 1"]],
    ]


def _qnn_cells(found: _Account, weights: str) -> list[str]:
    """Its shares of the dense ANN; in parentheses if it multiplies by shifts, at no cost, and additions."""
    share = found.arithmetic["qnn"]
    added = share * _of_multiplications(weights)["qnn_signed"]
    return [f"{percent(share)} ({percent(added)})", percent(found.with_memory["qnn"])]


def _snn_cells(found: _Account) -> list[str]:
    return [percent(found.arithmetic["snn"]), percent(found.with_memory["snn"])]


def _of_multiplications(weights: str) -> dict[str, float]:
    """Energy of bench/bursts.py's ways to meet a weight, relative to multiplications of 8 by 8 bits."""
    energy = _read("bursts")["weights"][weights]["energy_pj"]
    return {name: pj / energy["qnn"] for name, pj in energy.items()}


def multipliers() -> str:
    """The spiking network's arithmetic relative to that of the same network as a QNN, by how the QNN multiplies.

    A narrow multiplication costs in proportion to the bits of an activation; additions have their full width.
    """
    costs, rows = COST_TABLES["int8"], []
    for results in _detectors((*DETECTORS, TRAINED_QNN)):
        name, share, ways = results.weights or "", of_qnn(results.results[1]), _of_multiplications(results.weights or "")
        bits = _bits(_recorded_levels(results) if name == TRAINED_QNN else levels(name))
        of_additions = ways["snn"] / ways["qnn_signed"]
        cells = [f"{_read('bursts')['weights'][name]['spikes_per_burst']:.2f}", percent(share)]
        cells += [f"{percent((share or 0) * costs.mac_pj / _narrow_pj(bits))} ({bits} bits)", percent(of_additions)]
        rows.append([f"`{name}`", *cells, f"{of_additions - 1:.2f}"])
    head = ["weights", "spikes per burst", "of QNN, 8 by 8 bits", "8 bits by those of an activation", "shifts and additions"]
    return Table([*head, "break-even: a shift in additions"], rows, 1).markdown()


def _bits(levels: int) -> int:
    return math.ceil(math.log2(levels))


def _narrow_pj(bits: int) -> float:
    """Energy of a multiply-accumulate in pJ whose multiplication is 8 bits by fewer."""
    costs = COST_TABLES["int8"]
    return (costs.mac_pj - costs.ac_pj) * bits / 8 + costs.ac_pj


def trained_qnn() -> str:
    """The network that was trained as a quantised one, beside the bundled one, each as a QNN and as a spiking network."""
    rows = []
    for results in _detectors((TRAINED_QNN, "street")):
        trained, found, name = results.weights == TRAINED_QNN, _account(results), results.weights or ""
        count, share = _recorded_levels(results) if trained else levels(name), found.arithmetic["qnn"]
        narrow = share * _narrow_pj(_bits(count)) / COST_TABLES["int8"].mac_pj
        added = share * _of_multiplications(name)["qnn_signed"]
        text = "without a limit" if trained else "bundled"
        prices = [percent(share), percent(narrow), percent(added), percent(found.with_memory["qnn"])]
        rows.append([f"QNN, {count} levels, {text}", *found.scores, *prices])
        spent, with_memory = _snn_cells(found)
        rows.append([f"SNN, the same, up to {count - 1} spikes", *found.scores, spent, "-", "-", with_memory])
    head = ["`street`", "AP", "AP50", "AP lost [95 %]", "arithmetic, of ANN", "8 bits by those of an activation"]
    return Table([*head, "shifts and additions", "with memory traffic"], rows, 1).markdown()


def _recorded_levels(results: Results) -> int:
    return 1 + int((results.weights_record or {})["conversion"]["phi_max"])


def burst_limits() -> str:
    """Levels and bits of the activations of all weights, for docs/models.md."""
    lines = ["| weights | T | burst limit phi: layers | levels | bits of an activation |", "|---" * 5 + "|"]
    for name in (*DETECTORS, *CLASSIFIERS):
        layers = _limits(name)
        limits = sorted(layers, reverse=True)
        cells = [
            ", ".join(f"{limit}: {layers[limit]}" for limit in limits),
            ", ".join(f"{limit + 1}" for limit in limits),
            ", ".join(f"{_bits(limit + 1)}" for limit in limits),
        ]
        lines.append(f"| `{name}` | {_parameters(name).timesteps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cards() -> str:
    """Score and energy of all weights at their default T, for docs/models.md."""
    head = "weights | parameters | dense MACs | measured on | score | ANN | SNN | lost [95 %] | of dense ANN | of QNN"
    lines = [f"| {head} |", "|---" * 10 + "|"]
    for _, results in _files((*DETECTORS, *CLASSIFIERS)):
        timesteps = _parameters(results.weights or "").timesteps
        ann = next(row for row in results.results if row.model == "ann")
        snn = next(row for row in results.results if row.timesteps == timesteps)
        if isinstance(ann, NetworkResult) and isinstance(snn, NetworkResult):
            scores, loss, unit = (ann.ap, snn.ap), snn.ap_loss, f"{results.windows:,} windows"
        else:
            scores, loss, unit = (ann.top1, snn.top1), snn.top1_loss, f"{ann.recordings:,} recordings"
        e = snn.energy
        parameters = sum(tensor.numel() for tensor in _bundle(results.weights or "").graph.tensors.values())
        cells = [
            f"`{results.weights}`",
            f"{parameters / 1e6:.2f} M",
            f"{e.dense_macs / 1e6:,.0f} M" if e else "-",
            f"{results.dataset} {results.split}, {unit}",
            "AP" if unit.endswith("windows") else "top-1",
        ]
        cells += [*(f"{score:.1f}" for score in scores), interval(loss, 1), percent(e and e.of_ann), percent(of_qnn(snn))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def downsampled() -> str:
    """AP and energy of --downsample by sensor, for docs/benchmarks.md."""
    lines = ["| sensor | `--downsample` | AP | AP50 | energy per window | ms per window |", "|---|---|---:|---:|---:|---:|"]
    for record in _read("downsample"):
        width, height = record["sensor_size"]
        for row in record["results"]:
            default = ", the default" if row["downsample"] == (2 if width >= 1280 else 1) else ""
            cells = f"{row['ap']:.1f} | {row['ap50']:.1f} | {row['energy_uj']:.0f} uJ | {row['latency_ms']:.1f}"
            lines.append(f"| {width}x{height} | {row['downsample']}{default} | {cells} |")
    return "\n".join(lines)


def epochs() -> str:
    """AP of `street` by epoch, for docs/results.md."""
    with (RESULTS / "street" / "training.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [["epoch", *(row["epoch"] for row in rows)]]
    for name, column in (("AP", "ap"), ("AP50", "ap50"), ("AP50, car", "ap50_car"), ("AP50, pedestrian", "ap50_pedestrian")):
        columns.append([name, *(f"{float(row[column]):.1f}" for row in rows)])
    lines = [f"| {' | '.join(column)} |" for column in columns]
    return "\n".join([lines[0], "|---" * len(columns[0]) + "|", *lines[1:]])


def _conversions() -> str:
    return conversion.document_table([_read(f"conversion_{weights}") for weights in ("nmnist", "caltech6")])


def _spread() -> str:
    return seeds.table([RESULTS / f"seeds_{weights}.json" for weights in ("caltech6", "street")])


def _tracks(number: int) -> str:
    return tracks.document_tables(_read("tracks_choice"), _read("tracks_check"))[number]


def street_card() -> str:
    """AP and found objects by class, and boxes on real sensors, of `street`, for docs/models.md."""
    networks = _read("street/results")["results"]
    rows = []
    for name in networks[0]["per_class"]:
        precisions = [one["per_class"][name] for one in networks]
        rows.append([f"simulated val, `{name}`: AP, AP50", *(f"{ap['ap']:.1f}, {ap['ap50']:.1f}" for ap in precisions)])
    first = networks[0]["details"]["confusion"]
    for k, name in enumerate(first["rows"][:-1]):
        counts = [one["details"]["confusion"]["counts"] for one in networks]
        cells = [f"{found[k][k]} of {sum(found[k])}, {sum(row[k] for row in found) - found[k][k]}" for found in counts]
        rows.append([f"simulated val, `{name}`, score of at least {first['score']}: found, other boxes", *cells])
    head, ruler, *others = real.table([_read(f"real_street_{network}") for network in ("ann", "snn")]).splitlines()
    return "\n".join([head.replace("recording", "measured on"), ruler, *(f"| {' | '.join(row)} |" for row in rows), *others])


TABLES = (
    DocTable("headline", "README.md", "Results", headline),
    DocTable(
        "other_drives",
        "docs/results.md",
        "Without a known drive",
        partial(_evaluation, ("street" + OTHER_DRIVES, TRAINED_QNN + OTHER_DRIVES), "Average precision"),
    ),
    DocTable("other_networks", "docs/results.md", "By network", other_networks),
    DocTable("ap", "docs/results.md", "Average precision", partial(_evaluation, DETECTORS, "Average precision")),
    DocTable("ap_by_iou", "docs/results.md", "AP by IoU", partial(_evaluation, DETECTORS, "AP by IoU")),
    DocTable("energy", "docs/results.md", "Energy per window", partial(_evaluation, DETECTORS, "Energy per window")),
    DocTable("multipliers", "docs/results.md", "Energy per window", multipliers, 1),
    DocTable(
        "memory_traffic",
        "docs/results.md",
        "Energy with memory traffic",
        partial(_evaluation, DETECTORS, "Energy with memory traffic"),
    ),
    DocTable("int8", "docs/results.md", "The ANN in 8 bits", lambda: int8_ann.table(_read("int8_ann"))),
    DocTable("trained_qnn", "docs/results.md", "A network without a limit on energy", trained_qnn),
    DocTable("classification", "docs/classify.md", "Results", partial(_evaluation, CLASSIFIERS, "Classification")),
    DocTable("classification_energy", "docs/classify.md", "Results", partial(_evaluation, CLASSIFIERS, "Energy per window"), 1),
    DocTable("cards", "docs/models.md", "Figures", cards),
    DocTable("burst_limits", "docs/models.md", "Figures", burst_limits, 1),
    DocTable("street", "docs/models.md", "street", street_card, 1),
    DocTable(
        "real",
        "docs/results.md",
        "Recordings of real sensors",
        lambda: real.table([_read(f"real_street_{network}") for network in ("ann", "snn")]),
    ),
    DocTable("tradeoff", "docs/results.md", "AP against energy", lambda: tradeoff.table(_read("tradeoff"))),
    DocTable("epochs", "docs/results.md", "How the weights were made", epochs, 1),
    DocTable(
        "margin",
        "docs/convert.md",
        "Margin of silence",
        lambda: margin.table([_read(f"margin_{weights}") for weights in ("street", "caltech6")]),
    ),
    DocTable(
        "seeds",
        "docs/convert.md",
        "Spread",
        _spread,
    ),
    DocTable("tracks_choice", "docs/detect.md", "Tracks", partial(_tracks, 0)),
    DocTable("tracks_check", "docs/detect.md", "Tracks", partial(_tracks, 1), 1),
    DocTable("memory", "docs/detect.md", "Objects that stand still", lambda: memory.table(_read("memory"))),
    DocTable("memory_pictures", "docs/detect.md", "Objects that stand still", lambda: memory.picture_table(_read("memory")), 1),
    DocTable("memory_adl", "docs/detect.md", "Objects that stand still", lambda: memory.adl_table(_read("memory")), 2),
    DocTable("late_fixed", "docs/detect.md", "Boxes for a moment ahead", lambda: late.fixed_table(_read("late"))),
    DocTable("late_measured", "docs/detect.md", "Boxes for a moment ahead", lambda: late.measured_table(_read("late")), 1),
    DocTable("silence", "docs/method.md", "Silence as the reference", lambda: silence.table(_read("silence"))),
    DocTable("grids", "docs/benchmarks.md", "File to grid", lambda: events.grids_table(_read("events"))),
    DocTable("reading", "docs/benchmarks.md", "Reading", lambda: events.reading_table(_read("events"))),
    DocTable(
        "simulator",
        "docs/benchmarks.md",
        "The simulator compared with real recordings",
        lambda: simulator.document_table([_read(f"simulator_{spec}") for spec in ("street", "caltech6")]),
    ),
    DocTable("conversion", "docs/benchmarks.md", "Other converters", _conversions),
    DocTable(
        "inference",
        "docs/benchmarks.md",
        "One window by every network",
        lambda: inference.table(_read("inference")["results"]),
    ),
    DocTable(
        "quiet",
        "docs/benchmarks.md",
        "Quiet windows",
        lambda: quiet.table([quiet.Row(**row) for row in _read("quiet")["rows"]]),
    ),
    DocTable("gpu", "docs/benchmarks.md", "On a GPU", lambda: gpu.table(_read("gpu_street"))),
    DocTable(
        "spikes",
        "docs/benchmarks.md",
        "Spikes of every engine",
        lambda: spikes.table([spikes.Agreement(**row) for row in _read("spikes")["results"]]),
    ),
    DocTable("downsample", "docs/benchmarks.md", "Larger sensors", downsampled),
)


def rewrite() -> list[str]:
    """Rewrite the tables that differ from their results; return their names."""
    changed = []
    for one in TABLES:
        path = ROOT / one.page
        text = path.read_text(encoding="utf-8")
        start, end = one.place(text)
        if text[start:end] != (made := f"{one.make()}\n"):
            path.write_text(text[:start] + made + text[end:], encoding="utf-8")
            changed.append(one.name)
    return changed


def parsed(markdown: str) -> Table:
    """Return a Markdown table as cells of text, without the marks of code."""
    lines = [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return Table(lines[0], lines[2:])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], epilog="Without --out, the pages are rewritten."
    )
    parser.add_argument("--format", choices=tuple(_SUFFIXES), default="csv", help="of the files (default: csv)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write a file for each table there, and no page")
    args = parser.parse_args()
    if args.out is None:
        print(f"changed: {', '.join(rewrite()) or 'none'}")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for one in TABLES:
        table = collect.TitledTable(one.heading, parsed(one.make()), "")
        text = collect.render([table], [], args.format)
        (args.out / f"{one.name}.{_SUFFIXES[args.format]}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
