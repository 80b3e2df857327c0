"""The folder of one run: it holds the outputs of one run and nothing of another.

While a run writes, it holds the folder's lock, and `summary.json` says "running"; at the end "complete", or why not. A run
begins by deleting what an earlier run left in the folder, as its summary lists it. What no run of evburst has written is never
deleted unasked.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from evburst.app.outputs.paths import same_file
from evburst.data.errors import ConfigError, DataError
from evburst.data.files import LOCK, begins_with, only_writer, read_json, refuse_foreign, replacing

SUMMARY, TABLE = "summary.json", "summary.csv"
OWN_FILES = (SUMMARY, TABLE, LOCK)
"""Files that no sink may write: those of every run and of a batch, and the lock of the folder."""
TABLE_COLUMNS = (
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
"""First columns of the table that stands above the folders of several recordings."""
_MARK, _OUTPUTS = "evburst_run", "outputs"


class RunFolder:
    """A folder that one run writes into, as a context manager.

    Args:
        path: the folder; created if it does not exist.
        source: the recording, which no output may replace.
        outputs: names of the files that this run writes, or patterns of them, `summary.json` left out.
        possible: the same of all files that a run can write.
        overwrite: replace files of these names even if no run of evburst has written them.

    Raises:
        ConfigError: another process writes there, a file there is not evburst's, or an output would replace the recording.
        DataError: it cannot be written to.
    """

    def __init__(
        self, path: Path, source: Path, outputs: Sequence[str], possible: Sequence[str], overwrite: bool = False
    ) -> None:
        self.path, self._source, self._overwrite = path, source, overwrite
        self._outputs, self._possible, self._stack = tuple(outputs), tuple(possible), ExitStack()
        about = {_MARK: 1, "events_file": source.name, "events_path": path_of(source), **state_of(source)}
        self._about = {**about, "folder": str(path), _OUTPUTS: self._outputs}

    def __enter__(self) -> RunFolder:
        with ExitStack() as stack:
            stack.enter_context(only_writer(self.path))
            self._clear()
            self._write_json({"status": "running"})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            status = {"status": "interrupted"} if interrupted else {"status": "failed", "error": str(error)}
            try:
                self.write_summary(status)
            except DataError:  # the disk may be full: the error that ended the run is the one to report
                self._overwrite_summary(status)
        self._stack.__exit__(kind, error, trace)

    def write_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Replace `summary.json`, all of it or nothing; returns what it now holds.

        Raises:
            DataError: it cannot be written, or is not there any more, and so what was written beside it is not either.
        """
        if not (self.path / SUMMARY).exists():
            raise DataError(f"{self.path}: was moved or emptied during the run, whose results are not there")
        # Of a pattern the files themselves, because later ones of such a name may be the user's.
        outputs = [file for name in self._outputs for file in (self._files_of(name) if glob.has_magic(name) else [name])]
        return self._write_json({_OUTPUTS: outputs, **summary})

    def _write_json(self, summary: dict[str, Any]) -> dict[str, Any]:
        content = {**self._about, **summary}
        write_json(self.path / SUMMARY, content)
        return content

    def _overwrite_summary(self, status: dict[str, str]) -> None:
        """Write the status over the summary in place: with the error if there is room, and else without, which needs none,
        because the summary is shorter without indents."""
        for content in (status, {"status": status["status"]}):
            with suppress(OSError):
                with (self.path / SUMMARY).open("r+") as file:
                    file.write(json.dumps({**self._about, **content}))
                    file.truncate()
                return

    def _clear(self) -> None:
        """Delete what an earlier run left, after checking that it was one, and that nothing else would be replaced."""
        if is_table(self.path / TABLE):
            raise ConfigError(f"{self.path}: holds the results of several recordings; use another --out")
        listed = outputs_in(self.path)
        left = self._found([name for name in listed if self._is_possible(name)])
        written = self._found([*self._outputs, SUMMARY])
        unknown = self._of_unknown_sinks(listed)
        files = list(dict.fromkeys([*left, *unknown, *written]))
        for file in files:
            if same_file(file, self._source):
                raise ConfigError(f"{file}: is the recording itself and would be replaced; use another --out")
            if file.is_dir():
                raise ConfigError(f"{file}: is a folder; use another --out")
        refuse_foreign([file for file in written if file not in left], self._overwrite, "use another --out, or --overwrite")
        if unknown and not self._overwrite:
            reason = "an earlier run with a sink that is not known here"
            raise ConfigError(f"{unknown[0]}: was written by {reason}; delete it, or use another --out, or --overwrite")
        try:
            for file in files:
                file.unlink()
        except OSError as error:
            raise DataError(f"{file}: cannot be replaced ({error.strerror})") from None
        for name in self._possible:
            if "/" in name and (name in listed or _folder_of(name) in listed):
                with suppress(OSError):  # it holds files that no run has written
                    (self.path / name).parent.rmdir()

    def _files_of(self, pattern: str) -> list[str]:
        """Return the names of what a pattern stands for: its folder, if it has one, and its files."""
        folder = [_folder_of(pattern)] if "/" in pattern else []
        return folder + [file.relative_to(self.path).as_posix() for file in self._found([pattern])]

    def _is_possible(self, name: str) -> bool:
        """Return whether a run can write a file of this name; a pattern stands for itself."""
        path, known = PurePosixPath(name), (SUMMARY, *self._possible)
        of_patterns = (PurePosixPath(pattern) for pattern in known if glob.has_magic(pattern))
        fits = (len(path.parts) == len(pattern.parts) and path.match(str(pattern)) for pattern in of_patterns)
        return name in known or (".." not in path.parts and not path.is_absolute() and any(fits))

    def _of_unknown_sinks(self, listed: Sequence[str]) -> list[Path]:
        """Return files of an earlier run with own sinks that are not registered here: they would stay beside this run's."""
        unknown = (name for name in listed if name not in self._outputs and not self._is_possible(name))
        names = [name for name in unknown if Path(name).name == name]
        return self._found([name for name in names if not glob.has_magic(name)])

    def _found(self, names: Sequence[str]) -> list[Path]:
        """Return the files of these names or patterns that exist."""
        plain = [self.path / name for name in names if not glob.has_magic(name)]
        patterns = (sorted(self.path.glob(name)) for name in names if glob.has_magic(name))
        return [*filter(os.path.lexists, plain), *chain.from_iterable(patterns)]


