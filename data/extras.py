"""Packages that only some commands and formats need; they come with the extras of pyproject.toml."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from evburst.data.errors import MissingPackageError


def require(module: str, extra: str, wanted_by: str) -> ModuleType:
    """Import a package that an extra brings.

    Args:
        module: its name, or that of a module in it.
        extra: of pyproject.toml.
        wanted_by: what needs it, the subject of the error's sentence.

    Raises:
        MissingPackageError: it is not installed, or does not load.
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
        raise MissingPackageError(f'{wanted_by} needs {package}: pip install "evburst[{extra}]"') from None
