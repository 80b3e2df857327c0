"""Rounding of weights to 8 bits, as a part of conversion: every engine runs the same network, and calibration compensates
the error.

A convolution multiplies a spike count by a weight times the scale of the count, which is the threshold of its channel. The
largest of these products becomes 127 in every output channel, and the others are rounded to whole numbers: the integers of
the int8 engine (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, symmetric and per channel).

`integer_form` then turns whole layers into integers, so that every engine fires the same spikes. In steps s of its output
channel, a neuron compares A + t B with (k - 1/2) Theta, where A is a sum of counts times 8-bit weights, B its bias and
Theta its threshold. If B is whole and Theta odd, every comparison is between a whole number and a half: no value ever
equals a threshold, both conventions of rounding a half agree, and float32 arithmetic is on the right side unless it errs by
half a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numba
import numpy as np
import torch
from torch import Tensor

from evburst.data._numba import njit
from evburst.models.graph import Graph, Node
from evburst.models.spiking.network import SpikingParameters, signal_thresholds

LARGEST = 127
MANTISSA = 16
"""Bits of a scale: its products with 8-bit integers are exact in float32, so that rounding is idempotent."""
SMALLEST_SCALE = 2.0**-67
"""Smallest scale of an output channel, that of a channel whose weights are all 0."""


def spike_values(graph: Graph, conv: Node, theta: Mapping[str, Tensor | None]) -> Tensor | None:
    """Scale of a count in each channel that a convolution reads, `(C,)`.

    None if the convolution's weights are not rounded: grouped convolutions, and those that read currents, averages, or sums
    without a common unit.

    Args:
        graph: the network.
        conv: the convolution.
        theta: of `signal_thresholds`.
    """
    if conv.attrs["groups"] != 1:
        return None
    source = conv.inputs[0]
    if any(node.name == source and node.op == "input" for node in graph.nodes):
        weight = graph.tensors[f"{conv.name}.weight"]
        return weight.new_ones(weight.shape[1])
    return theta[source]


def to_int8(weight: Tensor, values: Tensor, step: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights `(O, C, kh, kw)` as int8, and the scale of each output channel, `(O,)` float32.

    Args:
        weight: float32.
        values: from `spike_values`.
        step: the scale, from `threshold_steps`; None makes the largest product of a channel 127.
    """
    products = (weight * values[:, None, None]).double()
    if step is not None:
        integers = torch.round(products / step.double()[:, None, None, None]).clamp(-LARGEST, LARGEST)
        return integers.to(torch.int8), step
    scale = short(products.abs().flatten(1).amax(1) / LARGEST)
    return torch.round(products / scale[:, None, None, None]).to(torch.int8), scale.float()


def short(scale: Tensor) -> Tensor:
    """Round scales, float64, to MANTISSA bits; smaller ones than SMALLEST_SCALE become it."""
    scale = scale.clamp_min(SMALLEST_SCALE)
    mantissa, _ = torch.frexp(scale)
    kept: Tensor = torch.round(mantissa * 2**MANTISSA) / 2**MANTISSA
    return kept * (scale / mantissa)  # the quotient is a power of two


