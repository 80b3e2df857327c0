"""From a graph to a plan: which nodes run on integers, what they read, where everything lies.

Every value that consists of spikes is a *signal*: parts of sources (input, neurons, max-pools, upsamplings), each at a channel of the
signal. Slices and concatenations move parts, an addition unites them: a convolution is linear, so it reads the parts of a sum one after the
other, with the same weights and each part's own thresholds. What does not fit (another operation, a convolution whose
current is used by anything but neurons) is left to the reference engine, node by node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evburst.models.graph import Graph, Node
from evburst.models.runtime.int8.kernels import FIRE, MAX_POOL, READ_OUT, UPSAMPLE
from evburst.models.runtime.int8.simd import LANES
from evburst.models.spiking.neurons import NeuronLayer


@dataclass
class Source:
    """Spike counts of one node, summed over time or not, `(T or 1, N, C, H, W)` with a margin of zeros, in the arena.

    Attributes:
        name: the node.
        shape: (C, H, W).
        theta: `(C,)` float32, what a spike is worth.
        limit: largest count.
        constant: the same at every timestep.
        margin: rows and columns of zeros on every side.
        start, step, image, row, pixel: place of the first pixel in the arena, and distances, in elements.
    """

    name: str
    shape: tuple[int, int, int]
    theta: NDArray[np.float32]
    limit: int
    constant: bool = False
    margin: tuple[int, int] = (0, 0)
    start: int = 0
    step: int = 0
    image: int = 0
    row: int = 0
    pixel: int = 0

    def need(self, padding: Sequence[int]) -> None:
        """Make the margin at least this wide."""
        self.margin = max(self.margin[0], padding[0]), max(self.margin[1], padding[1])

    def place(self, start: int, timesteps: int, images: int) -> int:
        """Lay the buffer out from `start` on; returns where it ends."""
        channels, rows, columns = self.shape
        self.pixel = -(-channels // LANES) * LANES
        self.row = (columns + 2 * self.margin[1]) * self.pixel
        self.image = (rows + 2 * self.margin[0]) * self.row
        self.step = 0 if self.constant else images * self.image
        self.start = start + self.margin[0] * self.row + self.margin[1] * self.pixel
        return start + (1 if self.constant else timesteps) * images * self.image

    def view(self, arena: NDArray[np.uint8], timesteps: int, images: int) -> NDArray[np.uint8]:
        """The counts `(T or 1, N, H, W, C)`, without margin."""
        channels, rows, columns = self.shape
        shape = (1 if self.constant else timesteps, images, rows, columns, channels)
        return np.lib.stride_tricks.as_strided(arena[self.start :], shape, (self.step, self.image, self.row, self.pixel, 1))

    def mark(self, changed: NDArray[np.uint8], images: int) -> None:
        """Note that all of it may differ from silence (see models/runtime/kernels.py)."""
        _, rows, columns = self.shape
        blocks = self.pixel // LANES
        strides = self.image // LANES, self.row // LANES, 1
        np.lib.stride_tricks.as_strided(changed[self.start // LANES :], (images, rows, columns * blocks), strides)[:] = 1


@dataclass(frozen=True)
class Part:
    """Channels [first, first + channels) of a source, which are channels [at, at + channels) of a signal."""

    source: Source
    first: int
    at: int
    channels: int

    def within(self, start: int, stop: int) -> Part | None:
        """What of it lies in channels [start, stop) of the signal, counted from `start`."""
        low, high = max(self.at, start), min(self.at + self.channels, stop)
        return Part(self.source, self.first + low - self.at, low - start, high - low) if low < high else None


Signal = list[Part]


@dataclass(frozen=True)
class Read:
    """All that a convolution reads of one source, channels [first, first + channels): parts may overlap, their weights add up."""

    source: Source
    first: int
    channels: int
    parts: Signal

    def weights(self, weight: NDArray[np.float64], values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Of a convolution's weights `(O, C, kh, kw)` those of these channels, times thresholds, and times `values` `(C,)`."""
        total = np.zeros((len(weight), self.channels, *weight.shape[2:]))
        for part in self.parts:
            start, read = part.first - self.first, slice(part.at, part.at + part.channels)
            worth = self.source.theta[part.first : part.first + part.channels].astype(np.float64)
            worth = worth if values is None else worth * values[read]
            total[:, start : start + part.channels] += weight[:, read] * worth[:, None, None]
        return total


