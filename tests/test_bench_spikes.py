"""Spikes agree between engines."""

from __future__ import annotations

import json

import pytest

from bench.spikes import Agreement, available, compare
from evburst.models.bundle import WEIGHTS
from tests.conftest import ROOT


def test_spikes_were_compared_for_all_weights() -> None:
    rows = [Agreement(**row) for row in json.loads((ROOT / "docs" / "results" / "spikes.json").read_text())["results"]]
    assert {row.weights for row in rows} == {path.stem for path in WEIGHTS.glob("*.safetensors")}
    assert all(row.different == 0 for row in rows if row.integer_layers == row.layers)
    assert {row.weights: row.different for row in rows if row.engine == "nir"} == {"nmnist": 0, "dvs128-objects": 0}


@pytest.mark.parametrize("weights", ["nmnist", "dvs128-objects"])
def test_spikingjelly_fires_the_same_spikes_from_a_nir_file(weights: str) -> None:
    if not available("nir"):
        pytest.skip("the packages nir, nirtorch and spikingjelly are needed")
    (row,) = compare(weights, ["nir"], 2)
    assert row.windows == 2
    assert row.spikes > 100
    assert row.different == 0


@pytest.mark.slow
@pytest.mark.parametrize("weights", sorted(path.stem for path in WEIGHTS.glob("*.safetensors")))
def test_bundled_networks_spike_the_same_everywhere(weights: str) -> None:
    """Every neuron in 20 windows of the bundled recording, in integer form."""
    engines = [name for name in ("int8", "onnx", "openvino", "nir") if available(name)]
    for row in compare(weights, engines, 20):
        assert row.windows == 20
        assert row.spikes > 1000
        most = 0 if row.integer_layers == row.layers else row.neurons // 1000
        assert row.different <= most, row
