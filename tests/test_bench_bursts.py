"""bench/bursts.py: operations by spike count, and what a QNN pays that shifts and adds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from bench.bursts import BurstHistogram, binary_digits, figures, signed_digits
from evburst.data.readers import open_events
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.eval.energy import COST_TABLES, synaptic_ops
from evburst.models.bundle import Bundle
from tests.conftest import SAMPLE


def test_digits_are_the_fewest_that_make_the_number() -> None:
    fewest: dict[int, int] = {}
    for digits in product((-1, 0, 1), repeat=7):
        value = sum(digit << k for k, digit in enumerate(digits))
        fewest[value] = min(fewest.get(value, 7), sum(map(abs, digits)))
    assert [signed_digits(n) for n in range(33)] == [fewest[n] for n in range(33)]
    assert [binary_digits(n) for n in (0, 1, 3, 7, 8, 31)] == [0, 1, 2, 3, 1, 5]
    assert all(signed_digits(n) <= binary_digits(n) <= n for n in range(65))


def test_energies_of_a_histogram() -> None:
    """Two windows: 10 weights met by bursts of one spike, 4 by bursts of seven."""
    costs = COST_TABLES["int8"]
    found = figures(np.array([100.0, 10, 0, 0, 0, 0, 0, 4]), 2)
    assert found["spikes_per_burst"] == pytest.approx((10 + 28) / 14)
    expected = {"qnn": 7 * costs.mac_pj, "snn": 19 * costs.ac_pj, "qnn_binary": 11 * costs.ac_pj, "qnn_signed": 9 * costs.ac_pj}
    assert found["energy_pj"] == pytest.approx(expected)


def test_operations_by_count_are_those_of_the_account() -> None:
    bundle = Bundle.load("street")
    stream = open_events(SAMPLE)
    grid = torch.from_numpy(voxel_batch([next(stream.windows(50_000))], bundle.voxel, stream.sensor_size, bundle.stride))
    network = BurstHistogram(bundle.spiking, bundle.parameters)
    _, stats = network.run(grid)
    counts = np.arange(len(network.operations))
    assert (counts * network.operations).sum() == pytest.approx(float(synaptic_ops(stats).sum()), rel=1e-6)
    assert network.operations[1:].sum() == pytest.approx(sum(float(layer.graded_ops.sum()) for layer in stats.layers), rel=1e-6)
    assert len(counts) - 1 <= max(int(layer.burst_limits.max()) for layer in bundle.parameters.neurons.values())
