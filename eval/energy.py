"""Energy of a spiking network beside the ANN of the same weights: arithmetic on SpikeStats, nothing else (METHOD section 8).

    SNN: every spike x every weight it reaches x AC energy     (a burst of 3 is 3 accumulates: the `per-spike` account)
    ANN: every multiply-accumulate of the dense network x MAC energy (products with padding left out)

Energies per operation: 45 nm, Horowitz, "Computing's energy problem", ISSCC 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.stats import SpikeStats


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

EXCLUDED = (
    "memory traffic",
    "neuron updates",
    "pooling (comparisons and averages)",
    "binning, box decoding and NMS (the same for both networks)",
)


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


def synaptic_ops(stats: SpikeStats) -> NDArray[np.float64]:
    """`(N,)`: weights reached by all spikes of each image, bursts with multiplicity."""
    return np.sum([layer.synaptic_ops for layer in stats.layers], 0)  # type: ignore[no-any-return]
