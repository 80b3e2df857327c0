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
from dataclasses import asdict, dataclass, replace
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from evburst.data._numba import njit
from evburst.data.errors import CheckpointError
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, signal_thresholds
from evburst.models.spiking.neurons import NeuronLayer, burst_scan_fused, over_time
from evburst.models.spiking.rounding import rounded, spike_values
from evburst.models.tasks import divergence

RATE = 1e-3
"""Of Adam: what a weight may move in one step, against its layer's root mean square; shifts against thresholds."""
THRESHOLD_RATE = 4e-3
"""The same for the logarithm of thresholds."""
WARM_UP = 10
"""Steps until the full rate, from which it falls as a cosine."""
RAMP = 0.5
"""Share of the steps over which limits tighten from what the network does at first to what is asked for: a multiplier that meets a large
excess at once grows beyond what the limit needs, and the limit is overshot."""
PRICE_RATES = 0.05, 100.0
"""By how much of the excess, as a share of the limit, its multiplier grows in every step (Arrow, Hurwicz, Uzawa, 1958), and in all steps
together beyond that: short descents have to hurry."""
PRICE_GAIN = 4.0
"""By how much of the excess, averaged over steps, it stands above that: without it the multiplier swings about what the limit needs
(Stooke, Achiam, Abbeel, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods", ICML 2020)."""
MEMORY = 0.98
"""Of averages over steps."""


@dataclass(frozen=True)
class Descent:
    """How far and within which limits a network learns.

    Attributes:
        steps: how many batches; the rate anneals over all of them.
        operations: synaptic operations per image that it shall learn to do with; None: as many as it likes.
        burst: mean spikes of a burst, weighted by fan-out, that it shall learn to do with: what a spike costs against one
            multiplication of a quantised network that skips zeros. None: as many as it likes.
        rate: factor on the rate.
        weights: whether weights learn, too, besides thresholds and shifts; those that do not follow from the ANN's, and take no
            room in a weights file.
    """

    steps: int
    operations: float | None = None
    burst: float | None = None
    rate: float = 1.0
    weights: bool = True

    def rate_at(self, step: int) -> float:
        """Factor on every rate: a short warm-up, then a cosine."""
        return self.rate * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))


@dataclass
class Limit:
    """The multiplier, in shares of the divergence, that keeps a quantity to its limit: proportional and integral.

    Attributes:
        first: what the quantity was in the first steps, on average.
        held: the integral part.
        excess: above the limit in the last steps, as a share of it, on average.
    """

    first: float = 0.0
    held: float = 0.0
    excess: float = 0.0

    def price(self, found: float, wanted: float, step: int, steps: int) -> float:
        """The multiplier after another step.

        Args:
            found: the quantity in this step.
            wanted: the limit in the end.
            step, steps: number of this one, and how many there are.
        """
        if step < WARM_UP:
            self.first += (found - self.first) / (step + 1)
            return 0.0
        tight = min(1.0, step / (RAMP * steps))
        excess = found / (tight * wanted + (1 - tight) * max(self.first, wanted)) - 1
        self.excess = MEMORY * self.excess + (1 - MEMORY) * excess
        self.held = max(0.0, self.held + (PRICE_RATES[0] + PRICE_RATES[1] / steps) * excess)
        return max(0.0, self.held + PRICE_GAIN * self.excess)


@dataclass(frozen=True)
class Progress:
    """What a step has seen, per image.

    Attributes:
        divergence: of its batch.
        operations: synaptic operations.
        burst: mean spikes of a burst, weighted by fan-out.
        prices: of the two limits.
    """

    divergence: float
    operations: float
    burst: float
    prices: tuple[float, float]


def distil(
    ann: Graph,
    spiking: Graph,
    parameters: SpikingParameters,
    spec: HeadSpec,
    batches: Iterable[Tensor],
    descent: Descent,
    progress: Callable[[Progress], object] = lambda _: None,
) -> tuple[Graph, SpikingParameters]:
    """A calibrated network, brought nearer to its ANN.

    Args:
        ann: the folded ANN.
        spiking, parameters: what `calibrate` has made of it, or an earlier call.
        spec: what its outputs mean.
        batches: grids, `(N, 2 * bins, H, W)` float32 each; read one at a time, seen once.
        descent: how far, and within which limits.
        progress: called after every step.

    Returns:
        Weights of 8 bits, and neurons; timesteps, burst limits, thresholds of spikes that are added (see calibrate.py), and of
        layers with a ceiling, are what they were.
    """
    learning = Distillation(ann, spiking, parameters, spec, descent)
    for grids in batches:
        progress(learning.learn(grids))
    return learning.network()


