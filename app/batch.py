"""Detection in many recordings: one result folder per recording and a summary table; failures do not stop the batch."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from evburst.app.config import to_dict
from evburst.app.detect import DetectConfig, DetectInterrupted, class_numbers, default_folder, detect_file
from evburst.app.outputs.folder import (
    OWN_FILES,
    SUMMARY,
    TABLE,
    TABLE_COLUMNS,
    RunFolder,
    is_table,
    outputs_of,
    path_of,
    read_summary,
    state_of,
    write_text,
)
from evburst.app.outputs.sinks import SINKS
from evburst.app.processes import all_gather, process_group
from evburst.app.recordings import below_common_folder, common_folder
from evburst.app.runs import load_weights
from evburst.data.errors import ConfigError, DataError, EvburstError
from evburst.data.files import only_writer, refuse_foreign
from evburst.data.text import number_of
from evburst.models.bundle import Bundle

_LOG = logging.getLogger(__name__)


def result_folders(recordings: Sequence[Path], out: Path) -> list[Path]:
    """Return a distinct folder below `out` for each recording.

    The folder mirrors the recording's path relative to the common folder, without the suffix unless that would be ambiguous, or
    the name of a batch's own file. Upper and lower case are the same, as in some file systems. If a recording has the folder's
    name, because results lie beside recordings, `-results` is appended.
    """
    relative = below_common_folder(recordings)
    stems = [path.with_suffix("") for path in relative]
    uses = Counter(str(path).casefold() for path in (*stems, *relative, *OWN_FILES))
    folders = [out / (stem if uses[str(stem).casefold()] == 1 else path) for path, stem in zip(relative, stems, strict=True)]
    taken = set(map(os.path.abspath, recordings))
    return [folder if os.path.abspath(folder) not in taken else Path(f"{folder}-results") for folder in folders]


def detect_or_skip(path: Path, out: Path | None, config: DetectConfig) -> dict[str, Any]:
    """Return the summary of `detect_file`, or that of an earlier run if it has done the same in the same folder.

    Raises:
        EvburstError, DetectInterrupted: see `detect_file`.
    """
    folder, bundle = out or default_folder(path), load_weights(config)
    summary = read_summary(folder)
    if summary is not None and _is_done(folder, summary, path, _settings(config, bundle)):
        _LOG.info("%s: done already, skipped", path)
        return summary
    return detect_file(path, folder, config, bundle)


class BatchError(DataError):
    """Some recordings failed; the others are complete.

    Args:
        message: how many.
        summary: the summaries of all recordings; of one that failed, `status` is "failed", and `error` says why.
        text: totals of the recordings, for the terminal.
    """

    def __init__(self, message: str, summary: list[dict[str, Any]], text: str) -> None:
        super().__init__(message)
        self.summary, self.text = summary, text


def detect_many(
    recordings: Sequence[Path], out: Path | None, config: DetectConfig, skip_existing: bool = False
) -> tuple[list[dict[str, Any]], str] | None:
    """Detect in every recording, write OUT/summary.csv, and return the summaries and a text for the terminal.

    Under torchrun every process handles a share of the recordings; rank 0 writes the table, and the others return None.

    Args:
        recordings: the files.
        out: output folder; None for runs/detect/NAME, where NAME is the recordings' common folder.
        config: settings for all recordings.
        skip_existing: skip recordings that have not changed since their folder's complete run, if weights and settings are
            those of that run.

    Raises:
        ConfigError: `out` contains a summary.csv that evburst has not written, or results of a single recording; or another
            process writes there.
        BatchError: some recordings failed; the others are complete.
        DetectInterrupted: Ctrl-C.
    """
    out = out or Path("runs") / "detect" / (common_folder(recordings).name or "all")
    folders = result_folders(recordings, out)
    if read_summary(out) is not None:
        raise ConfigError(f"{out}: holds the results of a single recording; use another --out")
    refuse_foreign([out / TABLE], config.overwrite or is_table(out / TABLE), "use another --out, or --overwrite")
    bundle = load_weights(config)
    class_numbers(config.classes, bundle.head.classes)
    failures = dict[str, str]()
    with process_group() as (rank, world), only_writer(out) if rank == 0 else nullcontext():
        pairs, begun = list(zip(recordings, folders, strict=True)), set[Path]()

        def write_table_so_far() -> list[dict[str, Any]]:
            return _write_table(out, [pair for pair in pairs if pair[0] in begun], failures)

        try:
            for failed in _detect_each(pairs[rank::world], config, bundle, skip_existing, begun):
                failures |= failed
                if world == 1:
                    write_table_so_far()
        except KeyboardInterrupt:
            if world > 1:
                raise
            summaries = write_table_so_far()
            raise DetectInterrupted(summaries, _totals_text(summaries, out), out) from None
        for content in all_gather(json.dumps(failures).encode(), world):
            failures |= json.loads(content)
        if rank > 0:
            return None
        summaries = _write_table(out, pairs, failures)
    text = _totals_text(summaries, out)
    if failed_count := len(recordings) - sum(summary["status"] == "complete" for summary in summaries):
        message = f"{failed_count} of {number_of(len(recordings), 'recording')} failed: see {out / TABLE}"
        raise BatchError(message, summaries, text)
    return summaries, text


def _detect_each(
    recordings: Sequence[tuple[Path, Path]], config: DetectConfig, bundle: Bundle, skip_existing: bool, begun: set[Path]
) -> Iterator[dict[str, str]]:
    """Detect in recordings, each with its folder; yield after each the error by recording, empty if it did not fail.

    Recordings that failed, or of which the folder holds results of this run or of one that did the same, are added to `begun`.
    """
    settings = _settings(config, bundle)
    if skip_existing:
        begun |= {path for path, folder in recordings if _is_done(folder, read_summary(folder) or {}, path, settings)}
    if begun:
        _LOG.info("%s done already, skipped", number_of(len(begun), "recording"))
    todo = [(path, folder) for path, folder in recordings if path not in begun]
    left = _TimeLeft([path for path, _ in todo])
    for number, (path, folder) in enumerate(todo, len(recordings) - len(todo) + 1):
        before, failed = _written_at(folder), dict[str, str]()
        try:
            summary = detect_file(path, folder, config, bundle)
        except Exception as error:  # also of own readers and sinks, or a bug: the others can be processed all the same
            text = str(error)
            if isinstance(error, EvburstError):
                _LOG.error("%s", text)
            else:
                text = f"{type(error).__name__}: {error}"
                trace = "" if isinstance(error, OSError | MemoryError) else f"\n{traceback.format_exc().rstrip()}"
                _LOG.error("%s: %s%s", path, text, trace)
            if _written_at(folder) == before:  # otherwise the run has written it, beside what it had computed
                _write_failure(folder, path, text)
            failed = {str(path): text}
        else:
            found = f"{number_of(summary['detections'], 'box', 'boxes')} in {number_of(summary['windows'], 'window')}"
            _LOG.info("%d of %d: %s: %s%s", number, len(recordings), path, found, left.after(path))
        finally:
            if failed or _written_at(folder) != before:
                begun.add(path)
        yield failed


def _totals_text(summaries: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Return the totals of a batch as text."""
    windows, boxes = (sum(summary.get(name, 0) for summary in summaries) for name in ("windows", "detections"))
    states = Counter(summary["status"] for summary in summaries)
    others = ", ".join(f"{count} {status}" for status, count in states.items() if status != "complete")
    recordings = number_of(len(summaries), "recording") + (f" ({others})" if others else "")
    text = f"{recordings}: {number_of(windows, 'window')}, {number_of(boxes, 'box', 'boxes')}"
    return f"{text}\nwritten   {out}/: {TABLE}, one folder per recording"


