"""Export of the spiking network of a weights file to NIR (Pedersen et al., Nature Communications 2024), as far as NIR allows.

Neurons of NIR fire at most one spike per timestep. At one timestep, a burst is written as several neurons: n = clip(floor(c /
theta + 1/2), 0, phi) is the number of k in 1 ... phi with c / theta >= k - 1/2, so that a neuron of current c becomes phi
neurons `IF` with threshold 1 and the currents c / theta + 3/2 - k. A layer of C neurons is thus one `IF` of phi * C channels,
those of the k-th spike from channel (k - 1) * C on. 1 / theta and 3/2 - k are folded into the convolutions that drive it,
which repeat their output channels, theta into those that read it, which repeat their input channels: weights grow by the
square of phi. A max-pool of counts is the sum over k of whether any of the k-th neurons of a window fires: an `AvgPool2d` and
an `IF` whose threshold a single spike exceeds.

At several timesteps, a layer of neurons becomes `IF` with threshold theta / 2 and reset potential -theta / 2. This represents
a neuron that starts at half its threshold and is reset by subtraction: a runtime must subtract v_threshold - v_reset = theta
from the potential of a neuron that fires. The spikes are then the same only where the burst limit is 1. A larger limit is
stored in the metadata of the node (`phi`); a runtime without bursts ignores it and loses spikes.

Spikes have the value 1. Additions, concatenations and channel slices are folded into edges and weights: each convolution
becomes one `Conv2d` per layer that it reads, and their currents are added. Shifts are folded into the biases. The input is
the same grid at every timestep; the mean of an output over the timesteps is the read-out. NIR has no equivalent of
upsampling, negative spikes, memory and padded average pools, and of max-pools only the above.
"""

from __future__ import annotations

import io
import math
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
from evburst.models.spiking.network import SpikingParameters
from evburst.models.spiking.neurons import NeuronLayer

_MOST_NUMBERS = 2**28
"""A graph with more weights, or with more numbers for its neurons, is not written; it would take more than a gigabyte."""

_NUMBERS_OF_IF = 3
"""What an `IF` stores for every neuron: resistance, threshold and reset potential."""


