"""Writers of recordings, packet by packet; the file name's suffix selects the format. A new one is a decorated class:

@writer(".csv")
class CsvWriter: ...

A file is written beside its place and renamed when complete (data/files.py), so that an error leaves nothing behind that
looks like a recording. After Ctrl-C the events written so far are kept, unless there are none or a file would be replaced.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from evburst.data.encoding import WRAP_US, pack
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import EVENT_DTYPE, Events, EventStream, SensorSize
from evburst.data.extensions import refuse_taken
from evburst.data.files import readable_note, replacing, unchanged_note
from evburst.data.readers.dat import dat_header

DAT_MAX_SIZE = 1 << 14


class Written(NamedTuple):
    """Result of `write_events`.

    Attributes:
        events: number of events written.
        outside_sensor: number of events dropped because their x or y lies outside the sensor.
    """

    events: int
    outside_sensor: int


class PacketWriter(Protocol):
    """An open output file; constructed with (path, sensor_size). Its errors leave out the path."""

    def write(self, events: Events) -> None:
        """Append one packet."""
        ...

    def finish(self) -> None:
        """Complete and close the file."""
        ...

    def close(self) -> None:
        """Close the file as it is; has no effect after `finish`."""
        ...


WriterClass = TypeVar("WriterClass", bound=type[PacketWriter])

WRITERS: dict[str, Callable[[Path, SensorSize], PacketWriter]] = {}


def writer(suffix: str) -> Callable[[WriterClass], WriterClass]:
    """Register a PacketWriter for file names that end in `suffix`; raises ConfigError if another one has it."""

    def register(kind: WriterClass) -> WriterClass:
        refuse_taken("writer", suffix, kind, WRITERS)
        WRITERS[suffix] = kind
        return kind

    return register


def write_events(path: Path, source: Events | EventStream | Iterable[Events], sensor_size: SensorSize) -> Written:
    """Write events in their order; those outside the sensor are dropped and counted.

    Args:
        path: the output file; .dat, .npz or .csv.
        source: one EVENT_DTYPE array, a stream, or packets.
        sensor_size: (W, H) px.

    Raises:
        ConfigError: the suffix is not that of a format that can be written.
        DataError: the file cannot be written, or its format cannot represent these times.
    """
    writer_class = writer_for(path)
    with replacing(path) as part:
        with _named(path):
            out = writer_class(part, sensor_size)
        try:
            return _write_all(out, source, sensor_size, path, part)
        finally:
            with suppress(OSError):  # on a full disk, closing fails like writing, whose error is the one to report
                out.close()


def writer_for(path: Path) -> Callable[[Path, SensorSize], PacketWriter]:
    """Return the writer for a file name's suffix; raises ConfigError if there is none."""
    writer_class = WRITERS.get(path.suffix.lower())
    if writer_class is None:
        known = ", ".join(sorted(WRITERS))
        raise ConfigError(f"{path}: events cannot be written as {path.suffix!r} (known: {known})")
    return writer_class


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before what a writer says, which knows that of the part only."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _write_all(
    out: PacketWriter, source: Events | EventStream | Iterable[Events], sensor_size: SensorSize, path: Path, part: Path
) -> Written:
    packets = [source] if isinstance(source, np.ndarray) else source if isinstance(source, Iterable) else source.packets()
    events, outside = 0, 0
    try:
        for packet in packets:
            inside = (packet["x"] < sensor_size.width) & (packet["y"] < sensor_size.height)
            kept = packet if inside.all() else packet[inside]
            with _named(path):
                out.write(kept)
            events += len(kept)
            outside += len(packet) - len(kept)
    except KeyboardInterrupt as error:
        if path.exists():
            error.add_note(unchanged_note(path))
        elif events:
            out.finish()
            part.replace(path)
            error.add_note(readable_note(path))
        raise
    out.finish()
    return Written(events, outside)


@writer(".dat")
class DatWriter:
    """Writes Prophesee DAT version 2; times must lie in [0, 2**32) µs."""

    def __init__(self, path: Path, sensor_size: SensorSize) -> None:
        if max(sensor_size) > DAT_MAX_SIZE:
            raise DataError(f"a DAT file holds coordinates below {DAT_MAX_SIZE}, the sensor is {sensor_size}")
        self._file = path.open("wb")
        self._file.write(dat_header(sensor_size))

    def write(self, events: Events) -> None:
        """See PacketWriter.write."""
        for t in (int(events["t"].min()), int(events["t"].max())) if len(events) else ():
            if not 0 <= t < WRAP_US:
                raise DataError(
                    f"a DAT file holds times from 0 to {WRAP_US - 1} µs, this recording "
                    f"has {t}: let it begin at 0 (--from-zero), leave single wrong times out (evburst events cut), or "
                    "write .npz or .csv"
                )
        self._file.write(pack(events).tobytes())

    def finish(self) -> None:
        """See PacketWriter.finish."""
        self._file.close()

    def close(self) -> None:
        """See PacketWriter.close."""
        self._file.close()


@writer(".npz")
class NpzWriter:
    """Writes an .npz archive of `events` (EVENT_DTYPE, `(n,)`, deflated) and `sensor_size` (W, H).

    The header of an array comes first and states the number of events, so events are kept in a second file until it is known.
    """

    def __init__(self, path: Path, sensor_size: SensorSize) -> None:
        self._path, self._size, self._count = path, sensor_size, 0
        self._spool_path = path.with_name(path.name + ".events")
        self._spool = self._spool_path.open("w+b")

    def write(self, events: Events) -> None:
        """See PacketWriter.write."""
        self._spool.write(np.ascontiguousarray(events).tobytes())
        self._count += len(events)

    def finish(self) -> None:
        """See PacketWriter.finish."""
        header = io.BytesIO()
        array_header = {"descr": np.lib.format.dtype_to_descr(EVENT_DTYPE), "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(header, array_header)
        size = io.BytesIO()
        np.save(size, np.array(self._size, np.int32))
        self._spool.seek(0)
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("sensor_size.npy", size.getvalue())
            with archive.open("events.npy", "w", force_zip64=True) as member:
                member.write(header.getvalue())
                shutil.copyfileobj(self._spool, member, 1 << 20)
        self.close()

    def close(self) -> None:
        """See PacketWriter.close."""
        try:
            self._spool.close()
        finally:
            self._spool_path.unlink(missing_ok=True)


@writer(".csv")
class CsvWriter:
    """Writes lines `t,x,y,p` after a comment with the sensor's size and a line with the column names."""

    def __init__(self, path: Path, sensor_size: SensorSize) -> None:
        self._file = path.open("wb")
        self._file.write(f"# sensor_size {sensor_size}\nt,x,y,p\n".encode())

    def write(self, events: Events) -> None:
        """See PacketWriter.write."""
        lines = [f"{t},{x},{y},{p}\n" for t, x, y, p in events.tolist()]
        self._file.write("".join(lines).encode())

    def finish(self) -> None:
        """See PacketWriter.finish."""
        self._file.close()

    def close(self) -> None:
        """See PacketWriter.close."""
        self._file.close()
