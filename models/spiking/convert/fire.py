"""Burst neurons with gradients: the forward pass is the neurons that will run, the backward pass treats rounding as identity.

On the CPU, numba kernels compute both passes, each in one pass over memory. On other devices torch operations compute the
same: outputs are equal bit by bit, and sums up to the order of their terms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from evburst.data._numba import njit
from evburst.models.spiking.neurons import NeuronLayer, burst_scan, burst_scan_fused, over_time
from evburst.models.spiking.rounding import has_kernels


class Fired(NamedTuple):
    """Result of a layer of neurons.

    Attributes:
        out: `(T, N, C, H, W)` spike counts times theta.
        operations: synaptic operations per image, a scalar with gradient.
        bursts: the same with each burst counted once. A burst of one spike whose current is below its threshold has a
            gradient: that of the spike that the burst would lose.
    """

    out: Tensor
    operations: Tensor
    bursts: Tensor


def fire(current: Tensor, theta: Tensor, shift: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor) -> Fired:
    """Run a layer for all timesteps, with gradients for current, theta and shift.

    The gradient of the output is that of clipping; theta learns as a step size.

    Args:
        current: `(T, N, C, H, W)` float32, or `(1, N, C, H, W)` if it is the same at every timestep.
        theta, shift: `(C,)`, to which gradients flow; their values are taken from `layer`.
        layer: the neurons.
        timesteps: T.
        fan_out: `(C, H, W)` float32.
    """
    fired: tuple[Tensor, ...] = _Fire.apply(current, theta, shift, layer, timesteps, fan_out)  # type: ignore[no-untyped-call]
    return Fired(*fired)


class _Fire(torch.autograd.Function):
    """See `fire`."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, theta: Tensor, shift: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        current = current.contiguous()
        run = _run_by_kernels if has_kernels(current) else _run_by_torch
        out, operations, bursts = run(current, layer, timesteps, fan_out)
        ctx.save_for_backward(current, out)
        ctx.layer, ctx.fan_out = layer, fan_out
        return out, operations, bursts

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_operations: Tensor, of_bursts: Tensor) -> tuple[Tensor | None, ...]:
        current, out = ctx.saved_tensors
        back = _back_by_kernels if has_kernels(current) else _back_by_torch
        per_image = of_operations / out.shape[1], of_bursts / out.shape[1]
        return *back(gradient.contiguous(), *per_image, current, out, ctx.layer, ctx.fan_out), None, None, None


def _run_by_torch(current: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor) -> Fired:
    counts = burst_scan(current, layer, timesteps)
    n, images = counts.abs(), current.shape[1]
    sums = (x.sum((0, 1), dtype=torch.float32) for x in (n, n > 0))
    return Fired(counts * layer.theta[:, None, None], *((x * fan_out).sum() / images for x in sums))


