"""The ANN with counters: how many multiply-accumulates hardware would perform that skips zeros, or what equals silence.

Zeros among the weights of a pruned convolution (models/spiking/cost.py) are skipped as well, as in the spiking network.

An input equals silence if it has the value that it has in a window without events, within float32 rounding: libraries add up
in an order that depends on the size of a batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray
from torch import Tensor

from evburst.data._numba import njit
from evburst.data.stats import ActivityStats
from evburst.models.graph import Graph, Memory, Node, Runner
from evburst.models.spiking.cost import dense_macs, synapses
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
                    self._fan_out[node.name] = synapses(self.graph, node, shapes).to(grid.device, torch.int32)
            self._silent = _SilentInputs(self.graph).of(torch.zeros_like(grid[:1]))
        self._beyond: dict[str, np.ndarray] = {}
        self._effective: dict[str, np.ndarray] = {}
        self._active = np.zeros(len(grid))
        self._units = 0
        outputs = self(grid, memory)
        return outputs, ActivityStats(self._dense, self._effective, self._active, self._units, self._beyond)

    def conv(self, node: Node, x: Tensor) -> Tensor:
        silent, fan_out = self._silent[node.name], self._fan_out[node.name]
        self._effective[node.name], self._beyond[node.name] = macs_read(x, silent, fan_out)
        return super().conv(node, x)

    def relu(self, node: Node, x: Tensor) -> Tensor:
        out = super().relu(node, x)
        self._active = self._active + _active_units(out)
        self._units += out[0].numel()
        return out


def macs_read(x: Tensor, silent: Tensor, fan_out: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multiply-accumulates of a convolution whose inputs are read only if they are not zero, or differ from silence.

    On a CPU, one pass over the inputs counts both; PyTorch, which counts on a GPU, takes longer for that than for the
    convolution.

    Args:
        x: its inputs, `(N, C, H, W)` float32.
        silent: its inputs in a window without events, `(1, C, H, W)` float32.
        fan_out: number of weights that each of them meets, `(C, H, W)` or `(1, H, W)` int32.

    Returns:
        Those of each image, `(N,)`: for inputs that are not zero, and for inputs that differ from silence.
    """
    limit = _ROUNDING * silent.abs().max()
    if x.is_cuda:
        return weighted(x != 0, fan_out), weighted((x - silent).abs() > limit, fan_out)
    effective, beyond = np.empty(len(x)), np.empty(len(x))
    inputs, reference, meets = (tensor.contiguous().flatten(-2).numpy() for tensor in (x, silent, fan_out))
    _count_read(inputs, reference[0], np.float32(limit), meets, effective, beyond)
    return effective, beyond


def weighted(read: Tensor, fan_out: Tensor) -> NDArray[np.float64]:
    """Number of weights that the inputs meet that are read: of each image."""
    macs: NDArray[np.float64] = (read * fan_out).flatten(1).sum(1, dtype=torch.float64).cpu().numpy()
    return macs


def _active_units(out: Tensor) -> NDArray[np.int64]:
    """Number of units of each image that are not zero."""
    if out.is_cuda:
        active: NDArray[np.int64] = (out != 0).flatten(1).sum(1).cpu().numpy()
        return active
    counts = np.empty(len(out), np.int64)
    _count_active(out.contiguous().flatten(1).numpy(), counts)
    return counts


@njit(cache=True, nogil=True, parallel=True)
def _count_read(inputs, silent, limit, fan_out, effective, beyond):  # type: ignore[no-untyped-def]
    images, channels, positions = inputs.shape
    for i in prange(images):
        read = differing = np.int64(0)
        for c in range(channels):
            own = fan_out[min(c, len(fan_out) - 1)]
            for k in range(positions):
                meets = np.int64(own[k])
                read += meets * (inputs[i, c, k] != 0)
                differing += meets * (abs(inputs[i, c, k] - silent[c, k]) > limit)
        effective[i], beyond[i] = read, differing


@njit(cache=True, nogil=True, parallel=True)
def _count_active(out, counts):  # type: ignore[no-untyped-def]
    for i in prange(len(out)):
        active = 0
        for k in range(out.shape[1]):
            active += out[i, k] != 0
        counts[i] = active


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
