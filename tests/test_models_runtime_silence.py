"""The int8 engine against a chain of the same integers that passes differences from silence on, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evburst.data.boxes import Detections
from evburst.data.events import SensorSize
from evburst.data.stats import SpikeStats
from evburst.eval.energy import energy_report
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.runtime import open_engine
from evburst.models.runtime.int8.network import IntegerNetwork
from evburst.models.runtime.int8.plan import Added, Step
from evburst.models.runtime.int8.program import Program
from evburst.models.runtime.int8.quantise import integer_weights
from evburst.models.runtime.int8.records import ADD, FIRE, MAX_POOL, READ_OUT, UPSAMPLE
from evburst.models.runtime.int8.signals import Source, reads
from evburst.models.runtime.int8.simd.emit import AVAILABLE
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork
from evburst.models.spiking.rounding import input_sizes
from evburst.models.tasks import task_of
from tests.conftest import EveryOperation, Residual, drawn
from tests.differences import DifferenceNetwork

integers = pytest.mark.skipif(not AVAILABLE, reason="needs AVX2")


class IntegerDifferences:
    """Executes the plan of an integer network on differences; sums are whole numbers in float64, hence exact.

    Attributes:
        resting: counts of every source in silence, `(T or 1, 1, C, H, W)`.
        differences: what every source emitted in the last run, `(T or 1, N, C, H, W)`.
        maps: read-outs of the last run.
    """

    def __init__(self, network: IntegerNetwork, program: Program) -> None:
        self.network, self.program, self.timesteps = network, program, network.parameters.timesteps
        self.resting: dict[Source, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        steps = program.plan.steps
        self.differences: dict[Source, Tensor] = {}
        self.maps: dict[str, Tensor] = {}
        channels, height, width = steps[0].shape
        sums = self._run(torch.zeros(1, channels, height, width))
        self._sums, self.resting = sums, dict(self.differences)

    def run(self, grid: Tensor) -> None:
        """Run a batch `(N, C, H, W)`."""
        self._run(grid)

    def _run(self, grid: Tensor) -> dict[str, Tensor]:
        """Returns the sums of every convolution, by the step's node."""
        sums: dict[str, Tensor] = {}
        self.differences = {}
        for step in self.program.plan.steps:
            if step.kind is None:
                assert step.out is not None
                self.differences[step.out] = grid[None].double()
            elif step.kind in (FIRE, READ_OUT):
                sums[step.node.name] = self._convolve(step)
            elif step.kind == MAX_POOL:
                self._pool(step)
            elif step.kind == ADD:
                self._emit(step, sum(map(self._multiplied, step.added)))  # type: ignore[arg-type]
            elif step.kind == UPSAMPLE:
                k = step.node.attrs["factor"]
                self._emit(step, self._read(step).repeat_interleave(k, 3).repeat_interleave(k, 4))
        return sums

    def _emit(self, step: Step, differences: Tensor) -> None:
        assert step.out is not None
        self.differences[step.out] = differences

    def _multiplied(self, added: Added) -> Tensor:
        part, factors = added
        own = self.differences[part.source][:, :, part.first : part.first + part.channels]
        return own * torch.from_numpy(factors).double()[:, None, None]

    def _read(self, step: Step) -> Tensor:
        (part,) = step.signal
        return self.differences[part.source][:, :, part.first : part.first + part.channels]

    def _at_rest(self, source: Source | None) -> Any:
        """Counts in silence; 0 while these are computed."""
        return self.resting.get(source, 0.0) if source is not None else 0.0

    def _convolve(self, step: Step) -> Tensor:
        assert step.current is not None
        tensors, total, scale, bias = self.network.graph.tensors, torch.zeros(()), np.zeros(0), 0.0
        for conv, signal in step.current.readings:
            found, a = reads(signal), conv.attrs
            values = input_sizes(self.network.graph, conv, self.network.sizes)
            whole, scale = integer_weights(tensors[f"{conv.name}.weight"], found, values, tensors.get(f"{conv.name}.step"))
            for item, weights in zip(found, whole, strict=True):
                x = self.differences[item.source][:, :, item.first : item.first + item.channels]
                y = F.conv2d(
                    x.flatten(0, 1), torch.from_numpy(weights).double(), None, a["stride"], a["padding"], a["dilation"]
                )
                total = total + y.reshape(*x.shape[:2], *y.shape[1:])
            bias = bias + tensors[f"{conv.name}.bias"].numpy()
        total = sum(map(self._multiplied, step.current.added), total)
        total = total + self._sums.get(step.node.name, 0.0)  # what silence contributes: the constant map
        self._use(step, total, scale.astype(np.float32), bias)
        return total

    def _use(self, step: Step, total: Tensor, scale: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """Fire neurons, or read out, with the engine's float32 arithmetic."""
        constant = all(part.source.constant for part, _ in step.windows)
        parameters = self.network.parameters
        if step.kind == READ_OUT:
            scale = scale / np.float32(1 if constant else self.timesteps)
            bias = bias + parameters.readout_shift[step.node.name].numpy()
            gain, shift = (torch.from_numpy(x)[:, None, None] for x in (scale, bias))
            self.maps[step.node.name] = total.sum(0).float() * gain + shift
            return
        layer = parameters.neurons[step.node.name]
        theta = layer.theta.numpy()
        gain, shift = (torch.from_numpy(x)[:, None, None] for x in (scale / theta, (bias + layer.shift.numpy()) / theta))
        current, v, counts = total.float() * gain + shift, torch.tensor(0.5), []
        for t in range(self.timesteps):
            v = v + current[0 if constant else t]
            n = torch.floor(v).clamp(min=0).minimum(layer.burst_limits[:, None, None])
            v = v - n
            counts.append(n.double())
        self._emit(step, torch.stack(counts) - self._at_rest(step.out))

    def _pool(self, step: Step) -> None:
        (part,) = step.signal
        resting = self._at_rest(part.source)
        if self.resting:
            resting = resting[:, :, part.first : part.first + part.channels]
        summed, a = (self._read(step) + resting).cumsum(0), step.node.attrs
        pooled = F.max_pool2d(summed.flatten(0, 1), a["kernel"], a["stride"], a["padding"])
        growth = torch.diff(
            pooled.reshape(*summed.shape[:2], *pooled.shape[1:]),
            dim=0,
            prepend=torch.zeros(1, *summed.shape[1:2], *pooled.shape[1:]).double(),
        )
        self._emit(step, growth - self._at_rest(step.out))

    def operations(self) -> NDArray[np.float64]:
        """Synaptic operations of the differences emitted in the last run, `(N,)`."""
        total: Any = 0.0
        for step in self.program.plan.steps:
            if step.out is not None and step.kind not in (UPSAMPLE, ADD):
                fan_out = self.network._fan_out[step.node.name].double()  # private: what a spike costs has tests of its own
                own = fan_out[step.first_channel : step.first_channel + step.out.shape[0]]
                total = total + (self.differences[step.out].abs() * own).sum((0, 2, 3, 4))
        return np.asarray(total)


def check_against_engine(network: IntegerNetwork, grid: Tensor) -> SpikeStats:
    """Run a batch on both: counts of every source, read-outs and operations beyond silence must be equal."""
    outputs, stats = network.run(grid)
    outputs = [out.clone() for out in outputs]
    program = network._programs[tuple(grid.shape)]  # private: results do not show counts
    assert program.plan.on_integers
    assert not program.plan.summed
    slow = IntegerDifferences(network, program)
    slow.run(grid)
    for source in program.plan.sources if grid.any() else []:
        counts = torch.from_numpy(program.counts(source).astype(np.float64)).permute(0, 1, 4, 2, 3)
        assert torch.equal(slow.differences[source] + slow.resting[source], counts), source.name
    for name, out in zip(network.graph.outputs, outputs, strict=True):
        assert torch.equal(slow.maps[name], out), name
    mine = np.sum([layer.synaptic_ops_beyond_silence for layer in stats.layers], 0)
    assert mine.tolist() == slow.operations().tolist()
    return stats


@integers
@pytest.mark.parametrize("timesteps", [1, 2, 4])
@pytest.mark.parametrize("size", [(12, 20), (16, 36)])
@pytest.mark.parametrize("kind", [EveryOperation, Residual])
def test_differences_of_integers_are_bit_for_bit_the_engines(
    kind: type[nn.Module], timesteps: int, size: tuple[int, int]
) -> None:
    """Weights and thresholds as conversion finds them: sums of differences and of silence are whole, so nothing is rounded."""
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16))
    grid = torch.poisson(torch.full((3, 4, *size), 0.7), generator=torch.Generator().manual_seed(1)).clamp(max=10)
    graph, parameters = calibrate(graph, record_targets(graph, grid), timesteps, Choice(8))
    grid[1:] = 0
    grid[2, 1, 5, 0] = 1
    stats = check_against_engine(IntegerNetwork(graph, parameters, 10), grid.to(torch.uint8))
    busy, silent, single = np.sum([layer.synaptic_ops_beyond_silence for layer in stats.layers], 0)
    assert silent == 0 < single < busy
    check_against_engine(IntegerNetwork(graph, parameters, 10), grid[1:2].to(torch.uint8))


