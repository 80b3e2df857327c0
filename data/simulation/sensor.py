"""A model of the pixels of an event camera, which converts frames to events. Pure arithmetic, without camera or file access.

Per pixel, after the published behaviour of v2e (Hu, Liu, Delbruck, CVPRW 2021) and ESIM (Rebecq et al., CoRL 2018):

- log intensity, linear below 20 digital numbers so that dark noise stays finite (v2e's lin-log);
- a first-order low pass whose bandwidth decreases with intensity (v2e), `cutoff_hz` in full light;
- between two frames the (filtered) log intensity changes linearly; every crossing of reference +- threshold is an event at
  its interpolated time, and moves the reference by one threshold (ESIM);
- thresholds differ from pixel to pixel (Gaussian mismatch); a pixel is dead for `refractory_us` after an event;
- leak events (ON, the reference drifts down) and shot noise (Poisson, up to 4 times higher in the dark), as in v2e.

Differences from v2e: v2e spreads all events of a pixel evenly over the interval, whereas here each has the time at which
the straight line crosses the threshold. v2e interpolates frames with a trained network,
`evburst.data.simulation.upsample` with optical flow. v2e's low pass is stepped with dt / tau; here it is exact for a
constant input, so it cannot overshoot in long steps.

Not modelled: motion during the exposure of the source frames, and time stamping by the readout (arbiter delays).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.errors import require_all
from evburst.data.events import EVENT_DTYPE, Events, SensorSize

_LINEAR_BELOW = 20.0
_DARK_RATE = 0.25

LEAST_THRESHOLD = 0.01
"""Of contrast, in natural-log units."""


@dataclass(frozen=True)
class SimulatorConfig:
    """Properties of the simulated sensor.

    Attributes:
        threshold_on: contrast threshold of ON events in natural-log units, at least LEAST_THRESHOLD.
        threshold_off: that of OFF events.
        mismatch: standard deviation of the thresholds from pixel to pixel, in the same units.
        refractory_us: dead time after an event, µs.
        cutoff_hz: bandwidth of a pixel in full light, Hz; 0 means unlimited.
        leak_hz: leak events per pixel and second.
        shot_hz: shot-noise events per pixel and second in the dark.
    """

    threshold_on: float = 0.25
    threshold_off: float = 0.25
    mismatch: float = 0.03
    refractory_us: float = 200.0
    cutoff_hz: float = 200.0
    leak_hz: float = 0.1
    shot_hz: float = 0.5

    def __post_init__(self) -> None:
        thresholds = self.threshold_on, self.threshold_off  # of zero, an edge would cause events without end
        others = self.mismatch, self.refractory_us, self.cutoff_hz, self.leak_hz, self.shot_hz
        checks = {
            f"threshold_on and threshold_off must be at least {LEAST_THRESHOLD}": all(
                LEAST_THRESHOLD <= value < math.inf for value in thresholds
            ),
            "mismatch, refractory_us, cutoff_hz, leak_hz and shot_hz must not be negative": all(
                0 <= value < math.inf for value in others
            ),
        }
        require_all(checks, self)


class SensorPreset(NamedTuple):
    """Size of a common sensor, and approximate settings near its usual biases."""

    sensor_size: SensorSize
    config: SimulatorConfig


PRESETS = {
    "dvs346": SensorPreset(
        SensorSize(346, 260),
        SimulatorConfig(
            threshold_on=0.2, threshold_off=0.2, mismatch=0.03, refractory_us=500.0, cutoff_hz=300.0, leak_hz=0.1, shot_hz=1.0
        ),
    ),
    "evk4": SensorPreset(
        SensorSize(1280, 720),
        SimulatorConfig(
            threshold_on=0.25,
            threshold_off=0.25,
            mismatch=0.02,
            refractory_us=100.0,
            cutoff_hz=500.0,
            leak_hz=0.02,
            shot_hz=0.05,
        ),
    ),
    "gen1": SensorPreset(
        SensorSize(304, 240),
        SimulatorConfig(
            threshold_on=0.16, threshold_off=0.16, mismatch=0.03, refractory_us=100.0, cutoff_hz=300.0, leak_hz=0.1, shot_hz=0.3
        ),
    ),
    "dvxplorer": SensorPreset(
        SensorSize(640, 480),
        SimulatorConfig(
            threshold_on=0.3, threshold_off=0.3, mismatch=0.03, refractory_us=500.0, cutoff_hz=200.0, leak_hz=0.05, shot_hz=0.5
        ),
    ),
}
"""DAVIS346 (v2e's default thresholds, mismatch and bandwidth), Prophesee EVK4 (IMX636: 25 % contrast, low noise), Prophesee
Gen1 (ATIS, Posch et al. 2011: contrast from 13 %), iniVation DVXplorer (Samsung Gen3). The biases of a camera change each of
these values by a factor of two or more, so the presets are starting points, not measurements."""


def log_intensity(frame: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lin-log intensity of a grey frame in digital numbers 0 to 255: `(H, W)` float32, continuous at 20."""
    grey = np.asarray(frame, np.float32)
    dark = grey * np.float32(np.log(_LINEAR_BELOW) / _LINEAR_BELOW)
    return np.where(grey < _LINEAR_BELOW, dark, np.log(np.maximum(grey, _LINEAR_BELOW))).astype(np.float32)


def grey_of(log_frame: NDArray[np.float32]) -> NDArray[np.float32]:
    """Invert `log_intensity`: digital numbers `(H, W)` float32."""
    dark = log_frame * np.float32(_LINEAR_BELOW / np.log(_LINEAR_BELOW))
    return np.where(dark < _LINEAR_BELOW, dark, np.exp(log_frame)).astype(np.float32)


class EventSimulator:
    """Simulates one sensor: takes frames at increasing times and returns events. The result depends only on input and seed.

    Args:
        sensor_size: (W, H) px.
        config: the sensor's properties.
        seed: seed of the mismatch and of all noise.
        parallel: use all of numba's threads; the events do not depend on it.
    """

    def __init__(self, sensor_size: SensorSize, config: SimulatorConfig, seed: int = 0, parallel: bool = True) -> None:
        self.sensor_size, self.config, self.seed = sensor_size, config, seed
        shape = (sensor_size.height, sensor_size.width)
        rng = np.random.default_rng(seed)
        self._thresholds = np.stack(
            [
                np.maximum(rng.normal(mean, config.mismatch, shape), 0.2 * mean).astype(np.float32)
                for mean in (config.threshold_on, config.threshold_off)
            ]
        )
        self._initial_offset = rng.uniform(-1, 1, shape).astype(np.float32)
        self._level = np.zeros(shape, np.float32)
        self._reference = np.zeros(shape, np.float32)
        self._last_event = np.full(shape, -1e18, np.float64)
        self._next = self._level.copy(), self._reference.copy(), self._last_event.copy()
        self._rows = _RowBuffers.of(sensor_size.height, 2 * sensor_size.width)
        self._walk = _walk_rows_parallel if parallel else _walk_rows
        self._time_us: int | None = None
        self._steps = 0

    def step(self, log_frame: NDArray[np.float32], t_us: int) -> Events:
        """Process the next frame.

        Args:
            log_frame: `(H, W)` float32 from `log_intensity`.
            t_us: its time; must be later than the previous frame's.

        Returns:
            The events of [previous time, t_us), sorted; none for the first frame.
        """
        if log_frame.shape != self._level.shape:
            raise ValueError(f"log_frame: expected shape {self._level.shape}, received {log_frame.shape}")
        if self._time_us is None:
            self._level[:] = log_frame
            self._reference[:] = log_frame + self._initial_offset * self._thresholds.mean(0)
            self._time_us = t_us
            return np.zeros(0, EVENT_DTYPE)
        dt = t_us - self._time_us
        if dt <= 0:
            raise ValueError(f"t_us: {t_us} does not lie after the previous frame's {self._time_us}")
        counts = self._walk_sensor(np.ascontiguousarray(log_frame, np.float32), dt)
        ends = np.cumsum(counts)
        times, events = np.empty(ends[-1], np.uint32), np.empty(ends[-1], EVENT_DTYPE)
        _join_rows(counts, *self._rows, times, events["x"], events["y"], events["p"])
        events["t"] = times.astype(np.int64) + self._time_us
        self._time_us = t_us
        self._steps += 1
        key = times.astype(np.uint16) if dt <= 1 << 16 else times  # 16-bit keys sort by radix
        return events[np.argsort(key, kind="stable")]

    def _walk_sensor(self, log_frame: NDArray[np.float32], dt: int) -> NDArray[np.int64]:
        """Fill the row buffers with the events of the interval, update the state, and return `(H,)` counts.

        One pass over the pixels normally suffices. If a row has more events than its buffer holds, the pass is repeated with
        larger buffers; for this reason the new state is written next to the old one.
        """
        arguments = self._kernel_arguments(log_frame, dt)
        while True:
            counts: NDArray[np.int64] = self._walk(*self._rows, *self._next, *arguments)
            largest = int(counts.max())
            if largest <= self._rows.times.shape[1]:
                break
            self._rows = _RowBuffers.of(len(counts), 2 * largest)
        (self._level, self._reference, self._last_event), self._next = (
            self._next,
            (self._level, self._reference, self._last_event),
        )
        return counts

    def _kernel_arguments(self, log_frame: NDArray[np.float32], dt: int) -> tuple[object, ...]:
        c = self.config
        return (
            log_frame,
            self._level,
            self._reference,
            self._last_event,
            self._thresholds,
            float(self._time_us or 0),
            float(dt),
            float(c.refractory_us),
            c.cutoff_hz * 2 * np.pi * dt * 1e-6,
            c.leak_hz * dt * 1e-6,
            c.shot_hz * dt * 1e-6,
            np.uint64(self.seed * 1_000_003 + self._steps),
        )


class _RowBuffers(NamedTuple):
    """Events of one interval, row by row: `(H, capacity)` time offsets in µs, columns, polarities."""

    times: NDArray[np.uint32]
    xs: NDArray[np.uint16]
    ps: NDArray[np.uint8]

    @classmethod
    def of(cls, height: int, capacity: int) -> _RowBuffers:
        return cls(*(np.empty((height, capacity), kind) for kind in (np.uint32, np.uint16, np.uint8)))


@njit(cache=True, nogil=True, inline="always")
def uniform_hash(key):  # type: ignore[no-untyped-def]
    """Return the Splitmix64 hash of a 64-bit key as a float64 in [0, 1)."""
    z = key * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) / 18446744073709551616.0


