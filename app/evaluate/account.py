"""Energy and NeuroBench figures for the results, computed from a network's operation counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from evburst.app.inference import Stats
from evburst.data.stats import ActivityStats, SpikeStats
from evburst.eval.energy import COST_TABLES, energy_figures, energy_report, synaptic_ops
from evburst.eval.layer_energy import ann_layers, snn_layers
from evburst.eval.neurobench import activation_sparsity, ann_metrics, snn_metrics
from evburst.eval.result_parts import NeuroBench
from evburst.models.activity import footprint
from evburst.models.bundle import Bundle


def account(stats: Stats, activity: ActivityStats, table: str, idle_windows: int) -> dict[str, Any]:
    """Return the energy per window of a network compared with its alternatives, see `evburst.eval.energy.energy_figures`.

    Args:
        stats: operation counts of the network.
        activity: operation counts of the ANN, on the same windows or a sample of them.
        table: number format of the headline figure.
        idle_windows: number of windows that neither network was run on.
    """
    if isinstance(stats, ActivityStats):
        return {**energy_figures(energy_report(None, stats, idle_windows), table), "snn_pj_percentiles": None}
    per_window = synaptic_ops(stats) * COST_TABLES[table].ac_pj
    percentiles = {f"p{q}": float(np.percentile(per_window, q)) for q in (5, 50, 95)}
    return {**energy_figures(energy_report(stats, activity, idle_windows), table), "snn_pj_percentiles": percentiles}


def neurobench_metrics(stats: Stats, bundle: Bundle, sample: Callable[[], SpikeStats]) -> NeuroBench:
    """Return NeuroBench's complexity metrics of the network; `sample` is called if active neurons were not counted."""
    if isinstance(stats, ActivityStats):
        return ann_metrics(stats, *footprint(bundle.graph))
    counted = None if activation_sparsity(stats) is not None else sample()
    return snn_metrics(stats, *footprint(bundle.spiking, bundle.parameters), counted)


def layer_figures(stats: Stats, table: str) -> list[dict[str, Any]]:
    """Return the energy of each layer."""
    costs = COST_TABLES[table]
    layers = ann_layers(stats, costs) if isinstance(stats, ActivityStats) else snn_layers(stats, costs)
    return [asdict(layer) for layer in layers]
