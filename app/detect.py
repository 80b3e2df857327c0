"""Detection in a recording: runs its windows through the network, writes the results to a folder and summarises the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evburst.app.config import to_dict
from evburst.app.console import sample_note, show_progress, signals_held, warn_of_repairs
from evburst.app.inference import BATCH, Inference, WindowResult
from evburst.app.lead import MOST_LEAD_MS, LeadPredictor
from evburst.app.outputs.folder import RunFolder, free_folder
from evburst.app.outputs.sinks import SINKS, RunInfo, Sink, check_sinks, open_sink
from evburst.app.provenance import provenance
from evburst.app.runs import (
    RunConfig,
    cut_windows,
    load_weights,
    open_inference,
    run_windows,
    start_time,
    step_of,
    traffic_figures,
    warn_of_median_length,
)
from evburst.app.totals import RecordingTotals, peak_memory_mb, percentile, traffic_line
from evburst.app.tracking import TrackConfig, Tracker
from evburst.data.encoding import columns
from evburst.data.errors import ConfigError, require_all, require_within
from evburst.data.events import EventStream, EventWindow, SensorSize, no_usable_events
from evburst.data.files import readable_note
from evburst.data.filters import FilteredStream
from evburst.data.readers import open_events
from evburst.data.slicing import first_sound_us, first_us
from evburst.data.text import number_of, without_controls
from evburst.eval.energy import energy_figures
from evburst.models.bundle import Bundle
from evburst.models.detector import resolve_timesteps
from evburst.models.detectors.postprocess import PostConfig

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectConfig(RunConfig):
    """Settings of detection in a recording.

    Attributes:
        adaptive: skip the remaining timesteps of a window once its boxes agree this well, 0 to 1; on the engine reference,
            which is many times slower. None: never.
        idle_events: windows with at most this many events are idle: they are not run through the network, have no boxes, and
            add to neither network's energy.
        classes: names of the classes to detect; empty: all.
        track: give each object a number that it keeps in all windows, and hold the boxes of objects that stand still.
        tracking: settings of the tracks.
        memory: give a YOLO detector a memory: where nothing happens, what it saw last is held, so that objects that stop are
            still found.
        lead_ms: predict boxes for this long after the end of their window; suits the time that passes until they are used.
        sinks: names of the outputs to write besides summary.json: jsonl, bbox, csv, coco, video, crops; empty: none.
        slow: factor by which the video is slower than the recording.
        fps: windows per second of the video, instead of `slow`.
        overwrite: whether to replace files in the output folder that were not written by evburst.
        post: thresholds of the boxes.
    """

    weights: str = "street"
    classes: tuple[str, ...] = ()
    track: bool = False
    tracking: TrackConfig = field(default_factory=TrackConfig)
    memory: bool = False
    lead_ms: float = 0.0
    sinks: tuple[str, ...] = ("jsonl", "bbox", "video")
    slow: float = 1.0
    fps: float | None = None
    overwrite: bool = False
    post: PostConfig = field(default_factory=PostConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sinks(self.sinks)
        require_within(self, slow=(0.01, 1000), fps=(0.1, 1000), lead_ms=(0, MOST_LEAD_MS))
        checks = {
            "slow and fps both set the speed of the video: give one of them": self.slow == 1 or self.fps is None,
            "slow and fps set the speed of the video: add video to the sinks, or leave them out": "video" in self.sinks
            or (self.slow == 1 and self.fps is None),
            "tracking sets how boxes are tracked: add track, or leave it out": self.track or self.tracking == TrackConfig(),
            "crops are what is in the boxes, from which lead_ms moves them: leave one of them out": not self.lead_ms
            or "crops" not in self.sinks,
        }
        require_all(checks, self)

    @property
    def remembers(self) -> bool:
        """Whether the network is given a memory."""
        return self.memory

    @property
    def decoding(self) -> PostConfig:
        """Thresholds for decoding; with tracks, the score is lower, because the tracker also uses boxes with low scores."""
        return replace(self.post, score=min(self.post.score, self.tracking.low_score)) if self.track else self.post


def result_filter(inference: Inference, config: DetectConfig) -> Callable[[WindowResult], WindowResult]:
    """Return a function that selects classes in a result, adds tracks and predicts boxes ahead, as the settings specify.

    It has to be called with every result of `inference`, in order.

    Raises:
        ConfigError: a class is unknown.
        MissingPackageError: the settings require tracks, and the package for them is not installed.
    """
    numbers = class_numbers(config.classes, inference.network.classes)
    window_us, size = inference.voxel.window_us, inference.sensor_size
    step_us = step_of(config.stride_ms, window_us)
    tracker = Tracker(config.tracking, size, config.post.score, step_us) if config.track else None
    lead = LeadPredictor(round(1000 * config.lead_ms), size, window_us, step_us) if config.lead_ms else None

    def filtered(result: WindowResult) -> WindowResult:
        if numbers:
            boxes = result.detections
            result = replace(result, detections=boxes.take(np.isin(boxes.labels, numbers)))
        result = result if tracker is None else tracker.update(result)
        return result if lead is None else lead.update(result)

    return filtered


def class_numbers(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Return the indices of classes among those of a network; raise ConfigError if it does not have one of them."""
    for name in names:
        if name not in known:
            raise ConfigError(f"class {name!r} is unknown to these weights (known: {', '.join(known)})")
    return [known.index(name) for name in names]


