"""A detector with memory: an existing network whose features are held where nothing happens.

Objects that stand still in front of a camera that stands still cause no events. Before the head of every stride, a hold node
keeps the spikes of the last window in which there were events nearby. The convolution before it and everything after it learn
from sequences of windows, by gradient descent through time; the layers before stay what they are.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evburst.data.errors import ConfigError
from evburst.data.extras import require
from evburst.models.detectors import loss_targets
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Memory, Node, Runner

if TYPE_CHECKING:
    from evburst.models.bundle import DetectorBundle

EVENTS_PER_PIXEL = 0.15
"""Events per pixel and window from which on a cell and its neighbours are not held. Real sensors make up to 0.1 by themselves.
Of 0.15, 0.3 and 0.6, it gave the highest AP on simulated sequences of training pictures."""
_CELLS = 3
"""Side of the area in which these events are counted, in cells of the stride."""


def with_memory(graph: Graph, head: HeadSpec) -> Graph:
    """Return a network that holds the layer before the head of every stride where nothing happens; weights stay the same.

    Args:
        graph: the network of a YOLO detector without memory.
        head: how its outputs are decoded.

    Raises:
        ConfigError: another kind of network, or it has no layer that can be held.
    """
    if head.kind != "yolo" or graph.memories:
        raise ConfigError("memory: can be added to a YOLO detector without memory only")
    levels, nodes, grid = len(head.strides), list(graph.nodes), graph.nodes[0].name
    pairs = zip(graph.outputs[:levels], graph.outputs[levels:], strict=True)
    for relu in dict.fromkeys(_last_common(graph, *pair).name for pair in pairs):
        stride = _stride_of(graph, relu, max(head.strides))
        side = _CELLS * stride
        window = {"kernel": [side, side], "stride": [stride, stride], "padding": [stride * (_CELLS // 2)] * 2}
        attrs = window | {"events": round(EVENTS_PER_PIXEL * side * side)}
        hold = Node(f"{relu}.hold", "hold", (relu, grid), attrs)
        nodes = [replace(n, inputs=tuple(hold.name if name == relu else name for name in n.inputs)) for n in nodes]
        nodes.insert(next(k for k, n in enumerate(nodes) if n.name == relu) + 1, hold)
    return Graph(nodes, graph.outputs, graph.tensors)


def remembering(bundle: DetectorBundle) -> DetectorBundle:
    """Return a detector with a memory, see `with_memory`, or as it is if it has one; raises ConfigError likewise."""
    if bundle.graph.memories:
        return bundle
    changed = copy(bundle)
    object.__setattr__(changed, "graph", with_memory(bundle.graph, bundle.head))
    if bundle.converted:
        object.__setattr__(changed, "spiking", with_memory(bundle.spiking, bundle.head))
    return changed


def _stride_of(graph: Graph, name: str, multiple: int) -> int:
    """Pixels of the grid per position of a node's value; sides of grids are multiples of `multiple`."""
    side = 4 * multiple * graph.stride
    return side // graph.shapes(graph.channels, side, side)[name][1]


def _last_common(graph: Graph, *outputs: str) -> Node:
    """The last relu that all of these outputs depend on."""
    reached = [{node.name for node in graph.reading_out([name]).nodes} for name in outputs]
    for node in reversed(graph.nodes):
        if node.op == "relu" and all(node.name in names for names in reached) and not node.attrs.get("negative_slope"):
            return node
    raise ConfigError("memory: no layer before the head can be held; it takes a ReLU that both of its maps depend on")


class Remembering(nn.Module):
    """A trainable graph with memory; see `Network`.

    Args:
        graph: the network, see `with_memory`.
        head: how its outputs are decoded.
        length: number of windows of a sequence, in batches of `loss`.
    """

    loss_names = ("box", "cls", "dfl")

    def __init__(self, graph: Graph, head: HeadSpec, length: int) -> None:
        super().__init__()
        self.head_spec, self._length = head, length
        self._structure = Graph(graph.nodes, graph.outputs, {})
        self._held = _after_hold(graph)
        learning = self._held | _before_hold(graph)
        for name, tensor in graph.tensors.items():
            learns = name.rpartition(".")[0] in learning
            self.register_parameter(_key(name), nn.Parameter(tensor.clone(), requires_grad=learns))
        self._criterion: Any = None

    @property
    def graph(self) -> Graph:
        """The network with the present weights."""
        named = dict(self.named_parameters())
        tensors: dict[str, Tensor] = {name: named[_key(name)] for name in self._structure.tensor_names}
        return Graph(self._structure.nodes, self._structure.outputs, tensors)

    def forward(self, x: Tensor, memory: Memory | None = None) -> list[Tensor]:
        """Compute the raw maps of the head for a batch of grids; see `Runner.compute`."""
        return Runner(self.graph).compute(x, memory)

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """Compute the box, class and distribution losses of whole sequences, `(3,)`, multiplied by the batch size.

        Args:
            x: `(N, 2 * bins, H, W)` float; N is a multiple of the sequences' length, whose windows follow each other.
            boxes, labels, image_index, amp: see `Network.loss`.
        """
        if self._criterion is None:
            loss = require("ultralytics.utils.loss", "train", "training a YOLO network")
            self._criterion = loss.v8DetectionLoss(_Described(self.head_spec, x.device))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            maps = [output.float() for output in self._through_time(x)]
        levels = len(self.head_spec.strides)
        predictions = {
            "boxes": torch.cat([output.flatten(2) for output in maps[:levels]], 2),
            "scores": torch.cat([output.flatten(2) for output in maps[levels:]], 2),
            "feats": maps[:levels],
        }
        total: Tensor = self._criterion(predictions, loss_targets(x, boxes, labels, image_index))[0]
        return total

    def _through_time(self, x: Tensor) -> list[Tensor]:
        """Outputs for sequences that lie one after the other in a batch; memory is empty at their beginnings."""
        runner, length = Runner(self.graph), self._length
        values: dict[str, Tensor] = {}
        for node in runner.graph.nodes:
            if node.name not in self._held:
                runner.advance(node, values, x)
        by_time: list[list[Tensor]] = []
        memory: Memory = {}
        for t in range(length):
            now = {name: value[t::length] for name, value in values.items()}
            for node in runner.graph.nodes:
                if node.name in self._held:
                    runner.advance_with(node, now, memory)
            by_time.append([now[name] for name in runner.graph.outputs])
        return [torch.stack(outputs, 1).flatten(0, 1) for outputs in zip(*by_time, strict=True)]


def _after_hold(graph: Graph) -> set[str]:
    """Names of the nodes whose values depend on earlier windows."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op == "hold" or not found.isdisjoint(node.inputs):
            found.add(node.name)
    return found


def _before_hold(graph: Graph) -> set[str]:
    """Names of the convolutions that drive the neurons that are held."""
    inputs = {node.name: node.inputs for node in graph.nodes}
    return {name for hold in graph.memories for name in inputs[hold.inputs[0]]}


def _key(tensor: str) -> str:
    """Name of a tensor as a parameter, which must not contain dots."""
    return tensor.replace(".", "/")


class _Described(nn.Module):
    """What ultralytics' loss reads from a model: its device, gains and head."""

    def __init__(self, head: HeadSpec, device: torch.device) -> None:
        from evburst.models.detectors.yolo import LOSS_GAINS

        super().__init__()
        self.placed = nn.Parameter(torch.zeros(1, device=device))
        self.args = LOSS_GAINS
        strides = torch.tensor(head.strides, dtype=torch.float32, device=device)
        self.model = [SimpleNamespace(stride=strides, nc=len(head.classes), reg_max=head.reg_max)]
