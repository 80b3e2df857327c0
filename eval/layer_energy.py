"""Energy of each layer, of a spiking run and of the dense ANN (see evburst.eval.energy)."""

from __future__ import annotations

from dataclasses import dataclass

from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.energy import COST_TABLES, HEADLINE, CostTable


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of one source of spikes, or of one convolution of the ANN; mean over the windows.

    Attributes:
        name, kind: the layer; kind is "input", "neuron", "pool", "memory" or "conv".
        spikes: number of spikes, a burst of 3 counted as 3; 0 for "conv".
        operations: accumulates (for "conv", multiply-accumulates).
        graded_operations: the same with a burst counted once (for "conv", with zeros skipped).
        neuron_updates: neurons x timesteps.
        pj: energy of the operations.
    """

    name: str
    kind: str
    spikes: float
    operations: float
    graded_operations: float
    neuron_updates: int
    pj: float


def snn_layers(stats: SpikeStats, table: CostTable = COST_TABLES[HEADLINE]) -> tuple[LayerEnergy, ...]:
    """Return the energy of a spiking run by source of spikes; the sum is `snn_pj`."""
    energies = []
    for layer in stats.layers:
        spikes, operations, graded = (float(c.mean()) for c in (layer.spikes, layer.synaptic_ops, layer.graded_ops))
        updates = layer.neurons * layer.timesteps
        energies.append(LayerEnergy(layer.name, layer.kind, spikes, operations, graded, updates, operations * table.ac_pj))
    return tuple(energies)


def ann_layers(stats: ActivityStats, table: CostTable = COST_TABLES[HEADLINE]) -> tuple[LayerEnergy, ...]:
    """Return the energy of the dense ANN by convolution; the sum is `ann_pj`."""
    return tuple(
        LayerEnergy(name, "conv", 0.0, float(macs), float(stats.effective_macs[name].mean()), 0, macs * table.mac_pj)
        for name, macs in stats.dense_macs.items()
    )
