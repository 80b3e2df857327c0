"""Engines that run the exported ONNX network (models/export/onnx_snn.py) in an inference library.

`onnx` uses onnxruntime, on any processor. `openvino` uses OpenVINO, which is faster on x86 with 8-bit dot products. For
layers in integer form (models/spiking/integer_form.py), every neuron fires the same spikes as in the reference
engine.

Runs without counting use a model that outputs the read-outs only. Windows in which operations are counted are left to the int8
engine, which counts on the way, where it is available. Elsewhere a second model also outputs the spike counts of every layer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.stats import SpikeStats
from evburst.models.export.onnx_snn import BEGINS, INPUT, SnnOptions, after_of, before_of, spiking_model
from evburst.models.graph import Graph, Memory, Node
from evburst.models.runtime.counting import SpikeCounter, grid_counts
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters

Tensors = dict[str, NDArray[Any]]
"""Inputs or outputs of a model, by name."""
Run = Callable[[Tensors], Tensors]
"""Inference function: from all inputs, see models/export/onnx_snn.py, to all outputs."""


class ExportedNetwork(SpikingNetwork):
    """A spiking network that runs as ONNX in an inference library.

    Args:
        graph: the network.
        parameters: thresholds, burst limits and shifts.
        start: loads a serialised ONNX model into the library.
        counting: engine that runs the windows in which operations are counted; None: the library.
        clip_first: see `SnnOptions`.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: SpikingParameters,
        start: Callable[[bytes], Run],
        counting: SpikingNetwork | None = None,
        clip_first: bool = False,
    ) -> None:
        super().__init__(graph, parameters)
        self._start, self._counting, self._clip_first = start, counting, clip_first
        self._counters: dict[tuple[int, ...], tuple[SpikeCounter, dict[str, NDArray[Any]]]] = {}

    @torch.inference_mode()
    def run(self, grid: Tensor, memory: Memory | None = None) -> tuple[list[Tensor], SpikeStats]:
        """Run the network on a batch; see SpikingNetwork.run.

        The reference engine takes over if the grid does not hold integer counts of 0 to 255.
        """
        if self._counting is not None:
            return self._counting.run(grid, memory)
        counts = grid_counts(grid)
        if counts is None:
            return super().run(grid, memory)
        macs = self.begin(grid)
        key = tuple(grid.shape[1:])
        if key not in self._counters:
            counter = SpikeCounter(self.graph, self._fan_out)
            _, silent = self._run_counting(counter, np.zeros((1, *key), np.uint8), None)
            self._counters[key] = counter, {name: own.copy() for name, own in silent.items()}
        counter, silent = self._counters[key]
        results, layers = self._run_counting(counter, counts, memory)
        stats = counter.stats(layers, self._timesteps, len(grid), silent)
        return self._read_outs(results), SpikeStats(tuple(stats), macs)

    @torch.inference_mode()
    def run_uncounted(self, grid: Tensor, memory: Memory | None = None) -> list[Tensor]:
        """Run the network on a batch without counting; see SpikingNetwork.run_uncounted."""
        counts = grid_counts(grid)
        if counts is None:
            return super().run_uncounted(grid, memory)
        return self._read_outs(self._run_with_memory(self._uncounted_run, counts, memory))

    @cached_property
    def _counted_run(self) -> Run:
        return self._load(SnnOptions(counts=True, clip_first=self._clip_first))

    @cached_property
    def _uncounted_run(self) -> Run:
        return self._load(SnnOptions(clip_first=self._clip_first))

    def _load(self, options: SnnOptions) -> Run:
        """Load the network into the library."""
        return self._start(spiking_model(self.graph, self.parameters, self.graph.channels, options).SerializeToString())

    def _read_outs(self, results: dict[str, NDArray[Any]]) -> list[Tensor]:
        return [torch.from_numpy(results[name]) for name in self.graph.outputs]

    def _run_counting(
        self, counter: SpikeCounter, grid: NDArray[np.uint8], memory: Memory | None
    ) -> tuple[Tensors, dict[str, NDArray[Any]]]:
        """All outputs for a grid, and the spike counts of every layer; valid until the next run."""
        results = self._run_with_memory(self._counted_run, grid, memory)
        layers = {node.name: results[f"{node.name}.counts"] for node in counter.layers if node.op != "input"}
        return results, {self.graph.nodes[0].name: grid, **layers}

    def _run_with_memory(self, run: Run, grid: NDArray[np.uint8], memory: Memory | None) -> Tensors:
        """All outputs for a grid; the memory is replaced by what the holds emit."""
        given: Tensors = {INPUT: grid}
        if self.graph.memories:
            given[BEGINS] = np.full((len(grid), 1, 1, 1), not memory)
            shapes = {} if memory else self.graph.shapes(*grid.shape[1:])
            for node in self.graph.memories:
                if memory:
                    counts = torch.round(memory[node.name] / self._spike(node)).to(torch.uint8)
                    given[before_of(node)] = counts.contiguous().numpy()
                else:
                    given[before_of(node)] = np.zeros((len(grid), *shapes[node.name]), np.uint8)
        results = run(given)
        if memory is not None:
            for node in self.graph.memories:
                memory[node.name] = torch.from_numpy(results[after_of(node)]).float() * self._spike(node)
        return results

    def _spike(self, hold: Node) -> Tensor:
        """Value of a spike of a hold node, `(C, 1, 1)`."""
        return self.parameters.neurons[hold.inputs[0]].theta[:, None, None]


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime without its telemetry, which begins with the import, unless ORT_DISABLE_TELEMETRY is set otherwise."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return import_module("onnxruntime")


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which reports the import: without that package, a stub takes its place."""
    name = "openvino_telemetry"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    finally:
        if hidden:
            del sys.modules[name]


def open_onnxruntime(model: bytes) -> Run:
    """Load a model into onnxruntime, with as many threads as torch has."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, given), strict=True))


@cache
def _core() -> Any:
    """The core of all models, because OpenVINO 2026.4 crashes at the next signal once two cores have been freed."""
    return import_openvino().Core()


def open_openvino(model: bytes) -> Run:
    """Load a model into OpenVINO, with as many threads as torch has; whatever is not 8 bits is computed in float32.

    The model is compiled for every shape of grids, because it takes longer if it is compiled for any.
    """
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core, requests = _core(), dict[tuple[tuple[int, ...], ...], Any]()
    network = core.read_model(model, b"")
    names = [output.get_any_name() for output in network.outputs]

    def run(given: Tensors) -> Tensors:
        shapes = tuple(tensor.shape for tensor in given.values())
        if shapes not in requests:
            network.reshape({name: list(tensor.shape) for name, tensor in given.items()})
            requests[shapes] = core.compile_model(network, "CPU", settings).create_infer_request()
        results = requests[shapes].infer(given, share_inputs=True, share_outputs=True)
        return {name: results[k] for k, name in enumerate(names)}

    return run
