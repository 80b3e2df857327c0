"""A scene composed of photographs: a virtual camera moves over a canvas of one or four pictures, in which objects move.

The camera zooms (as in driving), pans, rolls and shakes. An object moves relative to its background by a smooth local
displacement that fades out beyond its box, so there is no cut-out edge that a network could learn instead of the object. People
may be drawn over the picture, with gaits that photographs cannot show (walkers.py).
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
from evburst.data.simulation.scenes.picture import IGNORE, Picture
from evburst.data.simulation.scenes.stops import Stops, clock, draw_stops
from evburst.data.simulation.scenes.tone import random_tone
from evburst.data.simulation.scenes.walkers import Walker

_WINDOW_US = 50_000.0
_HIDDEN_FRACTION = 0.6
_FADE_END = 1.6
_STANDING_CAMERA = _APART = 0.5
"""Of scenes with stops: the fraction in which the camera never moves, and in which objects stop at other times than it."""


@dataclass(frozen=True)
class StillSceneConfig:
    """How pictures are composed and moved; amounts are maxima per 50 ms.

    Attributes:
        mosaic: fraction of scenes composed of four pictures.
        still: fraction of scenes with almost no motion.
        zoom, pan_px, roll_rad, shake_px: maximum camera motion.
        object_px: maximum motion of an object relative to its background.
        sway: maximum relative difference in speed of an object's ends to its centre, as of limbs and turning bodies.
        closest: maximum zoom of the camera relative to the whole picture.
        walkers: fraction of scenes over which people are drawn.
        most_walkers: maximum number of people in such a scene.
        walker_px: their minimum and maximum height on the sensor.
        brighten: fraction of scenes whose overall brightness changes.
        brighten_by: maximum change in brightness (natural log).
        stops: fraction of scenes in which camera and objects stop and go. In half of these the camera never moves, in half they
            stop together.
    """

    mosaic: float = 0.25
    still: float = 0.15
    zoom: float = 0.08
    pan_px: float = 9.0
    roll_rad: float = 0.02
    shake_px: float = 1.5
    object_px: float = 6.0
    sway: float = 0.6
    closest: float = 1.7
    walkers: float = 0.0
    most_walkers: int = 5
    walker_px: tuple[float, float] = (24.0, 220.0)
    brighten: float = 0.0
    brighten_by: float = 0.3
    stops: float = 0.0

    def __post_init__(self) -> None:
        amounts = ("zoom", "pan_px", "roll_rad", "shake_px", "object_px", "sway", "brighten_by")
        low, high = self.walker_px
        require_within(self, mosaic=(0, 1), still=(0, 1), walkers=(0, 1), brighten=(0, 1), stops=(0, 1))
        checks = {f"{name} must be a number that is not negative": 0 <= getattr(self, name) < math.inf for name in amounts}
        checks["closest must be at least 1"] = 1 <= self.closest < math.inf
        checks["most_walkers must be at least 1"] = self.most_walkers >= 1
        checks["walker_px must be positive, the lower limit first"] = 0 < low <= high < math.inf
        require_all(checks, self)


class StillScene:
    """See the module's docstring. All motion is drawn from `rng` at construction; rendering is a pure function of t.

    Args:
        pictures: one picture, or four to allow a mosaic.
        sensor_size: (W, H) px.
        config: how they move.
        rng: random generator.
        walker_label: class index of drawn people.
    """

    def __init__(
        self,
        pictures: list[Picture],
        sensor_size: SensorSize,
        config: StillSceneConfig,
        rng: np.random.Generator,
        walker_label: int = 0,
    ) -> None:
        self.sensor_size = sensor_size
        canvas, self._boxes, self.labels = _compose(pictures, sensor_size, config, rng)
        self._canvas = random_tone(canvas, rng)
        self._camera_stops: Stops = ()
        self._object_stops: Stops = ()
        self._draw_motion(config, rng)
        self._walker_label = walker_label
        self._walkers = self._draw_walkers(config, rng) if config.walkers and rng.random() < config.walkers else []
        changes = config.brighten and rng.random() < config.brighten
        self._brighten = rng.uniform(-1, 1) * config.brighten_by if changes else 0.0
        if config.stops and rng.random() < config.stops:
            self._draw_stops(rng)

    def render(self, t_us: int) -> NDArray[np.float32]:
        """See Scene.render."""
        object_us = self._object_time(t_us)
        matrix, offset = self._camera(t_us)
        x, y = np.arange(self.sensor_size.width), np.arange(self.sensor_size.height)[:, None]
        grid = np.stack([row[0] * x + (row[1] * y + b) for row, b in zip(matrix, offset, strict=True)]).astype(np.float32)
        t_s, inverse = object_us * 1e-6, np.asarray(np.linalg.inv(matrix), np.float64)
        for index in self._moving:
            box, motion = self._boxes[index], self._object_motion[index] * self._progress(object_us)
            rows, columns = _displaced_region(box, motion, inverse, offset)
            _displace(grid[:, rows, columns], box, motion, self._sway[index])
        frame = cv2.remap(self._canvas, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        frame = np.asarray(frame, np.float32)
        for walker in self._walkers:
            foot = inverse @ ([walker.foot[0] + walker.speed * t_s, walker.foot[1]] - offset)
            walker.paint(frame, foot, walker.height * float(np.sqrt(np.linalg.det(inverse))), t_s)
        return frame + np.float32(self._brighten * self._progress(t_us))

    def boxes(self, t_us: int) -> Detections:
        """Return all boxes in sensor pixels, unclipped, IGNORE ones included, scores 1; those hidden by walkers are omitted.

        An object has the same number in `track_ids` at all times.
        """
        object_us = self._object_time(t_us)
        matrix, offset = self._camera(t_us)
        moved = self._boxes + np.tile(self._object_motion * self._progress(object_us), 2)
        walking = np.array([walker.box(object_us * 1e-6) for walker in self._walkers], float).reshape(-1, 4)
        all_boxes = np.concatenate([moved, walking])
        corners = all_boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
        projected = (corners - offset) @ np.linalg.inv(matrix).T
        boxes = np.concatenate([projected.min(1), projected.max(1)], 1).astype(np.float32).reshape(-1, 4)
        labels = np.concatenate([self.labels, np.full(len(walking), self._walker_label)])
        kept = [k for k in range(len(boxes)) if not _hidden(boxes[k], boxes[max(k + 1, len(moved)) :])]
        return Detections(boxes[kept], np.ones(len(kept), np.float32), labels[kept], t_us, np.array(kept, np.int64) + 1)

    def _draw_walkers(self, config: StillSceneConfig, rng: np.random.Generator) -> list[Walker]:
        """Draw people of similar height, sorted so that the nearest (lowest) is last."""
        width, height = self.sensor_size
        matrix, offset = self._camera(0)
        typical_height = np.exp(rng.uniform(*np.log(config.walker_px)))
        walkers = []
        for _ in range(rng.integers(1, config.most_walkers + 1)):
            size = typical_height * rng.uniform(0.7, 1.3)
            foot = rng.uniform([0, 0.35 * height], [width, height + 0.25 * size])
            foot[1] = max(foot[1], 0.6 * size)
            place = matrix @ foot + offset
            walkers.append(Walker.draw((float(place[0]), float(place[1])), float(size * self._scale), rng))
        return sorted(walkers, key=lambda walker: walker.foot[1])

    def _draw_motion(self, config: StillSceneConfig, rng: np.random.Generator) -> None:
        width, height = self.sensor_size
        canvas_h, canvas_w = self._canvas.shape
        fit = min(canvas_w / width, canvas_h / height)
        self._scale = fit * 0.92 * config.closest ** -rng.uniform(0, 1)
        half = self._scale * np.array([width, height]) / 2
        free = np.maximum(np.array([canvas_w, canvas_h]) / 2 - half, 0)
        self._centre = np.array([canvas_w, canvas_h]) / 2 + rng.uniform(-1, 1, 2) * free
        strength = 0.03 if rng.random() < config.still else rng.beta(1.3, 1.7)
        self._zoom = strength * rng.choice([-0.4, 1, 1]) * rng.uniform(0, config.zoom)
        self._focus = rng.normal(0, 0.2, 2) * [width, height]
        self._pan = strength * rng.uniform(-1, 1, 2) * config.pan_px * [1, 0.5]
        self._roll = strength * rng.normal(0, 0.5) * config.roll_rad
        self._shake = strength * rng.uniform(0, config.shake_px, 2)
        self._shake_hz, self._shake_phase = rng.uniform(4, 20, 2), rng.uniform(0, 2 * np.pi, 2)
        n = len(self._boxes)
        speed = rng.uniform(0, config.object_px, (n, 1)) * (rng.random((n, 1)) < 0.5)
        angle = rng.normal(0, 0.4, n) + np.pi * rng.integers(0, 2, n)
        self._object_motion = self._scale * speed * np.stack([np.cos(angle), np.sin(angle)], 1)
        self._object_motion[self.labels == IGNORE] = 0
        self._sway = config.sway * rng.uniform(-1, 1, n)
        self._moving = np.flatnonzero(self._object_motion.any(1))

    def _draw_stops(self, rng: np.random.Generator) -> None:
        """Draw when camera and objects stand; they move at first, so that what stands later has been seen."""
        self._camera_stops = self._object_stops = draw_stops(rng)
        if rng.random() < _APART:
            self._object_stops = draw_stops(rng)
        if rng.random() < _STANDING_CAMERA:
            self._zoom, self._roll, self._pan, self._shake = 0.0, 0.0, 0 * self._pan, 0 * self._shake

    def _object_time(self, t_us: int) -> float:
        """Time as it has passed for the objects, µs."""
        return 1e6 * clock(t_us * 1e-6, self._object_stops) if self._object_stops else t_us

    @staticmethod
    def _progress(t_us: float) -> float:
        return t_us / _WINDOW_US

    def _camera(self, t_us: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (A, b): sensor pixel q shows canvas point A q + b."""
        if self._camera_stops:
            t_us = 1e6 * clock(t_us * 1e-6, self._camera_stops)
        s = self._progress(t_us)
        scale = self._scale * np.exp(-self._zoom * s)
        cos, sin = np.cos(self._roll * s), np.sin(self._roll * s)
        matrix = scale * np.array([[cos, -sin], [sin, cos]])
        shake = self._shake * np.sin(2 * np.pi * self._shake_hz * t_us * 1e-6 + self._shake_phase)
        middle = np.array(self.sensor_size) / 2
        focus = middle + self._focus
        looked_at = self._centre + self._scale * (self._focus + self._pan * s + shake)
        return matrix, looked_at - matrix @ focus


