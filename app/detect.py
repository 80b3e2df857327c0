"""A recording in, boxes and energy out: the pipeline behind detect.py."""

from __future__ import annotations

import json
import resource
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from evburst.app.ahead import BATCH, BinnedWindow, results_ahead
from evburst.app.config import to_dict
from evburst.app.outputs.render import Meters, Renderer
from evburst.app.outputs.sinks import BoxSink, JsonlSink, Sink, VideoSink, WindowResult
from evburst.app.provenance import provenance
from evburst.data.boxes import Detections
from evburst.data.errors import ConfigError, EventFileError, SensorSizeError
from evburst.data.events import EventStream, EventWindow, Faults, SensorSize, first_us
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.readers import open_events
from evburst.data.representations.voxel_grid import VoxelConfig, padded_size, voxel_histogram
from evburst.data.stats import SpikeStats
from evburst.eval.energy import COST_TABLES, EXCLUDED, energy_report
from evburst.models.bundle import DetectorBundle
from evburst.models.detector import Detector
from evburst.models.detectors.postprocess import PostConfig
from numpy.typing import NDArray
from tqdm import tqdm

_OUTSIDE_LIMIT = 0.1


@dataclass(frozen=True)
class DetectConfig:
    """What detect.py can be told.

    Attributes:
        format: of the recording; None recognises it.
        weights: bundled weights by name, or a file.
        window_ms: length of a window; None for what the weights were trained with.
        timesteps: T; None for what the weights were calibrated for.
        ann: run the ordinary network instead of the spiking one.
        device: auto, cpu or cuda.
        engine: auto, or one of models/runtime.
        adaptive: stop a window's timesteps once its boxes agree this much, 0 to 1; None: never.
        carry_state: neurons keep their membrane potentials from window to window.
        batch: windows that go through the network together, each waiting for the last of its batch; 0 chooses for the most
            windows per second.
        video: write annotated.mp4.
        start_s: begin with the window of that many seconds after the first event.
        max_windows: stop after that many.
        sensor_size: WIDTHxHEIGHT, for files that do not say it.
        energy_table: fp32, fp16 or int8 (energies per operation).
        idle_events: windows with no more events than this are idle: they do not go through the network, which costs nothing, and
            have no boxes (with `carry_state`, all go through).
        filters: events to remove before anything else; none by default.
        post: thresholds of the boxes.
    """

    format: str | None = None
    weights: str = "street"
    window_ms: float | None = None
    timesteps: int | None = None
    ann: bool = False
    device: str = "auto"
    engine: str = "auto"
    adaptive: float | None = None
    carry_state: bool = False
    batch: int = 1
    video: bool = True
    start_s: float = 0.0
    max_windows: int | None = None
    sensor_size: str | None = None
    energy_table: str = "fp32"
    idle_events: int = 0
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    post: PostConfig = field(default_factory=PostConfig)

    def __post_init__(self) -> None:
        checks = {
            "window_ms must be 0.1 to 60000": self.window_ms is None or 0.1 <= self.window_ms <= 60_000,
            "timesteps must be 1 to 64": self.timesteps is None or 1 <= self.timesteps <= 64,
            "adaptive must be 0 to 1": self.adaptive is None or 0 <= self.adaptive <= 1,
            "start_s must be 0 to 1e9": 0 <= self.start_s <= 1e9,
            "max_windows must be positive": self.max_windows is None or self.max_windows > 0,
            "batch must be 0 to 256": 0 <= self.batch <= 256,
            "idle_events must not be negative": self.idle_events >= 0,
            "adaptive and carry_state take one window after the other: batch must be 1": self.batch == 1
            or (self.adaptive is None and not self.carry_state),
            "device must be auto, cpu or cuda": self.device in ("auto", "cpu", "cuda"),
            f"energy_table must be one of {', '.join(COST_TABLES)}": self.energy_table in COST_TABLES,
            "post.score must lie in (0, 1]": 0 < self.post.score <= 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise ValueError(message)


def detect_file(events: Path, out: Path, config: DetectConfig) -> dict[str, Any]:
    """Detect in a recording, write the results into `out`, and return the summary.

    Raises:
        EvburstError: the recording or the weights cannot be used; what was written until then is readable.
    """
    started = time.perf_counter()
    size = SensorSize.parse(config.sensor_size) if config.sensor_size else None
    stream = FilteredStream(open_events(events, size, config.format), config.filters)
    start_us = None
    if config.start_s:
        start_us = (first_us(open_events(events, size, config.format)) or 0) + round(1e6 * config.start_s)
    pipeline = WindowPipeline(stream, config)
    windows = stream.windows(pipeline.voxel.window_us, start_us)
    first = next(windows, None)
    if first is None:
        part = f" from {config.start_s:g} s on" if config.start_s else ""
        raise EventFileError(f"{events}: holds no event that can be used{part} ({stream.faults.found()})")
    pipeline.warm_up(first, config.batch or BATCH)
    run = _Run(time.perf_counter())
    with ExitStack() as stack:
        sinks = _open_sinks(stack, out, stream.sensor_size, pipeline, config)
        bar = stack.enter_context(tqdm(desc=events.name, unit="win", disable=not sys.stderr.isatty()))
        results = results_ahead(pipeline, islice(chain([first], windows), config.max_windows), config.batch or BATCH)
        stack.callback(results.close)
        for result in results:
            run.add(result, pipeline.classes)
            _check_sensor(events, stream, run.events)
            for sink in sinks:
                sink.write(result)
            bar.update()
    run.finish()
    summary = _summary(events, stream, pipeline, run, config, run.started - started)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    _warn(events, stream)
    return summary


class Sensor(Protocol):
    """What a WindowPipeline needs to know of where its windows come from: an EventStream's, or a live source's."""

    sensor_size: SensorSize
    faults: Faults


class WindowPipeline:
    """Windows of one stream, one after the other: bin, run the network, decode, and account for the energy.

    Args:
        stream: where they come from.
        config: see DetectConfig.
    """

    def __init__(self, stream: Sensor, config: DetectConfig) -> None:
        bundle = DetectorBundle.load(config.weights)
        self.voxel: VoxelConfig = bundle.voxel
        if config.window_ms is not None:
            self.voxel = replace(bundle.voxel, window_ms=config.window_ms)
        self.classes, self.record = bundle.head.classes, bundle.record
        self.detector = Detector(
            bundle,
            config.post,
            config.ann,
            config.timesteps,
            pick_device(config.device),
            config.engine,
            config.adaptive,
            config.carry_state,
        )
        self.timesteps = None if config.ann else config.timesteps or bundle.parameters.timesteps
        self._idle_events = -1 if config.carry_state else config.idle_events
        self._stream, self._table = stream, COST_TABLES[config.energy_table]
        width, height = padded_size(stream.sensor_size, bundle.stride)
        self._grid: NDArray[np.uint8] = np.zeros((self.voxel.channels, height, width), np.uint8)
        self.ann_pj = self.detector.dense_macs(height, width) * self._table.mac_pj
        self._network = "ANN" if config.ann else f"SNN T={self.timesteps}"

    def warm_up(self, window: EventWindow, batch: int = 1) -> None:
        """Compile the kernels for this stream's words and let the network plan its memory; nothing is counted."""
        for _ in range(2):
            voxel_histogram(window, self.voxel, self._stream.sensor_size, self._grid)
            self.detector.detect(np.stack([self._grid] * batch), self._stream.sensor_size, [0] * batch)

    def bin(self, window: EventWindow, grid: NDArray[np.uint8]) -> int:
        """Count the window's events into a grid from `new_grid`; returns how many lie on the sensor."""
        binned = self.bin_apart(window, grid)
        self._stream.faults.outside_sensor += binned.outside
        return binned.events

    def bin_apart(self, window: EventWindow, grid: NDArray[np.uint8]) -> BinnedWindow:
        """The same, by a thread that bins ahead: events outside the sensor are not yet counted as a fault."""
        started = time.perf_counter()
        events, outside = voxel_histogram(window, self.voxel, self._stream.sensor_size, grid)
        return BinnedWindow(window.t1_us, grid, events, outside, time.perf_counter() - started)

    def new_grid(self) -> NDArray[np.uint8]:
        """An empty grid of this stream: `(2 * bins, H, W)` uint8, padded."""
        return np.zeros_like(self._grid)

    def infer(self, grid: NDArray[np.uint8], events: int, t1_us: int, started: float) -> WindowResult:
        """Boxes at t1_us of a grid with so many events; the latency is counted from `started` (time.perf_counter)."""
        return next(self.infer_batch([BinnedWindow(t1_us, grid, events, 0, time.perf_counter() - started)], 1))

    def infer_batch(self, batch: list[BinnedWindow], size: int) -> Iterator[WindowResult]:
        """Results of windows that go through the network together, filled up to `size` with empty ones.

        (For every size of a batch an engine has plans and memory of its own.) The latency of each is that of its own
        binning and of the whole batch.
        """
        started = time.perf_counter()
        busy = [i for i, binned in enumerate(batch) if binned.events > self._idle_events]
        answers = dict(zip(busy, self._detect([batch[i] for i in busy], size), strict=True)) if busy else {}
        seconds = time.perf_counter() - started
        for i, binned in enumerate(batch):
            self._stream.faults.outside_sensor += binned.outside
            yield self._result(binned, answers.get(i), binned.seconds + seconds)

    def _detect(self, batch: list[BinnedWindow], size: int) -> list[tuple[Detections, SpikeStats | None]]:
        grids = batch[0].grid[None] if size == 1 else np.zeros((size, *self._grid.shape), np.uint8)
        if size > 1:
            grids[: len(batch)] = [binned.grid for binned in batch]
        times = [binned.t1_us for binned in batch] + [0] * (size - len(batch))
        found, stats = self.detector.detect(grids, self._stream.sensor_size, times)
        own = [stats.of_image(i) if stats is not None and size > 1 else stats for i in range(len(batch))]
        return list(zip(found, own, strict=False))

    def _result(
        self, binned: BinnedWindow, answer: tuple[Detections, SpikeStats | None] | None, seconds: float
    ) -> WindowResult:
        """Of what the network answered; None: it was idle."""
        found, stats = answer or (Detections.empty(binned.t1_us), None)
        energy_pj = self.ann_pj if answer else 0.0
        spikes, per_neuron, used = (None, None, None) if self.timesteps is None else (0.0, 0.0, 0)
        if stats is not None:
            report = energy_report(stats, self._table)
            energy_pj, per_neuron, used = report.snn_pj, report.spikes_per_neuron, report.timesteps
            spikes = float(sum(layer.spikes[0] for layer in stats.layers if layer.kind == "neuron"))
        rate = binned.events / (self.voxel.window_us * 1e-6)
        meters = Meters(self._network, binned.t1_us, rate, 1000 * seconds, energy_pj * 1e-6, self.ann_pj * 1e-6)
        return WindowResult(binned.grid, found, binned.events, spikes, per_neuron, energy_pj, meters, used)


class _Run:
    """Running totals of one run; latencies and energies are 8 bytes per window."""

    def __init__(self, started: float) -> None:
        self.started, self.wall_s = started, 0.0
        self.events = 0
        self.idle = 0
        self.per_class: Counter[str] = Counter()
        self.latencies, self.energies, self.rates, self.timesteps = array("d"), array("d"), array("d"), array("d")

    def add(self, result: WindowResult, classes: Sequence[str]) -> None:
        self.events += result.events
        self.per_class.update(classes[label] for label in result.detections.labels)
        self.latencies.append(result.meters.latency_ms)
        self.energies.append(result.energy_pj)
        if result.spikes_per_neuron is not None:
            self.rates.append(result.spikes_per_neuron)
            self.timesteps.append(result.timesteps or 0)
        self.idle += not result.energy_pj

    def finish(self) -> None:
        self.wall_s = time.perf_counter() - self.started


def _summary(
    events: Path, stream: FilteredStream, pipeline: WindowPipeline, run: _Run, config: DetectConfig, startup_s: float
) -> dict[str, Any]:
    recorded_s = len(run.latencies) * pipeline.voxel.window_us * 1e-6
    snn_pj = None if config.ann else float(np.mean(run.energies))
    return {
        "events_file": events.name,
        "network": "ann" if config.ann else "snn",
        "weights": config.weights,
        "sensor_size": list(stream.sensor_size),
        "window_ms": pipeline.voxel.window_us / 1000,
        "windows": len(run.latencies),
        "idle_windows": run.idle,
        "events": run.events,
        "detections": sum(run.per_class.values()),
        "per_class": dict(run.per_class),
        "startup_s": round(startup_s, 3),
        "wall_s": round(run.wall_s, 3),
        "recorded_s": round(recorded_s, 3),
        "real_time_factor": round(recorded_s / run.wall_s, 3),
        "latency_ms": {f"p{q}": round(float(np.percentile(run.latencies, q)), 2) for q in (50, 99)},
        "energy": {
            "snn_pj": snn_pj and round(snn_pj),
            "ann_pj": round(pipeline.ann_pj),
            "ratio": snn_pj and round(snn_pj / pipeline.ann_pj, 4),
            "table": config.energy_table,
            "account": "per spike: a burst of 3 counts 3",
        },
        "timesteps": pipeline.timesteps,
        "timesteps_mean": round(float(np.mean(run.timesteps)), 3) if run.timesteps else None,
        "engine": None if config.ann else pipeline.detector.engine,
        "spikes_per_neuron": round(float(np.mean(run.rates)), 4) if run.rates else None,
        "excluded": list(EXCLUDED),
        "faults": stream.faults.found(),
        "filtered": vars(stream.removed),
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "config": to_dict(config),
        "weights_record": pipeline.record,
        "provenance": provenance(),
    }


def _open_sinks(stack: ExitStack, out: Path, size: SensorSize, pipeline: WindowPipeline, config: DetectConfig) -> list[Sink]:
    """The files of one run; `stack` closes each of them, however the run ends."""
    sinks: list[Sink] = []

    def opened(sink: Sink) -> None:
        stack.callback(sink.close)
        sinks.append(sink)

    try:
        out.mkdir(parents=True, exist_ok=True)
        opened(JsonlSink(out / "detections.jsonl", pipeline.classes))
        opened(BoxSink(out / "bbox.npy"))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
    if config.video:
        opened(VideoSink(out / "annotated.mp4", Renderer(size, pipeline.classes), 1e6 / pipeline.voxel.window_us))
    return sinks


def _check_sensor(path: Path, stream: EventStream, inside: int) -> None:
    """Stop where many of the events cannot be placed: the sensor size must be wrong."""
    outside = stream.faults.outside_sensor
    if outside > _OUTSIDE_LIMIT * (inside + outside):
        raise SensorSizeError(
            f"{path}: {outside} of {inside + outside} events lie outside {stream.sensor_size}: "
            f"pass the sensor's true size with --sensor-size"
        )


def _warn(path: Path, stream: EventStream) -> None:
    found = stream.faults.found()
    if found:
        text = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in found.items())
        print(f"warning: {path}: repaired: {text}", file=sys.stderr)


