"""Every table of README and docs/ that results files hold is in its page as they give it; the same tables as CSV and LaTeX."""

from __future__ import annotations

import csv
import math
import re
import sys
from pathlib import Path

import pytest

from bench import conversion, doc_tables, events, gpu, inference, network_tables, simulator
from bench.doc_tables import TABLES, DocTable, parsed
from bench.network_tables import CLASSIFIERS, DETECTORS, RESULTS, read, window_times
from evburst.app.results import tables
from evburst.data.errors import DataError
from evburst.eval.energy import COST_TABLES
from evburst.eval.results import Results, read_results
from evburst.models.bundle import Bundle

OPTIONS, FILES, TERMS = "options and their effect", "formats, files and contents", "definitions and settings"
NOT_MEASURED = {
    ("architecture.md", "to add | write | register with | see"): TERMS,
    ("classify.md", "option | effect"): OPTIONS,
    ("classify.md", "field | content"): FILES,
    ("classify.md", "`data.kind` | contents of `--root`"): FILES,
    ("classify.md", "family | architectures"): OPTIONS,
    ("convert.md", "flag | chooses"): OPTIONS,
    ("convert.md", "flag | effect"): OPTIONS,
    ("convert.md", "column | content"): TERMS,
    ("detect.md", "extra | needed for"): OPTIONS,
    ("detect.md", "file | content"): FILES,
    ("detect.md", "system | simulated | differs"): TERMS,
    ("detect.md", "field | content"): FILES,
    ("detect.md", "flag | effect"): OPTIONS,
    ("detect.md", "filter | removes an event | example"): OPTIONS,
    ("detect.md", "attribute of a result | content"): FILES,
    ("evaluate.md", "file | content"): FILES,
    ("evaluate.md", "field | content"): FILES,
    ("evaluate.md", "field of `energy` | content"): FILES,
    ("evaluate.md", "field of `memory` | content"): FILES,
    (
        "evaluate.md",
        "protocol | boxes ignored at the start | minimum box (diagonal, side) in px | predictions used | empty frames",
    ): TERMS,
    ("export.md", "flag | writes"): OPTIONS,
    ("export.md", "engine | implementation | runs on"): OPTIONS,
    ("formats.md", "format | suffix | `--format` | sensor size | extra"): FILES,
    ("formats.md", "quantity | unit"): TERMS,
    ("formats.md", "fault | treatment"): TERMS,
    ("index.md", "you want to | read"): "links",
    ("live.md", "source | flags | extra"): OPTIONS,
    ("live.md", "flag | effect"): OPTIONS,
    ("method.md", "setting | default | RVT | the paper"): TERMS,
    ("method.md", "operation | spiking form"): TERMS,
    ("method.md", "level | fitted parameters"): TERMS,
    ("method.md", "quantity | definition"): TERMS,
    ("method.md", "number format | MAC | AC"): "energies of the cited paper",
    ("method.md", "setting of AP | value"): TERMS,
    ("method.md", "split | used for"): TERMS,
    ("models.md", "|"): "cards, whose words describe a weights file; their figures stand in tables of their own",
    ("results.md", "weights | training | conversion"): "names of configurations",
    ("train.md", "`data.kind` | contents of `--root`"): FILES,
    ("train.md", "family | architectures"): OPTIONS,
    ("train.md", "file | content"): FILES,
    ("which-detector.md", "you need | use"): "links",
    ("which-detector.md", "| evburst | RVT | SpikeYOLO | SpikingJelly | Metavision SDK"): "features of projects",
    ("which-detector.md", "detector | spiking | AP | AP50 | paper"): "figures of the abstracts of the cited papers",
}
"""Tables that no results file makes, by page and head (without the addresses of links), and why they need none."""


