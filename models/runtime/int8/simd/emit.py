"""Building blocks of the vector instructions: sizes, features of the processor, and functions that emit LLVM.

Public functions take the builder of the function that is emitted, and vectors or pointers of LLVM.
"""

from __future__ import annotations

import platform
from typing import Any

import numba
from llvmlite import binding, ir
from numba.core import cgutils
from numba.np.arrayobj import make_array

LANES = 16
GROUP = 5
PIXELS = 2 * GROUP
TILE = PIXELS * LANES
PAIR, QUAD = 2, 4
"""Tiles that are summed together: of one timestep, and of up to BATCH timesteps."""

BATCH = 4

BYTE, SHORT, INT, LONG, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _features() -> dict[str, bool]:
    """Features of the processor that numba compiles for: the host, or that of NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    features = numba.config.CPU_FEATURES
    if features is not None:
        return {name[1:]: name.startswith("+") for name in features.split(",")}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {}
    return dict(binding.get_host_cpu_features())  # type: ignore[no-untyped-call]


AVAILABLE = bool(_features().get("avx2")) and not numba.config.DISABLE_JIT
"""Whether the processor supports AVX2, and numba compiles."""

_WIDE = bool(_features().get("avx512vnni") and _features().get("avx512vl"))

VNNI = _WIDE or bool(_features().get("avxvnni"))
"""Whether the processor adds four products in one instruction (AVX-512 VNNI, AVX-VNNI)."""

WIDTH = LANES if _WIDE else LANES // 2
"""Channels of a pixel that fit into one register as 32-bit numbers: of AVX-512, or of AVX2."""

ACTIVE = VNNI and WIDTH == LANES
"""Whether sums can leave out counts of 0, which needs the registers of AVX-512."""

LINE = 64
"""Bytes that the memory reads at once; a vector across two lines takes twice as long."""


def const(value: int) -> ir.Constant:
    return ir.Constant(LONG, value)


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Pointer to the first element of an array."""
    return make_array(kind)(context, builder, array).data


def at(builder: Any, pointer: Any, distance: Any, kind: Any = BYTE) -> Any:
    """Pointer that is `distance` bytes further on."""
    target = builder.gep(builder.bitcast(pointer, BYTE.as_pointer()), [distance])
    return builder.bitcast(target, kind.as_pointer())


def load(builder: Any, pointer: Any, distance: Any, kind: Any) -> Any:
    return builder.load(at(builder, pointer, distance, kind), align=1)


def store(builder: Any, value: Any, pointer: Any, distance: Any) -> None:
    builder.store(value, at(builder, pointer, distance, value.type), align=1)


def add_to_memory(builder: Any, acc: Any, distance: int, value: Any, fresh: Any = None) -> None:
    """Add a vector to memory; if `fresh`, overwrite it instead."""
    position = const(distance)
    before = load(builder, acc, position, value.type)
    if fresh is not None:
        before = builder.select(fresh, ir.Constant(value.type, [0] * value.type.count), before)
    store(builder, builder.add(before, value), acc, position)


def clear(builder: Any, sums: Any) -> None:
    """Set vectors to zero."""
    for row in sums:
        for total in row:
            kind = total.type.pointee
            builder.store(ir.Constant(kind, [0] * kind.count), total)


def broadcast(builder: Any, value: Any, lanes: int, to: Any = BYTE) -> Any:
    """Vector of `lanes` equal values; unless `to` is None, reinterpreted as a vector of `4 * lanes` of that type."""
    empty = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(INT, 0))
    vector = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(INT, lanes), [0] * lanes))
    return vector if to is None else builder.bitcast(vector, ir.VectorType(to, 4 * lanes))


def joined(builder: Any, parts: Any) -> Any:
    """Join one or two vectors of equal length into one."""
    if len(parts) == 1:
        return parts[0]
    size = 2 * parts[0].type.count
    return builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(INT, size), list(range(size))))


def half_of(builder: Any, vector: Any, half: int) -> Any:
    """The first or second half of a vector."""
    size = vector.type.count // 2
    numbers = ir.Constant(ir.VectorType(INT, size), list(range(half * size, (half + 1) * size)))
    return builder.shuffle_vector(vector, vector, numbers)


def lanes_of(builder: Any, array: Any, channel: Any, floats: Any) -> list[Any]:
    """Load LANES floats from an index on, as vectors of WIDTH."""
    place = builder.mul(channel, const(4))
    return [load(builder, array, builder.add(place, const(4 * i)), floats) for i in range(0, LANES, WIDTH)]


def floats_of(value: float) -> ir.Constant:
    """Vector of WIDTH equal floats."""
    return ir.Constant(ir.VectorType(FLOAT, WIDTH), [value] * WIDTH)


def floor(builder: Any, value: Any) -> Any:
    """Floor of floats that are not negative, int32."""
    return builder.fptosi(value, ir.VectorType(INT, value.type.count))


def bytes_of(builder: Any, parts: Any) -> Any:
    """LANES bytes of one or two vectors of int32 that are not negative; those above 255 become 255."""
    if len(parts) == 1:
        most = ir.Constant(parts[0].type, [255] * LANES)
        smaller = builder.icmp_unsigned("<", parts[0], most)
        return builder.trunc(builder.select(smaller, parts[0], most), ir.VectorType(BYTE, LANES))
    shorts, quarters = ir.VectorType(SHORT, LANES), ir.VectorType(INT, LANES // 2)
    narrow = call(builder, "llvm.x86.avx2.packssdw", shorts, *parts)  # of both halves of a register by themselves
    mixed = builder.bitcast(call(builder, "llvm.x86.avx2.packuswb", ir.VectorType(BYTE, 32), narrow, narrow), quarters)
    order = ir.Constant(ir.VectorType(INT, 4), [0, 4, 1, 5])
    return builder.bitcast(builder.shuffle_vector(mixed, mixed, order), ir.VectorType(BYTE, LANES))


def saturating(builder: Any, operation: str, a: Any, b: Any) -> Any:
    """Sum ("add") or difference ("sub") of two vectors of bytes, kept within 0 and 255."""
    return call(builder, f"llvm.u{operation}.sat.v{a.type.count}i8", a.type, a, b)


def larger_count(builder: Any, a: Any, b: Any) -> Any:
    """The larger of two vectors of unsigned integers."""
    return builder.select(builder.icmp_unsigned(">", a, b), a, b)


def within(builder: Any, value: Any, least: Any, most: Any) -> Any:
    """The nearest numbers between two vectors of unsigned integers."""
    return larger_count(builder, builder.select(builder.icmp_unsigned("<", value, most), value, most), least)


def larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def distance(builder: Any, a: Any, b: Any) -> Any:
    """Absolute differences of two vectors of signed integers, as unsigned ones."""
    larger = builder.icmp_signed(">", a, b)
    return builder.sub(builder.select(larger, a, b), builder.select(larger, b, a))


def sum_of_distances(builder: Any, a: Any, b: Any) -> Any:
    """Sums over eight bytes each of the absolute differences of two vectors of 2 * LANES bytes, as four int64."""
    return call(builder, "llvm.x86.avx2.psad.bw", ir.VectorType(LONG, 4), a, b)


def sum_of_products(builder: Any, a: Any, b: Any) -> Any:
    """Sums of the products of two neighbours each, of two vectors of LANES int16, as int32."""
    return call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(INT, LANES // 2), a, b)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    function = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)
