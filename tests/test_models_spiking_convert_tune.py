"""Thresholds fitted by gradient: the function that is followed is the spiking network, and following it helps on windows not seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from data.errors import ConversionError
from models.detectors.postprocess import HeadSpec
from models.graph import Graph, Runner
from models.spiking.convert.fold import trace
from models.spiking.convert.sensitivity import divergence
from models.spiking.convert.tune import SteadyNetwork, tune
from models.spiking.network import SpikingNetwork, SpikingParameters
from tests.conftest import spiking

SPEC = HeadSpec("yolo", (4,), 4, ("a", "b"))


@pytest.fixture
def graph() -> Graph:
    """Three layers with a maximum between them, a box read-out of 4 x 4 bins and one of two classes."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.middle, self.deep = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
            self.pool = nn.MaxPool2d(2, 2)
            self.boxes, self.classes = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.pool(torch.relu(self.middle(torch.relu(self.stem(x)))))
            x = x + torch.relu(self.deep(x))
            return [self.boxes(x), self.classes(x)]

    torch.manual_seed(1)
    network = Head().eval()
    with torch.no_grad():
        for conv in (network.middle, network.deep, network.boxes, network.classes):
            conv.weight *= 4
    return trace(network, torch.zeros(1, 4, 16, 16))


def grids(n: int, seed: int) -> Tensor:
    return torch.poisson(torch.full((n, 4, 32, 48), 0.7), generator=torch.Generator().manual_seed(seed)).clamp(max=10)


def moved(graph: Graph, parameters: SpikingParameters, x: Tensor) -> float:
    return float(divergence(Runner(graph)(x), SpikingNetwork(graph, parameters).run(x)[0], SPEC))


@pytest.mark.parametrize(("timesteps", "signed", "ceiling"), [(1, False, math.inf), (2, True, math.inf), (1, False, 1.0)])
def test_the_function_is_the_spiking_network(graph: Graph, timesteps: int, signed: bool, ceiling: float) -> None:
    """Its outputs, burst limits of 255 so that none stops signed neurons on the way; a ceiling is kept."""
    x = grids(2, 0)
    own = spiking(graph, x, timesteps, 127, signed=signed)
    own = replace(own, neurons={name: replace(layer, ceiling=ceiling) for name, layer in own.neurons.items()})
    expected, _ = SpikingNetwork(graph, own).run(x)
    for a, b in zip(SteadyNetwork(graph, own)(x), expected, strict=True):
        assert float((a - b).abs().mean()) < 1e-3 * float(b.abs().mean())


@pytest.mark.parametrize(("timesteps", "signed"), [(1, False), (2, True)])
def test_it_comes_nearer_to_the_ann_on_windows_it_has_not_seen(graph: Graph, timesteps: int, signed: bool) -> None:
    """From thresholds twice too high, as compression sets them."""
    seen, unseen = grids(32, 1), grids(32, 2)
    before = spiking(graph, seen, timesteps, 4, signed=signed)
    before = replace(before, neurons={name: replace(layer, theta=2 * layer.theta) for name, layer in before.neurons.items()})
    weights = {name: tensor.clone() for name, tensor in graph.tensors.items()}
    after = tune(graph, graph, before, seen, SPEC, 60)
    assert moved(graph, after, unseen) < 0.75 * moved(graph, before, unseen)
    assert all(torch.equal(graph.tensors[name], tensor) for name, tensor in weights.items())
    for name, layer in after.neurons.items():
        assert (layer.theta > 0).all()
        assert (layer.phi, layer.takes_back) == (before.neurons[name].phi, signed)
    again = tune(graph, graph, before, seen, SPEC, 60)
    assert all(torch.equal(again.neurons[name].theta, layer.theta) for name, layer in after.neurons.items())


def test_leaky_neurons_are_refused(graph: Graph) -> None:
    own = spiking(graph, grids(2, 0), 1, 4)
    own = replace(own, neurons={name: replace(layer, negative_slope=0.1) for name, layer in own.neurons.items()})
    with pytest.raises(ConversionError, match="--tune"):
        tune(graph, graph, own, grids(2, 0), SPEC, 1)
