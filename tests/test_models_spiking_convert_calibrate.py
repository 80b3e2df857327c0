"""Calibration: thresholds by brute force, means restored layer by layer, faults of the seed's code kept out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.data.errors import ConversionError
from evburst.models.activation_regulariser import ROUNDING_LEVELS, round_and_measure
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.convert.calibrate import (
    RATIOS,
    TYPICAL,
    Choice,
    _with_dead,
    best_thresholds,
    calibrate,
    record_targets,
    typical_thresholds,
)
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.importance import BACKGROUND, position_weights
from evburst.models.spiking.integer_form import is_integer
from evburst.models.spiking.network import SpikingNetwork, spike_sizes
from evburst.models.spiking.neurons import NeuronLayer, burst_scan, steady_counts
from evburst.models.spiking.rounding import from_int8, input_sizes, rounded, to_int8
from tests.conftest import activations, spiking


@pytest.fixture
def graph(network: nn.Module) -> Graph:
    return trace(network, torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize(("timesteps", "phi"), [(1, 8), (4, 1), (2, 4)])
@pytest.mark.parametrize("weighted", [False, True])
def test_thresholds_minimise_the_neuron_s_own_error(
    graph: Graph, grid: Tensor, timesteps: int, phi: int, weighted: bool
) -> None:
    for name, a in activations(graph, grid).items():
        if not name.endswith("relu"):
            continue
        weights = torch.ones(len(a), 1, *a.shape[2:])
        if weighted:
            weights = torch.rand(weights.shape, generator=torch.Generator().manual_seed(0))
        theta, errors = best_thresholds(a, a, weights, timesteps, phi)
        maximum = a.amax((0, 2, 3))
        table = []
        for ratio in RATIOS:
            trial = (maximum * float(ratio)).clamp_min(1e-9)
            layer = NeuronLayer(trial, torch.zeros_like(trial), phi)
            response = burst_scan(a[None], layer, timesteps).mean(0) * trial[:, None, None]
            table.append((weights * (response - a) ** 2).sum((0, 2, 3)))
        brute = torch.stack(table, 1).double().numpy()
        alive = maximum > 0
        np.testing.assert_allclose(errors[alive], brute[alive], rtol=1e-3, atol=1e-6)
        assert torch.allclose(theta[alive].double(), torch.from_numpy(RATIOS[errors.argmin(1)])[alive] * maximum[alive])


def test_typical_thresholds_are_those_of_training() -> None:
    """Rounded to the same values at one timestep and equal levels; otherwise in proportion to the thresholds of least error."""
    a = torch.randn(6, 5, 32, 32, generator=torch.Generator().manual_seed(1)).relu()
    a *= torch.tensor([0.1, 1.0, 3.0, 0.0, 20.0])[:, None, None]
    theta = typical_thresholds(a, 1, ROUNDING_LEVELS)
    layer = NeuronLayer(theta, torch.zeros(5), ROUNDING_LEVELS)
    trained, _ = round_and_measure(a, TYPICAL, every=1)
    assert torch.allclose(steady_counts(a, layer, 1) * theta[:, None, None], trained, rtol=1e-5)
    assert theta[3] == theta.max()  # silent
    alive, weights = a.amax((0, 2, 3)) > 0, torch.ones(6, 1, 32, 32)
    for timesteps, phi in ((1, 1), (1, 4), (1, 32), (4, 8)):
        ratio = typical_thresholds(a, timesteps, phi) / best_thresholds(a, a, weights, timesteps, phi)[0]
        assert all(1.1 < r < 2 for r in ratio[alive].tolist())


def test_typical_thresholds_give_all_positions_equal_weight(graph: Graph, grid: Tensor) -> None:
    batch = grid.repeat(4, 1, 1, 1)
    confidence = torch.rand(len(batch), 1, 4, 4, generator=torch.Generator().manual_seed(2))
    weighted, unweighted = record_targets(graph, batch, confidence), record_targets(graph, batch)
    for typical in (True, False):
        one, other = (calibrate(graph, targets, 1, Choice(8, typical=typical))[1] for targets in (weighted, unweighted))
        assert typical == all(torch.equal(one.readout_shift[name], other.readout_shift[name]) for name in one.readout_shift)


def test_light_calibration_restores_the_means(graph: Graph, grid: Tensor) -> None:
    """The read-outs' means become the ANN's."""
    batch = grid.repeat(4, 1, 1, 1)
    ann, targets = Runner(graph)(batch), record_targets(graph, batch)
    before, after = (
        SpikingNetwork(*calibrate(graph, targets, 2, Choice(2), level)).run(batch)[0] for level in ("none", "light")
    )
    for a, b, c in zip(ann, before, after, strict=True):
        gap_before = (a.mean((0, 2, 3)) - b.mean((0, 2, 3))).abs().sum()
        gap_after = (a.mean((0, 2, 3)) - c.mean((0, 2, 3))).abs().sum()
        assert gap_after < 1e-3 < gap_before


def test_each_level_leaves_less_than_the_one_before(graph: Graph) -> None:
    """On grids that it has not seen, and without changing the ANN's own graph."""
    seen, unseen = torch.poisson(torch.full((32, 4, 12, 20), 0.7), generator=torch.Generator().manual_seed(5)).split(16)
    targets = record_targets(graph, seen)
    before = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    ann = Runner(graph)(unseen)

    def error(level: str) -> float:
        snn, _ = SpikingNetwork(*calibrate(graph, targets, 1, Choice(3), level)).run(unseen)
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(ann, snn, strict=True))

    assert error("light") < error("none")
    assert error("advanced") == error("light")  # gradient descent comes after: test_models_spiking_convert_distil.py
    assert all(torch.equal(graph.tensors[name], tensor) for name, tensor in before.items())


