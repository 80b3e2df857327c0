"""The end of advanced calibration: weights, thresholds and shifts follow the gradient of the detector's divergence from its ANN.

No labels: the ANN teaches (Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; for spiking networks
Li et al., "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration", ICML 2021, layer by layer; here through the
whole network, so that a layer can make up for what those before it did). Scores count alike everywhere, as in training: boxes
found with low scores make as much of an AP as others. The network runs as it will, spikes and rounded
weights; gradients pass through both as if nothing were rounded (Bengio, Leonard, Courville, "Estimating or Propagating Gradients
Through Stochastic Neurons", 2013), and reach thresholds as step sizes (Esser et al., "Learned Step Size Quantization", ICLR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch
from evburst.data._numba import njit
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.convert.sensitivity import divergence
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, signal_thresholds
from evburst.models.spiking.neurons import NeuronLayer, burst_scan_fused, over_time
from evburst.models.spiking.rounding import rounded, spike_values
from torch import Tensor

RATE = 1e-3
"""Of Adam: what a weight may move in one step, against its layer's root mean square; shifts against thresholds."""
THRESHOLD_RATE = 4e-3
"""The same for the logarithm of thresholds."""
WARM_UP = 10
"""Steps until the full rate, from which it falls as a cosine."""
FIRST_PRICE = 1.0
"""Of operations above the limit, as a share of it, in shares of the divergence: the limit's multiplier."""
PRICE_RATE = 0.5
"""By how much of the excess it grows in every step (Arrow, Hurwicz, Uzawa, 1958)."""


def distil(
    ann: Graph,
    spiking: Graph,
    parameters: SpikingParameters,
    spec: HeadSpec,
    batches: Iterable[Tensor],
    steps: int,
    operations: float | None = None,
    progress: Callable[[float], object] = lambda _: None,
) -> tuple[Graph, SpikingParameters]:
    """A calibrated network, brought nearer to its ANN.

    Args:
        ann: the folded ANN.
        spiking, parameters: what `calibrate` has made of it.
        spec: what its outputs mean.
        batches: grids, `(N, 2 * bins, H, W)` float32 each; read one at a time, seen once.
        steps: how many batches these are.
        operations: synaptic operations per image that it shall learn to do with; None: as many as it likes.
        progress: called after every step with its divergence per image.

    Returns:
        Weights of 8 bits, and neurons; timesteps, burst limits, thresholds of spikes that are added (see calibrate.py), and of
        layers with a ceiling, are what they were.
    """
    folds = operations is None and _folds(parameters)  # spikes that are taken back cost, too
    student, teacher = _Student(spiking, _folded(parameters) if folds else parameters), Runner(ann)
    optimizer = torch.optim.Adam(student.groups(), betas=(0.9, 0.99), fused=True)
    rate = lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    price = FIRST_PRICE
    for grids in batches:
        expected = [output.clone() for output in teacher(grids)]
        loss = moved = divergence(expected, student.outputs(grids), spec, everywhere=True)
        if operations is not None:
            excess = student.operations / operations - 1
            loss = moved + moved.detach() * price * excess
            price = max(0.0, price + PRICE_RATE * float(excess.detach()))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(float(moved.detach()))
    learned = student.parameters_now()
    found = _unfolded(learned, parameters) if folds else learned
    return _rounded(student.graph, found), found


def _folds(parameters: SpikingParameters) -> bool:
    """Whether one timestep says it all: signed neurons have said at the end what they would have said of the summed current at once."""
    return all(layer.signed and layer.ceiling == math.inf for layer in parameters.neurons.values())


def _folded(parameters: SpikingParameters) -> SpikingParameters:
    """In one timestep, in steps of theta / T and T * phi of them."""
    timesteps = parameters.timesteps
    layers = {
        name: replace(layer, theta=layer.theta / timesteps, phi=layer.phi * timesteps)
        for name, layer in parameters.neurons.items()
    }
    return SpikingParameters(1, layers, parameters.readout_shift)


def _unfolded(folded: SpikingParameters, before: SpikingParameters) -> SpikingParameters:
    layers = {
        name: replace(layer, theta=layer.theta * before.timesteps, phi=before.neurons[name].phi)
        for name, layer in folded.neurons.items()
    }
    return SpikingParameters(before.timesteps, layers, folded.readout_shift)


