"""A plan of integer operations carried out: one compiled function for a whole network.

Spike counts lie in one uint8 arena, every buffer as `(T, N, rows, columns, channels)` with a margin of zeros around the images: padding
needs no special case, and nothing is copied for a concatenation, a slice or an addition, because an operation reads parts
of several buffers (terms). A unit of work is one row of LANES output channels, all timesteps: currents never reach memory.
"""

from __future__ import annotations

import numba
import numpy as np

from models.runtime.simd import LANES, PIXELS, copy_lanes, dot_tile, fire_tile, pool_lanes, read_tile, trailing_zeros

FIRE, READ_OUT, MAX_POOL, UPSAMPLE = range(4)
"""Kinds of operation."""

_FIELDS = """kind rows columns blocks channels first_term terms weights steps planes flush channel constant phi
    out out_step out_image out_row out_pixel fan_out by_channel uniform kernel_rows kernel_columns
    source_row source_pixel factor"""
OPERATION = np.dtype([(name, np.int64) for name in _FIELDS.split()])
"""One operation. Distances and places are counted in elements.

rows, columns, channels: of its output; blocks of LANES channels. weights, steps (per block and plane), planes, flush: see _dot.
channel: of scale and bias. constant: its current is the same at every timestep. out...: where counts or maps go. fan_out: place
of `(rows, columns, blocks)`; where it is not uniform within a block, by_channel: of `(rows, columns, blocks * LANES)`. kernel...,
source...: a max-pool's window, distances in what it reads; factor: of upsampling.
"""

TERM = np.dtype([(name, np.int64) for name in ("start", "step", "image", "row", "pixel", "offsets", "steps", "first_step")])
"""A part of a buffer that an operation reads: where the first output's window begins, distances per timestep, image, output
row and output column; where its steps are in the offsets, how many, and which is its first in the weights."""


@numba.njit(cache=True, nogil=True, parallel=True)
def run_operations(  # type: ignore[no-untyped-def]
    operations, terms, offsets, weights, scale, bias, fan_out, arena, maps, timesteps, images, acc, v_mem, before, units, totals
):
    """Carry out operations in order.

    Args:
        operations, terms: see OPERATION and TERM.
        offsets: int32. weights: int8. scale, bias: float32, per output channel.
        fan_out: int32, weights reached by a spike.
        arena: uint8, all spike counts. maps: float32, what is read out.
        timesteps, images: T and N.
        acc, v_mem, before: a tile, int32 and float32, and LANES uint16 for every thread.
        units: int64 `(most units of work, 6)`, overwritten.
        totals: int64 `(operations, N, 3)`, set: spikes, synaptic operations, the same with a burst counted once.
    """
    for index in range(len(operations)):
        per_image = operations[index].rows * operations[index].blocks
        for unit in numba.prange(images * per_image):
            operation, thread = operations[index], numba.get_thread_id()
            image, rest = unit // per_image, unit % per_image
            block, row = rest // operation.rows, rest % operation.rows
            place = image, block, row
            counts = units[unit]
            counts[:] = 0
            if operation.kind == FIRE:
                layer = scale, bias, fan_out
                _fire(operation, terms, offsets, weights, layer, arena, timesteps, place, acc[thread], v_mem[thread], counts)
            elif operation.kind == READ_OUT:
                _read_out(operation, terms, offsets, weights, scale, bias, arena, maps, timesteps, place, acc[thread])
            elif operation.kind == MAX_POOL:
                _max_pool(operation, terms[operation.first_term], fan_out, arena, timesteps, place, before[thread], counts)
            else:
                _upsample(operation, terms[operation.first_term], arena, timesteps, place)
        for image in range(images):
            for k in range(3):
                totals[index, image, k] = units[image * per_image : (image + 1) * per_image, 2 * k : 2 * k + 2].sum()


@numba.njit(inline="always")
def _dot(operation, terms, offsets, weights, arena, begin, end, place, column, acc):  # type: ignore[no-untyped-def]
    """The weighted sum of the counts of timesteps [begin, end), for one tile; weights of two planes are 128 * first + second."""
    image, block, row = place
    size = operation.steps * 4 * LANES
    at = operation.weights + block * operation.planes * size
    fresh = True
    for plane in range(operation.planes):
        if plane:
            for i in range(PIXELS * LANES):
                acc[i] <<= 7
        for t in range(begin, end):
            for k in range(operation.first_term, operation.first_term + operation.terms):
                term = terms[k]
                start = term.start + t * term.step + image * term.image + row * term.row + column * term.pixel
                first = at + plane * size + term.first_step * 4 * LANES
                dot_tile(
                    arena, start, term.pixel, offsets, term.offsets, weights, first, term.steps, operation.flush, acc, fresh
                )
                fresh = False


