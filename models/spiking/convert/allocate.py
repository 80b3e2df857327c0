"""Choosing for all layers at once: the Pareto frontier of summed cost and summed sensitivity (docs/method.md#allocation).

Layer by layer, every partial choice is extended by every candidate, and of the sums only those stay that no other one
beats in both. Were all kept this would be exact; on networks of many layers the sums are thinned out to `max_nodes`, evenly
in the logarithm of cost, the least sensitive of each interval. Burst limits and threshold factors are candidates of one
search, so that one frontier holds both; a table of one kind of candidate alone gives that technique's own frontier.
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
    """Points that nothing beats, from the cheapest to the least sensitive.

    Attributes:
        table: what it was computed from: the layers and their candidates.
        cost: `(points,)` summed synaptic operations per image, rising.
        sensitivity: `(points,)` summed divergence, falling.
        picked: `(points, layers)` index of each layer's candidate.
    """

    table: SensitivityTable
    cost: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    picked: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cost)

    def point(self, index: int) -> dict[str, Choice]:
        """Every layer's choice at one point."""
        return {name: self.table.choices[k] for name, k in zip(self.table.layers, self.picked[index], strict=True)}

    def within_budget(self, cost: float) -> int:
        """The least sensitive point that costs at most so much; raises ConversionError if there is none."""
        affordable = np.flatnonzero(self.cost <= cost)
        if not len(affordable):
            raise ConversionError(f"budget of {cost:,.0f} synaptic operations: the cheapest choice needs {self.cost[0]:,.0f}")
        return int(affordable[-1])

    def within_tolerance(self, sensitivity: float) -> int:
        """The cheapest point that is at most so sensitive; the least sensitive one if there is none."""
        sound = np.flatnonzero(self.sensitivity <= sensitivity)
        return int(sound[0]) if len(sound) else len(self) - 1


def pareto_frontier(table: SensitivityTable, max_nodes: int = 4000) -> Frontier:
    """The frontier of a table; exact as long as it has no more than `max_nodes` points on the way."""
    cost, sensitivity = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # (point before, candidate) of every point, layer by layer
    for layer_cost, layer_sensitivity in zip(table.cost, table.sensitivity, strict=True):
        sums = (cost[:, None] + layer_cost).reshape(-1), (sensitivity[:, None] + layer_sensitivity).reshape(-1)
        kept = _thinned(*sums, _undominated(*sums), max_nodes)
        steps.append((kept // len(layer_cost), kept % len(layer_cost)))
        cost, sensitivity = sums[0][kept], sums[1][kept]
    picked = np.empty((len(cost), len(table.layers)), np.int64)
    at = np.arange(len(cost))
    for layer in range(len(table.layers) - 1, -1, -1):
        before, candidate = steps[layer]
        picked[:, layer] = candidate[at]
        at = before[at]
    return Frontier(table, cost, sensitivity, picked)


def _undominated(cost: NDArray[np.float64], sensitivity: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the points that no other one beats, by rising cost."""
    order = np.lexsort((sensitivity, cost))
    lowest = np.minimum.accumulate(sensitivity[order])
    better = np.concatenate([[True], sensitivity[order][1:] < lowest[:-1]])
    kept: NDArray[np.int64] = order[better]
    return kept


def _thinned(
    cost: NDArray[np.float64], sensitivity: NDArray[np.float64], kept: NDArray[np.int64], max_nodes: int
) -> NDArray[np.int64]:
    """At most about `max_nodes` of the kept points: the last, least sensitive one of each interval of cost, and both ends."""
    if len(kept) <= max_nodes:
        return kept
    scale = np.log(np.maximum(cost[kept], 1.0))
    interval = ((scale - scale[0]) / max(scale[-1] - scale[0], 1e-12) * (max_nodes - 1)).astype(np.int64)
    last = np.append(np.flatnonzero(np.diff(interval)), len(kept) - 1)
    thinned: NDArray[np.int64] = kept[np.union1d(last, [0])]
    return thinned
