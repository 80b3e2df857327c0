"""Runs through recordings: the settings common to all tasks, the network for a sensor, and the windows of a recording.

detect, classify, live and the Python API (library.py) share these.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from evburst.app.inference import BATCH, Inference, WindowResult
from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.errors import ConfigError, require_all, require_within
from evburst.data.events import EventStream, EventWindow, Faults, SensorSize, check_order, check_sensor_size
from evburst.data.filters import FilteredStream, FiltersConfig
from evburst.data.readers import ReadOptions
from evburst.data.readers.packets import MAX_WINDOW_EVENTS
from evburst.data.representations.voxel_grid import DOWNSAMPLE_LIMITS, WINDOW_LIMITS_MS, VoxelConfig
from evburst.data.slicing import MAX_START_S, first_us, overlapping, windows_by_count, windows_from
from evburst.eval.energy import COST_TABLES, HEADLINE, EnergyTotals
from evburst.eval.memory import memory_figures
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector, resolve_engine, resolve_timesteps
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.detectors.remembering import remembering
from evburst.models.layout import TIMESTEP_LIMITS
from evburst.models.runtime import ENGINES, check_engine, counting_engine
from evburst.models.tasks import task_of

_USUAL_SIDE = 640
"""`downsample` 0 chooses blocks only if the sensor's longer side, px, is at least twice this length, and twice the side that
the network was trained on."""

_FARTHEST = 4
"""Windows that are more times longer or shorter than in training give a warning; `street` saw 0.7 to 2.2 times."""

_LOG = logging.getLogger(__name__)

JUDGED_FROM = 10_000
"""Number of events from which a run ends early if too many lie outside the sensor or are late; at its end each is judged."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run through a recording, common to all tasks.

    Attributes:
        format: format of the recording: aedat2, aedat3, aedat4, bin, csv, dat, evt, hdf5, npy, npz, rosbag; None: recognised by
            its content, then by its name.
        weights: bundled weights by name, or a file that convert wrote.
        window_ms: length of a window; None: the length with which the weights were trained.
        window_events: number of events per window, instead of a fixed length.
        stride_ms: time from the start of one window to the start of the next, so that windows overlap; None: their length.
        timesteps: timesteps T of the spiking network; None: the number for which the weights were calibrated.
        ann: run the ANN instead of the spiking network.
        device: device to run on.
        engine: engine that runs the spiking network: reference, int8, onnx, openvino, cuda; auto is the fastest measured.
        count_every: count spikes and operations in one of N windows that are run, beginning with the first (of batches, in one
            of N); other windows have no energy, and energies of a run are means over the counted windows. None: in all windows,
            or with the engines onnx and openvino, which cannot count, in one of 10, which int8 then runs where it can.
        adaptive: skip the remaining timesteps of a window once its result is this stable, 0 to 1; on the engine reference,
            which is many times slower. None: never.
        batch: number of windows per batch; a result has to wait until its batch is full. 0: a size with
            high throughput.
        start_s: start with the window that contains the time this many seconds after the first event.
        max_windows: stop after this many windows.
        downsample: side of the square blocks of pixels that the network sees as one pixel; suits sensors that are much larger
            than in training, and saves energy. 0: automatic, which is 1, or for a side of at least 1280 px the number of times
            that 640 px, or the longer side that the network was trained on, fit into it.
        sensor_size: WIDTHxHEIGHT of the sensor in pixels, for files that do not state it, e.g. 304x240.
        energy_table: energies per operation: int8, fp16 or fp32.
        idle_events: windows with at most this many events are idle: they are not run through the network, have no result, and
            add to neither network's energy.
        reading: unit of time, order of columns and similar options, for files that do not state them.
        filters: filters that remove events before binning; none by default.
    """

    format: str | None = None
    weights: str = ""
    window_ms: float | None = None
    window_events: int | None = None
    stride_ms: float | None = None
    timesteps: int | None = None
    ann: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: str = "auto"
    count_every: int | None = None
    adaptive: float | None = None
    batch: int = 1
    start_s: float = 0.0
    max_windows: int | None = None
    downsample: int = 0
    sensor_size: str | None = None
    energy_table: str = HEADLINE
    idle_events: int = 0
    reading: ReadOptions = field(default_factory=ReadOptions)
    filters: FiltersConfig = field(default_factory=FiltersConfig)

    def __post_init__(self) -> None:
        require_within(
            self,
            window_ms=WINDOW_LIMITS_MS,
            window_events=(1, MAX_WINDOW_EVENTS),
            stride_ms=WINDOW_LIMITS_MS,
            timesteps=TIMESTEP_LIMITS,
            adaptive=(0, 1),
            start_s=(0, MAX_START_S),
            batch=(0, 256),
            downsample=DOWNSAMPLE_LIMITS,
            count_every=(1, 1_000_000),
        )
        checks = {
            "window_ms and window_events exclude each other: give one of them": None in (self.window_ms, self.window_events),
            "stride_ms and window_events exclude each other: give one of them": None in (self.stride_ms, self.window_events),
            "max_windows must be positive": self.max_windows is None or self.max_windows > 0,
            "idle_events must not be negative": self.idle_events >= 0,
            "adaptive counts every window: leave out count_every": self.adaptive is None or self.count_every in (None, 1),
            "adaptive stops each window separately: batch must be 1": self.batch == 1 or self.adaptive is None,
            "device must be auto, cpu or cuda": self.device in ("auto", "cpu", "cuda"),
            f"energy_table must be one of {', '.join(COST_TABLES)}": self.energy_table in COST_TABLES,
        }
        require_all(checks, self)
        check_engine(self.engine)

    @property
    def task(self) -> str:
        """The task that the weights must have."""
        return DETECTION

    @property
    def remembers(self) -> bool:
        """Whether the network is given a memory."""
        return False

    @property
    def decoding(self) -> PostConfig:
        """Thresholds of the boxes for decoding."""
        return PostConfig()


def open_inference(
    bundle: Bundle,
    config: RunConfig,
    sensor_size: SensorSize,
    faults: Faults | None = None,
    maps: bool = False,
) -> Inference:
    """Prepare the network of loaded weights for the windows of a sensor.

    Args:
        bundle: the weights.
        config: the settings.
        sensor_size: (W, H) px.
        faults: faults of the recording, to which events outside the sensor are added.
        maps: keep the output maps in each result.

    Raises:
        ConfigError: the engine or the device is not available, or T or a memory contradicts the other settings.
    """
    bundle = check_network(bundle, config)
    detector = GridDetector(
        bundle,
        config.decoding,
        config.ann,
        config.timesteps,
        pick_device(config.device),
        config.engine,
        config.adaptive,
        config.count_every,
    )
    return Inference(
        detector,
        _voxel(bundle, config),
        sensor_size,
        faults,
        spiking=not config.ann,
        table=COST_TABLES[config.energy_table],
        idle_events=config.idle_events,
        maps=maps,
        downsample=block_side(config.downsample, sensor_size, bundle.trained_size),
        count_every=detector.count_every,
    )


def check_network(bundle: Bundle, config: RunConfig) -> Bundle:
    """Check that loaded weights can be run with these settings, as far as that does not depend on the sensor or the device.

    Returns:
        The network, with a memory if the settings ask for one.

    Raises:
        ConfigError: T, a memory, overlapping windows or adaptive timesteps contradict the weights or each other.
    """
    if config.adaptive is not None and not config.ann:
        if resolve_timesteps(bundle, config.ann, config.timesteps) == 1:
            raise ConfigError(
                "adaptive needs at least two timesteps, and these weights run with T = 1; pass --timesteps 2 or more"
            )
        if config.engine not in ("auto", "reference"):
            raise ConfigError(f"adaptive runs on the reference engine only, not on {config.engine!r}; leave --engine out")
    bundle = with_memory_if_asked(bundle, config.remembers, config.stride_ms)
    given = [name for name, usual in (("batch", 1), ("idle_events", 0)) if getattr(config, name) != usual]
    if bundle.graph.memories and given:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(
            f"{' and '.join(given)}: a network with memory runs every window, one after the other; leave {flags} out"
        )
    resolve_timesteps(bundle, config.ann, config.timesteps)
    step_of(config.stride_ms, _voxel(bundle, config).window_us)
    return bundle


def _voxel(bundle: Bundle, config: RunConfig) -> VoxelConfig:
    return bundle.voxel if config.window_ms is None else replace(bundle.voxel, window_ms=config.window_ms)


def check_machine(bundle: Bundle, config: RunConfig) -> None:
    """Raise ConfigError if this machine does not have the settings' device or engine; starts no GPU by itself."""
    if (config.device, config.engine) != ("auto", "auto"):
        timesteps = resolve_timesteps(bundle, config.ann, config.timesteps)
        device = pick_device(config.device)
        resolve_engine(bundle, config.ann, timesteps, device, config.engine, config.adaptive, config.count_every)


