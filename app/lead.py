"""Boxes for a moment ahead (`--lead-ms`): where objects will be when the boxes are used.

The boxes of a window describe its end. Until they have been computed, sent and used, the world has moved on. `LeadPredictor`
moves them by the motion of the preceding windows, which has two parts:

- The camera's motion. A pinhole camera that moves forward and turns displaces an image point at distance Z, relative to the
  image centre, by dx/dt = (b x + a_x) / Z + g_x, and likewise in y (Longuet-Higgins and Prazdny, 1980, without the terms of
  second order). The height of its box stands for an object's 1 / Z. The five numbers are estimated from all objects together
  by least squares that forget with time, so that an object seen for the first time moves correctly at once. With a camera at
  rest they are zero.
- Each object's own motion: a constant velocity of its box, estimated by a Kalman filter.

Boxes are linked from window to window by their overlap with the predicted box of the same class.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evburst.app.inference import WindowResult
from evburst.data.boxes import Detections, iou_matrix
from evburst.data.events import SensorSize

MOST_LEAD_MS = 1000.0

_MIN_SCORE = 0.1
"""Boxes below this score are moved with the camera's motion only, and are not used to estimate it."""

_MIN_IOU = 0.25
_LOST_US, _SPAN_US, _GAP_US = 100_000, 150_000, 1_000_000
"""An object that is not found for longer is forgotten; the displacement from which the camera's motion is estimated lasts at
most this long; after a gap this long everything is forgotten. Times are compared in whole µs, because they are often multiples
of a window's length: in seconds, as floats, the comparison would depend on where the clock starts."""

_MEMORY_S = 0.5
"""Time constant with which the camera's motion is forgotten."""

_NOISE, _VELOCITY, _ACCELERATION = 0.12, 0.5, 0.7
"""Standard deviations of a detected position, box sizes; of an object's own velocity, box sizes / s; of its change in 1 s."""

_CAMERA = np.array([10.0, 0.5, 0.5, 0.05, 0.05])
"""Standard deviations of the camera's motion: b, a_x, a_y, g_x, g_y, in sensor widths and seconds."""

_OUTLIER = 2.0
"""Displacements that deviate from the camera's motion by more than this many standard deviations count less."""

_EDGE_PX = 2.0

Boxes = NDArray[np.float64]


class CameraMotion:
    """Estimate of the displacement of standing objects in the image, see the module's docstring.

    Args:
        sensor_size: (W, H) px.

    Attributes:
        parameters: `(5,)` float64: b, a_x, a_y, g_x, g_y, in sensor widths and seconds.
    """

    def __init__(self, sensor_size: SensorSize) -> None:
        self._size = np.array([*sensor_size] * 2, np.float64)
        self.parameters: NDArray[np.float64] = np.zeros(5)
        self._normal, self._right = np.zeros((5, 5)), np.zeros(5)

    def displacement(self, boxes: Boxes, seconds: float) -> Boxes:
        """Return by how many px the sides of standing objects' boxes `(n, 4)` xyxy move in some seconds: `(n, 4)`."""
        moved = boxes
        for _ in range(2):
            moved = moved + self._velocity(moved) * (seconds / 2)
        return moved - boxes

    def update(self, since_s: float, before: Boxes, now: Boxes, seconds: Boxes, weights: Boxes) -> None:
        """Improve the estimate by the displacement of objects.

        Args:
            since_s: time since the last update.
            before, now: `(n, 4)` xyxy, px: boxes of the same objects at two instants.
            seconds: `(n, 1)` time between the two.
            weights: `(n, 1)` weight of each object; 1: independent boxes with a score of 1.
        """
        features, velocity = self._features((before + now) / 2), (now - before) / seconds
        deviation = np.sqrt(2) * _NOISE * _sizes(now) / seconds
        outlying = (velocity - features @ self.parameters) / deviation
        weight = weights / deviation**2 / (1 + (outlying / _OUTLIER) ** 2)
        weight[self._at_edge(before) | self._at_edge(now)] = 0
        kept = np.exp(-since_s / _MEMORY_S)
        self._normal = kept * self._normal + np.einsum("ns,nsk,nsl->kl", weight, features, features)
        self._right = kept * self._right + np.einsum("ns,nsk,ns->k", weight, features, velocity)
        self.parameters = np.asarray(np.linalg.solve(self._normal + np.diag(_CAMERA**-2.0), self._right), np.float64)

    def _velocity(self, boxes: Boxes) -> Boxes:
        """Return the velocity of each side, px/s: `(n, 4)`; sides at the sensor's edge are cut off there and do not move."""
        velocity: Boxes = self._features(boxes) @ self.parameters
        velocity[self._at_edge(boxes)] = 0
        return velocity

    def _features(self, boxes: Boxes) -> NDArray[np.float64]:
        """Return the derivatives of the sides' velocities by the parameters, px: `(n, 4, 5)`."""
        near = (boxes[:, 3:] - boxes[:, 1:2]) / self._size[0]
        features = np.zeros((len(boxes), 4, 5))
        features[:, :, 0] = near * (boxes - self._size / 2)
        features[:, 0::2, 1] = features[:, 1::2, 2] = near * self._size[0]
        features[:, 0::2, 3] = features[:, 1::2, 4] = self._size[0]
        return features

    def _at_edge(self, boxes: Boxes) -> NDArray[np.bool_]:
        return np.concatenate([boxes[:, :2] <= _EDGE_PX, boxes[:, 2:] >= self._size[2:] - _EDGE_PX], 1)


