"""SSD: its own decoding against torchvision's, its loss, and that both backbones become spiking networks as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize
from evburst.models.architectures import NetworkConfig, build_network
from evburst.models.detectors.postprocess import PostConfig, decode
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.report import conversion_report
from evburst.models.spiking.network import SpikingNetwork
from tests.conftest import spiking
from tests.step_by_step import StepByStep, operations_by_force

BACKBONES = ("ssd-resnet18", pytest.param("ssd-vgg11", marks=pytest.mark.slow))


def network(architecture: str = "ssd-resnet18") -> torch.nn.Module:
    torch.manual_seed(0)
    config = NetworkConfig(architecture, "relu", 10, ("a", "b"), (128, 64))
    return build_network(config)  # type: ignore[return-value]


@pytest.mark.parametrize("architecture", BACKBONES)
def test_traced_graph_computes_what_the_network_computes(architecture: str) -> None:
    net = network(architecture).eval()
    x = torch.randint(0, 5, (2, 10, 64, 128)).float()
    with torch.no_grad():
        expected = net(x)
    for mine, theirs in zip(Runner(trace(net, x[:1]))(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.fixture(params=BACKBONES, scope="module")
def measured(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, Graph]:
    """A network with the batch-norm statistics of some grids, two of these grids, and its graph: shared, not to be changed."""
    net = network(request.param).train()
    x = torch.poisson(torch.full((8, 10, 64, 128), 0.3), generator=torch.Generator().manual_seed(1))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        net(x)
    return net.eval(), x[:2], trace(net, x[:1])


def test_spikes_approach_the_network(measured: tuple[nn.Module, torch.Tensor, Graph]) -> None:
    """Every ReLU spikes, those behind a residual sum too, and at T = 32 the outputs are within a few percent."""
    _, x, graph = measured
    ann, targets = Runner(graph)(x[:1]), record_targets(graph, x)
    errors = []
    for timesteps in (4, 32):
        corrected, parameters = calibrate(graph, targets, timesteps, Choice(8), "none")
        snn, stats = SpikingNetwork(corrected, parameters).run(x[:1])
        errors.append(sum(float((a - b).norm()) for a, b in zip(ann, snn, strict=True)) / sum(float(a.norm()) for a in ann))
        relus = {node.name for node in graph.nodes if node.op == "relu"}
        assert {layer.name for layer in stats.layers if layer.kind == "neuron" and layer.spikes.sum() > 0} == relus
    assert errors[1] < 0.08
    assert errors[1] < 0.3 * errors[0]


def test_residual_sums_are_calibrated_at_every_level(measured: tuple[nn.Module, torch.Tensor, Graph]) -> None:
    _, x, graph = measured
    ann, targets = Runner(graph)(x), record_targets(graph, x)

    def error(level: str) -> float:
        corrected, parameters = calibrate(graph, targets, 1, Choice(8), level)
        report = conversion_report(graph, corrected, parameters, x)
        assert {layer.name for layer in report.layers} == parameters.neurons.keys() | set(graph.outputs)
        snn, _ = SpikingNetwork(corrected, parameters).run(x)
        return sum(float(((a - b) ** 2).mean()) for a, b in zip(ann, snn, strict=True))

    assert error("light") < error("none")


def test_energy_of_a_whole_network_by_force(measured: tuple[nn.Module, torch.Tensor, Graph]) -> None:
    """A shortcut's spikes are counted for the neuron they reach, beside the convolutions."""
    _, x, graph = measured
    parameters = spiking(graph, x, 2, 4)
    slow = StepByStep(graph, parameters)
    expected = slow.run(x)
    outputs, stats = SpikingNetwork(graph, parameters).run(x)
    for mine, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    counted = sum(torch.from_numpy(layer.synaptic_ops) for layer in stats.layers)
    assert counted.tolist() == operations_by_force(slow, len(x)).tolist()


def test_decoded_boxes_are_those_of_torchvision() -> None:
    net = network().eval()
    x = torch.randint(0, 5, (1, 10, 64, 128)).float()
    with torch.no_grad():
        maps, features = net(x), net._features(x)  # private, and `_ssd`: what torchvision's own decoding starts from
        outputs = net.head(features)
    ssd = net._ssd[0]
    from torchvision.models.detection.image_list import ImageList

    anchors = ssd.anchor_generator(ImageList(x, [(64, 128)]), features)[0]
    boxes = ssd.box_coder.decode_single(outputs["bbox_regression"][0], anchors)
    scores = outputs["cls_logits"][0].softmax(-1)[:, 1:]
    found = decode(maps, net.head_spec, PostConfig(score=0.0, nms_iou=1.0, max_detections=10_000), SensorSize(128, 64), [7])[0]
    assert found.t_us == 7
    clipped = boxes.clamp(min=0).minimum(torch.tensor([128.0, 64, 128, 64])).numpy()
    solid = ((clipped[:, 2:] - clipped[:, :2]) > 0).all(1)
    theirs = np.sort(scores.numpy()[solid].reshape(-1))[::-1][: len(found)]
    np.testing.assert_allclose(found.scores, theirs, rtol=1e-4)
    best = np.unravel_index(np.argmax(scores.numpy() * solid[:, None]), scores.shape)
    np.testing.assert_allclose(found.boxes_xyxy[0], clipped[best[0]], atol=1e-3)
    assert found.labels[0] == best[1]


@pytest.mark.parametrize("architecture", BACKBONES)
def test_loss_falls_when_trained_on_one_image(architecture: str) -> None:
    net = network(architecture).train()
    x = torch.zeros(2, 10, 64, 128)
    x[0, :, 10:40, 30:80] = 3.0
    boxes, labels, index = torch.tensor([[30.0, 10, 80, 40]]), torch.tensor([1]), torch.tensor([0])
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = net.loss(x, boxes, labels, index).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("architecture", "activation", "message"),
    [("ssd-vgg99", "relu", "backbone"), ("ssd-vgg11", "silu", "ReLU only"), ("frcnn", "relu", "no known family"),
     ("yolov8z", "relu", "scale"), ("yolov99n", "relu", "definition"), ("yolov9n", "relu", "definition"),
     ("yolov8n", "gelu", "activation")],
)  # fmt: skip
def test_unknown_networks_are_named(architecture: str, activation: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(NetworkConfig(architecture, activation))