BUNDLED = {
    "street": (128, 160),
    "caltech6": (96, 128),
    "caltech6-ssd": (96, 128),
    "dvs128-objects": (64, 64),
    "nmnist": (32, 32),
    "caltech101": (96, 128),
}
"""Bundled weights, and the size of their grids."""


def windows(bundle: Bundle, size: tuple[int, int]) -> Tensor:
    """A busy window, and one with ten events."""
    rng = np.random.default_rng(0)
    channels, (rows, columns) = bundle.voxel.channels, size
    rates = rng.choice([0.02, 0.5, 2.0], (channels, rows // 8, columns // 8), p=[0.7, 0.2, 0.1])
    grid = np.zeros((2, channels, rows, columns), np.uint8)
    grid[0] = rng.poisson(rates.repeat(8, 1).repeat(8, 2)).clip(0, bundle.voxel.max_count)
    for at in zip(*(rng.integers(0, n, 10) for n in grid.shape[1:]), strict=True):
        grid[(1, *at)] += 1
    return torch.from_numpy(grid)


@integers
@pytest.mark.parametrize("engine", ["reference", "int8"])
@pytest.mark.parametrize("weights", ["caltech6-ssd", "nmnist"])
def test_a_window_without_events_costs_nothing_beyond_silence(weights: str, engine: str) -> None:
    """Alone, and in a batch with a busy one; T = 2 and 4."""
    bundle = Bundle.load(weights)
    network = open_engine(engine, bundle.spiking, bundle.parameters, bundle.voxel.max_count)
    grid = windows(bundle, BUNDLED[weights])
    grid[0] = 0
    for batch in (grid[:1], grid):
        report = energy_report(network.run(batch)[1].of_image(0))
        beyond = report.beyond_silence
        assert (beyond.synaptic_ops, beyond.graded_ops, beyond.spikes) == (0, 0, 0)
        assert report.energies_beyond_silence().snn_pj == 0
        assert (report.energies().snn_pj or 0) > 0


@integers
@pytest.mark.slow
@pytest.mark.parametrize("weights", BUNDLED)
def test_bundled_networks_find_the_same_with_differences(weights: str) -> None:
    """In integers bit for bit, where no spikes are summed; in float32, read-outs within rounding, equal boxes or classes."""
    bundle, size = Bundle.load(weights), BUNDLED[weights]
    grid = windows(bundle, size)
    network = IntegerNetwork(bundle.spiking, bundle.parameters, bundle.voxel.max_count)
    network.run(grid)
    plan = network._programs[tuple(grid.shape)].plan  # private: results do not show what runs on integers
    if plan.on_integers and not plan.summed:
        check_against_engine(network, grid)
    expected, reference = SpikingNetwork(bundle.spiking, bundle.parameters).run(grid)
    maps, emitted = DifferenceNetwork(bundle.spiking, bundle.parameters).run(grid)
    for mine, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    for a, b in zip(emitted.layers, reference.layers, strict=True):
        assert b.spikes_beyond_silence is not None
        np.testing.assert_allclose(a.spikes, b.spikes_beyond_silence, rtol=1e-4, atol=2)
    task, sensor = task_of(bundle.head), SensorSize(size[1], size[0])
    post = PostConfig(score=0.05)
    found, known = (task.decode(own, bundle.head, post, sensor, [0, 0]) for own in (maps, expected))
    for mine, theirs in zip(found, known, strict=True):
        if isinstance(mine, Detections) and isinstance(theirs, Detections):
            assert mine.labels.tolist() == theirs.labels.tolist()
            np.testing.assert_allclose(mine.boxes_xyxy, theirs.boxes_xyxy, atol=1e-2)
        np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-4)
