"""Training-free calibration, layer by layer, in order, against what the ANN's layer does with the same grids.

Three levels, each with what the one before does:

none       thresholds: per channel, the theta of a grid (1 ... 0.01, geometric) x the largest activation that minimises the weighted
           squared error between the activation a and what a neuron driven by a constant current emits,
           clip(floor(i T / theta + 1/2), 0, T phi) theta / T  (Wang et al., arXiv 2311.14265, threshold search; the paper's
           formula has no 1/2: our neurons start at half a threshold, and this is their exact response; where there are negative
           spikes, the lower end of the clip is -T phi);
light      a constant per channel is added to the current so that the mean output is the ANN's (the same paper);
advanced   gradient descent of the whole network goes on from there (distil.py); here it is the same as light.

At every level weights are rounded to 8 bits as soon as the thresholds they meet are known (models/spiking/rounding.py): what follows is
calibrated to the currents that arrive. Positions are weighted by the ANN's own confidence (importance.py). Thresholds are searched for the currents that arrive,
with `none` for the ANN's own. Networks that were trained with rounding may have the thresholds they were trained with instead, without
search (`typical_thresholds`), and all positions count alike, as they did then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numba
import numpy as np
import torch
from torch import Tensor

from evburst.data._numba import njit
from evburst.data.errors import ConversionError
from evburst.models.burst_aware import LEVELS as ROUNDING_LEVELS
from evburst.models.graph import Graph, Node, Runner, activation
from evburst.models.spiking.convert.importance import position_weights
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, signal_thresholds
from evburst.models.spiking.neurons import NeuronLayer, burst_scan_fused, over_time
from evburst.models.spiking.rounding import rounded, spike_values

LEVELS = ("none", "light", "advanced")
RATIOS = np.geomspace(1.0, 0.01, 48)
"""Of a threshold to its channel's largest activation. The paper's grid ends at 0.05: too coarse for long tails and T phi >= 16."""
LIGHT_ROUNDS = 4
TYPICAL = 0.35
"""Threshold in units of a channel's typical activation, for as many levels as training rounds to; it draws from 0.25 to 0.65."""
MOST_DOUBLINGS = 5
"""Between thresholds whose spikes are added: integer weights grow by as many bits."""


@dataclass(frozen=True)
class Choice:
    """What a layer of neurons is allowed and told.

    Attributes:
        phi: most spikes in one timestep.
        rho: factor on the threshold found for it: fewer spikes, coarser steps.
        signed: whether spikes that were fired too early may be taken back by negative ones.
        typical: whether thresholds follow each channel's typical activation instead of the least error; positions then count alike.
    """

    phi: int
    rho: float = 1.0
    signed: bool = False
    typical: bool = False


@dataclass(frozen=True)
class Targets:
    """What the ANN does with the calibration grids.

    Attributes:
        grids: `(N, 2 * bins, H, W)` float32.
        currents: output of every convolution, and what every relu reads where that is something else (a residual sum);
            float16 (half the memory; the error is far below a threshold's).
        sure: see importance.confidence; None weighs all positions alike.
    """

    grids: Tensor
    currents: dict[str, Tensor]
    sure: Tensor | None

    def weights(self, height: int, width: int) -> Tensor:
        """`(N, 1, height, width)`, 1 in the mean."""
        if self.sure is None:
            return torch.ones(len(self.grids), 1, height, width)
        return position_weights(self.sure, height, width)


