"""Network families that train, convert and run in seconds: `architecture: tiny` detects, `little` classifies.

They are also the seam's contract test.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evburst.data.classification import CLASSIFICATION
from evburst.models.architectures import NetworkConfig, family
from evburst.models.classifiers import ClassifierNetwork
from evburst.models.classifiers.resnet import Block
from evburst.models.detectors.postprocess import HeadSpec

STRIDE, BINS = 16, 16


def block(channels_in: int, channels_out: int, stride: int, activation: type[nn.Module]) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), activation())


class TinyNetwork(nn.Module):
    """Four convolutions, a shortcut, and YOLO's kind of head at one stride."""

    loss_names = ("box", "cls", "dfl")

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        kind = {"silu": nn.SiLU, "relu6": nn.ReLU6}.get(config.activation, nn.ReLU)
        self.down = nn.Sequential(block(config.channels, 8, 4, kind), block(8, 16, 2, kind), block(16, 16, 2, kind))
        self.deep = block(16, 16, 1, kind)
        self.boxes, self.classes = nn.Conv2d(16, 4 * BINS, 1), nn.Conv2d(16, len(config.classes), 1)
        nn.init.constant_(self.classes.bias, -3.0)  # few cells hold an object

    @property
    def head_spec(self) -> HeadSpec:
        """See evburst.models.architectures.Network."""
        return HeadSpec("yolo", (STRIDE,), BINS, self.config.classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """See evburst.models.architectures.Network."""
        x = self.down(x)
        x = x + self.deep(x)
        return [self.boxes(x), self.classes(x)]

    def loss(self, x: Tensor, boxes: Tensor, labels: Tensor, image_index: Tensor, amp: bool = False) -> Tensor:
        """See evburst.models.architectures.Network: each box belongs to the cell of its centre."""
        box_map, class_map = self(x)
        target = torch.zeros_like(class_map)
        centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long()
        column, row = centre[:, 0].clamp(0, target.shape[3] - 1), centre[:, 1].clamp(0, target.shape[2] - 1)
        target[image_index, labels, row, column] = 1
        classes = F.binary_cross_entropy_with_logits(class_map, target, reduction="sum") / max(len(boxes), 1)
        if not len(boxes):
            return torch.stack([box_map.sum() * 0, classes, box_map.sum() * 0]) * len(x)
        middle = torch.stack([column, row], 1) + 0.5
        sides = torch.cat([middle - boxes[:, :2] / STRIDE, boxes[:, 2:] / STRIDE - middle], 1).clamp(0, BINS - 1.01)
        logits = box_map[image_index, :, row, column].reshape(-1, 4, BINS)
        expected = (logits.softmax(2) * torch.arange(BINS)).sum(2)
        spread = F.cross_entropy(logits.reshape(-1, BINS), sides.round().long().reshape(-1))
        return torch.stack([F.l1_loss(expected, sides), classes, 0.1 * spread]) * len(x)


@family("tiny")
def tiny(config: NetworkConfig, variant: str) -> TinyNetwork:
    """The family's builder."""
    return TinyNetwork(config)


@family("little", stride=lambda variant, size: 8, task=CLASSIFICATION)
def little(config: NetworkConfig, variant: str) -> ClassifierNetwork:
    """Four convolutions and a shortcut, then a map of classes."""
    features = nn.Sequential(block(config.channels, 8, 2, nn.ReLU), block(8, 16, 2, nn.ReLU), nn.MaxPool2d(2), Block(16, 16, 1))
    return ClassifierNetwork(config, features, 16, 8)
