"""Exceptions of the project.

EvburstError                 any error that the user can correct; the command line prints it as one line and exits with 1
├── ConfigError              a setting is unknown, or has the wrong type or value
│   └── SettingValueError    a settings class was given values out of range or that exclude each other; also a ValueError
├── MissingPackageError      an optional package is not installed
├── DataError                a file or folder given as input data is unusable
│   ├── EventFileError       an event recording is missing, empty, corrupt or of an unknown format
│   │   └── NoEventsError    it is intact, but contains no event
│   ├── SensorSizeError      the sensor size is unknown, or contradicts the events
│   │   └── SensorSizeUnknownError   neither the file nor the caller states it
│   ├── SourceError          a camera or network stream is unavailable or was disconnected
│   └── LabelError           a box file is missing or invalid
└── ModelError               a network cannot be used
    ├── CheckpointError      a weights file is missing, corrupt, of the wrong kind, or contains NaN
    └── ConversionError      a module has no spiking equivalent
"""

from __future__ import annotations

import re
from collections.abc import Mapping


class EvburstError(Exception):
    """Base of every error that this project raises on purpose; the message is one line: what, where, how to fix it."""

    def __init__(self, message: str) -> None:
        # A message may quote a corrupt file, whose control characters must not reach the terminal.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ConfigError(EvburstError):
    """A setting is unknown, or has the wrong type or value."""


class SettingValueError(ConfigError, ValueError):
    """Values given to a settings class are out of range or exclude each other; it can also be caught as a ValueError."""


def require_all(checks: Mapping[str, bool], settings: object) -> None:
    """Raise SettingValueError with the first message of `checks` that does not hold.

    A message "NAME must be ..." is followed by the value of this field of `settings`.
    """
    for message, holds in checks.items():
        if not holds:
            named = re.match(r"(\w+) must be ", message)
            received = f", received {getattr(settings, named[1])!r}" if named and hasattr(settings, named[1]) else ""
            raise SettingValueError(message + received)


def require_within(settings: object, **limits: tuple[float, float]) -> None:
    """Raise SettingValueError unless these fields of `settings`, and all items of those that are tuples, are None or within
    their limits, both included."""
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        holds = all(item is None or low <= item <= high for item in values)
        require_all({f"{name} must be {range_text(low, high)}": holds}, settings)


def range_text(low: float, high: float) -> str:
    """Return limits as messages and the help state them, such as "0.1 to 60000"."""
    return " to ".join(str(limit) if isinstance(limit, int) else f"{limit:g}".replace("e+0", "e") for limit in (low, high))


class MissingPackageError(EvburstError):
    """A package that belongs to an extra of pyproject.toml is not installed."""


class DataError(EvburstError):
    """Data given by the user cannot be used."""


class EventFileError(DataError):
    """An event recording is missing, empty, corrupt or of an unknown format."""


class NoEventsError(EventFileError):
    """An event recording is intact, but contains no event."""


class SensorSizeError(DataError):
    """The sensor size is unknown, or the events lie outside it."""


class SensorSizeUnknownError(SensorSizeError):
    """Neither the file nor the caller states the sensor size."""


class SourceError(DataError):
    """A camera or a network stream is unavailable or was disconnected; it may come back."""


class LabelError(DataError):
    """A box file is missing, corrupt or has an unexpected layout."""


class ModelError(EvburstError):
    """A network cannot be built, loaded or converted."""


class CheckpointError(ModelError):
    """A weights file is missing, corrupt, of the wrong kind, or contains NaN."""


class ConversionError(ModelError):
    """A network contains a module that has no spiking equivalent."""
