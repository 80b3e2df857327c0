"""Validation of a detector's weights file before any of it is used.

Checks the metadata, the names, shapes and dtypes of the tensors, the range of their numbers, and that the outputs fit the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from evburst.data.errors import CheckpointError
from evburst.data.representations.voxel_grid import BIN_LIMITS, COUNT_LIMITS, WINDOW_LIMITS_MS
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph
from evburst.models.operations import Shape, WeightShapes, infer_shapes
from evburst.models.schema import anything, by_name, items, number, one_of, pair, printable, shown, table, text, whole
from evburst.models.spiking.rounding import SMALLEST_SCALE

_CLASSES = items(text(200), 1, 10_000)
_LEVELS = (1, 8)
_LARGEST_STRIDE = 1024
TIMESTEP_LIMITS = (1, 64)
PHI_LIMITS = (1, 255)
_MAX_RECORD_DEPTH = 32

VOXEL = table({"bins": whole(*BIN_LIMITS), "max_count": whole(*COUNT_LIMITS), "window_ms": number(*WINDOW_LIMITS_MS)})

NETWORK = table(
    {"architecture": text(100), "activation": text(100), "channels": whole(1, 256), "classes": _CLASSES},
    {"input_size": pair(whole(32, 4096))},
)
"""Network section of a training checkpoint; see models/architectures.NetworkConfig."""


def _record(value: Any, where: str) -> dict[str, Any]:
    """Check the free-form record of a file's origin: some of its names must hold objects, other names are not restricted."""
    record: dict[str, Any] = by_name(anything)(value, where)
    level: list[Any] = [record]
    for _ in range(_MAX_RECORD_DEPTH):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, dict | list)]
    if level:
        raise CheckpointError(f"{where}: nested too deeply")
    for path in (("training",), ("training", "config"), ("training", "config", "data"), ("conversion",), ("check",)):
        part: Any = record
        for name in path:
            part = part.get(name, {}) if isinstance(part, dict) else part
        by_name(anything)(part, f"{where}: {'.'.join(path)}")
    spec = record.get("training", {}).get("config", {}).get("data", {}).get("spec", "")
    for name, named in (("dataset", record.get("dataset")), ("training.config.data.spec", spec)):
        if isinstance(named, dict | list):
            raise CheckpointError(f"{where}: {name}: expected a name, not {shown(named)}")
    return record


@dataclass(frozen=True)
class Head:
    """Requirements of one kind of detection head.

    Attributes:
        fields: checks of the fields it needs besides strides and classes; other kinds of heads leave these empty or 0.
        maps: names of the maps of a level; the maps of all levels under the first name come before those under the second.
        channels: (head, level) -> number of channels of each map of that level.
    """

    fields: Mapping[str, Callable[[Any, str], Any]]
    maps: tuple[str, ...]
    channels: Callable[[HeadSpec, int], tuple[int, ...]]


_ANCHOR = pair(number(1e-3, 1e5))
HEADS = {
    "yolo": Head({"reg_max": whole(1, 64)}, ("box", "class"), lambda spec, _: (4 * spec.reg_max, len(spec.classes))),
    "ssd": Head(
        {"anchors": items(items(_ANCHOR, 1, 64), *_LEVELS)},
        ("box", "class"),
        lambda spec, level: (4 * len(spec.anchors[level]), (1 + len(spec.classes)) * len(spec.anchors[level])),
    ),
    "classes": Head({"strides": items(whole(1, _LARGEST_STRIDE), 1, 1)}, ("class",), lambda spec, _: (len(spec.classes),)),
}

GRAPH = text(2**24)
"""Serialised structure of a network, see `Graph.to_json`."""

HEAD = table(
    {
        "kind": one_of(*HEADS),
        "strides": items(whole(1, _LARGEST_STRIDE), *_LEVELS),
        "reg_max": whole(0, 64),
        "classes": _CLASSES,
    },
    {"anchors": items(items(_ANCHOR, 1, 64), 0, _LEVELS[1])},
)
"""Section of a head, as in the metadata of a weights file; see `head_of`."""

