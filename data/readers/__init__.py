"""Readers of event recordings: a path becomes an EventStream. A new format is one module here with a registered function:

    @reader("dat", recognise=lambda head, path: head.startswith(b"%"), suffixes=(".dat",))
    def open_dat(path, sensor_size, options): ...

A file's format is recognised by its content; formats without a signature (`bin`, `csv`) also check its name. If the content
is not recognised, the reader for the file's suffix opens it, because its error describes what is wrong with the content. Other
file types that are often mistaken for recordings (see `foreign`) are named in the error instead.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from evburst.data.errors import ConfigError, DataError, EventFileError, SensorSizeError, SensorSizeUnknownError
from evburst.data.events import EventStream, SensorSize
from evburst.data.extensions import refuse_taken
from evburst.data.readers.foreign import describe_foreign, is_pipe
from evburst.data.readers.header import MAX_HEADER_BYTES
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PASS_SIZE
from evburst.data.readers.pipes import Pipe

__all__ = [
    "DEFAULT_OPTIONS",
    "READERS",
    "SIZELESS_FORMATS",
    "ReadOptions",
    "open_events",
    "open_sized",
    "reader",
    "recognise_format",
    "recording_suffixes",
    "stream_format",
]

Opener = Callable[[Path, SensorSize | None, ReadOptions], EventStream]
PipeOpener = Callable[[Pipe, SensorSize | None, ReadOptions], EventStream]
Recogniser = Callable[[bytes, Path], bool]

READERS: dict[str, Opener] = {}
PIPE_READERS: dict[str, PipeOpener] = {}
_RECOGNISE: dict[str, Recogniser] = {}
SUFFIXES: dict[str, str] = {}
_WITHOUT_SIGNATURE: set[str] = set()
_WITHOUT_UNITS: set[str] = set()
_FORMATS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
_HEAD_BYTES = MAX_HEADER_BYTES
SIZELESS_FORMATS = frozenset({"bin"})
"""Formats whose reader assumes the sensor of one data set for every file."""


def reader(
    name: str,
    recognise: Recogniser,
    suffixes: tuple[str, ...] = (),
    signature: bool = True,
    defined: bool = True,
    pipe: PipeOpener | None = None,
) -> Callable[[Opener], Opener]:
    """Register a function that opens recordings of format `name`.

    Args:
        name: the format's name, as in `--format`.
        recognise: predicate on the file's first 65536 bytes and its path.
        suffixes: file name suffixes (lower case) that select this format if no content is recognised.
        signature: whether files start with a signature; formats without one are tried after all the others.
        defined: whether the format defines the unit of time and the order of columns; otherwise ReadOptions specify them.
        pipe: function that opens a pipe of this format; None if only files can be read.

    Raises:
        ConfigError: another reader has the name or a suffix.
    """

    def register(opener: Opener) -> Opener:
        refuse_taken("reader", name, opener, READERS)
        for suffix in suffixes:
            if SUFFIXES.get(suffix, name) != name:
                owner, advice = {suffix: READERS[SUFFIXES[suffix]]}, "leave it out: files are recognised by their content first"
                refuse_taken("file name suffix", suffix, opener, owner, advice)
        _forget(name)
        READERS[name], _RECOGNISE[name] = opener, recognise
        if not signature:
            _WITHOUT_SIGNATURE.add(name)
        if not defined:
            _WITHOUT_UNITS.add(name)
        if pipe is not None:
            PIPE_READERS[name] = pipe
        SUFFIXES.update(dict.fromkeys(suffixes, name))
        return opener

    return register


def _forget(name: str) -> None:
    """Remove what an earlier registration of the same reader says of its format."""
    for names in (_WITHOUT_SIGNATURE, _WITHOUT_UNITS):
        names.discard(name)
    PIPE_READERS.pop(name, None)
    for suffix in [suffix for suffix, owner in SUFFIXES.items() if owner == name]:
        del SUFFIXES[suffix]


def open_events(
    path: str | os.PathLike[str],
    sensor_size: tuple[int, int] | str | None = None,
    format: str | None = None,
    *,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> EventStream:
    """Open a recording.

    Args:
        path: the file; text can also be read from a pipe, once.
        sensor_size: (W, H) px, or "WxH", for files that do not state it; must agree with those that do.
        format: name of the format; None detects it.
        options: unit of time, order of columns and the like, for formats that do not define them.

    Raises:
        ConfigError: `format` is unknown, `options` contradict the format, or `sensor_size` is no size.
        DataError: `path` is no path.
        EventFileError: the file is missing, empty, corrupt, or of an unknown format.
        SensorSizeError: the file and the caller state different sizes of the sensor.
        SensorSizeUnknownError: neither of them states it.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"open_events: expected the path of a recording, received {type(path).__name__}")
    path, size = Path(os.fsdecode(path)), None if sensor_size is None else SensorSize.of(sensor_size)
    _check_format(format)
    pipe = Pipe(path, _HEAD_BYTES) if is_pipe(path) else None
    name = _recognise(path, _read_head(path) if pipe is None else pipe.head, format)
    if name not in _WITHOUT_UNITS:
        _check_options(path, name, options)
    if pipe is None:
        stream = READERS[name](path, size, options)
    elif name in PIPE_READERS:
        stream = PIPE_READERS[name](pipe, size, options)
    else:
        pipe.close()
        raise EventFileError(f"{path}: a pipe; {name} recordings can only be read from regular files: save it to a file first")
    _check_stream(stream, path, name)
    with suppress(TypeError):  # an own stream that has no hash
        _FORMATS[stream] = name
    return stream


