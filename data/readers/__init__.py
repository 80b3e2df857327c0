"""Readers: a path becomes an EventStream. A new format is one module here and one line of registration.

@reader("dat", recognise=lambda head, path: head.startswith(b"%"), suffixes=(".dat",))
def open_dat(path, sensor_size): ...

A file is recognised by its content; formats without a signature (`bin`, `csv`) also look at its name. Where nothing is
recognised, the format its name stands for opens it, because that reader's error says what is wrong with the content.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evburst.data.errors import ConfigError, EventFileError
from evburst.data.events import EventStream, SensorSize

Opener = Callable[[Path, SensorSize | None], EventStream]
Recogniser = Callable[[bytes, Path], bool]

READERS: dict[str, Opener] = {}
_RECOGNISE: dict[str, Recogniser] = {}
SUFFIXES: dict[str, str] = {}
_UNSIGNED: set[str] = set()
_HEAD_BYTES = 4096


def reader(
    name: str, recognise: Recogniser, suffixes: tuple[str, ...] = (), signature: bool = True
) -> Callable[[Opener], Opener]:
    """Register an opener under `name`.

    Args:
        name: the format's name, as `--format` takes it.
        recognise: looks at the file's first 4096 bytes and its path.
        suffixes: names' endings (lower case) that mean this format where no content is recognised.
        signature: whether the content begins with a mark of its own; formats without one are asked after all the others.
    """

    def register(opener: Opener) -> Opener:
        READERS[name], _RECOGNISE[name] = opener, recognise
        if not signature:
            _UNSIGNED.add(name)
        SUFFIXES.update(dict.fromkeys(suffixes, name))
        return opener

    return register


def open_events(path: Path | str, sensor_size: SensorSize | None = None, format: str | None = None) -> EventStream:
    """Open a recording.

    Args:
        path: the file.
        sensor_size: (W, H) px for files that do not say it themselves; must agree with those that do.
        format: name of the format; None recognises it.

    Raises:
        ConfigError: `format` is not the name of a known one.
        EventFileError: missing, empty, corrupt, or of no known format.
        SensorSizeError: neither the file nor the caller knows the sensor's size, or they contradict each other.
    """
    path = Path(path)
    return READERS[recognise_format(path, format)](path, sensor_size)


def recognise_format(path: Path, format: str | None = None) -> str:
    """The name of a file's format: `format` if given, else by content, else by name; raises as `open_events` does."""
    known = ", ".join(sorted(READERS))
    if format is not None and format not in READERS:
        raise ConfigError(f"format {format!r} is unknown (known: {known})")
    head = _read_head(path)
    if format is not None:
        return format
    for name in sorted(_RECOGNISE, key=_UNSIGNED.__contains__):
        if _RECOGNISE[name](head, path):
            return name
    by_name = SUFFIXES.get(path.suffix.lower())
    if by_name is None:
        raise EventFileError(f"{path}: not an event recording of a known format (known: {known}); --format names one")
    return by_name


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise EventFileError(f"{path}: no such file") from None
    except OSError as error:
        raise EventFileError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise EventFileError(f"{path}: the file is empty (0 bytes)")
    return head


# Each registers itself.
from evburst.data.readers import aedat4 as _aedat4  # noqa: E402, F401
from evburst.data.readers import bin as _bin  # noqa: E402, F401
from evburst.data.readers import dat as _dat  # noqa: E402, F401
from evburst.data.readers import evt as _evt  # noqa: E402, F401
from evburst.data.readers import hdf5 as _hdf5  # noqa: E402, F401
from evburst.data.readers import table as _table  # noqa: E402, F401
from evburst.data.readers import text as _text  # noqa: E402, F401
