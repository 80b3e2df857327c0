"""Every engine beside the reference: the same spikes where arithmetic allows it, the same counts always."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.app.engines import engine_rows, engines_table
from evburst.data.errors import ConfigError
from evburst.data.stats import COUNTS, OPTIONAL_COUNTS, SpikeStats
from evburst.models.graph import Graph, Node
from evburst.models.runtime import (
    ENGINES,
    SAMPLED,
    Times,
    choose,
    machine,
    measured,
    measurements_file,
    open_engine,
    remember,
)
from evburst.models.runtime.int8 import quantise
from evburst.models.runtime.int8.network import IntegerNetwork
from evburst.models.runtime.int8.plan import Plan
from evburst.models.runtime.int8.quantise import Unpacked, integer_weights, pack
from evburst.models.runtime.int8.records import ADD
from evburst.models.runtime.int8.signals import Read, SignalPart, Source, reads
from evburst.models.runtime.int8.simd.emit import AVAILABLE, LANES
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.integer_form import is_integer
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, spike_sizes
from evburst.models.spiking.neurons import NeuronLayer, burst_scan
from evburst.models.spiking.rounding import from_int8, input_sizes, to_int8
from tests.conftest import Block, Grouped, Residual, drawn, in_new_process, spiking

integers = pytest.mark.skipif(not AVAILABLE, reason="needs AVX2")
SIZES = [(12, 20), (8, 8), (20, 36), (16, 44)]


@pytest.fixture
def graph(network: nn.Module) -> Graph:
    return trace(network, torch.zeros(1, 4, 16, 16))


def grids(n: int, size: tuple[int, int], seed: int = 1, rate: float = 0.7) -> Tensor:
    counts = torch.poisson(torch.full((n, 4, *size), rate), generator=torch.Generator().manual_seed(seed))
    return counts.clamp(max=10).to(torch.uint8)


def compiled(network: IntegerNetwork) -> Any:
    """The program of the first grid size that was run; private, because results do not show what was planned."""
    return next(iter(network._programs.values()))


def exact(graph: Graph, parameters: SpikingParameters, takes_back: bool = False) -> tuple[Graph, SpikingParameters]:
    """Parameters with which float32 sums and rounding to integers are both exact, so that spikes must be equal bit for bit.

    Thresholds are 1, 2 or 4; products of weights and thresholds are multiples of 1/64, the largest of each channel 127/64.
    """
    generator = torch.Generator().manual_seed(5)
    neurons = {}
    for name, layer in parameters.neurons.items():
        theta = 2.0 ** torch.randint(0, 3, layer.theta.shape, generator=generator)
        neurons[name] = NeuronLayer(theta, torch.round(layer.shift * 64) / 64 - 1, layer.phi, takes_back=takes_back)
    sizes = spike_sizes(graph, neurons)
    tensors = {}
    for node in graph.nodes:
        if node.op == "conv":
            read = input_sizes(graph, node, sizes)
            assert read is not None
            for what in ("weight", "bias"):
                tensor = graph.tensors[f"{node.name}.{what}"]
                drawn = torch.randint(-42, 43, tensor.shape, generator=generator).float()
                if what == "weight":
                    drawn.view(len(drawn), -1)[:, 0] = 127.0
                    drawn /= read[:, None, None]
                tensors[f"{node.name}.{what}"] = drawn / 64
    return Graph(graph.nodes, graph.outputs, tensors), replace(parameters, neurons=neurons)


def same_counts(mine: SpikeStats, theirs: SpikeStats) -> None:
    assert mine.dense_macs == theirs.dense_macs
    assert [layer.name for layer in mine.layers] == [layer.name for layer in theirs.layers]
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        assert (a.kind, a.neurons, a.timesteps) == (b.kind, b.neurons, b.timesteps)
        for what in (*COUNTS, *OPTIONAL_COUNTS):
            mine_, theirs_ = getattr(a, what), getattr(b, what)
            assert (mine_ is None) == (theirs_ is None)
            assert mine_ is None or mine_.tolist() == theirs_.tolist(), (a.name, what)


@integers
@pytest.mark.parametrize("timesteps", [1, 2, 3, 4])
@pytest.mark.parametrize("phi", [1, 2, 8])
@pytest.mark.parametrize("takes_back", [False, True], ids=["plain", "signed"])
def test_bit_for_bit_where_weights_are_integers(graph: Graph, timesteps: int, phi: int, takes_back: bool) -> None:
    """Spikes, synaptic operations, graded operations of every layer, and outputs; every operation; many sizes."""
    parameters = spiking(graph, grids(2, (12, 20)).float(), timesteps, phi)
    graph, parameters = exact(graph, parameters, takes_back)
    fast, slow = open_engine("int8", graph, parameters, 10), SpikingNetwork(graph, parameters)
    for seed, size in enumerate(SIZES):
        grid = grids(1 + seed % 2, size, seed)
        outputs, stats = fast.run(grid)
        expected, reference = slow.run(grid)
        same_counts(stats, reference)
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert sum(layer.spikes.sum() for layer in stats.layers if layer.kind == "neuron") > 100
    assert isinstance(fast, IntegerNetwork)
    plan = compiled(fast).plan
    assert plan.on_integers
    assert plan.summed == takes_back


class Sums(nn.Module):
    """Sums of spikes, one of them of a sum, read by convolutions of 3 x 3 and 1 x 1; 20 channels fill no whole blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.once, self.twice = Block(4, 32 + 20, 3, 2), Block(20, 20), Block(20, 20)
        self.wide, self.out = Block(20, 8), nn.Conv2d(8 + 32 + 20, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).split([32, 20], 1)
        once = second + self.once(second)
        twice = once + self.twice(once)
        return self.out(torch.cat([self.wide(twice), first, once], 1))


