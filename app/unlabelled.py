"""What can be measured of a network without labels: its divergence from the ANN, and its operations."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from evburst.app.descent import Checked
from evburst.models.bundle import DetectorBundle
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.network import SpikingNetwork
from evburst.models.tasks import divergence


def compare_without_labels(bundle: DetectorBundle, ann: Graph, batches: Iterable[Tensor]) -> Checked:
    """Measure divergence and operations per window on grids `(N, 2 * bins, H, W)` float32, at least one."""
    network, teacher = SpikingNetwork(bundle.spiking, bundle.parameters), Runner(ann)
    diverged = spent = graded = 0.0
    count = 0
    for grids in batches:
        with torch.inference_mode():
            outputs, stats = network.run(grids)
            diverged += len(grids) * float(divergence(teacher(grids), outputs, bundle.head))
        spent += sum(float(layer.synaptic_ops.sum()) for layer in stats.layers)
        graded += sum(float(layer.graded_ops.sum()) for layer in stats.layers)
        count += len(grids)
    return Checked(None, spent / count, spent / max(graded, 1.0), diverged / count)
