"""VGG (Simonyan and Zisserman, ICLR 2015) with batch norm and without fully connected layers: "vgg11", "vgg16"."""

from __future__ import annotations

from functools import partial

from torch import nn

from evburst.data.classification import CLASSIFICATION
from evburst.models.architectures import NetworkConfig, family
from evburst.models.blocks import conv
from evburst.models.classifiers import ClassifierNetwork, channels_of, grid_stride, is_small, stem, variant_of

_STAGES = {
    "11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
}
_STRIDE = 16


@family("vgg", stride=partial(grid_stride, dict.fromkeys(_STAGES, _STRIDE)), task=CLASSIFICATION)
def build(config: NetworkConfig, variant: str) -> ClassifierNetwork:
    """`variant`: "11" or "16", optionally with a width factor, e.g. "11x0.25"."""
    name, width = variant_of(config, variant, tuple(_STAGES))
    small, stages = is_small(config.input_size), _STAGES[name]
    c = channels_of(stages[0][0], width)
    parts: list[nn.Module] = [stem(config.channels, c, small)]
    for number, stage in enumerate(stages):
        if number:
            parts.append(nn.MaxPool2d(2))
        for full in stage[1:] if not number else stage:  # the stem is the first convolution
            parts += conv(c, channels_of(full, width))
            c = channels_of(full, width)
    return ClassifierNetwork(config, nn.Sequential(*parts), c, _STRIDE * (1 if small else 4))
