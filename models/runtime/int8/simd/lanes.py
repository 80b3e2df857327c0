"""Counts of LANES channels of one pixel: pooled, copied, multiplied and compared."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from evburst.models.runtime.int8.simd import emit
from evburst.models.runtime.int8.simd.emit import LANES


@intrinsic
def keep_larger(typingctx, x, start, pitch, n, lanes, out, to, out_pitch, fresh):  # type: ignore[no-untyped-def]
    """Replace the counts of neighbouring pixels in `out` by those in `x` where these are larger.

    Args:
        x, out: uint8 arrays; the pixels begin at indices `start` and `to` and are `pitch` and `out_pitch` elements apart.
        n: number of pixels.
        lanes: number of channels in use; the others are set to 0.
        fresh: whether to write the counts of `x` whatever `out` contains.
    """
    longs = [types.int64] * 4
    return types.void(x, *longs, out, types.int64, types.int64, types.boolean), _emit_keep_larger


def _emit_keep_larger(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, out = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 5))
    start, pitch, n, lanes = args[1:5]
    to, out_pitch, fresh = args[6:]
    bytes_ = ir.VectorType(emit.BYTE, LANES)
    with cgutils.for_range(builder, n) as pixel:
        counts = emit.load(builder, x, builder.add(start, builder.mul(pixel.index, pitch)), bytes_)
        here = builder.add(to, builder.mul(pixel.index, out_pitch))
        before = builder.select(fresh, ir.Constant(bytes_, None), emit.load(builder, out, here, bytes_))
        emit.store(builder, emit.larger_count(builder, _in_use(builder, counts, lanes), before), out, here)
    return context.get_dummy_value()


def _in_use(builder: Any, counts: Any, lanes: Any) -> Any:
    """The first `lanes` of LANES bytes, and 0 for the others."""
    numbers = ir.Constant(counts.type, list(range(LANES)))
    in_use = builder.icmp_unsigned("<", numbers, emit.broadcast(builder, builder.trunc(lanes, emit.BYTE), LANES, None))
    return builder.select(in_use, counts, ir.Constant(counts.type, None))


@intrinsic
def pool_lanes(  # type: ignore[no-untyped-def]
    typingctx, x, start, row, pixel, rows, columns, step, timesteps, lanes, to, out_step
):
    """Max-pool LANES channels: at every timestep, write the growth of the largest accumulated count of a window.

    Args:
        x: uint8 array. The window starts at index `start` and has `rows` by `columns` pixels, `row` and `pixel` apart; its
            timesteps are `step` apart. Results are written from index `to` on, `out_step` apart.
        timesteps: T.
        lanes: number of channels in use; the others are set to 0.
    """
    return types.void(x, *[types.int64] * 10), _emit_pool


def _emit_pool(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x = emit.data_of(context, builder, signature.args[0], args[0])
    start, row, pixel, rows, columns, step, timesteps, lanes, to, out_step = args[1:11]
    bytes_, shorts = ir.VectorType(emit.BYTE, LANES), ir.VectorType(emit.SHORT, LANES)
    zero = ir.Constant(shorts, None)
    largest, before, summed = (cgutils.alloca_once_value(builder, zero) for _ in range(3))
    with cgutils.for_range(builder, timesteps) as now:
        builder.store(zero, largest)
        with cgutils.for_range(builder, rows) as i, cgutils.for_range(builder, columns) as j:
            corner = builder.add(start, builder.add(builder.mul(i.index, row), builder.mul(j.index, pixel)))
            builder.store(zero, summed)
            with cgutils.for_range(builder, builder.add(now.index, emit.const(1))) as t:
                counts = emit.load(builder, x, builder.add(corner, builder.mul(t.index, step)), bytes_)
                builder.store(builder.add(builder.load(summed), builder.zext(counts, shorts)), summed)
            builder.store(emit.larger_count(builder, builder.load(summed), builder.load(largest)), largest)
        growth = builder.trunc(builder.sub(builder.load(largest), builder.load(before)), bytes_)
        builder.store(builder.load(largest), before)
        emit.store(builder, _in_use(builder, growth, lanes), x, builder.add(to, builder.mul(now.index, out_step)))
    return context.get_dummy_value()


@intrinsic
def copy_lanes(typingctx, x, start, out, to):  # type: ignore[no-untyped-def]
    """Copy x[start : start + LANES] to out[to : to + LANES], uint8 arrays."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, out = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 2))
        emit.store(builder, emit.load(builder, x, args[1], ir.VectorType(emit.BYTE, LANES)), out, args[3])
        return context.get_dummy_value()

    return types.void(x, types.int64, out, types.int64), generate


@intrinsic
def multiply_lanes(typingctx, x, start, factors, first, to, add):  # type: ignore[no-untyped-def]
    """Write x[start : start + LANES] * factors[first : first + LANES] to x[to : to + LANES], or add it to that if `add`.

    Args:
        x, factors: uint8 and int32 arrays; results are taken modulo 256.
    """

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bytes_, ints = ir.VectorType(emit.BYTE, LANES), ir.VectorType(emit.INT, LANES)
        x, factors = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 2))
        factor = builder.trunc(emit.load(builder, factors, builder.mul(args[3], emit.const(4)), ints), bytes_)
        product = builder.mul(emit.load(builder, x, args[1], bytes_), factor)
        before = builder.select(args[5], emit.load(builder, x, args[4], bytes_), ir.Constant(bytes_, [0] * LANES))
        emit.store(builder, builder.add(product, before), x, args[4])
        return context.get_dummy_value()

    long = types.int64
    return types.void(x, long, factors, long, long, types.boolean), generate


@intrinsic
def lanes_differ(typingctx, x, y, at):  # type: ignore[no-untyped-def]
    """Whether two uint8 arrays differ anywhere in [at, at + LANES)."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        wide = ir.IntType(8 * LANES)
        x, y = (emit.load(builder, emit.data_of(context, builder, signature.args[i], args[i]), args[2], wide) for i in range(2))
        return builder.icmp_unsigned("!=", x, y)

    return types.boolean(x, y, types.int64), generate
