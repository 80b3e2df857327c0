"""Networks run over a dataset, part by part: predictions and counts, kept on disk, shared out among processes.

A part is the labelled windows of one recording (evburst.data.datasets.Part). Its result is one file, named after everything it depends
on; what is there already is not computed again, so an interrupted evaluation goes on where it was. Nothing but boxes and counts
outlives a batch.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from evburst.data.boxes import BBOX_DTYPE, Detections
from evburst.data.datasets import Dataset, Part
from evburst.data.errors import SensorSizeError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig, padded_size, voxel_histogram
from evburst.data.stats import ActivityStats, LayerStats, SpikeStats
from evburst.eval.protocol import RecordingBoxes
from evburst.models.activity import ActivityRunner
from evburst.models.bundle import DetectorBundle
from evburst.models.detector import Detector
from evburst.models.detectors.postprocess import PostConfig, decode
from evburst.models.graph import Graph
from evburst.models.spiking.network import SpikingNetwork
from numpy.typing import NDArray

BATCH = 8
"""Windows computed together. Batches do not cross parts, so that results do not depend on who computes which part."""

_APART_US = 1_000_000
_OUTSIDE_LIMIT = 0.1
_VERSION = 1
_LAYER_FIELDS = ("name", "kind", "neurons", "timesteps", "spikes", "synaptic_ops", "graded_ops")


class Run(NamedTuple):
    """A network to be evaluated: "ann" (timesteps 0), or "snn" with T timesteps."""

    model: str
    timesteps: int

    @property
    def label(self) -> str:
        """As tables show it."""
        return "ANN" if self.model == "ann" else f"SNN, T = {self.timesteps}"


@dataclass(frozen=True)
class PartResult:
    """What one network made of one part.

    Attributes:
        boxes: predictions and labels by time; windows without a recording are set a second apart.
        stats: what was counted, window by window.
    """

    boxes: RecordingBoxes
    stats: SpikeStats | ActivityStats

    def to_bytes(self) -> bytes:
        """As an .npz file."""
        b = self.boxes
        start = [] if b.start_us is None else [b.start_us]
        arrays = {"labels": b.labels, "predictions": b.predictions, "times_us": b.times_us, "start_us": start}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays, **_stats_to_arrays(self.stats))  # type: ignore[arg-type]
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> PartResult:
        """Read what `to_bytes` made; raises ValueError or KeyError on anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise ValueError(str(error)) from None
        start = [int(t) for t in arrays["start_us"]]
        boxes = RecordingBoxes(arrays["labels"], arrays["predictions"], arrays["times_us"], start[0] if start else None)
        return cls(boxes, _stats_from_arrays(arrays))


class Network:
    """One run's network: grids in, boxes and counts out.

    Args:
        bundle: the weights.
        run: which network of them.
        post: thresholds.
        device: where to run.
        engine: how the spiking network is run, see models/runtime.
    """

    def __init__(self, bundle: DetectorBundle, run: Run, post: PostConfig, device: str = "cpu", engine: str = "auto") -> None:
        self.run, self._bundle, self._post, self._device = run, bundle, post, torch.device(device)
        # `detector` is what is timed; to count what the ANN does takes another pass over its activations.
        self.detector = Detector(bundle, post, run.model == "ann", run.timesteps or None, device, engine)
        tensors = {name: tensor.to(self._device) for name, tensor in bundle.graph.tensors.items()}
        self._counting = ActivityRunner(Graph(bundle.graph.nodes, bundle.graph.outputs, tensors))

    def count(self, grids: NDArray[np.uint8]) -> SpikeStats:
        """What the reference engine counts, which is more than the fast ones do: active neurons, too."""
        own = replace(self._bundle.parameters, timesteps=self.run.timesteps)
        return SpikingNetwork(self._bundle.spiking, own).run(torch.from_numpy(grids))[1]

    def __call__(
        self, grids: NDArray[np.uint8], size: SensorSize, t_us: Sequence[int]
    ) -> tuple[list[Detections], SpikeStats | ActivityStats]:
        """Boxes of each grid, and what was counted."""
        if self.run.model == "ann":
            maps, activity = self._counting.run(torch.from_numpy(grids).to(self._device).float())
            return decode(maps, self._bundle.head, self._post, size, list(t_us)), activity
        found, stats = self.detector.detect(grids, size, t_us)
        assert stats is not None  # the spiking network always counts
        return found, stats


