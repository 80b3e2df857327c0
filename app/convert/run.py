"""From a trained network to a weights file of burst neurons.

The steps are: fold, measure each layer's sensitivity, choose burst limits and thresholds on the Pareto frontier (search.py),
calibrate, distil (conversion.py), calibrate the scores (score_maps.py), measure, save. What is learned comes from the split
"train", what is chosen from "select", what is reported from "val" ("test" of recordings with a class each). Beside the
weights file lie the files of the search, NAME_report.json and .png, and with advanced calibration NAME_descent.csv and .png
(descent.py).
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from evburst.app.convert.checkpoints import chosen_on_select, read_converted
from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.conversion import Conversion, beside
from evburst.app.convert.data import UNLABELLED
from evburst.app.convert.score_maps import takes_score_maps, with_score_maps
from evburst.app.convert.scores import compare_with_ann
from evburst.app.convert.search import choose
from evburst.app.outputs.folder import write_json
from evburst.app.outputs.paths import refuse_overwriting
from evburst.app.plots.conversion import FRONTIER, draw_report
from evburst.app.provenance import provenance
from evburst.app.scoring import SCORINGS
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import Dataset
from evburst.data.datasets.selection import SELECT
from evburst.data.errors import DataError
from evburst.data.files import begins_with, only_writer, read_json, refuse_foreign
from evburst.data.text import number_of
from evburst.eval.energy import HEADLINE
from evburst.models.bundle import Bundle, find_weights, read_kind
from evburst.models.spiking.convert.report import conversion_report

_TRAINING = ("config", "epoch", "validation", "chosen_on", "commit", "machine")
"""Parts of the training record that the weights file keeps."""
_PATHS = ("root", "out", "weights", "blend_with", "init")
_SCORE_WINDOWS = 1024
"""Most windows on which scores are calibrated."""
_LOG = logging.getLogger(__name__)


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert a network, measure it and save it; return the record that is saved with the weights.

    Raises:
        EvburstError: the weights or the data cannot be used; no choice meets the settings; a file that would be replaced is not
            evburst's; or another process writes the same file.
    """
    inputs = [find_weights(name) for name in (config.weights, config.blend_with) if name]
    out = Path(config.out)
    refuse_overwriting(out, inputs, overwrite=True)
    if read_kind(out) not in ("", "detector"):
        raise DataError(f"{out}: holds a {read_kind(out)!r} checkpoint, not converted weights: choose another file with --out")
    for file in (out, *_files_beside(config)):
        refuse_foreign([file], _is_ours(file))
    with only_writer(out.parent, out.name):
        return _convert(config, out)


def _files_beside(config: ConvertConfig) -> list[Path]:
    """The files that a conversion writes beside the weights file."""
    names = ["report.json", "report.png"]
    names += ["sensitivity.npz", "frontier.csv", "frontier.png"] if config.searches else []
    names += ["descent.safetensors", "descent.csv", "descent.png"] if config.distils else []
    return [beside(Path(config.out), name) for name in names]


def _is_ours(file: Path) -> bool:
    """Whether a conversion has written a file, as its beginning shows; a picture is ours if the table that it shows is."""
    with suppress(OSError, ValueError, EOFError, BadZipFile):
        match file.suffix:
            case ".json":
                return "timesteps" in read_json(file)
            case ".csv":
                return begins_with(file, ",".join(FRONTIER), "minutes,windows")  # the search's, or the descent's
            case ".npz":
                with file.open("rb") as raw, np.load(raw, allow_pickle=False) as arrays:
                    return "identity" in arrays.files
            case ".png":
                return any(_is_ours(file.with_suffix(suffix)) for suffix in (".json", ".csv"))
            case _:
                return bool(read_kind(file))
    return False


def human_line(config: ConvertConfig, record: dict[str, Any]) -> str:
    """One line for the user: the file, its loss or its divergence from the ANN, and its energy."""
    line = f"written   {config.out}: T = {record['conversion']['timesteps']}"
    if (found := record["conversion"].get("divergence")) is not None:
        energy = f"at {100 * found['energy_of_ann']:.1f} % of the dense ANN's energy ({HEADLINE.upper()})"
        where = f"on {found['windows']} windows held out, {energy}"
        return f"{line}; divergence from the ANN {found['mean']:.3g} {where}; the loss is unknown, because there are no labels"
    if (check := record.get("check")) is None:
        return f"{line}; its loss was not measured; `evburst evaluate --weights {config.out} --both` does so"
    loss, share = check["loss"], 100 * check["snn"]["energy_of_ann"][HEADLINE]
    bounds = "" if loss["low"] is None else f" [{loss['low']:.2f}, {loss['high']:.2f}]"
    task, unit = next((task, scoring.unit) for task, scoring in SCORINGS.items() if scoring.figures[0] in check["ann"])
    data = number_of(check["windows"], "window")
    if task == CLASSIFICATION:
        data = f"{number_of(loss['units'], 'recording')} ({data})"
    return (
        f"{line}; loses {loss['mean']:.2f}{bounds} {unit} on {data} of the split {check['split']!r}, "
        f"at {share:.1f} % of the dense ANN's energy ({HEADLINE.upper()})"
    )


