"""Energy against a two-layer network worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evburst.data.stats import ActivityStats, LayerStats, SpikeStats
from evburst.eval.energy import COST_TABLES, ann_energy_report, ann_layers, energy_report, snn_layers
from evburst.models.graph import Graph, Node
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer


def stats() -> SpikeStats:
    """10 events reaching 4 weights each; 6 spikes (2 of them in a burst) of 5 neurons at T = 2 reaching 3 each."""
    events = LayerStats("input", "input", 0, 2, np.array([10.0]), np.array([40.0]), np.array([40.0]))
    hidden = LayerStats("relu", "neuron", 5, 2, np.array([6.0]), np.array([18.0]), np.array([15.0]))
    return SpikeStats((events, hidden), {"conv1": 200, "conv2": 50})


def test_by_hand_in_float32() -> None:
    report = energy_report(stats())
    assert report.snn_pj == pytest.approx((40 + 18) * 0.9)
    assert report.snn_graded_pj == pytest.approx((40 + 15) * 0.9)
    assert report.ann_pj == pytest.approx(250 * 4.6)
    assert report.ratio == pytest.approx(58 * 0.9 / (250 * 4.6))
    assert report.neuron_updates == 10
    assert report.spikes_per_neuron == pytest.approx(6 / 5)
    assert "memory traffic" in report.excluded


@pytest.mark.parametrize(("name", "mac", "ac"), [("fp32", 4.6, 0.9), ("fp16", 1.5, 0.4), ("int8", 0.3, 0.1)])
def test_tables(name: str, mac: float, ac: float) -> None:
    report = energy_report(stats(), COST_TABLES[name])
    assert (report.ann_pj, report.snn_pj) == (pytest.approx(250 * mac), pytest.approx(58 * ac))


def test_mean_over_images() -> None:
    one = LayerStats("relu", "neuron", 4, 1, np.array([2.0, 4.0]), np.array([10.0, 30.0]), np.array([10.0, 20.0]))
    report = energy_report(SpikeStats((one,), {"c": 100}))
    assert report.synaptic_ops == 20
    assert report.spikes_per_neuron == pytest.approx(0.75)


def test_layers_sum_to_the_whole() -> None:
    layers = snn_layers(stats(), COST_TABLES["int8"])
    assert [(layer.name, layer.operations, layer.neuron_updates) for layer in layers] == [("input", 40, 0), ("relu", 18, 10)]
    assert sum(layer.pj for layer in layers) == pytest.approx(energy_report(stats(), COST_TABLES["int8"]).snn_pj)


def test_ann_dense_and_zero_skipping_by_hand() -> None:
    """Two images, two convolutions of 200 and 50 MACs; 5 activations, of which 2 and 4 are not zero."""
    effective = {"conv1": np.array([100.0, 120.0]), "conv2": np.array([20.0, 40.0])}
    activity = ActivityStats({"conv1": 200, "conv2": 50}, effective, np.array([2.0, 4.0]), 5)
    report = ann_energy_report(activity)
    assert report.dense_pj == pytest.approx(250 * 4.6)
    assert report.zero_skipping_pj == pytest.approx(140 * 4.6)
    assert report.active_share == pytest.approx(0.6)
    layers = ann_layers(activity)
    assert [(layer.name, layer.graded_operations) for layer in layers] == [("conv1", 110), ("conv2", 30)]
    assert sum(layer.pj for layer in layers) == pytest.approx(report.dense_pj)


def test_a_two_layer_network_counted_spike_by_spike() -> None:
    """3 x 3 and 1 x 1 convolutions on a 4 x 4 grid: every event and spike is followed to the weights it reaches."""
    graph = Graph(
        [
            Node("input", "input", ()),
            Node("a", "conv", ("input",), {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}),
            Node("relu", "relu", ("a",)),
            Node("b", "conv", ("relu",), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}),
        ],
        ["b"],
        {"a.weight": torch.ones(2, 1, 3, 3), "a.bias": torch.zeros(2), "b.weight": torch.ones(5, 2, 1, 1), "b.bias": torch.zeros(5)},
    )  # fmt: skip
    neurons = {"relu": NeuronLayer(torch.ones(2), torch.zeros(2), 4)}
    grid = torch.zeros(1, 1, 4, 4)
    grid[0, 0, 0, 0], grid[0, 0, 2, 1] = 3, 1  # a corner reaches 4 positions, the other one 9; twice each: 2 channels
    outputs, counted = SpikingNetwork(graph, SpikingParameters(1, neurons, {"b": torch.zeros(5)})).run(grid)
    report = energy_report(counted)
    events = 3 * 4 * 2 + 1 * 9 * 2
    # The current is 3 near the corner, 1 around the other event, 4 where both reach: a spike for each unit, 5 weights for each spike.
    spikes = 2 * (3 * 4 + 1 * 9)
    assert (counted.layers[0].synaptic_ops[0], counted.layers[1].spikes[0]) == (events, spikes)
    assert report.synaptic_ops == events + 5 * spikes
    assert report.dense_macs == (4 * 4 + 8 * 6 + 4 * 9) * 2 + 16 * 2 * 5
    assert report.snn_pj == pytest.approx((events + 5 * spikes) * 0.9)
    assert float(outputs[0].sum()) == 5 * spikes
