"""Burst neurons: integrate and fire with reset by subtraction and up to phi spikes in one timestep.

    v <- v + I[t];  n <- clip(floor(v / theta), 0, phi);  v <- v - n * theta;  the output is n * theta

(Burst spikes: Wang, Fang, Cao, Xu, arXiv 2311.14265.) The membrane potential v starts at theta / 2, so that activations are
rounded to nearest, or at the value it had at the end of an earlier run.

For ReLU6, the burst limit is at most floor(6 / theta), so that the largest output, phi * theta, does not exceed 6.

Signed neurons store the summed current u and the sum k of the spikes they have fired. They fire the change of their activation
f(u) in steps of theta. Negative spikes have weight -theta and are counted like positive ones. (Negative spikes that cancel
earlier ones: Wang et al., "Signed Neuron with Memory", IJCAI 2022; here with bursts.)

    u <- u + I[t];  n <- clip(floor(f(u) / theta + 1/2) - k, -phi, phi);  k <- k + n;  the output is n * theta

f is LeakyReLU, which always needs signed neurons, or ReLU. With ReLU, signed neurons avoid the error of currents that arrive
unevenly over the timesteps, at the cost of the negative spikes. At T = 1, both kinds of ReLU neurons are identical.

`burst_scan` is the reference, in torch; `burst_scan_fused` computes the same in one numba kernel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data._numba import njit

DIVISION_TOLERANCE = 1e-4
"""Absorbs rounding where a threshold divides the ceiling of an activation exactly."""


@dataclass(frozen=True, eq=False)
class NeuronLayer:
    """Parameters of one layer of burst neurons.

    Attributes:
        theta: `(C,)` float32 firing thresholds, all positive.
        shift: `(C,)` float32, added to the current of every timestep (bias correction of the light calibration).
        phi: largest number of spikes in one timestep, 1 to 255.
        ceiling: upper bound of the activation (6 for ReLU6).
        negative_slope: slope of the activation below zero (LeakyReLU), less than 1.
        takes_back: whether the neurons of a ReLU are signed.
    """

    theta: Tensor
    shift: Tensor
    phi: int
    ceiling: float = math.inf
    negative_slope: float = 0.0
    takes_back: bool = False

    @property
    def signed(self) -> bool:
        """Whether the neurons can fire negative spikes."""
        return self.takes_back or self.negative_slope > 0

    @property
    def burst_limits(self) -> Tensor:
        """`(C,)` float32 burst limits: phi, or less under a ceiling."""
        return torch.floor(self.ceiling / self.theta + DIVISION_TOLERANCE).clamp(1, self.phi)


def burst_step(v_mem: Tensor, current: Tensor, theta: Tensor, limits: Tensor | int) -> tuple[Tensor, Tensor]:
    """Compute one timestep of unsigned neurons.

    Args:
        v_mem: membrane potentials `(..., C, H, W)`.
        current: `(..., C, H, W)`, shift included.
        theta: thresholds `(C, 1, 1)`.
        limits: burst limits `(C, 1, 1)`.

    Returns:
        Spike counts and new membrane potentials, `(..., C, H, W)`.
    """
    v_mem = v_mem + current
    n = torch.floor(v_mem / theta).clamp(max=limits).clamp(min=0)
    return n, v_mem - n * theta


def signed_step(summed: Tensor, fired: Tensor, current: Tensor, layer: NeuronLayer) -> tuple[Tensor, Tensor]:
    """Compute one timestep of signed neurons.

    Args:
        summed: current summed over the timesteps so far, `(..., C, H, W)`.
        fired: sum of the spike counts so far.
        current: of this timestep, shift included.
        layer: parameters of the neurons.

    Returns:
        Spike counts of this timestep, and the new summed current.
    """
    theta, limits = layer.theta[:, None, None], layer.burst_limits[:, None, None]
    summed = summed + current
    level = torch.floor(F.leaky_relu(summed, layer.negative_slope) / theta + 0.5)
    return torch.minimum(torch.maximum(level - fired, -limits), limits), summed


def steady_counts(activations: Tensor, layer: NeuronLayer, timesteps: int) -> Tensor:
    """Sum of the spike counts of all timesteps under a constant current: the activation in steps of theta / T.

    Args:
        activations: of the ANN, `(N, C, H, W)`.
        layer: parameters of the neurons.
        timesteps: T.
    """
    theta, limits = layer.theta[:, None, None], timesteps * layer.burst_limits[:, None, None]
    return torch.minimum(torch.maximum(torch.floor(activations * timesteps / theta + 0.5), -limits), limits)


def at_rest(layer: NeuronLayer, like: Tensor) -> Tensor:
    """Initial state of a layer for currents shaped like `like`, `(N, C, H, W)`.

    Returns:
        Membrane potentials `(1, N, C, H, W)`. For signed neurons `(2, N, C, H, W)`: summed currents and summed spike counts.
    """
    if layer.signed:
        return torch.zeros((2, *like.shape), device=like.device)
    return (layer.theta / 2)[:, None, None].expand(like.shape)[None].contiguous()


def burst_scan(current: Tensor, layer: NeuronLayer, timesteps: int, state: Tensor | None = None) -> Tensor:
    """Run a layer for all timesteps.

    Args:
        current: `(T, N, C, H, W)` float32, or `(1, N, C, H, W)` if it is the same at every timestep.
        layer: parameters of the neurons.
        timesteps: T.
        state: as `at_rest` returns it, to continue from; overwritten with the final state. None starts at rest.

    Returns:
        Spike counts `(T, N, C, H, W)` float32.
    """
    theta, shift, limits = (x[:, None, None] for x in (layer.theta, layer.shift, layer.burst_limits))
    start = at_rest(layer, current[0]) if state is None else state
    v_mem, fired = start[0], start[-1]
    counts = []
    for t in range(timesteps):
        total = current[t % len(current)] + shift
        n, v_mem = signed_step(v_mem, fired, total, layer) if layer.signed else burst_step(v_mem, total, theta, limits)
        fired = fired + n
        counts.append(n)
    if state is not None:
        state[0] = v_mem
        if layer.signed:
            state[1] = fired
    return torch.stack(counts)


def over_time(x: Tensor) -> Tensor:
    """Mean over the timesteps of `(T, ...)`; a view, not a copy, if T is 1."""
    return x[0] if len(x) == 1 else x.mean(0)


def burst_scan_fused(
    current: Tensor,
    layer: NeuronLayer,
    timesteps: int,
    fan_out: Tensor,
    state: Tensor | None = None,
    resting: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `burst_scan` in one pass over memory on the CPU, and count spikes and operations on the way.

    Args:
        current, layer, timesteps, state: as in `burst_scan`; contiguous.
        fan_out: `(C, H, W)` float32, number of weights that a spike of each neuron meets.
        resting: `(T, C, H, W)` int16 counts in silence, to count the differences from them as well.

    Returns:
        Outputs n * theta `(T, N, C, H, W)` float32; and per image `(N, 4)` float64: spikes, synaptic operations, synaptic
        operations with each burst counted once, and bursts. Negative spikes count like positive ones. If `resting` is given,
        `(N, 7)`: also the first three of the differences.
    """
    _, n, c, h, w = current.shape
    out = torch.empty((timesteps, n, c, h, w), dtype=torch.float32)
    totals = np.zeros((n, c, 4 if resting is None else 7))
    silence = np.zeros((0, c, h * w), np.int16) if resting is None else resting.reshape(timesteps, c, h * w).numpy()
    start = at_rest(layer, current[0]) if state is None else state
    _scan(
        current.reshape(len(current), n, c, h * w).numpy(),
        layer.theta.numpy(),
        layer.shift.numpy(),
        layer.burst_limits.numpy(),
        layer.signed,
        np.float32(layer.negative_slope),
        fan_out.reshape(c, h * w).numpy(),
        start.view(len(start), n, c, h * w).numpy(),
        out.view(timesteps, n, c, h * w).numpy(),
        silence,
        totals,
    )
    return out, torch.from_numpy(totals.sum(1))


