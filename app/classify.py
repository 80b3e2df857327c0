"""Classification of recordings: every window through the network, a recording's class by the mean of their scores."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from evburst.app.detect import DetectConfig, open_inference
from evburst.app.inference import BATCH, Inference, WindowResult
from evburst.data.classification import CLASSIFICATION, Classification
from evburst.data.datasets.class_windows import filled_windows
from evburst.data.datasets.recorded import SIZELESS_FORMATS
from evburst.data.errors import DataError, EvburstError, EventFileError, SensorSizeError
from evburst.data.events import EventStream, EventWindow, SensorSize, check_sensor_size, first_us
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.readers import ReadOptions, open_events, recognise_format
from evburst.eval.energy import HEADLINE, EnergyTotals, energy_figures
from evburst.models.bundle import DetectorBundle

log = logging.getLogger("evburst")


@dataclass(frozen=True)
class ClassifyConfig:
    """Settings of classification.

    Attributes:
        format: format of the recordings; None: recognised by content, then by name.
        weights: bundled weights by name, or a file that convert wrote.
        window_ms: length of a window; None: as the weights were trained.
        timesteps: timesteps T of the spiking network; None: as the weights were calibrated.
        ann: run the ordinary network instead of the spiking one.
        device: where to run.
        engine: how the spiking network is run: reference, int8, cuda; auto is the fastest available.
        adaptive: stop a window's timesteps once its scores are this certain, 0 to 1; None: never.
        batch: windows that go through the network together; 0 chooses for the most windows per second.
        start_s: begin this many seconds after the first event.
        max_windows: stop after this many windows.
        sensor_size: WIDTHxHEIGHT of the sensor in pixels; None: as the file states it, or else as the weights were trained.
        energy_table: energies per operation: int8, fp16 or fp32.
        idle_events: windows with at most this many events are idle: they do not go through the network and have no say.
        reading: unit of time, order of columns and the like, for files that do not state them.
        filters: events to remove before anything else; none by default.
    """

    format: str | None = None
    weights: str = "nmnist"
    window_ms: float | None = None
    timesteps: int | None = None
    ann: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: str = "auto"
    adaptive: float | None = None
    batch: int = 1
    start_s: float = 0.0
    max_windows: int | None = None
    sensor_size: str | None = None
    energy_table: str = HEADLINE
    idle_events: int = 0
    reading: ReadOptions = field(default_factory=ReadOptions)
    filters: FiltersConfig = field(default_factory=FiltersConfig)

    def __post_init__(self) -> None:
        self.network()

    def network(self) -> DetectConfig:
        """The settings that detection has, too; raises ValueError where one is out of range."""
        return DetectConfig(**{own.name: getattr(self, own.name) for own in fields(self)}, sinks=())


def classify_file(
    path: Path | str, config: ClassifyConfig | None = None, bundle: DetectorBundle | None = None
) -> dict[str, Any]:
    """The class of a recording, window by window and as a whole; nothing is written.

    Args:
        path: the recording.
        config: see ClassifyConfig; None for the defaults.
        bundle: the weights, if they are loaded already.

    Returns:
        In JSON types: events_file, class, score, top5 (class and score of the best five), windows (t0_us, t1_us, events,
        class, score, energy_pj, timesteps of each), timesteps (the mean that was used), energy (as `evburst detect` reports
        it), faults. Class and score are None where every window was idle.

    Raises:
        EvburstError: the recording or the weights cannot be used.
    """
    path, c = Path(path), config or ClassifyConfig()
    bundle = bundle or DetectorBundle.load(c.weights)
    stream = FilteredStream(open_recording(path, c, bundle), c.filters)
    start_us = None
    if c.start_s:
        start_us = (first_us(open_recording(path, c, bundle)) or 0) + round(1e6 * c.start_s)
    inference = open_inference(bundle, c.network(), stream.sensor_size, stream.faults, task=CLASSIFICATION)
    results = list(_results(path, stream, inference, c, start_us))
    if not results:
        raise EventFileError(f"{path}: holds no event that can be used")
    if stream.faults.found():
        log.warning("%s: repaired: %s", path, stream.faults)
    return _summary(path, results, inference, c, bundle.head.classes, stream)


def _results(
    path: Path, stream: FilteredStream, inference: Inference, config: ClassifyConfig, start_us: int | None
) -> Iterator[WindowResult]:
    windows: Iterator[EventWindow] = filled_windows(stream.windows(inference.voxel.window_us, start_us))
    inside = 0
    for result in inference.stream(islice(windows, config.max_windows), config.batch or BATCH):
        inside += result.events
        check_sensor_size(str(path), stream.sensor_size, inside, stream.faults.outside_sensor)
        yield result


def open_recording(path: Path, config: ClassifyConfig | DetectConfig, bundle: DetectorBundle) -> EventStream:
    """A recording; its sensor is the one that the user names, or the file, or else the one that the network was trained on."""
    own = sensor_of(bundle)
    if config.sensor_size:
        return open_events(path, SensorSize.parse(config.sensor_size), config.format, options=config.reading)
    if own and (config.format or recognise_format(path)) in SIZELESS_FORMATS:
        return open_events(path, own, config.format, options=config.reading)
    try:
        stream = open_events(path, None, config.format, options=config.reading)
    except SensorSizeError:
        if own is None:
            raise
        return open_events(path, own, config.format, options=config.reading)
    if own and stream.sensor_size != own:
        log.warning("%s: a %s sensor; the network was trained on %s", path, stream.sensor_size, own)
    return stream


def sensor_of(bundle: DetectorBundle) -> SensorSize | None:
    """The sensor that a network was trained on, if its weights file says it."""
    found = bundle.record.get("sensor_size")
    return SensorSize(*found) if isinstance(found, list) and len(found) == 2 else None


def mean_of(results: Sequence[WindowResult]) -> Classification | None:
    """The class scores of a recording: the mean of its windows'; None if all of them were idle."""
    found = [result.classification for result in results if result.classification is not None]
    return Classification.mean(found) if found else None