METADATA = table(
    {
        "graph": GRAPH,
        "timesteps": whole(*TIMESTEP_LIMITS),
        "phi": by_name(whole(*PHI_LIMITS)),
        "head": HEAD,
        "voxel": VOXEL,
        "record": _record,
    },
    {"takes_back": items(text(200), 0, 10_000)},
)

LIMITS = {
    "ann": (-65504.0, 65504.0),
    "spiking": (-1e8, 1e8),
    "spiking_scale": (SMALLEST_SCALE, 1e6),
    "theta": (1e-8, 1e8),
    "shift": (-1e8, 1e8),
    "readout": (-1e8, 1e8),
}
"""Smallest and largest number allowed in each kind of tensor."""

_FLOATS, _FLOAT, _INTEGERS = ("F16", "F32"), ("F32",), ("I8",)
_LARGEST_NODE, _ALL_NODES, _MACS = 1024, 20_000, 20_000_000
"""Limits per pixel of the grid: values of the largest node, values of all nodes, and multiply-accumulates."""


def head_of(content: Mapping[str, Any]) -> HeadSpec:
    """Build the head from checked metadata, escaping class names that cannot be printed."""
    kind, strides = content["kind"], content["strides"]
    for name, check in HEADS[kind].fields.items():
        check(content.get(name), f"metadata: head: {name}")
    anchors = tuple(tuple((w, h) for w, h in level) for level in content.get("anchors", ()))
    if HEADS[kind].fields.keys() >= {"anchors"} and len(anchors) != len(strides):
        raise CheckpointError(f"metadata: head: {len(anchors)} levels of anchors for {len(strides)} strides")
    return HeadSpec(kind, tuple(strides), content["reg_max"], tuple(map(printable, content["classes"])), anchors)


