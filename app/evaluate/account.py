"""Energy by layer, memory and NeuroBench figures of a network's counts, as results show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from evburst.data.stats import ActivityStats, MemoryGeometry, SpikeStats
from evburst.eval.energy import COST_TABLES, ann_layers, energy_figures, energy_report, snn_layers, synaptic_ops
from evburst.eval.memory import MODEL, ann_memory, snn_memory
from evburst.eval.neurobench import NeuroBenchMetrics, activation_sparsity, ann_metrics, snn_metrics
from evburst.models.activity import memory
from evburst.models.bundle import DetectorBundle

Stats = SpikeStats | ActivityStats


def account(stats: Stats, activity: ActivityStats, table: str, idle_windows: int = 0) -> dict[str, Any]:
    """Energy per window of one network beside its rivals, see `evburst.eval.energy.energy_figures`.

    Args:
        stats: what the network did.
        activity: what the ANN did, on the same windows or a sample of them.
        table: the number format of the headline.
        idle_windows: windows that neither network ran.
    """
    if isinstance(stats, ActivityStats):
        return {**energy_figures(energy_report(None, stats, idle_windows), table), "snn_pj_percentiles": None}
    per_window = synaptic_ops(stats) * COST_TABLES[table].ac_pj
    percentiles = {f"p{q}": float(np.percentile(per_window, q)) for q in (5, 50, 95)}
    return {**energy_figures(energy_report(stats, activity, idle_windows), table), "snn_pj_percentiles": percentiles}


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
    """Where the energy is spent, layer by layer."""
    costs = COST_TABLES[table]
    layers = ann_layers(stats, costs) if isinstance(stats, ActivityStats) else snn_layers(stats, costs)
    return [asdict(layer) for layer in layers]
