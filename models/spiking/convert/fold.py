"""Convert a PyTorch detector to a Graph: trace it with torch.export and fold batch norms into the convolutions before them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node as FxNode

from evburst.data.errors import ConversionError
from evburst.models.graph import Graph, Node
from evburst.models.spiking.convert.traced import advice, arguments, axis_of, path_of, shape_of


def trace(module: nn.Module, example: Tensor) -> Graph:
    """Trace a detector whose `forward` returns a list of raw maps.

    Args:
        module: the network. It is traced in evaluation mode; the modes of its parts are restored.
        example: `(N, C, H, W)` float32 of any size that the network accepts; the graph is not bound to that size.

    Raises:
        ConversionError: an operation has no known spiking equivalent, and the message names its module; or torch.export cannot
            trace the network.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        program = torch.export.export(module.eval(), (example,))
    except Exception as error:  # of torch, whose tracer raises errors of many classes, or of the network itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(
            f"torch.export cannot trace the network: {reason}; forward takes one batch of grids, here {list(example.shape)}, "
            "and does the same whatever values they have"
        ) from error
    finally:
        for part, training in modes.items():  # which may differ: some are frozen
            part.training = training
    return _Tracer(program).graph()


class _Tracer:
    """Translates the exported operations in order; `_aliases` maps the name of an operation to the node with its value."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        signature = program.graph_signature
        state = {**dict(program.named_parameters()), **dict(program.named_buffers())}
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._state = {placeholder: state[name].detach() for placeholder, name in names.items()}
        self._user_inputs = set(signature.user_inputs)
        self._nodes: list[Node] = []
        self._tensors: dict[str, Tensor] = {}
        self._aliases: dict[str, Node] = {}
        self._pieces: dict[str, list[Node]] = {}

    def graph(self) -> Graph:
        outputs: list[str] = []
        for item in self._program.graph.nodes:
            if item.op == "placeholder" and item.name in self._user_inputs:
                self._emit(item, "input", "input", ())
            elif item.op == "call_function":
                self._call(item)
            elif item.op == "output":
                outputs = [self._map(arg).name for arg in item.args[0]]  # type: ignore[union-attr]
        self._check_outputs(outputs)
        return Graph(self._nodes, outputs, self._tensors)

    def _map(self, returned: Any) -> Node:
        if not isinstance(returned, FxNode) or returned.name not in self._aliases:
            raise ConversionError(f"forward returns {returned}, which is no map; return a list of maps and nothing else")
        return self._aliases[returned.name]

    def _check_outputs(self, outputs: list[str]) -> None:
        for name in outputs:
            if outputs.count(name) > 1:
                raise ConversionError(f"output {name!r} is returned twice; return each map once")
        graph = Graph(self._nodes, outputs, self._tensors)
        ops = {node.name: node.op for node in self._nodes}
        for name in outputs:
            if ops[name] != "conv":
                raise ConversionError(
                    f"output {name!r} is not a convolution: each read-out of a spiking network is the current of its last"
                    " convolution; leave out what follows it"
                )
        for node in self._nodes:
            users = graph.consumers()[node.name]
            if not users and node.name not in outputs:
                raise ConversionError(f"{node.name!r} is computed but never used; remove it from the network")

    def _call(self, item: FxNode) -> None:
        if "_assert" in str(item.target):  # of the type of a value that is converted
            return
        if item.target is operator.getitem:
            self._aliases[item.name] = self._pieces[item.args[0].name][item.args[1]]  # type: ignore[union-attr, index]
            return
        handler = _HANDLERS.get(str(item.target).rpartition("::")[2].replace("_.", "."))  # in place or not
        if handler is None:
            raise ConversionError(f"module {path_of(item)!r}: {item.target} has no spiking equivalent{advice(item)}")
        self._check_keywords(item)
        handler(self, item)

    def _check_keywords(self, item: FxNode) -> None:
        """Refuse keywords that change the result: handlers read positional arguments only."""
        for name, value in item.kwargs.items():
            if value is not None and name != "memory_format" and not (name == "alpha" and value == 1):
                raise ConversionError(f"module {path_of(item)!r}: {item.target} with {name}={value} has no spiking equivalent")

    def _emit(self, item: FxNode, name: str, op: str, inputs: tuple[Node, ...], **attrs: Any) -> Node:
        taken = {node.name for node in self._nodes}
        unique = name
        for k in range(2, 1000):
            if unique not in taken:
                break
            unique = f"{name}_{k}"
        node = Node(unique, op, tuple(source.name for source in inputs), attrs)
        self._nodes.append(node)
        self._aliases[item.name] = node
        return node

    def _value(self, item: Any) -> Node:
        if item.name in self._state:
            user = path_of(next(iter(item.users)))
            raise ConversionError(f"module {user!r}: computing with the parameter {item.name!r} has no spiking equivalent")
        return self._aliases[item.name]

    def conv(self, item: FxNode) -> None:
        x, weight, bias, stride, padding, dilation, groups = arguments(item, (None, [1, 1], [0, 0], [1, 1], 1), 2)
        if isinstance(padding, str):  # same or valid
            sides = self._state[weight.name].shape[2:]
            added = [step * (side - 1) if padding == "same" else 0 for side, step in zip(sides, dilation, strict=True)]
            if any(pixels % 2 for pixels in added):
                raise ConversionError(
                    f"module {path_of(item)!r}: padding {padding!r} of a kernel of even side is not symmetric"
                )
            padding = [pixels // 2 for pixels in added]
        geometry = {"stride": list(stride), "padding": list(padding), "dilation": list(dilation), "groups": groups}
        self._conv(item, self._value(x), self._state[weight.name], bias, geometry)

    def linear(self, item: FxNode) -> None:
        x, weight, bias = arguments(item, (None,), 2)
        self._require_single(item, self._value(x))
        geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
        self._conv(item, self._value(x), self._state[weight.name][:, :, None, None], bias, geometry)

    def _conv(self, item: FxNode, source: Node, weight: Tensor, bias: FxNode | None, geometry: dict[str, Any]) -> None:
        if not self._carries_spikes(source):
            raise ConversionError(
                f"module {path_of(item)!r} reads the current of {source.name!r}: put an activation between the two"
                " convolutions, or their products remain multiplications"
            )
        node = self._emit(item, path_of(item), "conv", (source,), **geometry)
        tensor = weight.float()
        self._tensors[f"{node.name}.weight"] = tensor.clone()
        self._tensors[f"{node.name}.bias"] = (
            self._state[bias.name].float().clone() if bias is not None else tensor.new_zeros(len(tensor))
        )

    def batch_norm(self, item: FxNode) -> None:
        source = self._value(item.args[0])
        users = len(item.args[0].users)  # type: ignore[union-attr]
        if source.op != "conv" or users != 1:
            raise ConversionError(
                f"module {path_of(item)!r}: a batch norm can only be folded into a convolution right before it whose output"
                " nothing else uses"
            )
        if item.args[3] is None or item.args[4] is None:
            raise ConversionError(f"module {path_of(item)!r}: a batch norm without running statistics cannot be folded")
        mean, variance = (self._state[arg.name].float() for arg in item.args[3:5])  # type: ignore[union-attr]
        gain = torch.ones_like(mean) if item.args[1] is None else self._state[item.args[1].name].float()  # type: ignore[union-attr]
        shift = torch.zeros_like(mean) if item.args[2] is None else self._state[item.args[2].name].float()  # type: ignore[union-attr]
        scale = gain * torch.rsqrt(variance + float(item.args[7]))  # type: ignore[arg-type]
        weight, bias = f"{source.name}.weight", f"{source.name}.bias"
        self._tensors[weight] = self._tensors[weight] * scale[:, None, None, None]
        self._tensors[bias] = (self._tensors[bias] - mean) * scale + shift
        self._aliases[item.name] = source

    def relu(self, item: FxNode, **attrs: float) -> None:
        source = self._value(item.args[0])
        self._emit(item, f"{source.name}.relu", "relu", (source,), **attrs)

    def clip(self, item: FxNode) -> None:
        _, low, high = arguments(item, (0.0, 6.0) if "relu6" in str(item.target) else (None, None), 1)
        if low != 0 or (high is not None and high <= 0):
            raise ConversionError(
                f"module {path_of(item)!r}: a clip to [{low}, {high}]; only clips with lower bound 0 have a spiking equivalent"
            )
        self.relu(item, **({} if high is None else {"ceiling": float(high)}))

    def leaky_relu(self, item: FxNode) -> None:
        _, slope = arguments(item, (0.01,), 1)
        if not 0 < slope < 1:
            raise ConversionError(f"module {path_of(item)!r}: LeakyReLU with slope {slope}; it must be between 0 and 1")
        self.relu(item, negative_slope=float(slope))

    def add(self, item: FxNode) -> None:
        if item.args[1] == 0:  # the absent identity branch of RepConv
            self.same(item)
            return
        if not all(isinstance(arg, FxNode) for arg in item.args):
            raise ConversionError(f"module {path_of(item)!r}: adding a constant has no spiking equivalent")
        sources = tuple(self._value(arg) for arg in item.args)
        shapes = [list(arg.meta["val"].shape) for arg in item.args]  # type: ignore[union-attr]
        if shapes[0] != shapes[1]:
            raise ConversionError(
                f"module {path_of(item)!r}: adding values of different shapes, {shapes[0]} and {shapes[1]}, has no spiking"
                " equivalent; bring both to the same size first"
            )
        if all(len(arg.users) == 1 for arg in item.args) and self._mergeable(*sources):  # type: ignore[union-attr]
            self._merge(item, *sorted(sources, key=self._kernel, reverse=True))
        else:
            self._emit(item, f"{path_of(item)}.add", "add", sources)

    def _mergeable(self, a: Node, b: Node) -> bool:
        """Whether two convolutions of one input can be merged: one kernel is centred in the other (RepVGG, RepConv)."""
        if a.op != "conv" or b.op != "conv" or a is b or a.inputs != b.inputs:
            return False
        same = all(a.attrs[key] == b.attrs[key] for key in ("stride", "groups"))
        same = same and a.attrs["dilation"] == b.attrs["dilation"] == [1, 1]
        borders = [
            (size_a - size_b, 2 * (pad_a - pad_b))
            for size_a, size_b, pad_a, pad_b in zip(
                self._kernel(a), self._kernel(b), a.attrs["padding"], b.attrs["padding"], strict=True
            )
        ]
        nested = all(x >= 0 for x, _ in borders) or all(x <= 0 for x, _ in borders)
        return same and nested and all(x == y for x, y in borders)

    def _kernel(self, node: Node) -> tuple[int, ...]:
        return tuple(self._tensors[f"{node.name}.weight"].shape[2:])

    def _merge(self, item: FxNode, large: Node, small: Node) -> None:
        """Replace the sum of two parallel convolutions by one convolution, as is usual when such networks are deployed."""
        (height, width), (h, w) = self._kernel(large), self._kernel(small)
        padding = [(width - w) // 2] * 2 + [(height - h) // 2] * 2
        self._tensors[f"{large.name}.weight"] += F.pad(self._tensors.pop(f"{small.name}.weight"), padding)
        self._tensors[f"{large.name}.bias"] += self._tensors.pop(f"{small.name}.bias")
        large.attrs.setdefault("merged", []).append(small.name)
        self._nodes.remove(small)
        self._aliases[item.name] = large

    def concat(self, item: FxNode) -> None:
        parts, axis = arguments(item, (0,), 1)
        if axis_of(axis, item) != 1:
            raise ConversionError(
                f"module {path_of(item)!r}: concatenation along axis {axis}; only axis 1 (channels) is supported"
            )
        self._emit(item, f"{path_of(item)}.concat", "concat", tuple(self._value(part) for part in parts))

    def chunk(self, item: FxNode) -> None:
        source, axis = self._value(item.args[0]), arguments(item, (0,), 2)[2]
        if axis_of(axis, item.args[0]) != 1:
            raise ConversionError(f"module {path_of(item)!r}: split along axis {axis}; only axis 1 (channels) is supported")
        pieces, start = [], 0
        for k, piece in enumerate(item.meta["val"]):
            stop = start + piece.shape[1]
            pieces.append(self._emit(item, f"{path_of(item)}.part{k}", "slice", (source,), start=start, stop=stop))
            start = stop
        self._pieces[item.name] = pieces

    def slice(self, item: FxNode) -> None:
        x, axis, start, stop, step = arguments(item, (0, None, None, 1), 1)
        crops = axis_of(axis, item) > 1 and (start or stop not in (None, torch.iinfo(torch.int64).max))  # of some sizes
        start, stop, step = slice(start, stop, step).indices(shape_of(x)[axis])
        if shape_of(item) == shape_of(x) and (not crops or self._is_single(self._value(x))):
            self.same(item)
        elif axis_of(axis, item) == step == 1:
            self._emit(item, f"{path_of(item)}.part", "slice", (self._value(x),), start=start, stop=stop)
        else:
            raise ConversionError(
                f"module {path_of(item)!r}: a slice of axis {axis} in steps of {step}; only of axis 1 in steps of 1"
            )

    def max_pool(self, item: FxNode) -> None:
        x, kernel, stride, padding, dilation, ceil = arguments(item, ([], [0, 0], [1, 1], False), 2)
        if list(dilation) != [1, 1] or ceil:
            raise ConversionError(f"module {path_of(item)!r}: max-pool with dilation or ceil_mode is not supported")
        source = self._value(x)
        if not self._is_spike_count(source):
            raise ConversionError(
                f"module {path_of(item)!r}: max-pool must read spikes of single neurons, not sums or currents"
            )
        attrs = {"kernel": list(kernel), "stride": list(stride or kernel), "padding": list(padding)}
        self._emit(item, f"{path_of(item)}.pool", "max_pool", (source,), **attrs)

    def avg_pool(self, item: FxNode) -> None:
        x, kernel, stride, padding, ceil, with_padding, divisor = arguments(item, ([], [0, 0], False, True, None), 2)
        if ceil or divisor is not None or (any(padding) and not with_padding):
            raise ConversionError(
                f"module {path_of(item)!r}: average pools with ceil_mode, divisor_override or"
                " count_include_pad=False are not supported"
            )
        attrs = {"kernel": list(kernel), "stride": list(stride or kernel), "padding": list(padding)}
        self._emit(item, f"{path_of(item)}.pool", "avg_pool", (self._value(x),), **attrs)

    def adaptive_pool(self, item: FxNode) -> None:
        size = list(item.args[1])  # type: ignore[arg-type]
        if size != [1, 1]:
            raise ConversionError(f"module {path_of(item)!r}: pooling to {size}; adaptive pools are supported to 1 x 1 only")
        self._global_pool(item)

    def mean(self, item: FxNode) -> None:
        axes = sorted(axis % 4 for axis in item.args[1])  # type: ignore[union-attr, operator]
        if axes != [2, 3]:
            raise ConversionError(f"module {path_of(item)!r}: mean over axes {axes}; only [2, 3], the whole map, is supported")
        self._global_pool(item)

    def _global_pool(self, item: FxNode) -> None:
        self._emit(item, f"{path_of(item)}.pool", "avg_pool", (self._value(item.args[0]),), kernel=None)

    def flatten(self, item: FxNode) -> None:
        """A vector for each grid, by whatever operation that leaves out axes of length 1."""
        source = self._value(item.args[0])
        self._require_single(item, source)
        if shape_of(item)[:2] != shape_of(item.args[0])[:2]:
            raise ConversionError(f"module {path_of(item)!r}: a vector of {shape_of(item)}; (N, C) is supported only")
        self._aliases[item.name] = source

    def converted(self, item: FxNode) -> None:
        if item.meta["val"].dtype != torch.float32:
            raise ConversionError(f"module {path_of(item)!r}: computing in {item.meta['val'].dtype}; only float32 is traced")
        self.same(item)

    def same(self, item: FxNode) -> None:
        self._aliases[item.name] = self._value(item.args[0])

    def _require_single(self, item: FxNode, source: Node) -> None:
        if not self._is_single(source):
            raise ConversionError(
                f"module {path_of(item)!r}: {item.target} of a map; only the result of a global average pool can be flattened"
                f"{advice(item)}"
            )

    def _is_single(self, node: Node) -> bool:
        """Whether a node is 1 x 1 for every size of input."""
        if node.op == "avg_pool" and node.attrs["kernel"] is None:
            return True
        pointwise = node.op != "conv" or (set(self._kernel(node)) == {1} and set(node.attrs["padding"]) == {0})
        return pointwise and self._holds_for_inputs(node, ("relu", "conv", "add", "concat", "slice"), self._is_single)

    def upsample(self, item: FxNode) -> None:
        """By a factor, or to a size, which then stands for its ratio to that of the map: sides are multiples of the stride."""
        x, _, scales = arguments(item, (None,), 2)
        scales = scales or [after / before for after, before in zip(shape_of(item)[2:], shape_of(x)[2:], strict=True)]
        if scales[0] != scales[1] or scales[0] != int(scales[0]):
            raise ConversionError(
                f"module {path_of(item)!r}: nearest upsampling by {scales}; only one whole factor is supported"
            )
        self._emit(item, path_of(item), "upsample", (self._value(x),), factor=int(scales[0]))

    def _is_spike_count(self, node: Node) -> bool:
        """Whether every channel holds the spikes of single neurons, so that its values are multiples of one threshold."""
        through = ("slice", "concat", "upsample")
        return node.op in ("relu", "max_pool") or self._holds_for_inputs(node, through, self._is_spike_count)

    def _carries_spikes(self, node: Node) -> bool:
        """Whether a node's values consist of spikes or input events only, not of currents."""
        through = ("slice", "concat", "upsample", "add", "avg_pool")
        return node.op in ("input", "relu", "max_pool") or self._holds_for_inputs(node, through, self._carries_spikes)

    def _holds_for_inputs(self, node: Node, through: tuple[str, ...], rule: Callable[[Node], bool]) -> bool:
        """Whether a node's operation is one of `through` and a rule holds for all of its inputs."""
        by_name = {n.name: n for n in self._nodes}
        return node.op in through and all(rule(by_name[name]) for name in node.inputs)


