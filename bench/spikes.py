"""Compare every spike of the engines with those of `reference`, for each bundled weights file.

    python bench/spikes.py [--weights street caltech6] [--windows 20] [--json docs/results/spikes.json]

Runs windows of the bundled recording, cut to the sensor of the weights, at the weights' own number of timesteps. Files that are
not in integer form are compared in integer form, into which `evburst export` and the engines `onnx` and `openvino` bring them
(models/spiking/integer_form.py). Where a layer has no integer form, currents within float32 rounding of a threshold can make
libraries differ. Exit code 1 if a spike differs in a network whose layers are all in integer form.

`nir` is the network as a NIR file, read and run by SpikingJelly (extra `bench`), of weights that NIR can express completely,
bursts included: those of one timestep without upsampling.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.app.provenance import provenance
from evburst.data.errors import ModelError
from evburst.data.events import SensorSize
from evburst.data.readers import open_events
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.data.samples import STREET
from evburst.eval.report.tables import Table
from evburst.models.bundle import WEIGHTS, Bundle
from evburst.models.export.nir import to_nir, write_nir
from evburst.models.export.onnx_snn import INPUT, SnnOptions, spiking_model
from evburst.models.graph import Graph, Node
from evburst.models.runtime import ENGINES
from evburst.models.runtime.exported import open_onnxruntime, open_openvino
from evburst.models.spiking.integer_form import driven, integer_form, is_integer
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters

_GEN1 = SensorSize(304, 240)

Counts = dict[str, NDArray[Any]]
"""Spike counts of every layer of neurons, `(T, C, H, W)` of any number type."""


@dataclass(frozen=True)
class Agreement:
    """The spikes of one engine compared with those of the reference.

    Attributes:
        weights: name of the bundled weights.
        as_bundled: whether the file is in integer form; otherwise it was brought into it for the comparison.
        layers, integer_layers: number of layers of neurons, and of those in integer form after that.
        engine: the engine.
        timesteps: T.
        windows: number of windows.
        neurons: number of counts compared: neurons x timesteps x windows.
        spikes: spikes of the reference.
        different: number of counts that differ.
    """

    weights: str
    as_bundled: bool
    layers: int
    integer_layers: int
    engine: str
    timesteps: int
    windows: int
    neurons: int
    spikes: int
    different: int


class Watched(SpikingNetwork):
    """The reference, which keeps the spike counts of its last run."""

    counts: Counts

    def observe(self, node: Node, value: Tensor) -> None:
        """See Runner."""
        if node.op == "input":
            self.counts = {}
        if node.op == "relu":
            theta = self.parameters.neurons[node.name].theta[:, None, None]
            self.counts[node.name] = torch.round(value / theta).to(torch.int16).numpy()


def compare(weights: str, engines: Sequence[str], n_windows: int) -> list[Agreement]:
    """Return the agreement of each engine on the first windows of the bundled recording."""
    bundle = Bundle.load(weights)
    as_bundled = is_integer(bundle.spiking, bundle.parameters)
    graph, parameters = integer_form(bundle.spiking, bundle.parameters)
    reference = Watched(graph, parameters)
    runs = {name: run for name in engines if (run := _BUILDERS[name](graph, parameters, bundle)) is not None}
    different, windows, neurons, spikes = dict.fromkeys(runs, 0), 0, 0, 0
    for grid in grids_of(bundle, n_windows):
        reference.run(torch.from_numpy(grid))
        windows += 1
        neurons += sum(counts.size for counts in reference.counts.values())
        spikes += sum(int(np.abs(counts).sum()) for counts in reference.counts.values())
        for name, run in runs.items():
            found = run(grid)
            different[name] += sum(int((found[layer] != own).sum()) for layer, own in reference.counts.items())
    shared = parameters.timesteps, windows, neurons, spikes
    layers = len(parameters.neurons), sum(1 for _ in driven(graph))
    return [Agreement(weights, as_bundled, *layers, name, *shared, different[name]) for name in runs]


def grids_of(bundle: Bundle, n_windows: int) -> Iterator[NDArray[np.uint8]]:
    """The first windows of the bundled recording as grids `(1, C, H, W)` for the sensor of the weights."""
    stream, sensor = open_events(STREET), bundle.sensor_size or _GEN1
    for window in islice(stream.windows(bundle.voxel.window_us), n_windows):
        yield voxel_batch([window], bundle.voxel, sensor, bundle.stride)


def _exported(start: Callable[[bytes], Any], clip_first: bool = False) -> Callable[..., Callable[[NDArray[np.uint8]], Counts]]:
    def build(graph: Graph, parameters: SpikingParameters, bundle: Bundle) -> Callable[[NDArray[np.uint8]], Counts]:
        model = spiking_model(graph, parameters, bundle.voxel.channels, SnnOptions(counts=True, clip_first=clip_first))
        run = start(model.SerializeToString())

        def counts(grid: NDArray[np.uint8]) -> Counts:
            found = run({INPUT: grid})
            return {name: found[f"{name}.counts"] for name in parameters.neurons}

        return counts

    return build


def _int8(graph: Graph, parameters: SpikingParameters, bundle: Bundle) -> Callable[[NDArray[np.uint8]], Counts]:
    from evburst.models.runtime.int8.network import IntegerNetwork

    network = IntegerNetwork(graph, parameters, bundle.voxel.max_count)

    def counts(grid: NDArray[np.uint8]) -> Counts:
        network.run(torch.from_numpy(grid))
        program, found = network._program(grid.shape), {}
        for name, layer in parameters.neurons.items():
            found[name] = torch.round(network._spikes(name, program) / layer.theta[:, None, None]).numpy()
        return found

    return counts


def leading_to(output: str, graph: Any) -> Any:
    """The part of a `nir.NIRGraph` that leads to one of its outputs: SpikingJelly's importer never ends with several."""
    import nir

    names, sources = set[str](), [output]
    while sources:
        names.add(name := sources.pop())
        sources += [source for source, target in graph.edges if target == name and source not in names]
    edges = [edge for edge in graph.edges if names.issuperset(edge)]
    return nir.NIRGraph({name: graph.nodes[name] for name in names}, edges)


