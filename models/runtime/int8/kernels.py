"""Execution of a plan of integer operations: one compiled function runs a whole network.

Memory: spike counts lie in one uint8 arena, every buffer as `(T, N, rows, columns, channels)` with a margin of zeros around the
images, so that padding needs no special case. Concatenations and slices copy nothing, because an operation can read parts of
several buffers (terms). A unit of work is one row of LANES output channels for all timesteps, of convolutions of PAIR times as
many; currents are never written to memory. An addition is carried out only where it can be in 8 bits, because fewer channels
are read then. Units that share rows follow each other, so that a thread mostly reads what it wrote itself.

Threads start once for the whole network, because a start takes up to 0.1 ms, as long as an operation. Each thread works on its
own share of an operation's units, then on what is left of the others', and waits until all units are done. No thread waits for
one that has not started: any of them can do all the work.

Signed neurons: their counts are stored summed over time (`summed`). These are never negative, the maximum of a window is an
ordinary maximum, and a read-out needs the last timestep only. The spikes of a timestep are the difference of two sums.

Silence (models/spiking/silence.py): the counts of a window without events are computed once and kept. For every LANES channels
of a pixel, `changed` records whether the counts of the current window differ from them, and the differences are counted. What
does not differ in the input of a tile, or of a whole operation, is not computed: its counts are restored where the window
before had changed them, and how many they are is known.
"""

from __future__ import annotations

import numba
import numpy as np

from evburst.data._numba import njit
from evburst.models.runtime.int8.simd import (
    LANES,
    PAIR,
    PIXELS,
    TILE,
    copy_lanes,
    count_lanes,
    dot_tiles,
    fetch_add,
    fire_signed_tile,
    fire_tile,
    give_way,
    lanes_differ,
    multiply_lanes,
    pause,
    pool_lanes,
    read,
    read_tile,
    trailing_zeros,
)

FIRE, READ_OUT, MAX_POOL, UPSAMPLE, ADD = range(5)
"""Kinds of operations."""

_FIELDS = """kind rows columns blocks channels first_term terms added weights steps planes flush channel constant
    out out_step out_image out_row out_pixel fan_out by_channel uniform factor tiles"""
OPERATION = np.dtype([(name, np.int64) for name in _FIELDS.split()])
"""One operation. Distances and positions are in elements.

rows, columns, channels: shape of the output, computed in blocks of LANES channels.
first_term, terms, added: position of its terms, the number of those that are convolved, or resampled, or added up, and of
    those after them whose counts are added to the sums of convolutions.
weights, steps (per block and plane), planes, flush: see `_dot`.
channel: index of the first channel in scale, bias and limits.
constant: whether its current is equal at every timestep.
out, out_step, out_image, out_row, out_pixel: position of the counts or maps, and distances of timesteps, images, rows, pixels.
fan_out: position of the fan-out `(rows, columns, blocks)`.
uniform: whether the channels of each block have equal fan-out; else `by_channel` is the position of one per channel,
    `(rows, columns, blocks * LANES)`.
factor: of upsampling.
tiles: of FIRE, index of its first tile in the counts of silence `(rows, blocks, tiles)`.
"""

_TERM_FIELDS = """start step image row pixel offsets steps first_step span_rows span_columns source_row source_pixel blocks
    buffer buffer_size"""
TERM = np.dtype([(name, np.int64) for name in _TERM_FIELDS.split()])
"""What an operation reads from one buffer.

start: where the window of the first output begins.
step, image, row, pixel: distances per timestep, image, output row and output column.
offsets, steps, first_step: position of its steps in the offsets, their number, and the index of the first in the weights. Of
    counts that are added, first_step is the position of their factors.
span_rows, span_columns: extent of the window.
source_row, source_pixel: distances of rows and pixels in the buffer.
blocks: number of blocks of LANES channels that it reads.
buffer, buffer_size: position and size of the buffer's first timestep in `changed`.
"""

# Indices into `changed` are unsigned: numba tests signed ones for being negative, which prevents vectorisation.

