"""The ten operations that the nodes of a graph may have: the attributes of each, and the shape of its value.

OPERATIONS holds their rules, by name:

    input      the voxel grid
    conv       attributes stride, padding, dilation, groups, `merged` (names of parallel convolutions that were merged into
               it); tensors weight and bias. In a spiking network its output is a current.
    relu       `ceiling` (6 for ReLU6) and `negative_slope` (LeakyReLU), both optional. In a spiking network: a layer of
               burst neurons.
    add        sum of two values
    concat     along channels
    slice      channels [start, stop)
    max_pool   kernel, stride, padding
    avg_pool   kernel, stride, padding; kernel null averages the whole map to 1 x 1
    upsample   nearest neighbour, by an integer factor
    hold       of a value and the voxel grid: where at least `events` events lie within `kernel` of the grid, the value; where
               fewer do, what this node's value was in the window before, if there was one. The second input is the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evburst.data.errors import CheckpointError
from evburst.models.schema import Check, anything, items, nothing_or, number, one_of, pair, table, text, whole

if TYPE_CHECKING:
    from evburst.models.graph import Node

Shape = tuple[int, int, int]
"""(C, H, W)."""
WeightShapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor, by name."""


@dataclass(frozen=True)
class Operation:
    """Rules for the nodes of one operation.

    Attributes:
        arity: smallest and largest number of inputs.
        attrs: check of the attributes.
        shape: computes the shape of the value from the node, the shapes of its inputs and the shapes of all tensors.
    """

    arity: tuple[int, int]
    attrs: Check
    shape: Callable[[Node, Sequence[Shape], WeightShapes], Shape]


def infer_shapes(nodes: Sequence[Node], weights: WeightShapes, grid: Shape) -> dict[str, Shape]:
    """Compute (C, H, W) of every node's value.

    Args:
        nodes: in topological order.
        weights: shape of every tensor, by name.
        grid: shape of the input.

    Raises:
        CheckpointError: shapes do not fit together, or a value would be empty.
    """
    shapes: dict[str, Shape] = {}
    for node in nodes:
        inputs = [shapes[name] for name in node.inputs]
        shape = OPERATIONS[node.op].shape(node, inputs, weights) if node.op != "input" else grid
        if min(shape) < 1:
            raise CheckpointError(f"node {node.name!r}: its value would be empty, {shape}, for inputs {inputs}")
        shapes[node.name] = shape
    return shapes


def _windows(node: Node, source: Shape, kernel: Sequence[int], channels: int) -> Shape:
    """Output shape of a convolution or a pool."""
    a = node.attrs
    dilation = a.get("dilation", (1, 1))
    rows, columns = (
        (size + 2 * pad - gap * (k - 1) - 1) // stride + 1
        for size, pad, gap, k, stride in zip(source[1:], a["padding"], dilation, kernel, a["stride"], strict=True)
    )
    return channels, rows, columns


def _conv_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    where, groups = f"node {node.name!r}", node.attrs["groups"]
    for what, axes in (("weight", 4), ("bias", 1)):
        name = f"{node.name}.{what}"
        if name not in weights:
            raise CheckpointError(f"{where}: {name!r} is missing")
        if len(weights[name]) != axes:
            raise CheckpointError(f"{where}: {name!r} has {len(weights[name])} axes, not {axes}")
    outputs, per_group, *kernel = weights[f"{node.name}.weight"]
    if weights[f"{node.name}.bias"] != (outputs,):
        raise CheckpointError(f"{where}: bias of shape {weights[f'{node.name}.bias']} for {outputs} output channels")
    if outputs % groups or per_group * groups != inputs[0][0]:
        raise CheckpointError(
            f"{where}: weights for {per_group * groups} input channels in {groups} groups and {outputs} outputs"
            f" do not fit an input of {inputs[0][0]} channels"
        )
    if max(kernel) > _LARGEST_KERNEL:
        largest = f"{_LARGEST_KERNEL}x{_LARGEST_KERNEL}"
        raise CheckpointError(f"{where}: kernel {kernel[0]}x{kernel[1]} is larger than the largest allowed, {largest}")
    return _windows(node, inputs[0], kernel, outputs)


