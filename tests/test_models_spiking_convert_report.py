"""The report of a conversion: the error of a layer's own rounding, apart from what it inherits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evburst.models.graph import Graph
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.report import conversion_report
from evburst.models.spiking.network import SpikingParameters
from tests.test_models_spiking_convert_distil import Detects, DetectsOtherwise, traced

TIMESTEPS = 2


@pytest.fixture(scope="module")
def grids() -> Tensor:
    return torch.poisson(torch.full((6, 4, 16, 16), 0.7), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=[Detects, DetectsOtherwise])
def converted(request: pytest.FixtureRequest, grids: Tensor) -> tuple[Graph, Graph, SpikingParameters]:
    """ANN, spiking graph and its fine thresholds."""
    ann = traced(request.param)
    return ann, *calibrate(ann, record_targets(ann, grids), TIMESTEPS, Choice(64))


def relus(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes if node.op == "relu"]


def test_the_layer_that_rounds_most_is_marked(converted: tuple[Graph, Graph, SpikingParameters], grids: Tensor) -> None:
    ann, snn, parameters = converted
    for coarse in relus(ann):
        layer = parameters.neurons[coarse]
        neurons = parameters.neurons | {coarse: replace(layer, theta=16 * layer.theta)}
        report = conversion_report(ann, snn, replace(parameters, neurons=neurons), grids)
        assert report.worst.name == coarse
        (marked,) = [line for line in report.table().splitlines() if "loses most" in line]
        assert marked.startswith(coarse)


def test_the_layer_whose_burst_limit_is_too_low_is_marked(
    converted: tuple[Graph, Graph, SpikingParameters], grids: Tensor
) -> None:
    ann, snn, parameters = converted
    deepest = relus(ann)[-1]
    neurons = parameters.neurons | {deepest: replace(parameters.neurons[deepest], phi=1)}
    assert conversion_report(ann, snn, replace(parameters, neurons=neurons), grids).worst.name == deepest


def test_errors_of_a_layer_of_known_values(grids: Tensor) -> None:
    """A threshold above twice the largest current silences the first layer: it loses all that arrives."""
    ann = traced(Detects)
    snn, parameters = calibrate(ann, record_targets(ann, grids), 1, Choice(64), "none")
    first = relus(ann)[0]
    silent = replace(parameters.neurons[first], theta=torch.full_like(parameters.neurons[first].theta, 1e6))
    report = conversion_report(ann, snn, replace(parameters, neurons=parameters.neurons | {first: silent}), grids)
    layer = next(layer for layer in report.layers if layer.name == first)
    assert (layer.spikes_per_neuron, layer.share) == (0, 0)
    assert layer.own_error == pytest.approx(1, abs=0.02)  # weights have 8 bits
    assert layer.sqnr_db == pytest.approx(0, abs=0.1)


def test_outputs_add_no_error_and_silence_is_finite(grids: Tensor) -> None:
    ann = traced(Detects)
    snn, parameters = calibrate(ann, record_targets(ann, grids), 1, Choice(8))
    report = conversion_report(ann, snn, parameters, torch.zeros_like(grids))
    assert all(layer.own_error == 0 and layer.phi == 0 for layer in report.layers if layer.name in ann.outputs)
    assert all(math.isfinite(value) for layer in report.layers for value in (layer.own_error, layer.sqnr_db, layer.share))