@numba.njit(cache=True, nogil=True)
def _fire(operation, terms, offsets, weights, layer, arena, timesteps, place, acc, v_mem, counts):  # type: ignore[no-untyped-def]
    """A convolution and its burst neurons."""
    scale, bias, fan_out = layer
    image, block, row = place
    channel, phi, width = operation.channel + block * LANES, np.float32(operation.phi), operation.out_pixel
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    reach = operation.fan_out + row * operation.columns * operation.blocks + block
    for column in range(0, operation.columns, PIXELS):
        pixels = min(PIXELS, operation.columns - column)
        for t in range(timesteps):
            if t == 0 or not operation.constant:
                _dot(operation, terms, offsets, weights, arena, t, t + 1, place, column, acc)
            to = out + column * width + t * operation.out_step
            here = reach + column * operation.blocks
            fire_tile(
                acc, v_mem, t == 0, scale, bias, channel, phi, arena, to, width, pixels, fan_out, here, operation.blocks, counts
            )
    if not operation.uniform:
        _count_by_channel(operation, fan_out, arena, timesteps, place, counts)


@numba.njit(cache=True, nogil=True)
def _read_out(operation, terms, offsets, weights, scale, bias, arena, maps, timesteps, place, acc):  # type: ignore[no-untyped-def]
    """A convolution that is read out: its current summed over time."""
    image, block, row = place
    end = 1 if operation.constant else timesteps
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for column in range(0, operation.columns, PIXELS):
        _dot(operation, terms, offsets, weights, arena, 0, end, place, column, acc)
        to, pixels = out + column * operation.out_pixel, min(PIXELS, operation.columns - column)
        read_tile(acc, scale, bias, operation.channel + block * LANES, maps, to, operation.out_pixel, pixels)


@numba.njit(cache=True, nogil=True)
def _max_pool(operation, term, fan_out, arena, timesteps, place, before, counts):  # type: ignore[no-untyped-def]
    """By how much the largest accumulated count of a window has grown, at every timestep."""
    image, block, row = place
    lanes = min(LANES, operation.channels - block * LANES)
    start = term.start + image * term.image + row * term.row + block * LANES
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for column in range(operation.columns):
        reach = operation.fan_out + (row * operation.columns + column) * operation.blocks + block
        before[:] = 0
        for t in range(timesteps):
            pool_lanes(
                arena, start + column * term.pixel, operation.source_row, operation.source_pixel, operation.kernel_rows,
                operation.kernel_columns, term.step, t + 1, lanes, before, out + column * operation.out_pixel + t * operation.out_step,
                fan_out, reach, counts,
            )  # fmt: skip
    if not operation.uniform:
        _count_by_channel(operation, fan_out, arena, timesteps, place, counts)


@numba.njit(cache=True, nogil=True)
def _upsample(operation, term, arena, timesteps, place):  # type: ignore[no-untyped-def]
    """Nearest neighbour."""
    image, block, row = place
    factor = operation.factor
    start = term.start + image * term.image + row // factor * term.row + block * LANES
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for t in range(timesteps):
        for column in range(operation.columns):
            to = out + t * operation.out_step + column * operation.out_pixel
            copy_lanes(arena, start + t * term.step + column // factor * term.pixel, to)


@numba.njit(cache=True, nogil=True)
def _count_by_channel(operation, fan_out, arena, timesteps, place, counts):  # type: ignore[no-untyped-def]
    """Synaptic operations of a row whose channels reach different numbers of weights."""
    image, block, row = place
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    counts[2:] = 0
    for column in range(operation.columns):
        first = operation.by_channel + ((row * operation.columns + column) * operation.blocks + block) * LANES
        for t in range(timesteps):
            for lane in range(LANES):
                n = arena[out + column * operation.out_pixel + t * operation.out_step + lane]
                counts[2] += n * np.int64(fan_out[first + lane])
                counts[4] += (n != 0) * np.int64(fan_out[first + lane])


@numba.njit(cache=True, nogil=True, parallel=True)
def pack_grid(words, columns, fan_out, arena, start, image_pitch, row_pitch, pixel_pitch, units):  # type: ignore[no-untyped-def]
    """Counts of events, channels last, into the arena: work for every pixel that has any, not for the others.

    Args:
        words: a grid `(N, channels, rows, columns)` uint8, eight columns to a little-endian uint64, the last ones filled with 0.
        fan_out: int32 `(channels, rows, columns)`.
        start, image_pitch, row_pitch, pixel_pitch: where, in elements.
        units: int64 `(N * rows, >= 4)`, set: events, synaptic operations, these with a count taken once, largest count.
    """
    images, channels, rows, per_row = words.shape
    low, position = np.uint64(255), np.uint64(56)
    for unit in numba.prange(images * rows):
        image, row = unit // rows, unit % rows
        events, reached, graded, most = 0, 0, 0, 0
        first = start + image * image_pitch + row * row_pitch
        arena[first : first + columns * pixel_pitch] = 0
        for channel in range(channels):
            for index in range(per_row):
                word = words[image, channel, row, index]
                while word != 0:
                    shift = trailing_zeros(word) & position
                    n = np.int64((word >> shift) & low)
                    word &= ~(low << shift)
                    column = 8 * index + np.int64(shift >> np.uint64(3))
                    arena[first + channel + column * pixel_pitch] = n
                    reach = np.int64(fan_out[channel, row, column])
                    events += n
                    reached += n * reach
                    graded += reach
                    most = max(most, n)
        units[unit, 0], units[unit, 1], units[unit, 2], units[unit, 3] = events, reached, graded, most
