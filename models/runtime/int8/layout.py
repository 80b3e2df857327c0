"""The second phase of the integer engine: where the buffer of every source lies in one arena.

A buffer is `(T or 1, N, rows, columns, channels)` uint8 with a margin of zeros around every image, as wide as the padding
of the operations that read it. `lay_out` is a pure function of a plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.models.runtime.int8.plan import Plan
from evburst.models.runtime.int8.signals import Source
from evburst.models.runtime.int8.simd.emit import LANES, LINE, PIXELS


@dataclass(frozen=True)
class Place:
    """The buffer of a source.

    Attributes:
        buffer: first element of its margin in the arena.
        start: first element inside the margin.
        step, image, row, pixel: distances in elements between timesteps (0 if constant), images, rows and pixels.
    """

    buffer: int
    start: int
    step: int
    image: int
    row: int
    pixel: int


@dataclass(frozen=True)
class Layout:
    """All buffers.

    Attributes:
        timesteps, images: T and N.
        places: of every source.
        size: elements of the arena.
    """

    timesteps: int
    images: int
    places: dict[Source, Place]
    size: int

    def view(self, source: Source, arena: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The counts of a source, `(T or 1, N, H, W, C)`, without margin."""
        channels, rows, columns = source.shape
        place = self.places[source]
        shape = (1 if source.constant else self.timesteps, self.images, rows, columns, channels)
        strides = (place.step, place.image, place.row, place.pixel, 1)
        return np.lib.stride_tricks.as_strided(arena[place.start :], shape, strides)

    def mark(self, source: Source, changed: NDArray[np.uint8]) -> None:
        """Mark all of a source as possibly different from silence (see kernels.py)."""
        _, rows, columns = source.shape
        place = self.places[source]
        blocks = place.pixel // LANES
        strides = place.image // LANES, place.row // LANES, 1
        np.lib.stride_tricks.as_strided(changed[place.start // LANES :], (self.images, rows, columns * blocks), strides)[:] = 1


def lay_out(plan: Plan, timesteps: int, images: int) -> Layout:
    """Place the buffers of a plan one after another, for T timesteps and N images."""
    margins: dict[Source, tuple[int, int]] = dict.fromkeys(plan.sources, (0, 0))
    for step in plan.steps:
        for part, window in step.windows:
            (rows, columns), padding = margins[part.source], window["padding"]
            margins[part.source] = max(rows, padding[0]), max(columns, padding[1])
    places: dict[Source, Place] = {}
    end = 0
    for source, margin in margins.items():
        places[source] = place = _place(source, margin, end, images)
        end += (1 if source.constant else timesteps) * images * place.image
        end += -end % LINE
    # The last tile of a row reads, but never writes, pixels beyond it.
    stride = max((window["stride"][1] for step in plan.steps for _, window in step.windows), default=1)
    beyond = max(place.pixel for place in places.values()) * PIXELS * stride
    return Layout(timesteps, images, places, end + beyond)


def _place(source: Source, margin: tuple[int, int], buffer: int, images: int) -> Place:
    channels, rows, columns = source.shape
    pixel = -(-channels // LANES) * LANES
    row = (columns + 2 * margin[1]) * pixel
    image = (rows + 2 * margin[0]) * row
    return Place(
        buffer, buffer + margin[0] * row + margin[1] * pixel, 0 if source.constant else images * image, image, row, pixel
    )
