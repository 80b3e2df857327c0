"""`evburst live`: open the source, run the pipeline with its viewers, and summarise the run."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from evburst.app.console import sample_note, show_progress
from evburst.app.live.addresses import is_address, is_stream, masked
from evburst.app.live.commands import PAGE_CAMERA
from evburst.app.live.devices import NetworkSource, SensorSource
from evburst.app.live.frames import FakeCamera, FrameSource, Grabber, PushedFrames
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.recorder import LiveRecorder
from evburst.app.live.sources import LiveSource, RecordingSource
from evburst.app.live.video import CameraGrabber, VideoGrabber
from evburst.app.outputs.paths import refuse_overwriting
from evburst.app.provenance import provenance
from evburst.app.runs import load_weights, traffic_figures
from evburst.app.totals import peak_memory_mb, traffic_line
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize, list_counts, sum_counts
from evburst.data.extras import require
from evburst.data.simulation.sensor import PRESETS
from evburst.data.text import number_of
from evburst.eval.energy import energy_figures
from evburst.models.bundle import find_weights

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveRequest:
    """Source and outputs of a live run.

    Attributes:
        source: (kind, value): ("camera", "0" or "fake"), ("video", file, device or address), ("events", file),
            ("stream", address), ("sensor", name) or ("browser", "").
        record: DAT file to write, or None.
        overwrite: let `record` replace an existing file.
        serve: HOST:PORT of the page, or None.
        window: show an OpenCV window.
        root_path, allow_hosts: settings of the page behind a reverse proxy (see Site).
        speed: playback speed of a recording or a video file.
    """

    source: tuple[str, str]
    record: Path | None = None
    overwrite: bool = False
    serve: str | None = None
    window: bool = False
    root_path: str = ""
    allow_hosts: tuple[str, ...] = ()
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not 0.001 <= self.speed <= 1000:
            raise ConfigError(f"--speed {self.speed:g}: expected 0.001 to 1000")
        if self.speed != 1 and not _is_file(self.source):
            raise ConfigError("--speed: only a recording (--events) or a video file can be played at another speed")


def run_live(request: LiveRequest, config: LiveConfig) -> dict[str, Any]:
    """Run until the source ends, `config.seconds` have passed, the window is closed, or Ctrl-C; return the summary.

    Raises:
        EvburstError: the source, the weights or an output cannot be used.
    """
    cv2.setNumThreads(1)
    if request.record:
        if request.record.suffix.lower() != ".dat" and (request.record.is_file() or not request.record.exists()):
            raise ConfigError(f"--record {request.record}: recordings are DAT files; choose a name that ends in .dat")
        source_file = request.source[1] if _is_file(request.source) else None
        if not request.record.parent.is_dir():
            raise ConfigError(f"--record {request.record}: there is no folder {request.record.parent}; create it first")
        refuse_overwriting(request.record, [source_file, find_weights(config.detect.weights)], request.overwrite, streams=True)
    with ExitStack() as stack:
        source = open_source(request, config)
        pipeline = LivePipeline(source, config)
        stack.callback(pipeline.stop)
        turn: Callable[[], bool] = _Ticker(pipeline).turn
        if request.serve is not None:
            for module in ("fastapi", "uvicorn", "websockets"):
                require(module, "live", "--serve")
            from evburst.app.live.server import PageServer, Site

            site = Site(request.serve, request.root_path, request.allow_hosts)
            stack.callback(PageServer(pipeline, site).stop)
        if request.window:
            from evburst.app.live.desktop import LiveWindow

            window = LiveWindow(pipeline)
            stack.callback(window.close)
            turn = window.turn
        recorder = None
        if request.record:  # last, because everything before may fail, and this replaces a file
            recorder = LiveRecorder(request.record, source.sensor_size, overwrite=request.overwrite)
            pipeline.recorders.add(recorder)
        pipeline.start()
        try:
            while not _is_over(pipeline) and turn():
                pass
        except KeyboardInterrupt:
            _LOG.info("stopped")
        wall_s = time.perf_counter() - pipeline.started_s
        pipeline.stop()
        pipeline.wait(0)  # raises what was found in the last packets
        if source.finite and pipeline.capture.status == "ended" and not pipeline.figures.windows + pipeline.dropped:
            window_ms = pipeline.inference.voxel.window_us / 1000
            if request.record and request.record.is_file():  # it has no event
                request.record.unlink()
            raise DataError(
                f"{source.name}: ended before its first window of {window_ms:g} ms was complete; nothing was detected"
            )
        return summary(pipeline, wall_s, recorder)


def open_source(request: LiveRequest, config: LiveConfig) -> LiveSource:
    """Return the requested source after opening and closing it once, so that errors are reported at the start."""
    kind, value = request.source
    bundle = load_weights(config.detect)
    size = SensorSize.of_setting(config.detect.sensor_size)
    window_us = round(1000 * (config.detect.window_ms or bundle.voxel.window_ms))
    loop = request.serve is not None or request.window
    source: LiveSource
    if kind == "events":
        detect = config.detect
        source = RecordingSource(Path(value), window_us, size, detect.format, loop, request.speed, detect.reading)
    elif kind == "stream":
        source = NetworkSource(value)
    elif kind == "sensor":
        source = SensorSource(value)
    else:
        size = size or bundle.trained_size
        if size is None:
            raise ConfigError("these weights do not state their sensor size: pass --sensor-size WIDTHxHEIGHT")
        grabber = _grabber(kind, value, size, loop)
        source = FrameSource(grabber, size, config.simulator, window_us, config.upsample, speed=request.speed)
    source.open()
    source.close()
    if size is not None and source.sensor_size != size:
        raise ConfigError(f"{source.name}: the sensor is {source.sensor_size}, not {size}; leave out --sensor-size")
    return source


def _grabber(kind: str, value: str, size: SensorSize, loop: bool) -> Grabber:
    if kind == "browser":
        return PushedFrames(PAGE_CAMERA)
    if kind == "camera" and value == "fake":
        return FakeCamera(size)
    if kind == "camera":
        return CameraGrabber(int(value))
    if not _is_file((kind, value)):
        if is_address(value) and not is_stream(value):
            raise ConfigError(
                f"--video {masked(value)}: expected a file, a camera such as /dev/video0, or an rtsp:// or http:// address"
            )
        return CameraGrabber(value)
    grabber = VideoGrabber(Path(value), loop)
    if grabber.note:
        _LOG.warning(grabber.note)
    return grabber


def _is_file(source: tuple[str, str]) -> bool:
    """Return whether a source is a file to be played, not a camera device, an address or a sensor."""
    kind, value = source
    return kind == "events" or (kind == "video" and not is_address(value) and not Path(value).is_char_device())


def preset_settings(name: str) -> dict[str, object]:
    """Return a sensor of PRESETS as settings of LiveConfig; raise ConfigError if it is unknown."""
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: unknown sensor (known: {', '.join(PRESETS)})")
    return {f"simulator.{key}": value for key, value in vars(PRESETS[name].config).items()}


def summary(pipeline: LivePipeline, wall_s: float, recorder: LiveRecorder | None = None) -> dict[str, Any]:
    """Return the summary of a run, in JSON types.

    Windows, events, boxes and latency are those of the whole run; the network and its energies are those since it was changed
    last. `window_ms` is None if windows differ in length. Names and kinds of several sources (a visitor's camera in place of
    the first one) are separated by commas.
    """
    totals = pipeline.figures
    network, detect = totals.network, totals.network.detect
    lengths_us = totals.lengths_us or {network.inference.voxel.window_us}
    latency = {f"p{q}": totals.latency.quantile_ms(q / 100) for q in (50, 99)} | {"max": totals.latency.highest_ms}
    energy = totals.energy.report()
    sources = pipeline.capture.used or [pipeline.source]
    return {
        "source": ", ".join(dict.fromkeys(source.name for source in sources)),
        "kind": ", ".join(dict.fromkeys(source.kind for source in sources)),
        "simulated": any(source.simulated for source in sources),
        "sensor_size": list(pipeline.source.sensor_size),
        "network": "ann" if detect.ann else "snn",
        "engine": None if detect.ann else network.detector.engine,
        "weights": detect.weights,
        "window_ms": min(lengths_us) / 1000 if len(lengths_us) == 1 else None,
        "seconds": round(wall_s, 3),
        "windows": totals.windows,
        "idle_windows": totals.idle_windows,
        "dropped": pipeline.dropped,
        "latency_ms": {name: None if value is None else round(value, 2) for name, value in latency.items()},
        "events": totals.events,
        "events_per_s": round(totals.events / (totals.duration_us * 1e-6)) if totals.windows else 0,
        "detections": sum(totals.per_class.values()),
        **({"lead_ms": detect.lead_ms} if detect.lead_ms else {}),
        "per_class": dict(totals.per_class),
        "energy": energy_figures(energy, detect.energy_table),
        "memory": traffic_figures(totals.energy, network.inference, detect.energy_table),
        "timesteps": network.timesteps,
        "network_changes": totals.changes,
        "spikes_per_neuron": None if energy.spikes_per_neuron is None else round(energy.spikes_per_neuron, 4),
        "source_lost": pipeline.capture.lost,
        "source_behind_s": round(sum(source.behind_s for source in sources), 3),
        "faults": sum_counts(source.faults.found() for source in sources),
        "recorded_events": recorder.events if recorder else None,
        "recording_stopped": recorder.stopped if recorder else "",
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "provenance": provenance(),
    }


def human_summary(summary: dict[str, Any]) -> str:
    """Format the summary as lines for the terminal."""
    energy, latency = summary["energy"], summary["latency_ms"]
    kind = "simulated events" if summary["simulated"] else "events"
    length = "" if summary["window_ms"] is None else f" of {summary['window_ms']:g} ms"
    lines = [
        f"{summary['source']}: {summary['seconds']:.1f} s, {number_of(summary['windows'], 'window')}{length}, "
        f"{summary['dropped']} dropped; {summary['events_per_s']:,} {kind} per second",
        f"boxes     {summary['detections']} "
        f"({', '.join(f'{count} {name}' for name, count in summary['per_class'].items()) or 'none'})",
    ]
    if summary["windows"]:
        lines.append(f"latency   p50 {latency['p50']} ms, p99 {latency['p99']} ms, longest {latency['max']} ms")
        if summary["network_changes"]:
            lines.append(_change_line(summary))
        lines.append(_energy_line(energy))
    if summary["memory"]:
        lines.append(traffic_line(summary["memory"]))
    if summary["recorded_events"] is not None:
        lines.append(f"recorded  {number_of(summary['recorded_events'], 'event') if summary['recorded_events'] else 'nothing'}")
    if summary["faults"]:
        lines.append(f"repaired  {list_counts(summary['faults'])}")
    if summary["source_lost"]:
        lines.append(f"source    lost {summary['source_lost']} times")
    if summary["source_behind_s"]:
        lines.append(f"warning   this machine was too slow for the source, which was delayed by {summary['source_behind_s']} s")
    return "\n".join(lines)


def _change_line(summary: dict[str, Any]) -> str:
    network = "ANN" if summary["network"] == "ann" else f"SNN, T = {summary['timesteps']}"
    covered = number_of(summary["energy"]["windows"] + summary["energy"]["idle_windows"], "window")
    changes = number_of(summary["network_changes"], "time")
    return f"network   changed {changes}; energy is that of the last {covered} ({network}, weights {summary['weights']})"


def _energy_line(energy: dict[str, Any]) -> str:
    if not energy["windows"]:
        return "energy    none: every window is idle"
    if energy["snn_pj"] is None:
        return f"energy    {energy['ann_pj'] / 1e6:,.0f} uJ per window (ANN)"
    share = f"{100 * energy['of_ann']:.1f} % of the dense ANN's ({energy['table']})"
    return f"energy    {energy['snn_pj'] / 1e6:,.0f} uJ per window{sample_note(energy)}, {share}"


def _is_over(pipeline: LivePipeline) -> bool:
    seconds = pipeline.config.seconds
    return pipeline.wait(0) or (seconds is not None and time.perf_counter() - pipeline.started_s >= seconds)


class _Ticker:
    """Updates a status line on the terminal every second."""

    def __init__(self, pipeline: LivePipeline) -> None:
        self._pipeline, self._shown_s = pipeline, 0.0

    def turn(self) -> bool:
        """Update the line if it is due, wait briefly, and return True."""
        pipeline, now_s = self._pipeline, time.perf_counter()
        if show_progress() and now_s - self._shown_s >= 1:
            self._shown_s = now_s
            totals = pipeline.figures
            recent_ms = sorted(totals.recent_ms) or [0.0]
            line = (
                f"{now_s - pipeline.started_s:6.0f} s  windows {totals.windows}  dropped {pipeline.dropped}  "
                f"latency {recent_ms[len(recent_ms) // 2]:.0f} ms  boxes {sum(totals.per_class.values())}  "
                f"{pipeline.capture.status}"
            )
            print(f"\r{line[:110]:110}", end="", file=sys.stderr, flush=True)
        pipeline.wait(0.05)
        return True
