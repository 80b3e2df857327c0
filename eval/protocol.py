"""Evaluation protocols, frozen by name: which boxes are scored, and which predictions belong to which labels.

AP figures of different protocols do not compare, not even on the same recordings: the table below is what a figure has to be
quoted with. The filter is applied to labels and predictions alike. One pair of label and prediction sets (a Frame) is made for
every labelled time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import BBOX_DTYPE
from evburst.data.events import SensorSize

_MEGAPIXEL_WIDTH = 640


class SizeRule(NamedTuple):
    """Smallest box that is scored: w^2 + h^2 >= min_diagonal_px^2, w >= min_side_px and h >= min_side_px."""

    min_diagonal_px: float
    min_side_px: float


@dataclass(frozen=True)
class Protocol:
    """One row of the table.

    Attributes:
        name: what a figure is quoted with.
        source: where the rule is from.
        skip_us: boxes at or before this time from the recording's start are left out; None: no box is.
        small: smallest box on sensors up to 640 pixels wide (Gen1; 1 Mpx at half resolution).
        large: smallest box on wider ones (1 Mpx).
        tolerance_us: predictions up to this far from a labelled time belong to it, each to every labelled time it is near; 0:
            those made exactly at the labelled time.
        clip: boxes are cut at the sensor's edges before they are filtered.
        empty_frames: a labelled time at which nothing is left to find is scored, too: predictions there are false.
        window_us: length of the window before a label that a detector is given; None: its own.
    """

    name: str
    source: str
    skip_us: int | None
    small: SizeRule
    large: SizeRule
    tolerance_us: int
    clip: bool
    empty_frames: bool
    window_us: int | None = None

    def size_rule(self, sensor_size: SensorSize) -> SizeRule:
        """The smallest box of this sensor."""
        return self.large if sensor_size.width > _MEGAPIXEL_WIDTH else self.small


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "prophesee",
            "Perot et al., NeurIPS 2020; as RVT (Gehrig and Scaramuzza, CVPR 2023) computes it, whose labels are cropped to "
            "the sensor",
            skip_us=500_000,
            small=SizeRule(30, 10),
            large=SizeRule(60, 20),
            tolerance_us=0,
            clip=True,
            empty_frames=False,
        ),
        Protocol(
            "prophesee-toolbox",
            "prophesee-automotive-dataset-toolbox, psee_evaluator.py as shipped: its smallest sides for Gen1 and 1 Mpx are "
            "interchanged, and it skips 0.1 s",
            skip_us=100_000,
            small=SizeRule(30, 20),
            large=SizeRule(60, 10),
            tolerance_us=50_000,
            clip=False,
            empty_frames=False,
        ),
        Protocol(
            "cordone",
            "Cordone et al., IJCNN 2022, followed by SFOD (CVPR 2024): one window of 100 ms per labelled time",
            skip_us=None,
            small=SizeRule(30, 20),
            large=SizeRule(30, 20),
            tolerance_us=0,
            clip=True,
            empty_frames=False,
            window_us=100_000,
        ),
        Protocol(
            "coco",
            "Lin et al., ECCV 2014: every box, every labelled time",
            skip_us=None,
            small=SizeRule(0, 0),
            large=SizeRule(0, 0),
            tolerance_us=0,
            clip=False,
            empty_frames=True,
        ),
    )
}


@dataclass(frozen=True)
class RecordingBoxes:
    """What is known of one recording: labels, predictions, and nothing of its events.

    Attributes:
        labels: `(n,)` BBOX_DTYPE, in any order.
        predictions: `(m,)` BBOX_DTYPE, in any order.
        times_us: `(k,)` int64 labelled times, those with nothing to find included; None: the times of the labels.
        start_us: the recording's start on its clock; None: no time is skipped.
    """

    labels: NDArray[np.void]
    predictions: NDArray[np.void]
    times_us: NDArray[np.int64] | None = None
    start_us: int | None = 0


class Frame(NamedTuple):
    """What is scored at one labelled time: `(n,)` and `(m,)` BBOX_DTYPE."""

    t_us: int
    labels: NDArray[np.void]
    predictions: NDArray[np.void]


@dataclass
class LeftOut:
    """What a protocol did not score.

    Attributes:
        labels: too small, too early or outside the sensor.
        predictions: the same.
        unmatched: predictions that passed the filter but belong to no scored time.
        frames: labelled times at which nothing is left.
    """

    labels: int = 0
    predictions: int = 0
    unmatched: int = 0
    frames: int = 0


def match(recordings: Iterable[RecordingBoxes], protocol: Protocol, sensor_size: SensorSize) -> tuple[list[Frame], LeftOut]:
    """The frames of all recordings, in order, and what was left out."""
    frames: list[Frame] = []
    out = LeftOut()
    for recording in recordings:
        frames += _match_one(recording, protocol, sensor_size, out)
    return frames, out


def keep(boxes: NDArray[np.void], protocol: Protocol, sensor_size: SensorSize, start_us: int | None = 0) -> NDArray[np.void]:
    """The boxes that the protocol scores, sorted by time (those of one time stay in order)."""
    boxes = boxes[np.argsort(boxes["t"], kind="stable")]
    if protocol.clip:
        boxes = clip_to_sensor(boxes, sensor_size)
    diagonal, side = protocol.size_rule(sensor_size)
    w, h = boxes["w"], boxes["h"]
    kept = (w**2 + h**2 >= diagonal**2) & (w >= side) & (h >= side)
    kept &= _late_enough(boxes["t"], protocol, start_us)
    if protocol.clip:
        kept &= (w > 0) & (h > 0)
    scored: NDArray[np.void] = boxes[kept]
    return scored


def clip_to_sensor(boxes: NDArray[np.void], sensor_size: SensorSize) -> NDArray[np.void]:
    """Boxes cut at the sensor's edges; one that lies outside keeps a side of 0."""
    out = boxes.copy()
    for low, extent, size in (("x", "w", sensor_size.width), ("y", "h", sensor_size.height)):
        first, last = np.clip(boxes[low], 0, size), np.clip(boxes[low] + boxes[extent], 0, size)
        inside = (boxes[low] >= 0) & (boxes[low] + boxes[extent] <= size)  # these stay as they are, to the last bit
        out[low], out[extent] = np.where(inside, boxes[low], first), np.where(inside, boxes[extent], last - first)
    return out


