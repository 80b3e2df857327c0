"""Augmentation of labelled windows in event space, before they are binned.

One kernel transforms every event: it mirrors, swaps the polarity, rotates, scales and shifts, shakes, stretches time about the
window's end (where the boxes are valid), or drops the event. Erasing, background noise and mosaics of four windows build on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.boxes import Detections
from evburst.data.datasets import LabelledWindow
from evburst.data.encoding import (
    Packed,
    columns,
    p_of,
    pack_columns,
    pack_relative,
    time_of,
    word_fields,
    word_of,
    words_64,
    x_of,
    y_of,
)  # fmt: skip
from evburst.data.errors import require_all
from evburst.data.events import EventWindow, SensorSize
from evburst.data.simulation.sensor import uniform_hash

_ROUNDING_PX = 0.01
"""By how much a box that is only mirrored, shifted or rotated can become smaller, because it is computed in float32."""


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the augmentation; fractions of windows are probabilities.

    Attributes:
        mirror: fraction of windows mirrored left to right.
        swap: fraction with swapped polarities.
        zoom: fraction that is scaled and shifted.
        zoom_range: range of the scale.
        shift: fraction that is shifted in addition.
        shift_to: maximum shift as a fraction of the sensor's sides.
        rotate: fraction that is rotated about the sensor's centre.
        rotate_deg: maximum angle of the rotation.
        shake: fraction that is moved to and fro, as by an unsteady hand.
        shake_px: maximum amplitude of that motion.
        stretch: fraction whose time is stretched (above 1) or compressed.
        stretch_range: range of the factor on time.
        thin: fraction from which events are dropped.
        thin_to: minimum fraction of the events that is kept in those.
        repeat: fraction whose events come in bursts, as from some sensors.
        repeat_to: maximum mean length of such a burst, in events.
        noise_hz: maximum rate of background events per pixel; drawn from 0 upwards.
        erase: fraction in which a patch is blanked.
        mosaic: fraction composed of four windows.
        min_visible: minimum fraction of a box that must stay in view.
        min_side_px: minimum width and height of a box that was scaled down or cut; a box that was smaller before stays unless
            its shorter side gets even shorter.
    """

    mirror: float = 0.5
    swap: float = 0.1
    zoom: float = 0.5
    zoom_range: tuple[float, float] = (0.6, 1.4)
    shift: float = 0.0
    shift_to: float = 0.15
    rotate: float = 0.0
    rotate_deg: float = 12.0
    shake: float = 0.0
    shake_px: float = 3.0
    stretch: float = 0.3
    stretch_range: tuple[float, float] = (0.75, 1.5)
    thin: float = 0.25
    thin_to: float = 0.15
    repeat: float = 0.0
    repeat_to: float = 6.0
    noise_hz: float = 0.5
    erase: float = 0.15
    mosaic: float = 0.1
    min_visible: float = 0.35
    min_side_px: float = 8.0

    def __post_init__(self) -> None:
        chances = (
            self.mirror, self.swap, self.zoom, self.shift, self.rotate, self.shake, self.stretch, self.thin, self.repeat,
            self.erase, self.mosaic,
        )  # fmt: skip
        most = self.shift_to, self.rotate_deg, self.shake_px, self.noise_hz, self.min_side_px
        checks = {
            "mirror, swap, zoom, shift, rotate, shake, stretch, thin, repeat, erase and mosaic must be 0 to 1": all(
                0 <= chance <= 1 for chance in chances
            ),
            "zoom_range and stretch_range must be positive, the lower limit first": all(
                0 < low <= high for low, high in (self.zoom_range, self.stretch_range)
            ),
            "shift_to, rotate_deg, shake_px, noise_hz and min_side_px must not be negative": min(most) >= 0,
            "thin_to and min_visible must be 0 to 1": all(0 <= share <= 1 for share in (self.thin_to, self.min_visible)),
            "repeat_to must be at least 1": self.repeat_to >= 1,
        }
        require_all(checks, self)


