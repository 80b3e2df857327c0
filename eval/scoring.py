"""Predictions against labels: the figures of one detector under one protocol. Needs no network and no torch.

`score_files` is `evaluate.py --predictions A_bbox.npy ... --labels B_bbox.npy ...`: anybody's detector, in Prophesee's format.
Rows and results are dictionaries in the JSON types of `evburst.eval.results`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import load_prophesee_boxes
from evburst.data.errors import ConfigError, DataError, EvburstError, LabelError, SensorSizeError
from evburst.data.events import SensorSize, check_sensor_size
from evburst.data.readers import open_events
from evburst.eval.coco import RECALLS, STATS, CocoResult, coco_result
from evburst.eval.matching import calibration, match_predictions
from evburst.eval.protocol import PROTOCOLS, Frame, LeftOut, Protocol, RecordingBoxes, match
from evburst.eval.results import VERSION

_LOG = logging.getLogger(__name__)
_RECORDINGS = ("_td.dat", ".dat", "_td.raw", ".raw", ".aedat4", ".h5", ".hdf5")
_ROWS = (
    "AP",
    "AP50",
    "AP75",
    "AP small",
    "AP medium",
    "AP large",
    "AR 1",
    "AR 10",
    "AR 100",
    "AR small",
    "AR medium",
    "AR large",
)
_ENDINGS = ("_bbox", "_boxes", "_predictions", "_labels", "_pred", "_gt", "_td")


@dataclass(frozen=True)
class ScoreConfig:
    """Settings of scoring box files.

    Attributes:
        protocol: name in evburst.eval.protocol.PROTOCOLS.
        sensor_size: WIDTHxHEIGHT; decides which smallest box is scored, and where boxes are cut if the protocol cuts them. None: as
            the recordings beside the label files state it (NAME_td.dat beside NAME_bbox.npy).
        classes: names of the classes, in the order of their numbers; boxes of other classes are left out.
    """

    protocol: str = "prophesee"
    sensor_size: str | None = None
    classes: tuple[str, ...] = ("car", "pedestrian")


def find_protocol(name: str) -> Protocol:
    """A protocol by name; raises ConfigError that lists them."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown (known: {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


def score_files(predictions: Sequence[Path], labels: Sequence[Path], config: ScoreConfig) -> dict[str, Any]:
    """Score pairs of box files (or of folders of them).

    Raises:
        EvburstError: a file cannot be used, the files do not pair, or nothing is left to score.
    """
    protocol, pairs = find_protocol(config.protocol), pair_files(predictions, labels)
    size = SensorSize.parse(config.sensor_size) if config.sensor_size else _stated_size([truth for _, truth in pairs])
    recordings = [RecordingBoxes(load_prophesee_boxes(truth), load_prophesee_boxes(found)) for found, truth in pairs]
    _check_sensor(recordings, size)
    _check_clock(recordings, protocol)
    foreign = sum(
        int((boxes["class_id"] >= len(config.classes)).sum()) for r in recordings for boxes in (r.labels, r.predictions)
    )
    if foreign:
        _LOG.info("note: %d boxes of classes other than %s do not count (--classes)", foreign, ", ".join(config.classes))
    result, left_out, frames = score(recordings, protocol, size, config.classes)
    row = {"model": "predictions", "timesteps": None, **ap_figures(result), "left_out": asdict(left_out)}
    return {
        "version": VERSION,
        "results": [{**row, "details": detail_figures(result, frames, config.classes)}],
        "coco_stats": row["coco_stats"],
        **describe(protocol, size, config.classes),
        "dataset": "files",
        "split": None,
        "recordings": len(pairs),
        "files": [{"predictions": found.name, "labels": truth.name} for found, truth in pairs],
    }


def score(
    recordings: Sequence[RecordingBoxes], protocol: Protocol, size: SensorSize, classes: Sequence[str]
) -> tuple[CocoResult, LeftOut, list[Frame]]:
    """COCO's figures over all recordings, what the protocol left out, and what it scored.

    Raises:
        DataError: the protocol leaves nothing to score.
    """
    frames, left_out = match(recordings, protocol, size)
    if not any(len(frame.labels) for frame in frames):
        raise DataError(f"protocol {protocol.name}: no label is left to score ({_why(recordings, protocol, size)})")
    if left_out.unmatched:
        within = f"within {protocol.tolerance_us / 1000:g} ms of one" if protocol.tolerance_us else "made exactly at one"
        text = "note: %d predictions belong to no labelled time: protocol %s takes those %s"
        _LOG.info(text, left_out.unmatched, protocol.name, within)
    return coco_result(frames, classes), left_out, frames


