"""Scales that a detector does not use are left out without a change in its boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.data.events import SensorSize
from evburst.models.detectors.postprocess import SCORED, HeadSpec, decode
from evburst.models.graph import Runner
from evburst.models.layout import input_stride
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.scales import parameters_of, without_unused_scales
from evburst.models.spiking.network import SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer

HEAD = HeadSpec("yolo", (2, 4), 2, ("car", "pedestrian"))


class TwoScales(nn.Module):
    """Maps of strides 2 and 4; the finer one reads features of the coarser one."""

    def __init__(self, coarse_bias: float) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.only_coarse = nn.Conv2d(6, 6, 3, 1, 1)
        self.boxes, self.classes = (nn.ModuleList(nn.Conv2d(6, n, 1) for _ in range(2)) for n in (8, 2))
        nn.init.constant_(self.classes[1].bias, coarse_bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x).relu()
        coarse = self.coarse(fine).relu()
        features = [fine + nn.functional.interpolate(coarse, scale_factor=2), self.only_coarse(coarse).relu()]
        return [
            layer(feature) for layers in (self.boxes, self.classes) for layer, feature in zip(layers, features, strict=True)
        ]


@pytest.fixture
def grids() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).poisson(0.5, (3, 4, 16, 24)).astype(np.float32))


def test_a_silent_scale_is_left_out(grids: Tensor) -> None:
    torch.manual_seed(0)
    graph = trace(TwoScales(-30.0), grids)
    smaller, head = without_unused_scales(graph, HEAD, grids)
    assert head.strides == (2,)
    assert input_stride(smaller, head) == input_stride(graph, HEAD) == 4, "features of stride 4 are still needed"
    assert not any("only_coarse" in name for name in smaller.tensors)
    assert any(name.startswith("coarse") for name in smaller.tensors)
    neurons = {node.name: NeuronLayer(torch.ones(6), torch.zeros(6), 4) for node in graph.nodes if node.op == "relu"}
    own = parameters_of(smaller, SpikingParameters(1, neurons, {name: torch.zeros(1) for name in graph.outputs}))
    assert set(own.neurons) == {node.name for node in smaller.nodes if node.op == "relu"} < set(neurons)
    assert list(own.readout_shift) == smaller.outputs
    size = SensorSize(24, 16)
    expected, found = (decode(Runner(g)(grids), h, SCORED, size, [0, 1, 2]) for g, h in ((graph, HEAD), (smaller, head)))
    for a, b in zip(expected, found, strict=True):
        assert len(a) > 0
        assert np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        assert np.array_equal(a.scores, b.scores)


def test_scales_that_are_used_stay(grids: Tensor) -> None:
    graph = trace(TwoScales(0.0), grids)
    assert without_unused_scales(graph, HEAD, grids) == (graph, HEAD)
    other = HeadSpec("ssd", (2, 4), 0, ("car",), (((8.0, 8.0),),) * 2)
    assert without_unused_scales(graph, other, grids) == (graph, other)
