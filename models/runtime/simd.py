"""The two inner loops of the integer engines in vector instructions, as numba intrinsics that emit LLVM (x86-64, AVX2 or better).

A tile is PIXELS neighbouring outputs of one row by LANES output channels. For four input channels of a pixel (a step):

    AVX2    vpmaddubsw: u8 x s8 products of two channels added in 16 bits; `flush` steps later widened to 32 bits by vpmaddwd
    VNNI    vpdpbusd: u8 x s8 products of four channels added in 32 bits

16 bits are enough for many steps because spike counts are small (up to phi, where other networks have 255). `flush` is
computed from the weights so that no sum can leave them (models/runtime/quantise.py): both forms give the same, exact integers.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

LANES = 16
PIXELS = 5

_BYTE, _SHORT, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _features() -> dict[str, bool]:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    return dict(binding.get_host_cpu_features())


AVAILABLE = bool(_features().get("avx2"))
"""Whether this processor has the instructions."""

VNNI = bool(_features().get("avx512vnni") and _features().get("avx512vl"))
"""Whether four products are added in one instruction."""


@intrinsic
def dot_tile(typingctx, x, start, pitch, offsets, first, weights, at, steps, flush, acc):  # type: ignore[no-untyped-def]
    """acc[pixel, lane] += sum over steps and four channels of x * weights, exact.

    Args:
        x: uint8 array; `start` is the index of the tile's origin, `pitch` the distance of two of its pixels.
        offsets: int32 array; from index `first` on, each step's distance from the origin.
        weights: int8 array; from index `at` on, LANES x 4 of every step.
        steps, flush: see above.
        acc: int32 array (PIXELS * LANES).
    """
    signature = types.void(x, types.int64, types.int64, offsets, types.int64, weights, *[types.int64] * 3, acc)
    return signature, _emit_dot


def _emit_dot(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, start, pitch, offsets, first, weights, at, steps, flush, acc = args
    kinds = signature.args
    origin = _at(builder, _data(context, builder, kinds[0], x), start)
    offsets = builder.gep(_data(context, builder, kinds[3], offsets), [first])
    weights = _at(builder, _data(context, builder, kinds[5], weights), at)
    acc = _data(context, builder, kinds[9], acc)
    pitches = [builder.mul(pitch, _const(i)) for i in range(PIXELS)]
    emit_sums = _emit_vnni if VNNI else _emit_avx2
    emit_sums(builder, origin, pitches, offsets, weights, steps, flush, acc)
    return context.get_dummy_value()


def _emit_avx2(builder, origin, pitches, offsets, weights, steps, flush, acc):  # type: ignore[no-untyped-def]
    shorts, halves = ir.VectorType(_SHORT, 16), range(2)
    sums = [[cgutils.alloca_once(builder, shorts) for _ in halves] for _ in pitches]
    position = cgutils.alloca_once_value(builder, _const(0))
    head, body, end = (builder.append_basic_block(name) for name in ("chunks", "chunk", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    begin = builder.load(position)
    builder.cbranch(builder.icmp_signed("<", begin, steps), body, end)

    builder.position_at_end(body)
    _clear(builder, sums)
    stop = builder.add(begin, flush)
    stop = builder.select(builder.icmp_signed("<", stop, steps), stop, steps)
    with cgutils.for_range(builder, builder.sub(stop, begin)) as loop:
        step = builder.add(begin, loop.index)
        here = _at(builder, origin, builder.sext(builder.load(builder.gep(offsets, [step])), _LONG))
        place = builder.mul(step, _const(4 * LANES))
        pair = [_load(builder, weights, builder.add(place, _const(32 * half)), ir.VectorType(_BYTE, 32)) for half in halves]
        for row, distance in zip(sums, pitches, strict=True):
            counts = _broadcast(builder, _load(builder, here, distance, _INT), 8)
            for half in halves:
                products = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, counts, pair[half])
                builder.store(builder.add(builder.load(row[half]), products), row[half])
    ones = ir.Constant(shorts, [1] * 16)
    for i, row in enumerate(sums):
        for half in halves:
            wide = _call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(_INT, 8), builder.load(row[half]), ones)
            _add_to(builder, acc, 4 * LANES * i + 32 * half, wide)
    builder.store(stop, position)
    builder.branch(head)
    builder.position_at_end(end)


def _emit_vnni(builder, origin, pitches, offsets, weights, steps, flush, acc):  # type: ignore[no-untyped-def]
    ints = ir.VectorType(_INT, LANES)
    sums = [[cgutils.alloca_once(builder, ints)] for _ in pitches]
    _clear(builder, sums)
    with cgutils.for_range(builder, steps) as loop:
        here = _at(builder, origin, builder.sext(builder.load(builder.gep(offsets, [loop.index])), _LONG))
        row_of_weights = _load(builder, weights, builder.mul(loop.index, _const(4 * LANES)), ints)
        for (total,), distance in zip(sums, pitches, strict=True):
            counts = builder.bitcast(_broadcast(builder, _load(builder, here, distance, _INT), LANES), ints)
            added = _call(builder, "llvm.x86.avx512.vpdpbusd.512", ints, builder.load(total), counts, row_of_weights)
            builder.store(added, total)
    for i, (total,) in enumerate(sums):
        _add_to(builder, acc, 4 * LANES * i, builder.load(total))


@intrinsic
def fire_tile(typingctx, acc, v_mem, scale, bias, channel, phi, out, start, pitch, pixels):  # type: ignore[no-untyped-def]
    """One timestep of burst neurons: v += acc * scale + bias; n = clip(floor(v), 0, phi); v -= n; out = n, in units of theta.

    Args:
        acc: int32 array (PIXELS * LANES).
        v_mem: float32 array of the same, updated.
        scale, bias: float32 arrays, read from index `channel` on.
        phi: float32.
        out: uint8 array; n of the first `pixels` pixels goes to index `start` on, `pitch` apart.
    """
    signature = types.void(
        acc, v_mem, scale, bias, types.int64, types.float32, out, types.int64, types.int64, types.int64
    )
    return signature, _emit_fire


def _emit_fire(context, builder, signature, args):  # type: ignore[no-untyped-def]
    acc, v_mem, scale, bias, channel, phi, out, start, pitch, pixels = args
    kinds = signature.args
    acc, v_mem, scale, bias = (_data(context, builder, kinds[i], a) for i, a in enumerate((acc, v_mem, scale, bias)))
    out = _at(builder, _data(context, builder, kinds[6], out), start)
    floats = ir.VectorType(_FLOAT, 8)
    zero, limit = ir.Constant(floats, [0.0] * 8), _broadcast(builder, phi, 8, None)
    channel_bytes = builder.mul(channel, _const(4))
    gains = [_load(builder, scale, builder.add(channel_bytes, _const(32 * half)), floats) for half in range(2)]
    shifts = [_load(builder, bias, builder.add(channel_bytes, _const(32 * half)), floats) for half in range(2)]
    with cgutils.for_range(builder, pixels) as loop:
        row = builder.mul(loop.index, _const(4 * LANES))
        to = builder.mul(loop.index, pitch)
        for half in range(2):
            here = builder.add(row, _const(32 * half))
            current = builder.sitofp(_load(builder, acc, here, ir.VectorType(_INT, 8)), floats)
            current = builder.fadd(builder.fmul(current, gains[half]), shifts[half])
            v = builder.fadd(_load(builder, v_mem, here, floats), current)
            n = _call(builder, "llvm.floor.v8f32", floats, v)
            n = builder.select(builder.fcmp_ordered(">", n, zero), n, zero)
            n = builder.select(builder.fcmp_ordered("<", n, limit), n, limit)
            _store(builder, builder.fsub(v, n), v_mem, here)
            spikes = builder.trunc(builder.fptosi(n, ir.VectorType(_INT, 8)), ir.VectorType(_BYTE, 8))
            _store(builder, spikes, out, builder.add(to, _const(8 * half)))
    return context.get_dummy_value()


def _const(value: int) -> ir.Constant:
    return ir.Constant(_LONG, value)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to an array's first element."""
    return make_array(kind)(context, builder, array).data


