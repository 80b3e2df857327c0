"""Allocation against brute force, and the sensitivity table against running the whole network."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evburst.data.errors import ConversionError
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.allocate import Frontier, pareto_frontier
from evburst.models.spiking.convert.calibrate import Choice, best_thresholds, calibrate, record_targets
from evburst.models.spiking.convert.fold import trace
from evburst.models.spiking.convert.importance import position_weights
from evburst.models.spiking.convert.sensitivity import SensitivityTable, default_choices, measure
from evburst.models.spiking.network import SpikingNetwork
from evburst.models.tasks import divergence, task_of
from evburst.models.tasks.detection import BOXES
from tests.conftest import activations

CHOICES = (Choice(8), Choice(4), Choice(8, 2.0))
SPEC = HeadSpec("yolo", (2,), 4, ("a", "b"))


def table_of(cost: np.ndarray, sensitivity: np.ndarray) -> SensitivityTable:
    return SensitivityTable(tuple(f"l{k}" for k in range(len(cost))), CHOICES, cost, sensitivity, 1)


def sums(table: SensitivityTable, picked: tuple[int, ...]) -> tuple[float, float]:
    index = np.arange(len(picked)), np.array(picked)
    return float(table.cost[index].sum()), float(table.sensitivity[index].sum())


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_frontier_is_that_of_all_combinations(seed: int, layers: int) -> None:
    rng = np.random.default_rng(seed)
    table = table_of(rng.integers(1, 40, (layers, 3)).astype(float), rng.integers(0, 40, (layers, 3)).astype(float))
    frontier = pareto_frontier(table)
    every = [sums(table, picked) for picked in product(range(3), repeat=layers)]
    expected = sorted({p for p in every if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in every)})
    assert list(zip(frontier.cost, frontier.sensitivity, strict=True)) == expected
    for k in range(len(frontier)):  # and the layers' choices, in their own order, are what the sums are of
        assert sums(table, tuple(frontier.picked[k])) == (frontier.cost[k], frontier.sensitivity[k])
        assert list(frontier.point(k)) == list(table.layers)


def test_thinned_frontier_stays_near_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    table = table_of(rng.uniform(1, 40, (12, 3)), rng.uniform(0, 40, (12, 3)))
    exact, thinned = pareto_frontier(table, 10**6), pareto_frontier(table, 25)
    assert len(thinned) <= 26 < len(exact)
    for budget in np.linspace(exact.cost[0] * 1.1, exact.cost[-1], 20):
        best = exact.sensitivity[exact.within_budget(budget)]
        assert thinned.sensitivity[thinned.within_budget(budget)] <= best * 1.1 + 2
    assert (thinned.cost[[0, -1]] == exact.cost[[0, -1]]).all()


def test_points_are_picked_by_budget_and_by_tolerance() -> None:
    frontier: Frontier = pareto_frontier(table_of(np.array([[10.0, 4, 6]]), np.array([[1.0, 9, 3]])))
    assert frontier.cost.tolist() == [4, 6, 10]
    assert [frontier.within_budget(b) for b in (4, 9.9, 100)] == [0, 1, 2]
    assert [frontier.within_tolerance(s) for s in (9, 3, 2)] == [0, 1, 2]
    with pytest.raises(ConversionError, match="cheapest"):
        frontier.within_budget(3.9)
    with pytest.raises(ConversionError, match="raise the tolerance"):
        frontier.within_tolerance(0.5)


@pytest.fixture
def graph() -> Graph:
    """A backbone, a box read-out of 4 x 4 bins and a read-out of two classes."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
            self.boxes, self.classes = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = torch.relu(self.stem(x))
            x = x + torch.relu(self.deep(x))
            return [self.boxes(x), self.classes(x)]

    torch.manual_seed(1)
    return trace(Head().eval(), torch.zeros(1, 4, 16, 16))


def test_sensitivity_is_that_of_the_network_with_one_layer_changed(graph: Graph, grid: Tensor) -> None:
    table = measure(graph, SPEC, [grid], 1, CHOICES)
    ann, found = Runner(graph)(grid), activations(graph, grid)
    assert len(table.layers) == 2
    for k, name in enumerate(table.layers):
        for c, choice in enumerate(CHOICES):
            a = found[name]
            weights = position_weights(torch.sigmoid(ann[1]).amax(1, keepdim=True), *a.shape[-2:])
            theta = best_thresholds(a, a, weights, 1, choice.phi)[0][:, None, None] * choice.rho

            class OneLayer(Runner):
                spikes = 0.0

                def observe(
                    self, node: Node, value: Tensor, name: str = name, choice: Choice = choice, theta: Tensor = theta
                ) -> None:
                    if node.name == name:
                        counts = torch.clamp(torch.floor(value / theta + 0.5), 0, choice.phi)
                        value.copy_(counts * theta)
                        OneLayer.spikes = float(counts.sum())

            expected = float(divergence(ann, OneLayer(graph)(grid), SPEC))
            assert table.sensitivity[k, c] == pytest.approx(expected, rel=2e-2, abs=1e-6)
            assert (table.cost[k, c] > 0) == (OneLayer.spikes > 0)
    assert (np.diff(table.cost[:, [0, 2]], axis=1) < 0).all()  # a doubled threshold costs less


