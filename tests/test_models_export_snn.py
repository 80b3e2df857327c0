"""The spiking network as ONNX: in the integer form its spikes are the reference's, neuron for neuron; boxes are decode's."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import evburst
from evburst.app.export import main
from evburst.data.classification import Classification
from evburst.data.errors import MissingPackageError, ModelError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig, decode
from evburst.models.export.onnx_boxes import BoxOptions
from evburst.models.export.onnx_snn import SnnOptions, spiking_model, write_onnx_snn
from evburst.models.graph import Graph, Node
from evburst.models.runtime import ENGINES, open_engine
from evburst.models.runtime.counting import FanOut, count_spikes, count_spikes_reference
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.integer_form import driven, integer_form
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, spike_sizes
from evburst.models.spiking.rounding import rounded
from evburst.models.tasks import task_of
from tests.conftest import ROOT, EveryOperation, FurtherOperations, Grouped, Residual, drawn, in_new_process, spiking
from tests.test_models_detector import TwoLevels
from tests.test_models_runtime import same_counts

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


class Watched(SpikingNetwork):
    """The reference, with the counts of every layer of neurons kept, and the largest count of every sum of spikes."""

    counts: dict[str, NDArray[np.float32]]
    largest: dict[str, float]

    def observe(self, node: Node, value: Tensor) -> None:
        if node.op == "input":
            self.counts, self.largest = {}, {}
        size = self.sizes[node.name]
        if node.op == "add" and size is not None:
            self.largest[node.name] = float((value / size[:, None, None]).max())
        if node.op == "relu":
            self.counts[node.name] = torch.round(value / self.parameters.neurons[node.name].theta[:, None, None]).numpy()


def run(model: Any, grid: Tensor) -> dict[str, NDArray[Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": grid.to(torch.uint8).numpy()}), strict=True))


def network(
    kind: type[nn.Module], grid: Tensor, timesteps: int, signed: bool = False, phi: int = 4
) -> tuple[Graph, SpikingParameters]:
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16)).in_float16()
    return calibrate(graph, record_targets(graph, grid), timesteps, Choice(phi, signed=signed))


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize(
    ("kind", "signed"),
    [(kind, signed) for kind in (EveryOperation, Residual, Grouped) for signed in (False, True)] + [(FurtherOperations, False)],
)
def test_spikes_are_the_references(kind: type[nn.Module], signed: bool, timesteps: int, grid: Tensor) -> None:
    graph, parameters = network(kind, grid, timesteps, signed)
    options = SnnOptions(counts=True, totals=True, size=(12, 20))
    found = run(spiking_model(graph, parameters, 4, options), grid)
    reference = Watched(graph, parameters)
    outputs, stats = reference.run(grid)
    for name, counts in reference.counts.items():
        assert np.array_equal(found[f"{name}.counts"].astype(np.float32), counts), name
    for name, wanted in zip(graph.outputs, outputs, strict=True):
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=1e-4, atol=1e-4)
    for layer in stats.layers:
        name = "input" if layer.kind == "input" else layer.name
        assert found[f"{name}.spikes"].tolist() == layer.spikes.tolist()
        assert found[f"{name}.synaptic_ops"].tolist() == layer.synaptic_ops.tolist()


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("phi", [12, 250])
def test_sums_of_more_than_eight_bits_are_exact(phi: int, timesteps: int, grid: Tensor) -> None:
    graph, parameters = network(EveryOperation, grid, timesteps, phi=phi)
    loud = (30 * grid).clamp(max=255)
    model = spiking_model(graph, parameters, 4, SnnOptions(counts=True))
    found = run(model, loud)
    reference = Watched(graph, parameters)
    reference.run(loud)
    (total,) = (node.name for node in graph.nodes if node.op == "add")
    assert any(node.name.startswith(f"{total}.above255") for node in model.graph.node) == (phi == 250)
    assert (reference.largest[total] > 255) == (phi == 250)
    for name, counts in reference.counts.items():
        assert np.array_equal(found[f"{name}.counts"].astype(np.float32), counts), name
    kinds = {constant.data_type for constant in model.graph.initializer if constant.name.endswith(".weight.whole")}
    assert onnx.TensorProto.UINT8 in kinds  # what reads counts above 129: without VNNI, sums of signed weights saturate
    assert (onnx.TensorProto.INT8 in kinds) == (phi == 12)
    read = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
    assert all(read.intersection(node.output) for node in model.graph.node)
    assert all(constant.name in read for constant in model.graph.initializer)


class Leaky(nn.Sequential):
    """Spikes of either sign, read by a convolution that onnxruntime computes in integers unless it has to return the counts."""

    def __init__(self) -> None:
        layers = nn.Conv2d(4, 16, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 3, 1)
        super().__init__(*layers)


@pytest.mark.parametrize("phi", [3, 15, 64, 127])
def test_sums_of_negative_counts_are_exact(phi: int, grid: Tensor) -> None:
    graph, parameters = network(Leaky, grid, 1, phi=phi)
    graph, parameters = integer_form(graph, parameters)
    (wanted,), _ = SpikingNetwork(graph, parameters).run(grid)
    (found,) = run(spiking_model(graph, parameters, 4, SnnOptions()), grid).values()
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("timesteps", [1, 3])
def test_sums_of_more_than_eight_bits_are_exact_in_grouped_convolutions(timesteps: int, grid: Tensor) -> None:
    graph, parameters = network(Grouped, grid, timesteps, phi=250)
    loud = (30 * grid).clamp(max=255)
    found = run(spiking_model(graph, parameters, 4, SnnOptions(counts=True)), loud)
    reference = Watched(graph, parameters)
    reference.run(loud)
    assert max(reference.largest.values()) > 255
    for name, counts in reference.counts.items():
        assert np.array_equal(found[f"{name}.counts"].astype(np.float32), counts), name


@pytest.mark.parametrize("phi", [3, 250, 255])
def test_currents_can_be_clipped_first(phi: int, grid: Tensor) -> None:
    """Burst limits that differ by channel too, of which one leaves nothing to clip."""
    graph, parameters = network(EveryOperation, grid, 1, phi=phi)
    neurons = dict(parameters.neurons)
    name, layer = next(iter(neurons.items()))
    neurons[name] = layer = replace(layer, ceiling=phi * float(layer.theta.median()))
    assert layer.burst_limits.min() < layer.burst_limits.max() == phi
    parameters = replace(parameters, neurons=neurons)
    loud = (30 * grid).clamp(max=255)
    reference = Watched(graph, parameters)
    reference.run(loud)
    for clip_first in (False, True):
        found = run(spiking_model(graph, parameters, 4, SnnOptions(counts=True, clip_first=clip_first)), loud)
        for layer_name, counts in reference.counts.items():
            assert np.array_equal(found[f"{layer_name}.counts"].astype(np.float32), counts), layer_name


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize(
    ("engine", "without_int8"), [("int8", False), *((name, alone) for name in ("onnx", "openvino") for alone in (False, True))]
)
def test_engines_count_as_the_reference_does(
    engine: str, without_int8: bool, timesteps: int, grid: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries leave windows that are counted to the int8 engine, or count by themselves where that is not available."""
    if without_int8:
        monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    if reason := ENGINES[engine].available("cpu"):
        pytest.skip(reason)
    graph, parameters = network(EveryOperation, grid, timesteps)
    fast, slow = open_engine(engine, graph, parameters, 10), SpikingNetwork(graph, parameters)
    for x in (grid.to(torch.uint8), torch.zeros(1, 4, 16, 8, dtype=torch.uint8), grid[:1]):  # any batch, any size, floats
        outputs, stats = fast.run(x)
        expected, reference = slow.run(x)
        same_counts(stats, reference)
        uncounted = fast.run_uncounted(x)
        for a, b, c in zip(outputs, expected, uncounted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(c, b, rtol=1e-5, atol=1e-5)
    half = grid[:1] / 2  # no counts: left to the reference
    torch.testing.assert_close(fast.run(half)[0], slow.run(half)[0])
    torch.testing.assert_close(fast.run_uncounted(half), slow.run(half)[0])


def test_a_signal_after_networks_of_openvino_were_freed_interrupts() -> None:
    if reason := ENGINES["openvino"].available("cpu"):
        pytest.skip(reason)
    code = """
import os, signal
import numpy as np
from evburst.models.bundle import Bundle
from evburst.models.export.onnx_snn import SnnOptions, spiking_model
from evburst.models.runtime.exported import open_openvino
bundle = Bundle.load("nmnist")
model = spiking_model(bundle.spiking, bundle.parameters, bundle.voxel.channels, SnnOptions()).SerializeToString()
for _ in range(2):
    open_openvino(model)({"input": np.zeros((1, bundle.voxel.channels, 48, 48), np.uint8)})
def interrupt(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupt)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    assert in_new_process(code).strip() == "interrupted"


@pytest.mark.parametrize(("kind", "layers"), [(EveryOperation, 3), (Residual, 8), (Grouped, 5)])
def test_integer_form_compares_whole_numbers_with_halves(kind: type[nn.Module], layers: int, grid: Tensor) -> None:
    graph, parameters = network(kind, grid, 2)
    sizes = spike_sizes(graph, parameters.neurons)
    assert len(driven(graph)) == layers

    def whole_steps_of(sizes: Tensor | None, step: Tensor) -> Tensor:
        assert sizes is not None
        steps = sizes.double() / step
        assert torch.allclose(steps, torch.round(steps), rtol=1e-6, atol=1e-3)
        return torch.round(steps)

    for drive in driven(graph):
        step, layer = graph.tensors[f"{drive.convs[0].name}.step"].double(), parameters.neurons[drive.relu.name]
        assert all(torch.equal(graph.tensors[f"{conv.name}.step"].double(), step) for conv in drive.convs)
        assert (whole_steps_of(layer.theta, step) % 2 == 1).all()
        assert all((whole_steps_of(sizes[name], step) >= 1).all() for name in drive.spikes)
        for conv in drive.convs:
            whole_steps_of(graph.tensors[f"{conv.name}.bias"], step)
        assert not layer.shift.any()
        assert (layer.theta * layer.burst_limits <= layer.ceiling * (1 + 1e-6)).all()
    again, parameters_again = integer_form(graph, parameters)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in graph.tensors.items())
    assert parameters_again.timesteps == parameters.timesteps


class OneLevel(Residual):
    """A residual network and a head that fits."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.classes = nn.Conv2d(24, 8, 1), nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features(x)
        return [self.out(x), self.classes(x)]


class OneGroupedLevel(Grouped):
    """Grouped convolutions, also in a head."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.classes = nn.Conv2d(32, 8, 1, groups=8), nn.Conv2d(32, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.features(x)
        return [self.out(x), self.classes(x)]


@pytest.mark.parametrize(("kind", "strides"), [(TwoLevels, (4, 2)), (OneLevel, (4,)), (OneGroupedLevel, (2,))])
def test_the_integer_form_survives_the_weights_file(
    kind: type[nn.Module], strides: tuple[int, ...], grid: Tensor, tmp_path: Path
) -> None:
    graph = trace(drawn(kind), torch.zeros(1, 4, 16, 16)).in_float16()
    spikes, parameters = calibrate(graph, record_targets(graph, grid), 1, Choice(4))
    bundle = Bundle(graph, spikes, parameters, HeadSpec("yolo", strides, 2, ("car",)), VoxelConfig(bins=2), {})
    bundle.save(tmp_path / "a.safetensors")
    loaded = Bundle.load(tmp_path / "a.safetensors")
    assert loaded.spiking.tensors.keys() == spikes.tensors.keys()
    assert all(torch.equal(loaded.spiking.tensors[name], tensor) for name, tensor in spikes.tensors.items())
    path = tmp_path / "boxes.onnx"
    size = SensorSize(19, 11)
    for score, vote_iou in ((0.4, 0.6), (0.4, 0.1), (0.4, 1), (0, 0), (0.99, 0.6)):
        boxes = BoxOptions(size, PostConfig(score=score, vote_iou=vote_iou))
        write_onnx_snn(loaded, path, SnnOptions(size=(12, 20), boxes=boxes))
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        x = grid[:1].to(torch.uint8).numpy()
        found = dict(zip(("boxes", "scores", "labels"), session.run(["boxes", "scores", "labels"], {"input": x}), strict=True))
        expected = GridDetector(loaded, boxes.post, engine="reference").detect(x, size, [0])[0][0]
        same_boxes(found, expected)
    assert len(found["boxes"]) == 0


def same_boxes(found: dict[str, Any], expected: Any) -> None:
    """The same, best first; those of equal scores in any order."""
    assert (np.diff(found["scores"]) <= 0).all()
    rows = []
    for boxes, scores, labels in (
        (found["boxes"], found["scores"], found["labels"]),
        (expected.boxes_xyxy, expected.scores, expected.labels),
    ):
        table = np.column_stack([labels, boxes, scores]).astype(np.float64)
        rows.append(table[np.lexsort(np.round(table, 2).T)])
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("names", [("box", "cls"), ("boxes", "scores"), ("labels", "boxes")])
def test_boxes_of_default_boxes(names: tuple[str, str], grid: Tensor) -> None:
    """SSD's: the maps of a network with two default boxes and two classes, decoded inside and outside."""
    nodes = [Node("input", "input", ())]
    tensors = {}
    window = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    generator = torch.Generator().manual_seed(4)
    for name, outputs in zip(names, (8, 6), strict=True):
        nodes.append(Node(name, "conv", ("input",), window))
        weight = rounded(torch.randn(outputs, 4, 1, 1, generator=generator), torch.ones(4))
        tensors |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}
    graph = Graph(nodes, [*names], tensors)
    parameters = SpikingParameters(1, {}, dict(zip(names, (torch.zeros(8), torch.zeros(6)), strict=True)))
    head = HeadSpec("ssd", (1,), 0, ("a", "b"), (((3.0, 4.0), (6.0, 2.0)),))
    size, post = SensorSize(20, 12), PostConfig(score=0.6, nms_iou=0.3, vote_iou=0.2)
    model = spiking_model(graph, parameters, 4, SnnOptions(size=(12, 20), boxes=BoxOptions(size, post)), head)
    maps, _ = SpikingNetwork(graph, parameters).run(grid[:1])
    expected = decode(maps, head, post, size, [0])[0]
    assert len(expected) > 3
    same_boxes(run(model, grid[:1]), expected)