def _late_enough(t_us: NDArray[np.int64], protocol: Protocol, start_us: int | None) -> NDArray[np.bool_]:
    if start_us is None or protocol.skip_us is None:
        return np.ones(len(t_us), bool)
    return t_us > start_us + protocol.skip_us


def _match_one(recording: RecordingBoxes, protocol: Protocol, sensor_size: SensorSize, out: LeftOut) -> list[Frame]:
    labels, predictions = (
        keep(boxes, protocol, sensor_size, recording.start_us) for boxes in (recording.labels, recording.predictions)
    )
    out.labels += len(recording.labels) - len(labels)
    out.predictions += len(recording.predictions) - len(predictions)
    all_times = np.unique(recording.labels["t"] if recording.times_us is None else recording.times_us)
    times = np.unique(labels["t"])
    if protocol.empty_frames:
        times = np.unique(np.concatenate([times, all_times[_late_enough(all_times, protocol, recording.start_us)]]))
    out.frames += len(all_times) - len(times)
    first, last = (np.searchsorted(labels["t"], times, side) for side in ("left", "right"))
    lowest = np.searchsorted(predictions["t"], times - protocol.tolerance_us, "left")
    highest = np.searchsorted(predictions["t"], times + protocol.tolerance_us, "right")
    used = np.zeros(len(predictions) + 1, np.int64)
    np.add.at(used, lowest, 1)
    np.add.at(used, highest, -1)
    out.unmatched += int((np.cumsum(used)[:-1] == 0).sum())
    return [
        Frame(int(t), labels[a:b], predictions[c:d]) for t, a, b, c, d in zip(times, first, last, lowest, highest, strict=True)
    ]


NO_BOXES = np.zeros(0, BBOX_DTYPE)
"""An empty set of boxes."""
