"""The report: one page that needs nothing from anywhere, with every network in it; charts that draw what they are given."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.app.evaluate.cli import evaluate_main
from evburst.data.errors import ConfigError, DataError
from evburst.eval.report import charts
from evburst.eval.report.charts import Labels, Series, nice_top
from evburst.eval.report.tables import interval, memory_table, number, percent
from evburst.eval.report.write import ReportPicture, html_report, writable, write_report
from evburst.eval.result_parts import LossInterval
from evburst.eval.results import read_results
from tests.test_app_evaluate import FAST
from tests.test_data_datasets_recorded import gen1_tree, in_two_drives
from tests.test_eval_protocol import labels_at_4_hz


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    root = gen1_tree(out / "gen1", ("val",))
    in_two_drives(root / "val")
    run = ["--dataset", "gen1", "--root", str(root), "--protocol", "coco", "--both", "--out", str(out), *FAST]
    assert evaluate_main(run) == 0
    return out


def test_the_page_needs_nothing_from_anywhere(written: Path) -> None:
    page = (written / "report.html").read_text()
    sources = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^">)]*)', page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "<script" not in page
    for heading in ("Results", "AP by IoU", "Classes and sizes", "Precision and recall", "Energy", "Energy by layer",
                    "Spike maps", "Scores and confusion", "Latency", "NeuroBench", "Best and worst windows",
                    "Provenance"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    assert page.count("SNN, T = 1") > 5


class Balance(HTMLParser):
    """Elements that are opened and not closed, or the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "path", "use", "rect", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        elif tag not in ("path", "use", "rect", "line"):
            self.wrong.append(tag)


def test_elements_are_closed(written: Path) -> None:
    balance = Balance()
    balance.feed((written / "report.html").read_text())
    assert (balance.open, balance.wrong) == ([], [])


def test_the_tables_are_in_markdown_too(written: Path) -> None:
    text = (written / "results.md").read_text()
    assert text.startswith("# street on gen1, val split\n\nProtocol `coco`")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[2].startswith("| ANN |")
    assert len({line.count("|") for line in table[:4]}) == 1
    assert "| SNN, T = 1, INT8 |" in text
    assert re.search(r"\| SNN, T = 1 \| -?\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\] \|", text)


def test_the_page_shows_what_results_json_says(written: Path) -> None:
    """The page can be made again from the file alone."""
    results = read_results(written / "results.json")
    page = html_report(results)
    energy = results.main.energy
    assert energy is not None
    for figure in (
        number(results.main.ap, 1),
        percent(energy.ratio),
        percent(energy.of_qnn),
        percent(energy.of_ann_zero_skipping),
    ):
        assert figure in page
    assert "Best and worst windows" not in page  # pictures are not in the file


def test_without_an_interval_none_is_claimed(written: Path, tmp_path: Path) -> None:
    content = json.loads((written / "results.json").read_text())
    content["ap_loss"] |= {"low": None, "high": None, "resamples": 0, "units": 1}
    for row in content["results"]:
        for loss in (row["ap_loss"], row["ap50_loss"], *(row["ap_loss_by_iou"] or {}).values()):
            if loss:
                loss |= {"low": None, "high": None}
    (tmp_path / "results.json").write_text(json.dumps(content))
    page = html_report(read_results(tmp_path / "results.json"))
    assert "no interval: 1 recording only" in page
    assert "95 % interval" not in page


def test_memory_traffic_is_that_of_all_four_networks(written: Path) -> None:
    results = read_results(written / "results.json")
    table = memory_table(results.results)
    names = [row[0] for row in table.rows]
    assert names == ["ANN", "SNN, T = 1", "zero-skipping ANN", "SNN, T = 1 as a zero-skipping QNN"]
    (snn,) = (row for row in results.results if row.model == "snn")
    assert snn.memory is not None
    assert snn.memory.alternatives is not None
    expected = percent(snn.memory.total_pj / snn.memory.alternatives["qnn"].total_pj)
    assert (table.rows[0][-1], table.rows[1][-1], table.rows[3][-1]) == ("-", expected, "100.0 %")


def test_names_are_escaped(written: Path) -> None:
    content = json.loads((written / "results.json").read_text())
    content["weights"] = "<script>alert(1)</script>"
    write_report(content, written / "escaped", [ReportPicture("a < b", "data:image/png;base64,AA")])
    page = (written / "escaped" / "report.html").read_text()
    assert "<script" not in page
    assert "a &lt; b" in page


