"""NumPy files: .npy (memory-mapped) and .npz (streamed out of the archive), never unpickled.

Understood are

- structured arrays with the fields t (ts, timestamp), x, y, p (polarity, on) in any order, of any whole-number type;
- plain `(n, 4)` whole-number arrays whose columns are t x y p, such as PEDRo's .npy;
- in .npz, also four arrays of those names; `sensor_size` (W, H), which our own writer adds, is used.

p may be bool, {0, 1} or {-1, 1}. Times stay 64 bits wide: PEDRo's are absolute, 1.67e15 µs. A cut-short .npy is refused:
its columns may lie one after the other, so that the cut can take all times of half of the events. Bytes behind a .npy's
last event are left out and counted (`truncated_bytes`); in .npz, lengths and checksums must hold.
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
from evburst.data.errors import EventFileError
from evburst.data.events import PACKET_EVENTS, Events, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.packets import COLUMN_NAMES, PacketFile, columns_to_events, find_columns, library_errors, settle_size
from numpy.typing import NDArray

NPY_MAGIC = b"\x93NUMPY"
SIZE_MEMBER = "sensor_size"
_SKIP_BYTES = 1 << 20  # A ZipFile would seek by reading all at once.


class NpyFile(PacketFile):
    """A .npy recording, memory-mapped: an EventStream.

    Attributes:
        array: the memory map, `(n,)` structured or `(n, 4)`.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
                raise EventFileError(f"{path}: does not begin like a .npy file")
        with library_errors(f"{path}: not a whole NumPy file of numbers"):
            self.array: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        self._keys = _layout(self.array.dtype, self.array.shape, str(path))
        self.faults.truncated_bytes = path.stat().st_size - self.array.offset - self.array.nbytes
        self.sensor_size = settle_size(path, None, sensor_size, self.packets)

    def __len__(self) -> int:
        return len(self.array)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        for start in range(0, len(self.array), PACKET_EVENTS):
            rows = self.array[start : start + PACKET_EVENTS]
            place = f"{self.path}: events {start} to {start + len(rows) - 1}"
            columns = {column: _pick(rows, key) for column, key in self._keys.items()}
            events = columns_to_events(columns, place, self.faults)
            if len(events):
                yield events


@dataclass(frozen=True)
class _Member:
    """One array of an archive, or one of its columns.

    Attributes:
        name: its file name in the archive.
        dtype: of an item; `shape`: of the array.
        offset: bytes before the first item.
        fortran: whether columns lie one after the other.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    fortran: bool


_Source = tuple[_Member, str | int | None]
"""Where a column is: a member, and the field or column of it (None: all of it)."""


class NpzFile(PacketFile):
    """A .npz recording, streamed out of the archive, compressed or not: an EventStream."""

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with library_errors(f"{path}: not a whole .npz archive of numbers"), zipfile.ZipFile(path) as archive:
            found = [_member(archive, info) for info in archive.infolist() if info.filename.endswith(".npy")]
            members = {member.name.removesuffix(".npy"): member for member in found if not member.dtype.hasobject}
            said = _said_size(archive, members.pop(SIZE_MEMBER, None))
        self._sources = _sources(members, str(path))
        self._n_events = self._sources["t"][0].shape[0]
        self.sensor_size = settle_size(path, said, sensor_size, self.packets)

    def __len__(self) -> int:
        return self._n_events

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: the archive's checksum does not hold, or it ends early.
        """
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(self.path))
            streams = {}
            for member, _ in self._sources.values():
                if member not in streams:
                    streams[member] = stack.enter_context(_open_at(self.path, archive, member))
            for start in range(0, self._n_events, PACKET_EVENTS):
                count = min(PACKET_EVENTS, self._n_events - start)
                place = f"{self.path}: events {start} to {start + count - 1}"
                rows = {member: _read(stream, member, count, place) for member, stream in streams.items()}
                columns = {column: _pick(rows[member], key) for column, (member, key) in self._sources.items()}
                events = columns_to_events(columns, place, self.faults)
                if len(events):
                    yield events


def _is_npy(head: bytes, path: Path) -> bool:
    return head.startswith(NPY_MAGIC)


def _is_npz(head: bytes, path: Path) -> bool:
    """A zip archive whose first member is an array (its name stands at byte 30)."""
    return head.startswith(b"PK\x03\x04") and b".npy" in head[30:286]


