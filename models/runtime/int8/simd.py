"""Vector instructions for the inner loops of the int8 engine: numba intrinsics that emit LLVM (x86-64, AVX2 or better).

A tile is PIXELS neighbouring outputs of one row by LANES output channels. AVX2 sums it in GROUPs of pixels, VNNI together with
the tile of the next LANES channels, which reads the same counts. A step adds the products of four input channels of one pixel:

    AVX2    vpmaddubsw adds u8 x s8 products of two channels in 16 bits; vpmaddwd widens the sums after `flush` steps
    VNNI    vpdpbusd adds u8 x s8 products of four channels in 32 bits; twenty independent sums hide its latency

16 bits suffice for many steps because spike counts are small: at most phi, where other quantised networks have 255. `flush` is
computed from the weights such that no sum overflows (models/runtime/int8/quantise.py). Both variants are exact.
"""

from __future__ import annotations

import platform
import sys
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
TILE = PIXELS * LANES
PAIR = 2
"""Tiles that are summed together."""

_BYTE, _SHORT, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _features() -> dict[str, bool]:
    """Features of the processor that numba compiles for: the host, or that of NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    features = numba.config.CPU_FEATURES
    if features is not None:
        return {name[1:]: name.startswith("+") for name in features.split(",")}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    return dict(binding.get_host_cpu_features())  # type: ignore[no-untyped-call]


AVAILABLE = bool(_features().get("avx2"))
"""Whether the processor supports AVX2."""

VNNI = bool(_features().get("avx512vnni") and _features().get("avx512vl"))
"""Whether the processor adds four products in one instruction (AVX-512 VNNI)."""

_WIDTH = LANES if VNNI else LANES // 2
"""Channels of a pixel that fit into one float32 register: of AVX-512, or of AVX2."""


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
    origin = _at(builder, _data(context, builder, kinds[0], x), start)
    offsets = builder.gep(_data(context, builder, kinds[4], offsets), [first])
    weights = _at(builder, _data(context, builder, kinds[6], weights), at)
    acc = builder.gep(_data(context, builder, kinds[12], acc), [to])
    pitches = [builder.mul(pitch, _const(i)) for i in range(PIXELS)]
    pair = [weights, _at(builder, weights, apart)]
    has_two_groups, has_two_tiles = builder.icmp_signed(">", pixels, _const(GROUP)), builder.icmp_signed("==", tiles, _const(PAIR))
    if VNNI:
        with builder.if_else(has_two_tiles) as cases:
            for case, own in zip(cases, (pair, pair[:1]), strict=True):
                with case, builder.if_else(has_two_groups) as (both, only_one):
                    with both:
                        _emit_vnni(builder, (origin, offsets, own, steps), pitches, acc, fresh)  # type: ignore[no-untyped-call]
                    with only_one:
                        _emit_vnni(builder, (origin, offsets, own, steps), pitches[:GROUP], acc, fresh)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()
    with cgutils.for_range(builder, tiles) as tile:
        reader = origin, offsets, _at(builder, weights, builder.mul(tile.index, apart)), steps
        own = builder.gep(acc, [builder.mul(tile.index, _const(TILE))])
        _emit_avx2(builder, reader, pitches[:GROUP], flush, own, fresh)  # type: ignore[no-untyped-call]
        with builder.if_then(has_two_groups):
            second = _at(builder, own, _const(4 * GROUP * LANES), _INT)
            _emit_avx2(builder, reader, pitches[GROUP:], flush, second, fresh)  # type: ignore[no-untyped-call]
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
    sums = [[cgutils.alloca_once(builder, ints) for _ in weights] for _ in pitches]
    _clear(builder, sums)
    with cgutils.for_range(builder, steps) as loop:
        here = _at(builder, origin, builder.sext(builder.load(builder.gep(offsets, [loop.index])), _LONG))
        place = builder.mul(loop.index, _const(4 * LANES))
        rows_of_weights = [_load(builder, own, place, ints) for own in weights]
        for totals, distance in zip(sums, pitches, strict=True):
            counts = builder.bitcast(_broadcast(builder, _load(builder, here, distance, _INT), LANES), ints)
            for total, row_of_weights in zip(totals, rows_of_weights, strict=True):
                added = _call(builder, "llvm.x86.avx512.vpdpbusd.512", ints, builder.load(total), counts, row_of_weights)
                builder.store(added, total)
    for tile in range(len(weights)):
        for i, totals in enumerate(sums):
            _add_to(builder, acc, 4 * (TILE * tile + LANES * i), builder.load(totals[tile]), fresh)


@intrinsic
def fire_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, acc_at, acc_step, timesteps, scale, bias, limits, channel, out, start, out_step, pitch, pixels, fan_out, fan_out_at,
    fan_out_pitch, totals, silent, changed,
):  # fmt: skip
    """Run burst neurons for all timesteps.

    In units of theta, from v = 1/2: v += acc * scale + bias; n = clip(floor(v), 0, phi); v -= n.

    Args:
        acc: int32 array; the TILE sums of the first timestep from index `acc_at` on, those of the others `acc_step` elements
            apart; 0 if the current is constant.
        timesteps: T.
        scale, bias: float32 `(1 or more, C)`, whose first row is read from index `channel` on.
        limits: float32 (C), burst limits.
        out: uint8 array for the counts n, from index `start` on; pixels are `pitch` apart, timesteps `out_step`.
        pixels: number of pixels of the tile that are written.
        fan_out: int32 array; the fan-out of pixel i is at index `fan_out_at + i * fan_out_pitch`.
        totals: int64 array (16) to add to: spikes, synaptic operations, and both with each burst counted once; then the same
            for differences from silence. Each is the sum of two consecutive elements.
        silent: like `out`, the counts of a window without events.
        changed: uint8 array of flags, one for every LANES elements of `out`: whether they differ from silence at any timestep.
    """
    return _fire_signature(acc, scale, bias, limits, out, fan_out, totals, silent, changed), _emit_fire


def _fire_signature(
    acc: Any, scale: Any, bias: Any, limits: Any, out: Any, fan_out: Any, totals: Any, silent: Any, changed: Any
) -> Any:
    long = types.int64
    arrays = totals, silent, changed
    return types.void(acc, long, long, long, scale, bias, limits, long, out, *[long] * 4, fan_out, long, long, *arrays)


def _emit_fire(context, builder, signature, args):  # type: ignore[no-untyped-def]
    def step(current, v_mem, limit):  # type: ignore[no-untyped-def]
        v = builder.fadd(v_mem, current)
        n, spikes = _truncated(builder, _smaller(builder, _larger(builder, v, _floats(0.0)), limit))
        return builder.fsub(v, spikes), n

    return _emit_neurons(context, builder, signature, args, 0.5, step, summed=False)  # type: ignore[no-untyped-call]


@intrinsic
def fire_signed_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, acc_at, acc_step, timesteps, scale, bias, limits, channel, out, start, out_step, pitch, pixels, fan_out, fan_out_at,
    fan_out_pitch, totals, silent, changed,
):  # fmt: skip
    """Run the signed neurons of a ReLU for all timesteps t = 1, 2, ..., T > 1, with inputs and counts summed over time.

    In units of theta, from k = 0: u = acc * scale[t - 1] + bias[t - 1]; k += clip(max(floor(u + 1/2), 0) - k, -phi, phi).
    At T = 1 these are the neurons of `fire_tile`.

    Args:
        scale, bias: float32 `(T, C)`, read from index `channel` of each row on.
        limits: as in `fire_tile`, at most 127.
        out, silent: as in `fire_tile`, but for the summed counts k, at most 255.
        others: as in `fire_tile`; negative spikes count like positive ones.
    """
    return _fire_signature(acc, scale, bias, limits, out, fan_out, totals, silent, changed), _emit_fire_signed


def _emit_fire_signed(context, builder, signature, args):  # type: ignore[no-untyped-def]
    def step(current, fired, limit):  # type: ignore[no-untyped-def]
        level = _larger(builder, builder.fadd(current, _floats(0.5)), _floats(0.0))
        level = _smaller(builder, level, builder.fadd(fired, limit))
        k, new = _truncated(builder, _larger(builder, level, builder.fsub(fired, limit)))
        return new, k

    return _emit_neurons(context, builder, signature, args, 0.0, step, summed=True)  # type: ignore[no-untyped-call]


def _emit_neurons(context, builder, signature, args, rest, step, summed):  # type: ignore[no-untyped-def]
    """Emit the loop over the pixels and timesteps of a tile.

    `step` returns the new state and the counts to write, int32. States start at `rest`.
    """
    _, acc_at, acc_step, timesteps, scale, _, _, channel, _, start, out_step, pitch, pixels, _, fan_out_at, fan_out_pitch, *_ = args
    row_of_scale = cgutils.unpack_tuple(builder, make_array(signature.args[4])(context, builder, scale).shape)[1]
    acc, scale, bias, limits, out, fan_out, totals, silent, changed = (
        _data(context, builder, signature.args[i], args[i]) for i in (0, 4, 5, 6, 8, 13, 16, 17, 18)
    )
    acc = builder.gep(acc, [acc_at])
    floats, ints, narrow = _floats(0.0).type, ir.VectorType(_INT, _WIDTH), ir.VectorType(_BYTE, _WIDTH)
    byte_lanes = ir.VectorType(_BYTE, LANES)
    all_limits = _lanes(builder, limits, channel, floats)
    states = [cgutils.alloca_once(builder, floats) for _ in all_limits]
    changed = _at(builder, changed, builder.udiv(start, _const(LANES)))
    out, silent, counter = _at(builder, out, start), _at(builder, silent, start), _SpikeCounter(builder, summed)
    with cgutils.for_range(builder, pixels) as pixel:
        counter.begin(timesteps)
        for state in states:
            builder.store(_floats(rest), state)
        to = builder.mul(pixel.index, pitch)
        with cgutils.for_range(builder, timesteps) as loop:
            first = builder.add(builder.mul(loop.index, acc_step), builder.mul(pixel.index, _const(LANES)))
            row, counts = builder.mul(first, _const(4)), []
            own = builder.add(channel, builder.mul(loop.index, row_of_scale)) if summed else channel
            gains, shifts = (_lanes(builder, array, own, floats) for array in (scale, bias))
            for i, (state, gain, shift, limit) in enumerate(zip(states, gains, shifts, all_limits, strict=True)):
                sums = builder.sitofp(_load(builder, acc, builder.add(row, _const(4 * _WIDTH * i)), ints), floats)
                current = builder.fadd(builder.fmul(sums, gain), shift)
                new, n = step(current, builder.load(state), limit)
                builder.store(new, state)
                counts.append(builder.trunc(n, narrow))
            here, written = builder.add(to, builder.mul(loop.index, out_step)), _joined(builder, counts)
            _store(builder, written, out, here)
            counter.add(written, _load(builder, silent, here, byte_lanes))
        place = builder.add(fan_out_at, builder.mul(pixel.index, fan_out_pitch))
        differs = counter.end(builder.load(builder.gep(fan_out, [place])))
        _store(builder, differs, changed, builder.udiv(to, _const(LANES)))
    counter.write(totals)
    return context.get_dummy_value()


@intrinsic
def read_tile(typingctx, acc, acc_at, scale, bias, channel, out, start, pitch, pixels):  # type: ignore[no-untyped-def]
    """Write acc * scale + bias of the first `pixels` pixels to `out`, float32; arguments as in `fire_tile`."""
    longs = [types.int64] * 3
    return types.void(acc, types.int64, scale, bias, types.int64, out, *longs), _emit_read


def _emit_read(context, builder, signature, args):  # type: ignore[no-untyped-def]
    acc, scale, bias, out = (_data(context, builder, signature.args[i], args[i]) for i in (0, 2, 3, 5))
    acc, channel, (start, pitch, pixels) = builder.gep(acc, [args[1]]), args[4], args[6:]
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
    typingctx, x, start, row, pixel, rows, columns, step, steps, lanes, before, to, fan_out, fan_out_at, totals, summed
):
    """Max-pool LANES channels: write the growth of the largest accumulated count of a window, or that count itself if `summed`.

    Args:
        x: uint8 array. The window starts at index `start` and has `rows` by `columns` pixels, `row` and `pixel` apart. `steps`
            timesteps, `step` apart, are accumulated. The result is written at index `to`.
        lanes: number of channels in use; the others are set to 0.
        before: uint16 array (LANES) of the largest counts at the previous timestep; updated.
        fan_out, fan_out_at, totals: as in `fire_tile`.
        summed: whether the counts in `x` are already summed over time.
    """
    longs = [types.int64] * 8
    return types.void(x, *longs, before, types.int64, fan_out, types.int64, totals, types.boolean), _emit_pool


def _emit_pool(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, before, fan_out, totals = (_data(context, builder, signature.args[i], args[i]) for i in (0, 9, 11, 13))
    start, row, pixel, rows, columns, step, steps, lanes = args[1:9]
    to, fan_out_at, is_summed = args[10], args[12], args[14]
    bytes_, shorts = ir.VectorType(_BYTE, LANES), ir.VectorType(_SHORT, LANES)
    zero = ir.Constant(shorts, [0] * LANES)
    largest, summed = (cgutils.alloca_once_value(builder, zero) for _ in range(2))
    with cgutils.for_range(builder, rows) as i, cgutils.for_range(builder, columns) as j:
        corner = builder.add(start, builder.add(builder.mul(i.index, row), builder.mul(j.index, pixel)))
        builder.store(zero, summed)
        with cgutils.for_range(builder, steps) as t:
            counts = _load(builder, x, builder.add(corner, builder.mul(t.index, step)), bytes_)
            builder.store(builder.add(builder.load(summed), builder.zext(counts, shorts)), summed)
        here, so_far = builder.load(summed), builder.load(largest)
        builder.store(builder.select(builder.icmp_unsigned(">", here, so_far), here, so_far), largest)
    now, earlier = builder.load(largest), _load(builder, before, _const(0), shorts)
    _store(builder, now, before, _const(0))
    numbers = ir.Constant(shorts, list(range(LANES)))
    in_use = builder.icmp_unsigned("<", numbers, _broadcast(builder, builder.trunc(lanes, _SHORT), LANES, None))
    values = builder.select(is_summed, now, builder.sub(now, earlier)), builder.select(is_summed, earlier, zero)
    written, since = (builder.trunc(builder.select(in_use, value, zero), bytes_) for value in values)
    _store(builder, written, x, to)
    _count(builder, written, since, builder.load(builder.gep(fan_out, [fan_out_at])), totals)
    return context.get_dummy_value()


@intrinsic
def copy_lanes(typingctx, x, start, out, to):  # type: ignore[no-untyped-def]
    """Copy x[start : start + LANES] to out[to : to + LANES], uint8 arrays."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, out = (_data(context, builder, signature.args[i], args[i]) for i in (0, 2))
        _store(builder, _load(builder, x, args[1], ir.VectorType(_BYTE, LANES)), out, args[3])
        return context.get_dummy_value()

    return types.void(x, types.int64, out, types.int64), emit


