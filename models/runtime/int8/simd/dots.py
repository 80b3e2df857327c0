"""Weighted sums of counts.

A tile is PIXELS neighbouring outputs of one row by LANES output channels. AVX2 sums it in GROUPs of pixels, AVX-512 together
with the tile of the next LANES channels, which reads the same counts. A step adds the products of four input channels of one
pixel:

    AVX2    vpmaddubsw adds u8 x s8 products of two channels in 16 bits; vpmaddwd widens the sums after a chunk of steps
    VNNI    vpdpbusd adds u8 x s8 products of four channels in 32 bits; ten or twenty independent sums hide its latency

16 bits suffice for many steps because spike counts are small: at most phi, where other quantised networks have 255. The chunks
are computed from the weights such that no sum overflows (models/runtime/int8/quantise.py). Both variants are exact.

Over several timesteps, QUAD tiles of one pixel are summed together (`dot_active`). Their sums fill the registers of AVX-512, a
weight that has been read serves all timesteps, and steps whose counts are 0 at all of them are left out.
"""

from __future__ import annotations

from functools import reduce

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from evburst.models.runtime.int8.simd import emit
from evburst.models.runtime.int8.simd.emit import BATCH, GROUP, LANES, PAIR, PIXELS, QUAD, TILE


@intrinsic
def dot_tiles(  # type: ignore[no-untyped-def]
    typingctx, x, start, pitch, pixels, offsets, first, weights, at, apart, tiles, steps, chunks, head, heads_apart, acc, to,
    fresh,
):  # fmt: skip
    """Add to acc[tile, pixel, lane] the exact sum of x * weights over steps and their four channels.

    Args:
        x: uint8 array; `start` is the index of the tiles' first pixel, `pitch` the distance between their pixels.
        pixels: number of pixels needed; GROUPs without any of them are left out.
        offsets: int32 array; the distance of each step from the first pixel, from index `first` on.
        weights: int8 array; LANES x 4 for each step, from index `at` on; those of the second tile `apart` elements further.
        tiles: number of tiles, 1 or PAIR.
        steps: number of steps.
        chunks: int32 array; element `head` is the distance from it to the ends of the first tile's chunks, of which the last is
            `steps`; that of the second tile is `heads_apart` elements further.
        acc: int32 array; the TILE sums of each tile, from index `to` on.
        fresh: whether the sums start from 0 instead of the content of `acc`.
    """
    long, longs = types.int64, [types.int64] * 3
    arrays = offsets, long, weights, *[long] * 4, chunks, long, long, acc, long
    return types.void(x, *longs, *arrays, types.boolean), _emit_dot


def _emit_dot(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, start, pitch, pixels, offsets, first, weights, at, apart, tiles, steps, chunks, head, heads_apart, acc, to, fresh = args
    x, offsets, weights, chunks, acc = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 4, 6, 11, 14))
    origin, weights = emit.at(builder, x, start), emit.at(builder, weights, at)
    offsets, acc = builder.gep(offsets, [first]), builder.gep(acc, [to])
    pitches = [builder.mul(pitch, emit.const(i)) for i in range(PIXELS)]
    has_two_groups = builder.icmp_signed(">", pixels, emit.const(GROUP))
    if emit.VNNI and emit.WIDTH == LANES:
        pair = [weights, emit.at(builder, weights, apart)]
        with builder.if_else(builder.icmp_signed("==", tiles, emit.const(PAIR))) as cases:
            for case, own in zip(cases, (pair, pair[:1]), strict=True):
                reader = origin, offsets, own, steps
                with case, builder.if_else(has_two_groups) as (both, only_one):
                    with both:
                        _emit_vnni(builder, reader, pitches, acc, fresh)  # type: ignore[no-untyped-call]
                    with only_one:
                        _emit_vnni(builder, reader, pitches[:GROUP], acc, fresh)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()
    with cgutils.for_range(builder, tiles) as tile:
        reader = origin, offsets, [emit.at(builder, weights, builder.mul(tile.index, apart))], steps
        first_group = builder.gep(acc, [builder.mul(tile.index, emit.const(TILE))])
        own = builder.gep(chunks, [builder.add(head, builder.mul(tile.index, heads_apart))])
        _emit_group(builder, reader, pitches[:GROUP], own, first_group, fresh)  # type: ignore[no-untyped-call]
        with builder.if_then(has_two_groups):
            second_group = builder.gep(first_group, [emit.const(GROUP * LANES)])
            _emit_group(builder, reader, pitches[GROUP:], own, second_group, fresh)  # type: ignore[no-untyped-call]
    return context.get_dummy_value()