@torch.no_grad()
def _rounded(graph: Graph, parameters: SpikingParameters) -> Graph:
    """Weights of 8 bits, or as they are stored where they are not rounded."""
    theta = signal_thresholds(graph, parameters.neurons)
    tensors = {name: tensor.detach() for name, tensor in graph.tensors.items()}
    for node in (node for node in graph.nodes if node.op == "conv"):
        weight, values = f"{node.name}.weight", spike_values(graph, node, theta)
        tensors[weight] = tensors[weight].half().float() if values is None else rounded(tensors[weight], values)
    return Graph(graph.nodes, graph.outputs, tensors)


class _Student(SpikingNetwork):
    """The spiking network, to be run with gradients."""

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        # clones, since calibration leaves inference tensors
        layers = {name: replace(layer, theta=layer.theta.clone()) for name, layer in parameters.neurons.items()}
        readout = {name: shift.clone() for name, shift in parameters.readout_shift.items()}
        weights = {name: tensor.clone() for name, tensor in graph.tensors.items()}
        super().__init__(Graph(graph.nodes, graph.outputs, weights), replace(parameters, neurons=layers, readout_shift=readout))
        added = _added(graph)
        self._weights = [tensor for name, tensor in self.graph.tensors.items() if name.endswith(".weight")]
        self._shift = {name: layer.shift.clone() for name, layer in parameters.neurons.items()}
        self._theta_log = {
            name: layer.theta.log()
            for name, layer in parameters.neurons.items()
            if name not in added and layer.ceiling == math.inf
        }
        for tensor in (*self._weights, *self._shift.values(), *readout.values(), *self._theta_log.values()):
            tensor.requires_grad_()
        self._layers = dict(parameters.neurons)
        self.operations = torch.zeros(())
        """Per image, in the last run; with gradients."""
        self._values: dict[str, Tensor | None] = {}

    def groups(self) -> list[dict[str, Any]]:
        """Every tensor with its own rate, for the optimizer."""
        scaled = [(weight, float(weight.detach().square().mean().sqrt())) for weight in self._weights]
        scaled += [(shift, float(self.parameters.neurons[name].theta.mean())) for name, shift in self._shift.items()]
        scaled += [(shift, 1.0) for shift in self.parameters.readout_shift.values()]
        scaled += [(theta, THRESHOLD_RATE / RATE) for theta in self._theta_log.values()]
        return [{"params": [tensor], "lr": RATE * scale} for tensor, scale in scaled]

    def outputs(self, grids: Tensor) -> list[Tensor]:
        """Of a batch of grids."""
        self._begin(grids)
        self.operations = torch.zeros(())
        self._layers = self.parameters_now().neurons
        self._theta = signal_thresholds(self.graph, self._layers)
        self._values = {
            node.name: spike_values(self.graph, node, self._theta) for node in self.graph.nodes if node.op == "conv"
        }
        return self.compute(grids)

    def parameters_now(self) -> SpikingParameters:
        """What has been learned, without gradients."""
        layers = {
            name: replace(layer, theta=self._theta_of(name).detach(), shift=self._shift[name].detach().clone())
            for name, layer in self.parameters.neurons.items()
        }
        readout = {name: shift.detach().clone() for name, shift in self.parameters.readout_shift.items()}
        return SpikingParameters(self.parameters.timesteps, layers, readout)

    def _theta_of(self, name: str) -> Tensor:
        return self._theta_log[name].exp() if name in self._theta_log else self.parameters.neurons[name].theta

    def _count(self, node: Node, counts: Tensor) -> None:
        self.operations = self.operations + (counts.abs().sum(0) * self._fan_out[node.name]).sum() / self._images

    def input(self, node: Node, x: Tensor) -> Tensor:
        self._count(node, x[None])
        return x

    def weight(self, node: Node) -> Tensor:
        weight, values = super().weight(node), self._values[node.name]
        if values is None:
            return weight
        instead: Tensor = _Rounded.apply(weight, values)  # type: ignore[no-untyped-call]
        return instead

    def relu(self, node: Node, x: Tensor) -> Tensor:
        current = x.reshape(-1, self._images, *x.shape[1:])
        neurons = self._layers[node.name], self._timesteps, self._fan_out[node.name]
        theta = self._theta_of(node.name)
        fired: tuple[Tensor, Tensor] = _Fire.apply(current, theta, self._shift[node.name], *neurons)  # type: ignore[no-untyped-call]
        self.operations = self.operations + fired[1]
        return fired[0].flatten(0, 1)

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        summed = x.reshape(-1, self._images, *x.shape[1:]).cumsum(0)
        out = self._growth(node, torch.cat([torch.zeros_like(summed[:1]), summed]))
        theta = self._theta[node.inputs[0]]
        assert theta is not None  # see SpikingNetwork.max_pool
        self._count(node, out / theta[:, None, None])
        return out.flatten(0, 1)


