"""Energy of each layer, of a spiking run and of the dense ANN (see evburst.eval.energy)."""

from __future__ import annotations

from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.energy import CostTable
from evburst.eval.result_parts import Layer


def snn_layers(stats: SpikeStats, table: CostTable) -> tuple[Layer, ...]:
    """Return the energy of a spiking run by source of spikes; the sum is `snn_pj`."""
    energies = []
    for layer in stats.layers:
        spikes, operations, graded = (float(c.mean()) for c in (layer.spikes, layer.synaptic_ops, layer.graded_ops))
        updates = layer.neurons * layer.timesteps
        energies.append(Layer(layer.name, layer.kind, spikes, operations, graded, updates, operations * table.ac_pj))
    return tuple(energies)


def ann_layers(stats: ActivityStats, table: CostTable) -> tuple[Layer, ...]:
    """Return the energy of the dense ANN by convolution; the sum is `ann_pj`."""
    return tuple(
        Layer(name, "conv", 0.0, float(macs), float(stats.effective_macs[name].mean()), 0, macs * table.mac_pj)
        for name, macs in stats.dense_macs.items()
    )