def open_sized(
    path: Path,
    sensor_size: SensorSize | None,
    trained_size: SensorSize | None,
    format: str | None = None,
    *,
    options: ReadOptions = DEFAULT_OPTIONS,
) -> EventStream:
    """Open a recording with the first size of the sensor that is known: `sensor_size`, the file's own, `trained_size`.

    Where `open_events` assumes the sensor of one data set because no file of a format states it, this function does not.

    Args:
        path, format, options: see `open_events`; a file that is a pipe is taken not to state its size.
        sensor_size: (W, H) px as given by the user; None: not given.
        trained_size: (W, H) px that the network was trained on; None: not known, or not to be taken.

    Raises:
        EvburstError: see `open_events`.
        SensorSizeUnknownError: none of them is known.
    """
    given = sensor_size or (trained_size if is_pipe(path) else None)
    if given is None and not is_pipe(path) and (format or recognise_format(path)) in SIZELESS_FORMATS:
        if trained_size is None:
            raise SensorSizeUnknownError(f"{path}: the file does not say the sensor's size; {PASS_SIZE}")
        given = trained_size
    try:
        return open_events(path, given, format, options=options)
    except SensorSizeError:
        if given or trained_size is None:
            raise
        return open_events(path, trained_size, format, options=options)


def stream_format(stream: EventStream) -> str:
    """Return the format's name of a stream that `open_events` returned; "own" if it cannot be remembered for such a stream."""
    try:
        return _FORMATS[stream]
    except TypeError:
        return "own"


def _check_stream(stream: Any, path: Path, name: str) -> None:
    """Refuse what is no stream: an own reader may have returned anything."""
    if not all(hasattr(stream, attribute) for attribute in ("sensor_size", "finite", "faults", "windows", "packets")):
        raise EventFileError(f"{path}: the reader of {name!r} returned no EventStream, but {type(stream).__name__}")
    size = stream.sensor_size
    if not isinstance(size, SensorSize) or not all(type(n) is int and n > 0 for n in size):
        raise EventFileError(
            f"{path}: the reader of {name!r} states the sensor size {size!r}; expected SensorSize(width, height), int above 0"
        )


def recording_suffixes() -> frozenset[str]:
    """Return the file name suffixes (lower case) of recordings. `.bin` selects no reader, because other files have it too."""
    return frozenset(SUFFIXES) | {".bin"}


def recognise_format(path: Path) -> str:
    """Return the name of a file's format, by content, else by name; raises as `open_events` does."""
    if is_pipe(path):
        raise EventFileError(f"{path}: a pipe, not a regular file: its format cannot be determined without consuming it")
    return _recognise(path, _read_head(path), None)


def _recognise(path: Path, head: bytes, format: str | None) -> str:
    if format is not None and (format in _WITHOUT_SIGNATURE or _RECOGNISE[format](head, path)):
        return format
    if format is None and (signed := _recognised(head, path, signed=True)):
        return signed
    if (foreign := describe_foreign(head)) is not None:
        raise EventFileError(f"{path}: {foreign}")
    if format is None and (unsigned := _recognised(head, path, signed=False)):
        return unsigned
    by_name = format or SUFFIXES.get(path.suffix.lower())
    if by_name is None:
        known = ", ".join(sorted(READERS))
        raise EventFileError(f"{path}: not an event recording of a known format (known: {known}); select one with --format")
    return by_name


def _recognised(head: bytes, path: Path, signed: bool) -> str | None:
    """Return the first format, among those with or without a signature, that recognises the content."""
    names = (name for name in _RECOGNISE if (name in _WITHOUT_SIGNATURE) != signed)
    return next((name for name in names if _RECOGNISE[name](head, path)), None)


def _check_format(format: str | None) -> None:
    if format is not None and format not in READERS:
        raise ConfigError(f"format {format!r} is unknown (known: {', '.join(sorted(READERS))})")


def _check_options(path: Path, name: str, options: ReadOptions) -> None:
    """Raise ConfigError if options contradict a format that defines its units and columns."""
    if options.time_unit not in ("auto", "us"):
        raise ConfigError(f"{path}: the times of {name} recordings are microseconds; leave --time-unit {options.time_unit} out")
    if options.columns:
        raise ConfigError(f"{path}: {name} recordings have no columns; leave --columns out")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise EventFileError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise EventFileError(f"{path}: the file is empty (0 bytes)")
    return head


# Importing these modules registers them.
from evburst.data.readers import aedat2 as _aedat2  # noqa: E402, F401
from evburst.data.readers import aedat3 as _aedat3  # noqa: E402, F401
from evburst.data.readers import aedat4 as _aedat4  # noqa: E402, F401
from evburst.data.readers import bin as _bin  # noqa: E402, F401
from evburst.data.readers import dat as _dat  # noqa: E402, F401
from evburst.data.readers import evt as _evt  # noqa: E402, F401
from evburst.data.readers import hdf5 as _hdf5  # noqa: E402, F401
from evburst.data.readers import rosbag as _rosbag  # noqa: E402, F401
from evburst.data.readers import table as _table  # noqa: E402, F401
from evburst.data.readers import text as _text  # noqa: E402, F401
