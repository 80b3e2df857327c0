"""What results.json holds of a classifier: like `evburst.eval.results`, whose version it shares, with `task` "classification".

Figures are of recordings (or pictures), each by the mean of its windows' scores, in percent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from evburst.eval.results import (
    Energy,
    Layer,
    LossInterval,
    Memory,
    NetworkTiming,
    NeuroBench,
    Provenance,
    RunTiming,
    check_version,
    network_label,
)

PROTOCOL = "top-1 of recordings"
_STRICT = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True)
class ClassTop1:
    """Recordings of one class, and the share of them that is found, in percent."""

    __pydantic_config__ = _STRICT
    count: int
    top1: float | None


@dataclass(frozen=True)
class ClassCalibration:
    """Scores against the share that is right, in bins; `error`: expected calibration error, in [0, 1]."""

    __pydantic_config__ = _STRICT
    error: float | None
    count: tuple[int, ...]
    score: tuple[float | None, ...]
    right: tuple[float | None, ...]


@dataclass(frozen=True)
class ClassDetails:
    """What a page draws: counts of classes (rows) and of what was said (columns), and energy by layer."""

    __pydantic_config__ = _STRICT
    confusion: tuple[tuple[int, ...], ...]
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class ClassNetworkResult:
    """One network.

    Attributes:
        model: "ann" or "snn".
        timesteps: T of a spiking network.
        engine: that ran it.
        recordings: how many were scored.
        top1, top5: share of recordings whose class scores best, or is among the best five.
        window_top1: the same of single windows.
        per_class: by name.
        calibration: of the recordings' scores.
        top1_loss: the ANN's top-1 minus this network's; None where the ANN was not evaluated.
        energy, memory, neurobench, latency_ms, timing: as of detectors.
        details: what a page draws; left out where results are printed.
    """

    __pydantic_config__ = _STRICT
    model: str
    timesteps: int | None
    engine: str | None
    recordings: int
    top1: float
    top5: float
    window_top1: float
    per_class: dict[str, ClassTop1]
    calibration: ClassCalibration
    energy: Energy
    latency_ms: dict[str, float]
    timing: NetworkTiming
    memory: Memory
    neurobench: NeuroBench
    top1_loss: LossInterval | None = None
    details: ClassDetails | None = None

    @property
    def label(self) -> str:
        """As tables name it."""
        return network_label(self.model, self.timesteps)


@dataclass(frozen=True)
class ClassResults:
    """The content of results.json.

    Attributes:
        version: see `evburst.eval.results.VERSION`.
        task: "classification".
        results: one for each network, in the order asked for.
        classes: in the order of their indices.
        sensor_size: (W, H) px.
        dataset: kind of the data.
        split: of them.
        windows, recordings: how many were evaluated.
        idle_windows: windows among them with too few events, which were not run and have no say.
        top1_loss: of the first spiking network.
        window_ms: length of a window.
        weights, weights_record: their name, and what their file says of them.
        faults, clock, config, provenance, timing: as of detectors.
    """

    __pydantic_config__ = _STRICT
    version: int
    task: Literal["classification"]
    results: tuple[ClassNetworkResult, ...]
    classes: tuple[str, ...]
    sensor_size: tuple[int, int]
    dataset: str
    split: str
    windows: int
    recordings: int
    idle_windows: int
    window_ms: float
    weights: str
    weights_record: dict[str, Any]
    provenance: Provenance
    config: dict[str, Any]
    top1_loss: LossInterval | None = None
    faults: dict[str, int] = field(default_factory=dict)
    clock: dict[str, str] = field(default_factory=dict)
    timing: RunTiming | None = None

    def __post_init__(self) -> None:
        check_version(self.version, self.results)

    @property
    def main(self) -> ClassNetworkResult:
        """The network that single figures are of: the first spiking one, or else the first."""
        return next((row for row in self.results if row.model == "snn"), self.results[0])

    @property
    def title(self) -> str:
        """Weights, data and split."""
        return f"{self.weights} on {self.dataset}, {self.split} split"

    @property
    def protocol(self) -> str:
        """What tables name the figures' protocol."""
        return PROTOCOL
