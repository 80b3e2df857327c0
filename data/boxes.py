"""Bounding boxes with classes, for labels and for the predictions of every model, and Prophesee's box files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import LabelError
from evburst.data.extras import require

BBOX_DTYPE = np.dtype(
    [
        ("t", "<i8"),
        ("x", "<f4"),
        ("y", "<f4"),
        ("w", "<f4"),
        ("h", "<f4"),
        ("class_id", "<u4"),
        ("track_id", "<u4"),
        ("class_confidence", "<f4"),
    ],
    align=True,
)
"""One item of Prophesee's `*_bbox.npy`, 40 bytes: t in µs, top-left corner and size in pixels, class, track, score."""

_RANGES = {"t": (-(1 << 62), 1 << 62), "class_id": (0, (1 << 32) - 1)}
"""Smallest and largest value of fields of whole numbers."""

_DTYPES = {"boxes_xyxy": np.float32, "scores": np.float32, "labels": np.int64, "track_ids": np.int64, "held": np.bool_}
"""Types of the arrays of Detections; lists and arrays of other types are converted."""

_OLD_NAMES = {"ts": "t", "confidence": "class_confidence"}


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes at one instant: predictions, or labels (whose scores are 1).

    Attributes:
        boxes_xyxy: `(n, 4)` float32, x0 y0 x1 y1 in sensor pixels; x1, y1 exclusive.
        scores: `(n,)` float32 in [0, 1].
        labels: `(n,)` int64 class indices.
        t_us: the time for which they are valid, on the recording's clock.
        track_ids: `(n,)` int64, one number per object over all instants, from 1; 0: not on a track. None: not tracked.
        held: `(n,)` bool, objects that stand still where nothing fires, so that no network can see them. None: not tracked.

    Raises:
        ValueError: an array has the wrong shape, or cannot have this type, as fractions cannot be class indices.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    t_us: int = 0
    track_ids: NDArray[np.int64] | None = None
    held: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        for name, dtype in _DTYPES.items():
            values, shape = getattr(self, name), (n, 4) if name == "boxes_xyxy" else (n,)
            if values is None and name in ("track_ids", "held"):
                continue
            array = np.asarray(values)
            if array.size and not np.can_cast(array.dtype, dtype, "same_kind"):
                raise ValueError(f"Detections.{name}: expected {np.dtype(dtype)}, received {array.dtype}")
            array = array.astype(dtype, copy=False)
            if array.shape != shape:
                raise ValueError(f"Detections.{name}: expected shape {shape}, received {array.shape}")
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, t_us: int = 0) -> Detections:
        """Return a Detections without boxes."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), t_us)

    def scaled(self, factor: float, width: int, height: int) -> Detections:
        """Return the boxes in pixels that are `factor` times smaller, clipped to `width` x `height` of them."""
        boxes = np.minimum(self.boxes_xyxy * np.float32(factor), np.array([width, height] * 2, np.float32))
        return replace(self, boxes_xyxy=boxes)

    def above(self, score: float) -> Detections:
        """Return the boxes that score at least `score`."""
        return self.take(self.scores >= score)

    def take(self, index: NDArray[np.bool_] | NDArray[np.int64]) -> Detections:
        """Return the boxes that a mask or a list of positions selects."""
        track_ids = None if self.track_ids is None else self.track_ids[index]
        held = None if self.held is None else self.held[index]
        return Detections(self.boxes_xyxy[index], self.scores[index], self.labels[index], self.t_us, track_ids, held)

    def to_coco(self, image_id: int = 0) -> list[dict[str, object]]:
        """Convert to entries of COCO's results list: image_id, category_id, bbox [x, y, w, h], score, and any track_id."""
        xywh = np.concatenate([self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]], 1)
        entries: list[dict[str, object]] = [
            {
                "image_id": image_id,
                "category_id": int(label),
                "bbox": [round(float(side), 2) for side in box],
                "score": round(float(score), 4),
            }
            for box, score, label in zip(xywh, self.scores, self.labels, strict=True)
        ]
        if self.track_ids is None:
            return entries
        return [{**entry, "track_id": int(number)} for entry, number in zip(entries, self.track_ids, strict=True)]

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`, with tracker_id -1 for boxes on no track; needs the package supervision."""
        return require("supervision", "track", "to_supervision").Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.scores,
            class_id=self.labels.astype(int),
            tracker_id=None if self.track_ids is None else np.where(self.track_ids > 0, self.track_ids, -1),
        )

    def to_prophesee(self) -> NDArray[np.void]:
        """Convert to an `(n,)` BBOX_DTYPE array; track_id is 0 where a box is not on a track."""
        out = np.zeros(len(self), BBOX_DTYPE)
        x0, y0, x1, y1 = self.boxes_xyxy.T
        out["t"], out["x"], out["y"], out["w"], out["h"] = self.t_us, x0, y0, x1 - x0, y1 - y0
        out["class_id"], out["class_confidence"] = self.labels, self.scores
        if self.track_ids is not None:
            out["track_id"] = self.track_ids
        return out


def iou_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union of `(n, 4)` and `(m, 4)` xyxy boxes: `(n, m)` float32; 0 if both are empty."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.clip(bottom_right - top_left, 0, None).prod(2)
    union = (a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - inter
    overlap: NDArray[np.float32] = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return overlap


def load_prophesee_boxes(path: Path, predictions: bool = False) -> NDArray[np.void]:
    """Read a `*_bbox.npy` file unchanged, as an `(n,)` BBOX_DTYPE array.

    The field names `ts` and `confidence` of older files are accepted; a missing confidence is set to 1. Boxes may extend
    beyond the frame.

    Args:
        path: the file.
        predictions: whether the confidences are scores, which must be 0 to 1; those of labels may be any numbers.

    Raises:
        LabelError: the file is missing or is not an .npy file, a field is missing, a value is NaN or infinite, a side is
            negative, a time or a class is not whole or beyond `_RANGES`, or a score is not 0 to 1.
    """
    if path.exists() and not path.is_file():
        raise LabelError(f"{path}: not a regular file; a NumPy box file is expected")
    try:
        with path.open("rb") as file:  # NumPy leaves a file open that is no whole archive
            raw = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise LabelError(f"{path}: no such box file") from None
    except (ValueError, EOFError, OSError, BadZipFile, MemoryError) as error:
        why = "it does not begin like one" if "pickle" in str(error) else error  # NumPy advises to load pickles
        raise LabelError(f"{path}: not a NumPy box file ({why})") from None
    if not isinstance(raw, np.ndarray) or raw.dtype.names is None or raw.ndim != 1:
        raise LabelError(f"{path}: expected one array of boxes with Prophesee's fields {BBOX_DTYPE.names}")
    fields = {_OLD_NAMES.get(name, name): name for name in raw.dtype.names}
    missing = [name for name in ("t", "x", "y", "w", "h", "class_id") if name not in fields]
    if missing:
        raise LabelError(f"{path}: fields {missing} are missing; the file has {raw.dtype.names}")
    _check_numbers(path, raw, fields)
    if predictions and "class_confidence" in fields:
        _check_scores(path, raw[fields["class_confidence"]])
    out = np.zeros(len(raw), BBOX_DTYPE)
    out["class_confidence"] = 1
    for name in BBOX_DTYPE.names or ():
        if name in fields:
            out[name] = raw[fields[name]]
    if predictions:
        out["class_confidence"] = out["class_confidence"].clip(0, 1)
    return out


def _check_numbers(path: Path, raw: NDArray[np.void], fields: dict[str, str]) -> None:
    """Raise LabelError if a field does not hold one number per box, or contains NaN, infinity, or a negative class or side."""
    for name, field in fields.items():
        if name not in (BBOX_DTYPE.names or ()):
            continue
        values = raw[field]
        if values.ndim != 1 or values.dtype.kind not in "iufb":
            raise LabelError(f"{path}: field {field} is {values.dtype} {values.shape[1:] or ''}; expected one number per box")
        wrong = ~np.isfinite(values)
        if name in _RANGES:
            low, high = _RANGES[name]
            wrong |= (values < low) | (values > high) | (np.rint(values) != values)
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            unit = " µs; expected whole microseconds" if name == "t" else ""
            raise LabelError(f"{path}: box {row}: {field} is {values[row]}{unit}")
        if name in ("w", "h") and (values < 0).any():
            row = int(np.argmax(values < 0))
            raise LabelError(f"{path}: box {row}: {field} is negative ({values[row]})")


_SCORE_ROUNDING = 1e-6
"""Sums and products of float32 scores may lie this far outside 0 to 1."""


def _check_scores(path: Path, scores: NDArray[Any]) -> None:
    """Raise LabelError if a score is not 0 to 1: order suffices for AP, but not for calibration and the confusion."""
    wrong = (scores < -_SCORE_ROUNDING) | (scores > 1 + _SCORE_ROUNDING)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        mend = "logits need a sigmoid" if (scores < 0).any() else "divide percent by 100, and apply a sigmoid to logits"
        raise LabelError(f"{path}: box {row}: the score is {scores[row]}, and scores are 0 to 1: {mend}")


def read_prophesee_boxes(path: Path) -> list[Detections]:
    """Read a `*_bbox.npy` file as one Detections per distinct time, in time order; see `load_prophesee_boxes`."""
    raw = load_prophesee_boxes(path)
    xy, wh = np.stack([raw["x"], raw["y"]], 1), np.stack([raw["w"], raw["h"]], 1)
    boxes, labels = np.concatenate([xy, xy + wh], 1), raw["class_id"].astype(np.int64)
    order = np.argsort(raw["t"], kind="stable")
    times, firsts = np.unique(raw["t"][order], return_index=True)
    groups = zip(times.tolist(), np.split(order, firsts[1:]), strict=True) if len(raw) else ()
    return [Detections(boxes[rows], raw["class_confidence"][rows], labels[rows], t_us) for t_us, rows in groups]
