"""Operations of the kernels, each for one row of one image and one or several blocks of LANES channels, for all timesteps."""

from __future__ import annotations

import numpy as np

from evburst.data._numba import njit
from evburst.models.runtime.int8.records import BEYOND, FIRE, MAX_POOL, READ_OUT
from evburst.models.runtime.int8.simd.dots import dot_active, dot_tiles
from evburst.models.runtime.int8.simd.emit import BATCH, LANES, PAIR, PIXELS, QUAD, TILE
from evburst.models.runtime.int8.simd.lanes import (
    copy_lanes,
    keep_larger,
    lanes_differ,
    multiply_lanes,
    pool_lanes,
)
from evburst.models.runtime.int8.simd.neurons import count_pixel, fire_signed_tile, fire_tile, read_tile

# Indices into `changed` are unsigned: numba tests signed ones for being negative, which prevents vectorisation.


@njit(inline="always")
def _restore(operation, state, timesteps, to, pixels):  # type: ignore[no-untyped-def]
    """Restore the counts of neighbouring pixels to those of silence, where they differ from the window before."""
    arena, silent, changed, _ = state
    for i in range(pixels):
        at = to + i * operation.out_pixel
        if changed[np.uintp(at) // np.uintp(LANES)]:
            changed[np.uintp(at) // np.uintp(LANES)] = 0
            for t in range(timesteps):
                copy_lanes(silent, at + t * operation.out_step, arena, at + t * operation.out_step)


@njit(inline="always")
def _restore_maps(operation, maps, silent_maps, to, pixels):  # type: ignore[no-untyped-def]
    """Restore a read-out of neighbouring pixels to that of silence."""
    for i in range(pixels):
        for at in range(to + i * operation.out_pixel, to + i * operation.out_pixel + LANES):
            maps[at] = silent_maps[at]


@njit(cache=True, nogil=True)
def restore_row(operation, state, maps, silent_maps, timesteps, place):  # type: ignore[no-untyped-def]
    """Restore a row of an operation's output to silence."""
    image, block, row = place
    to = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    if operation.kind == READ_OUT:
        _restore_maps(operation, maps, silent_maps, to, operation.columns)
    elif _any_flag(state[2], to // LANES, (operation.columns - 1) * operation.out_pixel // LANES + 1):
        _restore(operation, state, timesteps, to, operation.columns)


@njit(inline="always")
def has_changed(reader, changed, place, column, pixels):  # type: ignore[no-untyped-def]
    """Whether anything that neighbouring pixels of a row read differs from silence."""
    operation, terms = reader[:2]
    image, _, row = place
    for k in range(operation.first_term, operation.first_term + operation.terms + operation.added):
        term = terms[k]
        start = term.start + image * term.image + row * term.row + column * term.pixel
        length = ((pixels - 1) * term.pixel + (term.span_columns - 1) * term.source_pixel) // LANES + term.blocks
        for i in range(term.span_rows):
            if _any_flag(changed, (start + i * term.source_row) // LANES, length):
                return True
    return False


@njit(inline="always")
def _any_flag(changed, first, length):  # type: ignore[no-untyped-def]
    """Whether any of neighbouring flags is set."""
    found = np.uint8(0)
    for at in range(np.uintp(first), np.uintp(first + length)):
        found |= changed[at]
    return found != 0


@njit(inline="always")
def _spikes_of(arena, at, step):  # type: ignore[no-untyped-def]
    """Spikes of a neuron in a timestep after the first, of counts that are stored as sums over time."""
    return np.int64(arena[at]) - np.int64(arena[at - step])


@njit(inline="always")
def _dot(reader, arena, begin, end, place, blocks, column, pixels, acc, to):  # type: ignore[no-untyped-def]
    """Compute the weighted sums of the counts of timesteps [begin, end) for the tiles of one or PAIR blocks, into `acc` from
    index `to` on.

    Weights of two planes are 128 * first + second.
    """
    operation, terms, offsets, weights, chunks, _ = reader
    image, block, row = place
    size = operation.steps * 4 * LANES
    at = operation.weights + block * operation.planes * size
    fresh = True
    for plane in range(operation.planes):
        if plane:
            for i in range(blocks * TILE):
                acc[to + i] <<= 7
        for t in range(begin, end):
            for k in range(operation.first_term, operation.first_term + operation.terms):
                term = terms[k]
                start = term.start + t * term.step + image * term.image + row * term.row + column * term.pixel
                first = at + plane * size + term.first_step * 4 * LANES
                head = operation.chunks + (block * operation.planes + plane) * operation.terms + k - operation.first_term
                dot_tiles(
                    arena, start, term.pixel, pixels, offsets, term.offsets, weights, first, operation.planes * size, blocks,
                    term.steps, chunks, head, operation.planes * operation.terms, acc, to, fresh,
                )  # fmt: skip
                fresh = False
    _dot_added(reader, arena, begin, end, place, blocks, column, pixels, acc, to)


@njit(inline="always")
def _dot_found(reader, arena, timesteps, place, column, pixels, acc, found):  # type: ignore[no-untyped-def]
    """Compute the weighted sums of the tiles of QUAD blocks for all timesteps, without steps whose counts are 0."""
    operation, terms, offsets, weights = reader[:4]
    image, block, row = place
    size, step = operation.steps * 4 * LANES, QUAD * TILE
    at = operation.weights + block * size
    for t in range(0, timesteps, BATCH):
        for k in range(operation.first_term, operation.first_term + operation.terms):
            term = terms[k]
            start = term.start + t * term.step + image * term.image + row * term.row + column * term.pixel
            dot_active(
                arena, start, term.pixel, pixels, term.step, min(BATCH, timesteps - t), offsets, term.offsets,
                term.steps // term.run, term.run, weights, at + term.first_step * 4 * LANES, size, acc, t * step, step,
                k == operation.first_term, found,
            )  # fmt: skip
    for t in range(timesteps if operation.added else 0):
        _dot_added(reader, arena, t, t + 1, place, QUAD, column, pixels, acc, t * step)


@njit(inline="always")
def _dot_added(reader, arena, begin, end, place, blocks, column, pixels, acc, to):  # type: ignore[no-untyped-def]
    """Add counts of timesteps [begin, end), each times its factor, to the sums of the tiles of one or several blocks."""
    operation, terms, factors = reader[0], reader[1], reader[5]
    image, block, row = place
    for t in range(begin, end):
        for k in range(operation.first_term + operation.terms, operation.first_term + operation.terms + operation.added):
            term = terms[k]
            start = term.start + t * term.step + image * term.image + row * term.row + column * term.pixel
            for own in range(blocks):
                channel = (block + own) * LANES
                first = np.uintp(term.first_step + channel)
                for i in range(pixels):
                    here, sums = np.uintp(start + i * term.pixel + channel), np.uintp(to + own * TILE + i * LANES)
                    for lane in range(np.uintp(LANES)):
                        acc[sums + lane] += np.int32(arena[here + lane]) * factors[first + lane]


@njit(cache=True, nogil=True)
def fire(  # type: ignore[no-untyped-def]
    reader, neurons, fan_out, state, silent_tiles, skip, timesteps, place, acc, found, counts
):
    """Compute a convolution and its burst neurons for one row of the blocks that are summed together."""
    operation, (arena, silent, changed, summed), (scale, bias, limits) = reader[0], state, neurons
    image, block, row = place
    blocks, width = min(operation.together, operation.blocks - block), operation.out_pixel
    out, tiles = operation.out + image * operation.out_image + row * operation.out_row, operation.together * TILE
    fan_out_pitch = operation.blocks * LANES
    fan_out_row = fan_out[0][operation.fan_out + row] + block * LANES
    per_row = (operation.columns + PIXELS - 1) // PIXELS
    for column in range(0, operation.columns, PIXELS):
        pixels = min(PIXELS, operation.columns - column)
        unchanged = skip and not has_changed(reader, changed, place, column, pixels)
        if not unchanged and operation.together == QUAD:
            _dot_found(reader, arena, timesteps, place, column, pixels, acc, found)
        elif not unchanged:
            for t in range(1 if operation.constant else timesteps):
                _dot(reader, arena, t, t + 1, place, blocks, column, pixels, acc, t * tiles)
        step = 0 if operation.constant else tiles
        for own in range(blocks):
            to, channel = out + column * width + (block + own) * LANES, operation.channel + (block + own) * LANES
            sums, fan_out_at = own * TILE, fan_out_row + column * fan_out_pitch + own * LANES
            if unchanged:
                _restore(operation, state, timesteps, to, pixels)
                tile = operation.tiles + (row * operation.blocks + block + own) * per_row + column // PIXELS
                for k in range(4):
                    counts[2 * k] += silent_tiles[tile, k]
            elif summed and timesteps > 1:
                fire_signed_tile(
                    acc, sums, step, timesteps, scale, bias, limits, channel, arena, to, operation.out_step, width, pixels,
                    fan_out[1], fan_out_at, fan_out_pitch, counts, silent, changed,
                )  # fmt: skip
            else:
                fire_tile(
                    acc, sums, step, timesteps, scale, bias, limits, channel, arena, to, operation.out_step, width, pixels,
                    fan_out[1], fan_out_at, fan_out_pitch, counts, silent, changed,
                )  # fmt: skip


@njit(cache=True, nogil=True)
def read_out(reader, scale, bias, state, maps, silent_maps, skip, timesteps, place, acc):  # type: ignore[no-untyped-def]
    """Compute a row, of one or PAIR blocks, of a convolution that is an output of the network: its current summed over time."""
    operation, (arena, _, changed, summed) = reader[0], state
    image, block, row = place
    blocks, end = min(PAIR, operation.blocks - block), 1 if operation.constant else timesteps
    begin = end - 1 if summed else 0
    out = operation.out + image * operation.out_image + row * operation.out_row
    for column in range(0, operation.columns, PIXELS):
        pixels = min(PIXELS, operation.columns - column)
        unchanged = skip and not has_changed(reader, changed, place, column, pixels)
        if not unchanged:
            _dot(reader, arena, begin, end, place, blocks, column, pixels, acc, 0)
        for own in range(blocks):
            to, channel = out + column * operation.out_pixel + (block + own) * LANES, operation.channel + (block + own) * LANES
            if unchanged:
                _restore_maps(operation, maps, silent_maps, to, pixels)
            else:
                read_tile(acc, own * TILE, scale, bias, channel, maps, to, operation.out_pixel, pixels)


@njit(cache=True, nogil=True)
def max_pool(operation, term, fan_out, state, timesteps, place, scratch, counts):  # type: ignore[no-untyped-def]
    """Compute a row of a max-pool: the growth of the largest accumulated count of each window, at every timestep.

    Args:
        scratch: uint8, for the largest counts of the columns that the windows consist of.
    """
    (arena, silent, changed, summed), (image, block, row) = state, place
    lanes = min(LANES, operation.channels - block * LANES)
    start = term.start + image * term.image + row * term.row + block * LANES
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    fan_out_row = fan_out[0][operation.fan_out + row] + block * LANES
    stride = term.pixel // term.source_pixel
    width = (operation.columns - 1) * stride + term.span_columns
    for t in range(timesteps if summed else 0):
        first = start + t * term.step
        for i in range(term.span_rows):
            keep_larger(arena, first + i * term.source_row, term.source_pixel, width, LANES, scratch, 0, LANES, i == 0)
        to = out + t * operation.out_step
        for i in range(term.span_columns):
            at, pitch = i * LANES, stride * LANES
            keep_larger(scratch, at, pitch, operation.columns, lanes, arena, to, operation.out_pixel, i == 0)
    for column in range(operation.columns):
        fan_out_at, to = fan_out_row + column * operation.blocks * LANES, out + column * operation.out_pixel
        if not summed:
            pool_lanes(
                arena, start + column * term.pixel, term.source_row, term.source_pixel, term.span_rows, term.span_columns,
                term.step, timesteps, lanes, to, operation.out_step,
            )  # fmt: skip
        changed[np.uintp(to) // np.uintp(LANES)] = count_pixel(
            arena, silent, to, operation.out_step, timesteps, summed and timesteps > 1, fan_out[1], fan_out_at, counts
        )


@njit(cache=True, nogil=True)
def upsample(operation, term, state, skip, timesteps, place):  # type: ignore[no-untyped-def]
    """Compute a row of nearest-neighbour upsampling; where its input is silence, so is it."""
    arena, changed, (image, block, row) = state[0], state[2], place
    factor = operation.factor
    start = term.start + image * term.image + row // factor * term.row + block * LANES
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for column in range(operation.columns // factor):
        at = start + column * term.pixel
        first, last = np.uintp(at) // np.uintp(LANES), np.uintp(at + LANES - 1) // np.uintp(LANES)
        differs = changed[first] | changed[last]
        for i in range(factor):
            to = out + (column * factor + i) * operation.out_pixel
            flag = np.uintp(to) // np.uintp(LANES)
            if differs or changed[flag] or not skip:
                for t in range(timesteps):
                    copy_lanes(arena, at + t * term.step, arena, to + t * operation.out_step)
            changed[flag] = differs


@njit(cache=True, nogil=True)
def add(operation, terms, factors, state, timesteps, place):  # type: ignore[no-untyped-def]
    """Compute a row of a sum of counts, each times a factor of its channel."""
    (arena, silent, changed, _), (image, block, row) = state, place
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for column in range(operation.columns):
        to = out + column * operation.out_pixel
        for k in range(operation.first_term, operation.first_term + operation.terms):
            term = terms[k]
            at = term.start + image * term.image + row * term.row + column * term.pixel + block * LANES
            first = term.first_step + block * LANES
            for t in range(timesteps):
                here = to + t * operation.out_step
                multiply_lanes(arena, at + t * term.step, factors, first, here, k > operation.first_term)
        differs = False
        for t in range(timesteps):
            differs |= lanes_differ(arena, silent, to + t * operation.out_step)
        changed[np.uintp(to) // np.uintp(LANES)] = differs


@njit(cache=True, nogil=True)
def count_silent_row(operation, silent_tiles, place, counts):  # type: ignore[no-untyped-def]
    """Count a row of an operation's output that has been restored to silence, if it is counted."""
    if operation.kind != FIRE and operation.kind != MAX_POOL:
        return
    _, block, row = place
    per_row = (operation.columns + PIXELS - 1) // PIXELS
    first = operation.tiles + (row * operation.blocks + block) * per_row
    for tile in range(first, first + per_row):
        for k in range(4):
            counts[2 * k] += silent_tiles[tile, k]


@njit(cache=True, nogil=True)
def count_wide(operation, fan_out, state, timesteps, place, blocks, counts):  # type: ignore[no-untyped-def]
    """Count the synaptic operations of a row whose sums do not fit into 32 bits, in place of those counted."""
    arena, silent, _, summed = state
    image, block, row = place
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for first in (0, BEYOND):
        counts[first + 2 : first + 4], counts[first + 6 : first + 8] = 0, 0
    for column in range(operation.columns):
        first = operation.wide + ((row * operation.columns + column) * operation.blocks + block) * LANES
        for t in range(timesteps):
            for lane in range(blocks * LANES):
                at = out + column * operation.out_pixel + t * operation.out_step + lane
                n, resting = np.int64(arena[at]), np.int64(silent[at])
                if summed and t > 0:
                    n, resting = _spikes_of(arena, at, operation.out_step), _spikes_of(silent, at, operation.out_step)
                targets = np.int64(fan_out[first + lane])
                counts[2] += abs(n) * targets
                counts[6] += (n != 0) * targets
                counts[BEYOND + 2] += abs(n - resting) * targets
                counts[BEYOND + 6] += (n != resting) * targets
