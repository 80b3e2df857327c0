"""Stopping early: one timestep after the other is the same as all at once, and boxes decide when to stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.data.boxes import Detections
from evburst.models.spiking.adaptive import TAUS, added, agreement, least_tau, run_adaptive
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork, SpikingState
from tests.conftest import spiking


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Boxes from (x0, y0, x1, y1, score, label)."""
    table = np.array(rows, float).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int64))


def converted(network: nn.Module, grid: Tensor, timesteps: int, phi: int) -> SpikingNetwork:
    """EveryOperation as a spiking network."""
    graph = trace(network, grid)
    return SpikingNetwork(graph, spiking(graph, grid, timesteps, phi))


@pytest.mark.parametrize("phi", [1, 2, 8])
@pytest.mark.parametrize("timesteps", [2, 3, 4])
def test_timestep_by_timestep_is_all_at_once(network: nn.Module, grid: Tensor, timesteps: int, phi: int) -> None:
    snn = converted(network, grid, timesteps, phi)
    expected, at_once = snn.run(grid)
    state = SpikingState()
    runs = [snn.run_timestep(grid, state) for _ in range(timesteps)]
    stats = runs[0][1]
    for _, more in runs[1:]:
        stats = added(stats, more)
    for a, b in zip(at_once.layers, stats.layers, strict=True):
        assert (a.name, a.timesteps) == (b.name, b.timesteps)
        for count in ("spikes", "synaptic_ops", "graded_ops"):
            np.testing.assert_array_equal(getattr(a, count), getattr(b, count), err_msg=f"{a.name}: {count}")
    for k, output in enumerate(expected):
        torch.testing.assert_close(torch.stack([outputs[k] for outputs, _ in runs]).mean(0), output, rtol=1e-4, atol=1e-4)


def test_agreement() -> None:
    one = detections((0, 0, 10, 10, 0.8, 0))
    assert agreement(detections(), detections()) == 1
    assert agreement(one, one) == pytest.approx(1)
    assert agreement(one, detections((0, 0, 10, 10, 0.5, 0))) == pytest.approx(0.7)  # the score has changed
    assert agreement(one, detections((0, 0, 10, 8, 0.8, 0))) == pytest.approx(0.8)  # the box has changed
    assert agreement(one, detections((0, 0, 10, 10, 0.8, 1))) == 0  # another class
    assert agreement(one, detections((6, 0, 16, 10, 0.8, 0))) == 0  # elsewhere
    assert agreement(one, detections()) == 0
    two = detections((0, 0, 10, 10, 0.8, 0), (0, 0, 10, 9, 0.7, 0))
    assert agreement(two, detections((0, 0, 10, 10, 0.8, 0), (40, 0, 50, 9, 0.7, 0))) == 0  # two boxes share one partner


@pytest.mark.parametrize(("boxes_at", "tau", "used"), [
    ((0, 0, 0), 0.9, 1),  # nothing there: one timestep is enough
    ((1, 1, 1), 0.9, 2),  # the same boxes twice
    ((1, 1, 1), 1.1, 4),  # a threshold that nothing reaches
    ((1, 2, 2), 0.9, 3),  # a second box appears, then stays
    ((1, 0, 0), 0.9, 2),  # what was there has gone
])  # fmt: skip
def test_it_stops_when_boxes_agree(network: nn.Module, grid: Tensor, boxes_at: tuple[int, ...], tau: float, used: int) -> None:
    snn = converted(network, grid[:1], 4, 8)
    boxes = [detections(*[(20 * k, 0, 20 * k + 10, 10, 0.9, 0) for k in range(n)]) for n in (*boxes_at, boxes_at[-1])]
    seen: list[list[Tensor]] = []

    def decode(maps: list[Tensor]) -> Detections:
        seen.append(maps)
        return boxes[len(seen) - 1]

    found, stats = run_adaptive(snn, grid[:1], tau, decode)
    assert {layer.timesteps for layer in stats.layers} == {used}
    assert len(found) == len(boxes[used - 1])
    outputs, expected = SpikingNetwork(snn.graph, replace(snn.parameters, timesteps=used)).run(grid[:1])
    for a, b in zip(seen[-1], outputs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert sum(float(layer.spikes[0]) for layer in stats.layers) == sum(float(layer.spikes[0]) for layer in expected.layers)


def test_least_tau_is_the_quickest_that_loses_little() -> None:
    weak, strong = detections((0, 0, 10, 10, 0.5, 0)), detections((0, 0, 10, 10, 0.9, 0))
    stronger = detections((0, 0, 10, 10, 0.95, 0))
    steps = [[weak, strong, stronger, stronger]] * 3  # agreements: 0.6, 0.95, 1

    def mean_score(found: list[Detections]) -> float:
        return float(np.mean([boxes.scores[0] for boxes in found]))

    assert least_tau(steps, mean_score, 0.1) == (TAUS[0], 2.0)
    assert least_tau(steps, mean_score, 0.01) == (0.7, 3.0)
    assert least_tau([[weak, weak, weak, strong]] * 3, mean_score, 0.01) is None  # at every tau, T = 2 is the last
