"""The two inner loops of the integer engines in vector instructions, as numba intrinsics that emit LLVM (x86-64, AVX2 or better).

A tile is PIXELS neighbouring outputs of one row by LANES output channels, summed in GROUPs or at once. For four input channels of a
pixel (a step):

    AVX2    vpmaddubsw: u8 x s8 products of two channels added in 16 bits; `flush` steps later widened to 32 bits by vpmaddwd
    VNNI    vpdpbusd: u8 x s8 products of four channels added in 32 bits; ten chains of them hide its latency

16 bits are enough for many steps because spike counts are small (up to phi, where other networks have 255). `flush` is
computed from the weights so that no sum can leave them (models/runtime/quantise.py): both forms give the same, exact integers.
"""

from __future__ import annotations

import platform
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

LANES = 16
GROUP = 5
PIXELS = 2 * GROUP

_BYTE, _SHORT, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _features() -> dict[str, bool]:
    """Of the processor that numba compiles for: this one, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES say."""
    given = numba.config.CPU_FEATURES
    if given is not None:
        return {name[1:]: name.startswith("+") for name in given.split(",")}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    return dict(binding.get_host_cpu_features())  # type: ignore[no-untyped-call]


AVAILABLE = bool(_features().get("avx2"))
"""Whether this processor has the instructions."""

VNNI = bool(_features().get("avx512vnni") and _features().get("avx512vl"))
"""Whether four products are added in one instruction."""

_WIDTH = LANES if VNNI else LANES // 2
"""Channels of a pixel that neurons take at once: a register of AVX-512, or of AVX2."""


@intrinsic
def dot_tile(typingctx, x, start, pitch, pixels, offsets, first, weights, at, steps, flush, acc, to, fresh):  # type: ignore[no-untyped-def]
    """acc[pixel, lane] += sum over steps and four channels of x * weights, exact; of the GROUPs that hold the first `pixels`.

    Args:
        x: uint8 array; `start` is the index of the tile's origin, `pitch` the distance of two of its pixels.
        offsets: int32 array; from index `first` on, each step's distance from the origin.
        weights: int8 array; from index `at` on, LANES x 4 of every step.
        steps, flush: see above.
        acc: int32 array; the tile's PIXELS * LANES are at index `to`, taken as 0 if `fresh`.
    """
    longs = [types.int64] * 3
    return types.void(x, *longs, offsets, types.int64, weights, *longs, acc, types.int64, types.boolean), _emit_dot


def _emit_dot(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, start, pitch, pixels, offsets, first, weights, at, steps, flush, acc, to, fresh = args
    kinds = signature.args
    origin = _at(builder, _data(context, builder, kinds[0], x), start)
    offsets = builder.gep(_data(context, builder, kinds[4], offsets), [first])
    weights = _at(builder, _data(context, builder, kinds[6], weights), at)
    acc = builder.gep(_data(context, builder, kinds[10], acc), [to])
    pitches = [builder.mul(pitch, _const(i)) for i in range(PIXELS)]
    reader = origin, offsets, weights, steps
    has_two_groups = builder.icmp_signed(">", pixels, _const(GROUP))
    if VNNI:
        with builder.if_else(has_two_groups) as (both, only_one):
            with both:
                _emit_vnni(builder, reader, pitches, acc, fresh)  # type: ignore[no-untyped-call]
            with only_one:
                _emit_vnni(builder, reader, pitches[:GROUP], acc, fresh)  # type: ignore[no-untyped-call]
    else:
        _emit_avx2(builder, reader, pitches[:GROUP], flush, acc, fresh)  # type: ignore[no-untyped-call]
        with builder.if_then(has_two_groups):
            rest = _at(builder, acc, _const(4 * GROUP * LANES), _INT)
            _emit_avx2(builder, reader, pitches[GROUP:], flush, rest, fresh)  # type: ignore[no-untyped-call]
    return context.get_dummy_value()


def _emit_avx2(builder, reader, pitches, flush, acc, fresh):  # type: ignore[no-untyped-def]
    origin, offsets, weights, steps = reader
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


def _emit_vnni(builder, reader, pitches, acc, fresh):  # type: ignore[no-untyped-def]
    origin, offsets, weights, steps = reader
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
    typingctx, acc, acc_step, timesteps, scale, bias, limits, channel, out, start, out_step, pitch, pixels, fan_out, reach,
    reach_pitch, totals,
):  # fmt: skip
    """All timesteps of burst neurons: v += acc * scale + bias; n = clip(floor(v), 0, phi); v -= n; in units of theta, v = 1/2 at first.

    Args:
        acc: int32 array; tiles of PIXELS * LANES, `acc_step` from one timestep to the next (0: the same at every one).
        scale, bias, limits: float32 arrays, read from index `channel` on; limits are phi.
        out: uint8 array; n of the first `pixels` pixels goes to index `start` on, pixels `pitch` apart and timesteps `out_step`.
        fan_out: int32 array; what a spike of pixel i reaches is at `reach + i * reach_pitch`.
        totals: int64 array (8): pairs whose sums are spikes, weights reached, the same two with a burst counted once; added to.
    """
    return _fire_signature(acc, scale, bias, limits, out, fan_out, totals), _emit_fire