@integers
@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize(("phi", "sums"), [(5, 2), (17, 1), (60, 0)])
@pytest.mark.parametrize("takes_back", [False, True], ids=["plain", "signed"])
def test_sums_of_counts_are_carried_out_in_eight_bits(timesteps: int, phi: int, sums: int, takes_back: bool) -> None:
    """Where they fit; thresholds of the parts differ by factors of up to 4."""
    grid = grids(2, (12, 20))
    graph = trace(drawn(Sums), torch.zeros(1, 4, 16, 16))
    graph, parameters = exact(graph, spiking(graph, grid.float(), timesteps, phi), takes_back)
    fast = IntegerNetwork(graph, parameters, 10)
    outputs, stats = fast.run(grid)
    expected, reference = SpikingNetwork(graph, parameters).run(grid)
    same_counts(stats, reference)
    torch.testing.assert_close(outputs, expected, rtol=1e-6, atol=1e-6)
    quiet = grid * (torch.arange(20) < 3)  # most tiles are taken from silence
    same_counts(fast.run(quiet)[1], SpikingNetwork(graph, parameters).run(quiet)[1])
    added = sum(step.kind == ADD for step in compiled(fast).plan.steps)
    assert added == sums if timesteps == 1 or not takes_back else added <= sums


@integers
@pytest.mark.parametrize("timesteps", [1, 2, 3])
@pytest.mark.parametrize("phi", [1, 4, 40])
@pytest.mark.parametrize("signed", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize("kind", [Residual, Grouped])
def test_sums_of_currents_are_integers_too(kind: type[nn.Module], timesteps: int, phi: int, signed: bool) -> None:
    """After conversion every neuron fires as in the reference, in busy windows and in those with few events."""
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16))
    graph, parameters = calibrate(
        graph, record_targets(graph, grids(4, (12, 20)).float()), timesteps, Choice(phi, signed=signed)
    )
    assert is_integer(graph, parameters)
    fast, slow = IntegerNetwork(graph, parameters, 10), SpikingNetwork(graph, parameters)
    for seed, size in enumerate(SIZES):
        grid = grids(1 + seed % 2, size, seed, rate=0.02 if seed % 2 else 0.7)
        outputs, stats = fast.run(grid)
        expected, reference = slow.run(grid)
        same_counts(stats, reference)
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    plan = compiled(fast).plan
    if kind is Grouped:  # computed by torch, as exactly
        assert {step.node.name.split(".")[0] for step in plan.steps if step.kind is None} >= {"depthwise", "same", "more"}
        return
    assert plan.on_integers
    assert [len(step.current.added) for step in plan.steps if step.current and len(step.windows) > 1] == [1, 2, 0]