COUNTERS = 16
"""Counters of a unit of work: spikes, synaptic operations, and both with each burst counted once; then the same four for
differences from silence. Each is the sum of two consecutive elements."""

_BEYOND = 8
"""The first counter of differences."""

MAX_CHANGED_SHARE = 0.5
"""If a larger share of an operation's input differs from silence, searching for unchanged tiles costs more than it saves."""


_PAUSES = 64
"""Pauses after which a waiting thread lets another one run on its core."""

PROGRESS = 8
"""Distance in elements of the counters in `progress`, so that each has a cache line of its own."""


@njit(cache=True, nogil=True, parallel=True, slow=True)
def run_operations(  # type: ignore[no-untyped-def]
    operations, terms, offsets, weights, factors, scale, bias, limits, fan_out, arena, silent, changed, maps, silent_maps,
    silent_totals, silent_tiles, restored, skip_silence, summed, timesteps, images, acc, before, progress, counts, totals
):  # fmt: skip
    """Run operations in order.

    Args:
        operations, terms: records, see OPERATION and TERM.
        offsets: int32 distances of the steps.
        weights: int8.
        factors: int32, that counts are multiplied by before they are added.
        scale, bias: float32 `(T, C)` per output channel, or `(1, C)` if equal at every timestep.
        limits: float32 (C), burst limits.
        fan_out: int32, number of weights that a spike meets.
        arena, silent: uint8 spike counts of this window, and of a window without events.
        changed: uint8 flags, one for every LANES elements of the arena; those of the first timestep stand for all timesteps.
        maps, silent_maps: float32 read-outs of this window, and of a window without events.
        silent_totals: `totals` of a window without events.
        silent_tiles: int64 `(tiles, 4)`: the first four of them for every tile of one image.
        restored: uint8 flag of each operation: whether its output is known to be that of silence; updated.
        skip_silence: whether to leave out what does not differ from silence.
        summed: whether counts are summed over time.
        timesteps, images: T and N.
        acc: int32 scratch memory per thread, PAIR tiles per timestep.
        before: uint16 scratch memory per thread, LANES each.
        progress: int64 `(operations * (threads + 1) * PROGRESS,)`, overwritten: of each operation, the number of units begun in
            the share of each thread, and of those done.
        counts: int64 `(threads, operations + 1, N, COUNTERS)`, overwritten: of each thread's units, and scratch memory.
        totals: int64 `(operations, N, COUNTERS / 2)`, overwritten: spikes, synaptic operations, and both with each burst
            counted once; then the same for differences from silence.
    """
    _clear(progress, counts)
    for thread in numba.prange(len(acc)):
        _work(
            thread, (operations, terms, offsets, weights, factors), (scale, bias, limits), fan_out,
            (arena, silent, changed, summed), (maps, silent_maps), (silent_totals, silent_tiles, restored), skip_silence,
            timesteps, images, acc, before, progress, counts[thread],
        )  # fmt: skip
    _add_up(counts, totals)