def block_side(downsample: int, sensor_size: SensorSize, trained_size: SensorSize | None) -> int:
    """Return the side of the blocks of pixels that the network sees as one.

    Args:
        downsample: as set; 0: chosen by the sensor's size, so that a network sees no larger sensor than usual, or than it was
            trained on.
        sensor_size: (W, H) px.
        trained_size: (W, H) px that the network was trained on; None: unknown.
    """
    return downsample or max(1, max(sensor_size) // max([_USUAL_SIDE, *(trained_size or ())]))


def load_weights(config: RunConfig, remarks: bool = True) -> Bundle:
    """Load the weights of a run.

    Args:
        config: the run.
        remarks: whether to warn of windows unlike those of training, and to say which engine `adaptive` needs.

    Raises:
        CheckpointError: they cannot be read.
        ConfigError: they have another task than the run.
    """
    bundle = Bundle.load(config.weights)
    task = task_of(bundle.head).name
    if task != config.task:
        other = "evburst classify (in Python: Classifier)" if task == CLASSIFICATION else "evburst detect (in Python: Detector)"
        raise ConfigError(f"weights {config.weights} are for {task}, not for {config.task}: use {other}")
    trained_ms = bundle.voxel.window_ms
    if not remarks:
        return bundle
    if config.window_ms:
        warn_of_length(f"windows of {config.window_ms:g} ms", config.window_ms, trained_ms)
    if config.adaptive is not None and resolve_timesteps(bundle, config.ann, config.timesteps) > 1:
        _LOG.info("note: adaptive runs on the engine reference; `evburst engines` shows how much slower that is")
    if config.count_every == 1 and not config.ann and (counting := counting_engine(config.engine)):
        _LOG.info(
            "note: spikes are counted in every window, and the engine %s leaves such windows to %s; "
            "--count-every %d runs most windows on it",
            *(config.engine, counting, ENGINES[config.engine].count_every),
        )
    return bundle


def warn_of_length(windows: str, length_ms: float, trained_ms: float) -> None:
    """Log if windows, described by `windows`, are much shorter or longer than those of the network's training."""
    if not 1 / _FARTHEST <= length_ms / trained_ms <= _FARTHEST:
        _LOG.warning("%s: the network was trained with %g ms; expect worse results", windows, trained_ms)


def warn_of_median_length(path: Path, lengths_ms: Sequence[float], trained_ms: float) -> None:
    """`warn_of_length` of a recording's windows that were cut by number of events."""
    length_ms = median(lengths_ms)
    warn_of_length(f"{path}: windows of {length_ms:g} ms (median)", length_ms, trained_ms)


def with_memory_if_asked(bundle: Bundle, memory: bool, stride_ms: float | None) -> Bundle:
    """Return the network of loaded weights, with a memory if `memory` is set; `stride_ms` is None if windows do not overlap.

    Raises:
        ConfigError: the network cannot have a memory, or it has one and windows are to overlap.
    """
    if memory:
        bundle = remembering(bundle)
    if bundle.graph.memories and stride_ms is not None:
        raise ConfigError("stride_ms: windows of a network with memory follow each other; leave --stride-ms out")
    return bundle


def pick_device(name: str) -> str:
    """Resolve `auto`, `cpu` or `cuda` to a device of this machine; raise ConfigError for a GPU that it does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no CUDA device; use --device cpu")
    return name


def refuse_ignored(config: RunConfig) -> None:
    """Raise ConfigError if the ANN is to run with settings of the spiking network, which it would ignore.

    Live detection accepts them, because it can change the network while it runs. To count every window is a default of some
    commands, and not an error.
    """
    sampled = None if config.count_every == 1 else config.count_every
    settings = {"timesteps": config.timesteps, "engine": config.engine, "adaptive": config.adaptive, "count_every": sampled}
    ignored = [name for name, value in settings.items() if value not in (None, "auto")]
    if config.ann and ignored:
        raise ConfigError(f"ann: the ANN has no {', '.join(ignored)}; leave out one or the other")


def start_time(stream: EventStream, start_s: float) -> int | None:
    """Return the time `start_s` seconds after a stream's first event, µs on its clock; None for 0 s.

    Raises:
        ConfigError: the stream can be read only once.
    """
    return (first_us(stream) or 0) + round(1e6 * start_s) if start_s else None


def run_windows(
    inference: Inference,
    stream: FilteredStream,
    windows: Iterator[EventWindow],
    config: RunConfig,
    name: str,
    before: Faults | None = None,
) -> Generator[WindowResult, None, None]:
    """Yield the results of a recording's windows, at most `config.max_windows`.

    `before` are the stream's faults before this pass; None: it is the first one.

    Raises:
        SensorSizeError: too many events lie outside the sensor.
        EventFileError: too many events are late.
    """
    inside = outside = 0
    ordered = _in_order(windows, stream, name, config, before) if stream.finite else windows
    taken = islice(ordered, config.max_windows)
    with closing(inference.stream(taken, config.batch or BATCH, stream.finite)) as results:
        for result in results:
            inside, outside = inside + result.events, outside + result.outside
            if inside + outside >= JUDGED_FROM:
                check_sensor_size(name, stream.sensor_size, inside, outside)
            yield result
    check_sensor_size(name, stream.sensor_size, inside, stream.faults.since(before or Faults()).outside_sensor)


def _in_order(
    windows: Iterator[EventWindow], stream: FilteredStream, name: str, config: RunConfig, before: Faults | None
) -> Iterator[EventWindow]:
    """Yield the windows as long as few events are late; those that were read before `config.start_s` do not count."""
    late_before = 0 if before is None else before.late_events
    for number, window in enumerate(windows):
        if number == 0 and config.start_s:
            late_before = stream.faults.late_events
        late = stream.faults.late_events - late_before
        if stream.passed + late >= JUDGED_FROM:
            check_order(name, stream.passed, late)
        yield window
    check_order(name, stream.passed, stream.faults.late_events - late_before)


def cut_windows(stream: EventStream, window_us: int, config: RunConfig, start_us: int | None = None) -> Iterator[EventWindow]:
    """Cut a stream into windows as the settings specify: by duration, overlapping or not, or by number of events.

    Raises:
        ConfigError: the length of a window is not a multiple of the stride.
    """
    if config.window_events is not None:
        return windows_by_count(stream, config.window_events, start_us)
    stride_us = step_of(config.stride_ms, window_us)
    if stride_us == window_us:
        return stream.windows(window_us, start_us)
    # The first window contains events from before the start: they are read, and the windows that end before it are left out.
    read_from_us = None if start_us is None else start_us - (window_us - stride_us)
    return windows_from(overlapping(stream.windows(stride_us, read_from_us), window_us), start_us)


def step_of(stride_ms: float | None, window_us: int) -> int:
    """Return the time from the end of one window to the end of the next, in µs; raises ConfigError like `cut_windows`."""
    stride_us = window_us if stride_ms is None else round(1000 * stride_ms)
    if window_us % stride_us:
        raise ConfigError(f"stride_ms {stride_us / 1000:g}: must divide the length of the windows, {window_us / 1000:g} ms")
    return stride_us


def traffic_figures(energy: EnergyTotals, inference: Inference, table: str) -> dict[str, Any] | None:
    """Return a run's energy with memory traffic, as `memory_figures` does, without the zero-skipping ANN.

    None if no window of a spiking network was counted.
    """
    stats, network = energy.mean_stats(), inference.network
    if stats is None or not isinstance(network, GridDetector):
        return None
    geometry = network.memory_geometry(*inference.seen_shape)
    return memory_figures(stats, None, geometry, table, energy.report().timesteps)
