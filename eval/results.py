"""The content of results.json: typed and versioned. All tables and pages are generated from it.

`parse` checks a dictionary against these classes and rejects unknown, missing and invalid fields by name; `json_schema` is the
equivalent for other programs. AP is in percent, None if there is no label of that kind; energies are pJ per window, times
milliseconds. A change in the meaning of a field, or its removal, increments VERSION.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from evburst.data.classification import CLASSIFICATION
from evburst.data.errors import DataError
from evburst.data.extras import require
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

if TYPE_CHECKING:
    from evburst.eval.class_results import ClassResults

VERSION = 1


@dataclass(frozen=True)
class SmallestBox:
    """Minimum size of scored boxes: w^2 + h^2 >= min_diagonal_px^2, w and h >= min_side_px."""

    __pydantic_config__ = STRICT
    min_diagonal_px: float
    min_side_px: float


@dataclass(frozen=True)
class ProtocolRule:
    """Rules of the protocol on this sensor, see `evburst.eval.protocol.Protocol`."""

    __pydantic_config__ = STRICT
    name: str
    source: str
    skip_us: int | None
    tolerance_us: int
    clip: bool
    empty_frames: bool
    window_us: int | None
    smallest_box: SmallestBox


@dataclass(frozen=True)
class ClassAp:
    """AP and AP50 of one class."""

    __pydantic_config__ = STRICT
    ap: float | None
    ap50: float | None


@dataclass(frozen=True)
class LeftOutBoxes:
    """Counts of what the protocol did not score, see `evburst.eval.protocol.LeftOut`."""

    __pydantic_config__ = STRICT
    labels: int
    predictions: int
    unmatched: int
    frames: int


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix of predictions with `score` and above at one IoU: rows are labels, columns predictions."""

    __pydantic_config__ = STRICT
    score: float
    iou: float
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ScoreCalibration:
    """Scores compared with precision, in bins; `error`: expected calibration error of scores >= `from_score`."""

    __pydantic_config__ = STRICT
    from_score: float
    error: float | None
    count: tuple[int, ...]
    confidence: tuple[float | None, ...]
    precision: tuple[float | None, ...]


@dataclass(frozen=True)
class Details:
    """Data for the report: AP by class and size, recall, precision curves by class and IoU, confusion, calibration, layers.

    Attributes:
        ece: by class, the expected calibration error of boxes with a score of 0.1 and above; None in earlier results.
    """

    __pydantic_config__ = STRICT
    ap_by_size: dict[str, dict[str, float | None]]
    recall_50: dict[str, float | None]
    recalls: tuple[float, ...]
    precision_curves: dict[str, dict[str, tuple[float, ...] | None]]
    confusion: Confusion
    calibration: ScoreCalibration
    ece: dict[str, float | None] | None = None
    layers: tuple[Layer, ...] = ()


def network_label(model: str, timesteps: int | None) -> str:
    """A network as tables name it."""
    return {"ann": "ANN", "snn": f"SNN, T = {timesteps}"}.get(model, model)


@dataclass(frozen=True)
class NetworkResult:
    """Results of one network, or of one set of box files.

    Attributes:
        model: "ann", "snn" or "predictions".
        timesteps: T of a spiking network.
        engine: the engine that ran it.
        frames: number of scored frames.
        ap, ap50, ap75, ap_small, ap_medium, ap_large: COCO's AP values, in percent.
        ap_by_iou: AP at each IoU, "0.50" to "0.95".
        per_class: AP by class name.
        coco_stats: pycocotools' twelve values: fractions, -1 if there is no label of that kind.
        left_out: counts of what the protocol did not score.
        ap_loss, ap50_loss, ap_loss_by_iou: the ANN's AP minus this network's; None if the ANN was not evaluated.
        energy, memory, neurobench, latency_ms, timing: of networks that were run by this evaluation.
        details: data for the report; omitted where results are printed.
    """

    __pydantic_config__ = STRICT
    model: str
    timesteps: int | None
    frames: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ap_by_iou: dict[str, float | None]
    per_class: dict[str, ClassAp]
    coco_stats: tuple[float, ...]
    left_out: LeftOutBoxes
    engine: str | None = None
    ap_loss: LossInterval | None = None
    ap50_loss: LossInterval | None = None
    ap_loss_by_iou: dict[str, LossInterval] | None = None
    energy: Energy | None = None
    latency_ms: dict[str, float] | None = None
    timing: NetworkTiming | None = None
    memory: Memory | None = None
    neurobench: NeuroBench | None = None
    details: Details | None = None

    @property
    def label(self) -> str:
        """Name of the network in tables."""
        return network_label(self.model, self.timesteps)


@dataclass(frozen=True)
class FilePair:
    """Names of two box files that were scored against each other."""

    __pydantic_config__ = STRICT
    predictions: str
    labels: str


