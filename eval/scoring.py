"""Scores of a detector's predictions against labels, under one protocol. Needs neither a network nor torch.

`score_files` implements `evaluate.py --predictions A_bbox.npy ... --labels B_bbox.npy ...`, for any detector that writes
Prophesee's format. Rows and results are dictionaries in the JSON types of `evburst.eval.results`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.boxes import load_prophesee_boxes
from evburst.data.errors import ConfigError, DataError, EvburstError, LabelError, SensorSizeError, require_all
from evburst.data.events import SensorSize, check_sensor_size
from evburst.data.readers import open_events, recording_suffixes
from evburst.data.text import number_of
from evburst.eval.coco import RECALLS, STATS, CocoResult, coco_result, mean_percent
from evburst.eval.matching import SAME_IOU, SHOWN_SCORE, calibration, match_predictions
from evburst.eval.protocol import PROTOCOLS, Frame, LeftOut, Protocol, RecordingBoxes, match
from evburst.eval.results import VERSION
from evburst.eval.score_maps import class_errors, rounded_or_none

_LOG = logging.getLogger(__name__)
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
_NAME_SUFFIXES = ("_bbox", "_boxes", "_predictions", "_labels", "_pred", "_gt", "_td")


@dataclass(frozen=True)
class ScoreConfig:
    """Settings for scoring box files.

    Attributes:
        protocol: name in evburst.eval.protocol.PROTOCOLS.
        sensor_size: WIDTHxHEIGHT; determines the minimum box size, and where boxes are clipped if the protocol clips them.
            None: as stated by the recordings next to the label files (NAME_td.dat next to NAME_bbox.npy).
        classes: class names, in the order of their numbers; boxes of other classes are ignored.
    """

    protocol: str = "prophesee"
    sensor_size: str | None = None
    classes: tuple[str, ...] = ("car", "pedestrian")

    def __post_init__(self) -> None:
        names = [name.strip() for name in self.classes]
        received = ", ".join(map(repr, self.classes)) or "none"
        checks = {
            "classes must be names, none of them empty": bool(names) and all(names),
            f"classes must differ: each number is a class with a name of its own; received {received}": len(set(names))
            == len(names),
        }
        require_all(checks, self)


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; raises a ConfigError that lists all if it is unknown."""
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown (known: {', '.join(PROTOCOLS)})")
    return PROTOCOLS[name]


def score_files(predictions: Sequence[Path], labels: Sequence[Path], config: ScoreConfig) -> dict[str, Any]:
    """Score pairs of box files (or of folders of them).

    Raises:
        EvburstError: a file cannot be used, the files cannot be paired, or nothing is left to score.
    """
    protocol, pairs = find_protocol(config.protocol), pair_files(predictions, labels)
    recordings = [
        RecordingBoxes(load_prophesee_boxes(label_file), load_prophesee_boxes(prediction_file, predictions=True))
        for prediction_file, label_file in pairs
    ]
    size = SensorSize.of_setting(config.sensor_size) or _stated_size([label_file for _, label_file in pairs])
    _check_sensor(recordings, size)
    _check_clock(recordings, protocol)
    n_other_classes = sum(
        int((boxes["class_id"] >= len(config.classes)).sum()) for r in recordings for boxes in (r.labels, r.predictions)
    )
    if n_other_classes:
        _LOG.warning("boxes of classes other than %s are ignored: %d (--classes)", ", ".join(config.classes), n_other_classes)
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
        "files": [{"predictions": prediction_file.name, "labels": label_file.name} for prediction_file, label_file in pairs],
    }


def score(
    recordings: Sequence[RecordingBoxes], protocol: Protocol, size: SensorSize, classes: Sequence[str]
) -> tuple[CocoResult, LeftOut, list[Frame]]:
    """Return COCO's result over all recordings, counts of what the protocol did not score, and the scored frames.

    Raises:
        DataError: the protocol leaves nothing to score.
    """
    frames, left_out = match(recordings, protocol, size)
    if not any((frame.labels["class_id"] < len(classes)).any() for frame in frames):
        raise DataError(
            f"protocol {protocol.name}: no label is left to score ({_explain_no_labels(recordings, protocol, size, classes)})"
        )
    if left_out.unmatched:
        within = f"within {protocol.tolerance_us / 1000:g} ms of one" if protocol.tolerance_us else "made exactly at one"
        text = "note: predictions at no labelled time with boxes to score: %d; protocol %s uses those %s"
        _LOG.info(text, left_out.unmatched, protocol.name, within)
    return coco_result(frames, classes), left_out, frames


