"""An ONNX graph under construction, which the exports fill operator by operator, and its file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.errors import ModelError
from evburst.data.extras import require
from evburst.data.files import replacing
from evburst.models.bundle import Bundle
from evburst.models.graph import Node

_OPSET = 17
_IR_VERSION = 8
_MIDDLE = 128
"""Zero of unsigned weights."""
_MOST_IN_A_PAIR = 2**15 - 1
"""Largest sum of two products of a count and a signed weight that is exact on every processor: on x86 without VNNI, libraries
add them in 16 bits, which saturate. Unsigned weights have no such limit there."""


class OnnxGraph:
    """Operators, constants, inputs and outputs of a model; methods that add a tensor return its name.

    Raises:
        MissingPackageError: the package onnx is missing.
    """

    def __init__(self) -> None:
        self._onnx = require("onnx", "export", "writing ONNX")
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[str, Any] = {}

    def model(self, name: str) -> Any:
        """Return the graph as an `onnx.ModelProto`; raises ModelError if a module has the name of another tensor in it."""
        helper, computed = self._onnx.helper, [output for node in self._nodes for output in node.output]
        names = Counter([*(one.name for one in self._inputs), *self._constants, *computed])
        if taken := [name for name, count in names.items() if count > 1]:
            raise ModelError(f"the ONNX file needs the name {taken[0]!r} for itself: rename that module in the network")
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        opset = [helper.make_opsetid("", _OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION, producer_name="evburst")

    def drop_unread(self) -> None:
        """Remove operators and constants that no output depends on."""
        read, kept = {output.name for output in self._outputs}, []
        for node in reversed(self._nodes):
            if not read.isdisjoint(node.output):
                read.update(node.input)
                kept.append(node)
        self._nodes = kept[::-1]
        self._constants = {name: value for name, value in self._constants.items() if name in read}

    def emit(self, kind: str, inputs: Sequence[str], name: str, unused: str = "", **attributes: Any) -> str:
        """Add an operator; `unused` is the name of a first output that nothing reads."""
        outputs = [unused, name] if unused else [name]
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return name

    def has(self, name: str) -> bool:
        """Whether an operator computes the tensor `name`."""
        return any(node.output[0] == name for node in self._nodes)

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Add an initializer."""
        self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def column(self, name: str, values: Tensor | NDArray[Any]) -> str:
        """Add a float32 constant with one value per channel."""
        return self.constant(name, np.asarray(values, np.float32).reshape(-1, 1, 1))

    def input(self, name: str, kind: str, shape: Sequence[Any]) -> None:
        """Declare an input of the network; `kind` is the name of a type in `TensorProto`."""
        self._inputs.append(self._declared(name, kind, shape))

    def output(self, name: str, kind: str, shape: Sequence[Any]) -> None:
        """Declare an output of the network; `kind` is the name of a type in `TensorProto`."""
        self._outputs.append(self._declared(name, kind, shape))

    def _declared(self, name: str, kind: str, shape: Sequence[Any]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), list(shape))

    def dequantised(self, source: str, name: str) -> str:
        """Convert unsigned 8-bit counts to float."""
        zero, one = self.constant("zero_u8", np.uint8(0)), self.constant("one", np.float32(1))
        return self.emit("DequantizeLinear", [source, one, zero], name)

    def quantised(self, source: str, name: str, low: int, high: int) -> tuple[str, str]:
        """Quantise counts in [low, high]; returns them as integers ("" if 8 bits do not suffice) and as floats."""
        if not (low >= 0 and high <= 255) and not (low >= -128 and high <= 127):
            return "", source
        zero = self.constant(f"zero_{'u' if low >= 0 else 'i'}8", np.uint8(0) if low >= 0 else np.int8(0))
        one = self.constant("one", np.float32(1))
        whole = self.emit("QuantizeLinear", [source, one, zero], f"{name}.whole")
        return whole, self.emit("DequantizeLinear", [whole, one, zero], f"{name}.float")

    def integers(self, name: str, values: NDArray[Any], gain: str) -> str:
        """Add a constant of integers times a float32 `gain`, one for each entry of the first axis; unsigned ones are 128 too
        large."""
        zero = self.constant(f"{name}.zero", np.full(len(values), _MIDDLE if values.dtype == np.uint8 else 0, values.dtype))
        inputs = [self.constant(f"{name}.whole", values), gain, zero]
        return self.emit("DequantizeLinear", inputs, name, axis=0)

    def kernel(self, name: str, values: NDArray[np.int8], gain: str, highest: int) -> str:
        """Add the integer weights of a convolution, without a sign if it reads counts so high that it has to be.

        Args:
            name, values, gain: as for `integers`.
            highest: count that the convolution may read.
        """
        if 2 * highest * int(np.abs(values.astype(np.int64)).max(initial=0)) <= _MOST_IN_A_PAIR:
            return self.integers(name, values, gain)
        return self.integers(name, (values.astype(np.int16) + _MIDDLE).astype(np.uint8), gain)

    def cast(self, source: str, name: str, kind: str) -> str:
        """Convert a tensor to another type, named as in `TensorProto`."""
        return self.emit("Cast", [source], name, to=getattr(self._onnx.TensorProto, kind))

    def slice(self, source: str, node: Node, name: str) -> str:
        """Add the operator of a slice."""
        ends = {"starts": node.attrs["start"], "ends": node.attrs["stop"], "axes": 1}
        names = [self.constant(f"{node.name}.{k}", np.array([v], np.int64)) for k, v in ends.items()]
        return self.emit("Slice", [source, *names], name)

    def upsample(self, source: str, node: Node, name: str) -> str:
        """Add the operator of an enlargement."""
        factor = float(node.attrs["factor"])
        scales = self.constant(f"{node.name}.scales", np.array([1, 1, factor, factor], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.emit("Resize", [source, "", scales], name, **how)

    def avg_pool(self, source: str, node: Node, name: str) -> str:
        """Add the operator of an average."""
        if node.attrs["kernel"] is None:
            return self.emit("GlobalAveragePool", [source], name)
        return self.emit("AveragePool", [source], name, **window_of(node), count_include_pad=1)

    def split(self, name: str, length: int, prefix: str) -> list[str]:
        """Split a batch `(length * N, ...)` into its timesteps."""
        if length == 1:
            return [name]
        parts = [f"{prefix}{t}" for t in range(length)]
        self._nodes.append(self._onnx.helper.make_node("Split", [name], parts, name=f"{prefix}.split", axis=0))
        return parts

    def joined(self, parts: list[str], name: str) -> str:
        """Join timesteps to a batch."""
        return parts[0] if len(parts) == 1 else self.emit("Concat", parts, name, axis=0)

    def repeated(self, name: str, length: int, target: int) -> str:
        """Repeat a batch of `length` timesteps so that it has `target`."""
        again = f"{name}.again"
        if length == target:
            return name
        return again if self.has(again) else self.emit("Concat", [name] * (target // length), again, axis=0)

    def summed(self, parts: Sequence[str], prefix: str) -> str:
        """Add timesteps, one after the other."""
        total = parts[0]
        for t, part in enumerate(parts[1:]):
            total = self.emit("Add", [total, part], f"{prefix}.sum{t}")
        return total


def window_of(node: Node) -> dict[str, Any]:
    """Return the attributes of an operator that pools with the window of a node."""
    return {"kernel_shape": node.attrs["kernel"], "strides": node.attrs["stride"], "pads": node.attrs["padding"] * 2}


def convolution_of(node: Node) -> dict[str, Any]:
    """Return the attributes of an operator that convolves as a node does."""
    a = node.attrs
    return {"strides": a["stride"], "pads": a["padding"] * 2, "dilations": a["dilation"], "group": a["groups"]}


def save_onnx(model: Any, path: Path, bundle: Bundle, **more: Any) -> None:
    """Check a model and write it; raises DataError if the file cannot be written.

    Args:
        model: `onnx.ModelProto`.
        path: of the file.
        bundle: its head, binning and stride become metadata, as JSON.
        more: further metadata.
    """
    import onnx

    metadata = {"head": asdict(bundle.head), "voxel": asdict(bundle.voxel), "stride": bundle.stride} | more
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as part:
        onnx.save(model, part)
