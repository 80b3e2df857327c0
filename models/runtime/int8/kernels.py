"""Execution of a plan of integer operations: one compiled function runs a whole network.

Memory: spike counts lie in one uint8 arena, every buffer as `(T, N, rows, columns, channels)` with a margin of zeros around the
images, so that padding needs no special case. Concatenations and slices copy nothing, because an operation can read parts of
several buffers (terms). A unit of work is one row of LANES output channels for all timesteps, of convolutions of PAIR or QUAD
times as many; currents are never written to memory. An addition is carried out only where it can be in 8 bits, because fewer
channels are read then. Units that share rows follow each other, so that a thread mostly reads what it wrote itself.

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
from evburst.models.runtime.int8.records import COUNTERS, FIRE, MAX_POOL, READ_OUT, UPSAMPLE
from evburst.models.runtime.int8.rows import (
    add,
    count_silent_row,
    count_wide,
    fire,
    has_changed,
    max_pool,
    read_out,
    restore_row,
    upsample,
)
from evburst.models.runtime.int8.simd.emit import LANES, PIXELS
from evburst.models.runtime.int8.simd.neurons import count_pixel
from evburst.models.runtime.int8.simd.threads import fetch_add, give_way, pause, read, trailing_zeros

MAX_CHANGED_SHARE = 0.5
"""If a larger share of an operation's input differs from silence, searching for unchanged tiles costs more than it saves."""

_PAUSES = 64
"""Pauses after which a waiting thread lets another one run on its core."""

PROGRESS = 8
"""Distance in elements of the counters in `progress`, so that each has a cache line of its own."""


@njit(cache=True, nogil=True, parallel=True, slow=True)
def run_operations(  # type: ignore[no-untyped-def]
    operations, terms, offsets, weights, chunks, factors, scale, bias, limits, fan_out, arena, silent, changed, maps,
    silent_maps, silent_totals, silent_tiles, restored, skip_silence, summed, timesteps, images, acc, found, rows, progress,
    counts, totals
):  # fmt: skip
    """Run operations in order.

    Args:
        operations, terms: records, see OPERATION and TERM.
        offsets: int32 distances of the steps.
        weights: int8.
        chunks: int32, see `chunks_of`; every operation's at its own position.
        factors: int32, that counts are multiplied by before they are added.
        scale, bias: float32 `(T, C)` per output channel, or `(1, C)` if equal at every timestep.
        limits: float32 (C), burst limits.
        fan_out: number of weights that a spike meets: position of every row, int32; the rows, int16; and int32 for those of
            wide operations.
        arena, silent: uint8 spike counts of this window, and of a window without events.
        changed: uint8 flags, one for every LANES elements of the arena; those of the first timestep stand for all timesteps.
        maps, silent_maps: float32 read-outs of this window, and of a window without events.
        silent_totals: `totals` of a window without events.
        silent_tiles: int64 `(tiles, 4)`: the first four of them for every tile of one image.
        restored: uint8 flag of each operation: whether its output is known to be that of silence; updated.
        skip_silence: whether to leave out what does not differ from silence.
        summed: whether counts are summed over time.
        timesteps, images: T and N.
        acc: int32 scratch memory per thread, QUAD tiles per timestep.
        found: int32 scratch memory per thread, an element for each step of an operation, and LANES more.
        rows: uint8 scratch memory per thread, LANES for every pixel that a row of a max-pool reads.
        progress: int64 `(operations * (threads + 1) * PROGRESS,)`, overwritten: of each operation, the number of units begun in
            the share of each thread, and of those done.
        counts: int64 `(threads, operations + 1, N, COUNTERS)`, overwritten: of each thread's units, and scratch memory.
        totals: int64 `(operations, N, COUNTERS / 2)`, overwritten: spikes, synaptic operations, and both with each burst
            counted once; then the same for differences from silence.
    """
    _clear(progress, counts)
    for thread in numba.prange(len(acc)):
        _work(
            thread, (operations, terms, offsets, weights, chunks, factors), (scale, bias, limits), fan_out,
            (arena, silent, changed, summed), (maps, silent_maps), (silent_totals, silent_tiles, restored), skip_silence,
            timesteps, images, acc, found, rows, progress, counts[thread],
        )  # fmt: skip
    _add_up(counts, totals)


