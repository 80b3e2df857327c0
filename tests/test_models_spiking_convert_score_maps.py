"""Maps folded into the weights: the scores of every engine and export are the mapped ones, and no spike changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.graph import Graph, Runner
from evburst.models.runtime import ENGINES, open_engine
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.score_maps import are_convolutions, fold_score_maps
from evburst.models.spiking.network import SpikingNetwork, spike_sizes
from evburst.models.spiking.rounding import input_sizes, to_int8
from evburst.models.tasks import task_of
from tests.conftest import EveryOperation, drawn

HEAD = HeadSpec("yolo", (4, 2), 2, ("car", "pedestrian"))
MAPS = (1.4, 0.74), (0.95, 0.7)
SIZE = SensorSize(20, 12)


class TwoLevels(EveryOperation):
    """Every operation, and a head of strides 4 and 2 that fits: boxes of 4 x 2 bins, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.out_a, self.out_b = nn.Conv2d(24, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.cls_a, self.cls_b = nn.Conv2d(24, 2, 1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        a, b = self.features(x)
        return [self.out_a(a), self.out_b(b), self.cls_a(a), self.cls_b(b)]


@pytest.fixture(params=[1, 3])
def bundle(grid: Tensor, request: pytest.FixtureRequest) -> Bundle:
    graph = trace(drawn(TwoLevels), torch.zeros(1, 4, 16, 16)).in_float16()
    spikes, parameters = calibrate(graph, record_targets(graph, grid), request.param, Choice(4))
    return Bundle(graph, spikes, parameters, HEAD, VoxelConfig(bins=2), {})


def class_maps(bundle: Bundle) -> list[str]:
    return list(task_of(HEAD).independent_logits(bundle.graph.outputs, HEAD))


def folded(bundle: Bundle, *maps: tuple[float, float]) -> Bundle:
    scale, bias = torch.tensor(maps).T
    parts = fold_score_maps(bundle.graph, bundle.spiking, bundle.parameters, class_maps(bundle), scale, bias)
    return replace(bundle, graph=parts[0], spiking=parts[1], parameters=parts[2])


def mapped(outputs: list[Tensor]) -> list[Tensor]:
    scale, bias = torch.tensor(MAPS).T
    return [*outputs[:2], *(scale[:, None, None] * logits + bias[:, None, None] for logits in outputs[2:])]


@pytest.mark.parametrize("engine", ["reference", "int8", "onnx"])
def test_folding_equals_mapping_the_logits(bundle: Bundle, engine: str, grid: Tensor) -> None:
    if reason := ENGINES[engine].available("cpu"):
        pytest.skip(reason)
    after = folded(bundle, *MAPS)
    runs = [open_engine(engine, b.spiking, b.parameters, 10).run(grid.to(torch.uint8)) for b in (bundle, after)]
    (outputs, stats), (found, stats_after) = runs
    for wanted, value in zip(mapped(outputs), found, strict=True):
        torch.testing.assert_close(value, wanted, rtol=2e-5, atol=2e-5)
    assert all(torch.equal(a, b) for a, b in zip(outputs[:2], found[:2], strict=True)), "boxes are untouched"
    for a, b in zip(stats.layers, stats_after.layers, strict=True):
        assert a.spikes.tolist() == b.spikes.tolist()
        assert a.synaptic_ops.tolist() == b.synaptic_ops.tolist()


def test_integers_of_the_weights_stay(bundle: Bundle) -> None:
    after, thetas = folded(bundle, *MAPS), spike_sizes(bundle.spiking, bundle.parameters.neurons)
    for name in class_maps(bundle):
        node = next(node for node in bundle.spiking.nodes if node.name == name)
        values = input_sizes(bundle.spiking, node, thetas)
        assert values is not None
        first, second = (to_int8(b.spiking.tensors[f"{name}.weight"], values) for b in (bundle, after))
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(second[1], first[1] * torch.tensor(MAPS)[:, 0], rtol=2e-5, atol=0)


def test_only_the_class_read_outs_change(bundle: Bundle) -> None:
    after = folded(bundle, *MAPS)
    own = {f"{name}.{part}" for name in class_maps(bundle) for part in ("weight", "bias")}
    for before, now in ((bundle.graph, after.graph), (bundle.spiking, after.spiking)):
        assert before.tensors.keys() == now.tensors.keys()
        changed = {name for name, tensor in before.tensors.items() if not torch.equal(tensor, now.tensors[name])}
        assert changed == own
    shifts = {k for k, v in bundle.parameters.readout_shift.items() if not torch.equal(v, after.parameters.readout_shift[k])}
    assert shifts <= set(class_maps(bundle))
    assert after.parameters.neurons == bundle.parameters.neurons


def test_a_class_without_a_map_stays_bit_identical(bundle: Bundle, grid: Tensor) -> None:
    same, one = folded(bundle, (1.0, 0.0), (1.0, 0.0)), folded(bundle, (1.0, 0.0), MAPS[1])
    outputs = [SpikingNetwork(b.spiking, b.parameters).run(grid)[0] for b in (bundle, same, one)]
    for before, identical, partly in zip(*outputs, strict=True):
        assert torch.equal(before, identical)
        assert torch.equal(before[:, 0], partly[:, 0])
    for graphs in ((bundle.graph, same.graph), (bundle.spiking, same.spiking)):
        assert all(torch.equal(graphs[0].tensors[name], graphs[1].tensors[name]) for name in graphs[0].tensors)


def test_the_ann_has_the_map_up_to_float16(bundle: Bundle, grid: Tensor) -> None:
    after = folded(bundle, *MAPS)
    for wanted, found in zip(mapped(Runner(bundle.graph)(grid)), Runner(after.graph)(grid), strict=True):
        assert (wanted - found).abs().max() < 2e-3 * wanted.abs().max()
    assert all(torch.equal(tensor, after.graph.in_float16().tensors[name]) for name, tensor in after.graph.tensors.items())


def saved(bundle: Bundle, path: Path) -> Bundle:
    bundle.save(path)
    return Bundle.load(path)


@pytest.mark.parametrize("engine", ["reference", "int8"])
def test_maps_survive_the_weights_file_again_and_again(bundle: Bundle, engine: str, grid: Tensor, tmp_path: Path) -> None:
    if reason := ENGINES[engine].available("cpu"):
        pytest.skip(reason)

    def outputs(bundle: Bundle) -> list[Tensor]:
        return open_engine(engine, bundle.spiking, bundle.parameters, 10).run(grid.to(torch.uint8))[0]

    expected, now = outputs(bundle), bundle
    for step in range(3):  # scales above 1 of a loaded network: its steps must grow with its weights
        mapped_now = folded(now, *MAPS)
        now = saved(mapped_now, tmp_path / f"{step}.safetensors")
        for graphs in ((mapped_now.graph, now.graph), (mapped_now.spiking, now.spiking)):
            assert all(torch.equal(graphs[0].tensors[name], graphs[1].tensors[name]) for name in graphs[0].tensors)
        assert all(torch.equal(a, b) for a, b in zip(outputs(mapped_now), outputs(now), strict=True))
        expected = mapped(expected)
        for wanted, found in zip(expected, outputs(now), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ann", [False, True])
def test_boxes_keep_their_order_and_places(bundle: Bundle, grid: Tensor, ann: bool) -> None:
    post, counts = PostConfig(score=0.0, vote_iou=1, max_detections=1000), grid.to(torch.uint8).numpy()
    windows = [GridDetector(b, post, ann=ann).detect(counts, SIZE, [0] * len(grid))[0] for b in (bundle, folded(bundle, *MAPS))]
    for before, after in zip(*windows, strict=True):
        for k in range(2):
            a, b = (found.boxes_xyxy[found.labels == k] for found in (before, after))
            assert len(a) > 0
            if not ann:  # float16 can exchange boxes of nearly equal scores
                assert np.array_equal(a, b)


def test_softmaxes_have_no_maps_and_read_outs_must_be_convolutions(bundle: Bundle) -> None:
    outputs = bundle.graph.outputs
    assert class_maps(bundle) == outputs[2:]
    for head in (replace(HEAD, kind="ssd"), replace(HEAD, kind="classes")):
        assert not task_of(head).independent_logits(outputs, head)
    assert are_convolutions(bundle.graph, outputs)
    inner = next(node.name for node in bundle.graph.nodes if node.op == "conv" and node.name not in outputs)
    relu = next(node.name for node in bundle.graph.nodes if node.op == "relu")
    for name in (inner, relu):
        assert not are_convolutions(Graph(bundle.graph.nodes, [name], bundle.graph.tensors), [name])
