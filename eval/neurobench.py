"""NeuroBench's complexity metrics (Yik et al., Nature Communications 2025) of the ANN and the SNN, from operation counts.

NeuroBench counts a layer's operations as accumulates only if all its inputs are -1, 0 or 1. So a layer with bursts, and
the first layer if a pixel's count exceeds 1, count as multiply-accumulates, where each burst is one operation. If signals
are added before a convolution, coinciding spikes of both are counted separately here, but as one input by NeuroBench.
"""

from __future__ import annotations

from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.result_parts import NeuroBench


def ann_metrics(stats: ActivityStats, footprint_bytes: int, connection_sparsity: float) -> NeuroBench:
    """Return the metrics of the ANN."""
    effective = sum(float(counts.mean()) for counts in stats.effective_macs.values())
    sparsity = 1 - float(stats.active.mean()) / stats.units
    return NeuroBench(footprint_bytes, connection_sparsity, sparsity, float(sum(stats.dense_macs.values())), effective, 0.0)


def snn_metrics(
    stats: SpikeStats, footprint_bytes: int, connection_sparsity: float, sample: SpikeStats | None = None
) -> NeuroBench:
    """Return the metrics of the spiking network; dense operations are those of all timesteps.

    `sample`: counts of a run that includes active neurons, if `stats` does not.
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
    return NeuroBench(footprint_bytes, connection_sparsity, sparsity, dense, macs, acs)


def activation_sparsity(stats: SpikeStats) -> float | None:
    """Return the fraction of neuron-timesteps without a spike; None if active neurons were not counted."""
    neurons = stats.neurons
    active = [float(layer.active.mean()) for layer in neurons if layer.active is not None]
    return 1 - sum(active) / sum(layer.neurons * layer.timesteps for layer in neurons) if len(active) == len(neurons) else None
