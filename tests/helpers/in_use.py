"""What Windows refuses, on Linux: to replace or to delete a file that this process has open or mapped."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def files_in_use() -> set[str]:
    """The files that this process has open or mapped."""
    found = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


def refuse_files_in_use(patch: pytest.MonkeyPatch) -> None:
    """Let `os` replace and delete files as on Windows; without /proc, as this system does."""
    if not Path("/proc/self/maps").exists():
        return

    def refusing(call: Callable[..., None]) -> Callable[..., None]:
        def called(*paths: Any, dir_fd: int | None = None) -> None:
            folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            for path in paths:
                if os.path.realpath(os.path.join(folder, path)) in files_in_use():
                    raise PermissionError(13, "The process cannot access the file because it is being used", str(path))
            call(*paths, **({} if dir_fd is None else {"dir_fd": dir_fd}))

        return called

    for name in ("remove", "rename", "replace", "unlink"):
        patch.setattr(os, name, refusing(getattr(os, name)))
