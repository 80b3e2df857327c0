"""Weights of a convolution as integers, what they multiply folded in, packed for `dot_tile`.

The integers are those that conversion rounded to (models/spiking/rounding.py): with c the channel, q_oc = w_oc u_c / s_o, u_c what a count is
worth, and the current s_o * sum(q n). Spikes of a sum may be worth several units each, 2^k: their integers are 2^k q. What exceeds 8
bits lies in two planes, q = 128 * first + second. Where there is no common unit, products are rounded here, to 15 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.runtime.int8.signals import Read
from evburst.models.runtime.int8.simd import LANES
from evburst.models.spiking.rounding import LARGEST, to_int8

_SHORT_MAX, _INT_MAX = 2**15 - 1, 2**31 - 1


@dataclass(frozen=True)
class PackedWeights:
    """A convolution as `dot_tile` reads it.

    Attributes:
        data: `(blocks, planes, steps, LANES, 4)` int8; steps run over parts, kernel rows, kernel columns, and input channels by four.
        scale: `(blocks * LANES,)` float32, current per unit of the integer sum; 0 for padded channels.
        steps_of_part: steps of each part.
        flush: so many steps can be summed in 16 bits, whatever the counts.
        kernel: (rows, columns).
    """

    data: NDArray[np.int8]
    scale: NDArray[np.float32]
    steps_of_part: tuple[int, ...]
    flush: int
    kernel: tuple[int, int]


def integer_weights(
    weight: Tensor, found: Sequence[Read], values: Tensor | None, step: Tensor | None = None
) -> tuple[list[NDArray[np.int64]], NDArray[np.float32]]:
    """The integers by which counts of each source are multiplied, `(O, C, kh, kw)`, and the scale of each output channel `(O,)`.

    Args:
        weight: `(O, C, kh, kw)` float32.
        found: all that the convolution reads.
        values: of `spike_values`.
        step: what the weights are multiples of, where conversion says so (`integer_form`).
    """
    largest = 128 * _largest_in_a_plane(found) + 63
    if values is not None:
        integers, scale = to_int8(weight, values, step)
        units = integers.numpy().astype(np.float64)
        exact = [read.weights(units, 1 / values.numpy().astype(np.float64)) for read in found]
        whole = [np.rint(part) for part in exact]
        pairs = list(zip(exact, whole, strict=True))
        if all(np.allclose(a, b, rtol=0, atol=1e-3) and np.abs(b).max() <= largest for a, b in pairs):
            return [part.astype(np.int64) for part in whole], scale.numpy()
    products = [read.weights(weight.numpy().astype(np.float64)) for read in found]
    furthest = np.max([np.abs(part).reshape(len(part), -1).max(1) for part in products], 0)
    steps = np.maximum(furthest, 1e-30) / largest
    return [np.rint(part / steps[:, None, None, None]).astype(np.int64) for part in products], steps.astype(np.float32)


def _largest_in_a_plane(found: Sequence[Read]) -> int:
    """So that two products fit into 16 bits."""
    return min(LARGEST, _SHORT_MAX // (2 * _largest_count(found)))


def _largest_count(found: Sequence[Read]) -> int:
    return max(read.source.limit for read in found)


def pack(weight: Tensor, found: Sequence[Read], values: Tensor | None, step: Tensor | None = None) -> PackedWeights | None:
    """Find the integers and pack them; None where a sum could leave 32 bits.

    Args:
        weight, found, values, step: as in `integer_weights`.
    """
    integers, scale = integer_weights(weight, found, values, step)
    limit = _largest_count(found)
    if limit * sum(np.abs(part).sum((1, 2, 3)) for part in integers).max() > _INT_MAX:  # type: ignore[union-attr]
        return None
    packed = [_pack_part(part) for part in integers]
    data = np.concatenate(packed, 1)
    first = (data + 64) >> 7
    fits = np.abs(data).max() <= _largest_in_a_plane(found)
    layers = np.stack([data] if fits else [first, data - 128 * first], 1).astype(np.int8)
    padded = np.zeros(layers.shape[0] * LANES, np.float32)
    padded[: len(scale)] = scale
    steps = tuple(part.shape[1] for part in packed)
    kernel = (weight.shape[2], weight.shape[3])
    return PackedWeights(layers, padded, steps, _steps_in_16_bits(layers, steps, limit), kernel)


def _pack_part(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(O, C, kh, kw)` to `(blocks, steps, LANES, 4)`."""
    out, channels, height, width = weights.shape
    blocks, quads = -(-out // LANES), -(-channels // 4)
    padded = np.zeros((blocks * LANES, quads * 4, height, width), np.int64)
    padded[:out, :channels] = weights
    split = padded.reshape(blocks, LANES, quads, 4, height, width)
    return split.transpose(0, 4, 5, 2, 1, 3).reshape(blocks, height * width * quads, LANES, 4)


def _steps_in_16_bits(layers: NDArray[np.int8], steps: tuple[int, ...], limit: int) -> int:
    """The longest run of steps, a power of two and starting anew with every part, whose pairwise sums fit 16 bits."""
    pairs = layers.astype(np.int64).reshape(*layers.shape[:4], 2, 2)
    bounds = [limit * np.maximum(sign * pairs, 0).sum(-1) for sign in (1, -1)]
    edges = np.cumsum((0, *steps))
    flush = 1
    while flush < max(steps):
        longer = flush * 2
        starts = np.concatenate([np.arange(a, b, longer) for a, b in pairwise(edges)])
        if any(np.add.reduceat(bound, starts, axis=2).max() > _SHORT_MAX for bound in bounds):
            break
        flush = longer
    return flush
