"""Weights files, in and out: safetensors with JSON metadata. No pickle is ever read.

A file is checked before anything of it runs: its graph against what every operation may be (models/operations.py), all else
against what models/layout.py declares. Tensors of a detector:

    ann/<conv>.weight, .bias                the folded ANN, float16
    theta/<relu>, shift/<relu>              its neurons, float32
    readout/<output>                        added to what is read out, float32
    spiking/<conv>.weight, spiking_scale/   weights that spike, where they are not the ANN's rounded: int8, and their scale;
                                            without `spiking/`, `spiking_scale/` is the step that the ANN's are rounded to
    spiking/<conv>.bias                     a bias other than the ANN's, float32
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from evburst.data.errors import CheckpointError
from evburst.data.events import SensorSize
from evburst.data.files import replacing
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Node
from evburst.models.layout import METADATA, NETWORK, VOXEL, check_layout, check_network, head_of, input_stride, out_of_range
from evburst.models.schema import parse
from evburst.models.spiking.network import SpikingParameters, spike_sizes
from evburst.models.spiking.neurons import NeuronLayer
from evburst.models.spiking.rounding import Sizes, from_int8, input_sizes, rounded, to_int8
from evburst.models.tasks import task_of

FORMAT = "evburst-1"
"""Version of the layout; a reader refuses any other."""

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""Folder of the bundled weights; `street` means street.safetensors in it."""

_SIGNATURES = {
    b"PK\x03\x04": "a PyTorch file (.pt, .pth), such as ultralytics' best.pt",
    b"\x80": "a pickled PyTorch file (.pt, .pth)",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer: fetch the file itself with `git lfs pull`",
}
_METADATA_BYTES = 2**24
_KINDS = {
    "ann": "a trained network (best.safetensors of `evburst train`)",
    "training": "a state from which training is resumed (best.safetensors beside it is the trained network)",
    "detector": "a converted network (the file that `evburst convert` writes)",
}
"""What files of `save_tensors` hold, by kind."""


def save_tensors(path: Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON-able metadata; an existing file is replaced only when the new one is whole.

    Raises:
        DataError: the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, {"format": FORMAT, "kind": kind, "json": json.dumps(metadata)})
    with replacing(path) as part:
        part.write_bytes(content)


def read_kind(path: Path) -> str:
    """What a file of `save_tensors` holds: its kind; "" if it is none."""
    try:
        with _open_file(path) as (_, header):
            return header.get("kind", "")
    except CheckpointError:
        return ""


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        CheckpointError: no such file, not a safetensors file, of another kind or version, or a weight is NaN or infinite.
    """
    with _open_file(path) as (file, header):
        metadata = _metadata(path, header, kind)
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (not a mapping)
    for name, tensor in tensors.items():
        if tensor.is_complex() or (tensor.is_floating_point() and not torch.isfinite(tensor.float()).all()):
            raise CheckpointError(f"{path}: weight {name!r} holds NaN, infinity or complex numbers: the file is damaged")
    return tensors, metadata


def _is_utf8(path: Path) -> bool:
    """Whether the name is UTF-8: safetensors opens no other."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def _open_file(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The open file and its header. Its tensors are views of the file, which Windows does not replace meanwhile: copy them."""
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such weights file")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file; a weights file is expected")
    first = b""
    try:
        with path.open("rb") as raw:
            first = raw.read(32)
            with safe_open(path if _is_utf8(path) else f"/dev/fd/{raw.fileno()}", "pt") as file:
                yield file, file.metadata() or {}
    except (SafetensorError, OSError, UnicodeError) as error:
        known = next((what for signature, what in _SIGNATURES.items() if first.startswith(signature)), "") if first else ""
        reason = f"{known}; only safetensors files of this project are read (evburst train writes best.safetensors)"
        raise CheckpointError(
            f"{path}: {reason if known else f'not a safetensors weights file, or damaged ({error})'}"
        ) from None


def _metadata(path: Path, header: dict[str, str], kind: str) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not weights of this project (format {header.get('format')!r})")
    if header.get("kind") != kind:
        held = _KINDS.get(header.get("kind", ""), f"a {header.get('kind')!r} checkpoint")
        raise CheckpointError(f"{path}: holds {held}; {_KINDS.get(kind, f'a {kind!r} checkpoint')} is needed here")
    content = header.get("json", "")
    if len(content) > _METADATA_BYTES:
        raise CheckpointError(f"{path}: {len(content):,} bytes of metadata; at most {_METADATA_BYTES:,} are read")
    metadata = parse(content, f"{path}: metadata")
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: metadata: expected an object")
    return metadata


def find_weights(weights: str | Path) -> Path:
    """A weights file by its path, or bundled weights by name; raises CheckpointError if there are none."""
    named = WEIGHTS / f"{weights}.safetensors"
    if os.path.isfile(named):  # also if the system allows no such name
        return named
    if Path(weights).suffix or os.path.isfile(weights):
        return Path(weights)
    known = ", ".join(sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))) or "none"
    raise CheckpointError(f"weights {str(weights)!r}: no such bundled weights (bundled: {known}) and not a file name")


