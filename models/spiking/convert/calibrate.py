"""Training-free calibration: thresholds by least squared error, then biases so that every layer's mean is the ANN's.

Thresholds (Wang et al., arXiv 2311.14265, threshold search): per channel, the theta of a grid (1.00 ... 0.05) x the largest
activation that minimises the mean squared difference between the activation a and what a neuron driven by the constant
current a emits, clip(floor(a T / theta + 1/2), 0, T phi) theta / T. (The paper's formula has no 1/2; our neurons start at
half a threshold, and this is their exact response.)

Light calibration: layer by layer, in order, a constant per channel is added to the current so that the mean output of the
spiking layer, fed by the already calibrated spiking layers before it, equals the mean output of the ANN's layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from data.errors import ConversionError
from models.graph import Graph, Node, Runner
from models.spiking.network import SpikingNetwork, SpikingParameters
from models.spiking.neurons import NeuronLayer, burst_scan_fused

RATIOS = np.linspace(1.0, 0.05, 39)
LIGHT_ROUNDS = 4


def calibrate(graph: Graph, batches: Sequence[Tensor], timesteps: int, phi: int, light: bool = True) -> SpikingParameters:
    """Neurons for a folded graph.

    Args:
        graph: the network.
        batches: calibration grids, each `(N, 2 * bins, H, W)` float32. The light calibration runs all of them at once.
        timesteps: T.
        phi: most spikes per timestep, the same in every layer.
        light: whether to correct the biases.

    Raises:
        ConversionError: an activation is not finite.
    """
    thetas = search_thresholds(graph, batches, timesteps, phi)
    neurons = {name: NeuronLayer(theta, torch.zeros_like(theta), phi) for name, theta in thetas.items()}
    zero = {name: torch.zeros_like(graph.tensors[f"{name}.bias"]) for name in graph.outputs}
    parameters = SpikingParameters(timesteps, neurons, zero)
    return light_calibration(graph, parameters, torch.cat(list(batches))) if light else parameters


def search_thresholds(graph: Graph, batches: Sequence[Tensor], timesteps: int, phi: int) -> dict[str, Tensor]:
    """`(C,)` float32 thresholds for every relu node; a dead channel gets the layer's largest, and never fires for nothing."""
    largest = _fold_maxima(graph, batches)
    errors = {name: np.zeros((len(RATIOS), len(maximum))) for name, maximum in largest.items()}

    class Errors(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if node.op == "relu":
                flat = value.transpose(0, 1).flatten(1).contiguous().numpy()
                _add_squared_errors(flat, largest[node.name], RATIOS, timesteps, phi, errors[node.name])

    for batch in batches:
        Errors(graph)(batch)
    thetas = {}
    for name, error in errors.items():
        theta = RATIOS[error.argmin(0)] * largest[name]
        alive = theta > 0
        theta[~alive] = theta.max() if alive.any() else 1.0
        thetas[name] = torch.from_numpy(theta.astype(np.float32))
    return thetas


def light_calibration(graph: Graph, parameters: SpikingParameters, batch: Tensor) -> SpikingParameters:
    """Shifts for every layer of neurons and for the read-outs; thresholds and burst limits stay."""
    means: dict[str, Tensor] = {}

    class Means(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if node.op == "relu" or node.name in graph.outputs:
                means[node.name] = value.mean((0, 2, 3))

    Means(graph)(batch)
    network = _LightCalibration(graph, parameters, means)
    network.run(batch)
    return SpikingParameters(parameters.timesteps, network.neurons, network.shifts)


class _LightCalibration(SpikingNetwork):
    """Runs the network once; every layer is corrected before its output is passed on."""

    def __init__(self, graph: Graph, parameters: SpikingParameters, means: dict[str, Tensor]) -> None:
        super().__init__(graph, parameters)
        self._means = means
        self.neurons: dict[str, NeuronLayer] = {}
        self.shifts: dict[str, Tensor] = {}

    def relu(self, node: Node, x: Tensor) -> Tensor:
        layer, timesteps = self.parameters.neurons[node.name], self.parameters.timesteps
        current = x.reshape(-1, self._images, *x.shape[1:]).contiguous()
        target, best, best_error = self._means[node.name], layer, torch.full_like(layer.theta, torch.inf)
        for _ in range(LIGHT_ROUNDS):
            out, _ = burst_scan_fused(current, layer, timesteps, self._fan_out[node.name])
            missing = target - out.mean((0, 1, 3, 4))
            better = missing.abs() < best_error
            best_error = torch.where(better, missing.abs(), best_error)
            best = NeuronLayer(layer.theta, torch.where(better, layer.shift, best.shift), layer.phi)
            layer = NeuronLayer(layer.theta, layer.shift + missing, layer.phi)
        self.neurons[node.name] = best
        out, _ = burst_scan_fused(current, best, timesteps, self._fan_out[node.name])
        return out.flatten(0, 1)

    def read_out(self, name: str, value: Tensor) -> Tensor:
        self.shifts[name] = self._means[name] - value.mean((0, 2, 3))
        return value


def _fold_maxima(graph: Graph, batches: Sequence[Tensor]) -> dict[str, np.ndarray]:
    largest: dict[str, np.ndarray] = {}

    class Maxima(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if not torch.isfinite(value).all():
                raise ConversionError(f"{node.name!r}: the ANN's own output is not finite; its weights are of no use")
            if node.op == "relu":
                maximum = value.amax((0, 2, 3)).double().numpy()
                largest[node.name] = np.maximum(maximum, largest.get(node.name, 0.0))

    for batch in batches:
        Maxima(graph)(batch)
    return largest


@numba.njit(cache=True, parallel=True)
def _add_squared_errors(values, largest, ratios, timesteps, phi, errors):  # type: ignore[no-untyped-def]
    """errors[r, c] += sum over values[c] of (a - response of a neuron with threshold ratios[r] * largest[c])**2."""
    channels, size = values.shape
    levels = np.float32(timesteps * phi)
    half = np.float32(0.5)
    for c in numba.prange(channels):
        if largest[c] <= 0:
            continue
        for r in range(len(ratios)):
            step = np.float32(ratios[r] * largest[c] / timesteps)
            inverse = np.float32(1) / step
            total = 0.0
            for k in range(size):
                a = values[c, k]
                difference = a - min(np.floor(a * inverse + half), levels) * step
                total += difference * difference
            errors[r, c] += total
