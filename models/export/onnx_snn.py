"""Export of the spiking network of a weights file to standard ONNX operators; onnxruntime and OpenVINO run it without torch.

    import numpy as np, onnxruntime
    session = onnxruntime.InferenceSession("street_snn.onnx")
    grid = np.zeros((1, 10, 256, 320), np.uint8)             # counts per polarity, time bin and pixel, padded to the stride
    maps = session.run(None, {"input": grid})                # with --with-boxes: boxes, scores, labels

Spike counts are integers. A layer driven by a single convolution is written in the form of a quantised network (QDQ). Counts,
8-bit weights and 32-bit biases are dequantised and convolved, which gives a current in units of the neurons' thresholds. The
current is quantised to integers with scale 1 and then clipped to the burst limit. A clip before the quantisation would prevent
onnxruntime from computing in integers.

A layer driven by a sum of convolutions and spikes adds them in whole steps, which float32 does exactly.

After `integer_form` (models/spiking/integer_form.py), no current lies on a threshold, and the counts equal those of the
reference engine. Otherwise biases are rounded here, by at most half a step. Everything else (averages, sums that have no
integer form, grouped convolutions) is float32, as in the reference engine.

A network with memory has further inputs: for each hold `<name>.before` `(N, C, h, w)` uint8, the output `<name>.next` of the
window before, and `begins` `(N, 1, 1, 1)` bool, which says that there is none; `<name>.before` is not used then.

Timesteps are unrolled. Convolutions process all of them as a batch `(T * N, C, H, W)`, time outermost; neurons are a chain of
operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.errors import ModelError
from evburst.data.extras import require
from evburst.models.bundle import DetectorBundle
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.export.onnx import IR_VERSION, OPSET, save_onnx
from evburst.models.export.onnx_boxes import BoxOptions, write_boxes
from evburst.models.graph import Graph, Node
from evburst.models.spiking.cost import fan_out_maps
from evburst.models.spiking.integer_form import Driven, driven, step_in_use
from evburst.models.spiking.network import SpikingParameters, signal_thresholds
from evburst.models.spiking.neurons import NeuronLayer
from evburst.models.spiking.rounding import spike_values, to_int8

INPUT = "input"
"""Name of the input: `(N, 2 * bins, H, W)` uint8 counts."""


BEGINS = "begins"
"""Name of the input that says that there is no window before, of networks with memory."""


def before_of(hold: Node) -> str:
    """Name of the input with the spike counts of a hold in the window before."""
    return f"{hold.name}.before"


def after_of(hold: Node) -> str:
    """Name of the output that is `before_of` in the next window."""
    return f"{hold.name}.next"


@dataclass(frozen=True)
class SnnOptions:
    """Optional contents of the file.

    Attributes:
        counts: add outputs `<layer>.counts` `(T * N, C, H, W)`, the spike counts of every layer of neurons, max-pool
            and hold.
        totals: add outputs `<layer>.spikes` and `<layer>.synaptic_ops` `(N,)` int64 for these layers and the input
            (`input.spikes`, ...); needs `size`.
        size: (H, W) of the grids; None for any size.
        boxes: replace the outputs by decoded boxes for a single grid of `size` (see models/export/onnx_boxes.py).
        clip_first: at T = 1, clip currents before their quantisation, with the same counts; OpenVINO is faster then, but
            onnxruntime computes in floats.
    """

    counts: bool = False
    totals: bool = False
    size: tuple[int, int] | None = None
    boxes: BoxOptions | None = None
    clip_first: bool = False


def write_onnx_snn(bundle: DetectorBundle, path: Path, options: SnnOptions | None = None) -> None:
    """Write the spiking network of a bundle as ONNX; outputs have the names of its read-outs, or are boxes, scores, labels.

    Raises:
        MissingPackageError: the package onnx is missing.
        ModelError: an option needs the size of the grids.
        DataError: the file cannot be written.
    """
    options = options or SnnOptions()
    model = spiking_model(bundle.spiking, bundle.parameters, bundle.voxel.channels, options, bundle.head)
    metadata = {"head": asdict(bundle.head), "voxel": asdict(bundle.voxel), "stride": bundle.stride}
    save_onnx(model, path, metadata)


def spiking_model(
    graph: Graph, parameters: SpikingParameters, channels: int, options: SnnOptions, head: HeadSpec | None = None
) -> Any:
    """Build a spiking network as an `onnx.ModelProto`; raises MissingPackageError and ModelError like `write_onnx_snn`.

    Args:
        graph, parameters: the network.
        channels: of its input.
        options: optional contents.
        head: how to decode its outputs, needed for boxes.
    """
    if (options.totals or options.boxes) and options.size is None:
        raise ModelError("boxes and totals of synaptic operations need the size of the grids: pass SnnOptions(size=(H, W))")
    return SpikingWriter(graph, parameters, channels, options).model(head)


Bounds = NDArray[np.int64]


@dataclass(frozen=True)
class Signal:
    """Value of a node in the ONNX graph, a float tensor.

    Attributes:
        name: name of the tensor.
        length: number of timesteps, 1 if all are equal.
        low, high: `(C,)` bounds of the counts of each channel; empty if the values are no counts.
        units: whether the values are counts (in units of `signal_thresholds`), or currents in units of thresholds; otherwise
            they are the values of the reference engine.
        whole: name of a tensor with the same values as 8-bit integers, "" if there is none.
        pieces: tensors of 8-bit counts that add up to the values, each with the channels `(c,)` it belongs to; empty if 8
            bits suffice, or if there are none.
    """

    name: str
    length: int
    low: Bounds = field(default_factory=lambda: np.zeros(0, np.int64))
    high: Bounds = field(default_factory=lambda: np.zeros(0, np.int64))
    units: bool = False
    whole: str = ""
    pieces: tuple[tuple[str, NDArray[np.int64]], ...] = ()


class SpikingWriter:
    """Translates a graph node by node; the method of an operation adds ONNX operators and returns the node's Signal."""

    def __init__(self, graph: Graph, parameters: SpikingParameters, channels: int, options: SnnOptions) -> None:
        self._onnx = require("onnx", "export", "writing ONNX")
        self._graph, self._parameters, self._options = graph, parameters, options
        self._channels, self._timesteps = channels, parameters.timesteps
        self._theta = signal_thresholds(graph, parameters.neurons)
        drives = [drive for drive in driven(graph) if self._is_whole(drive)]
        self._drives = {conv.name: drive for drive in drives for conv in drive.convs}
        self._sums = {drive.add.name: drive for drive in drives if drive.add}
        self._driven = {drive.relu.name for drive in drives}
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._signals: dict[str, Signal] = {}
        self._fan_out = fan_out_maps(graph, channels, *options.size) if options.totals and options.size else {}

    def _is_whole(self, drive: Driven) -> bool:
        """Whether neurons are driven by a convolution, which is rounded here, or by a sum in integer form."""
        layer = self._parameters.neurons[drive.relu.name]
        return drive.add is None or step_in_use(self._graph, drive, layer, self._theta) is not None

    def model(self, head: HeadSpec | None) -> Any:
        """Translate the whole network; `head` is needed to decode boxes."""
        helper = self._onnx.helper
        boxes, size = self._options.boxes, self._options.size
        self._declare(INPUT, [self._channels, *(size or ("H", "W"))])
        if self._graph.memories:
            self._declare(BEGINS, [1, 1, 1], "BOOL")
        for node in self._graph.nodes:
            self._signals[node.name] = getattr(self, f"_{node.op}")(node, *(self._signals[name] for name in node.inputs))
        for name in self._graph.outputs:
            self._read_out(name)
        if boxes and size and head:
            write_boxes(self, self._graph.outputs, head, boxes, size)
        self._drop_unread()
        translated = helper.make_graph(self.nodes, "spiking", self.inputs, self.outputs, list(self._constants.values()))
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(translated, opset_imports=opset, ir_version=IR_VERSION, producer_name="evburst")

    def _drop_unread(self) -> None:
        """Remove operators and constants that no output depends on."""
        read, kept = {output.name for output in self.outputs}, []
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.output):
                read.update(node.input)
                kept.append(node)
        self.nodes = kept[::-1]
        self._constants = {name: value for name, value in self._constants.items() if name in read}

    def emit(self, kind: str, inputs: Sequence[str], name: str, unused: str = "", **attributes: Any) -> str:
        """Add an operator and return the name of its output; `unused` is the name of a first output that nothing reads."""
        outputs = [unused, name] if unused else [name]
        self.nodes.append(self._onnx.helper.make_node(kind, list(inputs), outputs, name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        """Add an initializer and return its name."""
        self._constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def output(self, name: str, kind: str, shape: Sequence[Any]) -> None:
        """Declare an output of the network; `kind` is the name of a type in `TensorProto`."""
        info = self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), list(shape))
        self.outputs.append(info)

    def _declare(self, name: str, shape: Sequence[Any], kind: str = "UINT8") -> None:
        """Declare an input of the network; `shape` is without the batch, `kind` the name of a type in `TensorProto`."""
        shape = [1 if self._options.boxes else "N", *shape]
        self.inputs.append(self._onnx.helper.make_tensor_value_info(name, getattr(self._onnx.TensorProto, kind), shape))

    def _column(self, name: str, values: Tensor | NDArray[Any]) -> str:
        """Add a constant with one value per channel."""
        return self.constant(name, np.asarray(values, np.float32).reshape(-1, 1, 1))

    def _quantise(self, source: str, name: str, low: int, high: int) -> tuple[str, str]:
        """Quantise counts in [low, high]; returns them as integers ("" if 8 bits do not suffice) and as floats."""
        if not (low >= 0 and high <= 255) and not (low >= -128 and high <= 127):
            return "", source
        zero = self.constant(f"zero_{'u' if low >= 0 else 'i'}8", np.uint8(0) if low >= 0 else np.int8(0))
        one = self.constant("one", np.float32(1))
        whole = self.emit("QuantizeLinear", [source, one, zero], f"{name}.whole")
        return whole, self.emit("DequantizeLinear", [whole, one, zero], f"{name}.float")

    def _counts(self, source: str, node: Node, length: int, low: Bounds, high: Bounds) -> Signal:
        """Signal of a node that emits spike counts or passes them on."""
        whole, name = self._quantise(source, node.name, int(low.min()), int(high.max()))
        return Signal(name, length, low, high, True, whole)

    def _input(self, node: Node) -> Signal:
        low, high = (np.full(self._channels, bound, np.int64) for bound in (0, 255))
        signal = Signal(self._counted_input(INPUT, f"{node.name}.float"), 1, low, high, True, INPUT)
        self._total(node, signal)
        return signal

    def _counted_input(self, source: str, name: str) -> str:
        """Convert an input of counts to float."""
        zero, one = self.constant("zero_u8", np.uint8(0)), self.constant("one", np.float32(1))
        return self.emit("DequantizeLinear", [source, one, zero], name)

    def _hold(self, node: Node, x: Signal, grid: Signal) -> Signal:
        a, name = node.attrs, node.name
        self._declare(before_of(node), [len(self._parameters.neurons[node.inputs[0]].theta), None, None])
        axis = self.constant("channels", np.array([1]))
        summed = self.emit("ReduceSum", [grid.name, axis], f"{name}.events", keepdims=1)
        share = self.emit("AveragePool", [summed], f"{name}.share", **self._window(node), count_include_pad=1)
        least = self.constant(f"{name}.least", np.float32((a["events"] - 0.5) / math.prod(a["kernel"])))
        active = self.emit("Or", [self.emit("Greater", [share, least], f"{name}.busy"), BEGINS], f"{name}.active")
        kept = self._counted_input(before_of(node), f"{name}.kept")
        signal = self._counts(self.emit("Where", [active, x.name, kept], f"{name}.value"), node, 1, x.low, x.high)
        self.emit("Identity", [signal.whole], after_of(node))
        self.output(after_of(node), "UINT8", ["N", None, None, None])
        self._total(node, signal)
        return signal

    def _conv(self, node: Node, x: Signal) -> Signal:
        a, values = node.attrs, spike_values(self._graph, node, self._theta)
        weight, bias = (self._graph.tensors[f"{node.name}.{what}"] for what in ("weight", "bias"))
        window = {"strides": a["stride"], "pads": a["padding"] * 2, "dilations": a["dilation"], "group": a["groups"]}
        drive = self._drives.get(node.name)
        if values is None or not x.units:
            names = [self.constant(f"{node.name}.{what}", t.numpy()) for what, t in (("weight", weight), ("bias", bias))]
            return Signal(self.emit("Conv", [self._real(node.inputs[0]), *names], f"{node.name}.current", **window), x.length)
        integers, scale = to_int8(weight, values, self._graph.tensors.get(f"{node.name}.step"))
        source = x.name
        if x.pieces and a["groups"] == 1:  # a weight is repeated for every piece of its channel
            joined = self.emit("Concat", [name for name, _ in x.pieces], f"{node.name}.pieces", axis=1)
            source = self._quantise(joined, f"{node.name}.x", 0, 255)[1]
            integers = integers[:, np.concatenate([channels for _, channels in x.pieces])]
        shift: Tensor = torch.zeros_like(bias)
        gain = scale.double()
        if drive is not None:
            layer = self._parameters.neurons[drive.relu.name]
            shift = layer.shift if node.name == drive.convs[0].name else shift
            gain = gain / layer.theta.double() if drive.add is None else torch.ones_like(gain)
        steps = torch.round((bias + shift).double() / scale.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32)
        unit = self.constant(f"{node.name}.gain", gain.float().numpy())
        names = [self._dequantised(f"{node.name}.weight", integers.numpy(), unit)]
        if drive is not None:
            names.append(self._dequantised(f"{node.name}.bias", steps.numpy(), unit))
        else:
            names.append(self.constant(f"{node.name}.bias", bias.numpy()))
        current = self.emit("Conv", [source, *names], f"{node.name}.current", **window)
        return Signal(current, x.length, units=drive is not None)

    def _dequantised(self, name: str, integers: NDArray[Any], gain: str) -> str:
        zero = self.constant(f"{name}.zero", np.zeros(len(integers), integers.dtype))
        inputs = [self.constant(f"{name}.whole", integers), gain, zero]
        return self.emit("DequantizeLinear", inputs, name, axis=0)

    def _relu(self, node: Node, x: Signal) -> Signal:
        layer = self._parameters.neurons[node.name]
        current = x.name
        if not x.units or node.name not in self._driven:
            shift = self._column(f"{node.name}.shift", layer.shift)
            shifted = self.emit("Add", [self._real(node.inputs[0]), shift], f"{node.name}.shifted")
            current = self.emit("Div", [shifted, self._column(f"{node.name}.theta", layer.theta)], f"{node.name}.current")
        limits = layer.burst_limits
        high = np.broadcast_to(np.round(limits.numpy()).astype(np.int64).reshape(-1), (len(layer.theta),))
        is_signed = bool((layer.signed and self._timesteps > 1) or layer.negative_slope)
        low = -high if is_signed else np.zeros_like(high)
        if self._timesteps == 1 and not is_signed:
            rounded = current if self._options.clip_first else self._quantise(current, f"{node.name}.all", 0, 255)[1]
            parts = [self._clip(rounded, node.name, limits, high.min() == 255)]
        else:
            parts = self._scan(node, layer, self._steps(current, x.length, f"{node.name}.current"))
        signal = self._counts(self._joined(parts, f"{node.name}.fired"), node, self._timesteps, low, high)
        self._total(node, signal)
        return signal

    def _scan(self, node: Node, layer: NeuronLayer, currents: list[str]) -> list[str]:
        """Compute the counts of every timestep from currents in units of thresholds; see models/spiking/neurons.py."""
        name, counts = node.name, []
        half = self.constant("half", np.float32(0.5))
        v, fired = "", ""
        for t in range(self._timesteps):
            current = currents[t % len(currents)]
            v = self.emit("Add", [v, current], f"{name}.v{t}") if v else current
            activation = v
            if layer.negative_slope:
                activation = self.emit("LeakyRelu", [v], f"{name}.f{t}", alpha=layer.negative_slope)
            elif layer.signed:
                activation = self.emit("Relu", [v], f"{name}.f{t}")
            raised = self.emit("Add", [activation, half], f"{name}.raised{t}")
            level = self.emit("Floor", [raised], f"{name}.level{t}")
            if layer.signed:
                new = self.emit("Sub", [level, fired], f"{name}.new{t}") if fired else level
                counts.append(self._clip(new, f"{name}.{t}", layer.burst_limits, False, signed=True))
                fired = self.emit("Add", [fired, counts[-1]], f"{name}.fired{t}") if fired else counts[-1]
            else:
                counts.append(self._clip(level, f"{name}.{t}", layer.burst_limits, False))
                if t + 1 < self._timesteps:
                    v = self.emit("Sub", [v, counts[-1]], f"{name}.rest{t}")
        return counts

    def _clip(self, counts: str, name: str, limits: Tensor, within: bool, signed: bool = False) -> str:
        """Clip counts to the burst limits, unless they are already `within` them."""
        if within:
            return counts
        high = float(limits.max())
        if not signed and float(limits.min()) < high:
            counts = self.emit("Min", [counts, self._column(f"{name}.limits", limits)], f"{name}.least")
        ends = (
            self.constant(f"low_{high:g}_{signed}", np.float32(-high * signed)),
            self.constant(f"high_{high:g}", np.float32(high)),
        )
        if signed and float(limits.min()) < high:
            column, opposite = self._column(f"{name}.limits", limits), self._column(f"{name}.opposite", -limits)
            counts = self.emit("Max", [self.emit("Min", [counts, column], f"{name}.least"), opposite], f"{name}.most")
        return self.emit("Clip", [counts, *ends], f"{name}.cut")

    def _max_pool(self, node: Node, x: Signal) -> Signal:
        steps, window = self._steps(x.name, x.length, f"{node.name}.x"), self._window(node)
        summed, before, grown = "", "", []
        for t, part in enumerate(steps):
            summed = self.emit("Add", [summed, part], f"{node.name}.sum{t}") if summed else part
            now = self.emit("MaxPool", [summed], f"{node.name}.pool{t}", **window)
            grown.append(self.emit("Sub", [now, before], f"{node.name}.new{t}") if before else now)
            before = now
        low = np.where(x.low < 0, -x.length * (x.high - x.low), 0)
        signal = self._counts(self._joined(grown, f"{node.name}.grown"), node, x.length, low, x.high - low)
        self._total(node, signal)
        return signal

    def _avg_pool(self, node: Node, x: Signal) -> Signal:
        real, name = self._real(node.inputs[0]), f"{node.name}.mean"
        if node.attrs["kernel"] is None:
            return Signal(self.emit("GlobalAveragePool", [real], name), x.length)
        return Signal(self.emit("AveragePool", [real], name, **self._window(node), count_include_pad=1), x.length)

    def _upsample(self, node: Node, x: Signal) -> Signal:
        factor = float(node.attrs["factor"])
        scales = self.constant(f"{node.name}.scales", np.array([1, 1, factor, factor], np.float32))
        how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self._passed(node, x, self.emit("Resize", [x.name, "", scales], f"{node.name}.up", **how))

    def _slice(self, node: Node, x: Signal) -> Signal:
        ends = {"starts": node.attrs["start"], "ends": node.attrs["stop"], "axes": 1}
        names = [self.constant(f"{node.name}.{k}", np.array([v], np.int64)) for k, v in ends.items()]
        channels = slice(node.attrs["start"], node.attrs["stop"])
        part = replace(x, low=x.low[channels], high=x.high[channels])
        return self._passed(node, part, self.emit("Slice", [x.name, *names], f"{node.name}.part"))

    def _passed(self, node: Node, x: Signal, name: str) -> Signal:
        """Signal of a node that passes counts or currents on."""
        return self._counts(name, node, x.length, x.low, x.high) if x.units else Signal(name, x.length)

    def _concat(self, node: Node, *parts: Signal) -> Signal:
        length, units = max(part.length for part in parts), self._theta[node.name] is not None
        names = [part.name if units else self._real(name) for name, part in zip(node.inputs, parts, strict=True)]
        aligned = [self._repeated(name, part.length, length) for name, part in zip(names, parts, strict=True)]
        joined = self.emit("Concat", aligned, f"{node.name}.joined", axis=1)
        if not units:
            return Signal(joined, length)
        low, high = (np.concatenate([getattr(part, side) for part in parts]) for side in ("low", "high"))
        signal = self._counts(joined, node, length, low, high)
        if signal.whole or not all(part.whole or part.pieces for part in parts) or any(part.length < length for part in parts):
            return signal
        pieces, first = [], 0
        for part in parts:
            own = part.pieces or ((part.name, np.arange(len(part.low))),)
            pieces += [(name, first + channels) for name, channels in own]
            first += len(part.low)
        return replace(signal, pieces=tuple(pieces))

    def _add(self, node: Node, *parts: Signal) -> Signal:
        if node.name in self._sums:
            return self._sum_of_currents(node, self._sums[node.name], parts)
        length, unit = max(part.length for part in parts), self._theta[node.name]
        names = []
        low, high = np.zeros_like(parts[0].low), np.zeros_like(parts[0].high)
        for k, (source, part) in enumerate(zip(node.inputs, parts, strict=True)):
            if unit is None:
                name = self._real(source)
            else:
                theta = self._theta[source]
                assert theta is not None  # a sum only has a unit if all of its parts have one
                multiple = torch.round(theta / unit)
                spikes = multiple.numpy().astype(np.int64)  # of the sum, for one of this part
                low, high = low + part.low * spikes, high + part.high * spikes
                name = part.name
                if not bool((multiple == 1).all()):
                    column = self._column(f"{node.name}.spike_size{k}", multiple)
                    name = self.emit("Mul", [name, column], f"{node.name}.spike_size{k}.x")
            names.append(self._repeated(name, part.length, length))
        total = self.emit("Add", names, f"{node.name}.sum")
        if unit is None:
            return Signal(total, length)
        signal = self._counts(total, node, length, low, high)
        return signal if signal.whole or low.min() < 0 else replace(signal, pieces=self._pieces(total, node, names, high))

    def _sum_of_currents(self, node: Node, drive: Driven, parts: Sequence[Signal]) -> Signal:
        """Add the currents of convolutions, in steps, and spikes; the result is in units of the neurons' thresholds."""
        step, length = self._graph.tensors[f"{drive.convs[0].name}.step"].double(), max(part.length for part in parts)
        names = []
        for source, part in zip(node.inputs, parts, strict=True):
            name, theta = part.name, self._theta[source]
            if source in drive.spikes:
                assert theta is not None  # see `_is_whole`
                column = self._column(f"{node.name}.spike_size", torch.round(theta.double() / step))
                name = self.emit("Mul", [name, column], f"{node.name}.spikes")
            names.append(self._repeated(name, part.length, length))
        gain = self._column(f"{node.name}.gain", step / self._parameters.neurons[drive.relu.name].theta.double())
        total = self.emit("Mul", [self.emit("Add", names, f"{node.name}.sum"), gain], f"{node.name}.current")
        return Signal(total, length, units=True)

    def _pieces(self, total: str, node: Node, parts: list[str], high: Bounds) -> tuple[tuple[str, NDArray[np.int64]], ...]:
        """Split a sum of parts into its first 255 counts, those above 255 of the channels that can have them, and so on."""
        pieces = [(self._quantise(total, f"{node.name}.least", 0, 255)[1], np.arange(len(high)))]
        for level in range(255, int(high.max()), 255):
            channels, name = np.flatnonzero(high > level), f"{node.name}.above{level}"
            chosen = self.constant(f"{name}.channels", channels)
            own = [self.emit("Gather", [part, chosen], f"{name}.part{k}", axis=1) for k, part in enumerate(parts)]
            above = self.emit("Add", own, f"{name}.sum")
            above = self.emit("Sub", [above, self.constant(f"level_{level}", np.float32(level))], f"{name}.rest")
            pieces.append((self._quantise(above, name, 0, 255)[1], channels))
        return tuple(pieces)

    def _window(self, node: Node) -> dict[str, Any]:
        a = node.attrs
        return {"kernel_shape": a["kernel"], "strides": a["stride"], "pads": a["padding"] * 2}

    def _real(self, source: str) -> str:
        """Add the value of a node as in the reference engine: counts times the value of one count."""
        signal, theta = self._signals[source], self._theta[source]
        if not signal.units or theta is None:  # the value of an input count is 1
            return signal.name
        name = f"{source}.real"
        if all(node.output[0] != name for node in self.nodes):
            self.emit("Mul", [signal.name, self._column(f"{source}.theta", theta)], name)
        return name

    def _steps(self, name: str, length: int, prefix: str) -> list[str]:
        """Split a tensor into its timesteps."""
        if length == 1:
            return [name]
        parts = [f"{prefix}{t}" for t in range(length)]
        self.nodes.append(self._onnx.helper.make_node("Split", [name], parts, name=f"{prefix}.split", axis=0))
        return parts

    def _joined(self, parts: list[str], name: str) -> str:
        return parts[0] if len(parts) == 1 else self.emit("Concat", parts, name, axis=0)

    def _repeated(self, name: str, length: int, target: int) -> str:
        if length == target:
            return name
        again = f"{name}.again"
        return again if any(node.output[0] == again for node in self.nodes) else self.emit(
            "Concat", [name] * (target // length), again, axis=0
        )  # fmt: skip

    def _read_out(self, output: str) -> None:
        signal, shift = self._signals[output], self._parameters.readout_shift[output]
        parts = self._steps(self._real(output), signal.length, f"{output}.t")
        total = parts[0]
        for t, part in enumerate(parts[1:]):
            total = self.emit("Add", [total, part], f"{output}.sum{t}")
        if len(parts) > 1:
            total = self.emit("Mul", [total, self.constant("share", np.float32(1 / len(parts)))], f"{output}.mean")
        self.emit("Add", [total, self._column(f"{output}.readout", shift)], output)
        if not self._options.boxes:
            self.output(output, "FLOAT", ["N", len(shift), None, None])

    def _total(self, node: Node, signal: Signal) -> None:
        """Add the optional outputs of a layer that spikes."""
        name = INPUT if node.op == "input" else node.name
        if self._options.counts and node.op != "input":
            counts = f"{name}.counts"
            self.emit("Identity", [signal.whole or signal.name], counts)
            kind = "FLOAT" if not signal.whole else "UINT8" if signal.low.min() >= 0 else "INT8"
            self.output(counts, kind, [None, None, None, None])
        if self._options.totals:
            long = self._onnx.TensorProto.INT64
            whole = self.emit("Abs", [self.emit("Cast", [signal.name], f"{name}.long", to=long)], f"{name}.all")
            parts = self._steps(whole, signal.length, f"{name}.all")
            summed = parts[0]
            for t, part in enumerate(parts[1:]):
                summed = self.emit("Add", [summed, part], f"{name}.all.sum{t}")
            axes = self.constant("axes", np.array([1, 2, 3]))
            self.emit("ReduceSum", [summed, axes], f"{name}.spikes", keepdims=0)
            fan_out = self.constant(f"{name}.fan_out", self._fan_out[node.name].numpy().astype(np.int64))
            operations = self.emit("Mul", [summed, fan_out], f"{name}.reached")
            self.emit("ReduceSum", [operations, axes], f"{name}.synaptic_ops", keepdims=0)
            for what in ("spikes", "synaptic_ops"):
                self.output(f"{name}.{what}", "INT64", ["N"])
