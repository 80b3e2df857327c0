"""Integer weights of a convolution, with the values of its input spikes folded in, packed for `dot_tile`.

The integers are those that conversion rounded to (models/spiking/rounding.py): q_oc = w_oc u_c / s_o, where u_c is the value
of one count of input channel c and s_o the step of output channel o. The current is s_o * sum(q n). In a sum of spikes, a
spike of a source can have the value of 2^k units; its integer is then 2^k q. If few integers exceed 8 bits, their steps are
repeated, and the repetitions add up to the integers. If many do, all are split into two planes, q = 128 * first + second.
Weights without a common unit are rounded here, to 15 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.runtime.int8.signals import Read
from evburst.models.runtime.int8.simd.emit import LANES, VNNI
from evburst.models.spiking.integer_form import in_steps
from evburst.models.spiking.rounding import LARGEST, to_int8

_SHORT_MAX, _LARGEST_SUM, _LARGEST_FACTOR = 2**15 - 1, 2**30, 2**16
"""A sum of convolutions and the counts of up to 64 layers, times their factors, then fit into 32 bits."""


@dataclass(frozen=True)
class PackedWeights:
    """Weights of a convolution in the layout of `dot_tile`.

    Attributes:
        data: `(blocks, planes, steps, LANES, 4)` int8. The steps run over sources, kernel rows, kernel columns, groups of four
            input channels, and repetitions.
        scale: `(blocks * LANES,)` float32, current per unit of the integer sum; 0 for padded channels.
        repetitions: of each source, how often each of its steps is taken, in the order above.
        flush: number of steps that can be summed in 16 bits whatever the counts are.
    """

    data: NDArray[np.int8]
    scale: NDArray[np.float32]
    repetitions: tuple[NDArray[np.int64], ...]
    flush: int


def integer_weights(
    weight: Tensor, sources: Sequence[Read], sizes: Tensor | None, step: Tensor | None = None
) -> tuple[list[NDArray[np.int64]], NDArray[np.float32]]:
    """Compute the integers that multiply the counts of each source.

    Args:
        weight: `(O, C, kh, kw)` float32.
        sources: everything that the convolution reads.
        sizes: of `input_sizes`; None if its weights are not rounded in conversion.
        step: `(O,)` the step that the weights are multiples of, if the network is in integer form (`integer_form`).

    Returns:
        The integers of each source `(O, C, kh, kw)`, and the scale of each output channel `(O,)`.
    """
    largest = 128 * _largest_in_a_plane(sources) + 63
    if sizes is not None:
        integers, scale = to_int8(weight, sizes, step)
        units = integers.numpy().astype(np.float64)
        exact = [read.weights(units, 1 / sizes.numpy().astype(np.float64)) for read in sources]
        nearest = [np.rint(part) for part in exact]
        pairs = list(zip(exact, nearest, strict=True))
        if all(np.allclose(a, b, rtol=0, atol=1e-3) and np.abs(b).max() <= largest for a, b in pairs):
            return [part.astype(np.int64) for part in nearest], scale.numpy()
    products = [read.weights(weight.numpy().astype(np.float64)) for read in sources]
    largest_product = np.max([np.abs(part).reshape(len(part), -1).max(1) for part in products], 0)
    steps = np.maximum(largest_product, 1e-30) / largest
    return [np.rint(part / steps[:, None, None, None]).astype(np.int64) for part in products], steps.astype(np.float32)


def _largest_in_a_plane(sources: Sequence[Read]) -> int:
    """Largest integer in a plane with which the sum of two products fits into 16 bits."""
    return min(LARGEST, _SHORT_MAX // (2 * _largest_count(sources)))


def _largest_count(sources: Sequence[Read]) -> int:
    return max(read.source.limit for read in sources)


class Unpacked(NamedTuple):
    """The weights of a convolution as they are before `pack`, and what it reads.

    Attributes:
        weight: `(O, C, kh, kw)` float32.
        sources: everything that it reads.
        sizes, step: as in `integer_weights`.
    """

    weight: Tensor
    sources: Sequence[Read]
    sizes: Tensor | None
    step: Tensor | None = None


def pack(convolutions: Sequence[Unpacked]) -> PackedWeights | None:
    """Compute the integer weights of convolutions whose sums are added, and pack them.

    Returns None if a sum could be too large for 32 bits, or if the weights of several convolutions have no common step.
    """
    sources = [source for own in convolutions for source in own.sources]
    found = [integer_weights(*own) for own in convolutions]
    integers, scale = [part for parts, _ in found for part in parts], found[0][1]
    if any(not np.array_equal(own, scale) for _, own in found):
        return None
    limit = _largest_count(sources)
    if limit * sum(np.abs(part).sum((1, 2, 3)) for part in integers).max() > _LARGEST_SUM:  # type: ignore[union-attr]
        return None
    packed = [_pack_part(part) for part in integers]
    largest = LARGEST if VNNI else _largest_in_a_plane(sources)  # VNNI sums in 32 bits
    repetitions = tuple(np.maximum(-(-np.abs(part).max((0, 2, 3)) // largest), 1) for part in packed)
    if sum(times.sum() for times in repetitions) <= 2 * sum(map(len, repetitions)):
        planes = np.concatenate([_repeated(*pair, largest) for pair in zip(packed, repetitions, strict=True)], 1)[:, None]
    else:
        repetitions = tuple(np.ones_like(times) for times in repetitions)
        data = np.concatenate(packed, 1)
        first = (data + 64) >> 7
        planes = np.stack([first, data - 128 * first], 1)
    planes = planes.astype(np.int8)
    padded = np.zeros(planes.shape[0] * LANES, np.float32)
    padded[: len(scale)] = scale
    steps = tuple(int(times.sum()) for times in repetitions)
    return PackedWeights(planes, padded, repetitions, _steps_in_16_bits(planes, steps, limit))


def factors_of(theta: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """Number of steps, `(C,)`, of a spike that is added to a sum of convolutions; None if it is not whole."""
    number, is_whole = in_steps(torch.from_numpy(theta), torch.from_numpy(step))
    return number.int().numpy() if is_whole and number.max() < _LARGEST_FACTOR else None


def _repeated(weights: NDArray[np.int64], repetitions: NDArray[np.int64], largest: int) -> NDArray[np.int64]:
    """Repeat the steps of `(blocks, steps, LANES, 4)`; the repetitions of a step add up to it, none exceeds `largest`."""
    taken = np.repeat(weights, repetitions, 1)
    earlier = np.arange(taken.shape[1]) - np.repeat(np.cumsum(repetitions) - repetitions, repetitions)
    rest = np.maximum(np.abs(taken) - largest * earlier[:, None, None], 0)
    repeated: NDArray[np.int64] = np.sign(taken) * np.minimum(rest, largest)
    return repeated


def _pack_part(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rearrange `(O, C, kh, kw)` into `(blocks, steps, LANES, 4)`, padded with zeros."""
    out, channels, height, width = weights.shape
    blocks, quads = -(-out // LANES), -(-channels // 4)
    padded = np.zeros((blocks * LANES, quads * 4, height, width), np.int64)
    padded[:out, :channels] = weights
    split = padded.reshape(blocks, LANES, quads, 4, height, width)
    return split.transpose(0, 4, 5, 2, 1, 3).reshape(blocks, height * width * quads, LANES, 4)


def _steps_in_16_bits(planes: NDArray[np.int8], steps: tuple[int, ...], limit: int) -> int:
    """Largest power of two such that the sum over this many steps, counted from the start of each source, fits into 16 bits."""
    pairs = planes.astype(np.int64).reshape(*planes.shape[:4], 2, 2)
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
