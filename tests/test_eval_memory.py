"""The memory-traffic model, worked out by hand; and the geometry it reads, against the fan-out maps."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.data.stats import ConvMemory, LayerStats, MemoryGeometry, SpikeStats
from evburst.eval.energy import COST_TABLES, EnergyTotals
from evburst.eval.memory import QUEUE_WORDS, access_pj, ann_memory, memory_figures, qnn_macs, snn_memory
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.cost import fan_out_maps, memory_geometry
from tests.conftest import EveryOperation, FurtherOperations, drawn

FP32 = COST_TABLES["fp32"]
GEOMETRY = MemoryGeometry(
    (ConvMemory("a", 200, inputs=16, weights=18, outputs=32, biases=2, kept_macs=200), ConvMemory("b", 64, 32, 2, 16, 1, 64)),
    {"input": {"a": 90.0}, "relu": {"b": 32.0}},
)


def e(words: int) -> float:
    return 1.09e-5 * words * 32 + 13.2


def test_ann_by_hand() -> None:
    report = ann_memory(GEOMETRY, FP32)
    assert report.operations_pj == pytest.approx(264 * 4.6 + 48 * 0.9)
    assert report.weights_pj == pytest.approx(200 * e(18) + 64 * e(2) + 32 * e(2) + 16 * e(1))
    assert report.signals_pj == pytest.approx(200 * e(16) + 64 * e(32) + 32 * e(32) + 16 * e(16))
    assert report.total_pj == pytest.approx(report.operations_pj + report.weights_pj + report.signals_pj)


def test_snn_by_hand() -> None:
    events = LayerStats("input", "input", 0, 2, np.array([10.0]), np.array([60.0]), np.array([60.0]))
    hidden = LayerStats("relu", "neuron", 32, 2, np.array([12.0]), np.array([12.0]), np.array([12.0]))
    report = snn_memory(SpikeStats((events, hidden), {"a": 200, "b": 64}), GEOMETRY, FP32, 2)
    updates = 2 * (32 + 16)
    assert report.operations_pj == pytest.approx((60 + 12 + 12 + updates) * 0.9)
    assert report.weights_pj == pytest.approx(60 * e(18) + 12 * e(2) + 64 * e(2) + 32 * e(1))
    assert report.potentials_pj == pytest.approx(2 * (60 * e(32) + 12 * e(16) + 64 * e(32) + 32 * e(16)))
    assert report.signals_pj == pytest.approx(2 * (10 + 12) * e(QUEUE_WORDS))


def test_timesteps_that_differ_between_windows_count_by_their_mean() -> None:
    """As in adaptive runs; a network of more than one timestep in the mean has no quantised counterpart."""
    hidden = LayerStats("relu", "neuron", 32, 1, np.array([12.0]), np.array([12.0]), np.array([12.0]))
    stats = SpikeStats((hidden,), {"a": 200, "b": 64})
    one, mean, four = (memory_figures(stats, None, GEOMETRY, "fp32", t) for t in (1, 2.5, 4))
    assert mean["total_pj"] - one["total_pj"] == pytest.approx((four["total_pj"] - one["total_pj"]) / 2)
    assert [set(found["alternatives"]) for found in (one, mean)] == [{"ann", "qnn"}, {"ann"}]
    assert memory_figures(stats, None, GEOMETRY, "fp32") == one


def test_networks_that_skip_zeros_by_hand() -> None:
    """An input that is zero is not read, nor its weights; outputs are written as before."""
    report = ann_memory(GEOMETRY, FP32, {"a": 50.0, "b": 16.0})
    assert report.operations_pj == pytest.approx(66 * 4.6 + 48 * 0.9)
    assert report.weights_pj == pytest.approx(50 * e(18) + 16 * e(2) + 32 * e(2) + 16 * e(1))
    assert report.signals_pj == pytest.approx(50 * e(16) + 16 * e(32) + 32 * e(32) + 16 * e(16))
    assert ann_memory(GEOMETRY, FP32, {"a": 200.0, "b": 64.0}) == ann_memory(GEOMETRY, FP32)


def test_bursts_of_the_qnn_are_divided_among_convolutions() -> None:
    bursts = np.array([40.0, 60.0])
    layer = LayerStats("relu", "neuron", 32, 1, bursts, bursts, bursts)
    geometry = MemoryGeometry(GEOMETRY.convs, {"relu": {"a": 30.0, "b": 10.0}})
    assert qnn_macs(SpikeStats((layer,), {"a": 200, "b": 64}), geometry) == {"a": 37.5, "b": 12.5}


def test_totals_of_a_run_give_the_figures_of_its_windows() -> None:
    """Windows that are added one by one, merged, or not counted: the means are those over the counted windows."""
    rng = np.random.default_rng(0)

    def window() -> SpikeStats:
        def layer(name: str, kind: Literal["input", "neuron"], neurons: int) -> LayerStats:
            return LayerStats(name, kind, neurons, 1, *rng.random((3, 1)))

        return SpikeStats((layer("input", "input", 0), layer("relu", "neuron", 32)), {"a": 200, "b": 64})

    windows = [window() for _ in range(5)]
    totals, others = EnergyTotals(264), EnergyTotals(264)
    assert totals.mean_stats() is None
    for k, one in enumerate(windows):
        (totals if k < 3 else others).add(one)
    others.add_uncounted(4)
    totals.merge(others)
    totals.merge(EnergyTotals(264))
    found, whole = totals.mean_stats(), SpikeStats.concatenate(windows)
    assert found is not None
    figures, expected = (memory_figures(stats, None, GEOMETRY, "int8") for stats in (found, whole))
    assert figures["alternatives"].keys() == {"ann", "qnn"}
    assert figures["total_pj"] == pytest.approx(expected["total_pj"])
    assert figures["alternatives"]["qnn"] == pytest.approx(expected["alternatives"]["qnn"])


def test_accesses_cost_what_the_paper_fits() -> None:
    """8 kB, 32 kB and 1 MB of 64-bit words: 10, 20 and 100 pJ, within the fit's own error."""
    for size, expected in ((8 << 10, 10), (32 << 10, 20), (1 << 20, 100)):
        assert access_pj(size // 8, 64) == pytest.approx(expected, abs=5)


@pytest.mark.parametrize("kind", [EveryOperation, FurtherOperations])
def test_geometry_of_every_operation(kind: type[nn.Module], grid: Tensor) -> None:
    """A spike that reaches a neuron by a shortcut, without a convolution, reads no weight."""
    graph = trace(drawn(kind), grid)
    size = tuple(grid.shape[1:])
    geometry, shapes = memory_geometry(graph, *size), graph.shapes(*size)
    for source, reached in fan_out_maps(graph, *size).items():
        by_convolution, total = sum(geometry.fan_out[source].values()), float(reached.sum())
        assert by_convolution <= total * (1 + 1e-6)
        if kind is EveryOperation:
            assert by_convolution == pytest.approx(total)
    for conv in geometry.convs:
        assert conv.outputs == np.prod(shapes[conv.name])


@pytest.mark.parametrize("kind", [EveryOperation, FurtherOperations])
def test_dense_ann_with_the_same_zeros(kind: type[nn.Module], grid: Tensor) -> None:
    """As many multiply-accumulates as a convolution of ones with ones for the weights that are not zero."""
    graph, rng = trace(drawn(kind), grid), np.random.default_rng(3)
    size = tuple(grid.shape[1:])
    whole = memory_geometry(graph, *size)
    assert all(conv.kept_macs == conv.macs for conv in whole.convs)
    for conv in whole.convs[::2]:
        weight = graph.tensors[f"{conv.name}.weight"]
        weight[torch.from_numpy(rng.random(weight.shape) < 0.6)] = 0
    shapes, kept = graph.shapes(*size), 0
    pruned = memory_geometry(graph, *size)
    for conv, node in zip(pruned.convs, (node for node in graph.nodes if node.op == "conv"), strict=True):
        ones = (graph.tensors[f"{node.name}.weight"] != 0).float()
        options = {name: node.attrs[name] for name in ("stride", "padding", "dilation", "groups")}
        expected = float(F.conv2d(torch.ones(1, *shapes[node.inputs[0]]), ones, **options).sum())
        assert conv.kept_macs == expected
        kept += conv.kept_macs
    layer = LayerStats("relu", "neuron", 32, 1, *np.ones((3, 1)))
    alternatives = memory_figures(SpikeStats((layer,), {}), None, pruned, "int8")["alternatives"]
    assert list(alternatives) == ["ann", "ann_pruned", "qnn"]
    added = 0.1 * sum(conv.outputs for conv in pruned.convs)
    assert alternatives["ann_pruned"]["operations_pj"] == pytest.approx(0.3 * kept + added)
