"""Exports read back: ONNX computes what the graph computes, and a plain interpreter of NIR fires the same spikes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.app.export import main
from evburst.data.errors import ModelError
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.export.nir import to_nir, write_nir
from evburst.models.export.onnx import write_onnx
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters
from tests.conftest import Block, EveryOperation, FurtherOperations, drawn, spiking


def bundle_of(graph: Graph, parameters: SpikingParameters) -> Bundle:
    return Bundle(graph, graph, parameters, HeadSpec("yolo", (4,), 4, ("a", "b")), VoxelConfig(bins=2), {})


@pytest.mark.parametrize("kind", [EveryOperation, FurtherOperations])
def test_onnx_computes_what_the_graph_computes(kind: type[nn.Module], grid: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16))
    write_onnx(bundle_of(graph, spiking(graph, grid, 1, 1)), tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == graph.outputs
    for x in (grid, torch.randn(1, 4, 32, 24)):  # any batch, any size
        for mine, theirs in zip(Runner(graph)(x), session.run(None, {graph.nodes[0].name: x.numpy()}), strict=True):
            np.testing.assert_allclose(theirs, mine.numpy(), rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["head"])["classes"] == ["a", "b"]


class WithoutPools(nn.Module):
    """What NIR can say: convolutions (one in groups), residual and plain additions, concatenation, slices, average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.residual = Block(4, 8, 3, 2), Block(4, 4), Block(8, 8)
        self.residual.act = nn.Identity()
        self.grouped = nn.Conv2d(20, 6, 3, padding=1, groups=2)
        self.out, self.linear = nn.Conv2d(14, 3, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = self.stem(x)
        first, second = stem.chunk(2, 1)
        shortcut = second + self.deep(second)
        grouped = torch.relu(self.grouped(torch.cat([first, shortcut, second, stem], 1)))
        residual = torch.relu(self.residual(stem) + stem)
        out = self.out(F.avg_pool2d(torch.cat([grouped, residual], 1), 2))
        return [out, self.linear(F.adaptive_avg_pool2d(residual, 1).flatten(1))]


def run_nir(graph: Any, x: Tensor, timesteps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A small NIR runtime: (summed spikes of every IF, mean of every Output), the same input `(C, H, W)` at every timestep."""
    import nir

    spikes: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    v: dict[str, Tensor] = {}
    order: list[str] = []
    while len(order) < len(graph.nodes):
        ready = (n for n in graph.nodes if n not in order and all(a in order for a, b in graph.edges if b == n))
        order.append(next(ready))
    for _ in range(timesteps):
        values: dict[str, Tensor] = {}
        for name in order:
            node = graph.nodes[name]
            arriving: Any = sum(values[a] for a, b in graph.edges if b == name)
            if isinstance(node, nir.Input):
                values[name] = x
            elif isinstance(node, nir.Conv2d):
                weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
                window = [tuple(int(k) for k in part) for part in (node.stride, node.padding, node.dilation)]
                values[name] = F.conv2d(arriving[None], weight, bias, *window, int(node.groups))[0]
            elif isinstance(node, nir.AvgPool2d):
                window = [tuple(int(k) for k in part) for part in (node.kernel_size, node.stride, node.padding)]
                values[name] = F.avg_pool2d(arriving[None], *window)[0]
            elif isinstance(node, nir.IF):
                threshold, reset = torch.from_numpy(node.v_threshold), torch.from_numpy(node.v_reset)
                potential = v.get(name, torch.zeros_like(threshold)) + torch.from_numpy(node.r) * arriving
                values[name] = (potential > threshold).float()
                v[name] = potential - values[name] * (threshold - reset)
                spikes[name] = spikes.get(name, torch.tensor(0.0)) + values[name]
            else:
                assert isinstance(node, nir.Output)
                outputs[name] = outputs.get(name, torch.tensor(0.0)) + arriving / timesteps
    return spikes, outputs


@pytest.mark.parametrize("timesteps", [1, 5])
def test_nir_fires_the_same_spikes(grid: Tensor, tmp_path: Path, timesteps: int) -> None:
    nir = pytest.importorskip("nir")
    graph = trace(drawn(WithoutPools), torch.zeros(1, 4, 16, 16))
    parameters = spiking(graph, grid, timesteps, 1)
    translated = to_nir(graph, parameters, tuple(grid.shape[1:]))  # type: ignore[arg-type]
    assert translated.left_out == ()
    write_nir(tmp_path / "a.nir", translated)
    spikes, outputs = run_nir(nir.read(tmp_path / "a.nir"), grid[0], timesteps)
    expected, stats = SpikingNetwork(graph, parameters).run(grid[:1])
    for layer in stats.layers:
        if layer.kind == "neuron":
            assert float(spikes[layer.name].sum()) == layer.spikes[0] > 0, layer.name
    for name, wanted in zip(graph.outputs, expected, strict=True):
        torch.testing.assert_close(outputs[f"{name}.output"], wanted[0], rtol=1e-4, atol=1e-4)


def test_nir_says_what_it_cannot_say_and_writes_the_part_before(grid: Tensor, tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    graph = trace(drawn(EveryOperation), torch.zeros(1, 4, 16, 16))
    parameters = spiking(graph, grid, 4, 1)
    size: Any = tuple(grid.shape[1:])
    with pytest.raises(ModelError, match=r"'pool\.pool': max-pool at several timesteps cannot be expressed in NIR"):
        to_nir(graph, parameters, size)
    translated = to_nir(graph, parameters, size, part=True)
    assert translated.left_out[0] == "pool.pool"
    write_nir(tmp_path / "part.nir", translated)
    again = nir.read(tmp_path / "part.nir")
    assert set(again.outputs) == {"down.conv.relu.output", "stem.conv.relu.output"}  # what pool, upsampling, concat read
    spikes, _ = run_nir(again, grid[0], 4)
    _, stats = SpikingNetwork(graph, parameters).run(grid[:1])
    counted = {layer.name: layer.spikes[0] for layer in stats.layers if layer.kind == "neuron"}
    assert {name: float(count.sum()) for name, count in spikes.items()} == counted


class WithMaxPools(nn.Module):
    """Max-pools of neurons, of a max-pool and of a concatenation, a residual sum, and an activation with a ceiling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep, self.residual = Block(4, 8, 3, 2), Block(4, 8), Block(8, 8)
        self.stem.act, self.residual.act = nn.ReLU6(), nn.Identity()
        self.pool, self.out = nn.MaxPool2d(3, 1, 1), nn.Conv2d(8 + 8 + 16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        first, second = stem.chunk(2, 1)
        residual = torch.relu(self.residual(stem) + stem)
        once = self.pool(self.deep(second))
        both = self.pool(torch.cat([first, residual, second], 1))
        return self.out(torch.cat([once, self.pool(once), both], 1))


def counted(graph: Graph, parameters: SpikingParameters, grid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and counts `(C, H, W)` of every layer of neurons and every max-pool, by the reference, at one timestep."""
    counts: dict[str, Tensor] = {}

    class Watched(SpikingNetwork):
        def observe(self, node: Node, value: Tensor) -> None:
            super().observe(node, value)
            if node.op in ("relu", "max_pool"):
                size = self.sizes[node.name]
                assert size is not None
                counts[node.name] = torch.round(value / size[:, None, None])[0]

    return Watched(graph, parameters).run(grid)[0][0], counts


def assert_same_spikes(spikes: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
    """Compare the spikes `(n * C, H, W)` of every `IF` with the counts of the neurons, or of the pool, that they stand for."""
    for name, own in counts.items():
        parts = [part for key, part in spikes.items() if key == name or re.fullmatch(rf"{re.escape(name)}[._]\d", key)]
        assert max(float(part.max()) for part in parts) == 1
        if len(parts) == 1:
            torch.testing.assert_close(parts[0].reshape(-1, *own.shape).sum(0), own, rtol=0, atol=0, msg=name)
        else:  # of several layers, each pooled as a whole
            assert sum(float(part.sum()) for part in parts) == float(own.sum())


@pytest.fixture(params=[False, True], ids=["plain", "signed"])
def pooling(grid: Tensor, request: pytest.FixtureRequest) -> tuple[Graph, SpikingParameters]:
    """WithMaxPools at one timestep with bursts; the limits of a layer differ by channel."""
    graph = trace(drawn(WithMaxPools), torch.zeros(1, 4, 16, 16))
    parameters = spiking(graph, grid, 1, 6, signed=request.param)
    name, layer = next(iter(parameters.neurons.items()))
    parameters.neurons[name] = replace(layer, ceiling=4 * float(layer.theta.median()))
    limits = parameters.neurons[name].burst_limits
    assert limits.min() < limits.max()
    return graph, parameters


def test_bursts_and_max_pools_are_single_spikes_in_nir(
    pooling: tuple[Graph, SpikingParameters], grid: Tensor, tmp_path: Path
) -> None:
    nir = pytest.importorskip("nir")
    translated = to_nir(*pooling, tuple(grid.shape[1:]))  # type: ignore[arg-type]
    assert translated.bursts
    assert translated.left_out == ()
    write_nir(tmp_path / "a.nir", translated)
    again = nir.read(tmp_path / "a.nir")
    for one in grid:
        expected, counts = counted(*pooling, one[None])
        spikes, outputs = run_nir(again, one, 1)
        assert max(float(own.max()) for own in counts.values()) > 3
        assert_same_spikes(spikes, counts)
        torch.testing.assert_close(next(iter(outputs.values())), expected[0], rtol=1e-4, atol=1e-4)


def test_bursts_that_need_too_many_weights_are_refused(grid: Tensor) -> None:
    pytest.importorskip("nir")
    graph = trace(drawn(WithoutPools), torch.zeros(1, 4, 16, 16))
    parameters = spiking(graph, grid, 1, 6)
    neurons = {name: replace(layer, phi=10_000) for name, layer in parameters.neurons.items()}
    with pytest.raises(ModelError, match=r"with bursts of up to 10000 spikes, NIR would need \d"):
        to_nir(graph, replace(parameters, neurons=neurons), (4, 12, 20))


def test_grids_that_need_too_many_neurons_are_refused(pooling: tuple[Graph, SpikingParameters], grid: Tensor) -> None:
    pytest.importorskip("nir")
    channels = grid.shape[1]
    assert to_nir(*pooling, (channels, 16, 16)).left_out == ()
    with pytest.raises(ModelError, match=r"for grids of 8192x8192, NIR would need \d\.\de\+\d+ numbers for neurons"):
        to_nir(*pooling, (channels, 8192, 8192))


def test_max_pools_of_sums_are_refused(grid: Tensor) -> None:
    pytest.importorskip("nir")
    window = {"stride": [1, 1], "padding": [0, 0]}
    conv = {**window, "dilation": [1, 1], "groups": 1}
    nodes = [
        Node("input", "input", ()),
        Node("a", "conv", ("input",), conv),
        Node("neurons", "relu", ("a",)),
        Node("sum", "add", ("neurons", "neurons")),
        Node("pool", "max_pool", ("sum",), {**window, "kernel": [2, 2]}),
        Node("b", "conv", ("pool",), conv),
    ]
    weights = {"a.weight": torch.ones(2, 4, 1, 1), "b.weight": torch.ones(1, 2, 1, 1)}
    graph = Graph(nodes, ["b"], {**weights, "a.bias": torch.zeros(2), "b.bias": torch.zeros(1)})
    with pytest.raises(ModelError, match="'pool': max-pool cannot be expressed"):
        to_nir(graph, spiking(graph, grid, 1, 4), (4, 12, 20))


def test_burst_limits_are_in_the_metadata(grid: Tensor, tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    graph = trace(drawn(WithoutPools), torch.zeros(1, 4, 16, 16))
    translated = to_nir(graph, spiking(graph, grid, 2, 6), (4, 12, 20))
    assert not translated.bursts
    write_nir(tmp_path / "a.nir", translated)
    again = nir.read(tmp_path / "a.nir")
    assert {int(n.metadata["phi"]) for n in again.nodes.values() if isinstance(n, nir.IF)} == {6}


def test_negative_spikes_are_refused(grid: Tensor) -> None:
    pytest.importorskip("nir")
    nodes = [
        Node("input", "input", ()),
        Node("a", "conv", ("input",), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}),
        Node("leaky", "relu", ("a",), {"negative_slope": 0.1}),
        Node("b", "conv", ("leaky",), {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}),
    ]
    tensors = {
        "a.weight": torch.ones(2, 4, 1, 1),
        "b.weight": torch.ones(1, 2, 1, 1),
        "a.bias": torch.zeros(2),
        "b.bias": torch.zeros(1),
    }
    graph = Graph(nodes, ["b"], tensors)
    with pytest.raises(ModelError, match="'leaky': a neuron with negative spikes"):
        to_nir(graph, spiking(graph, grid, 1, 4), (4, 12, 20))


def test_command_writes_both_and_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("nir")
    assert main(["--weights", "street", "--onnx", str(tmp_path / "street.onnx")]) == 0
    assert main(["--weights", "street", "--nir", str(tmp_path / "street.nir")]) == 1
    assert "upsampling cannot be expressed in NIR; --part" in capsys.readouterr().err
    assert main(["--weights", "caltech6", "--nir", str(tmp_path / "caltech6.nir")]) == 1
    assert "cannot be expressed in NIR; --part" in capsys.readouterr().err
    assert main(["--weights", "caltech6", "--nir", str(tmp_path / "caltech6.nir"), "--part", "--sensor-size", "64x64"]) == 0
    captured = capsys.readouterr()
    assert "left out" in captured.out
    assert "up to 8 spikes per timestep" in captured.err
    assert main(["--weights", "nmnist", "--nir", str(tmp_path / "nmnist.nir")]) == 0
    captured = capsys.readouterr()
    assert "left out" not in captured.out
    assert "spikes per timestep" not in captured.err
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("street.onnx", "caltech6.nir", "nmnist.nir"))


@pytest.mark.parametrize(
    ("flags", "needs"),
    [
        ("--onnx --with-boxes", "--onnx-snn"),
        ("--nir --totals", "--onnx-snn"),
        ("--onnx --part", "--nir"),
        ("--onnx-snn --score=0.5", "--with-boxes"),
        ("--onnx --memory", "--onnx-snn"),
        ("--onnx --timesteps=2", "--onnx-snn or --nir"),
        ("--onnx --sensor-size=64x48", "--nir, --with-boxes or --totals"),
        ("--onnx-snn --sensor-size=64x48", "--nir, --with-boxes or --totals"),
    ],
)
def test_flags_of_another_format_are_refused(
    flags: str, needs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, extra = flags.split()
    assert main([target, str(tmp_path / "out"), extra]) == 1
    assert f"need {needs}" in capsys.readouterr().err.replace("needs", "need")
    assert not list(tmp_path.iterdir())
