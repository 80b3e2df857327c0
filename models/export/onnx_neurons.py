"""Burst neurons as ONNX operators; see models/spiking/neurons.py."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from evburst.models.export.onnx_graph import OnnxGraph
from evburst.models.spiking.neurons import NeuronLayer


def spike_counts(onnx: OnnxGraph, name: str, layer: NeuronLayer, currents: list[str], timesteps: int) -> list[str]:
    """Add the operators of a layer of neurons.

    Args:
        onnx: the graph.
        name: prefix of the tensors' names.
        layer: the neurons.
        currents: of each timestep, or of all, in units of thresholds.
        timesteps: number T of timesteps.

    Returns:
        The counts of each timestep.
    """
    counts: list[str] = []
    half = onnx.constant("half", np.float32(0.5))
    v, fired = "", ""
    for t in range(timesteps):
        current = currents[t % len(currents)]
        v = onnx.emit("Add", [v, current], f"{name}.v{t}") if v else current
        activation = v
        if layer.negative_slope:
            activation = onnx.emit("LeakyRelu", [v], f"{name}.f{t}", alpha=layer.negative_slope)
        elif layer.signed:
            activation = onnx.emit("Relu", [v], f"{name}.f{t}")
        raised = onnx.emit("Add", [activation, half], f"{name}.raised{t}")
        level = onnx.emit("Floor", [raised], f"{name}.level{t}")
        if layer.signed:
            new = onnx.emit("Sub", [level, fired], f"{name}.new{t}") if fired else level
            counts.append(clipped(onnx, new, f"{name}.{t}", layer.burst_limits, signed=True))
            fired = onnx.emit("Add", [fired, counts[-1]], f"{name}.fired{t}") if fired else counts[-1]
        else:
            counts.append(clipped(onnx, level, f"{name}.{t}", layer.burst_limits))
            if t + 1 < timesteps:
                v = onnx.emit("Sub", [v, counts[-1]], f"{name}.rest{t}")
    return counts


def clipped(onnx: OnnxGraph, counts: str, name: str, limits: Tensor, signed: bool = False) -> str:
    """Clip counts to the burst limits, of `signed` neurons on both sides of 0."""
    high = float(limits.max())
    if not signed and float(limits.min()) < high:
        counts = onnx.emit("Min", [counts, onnx.column(f"{name}.limits", limits)], f"{name}.least")
    ends = (
        onnx.constant(f"low_{high:g}_{signed}", np.float32(-high * signed)),
        onnx.constant(f"high_{high:g}", np.float32(high)),
    )
    if signed and float(limits.min()) < high:
        column, opposite = onnx.column(f"{name}.limits", limits), onnx.column(f"{name}.opposite", -limits)
        counts = onnx.emit("Max", [onnx.emit("Min", [counts, column], f"{name}.least"), opposite], f"{name}.most")
    return onnx.emit("Clip", [counts, *ends], f"{name}.cut")