@njit(cache=True, nogil=True)
def _work(  # type: ignore[no-untyped-def]
    thread, tables, neurons, fan_out, state, maps, silence, skip_silence, timesteps, images, acc, before, progress, counts
):
    """Run all operations as one of several threads; see `run_operations`."""
    operations, terms, offsets, weights, factors = tables
    threads, changed, own = len(acc), state[2], counts[-1, 0]
    silent_totals, silent_tiles, restored = silence
    for index in range(len(operations)):
        operation = operations[index]
        reader = operation, terms, offsets, weights, factors
        together = PAIR if operation.kind == FIRE or operation.kind == READ_OUT else 1
        groups = (operation.blocks + together - 1) // together
        per_image, line = operation.rows * groups, index * (threads + 1) * PROGRESS
        units, all_done = images * per_image, line + threads * PROGRESS
        share = _share_changed(operation, terms, changed) if skip_silence else 1.0
        skip, nothing = share <= MAX_CHANGED_SHARE, share == 0
        if nothing and thread == 0:
            for image in range(images):
                for k in range(COUNTERS // 2):
                    counts[index, image, 2 * k] += silent_totals[index, image, k]
        if nothing and restored[index]:
            continue
        for turn in range(threads):
            owner, done = (thread + turn) % threads, 0
            first, stop = owner * units // threads, (owner + 1) * units // threads
            unit = first + fetch_add(progress, line + owner * PROGRESS, 1)
            while unit < stop:
                image, rest = unit // per_image, unit % per_image
                block = rest % groups * together
                place = image, block, rest // groups
                own[:] = 0
                if nothing:
                    for own_block in range(block, min(block + together, operation.blocks)):
                        _restore_row(operation, state, maps[0], maps[1], timesteps, (image, own_block, rest // groups))
                elif operation.kind == FIRE:
                    _fire(reader, neurons, fan_out, state, silent_tiles, skip, timesteps, place, acc[thread], own)
                elif operation.kind == READ_OUT:
                    _read_out(reader, neurons[0], neurons[1], state, maps[0], maps[1], skip, timesteps, place, acc[thread])
                elif operation.kind == MAX_POOL:
                    _max_pool(operation, terms[operation.first_term], fan_out, state, timesteps, place, before[thread], own)
                elif operation.kind == UPSAMPLE:
                    _upsample(operation, terms[operation.first_term], state, timesteps, place)
                else:
                    _add(operation, terms, factors, state, timesteps, place)
                for k in range(COUNTERS):
                    counts[index, image, k] += own[k]
                done += 1
                unit = first + fetch_add(progress, line + owner * PROGRESS, 1)
            fetch_add(progress, all_done, done)
        waited = 0
        while read(progress, all_done) < units:
            waited += 1
            if waited % _PAUSES:
                pause()
            else:
                give_way()
        restored[index] = nothing


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
def _restore_row(operation, state, maps, silent_maps, timesteps, place):  # type: ignore[no-untyped-def]
    """Restore a row of an operation's output to silence."""
    image, block, row = place
    to = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    if operation.kind == READ_OUT:
        _restore_maps(operation, maps, silent_maps, to, operation.columns)
    else:
        _restore(operation, state, timesteps, to, operation.columns)


@njit(cache=True, nogil=True)
def tally_silence(operations, fan_out, silent, summed, timesteps, tiles):  # type: ignore[no-untyped-def]
    """Count spikes, synaptic operations, and both with each burst counted once, of every tile in silence.

    Args:
        operations, fan_out, silent, summed, timesteps: as in `run_operations`.
        tiles: int64 `(tiles, 4)`, overwritten.
    """
    counts, index = np.zeros(COUNTERS, np.int64), 0
    for operation in operations:
        if operation.kind != FIRE:
            continue
        for row in range(operation.rows):
            for block in range(operation.blocks):
                for column in range(operation.columns):
                    if column % PIXELS == 0:
                        counts[:] = 0
                    fan_out_at = operation.fan_out + (row * operation.columns + column) * operation.blocks + block
                    at = operation.out + row * operation.out_row + column * operation.out_pixel + block * LANES
                    for t in range(timesteps):
                        here, since = at + t * operation.out_step, summed and t > 0
                        before = here - since * operation.out_step
                        count_lanes(silent, here, silent, before, since, fan_out, fan_out_at, counts, 0)
                    if column % PIXELS == PIXELS - 1 or column == operation.columns - 1:
                        for k in range(4):
                            tiles[index, k] = counts[2 * k] + counts[2 * k + 1]
                        index += 1


@njit(cache=True, nogil=True)
def _clear(progress, counts):  # type: ignore[no-untyped-def]
    """Set both to 0; a function of its own, because within a parallel function this would be another start of all threads."""
    progress[:] = 0
    counts[:] = 0


@njit(cache=True, nogil=True)
def _add_up(counts, totals):  # type: ignore[no-untyped-def]
    """Sum the counts of all threads, and each two consecutive elements; `totals` is overwritten."""
    totals[:] = 0
    for thread in range(len(counts)):
        for index in range(totals.shape[0]):
            for image in range(totals.shape[1]):
                for k in range(COUNTERS // 2):
                    totals[index, image, k] += counts[thread, index, image, 2 * k] + counts[thread, index, image, 2 * k + 1]


@njit(cache=True, nogil=True)
def _share_changed(operation, terms, changed):  # type: ignore[no-untyped-def]
    """Share of an operation's input that differs from silence."""
    n_changed, size = 0, 0
    for k in range(operation.first_term, operation.first_term + operation.terms + operation.added):
        for at in range(np.uintp(terms[k].buffer), np.uintp(terms[k].buffer + terms[k].buffer_size)):
            n_changed += changed[at]
        size += terms[k].buffer_size
    return n_changed / size


@njit(inline="always")
def _has_changed(reader, changed, place, column, pixels):  # type: ignore[no-untyped-def]
    """Whether anything that a tile reads differs from silence."""
    operation, terms, _, _, _ = reader
    image, _, row = place
    for k in range(operation.first_term, operation.first_term + operation.terms + operation.added):
        term = terms[k]
        start = term.start + image * term.image + row * term.row + column * term.pixel
        length = ((pixels - 1) * term.pixel + (term.span_columns - 1) * term.source_pixel) // LANES + term.blocks
        for i in range(term.span_rows):
            first = (start + i * term.source_row) // LANES
            any_changed = np.uint8(0)
            for at in range(np.uintp(first), np.uintp(first + length)):
                any_changed |= changed[at]
            if any_changed:
                return True
    return False


@njit(inline="always")
def _mark(operation, state, timesteps, to):  # type: ignore[no-untyped-def]
    """Flag whether a pixel just written differs from silence at any timestep."""
    arena, silent, changed, _ = state
    differs = False
    for t in range(timesteps):
        differs |= lanes_differ(arena, silent, to + t * operation.out_step)
    changed[np.uintp(to) // np.uintp(LANES)] = differs
    return differs


@njit(inline="always")
def _compare(operation, state, timesteps, to, fan_out, fan_out_at, counts):  # type: ignore[no-untyped-def]
    """Flag whether a pixel just written differs from silence, and count the differences."""
    arena, silent, _, summed = state
    if _mark(operation, state, timesteps, to):
        for t in range(timesteps):
            at = to + t * operation.out_step
            if summed and t > 0:
                _count_changes(arena, silent, at, operation.out_step, fan_out[fan_out_at], counts)
            else:
                count_lanes(arena, at, silent, at, True, fan_out, fan_out_at, counts, _BEYOND)


@njit(cache=True, nogil=True)
def _count_changes(arena, silent, at, step, fan_out, counts):  # type: ignore[no-untyped-def]
    """Count the differences from silence of LANES spike counts that are stored as sums over time, after the first timestep."""
    total, changed = np.int64(0), np.int64(0)
    for lane in range(LANES):
        difference = abs(_spikes_of(arena, at + lane, step) - _spikes_of(silent, at + lane, step))
        total += difference
        changed += difference != 0
    counts[_BEYOND] += total
    counts[_BEYOND + 2] += total * fan_out
    counts[_BEYOND + 4] += changed
    counts[_BEYOND + 6] += changed * fan_out


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
    operation, terms, offsets, weights, factors = reader
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
                dot_tiles(
                    arena, start, term.pixel, pixels, offsets, term.offsets, weights, first, operation.planes * size, blocks,
                    term.steps, operation.flush, acc, to, fresh,
                )  # fmt: skip
                fresh = False
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
def _fire(reader, neurons, fan_out, state, silent_tiles, skip, timesteps, place, acc, counts):  # type: ignore[no-untyped-def]
    """Compute a convolution and its burst neurons for one row of one or PAIR blocks."""
    operation, (arena, silent, changed, summed), (scale, bias, limits) = reader[0], state, neurons
    image, block, row = place
    blocks, width = min(PAIR, operation.blocks - block), operation.out_pixel
    out = operation.out + image * operation.out_image + row * operation.out_row
    fan_out_row = operation.fan_out + row * operation.columns * operation.blocks
    per_row = (operation.columns + PIXELS - 1) // PIXELS
    for column in range(0, operation.columns, PIXELS):
        pixels = min(PIXELS, operation.columns - column)
        unchanged = skip and not _has_changed(reader, changed, place, column, pixels)
        if not unchanged:
            for t in range(1 if operation.constant else timesteps):
                _dot(reader, arena, t, t + 1, place, blocks, column, pixels, acc, t * PAIR * TILE)
        step = 0 if operation.constant else PAIR * TILE
        for own in range(blocks):
            to, channel = out + column * width + (block + own) * LANES, operation.channel + (block + own) * LANES
            fan_out_at, sums = fan_out_row + column * operation.blocks + block + own, own * TILE
            if unchanged:
                _restore(operation, state, timesteps, to, pixels)
                tile = operation.tiles + (row * operation.blocks + block + own) * per_row + column // PIXELS
                for k in range(4):
                    counts[2 * k] += silent_tiles[tile, k]
            elif summed and timesteps > 1:
                fire_signed_tile(
                    acc, sums, step, timesteps, scale, bias, limits, channel, arena, to, operation.out_step, width, pixels,
                    fan_out, fan_out_at, operation.blocks, counts, silent, changed,
                )  # fmt: skip
            else:
                fire_tile(
                    acc, sums, step, timesteps, scale, bias, limits, channel, arena, to, operation.out_step, width, pixels,
                    fan_out, fan_out_at, operation.blocks, counts, silent, changed,
                )  # fmt: skip
    if not operation.uniform:
        _count_by_channel(operation, fan_out, state, timesteps, place, blocks, counts)


@njit(cache=True, nogil=True)
def _read_out(reader, scale, bias, state, maps, silent_maps, skip, timesteps, place, acc):  # type: ignore[no-untyped-def]
    """Compute a row, of one or PAIR blocks, of a convolution that is an output of the network: its current summed over time."""
    operation, (arena, _, changed, summed) = reader[0], state
    image, block, row = place
    blocks, end = min(PAIR, operation.blocks - block), 1 if operation.constant else timesteps
    begin = end - 1 if summed else 0
    out = operation.out + image * operation.out_image + row * operation.out_row
    for column in range(0, operation.columns, PIXELS):
        pixels = min(PIXELS, operation.columns - column)
        unchanged = skip and not _has_changed(reader, changed, place, column, pixels)
        if not unchanged:
            _dot(reader, arena, begin, end, place, blocks, column, pixels, acc, 0)
        for own in range(blocks):
            to, channel = out + column * operation.out_pixel + (block + own) * LANES, operation.channel + (block + own) * LANES
            if unchanged:
                _restore_maps(operation, maps, silent_maps, to, pixels)
            else:
                read_tile(acc, own * TILE, scale, bias, channel, maps, to, operation.out_pixel, pixels)


@njit(cache=True, nogil=True)
def _max_pool(operation, term, fan_out, state, timesteps, place, before, counts):  # type: ignore[no-untyped-def]
    """Compute a row of a max-pool: the growth of the largest accumulated count of each window, at every timestep."""
    arena, summed, (image, block, row) = state[0], state[3], place
    lanes = min(LANES, operation.channels - block * LANES)
    start = term.start + image * term.image + row * term.row + block * LANES
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for column in range(operation.columns):
        fan_out_at = operation.fan_out + (row * operation.columns + column) * operation.blocks + block
        at, to = start + column * term.pixel, out + column * operation.out_pixel
        before[:] = 0
        for t in range(timesteps):
            first, steps = (at + t * term.step, 1) if summed else (at, t + 1)
            pool_lanes(
                arena, first, term.source_row, term.source_pixel, term.span_rows, term.span_columns, term.step, steps, lanes,
                before, to + t * operation.out_step, fan_out, fan_out_at, counts, summed,
            )  # fmt: skip
        _compare(operation, state, timesteps, to, fan_out, fan_out_at, counts)
    if not operation.uniform:
        _count_by_channel(operation, fan_out, state, timesteps, place, 1, counts)


@njit(cache=True, nogil=True)
def _upsample(operation, term, state, timesteps, place):  # type: ignore[no-untyped-def]
    """Compute a row of nearest-neighbour upsampling."""
    arena, (image, block, row) = state[0], place
    factor = operation.factor
    start = term.start + image * term.image + row // factor * term.row + block * LANES
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for column in range(operation.columns // factor):
        at = start + column * term.pixel
        for i in range(factor):
            to = out + (column * factor + i) * operation.out_pixel
            for t in range(timesteps):
                copy_lanes(arena, at + t * term.step, arena, to + t * operation.out_step)
            _mark(operation, state, timesteps, to)


@njit(cache=True, nogil=True)
def _add(operation, terms, factors, state, timesteps, place):  # type: ignore[no-untyped-def]
    """Compute a row of a sum of counts, each times a factor of its channel."""
    arena, (image, block, row) = state[0], place
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
        _mark(operation, state, timesteps, to)


@njit(cache=True, nogil=True)
def _count_by_channel(operation, fan_out, state, timesteps, place, blocks, counts):  # type: ignore[no-untyped-def]
    """Count the synaptic operations of a row in which the channels of a block differ in fan-out."""
    arena, silent, _, summed = state
    image, block, row = place
    out = operation.out + image * operation.out_image + row * operation.out_row + block * LANES
    for first in (0, _BEYOND):
        counts[first + 2 : first + 4], counts[first + 6 : first + 8] = 0, 0
    for column in range(operation.columns):
        first = operation.by_channel + ((row * operation.columns + column) * operation.blocks + block) * LANES
        for t in range(timesteps):
            for lane in range(blocks * LANES):
                at = out + column * operation.out_pixel + t * operation.out_step + lane
                n, resting = np.int64(arena[at]), np.int64(silent[at])
                if summed and t > 0:
                    n, resting = _spikes_of(arena, at, operation.out_step), _spikes_of(silent, at, operation.out_step)
                targets = np.int64(fan_out[first + lane])
                counts[2] += abs(n) * targets
                counts[6] += (n != 0) * targets
                counts[_BEYOND + 2] += abs(n - resting) * targets
                counts[_BEYOND + 6] += (n != resting) * targets


@njit(cache=True, nogil=True, parallel=True)
def pack_grid(  # type: ignore[no-untyped-def]
    words, columns, fan_out, arena, changed, start, image_pitch, row_pitch, pixel_pitch, units
):
    """Write event counts into the arena with channels last; the work is proportional to the number of non-zero counts.

    Args:
        words: grid `(N, channels, rows, columns)` uint8, with eight columns packed into a little-endian uint64, padded with 0.
        columns: number of columns without the padding.
        fan_out: int32 `(channels, rows, columns)`.
        arena, changed: as in `run_operations`.
        start, image_pitch, row_pitch, pixel_pitch: position of the buffer and its distances, in elements.
        units: int64 `(N * rows, 4)`, overwritten: events, synaptic operations, synaptic operations with each non-zero
            count taken once, and largest count.
    """
    images, channels, rows, per_row = words.shape
    low, position = np.uint64(255), np.uint64(56)
    for unit in numba.prange(images * rows):
        image, row = unit // rows, unit % rows
        totals = units[unit]
        totals[:4] = 0
        first = start + image * image_pitch + row * row_pitch
        arena[first : first + columns * pixel_pitch] = 0
        changed[first // LANES : (first + columns * pixel_pitch) // LANES] = 0
        for channel in range(channels):
            for index in range(per_row):
                word = words[image, channel, row, index]
                while word != 0:
                    shift = trailing_zeros(word) & position
                    n = np.int64((word >> shift) & low)
                    word &= ~(low << shift)
                    column = 8 * index + np.int64(shift >> np.uint64(3))
                    at = first + channel + column * pixel_pitch
                    arena[at] = n
                    changed[at // LANES] = 1
                    targets = np.int64(fan_out[channel, row, column])
                    totals[0] += n
                    totals[1] += n * targets
                    totals[2] += targets
                    totals[3] = max(totals[3], n)
