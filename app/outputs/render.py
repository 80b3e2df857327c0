"""Pictures of a window: events as the field draws them (ON white, OFF blue, on dark grey), boxes, and a line of meters."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from evburst.data.boxes import Detections
from evburst.data.events import SensorSize
from numpy.typing import NDArray

_BACKGROUND, _ON, _OFF = (30, 37, 52)[::-1], (255, 255, 255), (201, 126, 64)
_CLASS_COLOURS = ((80, 220, 100), (60, 160, 255), (255, 200, 60), (230, 110, 230), (90, 220, 230), (110, 110, 255))
_TARGET_WIDTH = 912
_METER_HEIGHT = 44


@dataclass(frozen=True)
class Meters:
    """What the line under the picture shows.

    Attributes:
        network: e.g. "SNN T=2".
        t_us: window's end.
        events_per_s: rate.
        latency_ms: of this window.
        energy_uj, ann_energy_uj: of this window; energy_uj equals ann_energy_uj when the ANN itself runs.
    """

    network: str
    t_us: int
    events_per_s: float
    latency_ms: float
    energy_uj: float
    ann_energy_uj: float


def events_picture(grid: NDArray[np.uint8], sensor_size: SensorSize, scale: int) -> NDArray[np.uint8]:
    """A window's events as `(scale * H, scale * W, 3)` uint8 BGR; `grid` as in Renderer.draw."""
    width, height = sensor_size
    bins = len(grid) // 2
    off, on = grid[:bins, :height, :width].sum(0, np.int32), grid[bins:, :height, :width].sum(0, np.int32)
    small = np.full((height, width, 3), _BACKGROUND, np.uint8)
    small[off > 0] = _OFF
    small[(on > 0) & (on >= off)] = _ON
    return np.asarray(cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST), np.uint8)


class Renderer:
    """Draws windows of one sensor; every picture has the same, even, size.

    Args:
        sensor_size: (W, H) px.
        classes: class names.
    """

    def __init__(self, sensor_size: SensorSize, classes: tuple[str, ...]) -> None:
        self.sensor_size, self.classes = sensor_size, classes
        self.scale = max(1, round(_TARGET_WIDTH / sensor_size.width))
        width, height = sensor_size.width * self.scale, sensor_size.height * self.scale + _METER_HEIGHT
        self.picture_size = (width + width % 2, height + height % 2)

    def draw(self, grid: NDArray[np.uint8], found: Detections, meters: Meters) -> NDArray[np.uint8]:
        """A `(height, width, 3)` uint8 BGR picture.

        Args:
            grid: `(2 * bins, >= H, >= W)` uint8 counts, OFF channels first.
            found: boxes to draw.
            meters: the line of figures.
        """
        big = events_picture(grid, self.sensor_size, self.scale)
        picture = np.zeros((self.picture_size[1], self.picture_size[0], 3), np.uint8)
        picture[: big.shape[0], : big.shape[1]] = big
        for box, score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True):
            self._box(picture, box, f"{self.classes[label]} {score:.2f}", _CLASS_COLOURS[label % len(_CLASS_COLOURS)])
        self._meters(picture, meters)
        return picture

    def _box(self, picture: NDArray[np.uint8], box: NDArray[np.float32], text: str, colour: tuple[int, int, int]) -> None:
        x0, y0, x1, y1 = (box * self.scale).round().astype(int).tolist()
        cv2.rectangle(picture, (x0, y0), (x1, y1), colour, 2, cv2.LINE_AA)
        (w, h), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
        top = y0 - h - 8 if y0 >= h + 8 else y0
        cv2.rectangle(picture, (x0 - 1, top), (x0 + w + 8, top + h + 8), colour, -1)
        cv2.putText(picture, text, (x0 + 4, top + h + 3), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)

    def _meters(self, picture: NDArray[np.uint8], m: Meters) -> None:
        base = self.sensor_size.height * self.scale
        share = m.energy_uj / m.ann_energy_uj if m.ann_energy_uj else 0.0
        text = (
            f"{m.t_us / 1e6:9.3f} s   {m.events_per_s / 1e6:5.2f} Mev/s   {m.network}   {m.latency_ms:5.1f} ms   "
            f"{m.energy_uj:6.0f} uJ = {100 * share:3.0f}% of ANN"
        )
        room = picture.shape[1] - 24
        size = min(0.6, 0.6 * room / cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)[0][0])
        cv2.putText(picture, text, (12, base + 20), cv2.FONT_HERSHEY_SIMPLEX, size, (225, 225, 225), 1, cv2.LINE_AA)
        cv2.rectangle(picture, (12, base + 30), (12 + room, base + 36), (70, 70, 70), -1)
        cv2.rectangle(picture, (12, base + 30), (12 + int(room * min(share, 1)), base + 36), (80, 220, 100), -1)
