"""Optional packages that only some commands and formats need; the extras of pyproject.toml install them."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
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

    pip finds evburst by its name if it is installed; a checkout of which only the dependencies are installed is named by its
    folder.
    """
    try:
        version("evburst")
    except PackageNotFoundError:
        return f'pip install ".[{extra}]" in the folder of the checkout'
    return f'pip install "evburst[{extra}]"'
