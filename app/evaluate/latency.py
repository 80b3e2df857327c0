"""Timing: latency of single windows, throughput in batches, and the AP of results that arrive with this latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.evaluate.predict import EvaluatedNetwork, PartResult, Predictor
from evburst.app.inference import BATCH
from evburst.app.lead import LeadPredictor
from evburst.data.boxes import BBOX_DTYPE, Detections
from evburst.data.datasets import Part, evenly_spread, spread_with_events
from evburst.data.datasets.recorded import RecordedWindows
from evburst.eval.coco import coco_result
from evburst.eval.protocol import NO_BOXES, Protocol, RecordingBoxes, match
from evburst.eval.scoring import ap_figures
from evburst.eval.streaming import NOTHING_YET, newest_results, processed_windows

CLOCK = {
    "latency_ms": "one window at a time, idle ones left out, warmed up; from its events being at hand to its boxes: binning, "
    "network, decoding and NMS",
    "windows_per_s": f"batches of {BATCH} windows that are binned already, the faster of two, not counted where that takes "
    "additional time: network, decoding and NMS",
    "streaming": "windows follow each other without a gap, or every stride_ms; the result in force at a label's time is the "
    "newest one finished by then, each taking the median latency, with its boxes lead_ms ahead of its window; offline is the "
    "same labels with the windows that end at them",
}
_HISTORY_US = 500_000
"""Boxes ahead are predicted from the windows of this time."""

_BATCHES = 2


@dataclass(frozen=True)
class Timing:
    """Latencies of one network, ms per window, and its throughput in batches, windows per second."""

    latency_ms: list[float]
    windows_per_s: float

    def percentiles(self) -> dict[str, float]:
        """Return p50, p90 and p99 of the latency, ms."""
        return {f"p{q}": round(float(np.percentile(self.latency_ms, q)), 3) for q in (50, 90, 99)}

    def figures(self, streaming: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the figures for the results, with the latency-aware AP if there is one."""
        return {
            "windows_per_s": self.windows_per_s,
            "streaming": streaming,
            "latencies_ms": [round(ms, 3) for ms in self.latency_ms],
        }


