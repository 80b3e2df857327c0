"""The simulated sensor: events where and when the model says, the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evburst.data.events import EVENT_DTYPE, Events, SensorSize
from evburst.data.simulation.sensor import PRESETS, EventSimulator, SimulatorConfig, grey_of, log_intensity, uniform_hash

SIZE = SensorSize(6, 4)
IDEAL = SimulatorConfig(threshold_on=0.1, threshold_off=0.1, mismatch=0, refractory_us=0, cutoff_hz=0, leak_hz=0, shot_hz=0)


def ramp(config: SimulatorConfig, change: float, dt_us: int = 10_000, seed: int = 0) -> np.ndarray:
    """Events while every pixel's log intensity changes linearly by `change`."""
    sensor = EventSimulator(SIZE, config, seed)
    sensor._initial_offset[:] = 0  # private: pixels begin at random distances from their thresholds, here at none
    sensor.step(np.full((4, 6), 3.0, np.float32), 0)
    return sensor.step(np.full((4, 6), 3.0 + change, np.float32), dt_us)


@pytest.mark.parametrize(("change", "per_pixel", "polarity"), [(0.35, 3, 1), (-0.35, 3, 0), (0.05, 0, 1), (0.0, 0, 1)])
def test_a_ramp_gives_one_event_per_threshold(change: float, per_pixel: int, polarity: int) -> None:
    events = ramp(IDEAL, change)
    assert len(events) == per_pixel * 24
    assert (events["p"] == polarity).all()


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.floats(0, 0.3), st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_events_are_what_the_reference_level_moved_by(
    seed: int, steps: int, mismatch: float, threshold_on: float, threshold_off: float
) -> None:
    """Whatever the light does: per pixel ON events times their threshold less OFF events times theirs; nothing is left over."""
    config = replace(IDEAL, threshold_on=threshold_on, threshold_off=threshold_off, mismatch=mismatch)
    sensor = EventSimulator(SIZE, config, seed)
    rng = np.random.default_rng(seed)
    sensor.step(rng.uniform(0, 5.5, (4, 6)).astype(np.float32), 0)
    before = sensor._reference.copy()  # private, and `_thresholds`: what events are measured against
    events = []
    for k in range(steps):
        frame = rng.uniform(0, 5.5, (4, 6)).astype(np.float32)
        events.append(sensor.step(frame, 10_000 * (k + 1)))
        assert np.all((events[-1]["t"] >= 10_000 * k) & (events[-1]["t"] < 10_000 * (k + 1)))
        assert np.all(np.diff(events[-1]["t"]) >= 0)
    counts = np.zeros((2, 4, 6))
    for packet in events:
        np.add.at(counts, (packet["p"], packet["y"], packet["x"]), 1)
    on, off = sensor._thresholds
    moved = counts[1] * on - counts[0] * off
    np.testing.assert_allclose(sensor._reference - before, moved, atol=1e-3)
    assert np.all((frame - sensor._reference < on + 1e-5) & (sensor._reference - frame < off + 1e-5))


def test_event_times_are_the_crossings() -> None:
    """0.35 in 10 ms crosses 0.1, 0.2, 0.3 at 2857, 5714, 8571 µs."""
    events = ramp(IDEAL, 0.35)
    assert np.all(np.diff(events["t"]) >= 0)
    np.testing.assert_allclose(np.unique(events["t"]), [2857, 5714, 8571], atol=2)


def test_refractory_time_swallows_events() -> None:
    assert len(ramp(SimulatorConfig(**{**vars(IDEAL), "refractory_us": 4000}), 0.35)) == 2 * 24


def test_leak_makes_on_events_of_a_still_scene() -> None:
    events = ramp(SimulatorConfig(**{**vars(IDEAL), "leak_hz": 10}), 0.0, 1_000_000)
    assert (events["p"] == 1).all()
    assert len(events) == pytest.approx(240, abs=24)


def test_shot_noise_has_its_rate_and_both_polarities() -> None:
    sensor = EventSimulator(SensorSize(100, 100), SimulatorConfig(**{**vars(IDEAL), "shot_hz": 5}), 1)
    dark = np.zeros((100, 100), np.float32)
    sensor.step(dark, 0)
    events = np.concatenate([sensor.step(dark, t) for t in range(10_000, 1_010_000, 10_000)])
    assert len(events) == pytest.approx(50_000, rel=0.05)
    assert events["p"].mean() == pytest.approx(0.5, abs=0.02)


def test_low_pass_delays_and_weakens() -> None:
    slow = SimulatorConfig(**{**vars(IDEAL), "cutoff_hz": 5})
    assert 0 < len(ramp(slow, 1.0)) < len(ramp(IDEAL, 1.0))


def test_same_seed_same_events_other_seed_others() -> None:
    noisy = SimulatorConfig(shot_hz=100, mismatch=0.05)
    assert np.array_equal(ramp(noisy, 0.7, seed=4), ramp(noisy, 0.7, seed=4))
    assert not np.array_equal(ramp(noisy, 0.7, seed=4), ramp(noisy, 0.7, seed=5))