def _back_by_torch(
    gradient: Tensor,
    of_operation: Tensor,
    of_burst: Tensor,
    current: Tensor,
    out: Tensor,
    layer: NeuronLayer,
    fan_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of current, theta and shift; of_operation and of_burst are those of one image's scalars."""
    theta = layer.theta[:, None, None]
    wanted = over_time(current) + layer.shift[:, None, None]
    slope = torch.where(wanted > 0, 1.0, layer.negative_slope)
    wanted = wanted * slope
    inside = wanted.abs() < theta * layer.burst_limits[:, None, None]
    slope, wanted = slope * inside, wanted * inside
    cost = fan_out / theta * (of_operation + of_burst * (wanted.abs() < theta))
    total = gradient + cost * out.sign()
    to_theta = (gradient * out - total * wanted).sum((0, 1, 3, 4)) / layer.theta
    passed = total * slope
    return passed if len(current) > 1 else passed.sum(0, keepdim=True), to_theta, passed.sum((0, 1, 3, 4))


def _run_by_kernels(current: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor) -> Fired:
    _, n, c, h, w = current.shape
    totals = np.zeros((n, c, 2))
    parameters = layer.theta.numpy(), fan_out.reshape(c, h * w).numpy(), totals
    if timesteps == 1 and not layer.signed:
        out = torch.empty_like(current)
        limits = layer.shift.numpy(), layer.burst_limits.numpy()
        _fire_at_once(current.view(n, c, h * w).numpy(), *limits, out.view(n, c, h * w).numpy(), *parameters)
    else:
        out, _ = burst_scan_fused(current, layer, timesteps, fan_out)
        _tally(out.view(timesteps, n, c, h * w).numpy(), *parameters)
    return Fired(out, *(torch.from_numpy(totals.sum((0, 1)) / n).float()))


def _back_by_kernels(
    gradient: Tensor,
    of_operation: Tensor,
    of_burst: Tensor,
    current: Tensor,
    out: Tensor,
    layer: NeuronLayer,
    fan_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `_back_by_torch`."""
    _, n, c, h, w = out.shape
    passed, to_theta, to_shift = torch.zeros_like(current), np.zeros((n, c)), np.zeros((n, c))
    _fire_backward(
        gradient.view(-1, n, c, h * w).numpy(),
        np.float32(float(of_operation)),
        np.float32(float(of_burst)),
        over_time(current).view(n, c, h * w).numpy(),
        out.view(-1, n, c, h * w).numpy(),
        layer.theta.numpy(),
        layer.shift.numpy(),
        layer.burst_limits.numpy(),
        np.float32(layer.negative_slope),
        fan_out.reshape(c, h * w).numpy(),
        passed.view(-1, n, c, h * w).numpy(),
        to_theta,
        to_shift,
    )
    of_theta, of_shift = (torch.from_numpy(x.sum(0)).float() for x in (to_theta, to_shift))
    return passed, of_theta, of_shift


@njit(cache=True, nogil=True)
def _level(current, shift, theta, most):  # type: ignore[no-untyped-def]
    """Spikes of `burst_step` from rest, with its exact order of operations; a function of its own because the loops may
    reorder sums."""
    n = np.floor((theta / np.float32(2) + (current + shift)) / theta)
    n = n if n > np.float32(0) else np.float32(0)
    return n if n < most else most


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _fire_at_once(current, shift, limits, out, theta, fan_out, totals):  # type: ignore[no-untyped-def]
    """`burst_scan_fused` for one timestep of unsigned neurons, fused with `_tally`."""
    images, channels, size = current.shape
    zero = np.float32(0)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        th, sh, most = theta[c], shift[c], limits[c]
        operations, bursts = zero, zero
        arriving, emitted = current[i, c], out[i, c]
        for k in range(size):
            n = _level(arriving[k], sh, th, most)
            emitted[k] = n * th
            operations += n * fan_out[c, k]
            bursts += fan_out[c, k] if n > zero else zero
        totals[i, c, 0], totals[i, c, 1] = operations, bursts


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _tally(out, theta, fan_out, totals):  # type: ignore[no-untyped-def]
    """Add to totals `(N, C, 2)` the operations, and those with a burst counted once, of out `(T, N, C, H * W)`."""
    timesteps, images, channels, size = out.shape
    zero = np.float32(0)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        for t in range(timesteps):
            operations, bursts = zero, zero
            for k in range(size):
                n = np.rint(abs(out[t, i, c, k]) / theta[c])
                operations += n * fan_out[c, k]
                bursts += fan_out[c, k] if n > zero else zero
            totals[i, c, 0] += operations
            totals[i, c, 1] += bursts


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _fire_backward(  # type: ignore[no-untyped-def]
    gradient,
    operation_gradient,
    burst_gradient,
    mean,
    out,
    theta,
    shift,
    limits,
    negative_slope,
    fan_out,
    passed,
    to_theta,
    to_shift,
):
    """Backward pass of `fire` in one pass over memory.

    operation_gradient and burst_gradient are the gradients of one image's scalars, see `Fired`. Adds to passed (as
    `current`), and fills to_theta and to_shift `(N, C)`.
    """
    timesteps, images, channels, size = out.shape
    zero, one = np.float32(0), np.float32(1)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        largest, th, sh = theta[c] * limits[c], theta[c], shift[c]
        of_one, of_more = (operation_gradient + burst_gradient) / th, operation_gradient / th
        for t in range(timesteps):
            theta_step, shift_step = zero, zero
            arrived, emitted, now = gradient[t, i, c], out[t, i, c], passed[t % len(passed), i, c]
            for k in range(size):
                wanted = mean[i, c, k] + sh
                slope = one if wanted > zero else negative_slope
                wanted *= slope
                slope = slope if abs(wanted) < largest else zero
                wanted = wanted if abs(wanted) < largest else zero
                cost = fan_out[c, k] * (of_one if abs(wanted) < th else of_more)
                cost = cost if emitted[k] > zero else (-cost if emitted[k] < zero else zero)
                total = arrived[k] + cost
                theta_step += arrived[k] * emitted[k] - total * wanted
                now[k] += total * slope
                shift_step += total * slope
            to_theta[i, c] += theta_step / theta[c]
            to_shift[i, c] += shift_step
