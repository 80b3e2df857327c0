"""A MobileNet-like network that can be converted to spikes: "mobile".

Its blocks are the fused ones of EfficientNetV2 (Tan and Le, ICML 2021), with one 3x3 convolution instead of a pointwise and a
depthwise one. There is no squeeze-and-excitation, and a ReLU follows every sum, so that all convolutions receive spikes.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from evburst.data.classification import CLASSIFICATION
from evburst.models.architectures import NetworkConfig, family
from evburst.models.blocks import conv
from evburst.models.classifiers import ClassifierNetwork, channels_of, grid_stride, is_small, stem, variant_of

_STAGES = ((16, 1), (32, 2), (64, 2), (96, 2))
"""Channels and number of blocks of each stage; every stage after the first halves the resolution."""
_EXPANSION = 3
_STRIDE = 8


@family("mobile", stride=partial(grid_stride, {"": _STRIDE}), task=CLASSIFICATION)
def build(config: NetworkConfig, variant: str) -> ClassifierNetwork:
    """`variant`: empty, or a width factor, e.g. "x0.5"."""
    _, width = variant_of(config, variant, ("",))
    small, c = is_small(config.input_size), channels_of(_STAGES[0][0], width)
    parts: list[nn.Module] = [stem(config.channels, c, small)]
    for stage, (full, blocks) in enumerate(_STAGES):
        c_out = channels_of(full, width)
        for k in range(blocks):
            parts.append(FusedBlock(c, c_out, 2 if stage and not k else 1))
            c = c_out
    return ClassifierNetwork(config, nn.Sequential(*parts), c, _STRIDE * (1 if small else 4))


class FusedBlock(nn.Module):
    """A 3x3 convolution that expands, a 1x1 convolution that projects, and a shortcut if the shapes allow it."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(*conv(c_in, _EXPANSION * c_in, stride))
        self.project = nn.Sequential(*conv(_EXPANSION * c_in, c_out, kernel=1)[:2])
        self.adds = stride == 1 and c_in == c_out
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C_in, H, W)` to `(N, C_out, H / stride, W / stride)`."""
        projected = self.project(self.expand(x))
        out: Tensor = self.relu(projected + x if self.adds else projected)
        return out
