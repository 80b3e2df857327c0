"""Layers of neurons as integers, so that every engine fires the same spikes: the last step of conversion.

In steps s of its output channel, a neuron compares A + t B with (k - 1/2) Theta, where A is a sum of counts times 8-bit
weights, B its bias and Theta its threshold. If B is whole and Theta odd, every comparison is between a whole number and a
half: no value ever equals a threshold, both conventions of rounding a half agree, and float32 arithmetic is on the right side
unless it errs by half a step.

Neurons driven by a sum, as in residual networks, are the same if all of its parts have the same step: a convolution because
it is rounded to it, spikes because their threshold is a whole number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from evburst.models.graph import Graph, Node
from evburst.models.spiking.network import SpikingParameters, spike_sizes
from evburst.models.spiking.neurons import NeuronLayer
from evburst.models.spiking.rounding import LARGEST, Sizes, from_int8, input_sizes, rounded, to_int8

EXACT = 2**20
"""Largest threshold and bias in steps: up to here, a neuron's float32 arithmetic errs by less than a quarter of a step."""


@dataclass(frozen=True)
class Driven:
    """A layer of neurons with what its current is the sum of.

    Attributes:
        relu: the neurons.
        convs: the convolutions, one or two, which drive nothing else.
        add: what adds the parts of the current; None if there is one.
        spikes: names of the nodes whose spikes are added to the currents of convolutions.
    """

    relu: Node
    convs: tuple[Node, ...]
    add: Node | None = None
    spikes: tuple[str, ...] = ()


def driven(graph: Graph) -> list[Driven]:
    """Layers of neurons where `integer_form` can apply.

    Not among them are neurons of a LeakyReLU and those driven by what is read out or by others as well. Neither are neurons
    that spikes drive, too, if their own spikes are added to spikes: their thresholds would follow from both.
    """
    readers, nodes, found = graph.consumers(), {node.name: node for node in graph.nodes}, []

    def is_current(node: Node) -> bool:
        return node.op == "conv" and len(readers[node.name]) == 1 and node.name not in graph.outputs

    for relu in graph.nodes:
        if relu.op != "relu" or relu.attrs.get("negative_slope", 0.0):
            continue
        source = nodes[relu.inputs[0]]
        if is_current(source):
            found.append(Driven(relu, (source,)))
        elif source.op == "add" and len(readers[source.name]) == 1 and source.name not in graph.outputs:
            parts = [nodes[name] for name in source.inputs]
            convs = tuple(part for part in parts if is_current(part))
            spikes = tuple(part.name for part in parts if part not in convs)
            added = [nodes[name].op for reader in readers[relu.name] if reader.op == "add" for name in reader.inputs]
            if convs and not (spikes and added and "conv" not in added):
                found.append(Driven(relu, convs, source, spikes))
    return found


class Steps(NamedTuple):
    """Result of `choose_steps`: the step of each output channel and the threshold, `(O,)` float32 each."""

    step: Tensor
    theta: Tensor