def from_int8(integers: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """The float32 weights that equal these integers exactly; inverse of `to_int8`."""
    return integers.float() * scale[:, None, None, None] / values[:, None, None]


def has_kernels(tensor: Tensor) -> bool:
    """Whether numba kernels can compute with a tensor; with those of other devices than the CPU, torch operations compute."""
    return tensor.device.type == "cpu"


def rounded(weight: Tensor, values: Tensor, step: Tensor | None = None) -> Tensor:
    """Round weights as `to_int8` followed by `from_int8` does, bit for bit; on the CPU in one pass.

    Args:
        weight, values, step: as for `to_int8`.
    """
    if not has_kernels(weight):
        return from_int8(*to_int8(weight, values, step), values)
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    shape = len(weight), len(values), -1
    steps = torch.zeros(len(weight)) if step is None else step
    arrays = (x.detach().contiguous().numpy() for x in (weight.reshape(shape), values, steps))
    _round(*arrays, out.view(shape).numpy())
    return out


@njit(cache=True, nogil=True, parallel=True)
def _round(weight, values, steps, out):  # type: ignore[no-untyped-def]
    """`rounded` for `(O, C, kh * kw)` float32; a step of 0 stands for the one that makes the largest product 127."""
    outputs, channels, taps = weight.shape
    for o in numba.prange(outputs):
        scale = np.float64(steps[o])
        if scale == 0:
            largest = np.float32(0)
            for c in range(channels):
                for k in range(taps):
                    largest = max(largest, abs(weight[o, c, k] * values[c]))
            mantissa, exponent = math.frexp(max(np.float64(largest) / LARGEST, SMALLEST_SCALE))
            scale = np.float64(math.ldexp(np.rint(mantissa * 2.0**MANTISSA) / 2.0**MANTISSA, exponent))
        for c in range(channels):
            for k in range(taps):
                integer = np.rint(np.float64(weight[o, c, k] * values[c]) / scale)
                integer = min(max(integer, -LARGEST), LARGEST)
                out[o, c, k] = np.float32(integer) * np.float32(scale) / values[c]


EXACT = 2**20
"""Largest threshold and bias in steps: up to here, a neuron's float32 arithmetic errs by less than a quarter of a step."""


def threshold_steps(
    weight: Tensor, values: Tensor, theta: Tensor, bias: Tensor, most: int, kept: Tensor | None = None
) -> Tensor:
    """Choose the step of each output channel, `(O,)` float32, so that its threshold is an odd number of steps.

    The odd number is the nearest to the threshold in steps of `to_int8`, so that weights that are whole already stay the
    same; if the threshold is only a few steps, it is the next lower one, so that no weight exceeds 127.

    Args:
        weight: `(O, C, kh, kw)` float32.
        values: from `spike_values`.
        theta: `(O,)` thresholds of the neurons that the convolution drives.
        bias: `(O,)` constant current per timestep.
        most: largest number of spikes of a neuron over all timesteps.
        kept: `(O,)` odd numbers of steps that are chosen again where no weight exceeds 127 and the next larger odd number would
            be the best at most. Weights that are whole may have lost their largest fraction, so that they alone do not tell.
    """
    largest = (weight * values[:, None, None]).abs().flatten(1).amax(1).double().clamp_min(1e-30)
    theta64, offset = theta.double(), bias.double().abs().clamp_min(1e-30)
    ratio = torch.minimum(LARGEST * theta64 / largest, (EXACT * theta64 / offset).clamp_max(EXACT / most))
    below = 2 * torch.floor((ratio - 1) / 2).clamp_min(0) + 1
    odd = torch.where((below > LARGEST) & (below + 1 < ratio), below + 2, below)
    if kept is not None:
        odd = torch.where((kept <= ratio * (1 + 0.5 / LARGEST)) & (kept >= odd - 2), kept.double(), odd)
    return (theta64 / odd).float()


def integer_form(graph: Graph, parameters: SpikingParameters) -> tuple[Graph, SpikingParameters]:
    """Turn every layer of neurons driven by one convolution into integers (see above): the last step of conversion.

    Weights are rounded to their channel's step, stored as tensor `<conv>.step` `(O,)`; bias and the neurons' shift together
    become one whole number of steps. Unchanged are grouped convolutions, convolutions of averages or of sums without a
    common unit, those that are read out or read by anything but neurons, and those that drive neurons of a LeakyReLU.

    Args:
        graph: the spiking network.
        parameters: its neurons.
    """
    tensors, neurons = dict(graph.tensors), dict(parameters.neurons)
    spike_sizes = signal_thresholds(graph, neurons)
    for conv, relu in driven(graph):
        values = spike_values(graph, conv, spike_sizes)
        if values is None:
            continue
        layer, weight, bias = neurons[relu.name], tensors[f"{conv.name}.weight"], tensors[f"{conv.name}.bias"]
        constant, most = bias + layer.shift, layer.phi * parameters.timesteps
        step = tensors.get(f"{conv.name}.step")
        if step is None or not _odd(layer.theta, step):
            step = threshold_steps(weight, values, layer.theta, constant, most)
        tensors |= whole_weights(conv, weight, values, step)
        tensors[f"{conv.name}.bias"] = whole_steps(constant, step)
        neurons[relu.name] = replace(layer, shift=torch.zeros_like(layer.shift))
    return Graph(graph.nodes, graph.outputs, tensors), replace(parameters, neurons=neurons)


def whole_weights(conv: Node, weight: Tensor, values: Tensor, step: Tensor) -> dict[str, Tensor]:
    """The tensors of a convolution, but for its bias, in `integer_form`."""
    return {f"{conv.name}.weight": from_int8(*to_int8(weight, values, step), values), f"{conv.name}.step": step}


def whole_steps(constant: Tensor, step: Tensor) -> Tensor:
    """A constant current `(O,)` as a whole number of steps."""
    return (torch.round(constant.double() / step) * step).float()


def is_integer(graph: Graph, parameters: SpikingParameters) -> bool:
    """Whether a network is in `integer_form`."""
    tensors, spike_sizes = graph.tensors, signal_thresholds(graph, parameters.neurons)
    for conv, relu in driven(graph):
        if spike_values(graph, conv, spike_sizes) is None:
            continue
        layer, step = parameters.neurons[relu.name], tensors.get(f"{conv.name}.step")
        if step is None or layer.shift.any() or not _odd(layer.theta, step):
            return False
    return True


def _odd(theta: Tensor, step: Tensor) -> bool:
    """Whether thresholds are odd numbers of steps."""
    exact = theta.double() / step.double()
    whole = torch.round(exact)
    return bool(((whole % 2 == 1) & ((exact - whole).abs() <= 1e-6 * whole)).all())


def driven(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs of a convolution and the relu that it alone drives, where `integer_form` applies."""
    readers, found = graph.consumers(), []
    for node in graph.nodes:
        behind = readers[node.name]
        if node.op == "conv" and node.attrs["groups"] == 1 and node.name not in graph.outputs and len(behind) == 1:
            relu = behind[0]
            if relu.op == "relu" and not relu.attrs.get("negative_slope", 0.0):
                found.append((node, relu))
    return found
