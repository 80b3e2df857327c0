"""Energy against a two-layer network worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from data.stats import LayerStats, SpikeStats
from eval.energy import COST_TABLES, energy_report


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