@pytest.mark.parametrize("name", ["input", "one"])
def test_a_module_whose_name_the_file_needs_is_named(name: str) -> None:
    window = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    graph = Graph(
        [Node("x", "input", ()), Node(name, "conv", ("x",), window)],
        [name],
        {f"{name}.weight": torch.ones(1, 4, 1, 1), f"{name}.bias": torch.zeros(1)},
    )
    with pytest.raises(ModelError, match=f"needs the name '{name}' for itself: rename that module"):
        spiking_model(graph, SpikingParameters(1, {}, {name: torch.zeros(1)}), 4, SnnOptions())


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
def test_counting_equals_its_specification(dtype: type) -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1, 1, 1), (2, 3, 5, 7, 33), (1, 2, 3, 70, 40), (1, 2, 3, 0, 4)):
        counts = rng.integers(0 if dtype == np.uint8 else -4, 5, shape).astype(dtype)
        fan_out = rng.integers(0, 300, shape[2:])
        fan_out[1:-1] = fan_out[:1]  # as read by the same convolutions
        resting = rng.integers(0 if dtype == np.uint8 else -4, 5, (shape[0], *shape[2:])).astype(dtype)
        found = count_spikes(counts, resting, FanOut.of(fan_out))
        assert np.array_equal(found, count_spikes_reference(counts, resting, fan_out))


