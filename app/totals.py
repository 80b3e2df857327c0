"""Totals of a run through a recording, over its windows, and figures that every summary states."""

from __future__ import annotations

import os
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def peak_memory_mb() -> float:
    """Return the peak memory of this process, MB; 0 if the system does not report it.

    On Linux, ru_maxrss includes the memory of the parent process at the start, so VmHWM is read instead.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1.024 / 1000
    if os.name != "posix":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def traffic_line(memory: dict[str, Any]) -> str:
    """Return the energy of a run with memory traffic, from `traffic_figures`, as a line of text."""
    qnn = memory["alternatives"].get("qnn")
    share = f", {100 * memory['total_pj'] / qnn['total_pj']:.0f} % of the same network quantised" if qnn else ""
    spent = f"{memory['total_pj'] / 1e6:,.0f} uJ with memory traffic (a model)"
    return f"traffic   {spent}: {100 * memory['share_of_ann']:.0f} % of the dense ANN's{share}"