def _displaced_region(
    box: NDArray[np.float32], motion: NDArray[np.float64], inverse: NDArray[np.float64], offset: NDArray[np.float64]
) -> tuple[slice, slice]:
    """Return the rows and columns that a moving object displaces, with a margin for the displacements of other objects."""
    centre = (box[:2] + box[2:]) / 2 + motion
    extent = _FADE_END * np.maximum(box[2:] - box[:2], 2) / 2 + 2 * np.abs(motion).max()
    corners = centre + extent * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    projected = (corners - offset) @ inverse.T
    x0, y0 = np.maximum(np.floor(projected.min(0)).astype(int) - 8, 0)
    x1, y1 = np.maximum(np.ceil(projected.max(0)).astype(int) + 8, 0)
    return slice(y0, y1), slice(x0, x1)


def _displace(grid: NDArray[np.float32], box: NDArray[np.float32], motion: NDArray[np.float64], sway: float) -> None:
    """Shift the grid by `motion` canvas pixels inside the (moved) box, fading to 0 at _FADE_END times its half size; in place.

    The shift increases by the fraction `sway` towards the box's lower end, and decreases by as much towards its upper end.
    """
    centre = (box[:2] + box[2:]) / 2 + motion
    half = np.maximum(box[2:] - box[:2], 2) / 2
    down = (grid[1] - centre[1]) / half[1]
    extent = np.maximum(np.abs(grid[0] - centre[0]) / half[0], np.abs(down))
    weight = np.clip((_FADE_END - extent) / 0.6, 0, 1) * (1 + sway * np.clip(down, -1, 1))
    grid[0] -= np.float32(motion[0]) * weight.astype(np.float32)
    grid[1] -= np.float32(motion[1]) * weight.astype(np.float32)


