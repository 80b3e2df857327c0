"""Which files a run may write: never one that it reads, and an existing one only where that was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

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