def check_layout(
    graph: Graph,
    head: HeadSpec,
    channels: int,
    content: Mapping[str, Any],
    layout: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    """Check that a file declares exactly what its graph needs.

    Args:
        graph: structure of the network.
        head: how its outputs are decoded.
        channels: of the input grids.
        content: metadata of the file.
        layout: dtype and shape of every tensor, by name.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of the wrong dtype or shape, or shapes do not fit together.
    """
    weights = {name.removeprefix("ann/"): shape for name, (_, shape) in layout.items() if name.startswith("ann/")}
    if graph.memories and content["timesteps"] != 1:
        raise CheckpointError("metadata: timesteps: a network with memory has one")
    shapes = check_network(graph, head, channels, weights)
    relus = {node.name for node in graph.nodes if node.op == "relu"}
    for what, names in (("phi", set(content["phi"])), ("takes_back", set(content.get("takes_back", ())) | relus)):
        if names != relus:
            raise CheckpointError(f"metadata: {what}: {shown(min(names ^ relus))} is missing or is not a layer of neurons")
    _check_tensors(_expected(graph, weights, shapes), layout)


def check_network(graph: Graph, head: HeadSpec, channels: int, weights: WeightShapes) -> dict[str, Shape]:
    """Check the size of a network, and that its outputs are the maps that its head decodes.

    Args:
        graph: structure of the network.
        head: how its outputs are decoded.
        channels: of the input grids.
        weights: shape of every tensor, by name.

    Returns:
        (C, H, W) of every node's value for one size of grid.

    Raises:
        CheckpointError: shapes do not fit together or to the head, or the network is too large.
    """
    stride, shapes = input_stride(graph, head), {}
    if stride > _LARGEST_STRIDE:
        raise CheckpointError(f"the network reduces the sides of its input more than {_LARGEST_STRIDE:,} times")
    for grid in ((channels, 2 * stride, 3 * stride), (channels, 5 * stride, 4 * stride)):
        shapes = infer_shapes(graph.nodes, weights, grid)
        _check_size(graph, weights, shapes, grid[1] * grid[2])
        _check_maps(head, [shapes[name] for name in graph.outputs], grid)
    return shapes


def input_stride(graph: Graph, head: HeadSpec) -> int:
    """Sides of a network's input are multiples of this."""
    return max(*head.strides, graph.stride)


def out_of_range(name: str, tensor: Tensor) -> str:
    """Say that a tensor holds NaN, infinity or a number outside LIMITS; "" if it holds none."""
    if tensor.dtype == torch.int8:
        low, high, (smallest, largest) = -127.0, 127.0, tensor.aminmax()
    else:
        (low, high), (smallest, largest) = LIMITS[name.split("/")[0]], tensor.aminmax()
    is_inside = smallest >= low and largest <= high
    return "" if is_inside else f"{name!r} holds NaN, infinity or a number outside {low:g} to {high:g}"


def _check_size(graph: Graph, weights: WeightShapes, shapes: Mapping[str, Shape], pixels: int) -> None:
    """Refuse networks that compute nothing, or would fill the memory or run practically forever."""
    sizes = [prod(shape) for shape in shapes.values()]
    convs = [node.name for node in graph.nodes if node.op == "conv"]
    if not convs:
        raise CheckpointError("the network has no convolution")
    macs = sum(prod(weights[f"{name}.weight"][1:]) * prod(shapes[name]) for name in convs)
    for what, total, limit in (
        ("values of its largest node", max(sizes), _LARGEST_NODE),
        ("values", sum(sizes), _ALL_NODES),
        ("multiply-accumulates", macs, _MACS),
    ):
        if total > limit * pixels:
            raise CheckpointError(f"the network has more than {limit:,} {what} for each pixel of its input")


def _check_maps(head: HeadSpec, maps: Sequence[Shape], grid: Shape) -> None:
    """Check the maps that a head decodes: of a detector, box maps of every level, then class maps of every level.

    The map of a classifier, whose mean decides, may also be 1 x 1, as that of a linear layer behind a global pool is.
    """
    levels, kind = len(head.strides), HEADS[head.kind]
    if len(maps) != len(kind.maps) * levels:
        raise CheckpointError(f"{len(maps)} outputs, but a head with {levels} strides has {len(kind.maps) * levels}")
    if any(side % stride for side in grid[1:] for stride in head.strides):
        raise CheckpointError(f"metadata: head: the largest of strides {list(head.strides)} is not a multiple of the others")
    for level, stride in enumerate(head.strides):
        for what, shape, count in zip(kind.maps, maps[level::levels], kind.channels(head, level), strict=True):
            expected = (count, grid[1] // stride, grid[2] // stride)
            if shape != expected and not (head.kind == "classes" and shape == (count, 1, 1)):
                raise CheckpointError(
                    f"the {what} map of stride {stride} is {shape} for a grid {grid}, but its head decodes {expected}"
                )


Expected = dict[str, tuple[tuple[str, ...], tuple[int, ...], bool]]


def _expected(graph: Graph, weights: WeightShapes, shapes: Mapping[str, Shape]) -> Expected:
    """Allowed dtypes, shape, and whether it is required, of every tensor."""
    expected: Expected = {}
    for node in graph.nodes:
        channels = (shapes[node.name][0],)
        if node.op == "conv":
            weight, bias = f"{node.name}.weight", f"{node.name}.bias"
            expected[f"ann/{weight}"], expected[f"ann/{bias}"] = (_FLOATS, weights[weight], True), (_FLOATS, channels, True)
            expected[f"spiking/{weight}"] = (_INTEGERS + _FLOATS, weights[weight], False)
            expected[f"spiking_scale/{weight}"] = (_FLOAT, channels, False)
            expected[f"spiking/{bias}"] = (_FLOAT, channels, False)
        elif node.op == "relu":
            expected[f"theta/{node.name}"] = expected[f"shift/{node.name}"] = (_FLOAT, channels, True)
    for name in graph.outputs:
        expected[f"readout/{name}"] = (_FLOAT, (shapes[name][0],), True)
    return expected


def _check_tensors(expected: Expected, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for name in layout:
        if name not in expected:
            raise CheckpointError(f"tensor {shown(name)} belongs to no node of this network")
    for name, (dtypes, shape, required) in expected.items():
        if name not in layout:
            if required:
                raise CheckpointError(f"tensor {name!r} is missing: the file is incomplete")
        elif layout[name][0] not in dtypes or layout[name][1] != shape:
            dtype, actual = layout[name]
            raise CheckpointError(f"tensor {name!r} is {dtype} {actual}; expected {' or '.join(dtypes)} {shape}")