class _TimeLeft:
    """Estimates the remaining time of a batch: every recording takes some time, and every byte of it."""

    def __init__(self, recordings: Sequence[Path]) -> None:
        self._numbers = {path: number for number, path in enumerate(recordings, 1)}
        sizes = [path.stat().st_size / 1e6 if path.is_file() else 0.0 for path in recordings]
        self._sums = np.column_stack([np.arange(len(sizes) + 1), np.cumsum([0.0, *sizes])])  # recordings, MB
        self._before, self._started_s = 0, time.perf_counter()
        self._last_s, self._square, self._product = self._started_s, np.zeros((2, 2)), np.zeros(2)

    def after(self, path: Path) -> str:
        """Return the progress after a recording: bytes done, total bytes and time left; empty after the last one.

        Recordings before it count as done, including those that failed.
        """
        number, now_s = self._numbers[path], time.perf_counter()
        recent = self._sums[number] - self._sums[self._before]
        self._square += np.outer(recent, recent)
        self._product += recent * (now_s - self._last_s)
        self._before, self._last_s = number, now_s
        done, total = self._sums[number], self._sums[-1]
        if not 0 < done[1] < total[1]:
            return ""
        # Least squares of the times so far; while all recordings have one size, the bytes decide.
        (of_one, of_mb), _, rank, _ = np.linalg.lstsq(self._square, self._product, rcond=None)
        left, seconds = total - done, now_s - self._started_s
        if of_one < 0 or rank < 2:
            seconds *= left[1] / done[1]
        else:
            seconds = seconds * left[0] / done[0] if of_mb < 0 else of_one * left[0] + of_mb * left[1]
        return f"; {done[1]:,.1f} of {total[1]:,.1f} MB, about {seconds:,.0f} s left"


