"""Maps of class scores, folded into the convolutions that are read out as class logits.

A map is linear in the logit: scale * logit + bias. Scaling the weights of a class's output channels by `scale`, and their
constant current likewise with `bias` added, has the same effect in every engine and export, at no cost. Weights of the spiking
network remain the same 8-bit integers; only their step changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evburst.models.graph import Graph
from evburst.models.spiking.network import SpikingParameters, spike_sizes
from evburst.models.spiking.rounding import from_int8, input_sizes, short, to_int8


def are_convolutions(graph: Graph, outputs: Sequence[str]) -> bool:
    """Return whether these outputs are convolutions that no other node reads, so that maps can be folded into them."""
    operations, readers = {node.name: node.op for node in graph.nodes}, graph.consumers()
    return all(operations[name] == "conv" and not readers[name] for name in outputs)


def fold_score_maps(
    ann: Graph, spiking: Graph, parameters: SpikingParameters, outputs: Sequence[str], scale: Tensor, bias: Tensor
) -> tuple[Graph, Graph, SpikingParameters]:
    """Fold the maps of all classes into both networks; channels of classes with scale 1 and bias 0 stay bit-identical.

    The ANN's tensors are rounded to float16, as weights files store them. The spiking network's bias is the ANN's wherever it
    changes, and its read-out shift contains the rest in float32.

    Args:
        ann, spiking, parameters: the networks; they are not modified.
        outputs: of `are_convolutions`; channel k of each is the logit of class k.
        scale, bias: `(classes,)` float32; scales are positive.

    Returns:
        The ANN, the spiking graph and its parameters.
    """
    nodes = {node.name: node for node in spiking.nodes}
    sizes = spike_sizes(spiking, parameters.neurons)
    ann_tensors, tensors, shifts = dict(ann.tensors), dict(spiking.tensors), dict(parameters.readout_shift)
    changed = (scale != 1) | (bias != 0)
    factor = scale[:, None, None, None]

    def where_changed(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(changed.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    for name in outputs:
        weight, offset, step = (f"{name}.{what}" for what in ("weight", "bias", "step"))
        read = input_sizes(spiking, nodes[name], sizes)
        if read is None:
            tensors[weight] = where_changed((factor * tensors[weight]).half().float(), tensors[weight])
        else:
            integers, unscaled = to_int8(tensors[weight], read, tensors.get(step))
            scaled = short(scale.double() * unscaled.double()).float()
            tensors[weight] = where_changed(from_int8(integers, scaled, read), tensors[weight])
            if step in tensors:  # of a network from a file
                tensors[step] = where_changed(scaled, unscaled)
        constant = scale * (tensors[offset] + shifts[name]) + bias
        for own, new in ((weight, factor * ann_tensors[weight]), (offset, scale * ann_tensors[offset] + bias)):
            ann_tensors[own] = where_changed(new.half().float(), ann_tensors[own])
        tensors[offset] = where_changed(ann_tensors[offset], tensors[offset])
        shifts[name] = where_changed(constant - tensors[offset], shifts[name])
    return (
        Graph(ann.nodes, ann.outputs, ann_tensors),
        Graph(spiking.nodes, spiking.outputs, tensors),
        replace(parameters, readout_shift=shifts),
    )
