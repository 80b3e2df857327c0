"""The network that a distillation learns: burst neurons and 8-bit weights as they will run, with gradients.

Gradients pass through the rounding of weights unchanged (Bengio, Leonard, Courville, "Estimating or Propagating Gradients
Through Stochastic Neurons", 2013). Everything is computed on one device, and without waiting for it in between.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from evburst.models.graph import Graph, Node
from evburst.models.spiking.convert.fire import fire
from evburst.models.spiking.cost import kept_weights
from evburst.models.spiking.integer_form import (
    Driven,
    can_be_whole,
    constant_current,
    driven,
    step_in_use,
    steps_of,
    whole_steps,
)
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters, spike_sizes
from evburst.models.spiking.rounding import Sizes, input_sizes, rounded

RATE = 1e-3
"""Adam's learning rate for weights, relative to the root mean square of their layer, and for shifts, relative to thresholds."""
TINY = 1e-30
"""Least root mean square of an output channel's weights that others are compared with."""
THRESHOLD_RATE = 4e-3
"""Adam's learning rate for the logarithm of thresholds."""


class Student(SpikingNetwork):
    """The spiking network with gradients.

    Args:
        graph, parameters: the network at the start; they are copied.
        device: where it is computed.
        learns_weights: whether weights learn too.
        integer: whether layers are rounded as `integer_form` does.

    Attributes:
        operations: synaptic operations per image in the last run, with gradient.
        bursts: the same with each burst counted once, with gradient, see `Fired`.
        kept: of the weights that learn, which ones are not left out, bool; at the start, all but the zeros of pruned
            convolutions.
        steps: by relu node, `(O,)` float64 numbers of steps to keep, see `choose_steps`.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: SpikingParameters,
        device: torch.device,
        learns_weights: bool = True,
        integer: bool = True,
    ) -> None:
        # steps of `integer_form` follow thresholds and weights that learn
        weights = {name: tensor for name, tensor in graph.tensors.items() if not name.endswith(".step")}
        copied = parameters.on(device, copy=True)
        super().__init__(Graph(graph.nodes, graph.outputs, weights).on(device, copy=True), copied)
        self.device = device
        added = _added(graph)
        self._weights = {name: t for name, t in self.graph.tensors.items() if learns_weights and name.endswith(".weight")}
        self.kept = {name: kept_weights(weight.detach()) for name, weight in self._weights.items()}
        self._shift = {name: layer.shift for name, layer in copied.neurons.items()}
        self._theta_log = {
            name: layer.theta.log() for name, layer in copied.neurons.items() if name not in added and layer.ceiling == math.inf
        }
        for _, tensor in self.learned():
            tensor.requires_grad_()
        self._layers = dict(copied.neurons)
        self.operations = self.bursts = torch.zeros((), device=device)
        self._beyond: Tensor | None = None
        self._read: dict[str, Tensor | None] = {}
        self._driven = driven(self.graph) if integer else []
        self._steps: dict[str, Tensor] = {}
        sizes = spike_sizes(graph, parameters.neurons)
        self.steps = {  # they stay what they are as long as they can
            drive.relu.name: _numbers_of_steps(drive, layer.theta, sizes, step).to(device)
            for drive in self._driven
            if (step := step_in_use(graph, drive, layer := parameters.neurons[drive.relu.name], sizes)) is not None
        }

    def learned(self) -> list[tuple[str, Tensor]]:
        """The learned tensors by name, in the order of `groups`."""
        named = [(f"weight/{name}", tensor) for name, tensor in self._weights.items()]
        named += [(f"shift/{name}", tensor) for name, tensor in self._shift.items()]
        named += [(f"readout/{name}", tensor) for name, tensor in self.parameters.readout_shift.items()]
        return named + [(f"theta/{name}", tensor) for name, tensor in self._theta_log.items()]

    @property
    def zeros(self) -> float:
        """Share of the weights that learn that are left out."""
        total = sum(kept.numel() for kept in self.kept.values())
        return 1 - sum(int(kept.sum()) for kept in self.kept.values()) / max(total, 1)

    @torch.no_grad()
    def leave_out(self, share: float) -> None:
        """Leave out the smallest weights, relative to the root mean square of those of their output channel.

        Weights that are left out learn on as if they were there, so that they return if they grow (Guo, Yao, Chen, "Dynamic
        Network Surgery for Efficient DNNs", NIPS 2016).

        Args:
            share: of all weights.
        """
        relative = {
            name: weight.abs() / weight.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=TINY)
            for name, weight in self._weights.items()
        }
        together = torch.cat([size.flatten() for size in relative.values()])
        number = math.ceil(share * len(together))
        limit = together.kthvalue(number).values if number else -1.0
        self.keep({name: size > limit for name, size in relative.items()})

    def keep(self, kept: dict[str, Tensor]) -> None:
        """Set `kept`."""
        self.kept = kept
        self._costs.clear()

    def synapses(self) -> Graph:
        return Graph(self.graph.nodes, self.graph.outputs, self.graph.tensors | self.kept)

    def tensors_now(self) -> dict[str, Tensor]:
        """Tensors of the graph at present, not rounded, with their steps, and zeros for weights that are left out."""
        tensors = {name: tensor.detach() for name, tensor in self.graph.tensors.items()}
        return tensors | {name: tensors[name] * kept for name, kept in self.kept.items()} | self.steps_now()

    def groups(self) -> list[dict[str, Any]]:
        """Optimizer groups: every learned tensor with its own rate."""
        scaled = [(weight, float(weight.detach().square().mean().sqrt())) for weight in self._weights.values()]
        scaled += [(shift, float(self.parameters.neurons[name].theta.mean())) for name, shift in self._shift.items()]
        scaled += [(shift, 1.0) for shift in self.parameters.readout_shift.values()]
        scaled += [(theta, THRESHOLD_RATE / RATE) for theta in self._theta_log.values()]
        return [{"params": [tensor], "lr": RATE * scale} for tensor, scale in scaled]

    def outputs(self, grids: Tensor) -> list[Tensor]:
        """Read-outs for a batch of grids, `(N, 2 * bins, H, W)` float32."""
        self.begin(grids)
        self.operations = self.bursts = torch.zeros((), device=self.device)
        self.steps_now()
        return self.compute(grids)

    def beyond_silence(self, grids: Tensor) -> Tensor:
        """Synaptic operations of the spikes that differ from those of a grid without events, `(N,)` with gradient.

        Weights and thresholds are rounded as they were in the last run of `outputs`, whose sums stay as they are.

        Args:
            grids: `(N, 2 * bins, H, W)` float32, of any size.
        """
        both = torch.cat([torch.zeros_like(grids[:1]), grids])
        self.begin(both)
        self._beyond = torch.zeros(len(grids), device=self.device)
        self.compute(both)
        beyond, self._beyond = self._beyond, None
        return beyond

    def steps_now(self) -> dict[str, Tensor]:
        """Choose the steps that the present weights and thresholds are rounded to; returns them as tensors of the graph."""
        self._layers = {
            name: replace(layer, theta=self._theta_of(name).detach(), shift=self._shift[name].detach().clone())
            for name, layer in self.parameters.neurons.items()
        }
        self._follow_thresholds()
        self._steps = {}
        for drive in self._driven:
            if can_be_whole(self.graph, drive, self.sizes):
                self._to_steps(drive)
        return {f"{name}.step": step for name, step in self._steps.items()}

    def _follow_thresholds(self) -> None:
        """Update what follows from the thresholds of all layers."""
        self.sizes = spike_sizes(self.graph, self._layers)
        self._read = {node.name: input_sizes(self.graph, node, self.sizes) for node in self.graph.nodes if node.op == "conv"}

    @torch.no_grad()
    def _to_steps(self, drive: Driven) -> None:
        """Choose the steps of a layer as `integer_form` does, and round its constant current to them."""
        name, layer = drive.relu.name, self._layers[drive.relu.name]
        step, theta = steps_of(self.graph, drive, layer, self.sizes, self._timesteps, self.steps.get(name))
        self.steps[name] = _numbers_of_steps(drive, theta, self.sizes, step)
        self._steps |= {conv.name: step for conv in drive.convs}
        constant = constant_current(self.graph, drive)
        shift = whole_steps(constant + layer.shift, step) - constant
        self._layers[name] = replace(layer, theta=theta, shift=shift)
        if drive.spikes:  # the threshold has followed from theirs
            self._follow_thresholds()

    def parameters_now(self) -> SpikingParameters:
        """The neurons of `steps_now` and the present read-out shifts, detached."""
        readout = {name: shift.detach().clone() for name, shift in self.parameters.readout_shift.items()}
        return SpikingParameters(self.parameters.timesteps, self._layers, readout)

    def _theta_of(self, name: str) -> Tensor:
        return self._theta_log[name].exp() if name in self._theta_log else self.parameters.neurons[name].theta

    def _count(self, node: Node, counts: Tensor) -> None:
        if self._beyond is not None:
            differing = (counts[:, 1:] - counts[:, :1]).abs().sum(0)
            self._beyond = self._beyond + (differing * self._fan_out[node.name]).sum((1, 2, 3))
            return
        spikes, fan_out = counts.abs(), self._fan_out[node.name] / self._images
        self.operations = self.operations + (spikes.sum(0) * fan_out).sum()
        self.bursts = self.bursts + (torch.where(spikes < 1.5, spikes, 1).sum(0) * fan_out).sum()  # as in `fire`

    def input(self, node: Node, x: Tensor) -> Tensor:
        self._count(node, x[None])
        return x

    def weight(self, node: Node) -> Tensor:
        weight, read = super().weight(node), self._read[node.name]
        kept, step = self.kept.get(f"{node.name}.weight"), self._steps.get(node.name)
        if read is None:
            return weight if kept is None else weight * kept
        instead: Tensor = _Rounded.apply(weight, kept, read, step)  # type: ignore[no-untyped-call]
        return instead

    def relu(self, node: Node, x: Tensor) -> Tensor:
        current = x.reshape(-1, self._images, *x.shape[1:])
        layer, fan_out, theta = self._layers[node.name], self._fan_out[node.name], self._theta_of(node.name)
        fired = fire(current, theta, self._shift[node.name], layer, self._timesteps, fan_out)
        if self._beyond is not None:
            self._count(node, fired.out / theta[:, None, None])
            return fired.out.flatten(0, 1)
        self.operations = self.operations + fired.operations
        self.bursts = self.bursts + fired.bursts
        return fired.out.flatten(0, 1)

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        summed = x.reshape(-1, self._images, *x.shape[1:]).cumsum(0)
        out = self._growth(node, torch.cat([torch.zeros_like(summed[:1]), summed]))
        size = self.sizes[node.inputs[0]]
        assert size is not None  # see SpikingNetwork.max_pool
        self._count(node, out / size[:, None, None])
        return out.flatten(0, 1)


class _Rounded(torch.autograd.Function):
    """`rounded`, of the weights that are kept, with a straight-through gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: Tensor | None, read: Tensor, step: Tensor | None) -> Tensor:
        return rounded(weight if kept is None else weight * kept, read, step)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient, None, None, None


def _numbers_of_steps(drive: Driven, theta: Tensor, sizes: Sizes, step: Tensor) -> Tensor:
    """The `kept` of `choose_steps`, `(O,)` float64."""
    size = sizes[drive.spikes[0]] if drive.spikes else theta
    assert size is not None  # see `can_be_whole`
    return torch.round(size.double() / step.double())


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
