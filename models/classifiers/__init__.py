"""Classifiers: networks that end in a map of class logits, which the decoder averages (models/tasks/classification.py).

Each family registers itself (models/architectures.py). A name may end in a width factor: `resnet18x0.25` has a quarter of the
channels. The stem keeps the resolution of sensors of up to 64 pixels, and divides that of larger ones by four.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize
from evburst.models.architectures import NetworkConfig
from evburst.models.blocks import conv
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.tasks.classification import class_logits

SMALL_PX = 64
"""Largest longer side of a small sensor, px."""
_SMOOTHING = 0.05
_DROPOUT = 0.1
_NARROWEST = 4


class ClassifierNetwork(nn.Module):
    """Features followed by a 1x1 convolution to a map of class logits; training calls `loss`, inference `forward`.

    Args:
        config: input and classes of the network.
        features: maps `(N, 2 * bins, H, W)` to `(N, channels, H / stride, W / stride)`; ends in a ReLU, or in a pool of one.
        channels: number of channels of the features.
        stride: stride of the features.

    Raises:
        ConfigError: the activation is not ReLU.
    """

    loss_names: tuple[str, ...] = ("cls",)

    def __init__(self, config: NetworkConfig, features: nn.Module, channels: int, stride: int) -> None:
        super().__init__()
        if config.activation != "relu":
            raise ConfigError(f"architecture {config.architecture!r} supports only ReLU, not {config.activation!r}")
        self.config, self._stride = config, stride
        self.features, self.dropout = features, nn.Dropout(_DROPOUT)
        self.classes = nn.Conv2d(channels, len(config.classes), 1)

    @property
    def head_spec(self) -> HeadSpec:
        """See Network.head_spec."""
        return HeadSpec("classes", (self._stride,), 0, self.config.classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a list with one map of class logits, `(N, classes, h, w)`."""
        return [self.classes(self.dropout(self.features(x)))]

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """Return the cross-entropy, `(1,)`, summed over the batch; boxes are ignored, and windows without a label add 0."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            maps = self(x)
        target = labels.new_full((len(x),), -1)
        target[image_index] = labels
        return F.cross_entropy(class_logits(maps), target, ignore_index=-1, reduction="sum", label_smoothing=_SMOOTHING)[None]


def stem(channels: int, width: int, small: bool) -> nn.Sequential:
    """Return the first convolution; unless the sensor is small, it has stride 2 and is followed by a max pool of stride 2."""
    if small:
        return nn.Sequential(*conv(channels, width))
    return nn.Sequential(*conv(channels, width, 2, 5), nn.MaxPool2d(3, 2, 1))


def is_small(size: Sequence[int]) -> bool:
    """Return whether a sensor, or a padded grid, of (W, H) px is small."""
    return max(size) <= SMALL_PX


def variant_of(config: NetworkConfig, variant: str, known: Sequence[str]) -> tuple[str, float]:
    """Parse e.g. "18x0.25" to (variant, width factor); raise ConfigError if the variant or the width is invalid."""
    name, _, factor = variant.partition("x")
    try:
        width = float(factor or 1)
    except ValueError:
        width = 0.0
    if name not in known or not 0.05 <= width <= 4:
        raise ConfigError(
            f"architecture {config.architecture!r}: variant {variant!r} is unknown (known: {', '.join(known)}, "
            "each with a width of 0.05 to 4, e.g. x0.25)"
        )
    return name, width


def channels_of(full: int, width: float) -> int:
    """Return the number of channels at a width factor, rounded to a multiple of four."""
    return max(_NARROWEST, round(full * width / _NARROWEST) * _NARROWEST)


def grid_stride(strides: dict[str, int], variant: str, size: SensorSize) -> int:
    """Return the stride of a variant's features: as in `strides` on small sensors, four times that on others."""
    return strides.get(variant.partition("x")[0], 8) * (1 if is_small(size) else 4)