class Entangled(Residual):
    """Spikes of neurons that spikes drive, too, are added to spikes: two rules for one threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Identity()  # type: ignore[assignment]


@integers
def test_neurons_whose_spikes_are_added_to_spikes_keep_their_thresholds() -> None:
    """They are left to the reference engine, so that the sum of spikes has a common unit."""
    graph, grid = trace(drawn(Entangled), torch.zeros(1, 4, 16, 16)), grids(2, (12, 20))
    graph, parameters = calibrate(graph, record_targets(graph, grid.float()), 2, Choice(4))
    assert is_integer(graph, parameters)
    fast = IntegerNetwork(graph, parameters, 10)
    same_counts(fast.run(grid)[1], SpikingNetwork(graph, parameters).run(grid)[1])
    assert [step.node.name for step in compiled(fast).plan.steps if step.kind is None][1:] == [
        "first.conv",
        "add.add",
        "add.add.relu",
    ]


class SlowIntegers(SpikingNetwork):
    """What the integer engine computes, spelled out: convolutions of counts with rounded weights, in float64, source by source.

    The plan says who reads what (its correctness is what the test above is about); neurons are the reference's `burst_scan`.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, plan: Plan) -> None:
        super().__init__(graph, parameters)
        self.plan = plan
        self.counts: dict[str, Tensor] = {}

    def run_step(self, conv: Node, name: str) -> Tensor:
        """Counts `(T, N, C, H, W)` of the neurons behind a convolution, from those it reads."""
        step = next(s for s in self.plan.steps if s.node.name == name)
        assert step.current is not None
        found = reads(step.current.readings[0].signal)
        values = input_sizes(self.graph, conv, self.sizes)
        integers, scale = integer_weights(self.graph.tensors[f"{conv.name}.weight"], found, values)
        total = 0.0
        for item, whole in zip(found, integers, strict=True):
            x = self.counts[item.source.name].double()[:, :, item.first : item.first + item.channels]
            a = conv.attrs
            y = F.conv2d(x.flatten(0, 1), torch.from_numpy(whole).double(), None, a["stride"], a["padding"], a["dilation"])
            total = total + y.reshape(*x.shape[:2], *y.shape[1:])
        layer = self.parameters.neurons[name]
        gain = torch.from_numpy(scale.astype(np.float32)) / layer.theta
        bias = (self.graph.tensors[f"{conv.name}.bias"] + layer.shift) / layer.theta
        current = total.float() * gain[:, None, None] + bias[:, None, None]
        unit = NeuronLayer(torch.ones_like(gain), torch.zeros_like(gain), layer.phi)
        return burst_scan(current, unit, self.parameters.timesteps)


@integers
@pytest.mark.parametrize("phi", [1, 4, 255])
@pytest.mark.parametrize("unit", ["common unit", "none"])
def test_rounded_weights_give_exactly_the_spikes_they_should(graph: Graph, phi: int, unit: str) -> None:
    """Layer by layer, whatever the weights and thresholds: every count equals integer arithmetic done slowly."""
    grid = grids(2, (12, 20))
    parameters = spiking(graph, grid.float(), 2, phi)
    if unit == "none":
        for k, layer in enumerate(parameters.neurons.values()):
            layer.theta.mul_(1 + 0.1 * k)
    network = IntegerNetwork(graph, parameters, 10)
    network.run(grid)
    program = compiled(network)
    plan = program.plan
    slow = SlowIntegers(graph, parameters, plan)
    for source in plan.sources:
        view = torch.from_numpy(program.counts(source).copy()).permute(0, 1, 4, 2, 3)
        slow.counts[source.name] = view
        step = next(s for s in plan.steps if s.out is source)
        if step.current is not None:
            assert torch.equal(slow.run_step(step.current.readings[0].conv, source.name), view.float()), source.name
    assert sum(step.current is not None for step in plan.steps) == 5


@integers
@pytest.mark.parametrize("timesteps", [1, 2, 4])
def test_of_a_converted_network_nearly_all_neurons_agree_with_the_reference(graph: Graph, timesteps: int) -> None:
    """Its weights are rounded already: fewer than 1 neuron in 1000 differs, those within rounding of a threshold."""
    grid = grids(2, (20, 36))
    converted, parameters = calibrate(graph, record_targets(graph, grid.float()), timesteps, Choice(8))
    _, mine = IntegerNetwork(converted, parameters, 10).run(grid)
    _, theirs = SpikingNetwork(converted, parameters).run(grid)
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        neurons = max(a.neurons, 1000) * len(grid)
        assert np.abs(a.spikes - b.spikes).sum() <= max(1, 1e-3 * neurons), a.name


