"""NumPy files: .npy (memory-mapped) and .npz (streamed from the archive), never unpickled.

Supported are

- structured arrays with the fields t (ts, timestamp, t_ns), x, y, p (polarity, on) in any order and of any numeric type;
- plain `(n, 4)` arrays with columns t x y p, such as PEDRo's .npy, or in the order of `ReadOptions.columns`;
- in .npz, also four arrays with these names; `sensor_size` (W, H), which our own writer adds, is used.

p may be bool, {0, 1} or {-1, 1}; floats are accepted if they are whole numbers. Times keep their 64 bits: PEDRo's are
absolute, 1.67e15 µs; see `columns` for their unit. A truncated .npy is rejected: in column-major order, the cut can remove all
times of half of the events. Bytes after a .npy's last event are ignored and counted (`truncated_bytes`); in .npz, lengths and
checksums must match. One event may have at most `MAX_ITEM_BYTES`, so that a packet fits into memory.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.columns import (
    MAX_ITEM_BYTES,
    SAMPLE_EVENTS,
    column_places,
    columns_to_events,
    find_columns,
    has_columns,
    judge_order,
    judge_times,
    pick_column,
    refuse_columns,
    unit_in_name,
)
from evburst.data.readers.mapping import MappedWords
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, library_errors, settle_size

NPY_MAGIC = b"\x93NUMPY"
SIZE_MEMBER = "sensor_size"

_SKIP_BYTES = 1 << 20  # ZipFile.seek would read everything at once.
_MAX_ARCHIVE_MEMBERS = 1 << 10


class NpyFile(PacketFile):
    """A memory-mapped .npy recording; an EventStream.

    Attributes:
        array: the memory map, `(n,)` structured or `(n, 4)`.
        offset: number of bytes before it in the file.
        time_unit: unit of the times in the file.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise EventFileError(f"{path}: does not start with the signature of a .npy file")
            file.seek(0)
            with library_errors(f"{path}: not a complete NumPy file of numbers"):
                dtype, shape, self.offset, fortran = _read_npy_header(file)
                _refuse_objects(dtype, str(path))
                extra_bytes = path.stat().st_size - self.offset - math.prod(shape) * dtype.itemsize
                if extra_bytes < 0:
                    raise ValueError(f"{-extra_bytes} bytes are missing")
        self._keys = _layout(dtype, shape, str(path), options)
        self._mapped = MappedWords(path, dtype, self.offset, shape, fortran)
        self.array: NDArray[Any] = self._mapped.array
        self.faults.truncated_bytes = extra_bytes
        rows = self.array[:SAMPLE_EVENTS]
        if not dtype.names:
            judge_order(path, list(rows.T), self._keys, options)
        named = unit_in_name(self._keys["t"]) if dtype.names else None
        self._unit = judge_times(path, _columns(rows, self._keys), options, named)
        self.time_unit = self._unit.name
        self._mapped.check()
        self.sensor_size = settle_size(path, None, sensor_size, self.packets)

    def __len__(self) -> int:
        return len(self.array)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        self._mapped.rewind()
        for start in range(0, len(self.array), PACKET_EVENTS):
            rows = self.array[start : start + PACKET_EVENTS]
            place = f"{self.path}: events {start} to {start + len(rows) - 1}"
            self._mapped.check()
            events = columns_to_events(_columns(rows, self._keys), place, self.faults, self._unit)
            # In column-major order, four places of the file are read at once, so no page can be released.
            if self.array.flags.c_contiguous:
                self._mapped.read_until(start + len(rows))
            else:
                self._mapped.check()
            if len(events):
                yield events


