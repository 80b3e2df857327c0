"""Every dataset by name: `open_dataset` is where training, conversion and evaluation get their windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from evburst.data.datasets import SPECS, Dataset, DatasetSpec
from evburst.data.datasets.recorded import LAYOUTS, RecordedWindows
from evburst.data.datasets.simulated import SimulatedConfig, SimulatedWindows
from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize


@dataclass(frozen=True)
class DatasetConfig:
    """Which data.

    Attributes:
        kind: gen1, ncaltech101, simulated, pedro or folder.
        root: folder of the data.
        spec: classes and sensor, by a name in evburst.data.datasets.SPECS.
        sensor_size: WIDTHxHEIGHT, if it is not the spec's.
        simulated: how recordings are made of pictures.
    """

    kind: str = "simulated"
    root: str = ""
    spec: str = "street"
    sensor_size: str | None = None
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


def opener(kind: str) -> Callable[[Opener], Opener]:
    """Register how a kind of dataset is opened."""

    def register(function: Opener) -> Opener:
        OPENERS[kind] = function
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
    r = request
    return SimulatedWindows(
        Path(config.root), _spec(config), config.simulated,
        r.window_us, r.split, r.n_windows, r.cache, r.seed, r.workers, r.progress, r.spread,
    )  # fmt: skip


def _recorded(config: DatasetConfig, request: Request) -> Dataset:
    layout = LAYOUTS[config.kind](Path(config.root), request.split, _spec(config))
    return RecordedWindows(layout, request.window_us, request.n_windows)


def _spec(config: DatasetConfig) -> DatasetSpec:
    spec = SPECS[config.spec]
    return replace(spec, sensor_size=SensorSize.parse(config.sensor_size)) if config.sensor_size else spec


OPENERS.update(dict.fromkeys(LAYOUTS, _recorded))
