"""Pictures for the report: the windows with the best and the worst detections, and maps of spike rates."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from evburst.app.evaluate.predict import PartResult, Predictor
from evburst.app.outputs.render import events_picture
from evburst.data.datasets import Part
from evburst.eval.matching import SHOWN_SCORE, match_predictions
from evburst.eval.protocol import Frame, Protocol, match
from evburst.eval.report.write import ReportPicture
from evburst.models.bundle import Bundle
from evburst.models.graph import Node
from evburst.models.spiking.network import SpikingNetwork, SpikingParameters

_EACH = 4
_LABEL, _PREDICTION = (120, 220, 90), (60, 150, 255)
_WIDTH = 560
_LAYERS = 6


@dataclass(frozen=True)
class _Candidate:
    f1: float
    labels: int
    iou: float
    item: int
    frame: Frame


def best_and_worst(
    predictor: Predictor, parts: Sequence[tuple[Part, PartResult]], protocol: Protocol
) -> tuple[list[ReportPicture], int]:
    """Draw the _EACH labelled windows with the best and with the worst F1 at SHOWN_SCORE and an IoU of 0.5.

    Ties are ordered by the number of labels, then by IoU.

    Returns:
        The pictures, best first; and the index of the best window's item.
    """
    spec = predictor.dataset.spec
    best: list[_Candidate] = []
    worst: list[_Candidate] = []
    for part, result in parts:
        frames, _ = match([result.boxes], protocol, spec.sensor_size)
        matches = match_predictions(frames, len(spec.classes))
        times = result.boxes.times_us
        candidates = [
            _Candidate(float(f1), len(frame.labels), float(iou), part.items[int(np.flatnonzero(times == frame.t_us)[0])], frame)
            for frame, f1, iou in zip(frames, matches.frame_f1, matches.frame_iou, strict=True)
            if len(frame.labels)
        ]
        best = sorted(best + candidates, key=lambda c: (-c.f1, -min(c.labels, 3), -c.iou))[:_EACH]
        worst = sorted(worst + candidates, key=lambda c: (c.f1, -c.labels, c.iou))[:_EACH]
    shown = {c.item for c in best}
    worst = [c for c in worst if c.item not in shown]
    return [_draw(predictor, c, c.item in shown) for c in best + worst], best[0].item


def rate_maps(predictor: Predictor, bundle: Bundle, timesteps: int, item: int) -> list[ReportPicture]:
    """Draw the spikes per neuron of some layers on one window, averaged over channels, for each layer and timestep."""
    recorder = _RateRecorder(bundle, timesteps)
    recorder.run(torch.from_numpy(predictor.seen(predictor.dataset[item].window)[None]).float())
    names = list(recorder.maps)
    pictures = []
    for k in np.unique(np.linspace(0, len(names) - 1, _LAYERS).astype(int)):
        rates = recorder.maps[names[k]]
        top = max(float(rates.max()), 1e-9)
        for t, rate in enumerate(rates):
            big = cv2.resize((255 * rate / top).astype(np.uint8), (180, 142), interpolation=cv2.INTER_NEAREST)
            coloured = np.asarray(cv2.applyColorMap(big, cv2.COLORMAP_INFERNO), np.uint8)
            name = names[k].removeprefix("net.").removesuffix(".relu")
            pictures.append(ReportPicture(f"{name}, t = {t + 1}: up to {top:.2f}", _url(coloured)))
    return pictures


class _RateRecorder(SpikingNetwork):
    def __init__(self, bundle: Bundle, timesteps: int) -> None:
        parameters = bundle.parameters
        super().__init__(bundle.spiking, SpikingParameters(timesteps, parameters.neurons, parameters.readout_shift))
        self.maps: dict[str, NDArray[np.float32]] = {}

    def observe(self, node: Node, value: torch.Tensor) -> None:
        if node.op == "relu":
            counts = value / self.parameters.neurons[node.name].theta[:, None, None]
            self.maps[node.name] = counts.mean(1).numpy()


def _draw(predictor: Predictor, candidate: _Candidate, best: bool) -> ReportPicture:
    spec = predictor.dataset.spec
    item = predictor.dataset[candidate.item]
    grid = predictor.grid(item.window)
    scale = max(1, round(_WIDTH / spec.sensor_size.width))
    picture = events_picture(grid, spec.sensor_size, scale)
    for rows, colour, thickness in ((candidate.frame.labels, _LABEL, 3), (candidate.frame.predictions, _PREDICTION, 2)):
        for row in rows[rows["class_confidence"] >= SHOWN_SCORE] if rows is candidate.frame.predictions else rows:
            x0, y0 = round(float(row["x"]) * scale), round(float(row["y"]) * scale)
            x1, y1 = round(float(row["x"] + row["w"]) * scale), round(float(row["y"] + row["h"]) * scale)
            cv2.rectangle(picture, (x0, y0), (x1, y1), colour, thickness, cv2.LINE_AA)
            if colour == _PREDICTION:
                name = spec.classes[row["class_id"]] if row["class_id"] < len(spec.classes) else str(row["class_id"])
                _tag(picture, f"{name} {row['class_confidence']:.2f}", x0, y0)
    return ReportPicture(f"{item.name}: F1 {candidate.f1:.2f}", _url(picture), best)


def _tag(picture: NDArray[np.uint8], text: str, x: int, y: int) -> None:
    (w, h), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    x, top = min(max(x, 0), picture.shape[1] - w - 8), y - h - 8 if y >= h + 8 else y
    cv2.rectangle(picture, (x, top), (x + w + 8, top + h + 8), _PREDICTION, -1)
    cv2.putText(picture, text, (x + 4, top + h + 3), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)


def _url(picture: NDArray[np.uint8]) -> str:
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise ValueError("OpenCV cannot write PNG")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()
