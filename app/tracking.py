"""Tracks (`--track`): one number for an object over all windows, kept also while it stands still and sends no events.

Boxes are linked by ByteTrack (Zhang et al., ECCV 2022; the package `trackers`): first those with high scores, then the low
ones, each to the track whose predicted box it overlaps most. On top of it, silence counts as a measurement. Nothing fires
where nothing moves, so an object that stops becomes invisible to the network. A place is silent if far fewer of its pixels
fire than while the object was seen moving; pixels in the boxes of other objects do not count. ByteTrack is then given the
object's box again, the best of its last three, and the output contains it, marked as held:

    seen, slow        place silent            -> held
    held              place silent            -> held, at most `hold_s` after the object was last seen
    held              in the boxes of others  -> held: something passes in front of it
    held              place not silent        -> not held: it moves; held again only after it was seen again
    seen, leaving     place silent            -> not held: it has left the sensor's view, or gone behind something

The camera's own motion makes nearly every place fire, so little is held while it moves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.app.inference import WindowResult
from evburst.data.boxes import Detections, iou_matrix
from evburst.data.events import SensorSize
from evburst.data.extras import require

_SILENT = 0.25
"""Share of a track's usual firing pixels below which its place is silent."""

_UNEXPLAINED = 1 / 3
"""Share of a place that has to lie outside the boxes of others, or its events are taken to be theirs."""

_GRACE_S = 0.2
"""An object is held if it was seen at most this long ago."""

_LEAST_SIGHTS = 3
_SIGHTS = 5
_LEAVING = 2.0
_LEAVING_AT_EDGE = 0.25
"""Speeds, in box sides per second, from which on an object is taken to leave: anywhere, and over the sensor's edge."""

_EDGE_PX = 2.0
_SAME_IOU = 0.5


@dataclass(frozen=True)
class TrackConfig:
    """Settings of tracks; they matter with `track` only.

    Attributes:
        start_score: lowest score of a box that begins a track.
        low_score: boxes down to this score continue a track; of those below `post.score`, the others are left out.
        lost_s: an object that is found again within this time keeps its number.
        hold_s: longest time that an object is held whose place is silent; 0: not at all.
    """

    start_score: float = 0.5
    low_score: float = 0.1
    lost_s: float = 1.0
    hold_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.low_score <= self.start_score <= 1:
            raise ValueError("tracking.low_score and tracking.start_score must lie in (0, 1], the low one first")
        if not 0 <= self.lost_s <= 3600 or not 0 <= self.hold_s <= 86_400:
            raise ValueError("tracking.lost_s must be 0 to 3600, tracking.hold_s 0 to 86400")


@dataclass
class _Object:
    """What is known of a track: its last sight, its places before that, and how many of its pixels fire when it moves."""

    box: NDArray[np.float32]
    label: int
    seen_us: int
    held: bool = False
    gone: bool = False
    places: deque[tuple[int, NDArray[np.float32]]] = field(default_factory=lambda: deque(maxlen=_SIGHTS))
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=_SIGHTS))
    firing: float = 0.0
    sights: int = 0

    def speed(self) -> NDArray[np.float32]:
        """Of the centre in its latest sights, (x, y) in box sides per second."""
        (first_us, first), (last_us, last) = self.places[0], self.places[-1]
        seconds = max((last_us - first_us) * 1e-6, 1e-6)
        centre = (last[:2] + last[2:] - first[:2] - first[2:]) / 2
        return np.asarray(centre / seconds / np.maximum(self.box[2:] - self.box[:2], 1), np.float32)

    def place(self) -> NDArray[np.float32]:
        """Where the object comes to rest: the best of its last three boxes, since the last one often shows only a part."""
        latest_first = list(self.scores)[: -_LEAST_SIGHTS - 1 : -1]
        return self.places[-1 - int(np.argmax(latest_first))][1]