def augment(
    items: list[LabelledWindow], size: SensorSize, config: AugmentConfig, rng: np.random.Generator
) -> tuple[EventWindow, Detections]:
    """Augment one window: `items[0]` alone, or a mosaic of the four.

    Args:
        items: one window, or four of equal length to allow a mosaic.
        size: (W, H) px.
        config: probabilities and ranges.
        rng: random generator.

    Returns:
        Packed events with times relative to 0, and the boxes in view.
    """
    width, height = size
    if len(items) == 4 and rng.random() < config.mosaic:
        centre = (rng.uniform(0.35, 0.65, 2) * [width, height]).astype(int)
        corners = [(x, y) for y in ((0, centre[1]), (centre[1], height)) for x in ((0, centre[0]), (centre[0], width))]
        parts = [_place(item, size, (*x, *y), config, rng, 0.7) for item, (x, y) in zip(items, corners, strict=True)]
    else:
        parts = [_place(items[0], size, (0, width, 0, height), config, rng, 0.0)]
    words = np.concatenate([words for words, _ in parts])
    boxes, labels = (
        np.concatenate([getattr(detections, name) for _, detections in parts]) for name in ("boxes_xyxy", "labels")
    )
    window_us = items[0].window.t1_us - items[0].window.t0_us
    if rng.random() < config.erase:
        words, boxes, labels = _erase(words, boxes, labels, size, rng)
    if config.repeat and rng.random() < config.repeat:
        words = np.repeat(words, rng.geometric(1 / rng.uniform(1, config.repeat_to), len(words)), axis=0)
    words = _add_noise(words, size, window_us, rng.uniform(0, config.noise_hz), rng)
    return EventWindow(0, window_us, words), Detections(boxes, np.ones(len(boxes), np.float32), labels, window_us)


