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
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.export.onnx_boxes import BoxOptions, write_boxes
from evburst.models.export.onnx_graph import OnnxGraph, convolution_of, save_onnx, window_of
from evburst.models.export.onnx_neurons import clipped, spike_counts
from evburst.models.graph import Graph, Node
from evburst.models.spiking.cost import fan_out_maps
from evburst.models.spiking.integer_form import Driven, driven, step_in_use
from evburst.models.spiking.network import SpikingParameters, spike_sizes
from evburst.models.spiking.rounding import input_sizes, to_int8

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


def write_onnx_snn(bundle: Bundle, path: Path, options: SnnOptions | None = None) -> None:
    """Write the spiking network of a bundle as ONNX; outputs have the names of its read-outs, or are boxes, scores, labels.

    Raises:
        MissingPackageError: the package onnx is missing.
        ModelError: an option needs the size of the grids, or a module has a name that the file needs.
        DataError: the file cannot be written.
    """
    options = options or SnnOptions()
    model = spiking_model(bundle.spiking, bundle.parameters, bundle.voxel.channels, options, bundle.head)
    decoding = asdict(options.boxes) if options.boxes else {}
    if bundle.head.kind == "classes":
        decoding.pop("post", None)  # all scores are outputs
    save_onnx(model, path, bundle, **({"boxes": decoding} if decoding else {}))


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
        units: whether the values are counts (in units of `spike_sizes`), or currents in units of thresholds; otherwise
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


def _highest(x: Signal) -> int:
    """Count that a convolution of a signal has to read; libraries add 128 to counts that may be negative."""
    return int(x.high.max(initial=0)) + 128 * bool((x.low < 0).any())


