"""Distillation, the second half of advanced calibration: gradient descent on the spiking network's divergence from its ANN.

Weights, thresholds and shifts learn without labels; the ANN is the teacher (Hinton, Vinyals, Dean, "Distilling the
Knowledge in a Neural Network", 2015; for spiking networks, layer by layer, Li et al., "A Free Lunch From ANN: Towards
Efficient, Accurate Spiking Neural Networks Calibration", ICML 2021; here through the whole network, so that later layers
can correct earlier ones). Scores have the same weight at all positions, as in training, because boxes with low scores
contribute to AP as well.

The forward pass is the network that will run: spikes, and weights and biases in integer form. Gradients pass through the
rounding unchanged (Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013), and
thresholds learn as step sizes (Esser et al., "Learned Step Size Quantization", ICLR 2020).
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
from evburst.models.spiking.rounding import driven, integer_form, rounded, spike_values, threshold_steps, whole_steps
from evburst.models.tasks import divergence

RATE = 1e-3
"""Adam's learning rate for weights, relative to the root mean square of their layer, and for shifts, relative to thresholds."""
THRESHOLD_RATE = 4e-3
"""Adam's learning rate for the logarithm of thresholds."""
WARM_UP = 10
"""Steps of linear warm-up; the rate then falls as a cosine."""
RAMP = 0.5
"""Share of the steps over which a limit tightens from the network's initial value to the requested one. A multiplier that
meets a large excess at once grows too far and overshoots the limit."""
MULTIPLIER_RATES = 0.05, 100.0
"""Integral gain of a limit's multiplier per unit of relative excess: per step (Arrow, Hurwicz, Uzawa, 1958), and in
addition over all steps together, because short descents must converge faster."""
MULTIPLIER_GAIN = 4.0
"""Proportional gain of the multiplier; without it the multiplier oscillates
(Stooke, Achiam, Abbeel, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods", ICML 2020)."""
MEMORY = 0.98
"""Decay of the running mean of the excess."""


@dataclass(frozen=True)
class Descent:
    """Length and limits of a distillation.

    Attributes:
        steps: number of batches; the rate anneals over all of them.
        operations: limit on synaptic operations per image; None for no limit.
        burst: limit on the mean number of spikes per burst, weighted by fan-out. It determines the energy relative to a
            quantised network that skips zeros, which multiplies once per burst. None for no limit.
        rate: factor on the learning rate.
        weights: whether weights learn too, besides thresholds and shifts. Weights that do not learn follow from the ANN's
            and take no space in a weights file.
    """

    steps: int
    operations: float | None = None
    burst: float | None = None
    rate: float = 1.0
    weights: bool = True

    def rate_at(self, step: int) -> float:
        """Factor on every learning rate at a step: a short warm-up, then a cosine."""
        return self.rate * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step / self.steps, 1.0)))


@dataclass
class Limit:
    """A PI controller of the Lagrange multiplier that keeps a quantity within its limit; in units of the divergence.

    Attributes:
        first: mean of the quantity during the warm-up.
        held: the integral part.
        excess: running mean of the relative excess over the limit.
    """

    first: float = 0.0
    held: float = 0.0
    excess: float = 0.0

    def multiplier(self, found: float, limit: float, step: int, steps: int) -> float:
        """Update with one step and return the multiplier.

        Args:
            found: the quantity in this step.
            limit: its final limit.
            step, steps: index of this step, and their number.
        """
        if step < WARM_UP:
            self.first += (found - self.first) / (step + 1)
            return 0.0
        tight = min(1.0, step / (RAMP * steps))
        excess = found / (tight * limit + (1 - tight) * max(self.first, limit)) - 1
        self.excess = MEMORY * self.excess + (1 - MEMORY) * excess
        self.held = max(0.0, self.held + (MULTIPLIER_RATES[0] + MULTIPLIER_RATES[1] / steps) * excess)
        return max(0.0, self.held + MULTIPLIER_GAIN * self.excess)


@dataclass(frozen=True)
class Progress:
    """Measurements of one step, per image.

    Attributes:
        divergence: of the batch.
        operations: synaptic operations.
        burst: mean spikes per burst, weighted by fan-out.
        multipliers: of the limits on operations and on bursts.
    """

    divergence: float
    operations: float
    burst: float
    multipliers: tuple[float, float]