class Predictor:
    """Runs networks over the parts of a dataset.

    Args:
        dataset: the windows.
        bundle: the weights.
        networks: to be run.
        voxel: how windows are binned.
        folder: where results are kept.
        settings: everything else that results depend on; JSON types.

    Attributes:
        shape: (channels, H, W) of a grid, padded.
    """

    def __init__(
        self,
        dataset: Dataset,
        bundle: DetectorBundle,
        networks: Sequence[Network],
        voxel: VoxelConfig,
        folder: Path,
        settings: dict[str, Any],
    ) -> None:
        self.dataset, self.networks, self.voxel = dataset, networks, voxel
        self._folder, self._settings = folder, json.dumps([_VERSION, BATCH, settings], sort_keys=True)
        width, height = padded_size(dataset.spec.sensor_size, bundle.stride)
        self.shape = (voxel.channels, height, width)

    def predict(self, part: Part, number: int, progress: Callable[[int], object]) -> list[PartResult]:
        """The result of every network for a part; `progress` is called with the windows done."""
        paths = [self._path(part, number, network.run) for network in self.networks]
        found = [_load(path) for path in paths]
        missing = [k for k, result in enumerate(found) if result is None]
        for k, result in zip(missing, self._compute(part, [self.networks[k] for k in missing], progress), strict=True):
            _save(paths[k], result)
            found[k] = result
        if not missing:
            progress(len(part.items))
        return [result for result in found if result is not None]

    def grid(self, window: EventWindow) -> tuple[NDArray[np.uint8], int]:
        """A window as `(channels, H, W)` uint8, padded; and how many of its events lie outside the sensor."""
        grid: NDArray[np.uint8] = np.empty(self.shape, np.uint8)
        _, outside = voxel_histogram(window, self.voxel, self.dataset.spec.sensor_size, grid)
        return grid, outside

    def _path(self, part: Part, number: int, run: Run) -> Path:
        key = hashlib.sha256(f"{self._settings} {run} {part}".encode()).hexdigest()[:12]
        return self._folder / f"{number:06d}_{part.name}_{run.model}{run.timesteps or ''}_{key}.npz"

    def _compute(self, part: Part, networks: Sequence[Network], progress: Callable[[int], object]) -> list[PartResult]:
        if not networks:
            return []
        start_us, size = self.dataset.start_us(part.items[0]), self.dataset.spec.sensor_size
        labels: list[NDArray[np.void]] = []
        times: list[int] = []
        found: list[list[Detections]] = [[] for _ in networks]
        counted: list[list[SpikeStats | ActivityStats]] = [[] for _ in networks]
        events = outside = 0
        for first in range(0, len(part.items), BATCH):
            grids = []
            for i in part.items[first : first + BATCH]:
                boxes, window = self.dataset.labels(i), self.dataset[i].window
                times.append(_APART_US * (len(times) + 1) if start_us is None else boxes.t_us)
                labels.append(replace(boxes, t_us=times[-1]).to_prophesee())
                grid, strays = self.grid(window)
                grids.append(grid)
                events, outside = events + len(window), outside + strays
            for network, boxes_of, stats_of in zip(networks, found, counted, strict=True):
                detections, stats = network(np.stack(grids), size, times[-len(grids) :])
                boxes_of += detections
                stats_of.append(stats)
            progress(len(grids))
        _check_sensor(part, size, events, outside)
        rows, instants = np.concatenate(labels), np.array(times, np.int64)
        return [
            PartResult(RecordingBoxes(rows, _rows(boxes_of), instants, start_us), concatenate(stats_of))
            for boxes_of, stats_of in zip(found, counted, strict=True)
        ]


def concatenate(stats: Sequence[SpikeStats | ActivityStats]) -> SpikeStats | ActivityStats:
    """The counts of one network on several batches as those of one run."""
    one: Any = type(stats[0])
    return one.concatenate(stats)  # type: ignore[no-any-return]


def _check_sensor(part: Part, size: SensorSize, events: int, outside: int) -> None:
    """Stop where many of the events cannot be placed: the sensor size must be wrong."""
    if outside > _OUTSIDE_LIMIT * events:
        raise SensorSizeError(
            f"{part.name}: {outside} of {events} events lie outside {size}: pass the sensor's true size with --sensor-size"
        )


def _rows(detections: Sequence[Detections]) -> NDArray[np.void]:
    return np.concatenate([np.zeros(0, BBOX_DTYPE), *(found.to_prophesee() for found in detections)])


def _save(path: Path, result: PartResult) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(result.to_bytes())
    part.rename(path)


def _load(path: Path) -> PartResult | None:
    try:
        return PartResult.from_bytes(path.read_bytes())
    except (OSError, ValueError, KeyError):
        return None


def _stats_to_arrays(stats: SpikeStats | ActivityStats) -> dict[str, NDArray[Any]]:
    arrays: dict[str, Any] = {"dense_names": list(stats.dense_macs), "dense_macs": list(stats.dense_macs.values())}
    if isinstance(stats, ActivityStats):
        effective = np.array(list(stats.effective_macs.values()))
        arrays |= {"effective_macs": effective, "active": stats.active, "units": stats.units}
    else:
        for name in _LAYER_FIELDS:
            arrays[f"layer_{name}"] = [getattr(layer, name) for layer in stats.layers]
        none = np.full(len(stats.layers[0].spikes), -1.0)
        arrays["layer_active"] = [none if layer.active is None else layer.active for layer in stats.layers]
    return {name: np.asarray(array) for name, array in arrays.items()}


def _stats_from_arrays(a: dict[str, NDArray[Any]]) -> SpikeStats | ActivityStats:
    names = [str(name) for name in a["dense_names"]]
    dense = dict(zip(names, a["dense_macs"].tolist(), strict=True))
    if "effective_macs" in a:
        return ActivityStats(dense, dict(zip(names, a["effective_macs"], strict=True)), a["active"], int(a["units"]))
    columns = [a[f"layer_{name}"] for name in (*_LAYER_FIELDS, "active")]
    layers = []
    for name, kind, neurons, timesteps, spikes, operations, graded, active in zip(*columns, strict=True):
        counted = None if (active < 0).any() else active
        layers.append(LayerStats(str(name), kind.item(), int(neurons), int(timesteps), spikes, operations, graded, counted))
    return SpikeStats(tuple(layers), dense)