@dataclass
class _Objects:
    """The objects of the preceding windows.

    Attributes:
        boxes: `(n, 4)` predicted boxes, px.
        velocity: `(n, 2)` velocity of the centre in addition to the camera's motion, px/s.
        variance: `(n, 3)` of the centre in each direction, in squared box sizes: variance of its position, covariance of
            position and velocity, variance of its velocity.
        labels: `(n,)` classes.
        seen_us: `(n,)` int64 time of the latest sighting.
        sightings: (time in µs, box) of the latest sightings, for each object.
    """

    boxes: Boxes = field(default_factory=lambda: np.zeros((0, 4)))
    velocity: Boxes = field(default_factory=lambda: np.zeros((0, 2)))
    variance: Boxes = field(default_factory=lambda: np.zeros((0, 3)))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seen_us: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    sightings: list[deque[tuple[int, Boxes]]] = field(default_factory=list)

    def advance(self, camera: CameraMotion, seconds: float) -> None:
        """Predict the objects for some seconds later."""
        self.boxes = self.boxes + np.tile(self.velocity, 2) * seconds + camera.displacement(self.boxes, seconds)
        position, both, velocity = self.variance.T
        driven = _ACCELERATION**2 * seconds
        self.variance = np.stack(
            [
                position + 2 * seconds * both + seconds**2 * velocity + driven * seconds**2 / 3,
                both + seconds * velocity + driven * seconds / 2,
                velocity + driven,
            ],
            1,
        )

    def correct(self, index: NDArray[np.int64], boxes: Boxes, noise: float, now_us: int) -> None:
        """Correct the state of objects by the boxes `(k, 4)` in which they were detected; `noise` is a position's variance."""
        position, both, velocity = self.variance[index].T
        gain, velocity_gain = position / (position + noise), both / (position + noise)
        error = _centres(boxes) - _centres(self.boxes[index])
        self.boxes[index] = boxes - np.tile((1 - gain[:, None]) * error, 2)
        self.velocity[index] += velocity_gain[:, None] * error
        self.variance[index] = np.stack([(1 - gain) * position, (1 - gain) * both, velocity - velocity_gain * both], 1)
        self.seen_us[index] = now_us
        for number, box in zip(index, boxes, strict=True):
            self.sightings[number].append((now_us, box))

    def append(self, boxes: Boxes, labels: NDArray[np.int64], noise: float, now_us: int) -> None:
        """Add objects that are seen for the first time."""
        n = len(boxes)
        self.boxes, self.velocity = np.concatenate([self.boxes, boxes]), np.concatenate([self.velocity, np.zeros((n, 2))])
        self.variance = np.concatenate([self.variance, np.tile([noise, 0, _VELOCITY**2], (n, 1))])
        self.labels, self.seen_us = np.concatenate([self.labels, labels]), np.concatenate([self.seen_us, np.full(n, now_us)])
        self.sightings += [deque([(now_us, box)]) for box in boxes]

    def forget(self, before_us: int) -> None:
        """Delete the objects that were last seen before a time."""
        kept = self.seen_us >= before_us
        for name in ("boxes", "velocity", "variance", "labels", "seen_us"):
            setattr(self, name, getattr(self, name)[kept])
        self.sightings = [sightings for sightings, is_kept in zip(self.sightings, kept, strict=True) if is_kept]