@njit(cache=True, nogil=True)
def _row(  # type: ignore[no-untyped-def]
    y, times, xs, ps, next_level, next_reference, next_last,
    frame, level, reference, last_event, thresholds, t0, dt, refractory, cutoff, leak, shot, seed,
):  # fmt: skip
    """Process one row: write as many events as the buffers hold, and its new state; returns the total number of events."""
    width, capacity = frame.shape[1], times.shape[1]
    full_light = np.log(255.0)
    n = 0
    for x in range(width):
        a, target = level[y, x], frame[y, x]
        light = min(max(target / full_light, 0.0), 1.0)
        b = target
        if cutoff > 0.0:
            b = a + (target - a) * np.float32(1.0 - np.exp(-cutoff * (0.1 + 0.9 * light)))
        on, off = thresholds[0, y, x], thresholds[1, y, x]
        ref = reference[y, x] - np.float32(leak) * on
        last = last_event[y, x]
        while b - ref >= on or ref - b >= off:
            p = b - ref >= on
            ref = ref + on if p else ref - off
            part = (ref - a) / (b - a) if b != a else 0.0
            offset = min(max(part, 0.0), 0.999999) * dt
            if t0 + offset - last >= refractory:
                last = t0 + offset
                if n < capacity:
                    times[y, n], xs[y, n], ps[y, n] = np.uint32(offset), x, p
                n += 1
        probability = shot * (_DARK_RATE + (1.0 - _DARK_RATE) * (1.0 - light))
        if probability > 0.0:
            key = (seed << np.uint64(26)) ^ np.uint64(y * width + x)
            draw = uniform_hash(key)
            if draw < probability:
                if n < capacity:
                    times[y, n] = np.uint32(uniform_hash(key ^ np.uint64(1 << 60)) * 0.999999 * dt)
                    xs[y, n], ps[y, n] = x, draw < 0.5 * probability
                n += 1
        next_level[y, x], next_reference[y, x], next_last[y, x] = b, ref, last
    return n


def _walk(  # type: ignore[no-untyped-def]
    times, xs, ps, next_level, next_reference, next_last,
    frame, level, reference, last_event, thresholds, t0, dt, refractory, cutoff, leak, shot, seed,
):  # fmt: skip
    counts = np.zeros(frame.shape[0], np.int64)
    for y in numba.prange(frame.shape[0]):
        counts[y] = _row(y, times, xs, ps, next_level, next_reference, next_last, frame, level, reference, last_event,
                         thresholds, t0, dt, refractory, cutoff, leak, shot, seed)  # fmt: skip
    return counts


_walk_rows = njit(cache=True, nogil=True)(_walk)
_walk_rows_parallel = njit(cache=True, nogil=True, parallel=True)(_walk)


@njit(cache=True, nogil=True)
def _join_rows(counts, row_times, row_xs, row_ps, times, xs, ys, ps):  # type: ignore[no-untyped-def]
    n = 0
    for y in range(len(counts)):
        for k in range(counts[y]):
            times[n], xs[n], ys[n], ps[n] = row_times[y, k], row_xs[y, k], y, row_ps[y, k]
            n += 1