@dataclass(frozen=True)
class NirGraph:
    """Result of a translation.

    Attributes:
        graph: a `nir.NIRGraph`.
        left_out: names of the nodes that were not translated; empty if the graph is complete.
        bursts: whether its neurons together emit bursts; otherwise at most one spike per timestep.
    """

    graph: Any
    left_out: tuple[str, ...]
    bursts: bool


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

    At one timestep, bursts are written as several neurons, unless only a part can be translated: that is no network to be run,
    and it stays small.

    Args:
        graph: the spiking network.
        parameters: thresholds, burst limits and shifts.
        size: (2 * bins, H, W) of a grid; NIR graphs have fixed sizes.
        part: if some nodes cannot be translated, translate those before them; the last layers of neurons become outputs.

    Raises:
        MissingPackageError: the package nir is missing.
        ModelError: a node cannot be translated and `part` is not set, nothing can be translated, or the graph would be too
            large.
    """
    nir = require("nir", "export", "writing NIR")
    bursts = parameters.timesteps == 1
    unsupported = _unsupported(graph, parameters, bursts)
    if unsupported and not part:
        name, reason = next(iter(unsupported.items()))
        raise ModelError(f"{name!r}: {reason} cannot be expressed in NIR; --part writes the network up to there")
    if unsupported:
        bursts, unsupported = False, _unsupported(graph, parameters, False)
    if bursts:
        _check_weights(graph, parameters)
    _check_neurons(graph, parameters, size, unsupported, bursts)
    return NirGraph(_Translator(nir, graph, parameters, size, unsupported, bursts).graph(), tuple(unsupported), bursts)


def write_nir(path: Path, translated: NirGraph) -> None:
    """Write a translated network to an HDF5 file; raises DataError if the file cannot be written."""
    nir = require("nir", "export", "writing NIR")

    content = io.BytesIO()  # on a full disk the HDF5 library ends the process
    nir.write(content, translated.graph)
    with replacing(path) as part:
        part.write_bytes(content.getvalue())


def _check_weights(graph: Graph, parameters: SpikingParameters) -> None:
    """Refuse a network whose repeated weights would be too large."""
    spikes: dict[str, int] = {}  # largest burst that a node emits or passes on
    for node in graph.nodes:
        passed = max((spikes[name] for name in node.inputs), default=1)
        spikes[node.name] = _copies(parameters.neurons[node.name]) if node.op == "relu" else passed
    driven = {name: spikes[node.name] for node in graph.nodes if node.op == "relu" for name in node.inputs}
    size = sum(
        graph.tensors[f"{node.name}.weight"].numel() * spikes[node.inputs[0]] * driven.get(node.name, 1)
        for node in graph.nodes
        if node.op == "conv"
    )
    if size > _MOST_NUMBERS:
        raise ModelError(
            f"with bursts of up to {max(spikes.values())} spikes, NIR would need {size:.1e} weights, more than the "
            f"{_MOST_NUMBERS:.0e} that are written: convert with a lower burst limit, or export as ONNX (--onnx-snn)"
        )


def _check_neurons(
    graph: Graph, parameters: SpikingParameters, size: tuple[int, int, int], unsupported: dict[str, str], bursts: bool
) -> None:
    """Refuse a network whose neurons would be too many for grids of this size; NIR repeats what they have in common."""
    shapes = graph.shapes(*size)
    layers = [node.name for node in graph.nodes if node.op == "relu" and node.name not in unsupported]
    copies = {name: _copies(parameters.neurons[name]) if bursts else 1 for name in layers}
    numbers = _NUMBERS_OF_IF * sum(copies[name] * math.prod(shapes[name]) for name in layers)
    if numbers > _MOST_NUMBERS:
        raise ModelError(
            f"for grids of {size[2]}x{size[1]}, NIR would need {numbers:.1e} numbers for neurons, more than the "
            f"{_MOST_NUMBERS:.0e} that are written: choose a smaller --sensor-size, or export as ONNX (--onnx-snn)"
        )


def _copies(layer: NeuronLayer) -> int:
    """Number of neurons of NIR that emit the bursts of one."""
    return int(layer.burst_limits.max())


def _unsupported(graph: Graph, parameters: SpikingParameters, bursts: bool) -> dict[str, str]:
    """Nodes that cannot be translated with the reason, in order, including all nodes that depend on them.

    Args:
        graph, parameters: the network.
        bursts: whether a burst is written as the spikes of several neurons.
    """
    unsupported: dict[str, str] = {}
    spikes: set[str] = set()  # nodes every channel of whose value is the spikes of one neuron
    for node in graph.nodes:
        reason = {"upsample": "upsampling", "hold": "memory"}.get(node.op, "")
        if node.op == "relu" and parameters.neurons[node.name].signed and not (bursts and not node.attrs.get("negative_slope")):
            reason = "a neuron with negative spikes"
        elif node.op == "max_pool" and not (bursts and spikes.issuperset(node.inputs)):
            reason = "max-pool" if parameters.timesteps == 1 else "max-pool at several timesteps"
        elif node.op == "avg_pool" and node.attrs["kernel"] and any(node.attrs["padding"]):
            reason = "a padded average pool"
        elif node.op == "conv" and len(set(graph.tensors[f"{node.name}.weight"].shape[2:])) > 1:
            reason = "a kernel that is not square"  # the package nir infers wrong shapes for it
        source = next((name for name in node.inputs if name in unsupported), None)
        if reason or source:
            unsupported[node.name] = reason or f"a node after {source!r}"
        elif node.op in ("relu", "max_pool") or (node.op in ("slice", "concat") and spikes.issuperset(node.inputs)):
            spikes.add(node.name)
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
        bursts: bool,
    ) -> None:
        self._nir, self._graph, self._parameters, self._unsupported = nir, graph, parameters, unsupported
        self._bursts = bursts
        self._shapes, self._consumers = graph.shapes(*size), graph.consumers()
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
            "output": "currents: the mean over the timesteps is the read-out; layers of neurons: their spikes",
        }
        if not self._bursts:
            metadata["reset"] = "a neuron that fires loses v_threshold - v_reset"
            metadata["spikes_per_step"] = "1 in NIR; in this network up to phi, see the metadata of each IF"
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
            sources = self._summands(node.name, f"{node.name}.readout", torch.ones(1, len(shift)), shift[None])
            self._output(node.name, sources)

    def _relu(self, node: Node) -> None:
        layer, (channels, *size) = self._parameters.neurons[node.name], self._shapes[node.name]
        if self._bursts:
            spike = torch.arange(1, _copies(layer) + 1)[:, None]
            fires = spike <= layer.burst_limits  # the others have no current
            gain, shift = fires / layer.theta, (layer.shift / layer.theta + 1.5 - spike) * fires
            threshold, reset = torch.ones(gain.numel()), torch.zeros(gain.numel())
        else:
            gain, shift = torch.ones(1, channels), layer.shift[None]
            threshold, reset = layer.theta / 2, -layer.theta / 2
        sources = self._summands(node.inputs[0], f"{node.name}.current", gain, shift)
        self._neurons(node.name, size, threshold, reset, sources, {"phi": layer.phi, "copies": len(gain)})
        self._signals[node.name] = [_Part(0, node.name, k * channels, layer.theta) for k in range(len(gain))]
        if self._read_by_unsupported(node.name):
            self._output(node.name, [node.name])

    def _neurons(
        self, name: str, size: list[int], threshold: Tensor, reset: Tensor, sources: list[str], metadata: dict[str, Any]
    ) -> None:
        """Add an `IF` of `size` (H, W) with a threshold and a reset potential for each channel."""
        potentials = (np.broadcast_to(value.numpy()[:, None, None], (len(value), *size)).copy() for value in (threshold, reset))
        ones = np.ones((len(threshold), *size), np.float32)
        self._add_node(name, self._nir.IF(ones, *potentials, metadata=metadata), len(threshold), sources)

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
        self._pool(node, {"kernel": kernel, "stride": stride, "padding": [0, 0]}, "")

    def _max_pool(self, node: Node) -> None:
        """Of every k, whether any of the k-th neurons of a window fires: the mean of their spikes then is at least 1 / area."""
        for averages in self._pool(node, node.attrs, ".mean"):
            source, channels = averages.removesuffix(".mean"), self._channels[averages]
            threshold = torch.full((channels,), 0.5 / math.prod(node.attrs["kernel"]))
            size = list(self._shapes[node.name][1:])
            self._neurons(source, size, threshold, torch.zeros(channels), [averages], {})
            parts = self._signals[node.name]
            self._signals[node.name] = [replace(p, source=source) if p.source == averages else p for p in parts]

    def _pool(self, node: Node, window: dict[str, Any], suffix: str) -> list[str]:
        """Add an `AvgPool2d` for every NIR node that the input consists of; returns their names, which end in `suffix`."""
        parts, names = self._signals[node.inputs[0]], list[str]()
        for k, source in enumerate(dict.fromkeys(part.source for part in parts)):
            names.append(f"{node.name}.{k}{suffix}")
            pool = self._nir.AvgPool2d(*(np.array(window[key]) for key in ("kernel", "stride", "padding")))
            self._add_node(names[-1], pool, self._channels[source], [source])
            parts = [replace(part, source=names[-1]) if part.source == source else part for part in parts]
        self._signals[node.name] = parts
        return names

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

    def _summands(self, name: str, link: str, gain: Tensor, shift: Tensor) -> list[str]:
        """Names of NIR nodes whose outputs add up to gain * value + shift, for every row of `gain` and `shift` `(n, C)`.

        Their n * C channels are those of the first row, of the second, and so on. They are the node's own convolutions if
        nothing else reads them, or else new 1 x 1 convolutions named `link`.
        """
        parts, channels = self._signals[name], self._shapes[name][0]
        only_convs = all(isinstance(self._nodes[part.source], self._nir.Conv2d) for part in parts)
        complete = only_convs and all(part.at == 0 and len(part.scale) == channels for part in parts)
        if complete and len(self._consumers[name]) + (name in self._graph.outputs) == 1 and self._graph_op(name) == "conv":
            sources = [part.source for part in parts]
            for k, source in enumerate(sources):
                conv, factors = self._nodes[source], gain.numpy()
                weight = np.concatenate([conv.weight * row[:, None, None, None] for row in factors])
                bias = (conv.bias * factors + (shift.numpy() if k == 0 else 0)).reshape(-1)
                self._nodes[source], self._channels[source] = replace(conv, weight=weight, bias=bias), gain.numel()
            return sources
        identity = torch.cat([torch.diag(row) for row in gain])[:, :, None, None]
        geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
        return [part.source for part in self._linear(link, identity, shift.reshape(-1), name, geometry)]

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
        """Add an output; several sources are added by a 1 x 1 convolution, because nirtorch reads one input of an `Output`."""
        if len(sources) > 1:
            (channels, *size), total = self._shapes[name], f"{name}.sum"
            identity, none = np.eye(channels, dtype=np.float32)[:, :, None, None], np.zeros(channels, np.float32)
            self._add_node(total, self._nir.Conv2d(size, identity, 1, 0, 1, 1, none), channels, sources)
            sources = [total]
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