def ap_figures(result: CocoResult) -> dict[str, Any]:
    """Return the AP part of a result, in percent; `coco_stats` are pycocotools' values (fractions, -1: no such label)."""
    summary = asdict(result.summary)
    figures = {name: rounded_or_none(summary[name]) for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")}
    per_class = {name: {k: rounded_or_none(v) for k, v in row.items()} for name, row in result.summary.per_class.items()}
    by_iou = {iou: rounded_or_none(ap) for iou, ap in result.ap_by_iou.items()}
    stats = result.stats.tolist()
    return {"frames": summary["frames"], **figures, "ap_by_iou": by_iou, "per_class": per_class, "coco_stats": stats}


def detail_figures(result: CocoResult, frames: Sequence[Frame], classes: Sequence[str]) -> dict[str, Any]:
    """Return AP by size and recall per class, precision curves, confusion and calibration; undefined values are None."""
    areas = ("all", "small", "medium", "large")
    sizes = {
        name: {area: rounded_or_none(mean_percent(result.precision[:, :, c, a])) for a, area in enumerate(areas)}
        for c, name in enumerate(classes)
    }
    curves = {
        name: {iou: _curve(result.precision[k, :, c, 0]) for k, iou in ((0, "0.50"), (5, "0.75"))}
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
            "score": SHOWN_SCORE,
            "iou": SAME_IOU,
            "rows": [*classes, "background"],
            "columns": [*classes, "missed"],
            "counts": matches.confusion.tolist(),
        },
        "calibration": {
            "from_score": scores.from_score,
            "error": rounded_or_none(scores.error),
            "count": scores.count.tolist(),
            "confidence": [rounded_or_none(v) for v in scores.confidence.tolist()],
            "precision": [rounded_or_none(v) for v in scores.precision.tolist()],
        },
        "ece": dict(zip(classes, class_errors(matches, len(classes)), strict=True)),
    }


def describe(protocol: Protocol, size: SensorSize, classes: Sequence[str]) -> dict[str, Any]:
    """Describe the protocol, sensor and classes, which must be quoted with AP values."""
    rule = {**asdict(protocol), "smallest_box": protocol.size_rule(size)._asdict()}
    del rule["small"], rule["large"]
    names = {"coco_stats_names": list(STATS)}
    return {"protocol": protocol.name, "protocol_rule": rule, "sensor_size": list(size), "classes": list(classes), **names}


