"""The spiking network of a weights file as NIR (Pedersen et al., Nature Communications 2024), as far as NIR goes.

A layer of neurons becomes `IF` with threshold theta / 2 and reset potential -theta / 2, which is a neuron that starts at the
half-threshold and resets by subtraction: a runtime that steps through time has to take v_threshold - v_reset = theta off the
potential of a neuron that fires. Its spikes are ones; theta is in the weights of the convolutions that read them. Additions,
concatenations and channel slices are in the edges and weights: each convolution becomes one `Conv2d` for each layer that it
reads, their currents add up. Shifts are in the biases. The input is the same grid at every timestep; an output's mean over
the timesteps is the read-out.

NIR neurons fire one spike at a time. Where the burst limit is 1 the spikes are ours; where it is larger, the limit is in the
metadata (`phi` of the node), and a runtime without bursts clips. Max-pool, upsampling, negative spikes and padded average
pools cannot be said in NIR.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evburst.data.errors import ModelError
from evburst.data.extras import require
from evburst.data.files import replacing
from evburst.models.graph import Graph, Node
from evburst.models.spiking.cost import node_shapes
from evburst.models.spiking.network import SpikingParameters


@dataclass(frozen=True)
class NirGraph:
    """What was translated.

    Attributes:
        graph: a `nir.NIRGraph`.
        left_out: nodes that are not in it, with the reason of the first; empty if it is whole.
    """

    graph: Any
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """Channels of a signal: from `at` on, the channels [start, start + len(worth)) of a NIR node, each times its worth."""

    at: int
    source: str
    start: int
    worth: Tensor


def to_nir(graph: Graph, parameters: SpikingParameters, size: tuple[int, int, int], part: bool = False) -> NirGraph:
    """Translate a spiking network for one size of grid.

    Args:
        graph: the network that spikes.
        parameters: its neurons.
        size: (2 * bins, H, W) of a grid; NIR graphs have fixed sizes.
        part: translate what can be, up to the layers of neurons behind which something cannot; they become outputs.

    Raises:
        MissingPackageError: the package nir is missing.
        ModelError: a node cannot be translated and `part` is not set.
    """
    nir = require("nir", "export", "writing NIR")
    refused = _refused(graph, parameters)
    if refused and not part:
        name, reason = next(iter(refused.items()))
        raise ModelError(f"{name!r}: {reason} cannot be said in NIR; --part writes the network up to there")
    return NirGraph(_Translator(nir, graph, parameters, size, refused).graph(), tuple(refused))


def write_nir(path: Path, translated: NirGraph) -> None:
    """Write a translated network (HDF5); raises DataError if the file cannot be written."""
    nir = require("nir", "export", "writing NIR")

    content = io.BytesIO()  # on a full disk the HDF5 library ends the process
    nir.write(content, translated.graph)
    with replacing(path) as part:
        part.write_bytes(content.getvalue())


def _refused(graph: Graph, parameters: SpikingParameters) -> dict[str, str]:
    """Nodes that cannot be translated, in order, each with its reason; what reads one of them cannot, either."""
    refused: dict[str, str] = {}
    for node in graph.nodes:
        reason = {"max_pool": "max-pool", "upsample": "upsampling"}.get(node.op, "")
        if node.op == "relu" and parameters.neurons[node.name].signed:
            reason = "a neuron with negative spikes"
        elif node.op == "avg_pool" and node.attrs["kernel"] and any(node.attrs["padding"]):
            reason = "a padded average pool"
        elif node.op == "conv" and len(set(graph.tensors[f"{node.name}.weight"].shape[2:])) > 1:
            reason = "a kernel that is not square"  # the package nir infers wrong shapes from it
        behind = next((name for name in node.inputs if name in refused), None)
        if reason or behind:
            refused[node.name] = reason or f"what is behind {behind!r}"
    return refused


class _Translator:
    """Walks the nodes once; `_signals` holds, for every node, the pieces that add up to its value."""

    def __init__(
        self,
        nir: Any,
        graph: Graph,
        parameters: SpikingParameters,
        size: tuple[int, int, int],
        refused: dict[str, str],
    ) -> None:
        self._nir, self._graph, self._parameters, self._refused = nir, graph, parameters, refused
        self._shapes, self._readers = node_shapes(graph, *size), graph.consumers()
        self._nodes: dict[str, Any] = {}
        self._edges: list[tuple[str, str]] = []
        self._channels: dict[str, int] = {}
        self._signals: dict[str, list[_Piece]] = {}

    def graph(self) -> Any:
        for node in self._graph.nodes:
            if node.name not in self._refused:
                getattr(self, f"_{node.op}")(node)
        kept = self._reaching_an_output()
        if not kept:
            raise ModelError("nothing of this network can be said in NIR")
        nodes = {name: node for name, node in self._nodes.items() if name in kept}
        metadata = {
            "timesteps": self._parameters.timesteps,
            "reset": "a neuron that fires loses v_threshold - v_reset",
            "spikes_per_step": "1 in NIR; in this network up to phi, see the metadata of each IF",
            "output": "currents: the mean over the timesteps is the read-out; layers of neurons: their spikes",
        }
        return self._nir.NIRGraph(nodes, [e for e in self._edges if kept.issuperset(e)], metadata=metadata)

    def _reaching_an_output(self) -> set[str]:
        kept = {name for name, node in self._nodes.items() if isinstance(node, self._nir.Output)}
        while more := {a for a, b in self._edges if b in kept} - kept:
            kept |= more
        return kept

    def _input(self, node: Node) -> None:
        shape = self._shapes[node.name]
        self._add_node(node.name, self._nir.Input(input_type=np.array(shape)), shape[0])
        self._signals[node.name] = [_Piece(0, node.name, 0, torch.ones(shape[0]))]

    def _conv(self, node: Node) -> None:
        weight, bias = (self._graph.tensors[f"{node.name}.{what}"] for what in ("weight", "bias"))
        self._signals[node.name] = self._linear(
            node.name, _dense(weight, node.attrs["groups"]), bias, node.inputs[0], node.attrs
        )
        if node.name in self._graph.outputs:
            shift = self._parameters.readout_shift[node.name]
            self._output(node.name, self._delivered(node.name, f"{node.name}.readout", shift))

    def _relu(self, node: Node) -> None:
        layer, shape = self._parameters.neurons[node.name], self._shapes[node.name]
        sources = self._delivered(node.inputs[0], f"{node.name}.current", layer.shift)
        half = np.broadcast_to((layer.theta / 2).numpy()[:, None, None], shape).copy()
        neurons = self._nir.IF(np.ones_like(half), half, -half, metadata={"phi": layer.phi})
        self._add_node(node.name, neurons, shape[0], sources)
        self._signals[node.name] = [_Piece(0, node.name, 0, layer.theta)]
        if self._read_by_refused(node.name):
            self._output(node.name, [node.name])

    def _read_by_refused(self, name: str) -> bool:
        """Whether a node's spikes go, as they are, to something that was left out."""
        passing = ("slice", "concat", "add", "avg_pool")
        return any(r.name in self._refused or (r.op in passing and self._read_by_refused(r.name)) for r in self._readers[name])

    def _avg_pool(self, node: Node) -> None:
        kernel = node.attrs["kernel"] or list(self._shapes[node.inputs[0]][1:])
        stride = node.attrs["stride"] if node.attrs["kernel"] else kernel
        pieces = self._signals[node.inputs[0]]
        for k, source in enumerate(dict.fromkeys(piece.source for piece in pieces)):
            name = f"{node.name}.{k}"
            pool = self._nir.AvgPool2d(np.array(kernel), np.array(stride), np.array([0, 0]))
            self._add_node(name, pool, self._channels[source], [source])
            pieces = [replace(piece, source=name) if piece.source == source else piece for piece in pieces]
        self._signals[node.name] = pieces

    def _add(self, node: Node) -> None:
        self._signals[node.name] = [piece for name in node.inputs for piece in self._signals[name]]

    def _concat(self, node: Node) -> None:
        pieces, first = [], 0
        for name in node.inputs:
            pieces += [replace(piece, at=piece.at + first) for piece in self._signals[name]]
            first += self._shapes[name][0]
        self._signals[node.name] = pieces

    def _slice(self, node: Node) -> None:
        start, stop = node.attrs["start"], node.attrs["stop"]
        pieces = []
        for piece in self._signals[node.inputs[0]]:
            cut, end = max(start - piece.at, 0), min(stop - piece.at, len(piece.worth))
            if cut < end:
                pieces.append(_Piece(piece.at + cut - start, piece.source, piece.start + cut, piece.worth[cut:end]))
        self._signals[node.name] = pieces

    def _delivered(self, name: str, link: str, shift: Tensor) -> list[str]:
        """NIR nodes whose outputs add up to a node's value and a shift: its convolutions themselves, or links of 1 x 1."""
        pieces, channels = self._signals[name], self._shapes[name][0]
        own = all(isinstance(self._nodes[piece.source], self._nir.Conv2d) for piece in pieces)
        whole = own and all(piece.at == 0 and len(piece.worth) == channels for piece in pieces)
        if whole and len(self._readers[name]) + (name in self._graph.outputs) == 1 and self._graph_op(name) == "conv":
            first = self._nodes[pieces[0].source]
            first.bias = first.bias + shift.numpy()
            return [piece.source for piece in pieces]
        identity = torch.eye(channels)[:, :, None, None]
        geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
        return [piece.source for piece in self._linear(link, identity, shift, name, geometry)]

    def _linear(self, name: str, weight: Tensor, bias: Tensor, reads: str, geometry: dict[str, Any]) -> list[_Piece]:
        """A convolution as one `Conv2d` for each NIR node that its input is made of, the bias in the first; the pieces of its value."""
        pieces = self._signals[reads]
        sources = list(dict.fromkeys(piece.source for piece in pieces))
        made = []
        for k, source in enumerate(sources):
            part = weight.new_zeros(len(weight), self._channels[source], *weight.shape[2:])
            for piece in pieces:
                if piece.source == source:
                    n = len(piece.worth)
                    columns = weight[:, piece.at : piece.at + n] * piece.worth[:, None, None]
                    part[:, piece.start : piece.start + n] += columns
            unique = name if len(sources) == 1 else f"{name}.{k}"
            size, window = self._shapes[reads][1:], [tuple(geometry[key]) for key in ("stride", "padding", "dilation")]
            offset = bias if k == 0 else torch.zeros_like(bias)
            self._add_node(unique, self._nir.Conv2d(size, part.numpy(), *window, 1, offset.numpy()), len(weight), [source])
            made.append(_Piece(0, unique, 0, torch.ones(len(weight))))
        return made

    def _output(self, name: str, sources: list[str]) -> None:
        self._add_node(f"{name}.output", self._nir.Output(output_type=np.array(self._shapes[name])), 0, sources)

    def _add_node(self, name: str, node: Any, channels: int, sources: list[str] | None = None) -> None:
        self._nodes[name], self._channels[name] = node, channels
        self._edges += [(source, name) for source in sources or ()]

    def _graph_op(self, name: str) -> str:
        return next(node.op for node in self._graph.nodes if node.name == name)


def _dense(weight: Tensor, groups: int) -> Tensor:
    """The weights of a grouped convolution `(C_out, C_in / groups, kh, kw)` as those of one without groups."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        dense[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return dense
