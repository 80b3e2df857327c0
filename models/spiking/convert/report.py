"""Report of a conversion by layer: SQNR against the ANN, firing rate, threshold and burst limit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters


@dataclass(frozen=True)
class LayerReport:
    """One layer of neurons, or one output of the network (whose threshold, burst limit and rate are 0).

    Attributes:
        name: name of the node.
        theta: mean threshold over channels.
        phi: burst limit.
        spikes_per_neuron: mean number of spikes over all timesteps; a burst of n spikes counts n times.
        share: fraction of the synaptic operations of the whole network.
        sqnr_db: signal-to-quantisation-noise ratio: power of the ANN's activation over power of the error, in decibels.
        added_db: SQNR of the worst layer that this one reads minus its own, in decibels: the loss added by this layer. None if
            it reads only the grid, which is exact.
    """

    name: str
    theta: float
    phi: int
    spikes_per_neuron: float
    share: float
    sqnr_db: float
    added_db: float | None


@dataclass(frozen=True)
class ConversionReport:
    """Reports of all layers in network order, measured on some grids.

    Attributes:
        timesteps: T.
        layers: one report per layer of neurons and per output.
    """

    timesteps: int
    layers: tuple[LayerReport, ...]

    @property
    def worst(self) -> LayerReport:
        """The layer that loses most compared with the layers that it reads."""
        return max(self.layers, key=lambda layer: -math.inf if layer.added_db is None else layer.added_db)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return asdict(self)

    def table(self) -> str:
        """Format as a text table that marks the worst layer."""
        head = f"{'layer':34}{'theta':>9}{'phi':>5}{'rate':>8}{'cost %':>8}{'SQNR dB':>9}{'added':>8}"
        rows = [
            f"{x.name[-33:]:34}{x.theta:9.4f}{x.phi:5d}{x.spikes_per_neuron:8.3f}{100 * x.share:8.2f}"
            f"{x.sqnr_db:9.1f}"
            + (f"{x.added_db:8.1f}" if x.added_db is not None else f"{'-':>8}")
            + ("   <- loses most" if x is self.worst else "")
            for x in self.layers
        ]
        return "\n".join([head, *rows])


def conversion_report(ann: Graph, snn: Graph, parameters: SpikingParameters, grids: Tensor) -> ConversionReport:
    """Compare the ANN with the spiking network layer by layer, on `(N, 2 * bins, H, W)` float32 grids."""
    values: dict[str, Tensor] = {}

    class Recorder(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if node.op == "relu" or node.name in ann.outputs:
                values[node.name] = value

    Recorder(ann)(grids)
    network = _SqnrRecorder(snn, parameters, values)
    outputs, stats = network.run(grids)
    for name, output in zip(snn.outputs, outputs, strict=True):
        network.sqnr[name] = _sqnr(values[name], output)
    total = sum(float(layer.synaptic_ops.sum()) for layer in stats.layers)
    by_name = {layer.name: layer for layer in stats.layers}
    sources = _nearest_measured(snn, network.sqnr)
    reports = []
    for node in snn.nodes:
        if node.name not in network.sqnr:
            continue
        sqnr = network.sqnr[node.name]
        read = [network.sqnr[name] for name in sources[node.name]]
        added = min(read) - sqnr if read else None
        if node.op == "relu":
            layer, spikes = parameters.neurons[node.name], by_name[node.name]
            rate = float(spikes.spikes.mean()) / spikes.neurons
            share = float(spikes.synaptic_ops.sum()) / total
            reports.append(LayerReport(node.name, float(layer.theta.mean()), layer.phi, rate, share, sqnr, added))
        else:
            reports.append(LayerReport(node.name, 0.0, 0, 0.0, 0.0, sqnr, added))
    return ConversionReport(parameters.timesteps, tuple(reports))


class _SqnrRecorder(SpikingNetwork):
    """A spiking network that measures the SQNR of every layer against the ANN's values."""

    def __init__(self, graph: Graph, parameters: SpikingParameters, ann: dict[str, Tensor]) -> None:
        super().__init__(graph, parameters)
        self._ann = ann
        self.sqnr: dict[str, float] = {}

    def observe(self, node: Node, value: Tensor) -> None:
        if node.op == "relu":
            mean = value.reshape(-1, self._images, *value.shape[1:]).mean(0)
            self.sqnr[node.name] = _sqnr(self._ann[node.name], mean)


def _sqnr(signal: Tensor, other: Tensor) -> float:
    """Signal-to-quantisation-noise ratio in decibels, 99 at most."""
    noise = float(((signal - other) ** 2).mean())
    power = float((signal**2).mean())
    return min(99.0, 10 * float(torch.log10(torch.tensor(max(power, 1e-12) / max(noise, 1e-12)))))


def _nearest_measured(graph: Graph, measured: dict[str, float]) -> dict[str, set[str]]:
    """For every node, the measured nodes that it reads directly or through nodes that were not measured."""
    sources: dict[str, set[str]] = {}
    for node in graph.nodes:
        sources[node.name] = set()
        for name in node.inputs:
            sources[node.name] |= {name} if name in measured else sources[name]
    return sources
