"""A scene in which a bright square crosses a dark background from left to right, recorded by a simulated sensor.

python docs/examples/scene.py square_td.dat
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.events import Events, SensorSize
from evburst.data.simulation.scenes import record
from evburst.data.simulation.sensor import SimulatorConfig, log_intensity
from evburst.data.writers import write_events

SIDE_PX = 20
SPEED_PX_PER_S = 100.0
DARK, BRIGHT = 40, 200


class SquareScene:
    """A square whose left edge starts at x = 10 px and moves at 100 px/s."""

    def __init__(self, sensor_size: SensorSize) -> None:
        self.sensor_size = sensor_size

    def _left_px(self, t_us: int) -> float:
        return 10 + SPEED_PX_PER_S * t_us * 1e-6

    def render(self, t_us: int) -> NDArray[np.float32]:
        """Render the frame at t_us as `(H, W)` float32 log intensity."""
        width, height = self.sensor_size
        frame = np.full((height, width), DARK, np.uint8)
        left, top = round(self._left_px(t_us)), (height - SIDE_PX) // 2
        frame[top : top + SIDE_PX, max(left, 0) : max(left + SIDE_PX, 0)] = BRIGHT
        return log_intensity(frame)

    def boxes(self, t_us: int) -> Detections:
        """Return the square's box at t_us, with class 0."""
        left, top = self._left_px(t_us), (self.sensor_size.height - SIDE_PX) // 2
        box = np.array([[left, top, left + SIDE_PX, top + SIDE_PX]], np.float32)
        return Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), t_us)


def square_events(sensor_size: SensorSize, seconds: float = 0.2) -> Events:
    """Simulate a sensor that sees the square; return an EVENT_DTYPE array."""
    return record(SquareScene(sensor_size), SimulatorConfig(), 0, round(1e6 * seconds), step_us=1000)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scene.py OUT.dat")
    size = SensorSize(128, 96)
    write_events(Path(sys.argv[1]), square_events(size), size)
