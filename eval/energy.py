"""Energy of a spiking network beside the ANN of the same weights: arithmetic on counts, nothing else (METHOD section 8).

    SNN: every spike x every weight it reaches x AC energy     (a burst of 3 is 3 accumulates: the `per-spike` account)
    ANN: every multiply-accumulate of the dense network x MAC energy (products with padding left out)

Energies per operation: 45 nm, Horowitz, "Computing's energy problem", ISSCC 2014. Beside these two headlines stand the SNN on
hardware that sends a burst's count with one event (`graded`), and the ANN on hardware that skips zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from evburst.data.stats import ActivityStats, SpikeStats
from numpy.typing import NDArray


@dataclass(frozen=True)
class CostTable:
    """Energy of one operation in pJ.

    Attributes:
        name: number format.
        mac_pj: multiply-accumulate.
        ac_pj: accumulate.
    """

    name: str
    mac_pj: float
    ac_pj: float


COST_TABLES = {
    "fp32": CostTable("fp32", 4.6, 0.9),
    "fp16": CostTable("fp16", 1.5, 0.4),
    "int8": CostTable("int8", 0.3, 0.1),
}
"""INT8: an 8-bit product (0.2 pJ) added into 32 bits (0.1 pJ)."""

EXCLUDED = (
    "memory traffic",
    "neuron updates",
    "pooling (comparisons and averages)",
    "binning, box decoding and NMS (the same for both networks)",
)


@dataclass(frozen=True)
class LayerEnergy:
    """One source of spikes, or one convolution of the ANN; means over the windows.

    Attributes:
        name, kind: the layer; kind is "input", "neuron", "pool" or "conv".
        spikes: bursts with multiplicity; 0 for "conv".
        operations: accumulates (or multiply-accumulates).
        graded_operations: the same with a burst counted once (or with zeros skipped).
        neuron_updates: neurons x timesteps.
        pj: operations x energy.
    """

    name: str
    kind: str
    spikes: float
    operations: float
    graded_operations: float
    neuron_updates: int
    pj: float


@dataclass(frozen=True)
class EnergyReport:
    """Energy per window, mean over the windows of `stats`.

    Attributes:
        table: energies per operation used.
        snn_pj: SNN, per-spike account (the headline).
        snn_graded_pj: SNN on hardware that sends a burst's count with one event.
        ann_pj: dense ANN, same number format.
        ratio: snn_pj / ann_pj.
        synaptic_ops, dense_macs, neuron_updates: the counts behind them.
        spikes_per_neuron: mean spikes of a neuron per window, over all timesteps, bursts with multiplicity.
        timesteps: T.
        excluded: what is not in these figures.
    """

    table: CostTable
    snn_pj: float
    snn_graded_pj: float
    ann_pj: float
    ratio: float
    synaptic_ops: float
    dense_macs: int
    neuron_updates: int
    spikes_per_neuron: float
    timesteps: int
    excluded: tuple[str, ...] = EXCLUDED


def energy_report(stats: SpikeStats, table: CostTable = COST_TABLES["fp32"]) -> EnergyReport:
    """The energy of one run (mean over its images)."""
    operations = float(synaptic_ops(stats).mean())
    graded = float(np.sum([layer.graded_ops for layer in stats.layers], 0).mean())
    macs = sum(stats.dense_macs.values())
    return EnergyReport(
        table=table,
        snn_pj=operations * table.ac_pj,
        snn_graded_pj=graded * table.ac_pj,
        ann_pj=macs * table.mac_pj,
        ratio=operations * table.ac_pj / (macs * table.mac_pj),
        synaptic_ops=operations,
        dense_macs=macs,
        neuron_updates=sum(layer.neurons * layer.timesteps for layer in stats.layers),
        spikes_per_neuron=float(stats.spikes_per_neuron.mean()),
        timesteps=max(layer.timesteps for layer in stats.layers),
    )


def snn_layers(stats: SpikeStats, table: CostTable = COST_TABLES["fp32"]) -> tuple[LayerEnergy, ...]:
    """Where the energy of a spiking run goes: source by source of spikes; sums to `snn_pj`."""
    found = []
    for layer in stats.layers:
        spikes, operations, graded = (float(c.mean()) for c in (layer.spikes, layer.synaptic_ops, layer.graded_ops))
        updates = layer.neurons * layer.timesteps
        found.append(LayerEnergy(layer.name, layer.kind, spikes, operations, graded, updates, operations * table.ac_pj))
    return tuple(found)


@dataclass(frozen=True)
class AnnEnergyReport:
    """Energy of the ANN per window, mean over the windows of `stats`.

    Attributes:
        table: energies per operation used.
        dense_pj: every multiply-accumulate.
        zero_skipping_pj: those whose input is not zero.
        dense_macs, effective_macs: the counts behind them.
        active_share: share of the activations after a ReLU that are not zero.
        excluded: what is not in these figures.
    """

    table: CostTable
    dense_pj: float
    zero_skipping_pj: float
    dense_macs: int
    effective_macs: float
    active_share: float
    excluded: tuple[str, ...] = EXCLUDED


def ann_energy_report(stats: ActivityStats, table: CostTable = COST_TABLES["fp32"]) -> AnnEnergyReport:
    """The energy of one run of the ANN (mean over its images)."""
    dense = sum(stats.dense_macs.values())
    effective = float(np.sum(list(stats.effective_macs.values()), 0).mean())
    share = float(stats.active.mean()) / stats.units
    return AnnEnergyReport(table, dense * table.mac_pj, effective * table.mac_pj, dense, effective, share)


def ann_layers(stats: ActivityStats, table: CostTable = COST_TABLES["fp32"]) -> tuple[LayerEnergy, ...]:
    """Where the energy of the dense ANN goes: convolution by convolution; sums to `dense_pj`."""
    return tuple(
        LayerEnergy(name, "conv", 0.0, float(macs), float(stats.effective_macs[name].mean()), 0, macs * table.mac_pj)
        for name, macs in stats.dense_macs.items()
    )


def synaptic_ops(stats: SpikeStats) -> NDArray[np.float64]:
    """`(N,)`: weights reached by all spikes of each image, bursts with multiplicity."""
    return np.sum([layer.synaptic_ops for layer in stats.layers], 0)  # type: ignore[no-any-return]