def choose_steps(
    largest: Tensor,
    layer: NeuronLayer,
    constant: Tensor,
    timesteps: int,
    size: Tensor | None = None,
    kept: Tensor | None = None,
) -> Steps:
    """Choose the step of each output channel so that its threshold is an odd number of steps.

    The number is the nearest to the threshold in steps of `to_int8`, so that weights that are whole already stay the same; if
    the threshold is only a few steps, it is the next lower one, so that no weight exceeds 127. With `size`, that is a whole
    number of steps, and the threshold becomes the nearest odd number of them.

    Args:
        largest: `(O,)` largest product of a weight and the value of a count that it is multiplied by.
        layer: the neurons.
        constant: `(O,)` constant current per timestep.
        timesteps: T.
        size: `(O,)` value of the spikes that are added to the currents of convolutions.
        kept: `(O,)` numbers of steps, of the size or else of the threshold, that are chosen again where no weight exceeds 127
            and the next larger number would be the best at most. Weights that are whole may have lost their largest fraction,
            so that they alone do not tell.
    """
    theta, most = layer.theta.double(), layer.phi * timesteps
    least = torch.maximum(largest.double() / LARGEST, torch.maximum(constant.double().abs(), theta * most) / EXACT)
    divided = theta if size is None else size.double()
    ratio = divided / least
    if size is None:
        below = 2 * torch.floor((ratio - 1) / 2).clamp_min(0) + 1
        number = torch.where((below > LARGEST) & (below + 1 < ratio), below + 2, below)
    else:
        number = torch.floor(ratio * (1 + 1e-6)).clamp_min(1)
    if kept is not None:
        number = torch.where((kept <= ratio * (1 + 0.5 / LARGEST)) & (kept >= number - 2), kept.double(), number)
    step = (divided / number).float()
    if size is None:
        return Steps(step, layer.theta)
    odd = 2 * torch.round((theta / step.double() - 1) / 2).clamp_min(0) + 1
    odd -= 2 * ((odd * step > layer.ceiling) & (odd > 1))
    return Steps(step, (odd * step.double()).float())


def can_be_whole(graph: Graph, drive: Driven, sizes: Sizes) -> bool:
    """Whether what drives a layer can be whole steps: not currents, averages, or sums of spikes without a common size."""
    spikes = [sizes[name] for name in drive.spikes]
    return all(input_sizes(graph, conv, sizes) is not None for conv in drive.convs) and all(
        size is not None and len(size) == len(graph.tensors[f"{drive.convs[0].name}.bias"]) for size in spikes
    )


def steps_of(
    graph: Graph, drive: Driven, layer: NeuronLayer, sizes: Sizes, timesteps: int, kept: Tensor | None = None
) -> Steps:
    """Choose the steps of a layer that `can_be_whole`; see `choose_steps`."""
    products = [
        (graph.tensors[f"{conv.name}.weight"] * input_sizes(graph, conv, sizes)[..., None, None]).abs().flatten(1).amax(1)  # type: ignore[index]
        for conv in drive.convs
    ]
    largest = torch.stack(products).amax(0)
    size = sizes[drive.spikes[0]] if drive.spikes else None
    return choose_steps(largest, layer, constant_current(graph, drive) + layer.shift, timesteps, size, kept)


def constant_current(graph: Graph, drive: Driven) -> Tensor:
    """Sum of the biases of what drives a layer, `(O,)`."""
    return torch.stack([graph.tensors[f"{conv.name}.bias"] for conv in drive.convs]).sum(0)


def whole_weights(graph: Graph, drive: Driven, sizes: Sizes, step: Tensor) -> dict[str, Tensor]:
    """The weights and steps of a layer in `integer_form`."""
    tensors: dict[str, Tensor] = {}
    for conv in drive.convs:
        weight, read = graph.tensors[f"{conv.name}.weight"], input_sizes(graph, conv, sizes)
        assert read is not None  # see `can_be_whole`
        tensors |= {f"{conv.name}.weight": from_int8(*to_int8(weight, read, step), read), f"{conv.name}.step": step.clone()}
    return tensors


def whole_biases(drive: Driven, constant: Tensor, step: Tensor) -> dict[str, Tensor]:
    """The biases of a layer in `integer_form`: all of its constant current is in the first, as whole steps."""
    whole, *others = (f"{conv.name}.bias" for conv in drive.convs)
    return {whole: whole_steps(constant, step)} | {name: torch.zeros_like(constant) for name in others}


def whole_steps(constant: Tensor, step: Tensor) -> Tensor:
    """A constant current `(O,)` as a whole number of steps."""
    return (torch.round(constant.double() / step) * step).float()


