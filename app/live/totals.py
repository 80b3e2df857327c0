"""Totals of a live run in memory that does not grow."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from evburst.app.inference import WindowResult
from evburst.app.live.networks import Prepared
from evburst.eval.energy import EnergyTotals

_LOWEST_MS, _STEP, _BINS = 0.01, 1.005, 3600


class LatencyHistogram:
    """Quantiles of latencies to half a percent: counts in 3600 bins, each 0.5 % wider than the one before, from 0.01 ms."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self.total, self.highest_ms = 0, 0.0

    def add(self, latency_ms: float) -> None:
        """Count one."""
        index = int(math.log(max(latency_ms, _LOWEST_MS) / _LOWEST_MS) / math.log(_STEP))
        self._counts[min(index, _BINS - 1)] += 1
        self.total += 1
        self.highest_ms = max(self.highest_ms, latency_ms)

    def quantile_ms(self, share: float) -> float | None:
        """The value that `share` of all do not exceed; None where there are none."""
        if not self.total:
            return None
        rank = max(math.ceil(share * self.total), 1)
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(float(_LOWEST_MS * _STEP ** (index + 0.5)), self.highest_ms)


class Figures:
    """What a run has done so far.

    Args:
        network: the first that runs.

    Attributes:
        energy: of the network that ran last: another one begins a new account.
    """

    def __init__(self, network: Prepared) -> None:
        self.latency = LatencyHistogram()
        self.windows, self.events = 0, 0
        self._network, self.energy = network, EnergyTotals(network.inference.dense_macs)
        self.per_class: Counter[str] = Counter()
        self.recent_ms: deque[float] = deque(maxlen=100)

    def add(self, result: WindowResult, network: Prepared) -> None:
        """Count one window and the network that saw it."""
        self.windows += 1
        self.events += result.events
        self.latency.add(result.latency_ms)
        self.recent_ms.append(result.latency_ms)
        self.per_class.update(network.classes[label] for label in result.detections.labels)
        if (network.detect.ann, network.detect.weights) != (self._network.detect.ann, self._network.detect.weights):
            self.energy = EnergyTotals(network.inference.dense_macs)
        self._network = network
        result.count_into(self.energy)
