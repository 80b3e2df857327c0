"""Exceptions of the project.

EvburstError                 anything a user can mend; the command line prints it as one line and exits 1
├── ConfigError              a setting that does not exist, or has the wrong type or value
├── MissingPackageError      a package that an extra brings is not installed
├── DataError                a file or folder that was given as data
│   ├── EventFileError       an event recording: missing, empty, corrupt, of an unknown format
│   ├── SensorSizeError      the sensor size is unknown, or contradicts the events
│   ├── SourceError          a camera or a stream is not there, or has gone
│   └── LabelError           box files
└── ModelError               anything about a network
    ├── CheckpointError      a weights file: missing, corrupt, NaN, of another kind
    └── ConversionError      a module without a spiking equivalent
"""

from __future__ import annotations


class EvburstError(Exception):
    """Base of every error this project raises on purpose: says what, where and how to mend it, on one printable line."""

    def __init__(self, message: str) -> None:
        # A message may quote a corrupt file, whose control characters are not the terminal's business.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


class ConfigError(EvburstError):
    """A setting is unknown, or its type or value is wrong."""


class MissingPackageError(EvburstError):
    """A package that an extra of pyproject.toml brings is not installed."""


class DataError(EvburstError):
    """Data given by the user cannot be used."""


class EventFileError(DataError):
    """An event recording is missing, empty, corrupt or of an unknown format."""


class SensorSizeError(DataError):
    """The sensor size is unknown, or the events lie outside it."""


class SourceError(DataError):
    """A camera or a network stream is not there, or has gone; it may come back."""


class LabelError(DataError):
    """A box file is missing, corrupt or of another layout."""


class ModelError(EvburstError):
    """A network cannot be built, loaded or converted."""


class CheckpointError(ModelError):
    """A weights file is missing, corrupt, holds NaN, or is of another kind."""


class ConversionError(ModelError):
    """A network holds a module that has no spiking equivalent."""
