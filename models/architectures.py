"""Detectors and classifiers that can be trained, converted and decoded, built by the name of their architecture.

A family is one module with a builder under `@family(name)`; a network's architecture is "<family><variant>", e.g.
"yolov8n". The families are in models/detectors and models/classifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from evburst.data.classification import DETECTION
from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize
from evburst.data.extensions import refuse_taken
from evburst.models.detectors.postprocess import HeadSpec


@dataclass(frozen=True)
class NetworkConfig:
    """Architecture, input and classes of a network.

    Attributes:
        architecture: family and variant: detectors "yolov8n", "yolov8p" (half of nano's channels), "yolov9t", "ssd-resnet18",
            "ssd-vgg11"; classifiers "resnet18", "resnet20", "resnet34", "vgg11", "vgg16", "mobile", each with a width, e.g.
            "resnet18x0.25".
        activation: "relu", and for YOLO "relu6" or "leaky_relu" (slope 0.1); "silu" makes a network that cannot be
            converted, to be fine-tuned to ReLU later.
        channels: input channels, 2 * bins.
        classes: class names in the order of their indices.
        input_size: (W, H) px of the padded grids in training; the default boxes of SSD are relative to it, and classifiers
            choose their stem by it.
    """

    architecture: str = "yolov8n"
    activation: str = "relu"
    channels: int = 10
    classes: tuple[str, ...] = ("car", "pedestrian")
    input_size: tuple[int, int] = (320, 256)


class Network(Protocol):
    """A trainable network, an nn.Module."""

    loss_names: tuple[str, ...]

    @property
    def head_spec(self) -> HeadSpec:
        """How the maps of `forward` are decoded."""
        ...

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Compute raw maps from `(N, 2 * bins, H, W)` float counts; H and W are multiples of the largest stride.

        A detector returns the box maps of every stride, then the class maps; a classifier returns its class map.
        """
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


DETECTOR_STRIDE = 64
"""Training grids are padded to multiples of the largest stride of any detector."""

Builder = Callable[[NetworkConfig, str], "Network"]
Stride = Callable[[str, SensorSize], int]


class Family(NamedTuple):
    """One entry of the registry.

    Attributes:
        build: (config, variant) -> network.
        stride: (variant, sensor size) -> sides of training grids are padded to multiples of this.
        task: what its data have to be labelled for.
    """

    build: Builder
    stride: Stride
    task: str


FAMILIES: dict[str, Family] = {}


def family(
    name: str, stride: Stride = lambda variant, size: DETECTOR_STRIDE, task: str = DETECTION
) -> Callable[[Builder], Builder]:
    """Register the builder of a family; see Family. Raises ConfigError if another one has the name."""

    def register(builder: Builder) -> Builder:
        refuse_taken("family", name, builder, {known: one.build for known, one in FAMILIES.items()})
        FAMILIES[name] = Family(builder, stride, task)
        return builder

    return register


def build_network(config: NetworkConfig) -> Network:
    """Build a network; raises ConfigError if its architecture or activation is unknown."""
    if config.activation not in ("relu", "relu6", "leaky_relu", "silu"):
        raise ConfigError(f"activation {config.activation!r}: expected relu, relu6, leaky_relu or silu")
    own, variant = find_family(config.architecture)
    return own.build(config, variant)


def training_stride(architecture: str, size: SensorSize) -> int:
    """The number that the sides of training grids are padded to multiples of."""
    own, variant = find_family(architecture)
    return own.stride(variant, size)


def task_of_architecture(architecture: str) -> str:
    """DETECTION or CLASSIFICATION."""
    return find_family(architecture)[0].task


def find_family(architecture: str) -> tuple[Family, str]:
    """The family of an architecture, and its variant; raises ConfigError if there is none."""
    from evburst.models.classifiers import mobile, resnet, vgg  # noqa: F401  (they register themselves)
    from evburst.models.detectors import ssd, yolo  # noqa: F401  (likewise; heavy)

    for name in sorted(FAMILIES, key=len, reverse=True):
        if architecture.startswith(name):
            return FAMILIES[name], architecture.removeprefix(name)
    known = ", ".join(sorted(FAMILIES))
    raise ConfigError(f"architecture {architecture!r} is of no known family (known: {known})")
