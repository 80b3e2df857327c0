"""Predictions and operation counts of networks on a data set, computed part by part, cached, and divided among processes.

A part consists of the labelled windows of one recording (evburst.data.datasets.Part). Its result is stored in a file whose name
contains a digest of everything that determines it. A part with a file is not computed again, so an interrupted evaluation can
be resumed. Only boxes and counts are kept after each batch. A batch never spans two parts, so results do not depend on how
parts are divided among processes.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.app.dataset_runs import concatenate, run_batches
from evburst.app.inference import BATCH, Inference, Stats, WindowResult
from evburst.app.runs import block_side
from evburst.data.boxes import BBOX_DTYPE
from evburst.data.datasets import Dataset, Part
from evburst.data.datasets.recorded import RecordedWindows
from evburst.data.datasets.simulated import SimulatedWindows
from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow, SensorSize, check_sensor_size
from evburst.data.files import replacing, shortened
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.stats import OPTIONAL_COUNTS, ActivityStats, LayerStats, MemoryGeometry, SpikeStats
from evburst.eval.protocol import RecordingBoxes
from evburst.models.activity import ActivityRunner
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.graph import Memory
from evburst.models.runtime import ENGINES
from evburst.models.spiking.network import SpikingNetwork

_APART_US = 1_000_000
_VERSION = 6
_LAYER_FIELDS = ("name", "kind", "neurons", "timesteps", "spikes", "synaptic_ops", "graded_ops")


class Run(NamedTuple):
    """A network to be evaluated: "ann" (timesteps 0), or "snn" with T timesteps."""

    model: str
    timesteps: int


@dataclass(frozen=True)
class PartResult:
    """The result of one network on one part.

    Attributes:
        boxes: predictions and labels by time; windows that are not from a recording get times one second apart.
        stats: operation counts of the windows that were not idle; None if all were idle.
        idle: number of idle windows.
        faults: number of repaired faults in the recording, by kind.
        scores: class scores of each window: `(windows, K)` float32, NaN if it was idle; for a detector `(windows, 0)`.
        names: the recording or picture of each window.
    """

    boxes: RecordingBoxes
    stats: Stats | None
    idle: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    names: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the content of an .npz file."""
        b = self.boxes
        start = [] if b.start_us is None else [b.start_us]
        arrays: dict[str, Any] = {"labels": b.labels, "predictions": b.predictions, "times_us": b.times_us, "start_us": start}
        arrays |= {"idle": np.array(self.idle), "faults": np.array(json.dumps(self.faults))}
        arrays |= {"scores": self.scores, "names": np.array(json.dumps(self.names))}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays, **_stats_to_arrays(self.stats))  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PartResult:
        """Read the bytes from `to_bytes`; raise ValueError or KeyError for other content."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ValueError(str(error)) from None
        start = [int(t) for t in arrays["start_us"]]
        boxes = RecordingBoxes(arrays["labels"], arrays["predictions"], arrays["times_us"], start[0] if start else None)
        faults, names = (json.loads(str(arrays[name])) for name in ("faults", "names"))
        return cls(boxes, _stats_from_arrays(arrays), int(arrays["idle"]), faults, arrays["scores"], tuple(names))


class _CountingAnn(GridDetector):
    """The ANN, which also counts the operations of hardware that skips zeros."""

    def __init__(self, bundle: Bundle, post: PostConfig, device: str) -> None:
        super().__init__(bundle, post, ann=True, device=device)
        self._runner = ActivityRunner(bundle.graph.on(self.device))

    def _run(self, x: Tensor, count: bool, memory: Memory | None) -> tuple[list[Tensor], ActivityStats]:
        return self._runner.run(x.float(), memory)


class EvaluatedNetwork:
    """The network of one run, prepared for the windows of a sensor.

    Args:
        bundle: the weights.
        run: which network to use.
        post: thresholds.
        voxel: how windows are binned.
        sensor_size: (W, H) px.
        device: device to run on.
        engine: engine that runs the spiking network, see models/runtime.
        downsample: side of the blocks of pixels that the network sees as one; 0: chosen by the sensor's size.

    Attributes:
        timed: the network as in normal use, for timing; operations are counted as often as is the engine's default.
        counted: the network with operation counts; for the ANN, these need an additional pass over its activations.
    """

    def __init__(
        self,
        bundle: Bundle,
        run: Run,
        post: PostConfig,
        voxel: VoxelConfig,
        sensor_size: SensorSize,
        device: str,
        engine: str,
        downsample: int,
    ) -> None:
        self.run, self._bundle, side = run, bundle, block_side(downsample, sensor_size, bundle.trained_size)
        ann = run.model == "ann"
        self._detector = detector = GridDetector(bundle, post, ann, run.timesteps or None, device, engine)
        self.engine = None if ann else detector.engine
        every = 1 if ann else ENGINES[detector.engine].count_every
        counting = _CountingAnn(bundle, post, device) if ann else detector
        self.timed = Inference(detector, voxel, sensor_size, spiking=not ann, downsample=side, count_every=every)
        self.counted = Inference(counting, voxel, sensor_size, spiking=not ann, downsample=side)

    def memory_geometry(self) -> MemoryGeometry:
        """Return the sizes that memory traffic depends on, for one window."""
        return self._detector.memory_geometry(*self.timed.seen_shape)

    def count(self, grids: NDArray[np.uint8]) -> SpikeStats:
        """Return the counts of the reference engine, which also include active neurons."""
        parameters = replace(self._bundle.parameters, timesteps=self.run.timesteps)
        return SpikingNetwork(self._bundle.spiking, parameters).run(torch.from_numpy(grids))[1]


class Predictor:
    """Runs networks over the parts of a dataset.

    Args:
        dataset: the windows.
        networks: the networks to run; all must use the same binning and stride.
        folder: folder of cached results.
        settings: everything else on which results depend; JSON types.
    """

    def __init__(self, dataset: Dataset, networks: Sequence[EvaluatedNetwork], folder: Path, settings: dict[str, Any]) -> None:
        self.dataset, self.networks, self.voxel = dataset, networks, networks[0].timed.voxel
        self._folder, self._settings = folder, json.dumps([_VERSION, BATCH, settings], sort_keys=True)

    def predict(self, part: Part, number: int, progress: Callable[[int], object]) -> list[PartResult]:
        """Return the result of each network on a part; `progress` is called with the number of windows done."""
        paths = [self._path(part, number, network.run) for network in self.networks]
        results = [_load(path) for path in paths]
        missing = [k for k, result in enumerate(results) if result is None]
        for k, result in zip(missing, self._compute(part, [self.networks[k] for k in missing], progress), strict=True):
            with replacing(paths[k]) as file:
                file.write_bytes(result.to_bytes())
            results[k] = result
        if not missing:
            progress(len(part.items))
        return [result for result in results if result is not None]

    def grid(self, window: EventWindow) -> NDArray[np.uint8]:
        """Return the padded grid of a window, `(channels, H, W)` uint8 in pixels of the sensor."""
        inference = self.networks[0].timed
        return inference.bin(window, inference.new_grid()).grid

    def seen(self, window: EventWindow) -> NDArray[np.uint8]:
        """Return the grid of a window as the networks see it, padded: `(channels, H, W)` uint8."""
        return np.asarray(self.networks[0].timed.as_seen([self.grid(window)], 1)[0])

    def _path(self, part: Part, number: int, run: Run) -> Path:
        key = hashlib.sha256(f"{self._settings} {run} {part}".encode(errors="surrogatepass")).hexdigest()[:12]
        return self._folder / f"{number:06d}_{shortened(part.name)}_{run.model}{run.timesteps or ''}_{key}.npz"

    def _compute(self, part: Part, networks: Sequence[EvaluatedNetwork], progress: Callable[[int], object]) -> list[PartResult]:
        if not networks:
            return []
        start_us = self.dataset.start_us(part.items[0])
        n_classes = len(self.dataset.spec.classes) if self.dataset.spec.whole else 0
        labels: list[NDArray[np.void]] = []
        times: list[int] = []
        predictions: list[list[NDArray[np.void]]] = [[] for _ in networks]
        counted: list[list[Stats]] = [[] for _ in networks]
        scores: list[list[NDArray[np.float32]]] = [[] for _ in networks]
        names: list[str] = []
        inside = outside = idle = 0
        for done in run_batches([network.counted for network in networks], self.dataset, part.items):
            for k, i in enumerate(done.items):
                boxes = self.dataset.labels(i)
                times.append(_APART_US * (len(times) + 1) if start_us is None else boxes.t_us)
                labels.append(replace(boxes, t_us=times[-1]).to_prophesee())
                for rows, counts, class_scores, results in zip(predictions, counted, scores, done.results, strict=True):
                    class_scores.append(_scores_of(results[k], n_classes))
                    rows.append(replace(results[k].detections, t_us=times[-1]).to_prophesee())
                    if (stats := results[k].stats) is not None:
                        counts.append(stats)
            names += done.names
            inside, outside = inside + done.events, outside + done.outside
            idle += sum(result.idle for result in done.results[0])
            progress(len(done.items))
        check_sensor_size(part.name, self.dataset.spec.sensor_size, inside, outside)
        label_rows, instants = np.concatenate(labels), np.array(times, np.int64)
        faults = self.dataset.faults_of(part.items[0])
        return [
            PartResult(
                RecordingBoxes(label_rows, np.concatenate([np.zeros(0, BBOX_DTYPE), *rows]), instants, start_us),
                concatenate(counts) if counts else None,
                idle,
                faults,
                np.array(class_scores, np.float32).reshape(len(names), n_classes),
                tuple(names),
            )
            for rows, counts, class_scores in zip(predictions, counted, scores, strict=True)
        ]


def check_consecutive(dataset: Dataset, window_us: int, limited: bool) -> None:
    """Check that windows of a data set follow each other, as a network with memory needs it; `limited`: it is cut by --limit.

    Raises:
        ConfigError: labelled windows overlap, or every window stands alone.
    """
    alone = True
    for part in dataset.parts():
        if isinstance(dataset, RecordedWindows):
            ends = [dataset.labels(i).t_us for i in part.items]
            alone = alone and not dataset.ends_between(None, part.items[0])
        else:
            ends = [dataset[i].window.t1_us for i in part.items]
        apart = np.diff(ends)
        if (close := apart[(apart > 0) & (apart < window_us)]).size:
            raise ConfigError(
                f"memory: windows of a network with memory follow each other; in {part.name} labels lie {close[0] / 1000:g} ms "
                f"apart, and windows are {window_us / 1000:g} ms long: choose fewer labels with --limit, or leave --memory out"
            )
        alone = alone and not (apart > 0).any()
    if alone:
        can_follow = isinstance(dataset, SimulatedWindows) and dataset.spec.has_sequences
        raise ConfigError(
            "memory: no window of these data follows another, so nothing can be held: leave --memory out"
            + (", or raise --limit" * limited)
            + (", or set --set data.simulated.sequence=32" if can_follow else "")
        )


def _scores_of(result: WindowResult, n_classes: int) -> NDArray[np.float32]:
    """Return the class scores `(K,)` of a window, NaN if it was idle; `(0,)` for a detector."""
    return np.full(n_classes, np.nan, np.float32) if result.classification is None else result.classification.scores


def _load(path: Path) -> PartResult | None:
    try:
        return PartResult.from_bytes(path.read_bytes())
    except (OSError, ValueError, KeyError):
        return None


def _stats_to_arrays(stats: Stats | None) -> dict[str, NDArray[Any]]:
    if stats is None:
        return {}
    arrays: dict[str, Any] = {"dense_names": list(stats.dense_macs), "dense_macs": list(stats.dense_macs.values())}
    if isinstance(stats, ActivityStats):
        effective = np.array(list(stats.effective_macs.values()))
        arrays |= {"effective_macs": effective, "active": stats.active, "units": stats.units}
        if stats.macs_beyond_silence is not None:
            arrays["macs_beyond_silence"] = np.array(list(stats.macs_beyond_silence.values()))
    else:
        for name in _LAYER_FIELDS:
            arrays[f"layer_{name}"] = [getattr(layer, name) for layer in stats.layers]
        none = np.full(len(stats.layers[0].spikes), -1.0)
        for name in OPTIONAL_COUNTS:
            counts = [getattr(layer, name) for layer in stats.layers]
            arrays[f"layer_{name}"] = [none if own is None else own for own in counts]
    return {name: np.asarray(array) for name, array in arrays.items()}


def _stats_from_arrays(a: dict[str, NDArray[Any]]) -> Stats | None:
    if "dense_names" not in a:
        return None
    names = [str(name) for name in a["dense_names"]]
    dense = dict(zip(names, a["dense_macs"].tolist(), strict=True))
    if "effective_macs" in a:
        effective = dict(zip(names, a["effective_macs"], strict=True))
        beyond = dict(zip(names, a["macs_beyond_silence"], strict=True)) if "macs_beyond_silence" in a else None
        return ActivityStats(dense, effective, a["active"], int(a["units"]), beyond)
    columns = [a[f"layer_{name}"] for name in (*_LAYER_FIELDS, *OPTIONAL_COUNTS)]
    layers = []
    for name, kind, neurons, timesteps, spikes, operations, graded, *optional in zip(*columns, strict=True):
        counted = [None if (own < 0).any() else own for own in optional]
        layers.append(LayerStats(str(name), kind.item(), int(neurons), int(timesteps), spikes, operations, graded, *counted))
    return SpikeStats(tuple(layers), dense)
