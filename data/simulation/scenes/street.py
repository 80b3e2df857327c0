"""A synthetic street scene: a camera drives past houses, cars and pedestrians. Used for the bundled sample.

World coordinates are metres: x right, y up (road at 0), z forward; the camera is `CAMERA_HEIGHT` above the road. Every object
is a set of flat polygons, drawn from far to near at three times the sensor's resolution and then averaged, so that sub-pixel
motion appears as it would through a lens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import Detections
from evburst.data.events import SensorSize
from evburst.data.simulation.sensor import log_intensity

CAMERA_HEIGHT = 1.35
CAR, PERSON = 0, 1
"""Class indices of the scene's objects."""
CAR_SIZE, PERSON_SIZE = (1.8, 1.47), (0.7, 1.78)
"""(width, height) of their boxes, metres."""
_OVERSAMPLING = 3
_SUBPIXEL_BITS = 4
_MIN_DEPTH = 1.0

Shape = list[tuple[list[tuple[float, float]], int]]
"""Polygons of an object as seen by the camera: [(x, y) in metres from its foot], grey level."""


@dataclass(frozen=True)
class StreetObject:
    """An object on the road, which may move.

    Attributes:
        label: class index, CAR or PERSON.
        x, z: position of its foot at t = 0, metres.
        vx, vz: its velocity, m/s.
        size: (width, height) of its box, metres.
        shape: returns its polygons at a time in seconds.
    """

    label: int
    x: float
    z: float
    vx: float
    vz: float
    size: tuple[float, float]
    shape: Callable[[float], Shape]

    def at(self, t_s: float) -> tuple[float, float]:
        """Return its position (x, z) at a time."""
        return self.x + self.vx * t_s, self.z + self.vz * t_s


class StreetScene:
    """The street scene. All randomness is drawn from `seed` at construction.

    Args:
        sensor_size: (W, H) px.
        seed: seed of textures, speeds and positions.
        speed: speed of the camera, m/s.
    """

    def __init__(self, sensor_size: SensorSize, seed: int = 0, speed: float = 7.0) -> None:
        self.sensor_size, self._speed = sensor_size, speed
        rng = np.random.default_rng(seed)
        self._focal = 0.95 * sensor_size.width
        self._walls = [_facade(rng, side, z) for side in (-1, 1) for z in range(-10, 90, 10)]
        self._patches = [_patch(rng) for _ in range(160)]
        self._objects = _traffic(rng, speed)
        self._shake = rng.uniform(0.5, 1.5, (2, 3)), rng.uniform(2, 9, (2, 3)), rng.uniform(0, 6.28, (2, 3))

    def render(self, t_us: int) -> NDArray[np.float32]:
        """See Scene.render."""
        width, height = self.sensor_size
        canvas = np.full((height * _OVERSAMPLING, width * _OVERSAMPLING), 205, np.uint8)
        t = t_us * 1e-6
        horizon = self._project(np.array([[0.0, 0.0, 500.0]]), t)[0, 1]
        cv2.rectangle(canvas, (0, int(horizon * _OVERSAMPLING)), (canvas.shape[1], canvas.shape[0]), 92, -1)
        for corners, grey in self._patches:
            self._polygon(canvas, corners, grey, t)
        for z in range(int(self._speed * t) - 2, int(self._speed * t) + 60):
            if z % 6 < 3:
                self._polygon(canvas, _ground(-0.08, 0.08, z, z + 1), 215, t)
        for side in (-1, 1):
            z0 = self._speed * t + _MIN_DEPTH
            self._polygon(canvas, _ground(side * 4.2, side * 4.5, z0, z0 + 80), 150, t)
            self._polygon(canvas, _ground(side * 4.5, side * 7.0, z0, z0 + 80), 118, t)
        for wall in self._walls:
            for corners, grey in wall:
                self._polygon(canvas, corners, grey, t)
        for item in sorted(self._objects, key=lambda item: -item.at(t)[1]):
            self._draw_object(canvas, item, t)
        small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
        return log_intensity(cv2.GaussianBlur(small.astype(np.float32), (0, 0), 0.5))

    def boxes(self, t_us: int) -> Detections:
        """Return the clipped boxes of objects that are mostly in view, mostly unoccluded, and at least 8 px wide and high.

        An object has the same number in `track_ids` at all times.
        """
        t = t_us * 1e-6
        found, labels, numbers = [], [], []
        hidden = np.zeros((self.sensor_size.height, self.sensor_size.width), bool)
        for number, item in sorted(enumerate(self._objects, 1), key=lambda entry: entry[1].at(t)[1]):
            x, z = item.at(t)
            if z - self._speed * t < _MIN_DEPTH:
                continue
            half, top = item.size[0] / 2, item.size[1]
            corners = self._project(np.array([[x - half, top, z], [x + half, 0.0, z]]), t)
            box = np.clip(corners.reshape(-1), 0, [*self.sensor_size, *self.sensor_size])
            share = (box[2:] - box[:2]).prod() / (corners[1] - corners[0]).prod()
            x0, y0, x1, y1 = box.round().astype(int)
            covered = hidden[y0:y1, x0:x1].mean() if x1 > x0 and y1 > y0 else 1.0
            hidden[y0:y1, x0:x1] = True
            if share > 0.35 and covered < 0.6 and (box[2:] - box[:2]).min() >= 8:
                found.append(box)
                labels.append(item.label)
                numbers.append(number)
        boxes, scores = np.array(found, np.float32).reshape(-1, 4), np.ones(len(found), np.float32)
        return Detections(boxes, scores, np.array(labels, np.int64), t_us, np.array(numbers, np.int64))

    def _project(self, points: NDArray[np.float64], t: float) -> NDArray[np.float64]:
        """Project points `(n, 3)` in metres to sensor pixels `(n, 2)`."""
        amplitude, hertz, phase = self._shake
        sway = (amplitude * np.sin(2 * np.pi * hertz * t + phase)).sum(1) * [0.35, 0.5]
        depth = np.maximum(points[:, 2] - self._speed * t, _MIN_DEPTH)
        width, height = self.sensor_size
        u = width / 2 + self._focal * points[:, 0] / depth + sway[0]
        v = 0.46 * height + self._focal * (CAMERA_HEIGHT - points[:, 1]) / depth + sway[1]
        return np.stack([u, v], 1)

    def _polygon(self, canvas: NDArray[np.uint8], corners: NDArray[np.float64], grey: int, t: float) -> None:
        if corners[:, 2].max() - self._speed * t <= _MIN_DEPTH:
            return
        points = self._project(corners, t) * _OVERSAMPLING * (1 << _SUBPIXEL_BITS)
        points = np.clip(points, -(1 << 24), 1 << 24).round().astype(np.int32)
        cv2.fillPoly(canvas, [points], grey, cv2.LINE_AA, _SUBPIXEL_BITS)

    def _draw_object(self, canvas: NDArray[np.uint8], item: StreetObject, t: float) -> None:
        x, z = item.at(t)
        if z - self._speed * t <= _MIN_DEPTH:
            return
        for outline, grey in item.shape(t):
            corners = np.array([[x + dx, dy, z] for dx, dy in outline])
            self._polygon(canvas, corners, grey, t)


