"""Fine-tuning from converted weights: the unfolded network computes what the folded one did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evburst.data.errors import CheckpointError
from evburst.models.architectures import NetworkConfig, build_network
from evburst.models.bundle import Bundle
from evburst.models.graph import Runner
from evburst.models.initialise import start_from


def test_bundled_weights_unfold_to_the_network_they_came_from(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    torch.manual_seed(0)
    x = torch.poisson(torch.full((2, 10, 64, 96), 0.2))
    network = build_network(NetworkConfig("yolov8n", "relu", 10, ("car", "pedestrian"), (96, 64)))
    assert isinstance(network, torch.nn.Module)
    start_from(network, "street", x)
    assert "has nothing for 34 % of the parameters, which start at random: net.model.19.conv" in caplog.text
    expected = Runner(Bundle.load("street").graph)(x)
    with torch.no_grad():
        for train in (False, True):  # batch statistics are the running ones, so training starts where detection left off
            maps = network.train(train)(x)
            used = [maps[k] for k in (0, 1, 3, 4)]  # conversion left the coarsest of three scales out
            for mine, theirs in zip(used, expected, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


def test_merged_convolutions_of_another_architecture_are_passed_over(tmp_path: Path) -> None:
    bundle = Bundle.load("street")
    next(node for node in bundle.graph.nodes if node.op == "conv").attrs["merged"] = ["net.model.99.conv", "head"]
    bundle.save(tmp_path / "merged.safetensors")
    network = build_network(NetworkConfig("ssd-vgg11", "relu", 10, ("car", "pedestrian"), (128, 64)))
    assert isinstance(network, torch.nn.Module)
    with pytest.raises(CheckpointError, match="another architecture"):
        start_from(network, tmp_path / "merged.safetensors", torch.zeros(1, 10, 64, 128))


def test_a_batch_that_does_not_fit_leaves_no_hooks_behind() -> None:
    network = build_network(NetworkConfig("yolov8n", "relu", 10, ("car", "pedestrian"), (96, 64)))
    assert isinstance(network, torch.nn.Module)
    with pytest.raises(RuntimeError, match="expected input"):
        start_from(network, "street", torch.zeros(1, 3, 64, 96))
    assert network.training
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        network.eval()(torch.ones(1, 10, 64, 96))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    network = build_network(NetworkConfig("ssd-vgg11", "relu", 10, ("car", "pedestrian"), (128, 64)))
    assert isinstance(network, torch.nn.Module)
    with pytest.raises(CheckpointError, match="another architecture"):
        start_from(network, "street", torch.zeros(1, 10, 64, 128))
    with pytest.raises(CheckpointError, match="no such"):
        start_from(network, tmp_path / "none.safetensors", torch.zeros(1, 10, 64, 128))
