"""bench/quiet.py: each engine takes a turn on each window, and the table divides by the last row."""

from __future__ import annotations

import pytest
import torch

from bench import inference
from bench.inference import Contender
from bench.quiet import Row, measure, scattered, table
from evburst.models.bundle import DetectorBundle


def test_every_network_runs_every_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_REST_S", 0)
    bundle, seen = DetectorBundle.load("nmnist"), list[int]()
    grids = {f"noise {n}": scattered(n, bundle, 32, 48) for n in (0, 7)}
    assert [(grid.shape, grid.dtype) for grid in grids.values()] == [((1, 6, 32, 48), torch.uint8)] * 2
    rows = measure(grids, {"a": Contender(lambda grid: seen.append(int(grid.sum()))), "b": Contender(lambda grid: None)}, 1)
    assert [(row.kind, row.events, list(row.ms)) for row in rows] == [("noise 0", 0, ["a", "b"]), ("noise 7", 7, ["a", "b"])]
    assert set(seen) == {0, 7}


def test_the_table_divides_by_the_last_row() -> None:
    lines = table([Row("noise 1", 1, {"auto": 2.0}), Row("recording", 6000, {"auto": 4.0})]).splitlines()
    assert lines[0] == "| window | events | auto, ms | auto, of the last row |"
    assert lines[2:] == ["| noise 1 | 1 | 2.00 | 0.50 |", "| recording | 6,000 | 4.00 | 1.00 |"]
