"""The ANN with counters: how many multiply-accumulates hardware would perform that skips zeros, or what equals silence.

An input equals silence if it has the value that it has in a window without events, within float32 rounding: libraries add up
in an order that depends on the size of a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evburst.data.stats import ActivityStats
from evburst.models.graph import Graph, Memory, Node, Runner
from evburst.models.spiking.cost import coverage, dense_macs
from evburst.models.spiking.network import SpikingParameters

_ROUNDING = 1e-5
"""Difference that counts as none, as a fraction of the largest value of a convolution's input in silence."""


class ActivityRunner(Runner):
    """Runs a graph as the ANN and counts the non-zero inputs of its convolutions.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._fan_out: dict[str, Tensor] = {}
        self._silent: dict[str, Tensor] = {}
        self._dense: dict[str, int] = {}
        self._size: tuple[int, ...] = ()

    def run(self, grid: Tensor, memory: Memory | None = None) -> tuple[list[Tensor], ActivityStats]:
        """Run a batch and count its operations.

        Args:
            grid: `(N, 2 * bins, H, W)` float32 counts.
            memory: see `Runner.compute`.

        Returns:
            The outputs of the network, and the counts of each image.
        """
        if self._size != tuple(grid.shape[1:]):
            self._size = tuple(grid.shape[1:])
            channels, height, width = self._size
            shapes = self.graph.shapes(channels, height, width)
            self._dense = dense_macs(self.graph, channels, height, width)
            for node in self.graph.nodes:
                if node.op == "conv":
                    outputs = len(self.graph.tensors[f"{node.name}.bias"]) // node.attrs["groups"]
                    self._fan_out[node.name] = outputs * coverage(self.graph, node, shapes).to(grid.device)
            self._silent = _SilentInputs(self.graph).of(torch.zeros_like(grid[:1]))
        self._beyond: dict[str, np.ndarray] = {}
        self._effective: dict[str, np.ndarray] = {}
        self._active = np.zeros(len(grid))
        self._units = 0
        outputs = self(grid, memory)
        return outputs, ActivityStats(self._dense, self._effective, self._active, self._units, self._beyond)

    def conv(self, node: Node, x: Tensor) -> Tensor:
        silent = self._silent[node.name]
        self._effective[node.name] = self._macs(node, x != 0)
        self._beyond[node.name] = self._macs(node, (x - silent).abs() > _ROUNDING * silent.abs().max())
        return super().conv(node, x)

    def _macs(self, node: Node, read: Tensor) -> NDArray[np.float64]:
        """Multiply-accumulates of each image, given which inputs `(N, C, H, W)` of a convolution are read."""
        # Channels read at each position, times the number of weights that an input at that position meets.
        macs: NDArray[np.float64] = (read.sum(1) * self._fan_out[node.name]).flatten(1).sum(1).cpu().numpy()
        return macs

    def relu(self, node: Node, x: Tensor) -> Tensor:
        out = super().relu(node, x)
        self._active = self._active + (out != 0).flatten(1).sum(1).cpu().numpy()
        self._units += out[0].numel()
        return out


class _SilentInputs(Runner):
    """Records what every convolution reads in a window without events."""

    def of(self, grid: Tensor) -> dict[str, Tensor]:
        """The inputs of all convolutions, `(1, C, H, W)` by name, for an empty grid of that shape."""
        self._inputs: dict[str, Tensor] = {}
        self(grid)
        return self._inputs

    def conv(self, node: Node, x: Tensor) -> Tensor:
        self._inputs[node.name] = x
        return super().conv(node, x)


def footprint(graph: Graph, parameters: SpikingParameters | None = None) -> tuple[int, float]:
    """Return the bytes of all parameters and the fraction of weights that are zero.

    Args:
        graph: the network; its weights and biases are counted.
        parameters: of its spiking neurons; thresholds and shifts are counted too.
    """
    tensors = list(graph.tensors.values())
    weights = [tensor for tensor in tensors if tensor.ndim > 1]
    if parameters is not None:
        for layer in parameters.neurons.values():
            tensors += [layer.theta, layer.shift]
        tensors += parameters.readout_shift.values()
    zeros = sum(int((tensor == 0).sum()) for tensor in weights)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors), zeros / sum(t.numel() for t in weights)
