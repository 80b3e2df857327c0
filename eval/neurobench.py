"""NeuroBench's complexity metrics (Yik et al., Nature Communications 2025) of either network, from plain counts.

NeuroBench counts a layer's operations as accumulates only where all its inputs are -1, 0 or 1. A layer in which a burst was
seen, and the first layer where a pixel's count was above 1, are multiply-accumulates there; each burst is one operation. Where
signals are added before a convolution, spikes of both that meet are counted one by one here, and as one input there.
"""

from __future__ import annotations

from dataclasses import dataclass

from evburst.data.stats import ActivityStats, SpikeStats


@dataclass(frozen=True)
class NeuroBenchMetrics:
    """Means over the windows.

    Attributes:
        footprint_bytes: of parameters and buffers, as they are when the network runs.
        connection_sparsity: share of the weights that are zero.
        activation_sparsity: share of activations (of neuron-timesteps) that are zero; None where they were not counted.
        dense_synops: operations if nothing were zero.
        effective_macs, effective_acs: those whose input is not zero.
    """

    footprint_bytes: int
    connection_sparsity: float
    activation_sparsity: float | None
    dense_synops: float
    effective_macs: float
    effective_acs: float


def ann_metrics(stats: ActivityStats, footprint_bytes: int, connection_sparsity: float) -> NeuroBenchMetrics:
    """Of the ordinary network."""
    effective = sum(float(counts.mean()) for counts in stats.effective_macs.values())
    sparsity = 1 - float(stats.active.mean()) / stats.units
    return NeuroBenchMetrics(
        footprint_bytes, connection_sparsity, sparsity, float(sum(stats.dense_macs.values())), effective, 0.0
    )


def snn_metrics(
    stats: SpikeStats, footprint_bytes: int, connection_sparsity: float, sample: SpikeStats | None = None
) -> NeuroBenchMetrics:
    """Of the spiking network; dense operations are those of all timesteps.

    `sample`: a run in which active neurons were counted, if they were not in `stats`.
    """
    timesteps = max(layer.timesteps for layer in stats.layers)
    macs = acs = 0.0
    for layer in stats.layers:
        if (layer.synaptic_ops == layer.graded_ops).all():
            acs += float(layer.graded_ops.mean())
        else:
            macs += float(layer.graded_ops.mean())
    sparsity = activation_sparsity(sample or stats)
    dense = float(timesteps * sum(stats.dense_macs.values()))
    return NeuroBenchMetrics(footprint_bytes, connection_sparsity, sparsity, dense, macs, acs)


def activation_sparsity(stats: SpikeStats) -> float | None:
    """Share of neuron-timesteps without a spike; None where they were not counted."""
    neurons = [layer for layer in stats.layers if layer.kind == "neuron"]
    active = [float(layer.active.mean()) for layer in neurons if layer.active is not None]
    return 1 - sum(active) / sum(layer.neurons * layer.timesteps for layer in neurons) if len(active) == len(neurons) else None
