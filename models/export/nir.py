"""Export of the spiking network of a weights file to NIR (Pedersen et al., Nature Communications 2024), as far as NIR allows.

A layer of neurons becomes `IF` with threshold theta / 2 and reset potential -theta / 2. This represents a neuron that starts at
half its threshold and is reset by subtraction: a runtime must subtract v_threshold - v_reset = theta from the potential of a
neuron that fires. Its spikes have the value 1; theta is folded into the weights of the convolutions that read them. Additions,
concatenations and channel slices are folded into edges and weights: each convolution becomes one `Conv2d` per layer that it
reads, and their currents are added. Shifts are folded into the biases. The input is the same grid at every timestep; the mean
of an output over the timesteps is the read-out.

NIR neurons fire at most one spike per timestep. The spikes are the same only where the burst limit is 1. A larger limit is
stored in the metadata of the node (`phi`); a runtime without bursts ignores it and loses spikes. NIR has no equivalent of
max-pool, upsampling, negative spikes and padded average pools.
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
    """Result of a translation.

    Attributes:
        graph: a `nir.NIRGraph`.
        left_out: names of the nodes that were not translated; empty if the graph is complete.
    """

    graph: Any
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """Consecutive channels of a signal that come from one NIR node.

    Attributes:
        at: first channel in the signal.
        source: name of the NIR node.
        start: first channel in that node.
        scale: factor of each channel.
    """

    at: int
    source: str
    start: int
    scale: Tensor


def to_nir(graph: Graph, parameters: SpikingParameters, size: tuple[int, int, int], part: bool = False) -> NirGraph:
    """Translate a spiking network for grids of one size.

    Args:
        graph: the spiking network.
        parameters: thresholds, burst limits and shifts.
        size: (2 * bins, H, W) of a grid; NIR graphs have fixed sizes.
        part: if some nodes cannot be translated, translate those before them; the last layers of neurons become outputs.

    Raises:
        MissingPackageError: the package nir is missing.
        ModelError: a node cannot be translated and `part` is not set, or nothing can be translated.
    """
    nir = require("nir", "export", "writing NIR")
    unsupported = _unsupported(graph, parameters)
    if unsupported and not part:
        name, reason = next(iter(unsupported.items()))
        raise ModelError(f"{name!r}: {reason} cannot be expressed in NIR; --part writes the network up to there")
    return NirGraph(_Translator(nir, graph, parameters, size, unsupported).graph(), tuple(unsupported))


def write_nir(path: Path, translated: NirGraph) -> None:
    """Write a translated network to an HDF5 file; raises DataError if the file cannot be written."""
    nir = require("nir", "export", "writing NIR")

    content = io.BytesIO()  # on a full disk the HDF5 library ends the process
    nir.write(content, translated.graph)
    with replacing(path) as part:
        part.write_bytes(content.getvalue())


def _unsupported(graph: Graph, parameters: SpikingParameters) -> dict[str, str]:
    """Nodes that cannot be translated with the reason, in order, including all nodes that depend on them."""
    unsupported: dict[str, str] = {}
    for node in graph.nodes:
        reason = {"max_pool": "max-pool", "upsample": "upsampling", "hold": "memory"}.get(node.op, "")
        if node.op == "relu" and parameters.neurons[node.name].signed:
            reason = "a neuron with negative spikes"
        elif node.op == "avg_pool" and node.attrs["kernel"] and any(node.attrs["padding"]):
            reason = "a padded average pool"
        elif node.op == "conv" and len(set(graph.tensors[f"{node.name}.weight"].shape[2:])) > 1:
            reason = "a kernel that is not square"  # the package nir infers wrong shapes for it
        source = next((name for name in node.inputs if name in unsupported), None)
        if reason or source:
            unsupported[node.name] = reason or f"a node after {source!r}"
    return unsupported


class _Translator:
    """Translates a graph node by node; `_signals` holds, for every node, the parts that add up to its value."""

    def __init__(
        self,
        nir: Any,
        graph: Graph,
        parameters: SpikingParameters,
        size: tuple[int, int, int],
        unsupported: dict[str, str],
    ) -> None:
        self._nir, self._graph, self._parameters, self._unsupported = nir, graph, parameters, unsupported
        self._shapes, self._consumers = node_shapes(graph, *size), graph.consumers()
        self._nodes: dict[str, Any] = {}
        self._edges: list[tuple[str, str]] = []
        self._channels: dict[str, int] = {}
        self._signals: dict[str, list[_Part]] = {}

    def graph(self) -> Any:
        for node in self._graph.nodes:
            if node.name not in self._unsupported:
                getattr(self, f"_{node.op}")(node)
        kept = self._nodes_before_outputs()
        if not kept:
            raise ModelError("no part of this network can be expressed in NIR; export it as ONNX instead: --onnx-snn")
        nodes = {name: node for name, node in self._nodes.items() if name in kept}
        metadata = {
            "timesteps": self._parameters.timesteps,
            "reset": "a neuron that fires loses v_threshold - v_reset",
            "spikes_per_step": "1 in NIR; in this network up to phi, see the metadata of each IF",
            "output": "currents: the mean over the timesteps is the read-out; layers of neurons: their spikes",
        }
        return self._nir.NIRGraph(nodes, [e for e in self._edges if kept.issuperset(e)], metadata=metadata)

    def _nodes_before_outputs(self) -> set[str]:
        """Names of the NIR nodes that an output depends on."""
        kept = {name for name, node in self._nodes.items() if isinstance(node, self._nir.Output)}
        while more := {a for a, b in self._edges if b in kept} - kept:
            kept |= more
        return kept

    def _input(self, node: Node) -> None:
        shape = self._shapes[node.name]
        self._add_node(node.name, self._nir.Input(input_type=np.array(shape)), shape[0])
        self._signals[node.name] = [_Part(0, node.name, 0, torch.ones(shape[0]))]

    def _conv(self, node: Node) -> None:
        weight, bias = (self._graph.tensors[f"{node.name}.{what}"] for what in ("weight", "bias"))
        self._signals[node.name] = self._linear(
            node.name, _dense(weight, node.attrs["groups"]), bias, node.inputs[0], node.attrs
        )
        if node.name in self._graph.outputs:
            shift = self._parameters.readout_shift[node.name]
            self._output(node.name, self._summands(node.name, f"{node.name}.readout", shift))

    def _relu(self, node: Node) -> None:
        layer, shape = self._parameters.neurons[node.name], self._shapes[node.name]
        sources = self._summands(node.inputs[0], f"{node.name}.current", layer.shift)
        half = np.broadcast_to((layer.theta / 2).numpy()[:, None, None], shape).copy()
        neurons = self._nir.IF(np.ones_like(half), half, -half, metadata={"phi": layer.phi})
        self._add_node(node.name, neurons, shape[0], sources)
        self._signals[node.name] = [_Part(0, node.name, 0, layer.theta)]
        if self._read_by_unsupported(node.name):
            self._output(node.name, [node.name])

    def _read_by_unsupported(self, name: str) -> bool:
        """Whether a node that was not translated reads the spikes of this one, directly or through nodes that pass them on."""
        passing = ("slice", "concat", "add", "avg_pool")
        return any(
            user.name in self._unsupported or (user.op in passing and self._read_by_unsupported(user.name))
            for user in self._consumers[name]
        )

    def _avg_pool(self, node: Node) -> None:
        kernel = node.attrs["kernel"] or list(self._shapes[node.inputs[0]][1:])
        stride = node.attrs["stride"] if node.attrs["kernel"] else kernel
        parts = self._signals[node.inputs[0]]
        for k, source in enumerate(dict.fromkeys(part.source for part in parts)):
            name = f"{node.name}.{k}"
            pool = self._nir.AvgPool2d(np.array(kernel), np.array(stride), np.array([0, 0]))
            self._add_node(name, pool, self._channels[source], [source])
            parts = [replace(part, source=name) if part.source == source else part for part in parts]
        self._signals[node.name] = parts

    def _add(self, node: Node) -> None:
        self._signals[node.name] = [part for name in node.inputs for part in self._signals[name]]

    def _concat(self, node: Node) -> None:
        parts, first = [], 0
        for name in node.inputs:
            parts += [replace(part, at=part.at + first) for part in self._signals[name]]
            first += self._shapes[name][0]
        self._signals[node.name] = parts

    def _slice(self, node: Node) -> None:
        start, stop = node.attrs["start"], node.attrs["stop"]
        parts = []
        for part in self._signals[node.inputs[0]]:
            low, high = max(start - part.at, 0), min(stop - part.at, len(part.scale))
            if low < high:
                parts.append(_Part(part.at + low - start, part.source, part.start + low, part.scale[low:high]))
        self._signals[node.name] = parts

    def _summands(self, name: str, link: str, shift: Tensor) -> list[str]:
        """Names of NIR nodes whose outputs add up to the value of a node plus a shift.

        These are the node's own convolutions if nothing else reads them, or else new 1 x 1 convolutions named `link`.
        """
        parts, channels = self._signals[name], self._shapes[name][0]
        only_convs = all(isinstance(self._nodes[part.source], self._nir.Conv2d) for part in parts)
        complete = only_convs and all(part.at == 0 and len(part.scale) == channels for part in parts)
        if complete and len(self._consumers[name]) + (name in self._graph.outputs) == 1 and self._graph_op(name) == "conv":
            first = self._nodes[parts[0].source]
            first.bias = first.bias + shift.numpy()
            return [part.source for part in parts]
        identity = torch.eye(channels)[:, :, None, None]
        geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
        return [part.source for part in self._linear(link, identity, shift, name, geometry)]

    def _linear(self, name: str, weight: Tensor, bias: Tensor, source_name: str, geometry: dict[str, Any]) -> list[_Part]:
        """Add a convolution as one `Conv2d` per NIR node that its input consists of, with the bias in the first of them."""
        parts = self._signals[source_name]
        sources = list(dict.fromkeys(part.source for part in parts))
        results = []
        for k, source in enumerate(sources):
            own = weight.new_zeros(len(weight), self._channels[source], *weight.shape[2:])
            for part in parts:
                if part.source == source:
                    n = len(part.scale)
                    columns = weight[:, part.at : part.at + n] * part.scale[:, None, None]
                    own[:, part.start : part.start + n] += columns
            unique = name if len(sources) == 1 else f"{name}.{k}"
            size, window = self._shapes[source_name][1:], [tuple(geometry[key]) for key in ("stride", "padding", "dilation")]
            offset = bias if k == 0 else torch.zeros_like(bias)
            self._add_node(unique, self._nir.Conv2d(size, own.numpy(), *window, 1, offset.numpy()), len(weight), [source])
            results.append(_Part(0, unique, 0, torch.ones(len(weight))))
        return results

    def _output(self, name: str, sources: list[str]) -> None:
        self._add_node(f"{name}.output", self._nir.Output(output_type=np.array(self._shapes[name])), 0, sources)

    def _add_node(self, name: str, node: Any, channels: int, sources: list[str] | None = None) -> None:
        self._nodes[name], self._channels[name] = node, channels
        self._edges += [(source, name) for source in sources or ()]

    def _graph_op(self, name: str) -> str:
        return next(node.op for node in self._graph.nodes if node.name == name)


def _dense(weight: Tensor, groups: int) -> Tensor:
    """Convert the weights of a grouped convolution `(C_out, C_in / groups, kh, kw)` to those of an ordinary one."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    dense = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        dense[rows, g * inputs : (g + 1) * inputs] = weight[rows]
    return dense