def test_weights_are_rounded_before_what_follows_is_calibrated(graph: Graph, grid: Tensor) -> None:
    """To 8 bits of their products with the thresholds, of sums with the common unit, in integer form; each by half a step."""
    converted, parameters = calibrate(graph, record_targets(graph, grid), 2, Choice(4))
    assert is_integer(converted, parameters)
    theta = spike_sizes(graph, parameters.neurons)
    for node in graph.nodes:
        if node.op != "conv":
            continue
        before, after = (g.tensors[f"{node.name}.weight"] for g in (graph, converted))
        values = input_sizes(graph, node, theta)
        assert values is not None
        largest = (before * values[:, None, None]).abs().flatten(1).amax(1)
        step = converted.tensors.get(f"{node.name}.step", largest / 127)
        steps = after * values[:, None, None] / step[:, None, None, None]
        assert torch.allclose(steps, steps.round(), atol=1e-3)
        assert (step >= 0.995 * largest / 127).all()
        assert ((after - before).abs() * values[:, None, None] <= 0.51 * step[:, None, None, None]).all()
        assert not torch.equal(before, after)
        assert torch.equal(rounded(before, values, converted.tensors.get(f"{node.name}.step")), after)
        assert torch.equal(graph.tensors[f"{node.name}.bias"], converted.tensors[f"{node.name}.bias"]) == (
            node.name in graph.outputs
        )