def reads(signal: Signal) -> list[Read]:
    """A signal, source by source."""
    found: dict[int, Signal] = {}
    for part in signal:
        found.setdefault(id(part.source), []).append(part)
    result = []
    for parts in found.values():
        first, last = min(part.first for part in parts), max(part.first + part.channels for part in parts)
        result.append(Read(parts[0].source, first, last - first, parts))
    return result


@dataclass(frozen=True)
class Step:
    """Something to do.

    Attributes:
        kind: an operation of models/runtime/kernels.py; None for a node left to the reference engine.
        node: whose value this makes.
        shape: (C, H, W) of the node.
        conv: of FIRE and READ_OUT, the convolution.
        signal: what it reads.
        out: where spikes go.
        first_channel: of the node's channels, the first that `out` holds.
    """

    kind: int | None
    node: Node
    shape: tuple[int, int, int]
    conv: Node | None = None
    signal: Signal = field(default_factory=list)
    out: Source | None = None
    first_channel: int = 0


class Plan:
    """What to do for one input size, in order.

    Args:
        graph: the network.
        neurons: of every relu node that spikes.
        shapes: (C, H, W) of every node.
        timesteps: T.
        max_count: largest count of the input.
        fits: whether a convolution of a signal can be done on integers.

    Attributes:
        steps: in order; the first is the input.
        sources: all of them, the input's first.
        signals: of every node whose value is spikes.
        summed: whether counts are summed over time: those of a network all of whose neurons are a ReLU's signed ones.
        widest_stride: of all operations.
    """

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, NeuronLayer],
        shapes: dict[str, tuple[int, int, int]],
        timesteps: int,
        max_count: int,
        fits: Callable[[Node, Signal], bool],
    ) -> None:
        self._graph, self._neurons, self._shapes, self._fits = graph, neurons, shapes, fits
        self._consumers = graph.consumers()
        self.summed = all(
            layer.takes_back and not layer.negative_slope and timesteps * layer.phi <= 255 for layer in neurons.values()
        )
        self._summed_steps = timesteps if self.summed else 1
        self._currents: dict[str, Signal] = {}
        self.steps: list[Step] = []
        self.sources: list[Source] = []
        self.signals: dict[str, Signal] = {}
        self.widest_stride = 1
        for node in graph.nodes:
            if node.op == "input":
                self._begin(node, max_count)
            elif not self._on_integers(node):
                self._leave(node)

    @property
    def on_integers(self) -> bool:
        """Whether nothing but the input is left to the reference engine."""
        return all(step.kind is not None for step in self.steps[1:])

    def _begin(self, node: Node, max_count: int) -> None:
        shape = self._shapes[node.name]
        source = Source(node.name, shape, np.ones(shape[0], np.float32), max_count, constant=True)
        self._emit(Step(None, node, shape, out=source), whole(source))

    def _on_integers(self, node: Node) -> bool:
        """Plan a node to be done on integers; False if that is impossible."""
        if node.op == "relu" and node.inputs[0] in self._currents:
            signal = self._currents[node.inputs[0]]
            conv = next(n for n in self._graph.nodes if n.name == node.inputs[0])
            out = self._spikes_of(node)
            self._convolve(Step(FIRE, node, self._shapes[node.name], conv, signal, out))
            return True
        if not all(name in self.signals for name in node.inputs):
            return False
        signals = [self.signals[name] for name in node.inputs]
        plan = getattr(self, f"_{node.op}", None)
        return plan is not None and bool(plan(node, *signals))

    def _conv(self, node: Node, signal: Signal) -> bool:
        users, is_output = self._consumers[node.name], node.name in self._graph.outputs
        if node.attrs["groups"] != 1 or not self._fits(node, signal):
            return False
        if self.summed and len({part.source.constant for part in signal}) > 1:
            return False  # what does not change has not been summed
        if is_output and not users:
            self._convolve(Step(READ_OUT, node, self._shapes[node.name], node, signal))
        elif not is_output and len(users) == 1 and self._counts_up(users[0]):
            self._currents[node.name] = signal
        else:
            return False
        return True

    def _slice(self, node: Node, signal: Signal) -> bool:
        cut = [part.within(node.attrs["start"], node.attrs["stop"]) for part in signal]
        self.signals[node.name] = [part for part in cut if part is not None]
        return True

    def _concat(self, node: Node, *signals: Signal) -> bool:
        starts = np.cumsum([0, *(self._shapes[name][0] for name in node.inputs)])
        self.signals[node.name] = [
            replace(part, at=part.at + int(start)) for start, signal in zip(starts, signals, strict=False) for part in signal
        ]
        return True

    def _add(self, node: Node, *signals: Signal) -> bool:
        if len({self._shapes[name] for name in node.inputs}) > 1:
            return False
        self.signals[node.name] = [part for signal in signals for part in signal]
        return True

    def _upsample(self, node: Node, signal: Signal) -> bool:
        self._resample(UPSAMPLE, node, signal)
        return True

    def _max_pool(self, node: Node, signal: Signal) -> bool:
        if not _disjoint(signal) or any(part.source.constant for part in signal):
            return False
        for part in signal:
            part.source.need(node.attrs["padding"])
        self.widest_stride = max(self.widest_stride, node.attrs["stride"][1])
        self._resample(MAX_POOL, node, signal)
        return True

    def _resample(self, kind: int, node: Node, signal: Signal) -> None:
        """Max-pool or upsampling: of every part, a source of its own."""
        shape, parts = self._shapes[node.name], []
        for part in signal:
            theta = part.source.theta[part.first : part.first + part.channels]
            out = Source(node.name, (part.channels, *shape[1:]), theta, part.source.limit, part.source.constant)
            self._emit(Step(kind, node, shape, None, [part], out, part.at), [])
            parts.append(Part(out, 0, part.at, part.channels))
        self.signals[node.name] = parts

    def _convolve(self, step: Step) -> None:
        assert step.conv is not None
        for part in step.signal:
            part.source.need(step.conv.attrs["padding"])
        self.widest_stride = max(self.widest_stride, step.conv.attrs["stride"][1])
        self._emit(step, whole(step.out) if step.out else None)

    def _leave(self, node: Node) -> None:
        """To the reference engine; what neurons emit comes back as counts."""
        spikes = self._spikes_of(node) if self._counts_up(node) else None
        self._emit(Step(None, node, self._shapes[node.name], out=spikes), whole(spikes) if spikes else None)

    def _emit(self, step: Step, signal: Signal | None) -> None:
        self.steps.append(step)
        if step.out is not None:
            self.sources.append(step.out)
        if signal is not None:
            self.signals[step.node.name] = signal

    def _counts_up(self, node: Node) -> bool:
        """Whether a node is neurons whose counts, as they are kept, never fall below 0."""
        return (
            node.op == "relu"
            and node.attrs.keys() <= {"ceiling"}
            and node.name in self._neurons
            and (self.summed or not self._neurons[node.name].signed)
        )

    def _spikes_of(self, node: Node) -> Source:
        layer = self._neurons[node.name]
        return Source(node.name, self._shapes[node.name], layer.theta.numpy(), self._summed_steps * layer.phi)


def whole(source: Source) -> Signal:
    """All channels of a source."""
    return [Part(source, 0, 0, source.shape[0])]


def _disjoint(signal: Signal) -> bool:
    """Whether no channel is a sum."""
    taken = sorted((part.at, part.channels) for part in signal)
    return all(at + channels <= following for (at, channels), (following, _) in pairwise(taken))