@dataclass(frozen=True)
class _Member:
    """One array of an archive, or one of its columns.

    Attributes:
        name: its file name in the archive.
        dtype, shape: those of the array.
        offset: number of bytes before the first item.
        fortran: whether the array is in column-major order.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    fortran: bool


_Source = tuple[_Member, str | int | None]
"""Location of a column: a member, and a field or column of it (None: the whole member)."""


class NpzFile(PacketFile):
    """A .npz recording, streamed from the archive, compressed or not; an EventStream.

    Attributes:
        time_unit: unit of the times in the file.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(path)
        with library_errors(f"{path}: not a complete .npz archive of numbers"), zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            if len(infos) > _MAX_ARCHIVE_MEMBERS:
                raise ValueError(f"{len(infos)} arrays in it; at most {_MAX_ARCHIVE_MEMBERS} are supported")
            found = [_member(archive, info) for info in infos]
            members = {member.name.removesuffix(".npy"): member for member in found if not member.dtype.hasobject}
            stated_size = _read_size(archive, members.pop(SIZE_MEMBER, None))
        if found and not members:
            _refuse_objects(found[0].dtype, str(path))
        self._sources = _sources(members, str(path), options)
        self._n_events = self._sources["t"][0].shape[0]
        _, sample = next(self._read_columns(SAMPLE_EVENTS))
        member, key = self._sources["t"]
        if len(members[member.name.removesuffix(".npy")].shape) == 2:
            judge_order(path, list(sample.values()), dict(zip(sample, range(4), strict=True)), options)
        time_name = key if isinstance(key, str) else member.name.removesuffix(".npy")
        is_own = stated_size is not None and [member.dtype for member in members.values()] == [EVENT_DTYPE]
        self._unit = judge_times(path, sample, options, "us" if is_own else unit_in_name(time_name), doubted=not is_own)
        self.time_unit = self._unit.name
        self.sensor_size = settle_size(path, stated_size, sensor_size, self.packets)

    def __len__(self) -> int:
        return self._n_events

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: the archive's checksum does not match, or it ends early.
        """
        for place, columns in self._read_columns(PACKET_EVENTS):
            events = columns_to_events(columns, place, self.faults, self._unit)
            if len(events):
                yield events

    def _read_columns(self, n_rows: int) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
        """Yield the columns, `n_rows` at a time, and the range of events, for error messages."""
        with ExitStack() as stack:
            with library_errors(f"{self.path}: not a complete .npz archive"):
                archive = stack.enter_context(zipfile.ZipFile(self.path))
            streams = {}
            for member, _ in self._sources.values():
                if member not in streams:
                    streams[member] = stack.enter_context(_open_at(self.path, archive, member))
            for start in range(0, self._n_events, n_rows):
                count = min(n_rows, self._n_events - start)
                place = f"{self.path}: events {start} to {start + count - 1}"
                rows = {member: _read(stream, member, count, place) for member, stream in streams.items()}
                yield place, {column: pick_column(rows[member], key) for column, (member, key) in self._sources.items()}


def _is_npz(head: bytes, path: Path) -> bool:
    """Recognise a zip archive whose first member is an array (its name is at byte 30)."""
    return head.startswith(b"PK\x03\x04") and b".npy" in head[30:286]


@reader("npy", recognise=lambda head, path: head.startswith(NPY_MAGIC), suffixes=(".npy",), defined=False)
def open_npy(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> NpyFile:
    """Open a .npy file; see NpyFile."""
    return NpyFile(path, sensor_size, options)


@reader("npz", recognise=_is_npz, suffixes=(".npz",), defined=False)
def open_npz(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> NpzFile:
    """Open a .npz file; see NpzFile."""
    return NpzFile(path, sensor_size, options)


def _layout(dtype: np.dtype[Any], shape: tuple[int, ...], place: str, options: ReadOptions) -> dict[str, Any]:
    """Locate t, x, y, p: the name of a field, or the index of a column.

    Raises:
        EventFileError: the array has neither layout, has no event, or its items are too large.
        ConfigError: --columns was given although the array has named fields.
    """
    if shape[:1] == (0,):
        raise NoEventsError(f"{place}: an array of shape {shape}: no event")
    _check_item(dtype, shape, place)
    if dtype.names and len(shape) == 1:
        refuse_columns(options, place)
        return dict(find_columns(dtype.names, place))
    if len(shape) != 2 or dtype.kind not in "iuf" or (shape[1] != 4 and not options.columns):
        hint = "; transpose it" if len(shape) == 2 and shape[0] == 4 else ""
        raise EventFileError(
            f"{place}: {dtype} {shape}; expected fields t, x, y, p, or numbers (n, 4) in columns t x y p, or --columns{hint}"
        )
    return dict(column_places(options, shape[1], place))


def _check_item(dtype: np.dtype[Any], shape: tuple[int, ...], place: str) -> None:
    """Raise EventFileError if events are so large that a packet of them would fill the memory."""
    n_bytes = dtype.itemsize * math.prod(shape[1:])
    if n_bytes > MAX_ITEM_BYTES:
        raise EventFileError(
            f"{place}: an event of {n_bytes} bytes; at most {MAX_ITEM_BYTES} are supported: save t, x, y, p only"
        )


def _columns(rows: NDArray[Any], keys: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {column: pick_column(rows, key) for column, key in keys.items()}


def _refuse_objects(dtype: np.dtype[Any], place: str) -> None:
    """Raise EventFileError for arrays of Python objects, which are pickles."""
    if dtype.hasobject:
        raise EventFileError(
            f"{place}: an array of Python objects (a pickle, which can execute arbitrary code when loaded) is not supported: "
            "save t, x, y and p as arrays of numbers"
        )


def _read_npy_header(stream: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], int, bool]:
    """Read the header and return (dtype of an item, shape, bytes before the first item, whether in column-major order).

    Raises:
        ValueError: the header or its shape is invalid.
    """
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if min(shape, default=1) < 0:
        raise ValueError(f"an array of shape {shape}")
    return dtype, shape, stream.tell(), fortran


def _sources(members: dict[str, _Member], place: str, options: ReadOptions) -> dict[str, _Source]:
    """Locate each column: in the table "events", in an array of its own, or in the only table."""
    tables = {name: m for name, m in members.items() if m.dtype.names or len(m.shape) == 2}
    if "events" in tables or (len(tables) == 1 and not has_columns([name for name in members if name not in tables])):
        table = tables["events"] if "events" in tables else next(iter(tables.values()))
        keys = _layout(table.dtype, table.shape, f"{place}: {table.name}", options)
        if table.fortran and len(table.shape) == 2:
            n_events = table.shape[0]
            column_bytes = n_events * table.dtype.itemsize
            return {
                c: (replace(table, shape=(n_events,), offset=table.offset + k * column_bytes), None) for c, k in keys.items()
            }
        return {column: (table, key) for column, key in keys.items()}
    if len(tables) == len(members) > 1 and all(m.dtype.names for m in tables.values()):
        raise EventFileError(f"{place}: several tables ({', '.join(tables)[:200]}); call the one with the events 'events'")
    names = find_columns(list(members), f"{place}: arrays")
    refuse_columns(options, place)
    found = {column: members[name] for column, name in names.items()}
    for member in found.values():
        if len(member.shape) != 1:
            raise EventFileError(f"{place}: {member.name} is {member.shape}, expected one number per event")
        _check_item(member.dtype, member.shape, f"{place}: {member.name}")
    lengths = {column: m.shape[0] for column, m in found.items()}
    if len(set(lengths.values())) != 1 or not lengths["t"]:
        raise EventFileError(f"{place}: the arrays' lengths are {lengths}, expected four equal lengths above 0")
    return {column: (m, None) for column, m in found.items()}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Read the header of one array; raises ValueError if it does not match the member's length."""
    with archive.open(info) as stream:
        dtype, shape, offset, fortran = _read_npy_header(stream)
        n_bytes = offset + math.prod(shape) * dtype.itemsize
        if n_bytes != info.file_size and not dtype.hasobject:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, but {dtype} {shape} needs {n_bytes}")
        return _Member(info.filename, dtype, shape, offset, fortran)


