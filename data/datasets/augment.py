"""Augmentation in event space: what turns a labelled window into another possible one, before it is binned.

One kernel moves every event: mirrored, its polarity swapped, scaled and shifted, its time stretched about the window's end
(where the boxes are valid), or dropped. Erasing, background noise and mosaics of four windows are made of the same pieces.
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
from evburst.data.events import EventWindow, SensorSize
from evburst.data.simulation.sensor import uniform_hash


@dataclass(frozen=True)
class AugmentConfig:
    """How windows are changed; every share is a probability.

    Attributes:
        mirror: share mirrored left to right.
        swap: share whose polarities are swapped.
        zoom, zoom_range: share scaled and shifted, and by how much.
        stretch, stretch_range: share whose time runs slower (above 1) or faster, and by how much.
        thin, thin_to: share that loses events, and the least share of events kept.
        repeat, repeat_to: share whose events come in bursts, as some sensors' do, and their largest mean length.
        noise_hz: most background events per pixel and second; drawn from 0 up.
        erase: share in which a patch is blanked.
        mosaic: share put together from four windows.
        min_visible: share of a box that must stay in view.
        min_side_px: smaller boxes are dropped.
    """

    mirror: float = 0.5
    swap: float = 0.1
    zoom: float = 0.5
    zoom_range: tuple[float, float] = (0.6, 1.4)
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


def augment(
    items: list[LabelledWindow], size: SensorSize, config: AugmentConfig, rng: np.random.Generator
) -> tuple[EventWindow, Detections]:
    """One augmented window; `items[0]` alone, or a mosaic of the four.

    Args:
        items: one window, or four of equal length to allow a mosaic.
        size: (W, H) px.
        config: what may happen.
        rng: decides what does.

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
    boxes, labels = (np.concatenate([getattr(found, name) for _, found in parts]) for name in ("boxes_xyxy", "labels"))
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
    """The events of one window that fall into `place` (x0, x1, y0, y1), changed, and the boxes in view there."""
    x0, x1, y0, y1 = place
    scale, shift = 1.0, np.zeros(2)
    if mosaic_zoom or rng.random() < config.zoom:
        low, high = config.zoom_range
        scale = mosaic_zoom * rng.uniform(0.8, 1.3) if mosaic_zoom else rng.uniform(low, high)
        free = np.array([x1 - x0, y1 - y0]) - scale * np.array(size)
        shift = np.array([x0, y0]) + rng.uniform(0, 1, 2) * free
    mirror, swap = rng.random() < config.mirror, rng.random() < config.swap
    stretch = rng.uniform(*config.stretch_range) if rng.random() < config.stretch else 1.0
    keep = rng.uniform(config.thin_to, 1.0) if rng.random() < config.thin else 1.0
    words, window_us = pack_relative(item.window), item.window.t1_us - item.window.t0_us
    out = np.empty_like(words)
    seed = np.uint64(rng.integers(1 << 62))
    n = _move(
        words_64(words), words_64(out), size.width, mirror, swap, scale, *shift, x0, x1, y0, y1, stretch, window_us, keep, seed
    )  # fmt: skip
    boxes = item.boxes.boxes_xyxy.astype(np.float32).copy()
    if mirror:
        boxes[:, [0, 2]] = size.width - item.boxes.boxes_xyxy[:, [2, 0]]
    boxes = boxes * np.float32(scale) + np.tile(shift, 2).astype(np.float32)
    clipped = np.clip(boxes, [x0, y0, x0, y0], [x1, y1, x1, y1]).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(1), 1e-6)
    seen = (sides.min(1, initial=np.inf) >= config.min_side_px) & (share >= config.min_visible)
    return out[:n], Detections(clipped[seen], item.boxes.scores[seen], item.boxes.labels[seen], window_us)


@njit(cache=True, nogil=True)
def _move(words, out, width, mirror, swap, scale, dx, dy, x0, x1, y0, y1, stretch, window_us, keep, seed):  # type: ignore[no-untyped-def]
    """Write the events that stay in place and window to `out`; returns how many. Sub-pixel places are drawn per event."""
    fields = word_fields(2)
    n = 0
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
        if x >= width:
            continue
        if mirror:
            x = width - 1 - x
        if scale != 1.0 or dx != 0.0 or dy != 0.0:
            x = np.int64(np.floor((x + uniform_hash(key + np.uint64(1))) * scale + dx))
            y = np.int64(np.floor((y + uniform_hash(key + np.uint64(2))) * scale + dy))
        if x < x0 or x >= x1 or y < y0 or y >= y1:
            continue
        if swap:
            p = 1 - p
        out[n] = word_of(t, x, y, p)
        n += 1
    return n


def _erase(
    words: Packed, boxes: NDArray[np.float32], labels: NDArray[np.int64], size: SensorSize, rng: np.random.Generator
) -> tuple[Packed, NDArray[np.float32], NDArray[np.int64]]:
    """Blank a rectangle; boxes that lose more than half of their area to it are dropped."""
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
