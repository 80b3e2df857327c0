"""Rounding of weights to 8 bits, as a part of conversion: every engine runs the same network, and calibration compensates
the error.

A convolution multiplies a spike count by a weight times the scale of the count, which is the threshold of its channel. The
largest of these products becomes 127 in every output channel, and the others are rounded to whole numbers: the integers of
the int8 engine (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, symmetric and per channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np
import torch
from torch import Tensor

from evburst.data._numba import njit
from evburst.models.graph import Graph, Node

LARGEST = 127
MANTISSA = 16
"""Bits of a scale: its products with 8-bit integers are exact in float32, so that rounding is idempotent."""
SMALLEST_SCALE = 2.0**-67
"""Smallest scale of an output channel, that of a channel whose weights are all 0."""


Sizes = Mapping[str, Tensor | None]
"""Value of a spike of every node, of `spike_sizes` (network.py)."""


def input_sizes(graph: Graph, conv: Node, sizes: Sizes) -> Tensor | None:
    """Value of the counts that the weights of a convolution multiply: `(C,)`, equal for all output channels, or of a grouped
    convolution `(O, C / groups)`.

    None if the convolution's weights are not rounded: of those that read currents, averages, or sums without a common size.

    Args:
        graph: the network.
        conv: the convolution.
        sizes: value of a spike of every node.
    """
    source, groups = conv.inputs[0], conv.attrs["groups"]
    if any(node.name == source and node.op == "input" for node in graph.nodes):
        weight = graph.tensors[f"{conv.name}.weight"]
        return weight.new_ones(weight.shape[1])
    read = sizes[source]
    if read is None or groups == 1:
        return read
    outputs = len(graph.tensors[f"{conv.name}.bias"])
    return read.reshape(groups, -1).repeat_interleave(outputs // groups, 0)


def to_int8(weight: Tensor, sizes: Tensor, step: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights `(O, C / groups, kh, kw)` as int8, and the scale of each output channel, `(O,)` float32.

    Args:
        weight: float32.
        sizes: from `input_sizes`.
        step: the scale, from `choose_steps` (integer_form.py); None makes the largest product of a channel 127.
    """
    products = (weight * sizes[..., None, None]).double()
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


def from_int8(integers: Tensor, scale: Tensor, sizes: Tensor) -> Tensor:
    """The float32 weights that equal these integers exactly; inverse of `to_int8`."""
    return integers.float() * scale[:, None, None, None] / sizes[..., None, None]


def has_kernels(tensor: Tensor) -> bool:
    """Whether numba kernels can compute with a tensor; with those of other devices than the CPU, torch operations compute."""
    return tensor.device.type == "cpu"


def rounded(weight: Tensor, sizes: Tensor, step: Tensor | None = None) -> Tensor:
    """Round weights as `to_int8` followed by `from_int8` does, bit for bit; on the CPU in one pass.

    Args:
        weight, sizes, step: as for `to_int8`.
    """
    if not has_kernels(weight):
        return from_int8(*to_int8(weight, sizes, step), sizes)
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    shape = len(weight), weight.shape[1], -1
    steps = torch.zeros(len(weight)) if step is None else step
    arrays = (x.detach().contiguous().numpy() for x in (weight.reshape(shape), sizes.expand(shape[:2]), steps))
    _round(*arrays, out.view(shape).numpy())
    return out


@njit(cache=True, nogil=True, parallel=True)
def _round(weight, sizes, steps, out):  # type: ignore[no-untyped-def]
    """`rounded` for `(O, C, kh * kw)` float32 and sizes `(O, C)`; a step of 0: the one that makes the largest product 127."""
    outputs, channels, taps = weight.shape
    for o in numba.prange(outputs):
        scale = np.float64(steps[o])
        if scale == 0:
            largest = np.float32(0)
            for c in range(channels):
                for k in range(taps):
                    largest = max(largest, abs(weight[o, c, k] * sizes[o, c]))
            mantissa, exponent = math.frexp(max(np.float64(largest) / LARGEST, SMALLEST_SCALE))
            scale = np.float64(math.ldexp(np.rint(mantissa * 2.0**MANTISSA) / 2.0**MANTISSA, exponent))
        for c in range(channels):
            for k in range(taps):
                integer = np.rint(np.float64(weight[o, c, k] * sizes[o, c]) / scale)
                integer = min(max(integer, -LARGEST), LARGEST)
                out[o, c, k] = np.float32(integer) * np.float32(scale) / sizes[o, c]