@njit(cache=True, nogil=True, parallel=True)
def _scan(current, theta, shift, limits, signed, slope, fan_out, state, out, resting, totals):  # type: ignore[no-untyped-def]
    timesteps, images, channels, size = out.shape
    static, compare = len(current) == 1, len(resting) > 0
    zero, half = np.float32(0), np.float32(0.5)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        th, sh, limit = theta[c], shift[c], limits[c]
        spikes, operations, graded, active = 0.0, 0.0, 0.0, 0.0
        spikes_beyond, operations_beyond, graded_beyond = 0.0, 0.0, 0.0
        for k in range(size):
            v, fired = state[0, i, c, k], state[-1, i, c, k]
            total, bursts, total_beyond, bursts_beyond = 0, 0, 0, 0
            for t in range(timesteps):
                v += current[0 if static else t, i, c, k] + sh
                if signed:
                    n = min(max(np.floor((v if v > zero else slope * v) / th + half) - fired, -limit), limit)
                    fired += n
                else:
                    n = min(max(np.floor(v / th), zero), limit)
                    v -= n * th
                out[t, i, c, k] = n * th
                total += int(abs(n))
                bursts += int(n != zero)
                if compare:
                    difference = n - np.float32(resting[t, c, k])
                    total_beyond += int(abs(difference))
                    bursts_beyond += int(difference != zero)
            state[0, i, c, k] = v
            if signed:
                state[1, i, c, k] = fired
            spikes += total
            active += bursts
            operations += total * fan_out[c, k]
            graded += bursts * fan_out[c, k]
            spikes_beyond += total_beyond
            operations_beyond += total_beyond * fan_out[c, k]
            graded_beyond += bursts_beyond * fan_out[c, k]
        totals[i, c, 0], totals[i, c, 1], totals[i, c, 2], totals[i, c, 3] = spikes, operations, graded, active
        if compare:
            totals[i, c, 4], totals[i, c, 5], totals[i, c, 6] = spikes_beyond, operations_beyond, graded_beyond