def _fire_signature(acc: Any, scale: Any, bias: Any, limits: Any, out: Any, fan_out: Any, totals: Any) -> Any:
    long = types.int64
    return types.void(acc, long, long, scale, bias, limits, long, out, *[long] * 4, fan_out, long, long, totals)


def _emit_fire(context, builder, signature, args):  # type: ignore[no-untyped-def]
    def step(currents, gain, shift, v_mem, most, turn):  # type: ignore[no-untyped-def]
        current = builder.fadd(builder.fmul(currents, gain), shift)
        v, zero = builder.fadd(v_mem, current), _floats(0.0)
        n = _smaller(builder, _larger(builder, _floor(builder, v), zero), most)
        return builder.fsub(v, n), n, zero

    return _emit_neurons(context, builder, signature, args, 0.5, step)  # type: ignore[no-untyped-call]


@intrinsic
def fire_signed_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, acc_step, timesteps, scale, bias, limits, channel, out, start, out_step, pitch, pixels, fan_out, reach,
    reach_pitch, totals,
):  # fmt: skip
    """All timesteps t = 1, 2, ... of a ReLU's signed neurons, counts summed over time: u = acc * scale + t * bias (or, where acc
    is the same at every timestep, t * acc * scale + t * bias); k += clip(max(floor(u + 1/2), 0) - k, -phi, phi); in units of
    theta, k = 0 at first.

    Args:
        out: as in `fire_tile`, but for k.
        others: as in `fire_tile`; spikes of either sign count alike.
    """
    return _fire_signature(acc, scale, bias, limits, out, fan_out, totals), _emit_fire_signed


def _emit_fire_signed(context, builder, signature, args):  # type: ignore[no-untyped-def]
    is_constant = builder.icmp_signed("==", args[1], _const(0))

    def step(currents, gain, shift, fired, most, turn):  # type: ignore[no-untyped-def]
        times = builder.sitofp(builder.add(turn, _const(1)), _FLOAT)
        arrived = builder.select(is_constant, times, ir.Constant(_FLOAT, 1.0))
        gain, shift = (builder.fmul(x, _broadcast(builder, n, _WIDTH, None)) for x, n in ((gain, arrived), (shift, times)))
        current = builder.fadd(builder.fmul(currents, gain), shift)
        level = _floor(builder, builder.fadd(current, _floats(0.5)))
        after = _smaller(builder, _larger(builder, level, _floats(0.0)), builder.fadd(fired, most))
        after = _larger(builder, after, builder.fsub(fired, most))
        return after, after, fired

    return _emit_neurons(context, builder, signature, args, 0.0, step)  # type: ignore[no-untyped-call]


def _emit_neurons(context, builder, signature, args, rest, step):  # type: ignore[no-untyped-def]
    """Of a tile: `step` gives the new state, the counts to write, and those to count from; states are `rest` at first."""
    _, acc_step, timesteps, _, _, _, channel, _, start, out_step, pitch, pixels, _, reach, reach_pitch, _ = args
    acc, scale, bias, limits, out, fan_out, totals = (
        _data(context, builder, signature.args[i], args[i]) for i in (0, 3, 4, 5, 7, 12, 15)
    )
    floats, ints, some = _floats(0.0).type, ir.VectorType(_INT, _WIDTH), ir.VectorType(_BYTE, _WIDTH)
    parts = list(zip(*(_lanes(builder, array, channel, floats) for array in (scale, bias, limits)), strict=True))
    states = [cgutils.alloca_once(builder, floats) for _ in parts]
    out, counted = _at(builder, out, start), _Counted(builder)
    with cgutils.for_range(builder, pixels) as pixel:
        counted.begin()
        for state in states:
            builder.store(_floats(rest), state)
        to = builder.mul(pixel.index, pitch)
        with cgutils.for_range(builder, timesteps) as turn:
            first, found = builder.add(builder.mul(turn.index, acc_step), builder.mul(pixel.index, _const(LANES))), []
            row = builder.mul(first, _const(4))
            for i, (state, (gain, shift, most)) in enumerate(zip(states, parts, strict=True)):
                currents = builder.sitofp(_load(builder, acc, builder.add(row, _const(4 * _WIDTH * i)), ints), floats)
                new, *counts = step(currents, gain, shift, builder.load(state), most, turn.index)
                builder.store(new, state)
                found.append([builder.trunc(builder.fptosi(n, ints), some) for n in counts])
            written, since = (_joined(builder, halves) for halves in zip(*found, strict=True))
            _store(builder, written, out, builder.add(to, builder.mul(turn.index, out_step)))
            counted.add(written, since)
        counted.end(builder.load(builder.gep(fan_out, [builder.add(reach, builder.mul(pixel.index, reach_pitch))])))
    counted.write(totals)
    return context.get_dummy_value()


