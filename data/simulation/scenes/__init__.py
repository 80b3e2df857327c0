"""Scenes for the simulated sensor. A scene renders log-intensity frames and provides its boxes at any time."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.events import Events, SensorSize, joined
from evburst.data.simulation.sensor import EventSimulator, SimulatorConfig


class Scene(Protocol):
    """A world seen by a virtual camera."""

    sensor_size: SensorSize

    def render(self, t_us: int) -> NDArray[np.float32]:
        """Return the `(H, W)` float32 log-intensity frame at t_us."""
        ...

    def boxes(self, t_us: int) -> Detections:
        """Return the boxes of visible objects at t_us."""
        ...


_WARM_UP_STEPS = 3


def record(
    scene: Scene,
    config: SimulatorConfig,
    t0_us: int,
    t1_us: int,
    step_us: int,
    seed: int = 0,
) -> Events:
    """Simulate the events of [t0_us, t1_us) that a sensor records of a scene.

    The sensor starts _WARM_UP_STEPS before t0_us, so that its pixels are not in their initial state when the recording begins.
    """
    sensor = EventSimulator(scene.sensor_size, config, seed)
    times = range(t0_us - _WARM_UP_STEPS * step_us, t1_us + step_us, step_us)
    parts = [(t, sensor.step(scene.render(t), t)) for t in times]
    events = joined(part for t, part in parts if t > t0_us)
    return events[events["t"] < t1_us]
