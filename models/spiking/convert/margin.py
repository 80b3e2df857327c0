"""The margin of silence: a last step of conversion that makes few events change few neurons.

In a window without events, every neuron of a channel gets the same current, but near borders, and fires n0 spikes. If that
current lies just beside the one at which it would fire another number, a single event far away is enough to change all of the
channel, and everything behind it. Here, currents are shifted until they are at least a margin away:

    level = T c0 / theta    n0 - 1/2 + margin <= level <= n0 + 1/2 - margin

where c0 is the current in silence, shift included. n0 stays, so that in silence later layers get what they got before. There is
no lower bound for n0 = 0, and no upper one for neurons that fire all they can.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from evburst.models.graph import Graph, Node
from evburst.models.spiking.integer_form import integer_form
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer, over_time


def keep_margin(
    graph: Graph, parameters: SpikingParameters, size: tuple[int, int], margin: float
) -> tuple[Graph, SpikingParameters]:
    """Shift the currents of all layers; neurons of a LeakyReLU, which are never silent, stay as they are.

    Args:
        graph, parameters: the spiking network; they are not modified.
        size: (H, W) of the grids, in whose middle silence is measured.
        margin: in thresholds, 0 to 0.5.

    Returns:
        The network in integer form, if it was: a shift is a whole number of steps.
    """
    network = _Shifting(graph, replace(parameters, neurons=dict(parameters.neurons)), margin)
    silent = torch.zeros(1, graph.channels, *size)
    network.begin(silent)
    network(silent)
    return integer_form(graph, network.parameters)


class _Shifting(SpikingNetwork):
    """The reference engine, which shifts the currents of every layer as it gets there."""

    def __init__(self, graph: Graph, parameters: SpikingParameters, margin: float) -> None:
        super().__init__(graph, parameters)
        self._margin = margin

    def relu(self, node: Node, x: Tensor) -> Tensor:
        layer, middle = self.parameters.neurons[node.name], over_time(x)[:, x.shape[2] // 2, x.shape[3] // 2]
        self.parameters.neurons[node.name] = with_margin(layer, middle, self._timesteps, self._margin)
        return super().relu(node, x)


def with_margin(layer: NeuronLayer, current: Tensor, timesteps: int, margin: float) -> NeuronLayer:
    """Shift the currents of a layer.

    Args:
        layer: the neurons.
        current: `(C,)` mean over the timesteps in a window without events, without the layer's shift.
        timesteps: T.
        margin: in thresholds.
    """
    if layer.negative_slope:
        return layer
    level, most = timesteps * (current + layer.shift) / layer.theta, timesteps * layer.burst_limits
    spikes = torch.floor(level + 0.5).clamp(min=0).minimum(most)
    lowest = torch.where(spikes > 0, spikes - 0.5 + margin, -torch.inf)
    highest = torch.where(spikes < most, spikes + 0.5 - margin, torch.inf)
    change = level.maximum(lowest).minimum(highest) - level
    return replace(layer, shift=layer.shift + change * layer.theta / timesteps)