@intrinsic
def multiply_lanes(typingctx, x, start, factors, first, to, add):  # type: ignore[no-untyped-def]
    """Write x[start : start + LANES] * factors[first : first + LANES] to x[to : to + LANES], or add it to that if `add`.

    Args:
        x, factors: uint8 and int32 arrays; results are taken modulo 256.
    """

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        bytes_, ints = ir.VectorType(_BYTE, LANES), ir.VectorType(_INT, LANES)
        x, factors = (_data(context, builder, signature.args[i], args[i]) for i in (0, 2))
        factor = builder.trunc(_load(builder, factors, builder.mul(args[3], _const(4)), ints), bytes_)
        product = builder.mul(_load(builder, x, args[1], bytes_), factor)
        before = builder.select(args[5], _load(builder, x, args[4], bytes_), ir.Constant(bytes_, [0] * LANES))
        _store(builder, builder.add(product, before), x, args[4])
        return context.get_dummy_value()

    long = types.int64
    return types.void(x, long, factors, long, long, types.boolean), emit


@intrinsic
def count_lanes(typingctx, x, start, y, since, subtract, fan_out, fan_out_at, totals, first):  # type: ignore[no-untyped-def]
    """Add x[start : start + LANES] to totals[first : first + 8], as `fire_tile` does; if `subtract`, its difference from the
    LANES of `y` at `since`."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, y, fan_out, totals = (_data(context, builder, signature.args[i], args[i]) for i in (0, 2, 5, 7))
        bytes_ = ir.VectorType(_BYTE, LANES)
        now, before = _load(builder, x, args[1], bytes_), _load(builder, y, args[3], bytes_)
        before = builder.select(args[4], before, ir.Constant(bytes_, [0] * LANES))
        totals = builder.gep(totals, [args[8]])
        _count(builder, now, before, builder.load(builder.gep(fan_out, [args[6]])), totals)
        return context.get_dummy_value()

    long = types.int64
    return types.void(x, long, y, long, types.boolean, fan_out, long, totals, long), emit


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
    """Number of zero bits below the lowest set bit of a non-zero uint64."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), emit


