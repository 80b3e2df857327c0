"""Totals of a live run in constant memory."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from evburst.app.inference import WindowResult
from evburst.app.live.networks import Prepared
from evburst.eval.energy import EnergyTotals

_LOWEST_MS, _STEP, _BINS = 0.01, 1.005, 3600


class LatencyHistogram:
    """Latency histogram with 3600 geometric bins from 0.01 ms, each 0.5 % wider than the last, for quantiles to 0.5 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self.total, self.highest_ms = 0, 0.0

    def add(self, latency_ms: float) -> None:
        """Count a latency in ms."""
        index = int(math.log(max(latency_ms, _LOWEST_MS) / _LOWEST_MS) / math.log(_STEP))
        self._counts[min(index, _BINS - 1)] += 1
        self.total += 1
        self.highest_ms = max(self.highest_ms, latency_ms)

    def quantile_ms(self, share: float) -> float | None:
        """Return the latency that the given share of all values does not exceed; None without values."""
        if not self.total:
            return None
        rank = max(math.ceil(share * self.total), 1)
        index = int(np.searchsorted(np.cumsum(self._counts), rank))
        return min(float(_LOWEST_MS * _STEP ** (index + 0.5)), self.highest_ms)


def _kind(network: Prepared) -> tuple[object, ...]:
    """Return what must be the same for energies to be added."""
    return network.detect.ann, network.detect.weights, network.timesteps


class RunTotals:
    """Totals of a run so far.

    Args:
        network: the network that the run starts with.

    Attributes:
        network: the network that made the last result.
        changes: how often it was one of other weights or timesteps, or the ANN in place of the spiking network or vice versa.
        energy: energy totals since the last of these changes.
        idle_windows: windows that no network ran.
        duration_us: length of all windows.
        lengths_us: all lengths of a window, which a change of weights may change.
    """

    def __init__(self, network: Prepared) -> None:
        self.latency = LatencyHistogram()
        self.windows, self.idle_windows, self.duration_us, self.events = 0, 0, 0, 0
        self.lengths_us: set[int] = set()
        self.network, self.changes, self.energy = network, 0, EnergyTotals(network.inference.dense_macs)
        self.per_class: Counter[str] = Counter()
        self.recent_ms: deque[float] = deque(maxlen=100)

    def add(self, result: WindowResult, network: Prepared) -> None:
        """Count the result of one window and the network that made it."""
        self.windows += 1
        self.idle_windows += result.idle
        self.duration_us += result.t1_us - result.t0_us
        self.lengths_us.add(result.t1_us - result.t0_us)
        self.events += result.events
        self.latency.add(result.latency_ms)
        self.recent_ms.append(result.latency_ms)
        self.per_class.update(network.classes[label] for label in result.detections.labels)
        if _kind(network) != _kind(self.network):
            self.changes += 1
            self.energy = EnergyTotals(network.inference.dense_macs)
        self.network = network
        self.energy.merge(result.totals)
