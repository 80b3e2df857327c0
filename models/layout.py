"""What the weights file of a detector must hold, before anything of it runs: metadata, names, shapes, dtypes, numbers, maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from evburst.data.errors import CheckpointError
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Shape, infer_shapes
from evburst.models.schema import anything, by_name, items, number, one_of, pair, printable, shown, table, text, whole

_CLASSES = items(text(200), 1, 10_000)
_LEVELS = (1, 8)
_DEEPEST_RECORD = 32

VOXEL = table({"bins": whole(1, 64), "max_count": whole(1, 255), "window_ms": number(0.1, 60_000)})

NETWORK = table(
    {"architecture": text(100), "activation": text(100), "channels": whole(1, 256), "classes": _CLASSES},
    {"input_size": pair(whole(32, 4096))},
)
"""Of a training checkpoint: see models/detectors.NetworkConfig."""


def _record(value: Any, where: str) -> dict[str, Any]:
    """What a weights file says of itself: of these names the kind of value is known, others are free."""
    found: dict[str, Any] = by_name(anything)(value, where)
    level: list[Any] = [found]
    for _ in range(_DEEPEST_RECORD):
        level = [v for x in level for v in (x.values() if isinstance(x, dict) else x) if isinstance(v, dict | list)]
    if level:
        raise CheckpointError(f"{where}: nested too deeply")
    for path in (("training",), ("training", "config"), ("training", "config", "data"), ("conversion",), ("check",)):
        part: Any = found
        for name in path:
            part = part.get(name, {}) if isinstance(part, dict) else part
        by_name(anything)(part, f"{where}: {'.'.join(path)}")
    spec = found.get("training", {}).get("config", {}).get("data", {}).get("spec", "")
    for name, named in (("dataset", found.get("dataset")), ("training.config.data.spec", spec)):
        if isinstance(named, dict | list):
            raise CheckpointError(f"{where}: {name}: expected a name, not {shown(named)}")
    return found


@dataclass(frozen=True)
class Head:
    """A kind of head.

    Attributes:
        fields: checks of what it needs beside strides and classes; 0 or nothing elsewhere.
        maps: what a level has maps of; all levels of the first come before those of the second.
        channels: of each map of a level.
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
    "classes": Head({"strides": items(whole(1, 1024), 1, 1)}, ("class",), lambda spec, _: (len(spec.classes),)),
}

METADATA = table(
    {
        "graph": text(2**24),
        "timesteps": whole(1, 64),
        "phi": by_name(whole(1, 255)),
        "head": table(
            {
                "kind": one_of(*HEADS),
                "strides": items(whole(1, 1024), *_LEVELS),
                "reg_max": whole(0, 64),
                "classes": _CLASSES,
            },
            {"anchors": items(items(_ANCHOR, 1, 64), 0, _LEVELS[1])},
        ),
        "voxel": VOXEL,
        "record": _record,
    },
    {"takes_back": items(text(200), 0, 10_000)},
)

LIMITS = {
    "ann": (-65504.0, 65504.0),
    "spiking": (-1e8, 1e8),
    "spiking_scale": (1e-20, 1e6),
    "theta": (1e-8, 1e8),
    "shift": (-1e8, 1e8),
    "readout": (-1e8, 1e8),
}
"""Least and largest number of each kind of tensor."""

_FLOATS, _FLOAT, _INTEGERS = ("F16", "F32"), ("F32",), ("I8",)
_LARGEST_NODE, _ALL_NODES, _MACS = 1024, 20_000, 20_000_000
"""Values of the largest node, of all nodes, and multiply-accumulates, for each pixel of the grid."""


def head_of(content: Mapping[str, Any]) -> HeadSpec:
    """The head of checked metadata; class names that cannot be printed are escaped."""
    kind, strides = content["kind"], content["strides"]
    for name, check in HEADS[kind].fields.items():
        check(content.get(name), f"metadata: head: {name}")
    anchors = tuple(tuple((w, h) for w, h in level) for level in content.get("anchors", ()))
    if HEADS[kind].fields.keys() >= {"anchors"} and len(anchors) != len(strides):
        raise CheckpointError(f"metadata: head: {len(anchors)} levels of anchors, {len(strides)} strides")
    return HeadSpec(kind, tuple(strides), content["reg_max"], tuple(map(printable, content["classes"])), anchors)


