"""Figures of the README and of docs/results.md against the results files in docs/results/, from which they were made."""

from __future__ import annotations

import json
import re

import pytest

from bench.gpu import table as gpu_table
from bench.spikes import Agreement
from bench.spikes import table as spikes_table
from evburst.app.results import tables
from evburst.eval.results import Results, read_results
from evburst.models.bundle import WEIGHTS
from tests.conftest import ROOT

RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text()
BUNDLED = ("caltech6", "caltech6-ssd", "street")


def results_of(weights: str) -> Results:
    results = read_results(RESULTS / weights / "results.json")
    assert isinstance(results, Results)
    assert (results.weights, results.dataset, results.split) == (weights, "simulated", "val")
    return results


@pytest.mark.parametrize("weights", BUNDLED)
def test_the_readme_s_rows_are_those_of_the_results(weights: str) -> None:
    results = results_of(weights)
    ann, snn = results.results
    lost, energy = snn.ap_loss, snn.energy
    assert lost is not None
    interval = f"{lost.mean:.1f} [{lost.low:.1f}, {lost.high:.1f}]"
    shares = [100 * (share or 0) for share in (energy.of_ann, energy.of_ann_zero_skipping, energy.of_qnn)]
    over = [f"{share:.0f} %" if share >= 100 else f"{share:.1f} %" for share in shares]
    first = f"| `{weights}`, {results.windows} | ANN | {ann.ap:.1f} | {ann.ap50:.1f} |"
    second = f"| | SNN, T = {snn.timesteps} | {snn.ap:.1f} | {snn.ap50:.1f} | {interval} |"
    lines = README.splitlines()
    at = next(k for k, line in enumerate(lines) if line.startswith(first))
    assert lines[at + 1].startswith(second)
    assert [cell.strip() for cell in lines[at + 1].split("|")[-4:-1]] == over


def test_the_tables_of_the_results_page_are_generated() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    section = page[page.index("## Simulated validation windows") : page.index("## Other data")]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    generated = tables([RESULTS / weights for weights in BUNDLED], expected=BUNDLED)
    assert len(found) >= 3
    for table in found:
        assert table in generated


def test_the_table_of_the_gpu_is_generated() -> None:
    report = json.loads((RESULTS / "gpu_street.json").read_text())
    assert f"\n{gpu_table(report)}\n" in (ROOT / "docs" / "benchmarks.md").read_text()


def test_held_back_losses_agree() -> None:
    """They were measured elsewhere, on pictures that are not in the project: README and page state the same."""
    page = (ROOT / "docs" / "results.md").read_text()
    for weights in ("caltech6", "street"):
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{weights}`, T = 1, held-back")]
        mean, low, high = re.findall(r"\d+\.\d", row)
        assert f"{mean} [{low}, {high}]" in README


def test_the_table_of_spikes_is_generated() -> None:
    rows = [Agreement(**row) for row in json.loads((RESULTS / "spikes.json").read_text())]
    assert {row.weights for row in rows} == {path.stem for path in WEIGHTS.glob("*.safetensors")}
    assert all(row.different == 0 for row in rows if row.integer_layers == row.layers)
    assert f"\n{spikes_table(rows)}\n" in (ROOT / "docs" / "benchmarks.md").read_text()