class Distillation:
    """`distil` step by step, to be interrupted and resumed.

    Args:
        ann, spiking, parameters, spec, descent: as in `distil`.

    Attributes:
        descent: as given.
        step: how many have been made.
        operations, burst: the limits now; may be moved on the way, as when they hold for other images than those learned from.
    """

    def __init__(self, ann: Graph, spiking: Graph, parameters: SpikingParameters, spec: HeadSpec, descent: Descent) -> None:
        folds = descent.operations is None and _folds(parameters)  # spikes that are taken back cost, too
        self._before = parameters if folds else None
        self._student = _Student(
            spiking if descent.weights else ann, _folded(parameters) if folds else parameters, descent.weights
        )
        self._teacher = Runner(ann)
        self._optimizer = torch.optim.Adam(self._student.groups(), betas=(0.9, 0.99), fused=True)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._spec, self.descent = spec, descent
        self._limits = Limit(), Limit()
        self.operations, self.burst = descent.operations, descent.burst
        self.step = 0

    def learn(self, grids: Tensor) -> Progress:
        """One step."""
        student, descent = self._student, self.descent
        expected = [output.clone() for output in self._teacher(grids)]
        moved = divergence(expected, student.outputs(grids), self._spec, everywhere=True)
        factor = descent.rate_at(self.step)
        loss, scale, prices = moved, moved.detach(), [0.0, 0.0]
        spent, burst = float(student.operations.detach()), student.burst
        if self.operations is not None:
            prices[0] = self._limits[0].price(spent, self.operations, self.step, descent.steps)
            loss = loss + scale * prices[0] * student.operations / self.operations
        if self.burst is not None:
            prices[1] = self._limits[1].price(burst, self.burst, self.step, descent.steps)
            loss = loss + scale * prices[1] * student.surplus / (self.operations or spent)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.step += 1
        return Progress(float(scale), spent, burst, (prices[0], prices[1]))

    def network(self) -> tuple[Graph, SpikingParameters]:
        """What has been learned so far, as it will run; learning may go on."""
        learned = self._student.parameters_now()
        found = _unfolded(learned, self._before) if self._before else learned
        return _rounded(self._student.graph, found), found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `resume` needs: tensors, and numbers."""
        tensors = {}
        for k, (name, tensor) in enumerate(self._student.learned()):
            tensors[f"value/{name}"] = tensor.detach().clone()
            for what, moment in self._optimizer.state.get(self._optimizer.param_groups[k]["params"][0], {}).items():
                tensors[f"{what}/{name}"] = moment.clone()
        limits = [asdict(limit) for limit in self._limits]
        return tensors, {"step": self.step, "operations": self.operations, "burst": self.burst, "limits": limits}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Go on from a `state` of the same network; raises CheckpointError if it is of another one."""
        learned = self._student.learned()
        if any(tensors.get(f"value/{name}", torch.empty(0)).shape != tensor.shape for name, tensor in learned):
            raise CheckpointError("the interrupted conversion is of another network: delete it, or name another output file")
        for name, tensor in learned:
            tensor.data.copy_(tensors[f"value/{name}"])
            moments = {
                what: tensors[f"{what}/{name}"] for what in ("step", "exp_avg", "exp_avg_sq") if f"{what}/{name}" in tensors
            }
            if moments:
                self._optimizer.state[tensor] = {what: moment.clone() for what, moment in moments.items()}
        self.step, self.operations, self.burst = int(numbers["step"]), numbers["operations"], numbers["burst"]
        self._limits = tuple(Limit(**limit) for limit in numbers["limits"])  # type: ignore[assignment]


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
    """The spiking network, to be run with gradients.

    Attributes:
        operations: synaptic operations per image in the last run; with gradients, as the next one has.
        surplus: for every burst of n spikes n (n - 1) / 2 times its fan-out; its gradient makes the n-th spike cost n - 1.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, learns_weights: bool = True) -> None:
        # clones, since calibration leaves inference tensors; steps of `integer_form` hold for weights that do not learn
        layers = {name: replace(layer, theta=layer.theta.clone()) for name, layer in parameters.neurons.items()}
        readout = {name: shift.clone() for name, shift in parameters.readout_shift.items()}
        weights = {name: tensor.clone() for name, tensor in graph.tensors.items() if not name.endswith(".step")}
        super().__init__(Graph(graph.nodes, graph.outputs, weights), replace(parameters, neurons=layers, readout_shift=readout))
        added = _added(graph)
        self._weights = {name: t for name, t in self.graph.tensors.items() if learns_weights and name.endswith(".weight")}
        self._shift = {name: layer.shift.clone() for name, layer in parameters.neurons.items()}
        self._theta_log = {
            name: layer.theta.log()
            for name, layer in parameters.neurons.items()
            if name not in added and layer.ceiling == math.inf
        }
        for tensor in (*self._weights.values(), *self._shift.values(), *readout.values(), *self._theta_log.values()):
            tensor.requires_grad_()
        self._layers = dict(parameters.neurons)
        self.operations, self.surplus, self._bursts = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self._values: dict[str, Tensor | None] = {}

    @property
    def burst(self) -> float:
        """Mean spikes of a burst in the last run, weighted by fan-out."""
        return float(self.operations.detach() / self._bursts.clamp_min(1.0))

    def learned(self) -> list[tuple[str, Tensor]]:
        """What learns, by name, in the order of `groups`."""
        named = [(f"weight/{name}", tensor) for name, tensor in self._weights.items()]
        named += [(f"shift/{name}", tensor) for name, tensor in self._shift.items()]
        named += [(f"readout/{name}", tensor) for name, tensor in self.parameters.readout_shift.items()]
        return named + [(f"theta/{name}", tensor) for name, tensor in self._theta_log.items()]

    def groups(self) -> list[dict[str, Any]]:
        """Every tensor with its own rate, for the optimizer."""
        scaled = [(weight, float(weight.detach().square().mean().sqrt())) for weight in self._weights.values()]
        scaled += [(shift, float(self.parameters.neurons[name].theta.mean())) for name, shift in self._shift.items()]
        scaled += [(shift, 1.0) for shift in self.parameters.readout_shift.values()]
        scaled += [(theta, THRESHOLD_RATE / RATE) for theta in self._theta_log.values()]
        return [{"params": [tensor], "lr": RATE * scale} for tensor, scale in scaled]

    def outputs(self, grids: Tensor) -> list[Tensor]:
        """Of a batch of grids."""
        self._begin(grids)
        self.operations, self.surplus, self._bursts = torch.zeros(()), torch.zeros(()), torch.zeros(())
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
        spikes, fan_out = counts.abs(), self._fan_out[node.name] / self._images
        self.operations = self.operations + (spikes.sum(0) * fan_out).sum()
        self._bursts = self._bursts + ((spikes.detach() > 0.5).sum(0) * fan_out).sum()

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
        fired: tuple[Tensor, ...] = _Fire.apply(current, theta, self._shift[node.name], *neurons)  # type: ignore[no-untyped-call]
        out, operations, surplus, bursts = fired
        self.operations, self.surplus, self._bursts = (
            self.operations + operations,
            self.surplus + surplus,
            self._bursts + bursts,
        )
        return out.flatten(0, 1)

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
    """`burst_scan_fused`, with scalars per image: its synaptic operations, `_Student.surplus`, and operations with a burst counted
    once (without gradient). The gradient is that of clipping, for theta of the step size as well.
    tests/test_models_spiking_convert_distil.py has the same in single operations."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, theta: Tensor, shift: Tensor, layer: NeuronLayer, timesteps: int, fan_out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        current = current.contiguous()
        _, n, c, h, w = current.shape
        totals = np.zeros((n, c, 3))
        parameters = layer.theta.numpy(), fan_out.reshape(c, h * w).numpy(), totals
        if timesteps == 1 and not layer.signed:
            out = torch.empty_like(current)
            limits = layer.shift.numpy(), layer.burst_limits.numpy()
            _fire_at_once(current.view(n, c, h * w).numpy(), *limits, out.view(n, c, h * w).numpy(), *parameters)
        else:
            out, _ = burst_scan_fused(current, layer, timesteps, fan_out)
            _tally(out.view(timesteps, n, c, h * w).numpy(), *parameters)
        ctx.save_for_backward(current, out)
        ctx.layer, ctx.fan_out = layer, fan_out
        operations, surplus, bursts = torch.from_numpy(totals.sum((0, 1)) / n).float()
        ctx.mark_non_differentiable(bursts)
        return out, operations, surplus, bursts

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_operations: Tensor, of_surplus: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        current, out = ctx.saved_tensors
        layer, (_, n, c, h, w) = ctx.layer, out.shape
        passed, to_theta, to_shift = torch.zeros_like(current), np.zeros((n, c)), np.zeros((n, c))
        _fire_backward(
            gradient.contiguous().view(-1, n, c, h * w).numpy(),
            np.float32(float(of_operations) / n),
            np.float32(float(of_surplus) / n),
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


@njit(cache=True, nogil=True)
def _level(current, shift, theta, most):  # type: ignore[no-untyped-def]
    """Spikes of `burst_step` at rest, in the order of its operations: apart from the loops, which may add in any order."""
    n = np.floor((theta / np.float32(2) + (current + shift)) / theta)
    n = n if n > np.float32(0) else np.float32(0)
    return n if n < most else most


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _fire_at_once(current, shift, limits, out, theta, fan_out, totals):  # type: ignore[no-untyped-def]
    """`burst_scan_fused` of one timestep and neurons that take nothing back, and `_tally`."""
    images, channels, size = current.shape
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        th, sh, most = theta[c], shift[c], limits[c]
        operations, surplus, bursts = zero, zero, zero
        arriving, said = current[i, c], out[i, c]
        for k in range(size):
            n = _level(arriving[k], sh, th, most)
            said[k] = n * th
            operations += n * fan_out[c, k]
            surplus += half * n * (n - one) * fan_out[c, k]
            bursts += fan_out[c, k] if n > zero else zero
        totals[i, c, 0], totals[i, c, 1], totals[i, c, 2] = operations, surplus, bursts


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _tally(out, theta, fan_out, totals):  # type: ignore[no-untyped-def]
    """Adds to `(N, C, 3)`: operations, surplus, and operations with a burst counted once, of `(T, N, C, H * W)`."""
    timesteps, images, channels, size = out.shape
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        for t in range(timesteps):
            operations, surplus, bursts = zero, zero, zero
            for k in range(size):
                n = np.rint(abs(out[t, i, c, k]) / theta[c])
                operations += n * fan_out[c, k]
                surplus += half * n * (n - one) * fan_out[c, k]
                bursts += fan_out[c, k] if n > zero else zero
            totals[i, c, 0] += operations
            totals[i, c, 1] += surplus
            totals[i, c, 2] += bursts


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _fire_backward(  # type: ignore[no-untyped-def]
    gradient, price, extra, mean, out, theta, shift, limits, negative_slope, fan_out, passed, to_theta, to_shift
):
    """One pass over memory; price: of an operation; extra: of `_Student.surplus`. Adds to passed, as `current`; fills `(N, C)` of
    thresholds and shifts."""
    timesteps, images, channels, size = out.shape
    zero, one = np.float32(0), np.float32(1)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        largest, unit, per_step, sh = theta[c] * limits[c], one / theta[c], extra / theta[c], shift[c]
        base = price - extra
        for t in range(timesteps):
            step, moved = zero, zero
            arrived, said, now = gradient[t, i, c], out[t, i, c], passed[t % len(passed), i, c]
            for k in range(size):
                wanted = mean[i, c, k] + sh
                slope = one if wanted > zero else negative_slope
                wanted *= slope
                slope = slope if abs(wanted) < largest else zero
                wanted = wanted if abs(wanted) < largest else zero
                cost = unit * fan_out[c, k] * (base + per_step * abs(said[k]))
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
