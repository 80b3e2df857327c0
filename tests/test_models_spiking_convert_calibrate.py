"""Calibration: thresholds by brute force, means restored layer by layer, faults of the seed's code kept out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.errors import ConversionError
from models.graph import Graph, Node, Runner
from models.spiking.convert.calibrate import RATIOS, calibrate, light_calibration, search_thresholds
from models.spiking.convert.fold import trace
from models.spiking.network import SpikingNetwork
from models.spiking.neurons import NeuronLayer, burst_scan


@pytest.fixture
def graph(network: nn.Module) -> Graph:
    return trace(network, torch.zeros(1, 4, 16, 16))


def activations(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    class Keep(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            found[node.name] = value

    Keep(graph)(x)
    return found


@pytest.mark.parametrize(("timesteps", "phi"), [(1, 8), (4, 1), (2, 4)])
def test_thresholds_minimise_the_neuron_s_own_error(graph: Graph, grid: Tensor, timesteps: int, phi: int) -> None:
    found = search_thresholds(graph, [grid], timesteps, phi)
    values = activations(graph, grid)
    for name, theta in found.items():
        a = values[name]
        maximum = a.amax((0, 2, 3))
        errors = []
        for ratio in RATIOS:
            trial = (maximum * float(ratio)).clamp_min(1e-9)
            layer = NeuronLayer(trial, torch.zeros_like(trial), phi)
            response = burst_scan(a[None], layer, timesteps).mean(0) * trial[:, None, None]
            errors.append(((response - a) ** 2).mean((0, 2, 3)))
        table = torch.stack(errors).double()
        chosen = torch.tensor([int(np.abs(RATIOS * float(m) - float(t)).argmin()) for m, t in zip(maximum, theta, strict=True)])
        alive = maximum > 0
        best = table.min(0).values
        picked = table.gather(0, chosen[None])[0]
        assert (picked[alive] <= best[alive] * 1.001 + 1e-9).all(), name


def test_light_calibration_restores_the_means(graph: Graph, grid: Tensor) -> None:
    """Layer by layer the mean spiking output comes nearer to the ANN's; the read-outs' means become equal."""
    batch = grid.repeat(4, 1, 1, 1)
    plain = calibrate(graph, [batch], 2, 2, light=False)
    light = light_calibration(graph, plain, batch)
    ann = Runner(graph)(batch)
    before, _ = SpikingNetwork(graph, plain).run(batch)
    after, _ = SpikingNetwork(graph, light).run(batch)
    for a, b, c in zip(ann, before, after, strict=True):
        gap_before = (a.mean((0, 2, 3)) - b.mean((0, 2, 3))).abs().sum()
        gap_after = (a.mean((0, 2, 3)) - c.mean((0, 2, 3))).abs().sum()
        assert gap_after < 1e-4 < gap_before


def test_error_shrinks_as_timesteps_grow(graph: Graph, grid: Tensor) -> None:
    ann = Runner(graph)(grid)

    def error(timesteps: int) -> float:
        snn, _ = SpikingNetwork(graph, calibrate(graph, [grid], timesteps, 4)).run(grid)
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(ann, snn, strict=True))

    errors = [error(timesteps) for timesteps in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


def test_bursts_are_what_makes_few_timesteps_work(graph: Graph, grid: Tensor) -> None:
    ann = Runner(graph)(grid)

    def error(phi: int) -> float:
        snn, _ = SpikingNetwork(graph, calibrate(graph, [grid], 1, phi)).run(grid)
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(ann, snn, strict=True))

    assert error(8) < 0.3 * error(1)


def test_dead_channel_and_dead_layer_give_no_nan(graph: Graph, grid: Tensor) -> None:
    graph.tensors["deep.conv.weight"][0] = 0
    graph.tensors["deep.conv.bias"][0] = -1
    graph.tensors["down.conv.weight"][:] = 0
    graph.tensors["down.conv.bias"][:] = -1
    parameters = calibrate(graph, [grid], 2, 4)
    outputs, stats = SpikingNetwork(graph, parameters).run(grid)
    assert all((layer.theta > 0).all() for layer in parameters.neurons.values())
    assert all(torch.isfinite(output).all() for output in outputs)
    assert sum(layer.spikes.sum() for layer in stats.layers if layer.name.startswith("down")) == 0


def test_an_ann_that_is_not_finite_is_refused(graph: Graph, grid: Tensor) -> None:
    graph.tensors["deep.conv.bias"][0] = float("inf")
    with pytest.raises(ConversionError, match=r"deep\.conv.*not finite"):
        calibrate(graph, [grid], 1, 4)


def test_every_layer_spikes_and_only_readouts_do_not(graph: Graph, grid: Tensor) -> None:
    """The seed leaves the head and the shortcuts analogue; here every relu has neurons and every relu has spikes."""
    parameters = calibrate(graph, [grid], 1, 8)
    assert set(parameters.neurons) == {node.name for node in graph.nodes if node.op == "relu"}
    _, stats = SpikingNetwork(graph, parameters).run(grid)
    assert {layer.name for layer in stats.layers if layer.kind == "neuron" and layer.spikes.sum() > 0} == set(
        parameters.neurons
    )
