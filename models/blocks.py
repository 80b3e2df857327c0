"""Layers that families of networks have in common."""

from __future__ import annotations

from torch import nn


def conv(c_in: int, c_out: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    """Return the layers convolution, batch norm and ReLU."""
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
