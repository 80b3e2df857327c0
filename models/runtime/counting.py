"""Exact spike counts of networks that run elsewhere: from the counts that every layer leaves, as the reference counts them."""

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
    """Totals of every layer for grids of one size.

    Args:
        graph: the network.
        fan_out: weights reached by a spike of every neuron, see `fan_out_maps`.
        most: largest count of a neuron in all timesteps.
    """

    def __init__(self, graph: Graph, fan_out: Mapping[str, Tensor], most: int) -> None:
        self.layers = [node for node in graph.nodes if node.op in ("input", "relu", "max_pool")]
        self._fan_out = {}
        for node in self.layers:
            reach = fan_out[node.name].numpy()
            fits = float(reach.max()) * reach.shape[2] * most < 2**31 if reach.size else True
            self._fan_out[node.name] = np.ascontiguousarray(reach, np.int32 if fits else np.int64)

    def stats(self, counts: Mapping[str, NDArray[Any]], timesteps: int, images: int) -> list[LayerStats]:
        """Of every layer, in the graph's order.

        Args:
            counts: of every layer, `(1 or T, N, C, H, W)` or with the first two axes as one.
            timesteps, images: T and N.
        """
        found = []
        for node in self.layers:
            own = np.ascontiguousarray(counts[node.name])
            own = own.reshape(-1, images, *own.shape[-3:])
            totals = count_spikes(own, self._fan_out[node.name]).astype(np.float64)
            kind: Literal["input", "neuron", "pool"] = (
                "neuron" if node.op == "relu" else "pool" if node.op == "max_pool" else "input"
            )
            neurons = int(np.prod(own.shape[2:])) if kind == "neuron" else 0
            active = totals[:, 3] if kind == "neuron" else None
            found.append(LayerStats(node.name, kind, neurons, timesteps, totals[:, 0], totals[:, 1], totals[:, 2], active))
        return found


def count_spikes_reference(counts: NDArray[Any], fan_out: NDArray[Any]) -> NDArray[np.int64]:
    """The specification of `count_spikes`, in NumPy."""
    spikes, bursts = np.abs(counts.astype(np.int64)).sum(0), (counts != 0).astype(np.int64).sum(0)
    reach = fan_out.astype(np.int64)
    return np.stack([x.sum((1, 2, 3)) for x in (spikes, spikes * reach, bursts * reach, bursts)], 1)


def count_spikes(counts: NDArray[Any], fan_out: NDArray[Any]) -> NDArray[np.int64]:
    """Per image: spikes, synaptic operations, these with a burst counted once, and bursts, `(N, 4)` int64.

    Args:
        counts: `(T, N, C, H, W)` uint8, int8 or float32, contiguous; negative spikes count as any other.
        fan_out: `(C, H, W)` int32 or int64, in which the sums of a row fit.
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
        spikes, reached, graded, bursts = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for t in range(timesteps):
            for y in range(rows):
                line, reach = counts[t, image, channel, y], fan_out[channel, y]
                zero = reach[0] * 0  # sums of a row in the type of what is summed
                row_spikes, row_reached, row_graded, row_bursts = zero, zero, zero, zero
                for x in range(columns):
                    n = reach.dtype.type(abs(np.int32(line[x])))
                    fired = reach.dtype.type(n != 0)
                    row_spikes += n
                    row_bursts += fired
                    row_reached += n * reach[x]
                    row_graded += fired * reach[x]
                spikes += row_spikes
                reached += row_reached
                graded += row_graded
                bursts += row_bursts
        totals[image, channel, 0], totals[image, channel, 1] = spikes, reached
        totals[image, channel, 2], totals[image, channel, 3] = graded, bursts