_SHAPING = ["flatten.using_ints", "view.default", "reshape.default", "squeeze.default", "squeeze.dim", "squeeze.dims"]
_PASSING = ["dropout.default", "feature_dropout.default", "alias.default", "clone.default", "contiguous.default"]

_HANDLERS: dict[str, Callable[[_Tracer, FxNode], None]] = {
    "aten.conv2d.default": _Tracer.conv,
    "aten.conv2d.padding": _Tracer.conv,
    "aten.batch_norm.default": _Tracer.batch_norm,
    "aten.relu.default": _Tracer.relu,
    "aten.relu6.default": _Tracer.clip,
    "aten.hardtanh.default": _Tracer.clip,
    "aten.clamp.default": _Tracer.clip,
    "aten.clamp_min.default": _Tracer.clip,
    "aten.leaky_relu.default": _Tracer.leaky_relu,
    "aten.add.Tensor": _Tracer.add,
    "aten.cat.default": _Tracer.concat,
    "aten.chunk.default": _Tracer.chunk,
    "aten.split.Tensor": _Tracer.chunk,
    "aten.split_with_sizes.default": _Tracer.chunk,
    "aten.tensor_split.sections": _Tracer.chunk,
    "aten.slice.Tensor": _Tracer.slice,
    "aten.max_pool2d.default": _Tracer.max_pool,
    "aten.avg_pool2d.default": _Tracer.avg_pool,
    "aten.adaptive_avg_pool2d.default": _Tracer.adaptive_pool,
    "aten.mean.dim": _Tracer.mean,
    "aten.to.dtype": _Tracer.converted,
    "aten.linear.default": _Tracer.linear,
    "aten.upsample_nearest2d.vec": _Tracer.upsample,
    "aten._upsample_nearest_exact2d.vec": _Tracer.upsample,
    **{f"aten.{name}": _Tracer.flatten for name in [*_SHAPING, "select.int"]},
    **{f"aten.{name}": _Tracer.same for name in _PASSING},
}
