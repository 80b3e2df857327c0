"""YOLO of two families, and with other activations: trained, traced, spiking as a whole; what cannot spike is named."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from evburst.data.errors import ConversionError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.architectures import NetworkConfig, build_network
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.graph import Graph, Runner
from evburst.models.initialise import start_from
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.network import SpikingNetwork
from tests.conftest import spiking
from tests.step_by_step import StepByStep, operations_by_force


def network(architecture: str, activation: str = "relu") -> nn.Module:
    torch.manual_seed(0)
    return build_network(NetworkConfig(architecture, activation, 10, ("a", "b"), (96, 64)))  # type: ignore[return-value]


@cache
def measured(architecture: str, activation: str = "relu") -> tuple[nn.Module, Tensor, Graph]:
    """The network with the batch-norm statistics of some grids, two of these grids, and its graph: shared, not to be changed.

    A gain of a half and a bias of one: with 1 and 0 random layers amplify every error on its way, also that of float32.
    """
    net = network(architecture, activation)
    x = torch.poisson(torch.full((8, 10, 64, 96), 0.3), generator=torch.Generator().manual_seed(1))
    for layer in net.train().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            nn.init.constant_(layer.weight, 0.5)
            nn.init.constant_(layer.bias, 1.0)
    with torch.no_grad():
        net(x)
    return net.eval(), x[:2], trace(net, x[:1])


def apart(maps: list[Tensor], others: list[Tensor]) -> float:
    """Their distance, as a share of the first ones' norm."""
    return sum(float((a - b).norm()) for a, b in zip(maps, others, strict=True)) / sum(float(a.norm()) for a in maps)


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [pytest.param("yolov9t", "relu", marks=pytest.mark.slow), ("yolov8p", "leaky_relu"), ("yolov8p", "relu6")],
)
def test_the_whole_network_spikes_and_approaches_the_ann(architecture: str, activation: str) -> None:
    net, x, graph = measured(architecture, activation)
    ann, targets = Runner(graph)(x[:1]), record_targets(graph, x)
    with torch.no_grad():
        assert apart(ann, net(x[:1])) < 1e-3
    errors = []
    for timesteps in (1, 8):
        corrected, parameters = calibrate(graph, targets, timesteps, Choice(8), "none")
        snn, stats = SpikingNetwork(corrected, parameters).run(x[:1])
        errors.append(apart(ann, snn))
        relus = {node.name for node in graph.nodes if node.op == "relu"}
        assert {layer.name for layer in stats.layers if layer.kind == "neuron" and layer.spikes.sum() > 0} == relus
    assert errors[1] < 0.02
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.slow
def test_yolov9_by_force() -> None:
    """Spikes and operations, one timestep at a time: ELAN blocks, merged RepConv, AConv's average pools, SPP's max-pools."""
    _, x, graph = measured("yolov9t")
    assert not [node for node in graph.nodes if node.op == "add" and node.name.endswith("cv1.add")]  # RepConv is one conv
    parameters = spiking(graph, x, 2, 4)
    slow = StepByStep(graph, parameters)
    expected = slow.run(x)
    outputs, stats = SpikingNetwork(graph, parameters).run(x)
    for mine, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    counted = sum(torch.from_numpy(layer.synaptic_ops) for layer in stats.layers)
    assert counted.tolist() == operations_by_force(slow, len(x)).tolist()


def test_weights_of_yolov9_are_stored_detect_and_can_be_fine_tuned(tmp_path: object) -> None:
    net, x, graph = measured("yolov9t")
    graph = graph.in_float16()
    bundle = Bundle(graph, graph, spiking(graph, x, 1, 8), net.head_spec, VoxelConfig(bins=5), {})  # type: ignore[arg-type]
    bundle.save(tmp_path / "nine.safetensors")  # type: ignore[operator]
    detector = GridDetector(Bundle.load(tmp_path / "nine.safetensors"), PostConfig(score=0.001))  # type: ignore[operator]
    found, stats = detector.detect(x.to(torch.uint8).numpy(), SensorSize(96, 64), [0, 0])
    assert stats is not None
    assert len(found[0]) > 0
    other = network("yolov9t")
    nn.init.normal_(other.net.model[4].cv2[0].m[0].cv1.conv2.conv.weight)  # a branch of a RepConv: merged into the other
    start_from(other, tmp_path / "nine.safetensors", x)  # type: ignore[operator]
    with torch.no_grad():
        assert apart(Runner(graph)(x), other.eval()(x)) < 0.03


def test_stored_neurons_keep_their_activation(tmp_path: object) -> None:
    net, x, graph = measured("yolov8p", "leaky_relu")
    bundle = Bundle(graph, graph, spiking(graph, x, 1, 8), net.head_spec, VoxelConfig(bins=5), {})  # type: ignore[arg-type]
    bundle.save(tmp_path / "leaky.safetensors")  # type: ignore[operator]
    neurons = Bundle.load(tmp_path / "leaky.safetensors").parameters.neurons  # type: ignore[operator]
    assert {layer.negative_slope for layer in neurons.values()} == {0.1}


def test_yolov9_learns() -> None:
    net = network("yolov9t").train()
    x = torch.zeros(2, 10, 64, 96)
    x[0, :, 10:40, 30:80] = 3.0
    boxes, labels, index = torch.tensor([[30.0, 10, 80, 40]]), torch.tensor([1]), torch.tensor([0])
    optimizer = torch.optim.SGD(net.parameters(), 0.002, momentum=0.9)
    losses = []
    for _ in range(16):
        loss = net.loss(x, boxes, labels, index).sum()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("architecture", "activation", "message"),
    [
        ("yolo11n", "relu", r"'net\.model\.10\.m\.0\.attn'.*attention has no spiking equivalent"),
        ("yolo12n", "relu", r"'net\.model\.6\.m\.0\.0\.attn'.*attention has no spiking equivalent"),
        ("yolov8p", "silu", r"'net\.model\.0\.act'.*silu.*train\.py --relu-from"),
        ("yolov10n", "relu", r"'net\.model\.6\.cv1\.conv'.*current of 'net\.model\.5\.cv2\.conv'"),
    ],
)
def test_networks_that_cannot_spike_say_which_module(architecture: str, activation: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        trace(network(architecture, activation), torch.zeros(1, 10, 64, 64))