def _settings(config: DetectConfig, bundle: Bundle) -> dict[str, Any]:
    """Return the entries of a summary that say how a run was made, as they are in its file."""
    settings: dict[str, Any] = json.loads(json.dumps({"config": to_dict(config), "weights_record": bundle.record}))
    return settings


def _is_done(folder: Path, summary: dict[str, Any], path: Path, settings: dict[str, Any]) -> bool:
    """Return whether a folder's summary is of a complete run of this recording, as it is, with these `settings`, and all files
    of it are still there."""
    wanted = {"status": "complete", "events_path": path_of(path), **state_of(path), **settings}
    return wanted.items() <= summary.items() and all((folder / name).exists() for name in outputs_of(summary))


def _written_at(folder: Path) -> int | None:
    """Return when the folder's summary was written, ns; None if there is none."""
    try:
        return (folder / SUMMARY).stat().st_mtime_ns
    except OSError:
        return None


def _write_failure(folder: Path, path: Path, error: str) -> None:
    """Write a summary that states why the recording failed, except over complete results of an earlier run."""
    if (read_summary(folder) or {}).get("status") == "complete":
        return
    with suppress(EvburstError), RunFolder(folder, path, [], [entry.file for entry in SINKS.values()]) as run:
        run.write_summary({"status": "failed", "error": error})


def _write_table(out: Path, recordings: Sequence[tuple[Path, Path]], failures: Mapping[str, str]) -> list[dict[str, Any]]:
    """Write the table, one row for every recording processed so far, each given with its folder; return their summaries.

    `failures` (error by recording) count also where the folder could not be written, or holds complete results of before.
    """
    summaries = []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*TABLE_COLUMNS, "snn_uj", "counted_windows", "share_of_ann", "latency_p50_ms", "per_class", "faults", "error"]
    )
    for path, folder in recordings:
        summary = read_summary(folder)
        if str(path) in failures and (summary is None or summary["status"] != "failed"):
            about = {"events_file": path.name, "events_path": path_of(path)}
            summary = {**about, "status": "failed", "error": failures[str(path)]}
        if summary is None or summary.get("events_path") != path_of(path):
            continue
        summaries.append(summary)
        energy, latency = summary.get("energy") or {}, summary.get("latency_ms") or {}
        values = {**summary, "recording": str(path), "folder": str(folder.relative_to(out))}
        pj = energy.get("snn_pj")
        writer.writerow(
            [
                *(values.get(name, "") for name in TABLE_COLUMNS),
                "" if pj is None else round(pj * 1e-6, 1),
                energy.get("counted_windows", ""),
                energy.get("ratio", ""),
                latency.get("p50", ""),
                _join_counts(summary.get("per_class")),
                _join_counts(summary.get("faults")),
                summary.get("error", ""),
            ]
        )
    write_text(out / TABLE, text.getvalue())
    return summaries


def _join_counts(counts: dict[str, int] | None) -> str:
    return "; ".join(f"{name} {count}" for name, count in (counts or {}).items())