def _folder_of(name: str) -> str:
    return f"{PurePosixPath(name).parent}/"


def outputs_of(summary: dict[str, Any]) -> list[str]:
    """Return the names and patterns of what a run has written, by its summary, which may come from anywhere: whoever deletes or
    replaces checks them."""
    names = summary.get(_OUTPUTS, summary.get("written"))
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of the run that wrote into this folder; None if no run has."""
    summary = read_json(folder / SUMMARY)
    return summary if _MARK in summary else None


def path_of(source: Path) -> str:
    """Return the path of a recording from the root; that of a pipe as it is given, because it has no other name."""
    return str(source if os.path.exists(source) and not os.path.isfile(source) else source.resolve())


def is_table(path: Path) -> bool:
    """Return whether this is the table of an earlier run over several recordings."""
    return path.name == TABLE and begins_with(path, ",".join(TABLE_COLUMNS))


def state_of(source: Path) -> dict[str, int]:
    """Return size and time of change of a recording, from which a later run sees whether it is still the same."""
    try:
        found = source.stat()
    except OSError:
        return {}
    return {"events_bytes": found.st_size, "events_modified_ns": found.st_mtime_ns}


def outputs_in(folder: Path) -> list[str]:
    """Return the names of the files that a run has written into its folder; none if no run has."""
    summary = read_summary(folder)
    return [] if summary is None else [SUMMARY, *outputs_of(summary)]


def free_folder(base: Path, source: Path) -> Path:
    """Return `base`, or `base-2`, `base-3` ... if it holds the results of another recording, or files that no run has written.

    A pipe is another recording each time.
    """
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        before = read_summary(folder)
        if before is None and not (folder.is_dir() and any(folder.iterdir())):
            return folder
        if before is not None and before.get("events_path") == path_of(source) and os.path.isfile(source):
            return folder
    raise ConfigError(f"{base}: too many folders with this name; use another --out")


def write_json(path: Path, content: object) -> None:
    """Write a small JSON file, all of it or nothing; raises DataError if it cannot be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a small file, all of it or nothing; raises DataError if it cannot be written."""
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8", errors="backslashreplace")
