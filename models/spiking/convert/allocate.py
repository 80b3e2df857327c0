"""Choice of a burst limit and a threshold factor for every layer, as a Pareto frontier of cost and sensitivity.

Every layer has a table of candidates with their costs and sensitivities; both are summed over layers. The search goes
through the layers in order, extends every partial choice by every candidate, and keeps the sums that no other one beats in
both respects (docs/method.md#allocation). That is exact while all of these are kept. Networks with many layers exceed
`max_nodes`; the sums are then thinned evenly in the logarithm of cost, keeping the least sensitive one of each interval.

Burst limits and threshold factors are candidates of one search, so that one frontier covers both. A table with candidates of
one kind gives the frontier of that technique alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import ConversionError
from evburst.models.spiking.convert.calibrate import Choice
from evburst.models.spiking.convert.sensitivity import SensitivityTable


@dataclass(frozen=True)
class Frontier:
    """Pareto-optimal points, from the cheapest to the least sensitive.

    Attributes:
        table: layers and candidates that the frontier was computed from.
        cost: `(points,)` summed synaptic operations per image, increasing.
        sensitivity: `(points,)` summed divergence, decreasing.
        picked: `(points, layers)` index of the candidate of each layer.
    """

    table: SensitivityTable
    cost: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    picked: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cost)

    def point(self, index: int) -> dict[str, Choice]:
        """Return the choice of every layer at one point."""
        return {name: self.table.choices[k] for name, k in zip(self.table.layers, self.picked[index], strict=True)}

    def within_budget(self, cost: float) -> int:
        """Index of the least sensitive point that costs at most `cost`; raises ConversionError if there is none."""
        affordable = np.flatnonzero(self.cost <= cost)
        if not len(affordable):
            raise ConversionError(
                f"budget of {cost:,.0f} synaptic operations: the cheapest choice needs {self.cost[0]:,.0f}; raise the budget"
            )
        return int(affordable[-1])

    def within_tolerance(self, sensitivity: float) -> int:
        """Index of the cheapest point with at most this sensitivity; raises ConversionError if there is none."""
        tolerable = np.flatnonzero(self.sensitivity <= sensitivity)
        if not len(tolerable):
            raise ConversionError(
                f"tolerance of {sensitivity:g}: the least sensitive choice has {self.sensitivity[-1]:g}; raise the tolerance"
            )
        return int(tolerable[0])


def pareto_frontier(table: SensitivityTable, max_nodes: int = 4000) -> Frontier:
    """Compute the frontier of a table; exact unless partial frontiers have more than `max_nodes` points."""
    cost, sensitivity = np.zeros(1), np.zeros(1)
    # Per layer, the index of the previous point and of the candidate that each kept point was made from.
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for layer_cost, layer_sensitivity in zip(table.cost, table.sensitivity, strict=True):
        sums = (cost[:, None] + layer_cost).reshape(-1), (sensitivity[:, None] + layer_sensitivity).reshape(-1)
        kept = _thinned(*sums, _undominated(*sums), max_nodes)
        steps.append((kept // len(layer_cost), kept % len(layer_cost)))
        cost, sensitivity = sums[0][kept], sums[1][kept]
    picked = np.empty((len(cost), len(table.layers)), np.int64)
    points = np.arange(len(cost))
    for layer in range(len(table.layers) - 1, -1, -1):
        previous, candidate = steps[layer]
        picked[:, layer] = candidate[points]
        points = previous[points]
    return Frontier(table, cost, sensitivity, picked)


def _undominated(cost: NDArray[np.float64], sensitivity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the Pareto-optimal points, by increasing cost."""
    order = np.lexsort((sensitivity, cost))
    lowest = np.minimum.accumulate(sensitivity[order])
    better = np.concatenate([[True], sensitivity[order][1:] < lowest[:-1]])
    kept: NDArray[np.int64] = order[better]
    return kept


def _thinned(
    cost: NDArray[np.float64], sensitivity: NDArray[np.float64], kept: NDArray[np.int64], max_nodes: int
) -> NDArray[np.int64]:
    """Keep about `max_nodes` points: the least sensitive of each interval of log cost, and both ends."""
    if len(kept) <= max_nodes:
        return kept
    log_cost = np.log(np.maximum(cost[kept], 1.0))
    interval = ((log_cost - log_cost[0]) / max(log_cost[-1] - log_cost[0], 1e-12) * (max_nodes - 1)).astype(np.int64)
    last = np.append(np.flatnonzero(np.diff(interval)), len(kept) - 1)
    thinned: NDArray[np.int64] = kept[np.union1d(last, [0])]
    return thinned
