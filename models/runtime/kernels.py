"""A plan of integer operations carried out: one compiled function for a whole network.

Spike counts lie in one uint8 arena, every buffer as `(T, N, rows, columns, channels)` with a margin of zeros around the images: padding
needs no special case, and nothing is copied for a concatenation, a slice or an addition, because an operation reads parts
of several buffers (terms). A unit of work is one row of LANES output channels, all timesteps: currents never reach memory.
"""

from __future__ import annotations

import numba
import numpy as np

from models.runtime.simd import LANES, PIXELS, dot_tile, fire_tile

FIRE, READ_OUT, MAX_POOL, UPSAMPLE = range(4)
"""Kinds of operation."""

_FIELDS = """kind rows columns blocks channels first_term terms weights steps planes flush channel constant phi
    out out_step out_image out_row out_pixel fan_out uniform kernel_rows kernel_columns
    source_row source_pixel factor"""
OPERATION = np.dtype([(name, np.int64) for name in _FIELDS.split()])
"""One operation. Distances and places are counted in elements.

rows, columns, channels: of its output; blocks of LANES channels. weights, steps (per block and plane), planes, flush: see _dot.
channel: of scale and bias. constant: its current is the same at every timestep. out...: where counts or maps go. fan_out: of
output pixel 0; uniform: the same for the LANES channels of a block. kernel..., source...: window of a
max-pool, distances in what it reads; factor: of upsampling.
"""

TERM = np.dtype([(name, np.int64) for name in ("start", "step", "image", "row", "pixel", "offsets", "steps", "first_step")])
"""A part of a buffer that an operation reads: where the first output's window begins, distances per timestep, image, output
row and output column; where its steps are in the offsets, how many, and which is its first in the weights."""


@numba.njit(cache=True, nogil=True, parallel=True)
def run_operations(  # type: ignore[no-untyped-def]
    operations, terms, offsets, weights, scale, bias, fan_out, arena, maps, timesteps, images, acc, v_mem, units, totals
):
    """Carry out operations in order.

    Args:
        operations, terms: see OPERATION and TERM.
        offsets: int32. weights: int8. scale, bias: float32, per output channel.
        fan_out: int32, weights reached by a spike.
        arena: uint8, all spike counts. maps: float32, what is read out.
        timesteps, images: T and N.
        acc, v_mem: a tile, int32 and float32, for every thread.
        units: float64 `(most units of work, 3)`, overwritten.
        totals: float64 `(operations, N, 3)`, set: spikes, synaptic operations, the same with a burst counted once.
    """
    for index in range(len(operations)):
        per_image = operations[index].rows * operations[index].blocks
        counted = operations[index].kind == FIRE or operations[index].kind == MAX_POOL
        for unit in numba.prange(images * per_image):
            operation, thread = operations[index], numba.get_thread_id()
            image, rest = unit // per_image, unit % per_image
            block, row = rest // operation.rows, rest % operation.rows
            out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
            place = image, block, row
            if operation.kind == FIRE:
                _fire(operation, terms, offsets, weights, scale, bias, arena, timesteps, place, out, acc[thread], v_mem[thread])
            elif operation.kind == READ_OUT:
                _read_out(operation, terms, offsets, weights, scale, bias, arena, maps, timesteps, place, out, acc[thread])
            elif operation.kind == MAX_POOL:
                _max_pool(operation, terms[operation.first_term], arena, timesteps, place, out, acc[thread])
            else:
                _upsample(operation, terms[operation.first_term], arena, timesteps, place, out)
            if counted:
                _count(operation, fan_out, arena, timesteps, block, row, out, units[unit])
        if counted:
            for image in range(images):
                for k in range(3):
                    totals[index, image, k] = units[image * per_image : (image + 1) * per_image, k].sum()


@numba.njit(cache=True, nogil=True)
def _dot(operation, terms, offsets, weights, arena, begin, end, place, column, acc):  # type: ignore[no-untyped-def]
    """The weighted sum of the counts of timesteps [begin, end), for one tile; weights of two planes are 128 * first + second."""
    image, block, row = place
    size = operation.steps * 4 * LANES
    at = operation.weights + block * operation.planes * size
    acc[:] = 0
    for plane in range(operation.planes):
        for i in range(len(acc)):
            acc[i] <<= 7
        for t in range(begin, end):
            for k in range(operation.first_term, operation.first_term + operation.terms):
                term = terms[k]
                start = term.start + t * term.step + image * term.image + row * term.row + column * term.pixel
                first = at + plane * size + term.first_step * 4 * LANES
                dot_tile(arena, start, term.pixel, offsets, term.offsets, weights, first, term.steps, operation.flush, acc)


@numba.njit(cache=True, nogil=True)
def _fire(operation, terms, offsets, weights, scale, bias, arena, timesteps, place, out, acc, v_mem):  # type: ignore[no-untyped-def]
    """A convolution and its burst neurons."""
    channel, phi = operation.channel + place[1] * LANES, np.float32(operation.phi)
    for column in range(0, operation.columns, PIXELS):
        pixels = min(PIXELS, operation.columns - column)
        v_mem[:] = np.float32(0.5)
        for t in range(timesteps):
            if t == 0 or not operation.constant:
                _dot(operation, terms, offsets, weights, arena, t, t + 1, place, column, acc)
            to = out + column * operation.out_pixel + t * operation.out_step
            fire_tile(acc, v_mem, scale, bias, channel, phi, arena, to, operation.out_pixel, pixels)


