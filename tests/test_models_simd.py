"""Both forms of the inner loop, wherever the tests run: the VNNI one with its one instruction spelled out, and compiled for a CPU that has it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from models.runtime import simd
from tests.conftest import ROOT

integers = pytest.mark.skipif(not simd.AVAILABLE, reason="needs AVX2")
SIGNATURE = (
    types.uint8[::1], types.int64, types.int64, types.int32[::1], types.int64, types.int8[::1], types.int64, types.int64, types.int64,
    types.int32[::1], types.boolean,
)  # fmt: skip


def dot() -> Any:
    """`dot_tile` compiled anew."""

    def call(x, start, pitch, offsets, first, weights, at, steps, flush, acc, fresh):  # type: ignore[no-untyped-def]
        simd.dot_tile(x, start, pitch, offsets, first, weights, at, steps, flush, acc, fresh)

    return numba.njit(call)


def spelled_out(builder: Any, name: str, result: Any, *args: Any, real: Any = simd._call) -> Any:
    """vpdpbusd in instructions that every CPU has."""
    if "vpdpbusd" not in name:
        return real(builder, name, result, *args)
    total, counts, weights = args
    wide, numbers = ir.VectorType(ir.IntType(32), 64), ir.VectorType(ir.IntType(32), simd.LANES)
    counts, weights = (builder.bitcast(x, ir.VectorType(ir.IntType(8), 64)) for x in (counts, weights))
    products = builder.mul(builder.zext(counts, wide), builder.sext(weights, wide))
    for k in range(4):
        every_fourth = ir.Constant(numbers, list(range(k, 64, 4)))
        total = builder.add(total, builder.shuffle_vector(products, products, every_fourth))
    return total


@integers
@pytest.mark.parametrize("vnni", [False, True], ids=["avx2", "vnni"])
def test_sums_are_those_of_integer_arithmetic(monkeypatch: pytest.MonkeyPatch, vnni: bool) -> None:
    monkeypatch.setattr(simd, "VNNI", vnni)
    monkeypatch.setattr(simd, "_call", spelled_out)
    rng = np.random.default_rng(0)
    steps, pitch, start, at = 37, 48, 16, 64
    x = rng.integers(0, 9, 4000).astype(np.uint8)
    offsets = (4 * rng.integers(0, 200, steps + 3)).astype(np.int32)
    weights = rng.integers(-127, 128, at + steps * 4 * simd.LANES).astype(np.int8)
    before = rng.integers(-1000, 1000, simd.PIXELS * simd.LANES).astype(np.int32)
    run = dot()
    for fresh in (True, False):
        acc = before.copy()
        run(x, start, pitch, offsets, 3, weights, at, steps, 8, acc, fresh)
        assert acc.tolist() == (slowly(x, start, pitch, offsets[3:], weights[at:]) + (0 if fresh else before)).tolist()


def slowly(
    x: NDArray[np.uint8], start: int, pitch: int, offsets: NDArray[np.int32], weights: NDArray[np.int8]
) -> NDArray[np.int64]:
    by_step = weights.reshape(len(offsets), simd.LANES, 4).astype(np.int64)
    out = np.zeros((simd.PIXELS, simd.LANES), np.int64)
    for pixel in range(simd.PIXELS):
        for step, offset in enumerate(offsets):
            place = start + pitch * pixel + offset
            out[pixel] += by_step[step] @ x[place : place + 4].astype(np.int64)
    return out.ravel()


def prints_what_was_compiled_for_vnni() -> None:
    """Called by the test below in a process that compiles for such a CPU."""
    simd.VNNI = True
    run = dot()
    run.compile(SIGNATURE)
    assembly = next(iter(run.inspect_asm().values()))
    print(assembly.count("vpdpbusd"), assembly.count("vpmaddubsw"))


@integers
def test_a_cpu_with_vnni_gets_its_instruction() -> None:
    """One for each pixel of a tile and turn of the loop, and none of AVX2's."""
    code = "from tests.test_models_simd import prints_what_was_compiled_for_vnni as run; run()"
    features = "+avx512f,+avx512vl,+avx512vnni,+avx512bw,+avx2,+avx,+sse4.2"
    environment = {**os.environ, "NUMBA_CPU_NAME": "icelake-server", "NUMBA_CPU_FEATURES": features}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, others = (int(word) for word in done.stdout.split())
    assert found >= simd.PIXELS
    assert others == 0
