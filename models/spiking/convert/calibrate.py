"""Training-free calibration: thresholds, current shifts and 8-bit weights, one layer after another.

`calibrate` walks the graph once. At every convolution it rounds the weights, because the thresholds of the spikes they are
multiplied by are known by then; at every layer of neurons it chooses thresholds for the current that really arrives, rounds
the weights that drive them again, in whole steps of these thresholds (integer_form.py), and chooses a shift. So
each layer makes up for the errors of those before it and for its own rounding. The reference at every layer is the ANN's
activation for the same grids (`record_targets`). There are three levels:

none       Thresholds only, fitted to the ANN's own currents. Per channel, the threshold is the one of a grid (1 ... 0.01 of the
           largest activation, geometric) with the least weighted squared error between the activation a and the output of a
           neuron driven by a constant current, clip(floor(a T / theta + 1/2), 0, T phi) theta / T (Wang et al., arXiv
           2311.14265, threshold search; the paper's formula lacks the 1/2, which comes from starting at half a threshold;
           with negative spikes the lower bound of the clip is -T phi).
light      Thresholds fitted to the currents that arrive, and a constant per channel added to the current, so that the
           mean output equals the ANN's (same paper).
advanced   The same as light here; gradient descent through the whole network follows (distil.py).

Positions are weighted by the confidence of the ANN's output (importance.py). Networks trained with rounding can use the
thresholds they were trained with instead of a search (`typical_thresholds`); all positions then have equal weight, as in
training.
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
from evburst.models.activation_regulariser import ROUNDING_LEVELS
from evburst.models.graph import Graph, Node, Runner, activation
from evburst.models.spiking.convert.importance import position_weights
from evburst.models.spiking.integer_form import (
    Driven,
    can_be_whole,
    constant_current,
    driven,
    steps_of,
    whole_biases,
    whole_weights,
)
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from evburst.models.spiking.neurons import DIVISION_TOLERANCE, NeuronLayer, burst_scan_fused, over_time
from evburst.models.spiking.rounding import Sizes, input_sizes, rounded

LEVELS = {"none": False, "light": True, "advanced": True}
"""Whether calibration corrects: thresholds are fitted to the spiking network's currents instead of the ANN's, and currents
are shifted so that mean outputs equal the ANN's."""
RATIOS = np.geomspace(1.0, 0.01, 48)
"""Candidate thresholds as shares of a channel's largest activation. The paper's grid ends at 0.05: too coarse for long
tails and T phi >= 16."""
LIGHT_ROUNDS = 4
"""Fixed-point iterations for a shift."""
TYPICAL = 0.35
"""Threshold as a share of a channel's typical activation, for the number of levels that training rounds to; training draws
0.25 to 0.65."""
MOST_DOUBLINGS = 5
"""Largest power of two between thresholds whose spikes are added: integer weights grow by as many bits."""


@dataclass(frozen=True)
class Choice:
    """Burst limit and threshold rule of one layer of neurons.

    Attributes:
        phi: maximum number of spikes per timestep.
        rho: factor on the fitted threshold; above 1, fewer spikes and coarser steps.
        signed: whether negative spikes may take back spikes fired too early.
        typical: whether thresholds follow each channel's typical activation instead of the least error, with equal
            position weights.
    """

    phi: int
    rho: float = 1.0
    signed: bool = False
    typical: bool = False


@dataclass(frozen=True)
class Targets:
    """The ANN's currents for the calibration grids.

    Attributes:
        grids: `(N, 2 * bins, H, W)` float32.
        currents: by node, the output of every convolution and the input of every relu that reads something else (a residual
            sum); float16, whose error is far below a threshold and which halves the memory.
        confidence: see importance.confidence; None weights all positions equally.
    """

    grids: Tensor
    currents: dict[str, Tensor]
    confidence: Tensor | None

    def weights(self, height: int, width: int) -> Tensor:
        """Position weights `(N, 1, height, width)` float32 with mean 1."""
        if self.confidence is None:
            return torch.ones(len(self.grids), 1, height, width)
        return position_weights(self.confidence, height, width)


