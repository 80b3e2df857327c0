"""Tables that benches made of their results files are those in docs/; spikes of every engine are equal."""

from __future__ import annotations

import json

import pytest

from bench.gpu import table as gpu_table
from bench.real import table as real_table
from bench.spikes import Agreement, compare
from bench.spikes import table as spikes_table
from evburst.models.bundle import WEIGHTS
from evburst.models.runtime import ENGINES
from tests.conftest import ROOT

RESULTS, DOCS = ROOT / "docs" / "results", ROOT / "docs"


def test_the_table_of_the_gpu_is_generated() -> None:
    report = json.loads((RESULTS / "gpu_street.json").read_text())
    assert f"\n{gpu_table(report)}\n" in (DOCS / "benchmarks.md").read_text()


def test_the_table_of_real_sensors_is_generated() -> None:
    reports = [json.loads((RESULTS / f"real_street_{network}.json").read_text()) for network in ("ann", "snn")]
    assert f"\n{real_table(reports)}\n" in (DOCS / "results.md").read_text()


def test_the_table_of_spikes_is_generated() -> None:
    rows = [Agreement(**row) for row in json.loads((RESULTS / "spikes.json").read_text())]
    assert {row.weights for row in rows} == {path.stem for path in WEIGHTS.glob("*.safetensors")}
    assert all(row.different == 0 for row in rows if row.integer_layers == row.layers)
    assert f"\n{spikes_table(rows)}\n" in (DOCS / "benchmarks.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("weights", sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
def test_bundled_networks_spike_the_same_everywhere(weights: str) -> None:
    """Every neuron in 20 windows of the bundled recording, in integer form."""
    engines = [name for name in ("int8", "onnx", "openvino") if not ENGINES[name].available("cpu")]
    for row in compare(weights, engines, 20):
        assert row.windows == 20
        assert row.spikes > 1000
        most = 0 if row.integer_layers == row.layers else row.neurons // 1000
        assert row.different <= most, row