class _Rounded(torch.autograd.Function):
    """`rounded`; the gradient passes through."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        return rounded(weight, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Fire(torch.autograd.Function):
    """`burst_scan_fused` and its synaptic operations, a scalar per image; the gradient is that of clipping, for theta of the step
    size as well. tests/test_models_spiking_convert_distil.py has the same in single operations."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, theta: Tensor, shift: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor
    ) -> tuple[Tensor, Tensor]:
        current = current.contiguous()
        out, totals = burst_scan_fused(current, layer, timesteps, fan_out)
        ctx.save_for_backward(current, out)
        ctx.layer, ctx.fan_out = layer, fan_out
        return out, totals[:, 1].mean().float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_operations: Tensor) -> tuple[Tensor | None, ...]:
        current, out = ctx.saved_tensors
        layer, (_, n, c, h, w) = ctx.layer, out.shape
        passed, to_theta, to_shift = torch.zeros_like(current), np.zeros((n, c)), np.zeros((n, c))
        _fire_backward(
            gradient.contiguous().view(-1, n, c, h * w).numpy(),
            np.float32(float(of_operations) / n),
            over_time(current).view(n, c, h * w).numpy(),
            out.view(-1, n, c, h * w).numpy(),
            layer.theta.numpy(),
            layer.shift.numpy(),
            layer.burst_limits.numpy(),
            np.float32(layer.negative_slope),
            ctx.fan_out.reshape(c, h * w).numpy(),
            passed.view(-1, n, c, h * w).numpy(),
            to_theta,
            to_shift,
        )
        of_theta, of_shift = (torch.from_numpy(x.sum(0)).float() for x in (to_theta, to_shift))
        return passed, of_theta, of_shift, None, None, None


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _fire_backward(  # type: ignore[no-untyped-def]
    gradient, price, mean, out, theta, shift, limits, negative_slope, fan_out, passed, to_theta, to_shift
):
    """One pass over memory; price: of an operation. Adds to passed, as `current`; fills `(N, C)` of thresholds and shifts."""
    timesteps, images, channels, size = out.shape
    zero, one = np.float32(0), np.float32(1)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        largest, unit, sh = theta[c] * limits[c], price / theta[c], shift[c]
        for t in range(timesteps):
            step, moved = zero, zero
            arrived, said, now = gradient[t, i, c], out[t, i, c], passed[t % len(passed), i, c]
            for k in range(size):
                wanted = mean[i, c, k] + sh
                slope = one if wanted > zero else negative_slope
                wanted *= slope
                slope = slope if abs(wanted) < largest else zero
                wanted = wanted if abs(wanted) < largest else zero
                cost = unit * fan_out[c, k]
                cost = cost if said[k] > zero else (-cost if said[k] < zero else zero)
                total = arrived[k] + cost
                step += arrived[k] * said[k] - total * wanted
                now[k] += total * slope
                moved += total * slope
            to_theta[i, c] += step / theta[c]
            to_shift[i, c] += moved


def _added(graph: Graph) -> set[str]:
    """Layers whose spikes are added to others."""
    reached: dict[str, set[str]] = {}
    found: set[str] = set()
    for node in graph.nodes:
        sources = set().union(*(reached[name] for name in node.inputs))
        if node.op == "add":
            found |= sources
        reached[node.name] = {node.name} if node.op == "relu" else set() if node.op in ("conv", "input") else sources
    return found
