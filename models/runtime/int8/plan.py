"""The first phase of the integer engine: which nodes run on integers, in which order, and which signals they read.

A plan is a function of the network and the input size alone. Nodes that do not fit (another operation, or a convolution
whose current is used by anything but neurons) are left to the reference engine, node by node.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.models.graph import Graph, Node
from evburst.models.runtime.int8.quantise import PackedWeights, factors_of
from evburst.models.runtime.int8.records import ADD, FIRE, MAX_POOL, READ_OUT, UPSAMPLE
from evburst.models.runtime.int8.signals import Signal, SignalPart, Source, disjoint, whole
from evburst.models.runtime.int8.simd.emit import LANES
from evburst.models.spiking.integer_form import Driven, driven
from evburst.models.spiking.neurons import NeuronLayer

_LARGEST_COUNT = 255
"""Largest count that the arena, uint8, holds."""


class Reading(NamedTuple):
    """A convolution and the signal that it reads."""

    conv: Node
    signal: Signal


class Added(NamedTuple):
    """Spikes that are added: a part of a signal, and the factors of its counts, `(C,)` int32."""

    part: SignalPart
    factors: NDArray[np.int32]


class Current(NamedTuple):
    """What drives neurons: the sum of convolutions, with their weights, and of spikes."""

    readings: tuple[Reading, ...]
    weights: PackedWeights
    added: tuple[Added, ...] = ()


Pack = Callable[[Sequence[Reading]], PackedWeights | None]
"""The packed weights of convolutions whose sums are added; None if that is impossible in 32 bits."""


@dataclass(frozen=True)
class Step:
    """One operation of a plan.

    Attributes:
        kind: an operation of records.py; None for a node left to the reference engine.
        node: the node whose value this computes.
        shape: (C, H, W) of the node.
        current: for FIRE and READ_OUT.
        signal: what other operations read, but for ADD.
        out: where its spikes go.
        first_channel: first channel of the node that `out` holds.
        added: for ADD.
    """

    kind: int | None
    node: Node
    shape: tuple[int, int, int]
    current: Current | None = None
    signal: Signal = field(default_factory=list)
    out: Source | None = None
    first_channel: int = 0
    added: tuple[Added, ...] = ()

    @property
    def windows(self) -> list[tuple[SignalPart, dict[str, Any]]]:
        """Every part that it reads, with `padding` and `stride` of the windows in which it does."""
        if self.current is None:
            attrs = self.node.attrs if self.kind == MAX_POOL else PIXEL
            found = [(part, attrs) for part in self.signal]
        else:
            found = [(part, reading.conv.attrs) for reading in self.current.readings for part in reading.signal]
        return found + [(item.part, PIXEL) for item in (self.added if self.current is None else self.current.added)]


PIXEL: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0)}
"""A window of one pixel around each output."""


@dataclass(frozen=True)
class Plan:
    """The operations for one input size.

    Attributes:
        steps: in order; the first is the input.
        signals: of every node whose value is spikes.
        summed: whether counts are summed over time, which holds for networks whose neurons are all signed neurons of a ReLU.
    """

    steps: list[Step]
    signals: dict[str, Signal]
    summed: bool

    @cached_property
    def sources(self) -> list[Source]:
        """In order; the input's first."""
        return [step.out for step in self.steps if step.out is not None]

    @cached_property
    def on_integers(self) -> bool:
        """Whether nothing but the input is left to the reference engine."""
        return all(step.kind is not None for step in self.steps[1:])


