"""Totals of a run through a recording, over its windows."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from evburst.app.inference import WindowResult
from evburst.app.outputs.sinks import RunInfo
from evburst.data.encoding import columns
from evburst.data.events import EventWindow
from evburst.eval.energy import EnergyTotals


class RecordingTotals:
    """Totals of one run, which grow by 8 bytes per window for the latencies.

    Args:
        started: `time.perf_counter` at the beginning.
        info: what is known of the run before its first window.
        dense_macs: multiply-accumulates of the dense ANN for one window.
    """

    def __init__(self, started: float, info: RunInfo, dense_macs: int) -> None:
        self.started, self.wall_s, self._info = started, 0.0, info
        self.windows, self.events, self.recorded_us, self._end_us = 0, 0, 0, info.start_us
        self.durations = array("d") if info.step_us is None else None
        self.per_class: Counter[str] = Counter()
        self.tracks, self.held = set[int](), 0
        self.latencies, self.energy = array("d"), EnergyTotals(dense_macs)
        self._ends: list[EventWindow] = []

    def passing(self, windows: Iterator[EventWindow]) -> Iterator[EventWindow]:
        """Yield the windows, at least one, and keep the first and the last one for `finish`."""
        for window in windows:
            self._ends = [*self._ends[:1], window]
            yield window

    def add(self, result: WindowResult) -> None:
        """Add a window's result; in the order of the windows."""
        self.windows += 1
        self.events += result.events
        if result.t1_us < self._end_us:  # the clock was reset
            self._end_us = result.t0_us
        self.recorded_us += result.t1_us - max(result.t0_us, self._end_us)
        self._end_us = result.t1_us
        if self.durations is not None:
            self.durations.append((result.t1_us - result.t0_us) / 1000)
        self.per_class.update(self._info.classes[label] for label in result.detections.labels)
        if result.detections.track_ids is not None and result.detections.held is not None:
            self.tracks.update(result.detections.track_ids[result.detections.track_ids > 0].tolist())
            self.held += int(result.detections.held.sum())
        self.energy.merge(result.totals)
        if not result.idle:
            self.latencies.append(result.latency_ms)

    def finish(self) -> None:
        """Stop the clock, and reduce the recorded time to that from the first event to the last one.

        A run that was interrupted has read more windows than it has results of.
        """
        self.wall_s = time.perf_counter() - self.started
        if not self.windows:
            return
        first, last = self._ends[0], self._ends[-1]
        if len(first):
            self.recorded_us -= int(columns(first)[0].min()) - first.t0_us
        if len(last) and last.t1_us == self._end_us:
            self.recorded_us -= last.t1_us - 1 - int(columns(last)[0].max())


def percentile(values: Sequence[float], q: int) -> float | None:
    """Return the `q`-th percentile, rounded to two digits; None if there are no values."""
    return round(float(np.percentile(values, q)), 2) if len(values) else None
