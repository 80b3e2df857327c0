"""A detector with memory: an existing network whose features are held where nothing happens.

Objects that stand still in front of a camera that stands still cause no events. Before the head of every stride, a hold node
keeps the spikes of the last window in which there were events. No weight changes, and nothing is trained.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from evburst.data.errors import ConfigError
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Node

if TYPE_CHECKING:
    from evburst.models.bundle import Bundle

EVENTS_PER_PIXEL = 0.15
"""Events per pixel and window from which on a cell is not held. Real sensors make up to 0.1 by themselves. Chosen on drawn
streets whose objects stop, with little and with much noise, and on simulated sequences of pictures of the split "select". With
fewer, noise ends what is held; and where the cells around a cell count as well, less of what stands is found."""


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
        cell = {"kernel": [stride, stride], "stride": [stride, stride], "padding": [0, 0]}
        attrs = cell | {"events": round(EVENTS_PER_PIXEL * stride * stride)}
        hold = Node(f"{relu}.hold", "hold", (relu, grid), attrs)
        nodes = [replace(n, inputs=tuple(hold.name if name == relu else name for name in n.inputs)) for n in nodes]
        nodes.insert(next(k for k, n in enumerate(nodes) if n.name == relu) + 1, hold)
    return Graph(nodes, graph.outputs, graph.tensors)


def remembering(bundle: Bundle) -> Bundle:
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