def _ground(x0: float, x1: float, z0: float, z1: float) -> NDArray[np.float64]:
    return np.array([[x0, 0, z0], [x1, 0, z0], [x1, 0, z1], [x0, 0, z1]], float)


def _patch(rng: np.random.Generator) -> tuple[NDArray[np.float64], int]:
    """Return a worn spot on the road."""
    x, z, w, d = rng.uniform(-4, 4), rng.uniform(0, 70), rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.9)
    return _ground(x, x + w, z, z + d), int(92 + rng.integers(-10, 11))


def _facade(rng: np.random.Generator, side: int, z: float) -> list[tuple[NDArray[np.float64], int]]:
    """Return a house beside the road, 10 m long: wall, windows, door."""
    x, top, wall = side * 7.0, rng.uniform(5, 11), int(rng.integers(120, 190))

    def upright(z0: float, z1: float, y0: float, y1: float) -> NDArray[np.float64]:
        return np.array([[x, y0, z0], [x, y0, z1], [x, y1, z1], [x, y1, z0]], float)

    parts = [(upright(z, z + 10, 0, top), wall)]
    for row in range(int((top - 1.2) // 2.6)):
        for k in range(4):
            y0, z0 = 1.1 + 2.6 * row, z + 0.7 + 2.4 * k
            parts.append((upright(z0, z0 + 1.2, y0, y0 + 1.5), wall - 80))
            parts.append((upright(z0, z0 + 1.2, y0 + 0.7, y0 + 0.78), wall + 30))
    parts.append((upright(z + 4.6, z + 5.7, 0, 2.2), wall - 60))
    return parts


def car_shape(body: int) -> Callable[[float], Shape]:
    """Return a car seen from behind or from the front: 1.75 m wide, 1.45 m high; `body` is its grey level."""
    dark, glass, lamp = max(body - 70, 15), 45, 235
    shape: Shape = [
        ([(-0.95, 0.0), (0.95, 0.0), (0.85, 0.1), (-0.85, 0.1)], 50),
        ([(-0.8, 0.0), (-0.55, 0.0), (-0.55, 0.35), (-0.8, 0.35)], 25),
        ([(0.55, 0.0), (0.8, 0.0), (0.8, 0.35), (0.55, 0.35)], 25),
        ([(-0.87, 0.22), (0.87, 0.22), (0.87, 0.85), (0.7, 0.95), (-0.7, 0.95), (-0.87, 0.85)], body),
        ([(-0.74, 0.9), (0.74, 0.9), (0.56, 1.45), (-0.56, 1.45)], body),
        ([(-0.64, 0.96), (0.64, 0.96), (0.5, 1.36), (-0.5, 1.36)], glass),
        ([(-0.87, 0.22), (0.87, 0.22), (0.87, 0.42), (-0.87, 0.42)], dark),
        ([(-0.85, 0.62), (-0.6, 0.62), (-0.6, 0.82), (-0.85, 0.82)], lamp),
        ([(0.6, 0.62), (0.85, 0.62), (0.85, 0.82), (0.6, 0.82)], lamp),
        ([(-0.26, 0.5), (0.26, 0.5), (0.26, 0.64), (-0.26, 0.64)], 225),
    ]
    return lambda t: shape


def person_shape(coat: int, trousers: int, pace_hz: float, phase: float) -> Callable[[float], Shape]:
    """Return a person who walks across the view, 1.75 m tall, with swinging legs and arms.

    Args:
        coat, trousers: grey levels.
        pace_hz, phase: frequency of the steps, and their phase in radians.
    """

    def shape(t: float) -> Shape:
        swing = np.sin(2 * np.pi * pace_hz * t + phase)
        parts: Shape = []
        for sign in (-1, 1):
            foot = 0.32 * swing * sign
            knee = 0.55 * foot
            parts.append(([(-0.07, 0.85), (0.09, 0.85), (knee + 0.07, 0.45), (knee - 0.07, 0.45)], trousers))
            parts.append(([(knee - 0.07, 0.46), (knee + 0.07, 0.46), (foot + 0.06, 0.05), (foot - 0.06, 0.05)], trousers))
            parts.append(([(foot - 0.07, 0.0), (foot + 0.14, 0.0), (foot + 0.1, 0.08), (foot - 0.07, 0.08)], 20))
        parts.append(([(-0.19, 0.8), (0.19, 0.8), (0.22, 1.42), (-0.22, 1.42)], coat))
        for sign in (-1, 1):
            hand = -0.3 * swing * sign
            parts.append(([(-0.06, 1.38), (0.06, 1.38), (hand + 0.05, 0.82), (hand - 0.05, 0.82)], max(coat - 25, 10)))
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        parts.append(([(0.11 * np.cos(a), 1.6 + 0.15 * np.sin(a)) for a in turn], 170))
        parts.append(([(0.12 * np.cos(a), 1.66 + 0.1 * np.sin(a)) for a in turn[:7]], 30))
        return parts

    return shape


def _traffic(rng: np.random.Generator, speed: float) -> list[StreetObject]:
    """Return cars ahead, oncoming and parked; people on both pavements and one crossing."""
    objects = [
        StreetObject(CAR, 1.9, 13, 0.0, speed - 1.6, CAR_SIZE, car_shape(60)),
        StreetObject(CAR, -2.0, 45, 0.0, -6.0, CAR_SIZE, car_shape(175)),
        StreetObject(CAR, -2.0, 75, 0.0, -7.0, CAR_SIZE, car_shape(40)),
        StreetObject(PERSON, -5.6, 16, 1.35, 1.0, PERSON_SIZE, person_shape(60, 35, 0.95, 1.0)),
    ]
    for z in (9, 19, 30, 42, 55):
        grey = int(rng.integers(25, 200))
        x, z_parked = 3.6 + rng.uniform(0, 0.3), z + rng.uniform(-1, 1) + 6
        objects.append(StreetObject(CAR, x, z_parked, 0.0, 0.0, CAR_SIZE, car_shape(grey)))
    for side in (-1, 1):
        for z in (13, 22, 34):
            walk = rng.choice([-1.2, 1.2])
            look = person_shape(int(rng.integers(20, 90)), int(rng.integers(15, 60)), rng.uniform(0.8, 1.1), rng.uniform(0, 6))
            x, z_walking = side * rng.uniform(5.0, 6.2), z + rng.uniform(-2, 2)
            objects.append(StreetObject(PERSON, x, z_walking, 0.0, walk, PERSON_SIZE, look))
    return objects
