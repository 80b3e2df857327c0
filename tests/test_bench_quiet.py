"""bench/quiet.py: each engine takes a turn on each window, and the table divides by the last row."""

from __future__ import annotations

import pytest
import torch

from bench import inference
from bench.contenders import Contender
from bench.quiet import Row, affected_shares, measure, scattered, table
from evburst.models.bundle import Bundle
from evburst.models.graph import Graph, Node
from evburst.models.spiking.network import SpikingParameters


def test_every_network_runs_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_REST_S", 0)
    bundle, seen = Bundle.load("nmnist"), list[int]()
    grids = {f"noise {n}": [scattered(n, bundle, 32, 48, seed) for seed in range(2)] for n in (0, 7)}
    assert [(grid.shape, grid.dtype) for (grid, _) in grids.values()] == [((1, 6, 32, 48), torch.uint8)] * 2
    networks = {"a": Contender(lambda grid: seen.append(int(grid.sum()))), "b": Contender(lambda grid: None)}
    rows = measure(grids, networks, 1, lambda grid: affected_shares(bundle.spiking, bundle.parameters, grid))
    assert [(row.kind, row.events, list(row.ms)) for row in rows] == [("noise 0", 0, ["a", "b"]), ("noise 7", 7, ["a", "b"])]
    assert (rows[0].affected, rows[0].boxed) == (0, 0)
    assert 0 < rows[1].affected <= rows[1].boxed <= 1
    assert set(seen) == {0, 7}


def test_the_table_divides_by_the_last_row() -> None:
    lines = table([Row("noise 1", 1, {"auto": 2.0}, 0.5, 0.75), Row("recording", 6000, {"auto": 4.0}, 1.0, 1.0)]).splitlines()
    assert lines[0] == "| window | events | auto, ms | auto, of the last row | arithmetic affected | in bounding boxes |"
    assert lines[2:] == ["| noise 1 | 1 | 2.00 | 0.50 | 50 % | 75 % |", "| recording | 6,000 | 4.00 | 1.00 | 100 % | 100 % |"]


def test_outputs_that_read_an_event_are_affected() -> None:
    """Of a convolution of 3 x 3 with stride 1 over 10 x 8 pixels: by two events, two squares, and the box around both."""
    window = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    nodes = [Node("input", "input", ()), Node("out", "conv", ("input",), window)]
    graph = Graph(nodes, ["out"], {"out.weight": torch.ones(1, 2, 3, 3), "out.bias": torch.zeros(1)})
    grid = torch.zeros(1, 2, 10, 8, dtype=torch.uint8)
    grid[0, 0, 2, 2] = grid[0, 1, 7, 6] = 1
    assert affected_shares(graph, SpikingParameters(4, {}, {"out": torch.zeros(1)}), grid) == pytest.approx((18 / 80, 56 / 80))