def _emit_group(builder, reader, pitches, chunks, acc, fresh):  # type: ignore[no-untyped-def]
    """Emit the sums of a GROUP of pixels of one tile, which fill the registers of AVX2."""
    if emit.VNNI:
        _emit_vnni(builder, reader, pitches, acc, fresh)  # type: ignore[no-untyped-call]
    else:
        _emit_avx2(builder, reader, pitches, chunks, acc, fresh)  # type: ignore[no-untyped-call]


def _emit_avx2(builder, reader, pitches, chunks, acc, fresh):  # type: ignore[no-untyped-def]
    origin, offsets, (weights,), steps = reader
    shorts, ints, halves = ir.VectorType(emit.SHORT, 16), ir.VectorType(emit.INT, 8), range(2)
    places = [4 * LANES * i + 32 * half for i in range(len(pitches)) for half in halves]
    sums = [[cgutils.alloca_once(builder, shorts) for _ in halves] for _ in pitches]
    ends = builder.gep(chunks, [builder.load(chunks)])
    chunk, position = (cgutils.alloca_once_value(builder, emit.const(0)) for _ in range(2))
    head, body, end = (builder.append_basic_block(name) for name in ("chunks", "chunk", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    begin = builder.load(position)
    builder.cbranch(builder.icmp_signed("<", begin, steps), body, end)

    builder.position_at_end(body)
    emit.clear(builder, sums)
    number = builder.load(chunk)
    stop = builder.sext(builder.load(builder.gep(ends, [number])), emit.LONG)
    with cgutils.for_range(builder, builder.sub(stop, begin)) as loop:
        step = builder.add(begin, loop.index)
        here = emit.at(builder, origin, builder.sext(builder.load(builder.gep(offsets, [step])), emit.LONG))
        place = builder.mul(step, emit.const(4 * LANES))
        pair = [
            emit.load(builder, weights, builder.add(place, emit.const(32 * half)), ir.VectorType(emit.BYTE, 32))
            for half in halves
        ]
        for row, distance in zip(sums, pitches, strict=True):
            counts = emit.broadcast(builder, emit.load(builder, here, distance, emit.INT), 8)
            for half in halves:
                products = emit.call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, counts, pair[half])
                builder.store(builder.add(builder.load(row[half]), products), row[half])
    ones = ir.Constant(shorts, [1] * 16)
    wide = [emit.call(builder, "llvm.x86.avx2.pmadd.wd", ints, builder.load(total), ones) for row in sums for total in row]
    with builder.if_else(builder.and_(fresh, builder.icmp_signed("==", begin, emit.const(0)))) as (overwrites, adds):
        with overwrites:
            for value, place in zip(wide, places, strict=True):
                emit.store(builder, value, acc, emit.const(place))
        with adds:
            for value, place in zip(wide, places, strict=True):
                emit.add_to_memory(builder, acc, place, value)
    builder.store(builder.add(number, emit.const(1)), chunk)
    builder.store(stop, position)
    builder.branch(head)
    builder.position_at_end(end)


def _emit_vnni(builder, reader, pitches, acc, fresh):  # type: ignore[no-untyped-def]
    origin, offsets, weights, steps = reader
    ints = ir.VectorType(emit.INT, emit.WIDTH)
    registers = [(tile, part) for tile in range(len(weights)) for part in range(LANES // emit.WIDTH)]
    sums = [[cgutils.alloca_once(builder, ints) for _ in registers] for _ in pitches]
    emit.clear(builder, sums)
    with cgutils.for_range(builder, steps) as loop:
        here = emit.at(builder, origin, builder.sext(builder.load(builder.gep(offsets, [loop.index])), emit.LONG))
        place = builder.mul(loop.index, emit.const(4 * LANES))
        own = [
            emit.load(builder, weights[tile], builder.add(place, emit.const(4 * emit.WIDTH * part)), ints)
            for tile, part in registers
        ]
        for totals, distance in zip(sums, pitches, strict=True):
            _emit_products(builder, totals, emit.load(builder, here, distance, emit.INT), own)  # type: ignore[no-untyped-call]
    for i, totals in enumerate(sums):
        for total, (tile, part) in zip(totals, registers, strict=True):
            to = 4 * (TILE * tile + LANES * i + emit.WIDTH * part)
            emit.add_to_memory(builder, acc, to, builder.load(total), fresh)


@intrinsic
def dot_active(  # type: ignore[no-untyped-def]
    typingctx, x, start, pitch, pixels, step, timesteps, offsets, first, runs, run, weights, at, apart, acc, to, acc_step,
    fresh, found,
):  # fmt: skip
    """Add to acc[timestep, tile, pixel, lane] of QUAD tiles the exact sum of x * weights over steps and their four channels.

    Where `emit.ACTIVE` does not hold, it does nothing.

    Args:
        x: uint8 array, read LINE elements further than needed; `start` is the index of the first timestep's first pixel,
            `pitch` and `step` the distances of pixels and timesteps.
        pixels: number of pixels.
        timesteps: their number, 1 to BATCH.
        offsets, first: as in `dot_tiles`.
        runs, run: number of runs of steps, and of steps in each; those of a run lie next to each other in `x`.
        weights, at, apart: as in `dot_tiles`; on a multiple of LINE in memory, for speed.
        acc, to: as in `dot_tiles`; the sums of the timesteps are `acc_step` elements apart.
        fresh: as in `dot_tiles`.
        found: int32 array, overwritten: `runs * run + LANES` elements for the steps with any count above 0.
    """
    long, longs = types.int64, [types.int64] * 5
    arrays = offsets, *[long] * 3, weights, long, long, acc, long, long
    return types.void(x, *longs, *arrays, types.boolean, found), _emit_active


def _emit_active(context, builder, signature, args):  # type: ignore[no-untyped-def]
    if not emit.ACTIVE:
        return context.get_dummy_value()
    x, start, pitch, pixels, step, timesteps, offsets, first, runs, run, weights, at, apart, acc, to, acc_step, fresh, found = (
        args
    )
    x, offsets, weights, acc, found = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 6, 10, 13, 17))
    origin, offsets, acc = emit.at(builder, x, start), builder.gep(offsets, [first]), builder.gep(acc, [to])
    tiles = [emit.at(builder, weights, builder.add(at, builder.mul(apart, emit.const(i)))) for i in range(QUAD)]
    done = builder.append_basic_block("done")
    cases = builder.switch(timesteps, done)
    for number in range(1, BATCH + 1):
        case = builder.append_basic_block(f"timesteps_{number}")
        cases.add_case(emit.const(number), case)
        builder.position_at_end(case)
        origins = [emit.at(builder, origin, builder.mul(step, emit.const(t))) for t in range(number)]
        targets = [builder.gep(acc, [builder.mul(acc_step, emit.const(t))]) for t in range(number)]
        with cgutils.for_range(builder, pixels) as pixel:
            own = [emit.at(builder, place, builder.mul(pixel.index, pitch)) for place in origins]
            to = [builder.gep(target, [builder.mul(pixel.index, emit.const(LANES))]) for target in targets]
            steps = _emit_search(builder, own, offsets, runs, run, found)  # type: ignore[no-untyped-call]
            _emit_found(builder, own, offsets, tiles, found, steps, to, fresh)  # type: ignore[no-untyped-call]
        builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


def _emit_search(builder, origins, offsets, runs, run, found):  # type: ignore[no-untyped-def]
    """Emit the search for steps of a pixel with any count above 0 at any timestep; returns how many were written to `found`."""
    ints, wide = ir.VectorType(emit.INT, LANES), emit.const(LANES)
    numbers, nothing = ir.Constant(ints, list(range(LANES))), ir.Constant(ints, None)
    total = cgutils.alloca_once(builder, emit.LONG)
    builder.store(emit.const(0), total)
    vectors = builder.udiv(builder.add(run, emit.const(LANES - 1)), wide)
    with cgutils.for_range(builder, runs) as loop, cgutils.for_range(builder, vectors) as vector:
        done = builder.mul(vector.index, wide)
        step = builder.add(builder.mul(loop.index, run), done)
        distance = builder.sext(builder.load(builder.gep(offsets, [step])), emit.LONG)
        counts = [emit.load(builder, origin, distance, ints) for origin in origins]
        active = builder.icmp_unsigned("!=", reduce(builder.or_, counts), nothing)
        left = builder.sub(run, done)
        unused = builder.select(builder.icmp_signed("<", left, wide), builder.sub(wide, left), emit.const(0))
        own = builder.trunc(builder.lshr(emit.const(2**LANES - 1), unused), ir.IntType(LANES))
        active = builder.and_(active, builder.bitcast(own, active.type))
        steps = builder.add(emit.broadcast(builder, builder.trunc(step, emit.INT), LANES, None), numbers)
        packed = emit.call(builder, f"llvm.x86.avx512.mask.compress.v{LANES}i32", ints, steps, nothing, active)
        so_far = builder.load(total)
        emit.store(builder, packed, found, builder.mul(so_far, emit.const(4)))
        more = builder.ctpop(builder.bitcast(active, own.type))
        builder.store(builder.add(so_far, builder.zext(more, emit.LONG)), total)
    return builder.load(total)


def _emit_found(builder, origins, offsets, tiles, found, steps, to, fresh):  # type: ignore[no-untyped-def]
    """Emit the sums of QUAD tiles of a pixel over the steps found, for all timesteps."""
    ints = ir.VectorType(emit.INT, LANES)
    sums = [[cgutils.alloca_once(builder, ints) for _ in tiles] for _ in origins]
    emit.clear(builder, sums)
    with cgutils.for_range(builder, steps) as item:
        step = builder.zext(builder.load(builder.gep(found, [item.index])), emit.LONG)
        distance = builder.sext(builder.load(builder.gep(offsets, [step])), emit.LONG)
        own = [emit.load(builder, tile, builder.mul(step, emit.const(4 * LANES)), ints) for tile in tiles]
        for totals, origin in zip(sums, origins, strict=True):
            _emit_products(builder, totals, emit.load(builder, origin, distance, emit.INT), own)  # type: ignore[no-untyped-call]
    for totals, target in zip(sums, to, strict=True):
        for tile, total in enumerate(totals):
            emit.add_to_memory(builder, target, 4 * TILE * tile, builder.load(total), fresh)


def _emit_products(builder, totals, counts, weights):  # type: ignore[no-untyped-def]
    """Emit the addition of the products of four counts (as an int32) with the weights of each total."""
    ints = weights[0].type
    counts = builder.bitcast(emit.broadcast(builder, counts, ints.count), ints)
    for total, products in zip(totals, weights, strict=True):
        instruction = f"llvm.x86.avx512.vpdpbusd.{32 * ints.count}"
        builder.store(emit.call(builder, instruction, ints, builder.load(total), counts, products), total)
