"""Figures of the README and of docs/results.md against the results files in docs/results/, from which they were made."""

from __future__ import annotations

import re

import pytest

from evburst.app.results import tables
from evburst.eval.results import Results, read_results
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
    section = page[page.index("## Simulated validation windows") : page.index("## Recordings of real sensors")]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    generated = tables([RESULTS / weights for weights in BUNDLED], expected=BUNDLED)
    assert len(found) >= 3
    for table in found:
        assert table in generated
