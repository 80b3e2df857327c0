"""ResNet (He et al., CVPR 2016) for event grids: "resnet18", "resnet34" and the narrower "resnet20" of its CIFAR
experiments."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from evburst.data.classification import CLASSIFICATION
from evburst.models.architectures import NetworkConfig, family
from evburst.models.blocks import conv
from evburst.models.classifiers import ClassifierNetwork, channels_of, grid_stride, is_small, stem, variant_of

_BLOCKS = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "20": (3, 3, 3)}
_FIRST = {"18": 64, "34": 64, "20": 16}
_STRIDES = {name: 2 ** (len(blocks) - 1) for name, blocks in _BLOCKS.items()}


@family("resnet", stride=partial(grid_stride, _STRIDES), task=CLASSIFICATION)
def build(config: NetworkConfig, variant: str) -> ClassifierNetwork:
    """`variant`: "18", "20" or "34", optionally with a width factor, e.g. "18x0.25"."""
    name, width = variant_of(config, variant, tuple(_BLOCKS))
    small, c = is_small(config.input_size), channels_of(_FIRST[name], width)
    parts: list[nn.Module] = [stem(config.channels, c, small)]
    for stage, blocks in enumerate(_BLOCKS[name]):
        c_out = channels_of(_FIRST[name] * 2**stage, width)
        for k in range(blocks):
            parts.append(Block(c, c_out, 2 if stage and not k else 1))
            c = c_out
    return ClassifierNetwork(config, nn.Sequential(*parts), c, _STRIDES[name] * (1 if small else 4))


class Block(nn.Module):
    """Two convolutions and a shortcut, which are summed before the last ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*conv(c_in, c_out, stride))
        self.second = nn.Sequential(*conv(c_out, c_out)[:2])
        self.shortcut = nn.Sequential() if stride == 1 and c_in == c_out else nn.Sequential(*conv(c_in, c_out, stride, 1)[:2])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C_in, H, W)` to `(N, C_out, H / stride, W / stride)`."""
        out: Tensor = self.relu(self.second(self.first(x)) + self.shortcut(x))
        return out
