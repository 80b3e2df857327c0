"""The report: one page that needs nothing from anywhere, with every network in it; charts that draw what they are given."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from evburst.app.cli import evaluate_main
from evburst.eval.report.charts import Axis, Chart, Series, nice_top

from tests.test_app_evaluate import FAST
from tests.test_data_datasets_recorded import gen1_tree
from tests.test_eval_protocol import labels_at_4_hz


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    root = gen1_tree(out / "gen1", ("val",))
    run = ["--dataset", "gen1", "--root", str(root), "--protocol", "coco", "--both", "--out", str(out), *FAST]
    assert evaluate_main(run) == 0
    return out


def test_the_page_needs_nothing_from_anywhere(written: Path) -> None:
    page = (written / "report.html").read_text()
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]*)', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    for heading in ("Results", "Classes and sizes", "Precision and recall", "Energy", "Energy by layer", "Where spikes are",
                    "Scores and confusion", "Latency", "NeuroBench", "Best and worst windows", "Provenance"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert page.count("SNN, T = 1") > 5


def test_the_tables_are_in_markdown_too(written: Path) -> None:
    text = (written / "results.md").read_text()
    assert text.startswith("# street on gen1 val\n\nProtocol `coco`")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[2].startswith("| ANN |")
    assert len({line.count("|") for line in table[:4]}) == 1


def test_axes_have_round_ticks_and_charts_keep_to_them() -> None:
    assert Axis("x", 0, 1).ticks() == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert (nice_top([0.0]), nice_top([]), nice_top([11.9]), nice_top([2154])) == (1.0, 1.0, 12.0, 2500.0)
    chart = Chart(Axis("x", 0, 10), Axis("y", 0, 5), 300, 200)
    chart.line(Series("a < b", [0, 10], [0, 5], "#000"))
    points = re.search(r'polyline points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', chart.svg())
    assert points is not None
    left, bottom, right, top = map(float, points.groups())
    assert 0 < left < right < 300
    assert 0 < top < bottom < 200
    assert "a &lt; b" in chart.svg()


def test_a_page_of_box_files_has_no_energy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", labels_at_4_hz())
    file = str(tmp_path / "a.npy")
    assert evaluate_main(["--predictions", file, "--labels", file, "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Results</h2>" in page
    assert "<h2>Energy</h2>" not in page
