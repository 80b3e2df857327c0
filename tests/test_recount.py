"""Spikes and operations counted a second time, by a program that shares no code with the networks.

It reads the weights file with safetensors and json alone, computes every convolution tap by tap in whole numbers, and
follows every spike to the weights it reaches. It covers one timestep without signed neurons, as in the bundled YOLO weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from evburst.data.stats import BEYOND_SILENCE
from tests.conftest import ROOT

Counts = NDArray[np.int64]


@dataclass
class Signal:
    """What a node passes on: summands of whole counts `(C, H, W)`, each with the size of one count, `(C,)`."""

    summands: list[tuple[Counts, NDArray[np.float64]]]

    def unit(self) -> NDArray[np.float64]:
        return np.min([unit_size for _, unit_size in self.summands], 0)  # type: ignore[no-any-return]

    def in_units(self) -> NDArray[np.float64]:
        return sum(counts * (unit_size / self.unit())[:, None, None] for counts, unit_size in self.summands)  # type: ignore[return-value]


class Recount:
    """The spiking network of a weights file on one grid, by hand.

    Args:
        path: the weights file.
        emitted: what every source emits instead of its counts; spikes are followed to the weights that they reach all the same.

    Attributes:
        counts: of every source (input, neurons, pools), by name.
        spikes: their sums, negative ones counted like positive ones.
        accumulates, bursts, macs: weights reached by spikes, by bursts, and by every input value, summed over convolutions.
    """

    def __init__(self, path: Path, emitted: dict[str, Counts] | None = None) -> None:
        self.emitted = emitted
        self.counts: dict[str, Counts] = {}
        with safe_open(path, "np") as file:
            self.meta = json.loads(file.metadata()["json"])
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        assert self.meta["timesteps"] == 1
        assert not self.meta["takes_back"]
        self.spikes: dict[str, int] = {}
        self.accumulates = self.bursts = self.macs = 0

    def run(self, grid: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
        """The read-out maps of a grid `(C, H, W)`."""
        graph = json.loads(self.meta["graph"])
        values: dict[str, Any] = {}
        for node in graph["nodes"]:
            given = [values[name] for name in node["inputs"]]
            values[node["name"]] = getattr(self, node["op"])(node, *given) if given else self.input(node, grid)
        return {name: values[name] + self.tensors[f"readout/{name}"][:, None, None] for name in graph["outputs"]}

    def input(self, node: dict[str, Any], grid: NDArray[np.uint8]) -> Signal:
        return self._source(node, grid.astype(np.int64), np.ones(len(grid)))

    def conv(self, node: dict[str, Any], x: Signal) -> NDArray[np.float64]:
        a, name = node["attrs"], node["name"]
        weight, scale = self._integers(name, x.unit())
        outputs, _, kernel_h, kernel_w = weight.shape
        (stride_y, stride_x), (pad_y, pad_x) = a["stride"], a["padding"]
        assert (a["groups"], a["dilation"]) == (1, [1, 1])

        def padded(z: NDArray[Any]) -> NDArray[Any]:
            return np.pad(z, ((0, 0), (pad_y, pad_y), (pad_x, pad_x)))

        values, inside = padded(x.in_units()), padded(np.ones_like(x.summands[0][0]))
        rows = (values.shape[1] - kernel_h) // stride_y + 1
        columns = (values.shape[2] - kernel_w) // stride_x + 1
        total = np.zeros((outputs, rows, columns))
        for ky in range(kernel_h):
            for kx in range(kernel_w):
                down = slice(ky, ky + stride_y * (rows - 1) + 1, stride_y)
                right = slice(kx, kx + stride_x * (columns - 1) + 1, stride_x)
                place = slice(None), down, right
                total += np.tensordot(weight[:, :, ky, kx].astype(np.float64), values[place], 1)
                self.macs += outputs * int(inside[place].sum())
                for counts, _ in x.summands:
                    reached = padded(counts)[place]
                    self.accumulates += outputs * int(np.abs(reached).sum())
                    self.bursts += outputs * int(np.count_nonzero(reached))
        bias = self.tensors.get(f"spiking/{name}.bias", self.tensors[f"ann/{name}.bias"]).astype(np.float64)
        return total * scale[:, None, None] + bias[:, None, None]

    def _integers(self, name: str, unit: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """8-bit weights in units of what they multiply, and the size of one unit of each output channel."""
        if f"spiking/{name}.weight" in self.tensors:
            return self.tensors[f"spiking/{name}.weight"], self.tensors[f"spiking_scale/{name}.weight"].astype(np.float64)
        products = self.tensors[f"ann/{name}.weight"].astype(np.float32) * unit.astype(np.float32)[:, None, None]
        mantissa, exponent = np.frexp(np.abs(products.astype(np.float64)).reshape(len(products), -1).max(1).clip(1e-30) / 127)
        scale = np.ldexp(np.rint(mantissa * 65536) / 65536, exponent)
        return np.rint(products / scale[:, None, None, None]).astype(np.int8), scale

    def relu(self, node: dict[str, Any], current: NDArray[np.float64]) -> Signal:
        """v starts at half a threshold, takes the current, and fires as often as the threshold fits, phi times at most."""
        name = node["name"]
        theta = self.tensors[f"theta/{name}"].astype(np.float64)
        shift = self.tensors[f"shift/{name}"].astype(np.float64)
        potential = theta[:, None, None] / 2 + current + shift[:, None, None]
        counts = np.floor(potential / theta[:, None, None]).clip(0, self.meta["phi"][name]).astype(np.int64)
        return self._source(node, counts, theta)

    def max_pool(self, node: dict[str, Any], x: Signal) -> Signal:
        ((counts, unit_size),) = x.summands
        kernel, stride, pad = (
            [v, v] if isinstance(v, int) else v for v in (node["attrs"][k] for k in ("kernel", "stride", "padding"))
        )
        around = np.pad(counts, ((0, 0), (pad[0],) * 2, (pad[1],) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(around, kernel, (1, 2))[:, :: stride[0], :: stride[1]]
        return self._source(node, windows.max((3, 4)), unit_size)

    def add(self, node: dict[str, Any], a: Signal, b: Signal) -> Signal:
        return Signal(a.summands + b.summands)

    def concat(self, node: dict[str, Any], *parts: Signal) -> Signal:
        longest = max(len(part.summands) for part in parts)
        filled = [
            part.summands + [(0 * part.summands[0][0], part.summands[0][1])] * (longest - len(part.summands)) for part in parts
        ]
        return Signal(
            [(np.concatenate([c for c, _ in one]), np.concatenate([w for _, w in one])) for one in zip(*filled, strict=True)]
        )

    def slice(self, node: dict[str, Any], x: Signal) -> Signal:
        part = slice(node["attrs"]["start"], node["attrs"]["stop"])
        return Signal([(counts[part], unit_size[part]) for counts, unit_size in x.summands])

    def upsample(self, node: dict[str, Any], x: Signal) -> Signal:
        k = node["attrs"]["factor"]
        return Signal([(counts.repeat(k, 1).repeat(k, 2), unit_size) for counts, unit_size in x.summands])

    def _source(self, node: dict[str, Any], counts: Counts, unit_size: NDArray[np.float64]) -> Signal:
        if self.emitted is not None:
            counts = self.emitted[node["name"]]
        self.counts[node["name"]] = counts
        self.spikes[node["name"]] = int(np.abs(counts).sum())
        return Signal([(counts, unit_size)])


def drawn_grid(channels: int, max_count: int) -> NDArray[np.uint8]:
    """A window of 64 x 96 pixels, with patches of few, some and many events."""
    rng = np.random.default_rng(0)
    rates = rng.choice([0.02, 0.5, 2.0], (channels, 8, 12), p=[0.7, 0.2, 0.1]).repeat(8, 1).repeat(8, 2)
    return rng.poisson(rates).clip(0, max_count).astype(np.uint8)


@pytest.mark.parametrize("name", ["street", "caltech6"])
def test_the_same_spikes_and_operations_are_found(name: str) -> None:
    """Neurons within float32 rounding of a threshold may differ, and those behind them: one in a hundred thousand at most."""
    from torch import from_numpy

    from evburst.models.bundle import Bundle
    from evburst.models.spiking.network import SpikingNetwork

    bundle = Bundle.load(name)
    grid = drawn_grid(bundle.voxel.channels, bundle.voxel.max_count)
    outputs, stats = SpikingNetwork(bundle.spiking, bundle.parameters).run(from_numpy(grid[None]))
    mine = Recount(ROOT / "models" / "weights" / f"{name}.safetensors")
    maps = mine.run(grid)

    assert list(mine.spikes) == [layer.name for layer in stats.layers]
    for layer in stats.layers:
        assert mine.spikes[layer.name] == pytest.approx(layer.spikes[0], rel=1e-3, abs=2), layer.name
    exact = sum(mine.spikes[layer.name] == layer.spikes[0] for layer in stats.layers)
    assert exact >= 0.9 * len(stats.layers)
    assert sum(mine.spikes.values()) == pytest.approx(sum(layer.spikes[0] for layer in stats.layers), rel=1e-5)
    assert mine.accumulates == pytest.approx(sum(layer.synaptic_ops[0] for layer in stats.layers), rel=1e-5)
    assert mine.bursts == pytest.approx(sum(layer.graded_ops[0] for layer in stats.layers), rel=1e-5)
    assert mine.macs == sum(stats.dense_macs.values())
    for output, map_ in zip(outputs, maps.values(), strict=True):
        np.testing.assert_allclose(map_, output[0].numpy(), atol=2e-2)
    if exact == len(stats.layers):
        assert mine.accumulates == sum(layer.synaptic_ops[0] for layer in stats.layers)
        assert mine.bursts == sum(layer.graded_ops[0] for layer in stats.layers)


@pytest.mark.parametrize("events", ["busy", "ten"])
@pytest.mark.parametrize("name", ["street", "caltech6"])
def test_the_same_operations_beyond_silence_are_found(name: str, events: str) -> None:
    """Differences from the counts of an empty window, followed to the weights that they reach."""
    from torch import from_numpy

    from evburst.models.bundle import Bundle
    from evburst.models.spiking.network import SpikingNetwork

    bundle, path = Bundle.load(name), ROOT / "models" / "weights" / f"{name}.safetensors"
    grid = drawn_grid(bundle.voxel.channels, bundle.voxel.max_count)
    if events == "ten":
        kept = np.flatnonzero(grid)[:: np.count_nonzero(grid) // 10][:10]
        few = np.zeros_like(grid)
        few.flat[kept] = 1
        grid = few
    _, stats = SpikingNetwork(bundle.spiking, bundle.parameters).run(from_numpy(grid[None]))
    busy, silent = Recount(path), Recount(path)
    busy.run(grid)
    silent.run(np.zeros_like(grid))
    mine = Recount(path, {source: counts - silent.counts[source] for source, counts in busy.counts.items()})
    mine.run(grid)

    accounts = [[float(getattr(layer, count)[0]) for layer in stats.layers] for count in BEYOND_SILENCE]
    spikes, operations, graded = accounts
    assert list(mine.spikes) == [layer.name for layer in stats.layers]
    for source, theirs in zip(mine.spikes, spikes, strict=True):
        assert mine.spikes[source] == pytest.approx(theirs, rel=1e-3, abs=2), source
    assert mine.accumulates == pytest.approx(sum(operations), rel=1e-4)
    assert mine.bursts == pytest.approx(sum(graded), rel=1e-4)
    if list(mine.spikes.values()) == spikes:
        assert (mine.accumulates, mine.bursts) == (sum(operations), sum(graded))
    assert mine.accumulates > 0
    assert events == "busy" or mine.accumulates < busy.accumulates
