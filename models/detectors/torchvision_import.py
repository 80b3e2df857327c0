"""torchvision, also where its compiled operators do not load.

A CUDA build of torchvision beside a CPU build of torch (what plain package indexes give) fails on import, because it
describes operators that were never registered. Nothing here calls them, so they are declared and left without a kernel.
"""

from __future__ import annotations

from types import ModuleType

import torch

from evburst.data.extras import require

_DECLARED: list[torch.library.Library] = []


def torchvision() -> ModuleType:
    """The package, imported."""
    try:
        package = require("torchvision", "train", "an SSD network")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _DECLARED.append(library)  # declarations end with their library
        package = require("torchvision", "train", "an SSD network")
    return package
