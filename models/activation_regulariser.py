"""Regularisation of activations in training: sparse and easy to represent with bursts, so that conversion loses little.

This is optional and affects the ANN only; conversion itself needs no training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDING_LEVELS = 8
"""Largest number of spikes per burst that the rounding allows."""


def round_and_measure(activation: Tensor, threshold: float, every: int = 4) -> tuple[Tensor, Tensor]:
    """Round activations to what a burst neuron would emit at T = 1, and measure their density.

    One autograd function does both, because training on a CPU is limited by memory bandwidth and this needs fewer passes
    over memory than separate operations (which are the reference in tests/test_models_activation_regulariser.py).

    Args:
        activation: `(N, C, H, W)`, non-negative.
        threshold: rounding step in units of mean(a^2) / mean(a) of each channel, which is the size of a typical active
            unit. 0 disables rounding. 0.3 roughly minimises the squared error for half-normal and exponential
            distributions.
        every: measure the channels on every `every`-th of the N windows.

    Returns:
        The activations, rounded to 0 to `ROUNDING_LEVELS` multiples of the threshold; the gradient passes where they are not
        clipped. And their density before rounding, a scalar in [0, 1]: the mean over channels of mean(a)^2 / mean(a^2),
        which does not depend on the scales of the channels. It is the Hoyer-square measure divided by the number of units
        (Yang, Wen, Li, "DeepHoyer", ICLR 2020).
    """
    out, density = _RoundAndMeasure.apply(activation, threshold, every)  # type: ignore[no-untyped-call]
    return out, density


class _RoundAndMeasure(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, threshold: float, every: int) -> tuple[Tensor, Tensor]:
        sampled = activation[::every].float().permute(0, 2, 3, 1).flatten(0, 2)
        mean, square = sampled.mean(0), (sampled * sampled).mean(0) + 1e-12
        ctx.every, ctx.units, ctx.ratio, ctx.theta = every, sampled.numel(), mean / square, None
        out, spikes = activation, activation
        if threshold:
            ctx.theta = theta = (threshold * square / (mean + 1e-9) + 1e-9)[:, None, None].to(activation.dtype)
            spikes = activation / theta
            out = spikes.round().clamp_(max=ROUNDING_LEVELS).mul_(theta)
        ctx.save_for_backward(spikes)
        return out, (mean * mean / square).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, density_gradient: Tensor) -> tuple[Tensor, None, None]:
        (spikes,) = ctx.saved_tensors
        linear, quadratic = (2 * density_gradient / ctx.units * c[:, None, None] for c in (ctx.ratio, -ctx.ratio * ctx.ratio))
        if ctx.theta is None:
            passed = gradient.clone()
        else:  # gradient of clipping, in one operation
            passed = torch.ops.aten.hardtanh_backward(gradient, spikes, -1.0, float(ROUNDING_LEVELS))
            quadratic = quadratic * ctx.theta
        passed[:: ctx.every].addcmul_(spikes[:: ctx.every], quadratic.to(passed.dtype)).add_(linear.to(passed.dtype))
        return passed, None, None
