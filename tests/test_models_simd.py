"""Both forms of the inner loop on every CPU: the VNNI form with its instruction emulated, and compiled for CPUs with it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from evburst.models.runtime.int8 import records
from evburst.models.runtime.int8.simd import dots, emit, neurons
from evburst.models.spiking.neurons import NeuronLayer, burst_scan
from tests.conftest import in_new_process

integers = pytest.mark.skipif(not emit.AVAILABLE, reason="needs AVX2")
SIGNATURE = (
    types.uint8[::1], *[types.int64] * 3, types.int32[::1], types.int64, types.int8[::1], *[types.int64] * 4, types.int32[::1],
    *[types.int64] * 2, types.int32[::1], types.int64, types.boolean,
)  # fmt: skip


def dot() -> Any:
    """`dot_tiles` compiled anew."""

    def call(  # type: ignore[no-untyped-def]
        x, start, pitch, pixels, offsets, first, weights, at, apart, tiles, steps, chunks, head, heads_apart, acc, to, fresh
    ):
        dots.dot_tiles(
            x, start, pitch, pixels, offsets, first, weights, at, apart, tiles, steps, chunks, head, heads_apart, acc, to, fresh
        )

    return numba.njit(call)


def spelled_out(builder: Any, name: str, result: Any, *args: Any, real: Any = emit.call) -> Any:
    """Instructions of some CPUs in those that every CPU has; in place of the `call`, which is where instructions are named."""
    if "mask.compress" in name:
        return packed(builder, *args)
    if "vpdpbusd" not in name:
        return real(builder, name, result, *args)
    total, counts, weights = args
    size = 4 * total.type.count
    wide, numbers = ir.VectorType(ir.IntType(32), size), total.type
    counts, weights = (builder.bitcast(x, ir.VectorType(ir.IntType(8), size)) for x in (counts, weights))
    products = builder.mul(builder.zext(counts, wide), builder.sext(weights, wide))
    for k in range(4):
        every_fourth = ir.Constant(numbers, list(range(k, size, 4)))
        total = builder.add(total, builder.shuffle_vector(products, products, every_fourth))
    return total


def packed(builder: Any, values: Any, out: Any, mask: Any) -> Any:
    """vpcompressd: the values of which the mask is set, one after another, then those of `out`."""
    place = ir.Constant(emit.INT, 0)
    for lane in range(values.type.count):
        at = ir.Constant(emit.INT, lane)
        chosen = builder.extract_element(mask, at)
        out = builder.select(chosen, builder.insert_element(out, builder.extract_element(values, at), place), out)
        place = builder.add(place, builder.zext(chosen, emit.INT))
    return out


@integers
@pytest.mark.parametrize(("runs", "run"), [(1, 16), (3, 24), (9, 6), (2, 5), (3, 48)])
def test_leaving_out_counts_of_0_changes_no_sum(monkeypatch: pytest.MonkeyPatch, runs: int, run: int) -> None:
    monkeypatch.setattr(emit, "ACTIVE", True)
    monkeypatch.setattr(emit, "call", spelled_out)

    @numba.njit
    def call(  # type: ignore[no-untyped-def]
        x, start, pitch, pixels, step, timesteps, offsets, first, runs, run, weights, at, apart, acc, to, acc_step, fresh, found
    ):
        dots.dot_active(
            x, start, pitch, pixels, step, timesteps, offsets, first, runs, run, weights, at, apart, acc, to, acc_step, fresh,
            found,
        )  # fmt: skip

    rng = np.random.default_rng(0)
    start, pitch, step, at, to, lanes = 16, 32, 3200, 64, 16, emit.LANES
    steps = runs * run
    size, tile = steps * 4 * lanes, emit.PIXELS * lanes
    x = rng.integers(0, 9, 4 * step).astype(np.uint8)
    x.reshape(-1, 4)[rng.random(len(x) // 4) < 0.8] = 0  # of which over four timesteps two fifths stay 0
    offsets = (300 * np.arange(runs)[:, None] + 4 * np.arange(run)).reshape(-1).astype(np.int32)
    weights = rng.integers(-127, 128, at + emit.QUAD * (size + 64)).astype(np.int8)
    acc_step = emit.QUAD * tile + 32
    before = rng.integers(-1000, 1000, to + emit.BATCH * acc_step).astype(np.int32)
    for timesteps, pixels, fresh in itertools.product(range(1, emit.BATCH + 1), (1, emit.PIXELS), (True, False)):
        acc, expected, found = before.copy(), before.copy(), np.full(steps + lanes + 1, 77, np.int32)
        call(
            x, start, pitch, pixels, step, timesteps, np.append([7], offsets).astype(np.int32), 1, runs, run, weights, at,
            size + 64, acc, to, acc_step, fresh, found,
        )  # fmt: skip
        for t, k in itertools.product(range(timesteps), range(emit.QUAD)):
            first, own = to + t * acc_step + k * tile, at + k * (size + 64)
            sums = slowly(x, start + t * step, pitch, offsets, weights[own : own + size])[: pixels * lanes]
            place = slice(first, first + pixels * lanes)
            expected[place] = sums + (0 if fresh else before[place])
        assert acc.tolist() == expected.tolist()
        assert found[-1] == 77


@integers
@pytest.mark.parametrize(("vnni", "width"), [(False, 8), (True, 8), (True, 16)], ids=["avx2", "avx-vnni", "avx512-vnni"])
def test_sums_are_those_of_integer_arithmetic(monkeypatch: pytest.MonkeyPatch, vnni: bool, width: int) -> None:
    monkeypatch.setattr(emit, "VNNI", vnni)
    monkeypatch.setattr(emit, "WIDTH", width)
    monkeypatch.setattr(emit, "call", spelled_out)
    rng = np.random.default_rng(0)
    steps, pitch, start, at, to = 37, 48, 16, 64, emit.LANES
    size, tile = steps * 4 * emit.LANES, emit.PIXELS * emit.LANES
    apart = size + 64
    x = rng.integers(0, 9, 4000).astype(np.uint8)
    offsets = (4 * rng.integers(0, 200, steps + 3)).astype(np.int32)
    weights = rng.integers(-127, 128, at + apart + size).astype(np.int8)
    before = rng.integers(-1000, 1000, to + 2 * tile).astype(np.int32)
    head, heads_apart = 2, 3
    chunks = np.zeros(30, np.int32)
    chunks[[head, head + heads_apart]] = 8, 15
    chunks[head + 8 : head + 13] = 8, 9, 20, 30, steps
    chunks[head + heads_apart + 15 : head + heads_apart + 19] = 1, 16, 24, steps
    sums, run = [slowly(x, start, pitch, offsets[3:], weights[first : first + size]) for first in (at, at + apart)], dot()
    for pixels, fresh, tiles in itertools.product((1, emit.GROUP, emit.GROUP + 1, emit.PIXELS), (True, False), (1, emit.PAIR)):
        acc, expected = before.copy(), before.copy()
        run(x, start, pitch, pixels, offsets, 3, weights, at, apart, tiles, steps, chunks, head, heads_apart, acc, to, fresh)
        written = (emit.GROUP if pixels <= emit.GROUP else emit.PIXELS) * emit.LANES
        for first, own in zip((to, to + tile), sums[:tiles], strict=False):
            place = slice(first, first + written)
            expected[place] = own[:written] + (0 if fresh else before[place])
        assert acc.tolist() == expected.tolist()


@integers
@pytest.mark.parametrize("width", [8, 16], ids=["avx2", "avx512"])
@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize("constant", [False, True], ids=["changing", "constant"])
def test_neurons_of_either_width_are_the_specified_ones(
    monkeypatch: pytest.MonkeyPatch, width: int, signed: bool, constant: bool
) -> None:
    monkeypatch.setattr(emit, "WIDTH", width)  # private: it follows from the CPU
    rng = np.random.default_rng(0)
    timesteps, pixels, lanes, phi = 4, 7, emit.LANES, 3
    size = emit.PIXELS * lanes
    acc = rng.integers(-200, 400, (timesteps + 1) * size).astype(np.int32)  # of which the first tile is not read
    scale, bias = (rng.integers(1, 9, lanes).astype(np.float32) / d for d in (256, 8))  # exact: no rounding to differ by
    limits, fan_out = np.full(lanes, phi, np.float32), rng.integers(0, 2**15, (pixels, 2, lanes)).astype(np.int16)
    out, totals = np.full((timesteps, pixels + 1, 2, lanes), 77, np.uint8), np.zeros(16, np.int64)
    resting = np.minimum(rng.integers(-2, phi + 1, (timesteps, pixels + 1, 2, lanes)).clip(0), phi)
    silent = (resting.cumsum(0) if signed else resting).astype(np.uint8)
    changed = np.full(2 * (pixels + 1), 77, np.uint8)
    fire = neurons.fire_signed_tile if signed else neurons.fire_tile

    @numba.njit
    def run(acc, step, scale, bias, limits, out, fan_out, totals, silent, changed):  # type: ignore[no-untyped-def]
        at, pitch = out.shape[3], 2 * out.shape[3]
        flat, apart, pixels = out.reshape(-1), out.shape[1] * pitch, out.shape[1] - 1
        fire(
            acc, size, step, out.shape[0], scale, bias, limits, 0, flat, at, apart, pitch, pixels, fan_out, 0, pitch, totals,
            silent.reshape(-1), changed,
        )  # fmt: skip

    elapsed = np.arange(1, timesteps + 1, dtype=np.float32)[:, None] if signed else np.ones((1, 1), np.float32)
    scales = scale * (elapsed if constant else np.ones_like(elapsed))
    run(acc, 0 if constant else size, scales, bias * elapsed, limits, out, fan_out.reshape(-1), totals, silent, changed)
    sums = acc.reshape(timesteps + 1, emit.PIXELS, lanes)[1:, :pixels]
    currents = sums[:1] if constant else sums
    if signed and not constant:  # what is read is summed over time
        currents = np.diff(currents, axis=0, prepend=0)
    layer = NeuronLayer(torch.ones(lanes), torch.from_numpy(bias), phi, takes_back=signed)
    by_channel = torch.from_numpy(currents * scale).movedim(2, 1)[:, None, :, None]
    spikes = burst_scan(by_channel, layer, timesteps)[:, 0, :, 0].movedim(1, 2).numpy()
    written = spikes.cumsum(0) if signed else spikes
    assert (out[:, :pixels, 1] == written).all()
    assert (out[:, :, 0] == 77).all()
    assert (out[:, pixels] == 77).all()
    reached, expected = fan_out[:, 0].astype(np.int64), list[float]()
    differences = spikes - resting[:, :pixels, 1]
    for emitted in (spikes, differences):
        counts, bursts = np.abs(emitted).sum(0), (emitted != 0).sum(0)
        expected += counts.sum(), (counts * reached).sum(), bursts.sum(), (bursts * reached).sum()
    assert totals.reshape(8, 2).sum(1).tolist() == [int(n) for n in expected]
    assert changed[1::2].tolist() == [*(differences != 0).any((0, 2)), 77]
    assert (changed[::2] == 77).all()


def slowly(
    x: NDArray[np.uint8], start: int, pitch: int, offsets: NDArray[np.int32], weights: NDArray[np.int8]
) -> NDArray[np.int64]:
    by_step = weights.reshape(len(offsets), emit.LANES, 4).astype(np.int64)
    out = np.zeros((emit.PIXELS, emit.LANES), np.int64)
    for pixel in range(emit.PIXELS):
        for step, offset in enumerate(offsets):
            place = start + pitch * pixel + offset
            out[pixel] += by_step[step] @ x[place : place + 4].astype(np.int64)
    return out.ravel()


def prints_what_was_compiled() -> None:
    """Called by the test below in a process that compiles for another CPU."""
    run = dot()
    run.compile(SIGNATURE)
    assembly = next(iter(run.inspect_asm().values()))
    print(assembly.count("vpdpbusd"), assembly.count("vpmaddubsw"), assembly.count("zmm"))


@integers
@pytest.mark.parametrize(
    ("cpu", "features", "wide"),
    [
        ("icelake-server", "+avx512f,+avx512vl,+avx512vnni,+avx512bw,+avx2,+avx,+sse4.2", True),
        ("alderlake", "+avxvnni,+avx2,+avx,+sse4.2", False),
    ],
)
def test_a_cpu_with_vnni_gets_its_instruction(cpu: str, features: str, wide: bool) -> None:
    """One for each pixel of a tile and turn of the loop, and none of AVX2's; AVX-512's registers where it has them."""
    code = "from tests.test_models_simd import prints_what_was_compiled as run; run()"
    printed = in_new_process(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    found, others, wide_registers = (int(word) for word in printed.split())
    assert found >= emit.PIXELS
    assert others == 0
    assert (wide_registers > 0) == wide


def test_a_change_of_any_kernel_file_compiles_all_kernels_anew(tmp_path: Path) -> None:
    """The digest of the files is part of the types of the kernels' arguments, by which numba's cache tells kernels apart."""
    package = Path(records.__file__).parent
    assert f"sources_{records._sources(package)}" in (records.OPERATION.names or ())  # private: there is no other way to see it
    copy = shutil.copytree(package, tmp_path / "int8", ignore=shutil.ignore_patterns("__pycache__"))
    for name, matters in (("simd/lanes.py", True), ("rows.py", True), ("plan.py", False)):
        before = records._sources(copy)
        (copy / name).write_text((copy / name).read_text() + "# changed\n")
        assert (records._sources(copy) != before) == matters
