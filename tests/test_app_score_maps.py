"""Scores as conversion calibrates them: of boxes that are correct more often than their scores state, on all kinds of data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evburst.app.convert.score_maps import takes_score_maps, with_score_maps
from evburst.app.convert.scores import predict_windows
from evburst.data.boxes import Detections
from evburst.data.datasets import DatasetSpec, LabelledWindow
from evburst.data.events import EventWindow, SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.eval.score_maps import ScoreMap
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import HeadSpec, PostConfig
from evburst.models.graph import Graph
from evburst.models.spiking.convert.fold import trace
from tests.conftest import random_events, spiking

CLASSES = ("car", "pedestrian")
SIZE = SensorSize(24, 24)
WINDOWS = 80
TRUE = ScoreMap(1.5, 0.8)


class Boxes(nn.Module):
    """Boxes of one cell of stride 4, so that none overlaps another one, and widely spread scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 5, 4, 2)
        self.box, self.cls = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        nn.init.normal_(self.cls.weight, 0, 3.0)
        nn.init.zeros_(self.box.weight)
        nn.init.zeros_(self.box.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(x))
        return [self.box(x), self.cls(x)]


class Windows:
    """Random events; labels are those boxes of a network that are correct."""

    def __init__(self, labels: list[Detections] | None = None, classes: tuple[str, ...] = CLASSES) -> None:
        self.spec: Any = DatasetSpec("drawn", classes, SIZE, "drive", {})
        self._labels = labels or [Detections.empty(50_000)] * WINDOWS

    def __len__(self) -> int:
        return WINDOWS

    def __getitem__(self, i: int) -> LabelledWindow:
        events = random_events(400, SIZE, 50_000, seed=i)
        return LabelledWindow(EventWindow(0, 50_000, events), self._labels[i], f"picture {i}")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    graph = trace(Boxes().eval(), torch.zeros(1, 4, 24, 24)).in_float16()
    grids = torch.poisson(torch.full((2, 4, 24, 24), 0.2))
    return Bundle(graph, graph, spiking(graph, grids, 1, 8), HeadSpec("yolo", (4,), 2, CLASSES), VoxelConfig(bins=2), {})


def found(bundle: Bundle, ann: bool = False) -> list[Any]:
    return predict_windows(GridDetector(bundle, PostConfig(score=0.001), ann=ann), Windows()).predictions


@pytest.fixture(scope="module")
def windows(bundle: Bundle) -> Windows:
    """Labels at which cars are correct as TRUE states; no pedestrian is."""
    rng, labels = np.random.default_rng(0), []
    for boxes in found(bundle):
        kept = (boxes.labels == 0) & (rng.random(len(boxes)) < TRUE(boxes.scores))
        labels.append(Detections(boxes.boxes_xyxy[kept], boxes.scores[kept], boxes.labels[kept], boxes.t_us))
    return Windows(labels)


def test_scores_are_mapped_to_the_fraction_that_is_correct(bundle: Bundle, windows: Windows) -> None:
    assert takes_score_maps(bundle)
    mapped, record = with_score_maps(bundle, windows)
    assert list(record) == list(CLASSES)
    assert record["car"]["scale"] == pytest.approx(TRUE.scale, rel=0.15)
    assert record["car"]["bias"] == pytest.approx(TRUE.bias, abs=0.2)
    assert record["car"]["ece_after"] < record["car"]["ece_before"] / 2
    assert record["car"]["boxes"] > 500
    assert record["pedestrian"]["scale"] == 1, "none is correct: too few"
    fitted = ScoreMap(record["car"]["scale"], record["car"]["bias"])
    for before, after in zip(found(bundle), found(mapped), strict=True):
        for k, wanted in ((0, fitted), (1, ScoreMap())):
            a, b = (boxes.scores[boxes.labels == k][:20] for boxes in (before, after))
            np.testing.assert_allclose(b, wanted(a), atol=2e-4)


def test_a_second_calibration_finds_little_to_do(bundle: Bundle, windows: Windows) -> None:
    mapped, _ = with_score_maps(bundle, windows)
    _, again = with_score_maps(mapped, windows)
    assert again["car"]["scale"] == pytest.approx(1, abs=0.05)
    assert again["car"]["bias"] == pytest.approx(0, abs=0.05)


def test_the_ann_has_the_same_maps(bundle: Bundle, windows: Windows) -> None:
    mapped, record = with_score_maps(bundle, windows)
    fitted = ScoreMap(record["car"]["scale"], record["car"]["bias"])
    for before, after in zip(found(bundle, ann=True), found(mapped, ann=True), strict=True):
        a, b = (boxes.scores[boxes.labels == 0][:20] for boxes in (before, after))
        np.testing.assert_allclose(b, fitted(a), atol=5e-3)


def test_without_labels_enough_the_weights_stay(bundle: Bundle) -> None:
    same, record = with_score_maps(bundle, Windows())
    assert {row["scale"] for row in record.values()} == {1}
    assert same.parameters.readout_shift.keys() == bundle.parameters.readout_shift.keys()
    for before, after in ((bundle.graph, same.graph), (bundle.spiking, same.spiking)):
        assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    for name, shift in bundle.parameters.readout_shift.items():
        assert torch.equal(shift, same.parameters.readout_shift[name])


def test_without_boxes_there_is_no_calibration_error(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    silent = [
        Graph(g.nodes, g.outputs, {**g.tensors, "cls.bias": g.tensors["cls.bias"] - 90}) for g in (bundle.graph, bundle.spiking)
    ]
    _, record = with_score_maps(replace(bundle, graph=silent[0], spiking=silent[1]), Windows())
    assert record["car"]["ece_before"] is None
    assert "scores of car: scale 1.000, bias +0.000; no box has a score of 0.1 or more" in caplog.text


def test_data_of_other_classes_fit_nothing(bundle: Bundle) -> None:
    same, record = with_score_maps(bundle, Windows(classes=("car", "bus")))
    assert same is bundle
    assert record == {}


def test_other_heads_take_no_maps(bundle: Bundle) -> None:
    assert not takes_score_maps(replace(bundle, head=replace(bundle.head, kind="ssd")))
    assert not takes_score_maps(replace(bundle, head=replace(bundle.head, kind="classes")))
    relu = next(node.name for node in bundle.graph.nodes if node.op == "relu")
    spikes = Graph(bundle.graph.nodes, [bundle.graph.outputs[0], relu], bundle.graph.tensors)
    assert not takes_score_maps(replace(bundle, graph=spikes))
