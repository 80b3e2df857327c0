"""Weights of a convolution as 8 or 15 bits per output channel, thresholds of the spikes it reads folded in, packed for `dot_tile`.

With theta_c the threshold of input channel c, s_o = max |w_oc theta_c| / largest and q = round(w_oc theta_c / s_o), the current is
s_o * sum(q n) with spike counts n: integers. 15 bits are two planes of 8, q = 128 * first + second.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.runtime.simd import LANES

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
    parts: list[NDArray[np.float32]], planes: int, limit: int
) -> tuple[list[NDArray[np.int64]], NDArray[np.float64]]:
    """Quantised weights of each part `(O, C, kh, kw)`, and the scale of each output channel `(O,)`.

    Args:
        parts: weights of each part, thresholds folded in.
        planes: 1 (8 bits) or 2 (15 bits).
        limit: largest spike count; beyond 128 weights get fewer bits, so that two products fit into 16 bits.
    """
    largest = min(127, _SHORT_MAX // (2 * limit))
    largest = largest if planes == 1 else 128 * largest + 63
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], 1).astype(np.float64)
    scale = np.maximum(np.abs(flat).max(1), 1e-30) / largest
    return [np.rint(part / scale[:, None, None, None]).astype(np.int64) for part in parts], scale


def pack(parts: list[NDArray[np.float32]], planes: int, limit: int) -> PackedWeights | None:
    """Quantise and pack; None where a sum could leave 32 bits.

    Args:
        parts, planes, limit: as in `integer_weights`.
    """
    integers, scale = integer_weights(parts, planes, limit)
    if limit * sum(np.abs(part).sum((1, 2, 3)) for part in integers).max() > _INT_MAX:  # type: ignore[union-attr]
        return None
    packed = [_pack_part(part) for part in integers]
    data = np.concatenate(packed, 1)
    first = (data + 64) >> 7
    layers = np.stack([data] if planes == 1 else [first, data - 128 * first], 1).astype(np.int8)
    padded = np.zeros(layers.shape[0] * LANES, np.float32)
    padded[: len(scale)] = scale
    steps = tuple(part.shape[1] for part in packed)
    kernel: tuple[int, int] = parts[0].shape[2:]
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