def test_command_writes_it_with_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "street.onnx"
    assert main(["--weights", "street", "--onnx-snn", str(path), "--with-boxes", "--totals"]) == 0
    assert "outputs boxes, scores, labels; NAME.spikes and NAME.synaptic_ops of every layer" in capsys.readouterr().out
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()][:4] == ["boxes", "scores", "labels", "input.spikes"]
    stated = json.loads(session.get_modelmeta().custom_metadata_map["boxes"])
    assert stated == {
        "sensor_size": [304, 240],
        "post": {"score": 0.3, "nms_iou": 0.45, "vote_iou": 0.6, "max_detections": 100},
    }
    with pytest.raises(ModelError, match="size of the grids"):
        write_onnx_snn(Bundle.load("street"), path, SnnOptions(totals=True))


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r'writing ONNX needs onnx: pip install "nir>=1.0.6" "onnx>=1.17"$'):
        write_onnx_snn(Bundle.load("street"), tmp_path / "street.onnx")


def test_an_impossible_score_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", "street", "--onnx-snn", str(tmp_path / "a.onnx"), "--with-boxes", "--score", "5"]) == 1
    assert "score must be 0 to 1, received 5.0" in capsys.readouterr().err


def test_a_classifier_is_written_with_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "nmnist.onnx"
    assert main(["--weights", "nmnist", "--onnx-snn", str(path), "--with-boxes"]) == 0
    assert "outputs scores, label" in capsys.readouterr().out
    bundle = Bundle.load("nmnist")
    graph, parameters = integer_form(bundle.spiking, bundle.parameters)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    grid = torch.poisson(torch.full(session.get_inputs()[0].shape, 0.2), generator=torch.Generator().manual_seed(2))
    maps, _ = SpikingNetwork(graph, parameters).run(grid)
    (expected,) = task_of(bundle.head).decode(maps, bundle.head, PostConfig(), SensorSize(34, 34), [0])
    assert json.loads(session.get_modelmeta().custom_metadata_map["boxes"]) == {"sensor_size": [34, 34]}
    scores, label = session.run(None, {"input": grid.numpy().astype(np.uint8)})
    assert isinstance(expected, Classification)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
    assert label.tolist() == [expected.label]


