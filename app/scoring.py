"""Accuracy of a network on labelled windows, for every task: the figures by which training and conversion select.

Each task registers a function that scores predictions (models/tasks) against the labels of a data set. Selection uses the
first figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evburst.data.boxes import Detections
from evburst.data.classification import Classification
from evburst.data.extensions import refuse_taken
from evburst.eval.bootstrap import Interval, ap_losses, number_units
from evburst.eval.classification import ClassScores, per_class, top, top1_loss
from evburst.eval.coco import average_precision, coco_result, frames_of
from evburst.models.detectors.postprocess import HeadSpec
from evburst.models.tasks import CLASSIFICATION, DETECTION, task_of


@dataclass(frozen=True)
class Score:
    """Accuracy figures of one network, in percent.

    Attributes:
        figures: ap and ap50, or top1 and top5; the first one is used for selection.
        per_class: figures of each class.
        record: the figures in the form in which weights files store them.
        columns: further columns of the training log.
    """

    figures: dict[str, float]
    per_class: dict[str, dict[str, Any]]
    record: dict[str, Any]
    columns: dict[str, float]

    @property
    def value(self) -> float:
        """The figure used for selection."""
        return next(iter(self.figures.values()))


ScoreFunction = Callable[[Sequence[Detections], Sequence[Any], Sequence[str], tuple[str, ...]], Score]
LossFunction = Callable[[Sequence[Detections], Sequence[Any], Sequence[Any], Sequence[str], tuple[str, ...]], Interval]


@dataclass(frozen=True)
class Scoring:
    """How a task is scored.

    Attributes:
        score: function of (labels, predictions, names of the recordings, classes) that returns a Score.
        loss: function of (labels, predictions of one network, predictions of another, names of the recordings, classes) that
            returns how much lower the second network scores, with a paired bootstrap over pictures or recordings.
        unit: name of the figure `Score.value`, as users see it.
        protocol: name of the protocol, for records of tasks that have several.
        figures: names of `Score.figures`.
    """

    score: ScoreFunction
    loss: LossFunction
    unit: str
    figures: tuple[str, ...]
    protocol: dict[str, str]


SCORINGS: dict[str, Scoring] = {}


def scoring_of(head: HeadSpec) -> Scoring:
    """Return how predictions of a head are scored."""
    return SCORINGS[task_of(head).name]


def scoring(
    task: str, loss: LossFunction, unit: str, figures: tuple[str, ...], protocol: str = ""
) -> Callable[[ScoreFunction], ScoreFunction]:
    """Register how a task is scored, see Scoring; raises ConfigError if another function scores it."""

    def register(score: ScoreFunction) -> ScoreFunction:
        refuse_taken("scoring of a task", task, score, {name: known.score for name, known in SCORINGS.items()})
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
    reference, compared = (coco_result(frames_of(labels, boxes), classes).matches for boxes in (first, second))
    return ap_losses(reference, compared, number_units(names)).ap


def _top1_loss(
    labels: Sequence[Detections], first: Sequence[Any], second: Sequence[Any], names: Sequence[str], classes: tuple[str, ...]
) -> Interval:
    reference, compared = (
        class_scores(labels, predictions, len(classes)).by_recording(names)[0] for predictions in (first, second)
    )
    return top1_loss(reference, compared)


@scoring(DETECTION, _ap_loss, "AP", ("ap", "ap50"), "coco")
def _detection(
    labels: Sequence[Detections], predictions: Sequence[Detections], names: Sequence[str], classes: tuple[str, ...]
) -> Score:
    scored = average_precision(list(labels), list(predictions), classes)
    columns = {f"ap50_{name}": round(figures["ap50"], 2) for name, figures in scored.per_class.items()}
    return Score({"ap": scored.ap, "ap50": scored.ap50}, scored.per_class, asdict(scored), columns)


@scoring(CLASSIFICATION, _top1_loss, "top-1", ("top1", "top5"))
def _classification(
    labels: Sequence[Detections], predictions: Sequence[Any], names: Sequence[str], classes: tuple[str, ...]
) -> Score:
    """Score recordings; the prediction of an idle window has no class scores."""
    windows = class_scores(labels, predictions, len(classes))
    scored, _ = windows.by_recording(names)
    figures = {"top1": top(scored), "top5": top(scored, 5)}
    by_class = per_class(scored, classes)
    record = {**figures, "window_top1": top(windows.ran), "recordings": len(scored.labels), "per_class": by_class}
    return Score(figures, by_class, record, {"top1_windows": round(top(windows.ran), 2)})


def class_scores(labels: Sequence[Detections], predictions: Sequence[Any], n_classes: int) -> ClassScores:
    """Return the class scores of windows as arrays; NaN for windows without scores."""
    empty = np.full(n_classes, np.nan)
    rows = [window.scores if isinstance(window, Classification) else empty for window in predictions]
    scores = np.array(rows, np.float64).reshape(-1, n_classes)
    return ClassScores(scores, np.array([boxes.labels[0] for boxes in labels], np.int64))