def record_targets(graph: Graph, grids: Tensor, confidence: Tensor | None = None) -> Targets:
    """Run the ANN on the calibration grids and record its currents.

    Raises:
        ConversionError: an activation of the ANN is not finite.
    """
    currents: dict[str, Tensor] = {}
    needed = {node.inputs[0] for node in graph.nodes if node.op == "relu"}
    needed |= {node.name for node in graph.nodes if node.op == "conv"}

    class Recorder(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if not torch.isfinite(value).all():
                raise ConversionError(
                    f"{node.name!r}: the ANN's own output is not finite: train it again, or check its weights"
                )
            if node.name in needed:
                currents[node.name] = value.half()

    Recorder(graph)(grids)
    return Targets(grids, currents, confidence)


@torch.inference_mode()
def calibrate(
    graph: Graph,
    targets: Targets,
    timesteps: int,
    choices: Mapping[str, Choice] | Choice,
    level: str = "light",
) -> tuple[Graph, SpikingParameters]:
    """Give a folded graph neurons and 8-bit weights, in integer form.

    Args:
        graph: the ANN; not modified.
        targets: from `record_targets`; all its grids are run as one batch.
        timesteps: T.
        choices: one per relu node, by name, or one for all.
        level: a name in LEVELS.

    Returns:
        The graph with rounded weights, and its neurons.
    """
    if isinstance(choices, Choice):
        choices = {node.name: choices for node in graph.nodes if node.op == "relu"}
    if any(choice.typical for choice in choices.values()):
        targets = replace(targets, confidence=None)
    drives = {drive.relu.name: drive for drive in driven(graph)}
    readers = {conv.name for drive in drives.values() for conv in drive.convs}
    adders = {drive.add.name: drive for drive in drives.values() if drive.add}
    corrects = LEVELS[level]
    tensors, neurons, values = dict(graph.tensors), dict[str, NeuronLayer](), dict[str, Tensor]()
    sources = dict[str, Tensor]()  # what convolutions read, and spikes that are added to their currents
    network = SpikingNetwork(graph, SpikingParameters(timesteps, {}, {}))
    network.begin(targets.grids)
    for node in graph.nodes:
        if node.op == "conv":
            if node.name in readers:
                sources[node.name] = values[node.inputs[0]]
            if (read := input_sizes(graph, node, network.sizes)) is not None:
                tensors[f"{node.name}.weight"] = rounded(graph.tensors[f"{node.name}.weight"], read)
            network = network.with_layers(tensors, neurons)
        elif node.name in adders:
            sources |= {name: values[name] for name in adders[node.name].spikes}
        elif node.op == "relu":
            fit = _Layer(node, targets, timesteps, choices[node.name], corrects)
            drive = drives.get(node.name)
            layer = fit.fitted(values[node.inputs[0]], _sizes_added_to(graph, node, network.sizes))
            if drive and can_be_whole(graph, drive, network.sizes):
                own, layer, values[node.inputs[0]] = _whole(network, drive, graph, fit, layer, sources)
                tensors |= own
            else:
                layer = fit.shifted(values[node.inputs[0]], layer)
            for name in (*(conv.name for conv in drive.convs), *drive.spikes) if drive else ():
                sources.pop(name)
            neurons[node.name] = layer
            network = network.with_layers(tensors, neurons)
        network.advance(node, values, targets.grids)
    calibrated = Graph(graph.nodes, graph.outputs, tensors)
    shifts = {name: _readout_shift(targets, name, values[name], corrects) for name in graph.outputs}
    return calibrated, SpikingParameters(timesteps, neurons, shifts)


def _whole(
    network: SpikingNetwork, drive: Driven, graph: Graph, fit: _Layer, layer: NeuronLayer, sources: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], NeuronLayer, Tensor]:
    """A layer in `integer_form`: its tensors, its neurons, and the current that drives them.

    Args:
        network: with the layers before it.
        drive: what drives it.
        graph: with the weights that are rounded.
        fit, layer: its neurons, without a shift.
        sources: what its convolutions read, and the spikes that are added to their currents.
    """
    step, theta = steps_of(graph, drive, layer, network.sizes, network.parameters.timesteps)
    tensors = whole_weights(graph, drive, network.sizes, step)
    rounded_network = network.with_layers(network.graph.tensors | tensors, network.parameters.neurons)
    parts = {conv.name: rounded_network.conv(conv, sources[conv.name]) for conv in drive.convs}
    if drive.add is None:
        (current,) = parts.values()
    else:
        parts |= {name: sources[name] for name in drive.spikes}
        current = network.add(drive.add, *(parts[name] for name in drive.add.inputs))
    layer = fit.shifted(current, replace(layer, theta=theta))
    constant = constant_current(graph, drive)
    tensors |= whole_biases(drive, constant + layer.shift, step)
    change = tensors[f"{drive.convs[0].name}.bias"] - constant
    return tensors, replace(layer, shift=torch.zeros_like(layer.shift)), current + change[:, None, None]


