"""The converters that bench/conversion.py compares, each with the network that it makes: ours, SpikingJelly's and sinabs's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.torch_graph import TorchGraph
from evburst.data.boxes import Detections
from evburst.data.events import SensorSize
from evburst.models.bundle import Bundle
from evburst.models.graph import Graph, Node, Runner
from evburst.models.runtime import open_engine
from evburst.models.spiking.convert.calibrate import Choice, calibrate, record_targets
from evburst.models.spiking.cost import fan_out_maps
from evburst.models.spiking.network import spike_sizes
from evburst.models.spiking.neurons import NeuronLayer
from evburst.models.tasks import task_of

QUANTILE = 0.999


@dataclass(frozen=True)
class Setting:
    """Inputs shared by all converters: the network as bundled, its calibration grids, and the windows that are scored."""

    bundle: Bundle
    calibration: Tensor
    size: SensorSize
    classes: tuple[str, ...]
    labels: list[Detections]
    names: list[str]
    grids: list[Tensor]
    timesteps: tuple[int, ...]
    timed: int

    @property
    def graph(self) -> Graph:
        """The folded ANN."""
        return self.bundle.graph


class Contender(ABC):
    """A converter and its network."""

    name: str

    def timesteps(self, setting: Setting) -> tuple[int, ...]:
        """Those of the setting's T that it is run for."""
        return setting.timesteps

    @abstractmethod
    def convert(self, setting: Setting, timesteps: tuple[int, ...]) -> None:
        """Convert the ANN to a network that will be run for these T."""

    @abstractmethod
    def run(self, x: Tensor) -> Iterator[tuple[int, list[Tensor], float, float]]:
        """Run `(N, 2 * bins, H, W)`; yield (T, outputs, synaptic operations, neuron spikes) for each T in ascending order."""


class Ours(Contender):
    """This project: burst neurons calibrated for each T <= 8, without a search over layers, on the fastest engine."""

    def __init__(self, phi: int) -> None:
        self.name, self._phi = f"evburst, phi = {phi}", phi

    def timesteps(self, setting: Setting) -> tuple[int, ...]:
        return tuple(t for t in setting.timesteps if t <= 8)

    def convert(self, setting: Setting, timesteps: tuple[int, ...]) -> None:
        graph, grids = setting.graph, setting.calibration
        targets = record_targets(
            graph, grids, task_of(setting.bundle.head).confidence(Runner(graph)(grids), setting.bundle.head)
        )
        made = ((t, calibrate(graph, targets, t, Choice(self._phi), "light")) for t in timesteps)
        max_count = setting.bundle.voxel.max_count
        self._networks = {t: open_engine("auto", *network, max_count) for t, network in made}

    def run(self, x: Tensor) -> Iterator[tuple[int, list[Tensor], float, float]]:
        for t, network in self._networks.items():
            outputs, stats = network.run(x)
            spikes = sum(float(layer.spikes.sum()) for layer in stats.layers if layer.kind == "neuron")
            yield t, outputs, sum(float(layer.synaptic_ops.sum()) for layer in stats.layers), spikes


class Bundled(Ours):
    """This project: the network of the weights file, at the T it was converted for and below."""

    def __init__(self) -> None:
        super().__init__(0)
        self.name = "evburst, as bundled"

    def timesteps(self, setting: Setting) -> tuple[int, ...]:
        most = setting.bundle.parameters.timesteps
        return (*(t for t in setting.timesteps if t < most), most)

    def convert(self, setting: Setting, timesteps: tuple[int, ...]) -> None:
        bundle = setting.bundle
        made = {t: replace(bundle.parameters, timesteps=t) for t in timesteps}
        self._networks = {t: open_engine("auto", bundle.spiking, own, bundle.voxel.max_count) for t, own in made.items()}


