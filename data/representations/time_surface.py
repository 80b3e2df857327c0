"""Time surfaces: exponential decay of the time since each pixel's last event, per polarity (HOTS, Lagorce et al. 2017, eq. 2).

S(p, y, x) = exp(-(t1 - t) / tau), where t is the latest event of that polarity and pixel in the window [t0, t1). It is close
to 1 for a recent event, decays to 0 with its age, and is 0 without an event. No state is carried between windows, so an
array depends on its window only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.encoding import columns, unpack
from evburst.data.errors import SettingValueError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.representations import clear, representation

DTYPES = ("float32",)


@dataclass(frozen=True)
class TimeSurfaceConfig:
    """Settings of a time surface.

    Attributes:
        tau_ms: time constant of the decay in milliseconds, positive.
    """

    tau_ms: float = 20.0

    def __post_init__(self) -> None:
        if not self.tau_ms > 0:
            raise SettingValueError(f"tau_ms must be positive, received {self.tau_ms}")

    @property
    def channels(self) -> int:
        """Number of channels of the surface: OFF, ON."""
        return 2


def time_surface_reference(window: EventWindow, config: TimeSurfaceConfig, sensor_size: SensorSize) -> NDArray[np.float32]:
    """NumPy reference of `time_surface`, without padding: `(2, H, W)` float32."""
    events = unpack(window)
    width, height = sensor_size
    events = events[(events["x"] < width) & (events["y"] < height)]
    surface = np.zeros((2, height, width))
    decayed = np.exp((events["t"] - window.t1_us) / (1000 * config.tau_ms))
    np.maximum.at(surface, (events["p"], events["y"], events["x"]), decayed)
    return surface.astype(np.float32)


@representation("time_surface", TimeSurfaceConfig, time_surface_reference, DTYPES)
def time_surface(
    window: EventWindow, config: TimeSurfaceConfig, sensor_size: SensorSize, out: NDArray[np.float32]
) -> tuple[int, int]:
    """Write a window's time surface into `out`.

    Args:
        window: the events.
        config: time constant.
        sensor_size: (W, H) px; events outside it are dropped.
        out: `(2, >= H, >= W)` float32, C-contiguous, overwritten; its margin stays 0.

    Returns:
        Number of events inside the sensor (only the latest of each pixel has an effect), and of events outside it.
    """
    clear(out, config.channels, sensor_size, DTYPES)
    outside = _decay(*columns(window), window.t1_us, 1000 * config.tau_ms, *sensor_size, out)
    return len(window) - outside, outside


@njit(cache=True, nogil=True)
def _decay(ts, xs, ys, ps, t1, tau, width, height, out):  # type: ignore[no-untyped-def]
    outside = 0
    for i in range(len(ts)):
        x, y, p = xs[i], ys[i], np.int64(ps[i] != 0)
        if x >= width or y >= height:
            outside += 1
            continue
        out[p, y, x] = max(out[p, y, x], np.float32(np.exp((ts[i] - t1) / tau)))
    return outside
