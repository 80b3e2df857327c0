"""Weights of 8 bits: a part of conversion, so that every engine runs the same network and calibration makes up for the rounding.

What a convolution multiplies a spike count by is a weight times what a count is worth, the threshold of its channel. Of these
products the largest of every output channel becomes 127, the others are rounded to whole numbers: the integers that the integer engine
multiplies (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
2018, symmetric and per channel).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np
import torch
from evburst.data._numba import njit
from evburst.models.graph import Graph, Node
from torch import Tensor

LARGEST = 127
MANTISSA = 16
"""Bits of a scale: its products with 8-bit integers are exact in float32, so that rounding what is rounded changes nothing."""


def spike_values(graph: Graph, conv: Node, theta: Mapping[str, Tensor | None]) -> Tensor | None:
    """What a count of each channel that a convolution reads is worth, `(C,)`; None if its weights are not rounded: those of one channel
    for each output (groups), and those that read currents, averages, or sums without a common unit.

    Args:
        graph: the network.
        conv: the convolution.
        theta: of `signal_thresholds`.
    """
    if conv.attrs["groups"] != 1:
        return None
    source = conv.inputs[0]
    if any(node.name == source and node.op == "input" for node in graph.nodes):
        return torch.ones(graph.tensors[f"{conv.name}.weight"].shape[1])
    return theta[source]


def to_int8(weight: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `(O, C, kh, kw)` as int8, and the scale of each output channel, `(O,)` float32.

    Args:
        weight: float32.
        values: of `spike_values`.
    """
    products = (weight * values[:, None, None]).double()
    mantissa, exponent = torch.frexp(products.abs().flatten(1).amax(1).clamp_min(1e-30) / LARGEST)
    scale = torch.ldexp(torch.round(mantissa * 2**MANTISSA) / 2**MANTISSA, exponent)
    return torch.round(products / scale[:, None, None, None]).to(torch.int8), scale.float()


def from_int8(integers: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """The float32 weights that are exactly those integers."""
    return integers.float() * scale[:, None, None, None] / values[:, None, None]


def rounded(weight: Tensor, values: Tensor) -> Tensor:
    """Weights as they are after `to_int8` and `from_int8`, bit by bit, in one pass; on the CPU."""
    out = torch.empty_like(weight, memory_format=torch.contiguous_format)
    shape = len(weight), len(values), -1
    _round(weight.detach().contiguous().view(shape).numpy(), values.detach().numpy(), out.view(shape).numpy())
    return out


@njit(cache=True, nogil=True, parallel=True)
def _round(weight, values, out):  # type: ignore[no-untyped-def]
    """`rounded` of `(O, C, kh * kw)` float32."""
    outputs, channels, taps = weight.shape
    for o in numba.prange(outputs):
        largest = np.float32(0)
        for c in range(channels):
            for k in range(taps):
                largest = max(largest, abs(weight[o, c, k] * values[c]))
        mantissa, exponent = math.frexp(max(np.float64(largest), 1e-30) / LARGEST)
        scale = math.ldexp(np.rint(mantissa * 2.0**MANTISSA) / 2.0**MANTISSA, exponent)
        for c in range(channels):
            for k in range(taps):
                integer = np.rint(np.float64(weight[o, c, k] * values[c]) / scale)
                out[o, c, k] = np.float32(integer) * np.float32(scale) / values[c]
