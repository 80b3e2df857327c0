"""The last step of conversion: maps of the class scores of a YOLO detector, after which a score of 0.3 means that three of ten
such boxes are correct.

The maps are fitted to the spiking network's boxes on the split "select" and folded into both networks, so that scores of the
ANN remain comparable with those of the spiking network.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from evburst.app.convert.scores import predict_windows
from evburst.data.datasets import Dataset
from evburst.eval.bootstrap import number_units
from evburst.eval.coco import frames_of
from evburst.eval.matching import match_predictions
from evburst.eval.score_maps import FROM_SCORE, ScoreMap, calibrate_scores, record_of
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import SCORED
from evburst.models.spiking.convert.score_maps import are_convolutions, fold_score_maps
from evburst.models.tasks import task_of

_LOG = logging.getLogger(__name__)


def takes_score_maps(bundle: Bundle) -> bool:
    """Return whether the scores of a network can be mapped class by class: those of YOLO's head."""
    outputs = task_of(bundle.head).independent_logits(bundle.graph.outputs, bundle.head)
    return bool(outputs) and are_convolutions(bundle.graph, outputs)


def with_score_maps(bundle: Bundle, windows: Dataset) -> tuple[Bundle, dict[str, Any]]:
    """Fit the maps of a network's scores and fold them into its weights.

    Args:
        bundle: a network of `takes_score_maps`.
        windows: labelled windows that it did not learn from, of the network's classes; of others, nothing is fitted.

    Returns:
        The network, and for the record by class: scale, bias, ece_before, ece_after, boxes (eval/score_maps.py). A class with
        scale 1 and bias 0 keeps its scores and its weights.
    """
    classes = bundle.head.classes
    if windows.spec.classes != classes:
        _LOG.info("scores are not calibrated: the data's classes are not those of the network")
        return bundle, {}
    found = predict_windows(GridDetector(bundle, SCORED), windows)
    matches = match_predictions(frames_of(found.labels, found.predictions), len(classes))  # type: ignore[arg-type]
    results = calibrate_scores(matches, len(classes), number_units(found.names))
    for name, result in zip(classes, results, strict=True):
        effect = f"calibration error {result.ece_before:.3f} -> {result.ece_after:.3f} on {result.boxes} boxes"
        if math.isnan(result.ece_before):
            effect = f"no box has a score of {FROM_SCORE} or more, so that there is no calibration error"
        _LOG.info("scores of %s: scale %.3f, bias %+.3f; %s", name, result.map.scale, result.map.bias, effect)
    record = {name: record_of(result) for name, result in zip(classes, results, strict=True)}
    return _folded(bundle, [result.map for result in results]), record


def _folded(bundle: Bundle, maps: list[ScoreMap]) -> Bundle:
    scale, bias = (torch.tensor(values) for values in zip(*((m.scale, m.bias) for m in maps), strict=True))
    outputs = task_of(bundle.head).independent_logits(bundle.graph.outputs, bundle.head)
    graph, spiking, parameters = fold_score_maps(bundle.graph, bundle.spiking, bundle.parameters, outputs, scale, bias)
    return replace(bundle, graph=graph, spiking=spiking, parameters=parameters)