def network_name(bundle: Bundle, config: DetectConfig) -> str:
    """Return the name of the network for the captions of pictures."""
    name = "ANN" if config.ann else f"SNN T={resolve_timesteps(bundle, False, config.timesteps)}"
    return f"{name}, boxes {config.lead_ms:g} ms ahead" if config.lead_ms else name


def default_folder(events: Path) -> Path:
    """Return the folder for the results of a recording: runs/detect/NAME, or NAME-2 ... if that is another's."""
    return free_folder(Path("runs") / "detect" / events.stem, events)


class DetectInterrupted(KeyboardInterrupt):
    """Ctrl-C in detection, whose results up to there are written.

    Args:
        summary: the summary of a recording, or those of several.
        text: the same for the terminal.
        folder: folder of the results.
    """

    def __init__(self, summary: dict[str, Any] | list[dict[str, Any]], text: str, folder: Path) -> None:
        super().__init__()
        self.summary, self.text = summary, text
        self.add_note(readable_note(folder))


def detect_file(
    events: Path | str,
    out: Path | str | None = None,
    config: DetectConfig | None = None,
    bundle: Bundle | None = None,
) -> dict[str, Any]:
    """Detect objects in a recording, write the results to a folder, and return the summary.

    Args:
        events: the recording.
        out: output folder; None for runs/detect/NAME, or NAME-2 ... if that folder contains the results of another recording.
        config: see DetectConfig; None for the defaults.
        bundle: the weights, if they are already loaded.

    Raises:
        EvburstError: the recording, the weights or the folder cannot be used; output written before the error is readable.
        DetectInterrupted: Ctrl-C; the folder holds the results up to there.
    """
    started = time.perf_counter()
    path, c = Path(events), config or DetectConfig()
    size = SensorSize.of_setting(c.sensor_size)
    recording = open_events(path, size, c.format, options=c.reading)
    stream, start_us = FilteredStream(recording, c.filters), start_time(recording, c.start_s)
    bundle = bundle or load_weights(c)
    inference = open_inference(bundle, c, stream.sensor_size, stream.faults)
    windows = cut_windows(stream, inference.voxel.window_us, c, start_us)
    first = next(windows, None)
    if first is None:
        raise no_usable_events(path, stream.faults, c.start_s)
    filter_result = result_filter(inference, c)
    inference.warm_up(first, c.batch or BATCH)
    name = network_name(bundle, c)
    step_us = step_of(c.stride_ms, inference.voxel.window_us) if c.window_events is None else None
    clock_us = _began_us(recording, c, start_us, first)
    info = RunInfo(
        *(bundle.head.classes, stream.sensor_size, step_us, first.t0_us, name, c.fps, c.slow, c.track, c.lead_ms, clock_us)
    )
    folder = default_folder(path) if out is None else Path(out)
    run = RecordingTotals(time.perf_counter(), info, inference.dense_macs)
    possible = [entry.file for entry in SINKS.values()]
    with RunFolder(folder, path, [SINKS[name].file for name in c.sinks], possible, c.overwrite) as run_folder:
        status = "interrupted"
        with suppress(KeyboardInterrupt):
            with ExitStack() as stack:
                sinks = [_open_sink(stack, name, folder, info) for name in c.sinks]
                bar = stack.enter_context(tqdm(desc=without_controls(path.name), unit="win", disable=not show_progress()))
                passed = run.passing(chain([first], windows))
                results = stack.enter_context(closing(run_windows(inference, stream, passed, c, str(path))))
                for result in map(filter_result, results):
                    with signals_held():  # so that all outputs of a run that is interrupted have the same windows
                        run.add(result)
                        for sink in sinks:
                            sink.write(result)
                    bar.update()
            status = "complete"
        run.finish()
        totals = _summary(stream, bundle, inference, run, c, run.started - started)
        summary = run_folder.write_summary({"status": status, **totals})
    warn_of_repairs(path, stream.faults)
    if run.durations:
        warn_of_median_length(path, run.durations, bundle.voxel.window_ms)
    if status == "interrupted":
        raise DetectInterrupted(summary, human_summary(summary), folder)
    return summary


