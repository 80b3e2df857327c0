"""A network as a flat list of nodes: the result of tracing, the content of a weights file, and the input of every engine."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.errors import CheckpointError
from evburst.models.operations import OPERATIONS, STRUCTURE, Shape, WeightShapes, infer_shapes
from evburst.models.schema import parse


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        name: unique name; that of the module it was traced from, where there is one.
        op: a key of OPERATIONS (models/operations.py).
        inputs: names of the nodes whose values it takes.
        attrs: geometry and other attributes, of JSON types only.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Graph:
    """A network.

    Attributes:
        nodes: in topological order; the first is the input.
        outputs: names of the nodes whose values the network returns.
        tensors: `<conv>.weight` `(C_out, C_in / groups, kh, kw)` and `<conv>.bias` `(C_out,)`, float32.
    """

    nodes: list[Node]
    outputs: list[str]
    tensors: dict[str, Tensor]

    def in_float16(self) -> Graph:
        """Return a graph with its tensors rounded to float16, as weights files store them; their dtype stays float32."""
        return Graph(self.nodes, self.outputs, {name: tensor.half().float() for name, tensor in self.tensors.items()})

    def on(self, device: torch.device, copy: bool = False) -> Graph:
        """Return the graph on a device; `copy`: with tensors of its own, which can learn where inference tensors could not."""
        tensors = {name: tensor.detach().to(device, copy=copy) for name, tensor in self.tensors.items()}
        return Graph(self.nodes, self.outputs, tensors)

    def channels_last(self) -> Graph:
        """Return a graph with its weights in torch's channels_last memory format, which speeds up convolutions."""
        tensors = {k: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for k, t in self.tensors.items()}
        return Graph(self.nodes, self.outputs, tensors)

    def to_json(self) -> str:
        """Serialise the structure, without tensors."""
        return json.dumps({"nodes": [asdict(node) for node in self.nodes], "outputs": self.outputs})

    @classmethod
    def from_json(cls, content: str, tensors: dict[str, Tensor]) -> Graph:
        """Rebuild a graph from `to_json`; raises CheckpointError if its structure is invalid. `shapes` checks the tensors."""
        raw = STRUCTURE(parse(content, "graph"), "graph")
        nodes = [Node(n["name"], n["op"], tuple(n["inputs"]), n["attrs"]) for n in raw["nodes"]]
        known: set[str] = set()
        for node in nodes:
            operation, where = OPERATIONS[node.op], f"node {node.name!r}"
            operation.attrs(node.attrs, where)
            low, high = operation.arity
            if not low <= len(node.inputs) <= high:
                raise CheckpointError(f"{where}: {node.op} has {len(node.inputs)} inputs; expected {low} to {high}")
            if missing := [name for name in node.inputs if name not in known]:
                raise CheckpointError(f"{where}: its input {missing[0]!r} is not a node before it")
            if node.name in known or (node.op == "input") != (not known):
                raise CheckpointError(f"{where}: a second node of this name, or an input that is not the first node")
            known.add(node.name)
        by_name = {node.name: node for node in nodes}
        for node in (node for node in nodes if node.op == "hold"):
            held, grid = (by_name[name] for name in node.inputs)
            if held.op != "relu" or held.attrs.get("negative_slope") or grid.op != "input":
                raise CheckpointError(f"node {node.name!r}: hold takes the value of a ReLU, and the input")
        if unknown := [name for name in raw["outputs"] if name not in known]:
            raise CheckpointError(f"output {unknown[0]!r} is not a node of the network")
        if len(set(raw["outputs"])) < len(raw["outputs"]) or nodes[0].name in raw["outputs"]:
            raise CheckpointError("an output is read out twice, or is the input")
        return cls(nodes, raw["outputs"], tensors)

    def shapes(self, channels: int, height: int, width: int) -> dict[str, Shape]:
        """(C, H, W) of every node's value for one size of grid; raises CheckpointError if shapes do not fit together."""
        return infer_shapes(self.nodes, self.weight_shapes, (channels, height, width))

    @property
    def weight_shapes(self) -> WeightShapes:
        """Shape of every tensor, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def stride(self) -> int:
        """The largest reduction of a side, before or after upsampling; sides of inputs are multiples of it."""
        reduction: dict[str, Fraction] = {}
        for node in self.nodes:
            own = max((reduction[name] for name in node.inputs), default=Fraction(1))
            if node.op != "hold":  # its stride is that of windows of the grid
                own = own * max(node.attrs.get("stride", (1, 1))) / node.attrs.get("factor", 1)
            reduction[node.name] = own
        return math.ceil(max(reduction.values()))

    def reading_out(self, outputs: list[str]) -> Graph:
        """Return the part of the graph that some of its outputs depend on."""
        needed = set(outputs)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = [node for node in self.nodes if node.name in needed]
        tensors = {name: tensor for name, tensor in self.tensors.items() if name.rpartition(".")[0] in needed}
        return Graph(nodes, outputs, tensors)

    @property
    def channels(self) -> int:
        """Number of channels of the input, by the weights of the first convolution."""
        conv = next(node for node in self.nodes if node.op == "conv")
        return int(self.tensors[f"{conv.name}.weight"].shape[1]) * int(conv.attrs["groups"])

    @property
    def memories(self) -> list[Node]:
        """The nodes whose values depend on earlier windows."""
        return [node for node in self.nodes if node.op == "hold"]

    def consumers(self) -> dict[str, list[Node]]:
        """Return the nodes that take each node's value as an input, by name."""
        users: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                users[name].append(node)
        return users