@intrinsic
def read_tile(typingctx, acc, scale, bias, channel, out, start, pitch, pixels):  # type: ignore[no-untyped-def]
    """out = acc * scale + bias, of the first `pixels` pixels, float32; see `fire_tile`."""
    longs = [types.int64] * 3
    return types.void(acc, scale, bias, types.int64, out, *longs), _emit_read


def _emit_read(context, builder, signature, args):  # type: ignore[no-untyped-def]
    acc, scale, bias, out = (_data(context, builder, signature.args[i], args[i]) for i in (0, 1, 2, 4))
    channel, (start, pitch, pixels) = args[3], args[5:]
    floats, ints = _floats(0.0).type, ir.VectorType(_INT, _WIDTH)
    gains, shifts = (_lanes(builder, array, channel, floats) for array in (scale, bias))
    with cgutils.for_range(builder, pixels) as loop:
        to = builder.mul(builder.add(start, builder.mul(loop.index, pitch)), _const(4))
        for part, (gain, shift) in enumerate(zip(gains, shifts, strict=True)):
            distance = _const(4 * _WIDTH * part)
            here = builder.add(builder.mul(loop.index, _const(4 * LANES)), distance)
            value = builder.fadd(builder.fmul(builder.sitofp(_load(builder, acc, here, ints), floats), gain), shift)
            _store(builder, value, out, builder.add(to, distance))
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
    _count(builder, written, since, builder.load(builder.gep(fan_out, [reach])), totals)
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
        bytes_ = ir.VectorType(_BYTE, LANES)
        now, before = (_load(builder, x, args[i], bytes_) for i in (1, 2))
        before = builder.select(args[3], before, ir.Constant(bytes_, [0] * LANES))
        _count(builder, now, before, builder.load(builder.gep(fan_out, [args[5]])), totals)
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


class _Counted:
    """What is counted, in registers: spikes, weights reached, and the same two with a burst counted once.

    Counts of LANES channels of a pixel are added one timestep after the other, between `begin` and `end`: at most 255.
    """

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._pairs, self._bytes = ir.VectorType(_LONG, 2), ir.VectorType(_BYTE, LANES)
        self._totals = [cgutils.alloca_once_value(builder, ir.Constant(self._pairs, [0, 0])) for _ in range(4)]
        self._spikes, self._bursts = (cgutils.alloca_once(builder, kind) for kind in (self._pairs, self._bytes))

    def begin(self) -> None:
        for place in (self._spikes, self._bursts):
            self._builder.store(ir.Constant(place.type.pointee, [0] * place.type.pointee.count), place)

    def add(self, counts: Any, before: Any) -> None:
        """What LANES bytes differ by."""
        fired = self._builder.zext(self._builder.icmp_unsigned("!=", counts, before), self._bytes)
        self._add_to(self._spikes, self._sum_of_differences(counts, before))
        self._add_to(self._bursts, fired)

    def end(self, reach: Any) -> None:
        """Each of these spikes reaches so many weights (int32)."""
        builder = self._builder
        reach = _broadcast(builder, builder.zext(reach, _LONG), 2, None)
        spikes = builder.load(self._spikes)
        bursts = self._sum_of_differences(builder.load(self._bursts), ir.Constant(self._bytes, [0] * LANES))
        values = spikes, builder.mul(spikes, reach), bursts, builder.mul(bursts, reach)
        for total, value in zip(self._totals, values, strict=True):
            self._add_to(total, value)

    def write(self, totals: Any) -> None:
        """Add to an int64 array (8), pair by pair."""
        for i, total in enumerate(self._totals):
            _add_to(self._builder, totals, 16 * i, self._builder.load(total))

    def _sum_of_differences(self, a: Any, b: Any) -> Any:
        return _call(self._builder, "llvm.x86.sse2.psad.bw", self._pairs, a, b)

    def _add_to(self, place: Any, value: Any) -> None:
        self._builder.store(self._builder.add(self._builder.load(place), value), place)


def _count(builder: Any, counts: Any, before: Any, reach: Any, totals: Any) -> None:
    """Add what LANES bytes differ by to an int64 array (8)."""
    counted = _Counted(builder)
    counted.begin()
    counted.add(counts, before)
    counted.end(reach)
    counted.write(totals)


def _floats(value: float) -> ir.Constant:
    """_WIDTH lanes, alike."""
    return ir.Constant(ir.VectorType(_FLOAT, _WIDTH), [value] * _WIDTH)


def _floor(builder: Any, value: Any) -> Any:
    return _call(builder, f"llvm.floor.v{_WIDTH}f32", value.type, value)


def _joined(builder: Any, parts: Any) -> Any:
    """LANES bytes of one part or two."""
    if len(parts) == 1:
        return parts[0]
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(_INT, LANES), list(range(LANES))))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _lanes(builder: Any, array: Any, channel: Any, floats: Any) -> list[Any]:
    """LANES floats from an index on, _WIDTH at a time."""
    place = builder.mul(channel, _const(4))
    return [_load(builder, array, builder.add(place, _const(4 * i)), floats) for i in range(0, LANES, _WIDTH)]


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
