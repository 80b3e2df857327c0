"""Schema of a classifier's results.json; it shares its version with `evburst.eval.results` and has `task` "classification".

Figures are percentages of recordings (or pictures), each classified by the mean of its windows' scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from evburst.eval.result_parts import (
    STRICT,
    Energy,
    Layer,
    LossInterval,
    Memory,
    NetworkTiming,
    NeuroBench,
    Provenance,
    RunTiming,
    in_blocks,
)
from evburst.eval.results import check_version, network_label

PROTOCOL = "top-1 of recordings"


@dataclass(frozen=True)
class ClassTop1:
    """Number of recordings of one class, and their top-1 in percent."""

    __pydantic_config__ = STRICT
    count: int
    top1: float | None


@dataclass(frozen=True)
class ClassCalibration:
    """Mean score and accuracy by bins of the score; `error`: expected calibration error, in [0, 1]."""

    __pydantic_config__ = STRICT
    error: float | None
    count: tuple[int, ...]
    score: tuple[float | None, ...]
    right: tuple[float | None, ...]


@dataclass(frozen=True)
class ClassDetails:
    """Data of the report's charts: confusion matrix (rows: labels, columns: predictions) and energy by layer."""

    __pydantic_config__ = STRICT
    confusion: tuple[tuple[int, ...], ...]
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class ClassNetworkResult:
    """Results of one network.

    Attributes:
        model: "ann" or "snn".
        timesteps: T of a spiking network; None for the ANN.
        engine: engine that ran the network.
        recordings: number of recordings scored.
        top1, top5: share of recordings whose class has the highest score, or one of the five highest.
        window_top1: top-1 of single windows.
        per_class: results by class name.
        calibration: calibration of the recordings' scores.
        top1_loss: the ANN's top-1 minus this network's; None if the ANN was not evaluated.
        energy, memory, neurobench, latency_ms, timing: as for detectors.
        details: data of the report's charts; omitted when results are printed.
    """

    __pydantic_config__ = STRICT
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
        """Name of the network in tables."""
        return network_label(self.model, self.timesteps)


@dataclass(frozen=True)
class ClassResults:
    """The content of results.json.

    Attributes:
        version: see `evburst.eval.results.VERSION`.
        task: "classification".
        results: results of each network, in the requested order.
        classes: class names, in the order of their indices.
        sensor_size: (W, H) px.
        dataset: kind of the data set.
        split: split of the data set.
        windows, recordings: number of windows and recordings evaluated.
        idle_windows: number of windows with too few events, which were not run.
        top1_loss: the loss of the first spiking network.
        window_ms: length of a window.
        downsample: side of the blocks of pixels that the networks saw as one.
        weights, weights_record: name of the weights, and the record in their file.
        faults, clock, config, provenance, timing: as for detectors.
    """

    __pydantic_config__ = STRICT
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
    downsample: int = 1

    def __post_init__(self) -> None:
        check_version(self.version, self.results)

    @property
    def main(self) -> ClassNetworkResult:
        """The network for which single figures are reported: the first spiking one, or else the first."""
        return next((row for row in self.results if row.model == "snn"), self.results[0])

    @property
    def title(self) -> str:
        """Weights, data and split, and blocks of pixels."""
        return f"{self.weights} on {self.dataset}, {self.split} split{in_blocks(self.downsample)}"

    @property
    def protocol(self) -> str:
        """Name of the protocol in tables."""
        return PROTOCOL
