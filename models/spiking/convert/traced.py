"""What `trace` (fold.py) asks of one operation that torch.export recorded: its arguments, its axis, its shapes, its module."""

from __future__ import annotations

from typing import Any

from torch.fx import Node as FxNode

_ATTENTION = ("attention", "matmul", "bmm")
"""Parts of the names of operations by which attention is known."""

_BESIDE_ATTENTION = ("softmax", "view", "flatten", "reshape", "transpose.int", "permute")
"""Parts of the names of operations that attention consists of as well, and that other networks use, too."""


def arguments(item: FxNode, defaults: tuple[Any, ...], required: int) -> tuple[Any, ...]:
    """Positional arguments, completed with the defaults of trailing ones that were omitted."""
    given = tuple(item.args)
    return given + defaults[len(given) - required :]


def path_of(item: FxNode) -> str:
    """Dotted path of the module that an operation belongs to, in the names of the original network."""
    stack = item.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return path.replace("slice(None, -1, None).", "") or item.name


def shape_of(item: Any) -> list[int]:
    """Shape of the value of an operation for the example that was traced."""
    return list(item.meta["val"].shape)


def axis_of(axis: int, item: Any) -> int:
    """An axis of the value of an operation, counted from the first one."""
    return axis % len(shape_of(item))


def advice(item: FxNode) -> str:
    """How to fix an unsupported operation, where that is known."""
    name = str(item.target)
    if "silu" in name:
        return "; train the network with ReLU, or fine-tune it to ReLU: train.py --relu-from FILE"
    is_beside = any(word in name for word in _BESIDE_ATTENTION)
    names = [str(other.target) for other in item.graph.nodes] if is_beside else [name]
    if any(word in one for one in names for word in _ATTENTION):
        return "; attention has no spiking equivalent: use a convolutional network, such as yolov8n or yolov9t"
    if all(user.op == "output" for user in item.users):
        return "; leave it out: what forward returns are the results of the last convolutions"
    return ""
