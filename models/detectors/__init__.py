"""Detectors: an architecture's name becomes a network that can be trained, converted and decoded.

A family is one module with a builder under `@family(name)`; a network's architecture is "<family><variant>", e.g. "yolov8n".
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
    """Which network.

    Attributes:
        architecture: family and variant: "yolov8n", "yolov8p" (half of nano's channels), "yolov9t", "ssd-resnet18", "ssd-vgg11".
        activation: "relu", and for YOLO "relu6" or "leaky_relu" (slope 0.1); "silu" makes a network that cannot be converted, to
            be fine-tuned to ReLU later.
        channels: input channels, 2 * bins.
        classes: class names in the order of their indices.
        input_size: (W, H) px of the padded grids it is trained on; default boxes of SSD are shares of it.
    """

    architecture: str = "yolov8n"
    activation: str = "relu"
    channels: int = 10
    classes: tuple[str, ...] = ("car", "pedestrian")
    input_size: tuple[int, int] = (320, 256)


class Network(Protocol):
    """A detector that can be trained; an nn.Module."""

    loss_names: tuple[str, ...]

    @property
    def head_spec(self) -> HeadSpec:
        """How the maps of `forward` are decoded."""
        ...

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Raw maps of `(N, 2 * bins, H, W)` float counts: boxes of every stride, then classes of every stride."""
        ...

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """Parts of the loss in the order of `loss_names`, weighted, summed over the batch.

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
    """Register the builder of a family: (config, variant) -> network."""

    def register(builder: Builder) -> Builder:
        FAMILIES[name] = builder
        return builder

    return register


def build_network(config: NetworkConfig) -> Network:
    """Build a network; raises ConfigError if the architecture is not known."""
    from evburst.models.detectors import ssd, yolo  # noqa: F401  (they register themselves; heavy)

    if config.activation not in ("relu", "relu6", "leaky_relu", "silu"):
        raise ConfigError(f"activation {config.activation!r}: expected relu, relu6, leaky_relu or silu")
    for name, builder in FAMILIES.items():
        if config.architecture.startswith(name):
            return builder(config, config.architecture.removeprefix(name))
    known = ", ".join(sorted(FAMILIES))
    raise ConfigError(f"architecture {config.architecture!r} is of no known family (known: {known})")
