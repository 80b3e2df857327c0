"""The third phase of the integer engine: the tables that `run_operations` reads, from a plan and its layout.

They are a function of plan, layout and parameters alone; nothing here holds spikes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.graph import Node
from evburst.models.runtime.int8.layout import Layout
from evburst.models.runtime.int8.plan import PIXEL, Added, Current, Plan, Step
from evburst.models.runtime.int8.records import ADD, FIRE, MAX_POOL, OPERATION, TERM
from evburst.models.runtime.int8.signals import Read, SignalPart, Source, reads
from evburst.models.runtime.int8.simd.emit import ACTIVE, LANES, LINE, PAIR, PIXELS, QUAD
from evburst.models.spiking.network import SpikingParameters

LARGEST_FAN_OUT = 2**15 - 1
"""Largest fan-out of 16 bits."""


@dataclass(frozen=True)
class CountedLayer:
    """A node whose spikes are counted.

    Attributes:
        node: the node.
        neurons: how many it has; 0 for a max-pool.
        operations: indices of its operations.
    """

    node: Node
    neurons: int
    operations: list[int]


@dataclass(frozen=True)
class Map:
    """A read-out: `(N, rows, columns, pixel)` float32 at `start` of the maps, of which the first `channels` are valid."""

    start: int
    shape: tuple[int, int, int, int]
    channels: int


@dataclass(frozen=True)
class Tables:
    """Everything that `run_operations` needs besides buffers.

    Attributes:
        runs: in order: operations to carry out together, and single steps left to the reference engine.
        layers: in order.
        operations, terms: of OPERATION and TERM.
        constants: offsets int32, weights int8, chunks int32, factors int32, scale and bias float32 `(T or 1, C)`, limits
            float32, fan-outs; see `run_operations`.
        maps: of each read-out.
        map_size: elements of all maps.
        tiles: number of tiles of all layers of neurons and max-pools, of one image.
    """

    runs: list[Step | slice]
    layers: list[CountedLayer]
    operations: NDArray[np.void]
    terms: NDArray[np.void]
    constants: tuple[Any, ...]
    maps: dict[str, Map]
    map_size: int
    tiles: int

    @cached_property
    def members(self) -> NDArray[np.float64]:
        """Which operations belong to a layer: `(layers, operations)`, 1 or 0."""
        members = np.zeros((len(self.layers), len(self.operations)))
        for row, layer in zip(members, self.layers, strict=True):
            row[layer.operations] = 1
        return members

    @property
    def widest_pool(self) -> int:
        """Largest number of pixels that a row of a max-pool reads."""
        pools = self.operations[self.operations["kind"] == MAX_POOL]
        terms = self.terms[pools["first_term"]]
        widths = (pools["columns"] - 1) * (terms["pixel"] // np.maximum(terms["source_pixel"], 1)) + terms["span_columns"]
        return int(widths.max(initial=0))


@dataclass(frozen=True)
class _Reads:
    """Fields of an operation: its kind and terms."""

    kind: int
    first_term: int
    terms: int
    added: int


@dataclass(frozen=True)
class _Writes:
    """Fields of an operation: its output's size and place."""

    channels: int
    rows: int
    columns: int
    blocks: int
    out: int
    out_step: int
    out_image: int
    out_row: int
    out_pixel: int


@dataclass(frozen=True)
class _Convolves:
    """Fields of FIRE and READ_OUT."""

    constant: int
    planes: int
    steps: int
    chunks: int
    together: int
    weights: int
    channel: int


@dataclass(frozen=True)
class _FanOut:
    """Fields of operations whose spikes are counted."""

    fan_out: int
    wide: int
    tiles: int


@dataclass(frozen=True)
class _Resamples:
    """Field of an upsampling."""

    factor: int


_Fields = _Reads | _Writes | _Convolves | _FanOut | _Resamples