def activation(x: Tensor, ceiling: float = math.inf, negative_slope: float = 0.0) -> Tensor:
    """ReLU; ReLU6 with a ceiling; LeakyReLU with a negative slope. The keywords are the attributes of a relu node."""
    y = F.leaky_relu(x, negative_slope) if negative_slope else F.relu(x)
    return y if ceiling == math.inf else y.clamp(max=ceiling)


Memory = dict[str, Tensor]
"""Values `(N, C, H, W)` float32 of the hold nodes of a graph in the window before, by name. Empty before the first window of a
sequence."""


class Runner:
    """Computes a graph node by node, as the ANN. Engines override single operations.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._memory: Memory = {}
        last_reader = {name: node.name for node in graph.nodes for name in node.inputs}
        self._free_after: dict[str, list[str]] = {}
        for name, reader in last_reader.items():
            if name not in graph.outputs:
                self._free_after.setdefault(reader, []).append(name)

    @torch.inference_mode()
    def __call__(self, x: Tensor, memory: Memory | None = None) -> list[Tensor]:
        """Compute the outputs for a batch of grids, without gradients; see `compute`."""
        return self.compute(x, memory)

    def compute(self, x: Tensor, memory: Memory | None = None) -> list[Tensor]:
        """Compute the outputs for a batch of grids.

        Args:
            x: `(N, 2 * bins, H, W)` float32.
            memory: of the window before, replaced by that of this window; None: there is none before, and none is kept.
        """
        self._memory = {} if memory is None else memory
        values: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            self.advance(node, values, x)
        self._memory = {}
        return self.read_outs(values)

    def advance(self, node: Node, values: dict[str, Tensor], x: Tensor) -> None:
        """Compute one node, add its value to those of earlier nodes, and drop those that no later node reads.

        Args:
            node: the next node in the order of the graph.
            values: values of the nodes computed so far, by name; modified in place.
            x: the batch of grids.
        """
        arguments = [values[name] for name in node.inputs]
        values[node.name] = self.input(node, x) if node.op == "input" else getattr(self, node.op)(node, *arguments)
        self.observe(node, values[node.name])
        for name in self._free_after.get(node.name, ()):
            del values[name]

    def read_outs(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Collect the outputs after every node has been computed."""
        return [self.read_out(name, values[name]) for name in self.graph.outputs]

    def observe(self, node: Node, value: Tensor) -> None:
        """Hook that is called with the value of every node; does nothing here."""

    def read_out(self, name: str, value: Tensor) -> Tensor:
        """Convert the value of an output node to what the network returns."""
        return value

    def weight(self, node: Node) -> Tensor:
        """Weights that a convolution uses."""
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

    def hold(self, node: Node, x: Tensor, grid: Tensor) -> Tensor:
        before = self._memory.get(node.name)
        value = x if before is None else torch.where(is_active(node, grid), x, before)
        self._memory[node.name] = value
        return value


def is_active(hold: Node, grid: Tensor) -> Tensor:
    """Return where a hold node lets its value through, `(N, 1, h, w)` bool, for grids `(N, 2 * bins, H, W)`."""
    a = hold.attrs
    least: float = (a["events"] - 0.5) / math.prod(a["kernel"])
    return F.avg_pool2d(grid.float().sum(1, keepdim=True), a["kernel"], a["stride"], a["padding"]) > least