def _place(
    item: LabelledWindow,
    size: SensorSize,
    place: tuple[int, int, int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
    mosaic_zoom: float,
) -> tuple[Packed, Detections]:
    """Transform the events of one window, and return those inside `place` (x0, x1, y0, y1) with the boxes in view there."""
    x0, x1, y0, y1 = place
    scale, shift = 1.0, np.zeros(2)
    if mosaic_zoom or rng.random() < config.zoom:
        low, high = config.zoom_range
        scale = mosaic_zoom * rng.uniform(0.8, 1.3) if mosaic_zoom else rng.uniform(low, high)
        free = np.array([x1 - x0, y1 - y0]) - scale * np.array(size)
        shift = np.array([x0, y0]) + rng.uniform(0, 1, 2) * free
    if config.shift and rng.random() < config.shift:
        shift = shift + rng.uniform(-config.shift_to, config.shift_to, 2) * np.array(size)
    angle = np.deg2rad(rng.uniform(-1, 1) * config.rotate_deg) if config.rotate and rng.random() < config.rotate else 0.0
    shake = np.zeros(4)
    if config.shake and rng.random() < config.shake:
        shake = _draw_shake(config.shake_px, rng)
    mirror, swap = rng.random() < config.mirror, rng.random() < config.swap
    stretch = rng.uniform(*config.stretch_range) if rng.random() < config.stretch else 1.0
    keep = rng.uniform(config.thin_to, 1.0) if rng.random() < config.thin else 1.0
    words, window_us = pack_relative(item.window), item.window.t1_us - item.window.t0_us
    out = np.empty_like(words)
    seed = np.uint64(rng.integers(1 << 62))
    n = _move(
        words_64(words), words_64(out), size.width, size.height, mirror, swap, scale, *shift, angle, shake,
        x0, x1, y0, y1, stretch, window_us, keep, seed,
    )  # fmt: skip
    boxes = item.boxes.boxes_xyxy.astype(np.float32).copy()
    if mirror:
        boxes[:, [0, 2]] = size.width - item.boxes.boxes_xyxy[:, [2, 0]]
    if angle:
        boxes = _turned(boxes, angle, size)
    boxes = boxes * np.float32(scale) + np.tile(shift, 2).astype(np.float32)
    clipped = np.clip(boxes, [x0, y0, x0, y0], [x1, y1, x1, y1]).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
    labelled = np.clip(item.boxes.boxes_xyxy, 0, [*size, *size])
    shortest_px = np.minimum(config.min_side_px, (labelled[:, 2:] - labelled[:, :2]).min(1) - _ROUNDING_PX)
    is_visible = (sides.min(1) >= shortest_px) & (share >= config.min_visible)
    return out[:n], Detections(clipped[is_visible], item.boxes.scores[is_visible], item.boxes.labels[is_visible], window_us)


@njit(cache=True, nogil=True)
def _move(  # type: ignore[no-untyped-def]
    words, out, width, height, mirror, swap, scale, dx, dy, angle, shake, x0, x1, y0, y1, stretch, window_us, keep, seed
):
    """Write the transformed events inside the place and the window to `out`; returns their number.

    If events move by more than mirroring, the sub-pixel position of every event is drawn at random.
    """
    fields = word_fields(2)
    n = 0
    cos, sin = np.cos(angle), np.sin(angle)
    shaken = shake[0] != 0.0 or shake[1] != 0.0
    moved = scale != 1.0 or dx != 0.0 or dy != 0.0 or angle != 0.0 or shaken
    for i in range(len(words)):
        key = seed + np.uint64(3 * i)
        if keep < 1.0 and uniform_hash(key) >= keep:
            continue
        t = time_of(words[i])
        if stretch != 1.0:
            t = window_us - np.int64((window_us - t) * stretch)
            if t < 0 or t >= window_us:
                continue
        x, y, p = np.int64(x_of(words[i], fields)), np.int64(y_of(words[i], fields)), np.int64(p_of(words[i], fields))
        if x >= width or y >= height:
            continue
        if mirror:
            x = width - 1 - x
        if moved:
            fx, fy = x + uniform_hash(key + np.uint64(1)), y + uniform_hash(key + np.uint64(2))
            if angle != 0.0:
                rx, ry = fx - width / 2, fy - height / 2
                fx, fy = width / 2 + cos * rx - sin * ry, height / 2 + sin * rx + cos * ry
            fx, fy = fx * scale + dx, fy * scale + dy
            if shaken:  # at rest at the window's end, where the boxes are valid
                swing = np.sin(shake[2] * (t - window_us) + shake[3]) - np.sin(shake[3])
                fx, fy = fx + shake[0] * swing, fy + shake[1] * swing
            x, y = np.int64(np.floor(fx)), np.int64(np.floor(fy))
        if x < x0 or x >= x1 or y < y0 or y >= y1:
            continue
        if swap:
            p = 1 - p
        out[n] = word_of(t, x, y, p)
        n += 1
    return n


def _draw_shake(most_px: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Amplitude (x, y) px, angular frequency per µs, phase: of a swing of 2 to 12 Hz."""
    direction, amplitude = rng.uniform(0, 2 * np.pi), rng.uniform(0, most_px)
    rate = 2 * np.pi * rng.uniform(2, 12) * 1e-6
    return np.array([amplitude * np.cos(direction), amplitude * np.sin(direction), rate, rng.uniform(0, 2 * np.pi)])


def _turned(boxes: NDArray[np.float32], angle: float, size: SensorSize) -> NDArray[np.float32]:
    """Boxes about the turned ellipses inside the old ones."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array(size) / 2
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 - middle) @ turn.T + middle
    reach = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (turn**2).T)
    return np.concatenate([centre - reach, centre + reach], 1).astype(np.float32)


def _erase(
    words: Packed, boxes: NDArray[np.float32], labels: NDArray[np.int64], size: SensorSize, rng: np.random.Generator
) -> tuple[Packed, NDArray[np.float32], NDArray[np.int64]]:
    """Blank a rectangle, and drop boxes that lose more than half of their area to it."""
    w, h = rng.uniform(0.08, 0.35, 2) * size
    x, y = rng.uniform(0, 1, 2) * (np.array(size) - [w, h])
    _, ex, ey, _ = columns(EventWindow(0, 1, words))
    words = words[~((ex >= x) & (ex < x + w) & (ey >= y) & (ey < y + h))]
    overlap = np.clip(np.minimum(boxes[:, 2:], [x + w, y + h]) - np.maximum(boxes[:, :2], [x, y]), 0, None).prod(1)
    kept = overlap <= 0.5 * (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return words, boxes[kept], labels[kept]


def _add_noise(words: Packed, size: SensorSize, window_us: int, rate_hz: float, rng: np.random.Generator) -> Packed:
    n = rng.poisson(rate_hz * size.width * size.height * window_us * 1e-6)
    t, x, y, p = (rng.integers(0, stop, n) for stop in (window_us, size.width, size.height, 2))
    return np.concatenate([words, pack_columns(t, x, y, p)])
