"""A spiking network that really emits differences from silence: the specification of operations beyond silence.

The value of every node is the difference from its value in a window without events. Between neurons everything is linear, so
a convolution is applied to differences without its bias, and sums, concatenations, slices, averages and upsampling do not
change at all:

    W (theta n) + b  =  W (theta d) + (b + W theta n0),   d = n - n0

What silence contributes, the bracket, is a constant map. It is added where a full value is needed: to the current of neurons,
to the counts that a max-pool accumulates, and to the read-outs. Currents, potentials and spike times are therefore those of
the plain network; only what is sent differs. Hardware needs constant maps in place of biases, and signed spikes.

What engines count is compared with it: they emit counts and count their differences (`LayerStats.spikes_beyond_silence`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from evburst.data.stats import SpikeStats
from evburst.models.graph import Graph, Memory, Node
from evburst.models.spiking.network import Counted, SpikingNetwork, SpikingParameters, count_spikes
from evburst.models.spiking.neurons import burst_scan
from evburst.models.spiking.silence import as_counts, silent_values


@dataclass(frozen=True)
class _Silence:
    """Values of a window without events, `(T or 1, 1, C, H, W)`, by node: those read by neurons and max-pools, their spike
    counts, and the outputs."""

    read: dict[str, Tensor]
    counts: dict[str, Tensor]
    outputs: dict[str, Tensor]


class DifferenceNetwork(SpikingNetwork):
    """Runs a network on differences from silence; read-outs equal those of the reference engine.

    Spikes and operations in its statistics are those of the differences.

    Args:
        graph, parameters: as for SpikingNetwork.
    """

    def __init__(self, graph: Graph, parameters: SpikingParameters) -> None:
        super().__init__(graph, parameters)
        self._silences: dict[tuple[object, ...], _Silence] = {}
        self._silence = _Silence({}, {}, {})

    def run(self, grid: Tensor, memory: Memory | None = None) -> tuple[list[Tensor], SpikeStats]:
        """Run the network on a batch; see SpikingNetwork.run.

        Raises:
            ValueError: a memory is given; this network has none.
        """
        if memory is not None:
            raise ValueError("a network of differences has no memory")
        timesteps = self.parameters.timesteps
        key = *grid.shape[1:], timesteps, grid.device
        if key not in self._silences:
            self._silences[key] = self._silence_of(torch.zeros_like(grid[:1]).float(), timesteps)
        self._silence = self._silences[key]
        macs = self.begin(grid, timesteps)
        outputs = self(grid.float())
        return outputs, SpikeStats(tuple(self._layer_stats()), macs)

    @torch.inference_mode()
    def _silence_of(self, grid: Tensor, timesteps: int) -> _Silence:
        silence, values = _Silence({}, {}, {}), dict[str, Tensor]()
        for node, value in silent_values(SpikingNetwork(self.graph, self.parameters), grid, timesteps):
            values[node.name] = value[:, None]
            if node.op in ("relu", "max_pool"):
                silence.read[node.name] = values[node.inputs[0]]
                silence.counts[node.name] = as_counts(values[node.name], self.sizes[node.name]).float()
            if node.name in self.graph.outputs:
                silence.outputs[node.name] = values[node.name]
        return silence

    def conv(self, node: Node, x: Tensor) -> Tensor:
        a = node.attrs
        return F.conv2d(x, self.weight(node), None, a["stride"], a["padding"], a["dilation"], a["groups"])

    def relu(self, node: Node, x: Tensor) -> Tensor:
        layer, fan_out = self.parameters.neurons[node.name], self._fan_out[node.name]
        current = self._over_time(x) + self._silence.read[node.name]
        differences = burst_scan(current, layer, self._timesteps) - self._silence.counts[node.name]
        self._counted.append(Counted(node.name, "neuron", x[0].numel(), count_spikes(differences, fan_out)))
        return (differences * layer.theta[:, None, None]).flatten(0, 1)

    def max_pool(self, node: Node, x: Tensor) -> Tensor:
        size = self.sizes[node.name]
        assert size is not None  # as in SpikingNetwork
        scale = size[:, None, None]
        counts = torch.round((self._over_time(x) + self._silence.read[node.name]) / scale)
        summed = counts.cumsum(0)
        growth = self._growth(node, torch.cat([torch.zeros_like(summed[:1]), summed]))
        differences = growth - self._silence.counts[node.name]
        self._counted.append(Counted(node.name, "pool", 0, count_spikes(differences, self._fan_out[node.name])))
        return (differences * scale).flatten(0, 1)

    def read_out(self, name: str, value: Tensor) -> Tensor:
        return super().read_out(name, (self._over_time(value) + self._silence.outputs[name]).flatten(0, 1))

    def _over_time(self, x: Tensor) -> Tensor:
        """`(T or 1, N, C, H, W)`."""
        return x.reshape(-1, self._images, *x.shape[1:])