def _summary(
    path: Path,
    results: Sequence[WindowResult],
    inference: Inference,
    config: ClassifyConfig,
    classes: tuple[str, ...],
    stream: FilteredStream,
) -> dict[str, Any]:
    totals = EnergyTotals(inference.dense_macs)
    for result in results:
        result.count_into(totals)
    report, whole = totals.report(), mean_of(results)
    return {
        "events_file": path.name,
        "class": None if whole is None else classes[whole.label],
        "score": None if whole is None else round(whole.score, 4),
        "top5": [] if whole is None else [{"class": classes[k], "score": round(score, 4)} for k, score in whole.top5],
        "network": "ann" if config.ann else "snn",
        "timesteps": None if report.timesteps is None else round(report.timesteps, 3),
        "window_ms": inference.voxel.window_us / 1000,
        "idle_windows": report.idle_windows,
        "energy": energy_figures(report, config.energy_table),
        "windows": [_window(result, classes) for result in results],
        "sensor_size": list(stream.sensor_size),
        "faults": stream.faults.found(),
    }


def _window(result: WindowResult, classes: tuple[str, ...]) -> dict[str, Any]:
    own = result.classification
    return {
        "t0_us": result.t0_us,
        "t1_us": result.t1_us,
        "events": result.events,
        "class": None if own is None else classes[own.label],
        "score": None if own is None else round(own.score, 4),
        "energy_pj": round(result.energy_pj, 1),
        "timesteps": result.timesteps,
    }


def classify_many(
    recordings: Sequence[Path], config: ClassifyConfig, bundle: DetectorBundle | None = None
) -> Iterator[dict[str, Any]]:
    """The summary of each recording, as soon as it is known; one that fails is logged, and does not stop the others.

    Raises:
        DataError: at the end, if some of several recordings failed.
        EvburstError: what is wrong with the only one.
    """
    bundle = bundle or DetectorBundle.load(config.weights)
    failed = 0
    for path in recordings:
        try:
            yield classify_file(path, config, bundle)
        except EvburstError as error:
            if len(recordings) == 1:
                raise
            failed += 1
            log.error("%s", error)
    if failed:
        raise DataError(f"{failed} of {len(recordings)} recordings failed")


def human_line(summary: dict[str, Any], windows: bool = False) -> str:
    """A recording for a person: a line, and with `windows` a line for each of them."""
    energy, t = summary["energy"], summary["timesteps"]
    lines = [
        _line(summary["events_file"], summary["class"], summary["score"], _spent(energy), "ANN" if t is None else f"T {t:g}")
    ]
    for own in summary["windows"] if windows else []:
        name = f"  {own['t0_us'] / 1e6:.3f} to {own['t1_us'] / 1e6:.3f} s"
        t = own["timesteps"]
        lines.append(
            _line(name, own["class"], own["score"], f"{own['energy_pj'] / 1e6:.2f} uJ", "ANN" if t is None else f"T {t:g}")
        )
    return "\n".join(lines)


def _spent(energy: dict[str, Any]) -> str:
    pj = energy["ann_pj"] if energy["snn_pj"] is None else energy["snn_pj"]
    share = "" if energy["of_ann"] is None else f" ({100 * energy['of_ann']:.1f} % of the ANN's)"
    return f"{pj / 1e6:.2f} uJ per window{share}"


def _line(name: str, label: str | None, score: float | None, energy: str, timesteps: str) -> str:
    said = f"{'idle':<16}" if label is None else f"{label:<10} {score:5.3f}"
    return f"{name:<28} {said}  {energy}  {timesteps}"
