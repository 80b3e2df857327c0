"""Exact spike counts and synaptic operations of networks run by a library, computed from the spike counts of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.data._numba import njit
from evburst.data.stats import LayerStats
from evburst.models.graph import Graph


class SpikeCounter:
    """Counts spikes and synaptic operations of every layer, for grids of one size.

    Args:
        graph: the network.
        fan_out: number of weights that a spike of each neuron meets, see `fan_out_maps`.
        largest_total: largest number of spikes of a neuron over all timesteps.
    """

    def __init__(self, graph: Graph, fan_out: Mapping[str, Tensor], largest_total: int) -> None:
        self.layers = [node for node in graph.nodes if node.op in ("input", "relu", "max_pool")]
        self._fan_out = {}
        for node in self.layers:
            maps = fan_out[node.name].numpy()
            fits = float(maps.max()) * maps.shape[2] * largest_total < 2**31 if maps.size else True
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
            totals = count_spikes(own, self._fan_out[node.name]).astype(np.float64)
            kind: Literal["input", "neuron", "pool"] = (
                "neuron" if node.op == "relu" else "pool" if node.op == "max_pool" else "input"
            )
            neurons = int(np.prod(own.shape[2:])) if kind == "neuron" else 0
            active = totals[:, 3] if kind == "neuron" else None
            resting = silent[node.name].reshape(-1, 1, *own.shape[-3:])
            differences = np.subtract(own, resting, dtype=np.int16, casting="unsafe")
            beyond = count_spikes(differences, self._fan_out[node.name]).astype(np.float64)
            plain = totals[:, 0], totals[:, 1], totals[:, 2]
            layers.append(LayerStats(node.name, kind, neurons, timesteps, *plain, active, *beyond[:, :3].T))
        return layers


def count_spikes_reference(counts: NDArray[Any], fan_out: NDArray[Any]) -> NDArray[np.int64]:
    """Compute what `count_spikes` does, in NumPy; the reference for its test."""
    spikes, bursts = np.abs(counts.astype(np.int64)).sum(0), (counts != 0).astype(np.int64).sum(0)
    targets = fan_out.astype(np.int64)
    return np.stack([x.sum((1, 2, 3)) for x in (spikes, spikes * targets, bursts * targets, bursts)], 1)


def count_spikes(counts: NDArray[Any], fan_out: NDArray[Any]) -> NDArray[np.int64]:
    """Count spikes, synaptic operations, synaptic operations with each burst counted once, and bursts.

    Args:
        counts: `(T, N, C, H, W)` uint8, int8, int16 or float32, contiguous; negative spikes count like positive ones.
        fan_out: `(C, H, W)`, int32 if the sum over one row fits into it, or int64.

    Returns:
        `(N, 4)` int64, per image.
    """
    totals = np.zeros((counts.shape[1], counts.shape[2], 4), np.int64)
    _count(counts, fan_out, totals)
    summed: NDArray[np.int64] = totals.sum(1)
    return summed


@njit(cache=True, nogil=True, parallel=True)
def _count(counts, fan_out, totals):  # type: ignore[no-untyped-def]
    timesteps, images, channels, rows, columns = counts.shape
    for plane in numba.prange(images * channels):
        image, channel = plane // channels, plane % channels
        spikes, operations, graded, bursts = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for t in range(timesteps):
            for y in range(rows):
                line, targets = counts[t, image, channel, y], fan_out[channel, y]
                zero = targets[0] * 0  # of the dtype of the fan-out, so that the sums of a row have it too
                row_spikes, row_operations, row_graded, row_bursts = zero, zero, zero, zero
                for x in range(columns):
                    n = targets.dtype.type(abs(np.int32(line[x])))
                    fired = targets.dtype.type(n != 0)
                    row_spikes += n
                    row_bursts += fired
                    row_operations += n * targets[x]
                    row_graded += fired * targets[x]
                spikes += row_spikes
                operations += row_operations
                graded += row_graded
                bursts += row_bursts
        totals[image, channel, 0], totals[image, channel, 1] = spikes, operations
        totals[image, channel, 2], totals[image, channel, 3] = graded, bursts
