"""The margin of silence: currents without events keep a distance from other numbers of spikes, which stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.models.graph import Graph, Node
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.margin import keep_margin, with_margin
from evburst.models.spiking.integer_form import is_integer
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer, burst_scan
from tests.conftest import EveryOperation, FurtherOperations, Residual, drawn


class Levels(SpikingNetwork):
    """The reference, with the current over all timesteps of the pixel in the middle, in thresholds; not of a LeakyReLU."""

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        super().__init__(graph, parameters)
        self.levels: dict[str, Tensor] = {}

    def relu(self, node: Node, x: Tensor) -> Tensor:
        layer = self.parameters.neurons[node.name]
        if not layer.negative_slope:
            middle = x[:, :, x.shape[2] // 2, x.shape[3] // 2].mean(0) + layer.shift
            self.levels[node.name] = self.parameters.timesteps * middle / layer.theta
        return super().relu(node, x)


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("kind", [EveryOperation, FurtherOperations, Residual])
def test_currents_in_silence_keep_the_margin(kind: type[nn.Module], timesteps: int, grid: Tensor) -> None:
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16))
    before = calibrate(graph, record_targets(graph, grid), timesteps, Choice(4))
    after = keep_margin(*before, (64, 64), 0.3)
    assert is_integer(*after)
    silent, levels = torch.zeros(1, 4, 64, 64), []
    for converted in (before, after):
        network = Levels(*converted)
        network.run(silent)
        levels.append(network.levels)
    kept = 0
    for name, level in levels[1].items():
        most = timesteps * after[1].neurons[name].burst_limits
        spikes = torch.round(level).clamp(min=0).minimum(most)
        assert torch.equal(spikes, torch.floor(levels[0][name] + 0.5).clamp(min=0).minimum(most)), name
        assert (level[spikes > 0] > spikes[spikes > 0] - 0.25).all(), name
        assert (level[spikes < most] < spikes[spikes < most] + 0.25).all(), name
        kept += int(((levels[0][name] - level).abs() < 0.02).sum())
    assert kept > 0


def test_scattered_events_change_fewer_neurons(grid: Tensor) -> None:
    graph = trace(drawn(EveryOperation), torch.zeros(1, 4, 16, 16))
    converted = calibrate(graph, record_targets(graph, grid), 1, Choice(4))
    few = torch.poisson(torch.full_like(grid, 0.02), generator=torch.Generator().manual_seed(1))

    def operations(margin: float) -> float:
        stats = SpikingNetwork(*keep_margin(*converted, (12, 20), margin)).run(few)[1]
        return sum(float(np.sum(layer.synaptic_ops_beyond_silence)) for layer in stats.layers if layer.kind == "neuron")

    none, some, half = map(operations, (0.0, 0.25, 0.5))
    assert 0 < half < some < none
    same = keep_margin(*converted, (12, 20), 0.0)
    assert all(torch.equal(same[0].tensors[name], tensor) for name, tensor in converted[0].tensors.items())


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("takes_back", [False, True])
def test_the_margin_is_a_change_that_changes_nothing(timesteps: int, takes_back: bool) -> None:
    """Less of a change of the current leaves every count as it is; neurons at their burst limit and silent ones stay."""
    current = torch.linspace(-3, 7, 101)
    layer = NeuronLayer(torch.full((101,), 0.7), torch.full((101,), 0.1), 3, takes_back=takes_back)
    moved = with_margin(layer, current, timesteps, 0.2)

    def total(added: float) -> Tensor:
        one = (current + added * layer.theta / timesteps)[None, None, :, None, None]
        return burst_scan(one.repeat(timesteps, 1, 1, 1, 1), moved, timesteps).sum(0)

    assert torch.equal(total(0.19), total(-0.19))
    level = timesteps * (current + 0.1) / 0.7
    assert torch.equal(moved.shift[level < 0], layer.shift[level < 0])
    assert torch.equal(moved.shift[level > timesteps * 3], layer.shift[level > timesteps * 3])
    leaky = NeuronLayer(layer.theta, layer.shift, 3, negative_slope=0.1)
    assert with_margin(leaky, current, timesteps, 0.2) is leaky
