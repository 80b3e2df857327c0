"""How good a network's answers on labelled windows are, whatever its task: what training, conversion and their reports
choose by.

A task's entry scores lists of what was found (models/tasks) against the labels of a data set. The first figure is the one
that is chosen by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.classification import Classification
from evburst.eval.bootstrap import Interval, ap_losses, number_units
from evburst.eval.classification import ClassScores, per_class, top, top1_loss
from evburst.eval.coco import average_precision, coco_result, frames_of
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.tasks import CLASSIFICATION, DETECTION, task_of


@dataclass(frozen=True)
class Score:
    """Figures of one network, in percent.

    Attributes:
        figures: by name, the one to choose by first: ap, ap50; or top1, top5.
        per_class: likewise, of every class.
        record: as weights files keep it.
        columns: of a training's log, beside the figures.
    """

    figures: dict[str, float]
    per_class: dict[str, dict[str, Any]]
    record: dict[str, Any]
    columns: dict[str, float]

    @property
    def value(self) -> float:
        """The figure to choose by."""
        return next(iter(self.figures.values()))


Scored = Callable[[Sequence[Detections], Sequence[Any], Sequence[str], tuple[str, ...]], Score]
Lost = Callable[[Sequence[Detections], Sequence[Any], Sequence[Any], Sequence[str], tuple[str, ...]], Interval]


@dataclass(frozen=True)
class Scoring:
    """A task's entry.

    Attributes:
        score: (labels, what was found, names of the recordings, classes) to a Score.
        loss: (labels, what one network found, what another did, names of the recordings, classes) to how much lower the second
            one scores, with a paired bootstrap over pictures or recordings.
        unit: what `Score.value` counts, for people.
        protocol: named in records, where there are several.
        figures: names of `Score.figures`.
    """

    score: Scored
    loss: Lost
    unit: str
    figures: tuple[str, ...]
    protocol: dict[str, str]


SCORINGS: dict[str, Scoring] = {}


def scoring_of(head: HeadSpec) -> Scoring:
    """How answers of a head are scored."""
    return SCORINGS[task_of(head).name]


def scoring(task: str, loss: Lost, unit: str, figures: tuple[str, ...], protocol: str = "") -> Callable[[Scored], Scored]:
    """Register how a task is scored; see Scoring."""

    def register(score: Scored) -> Scored:
        SCORINGS[task] = Scoring(score, loss, unit, figures, {"protocol": protocol} if protocol else {})
        return score

    return register


def _ap_loss(
    labels: Sequence[Detections],
    first: Sequence[Detections],
    second: Sequence[Detections],
    names: Sequence[str],
    classes: tuple[str, ...],
) -> Interval:
    one, other = (coco_result(frames_of(labels, found), classes).matches for found in (first, second))
    return ap_losses(one, other, number_units(names)).ap


def _top1_loss(
    labels: Sequence[Detections], first: Sequence[Any], second: Sequence[Any], names: Sequence[str], classes: tuple[str, ...]
) -> Interval:
    one, other = (class_scores(labels, found, len(classes)).by_recording(names)[0] for found in (first, second))
    return top1_loss(one, other)


@scoring(DETECTION, _ap_loss, "AP", ("ap", "ap50"), "coco")
def _detection(
    labels: Sequence[Detections], found: Sequence[Detections], names: Sequence[str], classes: tuple[str, ...]
) -> Score:
    scored = average_precision(list(labels), list(found), classes)
    columns = {f"ap50_{name}": round(own["ap50"], 2) for name, own in scored.per_class.items()}
    return Score({"ap": scored.ap, "ap50": scored.ap50}, scored.per_class, asdict(scored), columns)


@scoring(CLASSIFICATION, _top1_loss, "top-1", ("top1", "top5"))
def _classification(
    labels: Sequence[Detections], found: Sequence[Any], names: Sequence[str], classes: tuple[str, ...]
) -> Score:
    """Recordings; a window that was not run is among `found` without scores."""
    windows = class_scores(labels, found, len(classes))
    scored, _ = windows.by_recording(names)
    figures = {"top1": top(scored), "top5": top(scored, 5)}
    own = per_class(scored, classes)
    record = {**figures, "window_top1": top(windows), "recordings": len(scored.labels), "per_class": own}
    return Score(figures, own, record, {"top1_windows": round(top(windows), 2)})


def class_scores(labels: Sequence[Detections], found: Sequence[Any], n_classes: int) -> ClassScores:
    """Scores of windows as arrays; NaN where one has none."""
    empty = np.full(n_classes, np.nan)
    rows = [one.scores if isinstance(one, Classification) else empty for one in found]
    scores = np.array(rows, np.float64).reshape(-1, n_classes)
    return ClassScores(scores, np.array([own.labels[0] for own in labels], np.int64))