class Tracker:
    """Gives the boxes of consecutive windows their tracks' numbers, and adds those of objects that are held.

    Args:
        config: see TrackConfig.
        sensor_size: (W, H) px.
        score: lowest score of a box that is on no track.
        step_us: usual time from one window to the next.

    Raises:
        MissingPackageError: the package `trackers` is not installed.
    """

    def __init__(self, config: TrackConfig, sensor_size: SensorSize, score: float, step_us: int) -> None:
        trackers, self._supervision = require("trackers", "track", "--track"), require("supervision", "track", "--track")
        self._config, self._size, self._score = config, sensor_size, score
        self._objects: dict[int, _Object] = {}
        self._links: Any = trackers.ByteTrackTracker(
            lost_track_buffer=round(30 * config.lost_s),
            frame_rate=1e6 / step_us,
            track_activation_threshold=config.start_score,
            high_conf_det_threshold=config.start_score,
        )

    def update(self, result: WindowResult) -> WindowResult:
        """The next window's result, with `track_ids` and `held` in its detections."""
        found, t_us = result.detections, result.t1_us
        waiting = [number for number, thing in self._objects.items() if self._stands_still(thing, result)]
        ids = self._link(found, waiting, t_us)
        seen, ids_of_waiting = ids[: len(found)], ids[len(found) :]
        held = [number for number, linked in zip(waiting, ids_of_waiting, strict=True) if number == linked]
        for i in np.flatnonzero(seen):
            self._see(int(seen[i]), found, int(i), result)
        self._forget(held, t_us)
        shown = (found.scores >= self._score) | (seen > 0)
        return replace(result, detections=self._joined(found.take(shown), seen[shown], held))

    def _link(self, found: Detections, waiting: list[int], t_us: int) -> NDArray[np.int64]:
        """ByteTrack's numbers, from 1, of the boxes that were found and of those that wait; 0: on no track.

        Those that wait have the score 0, so that they come after every box that was found, and begin no track.
        """
        boxes = np.concatenate([found.boxes_xyxy, *(self._objects[number].place()[None] for number in waiting)])
        scores = np.concatenate([found.scores, np.zeros(len(waiting), np.float32)])
        positions = {"position": np.arange(len(boxes))}
        given = self._supervision.Detections(xyxy=boxes.astype(float), confidence=scores, data=positions)
        linked = self._links.update(given, timestamp=t_us * 1e-6)
        ids = np.zeros(len(boxes), np.int64)
        if len(linked):
            ids[linked.data["position"]] = linked.tracker_id + 1
        return ids

    def _see(self, number: int, found: Detections, i: int, result: WindowResult) -> None:
        """Note where and how the object of a track was found."""
        box, label = found.boxes_xyxy[i], int(found.labels[i])
        thing = self._objects.setdefault(number, _Object(box, label, result.t1_us))
        thing.scores.append(float(found.scores[i]))
        thing.box, thing.label, thing.seen_us = box, label, result.t1_us
        thing.held = thing.gone = False
        thing.places.append((result.t1_us, box))
        firing, _ = self._firing(box, result.grid, found.boxes_xyxy[:0])
        thing.firing += (firing - thing.firing) / (thing.sights + 1)
        thing.sights += 1

    def _stands_still(self, thing: _Object, result: WindowResult) -> bool:
        """Whether an object that was seen or held just now must be where it was, if it is not found in this window."""
        since_s = (result.t1_us - thing.seen_us) * 1e-6
        if since_s > self._config.hold_s or thing.gone or thing.sights < _LEAST_SIGHTS:
            return False
        if not thing.held and (self._leaves(thing) or since_s > _GRACE_S + (result.t1_us - result.t0_us) * 1e-6):
            return False
        found = result.detections
        # A low box there is likely to be the object itself and comes first; high ones are linked before all others anyway.
        low = (found.scores < self._config.start_score) & (found.labels == thing.label)
        if (iou_matrix(thing.box[None], found.boxes_xyxy[low]) >= _SAME_IOU).any():
            return False
        firing, share = self._firing(thing.box, result.grid, found.boxes_xyxy)
        return thing.held if share < _UNEXPLAINED else firing <= _SILENT * thing.firing

    def _leaves(self, thing: _Object) -> bool:
        """Whether the object was about to leave its place when it was last seen."""
        x, y = thing.speed()
        left, top, right, bottom = thing.box
        width, height = self._size
        outwards = [
            -x if left <= _EDGE_PX else 0.0,
            x if right >= width - _EDGE_PX else 0.0,
            -y if top <= _EDGE_PX else 0.0,
            y if bottom >= height - _EDGE_PX else 0.0,
        ]
        return max(outwards) > _LEAVING_AT_EDGE or max(abs(x), abs(y)) > _LEAVING

    def _firing(self, box: NDArray[np.float32], grid: NDArray[np.uint8], others: NDArray[np.float32]) -> tuple[float, float]:
        """Share of a box's pixels that fired, of those outside the boxes of others; and what share of all these are."""
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
        """Note which objects are held; forget those that ByteTrack gives up, too."""
        for number, thing in list(self._objects.items()):
            thing.gone = thing.gone or (thing.held and number not in held and thing.seen_us != t_us)
            thing.held = number in held
            if not thing.held and (t_us - thing.seen_us) * 1e-6 > self._config.lost_s + self._config.hold_s:
                del self._objects[number]

    def _joined(self, found: Detections, ids: NDArray[np.int64], held: list[int]) -> Detections:
        """The boxes that were found, with their tracks, then those that are held."""
        things = [self._objects[number] for number in held]
        return Detections(
            np.concatenate([found.boxes_xyxy, *(thing.place()[None] for thing in things)]),
            np.concatenate([found.scores, np.array([thing.scores[-1] for thing in things], np.float32)]),
            np.concatenate([found.labels, np.array([thing.label for thing in things], np.int64)]),
            found.t_us,
            np.concatenate([ids, np.array(held, np.int64)]),
            np.concatenate([np.zeros(len(found), np.bool_), np.ones(len(held), np.bool_)]),
        )