@njit(cache=True, nogil=True)
def _work(  # type: ignore[no-untyped-def]
    thread, tables, neurons, fan_out, state, maps, silence, skip_silence, timesteps, images, acc, found, rows, progress, counts
):
    """Run all operations as one of several threads; see `run_operations`."""
    operations, terms, offsets, weights, chunks, factors = tables
    threads, changed, own = len(acc), state[2], counts[-1, 0]
    silent_totals, silent_tiles, restored = silence
    buffers = acc[thread], rows[thread], found[thread]
    for index in range(len(operations)):
        operation = operations[index]
        reader = operation, terms, offsets, weights, chunks, factors
        together = operation.together
        groups = (operation.blocks + together - 1) // together
        per_image, line = operation.rows * groups, index * (threads + 1) * PROGRESS
        units, all_done = images * per_image, line + threads * PROGRESS
        share = _share_changed(operation, terms, changed) if skip_silence else 1.0
        skip, nothing = share <= MAX_CHANGED_SHARE, share == 0
        skip_rows = skip and operation.kind != UPSAMPLE
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
                if nothing or (skip_rows and not has_changed(reader, changed, place, 0, operation.columns)):
                    for own_block in range(block, min(block + together, operation.blocks)):
                        own_place = image, own_block, rest // groups
                        restore_row(operation, state, maps[0], maps[1], timesteps, own_place)
                        if not nothing:
                            count_silent_row(operation, silent_tiles, own_place, own)
                elif operation.kind == FIRE:
                    fire(reader, neurons, fan_out, state, silent_tiles, skip, timesteps, place, buffers[0], buffers[2], own)
                elif operation.kind == READ_OUT:
                    read_out(reader, neurons[0], neurons[1], state, maps[0], maps[1], skip, timesteps, place, buffers[0])
                elif operation.kind == MAX_POOL:
                    max_pool(operation, terms[operation.first_term], fan_out, state, timesteps, place, buffers[1], own)
                elif operation.kind == UPSAMPLE:
                    upsample(operation, terms[operation.first_term], state, skip, timesteps, place)
                else:
                    add(operation, terms, factors, state, timesteps, place)
                if operation.wide >= 0 and not nothing:
                    blocks = min(together, operation.blocks - block)
                    count_wide(operation, fan_out[2], state, timesteps, place, blocks, own)
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


@njit(cache=True, nogil=True)
def tally_silence(operations, fan_out, silent, summed, timesteps, tiles):  # type: ignore[no-untyped-def]
    """Count spikes, synaptic operations, and both with each burst counted once, of every tile in silence.

    Args:
        operations, fan_out, silent, summed, timesteps: as in `run_operations`.
        tiles: int64 `(tiles, 4)`, overwritten.
    """
    counts, index = np.zeros(COUNTERS, np.int64), 0
    for operation in operations:
        if operation.kind != FIRE and operation.kind != MAX_POOL:
            continue
        for row in range(operation.rows):
            for block in range(operation.blocks):
                for column in range(operation.columns):
                    if column % PIXELS == 0:
                        counts[:] = 0
                    fan_out_at = fan_out[0][operation.fan_out + row] + (column * operation.blocks + block) * LANES
                    at = operation.out + row * operation.out_row + column * operation.out_pixel + block * LANES
                    by_sums = summed and timesteps > 1
                    count_pixel(silent, silent, at, operation.out_step, timesteps, by_sums, fan_out[1], fan_out_at, counts)
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
        for at in range(first, first + columns * pixel_pitch, LANES):
            if changed[np.uintp(at) // np.uintp(LANES)]:
                changed[np.uintp(at) // np.uintp(LANES)] = 0
                arena[at : at + LANES] = 0
        for channel in range(channels):
            found = low - low
            for index in range(np.uintp(per_row)):
                found |= words[image, channel, row, index]
            if found == 0:
                continue
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
