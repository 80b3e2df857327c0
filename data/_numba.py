"""numba's `njit` for kernels that are kept on disk, wherever that is possible.

numba looks for a folder when a kernel is defined: NUMBA_CACHE_DIR, the __pycache__ beside the source, the user's cache. Where it may
write to none of them (a read-only installation, no home) it raises, and nothing could be imported. Then a private folder
below the system's temporary one is used, and if there is none either, kernels are compiled again in every process.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(**options)`, without the error that numba raises where it finds no folder to keep the compiled kernel in."""

    def compiled(function: Callable[..., Any]) -> Any:
        with suppress(RuntimeError):
            return numba.njit(**options)(function)
        folder = private_folder()
        if folder is not None:
            given = numba.config.CACHE_DIR
            numba.config.CACHE_DIR = str(folder)
            try:
                with suppress(RuntimeError):
                    return numba.njit(**options)(function)
            finally:
                numba.config.CACHE_DIR = given
        return numba.njit(**{**options, "cache": False})(function)

    return compiled


def private_folder() -> Path | None:
    """A temporary folder of this user, kept from run to run; None where there is none that nobody else can write to.

    What numba loads from its cache is executed, so a folder that somebody else prepared must not be used.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    with suppress(OSError):
        folder = Path(tempfile.gettempdir()) / f"evburst-numba-{user}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o022:
            return folder
    return None