def distil(
    ann: Graph,
    spiking: Graph,
    parameters: SpikingParameters,
    spec: HeadSpec,
    batches: Iterable[Tensor],
    descent: Descent,
    progress: Callable[[Progress], object] = lambda _: None,
) -> tuple[Graph, SpikingParameters]:
    """Reduce a calibrated network's divergence from its ANN.

    Args:
        ann: the folded ANN.
        spiking, parameters: the result of `calibrate` or of an earlier distillation.
        spec: of the outputs.
        batches: grids, `(N, 2 * bins, H, W)` float32 each; read one at a time, used once.
        descent: length and limits.
        progress: called after every step.

    Returns:
        A graph with 8-bit weights in integer form, and its neurons. Timesteps, burst limits, and the thresholds of layers
        with a ceiling or whose spikes are added to others (see calibrate.py) do not change.
    """
    learning = Distillation(ann, spiking, parameters, spec, descent)
    for grids in batches:
        progress(learning.learn(grids))
    return learning.network()


class Distillation:
    """`distil` step by step; can be interrupted and resumed.

    Args:
        ann, spiking, parameters, spec, descent: as in `distil`.

    Attributes:
        descent: as given.
        step: number of steps done.
        operations, burst: the present limits. The caller may adjust them, for instance to meet a budget on other images
            than the training ones.
    """

    def __init__(self, ann: Graph, spiking: Graph, parameters: SpikingParameters, spec: HeadSpec, descent: Descent) -> None:
        folds = descent.operations is None and _folds(parameters)  # folding would hide the cost of negative spikes
        self._before = parameters if folds else None
        tensors = spiking.tensors | ({} if descent.weights else _weights_of(ann))
        self._student = _Student(
            Graph(spiking.nodes, spiking.outputs, tensors),
            _folded(parameters) if folds else parameters,
            descent.weights,
            not folds,
        )
        self._teacher = Runner(ann)
        self._optimizer = torch.optim.Adam(self._student.groups(), betas=(0.9, 0.99), fused=True)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._spec, self.descent = spec, descent
        self._limits = Limit(), Limit()
        self.operations, self.burst = descent.operations, descent.burst
        self.step = 0

    def learn(self, grids: Tensor) -> Progress:
        """Take one step on a batch of grids."""
        student, descent = self._student, self.descent
        expected = [output.clone() for output in self._teacher(grids)]
        diverged = divergence(expected, student.outputs(grids), self._spec, everywhere=True)
        factor = descent.rate_at(self.step)
        loss, scale, multipliers = diverged, diverged.detach(), [0.0, 0.0]
        spent, burst = float(student.operations.detach()), student.burst
        if self.operations is not None:
            multipliers[0] = self._limits[0].multiplier(spent, self.operations, self.step, descent.steps)
            loss = loss + scale * multipliers[0] * student.operations / self.operations
        if self.burst is not None:
            multipliers[1] = self._limits[1].multiplier(burst, self.burst, self.step, descent.steps)
            loss = loss + scale * multipliers[1] * student.surplus / (self.operations or spent)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.step += 1
        return Progress(float(scale), spent, burst, (multipliers[0], multipliers[1]))

    def network(self) -> tuple[Graph, SpikingParameters]:
        """The network as it is now, ready to run; learning can continue."""
        student, learned = self._student, self._student.parameters_now()
        graph = Graph(student.graph.nodes, student.graph.outputs, student.graph.tensors | student.steps_now())
        return _rounded(graph, _unfolded(learned, self._before) if self._before else learned)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state that `resume` takes: tensors and JSON-compatible numbers."""
        tensors = {}
        for k, (name, tensor) in enumerate(self._student.learned()):
            tensors[f"value/{name}"] = tensor.detach().clone()
            for what, moment in self._optimizer.state.get(self._optimizer.param_groups[k]["params"][0], {}).items():
                tensors[f"{what}/{name}"] = moment.clone()
        tensors |= {f"odd/{name}": odd.float() for name, odd in self._student.odd.items()}
        limits = [asdict(limit) for limit in self._limits]
        return tensors, {"step": self.step, "operations": self.operations, "burst": self.burst, "limits": limits}

    def resume(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue from a `state`; raises CheckpointError if it belongs to another network."""
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
        kept = {name.removeprefix("odd/"): odd.double() for name, odd in tensors.items() if name.startswith("odd/")}
        self._student.odd.update(kept)
        self.step, self.operations, self.burst = int(numbers["step"]), numbers["operations"], numbers["burst"]
        self._limits = tuple(Limit(**limit) for limit in numbers["limits"])  # type: ignore[assignment]


def _weights_of(graph: Graph) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in graph.tensors.items() if name.endswith(".weight")}


def _folds(parameters: SpikingParameters) -> bool:
    """Whether T timesteps can be folded into one: signed neurons emit in total what they would emit for the summed current
    at once."""
    return all(layer.signed and layer.ceiling == math.inf for layer in parameters.neurons.values())


