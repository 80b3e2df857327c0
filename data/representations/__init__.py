"""Representations convert a window of events to an array. A new one is one module here with a registered function:

@representation("time_surface", TimeSurfaceConfig, time_surface_reference, dtypes=("float32",))
def time_surface(window, config, sensor_size, out): ...

Each is a numba kernel, specified by a NumPy reference in the same module. All of them

- write to the caller's `out`, `(channels, >= H, >= W)` and C-contiguous, whose right and bottom margins stay 0;
- accept packed events and EVENT_DTYPE, in any order inside the window;
- drop events outside the sensor, and return (events placed, events outside), which add up to the window's events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.extensions import refuse_taken


class RepresentationConfig(Protocol):
    """Settings of a representation: a frozen dataclass whose fields all have defaults."""

    @property
    def channels(self) -> int:
        """Number of channels of the array."""
        ...


Fill = Callable[[EventWindow, Any, SensorSize, NDArray[Any]], tuple[int, int]]
Reference = Callable[[EventWindow, Any, SensorSize], NDArray[Any]]


class Representation(NamedTuple):
    """One entry of the registry.

    Attributes:
        config: class of its settings.
        fill: the kernel, `(window, config, sensor_size, out) -> (placed, outside)`.
        reference: its specification, `(window, config, sensor_size) -> (channels, H, W)`.
        dtypes: permitted dtypes of `out`, the default one first.
    """

    config: type[RepresentationConfig]
    fill: Fill
    reference: Reference
    dtypes: tuple[str, ...]


REPRESENTATIONS: dict[str, Representation] = {}


def representation(
    name: str, config: type[RepresentationConfig], reference: Reference, dtypes: tuple[str, ...]
) -> Callable[[Fill], Fill]:
    """Register a kernel under `name`; see Representation. Raises ConfigError if another one has the name."""

    def register(fill: Fill) -> Fill:
        refuse_taken("representation", name, fill, {known: one.fill for known, one in REPRESENTATIONS.items()})
        REPRESENTATIONS[name] = Representation(config, fill, reference, dtypes)
        return fill

    return register


def represent(
    window: EventWindow, name: str, sensor_size: tuple[int, int] | str, config: RepresentationConfig | None = None
) -> NDArray[Any]:
    """Compute a representation of a window, as a new array `(channels, H, W)`.

    Args:
        window: the events.
        name: name of a registered representation.
        sensor_size: (W, H) px, or "WxH"; events outside it are dropped.
        config: settings of the representation; None for the defaults.

    Raises:
        ConfigError: the name is unknown, or the sensor size is none.
    """
    width, height = size = SensorSize.of(sensor_size)
    if name not in REPRESENTATIONS:
        raise ConfigError(f"representation {name!r} is unknown (known: {', '.join(sorted(REPRESENTATIONS))})")
    entry = REPRESENTATIONS[name]
    config = entry.config() if config is None else config
    out = np.empty((config.channels, height, width), entry.dtypes[0])
    entry.fill(window, config, size, out)
    return out


def clear(out: NDArray[Any], channels: int, sensor_size: SensorSize, dtypes: tuple[str, ...]) -> None:
    """Fill a caller's buffer with 0; raises ValueError unless its shape, dtype and memory order fit the representation."""
    width, height = sensor_size
    fits = out.ndim == 3 and out.shape[0] == channels and out.shape[1] >= height and out.shape[2] >= width
    if not fits or out.dtype.name not in dtypes or not out.flags.c_contiguous:
        expected = f"{' or '.join(dtypes)} ({channels}, >={height}, >={width}), C-contiguous"
        raise ValueError(f"out: expected {expected}, received {out.dtype} {out.shape}")
    out.fill(0)


# Importing these modules registers them.
from evburst.data.representations import time_surface as _time_surface  # noqa: E402, F401
from evburst.data.representations import voxel_bilinear as _voxel_bilinear  # noqa: E402, F401
from evburst.data.representations import voxel_grid as _voxel_grid  # noqa: E402, F401