@integers
def test_the_integers_are_those_that_conversion_rounded_to(graph: Graph) -> None:
    """Packing finds the same integers again, and they are the weights."""
    grid = grids(2, (12, 20))
    converted, parameters = calibrate(graph, record_targets(graph, grid.float()), 1, Choice(8))
    network, theta = IntegerNetwork(converted, parameters, 10), spike_sizes(graph, parameters.neurons)
    network.run(grid)
    plan = compiled(network).plan
    rounded_before = 0
    for conv, signal in (reading for step in plan.steps if step.current is not None for reading in step.current.readings):
        values = input_sizes(converted, conv, theta)
        assert values is not None
        weight, own = converted.tensors[f"{conv.name}.weight"], converted.tensors.get(f"{conv.name}.step")
        integers, scale = integer_weights(weight, reads(signal), values, own)
        expected, own_scale = to_int8(weight, values, own)
        assert np.array_equal(scale, own_scale.numpy())
        if len(signal) == 1:
            assert np.array_equal(integers[0], expected.numpy())
        rebuilt = from_int8(expected, own_scale, values)
        assert torch.equal(rebuilt, weight)
        rounded_before += 1
    assert rounded_before == sum(node.op == "conv" for node in graph.nodes)


@integers
@pytest.mark.parametrize("takes_back", [False, True], ids=["plain", "signed"])
def test_what_has_no_integer_form_is_left_to_the_reference(graph: Graph, takes_back: bool) -> None:
    """Grouped convolutions, a current used twice, a sum of currents, a maximum over a sum: computed, and right."""
    graph, parameters = exact(graph, spiking(graph, grids(2, (12, 20)).float(), 2, 4))
    groups = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 4}
    plain = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    nodes = [
        Node("x", "input", ()),
        Node("grouped", "conv", ("x",), groups),
        Node("a", "relu", ("grouped",)),
        Node("one", "conv", ("a",), plain),
        Node("two", "conv", ("x",), plain),
        Node("sum", "add", ("one", "two")),
        Node("b", "relu", ("sum",)),
        Node("both", "add", ("a", "b")),
        Node("last", "conv", ("both",), plain),
        Node("c", "relu", ("last",)),
        Node("out", "conv", ("c",), plain),
    ]
    generator = torch.Generator().manual_seed(2)
    tensors = {f"{n.name}.bias": torch.zeros(4) for n in nodes if n.op == "conv"}
    for node in nodes:
        if node.op == "conv":
            shape = (4, 1, 3, 3) if node.name == "grouped" else (4, 4, 1, 1)
            weight = torch.randint(-40, 41, shape, generator=generator).float() / 64
            weight.view(4, -1)[:, 0] = 127 / 64
            tensors[f"{node.name}.weight"] = weight
    neurons = {name: NeuronLayer(torch.ones(4), torch.zeros(4), 4, takes_back=takes_back) for name in "abc"}
    small = Graph(nodes, ["out", "one"], tensors)
    parameters = SpikingParameters(2, neurons, {"out": torch.ones(4), "one": torch.zeros(4)})
    network, grid = IntegerNetwork(small, parameters, 10), grids(2, (8, 12))
    outputs, stats = network.run(grid)
    expected, reference = SpikingNetwork(small, parameters).run(grid)
    same_counts(stats, reference)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    plan = compiled(network).plan
    left = {step.node.name for step in plan.steps if step.kind is None}
    assert left == {"x", "grouped", "a", "one", "two", "sum", "b"}