def run_in_spikingjelly(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function that runs a NIR file for one timestep in SpikingJelly, as few of its outputs as all neurons lead to.

    It takes a grid `(1, C, H, W)` float32, and returns the spikes of every `IF`, by its name with underscores for dots.
    """
    import nir
    from spikingjelly.activation_based.neuron import IFNode
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    graph, spikes, networks = nir.read(path), dict[str, Tensor](), []
    left = {name for name, node in graph.nodes.items() if isinstance(node, nir.IF)}
    parts = [leading_to(name, graph) for name, node in graph.nodes.items() if isinstance(node, nir.Output)]
    for part in sorted(parts, key=lambda part: -len(part.nodes)):
        if left.isdisjoint(part.nodes):
            continue
        left -= set(part.nodes)
        networks.append(network := import_from_nir(part, dt=1.0))
        for name, module in network.named_children():
            if any(isinstance(inner, IFNode) for inner in module.children()):
                module.register_forward_hook(lambda _, __, result, name=name: spikes.update({name: result[0]}))

    @torch.inference_mode()
    def run(grid: Tensor) -> dict[str, Tensor]:
        for network in networks:
            network(grid)
        return spikes

    return run


def _nir(graph: Graph, parameters: SpikingParameters, bundle: Bundle) -> Callable[[NDArray[np.uint8]], Counts] | None:
    """None if NIR cannot express the network completely."""
    try:
        translated = to_nir(graph, parameters, next(grids_of(bundle, 1)).shape[1:])
    except ModelError:
        return None
    if not translated.bursts:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.nir"
        write_nir(path, translated)
        run = run_in_spikingjelly(path)

    def counts(grid: NDArray[np.uint8]) -> Counts:
        spikes, found = run(torch.from_numpy(grid).float()), {}
        for name, layer in parameters.neurons.items():
            _, channels, *size = (own := spikes[name.replace(".", "_")]).shape
            found[name] = own.reshape(channels // len(layer.theta), len(layer.theta), *size).sum(0, keepdim=True).numpy()
        return found

    return counts


def available(name: str) -> bool:
    """Whether an engine, or what is compared like one, can run here."""
    if name == "nir":
        return all(find_spec(package) is not None for package in ("nir", "nirtorch", "spikingjelly"))
    return not ENGINES[name].available("cpu")


_BUILDERS: dict[str, Callable[..., Callable[[NDArray[np.uint8]], Counts] | None]] = {
    "int8": _int8,
    "onnx": _exported(open_onnxruntime),
    "openvino": _exported(open_openvino, clip_first=True),
    "nir": _nir,
}


def table(rows: Sequence[Agreement]) -> str:
    """Return the results as a Markdown table."""
    head = ["weights", "integer form", "layers in it", "engine", "T", "windows", "counts compared", "spikes", "different"]
    lines = []
    for r in rows:
        form = "as bundled" if r.as_bundled else "converted for the comparison"
        what = [f"`{r.weights}`", form, f"{r.integer_layers} of {r.layers}", f"`{r.engine}`", str(r.timesteps), str(r.windows)]
        lines.append([*what, f"{r.neurons:,}", f"{r.spikes:,}", f"{r.different:,}"])
    return Table(head, lines, len(head)).markdown()


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare every spike of the engines with those of the reference.")
    bundled = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    parser.add_argument("--weights", nargs="+", default=bundled, help="names of bundled weights (default: all)")
    parser.add_argument("--engines", nargs="+", default=list(_BUILDERS), choices=list(_BUILDERS))
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    engines = [name for name in args.engines if available(name)]
    rows = [row for weights in args.weights for row in compare(weights, engines, args.windows)]
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"results": [asdict(row) for row in rows], **provenance()}, indent=1) + "\n")
    return int(any(row.different for row in rows if row.integer_layers == row.layers))


if __name__ == "__main__":
    sys.exit(main())
