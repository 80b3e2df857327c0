"""Which files a run may write: never one that it reads, and an existing one only where that was asked for.

The files of sinks are names or patterns below the run's folder; those of one run must differ from each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path, PureWindowsPath

from evburst.data.errors import ConfigError


def refuse_overwriting(out: Path, inputs: Iterable[Path | str | None], overwrite: bool = False, streams: bool = False) -> None:
    """Check that a file may be written.

    Links are followed, so an input is recognised under another name.

    Args:
        out: the file to be written.
        inputs: files that the run reads; those that do not exist (None, names, addresses) do not count.
        overwrite: an existing file may be replaced, unless it is an input.
        streams: the file is written to, not replaced, so that it may be a device or a pipe.

    Raises:
        ConfigError: `out` is one of the inputs, a folder, a file that exists, or a device.
    """
    for source in inputs:
        if source is not None and same_file(out, source):
            raise ConfigError(f"{out}: is {source}, which this run reads; write to another file")
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; expected a file to write")
    if out.exists() and not out.is_file() and not streams:
        raise ConfigError(f"{out}: is a device or a pipe, which would be replaced; write to a regular file")
    if not overwrite and (out.is_file() or (out.is_symlink() and not out.exists())):
        raise ConfigError(f"{out}: exists already; choose another name, or replace it with --overwrite")


def same_file(one: Path | str, other: Path | str) -> bool:
    """Whether two paths lead to one file, also through links, or would once it exists."""
    with suppress(OSError, ValueError):
        return os.path.samefile(one, other)
    with suppress(OSError, ValueError, RuntimeError):
        return Path(one).resolve() == Path(other).resolve()
    return False


def is_inside(file: str) -> bool:
    """Whether a name or a pattern means files below the folder to which it is appended, on every system."""
    path = PureWindowsPath(file)  # it knows both separators, and drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in file


def may_coincide(one: str, other: str) -> bool:
    """Whether two names or patterns below a folder may mean the same file, or one of them a folder of the other's.

    Upper and lower case are the same, as in some file systems.
    """
    parts = zip(*(PureWindowsPath(name.casefold()).parts for name in (one, other)), strict=False)
    for a, b in parts:
        if "**" in (a, b):
            return True
        if not _overlap(*(re.sub(r"\[.+?\]", "?", part) for part in (a, b))):
            return False
    return True


@cache
def _overlap(one: str, other: str) -> bool:
    """Whether there is a name that matches two patterns of `*` and `?`."""
    if not one or not other:
        return not (one + other).strip("*")
    if one[0] == "*":
        return _overlap(one[1:], other) or _overlap(one, other[1:])
    if other[0] == "*":
        return _overlap(other, one)
    return (one[0] == other[0] or "?" in (one[0], other[0])) and _overlap(one[1:], other[1:])