@integers
@pytest.mark.parametrize("rate", [0.0, 0.002, 0.02])
@pytest.mark.parametrize("takes_back", [False, True], ids=["plain", "signed"])
def test_what_is_as_in_silence_is_not_computed_and_right(graph: Graph, rate: float, takes_back: bool) -> None:
    """Windows with few events or none, after others: equal to the reference, most tiles never computed."""
    graph, parameters = exact(graph, spiking(graph, grids(2, (12, 20)).float(), 2, 8), takes_back)
    fast, slow = open_engine("int8", graph, parameters, 10), SpikingNetwork(graph, parameters)
    fast.run(grids(2, (48, 64)))
    for seed in range(4):
        grid = grids(2, (48, 64), seed, rate)
        outputs, stats = fast.run(grid)
        expected, reference = slow.run(grid)
        same_counts(stats, reference)
        for a, b in zip(outputs, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert isinstance(fast, IntegerNetwork)
    program = compiled(fast)
    assert rate == 0 or program.changed.mean() <= 60 * rate


@integers
@pytest.mark.parametrize(("slope", "takes_back"), [(0.0, False), (0.0, True), (0.1, False)])
def test_ceilings_and_signed_neurons(graph: Graph, slope: float, takes_back: bool) -> None:
    """ReLU6 has an integer form, signed or not; LeakyReLU has none, and is left to the reference."""
    attrs = {"negative_slope": slope} if slope else {"ceiling": 2.0}
    nodes = [replace(node, attrs=attrs) if node.op == "relu" else node for node in graph.nodes]
    graph = Graph(nodes, graph.outputs, graph.tensors)
    graph, parameters = exact(graph, spiking(graph, grids(2, (12, 20)).float(), 2, 8))
    neurons = {
        n: replace(layer, ceiling=attrs.get("ceiling", math.inf), negative_slope=slope, takes_back=takes_back)
        for n, layer in parameters.neurons.items()
    }
    parameters = replace(parameters, neurons=neurons)
    fast, slow = IntegerNetwork(graph, parameters, 10), SpikingNetwork(graph, parameters)
    (outputs, stats), (expected, reference) = fast.run(grids(2, (12, 20))), slow.run(grids(2, (12, 20)).float())
    same_counts(stats, reference)
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    plan = compiled(fast).plan
    assert plan.on_integers == (slope == 0)


@integers
@pytest.mark.parametrize("odd", [0.5, 300.0, -1.0, 11.0], ids=["not whole", "over 255", "negative", "over max_count"])
def test_grids_that_are_not_counts_are_left_to_the_reference(graph: Graph, odd: float) -> None:
    grid = grids(1, (12, 20)).float()
    parameters = spiking(graph, grid, 2, 4)
    fast, slow = IntegerNetwork(graph, parameters, 10), SpikingNetwork(graph, parameters)
    fast.run(grid)
    grid[0, 1, 2, 3] = odd
    for a, b in zip(fast.run(grid)[0], slow.run(grid)[0], strict=True):
        assert torch.equal(a, b)


@integers
def test_windows_do_not_touch_each_other(graph: Graph) -> None:
    """Neither those of a batch nor those of one run after another, of any sizes."""
    parameters = spiking(graph, grids(2, (12, 20)).float(), 2, 4)
    network = IntegerNetwork(graph, parameters, 10)
    batch = grids(3, (12, 20))
    together, stats = network.run(batch)
    together = [out.clone() for out in together]
    network.run(grids(1, (8, 8)))
    for i in (2, 0, 1):
        alone, own = network.run(batch[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[i : i + 1], b)
        assert [layer.spikes[i] for layer in stats.layers] == [layer.spikes[0] for layer in own.layers]


@integers
@pytest.mark.parametrize("threads", ["1", "5"])
def test_any_number_of_threads_shares_the_work(threads: str) -> None:
    """More than there are cores too, so that threads wait for others that do not run."""
    code = """
import numpy as np, torch
from evburst.models.bundle import Bundle
from evburst.models.runtime import open_engine
bundle = Bundle.load("street")
grid = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, bundle.voxel.channels, 64, 96), dtype=np.uint8))
for engine, times in (("reference", 1), ("int8", 5)):
    network = open_engine(engine, bundle.spiking, bundle.parameters)
    for _ in range(times):
        _, stats = network.run(grid)
        print([(layer.spikes.tolist(), layer.synaptic_ops.tolist()) for layer in stats.layers])
"""
    expected, *found = in_new_process(code, NUMBA_NUM_THREADS=threads).splitlines()
    assert found == [expected] * 5


@integers
@pytest.mark.parametrize("limit", [1, 10, 128, 129, 255])
@pytest.mark.parametrize("large", [0, 5, 64])
@pytest.mark.parametrize("vnni", [False, True])
def test_sums_of_sixteen_bits_cannot_overflow(monkeypatch: pytest.MonkeyPatch, limit: int, large: int, vnni: bool) -> None:
    """The worst counts against the worst weights: all of one sign, and as large as they get; of some channels, 10 bits.

    With VNNI there are none, so that large counts need no more steps.
    """
    monkeypatch.setattr(quantise, "VNNI", vnni)
    weight = torch.ones(LANES, 64, 3, 3)
    weight[1::2] *= -1
    sizes = np.ones(64, np.float32)
    sizes[:large] = 4
    source = Source("a", (64, 8, 8), sizes, limit)
    read = Read(source, 0, 64, [SignalPart(source, 0, 0, 64)])
    packed = pack([Unpacked(weight, [read], torch.ones(64))])
    assert packed is not None
    planes, (repetitions,) = packed.data.shape[1], packed.repetitions
    small = vnni or limit <= 129
    assert (planes, repetitions.max()) == {0: (1, 1 if small else 2), 5: (1, 4) if small else (2, 1), 64: (2, 1)}[large]
    pairs = packed.data.astype(np.int64).reshape(1, planes, -1, LANES, 2, 2).sum(-1) * limit
    steps = pairs.shape[2]
    for plane, head in enumerate(packed.chunks[:planes] if not vnni else []):
        own = packed.chunks[plane + head :]
        for begin, end in pairwise([0, *own[: 1 + np.argmax(own == steps)]]):
            assert 0 < np.abs(pairs[0, plane, begin:end].sum(0)).max() < 2**15
            assert end == steps or np.abs(pairs[0, plane, begin : end + 1].sum(0)).max() >= 2**15
    data = packed.data.astype(np.int64)
    whole = data[:, 0] if planes == 1 else 128 * data[:, 0] + data[:, 1]
    whole = np.add.reduceat(whole, np.cumsum(repetitions) - repetitions, 1).reshape(1, 9, 16, LANES, 4)
    expected = 127 * sizes.reshape(16, 1, 4) * np.where(np.arange(LANES) % 2, -1, 1)[:, None]
    assert (whole == expected).all()
    assert np.allclose(127 * packed.scale, 1)


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    assert set(ENGINES) >= {"reference", "int8", "onnx", "openvino", "cuda"}
    assert choose("auto") == next(name for name in ("int8", "onnx", "reference") if not ENGINES[name].available("cpu"))
    assert choose("auto", "cuda") == ("reference" if ENGINES["cuda"].available("cuda") else "cuda")
    with pytest.raises(ConfigError, match=r"is unknown \(known: auto, reference"):
        choose("int7")
    for name in ("int8", "onnx", "openvino"):
        with pytest.raises(ConfigError, match="--engine auto"):
            choose(name, "cuda")


def test_auto_is_the_fastest_that_was_measured_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    rule = choose("auto")
    assert measured() == {}
    assert remember(
        {
            "1": {"gone": Times(0.1, 0.1), "reference": Times(1, 1), rule: Times(2, 2)},
            "4": {"reference": Times(9, 9), rule: Times(8, 8)},
        }
    )
    assert choose("auto") == "reference"  # "gone" is no engine
    assert choose("auto", "cpu", 3) == rule
    measurements_file().write_text(measurements_file().read_text().replace('"threads": "', '"threads": "9'))
    assert choose("auto") == rule  # another machine
    older = json.dumps({"machine": machine(), "ms": {"1": {"reference": 0.1}}})
    for damaged in ("", "[]", "{}", '{"machine": {}}', "\x00", older):
        measurements_file().write_text(damaged)
        assert choose("auto") == rule
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path / "engines.json"))  # a file: nothing can be written below it
    assert not remember({})


