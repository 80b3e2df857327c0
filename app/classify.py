"""Classification of recordings: the class of a recording has the highest mean score over its windows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evburst.app.console import sample_note, warn_of_repairs
from evburst.app.inference import WindowResult
from evburst.app.outputs.folder import path_of
from evburst.app.recordings import open_recording
from evburst.app.runs import (
    RunConfig,
    cut_windows,
    load_weights,
    open_inference,
    run_windows,
    start_time,
    traffic_figures,
    warn_of_median_length,
)
from evburst.data.classification import CLASSIFICATION, Classification
from evburst.data.datasets.class_windows import filled_windows
from evburst.data.errors import DataError, EvburstError, SensorSizeError
from evburst.data.events import no_usable_events
from evburst.data.filters import FilteredStream
from evburst.eval.energy import EnergyTotals, energy_figures
from evburst.models.bundle import Bundle

_LOG = logging.getLogger(__name__)

_NAME_WIDTH, _CLASS_WIDTH = 28, 10
"""Least widths of the columns of names and of classes."""


@dataclass(frozen=True)
class ClassifyConfig(RunConfig):
    """Settings of classification.

    Attributes:
        adaptive: skip the remaining timesteps of a window once its certainty exceeds this value, 0 to 1; on the engine
            reference, which is many times slower. None: never.
        count_every: count spikes and operations in one of N windows that are run, beginning with the first (of batches, in one
            of N); other windows have no energy, and the energy of a recording is the mean over the counted windows.
        sensor_size: WIDTHxHEIGHT of the sensor in pixels; None: as stated in the file, or else the size used in training.
        idle_events: windows with at most this many events are idle: they are not run through the network and have no class.
    """

    weights: str = "nmnist"
    count_every: int | None = 1

    @property
    def task(self) -> str:
        """The task that the weights must have."""
        return CLASSIFICATION


def classify_file(path: Path | str, config: ClassifyConfig | None = None, bundle: Bundle | None = None) -> dict[str, Any]:
    """Classify a recording, each window and as a whole, without writing to disk.

    Args:
        path: the recording.
        config: see ClassifyConfig; None for the defaults.
        bundle: the weights, if they are already loaded.

    Returns:
        In JSON types: events_file (its name), events_path, class, score, top5 (class and score of the best five), network,
        weights, windows (t0_us, t1_us, events, class, score, energy_pj, timesteps of each), window_ms or window_events,
        stride_ms, idle_windows, timesteps (mean number used), energy and memory (as reported by `evburst detect`), sensor_size,
        faults. Class and score are None if every window was idle.

    Raises:
        EvburstError: the recording or the weights cannot be used.
    """
    path, c = Path(path), config or ClassifyConfig()
    bundle = bundle or load_weights(c)
    recording = open_recording(path, c, bundle)
    stream, start_us = FilteredStream(recording, c.filters), start_time(recording, c.start_s)
    inference = open_inference(bundle, c, stream.sensor_size, stream.faults)
    windows = filled_windows(cut_windows(stream, inference.voxel.window_us, c, start_us), c.window_events)
    totals, window_rows = EnergyTotals(inference.dense_macs), list[dict[str, Any]]()

    def counted(results: Iterator[WindowResult]) -> Iterator[Classification | None]:
        for result in results:
            totals.merge(result.totals)
            window_rows.append(_window(result, bundle.head.classes))
            yield result.classification

    try:
        whole = Classification.mean(counted(run_windows(inference, stream, windows, c, str(path))))
    except SensorSizeError as error:
        if c.sensor_size or stream.sensor_size != bundle.sensor_size:
            raise
        assumed = f"{stream.sensor_size} is that of the weights {c.weights}, which --weights selects"
        raise SensorSizeError(f"{error}; {assumed}") from None
    if not window_rows:
        raise no_usable_events(path, stream.faults, c.start_s)
    warn_of_repairs(path, stream.faults)
    if c.window_events is not None:
        warn_of_median_length(path, [(row["t1_us"] - row["t0_us"]) / 1000 for row in window_rows], bundle.voxel.window_ms)
    return {
        "events_file": path.name,
        "events_path": path_of(path),
        **_best_classes(whole, bundle.head.classes),
        "network": "ann" if c.ann else "snn",
        "weights": c.weights,
        "timesteps": None if (t := totals.report().timesteps) is None else round(t, 3),
        "window_ms": inference.voxel.window_us / 1000 if c.window_events is None else None,
        "window_events": c.window_events,
        "stride_ms": c.stride_ms,
        "idle_windows": totals.report().idle_windows,
        "energy": energy_figures(totals.report(), c.energy_table),
        "memory": traffic_figures(totals, inference, c.energy_table),
        "windows": window_rows,
        "sensor_size": list(stream.sensor_size),
        "faults": stream.faults.found(),
    }


def _best_classes(whole: Classification | None, classes: tuple[str, ...]) -> dict[str, Any]:
    if whole is None:
        return {"class": None, "score": None, "top5": []}
    top5 = [{"class": classes[k], "score": round(score, 4)} for k, score in whole.top5]
    return {"class": classes[whole.label], "score": round(whole.score, 4), "top5": top5}


def _window(result: WindowResult, classes: tuple[str, ...]) -> dict[str, Any]:
    scores = result.classification
    return {
        "t0_us": result.t0_us,
        "t1_us": result.t1_us,
        "events": result.events,
        "class": None if scores is None else classes[scores.label],
        "score": None if scores is None else round(scores.score, 4),
        "energy_pj": None if result.energy_pj is None else round(result.energy_pj, 1),
        "timesteps": result.timesteps,
    }


def classify_many(recordings: Sequence[Path], config: ClassifyConfig, bundle: Bundle) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield each recording and its summary; a failure is logged and does not stop the others.

    Raises:
        DataError: some of several recordings failed; raised after the last one.
        EvburstError: the only recording failed.
    """
    failed = 0
    for path in recordings:
        try:
            yield path, classify_file(path, config, bundle)
        except EvburstError as error:
            if len(recordings) == 1:
                raise
            failed += 1
            _LOG.error("%s", error)
    if failed:
        raise DataError(f"{failed} of {len(recordings)} recordings failed")