def time_networks(predictor: Predictor, windows: int, progress: Callable[[int], object]) -> list[Timing]:
    """Time all networks on up to `windows` windows that are not idle, in turn on each, so that load affects all equally."""
    dataset, grid = predictor.dataset, predictor.networks[0].timed.new_grid()
    has_memory = predictor.networks[0].timed.network.has_memory  # then no window is idle
    chosen = evenly_spread(len(dataset), windows) if has_memory else spread_with_events(dataset, windows)
    latencies: list[list[float]] = [[] for _ in predictor.networks]
    for network in predictor.networks:
        for size in (1,) if has_memory else (1, BATCH):  # with memory, windows run one after the other
            network.timed.warm_up(dataset[chosen[0]].window, size)
    for i in chosen:
        window = dataset[i].window
        for network, latencies_ms in zip(predictor.networks, latencies, strict=True):
            inference = network.timed
            started = time.perf_counter()
            inference.run([inference.bin(window, grid)])
            latencies_ms.append(1000 * (time.perf_counter() - started))
        progress(1)
    first = predictor.networks[0].timed
    batch = [first.bin(dataset[chosen[k * len(chosen) // BATCH]].window, first.new_grid()) for k in range(BATCH)]
    seconds: list[list[float]] = [[] for _ in predictor.networks]
    for _ in range(_BATCHES):
        for network, spent in zip(predictor.networks, seconds, strict=True):
            started = time.perf_counter()
            network.timed.run(batch)
            spent.append(time.perf_counter() - started)
    return [Timing(latencies_ms, round(BATCH / min(spent), 2)) for latencies_ms, spent in zip(latencies, seconds, strict=True)]


def streaming_figures(
    predictor: Predictor,
    network: EvaluatedNetwork,
    parts: Sequence[tuple[Part, PartResult]],
    protocol: Protocol,
    latency_ms: float,
    windows: int,
    lead_ms: float,
    stride_ms: float | None,
) -> dict[str, Any] | None:
    """Return the AP of the newest results at each labelled time, and the AP of windows that end at that time.

    Up to `windows` labelled times are used, spread evenly, from recordings that start at least two windows before their last
    label. Returns None if there is none. See EvaluateConfig for `lead_ms` and `stride_ms`.
    """
    dataset = predictor.dataset
    if not isinstance(dataset, RecordedWindows):
        return None
    chosen = set(evenly_spread(len(dataset), windows))
    offline, streaming, ages_ms = [], [], []
    lead_us, latency_us = round(1000 * lead_ms), round(1000 * latency_ms)
    step_us = None if stride_ms is None else round(1000 * stride_ms)
    for part, result in parts:
        items = np.array([i for i in part.items if i in chosen], np.int64)
        start_us, times_us, window_us = result.boxes.start_us, result.boxes.times_us, predictor.voxel.window_us
        if len(items) and start_us is not None and times_us is not None and times_us[-1] >= start_us + 2 * window_us:
            times = times_us[items - part.items.start]
            boxes = _at(result.boxes, times)
            processed, finished = processed_windows(int(times[-1]), start_us, window_us, latency_us, step_us)
            ends = newest_results(times, processed, finished)
            ahead = LeadPredictor(lead_us, dataset.spec.sensor_size, window_us, step_us) if lead_us else None
            history_us = int(times[-1] - start_us) if network.timed.network.has_memory else _HISTORY_US if ahead else 0
            found = _boxes_at(network, dataset, int(items[0]), _needed(ends, processed, history_us), ahead)
            offline.append(boxes)
            streaming.append(replace(boxes, predictions=_delayed(found, times, ends)))
            ages_ms += ((times - ends)[ends != NOTHING_YET] / 1000).tolist()
    spec = dataset.spec
    figures: dict[str, Any] = {"latency_ms": latency_ms, "lead_ms": lead_ms, "stride_ms": stride_ms}
    figures["mean_age_ms"] = round(float(np.mean(ages_ms)), 2) if ages_ms else None
    for name, recordings in (("streaming", streaming), ("offline", offline)):
        frames, _ = match(recordings, protocol, spec.sensor_size)
        if not any(len(frame.labels) for frame in frames):
            return None
        ap = ap_figures(coco_result(frames, spec.classes))
        figures |= {"frames": ap["frames"], f"{name}_ap": ap["ap"], f"{name}_ap50": ap["ap50"]}
    return figures


def _needed(ends: NDArray[np.int64], processed: NDArray[np.int64], history_us: int) -> NDArray[np.int64]:
    """Return which processed windows `(n,)` end at most `history_us` before one of `ends`, itself included; in order."""
    known = np.unique(ends[ends != NOTHING_YET])
    if not len(known):
        return known
    following = known[np.minimum(np.searchsorted(known, processed), len(known) - 1)]
    return processed[(following >= processed) & (following - processed <= history_us)]


def _boxes_at(
    network: EvaluatedNetwork, dataset: RecordedWindows, item: int, ends: NDArray[np.int64], ahead: LeadPredictor | None
) -> dict[int, Detections]:
    """Return the boxes of the windows of an item's recording that end at `ends`, by their end; predicted by `ahead`, if any."""
    found = {}
    inference = network.timed
    inference.begin()
    for first in range(0, len(ends), BATCH):
        windows = [dataset.window_before(item, int(end)).window for end in ends[first : first + BATCH]]
        for result in inference.run([inference.bin(window, inference.new_grid()) for window in windows]):
            found[result.t1_us] = result.detections if ahead is None else ahead.update(result).detections
    return found


def _delayed(found: dict[int, Detections], times: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the boxes found at `ends`, with `times` as their time."""
    pairs = zip(times.tolist(), ends.tolist(), strict=True)
    rows = [replace(found[end], t_us=time_us).to_prophesee() for time_us, end in pairs if end != NOTHING_YET]
    return np.concatenate([NO_BOXES, *rows]).astype(BBOX_DTYPE)


def _at(boxes: RecordingBoxes, times: NDArray[np.int64]) -> RecordingBoxes:
    """Return the boxes at some of the labelled times."""
    labels, predictions = (rows[np.isin(rows["t"], times)] for rows in (boxes.labels, boxes.predictions))
    return RecordingBoxes(labels, predictions, times, boxes.start_us)
