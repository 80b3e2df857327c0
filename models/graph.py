"""A detector as a plain list of nodes: what conversion produces, a weights file holds, and every engine runs.

Only eight operations exist, so an engine is eight methods:

    input      the voxel grid
    conv       weight, bias; stride, padding, dilation, groups   (linear: makes currents)
    relu       the activation                                    (in a spiking network: a layer of burst neurons)
    add        of two signals
    concat     along channels
    slice      channels [start, stop)
    max_pool   kernel, stride, padding
    upsample   nearest, integer factor
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.errors import CheckpointError

OPERATIONS = ("input", "conv", "relu", "add", "concat", "slice", "max_pool", "upsample")


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: unique; the name of the module it came from where there is one.
        op: one of OPERATIONS.
        inputs: names of the nodes it reads.
        attrs: geometry; JSON types only.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """A network.

    Attributes:
        nodes: in an order in which they can be computed; the first is the input.
        outputs: names of the nodes that are read out.
        tensors: `<conv>.weight` `(C_out, C_in / groups, kh, kw)` and `<conv>.bias` `(C_out,)` float32.
    """

    nodes: list[Node]
    outputs: list[str]
    tensors: dict[str, Tensor]

    def to_json(self) -> str:
        """The structure, without tensors."""
        return json.dumps({"nodes": [asdict(node) for node in self.nodes], "outputs": self.outputs})

    @classmethod
    def from_json(cls, text: str, tensors: dict[str, Tensor]) -> Graph:
        """Rebuild; raises CheckpointError if the structure is unsound or a tensor is missing."""
        raw = json.loads(text)
        nodes = [Node(n["name"], n["op"], tuple(n["inputs"]), n["attrs"]) for n in raw["nodes"]]
        graph = cls(nodes, raw["outputs"], tensors)
        known: set[str] = set()
        for node in nodes:
            if node.op not in OPERATIONS or not known.issuperset(node.inputs):
                raise CheckpointError(f"node {node.name!r}: unknown operation {node.op!r} or an input that comes later")
            if node.op == "conv" and not {f"{node.name}.weight", f"{node.name}.bias"} <= tensors.keys():
                raise CheckpointError(f"the weights of {node.name!r} are missing")
            known.add(node.name)
        if not known.issuperset(graph.outputs):
            raise CheckpointError("an output is not a node of the network")
        return graph

    def consumers(self) -> dict[str, list[Node]]:
        """Who reads each node."""
        found: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found


class Runner:
    """Computes a graph node by node, as the ordinary (ANN) network; engines override single operations.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
        self._free_after: dict[int, list[str]] = {}
        for name, i in last_use.items():
            if name not in graph.outputs:
                self._free_after.setdefault(i, []).append(name)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> list[Tensor]:
        """The outputs for a batch of grids `(N, 2 * bins, H, W)` float32."""
        values: dict[str, Tensor] = {}
        for i, node in enumerate(self.graph.nodes):
            arguments = [values[name] for name in node.inputs]
            values[node.name] = self.input(node, x) if node.op == "input" else getattr(self, node.op)(node, *arguments)
            self.observe(node, values[node.name])
            for name in self._free_after.get(i, ()):
                del values[name]
        return [self.read_out(name, values[name]) for name in self.graph.outputs]

    def observe(self, node: Node, value: Tensor) -> None:
        """Called with every node's value; for recorders."""

    def read_out(self, name: str, value: Tensor) -> Tensor:
        """An output as it leaves the network."""
        return value

    def input(self, node: Node, x: Tensor) -> Tensor:
        return x

    def conv(self, node: Node, x: Tensor) -> Tensor:
        weight, bias = self.graph.tensors[f"{node.name}.weight"], self.graph.tensors[f"{node.name}.bias"]
        a = node.attrs
        return F.conv2d(x, weight, bias, a["stride"], a["padding"], a["dilation"], a["groups"])

    def relu(self, node: Node, x: Tensor) -> Tensor:
        return F.relu(x)

    def add(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def concat(self, node: Node, *parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)

    def slice(self, node: Node, x: Tensor) -> Tensor:
        return x[:, node.attrs["start"] : node.attrs["stop"]]

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        return F.max_pool2d(x, node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"])

    def upsample(self, node: Node, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(node.attrs["factor"]), mode="nearest")
