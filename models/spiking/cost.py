"""What a spike costs: how many weights it reaches, exactly, for every neuron of a graph (docs/method.md#energy).

The fan-out of a neuron is the gradient of "sum of all convolution outputs, every weight being 1" with respect to its spike:
one backward walk over the graph per input size. Spikes passed on by a max-pool are counted at the pool. A spike that reaches
a neuron without a convolution between (the shortcut of a residual block) is one accumulate: a synapse of weight 1. Through an
average pool a spike reaches the weights that read each of the windows it lies in.
"""

from __future__ import annotations

from functools import reduce
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.stats import ConvMemory, MemoryGeometry
from evburst.models.graph import Graph, Node


def node_shapes(graph: Graph, channels: int, height: int, width: int) -> dict[str, tuple[int, int, int]]:
    """(C, H, W) of every node for one input size."""
    return graph.shapes(channels, height, width)


def fan_out_maps(graph: Graph, channels: int, height: int, width: int, *, only: str | None = None) -> dict[str, Tensor]:
    """Weights reached by one spike of every position of every source (input, relu, max_pool): `(C, H, W)` float32.

    `only`: those of one convolution.
    """
    shapes = node_shapes(graph, channels, height, width)
    reached = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for node in reversed(graph.nodes):
        if node.op == "conv" and only in (None, node.name):
            _, rows, columns = shapes[node.inputs[0]]
            per_position = coverage(graph, node, shapes)
            out_channels = len(graph.tensors[f"{node.name}.bias"]) // node.attrs["groups"]
            reached[node.inputs[0]] += out_channels * per_position.view(1, rows, columns)
        elif node.op == "slice":
            reached[node.inputs[0]][node.attrs["start"] : node.attrs["stop"]] += reached[node.name]
        elif node.op == "relu" and only is None:
            reached[node.inputs[0]] += 1
        elif node.op == "add":
            for name in node.inputs:
                reached[name] += reached[node.name]
        elif node.op == "concat":
            parts = torch.split(reached[node.name], [shapes[name][0] for name in node.inputs])
            for name, part in zip(node.inputs, parts, strict=True):
                reached[name] += part
        elif node.op == "avg_pool":
            reached[node.inputs[0]] += _below_average(reached[node.name], node, shapes)
        elif node.op == "upsample":
            k = node.attrs["factor"]
            reached[node.inputs[0]] += F.avg_pool2d(reached[node.name], k) * k * k
    return {node.name: reached[node.name] for node in graph.nodes if node.op in ("input", "relu", "max_pool")}


def dense_macs(graph: Graph, channels: int, height: int, width: int) -> dict[str, int]:
    """Multiply-accumulates of every convolution for one image; products with padding are not counted."""
    shapes = node_shapes(graph, channels, height, width)
    macs = {}
    for node in graph.nodes:
        if node.op == "conv":
            weight = graph.tensors[f"{node.name}.weight"]
            macs[node.name] = int(coverage(graph, node, shapes).sum()) * reduce(int.__mul__, weight.shape[:2])
    return macs


def memory_geometry(graph: Graph, channels: int, height: int, width: int) -> MemoryGeometry:
    """What every convolution keeps in memory, and how the spikes of every source spread over the convolutions."""
    shapes = node_shapes(graph, channels, height, width)
    macs = dense_macs(graph, channels, height, width)
    convs: list[ConvMemory] = []
    reach: dict[str, dict[str, float]] = {}
    for node in graph.nodes:
        if node.op == "conv":
            words = (prod(shapes[node.inputs[0]]), graph.tensors[f"{node.name}.weight"].numel(), prod(shapes[node.name]))
            convs.append(ConvMemory(node.name, macs[node.name], *words, biases=shapes[node.name][0]))
            for source, reached in fan_out_maps(graph, channels, height, width, only=node.name).items():
                if total := float(reached.double().sum()):
                    reach.setdefault(source, {})[node.name] = total
    return MemoryGeometry(tuple(convs), reach)


def coverage(graph: Graph, node: Node, shapes: dict[str, tuple[int, int, int]]) -> Tensor:
    """How many output positions each input position of a convolution contributes to: `(H, W)` float64."""
    kernel = graph.tensors[f"{node.name}.weight"].shape[2:]
    ones = torch.ones((1, *shapes[node.name][1:]), dtype=torch.float64)
    return _spread(ones, list(kernel), node, shapes[node.inputs[0]][1:])[0]


def _below_average(reached: Tensor, node: Node, shapes: dict[str, tuple[int, int, int]]) -> Tensor:
    """What a spike before an average pool reaches, `(C, H, W)`, if one behind it reaches `reached`."""
    shape = shapes[node.inputs[0]]
    if node.attrs["kernel"] is None:
        return reached.expand(shape)
    return _spread(reached, node.attrs["kernel"], node, shape[1:])


def _spread(values: Tensor, kernel: list[int], node: Node, size: tuple[int, int]) -> Tensor:
    """`(C, *size)`: for each input position of a window operation the sum of the `(C, h, w)` outputs it contributes to."""
    a = node.attrs
    dilation = a.get("dilation", [1, 1])
    rest = [
        whole - ((out - 1) * stride - 2 * pad + gap * (k - 1) + 1)
        for whole, out, stride, pad, gap, k in zip(
            size, values.shape[1:], a["stride"], a["padding"], dilation, kernel, strict=True
        )
    ]
    taps = torch.ones((1, 1, *kernel), dtype=values.dtype)
    return F.conv_transpose2d(values[:, None], taps, None, a["stride"], a["padding"], rest, 1, dilation)[:, 0]
