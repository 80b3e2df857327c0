"""The comparison of converters: its torch module is the graph, scales or not, and a traced copy of it is, too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.conversion import Result, first_within
from bench.converters import quantiles
from bench.torch_graph import TorchGraph
from evburst.models.graph import Runner
from evburst.models.spiking.convert.fold import trace
from tests.conftest import EveryOperation, drawn


@pytest.mark.parametrize("scaled", [False, True])
def test_torch_module_computes_what_the_graph_computes(grid: Tensor, scaled: bool) -> None:
    graph = trace(drawn(EveryOperation), torch.zeros(1, 4, 16, 16))
    module = TorchGraph(graph, quantiles(graph, grid) if scaled else None).eval()
    with torch.no_grad():
        for traced in (module, torch.fx.symbolic_trace(module)):
            for mine, theirs in zip(traced(grid), Runner(graph)(grid), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_first_timestep_within_a_point() -> None:
    def row(name: str, timesteps: int, ap: float) -> Result:
        return Result(name, timesteps, ap, 0, 0, 0, 0, 0)

    results = [row("ANN", 0, 60), row("a", 1, 50), row("a", 2, 59), row("a", 4, 59.5), row("b", 4, 58)]
    found = first_within(results)
    assert found["a"] == results[2]
    assert found["b"] is None