def integer_form(graph: Graph, parameters: SpikingParameters) -> tuple[Graph, SpikingParameters]:
    """Turn every layer of neurons driven by convolutions into integers (see above).

    Weights are rounded to their channel's step, stored as tensor `<conv>.step` `(O,)`; biases and the neurons' shift together
    become one whole number of steps. Layers that are not `driven` or `can_be_whole` stay what they are, but for the rounding of
    weights that read spikes of another size than before.

    Args:
        graph: the spiking network.
        parameters: its neurons.
    """
    neurons, found = dict(parameters.neurons), set[str]()
    for drive in driven(graph):
        sizes, layer = spike_sizes(graph, neurons), neurons[drive.relu.name]
        if not can_be_whole(graph, drive, sizes):
            continue
        step = step_in_use(graph, drive, layer, sizes)
        if step is None:
            step, theta = steps_of(graph, drive, layer, sizes, parameters.timesteps)
            layer = replace(layer, theta=theta)
        constant = constant_current(graph, drive) + layer.shift
        tensors = whole_weights(graph, drive, sizes, step) | whole_biases(drive, constant, step)
        neurons[drive.relu.name] = replace(layer, shift=torch.zeros_like(layer.shift))
        graph = Graph(graph.nodes, graph.outputs, graph.tensors | tensors)
        found |= {conv.name for conv in drive.convs}
    tensors = _rounded_again(graph, spike_sizes(graph, parameters.neurons), spike_sizes(graph, neurons), found)
    return Graph(graph.nodes, graph.outputs, graph.tensors | tensors), replace(parameters, neurons=neurons)


def _rounded_again(graph: Graph, before: Sizes, after: Sizes, whole: set[str]) -> dict[str, Tensor]:
    """Weights of convolutions that are not in `whole`, and that read spikes whose size has changed."""
    tensors = {}
    for conv in (node for node in graph.nodes if node.op == "conv" and node.name not in whole):
        old, new = (input_sizes(graph, conv, sizes) for sizes in (before, after))
        if new is not None and (old is None or not torch.equal(old, new)):
            name = f"{conv.name}.weight"
            tensors[name] = rounded(graph.tensors[name], new, graph.tensors.get(f"{conv.name}.step"))
    return tensors


def is_integer(graph: Graph, parameters: SpikingParameters) -> bool:
    """Whether a network is in `integer_form`."""
    sizes = spike_sizes(graph, parameters.neurons)
    for drive in driven(graph):
        layer = parameters.neurons[drive.relu.name]
        if can_be_whole(graph, drive, sizes) and (bool(layer.shift.any()) or step_in_use(graph, drive, layer, sizes) is None):
            return False
    return True


def without_integer_form(graph: Graph, parameters: SpikingParameters) -> list[str]:
    """Layers of neurons that `integer_form` leaves as they are, by name, in order."""
    sizes = spike_sizes(graph, parameters.neurons)
    whole = {drive.relu.name for drive in driven(graph) if can_be_whole(graph, drive, sizes)}
    return [node.name for node in graph.nodes if node.op == "relu" and node.name not in whole]


def step_in_use(graph: Graph, drive: Driven, layer: NeuronLayer, sizes: Sizes) -> Tensor | None:
    """The step of a layer whose weights, threshold and added spikes are whole numbers of it; None if they are not."""
    step, *others = (graph.tensors.get(f"{conv.name}.step") for conv in drive.convs)
    if step is None or any(other is None or not torch.equal(step, other) for other in others):
        return None
    odd, whole = in_steps(layer.theta, step)
    if not whole or not bool((odd % 2 == 1).all()):
        return None
    spikes = [sizes[name] for name in drive.spikes]
    return step if all(size is not None and in_steps(size, step)[1] for size in spikes) else None


def in_steps(theta: Tensor, step: Tensor) -> tuple[Tensor, bool]:
    """Thresholds in steps, rounded, and whether they are whole."""
    exact = theta.double() / step.double()
    whole = torch.round(exact)
    return whole, bool(((whole >= 1) & ((exact - whole).abs() <= 1e-6 * whole)).all())
