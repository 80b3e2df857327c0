"""Checks of extensions, such as own readers, sinks and layouts: names that are taken, and objects of another form."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from evburst.data.errors import ConfigError


def refuse_taken(what: str, name: str, new: object, registry: Mapping[str, Any], advice: str = "choose another name") -> None:
    """Check that nothing else is registered under a name.

    The same object may be registered again, also after its module was loaded anew: it is known by its file and name.

    Args:
        what: the kind of name, for the error, such as "sink".
        name: the name.
        new: the function or class to register.
        registry: functions and classes by name.
        advice: how to mend it.

    Raises:
        ConfigError: another object has this name.
    """
    old = registry.get(name)
    if old is not None and old is not new and _origin(old) != _origin(new):
        raise ConfigError(f"{what} {name!r} is taken by {_shown(old)}, so that {_shown(new)} cannot have it; {advice}")


def check_callable(what: str, value: object, page: str) -> None:
    """Raise ConfigError if what is to be registered as `what` is no function or class; `page` of the docs describes it."""
    if not callable(value):
        raise ConfigError(f"{what}: expected a function or a class, received {type(value).__name__}; see {page}")


def missing_methods(value: object, names: tuple[str, ...]) -> str:
    """Return the methods that an object or a class lacks as text, such as "write and close"; "" if it has all of them."""
    return " and ".join(name for name in names if not callable(getattr(value, name, None)))


def _origin(value: object) -> tuple[object, ...]:
    """Return what stays the same if the module of a function or class is loaded anew; lambdas have a line instead of a name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module is None or name is None:
        return (id(value),)
    line = value.__code__.co_firstlineno if name.endswith("<lambda>") and hasattr(value, "__code__") else None
    return getattr(sys.modules.get(module), "__file__", None) or module, name, line


def _shown(value: object) -> str:
    names = [getattr(value, name, None) for name in ("__module__", "__qualname__")]
    return ".".join(map(str, names)) if None not in names else f"an object of {type(value).__qualname__}"
