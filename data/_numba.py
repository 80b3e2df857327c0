"""numba's `njit`, with a fallback for the cache folder of compiled kernels and a message before a long compilation.

When a kernel is defined, numba looks for a cache folder: NUMBA_CACHE_DIR, the __pycache__ beside the source, the user's
cache. If it can write to none of them (a read-only installation, no home) it raises, and importing the package would fail.
In that case a private folder in the system's temporary directory is used; without one, each process compiles the kernels again.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import event

_LOG = logging.getLogger(__name__)
_SLOW: set[Callable[..., Any]] = set()


def njit(*, slow: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit(**options)`, but do not raise if numba finds no cache folder.

    Args:
        slow: compilation takes many seconds; it is announced in the log, unless the cache holds the kernel.
        options: those of numba.
    """

    def compile_kernel(function: Callable[..., Any]) -> Any:
        if slow:
            _SLOW.add(function)
        with suppress(RuntimeError):
            return numba.njit(**options)(function)
        folder = private_folder()
        if folder is not None:
            configured = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(folder)
            try:
                with suppress(RuntimeError):
                    return numba.njit(**options)(function)
            finally:
                numba.config.CACHE_DIR = configured
        return numba.njit(**{**options, "cache": False})(function)

    return compile_kernel


def private_folder() -> Path | None:
    """Return a temporary folder that only this user can write to and that persists between runs, or None.

    numba executes what it loads from its cache, so a folder that another user prepared must not be used.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    with suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"evburst-numba-{user}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o022:
            return folder
    return None


class _Announcer(event.Listener):  # type: ignore[misc]
    """Announces compilations of slow kernels; numba does not compile what it loads from its cache."""

    def on_start(self, event: event.Event) -> None:
        """See numba.core.event.Listener."""
        kernel = event.data["dispatcher"]
        if kernel.py_func not in _SLOW:
            return
        if kernel.stats.cache_path is not None:
            _LOG.info("compiling the network's kernels for this machine, once; this takes up to a minute")
        else:
            remedy = "set NUMBA_CACHE_DIR to a writable folder to do so only once"
            _LOG.info("compiling the network's kernels, up to a minute; %s", remedy)

    def on_end(self, event: event.Event) -> None:
        """See numba.core.event.Listener."""


event.register("numba:compile", _Announcer())
