"""Import of torchvision that also works where its compiled operators cannot be loaded.

A CUDA build of torchvision next to a CPU build of torch (which plain package indexes install) fails to import, because it
describes operators that were never registered. This project does not call them, so they are declared without a kernel.
"""

from __future__ import annotations

import torch

from evburst.data.extras import require

_DECLARED: list[torch.library.Library] = []


def torchvision() -> None:
    """Import the package torchvision."""
    try:
        require("torchvision", "train", "an SSD network")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _DECLARED.append(library)  # declarations last as long as their library
        require("torchvision", "train", "an SSD network")
