"""Weights files: safetensors with JSON metadata. No pickle is ever read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from evburst.data.errors import CheckpointError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "evburst-1"
"""Version of the layout; a reader refuses any other."""


def save_tensors(path: Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON-able metadata; an existing file is replaced only when the new one is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, part, {"format": FORMAT, "kind": kind, "json": json.dumps(metadata)})
    part.chmod(0o644)
    part.rename(path)


def read_kind(path: Path) -> str:
    """What a file of `save_tensors` holds: its kind; "" if it is none."""
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("kind", ""))
    except (SafetensorError, OSError):
        return ""


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        CheckpointError: no such file, not a safetensors file, of another kind or version, or a weight is NaN or infinite.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{path}: not weights of this project (format {header.get('format')!r})")
            if header.get("kind") != kind:
                raise CheckpointError(f"{path}: holds a {header.get('kind')!r} checkpoint; a {kind!r} one is needed here")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
            metadata = json.loads(header["json"])
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such weights file") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a safetensors weights file, or damaged ({error})") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: weight {name!r} holds NaN or infinity; the file is of no use")
    return tensors, metadata
