"""A detector as a plain list of nodes: what conversion produces, a weights file holds, and every engine runs.

Only nine operations exist, so an engine is nine methods:

    input      the voxel grid
    conv       weight, bias; stride, padding, dilation, groups   (linear: makes currents); `merged`: parallel ones it holds, too
    relu       the activation; `ceiling` (6 in ReLU6) and `negative_slope` (LeakyReLU) where it has them
                                                                 (in a spiking network: a layer of burst neurons)
    add        of two signals
    concat     along channels
    slice      channels [start, stop)
    max_pool   kernel, stride, padding
    avg_pool   kernel, stride, padding; kernel null: of the whole map, to 1 x 1
    upsample   nearest, integer factor
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from evburst.data.errors import CheckpointError
from torch import Tensor

OPERATIONS = ("input", "conv", "relu", "add", "concat", "slice", "max_pool", "avg_pool", "upsample")


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

    def in_float16(self) -> Graph:
        """With its tensors as float16 holds them, which is how they are stored; still float32."""
        return Graph(self.nodes, self.outputs, {name: tensor.half().float() for name, tensor in self.tensors.items()})

    def channels_last(self) -> Graph:
        """With its weights laid out for grids in torch's channels_last format, which convolutions are faster on; the same otherwise."""
        laid_out = {k: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for k, t in self.tensors.items()}
        return Graph(self.nodes, self.outputs, laid_out)

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


def activation(x: Tensor, ceiling: float = math.inf, negative_slope: float = 0.0) -> Tensor:
    """ReLU, or with its ceiling ReLU6, or with a slope below zero LeakyReLU; the keywords are a relu node's attributes."""
    y = F.leaky_relu(x, negative_slope) if negative_slope else F.relu(x)
    return y if ceiling == math.inf else y.clamp(max=ceiling)


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
        return self.compute(x)

    def compute(self, x: Tensor) -> list[Tensor]:
        """The same, for those who want gradients."""
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

    def weight(self, node: Node) -> Tensor:
        """What a convolution multiplies by."""
        return self.graph.tensors[f"{node.name}.weight"]

    def input(self, node: Node, x: Tensor) -> Tensor:
        return x

    def conv(self, node: Node, x: Tensor) -> Tensor:
        a, bias = node.attrs, self.graph.tensors[f"{node.name}.bias"]
        return F.conv2d(x, self.weight(node), bias, a["stride"], a["padding"], a["dilation"], a["groups"])

    def relu(self, node: Node, x: Tensor) -> Tensor:
        return activation(x, **node.attrs)

    def add(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def concat(self, node: Node, *parts: Tensor) -> Tensor:
        return torch.cat(parts, 1)

    def slice(self, node: Node, x: Tensor) -> Tensor:
        return x[:, node.attrs["start"] : node.attrs["stop"]]

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        return F.max_pool2d(x, node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"])

    def avg_pool(self, node: Node, x: Tensor) -> Tensor:
        a = node.attrs
        if a["kernel"] is None:
            return x.mean((2, 3), keepdim=True)
        return F.avg_pool2d(x, a["kernel"], a["stride"], a["padding"])

    def upsample(self, node: Node, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=float(node.attrs["factor"]), mode="nearest")
