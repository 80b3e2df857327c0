"""Distillation, the second half of advanced calibration: gradient descent on the spiking network's divergence from its ANN.

Weights, thresholds and shifts learn without labels; the ANN is the teacher (Hinton, Vinyals, Dean, "Distilling the
Knowledge in a Neural Network", 2015; for spiking networks, layer by layer, Li et al., "A Free Lunch From ANN: Towards
Efficient, Accurate Spiking Neural Networks Calibration", ICML 2021; here through the whole network, so that later layers
can correct earlier ones). Scores have the same weight at all positions, as in training, because boxes with low scores
contribute to AP as well.

The forward pass is the network that will run: spikes, and weights and biases in integer form (student.py). Gradients pass
through the rounding unchanged, and thresholds learn as step sizes (Esser et al., "Learned Step Size Quantization", ICLR
2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evburst.data.errors import CheckpointError, ConfigError
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.graph import Graph, Runner
from evburst.models.layout import input_stride
from evburst.models.spiking.convert.noise import noise_grids, relative_cost
from evburst.models.spiking.convert.student import Student
from evburst.models.spiking.integer_form import can_be_whole, driven, integer_form
from evburst.models.spiking.network import SpikingParameters, spike_sizes
from evburst.models.spiking.rounding import input_sizes, rounded
from evburst.models.tasks import divergence

WARM_UP = 10
"""Steps of linear warm-up; the rate then falls as a cosine."""
RAMP = 0.5
"""Share of the steps over which a limit tightens from the network's initial value to the requested one. A multiplier that
meets a large excess at once grows too far and overshoots the limit."""
PRUNINGS = 8, 16
"""Least number of times that weights are left out, and greatest number of steps between two."""
MULTIPLIER_RATES = 0.05, 100.0
"""Integral gain of a limit's multiplier per unit of relative excess: per step (Arrow, Hurwicz, Uzawa, 1958), and in
addition over all steps together, because short descents must converge faster."""
MULTIPLIER_GAIN = 4.0
"""Proportional gain of the multiplier; without it the multiplier oscillates
(Stooke, Achiam, Abbeel, "Responsive Safety in Reinforcement Learning by PID Lagrangian Methods", ICML 2020)."""
EXCESS_DECAY = 0.98
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
        noise: limit on the operations beyond silence of scattered events, relative to what noise.py allows them. None for no
            limit.
        weights: whether weights learn too, besides thresholds and shifts. Weights that do not learn follow from the ANN's
            and take no space in a weights file.
        prune: least share of the weights that are zero at the end. None: zeros of pruned convolutions stay so.
    """

    steps: int
    operations: float | None = None
    burst: float | None = None
    noise: float | None = None
    rate: float = 1.0
    weights: bool = True
    prune: float | None = None

    def pruned_at(self, step: int, first: float) -> float:
        """Share of the weights that are left out at a step: most of them early, when the learning rate is high (Zhu, Gupta, "To
        Prune, or Not to Prune", 2017).

        Args:
            step: index of the step.
            first: the share at the start.
        """
        last, rest = max(first, self.prune or 0.0), 1 - step / max(self.pruned_by, 1)
        return last + (first - last) * max(rest, 0.0) ** 3 if self.pruned_by else last

    @property
    def pruned_by(self) -> int:
        """Index of the step at which the last weights are left out."""
        return int(RAMP * self.steps)

    def prunes(self, step: int) -> bool:
        """Whether weights are left out at a step."""
        least, most = PRUNINGS
        every = max(1, min(most, self.pruned_by // least))
        return self.prune is not None and (step == self.pruned_by or (step < self.pruned_by and step % every == 0))

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
        self.excess = EXCESS_DECAY * self.excess + (1 - EXCESS_DECAY) * excess
        self.held = max(0.0, self.held + (MULTIPLIER_RATES[0] + MULTIPLIER_RATES[1] / steps) * excess)
        return max(0.0, self.held + MULTIPLIER_GAIN * self.excess)


@dataclass(frozen=True)
class Progress:
    """Measurements of one step, per image.

    Attributes:
        divergence: of the batch.
        operations: synaptic operations.
        burst: mean spikes per burst, weighted by fan-out.
        noise: cost of scattered events, relative to what noise.py allows them; 0 without a limit on it.
        multipliers: of the limits on operations, on bursts and on noise.
    """

    divergence: float
    operations: float
    burst: float
    noise: float
    multipliers: tuple[float, float, float]


class Distillation:
    """Reduces a calibrated network's divergence from its ANN, step by step; can be interrupted and resumed.

    Args:
        ann: the folded ANN.
        spiking, parameters: the result of `calibrate` or of an earlier distillation.
        spec: of the outputs.
        descent: length and limits.
        device: where it is computed, "cpu" or "cuda".

    Attributes:
        descent: as given.
        step: number of steps done.
        operations, burst: the present limits. The caller may adjust them, for instance to meet a budget on other images
            than the training ones.

    Raises:
        ConfigError: the network has a memory.
    """

    def __init__(
        self, ann: Graph, spiking: Graph, parameters: SpikingParameters, spec: HeadSpec, descent: Descent, device: str = "cpu"
    ) -> None:
        refuse_memory(spiking)
        free = descent.operations is None and descent.noise is None
        folds = free and _folds(parameters)  # folding would hide the cost of negative spikes
        self._before = parameters if folds else None
        tensors = spiking.tensors | ({} if descent.weights else _weights_of(ann))
        self._device = torch.device(device)
        self._student = Student(
            Graph(spiking.nodes, spiking.outputs, tensors),
            _folded(parameters) if folds else parameters,
            self._device,
            descent.weights,
            not folds,
        )
        self._teacher = Runner(ann.on(self._device, copy=True))
        self._optimizer = torch.optim.Adam(self._student.groups(), betas=(0.9, 0.99), fused=True)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._spec, self.descent, self._stride = spec, descent, input_stride(ann, spec)
        self._limits = Limit(), Limit(), Limit()
        self._zeros = self._student.zeros
        self.operations, self.burst = descent.operations, descent.burst
        self.step = 0

    def learn(self, grids: Tensor) -> Progress:
        """Take one step on a batch of grids, `(N, 2 * bins, H, W)` counts, float32 or uint8."""
        student, descent = self._student, self.descent
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * descent.rate_at(self.step)
        if descent.prunes(self.step):
            student.leave_out(descent.pruned_at(self.step, self._zeros))
        with _float32_convolutions():
            x = grids.to(self._device).float()
            expected = [output.clone() for output in self._teacher(x)]
            diverged = divergence(expected, student.outputs(x), self._spec, everywhere=True)
            noise = self._noise(x)
            found = torch.stack([diverged, student.operations, student.bursts, noise])
            progress = self._progress(*found.tolist())  # the one wait of a step
            self._optimizer.zero_grad()
            self._loss(diverged, noise, progress).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        self.step += 1
        return progress

    def _noise(self, x: Tensor) -> Tensor:
        """Operations of scattered events relative to what they may cost, times those of a training window of `x`; 0 without a
        limit."""
        if self.descent.noise is None:
            return torch.zeros((), device=self._device)
        grids = noise_grids(x.shape[1], self._stride, self.step).to(self._device)
        return relative_cost(self._student.beyond_silence(grids)) * (x[0, 0].numel() / grids[0, 0].numel())

    def _progress(self, diverged: float, operations: float, bursts: float, noise: float) -> Progress:
        """Update the multipliers with the measurements of this step."""
        burst, of_noise = operations / max(bursts, 1.0), noise / max(operations, 1.0)
        found = operations, burst - 1, of_noise  # the first spike of a burst cannot be saved
        limits = self.operations, None if self.burst is None else self.burst - 1, self.descent.noise
        first, second, third = (
            0.0 if limit is None else held.multiplier(own, limit, self.step, self.descent.steps)
            for held, own, limit in zip(self._limits, found, limits, strict=True)
        )
        return Progress(diverged, operations, burst, of_noise, (first, second, third))

    def _loss(self, diverged: Tensor, noise: Tensor, progress: Progress) -> Tensor:
        """The divergence, and the limited quantities times their multipliers."""
        student, loss, operations = self._student, diverged, self.operations or max(progress.operations, 1.0)
        of_operations, of_bursts, of_noise = (progress.divergence * own / operations for own in progress.multipliers)
        if self.operations is not None:
            loss = loss + of_operations * student.operations
        if self.burst is not None:
            loss = loss + of_bursts * (student.operations - self.burst * student.bursts)
        if self.descent.noise is not None:
            loss = loss + of_noise / self.descent.noise * noise
        return loss

    def network(self) -> tuple[Graph, SpikingParameters]:
        """The network as it is now, on the CPU and ready to run; learning can continue.

        Returns:
            A graph with 8-bit weights in integer form, and its neurons. Timesteps, burst limits, and the thresholds of layers
            with a ceiling or whose spikes are added to others (see calibrate.py) do not change.
        """
        student, cpu = self._student, torch.device("cpu")
        graph = Graph(student.graph.nodes, student.graph.outputs, student.tensors_now())
        learned = student.parameters_now().on(cpu, copy=True)
        return _rounded(graph.on(cpu, copy=True), _unfolded(learned, self._before) if self._before else learned)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state that `resume` takes, on any device: tensors on the CPU, and JSON-compatible numbers."""
        tensors = {}
        for k, (name, tensor) in enumerate(self._student.learned()):
            tensors[f"value/{name}"] = tensor.detach().clone().cpu()
            for what, moment in self._optimizer.state.get(self._optimizer.param_groups[k]["params"][0], {}).items():
                tensors[f"{what}/{name}"] = moment.clone().cpu()
        tensors |= {f"kept/{name}": kept.clone().cpu() for name, kept in self._student.kept.items()}
        tensors |= {f"steps/{name}": number.float().cpu() for name, number in self._student.steps.items()}
        limits = [asdict(limit) for limit in self._limits]
        numbers = {"step": self.step, "operations": self.operations, "burst": self.burst, "zeros": self._zeros}
        return tensors, numbers | {"limits": limits}

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
                self._optimizer.state[tensor] = {what: moment.to(self._device, copy=True) for what, moment in moments.items()}
        self._student.keep({name: tensors[f"kept/{name}"].to(self._device) for name in self._student.kept})
        steps = {
            name.removeprefix("steps/"): number.to(self._device, torch.float64)
            for name, number in tensors.items()
            if name.startswith("steps/")
        }
        self._student.steps.update(steps)
        self._zeros = numbers["zeros"]
        self.step, self.operations, self.burst = int(numbers["step"]), numbers["operations"], numbers["burst"]
        self._limits = tuple(Limit(**limit) for limit in numbers["limits"])  # type: ignore[assignment]


def refuse_memory(graph: Graph) -> None:
    """Raise ConfigError for a network with memory: a descent sees single windows, in which nothing is held."""
    if graph.memories:
        raise ConfigError(
            "advanced calibration: a network with memory cannot be calibrated by gradient descent; convert the network without "
            "memory, which --memory adds when it runs, or leave out --level advanced and --continue"
        )


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Compute convolutions of a GPU in float32: TensorFloat-32, torch's default, would round spikes times weights."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
        yield


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
    sizes = spike_sizes(graph, parameters.neurons)
    tensors = {name: tensor.detach() for name, tensor in graph.tensors.items()}
    integer = {conv.name for drive in driven(graph) if can_be_whole(graph, drive, sizes) for conv in drive.convs}
    for node in (node for node in graph.nodes if node.op == "conv"):
        weight, read = f"{node.name}.weight", input_sizes(graph, node, sizes)
        if read is None:
            tensors[weight] = tensors[weight].half().float()
        elif node.name not in integer:  # the others are rounded once, by `integer_form`
            tensors[weight] = rounded(tensors[weight], read)
    return integer_form(Graph(graph.nodes, graph.outputs, tensors), parameters)
