"""Zero-skipping multiply-accumulates, against counting them one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.data.stats import ActivityStats
from evburst.models.activity import ActivityRunner, macs_read, weighted
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.fold import trace
from tests.step_by_step import ones_for_synapses


class BruteForce(Runner):
    """Convolves where the input is not zero with ones for weights, for every output channel."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.counts: dict[str, Tensor] = {}

    def conv(self, node: Node, x: Tensor) -> Tensor:
        a, weight = node.attrs, ones_for_synapses(self.graph.tensors[f"{node.name}.weight"]).float()
        once = F.conv2d((x != 0).float(), weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])
        self.counts[node.name] = once.double().flatten(1).sum(1)
        return super().conv(node, x)


@pytest.mark.parametrize("zeros", [0.0, 0.06, 0.5, 1.0])
def test_counts_equal_brute_force(network: nn.Module, grid: Tensor, zeros: float) -> None:
    graph = trace(network, grid)
    pruned = [tensor for name, tensor in graph.tensors.items() if name.endswith(".weight")][2:]
    for weight in pruned:
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < zeros] = 0
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


def test_what_equals_silence_costs_nothing_beyond_it(network: nn.Module, grid: Tensor) -> None:
    """Against comparing with the inputs of an empty window; a window without events costs 0, alone and in a batch."""
    graph = trace(network, grid)
    grid[1] = 0
    runner = ActivityRunner(graph)
    for batch in (grid, grid[1:]):
        _, stats = runner.run(batch)
        beyond, brute = stats.macs_beyond_silence, BeyondByForce(graph)
        assert beyond is not None
        brute(torch.zeros_like(batch))
        brute(batch)
        assert {name: counts.tolist() for name, counts in beyond.items()} == brute.beyond
        assert sum(float(counts[-1]) for counts in beyond.values()) == 0
        assert sum(float(counts[-1]) for counts in stats.effective_macs.values()) > 0


@pytest.mark.parametrize("form", ["whole", "a part of the channels", "channels last"])
def test_one_pass_counts_what_is_counted_on_a_gpu(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.relu(torch.randn((3, 10, 7, 11), generator=generator))
    silent = torch.where(torch.rand(x[:1].shape, generator=generator) < 0.5, x[1:2], x[:1] * (1 + 1e-7))
    if form == "a part of the channels":
        x, silent = x[:, 2:7], silent[:, 2:7]
    elif form == "channels last":
        x = x.to(memory_format=torch.channels_last)
    fan_out = torch.randint(0, 600, (x.shape[1], 7, 11), generator=generator, dtype=torch.int32)
    effective, beyond = macs_read(x, silent, fan_out)
    assert effective.tolist() == weighted(x != 0, fan_out).tolist()
    assert beyond.tolist() == weighted((x - silent).abs() > 1e-5 * silent.max(), fan_out).tolist()
    assert 0 < beyond.min() < beyond.max() <= 3 * effective.max()


class BeyondByForce(Runner):
    """Convolves where the input differs from that of an empty window by more than rounding, with a weight of ones."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.resting: dict[str, Tensor] = {}
        self.beyond: dict[str, list[float]] = {}

    def conv(self, node: Node, x: Tensor) -> Tensor:
        if node.name not in self.resting:  # the first run is that of an empty window
            self.resting[node.name] = x
        else:
            changed = ((x - self.resting[node.name]).abs() > 1e-4).float()
            a, weight = node.attrs, ones_for_synapses(self.graph.tensors[f"{node.name}.weight"]).float()
            once = F.conv2d(changed, weight, None, a["stride"], a["padding"], a["dilation"], a["groups"])
            self.beyond[node.name] = once.double().flatten(1).sum(1).tolist()
        return super().conv(node, x)
