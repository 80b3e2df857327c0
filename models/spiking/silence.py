"""Silence: what a spiking network does in a window without events, as a property of the network and the grid size.

Biases make neurons spike even where nothing happens. What they do then is known beforehand: `silent_values` computes it in one
run on an empty grid, and `resting_counts` keeps the spike counts n0. Operations beyond silence are those of the differences
n - n0 (docs/method.md#silence-as-the-reference); tests/differences.py is a network that really emits these.

n0 is a map per layer and timestep. It is the same at every pixel of a channel, except near borders, because padding with zeros
is not what lies beyond a pixel in the middle. n0 of the input is 0. Counts at a timestep do not depend on later timesteps, so
those of a longer run begin with those of a shorter one.

Other engines need not compute the same n0 bit for bit: each takes as silence what it itself computes for an empty grid (int8:
`silent` in its kernels.py), so that a window without events differs from silence in no engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evburst.models.graph import Node

if TYPE_CHECKING:
    from evburst.models.spiking.network import SpikingNetwork


def silent_values(network: SpikingNetwork, grid: Tensor, timesteps: int) -> Iterator[tuple[Node, Tensor]]:
    """Compute every node for a window without events, in the order of the graph.

    Args:
        network: the reference engine, with nothing else to run until the end.
        grid: `(1, 2 * bins, H, W)` float32 of zeros.
        timesteps: T.

    Yields:
        The node, and its value `(T, C, H, W)`, or `(1, C, H, W)` if it is the same at every timestep.
    """
    network.begin(grid, timesteps)
    values: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        network.advance(node, values, grid)
        yield node, values[node.name]


@torch.inference_mode()
def resting_counts(network: SpikingNetwork, grid: Tensor, timesteps: int) -> dict[str, Tensor]:
    """Spike counts in a window without events, `(T, C, H, W)` int16, of every layer of neurons, max-pool and hold, by name.

    Args:
        network, grid, timesteps: as for `silent_values`.
    """
    return {
        node.name: as_counts(value, network.sizes[node.name])
        for node, value in silent_values(network, grid, timesteps)
        if node.op in ("relu", "max_pool", "hold")
    }


def as_counts(value: Tensor, size: Tensor | None) -> Tensor:
    """Spike counts int16 of a value of neurons or a max-pool, `(..., C, H, W)`, given the value of one spike, `(C,)`."""
    assert size is not None  # only sums of spikes and currents have none
    return torch.round(value / size.to(value.device)[:, None, None]).to(torch.int16)
