"""Readers: a path becomes an EventStream. A new format is one module here and one line of registration.

@reader("dat", recognise=lambda head: head.startswith(b"%"))
def open_dat(path, sensor_size): ...
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data.errors import EventFileError
from data.events import EventStream, SensorSize

Opener = Callable[[Path, SensorSize | None], EventStream]

READERS: dict[str, Opener] = {}
_RECOGNISE: dict[str, Callable[[bytes], bool]] = {}


def reader(name: str, recognise: Callable[[bytes], bool]) -> Callable[[Opener], Opener]:
    """Register an opener under `name`; `recognise` looks at the file's first 4096 bytes."""

    def register(opener: Opener) -> Opener:
        READERS[name], _RECOGNISE[name] = opener, recognise
        return opener

    return register


def open_events(path: Path | str, sensor_size: SensorSize | None = None) -> EventStream:
    """Open a recording by its content.

    Args:
        path: the file.
        sensor_size: (W, H) px for files that do not say it themselves; must agree with those that do.

    Raises:
        EventFileError: missing, empty, or of no known format.
        SensorSizeError: neither the file nor the caller knows the sensor's size.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise EventFileError(f"{path}: no such file") from None
    except OSError as error:
        raise EventFileError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise EventFileError(f"{path}: the file is empty (0 bytes)")
    for name, recognise in _RECOGNISE.items():
        if recognise(head):
            return READERS[name](path, sensor_size)
    raise EventFileError(f"{path}: not an event recording of a known format (known: {', '.join(sorted(READERS))})")


from data.readers import dat as _dat  # noqa: E402, F401  (registers itself)
from data.readers import evt as _evt  # noqa: E402, F401