def ap_figures(result: CocoResult) -> dict[str, Any]:
    """The AP part of a result, in percent; `coco_stats` is pycocotools' own list of twelve (fractions, -1: no such label)."""
    summary = asdict(result.summary)
    figures = {name: _percent(summary[name]) for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")}
    per_class = {name: {k: _percent(v) for k, v in row.items()} for name, row in result.summary.per_class.items()}
    by_iou = {iou: _percent(ap) for iou, ap in result.ap_by_iou.items()}
    stats = result.stats.tolist()
    return {"frames": summary["frames"], **figures, "ap_by_iou": by_iou, "per_class": per_class, "coco_stats": stats}


def detail_figures(result: CocoResult, frames: Sequence[Frame], classes: Sequence[str]) -> dict[str, Any]:
    """Sizes and recalls per class, precision curves, confusion and calibration; numbers that do not exist are null."""
    areas = ("all", "small", "medium", "large")
    sizes = {
        name: {area: _mean_percent(result.precision[:, :, c, a]) for a, area in enumerate(areas)}
        for c, name in enumerate(classes)
    }
    curves = {
        name: {iou: _rounded(result.precision[k, :, c, 0]) for k, iou in ((0, "0.50"), (5, "0.75"))}
        for c, name in enumerate(classes)
    }
    matches = match_predictions(frames, len(classes))
    scores = calibration(matches)
    return {
        "ap_by_size": sizes,
        "recall_50": {name: _fraction(result.recall[0, c, 0]) for c, name in enumerate(classes)},
        "recalls": [round(float(r), 2) for r in RECALLS],
        "precision_curves": curves,
        "confusion": {
            "score": 0.3,
            "iou": 0.5,
            "rows": [*classes, "nothing there"],
            "columns": [*classes, "not found"],
            "counts": matches.confusion.tolist(),
        },
        "calibration": {
            "from_score": scores.from_score,
            "error": None if math.isnan(scores.error) else round(scores.error, 4),
            "count": scores.count.tolist(),
            "confidence": [None if math.isnan(v) else round(v, 4) for v in scores.confidence.tolist()],
            "precision": [None if math.isnan(v) else round(v, 4) for v in scores.precision.tolist()],
        },
    }


def describe(protocol: Protocol, size: SensorSize, classes: Sequence[str]) -> dict[str, Any]:
    """What a figure has to be quoted with."""
    rule = {**asdict(protocol), "smallest_box": protocol.size_rule(size)._asdict()}
    del rule["small"], rule["large"]
    names = {"coco_stats_names": list(STATS)}
    return {"protocol": protocol.name, "protocol_rule": rule, "sensor_size": list(size), "classes": list(classes), **names}


def pair_files(predictions: Sequence[Path], labels: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs (predictions, labels): by name where the names say it (without _bbox and the like), else in order."""
    found, truth = _expand(predictions), _expand(labels)
    if len(found) != len(truth):
        raise ConfigError(f"{len(found)} files of predictions, {len(truth)} of labels: give one for each")
    by_name = {_stem(path): path for path in found}
    if len(by_name) == len(found) and {_stem(path) for path in truth} == by_name.keys():
        found = [by_name[_stem(path)] for path in truth]
    return list(zip(found, truth, strict=True))


def _expand(paths: Sequence[Path]) -> list[Path]:
    """Files as given; a folder stands for its .npy files, sorted, without hidden ones (macOS puts a `._NAME` beside NAME)."""
    out: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.glob("*.npy") if not p.name.startswith(".")) if path.is_dir() else [path]
        if not inside:
            raise LabelError(f"{path}: no .npy file in this folder")
        out += inside
    return out


def _stem(path: Path) -> str:
    stem = path.stem
    while ending := next((e for e in _ENDINGS if stem.endswith(e)), None):
        stem = stem.removesuffix(ending)
    return stem


def _stated_size(labels: Sequence[Path]) -> SensorSize:
    """The sensor size that recordings beside the label files state in their headers; SensorSizeError without one, or with two."""
    sizes: dict[SensorSize, Path] = {}
    for path in labels:
        name = path.stem.removesuffix("_bbox")
        for beside in (path.with_name(name + ending) for ending in _RECORDINGS):
            if beside.is_file():
                with suppress(EvburstError):  # one that needs the size to be given, or cannot be read
                    sizes.setdefault(open_events(beside).sensor_size, beside)
    if len(sizes) == 1:
        return next(iter(sizes))
    if sizes:
        told = ", ".join(f"{path.name} {size}" for size, path in sizes.items())
        raise SensorSizeError(f"the recordings beside the labels are of several sensors ({told}): score each by itself")
    raise SensorSizeError(
        "box files do not say how large the sensor is, which decides the boxes that are scored: "
        "pass --sensor-size WIDTHxHEIGHT, e.g. 304x240 for Gen1, 1280x720 for 1 Mpx"
    )


def _check_clock(recordings: Sequence[RecordingBoxes], protocol: Protocol) -> None:
    """Stop where no prediction is made at a label's time, the protocol's tolerance included: the clocks must differ."""
    predicted = [r for r in recordings if len(r.predictions) and len(r.labels)]
    if not predicted:
        return
    for r in predicted:
        labelled = np.unique(r.labels["t"])
        times = np.unique(r.predictions["t"])
        near = np.searchsorted(labelled, times + protocol.tolerance_us, "right")
        if (near > np.searchsorted(labelled, times - protocol.tolerance_us, "left")).any():
            return
    labels, found = (np.concatenate([getattr(r, side)["t"] for r in predicted]) for side in ("labels", "predictions"))
    raise DataError(
        f"no prediction is made at a labelled time: labels are at {_range(labels)}, predictions at {_range(found)}; protocol "
        f"{protocol.name} takes those "
        + (f"within {protocol.tolerance_us / 1000:g} ms of one" if protocol.tolerance_us else "made exactly at one")
    )


def _range(t_us: NDArray[np.int64]) -> str:
    return f"{t_us.min() / 1e6:.6f} to {t_us.max() / 1e6:.6f} s"


def _check_sensor(recordings: Sequence[RecordingBoxes], size: SensorSize) -> None:
    """Stop where many labels begin outside the sensor: its size must be wrong."""
    outside = sum(int(((r.labels["x"] >= size.width) | (r.labels["y"] >= size.height)).sum()) for r in recordings)
    total = sum(len(r.labels) for r in recordings)
    check_sensor_size("labels", size, total - outside, outside, "labels")


def _why(recordings: Sequence[RecordingBoxes], protocol: Protocol, size: SensorSize) -> str:
    total = sum(len(r.labels) for r in recordings)
    if not total:
        return "there is none"
    diagonal, side = protocol.size_rule(size)
    skip = f" and those at or before {protocol.skip_us / 1e6:g} s" if protocol.skip_us else ""
    return f"all {total} are left out: sides below {side:g}, diagonals below {diagonal:g}{skip}; --protocol coco takes all"


def _mean_percent(precision: NDArray[np.float64]) -> float | None:
    valid = precision[precision > -1]
    return _percent(100 * float(valid.mean())) if valid.size else None


def _rounded(curve: NDArray[np.float64]) -> list[float] | None:
    return None if (curve < 0).all() else [round(float(p), 4) for p in curve]


def _fraction(value: float) -> float | None:
    return None if value < 0 else round(float(value), 4)


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def without_details(results: dict[str, Any]) -> dict[str, Any]:
    """Results as they are printed: curves and tables stay in results.json."""
    return {**results, "results": [{k: v for k, v in row.items() if k != "details"} for row in results["results"]]}


def human_scores(results: dict[str, Any]) -> str:
    """The figures for a person, AP in percent; a dash where there is no label of that kind."""
    row, size = results["results"][0], "x".join(str(side) for side in results["sensor_size"])
    lines = [
        f"protocol  {results['protocol']}, sensor {size}: {row['frames']} labelled times, {len(results['files'])} recordings; percent"
    ]
    lines += [f"{name:<12}{_show(None if v < 0 else 100 * v):>7}" for name, v in zip(_ROWS, row["coco_stats"], strict=True)]
    width = max(12, *(len(name) + 2 for name in row["per_class"]))
    lines.append(f"{'class':<{width}}{'AP':>7}{'AP50':>7}")
    lines += [f"{name:<{width}}{_show(v['ap']):>7}{_show(v['ap50']):>7}" for name, v in row["per_class"].items()]
    return "\n".join(lines)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