@reader("npy", recognise=_is_npy, suffixes=(".npy",))
def open_npy(path: Path, sensor_size: SensorSize | None = None) -> NpyFile:
    """Open a .npy file; see NpyFile."""
    return NpyFile(path, sensor_size)


@reader("npz", recognise=_is_npz, suffixes=(".npz",))
def open_npz(path: Path, sensor_size: SensorSize | None = None) -> NpzFile:
    """Open a .npz file; see NpzFile."""
    return NpzFile(path, sensor_size)


def _layout(dtype: np.dtype[Any], shape: tuple[int, ...], place: str) -> dict[str, Any]:
    """Where t, x, y, p are: the name of a field, or the number of a column.

    Raises:
        EventFileError: the array is of neither layout, or has no event.
    """
    if shape[:1] == (0,):
        raise EventFileError(f"{place}: an array of {shape}: no event")
    if dtype.names and len(shape) == 1:
        return dict(find_columns(dtype.names, place))
    if len(shape) != 2 or shape[1] != 4 or dtype.kind not in "iu":
        raise EventFileError(
            f"{place}: {dtype} {shape}; expected fields t, x, y, p, or whole numbers (n, 4) in columns t x y p"
        )
    return dict(zip(COLUMN_NAMES, range(4), strict=True))


def _pick(rows: NDArray[Any], key: str | int | None) -> NDArray[Any]:
    column: NDArray[Any] = rows if key is None else rows[key] if isinstance(key, str) else rows[:, key]
    return column


def _sources(members: dict[str, _Member], place: str) -> dict[str, _Source]:
    """Where each column is: in a table ("events", or the only one there is), or in an array of its own."""
    tables = {name: m for name, m in members.items() if m.dtype.names or len(m.shape) == 2}
    if len(tables) == 1 or "events" in tables:
        table = tables["events"] if "events" in tables else next(iter(tables.values()))
        keys = _layout(table.dtype, table.shape, f"{place}: {table.name}")
        if table.fortran and len(table.shape) == 2:
            n_events = table.shape[0]
            apart = n_events * table.dtype.itemsize
            return {c: (replace(table, shape=(n_events,), offset=table.offset + k * apart), None) for c, k in keys.items()}
        return {column: (table, key) for column, key in keys.items()}
    names = find_columns([name for name, m in members.items() if len(m.shape) == 1], f"{place}: arrays")
    found = {column: members[name] for column, name in names.items()}
    lengths = {column: m.shape[0] for column, m in found.items()}
    if len(set(lengths.values())) != 1 or not lengths["t"]:
        raise EventFileError(f"{place}: the arrays' lengths are {lengths}, expected four alike and above 0")
    return {column: (m, None) for column, m in found.items()}


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    """Read the header of one array; ValueError if it does not fit the member's length."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        wanted = stream.tell() + math.prod(shape) * dtype.itemsize
        if min(shape, default=1) < 0 or (wanted != info.file_size and not dtype.hasobject):
            raise ValueError(f"{info.filename} has {info.file_size} bytes, {dtype} {shape} needs {wanted}")
        return _Member(info.filename, dtype, shape, stream.tell(), fortran)


def _said_size(archive: zipfile.ZipFile, member: _Member | None) -> str | None:
    if member is None:
        return None
    with archive.open(member.name) as stream:
        size = np.load(io.BytesIO(stream.read(_SKIP_BYTES)), allow_pickle=False)
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise ValueError(f"{SIZE_MEMBER} is {size.dtype} {size.shape}, expected whole numbers W, H")
    return f"{size[0]}x{size[1]}"


def _open_at(path: Path, archive: zipfile.ZipFile, member: _Member) -> IO[bytes]:
    """The member's bytes from its first item on."""
    with library_errors(f"{path}: {member.name} is corrupt"):
        stream = archive.open(member.name)
        ahead = member.offset
        while ahead > 0:
            ahead -= len(stream.read(min(ahead, _SKIP_BYTES))) or ahead
    return stream


def _read(stream: IO[bytes], member: _Member, count: int, place: str) -> NDArray[Any]:
    """The next `count` rows of a member."""
    shape = (count, *member.shape[1:])
    wanted = math.prod(shape) * member.dtype.itemsize
    with library_errors(f"{place}: {member.name} is corrupt"):
        data = stream.read(wanted)
        if len(data) < wanted:
            raise EventFileError(f"{place}: {member.name} ends early: {len(data)} of {wanted} bytes")
        return np.frombuffer(data, member.dtype).reshape(shape)