class SpikingWriter:
    """Translates a graph node by node; the method of an operation adds ONNX operators and returns the node's Signal."""

    def __init__(self, graph: Graph, parameters: SpikingParameters, channels: int, options: SnnOptions) -> None:
        self._onnx = OnnxGraph()
        self._graph, self._parameters, self._options = graph, parameters, options
        self._channels, self._timesteps = channels, parameters.timesteps
        self._sizes = spike_sizes(graph, parameters.neurons)
        drives = [drive for drive in driven(graph) if self._is_whole(drive)]
        self._drives = {conv.name: drive for drive in drives for conv in drive.convs}
        self._sums = {drive.add.name: drive for drive in drives if drive.add}
        self._driven = {drive.relu.name for drive in drives}
        self._signals: dict[str, Signal] = {}
        self._statistics: list[tuple[str, str, list[Any]]] = []  # names, kinds and shapes of the last outputs
        self._fan_out = fan_out_maps(graph, channels, *options.size) if options.totals and options.size else {}

    def _is_whole(self, drive: Driven) -> bool:
        """Whether neurons are driven by a convolution, which is rounded here, or by a sum in integer form."""
        layer = self._parameters.neurons[drive.relu.name]
        return drive.add is None or step_in_use(self._graph, drive, layer, self._sizes) is not None

    def model(self, head: HeadSpec | None) -> Any:
        """Translate the whole network; `head` is needed to decode boxes."""
        boxes, size = self._options.boxes, self._options.size
        self._declare(INPUT, "UINT8", [self._channels, *(size or ("H", "W"))])
        if self._graph.memories:
            self._declare(BEGINS, "BOOL", [1, 1, 1])
        for node in self._graph.nodes:
            self._signals[node.name] = getattr(self, f"_{node.op}")(node, *(self._signals[name] for name in node.inputs))
        maps = [self._read_out(name) for name in self._graph.outputs]
        if boxes and size and head:
            write_boxes(self._onnx, maps, head, boxes, size)
        for node in self._graph.memories:
            self._onnx.output(after_of(node), "UINT8", ["N", None, None, None])
        for output in self._statistics:
            self._onnx.output(*output)
        self._onnx.drop_unread()
        return self._onnx.model("spiking")

    def _declare(self, name: str, kind: str, shape: Sequence[Any]) -> None:
        """Declare an input of the network; `shape` is without the batch."""
        self._onnx.input(name, kind, [1 if self._options.boxes else "N", *shape])

    def _counts(self, source: str, node: Node, length: int, low: Bounds, high: Bounds) -> Signal:
        """Signal of a node that emits spike counts or passes them on."""
        whole, name = self._onnx.quantised(source, node.name, int(low.min()), int(high.max()))
        return Signal(name, length, low, high, True, whole)

    def _input(self, node: Node) -> Signal:
        low, high = (np.full(self._channels, bound, np.int64) for bound in (0, 255))
        signal = Signal(self._onnx.dequantised(INPUT, f"{node.name}.float"), 1, low, high, True, INPUT)
        self._total(node, signal)
        return signal

    def _hold(self, node: Node, x: Signal, grid: Signal) -> Signal:
        a, name = node.attrs, node.name
        self._declare(before_of(node), "UINT8", [len(self._parameters.neurons[node.inputs[0]].theta), None, None])
        axis = self._onnx.constant("channels", np.array([1]))
        summed = self._onnx.emit("ReduceSum", [grid.name, axis], f"{name}.events", keepdims=1)
        share = self._onnx.emit("AveragePool", [summed], f"{name}.share", **window_of(node), count_include_pad=1)
        least = self._onnx.constant(f"{name}.least", np.float32((a["events"] - 0.5) / math.prod(a["kernel"])))
        active = self._onnx.emit("Or", [self._onnx.emit("Greater", [share, least], f"{name}.busy"), BEGINS], f"{name}.active")
        kept = self._onnx.dequantised(before_of(node), f"{name}.kept")
        signal = self._counts(self._onnx.emit("Where", [active, x.name, kept], f"{name}.value"), node, 1, x.low, x.high)
        self._onnx.emit("Identity", [signal.whole], after_of(node))
        self._total(node, signal)
        return signal

    def _conv(self, node: Node, x: Signal) -> Signal:
        window, read = convolution_of(node), input_sizes(self._graph, node, self._sizes)
        weight, bias = (self._graph.tensors[f"{node.name}.{what}"] for what in ("weight", "bias"))
        drive = self._drives.get(node.name)
        if read is None or not x.units:
            names = [self._onnx.constant(f"{node.name}.{what}", t.numpy()) for what, t in (("weight", weight), ("bias", bias))]
            return Signal(
                self._onnx.emit("Conv", [self._real(node.inputs[0]), *names], f"{node.name}.current", **window), x.length
            )
        integers, scale = to_int8(weight, read, self._graph.tensors.get(f"{node.name}.step"))
        source = x.name
        if x.pieces and node.attrs["groups"] == 1:  # a weight is repeated for every piece of its channel
            joined = self._onnx.emit("Concat", [name for name, _ in x.pieces], f"{node.name}.pieces", axis=1)
            source = self._onnx.quantised(joined, f"{node.name}.x", 0, 255)[1]
            integers = integers[:, np.concatenate([channels for _, channels in x.pieces])]
        shift: Tensor = torch.zeros_like(bias)
        gain = scale.double()
        if drive is not None:
            layer = self._parameters.neurons[drive.relu.name]
            shift = layer.shift if node.name == drive.convs[0].name else shift
            gain = gain / layer.theta.double() if drive.add is None else torch.ones_like(gain)
        steps = torch.round((bias + shift).double() / scale.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32)
        unit = self._onnx.constant(f"{node.name}.gain", gain.float().numpy())
        kernel = self._onnx.kernel(f"{node.name}.weight", integers.numpy(), unit, _highest(x))
        name = f"{node.name}.bias"
        added = self._onnx.constant(name, bias.numpy()) if drive is None else self._onnx.integers(name, steps.numpy(), unit)
        current = self._onnx.emit("Conv", [source, kernel, added], f"{node.name}.current", **window)
        return Signal(current, x.length, units=drive is not None)

    def _relu(self, node: Node, x: Signal) -> Signal:
        layer = self._parameters.neurons[node.name]
        current = x.name
        if not x.units or node.name not in self._driven:
            shift = self._onnx.column(f"{node.name}.shift", layer.shift)
            shifted = self._onnx.emit("Add", [self._real(node.inputs[0]), shift], f"{node.name}.shifted")
            current = self._onnx.emit(
                "Div", [shifted, self._onnx.column(f"{node.name}.theta", layer.theta)], f"{node.name}.current"
            )
        limits = layer.burst_limits
        high = np.broadcast_to(np.round(limits.numpy()).astype(np.int64).reshape(-1), (len(layer.theta),))
        is_signed = bool((layer.signed and self._timesteps > 1) or layer.negative_slope)
        low = -high if is_signed else np.zeros_like(high)
        if self._timesteps == 1 and not is_signed:
            rounded = current if self._options.clip_first else self._onnx.quantised(current, f"{node.name}.all", 0, 255)[1]
            parts = [rounded if high.min() == 255 else clipped(self._onnx, rounded, node.name, limits)]
        else:
            currents = self._onnx.split(current, x.length, f"{node.name}.current")
            parts = spike_counts(self._onnx, node.name, layer, currents, self._timesteps)
        signal = self._counts(self._onnx.joined(parts, f"{node.name}.fired"), node, self._timesteps, low, high)
        self._total(node, signal)
        return signal

    def _max_pool(self, node: Node, x: Signal) -> Signal:
        steps, window = self._onnx.split(x.name, x.length, f"{node.name}.x"), window_of(node)
        summed, before, grown = "", "", []
        for t, part in enumerate(steps):
            summed = self._onnx.emit("Add", [summed, part], f"{node.name}.sum{t}") if summed else part
            now = self._onnx.emit("MaxPool", [summed], f"{node.name}.pool{t}", **window)
            grown.append(self._onnx.emit("Sub", [now, before], f"{node.name}.new{t}") if before else now)
            before = now
        low = np.where(x.low < 0, -x.length * (x.high - x.low), 0)
        signal = self._counts(self._onnx.joined(grown, f"{node.name}.grown"), node, x.length, low, x.high - low)
        self._total(node, signal)
        return signal

    def _avg_pool(self, node: Node, x: Signal) -> Signal:
        return Signal(self._onnx.avg_pool(self._real(node.inputs[0]), node, f"{node.name}.mean"), x.length)

    def _upsample(self, node: Node, x: Signal) -> Signal:
        return self._passed(node, x, self._onnx.upsample(x.name, node, f"{node.name}.up"))

    def _slice(self, node: Node, x: Signal) -> Signal:
        channels = slice(node.attrs["start"], node.attrs["stop"])
        part = replace(x, low=x.low[channels], high=x.high[channels])
        return self._passed(node, part, self._onnx.slice(x.name, node, f"{node.name}.part"))

    def _passed(self, node: Node, x: Signal, name: str) -> Signal:
        """Signal of a node that passes counts or currents on."""
        return self._counts(name, node, x.length, x.low, x.high) if x.units else Signal(name, x.length)

    def _concat(self, node: Node, *parts: Signal) -> Signal:
        length, units = max(part.length for part in parts), self._sizes[node.name] is not None
        names = [part.name if units else self._real(name) for name, part in zip(node.inputs, parts, strict=True)]
        aligned = [self._onnx.repeated(name, part.length, length) for name, part in zip(names, parts, strict=True)]
        joined = self._onnx.emit("Concat", aligned, f"{node.name}.joined", axis=1)
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
        length, size = max(part.length for part in parts), self._sizes[node.name]
        names = []
        low, high = np.zeros_like(parts[0].low), np.zeros_like(parts[0].high)
        for k, (source, part) in enumerate(zip(node.inputs, parts, strict=True)):
            if size is None:
                name = self._real(source)
            else:
                own = self._sizes[source]
                assert own is not None  # a sum only has a size if all of its parts have one
                multiple = torch.round(own / size)
                spikes = multiple.numpy().astype(np.int64)  # of the sum, for one of this part
                low, high = low + part.low * spikes, high + part.high * spikes
                name = part.name
                if not bool((multiple == 1).all()):
                    column = self._onnx.column(f"{node.name}.spike_size{k}", multiple)
                    name = self._onnx.emit("Mul", [name, column], f"{node.name}.spike_size{k}.x")
            names.append(self._onnx.repeated(name, part.length, length))
        total = self._onnx.emit("Add", names, f"{node.name}.sum")
        if size is None:
            return Signal(total, length)
        signal = self._counts(total, node, length, low, high)
        return signal if signal.whole or low.min() < 0 else replace(signal, pieces=self._pieces(total, node, names, high))

    def _sum_of_currents(self, node: Node, drive: Driven, parts: Sequence[Signal]) -> Signal:
        """Add the currents of convolutions, in steps, and spikes; the result is in units of the neurons' thresholds."""
        step, length = self._graph.tensors[f"{drive.convs[0].name}.step"].double(), max(part.length for part in parts)
        names = []
        for source, part in zip(node.inputs, parts, strict=True):
            name, size = part.name, self._sizes[source]
            if source in drive.spikes:
                assert size is not None  # see `_is_whole`
                column = self._onnx.column(f"{node.name}.spike_size", torch.round(size.double() / step))
                name = self._onnx.emit("Mul", [name, column], f"{node.name}.spikes")
            names.append(self._onnx.repeated(name, part.length, length))
        gain = self._onnx.column(f"{node.name}.gain", step / self._parameters.neurons[drive.relu.name].theta.double())
        total = self._onnx.emit("Mul", [self._onnx.emit("Add", names, f"{node.name}.sum"), gain], f"{node.name}.current")
        return Signal(total, length, units=True)

    def _pieces(self, total: str, node: Node, parts: list[str], high: Bounds) -> tuple[tuple[str, NDArray[np.int64]], ...]:
        """Split a sum of parts into its first 255 counts, those above 255 of the channels that can have them, and so on."""
        pieces = [(self._onnx.quantised(total, f"{node.name}.least", 0, 255)[1], np.arange(len(high)))]
        for level in range(255, int(high.max()), 255):
            channels, name = np.flatnonzero(high > level), f"{node.name}.above{level}"
            chosen = self._onnx.constant(f"{name}.channels", channels)
            own = [self._onnx.emit("Gather", [part, chosen], f"{name}.part{k}", axis=1) for k, part in enumerate(parts)]
            above = self._onnx.emit("Add", own, f"{name}.sum")
            above = self._onnx.emit("Sub", [above, self._onnx.constant(f"level_{level}", np.float32(level))], f"{name}.rest")
            pieces.append((self._onnx.quantised(above, name, 0, 255)[1], channels))
        return tuple(pieces)

    def _real(self, source: str) -> str:
        """Add the value of a node as in the reference engine: counts times the value of one count."""
        signal, size = self._signals[source], self._sizes[source]
        if not signal.units or size is None:  # the size of an input count is 1
            return signal.name
        name = f"{source}.real"
        if not self._onnx.has(name):
            self._onnx.emit("Mul", [signal.name, self._onnx.column(f"{source}.size", size)], name)
        return name

    def _read_out(self, output: str) -> str:
        """Add a read-out and return the name of its tensor: its own, unless boxes are decoded from it, which may have that."""
        signal, shift = self._signals[output], self._parameters.readout_shift[output]
        parts = self._onnx.split(self._real(output), signal.length, f"{output}.t")
        total = self._onnx.summed(parts, output)
        if len(parts) > 1:
            total = self._onnx.emit("Mul", [total, self._onnx.constant("share", np.float32(1 / len(parts)))], f"{output}.mean")
        name = f"{output}.map" if self._options.boxes else output
        self._onnx.emit("Add", [total, self._onnx.column(f"{output}.readout", shift)], name)
        if not self._options.boxes:
            self._onnx.output(name, "FLOAT", ["N", len(shift), None, None])
        return name

    def _total(self, node: Node, signal: Signal) -> None:
        """Add the optional outputs of a layer that spikes."""
        name = INPUT if node.op == "input" else node.name
        if self._options.counts and node.op != "input":
            counts = f"{name}.counts"
            self._onnx.emit("Identity", [signal.whole or signal.name], counts)
            kind = "FLOAT" if not signal.whole else "UINT8" if signal.low.min() >= 0 else "INT8"
            self._statistics.append((counts, kind, [None, None, None, None]))
        if self._options.totals:
            whole = self._onnx.emit("Abs", [self._onnx.cast(signal.name, f"{name}.long", "INT64")], f"{name}.all")
            summed = self._onnx.summed(self._onnx.split(whole, signal.length, f"{name}.all"), f"{name}.all")
            axes = self._onnx.constant("axes", np.array([1, 2, 3]))
            self._onnx.emit("ReduceSum", [summed, axes], f"{name}.spikes", keepdims=0)
            fan_out = self._onnx.constant(f"{name}.fan_out", self._fan_out[node.name].numpy().astype(np.int64))
            operations = self._onnx.emit("Mul", [summed, fan_out], f"{name}.reached")
            self._onnx.emit("ReduceSum", [operations, axes], f"{name}.synaptic_ops", keepdims=0)
            for what in ("spikes", "synaptic_ops"):
                self._statistics.append((f"{name}.{what}", "INT64", ["N"]))
