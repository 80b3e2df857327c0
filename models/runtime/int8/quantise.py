"""Integer weights of a convolution, with the values of its input spikes folded in, packed for `dot_tiles`.

The integers are those that conversion rounded to (models/spiking/rounding.py): q_oc = w_oc u_c / s_o, where u_c is the value
of one count of input channel c and s_o the step of output channel o. The current is s_o * sum(q n). In a sum of spikes, a
spike of a source can have the value of 2^k units; its integer is then 2^k q. If few integers exceed 8 bits, or without VNNI
the sums of two products 16 bits, their steps are repeated, and the repetitions add up to the integers. If many do, all are
split into two planes, q = 128 * first + second. Weights without a common unit are rounded here, to 15 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """Weights of a convolution in the layout of `dot_tiles`.

    Attributes:
        data: `(blocks, planes, steps, LANES, 4)` int8. The steps run over sources, kernel rows, kernel columns, groups of four
            input channels, and repetitions.
        scale: `(blocks * LANES,)` float32, current per unit of the integer sum; 0 for padded channels.
        repetitions: of each source, how often each of its steps is taken, in the order above.
        chunks: int32, see `chunks_of`.
    """

    data: NDArray[np.int8]
    scale: NDArray[np.float32]
    repetitions: tuple[NDArray[np.int64], ...]
    chunks: NDArray[np.int32]


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
    limits = [read.source.limit for read in sources]
    repetitions = tuple(_repetitions(*pair) for pair in zip(packed, limits, strict=True))
    if sum(times.sum() for times in repetitions) <= 2 * sum(map(len, repetitions)):
        planes = np.concatenate([_repeated(*pair) for pair in zip(packed, repetitions, strict=True)], 1)[:, None]
    else:
        repetitions = tuple(np.ones_like(times) for times in repetitions)
        data = np.concatenate(packed, 1)
        first = (data + 64) >> 7
        planes = np.stack([first, data - 128 * first], 1)
    planes = planes.astype(np.int8)
    padded = np.zeros(planes.shape[0] * LANES, np.float32)
    padded[: len(scale)] = scale
    return PackedWeights(planes, padded, repetitions, chunks_of(planes, [int(times.sum()) for times in repetitions], limits))


def factors_of(theta: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """Number of steps, `(C,)`, of a spike that is added to a sum of convolutions; None if it is not whole."""
    number, is_whole = in_steps(torch.from_numpy(theta), torch.from_numpy(step))
    return number.int().numpy() if is_whole and number.max() < _LARGEST_FACTOR else None


def _repetitions(weights: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """How often each step of `(blocks, steps, LANES, 4)` is taken, `(steps,)`.

    Its share of the integers must fit into 8 bits, and without VNNI the sum of two products into 16.
    """
    times: NDArray[np.int64] = np.maximum(-(-np.abs(weights).max((0, 2, 3)) // LARGEST), 1)
    if VNNI:
        return times
    times = np.maximum(times, -(-_bounds(weights, limit).max((0, 2)) // _SHORT_MAX))
    while True:
        largest_share = np.sign(weights) * -(-np.abs(weights) // times[:, None, None])
        exceeds = _bounds(largest_share, limit).max((0, 2)) > _SHORT_MAX
        if not exceeds.any():
            return times
        times[exceeds] += 1


def _repeated(weights: NDArray[np.int64], repetitions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Repeat the steps of `(blocks, steps, LANES, 4)`; the repetitions of a step are equal shares that add up to it."""
    taken, number = np.repeat(weights, repetitions, 1), np.repeat(repetitions, repetitions)[:, None, None]
    turn = np.arange(len(number)) - np.repeat(np.cumsum(repetitions) - repetitions, repetitions)
    size, turn = np.abs(taken), turn[:, None, None]
    shares: NDArray[np.int64] = np.sign(taken) * (size * (turn + 1) // number - size * turn // number)
    return shares


def _pack_part(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rearrange `(O, C, kh, kw)` into `(blocks, steps, LANES, 4)`, padded with zeros."""
    out, channels, height, width = weights.shape
    blocks, quads = -(-out // LANES), -(-channels // 4)
    padded = np.zeros((blocks * LANES, quads * 4, height, width), np.int64)
    padded[:out, :channels] = weights
    split = padded.reshape(blocks, LANES, quads, 4, height, width)
    return split.transpose(0, 4, 5, 2, 1, 3).reshape(blocks, height * width * quads, LANES, 4)


def _bounds(weights: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """Largest size of the sums of two products, of those above 0 and those below: `(blocks, steps, LANES * 4)`."""
    pairs = limit * weights.astype(np.int64).reshape(*weights.shape[:2], -1, 2)
    return np.concatenate([np.maximum(sign * pairs, 0).sum(-1) for sign in (1, -1)], -1)


def chunks_of(planes: NDArray[np.int8], steps: Sequence[int], limits: Sequence[int]) -> NDArray[np.int32]:
    """Split the steps of each block, plane and source into chunks whose sums fit into 16 bits whatever the counts are.

    Args:
        planes: `(blocks, planes, steps, LANES, 4)`.
        steps: their number of each source.
        limits: largest count of each source.

    Returns:
        `(blocks, planes, sources)` distances from each of these elements to the ends of its chunks, which follow; the last
        end is the number of steps. VNNI needs none.
    """
    blocks, n_planes = planes.shape[:2]
    heads, ends = np.zeros((blocks * n_planes, len(steps)), np.int64), list[int]()
    if VNNI:
        return heads.reshape(-1).astype(np.int32)
    rows, edges = planes.reshape(blocks * n_planes, *planes.shape[2:]), np.cumsum([0, *steps])
    for source, (start, number, limit) in enumerate(zip(edges[:-1], steps, limits, strict=True)):
        found = _chunk_ends(_bounds(rows[:, start : start + number], limit))
        for row, own in enumerate(found):
            heads[row, source] = heads.size + len(ends) - (row * len(steps) + source)
            ends += own
    return np.concatenate([heads.reshape(-1), ends]).astype(np.int32)


def _chunk_ends(bounds: NDArray[np.int64]) -> list[list[int]]:
    """Ends of the longest chunks from the first step of `(rows, steps, sums)` on whose bounds add up to 16 bits at most."""
    total, ends = np.zeros_like(bounds[:, 0]), [list[int]() for _ in bounds]
    for step in range(bounds.shape[1]):
        total = total + bounds[:, step]
        full = total.max(1) > _SHORT_MAX
        total[full] = bounds[full, step]
        for row in np.flatnonzero(full):
            ends[row].append(step)
    return [[*own, bounds.shape[1]] for own in ends]