def test_auto_compares_engines_at_the_share_of_windows_that_will_be_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if ENGINES["onnx"].available("cpu"):
        pytest.skip("onnx is not available")
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    assert ENGINES["onnx"].count_every == SAMPLED == 10
    remember({"1": {"reference": Times(5.4, 5.4), "onnx": Times(9, 4)}})  # onnx: 4.5 ms if every 10th window is counted
    assert choose("auto") == choose("auto", count_every=8) == "onnx"
    assert choose("auto", count_every=1) == choose("auto", count_every=3) == choose("auto", integer=False) == "reference"
    remember({"1": {"reference": Times(5, 5), "onnx": Times(9, 4)}})  # too little to give up counting every window
    assert (choose("auto"), choose("auto", count_every=10)) == ("reference", "onnx")


def test_a_generic_numba_and_missing_packages_are_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert choose("auto") == ("reference" if ENGINES["onnx"].available("cpu") else "onnx")
    monkeypatch.setattr("evburst.models.runtime.find_spec", lambda name: None)
    assert choose("auto") == "reference"
    with pytest.raises(
        ConfigError,
        match=r'needs the package onnx and openvino: pip install "onnx>=1.17" "onnxruntime>=1.20" "openvino>=2025.0"; or',
    ):
        choose("openvino")