def _readout_shift(targets: Targets, name: str, value: Tensor, corrects: bool) -> Tensor:
    """`(C,)` what the averaged read-out `(T * N, C, h, w)` lacks, or zeros."""
    expected = targets.currents[name].float()
    mean = value.reshape(-1, *expected.shape).mean(0)
    gap = ((expected - mean) * targets.weights(*expected.shape[-2:])).mean((0, 2, 3))
    return gap if corrects else torch.zeros_like(gap)


def _sizes_added_to(graph: Graph, node: Node, sizes: Sizes) -> list[Tensor]:
    """Thresholds, `(C,)` each, of the spikes that a relu's spikes are added to, where they are known already."""
    names = [name for add in graph.nodes if add.op == "add" and node.name in add.inputs for name in add.inputs]
    return [size for name in names if name != node.name and (size := sizes[name]) is not None]


class _Layer:
    """Fits one layer of neurons to the current that arrives.

    Args:
        node: the relu.
        targets, timesteps: as for `calibrate`.
        choice: of this layer.
        corrects: see LEVELS.
    """

    def __init__(self, node: Node, targets: Targets, timesteps: int, choice: Choice, corrects: bool) -> None:
        self._node, self._timesteps, self._choice, self._corrects = node, timesteps, choice, corrects
        self._expected = activation(targets.currents[node.inputs[0]].float(), **node.attrs)
        self._weights = targets.weights(*self._expected.shape[-2:])

    def fitted(self, current: Tensor, sizes: list[Tensor]) -> NeuronLayer:
        """The neurons, without a shift.

        Args:
            current: `(T * N, C, h, w)`, or `(N, C, h, w)` if it is the same at every timestep.
            sizes: of `_sizes_added_to`.
        """
        current = current.reshape(-1, *self._expected.shape).contiguous()
        slope = self._node.attrs.get("negative_slope", 0.0)
        driving = activation(over_time(current), negative_slope=slope) if self._corrects else self._expected
        theta = thresholds_for(self._node, self._choice, driving, self._expected, self._weights, self._timesteps)
        return _with_common_size(raised(self._node, theta, self._choice), sizes)

    def shifted(self, current: Tensor, layer: NeuronLayer) -> NeuronLayer:
        """The layer with the shift that brings its weighted mean output closest to the expected one, if the level corrects."""
        if not self._corrects:
            return layer
        current = current.reshape(-1, *self._expected.shape).contiguous()
        target, best_gap = (self._expected * self._weights).mean((0, 2, 3)), torch.full_like(layer.theta, torch.inf)
        best, uncounted = layer, torch.zeros(current.shape[2:])
        for _ in range(LIGHT_ROUNDS):
            out, _ = burst_scan_fused(current, layer, self._timesteps, uncounted)
            missing = target - (over_time(out) * self._weights).mean((0, 2, 3))
            better = missing.abs() < best_gap
            best_gap = torch.where(better, missing.abs(), best_gap)
            best = replace(layer, shift=torch.where(better, layer.shift, best.shift))
            layer = replace(layer, shift=layer.shift + missing)
        return best


def _with_common_size(layer: NeuronLayer, sizes: list[Tensor]) -> NeuronLayer:
    """The layer with thresholds rounded to the nearest power of two of those its spikes are added to.

    The sum then has a size of its own (see `spike_sizes`), and one 8-bit weight fits all of its summands.
    """
    for size in sizes:
        power = torch.round(torch.log2(layer.theta / size)).clamp(-MOST_DOUBLINGS, MOST_DOUBLINGS)
        power -= (size * 2.0**power > layer.ceiling).float()
        layer = replace(layer, theta=size * 2.0**power)
    return layer


def raised(node: Node, theta: Tensor, choice: Choice) -> NeuronLayer:
    """Neurons of a relu with thresholds raised by the choice's factor, but not above the activation's ceiling."""
    theta = (theta * choice.rho).clamp(max=node.attrs.get("ceiling", math.inf))
    return NeuronLayer(theta, torch.zeros_like(theta), choice.phi, **node.attrs, takes_back=choice.signed)


