"""Burst neurons: integrate and fire, reset by subtraction, up to phi spikes in one timestep.

    v <- v + I[t];  n <- clip(floor(v / theta), 0, phi);  v <- v - n * theta;  the output is n * theta

(Wang, Fang, Cao, Xu, arXiv 2311.14265: burst spikes.) v starts at theta / 2, the rounding half-threshold, or
goes on from where it was left.

ReLU6: the burst limit is at most floor(6 / theta), so that the most a neuron can say, phi * theta, is not above 6.
Signed neurons remember their summed current u and the spikes k they have fired, and fire by how much their activation in steps of
theta has grown or shrunk; negative spikes weigh -theta and are counted as any other (negative spikes that take back
earlier ones: Wang et al., "Signed Neuron with Memory", IJCAI 2022; here with bursts):

    u <- u + I[t];  n <- clip(floor(f(u) / theta + 1/2) - k, -phi, phi);  k <- k + n;  the output is n * theta

f is LeakyReLU, which has no other neurons, or ReLU: currents that arrive unevenly over several timesteps then leave no
error behind, which costs the negative spikes. At T = 1 both kinds of neurons of a ReLU are the same.

`burst_scan` is the specification, in torch; `burst_scan_fused` is the same arithmetic as one numba kernel.
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


@dataclass(frozen=True)
class NeuronLayer:
    """Parameters of one layer of burst neurons.

    Attributes:
        theta: `(C,)` float32 firing thresholds, all positive.
        shift: `(C,)` float32, added to every timestep's current (the light calibration's bias correction).
        phi: most spikes in one timestep, 1 to 255.
        ceiling: of the activation (6 for ReLU6).
        negative_slope: of the activation (LeakyReLU), below 1.
        takes_back: whether a ReLU's neurons are signed.
    """

    theta: Tensor
    shift: Tensor
    phi: int
    ceiling: float = math.inf
    negative_slope: float = 0.0
    takes_back: bool = False

    @property
    def signed(self) -> bool:
        """Whether there are negative spikes."""
        return self.takes_back or self.negative_slope > 0

    @property
    def burst_limits(self) -> Tensor:
        """`(C,)` float32: phi, or less where the ceiling asks for it; the 1e-4 are for thresholds that divide it exactly."""
        return torch.floor(self.ceiling / self.theta + 1e-4).clamp(1, self.phi)


def burst_step(v_mem: Tensor, current: Tensor, theta: Tensor, limits: Tensor | int) -> tuple[Tensor, Tensor]:
    """One timestep: (spike counts n, new membrane potential); tensors `(..., C, H, W)`, theta and limits `(C, 1, 1)`."""
    v_mem = v_mem + current
    n = torch.floor(v_mem / theta).clamp(max=limits).clamp(min=0)
    return n, v_mem - n * theta


def signed_step(summed: Tensor, fired: Tensor, current: Tensor, layer: NeuronLayer) -> tuple[Tensor, Tensor]:
    """One timestep of signed neurons: (spike counts n, summed current); `fired`: the counts so far."""
    theta, limits = layer.theta[:, None, None], layer.burst_limits[:, None, None]
    summed = summed + current
    level = torch.floor(F.leaky_relu(summed, layer.negative_slope) / theta + 0.5)
    return torch.minimum(torch.maximum(level - fired, -limits), limits), summed


def steady_counts(activations: Tensor, layer: NeuronLayer, timesteps: int) -> Tensor:
    """What `burst_scan` sums to over all timesteps if the current never changes: activations in steps of theta / T.

    Args:
        activations: `(N, C, H, W)`, the ANN's.
    """
    theta, most = layer.theta[:, None, None], timesteps * layer.burst_limits[:, None, None]
    return torch.minimum(torch.maximum(torch.floor(activations * timesteps / theta + 0.5), -most), most)


def at_rest(layer: NeuronLayer, like: Tensor) -> Tensor:
    """State before the first timestep for currents `like` `(N, C, H, W)`: `(1, N, C, H, W)` membrane potentials.

    Signed neurons remember two things, `(2, N, C, H, W)`: their summed current, and the spikes they have fired.
    """
    if layer.signed:
        return torch.zeros((2, *like.shape), device=like.device)
    return (layer.theta / 2)[:, None, None].expand(like.shape)[None].contiguous()


def burst_scan(current: Tensor, layer: NeuronLayer, timesteps: int, state: Tensor | None = None) -> Tensor:
    """All timesteps of a layer.

    Args:
        current: `(T, N, C, H, W)` float32, or `(1, N, C, H, W)` if it is the same at every timestep.
        layer: thresholds, shifts, burst limit.
        timesteps: T.
        state: what `at_rest` gives, to go on from; overwritten with that of the end. None: at rest.

    Returns:
        Spike counts `(T, N, C, H, W)` float32.
    """
    theta, shift, limits = (x[:, None, None] for x in (layer.theta, layer.shift, layer.burst_limits))
    start = at_rest(layer, current[0]) if state is None else state
    v_mem, fired = start[0], start[-1]
    counts = []
    for t in range(timesteps):
        now = current[t % len(current)] + shift
        n, v_mem = signed_step(v_mem, fired, now, layer) if layer.signed else burst_step(v_mem, now, theta, limits)
        fired = fired + n
        counts.append(n)
    if state is not None:
        state[0] = v_mem
        if layer.signed:
            state[1] = fired
    return torch.stack(counts)


def over_time(x: Tensor) -> Tensor:
    """The mean over timesteps of `(T, ...)`; not copied if T is 1."""
    return x[0] if len(x) == 1 else x.mean(0)


def burst_scan_fused(
    current: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`burst_scan` as one pass over memory (CPU), counting on the way.

    Args:
        current, layer, timesteps, state: as in `burst_scan`; contiguous.
        fan_out: `(C, H, W)` float32, weights reached by a spike of each neuron.

    Returns:
        Outputs n * theta `(T, N, C, H, W)` float32, and per image `(N, 4)` float64: spikes, synaptic operations,
        synaptic operations with a burst counted once, and neuron-timesteps with at least one spike; negative spikes count alike.
    """
    _, n, c, h, w = current.shape
    out = torch.empty((timesteps, n, c, h, w), dtype=torch.float32)
    totals = np.zeros((n, c, 4))
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
        totals,
    )
    return out, torch.from_numpy(totals.sum(1))


@njit(cache=True, nogil=True, parallel=True)
def _scan(current, theta, shift, limits, signed, slope, fan_out, state, out, totals):  # type: ignore[no-untyped-def]
    timesteps, images, channels, size = out.shape
    static = len(current) == 1
    zero, half = np.float32(0), np.float32(0.5)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        th, sh, most = theta[c], shift[c], limits[c]
        spikes, reached, graded, active = 0.0, 0.0, 0.0, 0.0
        for k in range(size):
            v, fired = state[0, i, c, k], state[-1, i, c, k]
            total, bursts = 0, 0
            for t in range(timesteps):
                v += current[0 if static else t, i, c, k] + sh
                if signed:
                    n = min(max(np.floor((v if v > zero else slope * v) / th + half) - fired, -most), most)
                    fired += n
                else:
                    n = min(max(np.floor(v / th), zero), most)
                    v -= n * th
                out[t, i, c, k] = n * th
                total += int(abs(n))
                bursts += int(n != zero)
            state[0, i, c, k] = v
            if signed:
                state[1, i, c, k] = fired
            spikes += total
            active += bursts
            reached += total * fan_out[c, k]
            graded += bursts * fan_out[c, k]
        totals[i, c, 0], totals[i, c, 1], totals[i, c, 2], totals[i, c, 3] = spikes, reached, graded, active
