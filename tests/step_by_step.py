"""A second, naive spiking network: what the fast one is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.network import SpikingParameters
from evburst.models.spiking.neurons import burst_step, signed_step


class StepByStep:
    """One timestep at a time, in loops, remembering how many spikes (of either sign) arrive where."""

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        self.graph, self.parameters = graph, parameters
        self.spikes: dict[str, list[Tensor]] = {}

    def run(self, x: Tensor) -> list[Tensor]:
        v: dict[str, Tensor] = {}
        summed: dict[str, Tensor] = {}
        totals = {name: torch.tensor(0.0) for name in self.graph.outputs}
        plain = Runner(self.graph)
        for _ in range(self.parameters.timesteps):
            values: dict[str, Tensor] = {}
            counts: dict[str, Tensor] = {}
            for node in self.graph.nodes:
                args = [values[name] for name in node.inputs]
                carried = [counts[name] for name in node.inputs]
                if node.op == "input":
                    values[node.name], counts[node.name] = x, x
                elif node.op == "relu":
                    layer = self.parameters.neurons[node.name]
                    theta, shift = layer.theta[:, None, None], layer.shift[:, None, None]
                    if layer.signed:
                        fired = summed.get(node.name, torch.zeros_like(args[0]))
                        start = v.get(node.name, torch.zeros_like(args[0]))
                        n, v[node.name] = signed_step(start, fired, args[0] + shift, layer)
                        summed[node.name] = fired + n
                    else:
                        start = v.get(node.name, (theta / 2).expand(args[0].shape))
                        n, v[node.name] = burst_step(start, args[0] + shift, theta, layer.burst_limits[:, None, None])
                    values[node.name], counts[node.name] = n * theta, n.abs()
                elif node.op == "max_pool":
                    theta, key = self._theta(node), node.name + "/in"
                    summed[key] = summed.get(key, torch.tensor(0.0)) + torch.round(args[0] / theta)
                    now = plain.max_pool(node, summed[key])
                    n = now - summed.get(node.name, torch.zeros_like(now))
                    summed[node.name] = now
                    values[node.name], counts[node.name] = n * theta, n.abs()
                elif node.op == "conv":
                    values[node.name] = plain.conv(node, args[0])
                    counts[node.name] = torch.zeros_like(values[node.name])  # a current
                elif node.op == "avg_pool":
                    values[node.name] = plain.avg_pool(node, args[0])
                    a, whole = node.attrs, tuple(carried[0].shape[2:])
                    window = whole, 1, 0
                    if a["kernel"] is not None:
                        window = a["kernel"], a["stride"], a["padding"]
                    counts[node.name] = F.avg_pool2d(carried[0], *window, divisor_override=1)
                else:
                    values[node.name] = getattr(plain, node.op)(node, *args)
                    counts[node.name] = getattr(plain, node.op)(node, *carried)
            for name, n in counts.items():
                self.spikes.setdefault(name, []).append(n)
            for name in totals:
                totals[name] = totals[name] + values[name]
        shift = self.parameters.readout_shift
        return [totals[n] / self.parameters.timesteps + shift[n][:, None, None] for n in self.graph.outputs]

    def _theta(self, node: Node) -> Tensor:
        by_name = {n.name: n for n in self.graph.nodes}
        source = by_name[node.inputs[0]]
        while source.op == "max_pool":
            source = by_name[source.inputs[0]]
        return self.parameters.neurons[source.name].theta[:, None, None]


def operations_by_force(slow: StepByStep, images: int) -> Tensor:
    """Synaptic operations `(N,)` of what it ran: every convolution again on the spikes that reach it, with ones for
    weights.

    The sum of its output is its operations. A spike that reaches a neuron without a convolution between is one.
    """
    graph = slow.graph
    brute = torch.zeros(images, dtype=torch.float64)
    for node in graph.nodes:
        if node.op == "relu":
            brute += torch.stack(slow.spikes[node.inputs[0]]).double().sum((0, 2, 3, 4))
        if node.op != "conv":
            continue
        ones = ones_for_synapses(graph.tensors[f"{node.name}.weight"]).double()
        arriving = slow.spikes[node.inputs[0]]
        steps = arriving[:1] if node.inputs[0] == graph.nodes[0].name else arriving  # the first current is computed once
        a = node.attrs
        for spikes in steps:
            brute += F.conv2d(spikes.double(), ones, None, a["stride"], a["padding"], a["dilation"], a["groups"]).sum((1, 2, 3))
    return brute


def ones_for_synapses(weight: Tensor) -> Tensor:
    """Ones for weights; 0 for the zeros of a convolution of which more than an eighth are zero."""
    zeros = sum(value == 0 for value in weight.flatten().tolist())
    return torch.ones_like(weight) if 8 * zeros <= weight.numel() else (weight != 0).to(weight.dtype)
