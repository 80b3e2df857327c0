"""A plan with its memory: everything `run_operations` needs for one input size, batch and number of timesteps, allocated once."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.graph import Node
from evburst.models.runtime.int8.kernels import FIRE, MAX_POOL, OPERATION, TERM, pack_grid, run_operations
from evburst.models.runtime.int8.plan import Part, Plan, Read, Source, Step, reads
from evburst.models.runtime.int8.quantise import PackedWeights
from evburst.models.runtime.int8.simd import LANES, PIXELS
from evburst.models.spiking.network import SpikingParameters


class Program:
    """Buffers and tables of one plan.

    Args:
        plan: what to do.
        packed: weights of each convolution that runs on integers.
        parameters: neurons and read-out shifts.
        biases: `(C,)` of each convolution.
        fan_out: weights reached by a spike of each node that emits some, `(C, H, W)`.
        images: N.

    Attributes:
        runs: in order: operations to carry out together, and single steps left to the reference engine.
        layers: of every node whose spikes are counted: node, neurons (0 for a max-pool), its operations.
        totals: `(operations, N, 4)` int64, of the last run: spikes, synaptic operations, these with a burst counted once.
        arena, changed: spike counts, and whether they differ from silence, see models/runtime/kernels.py.
        maps: of each read-out, `(N, C, H, W)` float32; overwritten by the next run.
    """

    def __init__(
        self,
        plan: Plan,
        packed: dict[str, PackedWeights],
        parameters: SpikingParameters,
        biases: dict[str, Tensor],
        fan_out: dict[str, Tensor],
        images: int,
    ) -> None:
        self.timesteps, self.images = parameters.timesteps, images
        self._packed, self._parameters, self._biases, self._fan_out = packed, parameters, biases, fan_out
        self._summed = plan.summed
        end = 0
        for source in plan.sources:
            end = source.place(end, self.timesteps, images)
        # The last tile of a row reads, but never writes, pixels beyond it.
        furthest = max(source.pixel for source in plan.sources) * PIXELS * plan.widest_stride
        self.arena = np.zeros(end + furthest, np.uint8)
        self._silent, self.changed = np.zeros_like(self.arena), np.zeros(len(self.arena) // LANES, np.uint8)
        self._operations: list[dict[str, int]] = []
        self._terms: list[tuple[int, ...]] = []
        self._offsets, self._weights = _Array(np.int32), _Array(np.int8)
        self._scale, self._bias, self._limits = (_Array(np.float32) for _ in range(3))
        self._fan = _Array(np.int32)
        self._places: dict[str, tuple[int, tuple[int, int, int, int], int]] = {}
        self._map_size = 0
        self.runs: list[Step | slice] = []
        self.layers: dict[str, tuple[Node, int, list[int]]] = {}
        for integer, steps in groupby(plan.steps, lambda step: step.kind is not None):
            first = len(self._operations)
            if integer:
                for step in steps:
                    self._emit(step)
                self.runs.append(slice(first, len(self._operations)))
            else:
                self.runs += steps
        self._allocate(fan_out[plan.sources[0].name])

    def pack(self, grid: NDArray[np.uint8], source: Source) -> NDArray[np.int64]:
        """Take the input `(N, C, H, W)` in; returns `(N, 4)`: events, synaptic operations, these by pixels, largest count."""
        columns = grid.shape[3]
        if columns % 8:
            grid = np.pad(grid, ((0, 0), (0, 0), (0, 0), (0, -columns % 8)))
        place = source.start, source.image, source.row, source.pixel
        pack_grid(grid.view(np.uint64), columns, self._input_fan_out, self.arena, self.changed, *place, self._units)
        totals = self._units[: self.images * grid.shape[2]].reshape(self.images, grid.shape[2], -1)
        return np.concatenate([totals[..., :3].sum(1), totals[..., 3:4].max(1)], 1)

    def run(self, operations: slice, skip: bool = True) -> None:
        """Carry out a run of operations; `skip` what is as it is in silence."""
        run_operations(
            self._table[operations], self._term_table, *self._constants, self.arena, self._silent, self.changed, self._map_arena,
            self._silent_maps, skip, self._summed, self.timesteps, self.images, self._acc, self._before, self._units,
            self.totals[operations],
        )  # fmt: skip

    def remember_silence(self) -> None:
        """What the buffers hold now is what they hold in a window without events."""
        self._silent[:], self._silent_maps[:], self._silent_totals[:] = self.arena, self._map_arena, self.totals

    def recall_silence(self) -> None:
        """Leave the maps and totals of a window without events, without running anything."""
        self._map_arena[:], self.totals[:] = self._silent_maps, self._silent_totals

    def _allocate(self, input_fan_out: Tensor) -> None:
        """Tables as arrays, and room for what a run leaves."""
        self._table = np.zeros(len(self._operations), OPERATION)
        for record, fields in zip(self._table, self._operations, strict=True):
            for name, value in fields.items():
                record[name] = value
        self._term_table = np.array(self._terms or [(0,) * len(TERM.names or ())], TERM)
        arrays = (self._offsets, self._weights, self._scale, self._bias, self._limits, self._fan)
        self._constants = [array.joined() for array in arrays]
        threads = numba.config.NUMBA_NUM_THREADS
        self._acc = np.zeros((threads, self.timesteps * PIXELS * LANES), np.int32)
        self._before = np.zeros((threads, LANES), np.uint16)
        self._input_fan_out = input_fan_out.numpy().astype(np.int32)
        units = max([input_fan_out.shape[1], *(op["rows"] * op["blocks"] for op in self._operations)])
        self._units = np.zeros((units * self.images, 8), np.int64)
        self.totals = np.zeros((len(self._operations), self.images, 4), np.int64)
        self._map_arena = np.zeros(self._map_size, np.float32)
        self._silent_maps, self._silent_totals = np.zeros_like(self._map_arena), np.zeros_like(self.totals)
        self.maps = {}
        for name, (start, shape, channels) in self._places.items():
            flat = self._map_arena[start : start + int(np.prod(shape))]
            self.maps[name] = flat.reshape(shape)[..., :channels].transpose(0, 3, 1, 2)

    def _emit(self, step: Step) -> None:
        fields: dict[str, int] = {"kind": int(step.kind or 0), "first_term": len(self._terms), "terms": len(reads(step.signal))}
        if step.conv is not None:
            self._emit_convolution(step, fields)
        else:
            self._emit_resampling(step, step.signal[0], fields)
        if step.out is not None:
            source = step.out
            fields |= _output(source.shape, source.start, source.step, source.image, source.row, source.pixel)
            fields |= self._fan_out_of(step, source)
        if step.kind in (FIRE, MAX_POOL):
            neurons = int(np.prod(step.shape)) if step.kind == FIRE else 0
            self.layers.setdefault(step.node.name, (step.node, neurons, []))[2].append(len(self._operations))
        self._operations.append(fields)

    def _emit_convolution(self, step: Step, fields: dict[str, int]) -> None:
        assert step.conv is not None
        conv, packed = step.conv.name, self._packed[step.conv.name]
        constant = all(part.source.constant for part in step.signal)
        bias, scale, limits = self._biases[conv].numpy(), packed.scale, np.zeros(0, np.float32)
        if step.out is None:
            scale = scale / np.float32(1 if constant else self.timesteps)
            bias = bias + self._parameters.readout_shift[step.node.name].numpy()
            fields |= self._map_of(step)
        else:
            layer = self._parameters.neurons[step.node.name]
            theta = layer.theta.numpy()
            scale = scale / _padded(theta, len(scale), 1.0)
            bias = (bias + layer.shift.numpy()) / theta
            limits = layer.burst_limits.numpy()
        fields |= {
            "constant": int(constant),
            "planes": packed.data.shape[1],
            "steps": packed.data.shape[2],
            "flush": packed.flush,
            "weights": self._weights.add(packed.data),
            "channel": self._scale.add(scale),
        }
        self._bias.add(_padded(bias, len(scale), 0.0))
        self._limits.add(_padded(limits, len(scale), 0.0))
        first = 0
        for item, steps in zip(reads(step.signal), packed.steps_of_part, strict=True):
            self._terms.append(self._term(item, step.conv.attrs, packed.kernel, steps, first))
            first += steps

    def _map_of(self, step: Step) -> dict[str, int]:
        """Room for a map, its channels padded to whole blocks."""
        channels, rows, columns = step.shape
        pixel, start = -(-channels // LANES) * LANES, self._map_size
        self._places[step.node.name] = start, (self.images, rows, columns, pixel), channels
        self._map_size += self.images * rows * columns * pixel
        return _output(step.shape, start, 0, rows * columns * pixel, columns * pixel, pixel)

    def _term(self, item: Read, attrs: dict[str, Any], kernel: tuple[int, int], steps: int, first: int) -> tuple[int, ...]:
        """What a convolution reads of one source."""
        source, (dilation_y, dilation_x) = item.source, attrs["dilation"]
        y, x = np.arange(kernel[0])[:, None, None], np.arange(kernel[1])[:, None]
        quads = np.arange(-(-item.channels // 4))
        offsets = y * dilation_y * source.row + x * dilation_x * source.pixel + 4 * quads
        extent = (kernel[0] - 1) * dilation_y + 1, (kernel[1] - 1) * dilation_x + 1
        steps_at = self._offsets.add(offsets), steps, first
        return *_window(item, attrs["stride"], attrs["padding"]), *steps_at, *extent, *_own(item, self.images)

    def _emit_resampling(self, step: Step, part: Part, fields: dict[str, int]) -> None:
        attrs = step.node.attrs
        if step.kind == MAX_POOL:
            self._terms.append(
                (*_window(part, attrs["stride"], attrs["padding"]), 0, 0, 0, *attrs["kernel"], *_own(part, self.images))
            )
        else:
            fields["factor"] = attrs["factor"]
            self._terms.append((*_window(part, (1, 1), (0, 0)), 0, 0, 0, 1, 1, *_own(part, self.images)))

    def _fan_out_of(self, step: Step, source: Source) -> dict[str, int]:
        """Weights reached by each output, `(H, W, blocks)`, and channel by channel where those of a block do not agree."""
        if step.kind not in (FIRE, MAX_POOL):
            return {}
        maps = self._fan_out[step.node.name][step.first_channel : step.first_channel + source.shape[0]].numpy()
        channels = np.zeros((*source.shape[1:], source.pixel), np.int32)
        channels[..., : source.shape[0]] = maps.transpose(1, 2, 0)
        blocks = channels.reshape(*source.shape[1:], -1, LANES)
        # Padded channels are silent, so what they would reach does not matter.
        blocks[..., -1, source.shape[0] - source.pixel + LANES :] = blocks[..., -1, :1]
        uniform = bool((blocks == blocks[..., :1]).all())
        return {
            "uniform": int(uniform),
            "fan_out": self._fan.add(blocks[..., 0]),
            "by_channel": 0 if uniform else self._fan.add(blocks),
        }


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
        return np.concatenate(self._parts)


def _output(shape: tuple[int, int, int], start: int, step: int, image: int, row: int, pixel: int) -> dict[str, int]:
    channels, rows, columns = shape
    return {
        "channels": channels, "rows": rows, "columns": columns, "blocks": -(-channels // LANES),
        "out": start, "out_step": step, "out_image": image, "out_row": row, "out_pixel": pixel,
    }  # fmt: skip


def _window(item: Part | Read, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int, int, int, int]:
    """Start, step, image, row and pixel of a TERM."""
    source = item.source
    start = source.start - padding[0] * source.row - padding[1] * source.pixel + item.first
    return start, source.step, source.image, stride[0] * source.row, stride[1] * source.pixel


def _own(item: Part | Read, images: int) -> tuple[int, int, int, int, int]:
    """The fields of a TERM from source_row on."""
    source = item.source
    blocks = -(-(item.first % LANES + item.channels) // LANES)
    buffer = (source.start - source.margin[0] * source.row - source.margin[1] * source.pixel) // LANES
    return source.row, source.pixel, blocks, buffer, images * source.image // LANES


def _padded(values: NDArray[np.float32], length: int, value: float) -> NDArray[np.float32]:
    out = np.full(length, value, np.float32)
    out[: len(values)] = values
    return out