def bundled_weights(task: str) -> list[str]:
    """Return the names of the bundled weights for a task (models/tasks)."""
    found = []
    for path in sorted(WEIGHTS.glob("*.safetensors")):
        with _open_file(path) as (_, header):
            head = head_of(METADATA(_metadata(path, header, "detector"), f"{path}: metadata")["head"])
        if task_of(head).name == task:
            found.append(path.stem)
    return found


@dataclass(frozen=True, repr=False, eq=False)
class Bundle:
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
        return input_stride(self.graph, self.head)

    @property
    def converted(self) -> bool:
        """Whether there is a spiking network."""
        return True

    @property
    def sensor_size(self) -> SensorSize | None:
        """(W, H) px of the recordings with which it was converted, if the weights file states it."""
        return size_in(self.record)

    @property
    def trained_size(self) -> SensorSize | None:
        """(W, H) px of the recordings that it learned from, if stated; of older files `sensor_size`."""
        training = self.record.get("training")
        return (size_in(training) if isinstance(training, dict) else None) or self.sensor_size

    def save(self, path: Path) -> None:
        """Write as safetensors: the ANN's weights in float16, thresholds, shifts and other biases than the ANN's in float32.

        The weights that spike follow from the ANN's and the thresholds (see models/spiking/rounding.py); other ones (advanced
        calibration) are kept as the integers they are, those that are not rounded in float16.

        Raises:
            CheckpointError: the file could not be read: its head decodes other maps than the network has, or a number is not
                finite or out of range.
            DataError: the file cannot be written.
        """
        check_network(self.graph, self.head, self.voxel.channels, self.graph.weight_shapes)
        tensors = {f"ann/{name}": tensor.half() for name, tensor in self.graph.tensors.items()}
        sizes = spike_sizes(self.spiking, self.parameters.neurons)
        for node in (node for node in self.spiking.nodes if node.op == "conv"):
            tensors |= self._own_weights(node, input_sizes(self.spiking, node, sizes))
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
        if wrong := next(filter(None, map(out_of_range, tensors, tensors.values())), ""):
            raise CheckpointError(f"{path}: not written, because it could not be read: {wrong}")
        save_tensors(path, "detector", tensors, metadata)

    def _own_weights(self, conv: Node, read: Tensor | None) -> dict[str, Tensor]:
        """What of a convolution that spikes does not follow from the ANN's as it is stored."""
        weight, bias, step = f"{conv.name}.weight", f"{conv.name}.bias", self.spiking.tensors.get(f"{conv.name}.step")
        ann, found = self.graph.in_float16().tensors, {}
        own = self.spiking.tensors[weight]
        if read is None:
            if not torch.equal(own, ann[weight]):
                found[f"spiking/{weight}"] = own.half()
        else:
            derived = rounded(ann[weight], read) if step is None else from_int8(*to_int8(ann[weight], read, step), read)
            if step is not None:
                found[f"spiking_scale/{weight}"] = step
            if not torch.equal(own, derived):
                found[f"spiking/{weight}"], found[f"spiking_scale/{weight}"] = to_int8(own, read, step)
        if not torch.equal(self.spiking.tensors[bias], ann[bias]):
            found[f"spiking/{bias}"] = self.spiking.tensors[bias]
        return found

    @classmethod
    def load(cls, weights: str | Path) -> Bundle:
        """Read a weights file, or bundled weights by name; a checkpoint of training as a TrainedBundle.

        Raises:
            CheckpointError: no such weights, or the file is damaged.
        """
        path = find_weights(weights)
        if read_kind(path) == "ann":
            return TrainedBundle.of(path)
        with _open_file(path) as (file, header):
            metadata = _metadata(path, header, "detector")
            names = list(file.keys())
            try:
                content = METADATA(metadata, "metadata")
                entries = {name: file.get_slice(name) for name in names}
                layout = {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries.items()}
                graph = Graph.from_json(content["graph"], {})
                head, voxel = head_of(content["head"]), VoxelConfig(**content["voxel"])
                check_layout(graph, head, voxel.channels, content, layout)
                tensors = {name: file.get_tensor(name).clone() for name in names}
                if wrong := next(filter(None, map(out_of_range, tensors, tensors.values())), ""):
                    raise CheckpointError(f"{wrong}: the file is damaged")
                return cls._from_parts(graph, head, voxel, tensors, content)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from None

    @classmethod
    def _from_parts(
        cls, graph: Graph, head: HeadSpec, voxel: VoxelConfig, tensors: dict[str, Tensor], content: dict[str, Any]
    ) -> Bundle:
        """From parts that were checked."""
        ann = {name.removeprefix("ann/"): t.float() for name, t in tensors.items() if name.startswith("ann/")}
        graph = Graph(graph.nodes, graph.outputs, ann)
        neurons = {
            node.name: NeuronLayer(
                tensors[f"theta/{node.name}"],
                tensors[f"shift/{node.name}"],
                content["phi"][node.name],
                **node.attrs,
                takes_back=node.name in content.get("takes_back", []),
            )
            for node in graph.nodes
            if node.op == "relu"
        }
        readout = {name: tensors[f"readout/{name}"] for name in graph.outputs}
        sizes = spike_sizes(graph, neurons)
        for node in graph.nodes:
            if node.op == "max_pool" and sizes[node.inputs[0]] is None:
                raise CheckpointError(f"node {node.name!r}: a max-pool of something other than spikes")
        parameters = SpikingParameters(content["timesteps"], neurons, readout)
        return cls(graph, _spiking(graph, sizes, tensors), parameters, head, voxel, content["record"])