def _folded(parameters: SpikingParameters) -> SpikingParameters:
    """The same neurons in one timestep, with thresholds theta / T and burst limits T * phi."""
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
def _rounded(graph: Graph, parameters: SpikingParameters) -> tuple[Graph, SpikingParameters]:
    """Round weights to 8 bits, or to half precision where they are not integers, and bring layers into `integer_form`."""
    theta = signal_thresholds(graph, parameters.neurons)
    tensors = {name: tensor.detach() for name, tensor in graph.tensors.items()}
    integer = {conv.name for conv, _ in driven(graph)}
    for node in (node for node in graph.nodes if node.op == "conv"):
        weight, values = f"{node.name}.weight", spike_values(graph, node, theta)
        if values is None:
            tensors[weight] = tensors[weight].half().float()
        elif node.name not in integer:  # the others are rounded once, by `integer_form`
            tensors[weight] = rounded(tensors[weight], values)
    return integer_form(Graph(graph.nodes, graph.outputs, tensors), parameters)


class _Student(SpikingNetwork):
    """The spiking network with gradients.

    Attributes:
        operations: synaptic operations per image in the last run, with gradient.
        odd: by convolution, `(O,)` float64 thresholds in steps of the weights, see `threshold_steps`.
        surplus: sum over bursts of n spikes of n (n - 1) / 2 times the fan-out, with gradient: the n-th spike costs n - 1.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters, learns_weights: bool = True, integer: bool = True) -> None:
        # clones, since calibration leaves inference tensors; steps of `integer_form` follow thresholds and weights that learn
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
        self._driven = driven(self.graph) if integer else []
        self._steps: dict[str, Tensor] = {}
        self.odd = {  # thresholds in steps, which stay what they are as long as they can
            conv.name: torch.round(parameters.neurons[relu.name].theta.double() / step.double())
            for conv, relu in self._driven
            if (step := graph.tensors.get(f"{conv.name}.step")) is not None
        }

    @property
    def burst(self) -> float:
        """Mean spikes per burst in the last run, weighted by fan-out."""
        return float(self.operations.detach() / self._bursts.clamp_min(1.0))

    def learned(self) -> list[tuple[str, Tensor]]:
        """The learned tensors by name, in the order of `groups`."""
        named = [(f"weight/{name}", tensor) for name, tensor in self._weights.items()]
        named += [(f"shift/{name}", tensor) for name, tensor in self._shift.items()]
        named += [(f"readout/{name}", tensor) for name, tensor in self.parameters.readout_shift.items()]
        return named + [(f"theta/{name}", tensor) for name, tensor in self._theta_log.items()]

    def groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: every learned tensor with its own rate."""
        scaled = [(weight, float(weight.detach().square().mean().sqrt())) for weight in self._weights.values()]
        scaled += [(shift, float(self.parameters.neurons[name].theta.mean())) for name, shift in self._shift.items()]
        scaled += [(shift, 1.0) for shift in self.parameters.readout_shift.values()]
        scaled += [(theta, THRESHOLD_RATE / RATE) for theta in self._theta_log.values()]
        return [{"params": [tensor], "lr": RATE * scale} for tensor, scale in scaled]

    def outputs(self, grids: Tensor) -> list[Tensor]:
        """Read-outs for a batch of grids."""
        self.begin(grids)
        self.operations, self.surplus, self._bursts = torch.zeros(()), torch.zeros(()), torch.zeros(())
        self.steps_now()
        return self.compute(grids)

    def steps_now(self) -> dict[str, Tensor]:
        """Choose the steps that the present weights and thresholds are rounded to; returns them as tensors of the graph."""
        self._layers = self.parameters_now().neurons
        self.theta = signal_thresholds(self.graph, self._layers)
        self._values = {node.name: spike_values(self.graph, node, self.theta) for node in self.graph.nodes if node.op == "conv"}
        self._steps = {}
        for conv, relu in self._driven:
            self._to_steps(conv, relu)
        return {f"{name}.step": step for name, step in self._steps.items()}

    @torch.no_grad()
    def _to_steps(self, conv: Node, relu: Node) -> None:
        """Choose the steps of a layer as `integer_form` does, and round its constant current to them."""
        values, layer = self._values[conv.name], self._layers[relu.name]
        if values is None:
            return
        weight, bias = (self.graph.tensors[f"{conv.name}.{name}"] for name in ("weight", "bias"))
        constant, most = bias + layer.shift, layer.phi * self._timesteps
        step = threshold_steps(weight, values, layer.theta, constant, most, self.odd.get(conv.name))
        self.odd[conv.name] = torch.round(layer.theta.double() / step.double())
        self._steps[conv.name], self._layers[relu.name] = step, replace(layer, shift=whole_steps(constant, step) - bias)

    def parameters_now(self) -> SpikingParameters:
        """The present neurons and read-out shifts, detached."""
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
        instead: Tensor = _Rounded.apply(weight, values, self._steps.get(node.name))  # type: ignore[no-untyped-call]
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
        theta = self.theta[node.inputs[0]]
        assert theta is not None  # see SpikingNetwork.max_pool
        self._count(node, out / theta[:, None, None])
        return out.flatten(0, 1)


