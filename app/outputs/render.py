"""Pictures of a window: events as the field draws them (ON white, OFF blue, on dark grey), boxes, and a line of figures."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.app.inference import WindowResult
from evburst.data.boxes import Detections
from evburst.data.events import SensorSize

_BACKGROUND, _ON, _OFF = (30, 37, 52)[::-1], (255, 255, 255), (201, 126, 64)
_CLASS_COLOURS = ((80, 220, 100), (60, 160, 255), (255, 200, 60), (230, 110, 230), (90, 220, 230), (110, 110, 255))
_TEXT, _QUIET = (225, 225, 225), (150, 150, 150)
_TARGET_WIDTH = 912
_TRAIL_US = 2_000_000
_DASH_PX = 8
_LINE_HEIGHT = 34
_LEAST_WIDTH = 480
"""Least width of a picture, px: the legend and the line of figures need room beside a narrow sensor."""
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def events_picture(grid: NDArray[np.uint8], sensor_size: SensorSize, scale: int) -> NDArray[np.uint8]:
    """A window's events as `(scale * H, scale * W, 3)` uint8 BGR; `grid` is `(2 * bins, >= H, >= W)` uint8, OFF channels
    first."""
    width, height = sensor_size
    bins = len(grid) // 2
    off, on = grid[:bins, :height, :width].sum(0, np.int32), grid[bins:, :height, :width].sum(0, np.int32)
    small = np.full((height, width, 3), _BACKGROUND, np.uint8)
    small[off > 0] = _OFF
    small[(on > 0) & (on >= off)] = _ON
    return np.asarray(cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST), np.uint8)


def picture_scale(sensor_size: SensorSize) -> int:
    """Pixels of a picture for one of the sensor."""
    return max(1, round(_TARGET_WIDTH / max(sensor_size)))


def beside(source: NDArray[np.uint8], picture: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """A grey picture of the source `(H, W)`, enlarged by `scale`, to the left of a window's picture of the same sensor; BGR."""
    big = cv2.resize(source, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    out = np.zeros((picture.shape[0], big.shape[1] + picture.shape[1], 3), np.uint8)
    out[: big.shape[0], : big.shape[1]] = big[..., None]
    out[:, big.shape[1] :] = picture
    return out


class Renderer:
    """Draws consecutive windows of one sensor; all pictures have the same, even, size. Tracked objects leave trails.

    Args:
        sensor_size: (W, H) px.
        classes: class names.
        network: what runs, e.g. "SNN T=1".
        start_us: what the clock in the picture counts from.

    Attributes:
        network: as above; may be changed between pictures.
    """

    def __init__(self, sensor_size: SensorSize, classes: tuple[str, ...], network: str, start_us: int = 0) -> None:
        self.sensor_size, self.classes = sensor_size, classes
        self.network, self._start_us = network, start_us
        self.scale = picture_scale(sensor_size)
        self._width = max(sensor_size.width * self.scale, _LEAST_WIDTH)
        height = sensor_size.height * self.scale + _LINE_HEIGHT
        self.picture_size = (self._width + self._width % 2, height + height % 2)
        self._trails: dict[int, deque[tuple[int, list[int]]]] = {}
        self._counted = ""

    def draw(self, result: WindowResult) -> NDArray[np.uint8]:
        """The window's events, its boxes and its figures: `(height, width, 3)` uint8 BGR."""
        big = events_picture(result.grid, self.sensor_size, self.scale)
        picture = np.zeros((self.picture_size[1], self.picture_size[0], 3), np.uint8)
        picture[: big.shape[0], : big.shape[1]] = big
        self._draw_trails(picture, result.detections)
        self._boxes(picture, result.detections)
        self._figures(picture, result)
        return picture

    def _boxes(self, picture: NDArray[np.uint8], found: Detections) -> None:
        """Boxes first, then the legend, then labels of boxes, each where it covers no other label and not the legend."""
        corners = (found.boxes_xyxy * self.scale).round().astype(int).tolist()
        held = np.zeros(len(found), np.bool_) if found.held is None else found.held
        for box, label, dashed in zip(corners, found.labels, held, strict=True):
            _rectangle(picture, box, _colour(label), bool(dashed))
        taken = self._legend(picture)
        for i, ((x0, y0, _, y1), score, label) in enumerate(zip(corners, found.scores, found.labels, strict=True)):
            number = "" if found.track_ids is None or not found.track_ids[i] else f" {found.track_ids[i]}"
            text = f"{self.classes[label]}{number} {'held' if held[i] else f'{score:.2f}'}"
            place = self._place(_label_size(text), x0, y0, y1, taken)
            taken.append(place)
            _label(picture, place, text, _colour(label))

    def _draw_trails(self, picture: NDArray[np.uint8], found: Detections) -> None:
        """Where the centres of tracked boxes were in the last two seconds, thinner the longer ago."""
        if found.track_ids is None:
            return
        for box, number in zip(found.boxes_xyxy, found.track_ids, strict=True):
            if number:
                centre = ((box[:2] + box[2:]) / 2 * self.scale).round().astype(int).tolist()
                self._trails.setdefault(int(number), deque()).append((found.t_us, centre))
        for number, trail in list(self._trails.items()):
            while trail and trail[0][0] < found.t_us - _TRAIL_US:
                trail.popleft()
            if not trail:
                del self._trails[number]
        for box_number, label in zip(found.track_ids, found.labels, strict=True):
            points = list(self._trails.get(int(box_number), ()))
            for (_, start), (t_us, stop) in pairwise(points):
                recent = found.t_us - t_us < _TRAIL_US // 2
                cv2.line(picture, start, stop, _colour(label), 2 if recent else 1, cv2.LINE_AA)

    def _place(
        self, size: tuple[int, int], x0: int, y0: int, y1: int, taken: list[tuple[int, int, int, int]]
    ) -> tuple[int, int, int, int]:
        """Where a label goes: above its box, else below or inside, inside the picture; the first place that is free."""
        width, height = size
        area_width, area_height = self._width, self.sensor_size.height * self.scale
        left = min(max(x0 - 1, 0), max(area_width - width, 0))
        tops = [y0 - height, y1, y0, *range(y0 - 2 * height, -1, -height), *range(y1 + height, area_height, height)]
        places = [(left, top, left + width, top + height) for top in tops if 0 <= top <= area_height - height]
        free = (place for place in places if not any(_overlap(place, other) for other in taken))
        return next(free, places[0] if places else (left, 0, left + width, height))

    def _legend(self, picture: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
        """Draw what the colours of events and boxes mean, in the upper right corner, in labels whose places are returned.

        There are as many classes as there is room for.
        """
        entries = [[("ON", _ON), ("OFF", _OFF)], *([(name, _colour(label))] for label, name in enumerate(self.classes))]
        places = []
        step = _label_size("ON")[1] + 2
        for row, texts in enumerate(entries[: max(self.sensor_size.height * self.scale // (3 * step), 1)]):
            right, top = self._width - 4, 4 + row * step
            for text, colour in reversed(texts):
                width, height = _label_size(text)
                places.append((right - width, top, right, top + height))
                _label(picture, places[-1], text, colour)
                right -= width + 4
        return places

    def _figures(self, picture: NDArray[np.uint8], result: WindowResult) -> None:
        base = self.sensor_size.height * self.scale
        energy = "idle: nothing computed" if result.idle else self._energy(result)
        text = (
            f"{(result.t1_us - self._start_us) / 1e6:8.3f} s    {result.events_per_s / 1e6:.2f} million events/s    "
            f"{self.network}    {result.latency_ms:.1f} ms    {energy}"
        )
        room = picture.shape[1] - 24
        size = min(0.55, 0.55 * room / cv2.getTextSize(text, _FONT, 0.55, 1)[0][0])
        cv2.putText(picture, text, (12, base + 22), _FONT, size, _QUIET if result.idle else _TEXT, 1, cv2.LINE_AA)

    def _energy(self, result: WindowResult) -> str:
        """The window's energy, or that of the last counted one."""
        if result.energy_pj is None:
            return f"{self._counted} (last counted)" if self._counted else "energy not counted"
        share = f" = {100 * result.energy_pj / result.ann_energy_pj:.0f} % of the ANN's" if result.ann_energy_pj else ""
        self._counted = f"{result.energy_pj * 1e-6:.0f} uJ{share}"
        return self._counted


def _label_size(text: str) -> tuple[int, int]:
    """Return width and height of a label."""
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.5, 1)
    return width + 8, height + 8


def _label(picture: NDArray[np.uint8], place: tuple[int, int, int, int], text: str, colour: tuple[int, int, int]) -> None:
    """Draw a label: black text on a colour."""
    left, top, right, bottom = place
    cv2.rectangle(picture, (left, top), (right, bottom), colour, -1)
    cv2.putText(picture, text, (left + 4, bottom - 4), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _rectangle(picture: NDArray[np.uint8], box: list[int], colour: tuple[int, int, int], dashed: bool) -> None:
    """A box with a dark rim; dashed where the object is held."""
    x0, y0, x1, y1 = box
    cv2.rectangle(picture, (x0, y0), (x1, y1), (0, 0, 0), 4, cv2.LINE_AA)
    if not dashed:
        cv2.rectangle(picture, (x0, y0), (x1, y1), colour, 2, cv2.LINE_AA)
        return
    for x in range(x0, x1, 2 * _DASH_PX):
        for y in (y0, y1):
            cv2.line(picture, (x, y), (min(x + _DASH_PX, x1), y), colour, 2)
    for y in range(y0, y1, 2 * _DASH_PX):
        for x in (x0, x1):
            cv2.line(picture, (x, y), (x, min(y + _DASH_PX, y1)), colour, 2)


def _colour(label: int) -> tuple[int, int, int]:
    return _CLASS_COLOURS[label % len(_CLASS_COLOURS)]


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def palette() -> dict[str, Any]:
    """The colours of pictures as "#rrggbb", for pages: of classes in turn, of ON and OFF events, and of the ground."""
    return {
        "classes": [_hex(colour) for colour in _CLASS_COLOURS],
        "on": _hex(_ON),
        "off": _hex(_OFF),
        "ground": _hex(_BACKGROUND),
    }


def _hex(bgr: tuple[int, ...]) -> str:
    return "#" + bytes(bgr[::-1]).hex()
