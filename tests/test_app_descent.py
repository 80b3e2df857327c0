"""Advanced calibration as convert runs it: every window once, checks, limits that hold for what is checked, and resuming."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evburst.app.convert.descent import Course, Showings, descend, fresh_batches, rate_of
from evburst.app.convert.scores import Measurement
from evburst.data.errors import CheckpointError
from evburst.models.graph import Graph
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.convert.distil import Descent, Distillation
from tests.test_models_spiking_convert_distil import SPEC, Detects, traced


class Numbers:
    """Windows that are numbers, of the given showing."""

    spec: Any = None

    def __init__(self, n: int, showing: int) -> None:
        self.items = [(showing, i) for i in range(n)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def batches(windows: int, done: int = 0, limit: int = 10**9, batch: int = 2, log: list[Any] | None = None) -> list[list[Any]]:
    """Batches of blocks of eight; `log` receives the showings that are opened and closed."""
    noted = [] if log is None else log

    def opened(n: int, showing: int) -> Any:
        noted.append(("open", showing))
        return Numbers(min(n, limit), showing)

    def close(data: Any) -> None:
        noted.append(("close", data.items[0][0]))

    source = Showings(opened, lambda data, index: [data[int(i)] for i in index], close, limit > windows)  # type: ignore[arg-type, return-value]
    return list(fresh_batches(source, windows, done, batch, block=8))  # type: ignore[arg-type]


def test_every_window_is_seen_once() -> None:
    seen = [item for batch in batches(20) for item in batch]
    assert len(seen) == len(set(seen)) == 20
    assert {showing for showing, _ in seen} == {1000, 1001, 1002}


@pytest.mark.parametrize("done", [2, 8, 14, 18, 20])
def test_a_resumed_pass_sees_the_rest(done: int) -> None:
    assert batches(20, done) == batches(20)[done // 2 :]


def test_blocks_are_closed_once_learned_from_and_not_opened_if_they_were_before() -> None:
    log: list[tuple[str, int]] = []
    batches(20, log=log)
    assert [showing for what, showing in log if what == "close"] == [1000, 1001, 1002]
    assert all(log.index(("open", showing)) < log.index(("close", showing)) for what, showing in log)
    log.clear()
    batches(20, 16, log=log)
    assert log == [("open", 1002), ("close", 1002)]


@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_batches_of_other_sizes(batch: int) -> None:
    whole = batches(24, batch=batch)
    assert sum(len(found) for found in whole) == 24
    assert {len(found) for found in whole if len(found) < batch} <= {8 % batch}
    assert all(batches(24, step * batch, batch=batch) == whole[step:] for step in range(len(whole) + 1))


def test_the_rate_grows_with_the_root_of_the_batch() -> None:
    assert (rate_of(2), rate_of(32)) == (1, 4)


def test_a_small_data_set_is_seen_again() -> None:
    """A showing of recordings holds no more windows than there are."""
    seen = batches(20, limit=6)
    assert sum(len(batch) for batch in seen) == 20
    assert batches(20, 12, limit=6) == seen[6:]


@pytest.mark.parametrize("limit", [1, 5])
def test_batches_that_a_small_data_set_does_not_fill_count_as_steps(limit: int) -> None:
    seen = batches(20, limit=limit)
    assert len(seen) == 10
    assert all(batches(20, 2 * step, limit=limit) == seen[step:] for step in range(10))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return traced(Detects)


@pytest.fixture(scope="module")
def grids() -> tuple[Tensor, ...]:
    return torch.poisson(torch.full((48, 4, 16, 16), 0.7), generator=torch.Generator().manual_seed(5)).split(2)


class Run:
    """A descent of a small network, to be broken off."""

    def __init__(self, graph: Graph, grids: tuple[Tensor, ...], folder: Path) -> None:
        start = calibrate(graph, record_targets(graph, torch.cat(grids[:4])), 1, Choice(4))
        self.learning, self.grids, self.beside = (
            Distillation(graph, *start, SPEC, Descent(8, 5000.0, 1.5)),
            grids,
            folder / "x_descent",
        )
        self.checks = 0

    def check(self) -> Measurement:
        self.checks += 1
        return Measurement(float(self.checks), 8000.0, 2.0)

    def go(self, identity: str = "same", stop_after: int = 10**9) -> Course:
        def some(done: int) -> Iterator[Tensor]:
            for k in range(done // 2, 8):
                if k == stop_after:
                    raise KeyboardInterrupt
                yield self.grids[k]

        return descend(self.learning, some, self.check, self.beside, identity, every=2, batch=2)

    def weights(self) -> dict[str, Tensor]:
        return self.learning.network()[0].tensors


def test_interrupted_and_resumed_is_uninterrupted(graph: Graph, grids: tuple[Tensor, ...], tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = Run(graph, grids, tmp_path / "whole")
    course = whole.go()
    with pytest.raises(KeyboardInterrupt):
        Run(graph, grids, tmp_path / "parts").go(stop_after=5)
    again = Run(graph, grids, tmp_path / "parts")
    resumed = again.go()
    assert [row["windows"] for row in resumed.rows] == [row["windows"] for row in course.rows] == [0, 4, 8, 12, 16]
    assert all(torch.equal(a, b) for a, b in zip(whole.weights().values(), again.weights().values(), strict=True))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # deleted when the weights have been saved
    assert Run(graph, grids, tmp_path / "parts").go(stop_after=0).rows == resumed.rows
    table = list(csv.DictReader((tmp_path / "parts" / "x_descent.csv").read_text().splitlines()))
    assert [row["windows"] for row in table] == ["0", "4", "8", "12", "16"]


def test_limits_hold_for_what_is_checked(graph: Graph, grids: tuple[Tensor, ...], tmp_path: Path) -> None:
    """Windows to choose on cost 8,000 operations here, so those learned from may cost in proportion."""
    run = Run(graph, grids, tmp_path)
    last = run.go().rows[-1]
    assert run.learning.operations is not None
    assert run.learning.operations == pytest.approx(5000 * last["train_operations"] / 8000, rel=0.2)


def test_other_settings_do_not_resume(graph: Graph, grids: tuple[Tensor, ...], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run(graph, grids, tmp_path).go(stop_after=3)
    with pytest.raises(CheckpointError, match="interrupted conversion with other settings"):
        Run(graph, grids, tmp_path).go("other")