class LeadPredictor:
    """Moves the boxes of consecutive windows to where they will be some time after the end of their window.

    Args:
        lead_us: that time, µs.
        sensor_size: (W, H) px.
        window_us: length of a window.
        step_us: usual time from one window to the next; None: windows do not overlap.
    """

    def __init__(self, lead_us: int, sensor_size: SensorSize, window_us: int, step_us: int | None = None) -> None:
        self._lead_us, self._sensor = lead_us, sensor_size
        self._size = np.array([*sensor_size] * 2, np.float64)
        # Windows that overlap share events, so their boxes are not independent: together they count as one window.
        step_us = step_us or window_us
        self._overlap = max(window_us / step_us, 1.0)
        self._noise = _NOISE**2 * self._overlap
        self._lost_us, self._span_us = max(_LOST_US, 2 * step_us), max(_SPAN_US, 2 * step_us)
        self._restart()

    def _restart(self) -> None:
        self._now_us: int | None = None
        self._camera, self._objects = CameraMotion(self._sensor), _Objects()

    def update(self, result: WindowResult) -> WindowResult:
        """Return the next window's result with boxes for `lead_us` after its end, which becomes the time of its detections.

        Boxes that will have left the sensor by then are removed. Held objects (`Detections.held`) stand still: they are not
        moved.
        """
        return replace(result, detections=self.moved(replace(result.detections, t_us=result.t1_us)))

    def moved(self, found: Detections) -> Detections:
        """Do the same with the boxes at the end of the next window."""
        now_us, lead_s = found.t_us, self._lead_us * 1e-6
        if self._now_us is not None and not 0 < now_us - self._now_us < _GAP_US:
            self._restart()
        since_s = 0.0 if self._now_us is None else (now_us - self._now_us) * 1e-6
        self._now_us = now_us
        self._objects.advance(self._camera, since_s)
        boxes = found.boxes_xyxy.astype(np.float64)
        moving = np.ones(len(found), np.bool_) if found.held is None else ~found.held
        used = np.flatnonzero(moving & (found.scores >= _MIN_SCORE))
        linked = self._link(found.take(used))
        seen, objects = used[linked >= 0], linked[linked >= 0]
        self._observe_camera(objects, boxes[seen], found.scores[seen], now_us, since_s)
        self._objects.correct(objects, boxes[seen], self._noise, now_us)
        ahead = boxes + self._camera.displacement(boxes, lead_s)
        ahead[seen] += np.tile(self._objects.velocity[objects], 2) * lead_s
        new = used[linked < 0]
        self._objects.append(boxes[new], found.labels[new], self._noise, now_us)
        self._objects.forget(now_us - self._lost_us)
        return self._in_view(found, np.where(moving[:, None], ahead, boxes))

    def _link(self, found: Detections) -> NDArray[np.int64]:
        """Return the object that each box shows, -1 for none: the pairs that overlap most first."""
        overlap = iou_matrix(found.boxes_xyxy, self._objects.boxes.astype(np.float32))
        overlap *= found.labels[:, None] == self._objects.labels[None]
        linked, is_free = np.full(len(found), -1), np.ones(len(self._objects.labels), np.bool_)
        pairs = np.argwhere(overlap >= _MIN_IOU)
        for i, k in pairs[np.argsort(-overlap[tuple(pairs.T)], kind="stable")]:
            if linked[i] < 0 and is_free[k]:
                linked[i], is_free[k] = k, False
        return linked

    def _observe_camera(
        self, objects: NDArray[np.int64], now: Boxes, scores: NDArray[np.float32], now_us: int, since_s: float
    ) -> None:
        """Estimate the camera's motion from the boxes `(k, 4)` in which objects are seen now."""
        before, seconds = np.zeros((len(objects), 4)), np.ones((len(objects), 1))
        weights = scores[:, None].astype(np.float64) / self._overlap
        for i, number in enumerate(objects):
            sightings = self._objects.sightings[number]
            while len(sightings) > 1 and now_us - sightings[0][0] > self._span_us:
                sightings.popleft()
            seen_us, before[i] = sightings[0]
            seconds[i] = (now_us - seen_us) * 1e-6
        self._camera.update(since_s, before, now, seconds, weights)

    def _in_view(self, found: Detections, ahead: Boxes) -> Detections:
        """Return the boxes moved to `ahead` that are on the sensor."""
        clipped = np.clip(ahead, 0, self._size)
        moved = replace(found, boxes_xyxy=clipped.astype(np.float32), t_us=found.t_us + self._lead_us)
        return moved.take(np.flatnonzero((clipped[:, 2:] - clipped[:, :2] >= 1).all(1)))


def _sizes(boxes: Boxes) -> Boxes:
    """Return width and height of boxes `(n, 4)` twice, at least 1 px: `(n, 4)`."""
    return np.tile(np.maximum(boxes[:, 2:] - boxes[:, :2], 1), 2)


def _centres(boxes: Boxes) -> Boxes:
    """Return the centres of boxes `(n, 4)`: `(n, 2)`."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2