@intrinsic
def fetch_add(typingctx, array, index, n):  # type: ignore[no-untyped-def]
    """Add `n` to array[index], int64, atomically, and return what was there before."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), emit


@intrinsic
def read(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Read array[index], int64, which other threads add to."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.gep(_data(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(array, types.int64), emit


@intrinsic
def pause(typingctx):  # type: ignore[no-untyped-def]
    """Tell the processor that this thread waits in a loop."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def give_way(typingctx):  # type: ignore[no-untyped-def]
    """Let another thread run on this core, which may be the one that this thread waits for; on Windows, only pause."""

    def emit(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if sys.platform == "win32":
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        else:
            _call(builder, "sched_yield", _INT)
        return context.get_dummy_value()

    return types.void(), emit


class _SpikeCounter:
    """Emits counters in registers: spikes, synaptic operations, and both with each burst counted once; then the same for
    differences from silence.

    Between `begin` and `end`, counts of LANES channels of one pixel are added, timestep by timestep; at most 255 timesteps.
    Spikes and differences are counted together, as the two halves of one register.

    Args:
        builder: of the function.
        summed: whether the counts are sums over time, of which the spikes are the differences.
    """

    def __init__(self, builder: Any, summed: bool) -> None:
        self._builder, self._summed = builder, summed
        sums, flags, counts = ir.VectorType(_LONG, 4), ir.VectorType(_BYTE, 2 * LANES), ir.VectorType(_BYTE, LANES)
        self._totals = [cgutils.alloca_once_value(builder, ir.Constant(sums, None)) for _ in range(4)]
        self._sums, self._bursts = (cgutils.alloca_once(builder, kind) for kind in (sums, flags))
        self._before = [cgutils.alloca_once(builder, counts) for _ in range(2)]

    def begin(self, timesteps: Any) -> None:
        """Start a pixel of which counts of `timesteps` timesteps will be added."""
        start = _broadcast(self._builder, self._builder.trunc(timesteps, _BYTE), 2 * LANES, None)
        for place in (self._sums, *self._before):
            self._builder.store(ir.Constant(place.type.pointee, None), place)
        self._builder.store(start, self._bursts)

    def add(self, counts: Any, resting: Any) -> None:
        """Add the counts of a timestep, and their differences from `resting`, those of a window without events.

        Of sums, at most 127 are added per timestep.
        """
        builder, nothing = self._builder, ir.Constant(counts.type, None)
        a, b = (counts, counts), (nothing, resting)
        if self._summed:
            before, rested = (builder.load(place) for place in self._before)
            own, idle = builder.sub(counts, before), builder.sub(resting, rested)
            a, b = (counts, _distance(builder, own, idle)), (before, nothing)
            for place, value in zip(self._before, (counts, resting), strict=True):
                builder.store(value, place)
        added, base = _joined(builder, a), _joined(builder, b)
        self._add_to(self._sums, _sum_of_distances(builder, added, base))
        self._add_to(self._bursts, builder.sext(builder.icmp_unsigned("==", added, base), added.type))

    def end(self, fan_out: Any) -> Any:
        """Add the spikes since `begin` to the totals; each has the given fan-out (int32).

        Returns:
            Byte: 1 if any spike count differed from silence, else 0.
        """
        builder = self._builder
        fan_out = builder.bitcast(_broadcast(builder, fan_out, 8, None), self._sums.type.pointee)
        bursts = builder.load(self._bursts)
        sums, bursts = builder.load(self._sums), _sum_of_distances(builder, bursts, ir.Constant(bursts.type, None))
        values = sums, _product(builder, sums, fan_out), bursts, _product(builder, bursts, fan_out)
        for total, value in zip(self._totals, values, strict=True):
            self._add_to(total, value)
        differences = ir.Constant(sums.type, [0, 0, -1, -1])
        equal = _call(builder, "llvm.x86.avx.ptestz.256", _INT, sums, differences)
        return builder.xor(builder.trunc(equal, _BYTE), ir.Constant(_BYTE, 1))

    def write(self, totals: Any) -> None:
        """Add the totals to an int64 array (16), two elements each."""
        for half in range(2):
            for i, total in enumerate(self._totals):
                _add_to(self._builder, totals, 64 * half + 16 * i, _half(self._builder, self._builder.load(total), half))

    def _add_to(self, place: Any, value: Any) -> None:
        self._builder.store(self._builder.add(self._builder.load(place), value), place)


def _count(builder: Any, counts: Any, before: Any, fan_out: Any, totals: Any) -> None:
    """Add the differences between two vectors of LANES bytes to an int64 array (8), see `fire_tile`."""
    fan_out = _broadcast(builder, builder.zext(fan_out, _LONG), 2, None)
    spikes = _sum_of_differences(builder, counts, before)
    bursts = _sum(builder, _differ(builder, counts, before))
    for i, value in enumerate((spikes, builder.mul(spikes, fan_out), bursts, builder.mul(bursts, fan_out))):
        _add_to(builder, totals, 16 * i, value)


def _product(builder: Any, a: Any, b: Any) -> Any:
    """Product of two vectors of int64 below 2^32, as one instruction instead of several."""
    low = ir.Constant(a.type, [2**32 - 1] * a.type.count)
    return builder.mul(builder.and_(a, low), builder.and_(b, low))


def _differ(builder: Any, a: Any, b: Any) -> Any:
    """Vector of LANES bytes: 1 where two vectors differ, else 0."""
    return builder.zext(builder.icmp_unsigned("!=", a, b), ir.VectorType(_BYTE, LANES))


def _sum(builder: Any, counts: Any) -> Any:
    """Sum of LANES bytes, as two int64."""
    return _sum_of_differences(builder, counts, ir.Constant(counts.type, [0] * LANES))


def _sum_of_differences(builder: Any, a: Any, b: Any) -> Any:
    """Sum of the absolute differences of two vectors of LANES bytes, as two int64."""
    return _call(builder, "llvm.x86.sse2.psad.bw", ir.VectorType(_LONG, 2), a, b)


def _floats(value: float) -> ir.Constant:
    """Vector of _WIDTH equal floats."""
    return ir.Constant(ir.VectorType(_FLOAT, _WIDTH), [value] * _WIDTH)


def _truncated(builder: Any, value: Any) -> tuple[Any, Any]:
    """Floor of floats that are not negative: as int32, and as floats."""
    whole = builder.fptosi(value, ir.VectorType(_INT, value.type.count))
    return whole, builder.sitofp(whole, value.type)


def _joined(builder: Any, parts: Any) -> Any:
    """Join one or two vectors of equal length into one."""
    if len(parts) == 1:
        return parts[0]
    size = 2 * parts[0].type.count
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(_INT, size), list(range(size))))


