"""What threads that share work need, and bits of a word."""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from evburst.models.runtime.int8.simd import emit


@intrinsic
def fetch_add(typingctx, array, index, n):  # type: ignore[no-untyped-def]
    """Add `n` to array[index], int64, atomically, and return what was there before."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.gep(emit.data_of(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.atomic_rmw("add", place, args[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def read(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Read array[index], int64, which other threads add to."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = builder.gep(emit.data_of(context, builder, signature.args[0], args[0]), [args[1]])
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def pause(typingctx):  # type: ignore[no-untyped-def]
    """Tell the processor that this thread waits in a loop."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def give_way(typingctx):  # type: ignore[no-untyped-def]
    """Let another thread run on this core, which may be the one that this thread waits for; on Windows, only pause."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        if sys.platform == "win32":
            emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        else:
            emit.call(builder, "sched_yield", emit.INT)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def trailing_zeros(typingctx, word):  # type: ignore[no-untyped-def]
    """Number of zero bits below the lowest set bit of a non-zero uint64."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate
