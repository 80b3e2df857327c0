"""Burst neurons and read-outs of a tile, and the counts of its spikes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from evburst.models.runtime.int8.simd import emit
from evburst.models.runtime.int8.simd.emit import LANES


@intrinsic
def fire_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, acc_at, acc_step, timesteps, scale, bias, limits, channel, out, start, out_step, pitch, pixels, fan_out,
    fan_out_at, fan_out_pitch, totals, silent, changed,
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
        fan_out: int16 array; the LANES fan-outs of pixel i begin at index `fan_out_at + i * fan_out_pitch`.
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
    return _emit_neurons(context, builder, signature, args, _Neurons)  # type: ignore[no-untyped-call]


@intrinsic
def fire_signed_tile(  # type: ignore[no-untyped-def]
    typingctx, acc, acc_at, acc_step, timesteps, scale, bias, limits, channel, out, start, out_step, pitch, pixels, fan_out,
    fan_out_at, fan_out_pitch, totals, silent, changed,
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
    return _emit_neurons(context, builder, signature, args, _SignedNeurons)  # type: ignore[no-untyped-call]


class _Neurons:
    """Emits the neurons of LANES channels of one pixel.

    Args:
        builder: of the function.
        limits: their burst limits, as vectors of floats.
    """

    summed = False

    def __init__(self, builder: Any, limits: list[Any]) -> None:
        self._builder, self._limits = builder, limits
        self._v_mem = [cgutils.alloca_once(builder, limit.type) for limit in limits]

    def begin(self) -> None:
        """Start a pixel."""
        for v_mem in self._v_mem:
            self._builder.store(emit.floats_of(0.5), v_mem)

    def step(self, currents: list[Any]) -> Any:
        """Return the counts of a timestep, LANES bytes, given the currents as vectors of floats."""
        builder, counts = self._builder, []
        for current, place, limit in zip(currents, self._v_mem, self._limits, strict=True):
            v = builder.fadd(builder.load(place), current)
            n = emit.floor(builder, emit.smaller(builder, emit.larger(builder, v, emit.floats_of(0.0)), limit))
            builder.store(builder.fsub(v, builder.sitofp(n, v.type)), place)
            counts.append(n)
        return emit.bytes_of(builder, counts)


class _SignedNeurons:
    """Like _Neurons, for signed neurons whose currents and counts are summed over time.

    All that depends on the counts before is a few operations on bytes, which saturate, as the sums stay below 256.
    """

    summed = True

    def __init__(self, builder: Any, limits: list[Any]) -> None:
        self._builder = builder
        self._limit = emit.bytes_of(builder, [emit.floor(builder, limit) for limit in limits])
        self._fired = cgutils.alloca_once(builder, self._limit.type)

    def begin(self) -> None:
        """Start a pixel."""
        self._builder.store(ir.Constant(self._limit.type, None), self._fired)

    def step(self, currents: list[Any]) -> Any:
        """Return the summed counts at a timestep, LANES bytes, given the summed currents as vectors of floats."""
        builder, levels = self._builder, []
        for current in currents:
            level = emit.larger(builder, builder.fadd(current, emit.floats_of(0.5)), emit.floats_of(0.0))
            levels.append(emit.floor(builder, emit.smaller(builder, level, emit.floats_of(255.0))))
        fired = builder.load(self._fired)
        most, least = (emit.saturating(builder, sign, fired, self._limit) for sign in ("add", "sub"))
        counts = emit.within(builder, emit.bytes_of(builder, levels), least, most)
        builder.store(counts, self._fired)
        return counts


def _emit_neurons(context, builder, signature, args, kind):  # type: ignore[no-untyped-def]
    """Emit the loop over the pixels and timesteps of a tile, for a kind of neurons."""
    acc_at, acc_step, timesteps, scale, _, _, channel = args[1:8]
    start, out_step, pitch, pixels, _, fan_out_at, fan_out_pitch = args[9:16]
    row_of_scale = cgutils.unpack_tuple(builder, make_array(signature.args[4])(context, builder, scale).shape)[1]
    acc, scale, bias, limits, out, fan_out, totals, silent, changed = (
        emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 4, 5, 6, 8, 13, 16, 17, 18)
    )
    acc = builder.gep(acc, [acc_at])
    floats, ints, byte_lanes = emit.floats_of(0.0).type, ir.VectorType(emit.INT, emit.WIDTH), ir.VectorType(emit.BYTE, LANES)
    changed = emit.at(builder, changed, builder.udiv(start, emit.const(LANES)))
    out, silent = emit.at(builder, out, start), emit.at(builder, silent, start)
    neurons, counter = kind(builder, emit.lanes_of(builder, limits, channel, floats)), _SpikeCounter(builder, kind.summed)

    def emit_timestep(t: Any, pixel: Any, to: Any) -> None:
        row = builder.mul(builder.add(builder.mul(t, acc_step), builder.mul(pixel, emit.const(LANES))), emit.const(4))
        own, currents = builder.add(channel, builder.mul(t, row_of_scale)) if kind.summed else channel, []
        gains, shifts = (emit.lanes_of(builder, array, own, floats) for array in (scale, bias))
        for i, (gain, shift) in enumerate(zip(gains, shifts, strict=True)):
            sums = emit.load(builder, acc, builder.add(row, emit.const(4 * emit.WIDTH * i)), ints)
            currents.append(builder.fadd(builder.fmul(builder.sitofp(sums, floats), gain), shift))
        here, written = builder.add(to, builder.mul(t, out_step)), neurons.step(currents)
        emit.store(builder, written, out, here)
        counter.add(written, emit.load(builder, silent, here, byte_lanes))

    def emit_pixels(once: bool) -> None:
        with cgutils.for_range(builder, pixels) as loop:
            to = builder.mul(loop.index, pitch)
            counter.begin(timesteps, fan_out, builder.add(fan_out_at, builder.mul(loop.index, fan_out_pitch)))
            neurons.begin()
            if once:
                emit_timestep(emit.const(0), loop.index, to)
            else:
                with cgutils.for_range(builder, timesteps) as times:
                    emit_timestep(times.index, loop.index, to)
            emit.store(builder, counter.end(), changed, builder.udiv(to, emit.const(LANES)))

    if kind.summed:
        emit_pixels(once=False)
    else:  # at T = 1, what neurons keep for the next timestep is left out
        with builder.if_else(builder.icmp_signed("==", timesteps, emit.const(1))) as cases:
            for case, once in zip(cases, (True, False), strict=True):
                with case:
                    emit_pixels(once)
    counter.write(totals)
    return context.get_dummy_value()


@intrinsic
def count_pixel(typingctx, x, silent, start, step, timesteps, summed, fan_out, fan_out_at, totals):  # type: ignore[no-untyped-def]
    """Count the spikes of LANES channels of one pixel, as `fire_tile` does, or `fire_signed_tile` if `summed`.

    Args:
        x, silent: uint8 arrays; the counts of a timestep and those of a window without events, from index `start` on, timesteps
            `step` apart.
        timesteps: T, above 1 if `summed`.
        fan_out, fan_out_at: int16 array and the index of the first fan-out.
        totals: as in `fire_tile`.

    Returns:
        uint8: 1 if any count differed from silence, else 0.
    """
    longs = [types.int64] * 3
    return types.uint8(x, silent, *longs, types.boolean, fan_out, types.int64, totals), _emit_count


def _emit_count(context, builder, signature, args):  # type: ignore[no-untyped-def]
    x, silent, fan_out, totals = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 1, 6, 8))
    start, step, timesteps, is_summed = args[2:6]
    differs = cgutils.alloca_once(builder, emit.BYTE)
    bytes_ = ir.VectorType(emit.BYTE, LANES)
    with builder.if_else(is_summed) as cases:
        for case, summed in zip(cases, (True, False), strict=True):
            with case:
                counter = _SpikeCounter(builder, summed)
                counter.begin(timesteps, fan_out, args[7])
                with cgutils.for_range(builder, timesteps) as loop:
                    here = builder.add(start, builder.mul(loop.index, step))
                    counter.add(*(emit.load(builder, array, here, bytes_) for array in (x, silent)))
                builder.store(counter.end(), differs)
                counter.write(totals)
    return builder.load(differs)


class _SpikeCounter:
    """Emits counters in registers: spikes, synaptic operations, and both with each burst counted once; then the same for
    differences from silence.

    Between `begin` and `end`, counts of LANES channels of one pixel are added, timestep by timestep; at most 255 timesteps.
    Spikes and differences are counted together, as the two halves of one register. Synaptic operations of all pixels together
    must fit into 32 bits; see tables.py.

    Args:
        builder: of the function.
        summed: whether the counts are sums over time, of which the spikes are the differences.
    """

    def __init__(self, builder: Any, summed: bool) -> None:
        self._builder, self._summed = builder, summed
        sums, flags, counts = ir.VectorType(emit.LONG, 4), ir.VectorType(emit.BYTE, 2 * LANES), ir.VectorType(emit.BYTE, LANES)
        weighed = ir.VectorType(emit.INT, LANES // 2)
        self._counted = [cgutils.alloca_once_value(builder, ir.Constant(sums, None)) for _ in range(2)]
        self._weighed = [cgutils.alloca_once_value(builder, ir.Constant(weighed, None)) for _ in range(2)]
        self._sums, self._bursts = (cgutils.alloca_once(builder, kind) for kind in (sums, flags))
        self._before = [cgutils.alloca_once(builder, counts) for _ in range(2)]

    def begin(self, timesteps: Any, fan_out: Any, at: Any) -> None:
        """Start a pixel of which counts of `timesteps` timesteps will be added; its fan-outs begin at index `at`."""
        builder, eight = self._builder, ir.VectorType(emit.SHORT, LANES // 2)
        halves = [
            emit.load(builder, fan_out, builder.add(builder.mul(at, emit.const(2)), emit.const(k)), eight) for k in (0, LANES)
        ]
        self._fan_out = [emit.joined(builder, (half, half)) for half in halves]
        start = emit.broadcast(builder, builder.trunc(timesteps, emit.BYTE), 2 * LANES, None)
        for place in (self._sums, *self._before):
            builder.store(ir.Constant(place.type.pointee, None), place)
        builder.store(start, self._bursts)

    def add(self, counts: Any, resting: Any) -> None:
        """Add the counts of a timestep, and their differences from `resting`, those of a window without events.

        Of sums, at most 127 are added per timestep.
        """
        builder, nothing = self._builder, ir.Constant(counts.type, None)
        a, b = (counts, counts), (nothing, resting)
        if self._summed:
            before, rested = (builder.load(place) for place in self._before)
            own, idle = builder.sub(counts, before), builder.sub(resting, rested)
            a, b = (counts, emit.distance(builder, own, idle)), (before, nothing)
            for place, value in zip(self._before, (counts, resting), strict=True):
                builder.store(value, place)
        added, base = emit.joined(builder, a), emit.joined(builder, b)
        self._add_to(self._sums, emit.sum_of_distances(builder, added, base))
        self._add_to(self._bursts, builder.sext(builder.icmp_unsigned("==", added, base), added.type))
        more, less = (emit.saturating(builder, "sub", x, y) for x, y in ((added, base), (base, added)))
        self._weigh(builder.or_(more, less), 0)

    def end(self) -> Any:
        """Add the spikes since `begin` to the totals.

        Returns:
            Byte: 1 if any spike count differed from silence, else 0.
        """
        builder = self._builder
        sums, bursts = builder.load(self._sums), builder.load(self._bursts)
        self._weigh(bursts, 1)
        together = emit.sum_of_distances(builder, bursts, ir.Constant(bursts.type, None))
        for total, value in zip(self._counted, (sums, together), strict=True):
            self._add_to(total, value)
        differences = ir.Constant(sums.type, [0, 0, -1, -1])
        equal = emit.call(builder, "llvm.x86.avx.ptestz.256", emit.INT, sums, differences)
        return builder.xor(builder.trunc(equal, emit.BYTE), ir.Constant(emit.BYTE, 1))

    def write(self, totals: Any) -> None:
        """Add the totals to an int64 array (16), two elements each."""
        for half in range(2):
            for i in range(2):
                own = emit.half_of(self._builder, self._builder.load(self._counted[i]), half)
                weighed = emit.half_of(self._builder, self._builder.load(self._weighed[i]), half)
                for k, value in enumerate((own, self._pair(weighed))):
                    emit.add_to_memory(self._builder, totals, 64 * half + 32 * i + 16 * k, value)

    def _weigh(self, counts: Any, which: int) -> None:
        """Add counts, 2 * LANES bytes, times the fan-outs to the synaptic operations: 0 of spikes, 1 of bursts."""
        builder, nothing, shorts = self._builder, ir.Constant(counts.type, None), self._fan_out[0].type
        for half, fan_out in enumerate(self._fan_out):
            mixed = builder.shuffle_vector(counts, nothing, ir.Constant(ir.VectorType(emit.INT, 2 * LANES), _interleaved(half)))
            self._add_to(self._weighed[which], emit.sum_of_products(builder, builder.bitcast(mixed, shorts), fan_out))

    def _pair(self, vector: Any) -> Any:
        """Two int64 whose sum is that of a vector of four unsigned int32."""
        wide = self._builder.zext(vector, ir.VectorType(emit.LONG, vector.type.count))
        return self._builder.add(*(emit.half_of(self._builder, wide, half) for half in range(2)))

    def _add_to(self, place: Any, value: Any) -> None:
        self._builder.store(self._builder.add(self._builder.load(place), value), place)


def _interleaved(half: int) -> list[int]:
    """Order in which bytes and the zeros of a second vector become 16-bit numbers: half the bytes of each half register."""
    eight = LANES // 2
    firsts = [LANES * side + eight * half + i for side in range(2) for i in range(eight)]
    return [at + zero for at in firsts for zero in (0, 2 * LANES)]


@intrinsic
def read_tile(typingctx, acc, acc_at, scale, bias, channel, out, start, pitch, pixels):  # type: ignore[no-untyped-def]
    """Write acc * scale + bias of the first `pixels` pixels to `out`, float32; arguments as in `fire_tile`."""
    longs = [types.int64] * 3
    return types.void(acc, types.int64, scale, bias, types.int64, out, *longs), _emit_read


def _emit_read(context, builder, signature, args):  # type: ignore[no-untyped-def]
    acc, scale, bias, out = (emit.data_of(context, builder, signature.args[i], args[i]) for i in (0, 2, 3, 5))
    acc, channel, (start, pitch, pixels) = builder.gep(acc, [args[1]]), args[4], args[6:]
    floats, ints = emit.floats_of(0.0).type, ir.VectorType(emit.INT, emit.WIDTH)
    gains, shifts = (emit.lanes_of(builder, array, channel, floats) for array in (scale, bias))
    with cgutils.for_range(builder, pixels) as loop:
        to = builder.mul(builder.add(start, builder.mul(loop.index, pitch)), emit.const(4))
        for part, (gain, shift) in enumerate(zip(gains, shifts, strict=True)):
            distance = emit.const(4 * emit.WIDTH * part)
            here = builder.add(builder.mul(loop.index, emit.const(4 * LANES)), distance)
            value = builder.fadd(builder.fmul(builder.sitofp(emit.load(builder, acc, here, ints), floats), gain), shift)
            emit.store(builder, value, out, builder.add(to, distance))
    return context.get_dummy_value()