@dataclass(frozen=True, repr=False, eq=False)
class TrainedBundle(Bundle):
    """A network of `evburst train` that was not converted: its ANN runs and can be exported; `spiking` and `parameters` raise
    CheckpointError.

    Attributes:
        path: its file.
    """

    spiking: Graph = field(init=False)
    parameters: SpikingParameters = field(init=False)
    path: Path

    @classmethod
    def of(cls, path: Path) -> TrainedBundle:
        """Of best.safetensors of a training run; raises CheckpointError if it is damaged."""
        graph, head, trained = load_trained(path)
        voxel = VoxelConfig(**VOXEL(trained["config"].get("voxel"), f"{path}: config: voxel"))
        record = {"dataset": trained["config"].get("name"), "training": trained}
        return cls(graph, head, voxel, record, path)

    @property
    def converted(self) -> bool:
        """Whether there is a spiking network."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Raise the error of an attribute that is missing: CheckpointError if it is what conversion adds."""
        if name not in ("spiking", "parameters"):
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        raise CheckpointError(
            f"{self.path}: a trained network that was not converted; run `evburst convert --weights {self.path} --out FILE`, "
            "or use its ANN (--ann)"
        )


def weights_digest(weights: str | Path) -> str:
    """The SHA-256 digest of a weights file or of bundled weights, hexadecimal."""
    return hashlib.sha256(find_weights(weights).read_bytes()).hexdigest()


def load_trained(path: Path) -> tuple[Graph, HeadSpec, dict[str, Any]]:
    """The folded ANN of a training run's best.safetensors as it will be stored, its head, and the record of its training.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    from evburst.models.architectures import NetworkConfig, build_network
    from evburst.models.spiking.convert.fold import trace

    tensors, trained = load_tensors(path, "ann")
    network = NETWORK(trained.get("network"), f"{path}: network")
    if not isinstance(trained.get("config"), dict):
        raise CheckpointError(f"{path}: config: expected an object")
    pairs: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}
    model = cast(Any, build_network(NetworkConfig(**pairs)))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit its own configuration ({str(error).splitlines()[0]})") from None
    graph, head = trace(model, torch.zeros(1, model.config.channels, 128, 128)), model.head_spec
    try:
        check_network(graph, head, model.config.channels, graph.weight_shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: architecture {model.config.architecture!r}: {error}") from None
    return graph.in_float16(), head, trained


def size_in(record: dict[str, Any], key: str = "sensor_size") -> SensorSize | None:
    """A size (W, H) px that a record states; None if it does not."""
    size = record.get(key)
    return SensorSize(*size) if isinstance(size, list) and len(size) == 2 else None


def _spiking(graph: Graph, sizes: Sizes, stored: Mapping[str, Tensor]) -> Graph:
    """The graph that spikes: what is stored of it, the other weights from the ANN's."""
    tensors = dict(graph.tensors)
    for node in (node for node in graph.nodes if node.op == "conv"):
        weight, bias = f"{node.name}.weight", f"{node.name}.bias"
        read, own = input_sizes(graph, node, sizes), stored.get(f"spiking/{weight}")
        step = stored.get(f"spiking_scale/{weight}")
        if (own is not None and own.dtype == torch.int8) and (read is None or step is None):
            raise CheckpointError(f"'spiking/{weight}': integers without a scale, or of a convolution that is not rounded")
        if read is None:
            tensors[weight] = tensors[weight] if own is None else own.float()
        elif step is None:
            if own is not None:
                raise CheckpointError(f"'spiking/{weight}': expected int8 and its scale")
            tensors[weight] = rounded(tensors[weight], read)
        else:
            integers = to_int8(tensors[weight], read, step)[0] if own is None else own
            tensors[weight], tensors[f"{node.name}.step"] = from_int8(integers, step, read), step
        tensors[bias] = stored.get(f"spiking/{bias}", tensors[bias])
    return Graph(graph.nodes, graph.outputs, tensors)
