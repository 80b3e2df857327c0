"""Burst neurons: integrate and fire, reset by subtraction, up to phi spikes in one timestep.

    v <- v + I[t];  n <- clip(floor(v / theta), 0, phi);  v <- v - n * theta;  the output is n * theta

(Wang, Fang, Cao, Xu, arXiv 2311.14265: burst spikes.) v starts at theta / 2, the rounding half-threshold, or goes on from
where it was left.
`burst_scan` is the specification, in torch; `burst_scan_fused` is the same arithmetic as one numba kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class NeuronLayer:
    """Parameters of one layer of burst neurons.

    Attributes:
        theta: `(C,)` float32 firing thresholds, all positive.
        shift: `(C,)` float32, added to every timestep's current (the light calibration's bias correction).
        phi: most spikes in one timestep, 1 to 255.
    """

    theta: Tensor
    shift: Tensor
    phi: int


def burst_step(v_mem: Tensor, current: Tensor, theta: Tensor, phi: int) -> tuple[Tensor, Tensor]:
    """One timestep: (spike counts n, new membrane potential); tensors `(..., C, H, W)`, theta `(C, 1, 1)`."""
    v_mem = v_mem + current
    n = torch.clamp(torch.floor(v_mem / theta), 0, phi)
    return n, v_mem - n * theta


def at_rest(layer: NeuronLayer, like: Tensor) -> Tensor:
    """Membrane potentials before the first timestep, `(N, C, H, W)` as the currents `like`."""
    return (layer.theta / 2)[:, None, None].expand(like.shape).contiguous()


def burst_scan(current: Tensor, layer: NeuronLayer, timesteps: int, v_mem: Tensor | None = None) -> Tensor:
    """All timesteps of a layer.

    Args:
        current: `(T, N, C, H, W)` float32, or `(1, N, C, H, W)` if it is the same at every timestep.
        layer: thresholds, shifts, burst limit.
        timesteps: T.
        v_mem: `(N, C, H, W)` float32 membrane potentials to go on from, overwritten with those of the end; None: at rest.

    Returns:
        Spike counts `(T, N, C, H, W)` float32.
    """
    theta, shift = layer.theta[:, None, None], layer.shift[:, None, None]
    kept, v_mem = v_mem, at_rest(layer, current[0]) if v_mem is None else v_mem
    counts = []
    for t in range(timesteps):
        n, v_mem = burst_step(v_mem, current[t % len(current)] + shift, theta, layer.phi)
        counts.append(n)
    if kept is not None:
        kept.copy_(v_mem)
    return torch.stack(counts)


def burst_scan_fused(
    current: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor, v_mem: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`burst_scan` as one pass over memory (CPU), counting on the way.

    Args:
        current, layer, timesteps, v_mem: as in `burst_scan`; contiguous.
        fan_out: `(C, H, W)` float32, weights reached by a spike of each neuron.

    Returns:
        Outputs n * theta `(T, N, C, H, W)` float32, and per image `(N, 4)` float64: spikes, synaptic operations,
        synaptic operations with a burst counted once, and neuron-timesteps with at least one spike.
    """
    _, n, c, h, w = current.shape
    out = torch.empty((timesteps, n, c, h, w), dtype=torch.float32)
    totals = np.zeros((n, c, 4))
    start = at_rest(layer, current[0]) if v_mem is None else v_mem
    _scan(
        current.reshape(len(current), n, c, h * w).numpy(),
        layer.theta.numpy(),
        layer.shift.numpy(),
        np.float32(layer.phi),
        fan_out.reshape(c, h * w).numpy(),
        start.view(n, c, h * w).numpy(),
        out.view(timesteps, n, c, h * w).numpy(),
        totals,
    )
    return out, torch.from_numpy(totals.sum(1))


@numba.njit(cache=True, nogil=True, parallel=True)
def _scan(current, theta, shift, phi, fan_out, v_mem, out, totals):  # type: ignore[no-untyped-def]
    timesteps, images, channels, size = out.shape
    static = len(current) == 1
    zero = np.float32(0)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        th, sh = theta[c], shift[c]
        spikes, reached, graded, active = 0.0, 0.0, 0.0, 0.0
        for k in range(size):
            v = v_mem[i, c, k]
            total, bursts = 0, 0
            for t in range(timesteps):
                v += current[0 if static else t, i, c, k] + sh
                n = min(max(np.floor(v / th), zero), phi)
                v -= n * th
                out[t, i, c, k] = n * th
                total += int(n)
                bursts += int(n > zero)
            v_mem[i, c, k] = v
            spikes += total
            active += bursts
            reached += total * fan_out[c, k]
            graded += bursts * fan_out[c, k]
        totals[i, c, 0], totals[i, c, 1], totals[i, c, 2], totals[i, c, 3] = spikes, reached, graded, active
