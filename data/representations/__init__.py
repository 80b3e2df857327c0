"""Representations: a window of events becomes an array. A new one is one module here and one line of registration.

@representation("time_surface", TimeSurfaceConfig, time_surface_reference, dtypes=("float32",))
def time_surface(window, config, sensor_size, out): ...

Each is a numba kernel beside the NumPy reference that specifies it. All of them

- fill a caller's `out`, `(channels, >= H, >= W)` and C-contiguous, whose margin to the right and the bottom stays 0;
- take DAT words and EVENT_DTYPE alike, in any order inside the window;
- leave events outside the sensor out, and return (events placed, events outside), which add up to the window's events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import ConfigError
from evburst.data.events import EventWindow, SensorSize


class RepresentationConfig(Protocol):
    """The frozen dataclass of a representation; all of its fields have defaults."""

    @property
    def channels(self) -> int:
        """Channels of the array."""
        ...


Fill = Callable[[EventWindow, Any, SensorSize, NDArray[Any]], tuple[int, int]]
Reference = Callable[[EventWindow, Any, SensorSize], NDArray[Any]]


class Representation(NamedTuple):
    """One entry of the registry.

    Attributes:
        config: class of its settings.
        fill: the kernel, `(window, config, sensor_size, out) -> (placed, outside)`.
        reference: its specification, `(window, config, sensor_size) -> (channels, H, W)`.
        dtypes: what `out` may be, the usual one first.
    """

    config: type[RepresentationConfig]
    fill: Fill
    reference: Reference
    dtypes: tuple[str, ...]


REPRESENTATIONS: dict[str, Representation] = {}


def representation(
    name: str, config: type[RepresentationConfig], reference: Reference, dtypes: tuple[str, ...]
) -> Callable[[Fill], Fill]:
    """Register a kernel under `name`; see Representation."""

    def register(fill: Fill) -> Fill:
        REPRESENTATIONS[name] = Representation(config, fill, reference, dtypes)
        return fill

    return register


def represent(
    window: EventWindow, name: str, sensor_size: SensorSize, config: RepresentationConfig | None = None
) -> NDArray[Any]:
    """A window's array in the representation of that name, `(channels, H, W)`, newly made.

    Args:
        window: the events.
        name: of a registered representation.
        sensor_size: (W, H) px; events outside it are left out.
        config: its settings; None for the defaults.

    Raises:
        ConfigError: no representation has that name.
    """
    if name not in REPRESENTATIONS:
        raise ConfigError(f"representation {name!r} is unknown (known: {', '.join(sorted(REPRESENTATIONS))})")
    found = REPRESENTATIONS[name]
    config = found.config() if config is None else config
    out = np.empty((config.channels, sensor_size.height, sensor_size.width), found.dtypes[0])
    found.fill(window, config, sensor_size, out)
    return out


def clear(out: NDArray[Any], channels: int, sensor_size: SensorSize, dtypes: tuple[str, ...]) -> None:
    """Fill a caller's buffer with 0; ValueError if it is none that a representation of so many channels can use."""
    width, height = sensor_size
    fits = out.ndim == 3 and out.shape[0] == channels and out.shape[1] >= height and out.shape[2] >= width
    if not fits or out.dtype.name not in dtypes or not out.flags.c_contiguous:
        expected = f"{' or '.join(dtypes)} ({channels}, >={height}, >={width}), C-contiguous"
        raise ValueError(f"out: expected {expected}, received {out.dtype} {out.shape}")
    out.fill(0)


# Each registers itself.
from evburst.data.representations import time_surface as _time_surface  # noqa: E402, F401
from evburst.data.representations import voxel_bilinear as _voxel_bilinear  # noqa: E402, F401
from evburst.data.representations import voxel_grid as _voxel_grid  # noqa: E402, F401