def _half(builder: Any, vector: Any, half: int) -> Any:
    """The first or second half of a vector."""
    size = vector.type.count // 2
    numbers = ir.Constant(ir.VectorType(_INT, size), list(range(half * size, (half + 1) * size)))
    return builder.shuffle_vector(vector, vector, numbers)


def _distance(builder: Any, a: Any, b: Any) -> Any:
    """Absolute differences of two vectors of signed integers, as unsigned ones."""
    larger = builder.icmp_signed(">", a, b)
    return builder.sub(builder.select(larger, a, b), builder.select(larger, b, a))


def _sum_of_distances(builder: Any, a: Any, b: Any) -> Any:
    """Sums over eight bytes each of the absolute differences of two vectors of 2 * LANES bytes, as four int64."""
    return _call(builder, "llvm.x86.avx2.psad.bw", ir.VectorType(_LONG, 4), a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _lanes(builder: Any, array: Any, channel: Any, floats: Any) -> list[Any]:
    """Load LANES floats from an index on, as vectors of _WIDTH."""
    place = builder.mul(channel, _const(4))
    return [_load(builder, array, builder.add(place, _const(4 * i)), floats) for i in range(0, LANES, _WIDTH)]


def _const(value: int) -> ir.Constant:
    return ir.Constant(_LONG, value)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to the first element of an array."""
    return make_array(kind)(context, builder, array).data


def _at(builder: Any, pointer: Any, distance: Any, kind: Any = _BYTE) -> Any:
    """Pointer that is `distance` bytes further on."""
    target = builder.gep(builder.bitcast(pointer, _BYTE.as_pointer()), [distance])
    return builder.bitcast(target, kind.as_pointer())


def _load(builder: Any, pointer: Any, distance: Any, kind: Any) -> Any:
    return builder.load(_at(builder, pointer, distance, kind), align=1)


def _store(builder: Any, value: Any, pointer: Any, distance: Any) -> None:
    builder.store(value, _at(builder, pointer, distance, value.type), align=1)


def _add_to(builder: Any, acc: Any, distance: int, value: Any, fresh: Any = None) -> None:
    """Add a vector to memory; if `fresh`, overwrite it instead."""
    position = _const(distance)
    before = _load(builder, acc, position, value.type)
    if fresh is not None:
        before = builder.select(fresh, ir.Constant(value.type, [0] * value.type.count), before)
    _store(builder, builder.add(before, value), acc, position)


def _clear(builder: Any, sums: Any) -> None:
    """Set vectors to zero."""
    for row in sums:
        for total in row:
            kind = total.type.pointee
            builder.store(ir.Constant(kind, [0] * kind.count), total)


def _broadcast(builder: Any, value: Any, lanes: int, to: Any = _BYTE) -> Any:
    """Vector of `lanes` equal values; unless `to` is None, reinterpreted as a vector of `4 * lanes` of that type."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_INT, 0))
    vector = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes))
    return vector if to is None else builder.bitcast(vector, ir.VectorType(to, 4 * lanes))


def _call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)
