"""Report of a conversion by layer: error against the ANN, error added by the layer itself, firing rate, threshold, burst limit.

The first error contains everything inherited from earlier layers, so it grows with depth and does not show where accuracy is
lost. The second one compares a layer's output with the activation of the current that it really received: it is the error of
rounding to spikes, and of currents beyond the burst limit, in this layer alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from evburst.models.graph import Graph, Node, Runner, activation
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters


@dataclass(frozen=True)
class LayerReport:
    """One layer of neurons, or one output of the network (whose threshold, burst limit, rate and own error are 0).

    Attributes:
        name: name of the node.
        theta: mean threshold over channels.
        phi: burst limit.
        spikes_per_neuron: mean number of spikes over all timesteps; a burst of n spikes counts n times.
        share: fraction of the synaptic operations of the whole network.
        sqnr_db: signal-to-quantisation-noise ratio: power of the ANN's activation over power of the error, in decibels.
        own_error: power of the error that this layer adds, as a fraction of the power of the ANN's activation.
    """

    name: str
    theta: float
    phi: int
    spikes_per_neuron: float
    share: float
    sqnr_db: float
    own_error: float


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
        """The layer that adds the largest error."""
        return max(self.layers, key=lambda layer: layer.own_error)

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        return asdict(self)

    def table(self) -> str:
        """Format as a text table that marks the worst layer."""
        head = f"{'layer':34}{'theta':>9}{'phi':>5}{'rate':>8}{'cost %':>8}{'SQNR dB':>9}{'own %':>8}"
        rows = [
            f"{x.name[-33:]:34}{x.theta:9.4f}{x.phi:5d}{x.spikes_per_neuron:8.3f}{100 * x.share:8.2f}"
            f"{x.sqnr_db:9.1f}{100 * x.own_error:8.2f}" + ("   <- loses most" if x is self.worst else "")
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
    network = _ErrorRecorder(snn, parameters, values)
    outputs, stats = network.run(grids)
    for name, output in zip(snn.outputs, outputs, strict=True):
        network.sqnr[name] = _sqnr(values[name], output)
    total = sum(float(layer.synaptic_ops.sum()) for layer in stats.layers)
    by_name = {layer.name: layer for layer in stats.layers}
    reports = []
    for node in snn.nodes:
        if node.name not in network.sqnr:
            continue
        sqnr = network.sqnr[node.name]
        if node.op == "relu":
            layer, spikes = parameters.neurons[node.name], by_name[node.name]
            rate = float(spikes.spikes.mean()) / spikes.neurons
            share = float(spikes.synaptic_ops.sum()) / max(total, 1.0)
            own = network.own_error[node.name]
            reports.append(LayerReport(node.name, float(layer.theta.mean()), layer.phi, rate, share, sqnr, own))
        else:
            reports.append(LayerReport(node.name, 0.0, 0, 0.0, 0.0, sqnr, 0.0))
    return ConversionReport(parameters.timesteps, tuple(reports))


class _ErrorRecorder(SpikingNetwork):
    """A spiking network that measures the errors of every layer.

    Args:
        graph, parameters: the network.
        ann: activations of the ANN, by node.

    Attributes:
        sqnr, own_error: by node, see LayerReport.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, ann: dict[str, Tensor]) -> None:
        super().__init__(graph, parameters)
        self._ann = ann
        self.sqnr: dict[str, float] = {}
        self.own_error: dict[str, float] = {}

    def relu(self, node: Node, x: Tensor) -> Tensor:
        out = super().relu(node, x)
        layer, expected = self.parameters.neurons[node.name], self._ann[node.name]
        exact = activation(self._mean(x) + layer.shift[:, None, None], layer.ceiling, layer.negative_slope)
        mean = self._mean(out)
        self.sqnr[node.name] = _sqnr(expected, mean)
        self.own_error[node.name] = _power(exact - mean) / max(_power(expected), _SILENT)
        return out

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the timesteps: `(T * N, C, H, W)` or, if constant in time, `(N, C, H, W)` to `(N, C, H, W)`."""
        return value.reshape(-1, self._images, *value.shape[1:]).mean(0)


_SILENT = 1e-12
"""Power below which a signal counts as zero."""


def _power(signal: Tensor) -> float:
    return float((signal**2).mean())


def _sqnr(signal: Tensor, other: Tensor) -> float:
    """Signal-to-quantisation-noise ratio in decibels, 99 at most."""
    ratio = max(_power(signal), _SILENT) / max(_power(signal - other), _SILENT)
    return min(99.0, 10 * float(torch.log10(torch.tensor(ratio))))
