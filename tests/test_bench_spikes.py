"""Spikes agree between engines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.spikes import Agreement, available, compare, leading_to
from evburst.models.bundle import WEIGHTS
from tests.conftest import ROOT


def test_spikes_were_compared_for_all_weights() -> None:
    rows = [Agreement(**row) for row in json.loads((ROOT / "docs" / "results" / "spikes.json").read_text())["results"]]
    assert {row.weights for row in rows} == {path.stem for path in WEIGHTS.glob("*.safetensors")}
    assert all(row.different == 0 for row in rows if row.integer_layers == row.layers)
    assert {row.weights: row.different for row in rows if row.engine == "nir"} == {
        "nmnist": 0,
        "dvs128-objects": 0,
        "caltech6-ssd": 0,
    }


@pytest.mark.parametrize("weights", ["nmnist", "dvs128-objects"])
def test_spikingjelly_fires_the_same_spikes_from_a_nir_file(weights: str) -> None:
    if not available("nir"):
        pytest.skip("the packages nir, nirtorch and spikingjelly are needed")
    (row,) = compare(weights, ["nir"], 2)
    assert row.windows == 2
    assert row.spikes > 100
    assert row.different == 0


def test_a_nir_graph_is_cut_into_what_leads_to_each_output() -> None:
    nir = pytest.importorskip("nir")
    shape = np.array([2, 8, 8])
    nodes = {
        "input": nir.Input({"input": shape}),
        "shared": nir.Flatten({"input": shape}, 0, 0),
        "a": nir.Flatten({"input": shape}, 0, 0),
        "end_a": nir.Output({"output": shape}),
        "end_b": nir.Output({"output": shape}),
    }
    edges = [("input", "shared"), ("shared", "a"), ("a", "end_a"), ("shared", "end_b")]
    graph = nir.NIRGraph(nodes, edges)
    assert set(leading_to("end_a", graph).edges) == set(edges[:3])
    part = leading_to("end_b", graph)
    assert (set(part.nodes), set(part.edges)) == ({"input", "shared", "end_b"}, {edges[0], edges[3]})


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