def test_long_steps_sort_too() -> None:
    events = ramp(SimulatorConfig(**{**vars(IDEAL), "shot_hz": 50}), 1.0, 500_000)
    assert np.all(np.diff(events["t"]) >= 0)
    assert events["t"].max() < 500_000


def test_log_is_continuous_at_20_and_finite_at_0() -> None:
    values = log_intensity(np.array([[0, 19.999, 20, 255]], np.float32))[0]
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2], abs=1e-3)
    assert values[3] == pytest.approx(np.log(255))


def test_misuse_is_refused() -> None:
    sensor = EventSimulator(SIZE, IDEAL)
    with pytest.raises(ValueError, match="expected shape"):
        sensor.step(np.zeros((3, 3), np.float32), 0)
    sensor.step(np.zeros((4, 6), np.float32), 10)
    with pytest.raises(ValueError, match="does not lie after"):
        sensor.step(np.zeros((4, 6), np.float32), 10)


def step_reference(sensor: EventSimulator, log_frame: np.ndarray, t_us: int) -> Events:
    """The specification of `EventSimulator.step`, pixel by pixel, from the sensor's private state, which stays as it is.

    Levels and thresholds are float32, times float64, as in the kernel.
    """
    c, t0, dt = sensor.config, float(sensor._time_us), float(t_us - sensor._time_us)
    f32, seed = np.float32, np.uint64(sensor.seed * 1_000_003 + sensor._steps)
    rows = []
    height, width = log_frame.shape
    for y in range(height):
        for x in range(width):
            a, b = sensor._level[y, x], log_frame[y, x]
            light = min(max(float(b) / math.log(255.0), 0.0), 1.0)
            if c.cutoff_hz > 0:
                b = a + (b - a) * f32(1.0 - math.exp(-c.cutoff_hz * 2 * np.pi * dt * 1e-6 * (0.1 + 0.9 * light)))
            on, off = sensor._thresholds[:, y, x]
            reference = sensor._reference[y, x] - f32(c.leak_hz * dt * 1e-6) * on
            last = sensor._last_event[y, x]
            while b - reference >= on or reference - b >= off:
                p = b - reference >= on
                reference = reference + on if p else reference - off
                part = float((reference - a) / (b - a)) if b != a else 0.0
                offset = min(max(part, 0.0), 0.999999) * dt
                if t0 + offset - last >= c.refractory_us:
                    last = t0 + offset
                    rows.append((int(offset), x, y, p))
            chance = c.shot_hz * dt * 1e-6 * (0.25 + 0.75 * (1.0 - light))
            key = (seed << np.uint64(26)) ^ np.uint64(y * width + x)
            draw = uniform_hash(key)
            if draw < chance:
                offset = uniform_hash(key ^ np.uint64(1 << 60)) * 0.999999 * dt
                rows.append((int(offset), x, y, draw < 0.5 * chance))
    rows.sort(key=lambda row: row[0])
    events = np.zeros(len(rows), EVENT_DTYPE)
    for index, (offset, x, y, p) in enumerate(rows):
        events[index] = offset + sensor._time_us, x, y, p
    return events


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        SimulatorConfig(),
        IDEAL,
        SimulatorConfig(threshold_on=0.04, threshold_off=0.03, refractory_us=0, shot_hz=500, leak_hz=20),
    ],
    ids=["default", "ideal", "noisy"],
)
def test_events_equal_the_reference(config: SimulatorConfig, parallel: bool) -> None:
    """Also where rows have more events than their buffers hold: thresholds of 0.04 give a hundred of each pixel."""
    size = SensorSize(9, 5)
    sensor = EventSimulator(size, config, 11, parallel)
    rng = np.random.default_rng(2)
    total = 0
    for k, t_us in enumerate([5, 700, 20_000, 20_001, 300_000]):
        frame = rng.uniform(0, 5.5, (5, 9)).astype(np.float32)
        expected = step_reference(sensor, frame, t_us) if k else np.zeros(0, EVENT_DTYPE)
        events = sensor.step(frame, t_us)
        np.testing.assert_array_equal(events, expected)
        total += len(events)
    assert total > 45


@pytest.mark.parametrize("name", PRESETS)
def test_presets_see_a_moving_edge_and_are_quiet_without(name: str) -> None:
    size = SensorSize(40, 30)
    sensor = EventSimulator(size, PRESETS[name].config, 0)
    still = np.full((30, 40), 100, np.uint8)
    edge = still.copy()
    edge[:, 20:] = 200
    for t_us in (0, 5_000):  # what mismatch makes of the levels that pixels begin with is over after the first step
        sensor.step(log_intensity(still), t_us)
    assert len(sensor.step(log_intensity(still), 10_000)) < 60
    moved = np.concatenate([sensor.step(log_intensity(edge), t) for t in (20_000, 30_000, 40_000)])
    assert (moved["x"] >= 20).mean() > 0.9
    assert moved["p"].mean() > 0.9


def test_grey_of_is_the_inverse_of_log_intensity() -> None:
    grey = np.linspace(0, 255, 500, dtype=np.float32).reshape(20, 25)
    np.testing.assert_allclose(grey_of(log_intensity(grey)), grey, atol=1e-3)
