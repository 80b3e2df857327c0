"""Exact spike counts and synaptic operations of networks run by a library, computed from the spike counts of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data._numba import njit
from evburst.data.stats import LayerStats
from evburst.models.graph import Graph
from evburst.models.spiking.cost import KINDS

_BLOCK = 2048
"""Number of positions that are summed at a time."""


def grid_counts(grid: Tensor) -> NDArray[np.uint8] | None:
    """Convert a grid to uint8; None if it does not hold integer counts of 0 to 255."""
    if grid.dtype == torch.uint8:
        return grid.contiguous().numpy()
    counts = grid.clamp(0, 255).to(torch.uint8)
    return counts.contiguous().numpy() if torch.equal(counts.to(grid.dtype), grid) else None


class FanOut(NamedTuple):
    """Fan-outs of a layer `(C, H, W)`, by groups of channels in which they are equal.

    Attributes:
        maps: `(groups, H * W)` int64.
        channels: `(C,)` int64, the channels, group by group.
        limits: `(groups + 1,)` int64, where each group begins in `channels`, and C.
    """

    maps: NDArray[np.int64]
    channels: NDArray[np.int64]
    limits: NDArray[np.int64]

    @classmethod
    def of(cls, maps: NDArray[Any]) -> FanOut:
        """Group the channels of fan-outs `(C, H, W)`."""
        flat = np.ascontiguousarray(maps, np.int64).reshape(len(maps), maps.shape[1] * maps.shape[2])
        groups: dict[bytes, list[int]] = {}
        for channel, own in enumerate(flat):
            groups.setdefault(own.tobytes(), []).append(channel)
        channels = [channel for group in groups.values() for channel in group]
        limits = np.cumsum([0, *(len(group) for group in groups.values())])
        return cls(flat[[group[0] for group in groups.values()]], np.array(channels, np.int64), limits.astype(np.int64))


class SpikeCounter:
    """Counts spikes and synaptic operations of every layer, for grids of one size.

    Args:
        graph: the network.
        fan_out: number of weights that a spike of each neuron meets, see `fan_out_maps`.
    """

    def __init__(self, graph: Graph, fan_out: Mapping[str, Tensor]) -> None:
        self.layers = [node for node in graph.nodes if node.op in KINDS]
        self._fan_out = {node.name: FanOut.of(fan_out[node.name].numpy()) for node in self.layers}

    def stats(
        self, counts: Mapping[str, NDArray[Any]], timesteps: int, images: int, silent: Mapping[str, NDArray[Any]]
    ) -> list[LayerStats]:
        """Compute the statistics of every layer, in network order.

        Args:
            counts: spike counts by layer, `(1 or T, N, C, H, W)`, or with the first two axes merged.
            timesteps, images: T and N.
            silent: the same of one window without events.
        """
        layers = []
        for node in self.layers:
            own = np.ascontiguousarray(counts[node.name])
            own = own.reshape(-1, images, *own.shape[-3:])
            resting = silent[node.name].reshape(-1, *own.shape[-3:])
            spikes, synaptic_ops, graded, bursts, *beyond = count_spikes(own, resting, self._fan_out[node.name]).T
            kind = KINDS[node.op]
            neurons, active = (int(np.prod(own.shape[2:])), bursts) if kind == "neuron" else (0, None)
            layers.append(LayerStats(node.name, kind, neurons, timesteps, spikes, synaptic_ops, graded, active, *beyond))
        return layers


def count_spikes_reference(counts: NDArray[Any], resting: NDArray[Any], fan_out: NDArray[Any]) -> NDArray[np.float64]:
    """Compute what `count_spikes` does, in NumPy; the reference for its test."""
    own, targets, totals = counts.astype(np.int64), fan_out.astype(np.int64), []
    for values in (own, own - resting[:, None].astype(np.int64)):
        spikes, bursts = np.abs(values).sum(0), (values != 0).astype(np.int64).sum(0)
        totals += [x.sum((1, 2, 3)) for x in (spikes, spikes * targets, bursts * targets, bursts)]
    return np.stack(totals[:7], 1).astype(np.float64)


def count_spikes(counts: NDArray[Any], resting: NDArray[Any], fan_out: FanOut) -> NDArray[np.float64]:
    """Count spikes, synaptic operations, synaptic operations with each burst counted once, and bursts.

    Args:
        counts: `(T, N, C, H, W)` uint8, int8 or float32, contiguous; negative spikes count like positive ones. Sums over T
            and C must fit into 31 bits.
        resting: `(T, C, H, W)` of the same type, the counts in silence.
        fan_out: fan-outs `(C, H, W)`.

    Returns:
        `(N, 7)` float64, per image: these four, and the first three of the differences from silence.
    """
    totals = np.zeros((counts.shape[1], 7), np.int64)
    positions = fan_out.maps.shape[1]
    flat, silent = (own.reshape(*own.shape[:-2], positions) for own in (counts, resting))
    _count(flat, silent, *fan_out, totals)
    return totals.astype(np.float64)


@njit(cache=True, nogil=True)
def _count(counts, resting, maps, channels, limits, totals):  # type: ignore[no-untyped-def]
    """One thread, because the libraries' own threads keep spinning after a run and would compete with numba's.

    Counts are first added up position by position over all channels with equal fan-outs, and weighted afterwards, a block of
    positions at a time that fits into the cache.
    """
    timesteps, images, _, positions = counts.shape
    sums = np.empty((4, _BLOCK), np.int32)
    for image in range(images):
        for group in range(len(maps)):
            for start in range(0, positions, _BLOCK):
                stop = min(start + _BLOCK, positions)
                sums[:] = 0
                for t in range(timesteps):
                    for channel in channels[limits[group] : limits[group + 1]]:
                        line, silent = counts[t, image, channel, start:stop], resting[t, channel, start:stop]
                        _add(line, silent, sums[0], sums[1], sums[2], sums[3])
                _weigh(sums, maps[group, start:stop], totals[image])


@njit(cache=True, nogil=True)
def _add(line, silent, spikes, bursts, beyond, changes):  # type: ignore[no-untyped-def]
    """Add the counts of one channel, and their differences from silence; all in 32 bits, so that it is vectorised."""
    for x in range(len(line)):
        n = np.int32(line[x])
        difference = np.int32(n - np.int32(silent[x]))
        spikes[x] = np.int32(spikes[x] + np.int32(abs(n)))
        bursts[x] = np.int32(bursts[x] + np.int32(n != 0))
        beyond[x] = np.int32(beyond[x] + np.int32(abs(difference)))
        changes[x] = np.int32(changes[x] + np.int32(difference != 0))


@njit(cache=True, nogil=True)
def _weigh(sums, fan_out, totals):  # type: ignore[no-untyped-def]
    """Add the sums at all positions to `totals`."""
    for x in range(len(fan_out)):
        spikes, bursts, beyond, changes = sums[0, x], sums[1, x], sums[2, x], sums[3, x]
        totals[0] += spikes
        totals[1] += spikes * fan_out[x]
        totals[2] += bursts * fan_out[x]
        totals[3] += bursts
        totals[4] += beyond
        totals[5] += beyond * fan_out[x]
        totals[6] += changes * fan_out[x]
