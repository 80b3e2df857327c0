"""Datasets by task and name: `open_dataset` returns the windows for training, conversion and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from evburst.data.classification import CLASSIFICATION, DETECTION
from evburst.data.datasets import SPECS, Dataset, DatasetSpec
from evburst.data.datasets.checks import check_dataset, check_layout
from evburst.data.datasets.class_layouts import CLASS_LAYOUTS, SET_CLASSIFIER
from evburst.data.datasets.class_windows import HeldTime, open_class_windows
from evburst.data.datasets.labels import with_own_classes
from evburst.data.datasets.layouts import LAYOUTS, LabelledFile
from evburst.data.datasets.pictures import class_spec
from evburst.data.datasets.recorded import Reading, RecordedWindows
from evburst.data.datasets.simulated import SimulatedConfig, SimulatedWindows
from evburst.data.datasets.splits import read_layout
from evburst.data.errors import ConfigError, NoEventsError
from evburst.data.events import SensorSize
from evburst.data.extensions import refuse_taken
from evburst.data.filters import FiltersConfig
from evburst.data.readers import ReadOptions

MAX_SEED = 2**63 - 1
"""Largest seed of a command; torch and NumPy take it."""


@dataclass(frozen=True)
class DatasetConfig:
    """Which dataset to use, and how to read it.

    Attributes:
        kind: for a detector gen1, 1mpx, dsec, ncaltech101, simulated, pedro, folder or another kind in the registry; for a
            classifier nmnist, ncaltech101, ncars, cifar10dvs, dvsgesture, folder, tonic:NAME or simulated.
        root: folder of the data.
        spec: for a detector: classes and sensor, by a name in evburst.data.datasets.SPECS.
        own_classes: for a detector: names of other classes than the spec's, in the order of their indices.
        sensor_size: WIDTHxHEIGHT; for simulated data, if it differs from the spec's; for recordings, if files do not state it.
        classes: names (or class ids) in label files to classes of the spec, or to "ignore", e.g. {Car: car, "3": ignore};
            for a classifier only to "ignore".
        labels: for a classifier and the kind "folder": CSV file with columns file, class and optionally split.
        held: for a classifier: hold out a part of every recording's time instead of whole recordings.
        reading: unit of time and order of columns, for recordings that do not state them.
        filters: event filters for recordings.
        simulated: how recordings are simulated from pictures.
    """

    kind: str = "simulated"
    root: str = ""
    spec: str = "street"
    own_classes: tuple[str, ...] = ()
    sensor_size: str | None = None
    classes: dict[str, str] = field(default_factory=dict)
    labels: str = ""
    held: HeldTime = field(default_factory=HeldTime)
    reading: ReadOptions = field(default_factory=ReadOptions)
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    simulated: SimulatedConfig = field(default_factory=SimulatedConfig)


@dataclass(frozen=True)
class Request:
    """Which windows of a dataset to open.

    Attributes:
        split: e.g. "train".
        window_us: length of a window.
        n_windows: number of windows; 0 for all.
        cache: folder for data that are computed once.
        seed: seed of all randomness.
        workers: number of processes that simulate (0: one per core).
        progress: called with the number of windows created so far.
        spread: choose `n_windows` evenly from all, not the first ones; always so for recordings.
        task: DETECTION, or CLASSIFICATION for windows with a class.
        classes: classes of a classifier in the order of its outputs; empty: all classes of the data.
        trained_size: for a classifier: (W, H) px that it was trained on, for recordings whose size is not known otherwise.
    """

    split: str
    window_us: int
    n_windows: int = 0
    cache: Path = Path("runs/cache")
    seed: int = 0
    workers: int = 0
    progress: Callable[[int], object] = lambda done: None
    spread: bool = False
    task: str = DETECTION
    classes: tuple[str, ...] = ()
    trained_size: SensorSize | None = None


Opener = Callable[[DatasetConfig, Request], Dataset]
OPENERS: dict[str, Opener] = {}
"""Of windows with boxes; besides, every layout in LAYOUTS is a kind."""
CLASS_OPENERS: dict[str, Opener] = {}
"""Of windows with a class, besides CLASS_LAYOUTS; what stands before a colon (`tonic:NAME`) is the kind's name here."""
_TASKS = {DETECTION: OPENERS, CLASSIFICATION: CLASS_OPENERS}


def opener(*kinds: str, task: str = DETECTION) -> Callable[[Opener], Opener]:
    """Register a function that opens one or several kinds of dataset.

    Raises:
        ConfigError: another function, or a layout, has one of the kinds, or what is registered is no function.
    """

    def register(function: Opener) -> Opener:
        layouts = LAYOUTS if task == DETECTION else CLASS_LAYOUTS
        taken = {name: layout.find for name, layout in layouts.items()} | _TASKS[task]
        for kind in kinds:
            check_layout(f"kind of data set {kind!r}", function, None)
            refuse_taken("kind of data set", kind, function, taken)
        _TASKS[task].update(dict.fromkeys(kinds, function))
        return function

    return register


