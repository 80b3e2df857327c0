"""Export of the folded ANN of a weights file to ONNX, for any batch and grid size, with the raw maps of the head as outputs.

ONNX has an equivalent of every operation of a Graph, so the export is exact. The file does not decode boxes. Its metadata
contain what `evburst.models.detectors.postprocess.decode` needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.errors import ModelError
from evburst.models.bundle import Bundle
from evburst.models.export.onnx_graph import OnnxGraph, convolution_of, save_onnx, window_of
from evburst.models.graph import Graph, Node


def write_onnx(bundle: Bundle, path: Path) -> None:
    """Write the ANN of a bundle as ONNX.

    The input is `input`, `(N, 2 * bins, H, W)` float32 counts; the outputs have the names of their nodes.

    Raises:
        MissingPackageError: the package onnx is missing.
        DataError: the file cannot be written.
        ModelError: the network has memory.
    """
    if bundle.graph.memories:
        raise ModelError("the ANN of a network with memory is not exported; write the spiking network (--onnx-snn)")
    save_onnx(_Writer(bundle.graph).model(), path, bundle)


class _Writer:
    """Translates a graph node by node; the method of an operation adds the ONNX operator of the node's name."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._onnx = graph, OnnxGraph()

    def model(self) -> Any:
        graph = self._graph
        self._onnx.input(graph.nodes[0].name, "FLOAT", ["N", graph.channels, "H", "W"])
        for node in graph.nodes[1:]:
            getattr(self, f"_{node.op}")(node)
        for name in graph.outputs:
            self._onnx.output(name, "FLOAT", ["N", len(graph.tensors[f"{name}.bias"]), None, None])
        return self._onnx.model("detector")

    def _conv(self, node: Node) -> None:
        names = [
            self._onnx.constant(name, self._graph.tensors[name].numpy())
            for name in (f"{node.name}.weight", f"{node.name}.bias")
        ]
        self._onnx.emit("Conv", [*node.inputs, *names], node.name, **convolution_of(node))

    def _relu(self, node: Node) -> None:
        if "negative_slope" in node.attrs:
            self._onnx.emit("LeakyRelu", node.inputs, node.name, alpha=node.attrs["negative_slope"])
        elif "ceiling" in node.attrs:
            limits = {"low": 0.0, "high": node.attrs["ceiling"]}
            names = [self._onnx.constant(f"{node.name}.{k}", np.float32(v)) for k, v in limits.items()]
            self._onnx.emit("Clip", [*node.inputs, *names], node.name)
        else:
            self._onnx.emit("Relu", node.inputs, node.name)

    def _add(self, node: Node) -> None:
        self._onnx.emit("Add", node.inputs, node.name)

    def _concat(self, node: Node) -> None:
        self._onnx.emit("Concat", node.inputs, node.name, axis=1)

    def _slice(self, node: Node) -> None:
        self._onnx.slice(node.inputs[0], node, node.name)

    def _max_pool(self, node: Node) -> None:
        self._onnx.emit("MaxPool", node.inputs, node.name, **window_of(node))

    def _avg_pool(self, node: Node) -> None:
        self._onnx.avg_pool(node.inputs[0], node, node.name)

    def _upsample(self, node: Node) -> None:
        self._onnx.upsample(node.inputs[0], node, node.name)