class Planner:
    """Makes the plan of a network, node by node, in the graph's order.

    Args:
        graph: the network.
        neurons: of every relu node that spikes.
        shapes: (C, H, W) of every node.
        timesteps: T.
        max_count: largest count of the input.
        pack: see `Pack`.
    """

    def __init__(
        self,
        graph: Graph,
        neurons: Mapping[str, NeuronLayer],
        shapes: dict[str, tuple[int, int, int]],
        timesteps: int,
        max_count: int,
        pack: Pack,
    ) -> None:
        self._graph, self._neurons, self._shapes, self._pack, self._max_count = graph, neurons, shapes, pack, max_count
        self._nodes, self._consumers = {node.name: node for node in graph.nodes}, graph.consumers()
        self._summed = all(
            layer.takes_back and not layer.negative_slope and timesteps * layer.phi <= _LARGEST_COUNT
            for layer in neurons.values()
        )
        self._summed_steps = timesteps if self._summed else 1
        self._sums = {drive.add.name: drive for drive in driven(graph) if drive.add}
        self._parts: dict[str, Reading] = {}  # convolutions that sums wait for
        self._currents: dict[str, Current] = {}
        self._steps: list[Step] = []
        self._signals: dict[str, Signal] = {}

    def plan(self) -> Plan:
        """The plan."""
        for node in self._graph.nodes:
            if node.op == "input":
                self._begin(node)
            elif not self._on_integers(node):
                self._leave(node)
        return Plan(self._steps, self._signals, self._summed)

    def _begin(self, node: Node) -> None:
        shape = self._shapes[node.name]
        source = Source(node.name, shape, np.ones(shape[0], np.float32), self._max_count, constant=True)
        self._emit(Step(None, node, shape, out=source), whole(source))

    def _on_integers(self, node: Node) -> bool:
        """Plan a node to run on integers; False if that is impossible."""
        if node.op == "relu" and node.inputs[0] in self._currents:
            out = self._spikes_of(node)
            self._emit(Step(FIRE, node, self._shapes[node.name], self._currents[node.inputs[0]], out=out), whole(out))
            return True
        if node.name in self._sums:
            return self._sum_of_currents(node, self._sums[node.name])
        if not all(name in self._signals for name in node.inputs):
            return False
        signals = [self._signals[name] for name in node.inputs]
        plan = getattr(self, f"_{node.op}", None)
        return plan is not None and bool(plan(node, *signals))

    def _conv(self, node: Node, signal: Signal) -> bool:
        users, reading = self._consumers[node.name], Reading(node, signal)
        if node.attrs["groups"] != 1:
            return False
        if len(users) == 1 and users[0].name in self._sums:
            self._parts[node.name] = reading
            return True
        read_out = node.name in self._graph.outputs and not users
        fires = node.name not in self._graph.outputs and len(users) == 1 and self._counts_up(users[0])
        current = self._current([reading]) if read_out or fires else None
        if current is None:
            return False
        if read_out:
            self._emit(Step(READ_OUT, node, self._shapes[node.name], current), None)
        else:
            self._currents[node.name] = current
        return True

    def _current(self, readings: Sequence[Reading], spikes: Signal | None = None) -> Current | None:
        """The current of convolutions and spikes; None if it cannot be on integers."""
        parts = [part for reading in readings for part in reading.signal] + (spikes or [])
        if self._summed and len({part.source.constant for part in parts}) > 1:
            return None  # what does not change has not been summed
        weights = self._pack(readings)
        if weights is None:
            return None
        added = []
        for part in spikes or []:
            step = weights.scale[: part.channels]
            factors = factors_of(part.source.theta[part.first : part.first + part.channels], step)
            if factors is None or part.first % LANES or part.channels < self._shapes[readings[0].conv.name][0]:
                return None
            added.append(Added(part, factors))
        return Current(tuple(readings), weights, tuple(added))

    def _sum_of_currents(self, node: Node, drive: Driven) -> bool:
        """Plan neurons driven by a sum; if that is impossible, leave its convolutions to the network, too."""
        parts = [self._parts[conv.name] for conv in drive.convs if conv.name in self._parts]
        known = len(parts) == len(drive.convs) and all(name in self._signals for name in drive.spikes)
        current = None
        if known and self._counts_up(drive.relu) and len({self._shapes[name] for name in node.inputs}) == 1:
            current = self._current(parts, [part for name in drive.spikes for part in self._signals[name]])
        if current is None:
            for part in parts:
                self._leave(part.conv)
            return False
        self._currents[node.name] = current
        return True

    def _slice(self, node: Node, signal: Signal) -> bool:
        cut = [part.within(node.attrs["start"], node.attrs["stop"]) for part in signal]
        self._signals[node.name] = [part for part in cut if part is not None]
        return True

    def _concat(self, node: Node, *signals: Signal) -> bool:
        starts = np.cumsum([0, *(self._shapes[name][0] for name in node.inputs)])
        self._signals[node.name] = [
            replace(part, at=part.at + int(start)) for start, signal in zip(starts, signals, strict=False) for part in signal
        ]
        return True

    def _add(self, node: Node, *signals: Signal) -> bool:
        if len({self._shapes[name] for name in node.inputs}) > 1:
            return False
        signal = [part for signal in signals for part in signal]
        total = self._sum_of(node, signal)
        if total is None:
            self._signals[node.name] = signal
        else:
            self._emit(total, whole(total.out) if total.out else None)
        return True

    def _sum_of(self, node: Node, signal: Signal) -> Step | None:
        """Plan an addition of counts, each times the factor by which its spikes exceed the smallest.

        A convolution that reads the sum instead of its parts multiplies half as many counts. None where that is impossible, or
        saves less than the addition takes: 1 x 1 convolutions read a sum once.
        """
        shape = self._shapes[node.name]
        if not self._read_repeatedly(node) or any(
            p.channels < shape[0] or p.first % LANES or p.source.constant for p in signal
        ):
            return None
        thetas = [part.source.theta[part.first : part.first + part.channels] for part in signal]
        unit = np.min(thetas, 0)
        factors = [np.rint(theta / unit) for theta in thetas]
        limit = sum(part.source.limit * own for part, own in zip(signal, factors, strict=True)).max()  # type: ignore[union-attr]
        if limit > _LARGEST_COUNT or not all(np.array_equal(unit * own, t) for own, t in zip(factors, thetas, strict=True)):
            return None
        out = Source(node.name, shape, unit, int(limit))
        added = tuple(Added(part, own.astype(np.int32)) for part, own in zip(signal, factors, strict=True))
        return Step(ADD, node, shape, out=out, added=added)

    def _read_repeatedly(self, node: Node) -> bool:
        """Whether a convolution larger than 1 x 1 reads a node, directly or through nodes that pass it on."""
        return any(
            self._graph.tensors[f"{user.name}.weight"][0, 0].numel() > 1
            if user.op == "conv"
            else user.op in ("slice", "concat", "add") and self._read_repeatedly(user)
            for user in self._consumers[node.name]
        )

    def _upsample(self, node: Node, signal: Signal) -> bool:
        self._resample(UPSAMPLE, node, signal)
        return True

    def _max_pool(self, node: Node, signal: Signal) -> bool:
        if not disjoint(signal) or any(part.source.constant for part in signal):
            return False
        self._resample(MAX_POOL, node, signal)
        return True

    def _resample(self, kind: int, node: Node, signal: Signal) -> None:
        """Plan a max-pool or an upsampling: every part becomes a source of its own."""
        shape, parts = self._shapes[node.name], []
        for part in signal:
            theta = part.source.theta[part.first : part.first + part.channels]
            out = Source(node.name, (part.channels, *shape[1:]), theta, part.source.limit, part.source.constant)
            self._emit(Step(kind, node, shape, signal=[part], out=out, first_channel=part.at), None)
            parts.append(SignalPart(out, 0, part.at, part.channels))
        self._signals[node.name] = parts

    def _leave(self, node: Node) -> None:
        """Leave a node to the network; spikes of neurons, and those that are held, come back as counts."""
        neurons = self._nodes[node.inputs[0]] if node.op == "hold" else node
        spikes = self._spikes_of(node, neurons) if self._counts_up(neurons) else None
        self._emit(Step(None, node, self._shapes[node.name], out=spikes), whole(spikes) if spikes else None)

    def _emit(self, step: Step, signal: Signal | None) -> None:
        self._steps.append(step)
        if signal is not None:
            self._signals[step.node.name] = signal

    def _counts_up(self, node: Node) -> bool:
        """Whether a node is a layer of neurons whose stored counts never fall below 0."""
        return (
            node.op == "relu"
            and node.attrs.keys() <= {"ceiling"}
            and node.name in self._neurons
            and (self._summed or not self._neurons[node.name].signed)
        )

    def _spikes_of(self, node: Node, neurons: Node | None = None) -> Source:
        """Counts of a node that emits what `neurons` emit; None: of neurons themselves."""
        layer = self._neurons[(neurons or node).name]
        return Source(node.name, self._shapes[node.name], layer.theta.numpy(), self._summed_steps * layer.phi)