def _compose(
    pictures: list[Picture], sensor_size: SensorSize, config: StillSceneConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Return one picture, or the first four fitted into the quarters of a canvas; mirrored at random."""
    pictures = [_mirror(picture) if rng.random() < 0.5 else picture for picture in pictures]
    if len(pictures) < 4 or rng.random() >= config.mosaic:
        first = pictures[0]
        return first.grey, first.boxes_xyxy, first.labels
    width, height = sensor_size
    canvas = np.zeros((2 * height, 2 * width), np.uint8)
    boxes, labels = [], []
    for quarter, picture in enumerate(pictures[:4]):
        corner = np.array([quarter % 2 * width, quarter // 2 * height])
        scale = max(width / picture.grey.shape[1], height / picture.grey.shape[0])
        fitted = cv2.resize(picture.grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        slack = np.maximum(np.array([fitted.shape[1] - width, fitted.shape[0] - height]), 0)
        cut = (rng.random(2) * (slack + 1)).astype(int)
        canvas[corner[1] : corner[1] + height, corner[0] : corner[0] + width] = cv2.resize(
            fitted[cut[1] : cut[1] + height, cut[0] : cut[0] + width], (width, height)
        )
        moved = picture.boxes_xyxy * scale - np.tile(cut, 2)
        clipped = np.clip(moved, 0, np.tile([width, height], 2))
        kept = _area(clipped) > 0.35 * _area(moved)
        boxes.append(clipped[kept] + np.tile(corner, 2))
        labels.append(picture.labels[kept])
    return canvas, np.concatenate(boxes).astype(np.float32).reshape(-1, 4), np.concatenate(labels)


def _mirror(picture: Picture) -> Picture:
    width = picture.grey.shape[1]
    boxes = picture.boxes_xyxy.copy()
    boxes[:, [0, 2]] = width - picture.boxes_xyxy[:, [2, 0]]
    return Picture(picture.name, np.ascontiguousarray(picture.grey[:, ::-1]), boxes, picture.labels)


def _hidden(box: NDArray[np.float32], nearer: NDArray[np.float32]) -> bool:
    """Return whether one of the nearer boxes covers most of this one."""
    sides = np.minimum(box[2:], nearer[:, 2:]) - np.maximum(box[:2], nearer[:, :2])
    return bool((np.clip(sides, 0, None).prod(1) > _HIDDEN_FRACTION * max((box[2:] - box[:2]).prod(), 1e-6)).any())


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1), np.float32)
