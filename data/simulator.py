"""Frames to events: a model of an event camera's pixels. Pure arithmetic: no camera, no window, no files.

Per pixel, after the published behaviour of v2e (Hu, Liu, Delbruck, CVPRW 2021) and ESIM (Rebecq et al., CoRL 2018):

- log intensity, linear below 20 digital numbers so that dark noise stays finite (v2e's lin-log);
- a first-order low pass whose bandwidth falls with intensity (v2e), from `cutoff_hz` in full light;
- between two frames the (filtered) log intensity moves along a straight line; every crossing of reference +- threshold is
  an event at its interpolated time, and moves the reference by one threshold (ESIM);
- thresholds differ from pixel to pixel (Gaussian mismatch); a pixel is dead for `refractory_us` after an event;
- leak events (ON, the reference drifts down) and shot noise (Poisson, up to 4 times more in the dark), as in v2e.

Not modelled: motion during the exposure of the source frames, and the readout's own time stamps (arbiter delays).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from data.events import EVENT_DTYPE, Events, SensorSize

_LINEAR_BELOW = 20.0
_DARK_RATE = 0.25


@dataclass(frozen=True)
class SimulatorConfig:
    """Properties of the simulated sensor.

    Attributes:
        threshold_on, threshold_off: contrast thresholds in natural-log units.
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


def log_intensity(frame: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Lin-log intensity of a grey frame in digital numbers 0 to 255: `(H, W)` float32, continuous at 20."""
    grey = np.asarray(frame, np.float32)
    dark = grey * np.float32(np.log(_LINEAR_BELOW) / _LINEAR_BELOW)
    return np.where(grey < _LINEAR_BELOW, dark, np.log(np.maximum(grey, _LINEAR_BELOW))).astype(np.float32)


class EventSimulator:
    """One simulated sensor; frames go in at increasing times, events come out. Same seed, same events.

    Args:
        sensor_size: (W, H) px.
        config: the sensor's properties.
        seed: of the mismatch and of all noise.
    """

    def __init__(self, sensor_size: SensorSize, config: SimulatorConfig, seed: int = 0) -> None:
        self.sensor_size, self.config, self.seed = sensor_size, config, seed
        shape = (sensor_size.height, sensor_size.width)
        rng = np.random.default_rng(seed)
        self._thresholds = np.stack(
            [
                np.maximum(rng.normal(mean, config.mismatch, shape), 0.2 * mean).astype(np.float32)
                for mean in (config.threshold_on, config.threshold_off)
            ]
        )
        self._phase = rng.uniform(-1, 1, shape).astype(np.float32)
        self._level = np.zeros(shape, np.float32)
        self._reference = np.zeros(shape, np.float32)
        self._last_event = np.full(shape, -1e18, np.float64)
        self._time_us: int | None = None
        self._steps = 0

    def step(self, log_frame: NDArray[np.float32], t_us: int) -> Events:
        """Move on to the next frame.

        Args:
            log_frame: `(H, W)` float32 from `log_intensity`.
            t_us: its time; must lie after the previous frame's.

        Returns:
            The events of [previous time, t_us), sorted; none for the first frame.
        """
        if log_frame.shape != self._level.shape:
            raise ValueError(f"log_frame: expected shape {self._level.shape}, received {log_frame.shape}")
        if self._time_us is None:
            self._level[:] = log_frame
            self._reference[:] = log_frame + self._phase * self._thresholds.mean(0)
            self._time_us = t_us
            return np.zeros(0, EVENT_DTYPE)
        dt = t_us - self._time_us
        if dt <= 0:
            raise ValueError(f"t_us: {t_us} does not lie after the previous frame's {self._time_us}")
        args = self._kernel_arguments(np.ascontiguousarray(log_frame, np.float32), dt)
        counts = _count_rows(*args)
        ends = np.cumsum(counts)
        times, events = np.empty(ends[-1], np.uint32), np.empty(ends[-1], EVENT_DTYPE)
        _emit_rows(ends - counts, times, events["x"], events["y"], events["p"], *args)
        events["t"] = times.astype(np.int64) + self._time_us
        self._time_us = t_us
        self._steps += 1
        key = times.astype(np.uint16) if dt <= 1 << 16 else times  # 16-bit keys sort by radix
        return events[np.argsort(key, kind="stable")]

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


@numba.njit(cache=True, nogil=True, inline="always")
def uniform_hash(key):  # type: ignore[no-untyped-def]
    """Splitmix64 hash of a 64-bit key as a float64 in [0, 1)."""
    z = key * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) / 18446744073709551616.0


@numba.njit(cache=True, nogil=True)
def _row(  # type: ignore[no-untyped-def]
    y, n, emit, times, xs, ys, ps,
    frame, level, reference, last_event, thresholds, t0, dt, refractory, cutoff, leak, shot, seed,
):  # fmt: skip
    """Walk one row through the interval: count its events, or (emit) write them from index n on and move the state."""
    width = frame.shape[1]
    full_light = np.log(255.0)
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
                if emit:
                    times[n], xs[n], ys[n], ps[n] = np.uint32(offset), x, y, p
                n += 1
        chance = shot * (_DARK_RATE + (1.0 - _DARK_RATE) * (1.0 - light))
        if chance > 0.0:
            key = (seed << np.uint64(26)) ^ np.uint64(y * width + x)
            draw = uniform_hash(key)
            if draw < chance:
                if emit:
                    times[n] = np.uint32(uniform_hash(key ^ np.uint64(1 << 60)) * 0.999999 * dt)
                    xs[n], ys[n], ps[n] = x, y, draw < 0.5 * chance
                n += 1
        if emit:
            level[y, x], reference[y, x], last_event[y, x] = b, ref, last
    return n


@numba.njit(cache=True, nogil=True, parallel=True)
def _count_rows(  # type: ignore[no-untyped-def]
    frame, level, reference, last_event, thresholds, t0, dt, refractory, cutoff, leak, shot, seed,
):  # fmt: skip
    height = frame.shape[0]
    counts = np.zeros(height, np.int64)
    times, bytes_ = np.empty(0, np.uint32), np.empty(0, np.uint8)
    xs = np.empty(0, np.uint16)
    for y in numba.prange(height):
        counts[y] = _row(y, 0, False, times, xs, xs, bytes_, frame, level, reference, last_event, thresholds,
                         t0, dt, refractory, cutoff, leak, shot, seed)  # fmt: skip
    return counts


@numba.njit(cache=True, nogil=True, parallel=True)
def _emit_rows(  # type: ignore[no-untyped-def]
    starts, times, xs, ys, ps,
    frame, level, reference, last_event, thresholds, t0, dt, refractory, cutoff, leak, shot, seed,
):  # fmt: skip
    for y in numba.prange(frame.shape[0]):
        _row(y, starts[y], True, times, xs, ys, ps, frame, level, reference, last_event, thresholds,
             t0, dt, refractory, cutoff, leak, shot, seed)  # fmt: skip
