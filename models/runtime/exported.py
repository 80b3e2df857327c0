"""Engines that run the network as ONNX (models/export/onnx_snn.py) in a library; exact counts from the counts of its layers.

`onnx` is onnxruntime, on any processor; `openvino` is OpenVINO, the faster one on x86 with 8-bit dot products. After
`integer_form` (models/spiking/rounding.py) their spikes are the reference's, neuron for neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.stats import SpikeStats
from evburst.models.export.onnx_snn import INPUT, SnnOptions, spiking_model
from evburst.models.graph import Graph
from evburst.models.runtime.counting import SpikeCounter
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, SpikingState

Run = Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]
"""From grids `(N, 2 * bins, H, W)` to every output by its name."""


class ExportedNetwork(SpikingNetwork):
    """A spiking network in a library that runs ONNX models.

    Args:
        graph: the network.
        parameters: its neurons.
        max_count: largest count of a grid.
        start: opens a serialised model.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, max_count: int, start: Callable[[bytes], Run]) -> None:
        super().__init__(graph, parameters)
        channels = next(graph.tensors[f"{n.name}.weight"].shape[1] * n.attrs["groups"] for n in graph.nodes if n.op == "conv")
        model = spiking_model(graph, parameters, channels, SnnOptions(counts=True))
        self._session = start(model.SerializeToString())
        self._most = max([max_count, *(layer.phi for layer in parameters.neurons.values())]) * parameters.timesteps
        self._counters: dict[tuple[int, ...], SpikeCounter] = {}

    @torch.inference_mode()
    def run(
        self, grid: Tensor, timesteps: int | None = None, state: SpikingState | None = None
    ) -> tuple[list[Tensor], SpikeStats]:
        """Outputs and spike counts; see SpikingNetwork.run.

        Runs that are stopped or carried on, of another number of timesteps, or of grids that are no 8-bit counts, are left to the
        reference engine.
        """
        counts = grid if grid.dtype == torch.uint8 else grid.clamp(0, 255).to(torch.uint8)
        same = grid.dtype == torch.uint8 or torch.equal(counts.to(grid.dtype), grid)
        if state is not None or timesteps not in (None, self.parameters.timesteps) or not same:
            return super().run(grid, timesteps, state)
        self._timesteps = self.parameters.timesteps
        macs = self.begin(grid)
        found = self._session(counts.contiguous().numpy())
        key = tuple(grid.shape[1:])
        if key not in self._counters:
            self._counters[key] = SpikeCounter(self.graph, self._fan_out, self._most)
        counter = self._counters[key]
        layers = {node.name: found[f"{node.name}.counts"] for node in counter.layers if node.op != "input"}
        layers[self.graph.nodes[0].name] = counts.numpy()
        stats = counter.stats(layers, self._timesteps, len(grid))
        return [torch.from_numpy(found[name]) for name in self.graph.outputs], SpikeStats(tuple(stats), macs)


def open_onnxruntime(model: bytes) -> Run:
    """A model in onnxruntime, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda grid: dict(zip(names, session.run(names, {INPUT: grid}), strict=True))


def open_openvino(model: bytes) -> Run:
    """A model in OpenVINO, on as many threads as torch has; float32 where it is not 8 bits, whatever the processor would like."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model, b""), "CPU", settings)
    request = compiled.create_infer_request()
    names = [output.get_any_name() for output in compiled.outputs]

    def run(grid: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        results = request.infer({INPUT: grid}, share_inputs=True, share_outputs=True)
        return {name: results[k] for k, name in enumerate(names)}

    return run