def _read_size(archive: zipfile.ZipFile, member: _Member | None) -> str | None:
    if member is None:
        return None
    with archive.open(member.name) as stream:
        size = np.load(io.BytesIO(stream.read(_SKIP_BYTES)), allow_pickle=False)
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise ValueError(f"{SIZE_MEMBER} is {size.dtype} {size.shape}, expected whole numbers W, H")
    return f"{size[0]}x{size[1]}"


def _open_at(path: Path, archive: zipfile.ZipFile, member: _Member) -> IO[bytes]:
    """Open a member at its first item."""
    with library_errors(f"{path}: {member.name} is corrupt"):
        stream = archive.open(member.name)
        remaining = member.offset
        while remaining > 0:
            remaining -= len(stream.read(min(remaining, _SKIP_BYTES))) or remaining
    return stream


def _read(stream: IO[bytes], member: _Member, count: int, place: str) -> NDArray[Any]:
    """Read the next `count` rows of a member."""
    shape = (count, *member.shape[1:])
    n_bytes = math.prod(shape) * member.dtype.itemsize
    with library_errors(f"{place}: {member.name} is corrupt"):
        data = stream.read(n_bytes)
        if len(data) < n_bytes:
            raise EventFileError(f"{place}: {member.name} ends early: {len(data)} of {n_bytes} bytes")
        return np.frombuffer(data, member.dtype).reshape(shape)
