"""Every table of README and docs/ that results files hold is in its page as they give it; the same tables as CSV and LaTeX."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from bench import doc_tables
from bench.doc_tables import TABLES, DocTable, parsed, window_times
from evburst.app.results import tables
from evburst.data.errors import DataError
from evburst.eval.results import Results, read_results


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_tables_are_those_of_the_results(table: DocTable) -> None:
    text = (doc_tables.ROOT / table.page).read_text(encoding="utf-8")
    start, end = table.place(text)
    assert text[start:end] == f"{table.make()}\n"


def test_the_headline_has_the_figures_of_the_results_and_of_the_times() -> None:
    rows = parsed(doc_tables.headline()).rows
    assert [row[0] for row in rows] == ["street", "street", "caltech6", "caltech6", "caltech6-ssd", "caltech6-ssd"]
    results = read_results(doc_tables.RESULTS / "street" / "results.json")
    assert isinstance(results, Results)
    loss, energy = results.results[1].ap_loss, results.results[1].energy
    assert loss is not None
    assert energy is not None
    assert rows[1][3] == f"{results.results[1].ap:.1f}"
    assert rows[1][5] == f"{loss.mean:.1f} [{loss.low:.1f}, {loss.high:.1f}]"
    assert rows[1][8] == f"{100 * (energy.tables['int8'].of_qnn or 0):.1f} %"
    ms = doc_tables._read("inference")["results"]  # private: the file behind the last column
    quantised = min(result["ms"] for name, result in ms.items() if name.startswith("openvino int8"))
    assert rows[0][9] == window_times()["street", None] == f"{quantised:.1f}"
    assert float(rows[1][9].split(" ")[0]) == round(
        min(ms[f"snn {name} T=1"]["ms"] for name in ("int8", "onnx", "openvino")), 1
    )


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
        assert [head, *rows] == [parsed(doc_tables.headline()).head, *parsed(doc_tables.headline()).rows]
    else:
        assert text.count(r" \\") == 7
        assert r"15.4 \%" in text or r"\%" in text


def test_the_results_command_makes_the_tables_of_the_pages() -> None:
    """`evburst results` prints the tables of docs/results.md and docs/classify.md."""
    for weights, names in (
        (doc_tables.DETECTORS, ("ap", "ap_by_iou", "energy")),
        (doc_tables.CLASSIFIERS, ("classification", "classification_energy")),
    ):
        printed = tables([doc_tables.RESULTS / name for name in weights])
        for table in TABLES:
            if table.name in names:
                assert table.make() in printed
