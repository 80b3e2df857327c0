"""A photograph in front of a sensor that moves in three saccades of 100 ms, as N-Caltech101 was recorded (Orchard et al. 2015).

The picture is fitted into the sensor's upper left corner. The direction of gaze follows a triangle: down, up and back,
fastest in the middle of a saccade and at rest at its end. Everything outside the picture is dark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.errors import require_all, require_within
from evburst.data.events import SensorSize
from evburst.data.simulation.scenes.picture import Picture
from evburst.data.simulation.scenes.tone import random_tone

SACCADE_US = 100_000
_MOVING_US = 88_000.0
_OUTSIDE_LOG_INTENSITY = 4.0


@dataclass(frozen=True)
class SaccadeConfig:
    """How the sensor moves and how the picture is shown.

    Attributes:
        amplitude_px: minimum and maximum side of the triangle.
        vary: transform the picture before it is shown (see below); False: as in N-Caltech101, for evaluation.
        zoom: minimum and maximum size of the picture relative to the one that fits the sensor; its position is then random.
        rotate_deg: maximum rotation.
        stretch: maximum fraction by which the picture is widened or narrowed; it is also mirrored at random.
    """

    amplitude_px: tuple[float, float] = (4.0, 9.0)
    vary: bool = True
    zoom: tuple[float, float] = (0.7, 1.3)
    rotate_deg: float = 12.0
    stretch: float = 0.15

    def __post_init__(self) -> None:
        (least, most), (smallest, largest) = self.amplitude_px, self.zoom
        checks = {
            "amplitude_px must not be negative, the lower limit first": 0 <= least <= most < math.inf,
            "zoom must be positive, the lower limit first": 0 < smallest <= largest < math.inf,
        }
        require_all(checks, self)
        require_within(self, rotate_deg=(0, 180), stretch=(0, 0.9))


class SaccadeScene:
    """See the module's docstring. All randomness is drawn from `rng` at construction; rendering is a pure function of t."""

    def __init__(self, picture: Picture, sensor_size: SensorSize, config: SaccadeConfig, rng: np.random.Generator) -> None:
        self.sensor_size, self.labels = sensor_size, picture.labels
        grey, boxes = _transform(picture, config, rng) if config.vary else (picture.grey, picture.boxes_xyxy)
        height, width = grey.shape
        zoom = rng.uniform(*config.zoom) if config.vary else 1.0
        scale = zoom * min(sensor_size.width / width, sensor_size.height / height)
        shown_size = np.maximum(np.round(np.array([width, height]) * scale), 8).astype(int)
        self._corner = np.round(rng.uniform(0, 1, 2) * (np.array(sensor_size) - shown_size)) if config.vary else np.zeros(2)
        self._boxes = (boxes * scale + np.tile(self._corner, 2)).astype(np.float32)
        small = cv2.resize(grey, (int(shown_size[0]), int(shown_size[1])), interpolation=cv2.INTER_AREA)
        self._picture = random_tone(np.asarray(small, np.uint8), rng)
        side = rng.uniform(*config.amplitude_px)
        depth = rng.uniform(0.5, 1.0) * side
        self._corners = np.array([[0, 0], [side / 2, depth], [side, 0], [0, 0]]) - [side / 2, depth / 2]
        grid_x, grid_y = np.meshgrid(np.arange(sensor_size.width), np.arange(sensor_size.height))
        self._grid = (np.stack([grid_x, grid_y]) - self._corner[:, None, None]).astype(np.float32)
        self._outside = ((self._grid < 0) | (self._grid >= shown_size[:, None, None])).any(0)

    def render(self, t_us: int) -> NDArray[np.float32]:
        """See Scene.render."""
        grid = self._grid + self._gaze(t_us)[:, None, None].astype(np.float32)
        frame = cv2.remap(self._picture, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frame[self._outside] = _OUTSIDE_LOG_INTENSITY
        return np.asarray(frame, np.float32)

    def boxes(self, t_us: int) -> Detections:
        """See Scene.boxes: unclipped, scores 1."""
        moved = self._boxes - np.tile(self._gaze(t_us), 2).astype(np.float32)
        return Detections(moved, np.ones(len(moved), np.float32), self.labels, t_us)

    def _gaze(self, t_us: int) -> NDArray[np.float64]:
        saccade, elapsed = divmod(t_us, SACCADE_US)
        start, end = self._corners[saccade % 3], self._corners[saccade % 3 + 1]
        progress = 0.5 - 0.5 * np.cos(np.pi * min(elapsed / _MOVING_US, 1.0))
        return np.asarray(start + (end - start) * progress)


def _transform(
    picture: Picture, config: SaccadeConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mirror, rotate and stretch the picture about its centre; boxes become those of the ellipses inscribed in the old ones."""
    height, width = picture.grey.shape
    angle = np.deg2rad(rng.uniform(-1, 1) * config.rotate_deg)
    widening = 1 + rng.uniform(-1, 1) * config.stretch
    mirror = -1 if rng.random() < 0.5 else 1
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([mirror * widening, 1.0])
    size = np.array([round(width * widening), height])
    middle = np.array([width, height]) / 2
    affine = np.concatenate([matrix, (size / 2 - matrix @ middle)[:, None]], 1)
    grey = cv2.warpAffine(picture.grey, affine, size.tolist(), borderMode=cv2.BORDER_REPLICATE)
    centre = (picture.boxes_xyxy[:, :2] + picture.boxes_xyxy[:, 2:]) / 2
    half = (picture.boxes_xyxy[:, 2:] - picture.boxes_xyxy[:, :2]) / 2
    moved = centre @ affine[:, :2].T + affine[:, 2]
    extent = np.sqrt(half**2 @ (matrix**2).T)
    return np.asarray(grey, np.uint8), np.concatenate([moved - extent, moved + extent], 1).astype(np.float32)
