"""Evaluation protocols, fixed by name: which boxes are scored, and which predictions belong to which labels.

AP values of different protocols are not comparable, not even on the same recordings; always quote the protocol with the value.
The filter applies to labels and predictions equally. Every labelled time gives one Frame, a pair of label and prediction sets.
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
    """Minimum size of boxes that are scored: w^2 + h^2 >= min_diagonal_px^2, w >= min_side_px and h >= min_side_px."""

    min_diagonal_px: float
    min_side_px: float


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Attributes:
        name: name to quote with AP values.
        source: publication of the rules.
        skip_us: boxes at or before this time after the recording's start are ignored; None: no box is.
        small: minimum box size on sensors up to 640 pixels wide (Gen1; 1 Mpx at half resolution).
        large: minimum box size on wider sensors (1 Mpx).
        tolerance_us: maximum distance in time of a prediction from a labelled time; a prediction counts for every labelled time
            within it. 0: only predictions at exactly the labelled time.
        clip: whether boxes are clipped to the sensor before they are filtered.
        empty_frames: whether labelled times without remaining labels are scored; predictions there are false positives.
        window_us: length of the window before a label that a detector is given; None: the detector's own.
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
        """Return the minimum box size for a sensor."""
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
    """Labels and predictions of one recording.

    Attributes:
        labels: `(n,)` BBOX_DTYPE, in any order.
        predictions: `(m,)` BBOX_DTYPE, in any order.
        times_us: `(k,)` int64 labelled times, including those without objects; None: the times of the labels.
        start_us: the recording's start on its clock; None: no time is skipped.
    """

    labels: NDArray[np.void]
    predictions: NDArray[np.void]
    times_us: NDArray[np.int64] | None = None
    start_us: int | None = 0


class Frame(NamedTuple):
    """Labels and predictions at one labelled time: `(n,)` and `(m,)` BBOX_DTYPE."""

    t_us: int
    labels: NDArray[np.void]
    predictions: NDArray[np.void]


@dataclass
class LeftOut:
    """Counts of what a protocol did not score.

    Attributes:
        labels: labels that are too small, too early or outside the sensor.
        predictions: predictions of that kind.
        unmatched: predictions that passed the filter but belong to no scored time.
        frames: labelled times without remaining labels.
    """

    labels: int = 0
    predictions: int = 0
    unmatched: int = 0
    frames: int = 0


def match(recordings: Iterable[RecordingBoxes], protocol: Protocol, sensor_size: SensorSize) -> tuple[list[Frame], LeftOut]:
    """Return the frames of all recordings, in order, and counts of what was not scored."""
    frames: list[Frame] = []
    left_out = LeftOut()
    for recording in recordings:
        frames += _match_one(recording, protocol, sensor_size, left_out)
    return frames, left_out


def keep(boxes: NDArray[np.void], protocol: Protocol, sensor_size: SensorSize, start_us: int | None = 0) -> NDArray[np.void]:
    """Return the boxes that the protocol scores, sorted by time (stable)."""
    boxes = boxes[np.argsort(boxes["t"], kind="stable")]
    if protocol.clip:
        boxes = clip_to_sensor(boxes, sensor_size)
    diagonal, side = protocol.size_rule(sensor_size)
    w, h = boxes["w"], boxes["h"]
    kept = (w**2 + h**2 >= diagonal**2) & (w >= side) & (h >= side)
    kept &= _is_after_skip(boxes["t"], protocol, start_us)
    if protocol.clip:
        kept &= (w > 0) & (h > 0)
    scored: NDArray[np.void] = boxes[kept]
    return scored


def clip_to_sensor(boxes: NDArray[np.void], sensor_size: SensorSize) -> NDArray[np.void]:
    """Clip boxes to the sensor; one that lies outside gets a side of 0."""
    left_out = boxes.copy()
    for low, extent, size in (("x", "w", sensor_size.width), ("y", "h", sensor_size.height)):
        first, last = np.clip(boxes[low], 0, size), np.clip(boxes[low] + boxes[extent], 0, size)
        inside = (boxes[low] >= 0) & (boxes[low] + boxes[extent] <= size)  # these stay bit-identical
        left_out[low], left_out[extent] = np.where(inside, boxes[low], first), np.where(inside, boxes[extent], last - first)
    return left_out


def _is_after_skip(t_us: NDArray[np.int64], protocol: Protocol, start_us: int | None) -> NDArray[np.bool_]:
    if start_us is None or protocol.skip_us is None:
        return np.ones(len(t_us), bool)
    return t_us > start_us + protocol.skip_us


def _match_one(recording: RecordingBoxes, protocol: Protocol, sensor_size: SensorSize, left_out: LeftOut) -> list[Frame]:
    labels, predictions = (
        keep(boxes, protocol, sensor_size, recording.start_us) for boxes in (recording.labels, recording.predictions)
    )
    left_out.labels += len(recording.labels) - len(labels)
    left_out.predictions += len(recording.predictions) - len(predictions)
    all_times = np.unique(recording.labels["t"] if recording.times_us is None else recording.times_us)
    times = np.unique(labels["t"])
    if protocol.empty_frames:
        times = np.unique(np.concatenate([times, all_times[_is_after_skip(all_times, protocol, recording.start_us)]]))
    left_out.frames += len(all_times) - len(times)
    first, last = (np.searchsorted(labels["t"], times, side) for side in ("left", "right"))
    prediction_first = np.searchsorted(predictions["t"], times - protocol.tolerance_us, "left")
    prediction_last = np.searchsorted(predictions["t"], times + protocol.tolerance_us, "right")
    used = np.zeros(len(predictions) + 1, np.int64)
    np.add.at(used, prediction_first, 1)
    np.add.at(used, prediction_last, -1)
    left_out.unmatched += int((np.cumsum(used)[:-1] == 0).sum())
    return [
        Frame(int(t), labels[a:b], predictions[c:d])
        for t, a, b, c, d in zip(times, first, last, prediction_first, prediction_last, strict=True)
    ]


NO_BOXES = np.zeros(0, BBOX_DTYPE)
"""An empty set of boxes."""
