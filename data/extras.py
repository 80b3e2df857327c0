"""Optional packages that only some commands and formats need; the extras of pyproject.toml install them."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType

from evburst.data.errors import MissingPackageError


def require(module: str, extra: str, wanted_by: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: name of the package, or of a module in it.
        extra: the extra of pyproject.toml that installs it.
        wanted_by: what needs the package; becomes the subject of the error message.

    Raises:
        MissingPackageError: the package is not installed, or fails to import.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] != package:
            reason = str(error).partition("\n")[0]
            raise MissingPackageError(
                f"{wanted_by} needs {package}, which is installed but does not load ({reason})"
            ) from error
        raise MissingPackageError(f"{wanted_by} needs {package}: {pip_install(extra)}") from None


def pip_install(extra: str) -> str:
    """Return the command that installs an extra, for error messages.

    It names the packages, as the metadata of the installed evburst list them: no package index knows evburst itself. A checkout
    of which only the dependencies are installed has no metadata, and is named by its folder.
    """
    packages = " ".join(f'"{package}"' for package in dict.fromkeys(_packages(extra)))
    return f"pip install {packages}" if packages else f'pip install ".[{extra}]" in the folder of the checkout'


def _packages(extra: str) -> list[str]:
    """Return the packages of an extra, and of extras within it, with their versions; none if evburst is not installed."""
    try:
        listed = requires("evburst") or []
    except PackageNotFoundError:
        return []
    found = list[str]()
    for requirement, _, marker in (text.partition(";") for text in listed):
        if _extra_of(marker) == extra:
            inner = re.fullmatch(r"evburst\[([\w,-]+)\]", requirement.strip())
            within = [package for name in inner[1].split(",") for package in _packages(name)] if inner else []
            found += within or [requirement.strip()]
    return found


def _extra_of(marker: str) -> str | None:
    """Return the extra that a marker names, as in `extra == "eval"`."""
    named = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", marker)
    return named and named[1]
