"""Cost of a spike: the exact number of weights it meets, for every neuron of a graph (docs/method.md#energy).

The fan-out of a neuron is the derivative of the sum of all convolution outputs, with all weights set to 1, with respect to its
spike. In a pruned convolution (see SPARSE), weights of zero are no synapses and cost nothing. One backward pass over the graph
per input size computes the fan-outs of all neurons. Spikes that a max-pool passes on are counted at the pool, those that a hold
passes on or repeats at the hold. A spike that reaches a neuron without a convolution in between (the shortcut of a residual
block) costs one accumulate, like a synapse of weight 1. A spike before an average pool meets the weights that read any of its
windows.
"""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.stats import ConvMemory, MemoryGeometry
from evburst.models.graph import Graph, Node

KINDS: dict[str, Literal["input", "neuron", "pool", "memory"]] = {
    "input": "input",
    "relu": "neuron",
    "max_pool": "pool",
    "hold": "memory",
}
"""Kind of `LayerStats` of the operations that emit spikes."""


SPARSE = 1 / 8
"""A convolution with a larger share of zeros is pruned: with a bit for each of its weights and 8 for each that is not zero, it
is smaller than with 8 for all, and hardware passes over the others. In the bundled networks, rounding makes fewer zeros."""


def fan_out_maps(graph: Graph, channels: int, height: int, width: int, *, only: str | None = None) -> dict[str, Tensor]:
    """Number of weights that one spike at every position of every source meets.

    Args:
        graph: the network.
        channels, height, width: size of its input.
        only: name of a convolution, to count the weights of that one alone.

    Returns:
        `(C, H, W)` float32 by the name of the source: the input, and every relu, max_pool and hold node; with `only`, those of
        them that it reads.
    """
    shapes, fan_out = graph.shapes(channels, height, width), dict[str, Tensor]()

    def add(name: str, weights: Tensor) -> None:
        fan_out[name] = fan_out[name] + weights.float() if name in fan_out else weights.float().expand(shapes[name])

    for node in reversed(graph.nodes):
        own = fan_out.get(node.name)
        if node.op == "conv" and only in (None, node.name):
            add(node.inputs[0], synapses(graph, node, shapes))
        elif node.op == "relu" and only is None:
            add(node.inputs[0], torch.ones(1, 1, 1))
        elif own is None:
            continue
        elif node.op == "slice":
            whole = torch.zeros(shapes[node.inputs[0]])
            whole[node.attrs["start"] : node.attrs["stop"]] = own
            add(node.inputs[0], whole)
        elif node.op == "add":
            for name in node.inputs:
                add(name, own)
        elif node.op == "concat":
            parts = torch.split(own, [shapes[name][0] for name in node.inputs])
            for name, part in zip(node.inputs, parts, strict=True):
                add(name, part)
        elif node.op == "avg_pool":
            add(node.inputs[0], _before_average(own, node, shapes))
        elif node.op == "upsample":
            k = node.attrs["factor"]
            add(node.inputs[0], F.avg_pool2d(own, k) * k * k)
    sources = [node.name for node in graph.nodes if node.op in KINDS and (only is None or node.name in fan_out)]
    return {name: fan_out[name].contiguous() if name in fan_out else torch.zeros(shapes[name]) for name in sources}


def dense_macs(graph: Graph, channels: int, height: int, width: int) -> dict[str, int]:
    """Multiply-accumulates of every convolution for one image, not counting products with padding."""
    shapes = graph.shapes(channels, height, width)
    macs = {}
    for node in graph.nodes:
        if node.op == "conv":
            weight = graph.tensors[f"{node.name}.weight"]
            macs[node.name] = int(coverage(graph, node, shapes).sum()) * reduce(int.__mul__, weight.shape[:2])
    return macs