def test_command_writes_the_network_that_detect_runs_with_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory and timesteps: the windows of a recording, passed to the file as the page on export describes."""
    recording, path = ROOT / "data" / "samples" / "street_td.dat", tmp_path / "street.onnx"
    for flags, settings in ((["--memory"], {"memory": True}), (["--timesteps", "2"], {"timesteps": 2})):
        assert main(["--weights", "street", "--onnx-snn", str(path), "--with-boxes", "--overwrite", *flags]) == 0
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        inputs = {one.name: one.shape for one in session.get_inputs()}
        state = {name: np.zeros((1, shape[1], 1, 1), np.uint8) for name, shape in inputs.items() if name.endswith(".before")}
        assert len(state) == 2 * ("memory" in settings)
        if state:
            state["begins"] = np.ones((1, 1, 1, 1), np.bool_)
        outputs = [one.name for one in session.get_outputs()]
        named = capsys.readouterr().out.strip().partition("outputs ")[2].split(", ")
        assert named == outputs
        for result in evburst.Detector("street", engine="reference", max_windows=4, **settings).stream(recording):
            found = dict(zip(outputs, session.run(outputs, {"input": result.grid[None], **state}), strict=True))
            same_boxes(found, result.detections)
            state = {name: found.get(name.replace(".before", ".next"), np.zeros((1, 1, 1, 1), np.bool_)) for name in state}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("street --memory --timesteps 4", "one timestep per window"),
        ("caltech6-ssd --memory", "YOLO detector without memory only"),
        ("street --timesteps 65", "timesteps must be 1 to 64"),
        ("nmnist --with-boxes --score 0.5", "--score needs a detector"),
    ],
)
def test_settings_that_a_network_cannot_have_are_refused(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--onnx-snn", str(tmp_path / "a.onnx"), "--weights", *flags.split()]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_layers_without_integer_form_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], grid: Tensor) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.LeakyReLU(), nn.Conv2d(8, 2, 1)), grid)
    parameters = spiking(graph, grid, 1, 4)
    bundle = Bundle(graph, graph, parameters, HeadSpec("classes", (1,), 0, ("a", "b")), VoxelConfig(bins=2), {})
    bundle.save(tmp_path / "leaky.safetensors")
    assert main(["--weights", str(tmp_path / "leaky.safetensors"), "--onnx-snn", str(tmp_path / "a.onnx")]) == 0
    assert "1 of 2 layers of neurons have no integer form (from '2.relu' on)" in capsys.readouterr().err