def record_targets(graph: Graph, grids: Tensor, sure: Tensor | None = None) -> Targets:
    """Run the ANN over the calibration grids; raises ConversionError if one of its activations is not finite."""
    currents: dict[str, Tensor] = {}
    needed = {node.inputs[0] for node in graph.nodes if node.op == "relu"}
    needed |= {node.name for node in graph.nodes if node.op == "conv"}

    class Recorder(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if not torch.isfinite(value).all():
                raise ConversionError(f"{node.name!r}: the ANN's own output is not finite; its weights are of no use")
            if node.name in needed:
                currents[node.name] = value.half()

    Recorder(graph)(grids)
    return Targets(grids, currents, sure)


def calibrate(
    graph: Graph, targets: Targets, timesteps: int, choices: Mapping[str, Choice] | Choice, level: str = "light"
) -> tuple[Graph, SpikingParameters]:
    """Neurons for a folded graph.

    Args:
        graph: the network.
        targets: what `record_targets` found; all its grids are run at once.
        timesteps: T.
        choices: burst limit and threshold factor of every relu node, or one for all.
        level: one of LEVELS.

    Returns:
        The graph that spikes (weights rounded), and its neurons.
    """
    if isinstance(choices, Choice):
        choices = {node.name: choices for node in graph.nodes if node.op == "relu"}
    network = _Calibration(graph, targets, timesteps, choices, level)
    network.run(targets.grids)
    return network.graph, SpikingParameters(timesteps, network.neurons, network.shifts)


def raised(node: Node, theta: Tensor, choice: Choice) -> NeuronLayer:
    """A relu's neurons, their thresholds raised by the choice's factor, but none above the activation's ceiling."""
    theta = (theta * choice.rho).clamp(max=node.attrs.get("ceiling", math.inf))
    return NeuronLayer(theta, torch.zeros_like(theta), choice.phi, **node.attrs, takes_back=choice.signed)


def thresholds_for(
    node: Node, choice: Choice, currents: Tensor, activations: Tensor, weights: Tensor, timesteps: int
) -> Tensor:
    """`(C,)` float32 thresholds of a relu's neurons, before the choice's factor; for arguments see `best_thresholds`."""
    if choice.typical:
        return typical_thresholds(activations, timesteps, choice.phi)
    return best_thresholds(currents, activations, weights, timesteps, choice.phi, node.attrs.get("ceiling", math.inf))[0]


def best_thresholds(
    currents: Tensor, activations: Tensor, weights: Tensor, timesteps: int, phi: int, ceiling: float = math.inf
) -> tuple[Tensor, np.ndarray]:
    """`(C,)` float32 thresholds of least weighted squared error, and the error of each of RATIOS, `(C, len(RATIOS))`.

    A dead channel gets the layer's largest threshold, and never fires for nothing.

    Args:
        currents, activations: `(N, C, h, w)`, what arrives, after the activation's slopes, and what should come out.
        weights: `(N, 1, h, w)`.
        timesteps, phi: T and the burst limit.
        ceiling: of the activation, see NeuronLayer.
    """
    flat = [x.transpose(0, 1).flatten(1).float().contiguous().numpy() for x in (currents, activations)]
    largest = np.abs(flat[1]).max(1).astype(np.float64)
    errors = np.zeros((len(largest), len(RATIOS)))
    _squared_errors(*flat, weights.flatten().float().numpy(), largest, RATIOS, timesteps, phi, ceiling, errors)
    return _with_dead(torch.from_numpy((RATIOS[errors.argmin(1)] * largest).astype(np.float32))), errors


def typical_thresholds(activations: Tensor, timesteps: int, phi: int) -> Tensor:
    """`(C,)` float32 thresholds in units of mean a^2 / mean |a|, as training rounds activations (models/burst_aware.py).

    A network that was trained so has learned to live with the clipping of just these. Of levels beyond training's, two thirds (in
    logarithms) go into finer steps and one into range, as with the least error.

    Args:
        activations: `(N, C, h, w)`, what should come out.
        timesteps, phi: T and the burst limit.
    """
    square, mean = activations.square().mean((0, 2, 3)), activations.abs().mean((0, 2, 3))
    share = TYPICAL * (ROUNDING_LEVELS / (timesteps * phi)) ** (2 / 3)
    return _with_dead(timesteps * share * torch.where(mean > 0, square / mean, 0.0))


def _with_dead(theta: Tensor) -> Tensor:
    """Thresholds, dead channels' being the largest of all: they never fire for nothing."""
    return torch.where(theta > 0, theta, theta.max() if bool((theta > 0).any()) else 1.0)


class _Calibration(SpikingNetwork):
    """Runs the network once; every layer is set before its output is passed on."""

    def __init__(self, graph: Graph, targets: Targets, timesteps: int, choices: Mapping[str, Choice], level: str) -> None:
        provisional = {name: NeuronLayer(torch.ones(1), torch.zeros(1), choice.phi) for name, choice in choices.items()}
        super().__init__(Graph(graph.nodes, graph.outputs, dict(graph.tensors)), SpikingParameters(timesteps, provisional, {}))
        self._theta = signal_thresholds(graph, {})  # none is known yet
        alike = any(choice.typical for choice in choices.values())
        self._targets = replace(targets, sure=None) if alike else targets
        self._choices, self._level = choices, level
        self.neurons: dict[str, NeuronLayer] = {}
        self.shifts: dict[str, Tensor] = {}

    def input(self, node: Node, x: Tensor) -> Tensor:
        return x  # its events need not be counted here

    def conv(self, node: Node, x: Tensor) -> Tensor:
        values, weight = spike_values(self.graph, node, self._theta), f"{node.name}.weight"
        if values is not None:
            self.graph.tensors[weight] = rounded(self.graph.tensors[weight], values)
        return super().conv(node, x)

    def relu(self, node: Node, x: Tensor) -> Tensor:
        current = x.reshape(-1, self._images, *x.shape[1:]).contiguous()
        choice, timesteps = self._choices[node.name], self.parameters.timesteps
        wanted = activation(self._targets.currents[node.inputs[0]].float(), **node.attrs)
        weights = self._targets.weights(*wanted.shape[-2:])
        slope = node.attrs.get("negative_slope", 0.0)
        arriving = wanted if self._level == "none" else activation(over_time(current), negative_slope=slope)
        theta = thresholds_for(node, choice, arriving, wanted, weights, timesteps)
        layer = self._joined(node, raised(node, theta, choice))
        if self._level != "none":
            layer = self._with_equal_mean(current, layer, wanted, weights, self._fan_out[node.name])
        self.neurons[node.name] = self.parameters.neurons[node.name] = layer
        self._theta = signal_thresholds(self.graph, self.neurons)
        out, _ = burst_scan_fused(current, layer, timesteps, self._fan_out[node.name])
        return out.flatten(0, 1)

    def read_out(self, name: str, value: Tensor) -> Tensor:
        mean = value.reshape(-1, self._images, *value.shape[1:]).mean(0)
        wanted = self._targets.currents[name].float()
        weights = self._targets.weights(*wanted.shape[-2:])
        gap = ((wanted - mean) * weights).mean((0, 2, 3))
        self.shifts[name] = gap if self._level != "none" else torch.zeros_like(gap)
        return mean

    def _joined(self, node: Node, layer: NeuronLayer) -> NeuronLayer:
        """The layer with its thresholds at the nearest powers of two of those that its spikes are added to.

        The sum then has a unit of its own (see `signal_thresholds`), and one weight fits all that it consists of.
        """
        for add in self.graph.nodes:
            if add.op != "add" or node.name not in add.inputs:
                continue
            for unit in (self._theta[name] for name in add.inputs if name != node.name):
                if unit is not None:
                    power = torch.round(torch.log2(layer.theta / unit)).clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS)
                    power -= (unit * 2.0**power > layer.ceiling).float()
                    layer = replace(layer, theta=unit * 2.0**power)
        return layer

    def _with_equal_mean(
        self, current: Tensor, layer: NeuronLayer, wanted: Tensor, weights: Tensor, fan_out: Tensor
    ) -> NeuronLayer:
        """The layer with the shift that brings its weighted mean output nearest to what is wanted."""
        target, best, best_gap = (wanted * weights).mean((0, 2, 3)), layer, torch.full_like(layer.theta, torch.inf)
        for _ in range(LIGHT_ROUNDS):
            out, _ = burst_scan_fused(current, layer, self.parameters.timesteps, fan_out)
            missing = target - (over_time(out) * weights).mean((0, 2, 3))
            better = missing.abs() < best_gap
            best_gap = torch.where(better, missing.abs(), best_gap)
            best = replace(layer, shift=torch.where(better, layer.shift, best.shift))
            layer = replace(layer, shift=layer.shift + missing)
        return best


@njit(cache=True, parallel=True, fastmath={"reassoc", "nsz"})
def _squared_errors(currents, wanted, weights, largest, ratios, timesteps, phi, ceiling, errors):  # type: ignore[no-untyped-def]
    """errors[c, r] = weighted sum of (wanted - response of a neuron with threshold ratios[r] * largest[c] to the current)**2."""
    channels, size = wanted.shape
    half, one = np.float32(0.5), np.float32(1)
    for c in numba.prange(channels):
        if largest[c] <= 0:
            continue
        for r in range(len(ratios)):
            step = np.float32(ratios[r] * largest[c] / timesteps)
            inverse = one / step
            levels = np.float32(timesteps * min(phi, max(1.0, np.floor(ceiling / (ratios[r] * largest[c]) + 1e-4))))
            total = 0.0
            for k in range(size):
                emitted = min(max(np.floor(currents[c, k] * inverse + half), -levels), levels) * step
                difference = wanted[c, k] - emitted
                total += weights[k] * difference * difference
            errors[c, r] = total
