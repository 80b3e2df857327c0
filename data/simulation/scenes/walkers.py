"""People drawn over a picture. They walk, so the events include moving legs and arms, which a photograph cannot provide.

A walker is a set of flat polygons in units of its height, with the foot at the origin. It is drawn at three times the sensor's
resolution, averaged to coverage and log intensity, and blended into the frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.data.simulation.sensor import log_intensity

_OVERSAMPLING = 3
_HALF_WIDTH = 0.4
"""Half width of the patch a walker is drawn into, in heights; no limb extends further."""
_STRIDES_HZ = (0.7, 1.3)
_HEIGHTS_PER_S = 0.8
"""Walking speed in body heights per second: 1.4 m/s at 1.75 m."""

Polygon = tuple[list[tuple[float, float]], int]


@dataclass(frozen=True)
class Walker:
    """One person; positions and speeds are in pixels of the picture.

    Attributes:
        foot: (x, y) of its position at t = 0.
        height: body height.
        speed: speed along x, per second; its sign is the viewing direction.
        pace_hz, phase: frequency and phase of its steps; pace 0 stands still.
        stride: amplitude of a foot's swing, in heights.
        girth: width relative to a slim person.
        greys: grey levels of coat, trousers, skin, hair and shoes.
        pattern: `(h, w)` float32, texture of the clothes, added to the log intensity.
    """

    foot: tuple[float, float]
    height: float
    speed: float
    pace_hz: float
    phase: float
    stride: float
    girth: float
    greys: tuple[int, int, int, int, int]
    pattern: NDArray[np.float32]

    @classmethod
    def draw(cls, foot: tuple[float, float], height: float, rng: np.random.Generator) -> Walker:
        """Draw a random person; one in five stands still."""
        walks = rng.random() < 0.8
        facing = rng.choice([-1.0, 1.0])
        across = rng.uniform(0.1, 1.0)  # 1: seen from the side; towards 0: walking towards or away from the camera
        low, high = rng.integers(10, 200, 2), rng.integers(10, 230, 2)
        texture = rng.normal(0, rng.uniform(0, 0.35), (rng.integers(3, 14), rng.integers(2, 6))).astype(np.float32)
        return cls(
            foot,
            height,
            facing * across * _HEIGHTS_PER_S * height * rng.uniform(0.6, 1.4) if walks else 0.0,
            rng.uniform(*_STRIDES_HZ) if walks else 0.0,
            rng.uniform(0, 2 * np.pi),
            across * rng.uniform(0.1, 0.2),
            rng.uniform(0.85, 1.5),
            (int(low[0]), int(low[1]), int(max(high[0], 60)), int(high[1] // 2), int(rng.integers(5, 80))),
            texture,
        )

    def box(self, t_s: float) -> NDArray[np.float64]:
        """Return its box x0 y0 x1 y1 at a time, including feet and hands in their current positions."""
        outline = np.array([point for corners, _ in self._body(t_s) for point in corners])
        x = self.foot[0] + self.speed * t_s + self.height * outline[:, 0]
        y = self.foot[1] - self.height * outline[:, 1]
        return np.array([x.min(), y.min(), x.max(), y.max()])

    def paint(self, frame: NDArray[np.float32], foot: NDArray[np.float64], height: float, t_s: float) -> None:
        """Draw the person over a log-intensity frame, in place.

        Args:
            frame: `(H, W)` float32.
            foot, height: its position and height at that time, in pixels of the frame.
            t_s: time, which determines the position of its limbs.
        """
        rows, columns = frame.shape
        x0, x1 = int(np.floor(foot[0] - _HALF_WIDTH * height)), int(np.ceil(foot[0] + _HALF_WIDTH * height)) + 1
        y0, y1 = int(np.floor(foot[1] - 1.05 * height)), int(np.ceil(foot[1])) + 1
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, columns), min(y1, rows)
        if left >= right or top >= bottom:
            return
        shape = ((bottom - top) * _OVERSAMPLING, (right - left) * _OVERSAMPLING)
        light, coverage = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        for corners, grey in self._body(t_s):
            points = (np.array(corners) * [height, -height] + foot - [left, top]) * _OVERSAMPLING * 16
            polygon = [np.round(points).astype(np.int32)]
            cv2.fillPoly(light, polygon, max(grey, 1), cv2.LINE_8, 4)
            cv2.fillPoly(coverage, polygon, 255, cv2.LINE_8, 4)
        size = (right - left, bottom - top)
        opacity = cv2.resize(coverage, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        grey_sum = cv2.resize(light.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        clothes = cv2.resize(self.pattern, (x1 - x0, y1 - y0), interpolation=cv2.INTER_CUBIC)
        clothes = clothes[top - y0 : bottom - y0, left - x0 : right - x0]
        body = log_intensity(grey_sum / np.maximum(opacity, 1e-3)) + clothes
        patch = frame[top:bottom, left:right]
        patch += opacity * (body - patch)

    def _body(self, t_s: float) -> list[Polygon]:
        """Return its polygons, far limbs first: [(x, y) in heights from the foot], grey level."""
        coat, trousers, skin, hair, shoes = self.greys
        swing = np.sin(2 * np.pi * self.pace_hz * t_s + self.phase) * self.stride
        toe = 0.04 if self.speed >= 0 else -0.04
        leg, arm, g = 0.038 * self.girth, 0.03 * self.girth, self.girth
        parts: list[Polygon] = []
        for sign in (-1, 1):
            hip, foot = 0.02 * sign * g, 0.03 * sign * g + sign * swing
            knee = 0.5 * (hip + foot) + 0.3 * abs(swing) * np.sign(toe)
            parts.append(_limb((hip, 0.49), (knee, 0.26), 1.3 * leg, leg, trousers))
            parts.append(_limb((knee, 0.27), (foot, 0.03), leg, 0.8 * leg, trousers))
            parts.append(([(foot - 0.03, 0.0), (foot + 0.03 + toe, 0.0), (foot + toe, 0.045), (foot - 0.03, 0.045)], shoes))
        hand = -0.85 * swing
        parts.append(_limb((-0.07 * g, 0.8), (-0.09 * g + hand, 0.48), arm, 0.8 * arm, coat))
        parts.append(
            ([(-0.09 * g, 0.46), (0.09 * g, 0.46), (0.115 * g, 0.8), (0.05, 0.84), (-0.05, 0.84), (-0.115 * g, 0.8)], coat)
        )
        parts.append(_limb((0.07 * g, 0.8), (0.09 * g - hand, 0.48), arm, 0.8 * arm, coat))
        parts.append(([(-0.03, 0.82), (0.03, 0.82), (0.03, 0.88), (-0.03, 0.88)], skin))
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        parts.append(([(0.062 * np.cos(a), 0.915 + 0.08 * np.sin(a)) for a in turn], skin))
        parts.append(([(0.066 * np.cos(a), 0.945 + 0.055 * np.sin(a)) for a in turn[:7]], hair))
        return parts


def _limb(start: tuple[float, float], end: tuple[float, float], wide: float, narrow: float, grey: int) -> Polygon:
    """Return a tapered bar between two joints."""
    along = np.array(end) - start
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9)
    corners = [start + across * wide, start - across * wide, end - across * narrow, end + across * narrow]
    return [(float(x), float(y)) for x, y in corners], grey