def _convert(config: ConvertConfig, out: Path) -> dict[str, Any]:
    started = time.perf_counter()
    conversion = Conversion(config)
    # Opened before the work, so that missing data are reported at once.
    check_windows, score_windows = _windows_to_check(conversion), _windows_for_scores(conversion)
    bundle, found = _converted(conversion)
    if score_windows is not None:
        bundle, found["score_calibration"] = with_score_maps(bundle, score_windows)
    seconds = time.perf_counter() - started
    _write_report(conversion, bundle)
    record = _record(conversion, bundle, found, seconds)
    if check_windows is not None:
        record["check"] = compare_with_ann(bundle, check_windows, conversion.data.reported_split)
    replace(bundle, record=record).save(out)
    if config.distils:
        conversion.finish()
    return record


def _windows_to_check(conversion: Conversion) -> Dataset | None:
    """Open the windows on which the result is measured; None if it is not measured."""
    config = conversion.config
    if config.check_windows < 0 or config.unlabelled:
        return None
    try:
        return conversion.data.windows(conversion.data.reported_split, config.check_windows)
    except DataError as error:
        raise DataError(f"{error}; the result is measured on this split; --set check_windows=-1 skips that") from None


def _windows_for_scores(conversion: Conversion) -> Dataset | None:
    """Open the windows to which maps of the scores are fitted; None if scores are not calibrated."""
    config = conversion.config
    if not config.calibrate_scores or config.unlabelled or not takes_score_maps(conversion.unconverted):
        return None
    try:
        windows = conversion.tuning
        return windows if len(windows) <= _SCORE_WINDOWS else conversion.data.windows(SELECT, _SCORE_WINDOWS)
    except DataError as error:
        raise DataError(f"{error}; scores are calibrated on this split; --set calibrate_scores=false skips that") from None


def _converted(conversion: Conversion) -> tuple[Bundle, dict[str, Any]]:
    """Return the converted network, and how it was chosen and calibrated, for the record."""
    config = conversion.config
    if config.continues:
        bundle = conversion.continued(read_converted(config.weights))
        found: dict[str, Any] = {"continued_from": bundle.record["conversion"]}
    else:
        bundle, found = choose(conversion) if config.searches else (conversion.calibrated(config.uniform), {})
    if config.distils:
        measured = (one["share"] for one in found.get("tried", ()) if one["point"] == found["point"])
        share = next(measured, found.get("expected_share"))
        bundle, found["descent"] = conversion.distilled(bundle, config.budget or share)
    return conversion.with_margin(bundle), found


def _write_report(conversion: Conversion, bundle: Bundle) -> None:
    grids = conversion.grids[: conversion.config.sensitivity_windows]
    report = conversion_report(bundle.graph, bundle.spiking, bundle.parameters, grids)
    write_json(conversion.beside("report.json"), report.to_dict())
    draw_report(report, conversion.beside("report.png"))
    _LOG.info(report.table())


def _record(conversion: Conversion, bundle: Bundle, found: dict[str, Any], seconds: float) -> dict[str, Any]:
    config, trained = conversion.config, conversion.trained
    return {
        "dataset": UNLABELLED if config.unlabelled else conversion.settings.name,
        "sensor_size": list(conversion.sensor_size),
        "training": {
            **_without_folders({key: trained[key] for key in _TRAINING if key in trained}),
            **conversion.record["training"],
        },
        "conversion": {
            **_without_folders(asdict(config) | _kept(config, found.get("continued_from", {}))),
            "timesteps": bundle.parameters.timesteps,
            "chosen_on": UNLABELLED if config.unlabelled else SELECT,
            "network_trained_on_select": not chosen_on_select(trained),
            **found,
            **conversion.adaptive(bundle),
            **conversion.divergence(bundle),
            "seconds": round(seconds, 1),
            **provenance(),
        },
    }


def _kept(config: ConvertConfig, before: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a continued network keeps, from its earlier record."""
    kept = {name: before[name] for name in ("phi_max", "thresholds", "signed", "level") if name in before}
    if before and config.distils:
        kept["level"] = "advanced"
    pruned = [share for share in (config.prune, before.get("prune")) if share is not None]
    return kept | {"margin": max(config.margin, before.get("margin", 0.0)), "prune": max(pruned, default=None)}


def _without_folders(value: Any) -> Any:
    """Return a record without the folders of this machine: of each path, the last part is kept."""
    if isinstance(value, dict):
        return {k: Path(v).name if k in _PATHS and v else _without_folders(v) for k, v in value.items() if k != "cache"}
    return value
