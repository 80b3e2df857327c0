"""The ANN with counters: how many multiply-accumulates hardware that skips zeros would perform."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from evburst.data.stats import ActivityStats
from evburst.models.graph import Graph, Node, Runner
from evburst.models.spiking.cost import coverage, dense_macs, node_shapes
from evburst.models.spiking.network import SpikingParameters


class ActivityRunner(Runner):
    """Runs a graph as the ANN and counts the non-zero inputs of its convolutions.

    Args:
        graph: the network.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._fan_out: dict[str, Tensor] = {}
        self._dense: dict[str, int] = {}
        self._size: tuple[int, ...] = ()

    def run(self, grid: Tensor) -> tuple[list[Tensor], ActivityStats]:
        """Run a batch and count its operations.

        Args:
            grid: `(N, 2 * bins, H, W)` float32 counts.

        Returns:
            The outputs of the network, and the counts of each image.
        """
        if self._size != tuple(grid.shape[1:]):
            self._size = tuple(grid.shape[1:])
            channels, height, width = self._size
            shapes = node_shapes(self.graph, channels, height, width)
            self._dense = dense_macs(self.graph, channels, height, width)
            for node in self.graph.nodes:
                if node.op == "conv":
                    outputs = len(self.graph.tensors[f"{node.name}.bias"]) // node.attrs["groups"]
                    self._fan_out[node.name] = outputs * coverage(self.graph, node, shapes).to(grid.device)
        self._effective: dict[str, np.ndarray] = {}
        self._active = np.zeros(len(grid))
        self._units = 0
        outputs = self(grid)
        return outputs, ActivityStats(self._dense, self._effective, self._active, self._units)

    def conv(self, node: Node, x: Tensor) -> Tensor:
        # Non-zero channels at each position, times the number of weights that an input at that position meets.
        macs = (x != 0).sum(1) * self._fan_out[node.name]
        self._effective[node.name] = macs.flatten(1).sum(1).cpu().numpy()
        return super().conv(node, x)

    def relu(self, node: Node, x: Tensor) -> Tensor:
        out = super().relu(node, x)
        self._active = self._active + (out != 0).flatten(1).sum(1).cpu().numpy()
        self._units += out[0].numel()
        return out


def memory(graph: Graph, parameters: SpikingParameters | None = None) -> tuple[int, float]:
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