@pytest.mark.parametrize("shape", [(16, 4, 3, 3), (5, 33, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("magnitude", [1e-12, 1.0, 1e9])
def test_weights_rounded_in_one_pass_are_the_stored_integers(shape: tuple[int, ...], magnitude: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(shape[1], generator=generator) + 0.01
    for _ in range(20):
        weight = magnitude * torch.randn(shape, generator=generator)
        weight[0] = 0.0
        assert torch.equal(rounded(weight, values), from_int8(*to_int8(weight, values), values))
        permuted = weight.contiguous(memory_format=torch.channels_last)
        assert torch.equal(rounded(permuted, values), rounded(weight, values))


def test_thresholds_whose_spikes_are_added_differ_by_powers_of_two(graph: Graph, grid: Tensor) -> None:
    _, parameters = calibrate(graph, record_targets(graph, grid), 2, Choice(4))
    (_, stem), (name, deep) = list(parameters.neurons.items())[:2]
    second, add = stem.theta[4:], next(node.name for node in graph.nodes if node.op == "add")
    power = torch.log2(deep.theta / second)
    assert torch.equal(power, power.round())
    unit = spike_sizes(graph, parameters.neurons)[add]
    assert unit is not None
    assert torch.equal(unit, torch.minimum(second, deep.theta))
    parameters.neurons[name] = replace(deep, theta=deep.theta * 1.25)
    assert spike_sizes(graph, parameters.neurons)[add] is None


def test_raised_thresholds_fire_less(graph: Graph, grid: Tensor) -> None:
    targets = record_targets(graph, grid)

    def spikes(rho: float) -> float:
        _, parameters = calibrate(graph, targets, 1, Choice(8, rho))
        _, stats = SpikingNetwork(graph, parameters).run(grid)
        return sum(float(layer.spikes.sum()) for layer in stats.layers if layer.kind == "neuron")

    assert spikes(1.0) > 1.5 * spikes(2.0) > 1.5 * spikes(4.0)


def test_positions_where_the_ann_sees_something_count_more() -> None:
    confidence = torch.zeros(1, 1, 4, 4)
    confidence[0, 0, 1, 2] = 1.0
    coarse, fine = position_weights(confidence, 2, 2), position_weights(confidence, 8, 8)
    assert coarse[0, 0].argmax() == 1
    assert fine[0, 0, 2:4, 4:6].min() == fine.max()
    for weights in (coarse, fine):
        assert weights.mean() == pytest.approx(1.0)
        assert weights.max() / weights.min() == pytest.approx((1 + BACKGROUND) / BACKGROUND)


def test_error_shrinks_as_timesteps_grow(graph: Graph, grid: Tensor) -> None:
    ann = Runner(graph)(grid)

    def error(timesteps: int) -> float:
        snn, _ = SpikingNetwork(graph, spiking(graph, grid, timesteps, 4)).run(grid)
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(ann, snn, strict=True))

    errors = [error(timesteps) for timesteps in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2]


def test_bursts_are_what_makes_few_timesteps_work(graph: Graph, grid: Tensor) -> None:
    ann = Runner(graph)(grid)

    def error(phi: int) -> float:
        snn, _ = SpikingNetwork(graph, spiking(graph, grid, 1, phi)).run(grid)
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(ann, snn, strict=True))

    assert error(8) < 0.3 * error(1)


def test_what_is_not_finite_is_not_dead() -> None:
    found = _with_dead(torch.tensor([1.0, 0.0, 1e-9, torch.nan, torch.inf, 2.0])).tolist()
    assert found[:3] == [1.0, 2.0, 2.0]
    assert math.isnan(found[3])
    assert found[4:] == [math.inf, 2.0]
    assert _with_dead(torch.zeros(2)).tolist() == [1.0, 1.0]


def test_dead_channel_and_dead_layer_give_no_nan(graph: Graph, grid: Tensor) -> None:
    graph.tensors["deep.conv.weight"][:2] = 0
    graph.tensors["deep.conv.bias"][:2] = torch.tensor([-1, 2**-24])  # one of them has the smallest activation there is
    graph.tensors["down.conv.weight"][:] = 0
    graph.tensors["down.conv.bias"][:] = -1
    parameters = spiking(graph, grid, 2, 4)
    outputs, stats = SpikingNetwork(graph, parameters).run(grid)
    assert all((layer.theta > 1e-6 * layer.theta.max()).all() for layer in parameters.neurons.values())
    assert all(torch.isfinite(output).all() for output in outputs)
    assert sum(layer.spikes.sum() for layer in stats.layers if layer.name.startswith("down")) == 0


def test_an_ann_that_is_not_finite_is_refused(graph: Graph, grid: Tensor) -> None:
    graph.tensors["deep.conv.bias"][0] = float("inf")
    with pytest.raises(ConversionError, match=r"deep\.conv.*not finite"):
        spiking(graph, grid, 1, 4)


def test_every_layer_spikes_and_only_readouts_do_not(graph: Graph, grid: Tensor) -> None:
    """The seed leaves the head and the shortcuts analogue; here every relu has neurons and every relu has spikes."""
    parameters = spiking(graph, grid, 1, 8)
    assert set(parameters.neurons) == {node.name for node in graph.nodes if node.op == "relu"}
    _, stats = SpikingNetwork(graph, parameters).run(grid)
    assert {layer.name for layer in stats.layers if layer.kind == "neuron" and layer.spikes.sum() > 0} == set(
        parameters.neurons
    )