def memory_geometry(graph: Graph, channels: int, height: int, width: int) -> MemoryGeometry:
    """Sizes of what every convolution holds in memory, and how the spikes of every source are divided among convolutions."""
    shapes = graph.shapes(channels, height, width)
    macs = dense_macs(graph, channels, height, width)
    convs: list[ConvMemory] = []
    by_conv: dict[str, dict[str, float]] = {}
    for node in graph.nodes:
        if node.op == "conv":
            words = (prod(shapes[node.inputs[0]]), graph.tensors[f"{node.name}.weight"].numel(), prod(shapes[node.name]))
            kept = int(synapses(graph, node, shapes).expand(shapes[node.inputs[0]]).sum())
            convs.append(ConvMemory(node.name, macs[node.name], *words, biases=shapes[node.name][0], kept_macs=kept))
            for source, fan_out in fan_out_maps(graph, channels, height, width, only=node.name).items():
                if total := float(fan_out.double().sum()):
                    by_conv.setdefault(source, {})[node.name] = total
    return MemoryGeometry(tuple(convs), by_conv)


def coverage(graph: Graph, node: Node, shapes: dict[str, tuple[int, int, int]]) -> Tensor:
    """Number of output positions that each input position of a convolution contributes to, `(H, W)` float64."""
    kernel = graph.tensors[f"{node.name}.weight"].shape[2:]
    rows, columns = (read.sum((0, 2)) for read in _reads(node, list(kernel), shapes))
    return torch.outer(rows, columns)


def synapses(graph: Graph, node: Node, shapes: dict[str, tuple[int, int, int]]) -> Tensor:
    """Number of weights that every input of a convolution meets, `(C, H, W)` float64; `(1, H, W)` if equal for all channels.

    Args:
        graph: the network.
        node: the convolution.
        shapes: of its nodes, see `Graph.shapes`.
    """
    weight = graph.tensors[f"{node.name}.weight"]
    kept, groups = kept_weights(weight), int(node.attrs["groups"])
    if bool(kept.all()):
        return (coverage(graph, node, shapes) * (len(weight) // groups))[None]
    meets = torch.cat([of_group.sum(0) for of_group in kept.double().cpu().chunk(groups)])
    rows, columns = (read.sum(2) for read in _reads(node, list(weight.shape[2:]), shapes))
    return torch.einsum("crs,ry,sx->cyx", meets, rows, columns)


def kept_weights(weight: Tensor) -> Tensor:
    """Which weights of a convolution are synapses, bool: all, or if it is pruned (see SPARSE) those that are not zero."""
    kept = weight != 0
    return kept if int(kept.sum()) < (1 - SPARSE) * kept.numel() else torch.ones_like(kept)


def is_pruned(graph: Graph) -> bool:
    """Whether any convolution of a network is."""
    weights = (tensor for name, tensor in graph.tensors.items() if name.endswith(".weight"))
    return any(not bool(kept_weights(weight).all()) for weight in weights)


def _before_average(fan_out: Tensor, node: Node, shapes: dict[str, tuple[int, int, int]]) -> Tensor:
    """Fan-out `(C, H, W)` of a spike before an average pool, given that of a spike after it, `fan_out`."""
    if node.attrs["kernel"] is None:
        return fan_out.expand(shapes[node.inputs[0]])
    rows, columns = (read.sum(0) for read in _reads(node, node.attrs["kernel"], shapes))
    return rows @ fan_out.double() @ columns.T


def _reads(node: Node, kernel: list[int], shapes: dict[str, tuple[int, int, int]]) -> list[Tensor]:
    """Which inputs a windowed operation reads, for rows and for columns: `(taps, inputs, outputs)` float64, 0 or 1."""
    a, found = node.attrs, []
    sizes = shapes[node.inputs[0]][1:], shapes[node.name][1:], kernel, a["stride"], a["padding"], a.get("dilation", [1, 1])
    for inputs, outputs, taps, stride, padding, dilation in zip(*sizes, strict=True):
        tap, read = torch.arange(taps)[:, None, None], torch.arange(inputs)[:, None]
        found.append((read == torch.arange(outputs) * stride - padding + tap * dilation).double())
    return found