def test_cost_is_what_the_spiking_network_counts(graph: Graph, grid: Tensor) -> None:
    """With exact convolutions before it, the first layer's cost in the table is its synaptic operations."""
    table = measure(graph, SPEC, [grid], 1, (Choice(4),))
    confidence = torch.sigmoid(Runner(graph)(grid)[1]).amax(1, keepdim=True)
    _, parameters = calibrate(graph, record_targets(graph, grid, confidence), 1, Choice(4), "none")
    _, stats = SpikingNetwork(graph, parameters).run(grid)
    layer = next(layer for layer in stats.layers if layer.name == table.layers[0])
    assert table.cost[0, 0] == pytest.approx(layer.synaptic_ops.mean(), rel=1e-3)


def test_an_unfinished_table_continues_to_the_same_result(graph: Graph, grid: Tensor) -> None:
    batches = [grid, grid.flip(3), grid.flip(2)]
    saved: list[SensitivityTable] = []
    whole = measure(graph, SPEC, batches, 2, CHOICES, save=saved.append)
    assert [table.batches for table in saved] == [1, 2, 3]
    resumed = measure(graph, SPEC, batches, 2, CHOICES, start=saved[0])
    np.testing.assert_allclose(resumed.sensitivity, whole.sensitivity)
    np.testing.assert_allclose(resumed.cost, whole.cost)


@pytest.mark.parametrize("kind", ["yolo", "ssd"])
def test_divergence_is_none_only_where_nothing_moved_and_objects_count_most(kind: str) -> None:
    anchors = (((8.0, 8.0),),) if kind == "ssd" else ()
    spec = HeadSpec(kind, (8,), 4, ("a",), anchors)
    boxes = torch.randn(1, 4 if kind == "ssd" else 16, 3, 3)
    classes = torch.full((1, 2 if kind == "ssd" else 1, 3, 3), -6.0)
    if kind == "ssd":
        classes[:, 0] = 6.0
    classes[0, -1, 1, 1] = 12.0  # one object
    assert divergence([boxes, classes], [boxes, classes], spec) == 0

    def divergence_of(row: int, column: int) -> float:
        other = boxes.clone()
        other[0, ::3, row, column] += 1.0
        return float(divergence([boxes, classes], [other, classes], spec))

    assert divergence_of(1, 1) > 20 * divergence_of(0, 0) > 0


def test_scores_count_by_confidence_or_equally_everywhere() -> None:
    spec, boxes, classes = HeadSpec("yolo", (8,), 4, ("a", "b")), torch.zeros(1, 16, 3, 3), torch.full((1, 2, 3, 3), -3.0)
    classes[0, 0, 1, 1] = 6.0  # one object, of the first class

    def divergence_of(row: int, column: int, everywhere: bool) -> float:
        other = classes.clone()
        other[0, 1, row, column] += 1.0
        return float(divergence([boxes, classes], [boxes, other], spec, everywhere))

    p, q = torch.sigmoid(torch.tensor([-3.0, -2.0])).tolist()
    assert divergence_of(0, 0, True) == divergence_of(1, 1, True) == pytest.approx(q - p, rel=1e-5)
    assert divergence_of(0, 0, False) == pytest.approx(q * (q - p), rel=1e-5)
    assert divergence_of(1, 1, False) == pytest.approx(q - p, rel=1e-2)


def test_boxes_count_more_where_scores_count_everywhere() -> None:
    spec, boxes, classes = HeadSpec("yolo", (8,), 4, ("a", "b")), torch.zeros(1, 16, 3, 3), torch.full((1, 2, 3, 3), -3.0)
    other = boxes.clone()
    other[0, ::3, 1, 1] += 1.0
    pair = [boxes, classes], [other, classes]
    once = float(divergence(*pair, spec))
    assert once > 0
    assert float(task_of(spec).divergence(*pair, spec, True, overlap=0.0)) == pytest.approx(BOXES * once)
    assert float(divergence(*pair, spec, True)) > BOXES * once  # boxes that overlap less


def test_candidates_begin_with_the_largest_limit_and_no_factor() -> None:
    choices = default_choices(4)
    assert choices[0] == Choice(4, 1.0)
    assert {c.phi for c in choices} == {1, 2, 3, 4}
    assert len(set(choices)) == len(choices)
    wide = default_choices(32)
    assert max(c.rho for c in wide if c.phi == 32) == 16
    assert {c.phi for c in wide} == {8, 16, 32}
