"""Exact spike counts and synaptic operations of networks run by a library, computed from the spike counts of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.data._numba import njit
from evburst.data.stats import LayerStats
from evburst.models.graph import Graph
from evburst.models.spiking.cost import KINDS


class SpikeCounter:
    """Counts spikes and synaptic operations of every layer, for grids of one size.

    Args:
        graph: the network.
        fan_out: number of weights that a spike of each neuron meets, see `fan_out_maps`.
        largest_total: largest number of spikes of a neuron over all timesteps.
    """

    def __init__(self, graph: Graph, fan_out: Mapping[str, Tensor], largest_total: int) -> None:
        self.layers = [node for node in graph.nodes if node.op in KINDS]
        self._fan_out = {}
        for node in self.layers:
            maps = fan_out[node.name].numpy()
            # Twice, because a negative count can differ from a positive one in silence.
            fits = 2 * float(maps.max()) * maps.shape[2] * largest_total < 2**31 if maps.size else True
            self._fan_out[node.name] = np.ascontiguousarray(maps, np.int32 if fits else np.int64)

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


def count_spikes(counts: NDArray[Any], resting: NDArray[Any], fan_out: NDArray[Any]) -> NDArray[np.float64]:
    """Count spikes, synaptic operations, synaptic operations with each burst counted once, and bursts.

    Args:
        counts: `(T, N, C, H, W)` uint8, int8 or float32, contiguous; negative spikes count like positive ones.
        resting: `(T, C, H, W)` of the same type, the counts in silence.
        fan_out: `(C, H, W)`, int32 if the sum over one row fits into it, or int64.

    Returns:
        `(N, 7)` float64, per image: these four, and the first three of the differences from silence.
    """
    totals = np.zeros((counts.shape[1], counts.shape[2], 7), np.int64)
    _count(counts, resting, fan_out, totals)
    summed: NDArray[np.float64] = totals.sum(1).astype(np.float64)
    return summed


@njit(cache=True, nogil=True)
def _count(counts, resting, fan_out, totals):  # type: ignore[no-untyped-def]
    """One thread, because the libraries' own threads keep spinning after a run and would compete with numba's."""
    timesteps, images, channels, rows = counts.shape[:4]
    for plane in range(images * channels):
        image, channel = plane // channels, plane % channels
        for t in range(timesteps):
            for y in range(rows):
                _count_row(counts[t, image, channel, y], resting[t, channel, y], fan_out[channel, y], totals[image, channel])


@njit(cache=True, nogil=True)
def _count_row(line, silent, fan_out, totals):  # type: ignore[no-untyped-def]
    """Add the counts of one row to `totals`."""
    kind = fan_out.dtype.type
    zero = fan_out[0] * 0  # of the dtype of the fan-out, so that the sums of a row have it too
    spikes = operations = graded = bursts = zero
    spikes_beyond = operations_beyond = graded_beyond = zero
    for x in range(len(line)):
        n, difference = kind(abs(np.int32(line[x]))), kind(abs(np.int32(line[x]) - np.int32(silent[x])))
        fired, differs = kind(n != 0), kind(difference != 0)
        spikes += n
        operations += n * fan_out[x]
        graded += fired * fan_out[x]
        bursts += fired
        spikes_beyond += difference
        operations_beyond += difference * fan_out[x]
        graded_beyond += differs * fan_out[x]
    totals[0] += spikes
    totals[1] += operations
    totals[2] += graded
    totals[3] += bursts
    totals[4] += spikes_beyond
    totals[5] += operations_beyond
    totals[6] += graded_beyond