def _pool_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    channels, kernel = inputs[0][0], node.attrs["kernel"]
    if kernel is None:
        return channels, 1, 1
    if any(2 * pad > k for pad, k in zip(node.attrs["padding"], kernel, strict=True)):
        raise CheckpointError(f"node {node.name!r}: its padding is more than half its kernel")
    return _windows(node, inputs[0], kernel, channels)


def _same_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    if len(set(inputs)) > 1:
        raise CheckpointError(f"node {node.name!r}: {node.op} of values of different shapes {inputs}")
    return inputs[0]


def _concat_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    if len({shape[1:] for shape in inputs}) > 1:
        raise CheckpointError(f"node {node.name!r}: concat of values of different sizes {inputs}")
    return sum(shape[0] for shape in inputs), *inputs[0][1:]


def _slice_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    start, stop = node.attrs["start"], node.attrs["stop"]
    if not start < stop <= inputs[0][0]:
        raise CheckpointError(f"node {node.name!r}: slice of channels {start} to {stop} from an input of {inputs[0][0]}")
    return stop - start, *inputs[0][1:]


def _upsample_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    channels, rows, columns = inputs[0]
    return channels, rows * node.attrs["factor"], columns * node.attrs["factor"]


def _hold_shape(node: Node, inputs: Sequence[Shape], weights: WeightShapes) -> Shape:
    value, grid = inputs
    if _windows(node, grid, node.attrs["kernel"], value[0]) != value:
        raise CheckpointError(f"node {node.name!r}: a value {value} cannot be held by windows of a grid {grid}")
    return value


_LARGEST_KERNEL = 64
_SIDE, _MARGIN, _CHANNEL = whole(1, _LARGEST_KERNEL), whole(0, _LARGEST_KERNEL), whole(0, 2**20)
_WINDOW = {"stride": pair(_SIDE), "padding": pair(_MARGIN)}
_POOL, _WHOLE_MAP = table({**_WINDOW, "kernel": pair(_SIDE)}), table({"kernel": nothing_or(_SIDE)}, _WINDOW)
_NAME = text(200)
_NONE, _ONE, _MANY = (0, 0), (1, 1), (1, 256)


def _check_avg_pool(value: object, where: str) -> dict[str, Any]:
    """Check an average pool: either with a window, or with kernel null for the whole map."""
    whole_map = isinstance(value, dict) and value.get("kernel", 0) is None
    attrs: dict[str, Any] = (_WHOLE_MAP if whole_map else _POOL)(value, where)
    return attrs


OPERATIONS: dict[str, Operation] = {
    "input": Operation(_NONE, table({}), _same_shape),
    "conv": Operation(
        _ONE,
        table({**_WINDOW, "dilation": pair(_SIDE), "groups": whole(1, 2**16)}, {"merged": items(_NAME, 0, 256)}),
        _conv_shape,
    ),
    "relu": Operation(_ONE, table({}, {"ceiling": number(1e-3, 1e6), "negative_slope": number(0, 0.99)}), _same_shape),
    "add": Operation((2, 2), table({}), _same_shape),
    "concat": Operation(_MANY, table({}), _concat_shape),
    "slice": Operation(_ONE, table({"start": _CHANNEL, "stop": _CHANNEL}), _slice_shape),
    "max_pool": Operation(_ONE, _POOL, _pool_shape),
    "avg_pool": Operation(_ONE, _check_avg_pool, _pool_shape),
    "upsample": Operation(_ONE, table({"factor": whole(1, 64)}), _upsample_shape),
    "hold": Operation((2, 2), table({**_WINDOW, "kernel": pair(whole(1, 1024)), "events": whole(1, 2**20)}), _hold_shape),
}
"""Rules by name of operation. A weights file is checked against them before it is run."""

STRUCTURE = table(
    {
        "nodes": items(
            table({"name": _NAME, "op": one_of(*OPERATIONS), "inputs": items(_NAME, 0, 256), "attrs": anything}),
            2,
            10_000,
        ),
        "outputs": items(_NAME, 1, 256),
    }
)
"""Structure of a graph as JSON, see `Graph.to_json`."""