def thresholds_for(
    node: Node, choice: Choice, currents: Tensor, activations: Tensor, weights: Tensor, timesteps: int
) -> Tensor:
    """`(C,)` float32 thresholds of a relu's neurons before the choice's factor; for the arguments see `best_thresholds`."""
    if choice.typical:
        return typical_thresholds(activations, timesteps, choice.phi)
    return best_thresholds(currents, activations, weights, timesteps, choice.phi, node.attrs.get("ceiling", math.inf))[0]


def best_thresholds(
    currents: Tensor, activations: Tensor, weights: Tensor, timesteps: int, phi: int, ceiling: float = math.inf
) -> tuple[Tensor, np.ndarray]:
    """Search the thresholds of least weighted squared error.

    A dead channel gets the layer's largest threshold, so that it does not fire on noise.

    Args:
        currents: `(N, C, h, w)` arriving currents, after the activation's slope.
        activations: `(N, C, h, w)` expected outputs.
        weights: `(N, 1, h, w)`.
        timesteps, phi: T and the burst limit.
        ceiling: of the activation, see NeuronLayer.

    Returns:
        Thresholds `(C,)` float32, and the error of every candidate, `(C, len(RATIOS))`.
    """
    flat = [x.transpose(0, 1).flatten(1).float().contiguous().numpy() for x in (currents, activations)]
    largest = np.abs(flat[1]).max(1).astype(np.float64)
    errors = np.zeros((len(largest), len(RATIOS)))
    _squared_errors(*flat, weights.flatten().float().numpy(), largest, RATIOS, timesteps, phi, ceiling, errors)
    return _with_dead(torch.from_numpy((RATIOS[errors.argmin(1)] * largest).astype(np.float32))), errors


def typical_thresholds(activations: Tensor, timesteps: int, phi: int) -> Tensor:
    """Thresholds `(C,)` float32 in units of mean a^2 / mean |a|, as in training (models/activation_regulariser.py).

    A network trained that way is used to the clipping of these thresholds. Where there are more levels than in training,
    two thirds of them (in logarithms) make steps finer and one third extends the range, as the least error does.

    Args:
        activations: `(N, C, h, w)` expected outputs.
        timesteps, phi: T and the burst limit.
    """
    square, mean = activations.square().mean((0, 2, 3)), activations.abs().mean((0, 2, 3))
    share = TYPICAL * (ROUNDING_LEVELS / (timesteps * phi)) ** (2 / 3)
    return _with_dead(timesteps * share * torch.where(mean > 0, square / mean, 0.0))


_LEAST_SHARE, _LEAST = 1e-6, 1e-8
"""Thresholds at most this share of a layer's largest, or this small, are those of dead channels. A weights file holds none
below the second (models/layout.py)."""


def _with_dead(theta: Tensor) -> Tensor:
    """Thresholds in which a dead channel has the layer's largest: one whose threshold is 0, or nothing beside the largest.

    Numbers that are not finite stay, so that they are found.
    """
    largest = float(torch.where(theta.isfinite(), theta, 0.0).max())
    dead = theta <= max(_LEAST_SHARE * largest, _LEAST)
    return torch.where(dead, largest if largest > _LEAST else 1.0, theta)


@njit(cache=True, parallel=True, fastmath={"reassoc", "nsz"})
def _squared_errors(currents, expected, weights, largest, ratios, timesteps, phi, ceiling, errors):  # type: ignore[no-untyped-def]
    """errors[c, r] = weighted sum of (expected - response to the current of a neuron with threshold ratios[r] *
    largest[c])**2."""
    channels, size = expected.shape
    half, one = np.float32(0.5), np.float32(1)
    for c in numba.prange(channels):
        if largest[c] <= 0:
            continue
        for r in range(len(ratios)):
            step = np.float32(ratios[r] * largest[c] / timesteps)
            inverse = one / step
            levels = np.float32(
                timesteps * min(phi, max(1.0, np.floor(ceiling / (ratios[r] * largest[c]) + DIVISION_TOLERANCE)))
            )
            total = 0.0
            for k in range(size):
                emitted = min(max(np.floor(currents[c, k] * inverse + half), -levels), levels) * step
                difference = expected[c, k] - emitted
                total += weights[k] * difference * difference
            errors[c, r] = total