def open_dataset(config: DatasetConfig, request: Request) -> Dataset:
    """Open a dataset and return the requested windows.

    Raises:
        ConfigError: the kind or the spec is unknown, the classes cannot be used, or root is not set.
        DataError: the data are missing or malformed.
    """
    layouts, opens = (LAYOUTS, _recorded) if request.task == DETECTION else (CLASS_LAYOUTS, _classes)
    openers, kind = dict.fromkeys(layouts, opens) | _TASKS[request.task], config.kind.partition(":")[0]
    if kind in layouts and kind in _TASKS[request.task]:
        raise ConfigError(f"data.kind {kind!r} is the name of a kind of data set and of a layout; give the layout another name")
    if kind not in openers:
        of = "" if request.task == DETECTION else f" for {request.task}"
        hint = f"; {SET_CLASSIFIER}" if request.task == DETECTION and kind in {*CLASS_LAYOUTS, *CLASS_OPENERS} else ""
        raise ConfigError(f"data.kind {kind!r} is unknown{of} (known: {', '.join(sorted(openers))}){hint}")
    if config.own_classes and request.task != DETECTION:
        raise ConfigError("data.own_classes: the classes of a classifier are those of its data")
    if not config.root:
        raise ConfigError("data.root is not set: pass the folder of the data, e.g. --root FOLDER")
    if request.task == DETECTION and (config.labels or config.held != HeldTime()):
        name = "data.labels (--labels)" if config.labels else "data.held"
        raise ConfigError(f"{name} is for classifiers; {SET_CLASSIFIER}")
    dataset = openers[kind](config, request)
    check_dataset(f"kind of data set {kind!r}", dataset)
    return dataset


def reported_split(config: DatasetConfig, task: str) -> str:
    """Return the split that figures are reported for: "val", or "test" of recordings with a class each."""
    return "test" if task == CLASSIFICATION and config.kind != "simulated" else "val"


def spec_of(config: DatasetConfig) -> DatasetSpec:
    """Return the classes and the sensor of a detector's data; raises ConfigError if they are unknown or cannot be used."""
    if config.spec not in SPECS:
        raise ConfigError(
            f"data.spec {config.spec!r} is unknown (known: {', '.join(sorted(SPECS))}); see also data.own_classes"
        )
    return with_own_classes(SPECS[config.spec], config.own_classes) if config.own_classes else SPECS[config.spec]


@opener("tonic", task=CLASSIFICATION)
def _classes(config: DatasetConfig, request: Request) -> Dataset:
    return open_class_windows(
        config.kind, Path(config.root), request.split, request.window_us, request.n_windows, request.cache, config.held,
        sensor_size=_sensor_size(config), table=Path(config.labels) if config.labels else None, ignored=_ignored(config),
        classes=request.classes, options=config.reading, filters=config.filters, trained_size=request.trained_size,
    )  # fmt: skip


@opener("simulated", task=CLASSIFICATION)
def _simulated_classes(config: DatasetConfig, request: Request) -> Dataset:
    r, root = request, Path(config.root)
    spec = class_spec(root, _ignored(config), r.classes, _sensor_size(config))
    return SimulatedWindows(
        root, spec, config.simulated, r.window_us, r.split, r.n_windows, r.cache, r.seed, r.workers, r.progress, r.spread
    )


def _ignored(config: DatasetConfig) -> frozenset[str]:
    """Return the classes to skip; raises ConfigError if one is renamed instead."""
    renamed = [name for name, instead in config.classes.items() if instead != "ignore"]
    if renamed:
        raise ConfigError(f"data.classes: {renamed[0]!r}: a class of a classification data set can only be ignored")
    return frozenset(config.classes)


@opener("simulated")
def _simulated(config: DatasetConfig, request: Request) -> Dataset:
    r, spec, size = request, spec_of(config), _sensor_size(config)
    return SimulatedWindows(
        Path(config.root), replace(spec, sensor_size=size) if size else spec, config.simulated,
        r.window_us, r.split, r.n_windows, r.cache, r.seed, r.workers, r.progress, r.spread,
    )  # fmt: skip


def _recorded(config: DatasetConfig, request: Request) -> Dataset:
    reading = Reading(request.window_us, _sensor_size(config), config.filters, request.cache, config.reading)

    def size_of(file: LabelledFile) -> SensorSize | None:
        with suppress(NoEventsError):
            return reading.open(file.events, file.labels.sensor_size).sensor_size
        return None

    split = read_layout(config.kind, Path(config.root), request.split, spec_of(config), config.classes, size_of)
    return RecordedWindows(split, reading, request.n_windows)


def _sensor_size(config: DatasetConfig) -> SensorSize | None:
    return SensorSize.of_setting(config.sensor_size)
