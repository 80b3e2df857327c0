"""Detection in many recordings: a folder of results each, a table over all, a damaged one does not stop the others."""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evburst.app.config import to_dict
from evburst.app.detect import DetectConfig, detect_file
from evburst.app.outputs.folder import RunFolder, read_summary, write_text
from evburst.app.outputs.sinks import SINKS
from evburst.app.processes import barrier, process_group
from evburst.data.errors import ConfigError, DataError, EvburstError
from evburst.data.readers import SUFFIXES
from evburst.models.bundle import DetectorBundle

log = logging.getLogger("evburst")

TABLE = "summary.csv"
_COLUMNS = (
    "recording",
    "folder",
    "status",
    "windows",
    "idle_windows",
    "events",
    "detections",
    "recorded_s",
    "real_time_factor",
)
_LABELS = ("_bbox.npy",)


def find_recordings(patterns: Sequence[str | Path]) -> list[Path]:
    """The recordings that files, folders and glob patterns name, in order, each once.

    A folder stands for every file below it whose name ends as a recording's does; hidden files and box files are left out.

    Raises:
        ConfigError: a pattern or a folder holds no recording.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if not str(pattern):
            raise ConfigError("--events: an empty name; is a variable of the shell empty?")
        path = Path(pattern)
        if path.is_dir():
            some = sorted(file for file in path.rglob("*") if _is_recording(file))
        elif not os.path.lexists(path) and glob.has_magic(str(pattern)):
            some = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if Path(name).is_file())
        else:
            some = [path]
        if not some:
            what = f"no file named *{', *'.join(sorted(SUFFIXES))}" if path.is_dir() else "no file matches"
            raise ConfigError(f"{pattern}: {what}")
        found.update(dict.fromkeys(some))
    return list(found)


def _is_recording(path: Path) -> bool:
    hidden = path.name.startswith(".") or path.name.endswith(_LABELS)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def result_folders(recordings: Sequence[Path], out: Path) -> list[Path]:
    """A folder below `out` for each recording, never one for two: its place below the folder that all have in common."""
    base = common_folder(recordings)
    places = [path.absolute().relative_to(base) for path in recordings]
    plain = [place.with_suffix("") for place in places]
    taken = Counter([*plain, *places])
    return [out / (short if taken[short] == 1 else place) for place, short in zip(places, plain, strict=True)]


def one_file(patterns: Sequence[str | Path]) -> bool:
    """Whether they name a single file, rather than a folder or a pattern."""
    path = Path(patterns[0])
    if not str(patterns[0]):
        return False
    is_pattern = glob.has_magic(str(path)) and not os.path.lexists(path)
    return len(patterns) == 1 and not path.is_dir() and not is_pattern


def common_folder(recordings: Sequence[Path]) -> Path:
    """The deepest folder that holds all of them."""
    return Path(os.path.commonpath([path.absolute().parent for path in recordings]))


def detect_many(
    recordings: Sequence[Path], out: Path | None, config: DetectConfig, skip_existing: bool = False
) -> tuple[list[dict[str, Any]], str]:
    """Detect in every recording and write OUT/summary.csv; returns the summaries, and a line on all of them.

    Under torchrun every process takes its share of the recordings, and the first one writes the table.

    Args:
        recordings: the files.
        out: folder of the results; None for one below runs/detect, named after the folder of the recordings.
        config: settings of every run.
        skip_existing: leave out recordings whose folder holds a complete run of the same settings.

    Raises:
        DataError: some of the recordings failed; the others are done.
    """
    out = out or Path("runs") / "detect" / (common_folder(recordings).name or "all")
    folders = result_folders(recordings, out)
    bundle = DetectorBundle.load(config.weights)
    with process_group() as (rank, world):
        mine = list(zip(recordings, folders, strict=True))[rank::world]
        for number, (path, folder) in enumerate(mine, 1):
            if skip_existing and _is_done(folder, path, config):
                continue
            try:
                summary = detect_file(path, folder, config, bundle)
                log.info(
                    "%d of %d: %s: %d boxes in %d windows", number, len(mine), path, summary["detections"], summary["windows"]
                )
            except EvburstError as error:
                log.error("%s", error)
                _note_failure(folder, path, error)
            if world == 1:
                _write_table(out, recordings, folders)
        barrier(world)
        if rank > 0:
            return [], ""
        summaries = _write_table(out, recordings, folders)
    failed = sum(summary["status"] != "complete" for summary in summaries)
    if failed:
        raise DataError(f"{failed} of {len(recordings)} recordings failed: see {out / TABLE}")
    windows, boxes = (sum(summary[name] for summary in summaries) for name in ("windows", "detections"))
    return (
        summaries,
        f"{len(summaries)} recordings: {windows:,} windows, {boxes:,} boxes\nwritten   {out}/: {TABLE}, a folder each",
    )


def _is_done(folder: Path, path: Path, config: DetectConfig) -> bool:
    """Whether the folder holds a complete run of this recording with these settings."""
    summary = read_summary(folder)
    return (
        summary is not None
        and summary["status"] == "complete"
        and summary.get("events_path") == str(path.resolve())
        and summary.get("config") == json.loads(json.dumps(to_dict(config)))
    )


def _note_failure(folder: Path, path: Path, error: EvburstError) -> None:
    """Leave a summary that says why there are no results; what an earlier run left there is deleted."""
    with suppress(EvburstError), RunFolder(folder, path, [entry.file for entry in SINKS.values()]) as run:
        run.write_summary({"status": "failed", "error": str(error)})


def _write_table(out: Path, recordings: Sequence[Path], folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Write a row for every recording that has been tried; returns the summaries they are made from."""
    summaries = []
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*_COLUMNS, "snn_uj", "share_of_ann", "latency_p50_ms", "per_class", "faults", "error"])
    for path, folder in zip(recordings, folders, strict=True):
        summary = read_summary(folder)
        if summary is None or summary.get("events_path") != str(path.resolve()):
            continue
        summaries.append(summary)
        energy, latency = summary.get("energy") or {}, summary.get("latency_ms") or {}
        known = {**summary, "recording": str(path), "folder": str(folder.relative_to(out))}
        pj = energy.get("snn_pj")
        rows.writerow(
            [
                *(known.get(name, "") for name in _COLUMNS),
                "" if pj is None else round(pj * 1e-6, 1),
                energy.get("ratio", ""),
                latency.get("p50", ""),
                _listed(summary.get("per_class")),
                _listed(summary.get("faults")),
                summary.get("error", ""),
            ]
        )
    write_text(out / TABLE, text.getvalue())
    return summaries


def _listed(counts: dict[str, int] | None) -> str:
    return "; ".join(f"{name} {count}" for name, count in (counts or {}).items())
