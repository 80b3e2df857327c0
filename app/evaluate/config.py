"""Settings of evaluate, with defaults from the training data of the weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from evburst.app.config import load_config
from evburst.app.lead import MOST_LEAD_MS
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import SPECS
from evburst.data.datasets.registry import MAX_SEED, DatasetConfig, reported_split
from evburst.data.errors import require_all, require_within
from evburst.data.representations.voxel_grid import DOWNSAMPLE_LIMITS, WINDOW_LIMITS_MS
from evburst.eval.bootstrap import RESAMPLES
from evburst.eval.energy import COST_TABLES
from evburst.models.bundle import Bundle
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.layout import TIMESTEP_LIMITS
from evburst.models.runtime import check_engine
from evburst.models.tasks import task_of

_OF_RECORDINGS = ("reading", "filters")
"""Settings of data that say how recordings are read."""
_OWN_SPECS = ("pedro", "1mpx")
"""Kinds of data that define their own classes and sensor, for weights that were trained on data of another kind."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of evaluate.

    Attributes:
        data: the data set; its spec and its simulation, and for the kind of data that was trained on its mapping of classes,
            its sensor size, its columns and units, and its filters, are taken from the weights unless set.
        split: train, val or test; for classifiers of recordings train, select or test, and val means test.
        weights: name of bundled weights, or a file.
        ann, snn: whether to evaluate the ANN, and the spiking network.
        timesteps: timesteps T of the spiking network, with one result for each; empty: the number for which the weights were
            calibrated.
        protocol: prophesee, prophesee-toolbox, cordone or coco; None: prophesee for gen1, 1mpx and box files, otherwise coco.
        limit: largest number of windows, spread evenly; 0: all.
        workers: number of processes that simulate (0: one per core).
        latency_windows: number of windows that are timed, one at a time.
        streaming_windows: number of labelled times for which latency-aware AP is also computed.
        lead_ms: for latency-aware AP, predict boxes for this long after the end of their window, as in detect.
        stride_ms: for latency-aware AP, time from one window's end to the next one's, as in detect; None: their length.
        energy_table: number format of single energy figures: int8, fp16 or fp32; tables have all three.
        resamples: number of bootstrap resamples for the interval of the spiking network's loss.
        device: device to run on.
        engine: engine that runs the spiking network, as in detect.
        cache: folder of simulated windows.
        seed: seed of simulated windows.
        downsample: side of the blocks of pixels that the network sees as one, as in detect; 0: automatic.
        memory: give a YOLO detector a memory, as in detect; the windows between labelled ones are run as well.
        post: thresholds of the boxes.
    """

    data: DatasetConfig = field(default_factory=DatasetConfig)
    split: str = "val"
    weights: str = "street"
    ann: bool = False
    snn: bool = True
    timesteps: tuple[int, ...] = ()
    protocol: str | None = None
    limit: int = 0
    workers: int = 0
    latency_windows: int = 100
    streaming_windows: int = 256
    lead_ms: float = 0.0
    stride_ms: float | None = None
    energy_table: str = "int8"
    resamples: int = RESAMPLES
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: str = "auto"
    cache: str = "runs/cache"
    seed: int = 0
    downsample: int = 0
    memory: bool = False
    post: PostConfig = field(default_factory=lambda: PostConfig(score=0.001))  # as SCORED; the help is read from here

    def __post_init__(self) -> None:
        require_within(
            self,
            timesteps=TIMESTEP_LIMITS,
            seed=(0, MAX_SEED),
            lead_ms=(0, MOST_LEAD_MS),
            stride_ms=WINDOW_LIMITS_MS,
            downsample=DOWNSAMPLE_LIMITS,
            resamples=(0, 100_000),
        )
        checks = {
            "limit, workers and streaming_windows must not be negative": min(self.limit, self.workers, self.streaming_windows)
            >= 0,
            "latency_windows must be positive": self.latency_windows > 0,
            "ann or snn must be true": self.ann or self.snn,
            "the ANN has no timesteps and engine: leave them out, or evaluate both networks": self.snn
            or (not self.timesteps and self.engine == "auto"),
            f"energy_table must be one of {', '.join(COST_TABLES)}": self.energy_table in COST_TABLES,
            "device must be auto, cpu or cuda": self.device in ("auto", "cpu", "cuda"),
        }
        require_all(checks, self)
        check_engine(self.engine)


def load_evaluation(file: Path | None, assignments: list[str]) -> tuple[EvaluateConfig, Bundle]:
    """Load the configuration, with defaults from the training data of the weights, and the weights.

    Raises:
        EvburstError: a setting or the weights cannot be used.
    """
    given = load_config(EvaluateConfig, file, assignments)
    bundle = Bundle.load(given.weights)
    training_data = bundle.record.get("training", {}).get("config", {}).get("data", {})
    if task_of(bundle.head).name == CLASSIFICATION:
        config = load_config(EvaluateConfig, file, assignments, {"data": _class_data(training_data, file, assignments)})
        split = reported_split(config.data, CLASSIFICATION) if config.split == "val" else config.split
        return replace(config, split=split), bundle
    spec = training_data.get("spec", bundle.record.get("dataset"))
    is_same_kind = given.data.kind == training_data.get("kind")
    is_own = given.data.kind in _OWN_SPECS and not is_same_kind
    base: dict[str, Any] = {"spec": given.data.kind if is_own else spec if spec in SPECS else "street"}
    if spec not in SPECS:
        base["own_classes"] = bundle.head.classes
    of_same_kind = ("classes", "sensor_size", *_OF_RECORDINGS) if is_same_kind else ()
    names = ("simulated", "own_classes", *of_same_kind)
    base |= {name: training_data[name] for name in names if name in training_data}
    return load_config(EvaluateConfig, file, assignments, {"data": base}), bundle


def _class_data(training_data: dict[str, Any], file: Path | None, assignments: list[str]) -> dict[str, Any]:
    """Return default settings of the data for a classifier: its training data, unless another kind is set."""
    kind_in_training = {"kind": training_data["kind"]} if "kind" in training_data else {}
    kind = load_config(EvaluateConfig, file, assignments, {"data": kind_in_training}).data.kind
    of_same_kind = ("kind", "classes", "sensor_size", "held", *_OF_RECORDINGS)
    names = (*(of_same_kind if kind == training_data.get("kind") else ()), "simulated")
    return {name: training_data[name] for name in names if name in training_data}