class Stepped(Contender):
    """A network of another library that runs one timestep at a time; forward hooks count its spikes."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def network(self, setting: Setting) -> tuple[nn.Module, type | tuple[type, ...], dict[str, Tensor | None]]:
        """Return the network, the classes of its neurons, and the signal thresholds by node, {} if neurons never burst."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the membrane potentials."""

    def convert(self, setting: Setting, timesteps: tuple[int, ...]) -> None:
        self._timesteps = timesteps
        self._graph, self._counters = setting.graph, [0.0, 0.0]
        self._fan_out = fan_out_maps(setting.graph, *setting.calibration.shape[1:])
        self._model, neurons, self._theta = self.network(setting)
        self._model.eval()
        for op, kinds in (("relu", neurons), ("max_pool", nn.MaxPool2d)):
            self._count_spikes([node for node in self._graph.nodes if node.op == op], kinds)

    def _count_spikes(self, nodes: list[Node], kinds: type | tuple[type, ...]) -> None:
        """Register hooks that count spikes; relies on the modules being called in the order of the nodes."""
        modules = [module for module in self._model.modules() if isinstance(module, kinds)]
        if len(modules) != len(nodes):
            raise RuntimeError(f"{self.name}: {len(modules)} modules for {len(nodes)} nodes")
        calls = iter(())

        def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal calls
            node = next(calls, None)  # type: ignore[call-overload]
            if node is None:
                calls = iter(nodes)
                node = next(calls)
            spikes = output.abs()
            if node.op == "max_pool":
                theta = self._theta.get(node.name)
                spikes = (spikes > 0).float() if theta is None else torch.round(spikes / theta[:, None, None])
            else:
                self._counters[1] += float(spikes.sum())
            self._counters[0] += float((spikes * self._fan_out[node.name]).sum())

        for module in modules:
            module.register_forward_hook(count)

    def run(self, x: Tensor) -> Iterator[tuple[int, list[Tensor], float, float]]:
        self.reset()
        self._counters[:] = [float((x * self._fan_out[self._graph.nodes[0].name]).sum()), 0.0]
        summed: list[Tensor] = []
        for t in range(1, max(self._timesteps) + 1):
            with torch.no_grad():
                outputs = self._model(x)
            summed = [a + b for a, b in zip(summed, outputs, strict=True)] if summed else list(outputs)
            if t in self._timesteps:
                yield t, [total / t for total in summed], self._counters[0], self._counters[1]


class SpikingJelly(Stepped):
    """`RateCodingRecipe` of SpikingJelly 2.x: neurons that fire at most once per timestep.

    Args:
        name: name in the table.
        settings: settings of the recipe.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        super().__init__(f"SpikingJelly, {name}")
        self._settings = settings

    def network(self, setting: Setting) -> tuple[nn.Module, type | tuple[type, ...], dict[str, Tensor | None]]:
        from spikingjelly.activation_based import ann2snn, neuron

        batches = [setting.calibration[i : i + 16] for i in range(0, len(setting.calibration), 16)]
        recipe = ann2snn.RateCodingRecipe(dataloader=batches, momentum=0.1, **self._settings)
        snn = ann2snn.Converter(recipe, device="cpu").convert(TorchGraph(setting.graph).eval())
        return snn, (neuron.IFNode, neuron.HalfThresholdIFNode), {}

    def reset(self) -> None:
        from spikingjelly.activation_based import functional

        functional.reset_net(self._model)


class Sinabs(Stepped):
    """`from_model` of sinabs: neurons with threshold 1 and unlimited spikes per timestep (`MultiSpike`, the default).

    sinabs leaves the choice of thresholds to the user; here each channel's activation is first normalised to its 99.9th
    percentile.
    """

    def __init__(self) -> None:
        super().__init__("sinabs, multi-spike")

    def network(self, setting: Setting) -> tuple[nn.Module, type | tuple[type, ...], dict[str, Tensor | None]]:
        import sinabs.layers
        from sinabs.from_torch import from_model

        scales = quantiles(setting.graph, setting.calibration)
        model = TorchGraph(setting.graph, scales)
        snn = from_model(model, num_timesteps=1).spiking_model
        neurons = {name: NeuronLayer(scale, scale * 0, 1) for name, scale in scales.items()}
        return snn, sinabs.layers.IAFSqueeze, spike_sizes(setting.graph, neurons)

    def reset(self) -> None:
        for module in self._model.modules():
            if hasattr(module, "reset_states") and module is not self._model:
                module.reset_states()


def quantiles(graph: Graph, grids: Tensor) -> dict[str, Tensor]:
    """Return the 99.9th percentile of every channel of every relu, `(C,)`; a silent channel gets the layer's maximum."""
    scales: dict[str, Tensor] = {}

    class Recorder(Runner):
        def observe(self, node: Node, value: Tensor) -> None:
            if node.op == "relu":
                values = value.transpose(0, 1).flatten(1).numpy()
                scale = torch.from_numpy(np.quantile(values, QUANTILE, axis=1).astype(np.float32))
                scales[node.name] = torch.where(scale > 0, scale, scale.max().clamp_min(1e-6))

    Recorder(graph)(grids)
    return scales


CONTENDERS: dict[str, Callable[[], Contender]] = {
    "bundled": Bundled,
    "evburst": lambda: Ours(8),
    "evburst-phi1": lambda: Ours(1),
    "spikingjelly-max": lambda: SpikingJelly("maximum (default)", mode="Max"),
    "spikingjelly-99.9": lambda: SpikingJelly("99.9 %", mode="99.9%"),
    "spikingjelly-channel": lambda: SpikingJelly(
        "99.9 %, channel-wise, half threshold", mode="99.9%", channel_wise=True, half_threshold=True
    ),
    "spikingjelly-channel-max": lambda: SpikingJelly(
        "maximum, channel-wise, half threshold", mode="Max", channel_wise=True, half_threshold=True
    ),
    "sinabs": Sinabs,
}
