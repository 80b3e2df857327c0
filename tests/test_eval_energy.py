"""Energy against a two-layer network worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evburst.data.errors import ConfigError
from evburst.data.stats import BEYOND_SILENCE, ActivityStats, LayerStats, SpikeStats
from evburst.eval.energy import (
    COST_TABLES,
    BeyondSilence,
    EnergyTotals,
    energy_figures,
    energy_report,
)
from evburst.eval.layer_energy import ann_layers, snn_layers
from evburst.models.graph import Graph, Node
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer

INT8 = COST_TABLES["int8"]


def stats() -> SpikeStats:
    """10 events reaching 4 weights each; 6 spikes (2 of them in a burst) of 5 neurons at T = 2 reaching 3 each."""
    events = LayerStats("input", "input", 0, 2, np.array([10.0]), np.array([40.0]), np.array([40.0]))
    hidden = LayerStats("relu", "neuron", 5, 2, np.array([6.0]), np.array([18.0]), np.array([15.0]), np.array([5.0]))
    return SpikeStats((events, hidden), {"conv1": 200, "conv2": 50})


def activity(windows: int = 2) -> ActivityStats:
    """Convolutions of 200 and 50 MACs; 5 activations; a third of the windows has more that are not zero."""
    first, second, active = ([row[k % 2] for k in range(windows)] for row in ((100.0, 120.0), (20.0, 40.0), (2.0, 4.0)))
    effective = {"conv1": np.array(first), "conv2": np.array(second)}
    return ActivityStats({"conv1": 200, "conv2": 50}, effective, np.array(active), 5)


def random_stats(rng: np.random.Generator, n: int, timesteps: int) -> SpikeStats:
    spikes, active = rng.integers(5, 50, n).astype(float), rng.integers(1, 5, n).astype(float)
    events = LayerStats("input", "input", 0, timesteps, 2 * spikes, 9 * spikes, 7 * spikes)
    hidden = LayerStats("relu", "neuron", 12, timesteps, spikes, 3 * spikes, 2 * spikes, active)
    return SpikeStats((events, hidden), {"conv": 1000})


@pytest.mark.parametrize(("name", "mac", "ac"), [("fp32", 4.6, 0.9), ("fp16", 1.5, 0.4), ("int8", 0.3, 0.1)])
def test_four_accounts_by_hand(name: str, mac: float, ac: float) -> None:
    found = energy_report(stats(), activity()).energies(name)
    assert found.snn_pj == pytest.approx((40 + 18) * ac)
    assert found.qnn_pj == pytest.approx((40 + 15) * mac)  # a burst is one multiply-accumulate
    assert found.ann_zero_skipping_pj == pytest.approx(140 * mac)
    assert found.ann_pj == pytest.approx(250 * mac)
    assert found.ratio == pytest.approx(58 * ac / (250 * mac))


def test_an_unknown_table_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"energy table 'int4' is unknown \(known: int8, fp16, fp32\)"):
        energy_report(stats()).energies("int4")


def test_counts_by_hand() -> None:
    report = energy_report(stats(), activity(), idle_windows=3)
    assert (report.windows, report.idle_windows, report.activity_windows, report.timesteps) == (1, 3, 2, 2)
    assert (report.synaptic_ops, report.graded_ops, report.dense_macs, report.effective_macs) == (58, 55, 250, 140)
    assert (report.neuron_updates, report.spikes, report.active_share) == (10, 6, pytest.approx(0.6))
    assert report.spikes_per_neuron == pytest.approx(6 / 5)
    assert report.spikes_per_active_neuron == pytest.approx(6 / 5)
    assert report.mean_burst == pytest.approx(58 / 55)
    assert "memory traffic" in report.excluded


def test_snn_against_qnn_is_the_mean_burst_at_the_cost_of_additions() -> None:
    """At one timestep; beyond it, the network is no quantised one."""
    several = stats()
    once = replace(several, layers=tuple(layer._replace(timesteps=1) for layer in several.layers))
    report = energy_report(once)
    for table in COST_TABLES.values():
        found = report.energies(table.name).as_dict()
        assert found["of_qnn"] == pytest.approx((report.mean_burst or 0) * table.ac_pj / table.mac_pj)
        assert energy_report(several).energies(table.name).as_dict() == {**found, "of_qnn": None}


def test_int8_is_the_headline_and_every_table_stands_beside_it() -> None:
    figures = energy_figures(energy_report(stats(), activity()))
    assert list(figures["tables"]) == ["int8", "fp16", "fp32"]
    assert figures["table"] == "int8"
    assert {name: figures[name] for name in figures["tables"]["int8"]} == figures["tables"]["int8"]
    assert json.loads(json.dumps(figures)) == figures
    assert energy_figures(energy_report(stats()), "fp32")["snn_pj"] == pytest.approx(58 * 0.9)


def test_what_was_not_measured_is_none() -> None:
    snn = energy_figures(energy_report(stats()))
    assert (snn["ann_zero_skipping_pj"], snn["of_ann_zero_skipping"], snn["activity_windows"]) == (None, None, 0)
    ann = energy_figures(energy_report(None, activity()))
    assert (ann["snn_pj"], ann["qnn_pj"], ann["ratio"], ann["mean_burst"], ann["windows"]) == (None, None, None, None, 2)
    uncounted = SpikeStats((LayerStats("a", "neuron", 5, 1, *np.ones((3, 1))),), {"c": 10})
    assert energy_report(uncounted).spikes_per_active_neuron is None
    silent = SpikeStats((LayerStats("a", "neuron", 5, 1, *np.zeros((4, 1))),), {"c": 10})
    assert (energy_report(silent).mean_burst, energy_report(silent).energies().snn_pj) == (None, 0)
    with pytest.raises(ValueError, match="at least one network"):
        energy_report()


def test_mean_over_images() -> None:
    one = LayerStats("relu", "neuron", 4, 1, np.array([2.0, 4.0]), np.array([10.0, 30.0]), np.array([10.0, 20.0]))
    report = energy_report(SpikeStats((one,), {"c": 100}))
    assert report.synaptic_ops == 20
    assert report.spikes_per_neuron == pytest.approx(0.75)


def test_totals_of_single_windows_are_the_account_of_all() -> None:
    rng = np.random.default_rng(0)
    batches = [random_stats(rng, n, 2) for n in (1, 3, 2)]
    totals = EnergyTotals(1000)
    for batch in batches:
        for k in range(len(batch.layers[0].spikes)):
            totals.add(batch.of_image(k))
    totals.add_idle(4)
    whole, one_by_one = energy_report(SpikeStats.concatenate(batches), idle_windows=4), totals.report()
    for name in EnergyTotals(1).report().__dataclass_fields__:
        mine, theirs = getattr(one_by_one, name), getattr(whole, name)
        assert mine == (theirs if name == "beyond_silence" else pytest.approx(theirs)), name


def test_merged_totals_are_those_of_all_windows() -> None:
    """Also where one side was not counted beyond silence, has idle windows, or has only those of the ANN."""
    counted, activities = counted_beyond_silence()

    def totals(*kinds: str) -> EnergyTotals:
        made = EnergyTotals(250)
        for kind in kinds:
            if kind == "beyond":
                made.add(counted)
                made.add_activity(activities)
            elif kind == "plain":
                made.add(random_stats(np.random.default_rng(0), 3, 2))
            elif kind == "idle":
                made.add_idle()
            else:
                made.add_uncounted(2)
        return made

    for parts in (["beyond"], ["beyond", "plain"], ["beyond", "idle", "dense"], ["plain", "beyond", "beyond", "idle"]):
        merged = EnergyTotals(250)
        for part in parts:
            merged.merge(totals(part))
        assert merged.report() == totals(*parts).report(), parts


def test_idle_windows_change_neither_side() -> None:
    """Half of a recording without events costs neither network anything: the shares are those of the busy half."""
    rng = np.random.default_rng(1)
    busy = random_stats(rng, 5, 1)
    with_idle = energy_figures(energy_report(busy, idle_windows=5))
    without = energy_figures(energy_report(busy))
    assert with_idle.pop("idle_windows") == 5
    assert without.pop("idle_windows") == 0
    assert with_idle == without
    empty = EnergyTotals(1000)
    empty.add_idle()
    assert (empty.report().windows, empty.report().energies().ratio) == (0, None)
    empty.add_uncounted(2)
    assert (empty.report().windows, empty.report().energies().ann_pj) == (2, 1000 * INT8.mac_pj)


def test_timesteps_that_vary_are_averaged() -> None:
    rng = np.random.default_rng(2)
    totals = EnergyTotals(1000)
    for timesteps in (1, 4, 1):
        totals.add(random_stats(rng, 1, timesteps))
    assert totals.report().timesteps == 2
    assert totals.report().neuron_updates == 12 * 2


def counted_beyond_silence() -> tuple[SpikeStats, ActivityStats]:
    """`stats` with 4 spikes of differences (3 bursts) reaching 3 weights each; 30 and 10 MACs of the ANN, in each window."""
    events, hidden = stats().layers
    events = events._replace(**dict(zip(BEYOND_SILENCE, (events.spikes, events.synaptic_ops, events.graded_ops), strict=True)))
    hidden = hidden._replace(**dict(zip(BEYOND_SILENCE, (np.array([n]) for n in (4.0, 12.0, 9.0)), strict=True)))
    beyond = {"conv1": np.array([30.0, 30.0]), "conv2": np.array([10.0, 10.0])}
    return SpikeStats((events, hidden), stats().dense_macs), replace(activity(), macs_beyond_silence=beyond)


def test_operations_beyond_silence_by_hand() -> None:
    """They stand beside the plain account, which they do not change."""
    counted = counted_beyond_silence()
    figures, plain = energy_figures(energy_report(*counted)), energy_figures(energy_report(stats(), activity()))
    beyond, none = figures.pop("beyond_silence"), plain.pop("beyond_silence")
    assert figures == plain
    assert {name: beyond[name] for name in ("synaptic_ops", "graded_ops", "spikes", "effective_macs")} == {
        "synaptic_ops": 40 + 12,
        "graded_ops": 40 + 9,
        "spikes": 4,
        "effective_macs": 40,
    }
    assert beyond["snn_pj"] == pytest.approx(52 * 0.1)
    assert beyond["qnn_pj"] == pytest.approx(49 * 0.3)
    assert beyond["ann_zero_skipping_pj"] == pytest.approx(40 * 0.3)
    assert (beyond["ann_pj"], beyond["of_ann"]) == (pytest.approx(250 * 0.3), pytest.approx(52 * 0.1 / (250 * 0.3)))
    assert beyond["tables"]["int8"] == {name: beyond[name] for name in beyond["tables"]["int8"]}
    assert (none["snn_pj"], none["of_ann"], none["ann_zero_skipping_pj"], none["spikes"]) == (None,) * 4
    assert json.loads(json.dumps(beyond)) == beyond


def test_one_window_that_was_not_counted_beyond_silence_leaves_no_mean() -> None:
    counted, activities = counted_beyond_silence()
    totals = EnergyTotals(250)
    totals.add(counted)
    totals.add_activity(activities)
    assert totals.report().beyond_silence.synaptic_ops == 52
    totals.add(stats())
    totals.add_activity(activity())
    totals.add(counted)
    totals.add_activity(activities)
    assert totals.report().beyond_silence == BeyondSilence()
    assert totals.report().synaptic_ops == 58


def test_layers_sum_to_the_whole() -> None:
    layers = snn_layers(stats(), INT8)
    assert [(layer.name, layer.operations, layer.neuron_updates) for layer in layers] == [("input", 40, 0), ("relu", 18, 10)]
    assert sum(layer.pj for layer in layers) == pytest.approx(energy_report(stats()).energies().snn_pj)
    layers = ann_layers(activity(), INT8)
    assert [(layer.name, layer.graded_operations) for layer in layers] == [("conv1", 110), ("conv2", 30)]
    assert sum(layer.pj for layer in layers) == pytest.approx(energy_report(stats()).energies().ann_pj)


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
        {"a.weight": torch.ones(2, 1, 3, 3), "a.bias": torch.zeros(2),
         "b.weight": torch.ones(5, 2, 1, 1), "b.bias": torch.zeros(5)},
    )  # fmt: skip
    neurons = {"relu": NeuronLayer(torch.ones(2), torch.zeros(2), 4)}
    grid = torch.zeros(1, 1, 4, 4)
    grid[0, 0, 0, 0], grid[0, 0, 2, 1] = 3, 1  # a corner reaches 4 positions, the other one 9; twice each: 2 channels
    outputs, counted = SpikingNetwork(graph, SpikingParameters(1, neurons, {"b": torch.zeros(5)})).run(grid)
    report = energy_report(counted)
    events = 3 * 4 * 2 + 1 * 9 * 2
    # The current is 3 near the corner, 1 around the other event, and 4 where they overlap.
    # Each unit of it is a spike, which reaches 5 weights.
    spikes = 2 * (3 * 4 + 1 * 9)
    assert (counted.layers[0].synaptic_ops[0], counted.layers[1].spikes[0]) == (events, spikes)
    assert report.synaptic_ops == events + 5 * spikes
    assert report.dense_macs == (4 * 4 + 8 * 6 + 4 * 9) * 2 + 16 * 2 * 5
    assert report.energies().snn_pj == pytest.approx((events + 5 * spikes) * 0.1)
    assert float(outputs[0].sum()) == 5 * spikes
