"""What training asks of activations so that conversion finds little to do: few active units, and values that bursts can say.

Both only shape the ANN; conversion itself stays free of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEVELS = 8
"""Most spikes of a burst that rounding allows."""


def burst_aware(activation: Tensor, threshold: float, every: int = 4) -> tuple[Tensor, Tensor]:
    """Activations as a burst neuron of one timestep would emit them, and the share of units that are active.

    One autograd function for both: training on a CPU waits for memory, and this goes over it less often than the same in
    single operations (tests/test_models_burst_aware.py has those).

    Args:
        activation: `(N, C, H, W)`, none negative.
        threshold: of the rounding, in units of mean a^2 / mean a of each channel, the size of a typical active unit; 0: no
            rounding. 0.3 is about what minimises the squared error, for a half-normal as for an exponential distribution.
        every: channels are measured on every so manieth of the N windows.

    Returns:
        The activations, rounded to multiples of the threshold from 0 to `LEVELS` of them; the gradient is that of the clipping.
        Their density before rounding, a scalar in [0, 1]: the mean over channels of (mean a)^2 / mean a^2, whatever the
        channels' scales, which is the Hoyer-square measure over the number of units (Yang, Wen, Li, "DeepHoyer", ICLR 2020).
    """
    out, density = _BurstAware.apply(activation, threshold, every)  # type: ignore[no-untyped-call]
    return out, density


class _BurstAware(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, activation: Tensor, threshold: float, every: int) -> tuple[Tensor, Tensor]:
        some = activation[::every].float().permute(0, 2, 3, 1).flatten(0, 2)
        mean, square = some.mean(0), (some * some).mean(0) + 1e-12
        ctx.every, ctx.units, ctx.ratio, ctx.theta = every, some.numel(), mean / square, None
        out, spikes = activation, activation
        if threshold:
            ctx.theta = theta = (threshold * square / (mean + 1e-9) + 1e-9)[:, None, None].to(activation.dtype)
            spikes = activation / theta
            out = spikes.round().clamp_(max=LEVELS).mul_(theta)
        ctx.save_for_backward(spikes)
        return out, (mean * mean / square).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_density: Tensor) -> tuple[Tensor, None, None]:
        (spikes,) = ctx.saved_tensors
        linear, quadratic = (2 * of_density / ctx.units * c[:, None, None] for c in (ctx.ratio, -ctx.ratio * ctx.ratio))
        if ctx.theta is None:
            passed = gradient.clone()
        else:  # the gradient of a clipping, in one operation
            passed = torch.ops.aten.hardtanh_backward(gradient, spikes, -1.0, float(LEVELS))
            quadratic = quadratic * ctx.theta
        passed[:: ctx.every].addcmul_(spikes[:: ctx.every], quadratic.to(passed.dtype)).add_(linear.to(passed.dtype))
        return passed, None, None