class Tabulator:
    """Makes the tables of a plan, step by step.

    Args:
        plan, layout: of the network.
        parameters: its neurons and read-out shifts.
        tensors: of the network's graph.
        fan_out: weights reached by a spike of each node that emits some, `(C, H, W)`.
    """

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        parameters: SpikingParameters,
        tensors: Mapping[str, Tensor],
        fan_out: Mapping[str, Tensor],
    ) -> None:
        self._plan, self._layout, self._parameters, self._tensors, self._fan_out = plan, layout, parameters, tensors, fan_out
        self._operations: list[tuple[_Fields, ...]] = []
        self._terms: list[tuple[int, ...]] = []
        self._offsets, self._chunks, self._factors = (_Array(np.int32) for _ in range(3))
        self._weights = _Array(np.int8)
        self._limits = _Array(np.float32)
        self._timesteps = parameters.timesteps if plan.summed else 1
        empty = np.zeros((self._timesteps, 0), np.float32)
        self._scale, self._bias = [empty], [empty]
        self._fan_rows, self._fan, self._wide = _Array(np.int32), _Array(np.int16), _Array(np.int32)
        self._maps: dict[str, Map] = {}
        self._map_size = 0
        self._layers: dict[str, CountedLayer] = {}
        self._tiles = 0

    def tables(self) -> Tables:
        """The tables."""
        runs: list[Step | slice] = []
        for integer, steps in groupby(self._plan.steps, lambda step: step.kind is not None):
            if integer:
                first = len(self._operations)
                for step in steps:
                    self._add(step)
                runs.append(slice(first, len(self._operations)))
            else:
                runs += steps
        operations = np.zeros(len(self._operations), OPERATION)
        operations["together"], operations["wide"] = 1, -1
        for record, groups in zip(operations, self._operations, strict=True):
            for name, value in (pair for group in groups for pair in asdict(group).items()):
                record[name] = value
        terms = np.array(self._terms or [(0,) * len(TERM.names or ())], TERM)
        reading, limits = (self._offsets, self._weights, self._chunks, self._factors), self._limits.joined()
        fan = tuple(array.joined() for array in (self._fan_rows, self._fan, self._wide))
        scales = (np.concatenate(rows, 1) for rows in (self._scale, self._bias))
        constants = (*(array.joined() for array in reading), *scales, limits, fan)
        layers = list(self._layers.values())
        return Tables(runs, layers, operations, terms, constants, self._maps, self._map_size, self._tiles)

    def _add(self, step: Step) -> None:
        first, groups = len(self._terms), list[_Fields]()
        if step.current is not None:
            groups += self._convolution(step, step.current)
        elif step.kind == ADD:
            self._add_counts(step.added)
        else:
            groups += self._resampling(step, step.signal[0])
        added = len(step.current.added) if step.current else 0
        groups.append(_Reads(int(step.kind or 0), first, len(self._terms) - first - added, added))
        if step.out is not None:
            place = self._layout.places[step.out]
            groups.append(_writes(step.out.shape, place.start, place.step, place.image, place.row, place.pixel))
            groups += self._counted(step, step.out)
        self._operations.append(tuple(groups))

    def _convolution(self, step: Step, current: Current) -> list[_Fields]:
        packed, scale = current.weights, current.weights.scale
        bias = np.sum([self._tensors[f"{reading.conv.name}.bias"].numpy() for reading in current.readings], 0)
        constant = all(part.source.constant for part, _ in step.windows)
        limits, output = np.zeros(0, np.float32), list[_Fields]()
        elapsed = np.arange(1, self._timesteps + 1, dtype=np.float32)[:, None]
        if step.out is None:
            scale = scale / np.float32(1 if constant else self._parameters.timesteps)
            bias = bias + self._parameters.readout_shift[step.node.name].numpy()
            output = [self._map_of(step)]
        else:
            layer = self._parameters.neurons[step.node.name]
            theta = layer.theta.numpy()
            scale = scale / _padded(theta, len(scale), 1.0)
            bias = (bias + layer.shift.numpy()) / theta
            limits = layer.burst_limits.numpy()
        weights, channel = self._weights.add(packed.data), self._limits.add(_padded(limits, len(scale), 0.0))
        self._scale.append(np.float32(scale) * (elapsed if constant else np.ones_like(elapsed)))
        self._bias.append(np.float32(_padded(bias, len(scale), 0.0)) * elapsed)
        runs = self._terms_of(current)
        self._add_counts(current.added)
        blocks, planes, steps = packed.data.shape[:3]
        leaves_out = ACTIVE and step.out is not None and not constant and self._parameters.timesteps > 1
        together = QUAD if leaves_out and all(runs) and planes == 1 and blocks % QUAD == 0 else PAIR
        return [*output, _Convolves(int(constant), planes, steps, self._chunks.add(packed.chunks), together, weights, channel)]

    def _terms_of(self, current: Current) -> list[int]:
        """Add what convolutions read of every source; returns the `run` of each."""
        repeated, first, runs = iter(current.weights.repetitions), 0, list[int]()
        for conv, signal in current.readings:
            (dilation_y, dilation_x), (rows, columns) = conv.attrs["dilation"], self._tensors[f"{conv.name}.weight"].shape[2:]
            y, x = np.arange(rows)[:, None, None], np.arange(columns)[:, None]
            extent = (rows - 1) * dilation_y + 1, (columns - 1) * dilation_x + 1
            for item in reads(signal):
                place, quads, repetitions = self._layout.places[item.source], np.arange(-(-item.channels // 4)), next(repeated)
                distances = (y * dilation_y * place.row + x * dilation_x * place.pixel + 4 * quads).reshape(-1)
                distances = np.repeat(distances, repetitions)
                offsets, steps = self._offsets.add(distances), len(distances)
                runs.append(_run(distances))
                window, buffer = self._window(item, conv.attrs), self._buffer(item)
                self._terms.append((*window, offsets, steps, runs[-1], first, *extent, *buffer))
                first += steps
        return runs

    def _add_counts(self, added: Sequence[Added]) -> None:
        """Add terms whose counts are added."""
        for part, factors in added:
            first = self._factors.add(_padded(factors, -(-len(factors) // LANES) * LANES, 0))
            self._terms.append((*self._window(part, PIXEL), 0, 0, 0, first, 1, 1, *self._buffer(part)))

    def _map_of(self, step: Step) -> _Writes:
        """Make room for a map, its channels padded to whole blocks."""
        channels, rows, columns = step.shape
        pixel, start = -(-channels // LANES) * LANES, self._map_size
        self._maps[step.node.name] = Map(start, (self._layout.images, rows, columns, pixel), channels)
        self._map_size += self._layout.images * rows * columns * pixel
        return _writes(step.shape, start, 0, rows * columns * pixel, columns * pixel, pixel)

    def _resampling(self, step: Step, part: SignalPart) -> list[_Fields]:
        attrs = step.node.attrs
        if step.kind == MAX_POOL:
            self._terms.append((*self._window(part, attrs), 0, 0, 0, 0, *attrs["kernel"], *self._buffer(part)))
            return []
        self._terms.append((*self._window(part, PIXEL), 0, 0, 0, 0, 1, 1, *self._buffer(part)))
        return [_Resamples(attrs["factor"])]

    def _window(self, item: SignalPart | Read, attrs: dict[str, Any]) -> tuple[int, int, int, int, int]:
        """Start, step, image, row and pixel of a TERM."""
        place, stride, padding = self._layout.places[item.source], attrs["stride"], attrs["padding"]
        start = place.start - padding[0] * place.row - padding[1] * place.pixel + item.first
        return start, place.step, place.image, stride[0] * place.row, stride[1] * place.pixel

    def _buffer(self, item: SignalPart | Read) -> tuple[int, int, int, int, int]:
        """The fields of a TERM from source_row on."""
        place = self._layout.places[item.source]
        blocks = -(-(item.first % LANES + item.channels) // LANES)
        return place.row, place.pixel, blocks, place.buffer // LANES, self._layout.images * place.image // LANES

    def _counted(self, step: Step, source: Source) -> list[_Fields]:
        """Register an operation whose spikes are counted."""
        if step.kind not in (FIRE, MAX_POOL):
            return []
        neurons = int(np.prod(step.shape)) if step.kind == FIRE else 0
        layer = self._layers.setdefault(step.node.name, CountedLayer(step.node, neurons, []))
        layer.operations.append(len(self._operations))
        maps = self._fan_out[step.node.name][step.first_channel : step.first_channel + source.shape[0]].numpy()
        fan_outs = np.zeros((*source.shape[1:], self._layout.places[source].pixel), np.int32)
        fan_outs[..., : source.shape[0]] = maps.transpose(1, 2, 0)
        most = int(fan_outs.max(initial=0))
        of_four = 4 * 255 * most * PIXELS * self._parameters.timesteps  # lanes, of all pixels of a tile
        fits = most <= LARGEST_FAN_OUT and of_four < 2**32
        first = self._tiles
        self._tiles += source.shape[1] * (fan_outs.shape[2] // LANES) * -(-source.shape[2] // PIXELS)
        known, places = dict[bytes, int](), list[int]()  # most rows are equal
        for row in (fan_outs * fits).astype(np.int16):
            key = row.tobytes()
            if key not in known:
                known[key] = self._fan.add(row)
            places.append(known[key])
        return [_FanOut(self._fan_rows.add(np.array(places)), -1 if fits else self._wide.add(fan_outs), first)]


class _Array:
    """An array that grows by appending."""

    def __init__(self, dtype: Any) -> None:
        self._dtype, self._parts, self._size = dtype, [np.zeros(0, dtype)], 0

    def add(self, values: NDArray[Any]) -> int:
        """Append; returns where it begins."""
        start = self._size
        self._parts.append(np.ascontiguousarray(values, self._dtype).reshape(-1))
        self._size += values.size
        return start

    def joined(self) -> NDArray[Any]:
        """All of them, on a multiple of LINE in memory."""
        return aligned(np.concatenate(self._parts))


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """A copy of an array that begins on a multiple of LINE in memory."""
    memory = np.empty(values.nbytes + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    copy = memory[first : first + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[:] = values
    return copy


def _writes(shape: tuple[int, int, int], start: int, step: int, image: int, row: int, pixel: int) -> _Writes:
    channels, rows, columns = shape
    return _Writes(channels, rows, columns, -(-channels // LANES), start, step, image, row, pixel)


def _run(distances: NDArray[Any]) -> int:
    """Number of steps at a time that read what lies next to each other; 0 if it is not always the same."""
    ends = np.flatnonzero(np.append(np.diff(distances) != 4, True)) + 1
    return int(ends[0]) if (np.diff(ends, prepend=0) == ends[0]).all() else 0


def _padded(values: NDArray[Any], length: int, value: float) -> NDArray[Any]:
    out = np.full(length, value, values.dtype)
    out[: len(values)] = values
    return out