def _at(builder: Any, pointer: Any, distance: Any, kind: Any = _BYTE) -> Any:
    """Pointer to what lies so many bytes further on."""
    there = builder.gep(builder.bitcast(pointer, _BYTE.as_pointer()), [distance])
    return builder.bitcast(there, kind.as_pointer())


def _load(builder: Any, pointer: Any, distance: Any, kind: Any) -> Any:
    return builder.load(_at(builder, pointer, distance, kind), align=1)


def _store(builder: Any, value: Any, pointer: Any, distance: Any) -> None:
    builder.store(value, _at(builder, pointer, distance, value.type), align=1)


def _add_to(builder: Any, acc: Any, distance: int, value: Any) -> None:
    there = _const(distance)
    _store(builder, builder.add(_load(builder, acc, there, value.type), value), acc, there)


def _clear(builder: Any, sums: Any) -> None:
    for row in sums:
        for total in row:
            kind = total.type.pointee
            builder.store(ir.Constant(kind, [0] * kind.count), total)


def _broadcast(builder: Any, value: Any, lanes: int, to: Any = _BYTE) -> Any:
    """A vector of equal values; seen as bytes unless told otherwise."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_INT, 0))
    vector = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))
    return vector if to is None else builder.bitcast(vector, ir.VectorType(to, 4 * lanes))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)