def _heads_not_made() -> list[tuple[str, str]]:
    """Page and head of every table in README and docs/ that bench/doc_tables.py does not write."""
    found = []
    for page in (doc_tables.ROOT / "README.md", *sorted((doc_tables.ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        made = {table.place(text)[0] for table in doc_tables.TABLES if doc_tables.ROOT / table.page == page}
        for table in doc_tables._TABLE.finditer(text):  # private: what a table is, is defined there
            head = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", table.group().splitlines()[0])
            if table.start() not in made:
                found.append((page.name, head.removeprefix("|").removesuffix("|").strip()))
    return found


def test_measurements_in_the_pages_come_from_results_files() -> None:
    """A new table is written by bench/doc_tables.py, or listed above with the reason why it holds no measurement of ours."""
    found = _heads_not_made()
    assert [head for head in found if head not in NOT_MEASURED] == []
    assert set(NOT_MEASURED) - set(found) == set()


def test_a_table_without_a_results_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# A\n\n| [x](y) | ms |\n|---|---|\n| a | 1 |\n")
    monkeypatch.setattr(doc_tables, "ROOT", tmp_path)
    monkeypatch.setattr(doc_tables, "TABLES", ())
    assert _heads_not_made() == [("README.md", "x | ms")]


def test_what_benchmarks_says_of_one_window_holds() -> None:
    """Sentences of docs/benchmarks.md that compare rows of the table; 10 % are noise."""
    results = read("inference")["results"]
    ms = {name: result["ms"] for name, result in results.items() if "ms" in result}
    ann = ms["openvino int8 fixed size"]
    assert max(ms["snn openvino T=1 uncounted"], ms["snn int8 T=1"]) < ann
    assert min(value for name, value in ms.items() if name.startswith("snn") and ("T=2" in name or "T=4" in name)) > 1.1 * ann
    assert ms["snn reference T=1"] > 1.1 * ms["spikingjelly T=1"]
    assert ms["snn reference T=4"] > 0.9 * ms["spikingjelly T=4"]


def test_tables_of_benches() -> None:
    run = {"median_s": 0.2, "min_s": 0.1, "events_per_s": 5e6, "times_ours": 1.0, "peak_mb": 9.6}
    peer = run | {"median_s": 0.02, "min_s": 0.01, "times_ours": 0.1, "differs": "t"}
    report = {
        "machine": {"versions": {"x": "1.2", "y": "2"}},
        "file_to_grid": {
            "contenders": {"evburst": run | {"differs": ""}, "x": peer, "limit": run, "y": {"note": "not installed"}}
        },
        "reading": {
            "dat": {"events": 2_000_000, "contenders": {"evburst": run | {"differs": ""}, "x": peer, "y": {"note": "-"}}}
        },
    }
    assert events.grids_table(report).splitlines()[2:] == [
        "| evburst | yes | 200 ms | 100 ms | 5 M | 1 | 10 MB |",
        "| x | no | 20 ms | 10 ms | 5 M | 0.1 | 10 MB |",
        "| limit | - | 200 ms | 100 ms | 5 M | 1 | 10 MB |",
    ]
    assert events.reading_table(report).splitlines() == [
        "| format, events | evburst | x 1.2 | y 2 |",
        "|---|---|---|---|",
        "| dat, 2 M | 200 (100) | **20.0** (10.0) * | - |",
    ]
    rows = [[1.0, 0.5, 0.1, 2.0, 3.0], [3.0, 0.5, 0.1, 2.0, 3.0]]
    figures = simulator.report({"real": rows, "simulated": rows[:1]})
    made = simulator.document_table([{"spec": "street", "recording": "a.dat", **figures}]).splitlines()
    assert made[0] == "|  | a.dat, 2 windows | simulated `street` |"
    assert made[2] == "| events / pixel / s | 2 (1.2 to 2.8) | 1 (1 to 1) |"
    result = {"timesteps": 0, "score": 60.0, "energy": 1.0, "spikes_per_neuron": 0.0, "latency_ms": 2.0, "name": "ANN"}
    other = result | {"timesteps": 4, "score": 58.5, "energy": 0.25, "spikes_per_neuron": 1.5, "name": "X"}
    made = conversion.document_table([{"weights": "nmnist", "windows": 9, "results": [result, other]}]).splitlines()
    assert made[3] == "| `nmnist`, 9 | X | 4 | 58.5 | 1.5 | 25.0 % | 1.50 | 2.0 ms |"
    timed = {"card": "GPU", "weights": "w", "note": "in TF32", "ms": [{"batch": 1, "cuda": 2.0}]}
    assert gpu.table(timed).splitlines()[0] == "| GPU, w, in TF32, ms | batch 1 |"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_are_those_of_the_results(table: DocTable) -> None:
    text = (doc_tables.ROOT / table.page).read_text(encoding="utf-8")
    start, end = table.place(text)
    assert text[start:end] == f"{table.make()}\n"


def test_the_headline_has_the_figures_of_the_results_and_of_the_times() -> None:
    rows = parsed(network_tables.headline()).rows
    assert len(rows) == 6
    results = read_results(RESULTS / "street-other-drives" / "results.json")
    assert isinstance(results, Results)
    snn = results.results[1]
    loss, energy, memory = snn.ap_loss, snn.energy, snn.memory
    assert loss is not None
    assert energy is not None
    assert memory is not None
    assert memory.alternatives is not None
    float_ann, int8, trained, trained_snn, qnn, spiking = rows
    assert spiking[1] == qnn[1] == f"{snn.ap:.1f}"
    assert spiking[3] == f"{loss.mean:.1f} [{loss.low:.1f}, {loss.high:.1f}]"
    e = energy.tables["int8"]
    assert spiking[4] == f"{100 * (e.snn_pj or 0) / e.ann_pj:.1f} %"
    added = read("bursts")["weights"]["street"]["energy_pj"]["qnn_signed"]
    assert qnn[4].startswith(f"{100 * (e.qnn_pj or 0) / e.ann_pj:.1f} % (")
    assert float(qnn[4].partition("(")[2].removesuffix(" %)")) == pytest.approx(100 * added / e.ann_pj, abs=0.2)
    assert qnn[5] == f"{100 * memory.alternatives['qnn'].total_pj / memory.alternatives['ann'].total_pj:.1f} %"
    eight = read("int8_ann-other-drives")["weights"]["street"]  # the files behind the other columns
    assert int8[1] == f"{eight['networks']['int8']['ap']:.1f}"
    assert int8[3].startswith(f"{eight['int8_of_ann']['ap']['mean']:.1f} [")
    own = read_results(RESULTS / "street-16-levels-other-drives" / "results.json")
    assert isinstance(own, Results)
    assert own.results[1].energy is not None
    its = own.results[1].energy.tables["int8"]
    assert trained[:2] == ["QNN, 16 levels, energy unlimited", f"{own.results[1].ap:.1f}"]
    assert trained[4].startswith(f"{100 * (its.qnn_pj or 0) / its.ann_pj:.1f} % (")
    assert trained_snn[4] == f"{100 * (its.snn_pj or 0) / its.ann_pj:.1f} %"
    ms = read("inference")["results"]
    quantised = min(ms[name]["ms"] for name in ("onnxruntime int8", "openvino int8", "openvino int8 fixed size"))
    assert int8[6] == window_times()["street", "int8"] == f"{quantised:.1f}"
    assert float_ann[6] == f"{min(ms[name]['ms'] for name in inference.FLOAT):.1f}"
    assert float(spiking[6]) == round(min(ms[f"snn {name} T=1"]["ms"] for name in ("int8", "reference")), 1)


def test_the_float_ann_is_that_of_the_results() -> None:
    """The AP of bench/int8_ann.py is that of evburst evaluate: the same windows, the same protocol."""
    for name, one in read("int8_ann")["weights"].items():
        results = read_results(RESULTS / name / "results.json")
        assert isinstance(results, Results)
        assert one["windows"] == results.windows
        for row, network in zip(results.results, ("ann", "snn"), strict=True):
            assert one["networks"][network]["ap"] == pytest.approx(row.ap, abs=0.05)


def test_bits_are_those_of_the_weights() -> None:
    """A row for each burst limit of a weights file: its layers, its levels, and their logarithm, rounded up."""
    rows = {row[0]: row[1:] for row in parsed(network_tables.burst_limits()).rows}
    parameters = Bundle.load("street").parameters
    limits = [int(layer.burst_limits.max()) for layer in parameters.neurons.values()]
    steps, layers, levels, bits = rows["street"]
    assert steps == str(parameters.timesteps)
    assert layers.startswith(f"{max(limits)}: {limits.count(max(limits))}")
    assert levels.split(", ")[0] == str(max(limits) + 1)
    assert bits.split(", ")[0] == f"{math.ceil(math.log2(network_tables.levels('street')))}"


def test_narrow_multipliers_and_additions_cost_what_their_bits_and_digits_say() -> None:
    """A multiplication of 8 by 8 bits takes 0.2 of the 0.3 pJ of a MAC."""
    rows = {row[0]: row[1:] for row in parsed(network_tables.multipliers()).rows}
    _, wide, narrow, added, break_even = rows["street"]
    costs = COST_TABLES["int8"]
    assert costs.mac_pj - costs.ac_pj == pytest.approx(0.2)
    expected = float(wide.removesuffix(" %")) * costs.mac_pj / (0.15 + costs.ac_pj)
    share, _, bits = narrow.partition(" % (")
    assert bits == "6 bits)"
    assert float(share) == pytest.approx(expected, abs=0.1)
    energy = read("bursts")["weights"]["street"]["energy_pj"]  # the file behind the column
    assert float(added.removesuffix(" %")) == pytest.approx(100 * energy["snn"] / energy["qnn_signed"], abs=0.1)
    assert float(break_even) == pytest.approx((energy["snn"] - energy["qnn_signed"]) / energy["qnn_signed"], abs=0.01)


def test_pages_are_rewritten_where_they_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doc_tables, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A\n\n| x |\n|---|\n| 1 |\n\n## B\n\n| y |\n|---|\n| 2 |\n\ntext\n\n| z |\n|---|\n| 3 |\n")
    made = [
        DocTable("y", "page.md", "B", lambda: "| y |\n|---|\n| 2 |"),
        DocTable("z", "page.md", "B", lambda: "| z |\n|---|\n| 4 |\n| 5 |", 1),
    ]
    monkeypatch.setattr(doc_tables, "TABLES", made)
    assert doc_tables.rewrite() == ["z"]
    assert page.read_text().endswith("## B\n\n| y |\n|---|\n| 2 |\n\ntext\n\n| z |\n|---|\n| 4 |\n| 5 |\n")
    assert doc_tables.rewrite() == []
    for heading, number in (("A", 1), ("C", 0)):
        with pytest.raises(DataError, match=f"page.md: no table {number} below the heading '{heading}'"):
            DocTable("x", "page.md", heading, str, number).place(page.read_text())


@pytest.mark.parametrize(("form", "suffix"), [("csv", "csv"), ("latex", "tex")])
def test_tables_are_written_as_files(form: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["doc_tables.py", "--format", form, "--out", str(tmp_path / "tables")])
    doc_tables.main()
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {f"{table.name}.{suffix}" for table in TABLES}
    text = (tmp_path / "tables" / f"headline.{suffix}").read_text()
    if form == "csv":
        title, head, *rows = list(csv.reader(text.splitlines()))
        assert title == ["# Results"]
        assert [head, *rows] == [parsed(network_tables.headline()).head, *parsed(network_tables.headline()).rows]
    else:
        assert text.count(r" \\") == 1 + len(parsed(network_tables.headline()).rows)
        assert r"\%" in text


def test_the_results_command_makes_the_tables_of_the_pages() -> None:
    """`evburst results` prints the tables of docs/results.md and docs/classify.md."""
    for weights, names in (
        (DETECTORS, ("ap", "ap_by_iou", "energy", "memory_traffic")),
        (CLASSIFIERS, ("classification", "classification_energy")),
    ):
        printed = tables([RESULTS / name for name in weights])
        for table in TABLES:
            if table.name in names:
                assert table.make() in printed
