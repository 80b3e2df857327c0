"""Export of the folded ANN of a weights file to ONNX, for any batch and grid size, with the raw maps of the head as outputs.

ONNX has an equivalent of every operation of a Graph, so the export is exact. The file does not decode boxes. Its metadata
contain what `evburst.models.detectors.postprocess.decode` needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.errors import ModelError
from evburst.data.extras import require
from evburst.data.files import replacing
from evburst.models.bundle import DetectorBundle
from evburst.models.graph import Graph, Node

OPSET = 17
IR_VERSION = 8


def write_onnx(bundle: DetectorBundle, path: Path) -> None:
    """Write the ANN of a bundle as ONNX.

    The input is `input`, `(N, 2 * bins, H, W)` float32 counts; the outputs have the names of their nodes.

    Raises:
        MissingPackageError: the package onnx is missing.
        DataError: the file cannot be written.
        ModelError: the network has memory.
    """
    if bundle.graph.memories:
        raise ModelError("the ANN of a network with memory is not exported; write the spiking network (--onnx-snn)")
    onnx = require("onnx", "export", "writing ONNX")
    model = _Writer(onnx, bundle.graph).model()
    save_onnx(model, path, {"head": asdict(bundle.head), "voxel": asdict(bundle.voxel), "stride": bundle.stride})


def save_onnx(model: Any, path: Path, metadata: dict[str, Any]) -> None:
    """Check a model and write it, with metadata as JSON; raises DataError if the file cannot be written."""
    import onnx

    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as part:
        onnx.save(model, part)


class _Writer:
    """Translates a graph node by node; the method of an operation returns ONNX operator, constants and attributes."""

    def __init__(self, onnx: Any, graph: Graph) -> None:
        self._helper, self._graph = onnx.helper, graph
        self._float, self._from_numpy = onnx.TensorProto.FLOAT, onnx.numpy_helper.from_array
        self._constants: dict[str, Any] = {}

    def model(self) -> Any:
        graph, helper = self._graph, self._helper
        operators = [self._operator(node) for node in graph.nodes if node.op != "input"]
        source = graph.nodes[0].name
        inputs = [helper.make_tensor_value_info(source, self._float, ["N", graph.channels, "H", "W"])]
        outputs = [
            helper.make_tensor_value_info(name, self._float, ["N", self._channels(name), None, None]) for name in graph.outputs
        ]
        whole = helper.make_graph(operators, "detector", inputs, outputs, list(self._constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(whole, opset_imports=opset, ir_version=IR_VERSION, producer_name="evburst")

    def _channels(self, output: str) -> int:
        return len(self._graph.tensors[f"{output}.bias"])

    def _operator(self, node: Node) -> Any:
        writer: Callable[[Node], tuple[str, list[str], dict[str, Any]]] = getattr(self, f"_{node.op}")
        kind, constants, attributes = writer(node)
        return self._helper.make_node(kind, [*node.inputs, *constants], [node.name], name=node.name, **attributes)

    def _constant(self, name: str, value: Any) -> str:
        self._constants[name] = self._from_numpy(np.asarray(value), name)
        return name

    def _conv(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        names = [f"{node.name}.weight", f"{node.name}.bias"]
        for name in names:
            self._constant(name, self._graph.tensors[name].numpy())
        a = node.attrs
        window = {"strides": a["stride"], "pads": a["padding"] * 2, "dilations": a["dilation"], "group": a["groups"]}
        return "Conv", names, window

    def _relu(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        if "negative_slope" in node.attrs:
            return "LeakyRelu", [], {"alpha": node.attrs["negative_slope"]}
        if "ceiling" in node.attrs:
            limits = {"low": 0.0, "high": node.attrs["ceiling"]}
            return "Clip", [self._constant(f"{node.name}.{k}", np.float32(v)) for k, v in limits.items()], {}
        return "Relu", [], {}

    def _add(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        return "Add", [], {}

    def _concat(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        return "Concat", [], {"axis": 1}

    def _slice(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        ends = {"starts": [node.attrs["start"]], "ends": [node.attrs["stop"]], "axes": [1]}
        return "Slice", [self._constant(f"{node.name}.{k}", np.asarray(v, np.int64)) for k, v in ends.items()], {}

    def _max_pool(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        return "MaxPool", [], self._window(node)

    def _avg_pool(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        if node.attrs["kernel"] is None:
            return "GlobalAveragePool", [], {}
        return "AveragePool", [], {**self._window(node), "count_include_pad": 1}

    def _window(self, node: Node) -> dict[str, Any]:
        return {"kernel_shape": node.attrs["kernel"], "strides": node.attrs["stride"], "pads": node.attrs["padding"] * 2}

    def _upsample(self, node: Node) -> tuple[str, list[str], dict[str, Any]]:
        factor = float(node.attrs["factor"])
        scales = self._constant(f"{node.name}.scales", np.array([1, 1, factor, factor], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return "Resize", ["", scales], how