@numba.njit(cache=True, nogil=True)
def _read_out(operation, terms, offsets, weights, scale, bias, arena, maps, timesteps, place, out, acc):  # type: ignore[no-untyped-def]
    """A convolution that is read out: its current summed over time."""
    channel = place[1] * LANES
    lanes = min(LANES, operation.channels - channel)
    end = 1 if operation.constant else timesteps
    for column in range(0, operation.columns, PIXELS):
        _dot(operation, terms, offsets, weights, arena, 0, end, place, column, acc)
        for i in range(min(PIXELS, operation.columns - column)):
            for lane in range(lanes):
                current = np.float32(acc[i * LANES + lane]) * scale[operation.channel + channel + lane]
                maps[out + (column + i) * operation.out_pixel + lane] = current + bias[operation.channel + channel + lane]


@numba.njit(cache=True, nogil=True)
def _max_pool(operation, term, arena, timesteps, place, out, scratch):  # type: ignore[no-untyped-def]
    """By how much the largest accumulated count of a window has grown, at every timestep."""
    image, block, row = place
    lanes = min(LANES, operation.channels - block * LANES)
    most, summed, before = scratch[:LANES], scratch[LANES : 2 * LANES], scratch[2 * LANES : 3 * LANES]
    for column in range(operation.columns):
        start = term.start + image * term.image + row * term.row + column * term.pixel + block * LANES
        to = out + column * operation.out_pixel
        before[:] = 0
        for t in range(timesteps):
            most[:] = 0
            for i in range(operation.kernel_rows):
                for j in range(operation.kernel_columns):
                    at = start + i * operation.source_row + j * operation.source_pixel
                    summed[:] = 0
                    for earlier in range(t + 1):
                        for lane in range(LANES):
                            summed[lane] += arena[at + earlier * term.step + lane]
                    for lane in range(LANES):
                        most[lane] = max(most[lane], summed[lane])
            for lane in range(lanes):
                arena[to + t * operation.out_step + lane] = np.uint8(most[lane] - before[lane])
                before[lane] = most[lane]


@numba.njit(cache=True, nogil=True)
def _upsample(operation, term, arena, timesteps, place, out):  # type: ignore[no-untyped-def]
    """Nearest neighbour."""
    image, block, row = place
    lanes = min(LANES, operation.channels - block * LANES)
    factor = operation.factor
    for t in range(timesteps):
        start = term.start + t * term.step + image * term.image + row // factor * term.row + block * LANES
        to = out + t * operation.out_step
        for column in range(operation.columns):
            at, there = start + column // factor * term.pixel, to + column * operation.out_pixel
            for lane in range(lanes):
                arena[there + lane] = arena[at + lane]


@numba.njit(cache=True, nogil=True)
def _count(operation, fan_out, arena, timesteps, block, row, out, totals):  # type: ignore[no-untyped-def]
    """Spikes, synaptic operations, and these with a burst counted once, of what a unit has just written."""
    width = 1 if operation.uniform else LANES
    spikes, reached, graded = 0, 0, 0
    for column in range(operation.columns):
        first = operation.fan_out + ((row * operation.columns + column) * operation.blocks + block) * width
        at = out + column * operation.out_pixel
        for t in range(timesteps):
            counts = arena[at + t * operation.out_step : at + t * operation.out_step + LANES]
            if operation.uniform:
                summed, bursts = np.int32(0), np.int32(0)
                for lane in range(LANES):
                    summed += np.int32(counts[lane])
                    bursts += np.int32(counts[lane] != 0)
                spikes += summed
                reached += summed * np.int64(fan_out[first])
                graded += bursts * np.int64(fan_out[first])
            else:
                for lane in range(LANES):
                    spikes += counts[lane]
                    reached += counts[lane] * np.int64(fan_out[first + lane])
                    graded += (counts[lane] != 0) * np.int64(fan_out[first + lane])
    totals[0], totals[1], totals[2] = spikes, reached, graded


@numba.njit(cache=True, nogil=True, parallel=True)
def pack_grid(grid, fan_out, arena, start, image_pitch, row_pitch, pixel_pitch, units):  # type: ignore[no-untyped-def]
    """Counts of events `(N, channels, rows, columns)` uint8, channels last, into the arena.

    Args:
        fan_out: int32 `(channels, rows, columns)`.
        start, image_pitch, row_pitch, pixel_pitch: where, in elements.
        units: float64 `(N * rows, 4)`, set: events, synaptic operations, these with a count taken once, largest count.
    """
    images, channels, rows, columns = grid.shape
    for unit in numba.prange(images * rows):
        image, row = unit // rows, unit % rows
        events, reached, graded, most = 0, 0, 0, 0
        for channel in range(channels):
            at = start + image * image_pitch + row * row_pitch + channel
            for column in range(columns):
                n = grid[image, channel, row, column]
                arena[at + column * pixel_pitch] = n
                events += n
                reached += n * np.int64(fan_out[channel, row, column])
                graded += (n != 0) * np.int64(fan_out[channel, row, column])
                most = max(most, np.int64(n))
        units[unit, 0], units[unit, 1], units[unit, 2], units[unit, 3] = events, reached, graded, most
