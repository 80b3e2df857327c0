"""The tables of fields in the pages name every field of summary.json, of results.json and of `classify --json`."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SAMPLE, random_events

from evburst.app.classify import ClassifyConfig, classify_file
from evburst.app.cli import main
from evburst.app.detect import DetectConfig, detect_file
from evburst.data.events import SensorSize
from evburst.data.writers import write_events
from evburst.eval.class_results import ClassCalibration, ClassNetworkResult, ClassResults, ClassTop1
from evburst.eval.result_parts import (
    Energy,
    LossInterval,
    Memory,
    NetworkTiming,
    NeuroBench,
    RunTiming,
    Streaming,
)
from evburst.eval.results import Details, LeftOutBoxes, NetworkResult, Results


def rows_of(page: str, heading: str) -> dict[str, str]:
    """Rows of the tables below a heading of a page, by every name in inline code in their first column."""
    _, found, text = ("\n" + (ROOT / "docs" / page).read_text(encoding="utf-8")).partition(f"\n{heading}\n")
    assert found, f"{page}: no heading {heading}"
    level = heading.partition(" ")[0]
    section = re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return {name: line for line in lines for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def names_in(row: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", row))


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("summary")
    return detect_file(SAMPLE, folder, DetectConfig(sinks=(), max_windows=2, stride_ms=25.0, lead_ms=25.0))


def test_every_field_of_summary_json_is_described(summary: dict[str, Any]) -> None:
    rows = rows_of("detect.md", "### Fields of `summary.json`")
    assert set(summary) | {"error", "tracks", "held", "window_events"} == set(rows)


def test_every_field_of_energy_and_memory_is_described(summary: dict[str, Any]) -> None:
    rows = rows_of("evaluate.md", "### Energy and memory traffic")
    assert set(rows) - set(summary["energy"]) - set(summary["memory"]) == {"snn_pj_percentiles"}
    assert {field.name for kind in (Energy, Memory) for field in fields(kind)} == set(rows)
    own = set(summary["energy"]["beyond_silence"]) - set(summary["energy"]["tables"]["int8"])
    assert own <= names_in(rows["beyond_silence"])


def test_every_field_of_results_json_is_described() -> None:
    rows = rows_of("evaluate.md", "## Fields of `results.json`")
    kinds = (Results, ClassResults, NetworkResult, ClassNetworkResult)
    assert [field.name for kind in kinds for field in fields(kind) if field.name not in rows] == []
    inside = {
        "ap_loss": LossInterval, "left_out": LeftOutBoxes, "neurobench": NeuroBench, "timing.streaming": Streaming,
        "details": Details, "per_class": ClassTop1, "calibration": ClassCalibration,
    }  # fmt: skip
    for name, kind in inside.items():
        missing = [field.name for field in fields(kind) if field.name not in names_in(rows[name])]
        assert missing == [], f"{name}: {missing}"
    both = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert [field.name for kind in (NetworkTiming, RunTiming) for field in fields(kind) if f"`{field.name}`" not in both] == []


def test_every_field_of_a_classification_is_described(tmp_path: Path) -> None:
    size = SensorSize(34, 34)
    write_events(tmp_path / "a.dat", random_events(2000, size, 300_000), size)
    found = classify_file(tmp_path / "a.dat", ClassifyConfig())
    rows = rows_of("classify.md", "### JSON")
    assert set(found) == set(rows)
    assert set(found["windows"][0]) <= names_in(rows["windows"])


@pytest.mark.parametrize("command", ["detect", "classify"])
def test_the_help_states_what_adaptive_without_a_value_means(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "(without a value: 0.8)" in " ".join(capsys.readouterr().out.split())
    heading = {"detect": "## Settings", "classify": "# Classify"}[command]
    assert "0.8 without a number" in rows_of(f"{command}.md", heading)["--adaptive TAU"]
