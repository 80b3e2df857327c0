"""The last phase of the integer engine: the buffers of one input size, batch and number of timesteps, allocated once, and
their runs."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from evburst.models.runtime.int8.kernels import PROGRESS, pack_grid, run_operations, tally_silence
from evburst.models.runtime.int8.layout import Layout
from evburst.models.runtime.int8.plan import Plan
from evburst.models.runtime.int8.records import COUNTERS
from evburst.models.runtime.int8.signals import Source
from evburst.models.runtime.int8.simd.emit import LANES, QUAD, TILE
from evburst.models.runtime.int8.tables import Tables, aligned


@dataclass(frozen=True)
class _Silence:
    """What the buffers hold in a window without events."""

    arena: NDArray[np.uint8]
    maps: NDArray[np.float32]
    totals: NDArray[np.int64]
    tiles: NDArray[np.int64]


class Program:
    """Buffers of a plan, and what runs on them.

    Args:
        plan, layout, tables: of the network.
        input_fan_out: weights reached by an event, `(2 * bins, H, W)`.

    Attributes:
        plan, layout, tables: as given.
        arena, changed: spike counts, and whether they differ from silence, see kernels.py.
        totals: `(operations, N, 8)` int64 of the last run: spikes, synaptic operations, and both with a burst counted once;
            then the same for differences from silence.
        resting: counts in silence of the nodes that the reference engine computes, see `SpikingNetwork.resting`.
        maps: of each read-out, `(N, C, H, W)` float32; overwritten by the next run.
    """

    def __init__(self, plan: Plan, layout: Layout, tables: Tables, input_fan_out: Tensor) -> None:
        self.plan, self.layout, self.tables = plan, layout, tables
        images, operations = layout.images, tables.operations
        self.arena, self.changed = aligned(np.zeros(layout.size, np.uint8)), np.zeros(layout.size // LANES, np.uint8)
        self.totals = np.zeros((len(operations), images, COUNTERS // 2), np.int64)
        self.resting: dict[str, Tensor] = {}
        self._map_arena = np.zeros(tables.map_size, np.float32)
        tiles = np.zeros((tables.tiles, 4), np.int64)
        self._silence = _Silence(np.zeros_like(self.arena), np.zeros_like(self._map_arena), np.zeros_like(self.totals), tiles)
        self._restored = np.zeros(len(operations), np.uint8)
        self._input_fan_out = input_fan_out.numpy().astype(np.int32)
        threads = numba.config.NUMBA_NUM_THREADS
        self._acc = aligned(np.zeros((threads, layout.timesteps * QUAD * TILE), np.int32))
        self._found = np.zeros((threads, operations["steps"].max(initial=0) + LANES), np.int32)
        self._rows = np.zeros((threads, LANES * tables.widest_pool), np.uint8)
        self._progress = np.zeros(len(operations) * (threads + 1) * PROGRESS, np.int64)
        self._counts = np.zeros((threads, len(operations) + 1, images, COUNTERS), np.int64)
        self._units = np.zeros((images * input_fan_out.shape[1], 4), np.int64)
        self.maps = {}
        for name, place in tables.maps.items():
            flat = self._map_arena[place.start : place.start + int(np.prod(place.shape))]
            self.maps[name] = flat.reshape(place.shape)[..., : place.channels].transpose(0, 3, 1, 2)

    def pack(self, grid: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Store the input `(N, C, H, W)`; returns `(N, 4)`: events, synaptic operations, these by pixels, largest count."""
        columns, images = grid.shape[3], self.layout.images
        if columns % 8:
            grid = np.pad(grid, ((0, 0), (0, 0), (0, 0), (0, -columns % 8)))
        place = self.layout.places[self.plan.sources[0]]
        at = place.start, place.image, place.row, place.pixel
        pack_grid(grid.view(np.uint64), columns, self._input_fan_out, self.arena, self.changed, *at, self._units)
        totals = self._units.reshape(images, grid.shape[2], 4)
        return np.concatenate([totals[..., :3].sum(1), totals[..., 3:4].max(1)], 1)

    def run(self, operations: slice, skip: bool = True) -> None:
        """Carry out a run of operations.

        Args:
            operations: one of the tables' runs.
            skip: whether what does not differ from silence is left out.
        """
        silence = self._silence
        run_operations(
            self.tables.operations[operations], self.tables.terms, *self.tables.constants, self.arena, silence.arena,
            self.changed, self._map_arena, silence.maps, silence.totals[operations], silence.tiles,
            self._restored[operations], skip, self.plan.summed, self.layout.timesteps, self.layout.images, self._acc,
            self._found, self._rows, self._progress, self._counts, self.totals[operations],
        )  # fmt: skip

    def remember_silence(self) -> None:
        """Keep the present buffers as those of a window without events."""
        silence = self._silence
        self.totals[..., COUNTERS // 4 :] = 0
        silence.arena[:], silence.maps[:], silence.totals[:] = self.arena, self._map_arena, self.totals
        fan_out = self.tables.constants[-1]
        tally_silence(self.tables.operations, fan_out, silence.arena, self.plan.summed, self.layout.timesteps, silence.tiles)

    def recall_silence(self) -> None:
        """Restore the maps and totals of a window without events, without running anything."""
        self._map_arena[:], self.totals[:] = self._silence.maps, self._silence.totals

    def counts(self, source: Source) -> NDArray[np.uint8]:
        """The counts of a source in the last run, `(T or 1, N, H, W, C)`; writable."""
        return self.layout.view(source, self.arena)

    def mark(self, source: Source) -> None:
        """Mark all of a source as possibly different from silence."""
        self.layout.mark(source, self.changed)