def _open_sink(stack: ExitStack, name: str, folder: Path, info: RunInfo) -> Sink:
    """Open a sink that `stack` closes even if the run fails."""
    sink = open_sink(name, folder, info)
    stack.callback(sink.close)
    return sink


def _began_us(recording: EventStream, config: DetectConfig, start_us: int | None, first: EventWindow) -> int | None:
    """Return the time of the recording's first event, which is read again only if filters may have removed it; None: a pipe."""
    if not recording.finite:
        return None
    if start_us is not None:
        return start_us - round(1e6 * config.start_s)
    return first_us(recording) if config.filters.any_on or not len(first) else first_sound_us(columns(first)[0])


def _summary(
    stream: FilteredStream,
    bundle: Bundle,
    inference: Inference,
    run: RecordingTotals,
    config: DetectConfig,
    startup_s: float,
) -> dict[str, Any]:
    recorded_s = run.recorded_us * 1e-6
    energy = run.energy.report()
    return {
        "network": "ann" if config.ann else "snn",
        "weights": config.weights,
        "sensor_size": list(stream.sensor_size),
        "downsample": inference.downsample,
        **_lengths(run, inference, config),
        "windows": run.windows,
        "idle_windows": energy.idle_windows,
        "events": run.events,
        "detections": sum(run.per_class.values()),
        "per_class": dict(run.per_class),
        **({"tracks": len(run.tracks), "held": run.held} if config.track else {}),
        **({"lead_ms": config.lead_ms} if config.lead_ms else {}),
        "startup_s": round(startup_s, 3),
        "wall_s": round(run.wall_s, 3),
        "recorded_s": round(recorded_s, 3),
        "real_time_factor": round(recorded_s / run.wall_s, 3),
        "latency_ms": {f"p{q}": percentile(run.latencies, q) for q in (50, 99)},
        "energy": energy_figures(energy, config.energy_table),
        "memory": traffic_figures(run.energy, inference, config.energy_table),
        "timesteps": None if config.ann else resolve_timesteps(bundle, False, config.timesteps),
        "timesteps_mean": None if energy.timesteps is None else round(energy.timesteps, 3),
        "engine": None if config.ann else getattr(inference.network, "engine", None),
        "spikes_per_neuron": None if energy.spikes_per_neuron is None else round(energy.spikes_per_neuron, 4),
        "faults": stream.faults.found(),
        "filtered": vars(stream.removed),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "written": [SINKS[name].file for name in config.sinks],
        "config": to_dict(config),
        "weights_record": bundle.record,
        "provenance": provenance(),
    }


