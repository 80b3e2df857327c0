"""A Graph as a torch module with a submodule for each operation, for libraries that trace and convert modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evburst.models.graph import Graph, Node


class TorchGraph(nn.Module):
    """The ANN of a weights file as a module that torch.fx can trace; every ReLU is a separate module.

    Args:
        graph: the network; its relus must be plain, without ceiling or slope.
        scales: `(C,)` for every relu node. The activation is divided by it before the ReLU and multiplied after it, which does
            not change the function; neurons with threshold 1 that replace nn.ReLU then have these effective thresholds.
    """

    def __init__(self, graph: Graph, scales: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self._nodes, self._outputs = graph.nodes, graph.outputs
        modules = {node.name: _module(node, graph, (scales or {}).get(node.name)) for node in graph.nodes}
        self._key = {name: name.replace(".", "_") for name, module in modules.items() if module is not None}
        self.layers = nn.ModuleDict({self._key[name]: module for name, module in modules.items() if module is not None})

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the outputs for `(N, 2 * bins, H, W)` float32."""
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
    """Multiplies each channel by a constant."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.register_buffer("factors", factors[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `(N, C, H, W)`, scaled."""
        return x * self.factors


def _module(node: Node, graph: Graph, scale: Tensor | None) -> nn.Module | None:
    """Return the module that computes a node; None for operations that need no module."""
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
            raise ValueError(f"{node.name!r}: only plain ReLUs are supported, without ceiling or slope")
        return nn.ReLU() if scale is None else nn.Sequential(Scale(1 / scale), nn.ReLU(), Scale(scale))
    if node.op == "max_pool":
        return nn.MaxPool2d(a["kernel"], a["stride"], a["padding"])
    if node.op == "avg_pool":
        return nn.AvgPool2d(a["kernel"], a["stride"], a["padding"]) if a["kernel"] else nn.AdaptiveAvgPool2d(1)
    return nn.Upsample(scale_factor=a["factor"], mode="nearest") if node.op == "upsample" else None
