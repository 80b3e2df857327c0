"""Weighted sums of counts.

A tile is PIXELS neighbouring outputs of one row by LANES output channels. AVX2 sums it in GROUPs of pixels, VNNI together with
the tile of the next LANES channels, which reads the same counts. A step adds the products of four input channels of one pixel:

    AVX2    vpmaddubsw adds u8 x s8 products of two channels in 16 bits; vpmaddwd widens the sums after `flush` steps
    VNNI    vpdpbusd adds u8 x s8 products of four channels in 32 bits; twenty independent sums hide its latency

16 bits suffice for many steps because spike counts are small: at most phi, where other quantised networks have 255. `flush` is
computed from the weights such that no sum overflows (models/runtime/int8/quantise.py). Both variants are exact.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from evburst.models.runtime.int8.simd import emit
from evburst.models.runtime.int8.simd.emit import GROUP, LANES, PAIR, PIXELS, TILE


@intrinsic
def dot_tiles(  # type: ignore[no-untyped-def]
    typingctx, x, start, pitch, pixels, offsets, first, weights, at, apart, tiles, steps, flush, acc, to, fresh
):
    """Add to acc[tile, pixel, lane] the exact sum of x * weights over steps and their four channels.

    Args:
        x: uint8 array; `start` is the index of the tiles' first pixel, `pitch` the distance between their pixels.
        pixels: number of pixels needed; GROUPs without any of them are left out.
        offsets: int32 array; the distance of each step from the first pixel, from index `first` on.
        weights: int8 array; LANES x 4 for each step, from index `at` on; those of the second tile `apart` elements further.
        tiles: number of tiles, 1 or PAIR.
        steps, flush: number of steps, and of those summed in 16 bits.
        acc: int32 array; the TILE sums of each tile, from index `to` on.
        fresh: whether the sums start from 0 instead of the content of `acc`.
    """
    longs = [types.int64] * 3
    return types.void(x, *longs, offsets, types.int64, weights, *[types.int64] * 5, acc, types.int64, types.boolean), _emit_dot


def _emit_dot(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, start, pitch, pixels, offsets, first, weights, at, apart, tiles, steps, flush, acc, to, fresh = args
    kinds = signature.args
    origin = emit.at(builder, emit.data_of(context, builder, kinds[0], x), start)
    offsets = builder.gep(emit.data_of(context, builder, kinds[4], offsets), [first])
    weights = emit.at(builder, emit.data_of(context, builder, kinds[6], weights), at)
    acc = builder.gep(emit.data_of(context, builder, kinds[12], acc), [to])
    pitches = [builder.mul(pitch, emit.const(i)) for i in range(PIXELS)]
    pair = [weights, emit.at(builder, weights, apart)]
    has_two_groups = builder.icmp_signed(">", pixels, emit.const(GROUP))
    has_two_tiles = builder.icmp_signed("==", tiles, emit.const(PAIR))
    if emit.VNNI:
        with builder.if_else(has_two_tiles) as cases:
            for case, own in zip(cases, (pair, pair[:1]), strict=True):
                with case, builder.if_else(has_two_groups) as (both, only_one):
                    with both:
                        _emit_vnni(builder, (origin, offsets, own, steps), pitches, acc, fresh)  # type: ignore[no-untyped-call]
                    with only_one:
                        _emit_vnni(builder, (origin, offsets, own, steps), pitches[:GROUP], acc, fresh)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()
    with cgutils.for_range(builder, tiles) as tile:
        reader = origin, offsets, emit.at(builder, weights, builder.mul(tile.index, apart)), steps
        own = builder.gep(acc, [builder.mul(tile.index, emit.const(TILE))])
        _emit_avx2(builder, reader, pitches[:GROUP], flush, own, fresh)  # type: ignore[no-untyped-call]
        with builder.if_then(has_two_groups):
            second = emit.at(builder, own, emit.const(4 * GROUP * LANES), emit.INT)
            _emit_avx2(builder, reader, pitches[GROUP:], flush, second, fresh)  # type: ignore[no-untyped-call]
    return context.get_dummy_value()


def _emit_avx2(builder, reader, pitches, flush, acc, fresh):  # type: ignore[no-untyped-def]
    origin, offsets, weights, steps = reader
    shorts, halves = ir.VectorType(emit.SHORT, 16), range(2)
    sums = [[cgutils.alloca_once(builder, shorts) for _ in halves] for _ in pitches]
    position = cgutils.alloca_once_value(builder, emit.const(0))
    head, body, end = (builder.append_basic_block(name) for name in ("chunks", "chunk", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    begin = builder.load(position)
    fresh = builder.and_(fresh, builder.icmp_signed("==", begin, emit.const(0)))
    builder.cbranch(builder.icmp_signed("<", begin, steps), body, end)

    builder.position_at_end(body)
    emit.clear(builder, sums)
    stop = builder.add(begin, flush)
    stop = builder.select(builder.icmp_signed("<", stop, steps), stop, steps)
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
    for i, row in enumerate(sums):
        for half in halves:
            wide = emit.call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(emit.INT, 8), builder.load(row[half]), ones)
            emit.add_to_memory(builder, acc, 4 * LANES * i + 32 * half, wide, fresh)
    builder.store(stop, position)
    builder.branch(head)
    builder.position_at_end(end)


def _emit_vnni(builder, reader, pitches, acc, fresh):  # type: ignore[no-untyped-def]
    origin, offsets, weights, steps = reader
    ints = ir.VectorType(emit.INT, LANES)
    sums = [[cgutils.alloca_once(builder, ints) for _ in weights] for _ in pitches]
    emit.clear(builder, sums)
    with cgutils.for_range(builder, steps) as loop:
        here = emit.at(builder, origin, builder.sext(builder.load(builder.gep(offsets, [loop.index])), emit.LONG))
        place = builder.mul(loop.index, emit.const(4 * LANES))
        rows_of_weights = [emit.load(builder, own, place, ints) for own in weights]
        for totals, distance in zip(sums, pitches, strict=True):
            counts = builder.bitcast(emit.broadcast(builder, emit.load(builder, here, distance, emit.INT), LANES), ints)
            for total, row_of_weights in zip(totals, rows_of_weights, strict=True):
                added = emit.call(builder, "llvm.x86.avx512.vpdpbusd.512", ints, builder.load(total), counts, row_of_weights)
                builder.store(added, total)
    for tile in range(len(weights)):
        for i, totals in enumerate(sums):
            emit.add_to_memory(builder, acc, 4 * (TILE * tile + LANES * i), builder.load(totals[tile]), fresh)
