"""NeuroBench's metrics: the neurobench package's own numbers on a network that it can run, and the rule for bursts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evburst.data.stats import LayerStats, SpikeStats
from evburst.eval.neurobench import ann_metrics, snn_metrics
from evburst.models.activity import ActivityRunner, footprint
from evburst.models.spiking.convert.fold import trace


@pytest.mark.filterwarnings("ignore")
def test_equal_to_the_neurobench_package() -> None:
    metrics = pytest.importorskip("neurobench.metrics.workload", reason="neurobench is not installed")
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.models import TorchModel

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 1, 1), nn.ReLU(), nn.Conv2d(5, 3, 1)).eval()
    grid = torch.poisson(torch.full((4, 2, 11, 14), 0.4))
    graph = trace(network, grid)
    found = ann_metrics(ActivityRunner(graph).run(grid)[1], *footprint(graph))

    model = TorchModel(network)
    model.register_hooks()
    with torch.no_grad():
        model(grid)
        theirs = metrics.SynapticOperations()(model, None, (grid, None))
        activation = metrics.ActivationSparsity()(model, None, (grid, None))
    assert found.dense_synops == float(theirs["Dense"])
    assert found.effective_macs == float(theirs["Effective_MACs"])
    assert found.effective_acs == float(theirs["Effective_ACs"]) == 0
    assert found.activation_sparsity == pytest.approx(activation)
    assert found.footprint_bytes == Footprint()(model)
    assert round(found.connection_sparsity, 4) == ConnectionSparsity()(model)


def test_layers_with_bursts_are_multiply_accumulates() -> None:
    once = np.array([10.0, 20.0])
    layers = (
        LayerStats("input", "input", 0, 2, once, 3 * once, 2 * once),
        LayerStats("a", "neuron", 50, 2, once, 4 * once, 4 * once, active=once),
        LayerStats("b", "neuron", 50, 2, 2 * once, 8 * once, 4 * once, active=once),
    )
    found = snn_metrics(SpikeStats(layers, {"c": 1000}), 4, 0.0)
    assert (found.effective_macs, found.effective_acs, found.dense_synops) == (2 * 15 + 4 * 15, 4 * 15, 2000)
    assert found.activation_sparsity == pytest.approx(1 - 30 / 200)
