"""Tracks (`--track`): every object keeps one number in all windows, even while it stands still and causes no events.

ByteTrack (Zhang et al., ECCV 2022; the package `trackers`) assigns each box to the track whose predicted box it overlaps most,
first the boxes with high scores, then those with low scores. In addition, boxes are held: without motion there are no events,
so the network cannot see an object that has stopped. Its box is then silent, which means that far fewer of the pixels inside
fire than while the object was moving (pixels in the boxes of other objects are not counted). ByteTrack receives the best of the
object's last three boxes again, and the output contains that box, marked as held, with the mean score of the last five (an
object that brakes causes few events, so that its last score is low):

    seen, slow        box silent              -> held
    held              box silent              -> held, at most `hold_s` after the object was last seen
    held              covered by other boxes  -> held: another object passes in front of it
    held              box not silent          -> not held: it moves; it can be held again once it has been seen again
    seen, leaving     box silent              -> not held: it has left the field of view, or is hidden

A moving camera causes events nearly everywhere, so few objects are held while it moves.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.inference import WindowResult
from evburst.data.boxes import Detections, iou_matrix
from evburst.data.errors import require_all, require_within
from evburst.data.events import SensorSize
from evburst.data.extras import require

_SILENT = 0.25
"""A box is silent if the share of its pixels that fire is at most this fraction of the usual share."""

_MIN_VISIBLE = 1 / 3
"""If less than this share of a box lies outside the boxes of other objects, its events are attributed to those."""

_GRACE_US = 200_000
"""An object can become held if it was last seen at most this long before the window."""

_MIN_SIGHTINGS = 3
_KEPT_SIGHTINGS = 5
_LEAVING = 2.0
_LEAVING_AT_EDGE = 0.25
"""Speeds, in box sides per second, above which an object counts as leaving: anywhere, and across the sensor's edge."""

_EDGE_PX = 2.0
_SAME_IOU = 0.5


@dataclass(frozen=True)
class TrackConfig:
    """Settings of tracks; they only apply with `track`.

    Attributes:
        start_score: lowest score of a box that starts a track.
        low_score: lowest score of a box that continues a track; other boxes below `post.score` are discarded.
        lost_s: an object that is found again within this time keeps its number.
        hold_s: longest time for which an object is held; 0: objects are not held.
    """

    start_score: float = 0.5
    low_score: float = 0.1
    lost_s: float = 1.0
    hold_s: float = 10.0

    def __post_init__(self) -> None:
        require_within(self, lost_s=(0, 3600), hold_s=(0, 86_400))
        checks = {
            "low_score and start_score must be above 0 and up to 1": 0 < self.low_score <= 1 and 0 < self.start_score <= 1,
            "low_score exceeds start_score": self.low_score <= self.start_score,
        }
        require_all(checks, self)


@dataclass
class _Object:
    """State of a track.

    Attributes:
        box, label, seen_us: box, class and time of the latest sighting.
        held: whether the object is held.
        gone: whether it has moved away while it was held.
        boxes: (time in µs, box) of the latest sightings.
        scores: their scores; the mean is the score of the object while it is held.
        firing: mean share of the box's pixels that fire when the object is seen.
        sightings: number of sightings.
    """

    box: NDArray[np.float32]
    label: int
    seen_us: int
    held: bool = False
    gone: bool = False
    boxes: deque[tuple[int, NDArray[np.float32]]] = field(default_factory=lambda: deque(maxlen=_KEPT_SIGHTINGS))
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_SIGHTINGS))
    firing: float = 0.0
    sightings: int = 0

    def speed(self) -> NDArray[np.float32]:
        """Return the speed of the box's centre over the latest sightings, (x, y) in box sides per second."""
        (first_us, first), (last_us, last) = self.boxes[0], self.boxes[-1]
        seconds = max((last_us - first_us) * 1e-6, 1e-6)
        centre = (last[:2] + last[2:] - first[:2] - first[2:]) / 2
        return np.asarray(centre / seconds / np.maximum(self.box[2:] - self.box[:2], 1), np.float32)

    def resting_box(self) -> NDArray[np.float32]:
        """Return the best of the last three boxes, because the last one often covers only a part of a stopping object."""
        latest_first = list(self.scores)[: -_MIN_SIGHTINGS - 1 : -1]
        return self.boxes[-1 - int(np.argmax(latest_first))][1]


