"""A Graph as an ordinary torch module, which other libraries can trace and convert: a submodule for each operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evburst.models.graph import Graph, Node


class TorchGraph(nn.Module):
    """The ANN of a weights file; traceable by torch.fx, so that every ReLU is a module of its own.

    Args:
        graph: the network; its relus have neither ceiling nor slope.
        scales: for every relu node `(C,)`: the activation runs in units of it, and is scaled back behind it. The function
            stays the same; a converter that replaces nn.ReLU by neurons of threshold 1 gets neurons of these thresholds.
    """

    def __init__(self, graph: Graph, scales: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self._nodes, self._outputs = graph.nodes, graph.outputs
        made = {node.name: _module(node, graph, (scales or {}).get(node.name)) for node in graph.nodes}
        self._key = {name: name.replace(".", "_") for name, module in made.items() if module is not None}
        self.layers = nn.ModuleDict({self._key[name]: module for name, module in made.items() if module is not None})

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs for `(N, 2 * bins, H, W)` float32."""
        values: dict[str, Tensor] = {}
        for node in self._nodes:
            arguments = [values[name] for name in node.inputs]
            if node.op == "input":
                values[node.name] = x
            elif node.op == "add":
                values[node.name] = arguments[0] + arguments[1]
            elif node.op == "concat":
                values[node.name] = torch.cat(arguments, 1)
            elif node.op == "slice":
                values[node.name] = arguments[0][:, node.attrs["start"] : node.attrs["stop"]]
            else:
                values[node.name] = self.layers[self._key[node.name]](arguments[0])
        return [values[name] for name in self._outputs]


class Scale(nn.Module):
    """Multiplication of channels by constants."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, scaled."""
        return x * self.factors


def _module(node: Node, graph: Graph, scale: Tensor | None) -> nn.Module | None:
    """What computes a node; None where that is no module."""
    a = node.attrs
    if node.op == "conv":
        weight, bias = graph.tensors[f"{node.name}.weight"], graph.tensors[f"{node.name}.bias"]
        kernel = (weight.shape[2], weight.shape[3])
        window = [tuple(a[key]) for key in ("stride", "padding", "dilation")]
        conv = nn.Conv2d(weight.shape[1] * a["groups"], len(weight), kernel, *window, a["groups"])  # type: ignore[arg-type]
        conv.load_state_dict({"weight": weight, "bias": bias})
        return conv
    if node.op == "relu":
        if a:
            raise ValueError(f"{node.name!r}: only plain ReLUs are compared")
        return nn.ReLU() if scale is None else nn.Sequential(Scale(1 / scale), nn.ReLU(), Scale(scale))
    if node.op == "max_pool":
        return nn.MaxPool2d(a["kernel"], a["stride"], a["padding"])
    if node.op == "avg_pool":
        return nn.AvgPool2d(a["kernel"], a["stride"], a["padding"]) if a["kernel"] else nn.AdaptiveAvgPool2d(1)
    return nn.Upsample(scale_factor=a["factor"], mode="nearest") if node.op == "upsample" else None
