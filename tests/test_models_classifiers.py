"""Families of classifiers: shapes, names, and equal results of all layers on the INT8 engine and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.data.errors import CheckpointError, ConfigError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.architectures import NetworkConfig, build_network, training_stride
from evburst.models.bundle import Bundle
from evburst.models.classifiers import ClassifierNetwork, channels_of
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.graph import Runner
from evburst.models.runtime import open_engine
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork
from tests.conftest import drawn, spiking

NARROW = ["resnet18x0.06", "resnet20x0.25", "vgg11x0.06", "mobilex0.25"]


def network(architecture: str, side: int, classes: int = 3) -> ClassifierNetwork:
    config = NetworkConfig(architecture, "relu", 4, tuple("abcdefghij"[:classes]), (side, side))
    built = build_network(config)
    assert isinstance(built, ClassifierNetwork)
    return built


@pytest.mark.parametrize(("architecture", "sensor", "stride"), [
    ("resnet18x0.06", 34, 8),
    ("resnet18x0.06", 128, 32),
    ("resnet20x0.25", 34, 4),
    ("resnet34x0.06", 64, 8),
    ("vgg11x0.06", 34, 16),
    ("vgg16x0.06", 65, 64),
    ("mobilex0.25", 34, 8),
    ("mobilex0.25", 240, 32),
])  # fmt: skip
def test_the_class_map_has_the_size_of_the_stride(architecture: str, sensor: int, stride: int) -> None:
    size = SensorSize(sensor, sensor)
    assert training_stride(architecture, size) == stride
    side = -(-sensor // stride) * stride
    model = network(architecture, side).eval()
    assert model.head_spec.strides == (stride,)
    (found,) = model(torch.zeros(1, 4, side, side))
    assert found.shape == (1, 3, side // stride, side // stride)


@pytest.mark.parametrize("architecture", ["resnet19", "resnet18x9", "vgg11xwide", "mobilenet"])
def test_unknown_variants_are_rejected(architecture: str) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        network(architecture, 40)


def test_activations_other_than_relu_are_rejected() -> None:
    with pytest.raises(ConfigError, match="only ReLU"):
        build_network(NetworkConfig("resnet18", "silu", 4, ("a", "b"), (40, 40)))


def test_channels_are_multiples_of_four() -> None:
    assert [channels_of(64, width) for width in (1, 0.25, 0.1, 0.01)] == [64, 16, 8, 4]


def test_the_loss_is_cross_entropy_of_windows_with_a_label() -> None:
    model = network("mobilex0.25", 32).eval()
    x = torch.rand(3, 4, 32, 32)
    with torch.no_grad():
        logits = model(x)[0].mean((2, 3))
        parts = model.loss(x, torch.zeros(2, 4), torch.tensor([2, 0]), torch.tensor([0, 2]))
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([2, 0]), reduction="sum", label_smoothing=0.05)
    torch.testing.assert_close(parts, expected[None])


@pytest.mark.parametrize("architecture", NARROW)
@pytest.mark.parametrize("timesteps", [1, 2])
def test_the_int8_engine_runs_every_layer(architecture: str, timesteps: int) -> None:
    torch.manual_seed(0)
    model = network(architecture, 64 if architecture.startswith("vgg") else 40)
    grids = torch.randint(0, 4, (2, 4, *(2 * [64 if architecture.startswith("vgg") else 40]))).float()
    model.train()(grids)
    graph = trace(model, torch.zeros(1, 4, 128, 128)).in_float16()
    targets = record_targets(graph, grids, None)
    spiking, parameters = calibrate(graph, targets, timesteps, Choice(8), "light")
    expected, counted = SpikingNetwork(spiking, parameters).run(grids)
    engine = open_engine("int8", spiking, parameters, 10, "cpu")
    found, stats = engine.run(grids.to(torch.uint8))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert [layer.spikes.tolist() for layer in stats.layers] == [layer.spikes.tolist() for layer in counted.layers]
    assert Runner(graph)(grids)[0].shape == found[0].shape


class Linear(nn.Module):
    """A classifier that ends in a linear layer, as most of those that others have trained."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(4, 8, 3, 2, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.linear(self.conv(x).relu().mean((2, 3)))]


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_a_linear_layer_behind_a_global_pool_is_a_classifier(stride: int, grid: Tensor, tmp_path: Path) -> None:
    """Whatever stride its head states: its map is 1 x 1 for grids of every size."""
    graph, head = trace(drawn(Linear), grid), HeadSpec("classes", (stride,), 0, ("a", "b", "c"))
    parameters = spiking(graph, grid, 1, 4)
    Bundle(graph, graph, parameters, head, VoxelConfig(bins=2), {}).save(tmp_path / "a.safetensors")
    loaded = Bundle.load(tmp_path / "a.safetensors")
    ann = GridDetector(loaded, PostConfig(), ann=True)
    size = SensorSize(grid.shape[3], grid.shape[2])
    found = ann.detect(grid.to(torch.uint8).numpy(), size, [0] * len(grid))[0]
    logits = Runner(loaded.graph)(grid)[0].mean((2, 3))
    for one, expected in zip(found, logits.softmax(1), strict=True):
        np.testing.assert_allclose(one.scores, expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HeadSpec("classes", (1,), 0, ("a", "b")), r"class map of stride 1 is \(3, 1, 1\)"),
        (HeadSpec("yolo", (1,), 1, ("a", "b", "c")), "1 outputs, but a head with 1 strides has 2"),
    ],
)
def test_a_network_that_could_not_be_read_again_is_not_saved(
    head: HeadSpec, message: str, grid: Tensor, tmp_path: Path
) -> None:
    graph = trace(drawn(Linear), grid)
    bundle = Bundle(graph, graph, spiking(graph, grid, 1, 4), head, VoxelConfig(bins=2), {})
    with pytest.raises(CheckpointError, match=message):
        bundle.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
