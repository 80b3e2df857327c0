"""Scales of a detector that it does not use.

A detector has maps of several strides, and training may leave all objects to some of them: the scores of the others then stay
near zero everywhere. Without those maps, and the layers that only they need, the boxes are the same; the weights file and the
energy of the dense network, to which that of the spikes is compared, are smaller.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from evburst.models.detectors.postprocess import SCORED, HeadSpec
from evburst.models.graph import Graph, Runner
from evburst.models.spiking.network import SpikingParameters


def without_unused_scales(graph: Graph, head: HeadSpec, grids: Tensor) -> tuple[Graph, HeadSpec]:
    """Leave out the strides of a YOLO detector at which no score reaches that of `SCORED`; at least one stride stays.

    Args:
        graph: the folded ANN.
        head: how its outputs are decoded.
        grids: `(N, 2 * bins, H, W)` float32, on which scores are computed.
    """
    if head.kind != "yolo":  # SSD's default boxes belong to their stride, and a classifier has one map
        return graph, head
    levels = len(head.strides)
    maps = Runner(graph)(grids)
    best = [float(torch.sigmoid(classes).amax()) for classes in maps[levels:]]
    used = [k for k in range(levels) if best[k] >= SCORED.score]
    if not used or len(used) == levels:
        return graph, head
    outputs = [graph.outputs[part + k] for part in (0, levels) for k in used]
    return graph.reading_out(outputs), replace(head, strides=tuple(head.strides[k] for k in used))


def parameters_of(graph: Graph, parameters: SpikingParameters) -> SpikingParameters:
    """Return the neurons and read-out shifts that belong to a part of their graph."""
    names = {node.name for node in graph.nodes}
    neurons = {name: layer for name, layer in parameters.neurons.items() if name in names}
    readout = {name: shift for name, shift in parameters.readout_shift.items() if name in names}
    return replace(parameters, neurons=neurons, readout_shift=readout)
