"""Thresholds and shifts fitted by gradient to what the detector says: the last step of a calibration, if asked for.

Layer by layer, thresholds are those of least squared error; but what counts is how far the detector's output has moved in the end.
That divergence (sensitivity.py) is followed downhill on training windows, without labels, and without touching a weight: what is fitted are
a layer's thresholds and shifts, and the read-out's shifts. Rounding passes gradients through, so that a threshold feels both its
rounding and its clipping (as in Esser et al., "Learned Step Size Quantization", ICLR 2020).

The neurons' response is that to a constant current, clip(floor(a T / theta + 1/2), 0, T phi) theta / T: exactly what they emit at T = 1, and
what signed neurons have emitted in the end at T > 1 unless a burst limit stopped them on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from data.errors import ConversionError
from models.detectors.postprocess import HeadSpec
from models.graph import Graph, Node, Runner
from models.spiking.convert.sensitivity import divergence
from models.spiking.network import SpikingParameters

RATE = 0.02
"""Of Adam: relative steps of thresholds, and steps of shifts in thresholds; falls to 0 along a cosine."""
BATCH = 8


def tune(
    ann: Graph,
    spiking: Graph,
    parameters: SpikingParameters,
    grids: Tensor,
    spec: HeadSpec,
    steps: int,
    progress: Callable[[], object] = lambda: None,
) -> SpikingParameters:
    """The parameters after so many steps.

    Args:
        ann: the network to be like.
        spiking: the one that spikes.
        parameters: its neurons, calibrated.
        grids: `(N, 2 * bins, H, W)` float32 of training windows.
        spec: what the outputs mean.
        steps: batches of BATCH grids.
        progress: called after each.

    Raises:
        ConversionError: neurons of a LeakyReLU, whose response this is not.
    """
    if any(layer.negative_slope for layer in parameters.neurons.values()):
        raise ConversionError("thresholds of LeakyReLU neurons cannot be tuned: leave --tune out")
    network, target = SteadyNetwork(spiking, parameters), Runner(_plain(ann))
    optimizer = torch.optim.Adam(network.fitted, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = grids[torch.randperm(len(grids), generator=draw)[:BATCH]]
        with torch.no_grad():
            wanted = target.compute(batch)
        with torch.enable_grad():
            moved = divergence(wanted, network.compute(batch), spec)
            optimizer.zero_grad()
            moved.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress()
    return network.parameters


class SteadyNetwork(Runner):
    """The spiking network as a function of its thresholds and shifts that gradients pass through.

    Args:
        graph: the network.
        parameters: where they begin.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        super().__init__(_plain(graph))
        self._begin = parameters
        self._log_theta = {n: layer.theta.log().clone().requires_grad_() for n, layer in parameters.neurons.items()}
        self._shift = {n: (layer.shift / layer.theta).clone().requires_grad_() for n, layer in parameters.neurons.items()}
        self._readout = {name: shift.clone().requires_grad_() for name, shift in parameters.readout_shift.items()}

    @property
    def fitted(self) -> list[Tensor]:
        """Everything that may be changed."""
        return [*self._log_theta.values(), *self._shift.values(), *self._readout.values()]

    @property
    def parameters(self) -> SpikingParameters:
        """As the spiking network has them."""
        neurons = {}
        for name, layer in self._begin.neurons.items():
            theta = self._log_theta[name].detach().exp()
            neurons[name] = replace(layer, theta=theta, shift=self._shift[name].detach() * theta)
        readout = {name: shift.detach().clone() for name, shift in self._readout.items()}
        return SpikingParameters(self._begin.timesteps, neurons, readout)

    def relu(self, node: Node, x: Tensor) -> Tensor:
        timesteps, theta = self._begin.timesteps, self._log_theta[node.name].exp()[:, None, None]
        layer = replace(self._begin.neurons[node.name], theta=self._log_theta[node.name].detach().exp())
        most = timesteps * layer.burst_limits[:, None, None]
        driven = timesteps * (x / theta + self._shift[node.name][:, None, None])
        clipped = torch.minimum(driven.clamp(min=0), most)
        spikes = torch.minimum(torch.floor(driven + 0.5).clamp(min=0), most)
        return (clipped + (spikes - clipped).detach()) * theta / timesteps

    def read_out(self, name: str, value: Tensor) -> Tensor:
        return value + self._readout[name][:, None, None]


def _plain(graph: Graph) -> Graph:
    """With tensors that autograd accepts."""
    return Graph(graph.nodes, graph.outputs, {name: tensor.clone() for name, tensor in graph.tensors.items()})