def test_results_of_another_shape_are_refused_before_anything_is_written(tmp_path: Path, written: Path) -> None:
    content = json.loads((written / "results.json").read_text())
    del content["results"][0]["energy"]["qnn_pj"]
    with pytest.raises(DataError, match=r"results\.0\.energy\.qnn_pj: Field required"):
        write_report(content, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(json.loads((written / "results.json").read_text()), tmp_path / "file")


@pytest.mark.parametrize("name", ["results.json", "results.md", "report.html", "confusion.svg"])
def test_files_of_others_are_not_replaced(tmp_path: Path, written: Path, name: str) -> None:
    content = json.loads((written / "results.json").read_text())
    (tmp_path / name).write_text('{"mine": 1}')
    for write in (lambda: writable(tmp_path), lambda: write_report(content, tmp_path)):
        with pytest.raises(ConfigError, match=f"{name}: exists already and was not written by evburst"):
            write()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, '{"mine": 1}')]
    (tmp_path / name).unlink()
    for _ in range(2):  # those of an earlier evaluation are
        write_report(content, tmp_path)


def polyline(svg: str) -> list[tuple[float, float]]:
    """Points of the last path of several points without a fill: the line drawn last."""
    paths = re.findall(r'<path d="(M [^"z]+)" clip-path[^>]*style="fill: none', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", paths[-1])]


def test_charts_draw_their_points_within_their_frame() -> None:
    svg = charts.lines([Series("a", [0, 5, 10], [0, 1, 5])], Labels("x", "y < 1", (0, 10), (0, 5)), 300, 200)
    found = polyline(svg)
    assert len(found) == 3
    assert 0 < found[0][0] < found[2][0] <= 300
    assert 0 <= found[2][1] < found[0][1] < 200
    assert svg.startswith('<svg viewBox="0 0 300 200"')
    assert "y &lt; 1" in svg
    assert "<metadata" not in svg
    assert "width=" not in svg.partition(">")[0]


def test_every_kind_of_chart_is_drawn() -> None:
    labels = Labels("x", "y")
    drawn = [
        charts.points([Series("one", [1], [2])], labels),
        charts.bars(Series("one", [0, 1], [3, 4]), ["first & last", "b"], labels),
        charts.steps([Series("one", [0, 1, 2], [3, 4])], labels),
        charts.ranked(["a", "b"], [1, 2], ["#000", "#fff"], "µJ"),
        charts.lines([Series("one", [0, 1], [3, 4], low=[2, 3], high=[4, 5])], labels),
        charts.lines([], labels),
    ]
    assert all(svg.startswith("<svg") and svg.rstrip().endswith("</svg>") for svg in drawn)
    assert "<title>first &amp; last</title>" in drawn[1]
    assert charts.points([Series("one", [1], [2])], labels) == drawn[0]  # the same page for the same results


def test_axes_end_at_round_numbers() -> None:
    assert (nice_top([0.0]), nice_top([]), nice_top([11.9]), nice_top([2154])) == (1.0, 1.0, 12.0, 2500.0)


def test_figures_that_do_not_exist_are_a_dash() -> None:
    assert (number(None), percent(None), interval(None)) == ("-", "-", "-")
    assert (number(-0.001), number(1234.5, 0), percent(0.1234)) == ("0.00", "1,234", "12.3 %")
    assert interval(LossInterval(0.5, -0.25, 1.0, 10, 5, "picture")) == "0.50 [-0.25, 1.00]"
    assert interval(LossInterval(0.5, None, None, 0, 1, "recording")) == "0.50"


def test_a_page_of_box_files_has_no_energy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", labels_at_4_hz())
    file = str(tmp_path / "a.npy")
    run = ["--predictions", file, "--labels", file, "--sensor-size", "304x240", "--out", str(tmp_path / "out")]
    assert evaluate_main(run) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Results</h2>" in page
    assert "<h2>Energy</h2>" not in page
    assert read_results(tmp_path / "out" / "results.json").main.label == "predictions"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and its driver are not here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"):
        options.add_argument(flag)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_overflows(written: Path, width: int, browser: Any) -> None:
    """No element but those that scroll by themselves reaches beyond the window."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700})  # fmt: skip
    browser.get((written / "report.html").as_uri())
    page = "document.documentElement"
    assert browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") == 0


def test_class_names_in_any_script_are_text_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = charts.matrix(np.eye(2), ["猫", "犬"], "found", "true")
    assert svg.count("猫") == svg.count("犬") == 2
