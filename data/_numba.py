"""numba's `njit`, with a fallback for the cache folder of compiled kernels, a message before a long compilation, and a lock.

When a kernel is defined, numba looks for a cache folder: NUMBA_CACHE_DIR, the __pycache__ beside the source, the user's
cache. If it can write to none of them (a read-only installation, no home) it raises, and importing the package would fail.
In that case a private folder in the system's temporary directory is used; without one, each process compiles the kernels again.
So it does where the disk is full. Files that are damaged, as a power failure leaves them, are replaced.

Where there is neither OpenMP nor TBB, parallel kernels run on numba's own thread pool ("workqueue"), which ends the process if
two threads use it at once. There, a parallel kernel waits until another thread's has finished.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, wraps
from pathlib import Path
from threading import Lock
from typing import Any

import numba
from numba.core import event
from numba.core.caching import FunctionCache

_LOG = logging.getLogger(__name__)
_SLOW: set[Callable[..., Any]] = set()
_POOL_LOCK = Lock()
_REMEDY = "set NUMBA_CACHE_DIR to a writable folder to do so only once"


def njit(*, slow: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit(**options)`, but do not raise if numba finds no cache folder.

    Threads may call any kernel at any time. Compiled code cannot call a parallel one. Divisions follow NumPy: a division of
    floats by 0 gives an infinity, because a check before every division keeps loops from being vectorised.

    Args:
        slow: compilation takes many seconds; it is announced in the log, unless the cache holds the kernel.
        options: those of numba.
    """

    options.setdefault("error_model", "numpy")

    def compile_kernel(function: Callable[..., Any]) -> Any:
        if slow:
            _SLOW.add(function)
        kernel = _compiled(function, options)
        return _one_at_a_time(kernel, function) if options.get("parallel") else kernel

    return compile_kernel


def _compiled(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return numba's kernel, which is compiled when it is first called."""
    with suppress(RuntimeError):
        return _kernel(function, options)
    folder = private_folder()
    if folder is not None:
        configured = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder)
        try:
            with suppress(RuntimeError):
                return _kernel(function, options)
        finally:
            numba.config.CACHE_DIR = configured
    return _kernel(function, {**options, "cache": False})


def _kernel(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Return numba's kernel, with a cache that fails quietly; raises RuntimeError if there is no folder for it."""
    kernel = numba.njit(**{**options, "cache": False})(function)
    if options.get("cache") and hasattr(kernel, "_cache"):  # with NUMBA_DISABLE_JIT, it is the function itself
        kernel._cache = _Cache(function)
    return kernel


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's files of a kernel, without which it is compiled: damaged ones are replaced, and a full disk ends nothing."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """See numba.core.caching.Cache."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # what is unpickled from a damaged file may raise anything
            _LOG.debug("compiled kernels in %s cannot be read (%r) and are replaced", self.cache_path, error)
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """See numba.core.caching.Cache."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn_once(self.cache_path, error.strerror)


@cache
def _warn_once(folder: str, reason: str | None) -> None:
    text = "%s: compiled kernels cannot be kept there (%s) and are compiled by every process; %s"
    _LOG.warning(text, folder, reason, _REMEDY)


def _one_at_a_time(kernel: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a parallel kernel that waits for other threads' kernels where numba's thread pool requires it."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        with _pool_lock():
            return kernel(*arguments)

    return run


def _pool_lock() -> AbstractContextManager[object]:
    try:
        return _POOL_LOCK if numba.threading_layer() == "workqueue" else nullcontext()
    except ValueError:  # no parallel kernel has run yet, so the threading layer is not known
        return _POOL_LOCK


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
            _LOG.info("compiling the network's kernels, up to a minute; %s", _REMEDY)

    def on_end(self, event: event.Event) -> None:
        """See numba.core.event.Listener."""


event.register("numba:compile", _Announcer())