def pair_files(predictions: Sequence[Path], labels: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pair files (predictions, labels): by name if the names match (without _bbox and the like), in order if none does.

    Raises:
        ConfigError: the numbers of files differ, or only some names match.
    """
    prediction_paths, label_paths = _list_files(predictions), _list_files(labels)
    if len(prediction_paths) != len(label_paths):
        raise ConfigError(
            f"{number_of(len(prediction_paths), 'file')} of predictions but {len(label_paths)} of labels: "
            "pass one of each per recording"
        )
    by_name, names = {_stem(path): path for path in prediction_paths}, {_stem(path) for path in label_paths}
    if len(by_name) == len(prediction_paths) and names == by_name.keys():
        prediction_paths = [by_name[_stem(path)] for path in label_paths]
    elif (unmatched := sorted(names ^ by_name.keys())) and names & by_name.keys():
        raise ConfigError(
            f"files without a partner of the same name: {', '.join(unmatched)}; give both files of every recording the same"
            " name, or of none"
        )
    elif len(label_paths) > 1:
        _LOG.info("note: names of predictions and labels do not match; files are paired in order")
    return list(zip(prediction_paths, label_paths, strict=True))


def _list_files(paths: Sequence[Path]) -> list[Path]:
    """Replace folders by their .npy files, sorted, without hidden ones (macOS puts a `._NAME` beside NAME)."""
    out: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.glob("*.npy") if not p.name.startswith(".")) if path.is_dir() else [path]
        if not inside:
            raise LabelError(f"{path}: no .npy file in this folder")
        out += inside
    return out


def _stem(path: Path) -> str:
    stem = path.stem
    while ending := next((e for e in _NAME_SUFFIXES if stem.endswith(e)), None):
        stem = stem.removesuffix(ending)
    return stem


def _stated_size(labels: Sequence[Path]) -> SensorSize:
    """Return the sensor size stated by recordings next to the label files; SensorSizeError if none or several are found."""
    sizes: dict[SensorSize, Path] = {}
    for path in labels:
        name = path.stem.removesuffix("_bbox")
        for ending, suffix in product(("_td", ""), sorted(recording_suffixes())):
            beside = path.with_name(name + ending + suffix)
            if beside != path and beside.is_file():
                with suppress(EvburstError):  # a recording that does not state its size, or cannot be read
                    sizes.setdefault(open_events(beside).sensor_size, beside)
    if len(sizes) == 1:
        return next(iter(sizes))
    if sizes:
        stated = ", ".join(f"{path.name} {size}" for size, path in sizes.items())
        raise SensorSizeError(f"the recordings beside the labels are of several sensors ({stated}): score each by itself")
    raise SensorSizeError(
        "box files do not state the sensor's size, which determines the boxes that are scored: "
        "pass --sensor-size WIDTHxHEIGHT, e.g. 304x240 for Gen1, 1280x720 for 1 Mpx"
    )


def _check_clock(recordings: Sequence[RecordingBoxes], protocol: Protocol) -> None:
    """Raise DataError if no prediction is close enough to a label's time, because the clocks must differ."""
    predicted = [r for r in recordings if len(r.predictions) and len(r.labels)]
    if not predicted:
        return
    for r in predicted:
        labelled = np.unique(r.labels["t"])
        times = np.unique(r.predictions["t"])
        last = np.searchsorted(labelled, times + protocol.tolerance_us, "right")
        if (last > np.searchsorted(labelled, times - protocol.tolerance_us, "left")).any():
            return
    labels, found = (np.concatenate([getattr(r, side)["t"] for r in predicted]) for side in ("labels", "predictions"))
    raise DataError(
        f"no prediction is made at a labelled time: labels are at {_range(labels)}, predictions at {_range(found)}; protocol "
        f"{protocol.name} uses those "
        + (f"within {protocol.tolerance_us / 1000:g} ms of one" if protocol.tolerance_us else "made exactly at one")
    )


def _range(t_us: NDArray[np.int64]) -> str:
    return f"{t_us.min() / 1e6:.6f} to {t_us.max() / 1e6:.6f} s"


def _check_sensor(recordings: Sequence[RecordingBoxes], size: SensorSize) -> None:
    """Raise SensorSizeError if many labels start outside the sensor, because its size must be wrong."""
    outside = sum(int(((r.labels["x"] >= size.width) | (r.labels["y"] >= size.height)).sum()) for r in recordings)
    total = sum(len(r.labels) for r in recordings)
    check_sensor_size("labels", size, total - outside, outside, "labels")


def _explain_no_labels(
    recordings: Sequence[RecordingBoxes], protocol: Protocol, size: SensorSize, classes: Sequence[str]
) -> str:
    total = sum(len(r.labels) for r in recordings)
    if not total:
        return "there are no labels"
    if not any((r.labels["class_id"] < len(classes)).any() for r in recordings):
        return f"all {total} are of other classes than {', '.join(classes)}, which are numbered from 0; name all by --classes"
    diagonal, side = protocol.size_rule(size)
    skip = f" and those at or before {protocol.skip_us / 1e6:g} s" if protocol.skip_us else ""
    return f"all {total} are filtered out: sides below {side:g}, diagonals below {diagonal:g}{skip}; --protocol coco keeps all"


def _curve(curve: NDArray[np.float64]) -> list[float] | None:
    return None if (curve < 0).all() else [round(float(p), 4) for p in curve]


def _fraction(value: float) -> float | None:
    return None if value < 0 else round(float(value), 4)


def without_details(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results to print; curves and tables are only written to results.json."""
    return {**results, "results": [{k: v for k, v in row.items() if k != "details"} for row in results["results"]]}


def human_scores(results: dict[str, Any]) -> str:
    """Format the results as text, AP in percent; a dash means that there is no label of that kind."""
    row, size = results["results"][0], "x".join(str(side) for side in results["sensor_size"])
    lines = [
        f"protocol  {results['protocol']}, sensor {size}: {number_of(row['frames'], 'labelled time')}, "
        f"{number_of(len(results['files']), 'recording')}; percent"
    ]
    lines += [f"{name:<12}{_format(None if v < 0 else 100 * v):>7}" for name, v in zip(_ROWS, row["coco_stats"], strict=True)]
    width = max(12, *(len(name) + 2 for name in row["per_class"]))
    lines.append(f"{'class':<{width}}{'AP':>7}{'AP50':>7}")
    lines += [f"{name:<{width}}{_format(v['ap']):>7}{_format(v['ap50']):>7}" for name, v in row["per_class"].items()]
    return "\n".join(lines)


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
