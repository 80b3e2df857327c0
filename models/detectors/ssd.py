"""SSD (Liu et al., ECCV 2016): torchvision's head, default boxes, matcher and loss on our own ReLU backbones.

There are four feature maps with strides 8 to 64, batch norm throughout and no L2 norm, so that everything up to the last
convolutions can be converted to spiking neurons. Backbones: "vgg11" (VGG-11 with batch norm, without its widest layers) and
"resnet18", both with half of the published channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evburst.data.errors import ConfigError
from evburst.models.architectures import NetworkConfig, family
from evburst.models.blocks import conv
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.detectors.torchvision_import import torchvision

STRIDES = (8, 16, 32, 64)
_CHANNELS = (64, 128, 256, 256)
_ASPECT_RATIOS = [[2], [2, 3], [2, 3], [2]]
_SCALES = [0.12, 0.28, 0.5, 0.75, 0.98]


@family("ssd-")
def build(config: NetworkConfig, variant: str) -> Ssd:
    """Build a network; `variant` is its backbone, "vgg11" or "resnet18"."""
    backbones = {"vgg11": _vgg11, "resnet18": _resnet18}
    if variant not in backbones:
        raise ConfigError(
            f"architecture {config.architecture!r}: backbone {variant!r} is unknown (known: {', '.join(backbones)})"
        )
    if config.activation != "relu":
        raise ConfigError(f"architecture {config.architecture!r} supports ReLU only, not {config.activation!r}")
    return Ssd(config, backbones[variant](config.channels))


class Ssd(nn.Module):
    """An SSD network with `loss` for training and `forward` for inference.

    Args:
        config: input channels, classes and size of the input.
        stages: four stages with `_CHANNELS` output channels. The first reduces the resolution to an eighth, each other to
            half of its input.
    """

    loss_names = ("box", "cls")

    def __init__(self, config: NetworkConfig, stages: nn.ModuleList) -> None:
        super().__init__()
        torchvision()
        from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
        from torchvision.models.detection.ssd import SSD, SSDHead

        self.config, self.stages = config, stages
        boxes = DefaultBoxGenerator(_ASPECT_RATIOS, scales=_SCALES, clip=False)
        per_cell = boxes.num_anchors_per_location()
        n_classes = len(config.classes) + 1
        self.head = SSDHead(list(_CHANNELS), per_cell, n_classes)
        # Only the loss and the matcher of SSD are used. In a list, its parameters are not registered (and counted) twice.
        self._ssd: list[Any] = [SSD(nn.Identity(), boxes, config.input_size, n_classes, head=self.head)]
        self._wh = [[(float(w), float(h)) for w, h in pairs] for pairs in boxes._wh_pairs]

    @property
    def head_spec(self) -> HeadSpec:
        """See Network.head_spec."""
        width, height = self.config.input_size
        anchors = tuple(tuple((w * width, h * height) for w, h in pairs) for pairs in self._wh)
        return HeadSpec("ssd", STRIDES, 0, self.config.classes, anchors)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute raw maps, see Network.

        Returns:
            For every stride the box map `(N, 4 * boxes per cell, h, w)`, then for every stride the class map
            `(N, (1 + classes) * boxes per cell, h, w)`.
        """
        features = self._features(x)
        boxes = [conv(f) for conv, f in zip(self.head.regression_head.module_list, features, strict=True)]
        classes = [conv(f) for conv, f in zip(self.head.classification_head.module_list, features, strict=True)]
        return boxes + classes

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """See Network.loss."""
        from torchvision.models.detection.image_list import ImageList
        from torchvision.ops import box_iou

        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            features = self._features(x)
            outputs = self.head(features)
        outputs = {name: value.float() for name, value in outputs.items()}
        ssd = self._ssd[0]
        anchors = ssd.anchor_generator(ImageList(x, [tuple(x.shape[-2:])] * len(x)), features)
        targets = [
            {"boxes": boxes[image_index == i].to(x.device), "labels": labels[image_index == i] + 1} for i in range(len(x))
        ]
        no_match = [torch.full((len(a),), -1, device=a.device) for a in anchors]
        matched = [
            ssd.proposal_matcher(box_iou(t["boxes"], a)) if len(t["boxes"]) else none
            for t, a, none in zip(targets, anchors, no_match, strict=True)
        ]
        parts = ssd.compute_loss(targets, outputs, anchors, matched)
        return torch.stack([parts["bbox_regression"], parts["classification"]]) * len(x)

    def _features(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _extra(channels: int) -> nn.Sequential:
    return nn.Sequential(*conv(channels, 128, kernel=1), *conv(128, _CHANNELS[3], stride=2))


def _vgg11(channels: int) -> nn.ModuleList:
    pool = [nn.MaxPool2d(2)]
    c8, c16, c32, _ = _CHANNELS
    first = [*conv(channels, 32), *pool, *conv(32, 64), *pool, *conv(64, 128), *conv(128, 128), *pool]
    return nn.ModuleList(
        [
            nn.Sequential(*first, *conv(128, c8)),
            nn.Sequential(*conv(c8, c16), *pool, *conv(c16, c16)),
            nn.Sequential(*conv(c16, c32), *pool, *conv(c32, c32)),
            _extra(c32),
        ]
    )


def _resnet18(channels: int) -> nn.ModuleList:
    torchvision()
    from torchvision.models.resnet import BasicBlock

    def layer(c_in: int, c_out: int, stride: int) -> nn.Sequential:
        shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        same = stride == 1 and c_in == c_out
        return nn.Sequential(BasicBlock(c_in, c_out, stride, None if same else shortcut), BasicBlock(c_out, c_out))

    c8, c16, c32, _ = _CHANNELS
    stem = [*conv(channels, 32, 2, 7), nn.MaxPool2d(3, 2, 1)]
    first = nn.Sequential(*stem, layer(32, 32, 1), layer(32, c8, 2))
    return nn.ModuleList([first, layer(c8, c16, 2), layer(c16, c32, 2), _extra(c32)])