class _Rounded(torch.autograd.Function):
    """`rounded` with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, step: Tensor | None) -> Tensor:
        return rounded(weight, values, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


class _Fire(torch.autograd.Function):
    """`burst_scan_fused` and three scalars per image: synaptic operations, `_Student.surplus`, and (without gradient)
    operations that count a burst once.

    The gradient of the output is that of clipping; theta learns as a step size. tests/test_models_spiking_convert_distil.py
    computes the same with elementary operations."""

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
    """Spikes of `burst_step` from rest, with its exact order of operations; a function of its own because the loops may
    reorder sums."""
    n = np.floor((theta / np.float32(2) + (current + shift)) / theta)
    n = n if n > np.float32(0) else np.float32(0)
    return n if n < most else most


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _fire_at_once(current, shift, limits, out, theta, fan_out, totals):  # type: ignore[no-untyped-def]
    """`burst_scan_fused` for one timestep of unsigned neurons, fused with `_tally`."""
    images, channels, size = current.shape
    zero, one, half = np.float32(0), np.float32(1), np.float32(0.5)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        th, sh, most = theta[c], shift[c], limits[c]
        operations, surplus, bursts = zero, zero, zero
        arriving, emitted = current[i, c], out[i, c]
        for k in range(size):
            n = _level(arriving[k], sh, th, most)
            emitted[k] = n * th
            operations += n * fan_out[c, k]
            surplus += half * n * (n - one) * fan_out[c, k]
            bursts += fan_out[c, k] if n > zero else zero
        totals[i, c, 0], totals[i, c, 1], totals[i, c, 2] = operations, surplus, bursts


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "nsz"})
def _tally(out, theta, fan_out, totals):  # type: ignore[no-untyped-def]
    """Add to totals `(N, C, 3)` the operations, surplus, and operations with a burst counted once of out `(T, N, C, H * W)`."""
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
    gradient,
    operation_gradient,
    surplus_gradient,
    mean,
    out,
    theta,
    shift,
    limits,
    negative_slope,
    fan_out,
    passed,
    to_theta,
    to_shift,
):
    """Backward pass of `_Fire` in one pass over memory.

    operation_gradient and surplus_gradient are the gradients of an operation and of `_Student.surplus`. Adds to passed (as
    `current`), and fills to_theta and to_shift `(N, C)`.
    """
    timesteps, images, channels, size = out.shape
    zero, one = np.float32(0), np.float32(1)
    for plane in numba.prange(images * channels):
        i, c = plane // channels, plane % channels
        largest, unit, per_step, sh = theta[c] * limits[c], one / theta[c], surplus_gradient / theta[c], shift[c]
        base = operation_gradient - surplus_gradient
        for t in range(timesteps):
            theta_step, shift_step = zero, zero
            arrived, emitted, now = gradient[t, i, c], out[t, i, c], passed[t % len(passed), i, c]
            for k in range(size):
                wanted = mean[i, c, k] + sh
                slope = one if wanted > zero else negative_slope
                wanted *= slope
                slope = slope if abs(wanted) < largest else zero
                wanted = wanted if abs(wanted) < largest else zero
                cost = unit * fan_out[c, k] * (base + per_step * abs(emitted[k]))
                cost = cost if emitted[k] > zero else (-cost if emitted[k] < zero else zero)
                total = arrived[k] + cost
                theta_step += arrived[k] * emitted[k] - total * wanted
                now[k] += total * slope
                shift_step += total * slope
            to_theta[i, c] += theta_step / theta[c]
            to_shift[i, c] += shift_step


def _added(graph: Graph) -> set[str]:
    """Names of relu nodes whose spikes are added to others."""
    reached: dict[str, set[str]] = {}
    found: set[str] = set()
    for node in graph.nodes:
        sources = set().union(*(reached[name] for name in node.inputs))
        if node.op == "add":
            found |= sources
        reached[node.name] = {node.name} if node.op == "relu" else set() if node.op in ("conv", "input") else sources
    return found