def check_layout(
    graph: Graph, head: HeadSpec, channels: int, content: Mapping[str, Any], layout: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Compare what a file declares with what its graph needs.

    Args:
        graph: its structure.
        head: what its outputs are decoded by.
        channels: of its grids.
        content: its metadata.
        layout: dtype and shape of every tensor.

    Raises:
        CheckpointError: something is missing, superfluous, of another dtype or shape, or does not fit together.
    """
    weights = {name.removeprefix("ann/"): shape for name, (_, shape) in layout.items() if name.startswith("ann/")}
    stride = max(head.strides)
    shapes = {}
    for grid in ((channels, 2 * stride, 3 * stride), (channels, 5 * stride, 4 * stride)):
        shapes = infer_shapes(graph.nodes, weights, grid)
        _check_size(graph, weights, shapes, grid[1] * grid[2])
        _check_maps(head, [shapes[name] for name in graph.outputs], grid)
    relus = {node.name for node in graph.nodes if node.op == "relu"}
    for what, names in (("phi", set(content["phi"])), ("takes_back", set(content.get("takes_back", ())) | relus)):
        if names != relus:
            raise CheckpointError(f"metadata: {what}: {shown(min(names ^ relus))} is missing, or is no layer of neurons")
    _check_tensors(_expected(graph, weights, shapes), layout)


def check_numbers(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError if a tensor holds NaN, infinity, or a number outside LIMITS."""
    if tensor.dtype == torch.int8:
        low, high, (least, largest) = -127.0, 127.0, tensor.aminmax()
    else:
        (low, high), (least, largest) = LIMITS[name.split("/")[0]], tensor.aminmax()
    if not (least >= low and largest <= high):
        raise CheckpointError(f"{name!r} holds NaN, infinity or a number outside {low:g} to {high:g}: the file is damaged")


def _check_size(graph: Graph, weights: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape], pixels: int) -> None:
    """No file makes a network that fills the memory or never ends."""
    sizes = [prod(shape) for shape in shapes.values()]
    convs = [node.name for node in graph.nodes if node.op == "conv"]
    macs = sum(prod(weights[f"{name}.weight"][1:]) * prod(shapes[name]) for name in convs)
    for what, found, most in (
        ("values of its largest node", max(sizes), _LARGEST_NODE),
        ("values", sum(sizes), _ALL_NODES),
        ("multiply-accumulates", macs, _MACS),
    ):
        if found > most * pixels:
            raise CheckpointError(f"the network has more than {most:,} {what} for each pixel of its input")


def _check_maps(head: HeadSpec, maps: Sequence[Shape], grid: Shape) -> None:
    """The maps that a head decodes: of a detector boxes of every level, then classes of every level."""
    levels, kind = len(head.strides), HEADS[head.kind]
    if len(maps) != len(kind.maps) * levels:
        raise CheckpointError(f"{len(maps)} outputs; a head of {levels} strides has {len(kind.maps) * levels}")
    if any(side % stride for side in grid[1:] for stride in head.strides):
        raise CheckpointError(f"metadata: head: strides {list(head.strides)} do not divide their largest")
    for level, stride in enumerate(head.strides):
        for what, found, count in zip(kind.maps, maps[level::levels], kind.channels(head, level), strict=True):
            wanted = (count, grid[1] // stride, grid[2] // stride)
            if found != wanted:
                raise CheckpointError(
                    f"the {what} map of stride {stride} is {found} for a grid {grid}; its head decodes {wanted}"
                )


Expected = dict[str, tuple[tuple[str, ...], tuple[int, ...], bool]]


def _expected(graph: Graph, weights: Mapping[str, tuple[int, ...]], shapes: Mapping[str, Shape]) -> Expected:
    """Dtypes, shape, and whether it must be there, of every tensor."""
    found: Expected = {}
    for node in graph.nodes:
        channels = (shapes[node.name][0],)
        if node.op == "conv":
            weight, bias = f"{node.name}.weight", f"{node.name}.bias"
            found[f"ann/{weight}"], found[f"ann/{bias}"] = (_FLOATS, weights[weight], True), (_FLOATS, channels, True)
            found[f"spiking/{weight}"] = (_INTEGERS + _FLOATS, weights[weight], False)
            found[f"spiking_scale/{weight}"] = (_FLOAT, channels, False)
            found[f"spiking/{bias}"] = (_FLOAT, channels, False)
        elif node.op == "relu":
            found[f"theta/{node.name}"] = found[f"shift/{node.name}"] = (_FLOAT, channels, True)
    for name in graph.outputs:
        found[f"readout/{name}"] = (_FLOAT, (shapes[name][0],), True)
    return found


def _check_tensors(expected: Expected, layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for name in layout:
        if name not in expected:
            raise CheckpointError(f"tensor {shown(name)} belongs to nothing in this network")
    for name, (dtypes, shape, required) in expected.items():
        if name not in layout:
            if required:
                raise CheckpointError(f"tensor {name!r} is missing: the file is incomplete")
        elif layout[name][0] not in dtypes or layout[name][1] != shape:
            dtype, found = layout[name]
            raise CheckpointError(f"tensor {name!r} is {dtype} {found}; expected {' or '.join(dtypes)} {shape}")
