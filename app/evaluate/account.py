"""Energy and NeuroBench figures of a network's counts, as results show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from evburst.data.stats import ActivityStats, MemoryGeometry, SpikeStats
from evburst.eval.energy import COST_TABLES, CostTable, ann_energy_report, ann_layers, energy_report, snn_layers, synaptic_ops
from evburst.eval.memory import MODEL, ann_memory, snn_memory
from evburst.eval.neurobench import NeuroBenchMetrics, activation_sparsity, ann_metrics, snn_metrics
from evburst.models.activity import memory
from evburst.models.bundle import DetectorBundle

Stats = SpikeStats | ActivityStats


def energy_figures(stats: Stats, activity: ActivityStats | None, table: str) -> dict[str, Any]:
    """Energy per window in pJ. `activity`: of the ANN, if it ran; `table`: the number format of the headline."""
    tables = {name: _energy_in(stats, activity, costs) for name, costs in COST_TABLES.items()}
    out = {**tables[table], "table": table, "account": "per spike: a burst of 3 counts 3", "tables": tables}
    if isinstance(stats, ActivityStats):
        ann = ann_energy_report(stats)
        counts = {"dense_macs": ann.dense_macs, "effective_macs": ann.effective_macs, "active_share": ann.active_share}
        return {**out, "spikes_per_neuron": None, **counts}
    report, per_window = energy_report(stats), synaptic_ops(stats) * COST_TABLES[table].ac_pj
    return {
        **out,
        "spikes_per_neuron": report.spikes_per_neuron,
        "snn_pj_percentiles": {f"p{q}": float(np.percentile(per_window, q)) for q in (5, 50, 95)},
        "synaptic_ops": report.synaptic_ops,
        "dense_macs": report.dense_macs,
        "neuron_updates": report.neuron_updates,
    }


def _energy_in(stats: Stats, activity: ActivityStats | None, table: CostTable) -> dict[str, Any]:
    """Energies in one number format."""
    skipping = ann_energy_report(activity, table).zero_skipping_pj if activity else None
    if isinstance(stats, ActivityStats):
        dense = ann_energy_report(stats, table).dense_pj
        return {"snn_pj": None, "snn_graded_pj": None, "ann_pj": dense, "ann_zero_skipping_pj": skipping, "ratio": None}
    r = energy_report(stats, table)
    snn = {"snn_pj": r.snn_pj, "snn_graded_pj": r.snn_graded_pj}
    return {**snn, "ann_pj": r.ann_pj, "ann_zero_skipping_pj": skipping, "ratio": r.ratio}


def neurobench_metrics(stats: Stats, bundle: DetectorBundle, sample: Callable[[], SpikeStats]) -> NeuroBenchMetrics:
    """NeuroBench's complexity metrics of the network that ran; `sample` is asked where active neurons were not counted."""
    if isinstance(stats, ActivityStats):
        return ann_metrics(stats, *memory(bundle.graph))
    counted = None if activation_sparsity(stats) is not None else sample()
    return snn_metrics(stats, *memory(bundle.spiking, bundle.parameters), counted)


def memory_figures(stats: Stats, geometry: MemoryGeometry, table: str) -> dict[str, Any]:
    """Energy by another model, with memory traffic."""
    costs = COST_TABLES[table]
    dense = ann_memory(geometry, costs)
    found = dense if isinstance(stats, ActivityStats) else snn_memory(stats, geometry, costs)
    return {"model": MODEL, **asdict(found), "share_of_ann": found.total_pj / dense.total_pj}


def layer_figures(stats: Stats, table: str) -> list[dict[str, Any]]:
    """Where the energy goes, layer by layer."""
    costs = COST_TABLES[table]
    layers = ann_layers(stats, costs) if isinstance(stats, ActivityStats) else snn_layers(stats, costs)
    return [asdict(layer) for layer in layers]
