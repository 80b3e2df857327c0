"""Detector networks that can be trained, converted and decoded, built by the name of their architecture.

An architecture is named "<family><variant>", e.g. "yolov8n". A family is one module with a builder under `@family(name)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evburst.data.errors import ConfigError
from evburst.models.detectors.postprocess import HeadSpec


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture, input and classes of a network.

    Attributes:
        architecture: family and variant: "yolov8n", "yolov8p" (half the channels of nano), "yolov9t", "ssd-resnet18",
            "ssd-vgg11".
        activation: "relu"; for YOLO also "relu6" or "leaky_relu" (slope 0.1). "silu" makes a network that cannot be
            converted, but can be fine-tuned to ReLU later.
        channels: input channels, 2 * bins.
        classes: class names in the order of their indices.
        input_size: (W, H) px of the padded grids in training; the default boxes of SSD are relative to it.
    """

    architecture: str = "yolov8n"
    activation: str = "relu"
    channels: int = 10
    classes: tuple[str, ...] = ("car", "pedestrian")
    input_size: tuple[int, int] = (320, 256)


class Network(Protocol):
    """A trainable detector, an nn.Module."""

    loss_names: tuple[str, ...]

    @property
    def head_spec(self) -> HeadSpec:
        """Specification by which the maps of `forward` are decoded."""
        ...

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Compute raw maps from `(N, 2 * bins, H, W)` float counts: box maps of every stride, then class maps."""
        ...

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """Compute the parts of the loss in the order of `loss_names`, weighted and summed over the batch.

        Args:
            x: `(N, 2 * bins, H, W)` float.
            boxes: `(n, 4)` float32 xyxy in pixels of x.
            labels: `(n,)` int64.
            image_index: `(n,)` int64, the image of each box.
            amp: run the convolutions in bfloat16.
        """
        ...


Builder = Callable[[NetworkConfig, str], "Network"]
FAMILIES: dict[str, Builder] = {}


def family(name: str) -> Callable[[Builder], Builder]:
    """Register the builder of a family, a function (config, variant) -> network."""

    def register(builder: Builder) -> Builder:
        FAMILIES[name] = builder
        return builder

    return register


def build_network(config: NetworkConfig) -> Network:
    """Build a network; raises ConfigError if its architecture or activation is unknown."""
    from evburst.models.detectors import ssd, yolo  # noqa: F401  (imported here: heavy; they register themselves)

    if config.activation not in ("relu", "relu6", "leaky_relu", "silu"):
        raise ConfigError(f"activation {config.activation!r}: expected relu, relu6, leaky_relu or silu")
    for name, builder in FAMILIES.items():
        if config.architecture.startswith(name):
            return builder(config, config.architecture.removeprefix(name))
    known = ", ".join(sorted(FAMILIES))
    raise ConfigError(f"architecture {config.architecture!r} belongs to no known family (known: {known})")
