"""Tables of many results.json files: every cell is a figure of a file, and what is missing is named."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from evburst.app.results import results_main
from evburst.eval.report.collect import find, gaps, render, summary_tables
from evburst.eval.report.tables import energy_table, main_table
from evburst.eval.results import Results, parse
from tests.test_eval_results import results


def write(folder: Path, **changes: Any) -> dict[str, Any]:
    """A results.json in a folder of its own."""
    content = results(**changes)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    return content


def parsed(text: str) -> dict[str, list[dict[str, str]]]:
    """CSV tables by title."""
    found = {}
    for part in text.split("# ")[1:]:
        title, _, body = part.partition("\n")
        found[title] = list(csv.DictReader(io.StringIO(body)))
    return found


def test_every_figure_is_that_of_a_file(tmp_path: Path) -> None:
    content = write(tmp_path / "a" / "street")
    tables = parsed(render(summary_tables(find([tmp_path]).files), [], "csv"))
    ann, snn = tables["Average precision"]
    assert (ann["network"], snn["network"], snn["weights"], snn["data, split"]) == (
        "ANN",
        "SNN, T = 1",
        "street",
        "simulated val",
    )
    assert snn["protocol"] == "coco"
    short = tables["Detection"][1]
    assert (short["AP"], short["AP lost [95 %]"], short["of QNN"]) == (
        f"{content['results'][1]['ap']:.1f}",
        "0.5 [-0.2, 1.2]",
        "83.3 %",
    )
    assert snn["AP"] == f"{content['results'][1]['ap']:.2f}"
    assert (ann["AP lost"], snn["AP lost"], snn["units"]) == ("-", "0.50 [-0.25, 1.25]", "20 pictures")
    int8, fp32 = tables["Energy per window"]
    energy = content["results"][1]["energy"]["tables"]
    assert (int8["format"], fp32["format"]) == ("INT8", "FP32")
    assert int8["of QNN"] == f"{100 * energy['int8']['of_qnn']:.1f} %" == "83.3 %"  # 50 accumulates, 20 multiply-accumulates
    assert fp32["of dense ANN"] == f"{100 * energy['fp32']['of_ann']:.1f} %"
    memory = content["results"][1]["memory"]
    traffic = tables["Energy with memory traffic"]
    assert [row["network"] for row in traffic] == ["dense ANN", "zero-skipping ANN", "zero-skipping QNN", "SNN, T = 1"]
    qnn = memory["alternatives"]["qnn"]
    assert traffic[2]["SNN relative to it: sum"] == f"{100 * memory['total_pj'] / qnn['total_pj']:.1f} %"
    assert traffic[2]["SNN relative to it: arithmetic"] == f"{100 * memory['operations_pj'] / qnn['operations_pj']:.1f} %"
    assert traffic[3]["SNN relative to it: sum"] == "100.0 %"
    (origin,) = tables["Where the figures come from"]
    assert (origin["date"], origin["commit"], origin["machine"]) == ("2026-11-27", "0123456789ab", "a processor")
    assert [row["0.50"] for row in tables["AP by IoU"]] == [f"{row['ap_by_iou']['0.50']:.1f}" for row in content["results"]]
    assert "Spread over seeds" not in tables


def test_rows_say_what_was_not_as_usual(tmp_path: Path) -> None:
    """The protocol also stands in tables that have no column for it."""
    write(tmp_path / "a")
    write(tmp_path / "b", protocol="prophesee", downsample=2, memory=True)
    tables = parsed(render(summary_tables(find([tmp_path]).files), [], "csv"))
    usual, where = ({title: rows[k]["data, split"] for title, rows in tables.items()} for k in (0, -1))
    unusual, protocol = "simulated val, with memory, blocks of 2x2 px", ", protocol prophesee"
    assert (usual.pop("Detection"), where.pop("Detection")) == ("simulated val, 7", f"{unusual}{protocol}, 7")
    for title in ("AP by IoU", "Energy per window", "Energy with memory traffic"):
        assert (usual[title], where.pop(title)) == ("simulated val", unusual + protocol)
    assert set(usual.values()) == {"simulated val"}
    assert set(where.values()) == {unusual}


def test_beyond_one_timestep_no_table_compares_with_a_quantised_network(tmp_path: Path) -> None:
    """Also of a file that holds such a share."""
    rows = results()["results"]
    rows[1]["timesteps"] = rows[1]["energy"]["timesteps"] = 2
    write(tmp_path / "a", results=rows)
    tables = parsed(render(summary_tables(find([tmp_path]).files), [], "csv"))
    shares = [row["of QNN"] for title in ("Detection", "Energy per window") for row in tables[title]]
    report = parse(results(results=rows))
    assert isinstance(report, Results)
    shares += [row[9] for row in main_table(report).rows]
    shares += [row[-1] for row in energy_table(report.results).rows]
    assert rows[1]["energy"]["of_qnn"] > 0
    assert set(shares) == {"-"}


def test_seeds_are_summed_up(tmp_path: Path) -> None:
    for seed, loss in enumerate((0.5, 1.0, 1.5)):
        rows = results()["results"]
        rows[1]["ap_loss"]["mean"] = loss
        write(tmp_path / str(seed), weights=f"street_seed{seed}", results=rows)
    write(tmp_path / "other")
    (row,) = parsed(render(summary_tables(find([tmp_path]).files), [], "csv"))["Spread over seeds"]
    assert (row["weights"], row["seeds"], row["AP lost"]) == ("street", "3", "1.00 ± 0.50")
    assert row["% of dense ANN"].endswith("± 0.00")


def test_weights_that_were_evaluated_again_are_one_seed(tmp_path: Path) -> None:
    for name, seed, date, loss in (("a", 0, "03", 9), ("b", 0, "05", 1), ("c", 0, "04", 9), ("d", 1, "03", 2)):
        rows, timing = results()["results"], {**results()["timing"], "date": f"2026-11-{date}T00:00:00+00:00"}
        rows[1]["ap_loss"]["mean"] = loss
        write(tmp_path / name, weights=f"street_seed{seed}", results=rows, timing=timing)
    files = find([tmp_path]).files
    (row,) = parsed(render(summary_tables(files), [], "csv"))["Spread over seeds"]
    assert (row["seeds"], row["AP lost"]) == ("2", "1.50 ± 0.71")
    assert not [line for line in gaps(files[:2]) if "left out of the spread" in line]  # one seed has no spread
    lines = [line for line in gaps(files) if "left out of the spread" in line]
    assert [f"({tmp_path / name / 'results.json'})" in line for name, line in zip("ac", lines, strict=True)] == [True, True]
    assert all(line.endswith(f"once, from {tmp_path / 'b' / 'results.json'}") for line in lines)


def test_names_do_not_change_the_form_of_tables(tmp_path: Path) -> None:
    write(tmp_path / "a", weights=r"a|b\c~d^e$f{g}")
    tables = summary_tables(find([tmp_path]).files)
    head, _, first = render(tables, [], "markdown").splitlines()[2:5]
    assert first.startswith(r"| a\|b\\c~d^e$f{g} | ")
    assert first.replace(r"\|", "").count("|") == head.count("|")
    latex = render(tables, [], "latex")
    assert r"a$|$b\textbackslash{}c\textasciitilde{}d\textasciicircum{}e\$f\{g\} & simulated" in latex


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    snn_only = results()["results"][1:]
    snn_only[0]["ap_loss"] = None
    provenance = {"commit": "0123456789ab+changes", "versions": {}, "machine": ""}
    write(tmp_path / "a", results=snn_only, ap_loss=None, timing=None, provenance=provenance)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text("{}")
    found = find([tmp_path])
    assert [problem.split(": ")[1] for problem in found.problems] == [
        "not a results.json of this version; run evburst evaluate again"
    ]
    lines = "\n".join(gaps(found.files, ["caltech6", "street"]))
    for text in ("weights caltech6: no results.json", "evaluate with --both", "no date", "uncommitted changes"):
        assert text in lines
    assert "weights street:" not in lines


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs" / "street", weights="100% & co_1")
    run = [str(tmp_path / "runs"), "--weights", "caltech6"]
    assert results_main(run) == 0
    out, err = capsys.readouterr()
    assert out.startswith("## Detection\n\n| weights |")
    assert out.rstrip().endswith("- weights caltech6: no results.json")
    assert "missing: weights caltech6: no results.json" in err
    assert results_main([*run, "--format", "latex", "--out", str(tmp_path / "tables.tex")]) == 0
    latex = (tmp_path / "tables.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\end{tabular}") == 6
    assert r"100\% \& co\_1 & simulated val & ANN & coco" in latex
    found = tmp_path / "runs" / "street" / "results.json"
    for given, out, message in (
        ([*run, "--out"], tmp_path / "tables.tex", "exists already"),
        ([str(found), "--overwrite", "--out"], found, "which this run reads"),
    ):
        before = out.read_bytes()
        assert results_main([*given, str(out)]) == 1
        assert message in capsys.readouterr().err
        assert out.read_bytes() == before
    assert results_main([*run, "--overwrite", "--out", str(tmp_path / "tables.tex")]) == 0
    capsys.readouterr()
    assert results_main(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"$schema", "$defs"}


def test_nothing_to_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results_main([str(tmp_path / "none")]) == 1
    assert "none: no such file or folder" in capsys.readouterr().err
    assert results_main([str(tmp_path)]) == 1
    assert "no readable results.json" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        results_main([])