def human_line(
    summary: dict[str, Any], windows: bool = False, name: str | None = None, widths: tuple[int, int] = (0, 0)
) -> str:
    """Return a line of text for a recording, and with `windows` a line for each window.

    Args:
        summary: as `classify_file` returns it.
        windows: whether to add the windows.
        name: what to call the recording; None: its file name.
        widths: lengths of the longest name and of the longest class name in lines that stand below each other.
    """
    ann = summary["network"] == "ann"
    network = ", ".join(filter(None, [_network(ann, summary["timesteps"]), summary["weights"]]))
    lines = [_line(widths, name or summary["events_file"], summary["class"], summary["score"], _spent(summary), network)]
    for window in summary["windows"] if windows else []:
        span = f"  {window['t0_us'] / 1e6:.3f} to {window['t1_us'] / 1e6:.3f} s"
        energy, used = "nothing computed", ""
        if window["class"] is not None:
            energy = "not counted" if window["energy_pj"] is None else f"{window['energy_pj'] / 1e6:.2f} uJ"
            used = _network(ann, window["timesteps"])
        lines.append(_line(widths, span, window["class"], window["score"], energy, used))
    return "\n".join(lines)


def _network(ann: bool, timesteps: float | None) -> str:
    """Return what ran; "" if nothing did."""
    if ann:
        return "ANN"
    return "" if timesteps is None else f"T {timesteps:g}"


def _spent(summary: dict[str, Any]) -> str:
    energy, memory = summary["energy"], summary["memory"]
    if summary["class"] is None:
        return "no energy: every window is idle"
    pj = energy["ann_pj"] if energy["snn_pj"] is None else energy["snn_pj"]
    share = "" if energy["of_ann"] is None else f" ({100 * energy['of_ann']:.1f} % of the ANN's)"
    line = f"{pj / 1e6:.2f} uJ of arithmetic per window{sample_note(energy)}{share}"
    if memory is None:
        return line
    return f"{line}, {memory['total_pj'] / 1e6:,.1f} uJ with memory traffic ({100 * memory['share_of_ann']:.1f} %)"


def _line(widths: tuple[int, int], name: str, label: str | None, score: float | None, energy: str, network: str) -> str:
    name_width, class_width = max(widths[0], _NAME_WIDTH), max(widths[1], _CLASS_WIDTH)
    answer = f"{'idle':<{class_width + 6}}" if label is None else f"{label:<{class_width}} {score:5.3f}"
    return f"{name:<{name_width}} {answer}  {energy}  {network}".rstrip()
