"""Zero-skipping multiply-accumulates, against counting them one by one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.data.stats import ActivityStats
from evburst.models.activity import ActivityRunner
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.fold import trace


class BruteForce(Runner):
    """Convolves where the input is not zero with a weight of ones, for every output channel."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.counts: dict[str, Tensor] = {}

    def conv(self, node: Node, x: Tensor) -> Tensor:
        a, weight = node.attrs, torch.ones_like(self.graph.tensors[f"{node.name}.weight"])
        once = F.conv2d((x != 0).float(), weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])
        self.counts[node.name] = once.double().flatten(1).sum(1)
        return super().conv(node, x)


def test_counts_equal_brute_force(network: nn.Module, grid: Tensor) -> None:
    graph = trace(network, grid)
    outputs, stats = ActivityRunner(graph).run(grid)
    brute = BruteForce(graph)
    for mine, theirs in zip(outputs, brute(grid), strict=True):
        assert torch.equal(mine, theirs)
    assert stats.effective_macs.keys() == brute.counts.keys() == stats.dense_macs.keys()
    for name, counts in brute.counts.items():
        assert stats.effective_macs[name].tolist() == counts.tolist()
        assert (stats.effective_macs[name] <= stats.dense_macs[name]).all()
    assert 0 < stats.active.mean() < stats.units


def test_an_input_without_zeros_costs_what_the_dense_network_does(network: nn.Module, grid: Tensor) -> None:
    graph = trace(network, grid)
    first = graph.nodes[1].name
    stats = ActivityRunner(graph).run(grid + 1)[1]
    assert stats.effective_macs[first].tolist() == [stats.dense_macs[first]] * 2


def test_batches_are_put_together(network: nn.Module, grid: Tensor) -> None:
    graph = trace(network, grid)
    runner = ActivityRunner(graph)
    whole = runner.run(grid)[1]
    parts = ActivityStats.concatenate([runner.run(grid[:1])[1], runner.run(grid[1:])[1]])
    assert parts.active.tolist() == whole.active.tolist()
    for name, counts in whole.effective_macs.items():
        assert parts.effective_macs[name].tolist() == counts.tolist()