def pick_device(name: str) -> str:
    """`auto`, `cpu` or `cuda` as a device that is here; raises ConfigError for a GPU that is not."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no CUDA device here; use --device cpu")
    return name


def peak_memory_mb() -> float:
    """Most memory that this process has had, MB.

    Linux counts what the process that started it had into ru_maxrss, so there its own figure is read.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1.024 / 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def human_summary(summary: dict[str, Any], out: Path) -> str:
    """The summary for a person: a few lines."""
    energy, latency = summary["energy"], summary["latency_ms"]
    idle = f" ({summary['idle_windows']} idle)" if summary["idle_windows"] else ""
    boxes = ", ".join(f"{count} {name}" for name, count in summary["per_class"].items()) or "none"
    lines = [
        f"{summary['events_file']}: {summary['events']:,} events, {summary['windows']} windows of {summary['window_ms']:g} ms{idle}",
        f"boxes     {summary['detections']} ({boxes})",
        f"speed     {summary['real_time_factor']:.2f} x real time; latency p50 {latency['p50']} ms, p99 {latency['p99']} ms",
    ]
    if summary["network"] == "snn":
        lines.append(
            f"energy    {energy['snn_pj'] / 1e6:,.0f} uJ per window, {100 * energy['ratio']:.1f} % of the ANN's "
            f"{energy['ann_pj'] / 1e6:,.0f} uJ ({energy['table']}; T = {summary['timesteps_mean']:g}, "
            f"{summary['spikes_per_neuron']:.2f} spikes per neuron)"
        )
    else:
        lines.append(f"energy    {energy['ann_pj'] / 1e6:,.0f} uJ per window (ANN, {energy['table']})")
    if any(summary["filtered"].values()):
        removed = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in summary["filtered"].items() if count)
        lines.append(f"filtered  {sum(summary['filtered'].values()):,} events ({removed})")
    lines.append(
        f"written   {out}/: detections.jsonl, bbox.npy, summary.json"
        + (", annotated.mp4" if summary["config"]["video"] else "")
    )
    return "\n".join(lines)
