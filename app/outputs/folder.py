"""The folder of one run: it holds the outputs of one run and nothing of another.

While a run writes, it holds the folder's lock, and `summary.json` says "running"; at the end "complete", or why not. A run
begins by deleting what an earlier run left in the folder. What no run of evburst has written is never deleted.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from evburst.app.outputs.paths import same_file
from evburst.data.errors import ConfigError, DataError
from evburst.data.files import only_writer, read_json, refuse_foreign, replacing

SUMMARY = "summary.json"
_MARK = "evburst_run"


class RunFolder:
    """A folder that one run writes into, as a context manager.

    Args:
        path: the folder; made if it is not there.
        source: the recording, which no output may replace.
        outputs: names of the files that this run may write, or patterns of them, `summary.json` left out.
        overwrite: replace files of these names even if no run of evburst has written them.

    Raises:
        ConfigError: another process writes there, a file there is not evburst's, or an output would replace the recording.
        DataError: it cannot be written to.
    """

    def __init__(self, path: Path, source: Path, outputs: Sequence[str], overwrite: bool = False) -> None:
        self.path, self._source, self._outputs, self._overwrite = path, source, tuple(outputs), overwrite
        self._stack = ExitStack()
        self._about = {_MARK: 1, "events_path": str(source.resolve()), "folder": str(path)}

    def __enter__(self) -> RunFolder:
        with ExitStack() as stack:
            stack.enter_context(only_writer(self.path))
            self._clear()
            self.write_summary({"status": "running"})
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            interrupted = isinstance(error, KeyboardInterrupt)
            status = {"status": "interrupted"} if interrupted else {"status": "failed", "error": str(error)}
            try:
                self.write_summary(status)
            except DataError:  # the disk may be full: the error that ended the run is the one to report
                self._overwrite_summary(status["status"])
        self._stack.close()

    def write_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Replace `summary.json`, all of it or nothing; returns what it now holds."""
        content = {**self._about, **summary}
        write_json(self.path / SUMMARY, content)
        return content

    def _overwrite_summary(self, status: str) -> None:
        """Write the status over the summary in place, which needs no further space, because it is shorter without indents."""
        with suppress(OSError), (self.path / SUMMARY).open("r+") as file:
            file.write(json.dumps({**self._about, "status": status}))
            file.truncate()

    def _clear(self) -> None:
        """Delete what an earlier run left, after checking that it was one."""
        before = read_summary(self.path)
        patterns = [name for name in self._outputs if glob.has_magic(name)]
        plain = [self.path / name for name in (*self._outputs, SUMMARY) if name not in patterns]
        found = [file for file in plain if os.path.lexists(file)]
        found += sorted(file for name in patterns for file in self.path.glob(name))
        for file in found:
            if same_file(file, self._source):
                raise ConfigError(f"{file}: is the recording itself and would be replaced; use another --out")
            if file.is_dir():
                raise ConfigError(f"{file}: is a folder; use another --out")
        refuse_foreign(found, before is not None or self._overwrite, "use another --out, or --overwrite")
        try:
            for file in found:
                file.unlink()
        except OSError as error:
            raise DataError(f"{file}: cannot be replaced ({error.strerror})") from None


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What the run that wrote into this folder says of itself; None if none has."""
    summary = read_json(folder / SUMMARY)
    return summary if _MARK in summary else None


def free_folder(base: Path, source: Path) -> Path:
    """`base`, or `base-2`, `base-3` ... if it holds the results of another recording, or files of somebody else's."""
    for number in range(1, 10_000):
        folder = base if number == 1 else base.with_name(f"{base.name}-{number}")
        before = read_summary(folder)
        if before is None and not (folder.is_dir() and any(folder.iterdir())):
            return folder
        if before is not None and before.get("events_path") == str(source.resolve()):
            return folder
    raise ConfigError(f"{base}: too many folders with this name; use another --out")


def write_json(path: Path, content: object) -> None:
    """Write a small JSON file, all of it or nothing; raises DataError if it cannot be written."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a small file, all of it or nothing; raises DataError if it cannot be written."""
    with replacing(path) as part:
        part.write_text(content, encoding="utf-8", errors="backslashreplace")
