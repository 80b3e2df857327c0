"""Every dataset by name: `open_dataset` is where training, conversion and evaluation get their windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from evburst.data.datasets import SPECS, Dataset
from evburst.data.datasets.layouts import LAYOUTS, Found, read_layout
from evburst.data.datasets.recorded import Reading, RecordedWindows
from evburst.data.datasets.simulated import SimulatedConfig, SimulatedWindows
from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize
from evburst.data.filters import FiltersConfig


@dataclass(frozen=True)
class DatasetConfig:
    """Which data.

    Attributes:
        kind: gen1, ncaltech101, simulated, pedro, folder or another of the registry.
        root: folder of the data.
        spec: classes and sensor, by a name in evburst.data.datasets.SPECS.
        sensor_size: WIDTHxHEIGHT; simulated: if it is not the spec's; recorded: of files that do not say it themselves.
        classes: names (or class ids) of label files to classes of the spec, or to "ignore", e.g. {Car: car, "3": ignore}.
        filters: which events of recordings are removed.
        simulated: how recordings are made of pictures.
    """

    kind: str = "simulated"
    root: str = ""
    spec: str = "street"
    sensor_size: str | None = None
    classes: dict[str, str] = field(default_factory=dict)
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    simulated: SimulatedConfig = field(default_factory=SimulatedConfig)


@dataclass(frozen=True)
class Request:
    """What is asked of a dataset.

    Attributes:
        split: e.g. "train".
        window_us: length of a window.
        n_windows: how many; 0: all there are.
        cache: folder for what is made once.
        seed: of everything random.
        workers: processes that simulate (0: as many as cores).
        progress: called with the number of windows made so far.
        spread: take `n_windows` evenly from all there are; recordings always are, simulated windows are otherwise the first ones.
    """

    split: str
    window_us: int
    n_windows: int = 0
    cache: Path = Path("runs/cache")
    seed: int = 0
    workers: int = 0
    progress: Callable[[int], object] = lambda done: None
    spread: bool = False


Opener = Callable[[DatasetConfig, Request], Dataset]
OPENERS: dict[str, Opener] = {}


def opener(*kinds: str) -> Callable[[Opener], Opener]:
    """Register how one or several kinds of dataset are opened."""

    def register(function: Opener) -> Opener:
        OPENERS.update(dict.fromkeys(kinds, function))
        return function

    return register


def open_dataset(config: DatasetConfig, request: Request) -> Dataset:
    """The windows asked for.

    Raises:
        ConfigError: the kind or the spec is not known, or no root is given.
        DataError: the data are missing or malformed.
    """
    for what, name, known in (("data.kind", config.kind, OPENERS), ("data.spec", config.spec, SPECS)):
        if name not in known:
            raise ConfigError(f"{what} {name!r} is unknown (known: {', '.join(sorted(known))})")
    if not config.root:
        raise ConfigError("data.root: say where the data are, e.g. --root FOLDER")
    return OPENERS[config.kind](config, request)


@opener("simulated")
def _simulated(config: DatasetConfig, request: Request) -> Dataset:
    r, spec, size = request, SPECS[config.spec], _sensor_size(config)
    return SimulatedWindows(
        Path(config.root), replace(spec, sensor_size=size) if size else spec, config.simulated,
        r.window_us, r.split, r.n_windows, r.cache, r.seed, r.workers, r.progress, r.spread,
    )  # fmt: skip


@opener(*LAYOUTS)
def _recorded(config: DatasetConfig, request: Request) -> Dataset:
    reading = Reading(request.window_us, _sensor_size(config), config.filters, request.cache)

    def size_of(found: Found) -> SensorSize:
        return reading.open(found.events, found.labels.sensor_size).sensor_size

    layout = read_layout(config.kind, Path(config.root), request.split, SPECS[config.spec], config.classes, size_of)
    return RecordedWindows(layout, reading, request.n_windows)


def _sensor_size(config: DatasetConfig) -> SensorSize | None:
    return SensorSize.parse(config.sensor_size) if config.sensor_size else None