def require_trackers() -> tuple[ModuleType, ModuleType]:
    """Import the packages trackers and supervision; raises MissingPackageError if one is not installed."""
    return require("trackers", "track", "--track"), require("supervision", "track", "--track")


class Tracker:
    """Assigns track numbers to the boxes of consecutive windows, and adds the boxes of held objects.

    Args:
        config: see TrackConfig.
        sensor_size: (W, H) px.
        score: lowest score of a box without a track.
        step_us: usual time from one window to the next.

    Raises:
        MissingPackageError: the package `trackers` is not installed.
    """

    def __init__(self, config: TrackConfig, sensor_size: SensorSize, score: float, step_us: int) -> None:
        trackers, self._supervision = require_trackers()
        self._config, self._size, self._score = config, sensor_size, score
        self._lost_us, self._hold_us = round(1e6 * config.lost_s), round(1e6 * config.hold_s)
        # ByteTrack adds up times as floats. Here they are µs instead of seconds, whose sums are exact. It expects `lost_us` in
        # 30ths of its unit.
        self._new_byte_track = partial(
            trackers.ByteTrackTracker,
            lost_track_buffer=30 * self._lost_us,
            frame_rate=1 / step_us,
            track_activation_threshold=config.start_score,
            high_conf_det_threshold=config.start_score,
        )
        self._last_number, self._end_us = 0, 0
        self._restart()

    def _restart(self) -> None:
        """Forget all objects; their numbers are not used again."""
        self._first_number = self._last_number + 1
        self._objects: dict[int, _Object] = {}
        self._byte_track: Any = self._new_byte_track()
        self._linked_us = -math.inf

    def update(self, result: WindowResult) -> WindowResult:
        """Return the next window's result with `track_ids` and `held` in its detections.

        If the window is earlier than the one before, because the source's clock was reset, all tracks begin anew.
        """
        found, t_us = result.detections, result.t1_us
        if t_us < self._end_us:
            self._restart()
        self._end_us = t_us
        still = [number for number, obj in self._objects.items() if self._stands_still(obj, result)]
        ids = self._link(found, still, t_us)
        seen, still_ids = ids[: len(found)], ids[len(found) :]
        held = [number for number, linked in zip(still, still_ids, strict=True) if number == linked]
        for i in np.flatnonzero(seen):
            self._see(int(seen[i]), found, int(i), result)
        self._forget(held, t_us)
        shown = (found.scores >= self._score) | (seen > 0)
        return replace(result, detections=self._joined(found.take(shown), seen[shown], held))

    def _link(self, found: Detections, still: list[int], t_us: int) -> NDArray[np.int64]:
        """Return the track numbers, from 1, of the detected boxes, then of the objects that stand still; 0: no track.

        The boxes of objects that stand still have the score 0, so that ByteTrack assigns detected boxes first and starts
        no tracks with them.
        """
        boxes = np.concatenate([found.boxes_xyxy, *(self._objects[number].resting_box()[None] for number in still)])
        scores = np.concatenate([found.scores, np.zeros(len(still), np.float32)])
        positions = {"position": np.arange(len(boxes))}
        boxes_and_scores = self._supervision.Detections(xyxy=boxes.astype(float), confidence=scores, data=positions)
        # Windows of a number of events can end at the same time, and ByteTrack expects later times.
        self._linked_us = max(float(t_us), self._linked_us + 1)
        linked = self._byte_track.update(boxes_and_scores, timestamp=self._linked_us)
        ids = np.zeros(len(boxes), np.int64)
        if len(linked):
            ids[linked.data["position"]] = np.where(linked.tracker_id < 0, 0, linked.tracker_id + self._first_number)
            self._last_number = max(self._last_number, int(ids.max()))
        return ids

    def _see(self, number: int, found: Detections, i: int, result: WindowResult) -> None:
        """Update an object with the box in which it was seen."""
        box, label = found.boxes_xyxy[i], int(found.labels[i])
        obj = self._objects.setdefault(number, _Object(box, label, result.t1_us))
        obj.scores.append(float(found.scores[i]))
        obj.box, obj.label, obj.seen_us = box, label, result.t1_us
        obj.held = obj.gone = False
        obj.boxes.append((result.t1_us, box))
        firing, _ = self._firing(box, result.grid, found.boxes_xyxy[:0])
        obj.firing += (firing - obj.firing) / (obj.sightings + 1)
        obj.sightings += 1

    def _stands_still(self, obj: _Object, result: WindowResult) -> bool:
        """Return whether an object that is not detected in this window must still be in its last position."""
        since_us = result.t1_us - obj.seen_us
        if since_us > self._hold_us or obj.gone or obj.sightings < _MIN_SIGHTINGS:
            return False
        if not obj.held and (self._leaves(obj) or since_us > _GRACE_US + result.t1_us - result.t0_us):
            return False
        found = result.detections
        # A box with a low score there is probably the object itself and takes precedence; ByteTrack prefers high scores anyway.
        low = (found.scores < self._config.start_score) & (found.labels == obj.label)
        if (iou_matrix(obj.box[None], found.boxes_xyxy[low]) >= _SAME_IOU).any():
            return False
        firing, share = self._firing(obj.box, result.grid, found.boxes_xyxy)
        return obj.held if share < _MIN_VISIBLE else firing <= _SILENT * obj.firing

    def _leaves(self, obj: _Object) -> bool:
        """Return whether the object was about to leave its position when it was last seen."""
        x, y = obj.speed()
        left, top, right, bottom = obj.box
        width, height = self._size
        outwards = [
            -x if left <= _EDGE_PX else 0.0,
            x if right >= width - _EDGE_PX else 0.0,
            -y if top <= _EDGE_PX else 0.0,
            y if bottom >= height - _EDGE_PX else 0.0,
        ]
        return max(outwards) > _LEAVING_AT_EDGE or max(abs(x), abs(y)) > _LEAVING

    def _firing(self, box: NDArray[np.float32], grid: NDArray[np.uint8], others: NDArray[np.float32]) -> tuple[float, float]:
        """Return the share of a box's pixels outside the boxes of `others` that fired, and the share that lies outside."""
        width, height = self._size
        x0, y0, x1, y1 = np.clip(np.round(box), 0, [width, height, width, height]).astype(int)
        free = np.ones((max(y1 - y0, 0), max(x1 - x0, 0)), np.bool_)
        for a, b, c, d in np.maximum(np.round(others - [x0, y0, x0, y0]), 0).astype(int):
            free[b:d, a:c] = False
        if not free.any():
            return 0.0, 0.0
        fired = grid[:, y0:y1, x0:x1].max(0) > 0
        return float(fired[free].mean()), float(free.mean())

    def _forget(self, held: list[int], t_us: int) -> None:
        """Record which objects are held, and delete those whose tracks ByteTrack has deleted as well."""
        for number, obj in list(self._objects.items()):
            obj.gone = obj.gone or (obj.held and number not in held and obj.seen_us != t_us)
            obj.held = number in held
            if not obj.held and t_us - obj.seen_us > self._lost_us + self._hold_us:
                del self._objects[number]

    def _joined(self, found: Detections, ids: NDArray[np.int64], held: list[int]) -> Detections:
        """Return the detected boxes with their tracks, then the boxes of held objects."""
        objects = [self._objects[number] for number in held]
        return Detections(
            np.concatenate([found.boxes_xyxy, *(obj.resting_box()[None] for obj in objects)]),
            np.concatenate([found.scores, np.array([np.mean(obj.scores) for obj in objects], np.float32)]),
            np.concatenate([found.labels, np.array([obj.label for obj in objects], np.int64)]),
            found.t_us,
            np.concatenate([ids, np.array(held, np.int64)]),
            np.concatenate([np.zeros(len(found), np.bool_), np.ones(len(held), np.bool_)]),
        )
