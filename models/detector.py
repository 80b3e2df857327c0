"""A detector as it is used: a graph, what conversion added, how its maps are decoded; and its weights file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evburst.data.boxes import Detections
from evburst.data.errors import CheckpointError
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.data.stats import SpikeStats
from evburst.models.checkpoint import load_tensors, save_tensors
from evburst.models.detectors.postprocess import HeadSpec, PostConfig, decode
from evburst.models.graph import Graph, Runner
from evburst.models.runtime import choose, open_engine
from evburst.models.spiking.adaptive import each_timestep, run_adaptive
from evburst.models.spiking.cost import dense_macs
from evburst.models.spiking.network import SpikingParameters, SpikingState, signal_thresholds
from evburst.models.spiking.neurons import NeuronLayer
from evburst.models.spiking.rounding import from_int8, rounded, spike_values, to_int8
from numpy.typing import NDArray
from torch import Tensor

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""Folder of the bundled weights; `street` means street.safetensors in it."""


@dataclass(frozen=True)
class DetectorBundle:
    """A converted detector: the content of a weights file.

    Attributes:
        graph: the folded ANN.
        spiking: the graph that spikes: the ANN's, weights of 8 bits (models/spiking/rounding.py), learned anew or not.
        parameters: what makes it spike.
        head: how its maps are decoded.
        voxel: how its input is made.
        record: where it comes from: data, training, conversion, measured AP. JSON types only.
    """

    graph: Graph
    spiking: Graph
    parameters: SpikingParameters
    head: HeadSpec
    voxel: VoxelConfig
    record: dict[str, Any]

    @property
    def stride(self) -> int:
        """Input sides are padded to a multiple of this."""
        return max(self.head.strides)

    def save(self, path: Path) -> None:
        """Write as safetensors: the ANN's weights in float16, thresholds, shifts and other biases than the ANN's in float32.

        The weights that spike follow from the ANN's and the thresholds (see models/spiking/rounding.py); other ones (advanced
        calibration) are kept as the integers they are, those that are not rounded in float16.
        """
        tensors = {f"ann/{name}": tensor.half() for name, tensor in self.graph.tensors.items()}
        theta = signal_thresholds(self.spiking, self.parameters.neurons)
        derived = _spiking(self.graph.in_float16(), theta, {}).tensors
        values = {f"{n.name}.weight": spike_values(self.spiking, n, theta) for n in self.spiking.nodes if n.op == "conv"}
        for name, tensor in self.spiking.tensors.items():
            if torch.equal(tensor, derived[name]):
                continue
            own = values.get(name)
            if own is not None:
                tensors[f"spiking/{name}"], tensors[f"spiking_scale/{name}"] = to_int8(tensor, own)
            else:
                tensors[f"spiking/{name}"] = tensor.half() if tensor.ndim > 1 else tensor
        for name, layer in self.parameters.neurons.items():
            tensors |= {f"theta/{name}": layer.theta, f"shift/{name}": layer.shift}
        tensors |= {f"readout/{name}": shift for name, shift in self.parameters.readout_shift.items()}
        metadata = {
            "graph": self.graph.to_json(),
            "timesteps": self.parameters.timesteps,
            "phi": {name: layer.phi for name, layer in self.parameters.neurons.items()},
            "takes_back": [name for name, layer in self.parameters.neurons.items() if layer.takes_back],
            "head": asdict(self.head),
            "voxel": asdict(self.voxel),
            "record": self.record,
        }
        save_tensors(path, "detector", tensors, metadata)

    @classmethod
    def load(cls, weights: str | Path) -> DetectorBundle:
        """Read a weights file, or bundled weights by name.

        Raises:
            CheckpointError: no such weights, or the file is damaged.
        """
        path = find_weights(weights)
        tensors, metadata = load_tensors(path, "detector")
        if any(name.startswith("correction/") for name in tensors):
            raise CheckpointError(f"{path}: written by a version that corrected weights otherwise; convert the network anew")
        try:
            return cls._from_parts(tensors, metadata)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path}: incomplete weights file ({error!r})") from None

    @classmethod
    def _from_parts(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> DetectorBundle:
        ann = {name.removeprefix("ann/"): t.float() for name, t in tensors.items() if name.startswith("ann/")}
        graph = Graph.from_json(metadata["graph"], ann)
        activations = {node.name: node.attrs for node in graph.nodes if node.op == "relu"}
        takes_back = metadata.get("takes_back", [])
        neurons = {
            name: NeuronLayer(
                tensors[f"theta/{name}"],
                tensors[f"shift/{name}"],
                int(phi),
                **activations[name],
                takes_back=name in takes_back,
            )
            for name, phi in metadata["phi"].items()
        }
        for name, layer in neurons.items():
            if not (layer.theta > 0).all() or layer.phi < 1:
                raise CheckpointError(f"layer {name!r}: a threshold or burst limit is not positive")
        readout = {name: tensors[f"readout/{name}"] for name in graph.outputs}
        head = metadata["head"]
        return cls(
            graph,
            _spiking(graph, signal_thresholds(graph, neurons), tensors),
            SpikingParameters(int(metadata["timesteps"]), neurons, readout),
            HeadSpec(
                head["kind"],
                tuple(head["strides"]),
                head["reg_max"],
                tuple(head["classes"]),
                tuple(tuple((w, h) for w, h in level) for level in head.get("anchors", ())),
            ),
            VoxelConfig(**metadata["voxel"]),
            metadata["record"],
        )


class Detector:
    """Grids in, boxes out.

    Args:
        bundle: the weights.
        post: thresholds.
        ann: run the ordinary network instead of the spiking one.
        timesteps: T; None for what the weights were calibrated for.
        device: where to run.
        engine: how the spiking network is run, see models/runtime.
        adaptive: stop the timesteps of a window once its boxes agree this much (see models/spiking/adaptive.py); None: never.
        carry_state: neurons go on from one call to the next with the membrane potentials they have.

    `adaptive` and `carry_state` take one grid a call, and are run by the reference engine.
    """

    def __init__(
        self,
        bundle: DetectorBundle,
        post: PostConfig,
        ann: bool = False,
        timesteps: int | None = None,
        device: str = "cpu",
        engine: str = "auto",
        adaptive: float | None = None,
        carry_state: bool = False,
    ) -> None:
        self.bundle, self.post, self.device = bundle, post, torch.device(device)
        self.classes, self.stride = bundle.head.classes, bundle.stride
        graph, spiking = (Graph(g.nodes, g.outputs, _to(g.tensors, self.device)) for g in (bundle.graph, bundle.spiking))
        own = bundle.parameters
        parameters = SpikingParameters(
            timesteps or own.timesteps,
            {
                name: replace(layer, theta=layer.theta.to(self.device), shift=layer.shift.to(self.device))
                for name, layer in own.neurons.items()
            },
            _to(own.readout_shift, self.device),
        )
        self._ann = Runner(graph) if ann else None
        self._adaptive, self._carried = adaptive, SpikingState() if carry_state else None
        self.engine = choose(engine if adaptive is None and not carry_state else "reference", self.device.type)
        self._snn = open_engine(self.engine, spiking, parameters, bundle.voxel.max_count, self.device.type)

    def detect(
        self, grids: NDArray[np.uint8], sensor_size: SensorSize, t_us: Sequence[int]
    ) -> tuple[list[Detections], SpikeStats | None]:
        """Boxes of each grid, and the spikes it took (None for the ANN).

        Args:
            grids: `(N, 2 * bins, H, W)` uint8, padded to the stride.
            sensor_size: (W, H) px, to which boxes are clipped.
            t_us: the instant of each grid: its window's end.
        """
        x = torch.from_numpy(grids).to(self.device)
        if self._ann is not None:
            maps, stats = self._ann(x.float()), None
        elif self._adaptive is not None:
            boxes, stats = run_adaptive(self._snn, x, self._adaptive, self._decoder(sensor_size, t_us), self._next_state())
            return [boxes], stats
        else:
            maps, stats = self._snn.run(x, state=None if self._carried is None else self._next_state())
        return decode(maps, self.bundle.head, self.post, sensor_size, list(t_us)), stats

    def step_by_step(self, grid: NDArray[np.uint8], sensor_size: SensorSize, t_us: int = 0) -> list[Detections]:
        """Boxes of one grid `(1, 2 * bins, H, W)` after each timestep."""
        x = torch.from_numpy(grid).to(self.device)
        return [boxes for boxes, _ in each_timestep(self._snn, x, self._decoder(sensor_size, [t_us]), SpikingState())]

    def _decoder(self, sensor_size: SensorSize, t_us: Sequence[int]) -> Callable[[list[Tensor]], Detections]:
        return lambda maps: decode(maps, self.bundle.head, self.post, sensor_size, list(t_us))[0]

    def _next_state(self) -> SpikingState:
        """Of the next window: what neurons remember of the last one, or nothing."""
        if self._carried is None:
            return SpikingState()
        self._carried.next_window(self._snn.parameters.neurons)
        return self._carried

    def dense_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the ANN for one grid of this size."""
        return sum(dense_macs(self.bundle.graph, self.bundle.voxel.channels, height, width).values())


def _spiking(graph: Graph, theta: Mapping[str, Tensor | None], stored: Mapping[str, Tensor]) -> Graph:
    """The graph that spikes: what is stored of it, the other weights from the ANN's."""
    tensors = dict(graph.tensors)
    for node in (node for node in graph.nodes if node.op == "conv"):
        weight, bias = f"{node.name}.weight", f"{node.name}.bias"
        values, own = spike_values(graph, node, theta), stored.get(f"spiking/{weight}")
        if values is not None:
            integers = None if own is None else (own, stored[f"spiking_scale/{weight}"])
            tensors[weight] = rounded(tensors[weight], values) if integers is None else from_int8(*integers, values)
        elif own is not None:
            tensors[weight] = own.float()
        tensors[bias] = stored.get(f"spiking/{bias}", tensors[bias])
    return Graph(graph.nodes, graph.outputs, tensors)


def _to(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def find_weights(weights: str | Path) -> Path:
    """A weights file by its path, or bundled weights by name; raises CheckpointError if there are none."""
    named = WEIGHTS / f"{weights}.safetensors"
    if named.is_file():
        return named
    if Path(weights).suffix:
        return Path(weights)
    known = ", ".join(sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))) or "none"
    raise CheckpointError(f"weights {str(weights)!r}: no such bundled weights (bundled: {known}) and not a file name")