@dataclass(frozen=True)
class Results:
    """The content of results.json.

    Attributes:
        version: see VERSION.
        results: one entry per network, in the requested order.
        protocol, protocol_rule: the evaluation protocol; quote its name with AP values.
        sensor_size: (W, H) px.
        classes: class names in the order of their indices.
        coco_stats_names: names of the values in `coco_stats`.
        dataset: kind of the data, or "files".
        split: None for box files.
        provenance: commit, package versions and processor.
        config: settings.
        coco_stats: values for box files.
        ap_loss, ap50_loss: those of the first spiking network.
        windows, recordings: numbers evaluated.
        idle_windows: number of these windows with too few events, which were not run: no boxes, no energy.
        unlabelled_files: number of event files skipped because they have no labels.
        faults: counts of events that were repaired or dropped while reading, by kind.
        window_ms: length of a window.
        downsample: side of the blocks of pixels that the networks saw as one.
        memory: whether the networks held features from window to window.
        weights, weights_record: name of the weights, and the record in their file.
        files: the pairs of box files.
        clock: what each time measures.
        timing: timing of the evaluation.
        task: "detection"; `evburst.eval.class_results.ClassResults` holds the results of a classifier.
    """

    __pydantic_config__ = STRICT
    version: int
    results: tuple[NetworkResult, ...]
    protocol: str
    protocol_rule: ProtocolRule
    sensor_size: tuple[int, int]
    classes: tuple[str, ...]
    coco_stats_names: tuple[str, ...]
    dataset: str
    split: str | None
    provenance: Provenance
    config: dict[str, Any]
    coco_stats: tuple[float, ...] | None = None
    ap_loss: LossInterval | None = None
    ap50_loss: LossInterval | None = None
    windows: int | None = None
    idle_windows: int = 0
    recordings: int | None = None
    unlabelled_files: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    window_ms: float | None = None
    downsample: int = 1
    memory: bool = False
    weights: str | None = None
    weights_record: dict[str, Any] | None = None
    files: tuple[FilePair, ...] = ()
    clock: dict[str, str] = field(default_factory=dict)
    timing: RunTiming | None = None
    task: Literal["detection"] = "detection"

    def __post_init__(self) -> None:
        check_version(self.version, self.results)

    @property
    def main(self) -> NetworkResult:
        """The network shown where there is room for one: the first spiking one, or else the first."""
        return next((row for row in self.results if row.model == "snn"), self.results[0])

    @property
    def title(self) -> str:
        """Title of the results: weights, data and split, and blocks of pixels."""
        split = f", {self.split} split" if self.split else ""
        memory = " with memory" if self.memory else ""
        return f"{self.weights or 'predictions'}{memory} on {self.dataset}{split}{in_blocks(self.downsample)}"


def check_version(version: int, results: Sequence[object]) -> None:
    """Raise ValueError for another version, or without a result."""
    if version != VERSION:
        raise ValueError(f"version is {version}; this program reads version {VERSION}")
    if not results:
        raise ValueError("results is empty")


def parse(content: dict[str, Any]) -> Results | ClassResults:
    """Check a dictionary in JSON types and convert it, by its `task`.

    Raises:
        DataError: a field is missing, unknown or of the wrong type; the message names it.
    """
    adapter = _adapter(content.get("task") == CLASSIFICATION)
    from pydantic import ValidationError

    try:
        results: Results | ClassResults = adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "results"
        raise DataError(f"{place}: {first['msg']} (results.json, version {VERSION})") from None
    return results


def read_results(path: Path) -> Results | ClassResults:
    """Read a results.json.

    Raises:
        DataError: the file cannot be read, is not JSON, or is not a results file; the message names the field.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or "version" not in content:
        raise DataError(f"{path}: not a results.json of this version; run evburst evaluate again")
    try:
        return parse(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def to_json(results: Results | ClassResults) -> str:
    """Serialise results as written to the file."""
    return json.dumps(finite(asdict(results)), indent=1, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks (records of older weights contain some), by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of results.json, for either task."""
    require("pydantic", "eval", "checking results.json")
    from pydantic import TypeAdapter

    from evburst.eval.class_results import ClassResults

    either: Any = TypeAdapter(Results | ClassResults)
    schema = either.json_schema()
    detection, classification = schema.pop("anyOf")
    task = {"properties": {"task": {"const": CLASSIFICATION}}, "required": ["task"]}
    own = {"if": task, "then": classification, "else": detection}  # so that an error names a field, not the union
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **own}


@cache
def _adapter(classification: bool = False) -> Any:
    require("pydantic", "eval", "checking results.json")
    from pydantic import TypeAdapter

    from evburst.eval.class_results import ClassResults

    return TypeAdapter(ClassResults if classification else Results)
