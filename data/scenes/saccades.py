"""A photograph shown to a sensor that moves in three saccades of 100 ms, as N-Caltech101 was recorded (Orchard et al. 2015).

The picture is fitted into the sensor's upper left corner; the sensor's gaze goes round a triangle, down and up and back,
faster in the middle of a saccade and at rest at its end. Nothing is seen beside the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data.boxes import Detections
from data.datasets.pictures import Picture
from data.events import SensorSize
from data.scenes.tone import random_tone

SACCADE_US = 100_000
_MOVING_US = 88_000.0
_BESIDE = 4.0


@dataclass(frozen=True)
class SaccadeConfig:
    """How the sensor moves and how the picture is shown.

    Attributes:
        amplitude_px: least and largest side of the triangle.
        zoom: least and largest size of the picture against the one that fits the sensor; it lies anywhere then, and is
            mirrored at random. (1, 1): as N-Caltech101 shows it.
    """

    amplitude_px: tuple[float, float] = (4.0, 9.0)
    zoom: tuple[float, float] = (0.7, 1.3)


class SaccadeScene:
    """See the module's docstring. All is drawn from `rng` at construction; rendering is then a pure function of t."""

    def __init__(self, picture: Picture, sensor_size: SensorSize, config: SaccadeConfig, rng: np.random.Generator) -> None:
        self.sensor_size, self.labels = sensor_size, picture.labels
        height, width = picture.grey.shape
        zoom = rng.uniform(*config.zoom)
        scale = zoom * min(sensor_size.width / width, sensor_size.height / height)
        shown = np.maximum(np.round(np.array([width, height]) * scale), 8).astype(int)
        self._corner = np.zeros(2)
        if config.zoom[0] < config.zoom[1]:
            self._corner = np.round(rng.uniform(0, 1, 2) * (np.array(sensor_size) - shown))
        grey, boxes = picture.grey, picture.boxes_xyxy.copy()
        if config.zoom[0] < config.zoom[1] and rng.random() < 0.5:
            grey, boxes[:, [0, 2]] = np.ascontiguousarray(grey[:, ::-1]), width - picture.boxes_xyxy[:, [2, 0]]
        self._boxes = (boxes * scale + np.tile(self._corner, 2)).astype(np.float32)
        small = cv2.resize(grey, (int(shown[0]), int(shown[1])), interpolation=cv2.INTER_AREA)
        self._picture = random_tone(np.asarray(small, np.uint8), rng)
        side = rng.uniform(*config.amplitude_px)
        depth = rng.uniform(0.5, 1.0) * side
        self._stations = np.array([[0, 0], [side / 2, depth], [side, 0], [0, 0]]) - [side / 2, depth / 2]
        grid_x, grid_y = np.meshgrid(np.arange(sensor_size.width), np.arange(sensor_size.height))
        self._grid = (np.stack([grid_x, grid_y]) - self._corner[:, None, None]).astype(np.float32)
        self._beside = ((self._grid < 0) | (self._grid >= shown[:, None, None])).any(0)

    def render(self, t_us: int) -> NDArray[np.float32]:
        """See Scene.render."""
        grid = self._grid + self._gaze(t_us)[:, None, None].astype(np.float32)
        frame = cv2.remap(self._picture, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frame[self._beside] = _BESIDE
        return np.asarray(frame, np.float32)

    def boxes(self, t_us: int) -> Detections:
        """See Scene.boxes: unclipped, scores 1."""
        moved = self._boxes - np.tile(self._gaze(t_us), 2).astype(np.float32)
        return Detections(moved, np.ones(len(moved), np.float32), self.labels, t_us)

    def _gaze(self, t_us: int) -> NDArray[np.float64]:
        saccade, since = divmod(t_us, SACCADE_US)
        start, end = self._stations[saccade % 3], self._stations[saccade % 3 + 1]
        done = 0.5 - 0.5 * np.cos(np.pi * min(since / _MOVING_US, 1.0))
        return np.asarray(start + (end - start) * done)