def test_the_table_of_engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    remember({"1": {"reference": Times(1.25, 1.25)}, "4": {"reference": Times(9, 9)}})
    table = engines_table(engine_rows(measured())).splitlines()
    assert table[0].split() == ["ms", "per", "window", "T=1", "T=4"]
    assert table[1].split() == ["engine", *["mean", "counted", "uncounted"] * 2]
    assert table[2].split() == ["reference", *["1.25"] * 3, *["9.00"] * 3, "auto", "for", "T=1", "and", "T=4"]
    assert len(table) == len(ENGINES) + 4


@integers
@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("takes_back", [False, True], ids=["plain", "signed"])
@pytest.mark.parametrize("wide", [False, True], ids=["16 bits", "32 bits"])
def test_windows_in_sequence_are_counted_where_the_channels_of_a_block_differ_in_fan_out(
    timesteps: int, takes_back: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Busy, nearly empty and empty windows after one another, in which rows, tiles or all of a layer is that of silence."""
    if wide:
        monkeypatch.setattr("evburst.models.runtime.int8.tables.LARGEST_FAN_OUT", 90)  # that of some layers is larger
    generator = torch.Generator().manual_seed(5)
    same = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    nodes = [
        Node("x", "input", ()),
        Node("c1", "conv", ("x",), same),
        Node("r1", "relu", ("c1",), {}),
        Node("part", "slice", ("r1",), {"start": 0, "stop": 20}),
        Node("c2", "conv", ("part",), same),
        Node("r2", "relu", ("c2",), {}),
        Node("pool", "max_pool", ("r1",), {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]}),
        Node("rest", "slice", ("pool",), {"start": 5, "stop": 30}),
        Node("c3", "conv", ("rest",), same),
        Node("c4", "conv", ("r2",), same),
    ]
    tensors: dict[str, Tensor] = {}
    for name, out, into in (("c1", 40, 2), ("c2", 33, 20), ("c3", 3, 25), ("c4", 17, 33)):
        weight = torch.randint(-20, 21, (out, into, 3, 3), generator=generator).float()
        weight[torch.rand(weight.shape, generator=generator) < 0.3] = 0
        weight.view(out, -1)[:, 0] = 127  # whole numbers of 64ths, which rounding to 8 bits keeps
        tensors |= {f"{name}.weight": weight / 64, f"{name}.bias": torch.randint(-60, 30, (out,), generator=generator) / 64}
    neurons = {
        name: NeuronLayer(torch.ones(n), torch.zeros(n), 4, takes_back=takes_back) for name, n in (("r1", 40), ("r2", 33))
    }
    parameters = SpikingParameters(timesteps, neurons, {"c3": torch.zeros(3), "c4": torch.zeros(17)})
    graph = Graph(nodes, ["c3", "c4"], tensors)
    fast, slow = IntegerNetwork(graph, parameters), SpikingNetwork(graph, parameters)
    busy = torch.poisson(torch.full((2, 2, 24, 40), 0.7), generator=generator).to(torch.uint8)
    one, empty = torch.zeros_like(busy), torch.zeros_like(busy)
    one[0, 1, 12, 20] = 3
    for grid in (busy, one, empty, one.flip(0), busy, busy * (torch.arange(40) < 8), one):
        (outputs, found), (expected, counted) = fast.run(grid), slow.run(grid)
        for mine, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        for mine, theirs in zip(found.layers, counted.layers, strict=True):
            for kind in (*COUNTS, *OPTIONAL_COUNTS):
                own, other = getattr(mine, kind), getattr(theirs, kind)
                assert (own is None) == (other is None)
                assert own is None or own.tolist() == other.tolist(), (mine.name, kind)