def _lengths(run: RecordingTotals, inference: Inference, config: DetectConfig) -> dict[str, Any]:
    """Return the length of the windows, or percentiles of their lengths if they are cut by number of events."""
    if run.durations is None:
        stride = {} if config.stride_ms is None else {"stride_ms": config.stride_ms}
        return {"window_ms": inference.voxel.window_us / 1000, **stride}
    spread = {f"p{q}": percentile(run.durations, q) for q in (1, 50, 99)}
    return {"window_events": config.window_events, "window_ms": spread}


def human_summary(summary: dict[str, Any]) -> str:
    """Return the summary as a few lines of text."""
    energy, latency = summary["energy"], summary["latency_ms"]
    idle = f" ({summary['idle_windows']} idle)" if summary["idle_windows"] else ""
    spread = summary["window_ms"]
    if isinstance(spread, dict):
        lengths = f"1 % within {spread['p1']} ms, half within {spread['p50']} ms, 99 % within {spread['p99']} ms"
        length = f"up to {number_of(summary['window_events'], 'event')} ({lengths})"
    else:
        length = f"{spread:g} ms" + (f", one every {summary['stride_ms']:g} ms" if "stride_ms" in summary else "")
    boxes = ", ".join(f"{count} {name}" for name, count in summary["per_class"].items()) or "none"
    events = number_of(summary["events"], "event") + (" (each once per window it lies in)" if "stride_ms" in summary else "")
    windows = number_of(summary["windows"], "window")
    lines = [
        f"{summary['events_file']}: {events}, {windows} of {length}{idle}",
        f"boxes     {summary['detections']} ({boxes})",
    ]
    if (block := summary["downsample"]) > 1:
        width, height = summary["sensor_size"]
        lines.insert(1, f"sensor    {width}x{height} px, in blocks of {block}x{block} (--downsample 1 for single pixels)")
    if "lead_ms" in summary:
        lines.append(f"ahead     boxes are predicted for {summary['lead_ms']:g} ms after the end of their window")
    if "tracks" in summary:
        tracks, held = number_of(summary["tracks"], "object"), number_of(summary["held"], "box", "boxes")
        lines.append(f"tracks    {tracks}; {held} of objects that stand still")
    speed = f"speed     {summary['real_time_factor']:.2f} x real time"
    lines.append(speed + (f"; latency p50 {latency['p50']} ms, p99 {latency['p99']} ms" if latency["p50"] is not None else ""))
    if summary["network"] == "ann":
        lines.append(f"energy    {energy['ann_pj'] / 1e6:,.0f} uJ of arithmetic per window (ANN, {energy['table']})")
    elif energy["snn_pj"] is not None:
        lines.append(
            f"energy    {energy['snn_pj'] / 1e6:,.1f} uJ of arithmetic per window{sample_note(energy)}: "
            f"{100 * energy['of_ann']:.1f} % of the dense ANN's {energy['ann_pj'] / 1e6:,.0f} uJ"
            + (f", {100 * energy['of_qnn']:.0f} % of the same network quantised" if energy["of_qnn"] is not None else "")
            + f" ({energy['table']})"
        )
        lines.append(traffic_line(summary["memory"]))
        if (beyond := energy["beyond_silence"])["snn_pj"] is not None:
            share = 100 * beyond["of_ann"]
            spent = f"{beyond['snn_pj'] / 1e6:,.1f} uJ per window, {share:.1f} %"
            lines.append(f"changes   {spent}, if neurons sent only what differs from a window without events")
        lines.append(f"spikes    {summary['spikes_per_neuron']:.2f} per neuron and window; T = {summary['timesteps_mean']:g}")
    else:
        lines.append(f"energy    none: {'every window is idle' if summary['windows'] else 'no window was finished'}")
    if any(summary["filtered"].values()):
        removed = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in summary["filtered"].items() if count)
        lines.append(f"filtered  {number_of(sum(summary['filtered'].values()), 'event')} ({removed})")
    lines.append(f"written   {summary['folder']}/: {', '.join([*summary['written'], 'summary.json'])}")
    return "\n".join(lines)
