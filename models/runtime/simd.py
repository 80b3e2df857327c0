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
    return dict(binding.get_host_cpu_features())  # type: ignore[no-untyped-call]


AVAILABLE = bool(_features().get("avx2"))
"""Whether this processor has the instructions."""

VNNI = bool(_features().get("avx512vnni") and _features().get("avx512vl"))
"""Whether four products are added in one instruction."""


@intrinsic
def dot_tile(typingctx, x, start, pitch, offsets, first, weights, at, steps, flush, acc, fresh):  # type: ignore[no-untyped-def]
    """acc[pixel, lane] += sum over steps and four channels of x * weights, exact.

    Args:
        x: uint8 array; `start` is the index of the tile's origin, `pitch` the distance of two of its pixels.
        offsets: int32 array; from index `first` on, each step's distance from the origin.
        weights: int8 array; from index `at` on, LANES x 4 of every step.
        steps, flush: see above.
        acc: int32 array (PIXELS * LANES), taken as 0 if `fresh`.
    """
    longs = [types.int64] * 3
    signature = types.void(x, *longs[:2], offsets, types.int64, weights, *longs, acc, types.boolean)
    return signature, _emit_dot


def _emit_dot(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, start, pitch, offsets, first, weights, at, steps, flush, acc, fresh = args
    kinds = signature.args
    origin = _at(builder, _data(context, builder, kinds[0], x), start)
    offsets = builder.gep(_data(context, builder, kinds[3], offsets), [first])
    weights = _at(builder, _data(context, builder, kinds[5], weights), at)
    acc = _data(context, builder, kinds[9], acc)
    pitches = [builder.mul(pitch, _const(i)) for i in range(PIXELS)]
    emit_sums = _emit_vnni if VNNI else _emit_avx2
    emit_sums(builder, origin, pitches, offsets, weights, steps, flush, acc, fresh)  # type: ignore[no-untyped-call]
    return context.get_dummy_value()


def _emit_avx2(builder, origin, pitches, offsets, weights, steps, flush, acc, fresh):  # type: ignore[no-untyped-def]
    shorts, halves = ir.VectorType(_SHORT, 16), range(2)
    sums = [[cgutils.alloca_once(builder, shorts) for _ in halves] for _ in pitches]
    position = cgutils.alloca_once_value(builder, _const(0))
    head, body, end = (builder.append_basic_block(name) for name in ("chunks", "chunk", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    begin = builder.load(position)
    fresh = builder.and_(fresh, builder.icmp_signed("==", begin, _const(0)))
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
            _add_to(builder, acc, 4 * LANES * i + 32 * half, wide, fresh)
    builder.store(stop, position)
    builder.branch(head)
    builder.position_at_end(end)


def _emit_vnni(builder, origin, pitches, offsets, weights, steps, flush, acc, fresh):  # type: ignore[no-untyped-def]
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
        _add_to(builder, acc, 4 * LANES * i, builder.load(total), fresh)


@intrinsic
def fire_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, v_mem, fresh, scale, bias, limits, channel, out, start, pitch, pixels, fan_out, reach, reach_pitch, totals
):
    """One timestep of burst neurons: v += acc * scale + bias; n = clip(floor(v), 0, phi); v -= n; in units of theta.

    Args:
        acc: int32 array (PIXELS * LANES).
        v_mem: float32 array of the same, updated; taken as 1/2 if `fresh`.
        scale, bias, limits: float32 arrays, read from index `channel` on; limits are phi.
        out: uint8 array; n of the first `pixels` pixels goes to index `start` on, `pitch` apart.
        fan_out: int32 array; what a spike of pixel i reaches is at `reach + i * reach_pitch`.
        totals: int64 array (8): pairs whose sums are spikes, weights reached, the same two with a burst counted once; added to.
    """
    longs = [types.int64] * 3
    signature = types.void(
        acc, v_mem, types.boolean, scale, bias, limits, types.int64, out, *longs, fan_out, *longs[:2], totals
    )
    return signature, _emit_fire


def _emit_fire(context, builder, signature, args):  # type: ignore[no-untyped-def]
    def step(current, v_mem, most):  # type: ignore[no-untyped-def]
        v, zero = builder.fadd(v_mem, current), _floats(0.0)
        n = _smaller(builder, _larger(builder, _call(builder, "llvm.floor.v8f32", v.type, v), zero), most)
        return builder.fsub(v, n), n, zero

    return _emit_neurons(context, builder, signature, args, 0.5, step)  # type: ignore[no-untyped-call]


@intrinsic
def fire_signed_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, fired, fresh, scale, bias, limits, channel, out, start, pitch, pixels, fan_out, reach, reach_pitch, totals,
    sums, biases
):  # fmt: skip
    """One timestep of a ReLU's signed neurons, counts summed over time: u = sums * acc * scale + biases * bias;
    k += clip(max(floor(u + 1/2), 0) - k, -phi, phi); in units of theta.

    Args:
        fired: k, float32 array (PIXELS * LANES), updated; taken as 0 if `fresh`.
        out: as in `fire_tile`, but for k.
        sums, biases: int64: how often acc and bias have arrived until now.
        others: as in `fire_tile`; spikes of either sign count alike.
    """
    longs = [types.int64] * 3
    signature = types.void(
        acc, fired, types.boolean, scale, bias, limits, types.int64, out, *longs, fan_out, *longs[:2], totals, *longs[:2]
    )
    return signature, _emit_fire_signed


def _emit_fire_signed(context, builder, signature, args):  # type: ignore[no-untyped-def]
    def step(current, fired, most):  # type: ignore[no-untyped-def]
        level = _call(builder, "llvm.floor.v8f32", current.type, builder.fadd(current, _floats(0.5)))
        after = _smaller(builder, _larger(builder, level, _floats(0.0)), builder.fadd(fired, most))
        after = _larger(builder, after, builder.fsub(fired, most))
        return after, after, fired

    return _emit_neurons(context, builder, signature, args, 0.0, step)  # type: ignore[no-untyped-call]


def _emit_neurons(context, builder, signature, args, rest, step):  # type: ignore[no-untyped-def]
    """Of a tile: `step` (summed current, state, phi) gives the new state, the counts to write, those to count from; fresh states are `rest`."""
    fresh, channel, (start, pitch, pixels), (reach, reach_pitch) = args[2], args[6], args[8:11], args[12:14]
    acc, state, scale, bias, limits, out, fan_out, totals = (
        _data(context, builder, signature.args[i], args[i]) for i in (0, 1, 3, 4, 5, 7, 11, 14)
    )
    floats, order = _floats(0.0).type, ir.Constant(ir.VectorType(_INT, LANES), list(range(LANES)))
    gains, shifts, most = (_lanes(builder, array, channel, floats) for array in (scale, bias, limits))
    if args[15:]:  # how often both have arrived
        times = [_broadcast(builder, builder.sitofp(n, _FLOAT), 8, None) for n in args[15:]]
        gains, shifts = ([builder.fmul(x, n) for x in lanes] for lanes, n in zip((gains, shifts), times, strict=True))
    out, counted = _at(builder, out, start), _zeros(builder)
    with cgutils.for_range(builder, pixels) as loop:
        row, halves = builder.mul(loop.index, _const(4 * LANES)), []
        for half in range(2):
            here = builder.add(row, _const(32 * half))
            current = builder.sitofp(_load(builder, acc, here, ir.VectorType(_INT, 8)), floats)
            current = builder.fadd(builder.fmul(current, gains[half]), shifts[half])
            before = builder.select(fresh, _floats(rest), _load(builder, state, here, floats))
            new, *counts = step(current, before, most[half])
            _store(builder, new, state, here)
            halves.append([builder.trunc(builder.fptosi(n, ir.VectorType(_INT, 8)), ir.VectorType(_BYTE, 8)) for n in counts])
        written, since = (builder.shuffle_vector(*both, order) for both in zip(*halves, strict=True))
        _store(builder, written, out, builder.mul(loop.index, pitch))
        _count(builder, written, since, fan_out, builder.add(reach, builder.mul(loop.index, reach_pitch)), counted)
    _add_counted(builder, totals, counted)
    return context.get_dummy_value()


@intrinsic
def read_tile(typingctx, acc, scale, bias, channel, out, start, pitch, pixels):  # type: ignore[no-untyped-def]
    """out = acc * scale + bias, of the first `pixels` pixels, float32; see `fire_tile`."""
    longs = [types.int64] * 3
    return types.void(acc, scale, bias, types.int64, out, *longs), _emit_read


def _emit_read(context, builder, signature, args):  # type: ignore[no-untyped-def]
    acc, scale, bias, out = (_data(context, builder, signature.args[i], args[i]) for i in (0, 1, 2, 4))
    channel, (start, pitch, pixels) = args[3], args[5:]
    floats = ir.VectorType(_FLOAT, 8)
    gains, shifts = (_lanes(builder, array, channel, floats) for array in (scale, bias))
    with cgutils.for_range(builder, pixels) as loop:
        to = builder.mul(builder.add(start, builder.mul(loop.index, pitch)), _const(4))
        for half in range(2):
            here = builder.add(builder.mul(loop.index, _const(4 * LANES)), _const(32 * half))
            current = builder.sitofp(_load(builder, acc, here, ir.VectorType(_INT, 8)), floats)
            value = builder.fadd(builder.fmul(current, gains[half]), shifts[half])
            _store(builder, value, out, builder.add(to, _const(32 * half)))
    return context.get_dummy_value()


@intrinsic
def pool_lanes(  # type: ignore[no-untyped-def]
    typingctx, x, start, row, pixel, rows, columns, step, steps, lanes, before, to, fan_out, reach, totals, summed
):
    """Max-pool of LANES channels: by how much the largest accumulated count of a window has grown, or, if `summed`, that count.

    Args:
        x: uint8 array; the window's corner is at index `start`, its pixels `row` and `pixel` apart, `rows` by `columns`, and
            its timesteps `step` apart, of which `steps` are accumulated. The result goes to index `to`.
        lanes: channels beyond give 0.
        summed: whether counts are summed over time already.
        before: uint16 array (LANES): the largest counts until the step before, updated.
        fan_out, reach, totals: as in `fire_tile`.
    """
    longs = [types.int64] * 8
    return types.void(x, *longs, before, types.int64, fan_out, types.int64, totals, types.boolean), _emit_pool


def _emit_pool(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, before, fan_out, totals = (_data(context, builder, signature.args[i], args[i]) for i in (0, 9, 11, 13))
    start, row, pixel, rows, columns, step, steps, lanes = args[1:9]
    to, reach, is_summed = args[10], args[12], args[14]
    bytes_, shorts = ir.VectorType(_BYTE, LANES), ir.VectorType(_SHORT, LANES)
    zero = ir.Constant(shorts, [0] * LANES)
    most, summed = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
    with cgutils.for_range(builder, rows) as i, cgutils.for_range(builder, columns) as j:
        corner = builder.add(start, builder.add(builder.mul(i.index, row), builder.mul(j.index, pixel)))
        builder.store(zero, summed)
        with cgutils.for_range(builder, steps) as t:
            counts = _load(builder, x, builder.add(corner, builder.mul(t.index, step)), bytes_)
            builder.store(builder.add(builder.load(summed), builder.zext(counts, shorts)), summed)
        here, so_far = builder.load(summed), builder.load(most)
        builder.store(builder.select(builder.icmp_unsigned(">", here, so_far), here, so_far), most)
    now, earlier = builder.load(most), _load(builder, before, _const(0), shorts)
    _store(builder, now, before, _const(0))
    numbers = ir.Constant(shorts, list(range(LANES)))
    wanted = builder.icmp_unsigned("<", numbers, _broadcast(builder, builder.trunc(lanes, _SHORT), LANES, None))
    values = builder.select(is_summed, now, builder.sub(now, earlier)), builder.select(is_summed, earlier, zero)
    written, since = (builder.trunc(builder.select(wanted, value, zero), bytes_) for value in values)
    _store(builder, written, x, to)
    counted = _zeros(builder)
    _count(builder, written, since, fan_out, reach, counted)
    _add_counted(builder, totals, counted)
    return context.get_dummy_value()


@intrinsic
def copy_lanes(typingctx, x, start, out, to):  # type: ignore[no-untyped-def]
    """out[to : to + LANES] = x[start : start + LANES], uint8 arrays."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, out = (_data(context, builder, signature.args[i], args[i]) for i in (0, 2))
        _store(builder, _load(builder, x, args[1], ir.VectorType(_BYTE, LANES)), out, args[3])
        return context.get_dummy_value()

    return types.void(x, types.int64, out, types.int64), emit


@intrinsic
def count_lanes(typingctx, x, start, since, summed, fan_out, reach, totals):  # type: ignore[no-untyped-def]
    """Count x[start : start + LANES] as `fire_tile` counts what it writes; if `summed`, what it has changed by since index `since`."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, fan_out, totals = (_data(context, builder, signature.args[i], args[i]) for i in (0, 4, 6))
        bytes_, counted = ir.VectorType(_BYTE, LANES), _zeros(builder)
        now, before = (_load(builder, x, args[i], bytes_) for i in (1, 2))
        before = builder.select(args[3], before, ir.Constant(bytes_, [0] * LANES))
        _count(builder, now, before, fan_out, args[5], counted)
        _add_counted(builder, totals, counted)
        return context.get_dummy_value()

    return types.void(x, types.int64, types.int64, types.boolean, fan_out, types.int64, totals), emit


@intrinsic
def lanes_differ(typingctx, x, y, at):  # type: ignore[no-untyped-def]
    """Whether two uint8 arrays differ anywhere in [at, at + LANES)."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        wide = ir.IntType(8 * LANES)
        x, y = (_load(builder, _data(context, builder, signature.args[i], args[i]), args[2], wide) for i in range(2))
        return builder.icmp_unsigned("!=", x, y)

    return types.boolean(x, y, types.int64), emit


@intrinsic
def trailing_zeros(typingctx, word):  # type: ignore[no-untyped-def]
    """Zero bits of a uint64 (not 0) below its lowest 1."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), emit


def _count(builder: Any, counts: Any, before: Any, fan_out: Any, reach: Any, totals: list[Any]) -> None:
    """Add what counts differ by: to spikes, weights reached, and the same two with a burst counted once."""
    pairs, ones = ir.VectorType(_LONG, 2), ir.Constant(counts.type, [1] * LANES)
    nothing = ir.Constant(counts.type, [0] * LANES)
    fired = builder.select(builder.icmp_unsigned("!=", counts, before), ones, nothing)
    spikes, bursts = (_call(builder, "llvm.x86.sse2.psad.bw", pairs, x, y) for x, y in ((counts, before), (fired, nothing)))
    reached = _broadcast(builder, builder.zext(builder.load(builder.gep(fan_out, [reach])), _LONG), 2, None)
    values = spikes, builder.mul(spikes, reached), bursts, builder.mul(bursts, reached)
    for total, value in zip(totals, values, strict=True):
        builder.store(builder.add(builder.load(total), value), total)


def _zeros(builder: Any) -> list[Any]:
    """Room for `_count`, in registers."""
    return [cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(_LONG, 2), [0, 0])) for _ in range(4)]


def _add_counted(builder: Any, totals: Any, counted: list[Any]) -> None:
    for i, total in enumerate(counted):
        _add_to(builder, totals, 16 * i, builder.load(total))


def _floats(value: float) -> ir.Constant:
    """Half of the lanes, alike."""
    return ir.Constant(ir.VectorType(_FLOAT, 8), [value] * 8)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _lanes(builder: Any, array: Any, channel: Any, floats: Any) -> list[Any]:
    """LANES floats from an index on, in two halves."""
    place = builder.mul(channel, _const(4))
    return [_load(builder, array, builder.add(place, _const(32 * half)), floats) for half in range(2)]


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


def _add_to(builder: Any, acc: Any, distance: int, value: Any, fresh: Any = None) -> None:
    """Add to what is in memory; or, if `fresh`, to nothing."""
    there = _const(distance)
    before = _load(builder, acc, there, value.type)
    if fresh is not None:
        before = builder.select(fresh, ir.Constant(value.type, [0] * value.type.count), before)
    _store(builder, builder.add(before, value), acc, there)


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
