"""NumPy files: .npy (memory-mapped) and .npz (streamed out of the archive), never unpickled.

Understood are

- structured arrays with the fields t (ts, timestamp), x, y, p (polarity, on) in any order, of any whole-number type;
- plain `(n, 4)` whole-number arrays whose columns are t x y p, such as PEDRo's .npy;
- in .npz, also four arrays of those names; `sensor_size` (W, H), which our own writer adds, is used.

p may be bool, {0, 1} or {-1, 1}. Times stay 64 bits wide: PEDRo's are absolute, 1.67e15 µs. A cut-short .npy is refused:
its columns may lie one after the other, so that the cut can take all times of half of the events.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.errors import EventFileError
from data.events import PACKET_EVENTS, Events, SensorSize
from data.readers import reader
from data.readers.packets import COLUMN_NAMES, PacketFile, columns_to_events, find_columns

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
        try:
            self.array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError, SyntaxError) as error:
            raise EventFileError(f"{path}: not a whole NumPy file of numbers ({error})") from None
        self._columns = _layout(self.array.dtype, self.array.shape, str(path))
        self.sensor_size = self._settle_size(None, sensor_size)

    def __len__(self) -> int:
        return len(self.array)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        for start in range(0, len(self.array), PACKET_EVENTS):
            rows = self.array[start : start + PACKET_EVENTS]
            columns = {column: _pick(rows, key) for column, key in self._columns.items()}
            place = f"{self.path}: events {start} to {start + len(rows) - 1}"
            events = columns_to_events(columns, place, self.faults)
            if len(events):
                yield events


@dataclass(frozen=True)
class _Member:
    """One array of an archive.

    Attributes:
        name: its file name in the archive.
        dtype: of an item; `shape`: of the array.
        fortran: whether columns lie one after the other.
        offset: bytes before the first item.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    offset: int


class NpzFile(PacketFile):
    """A .npz recording, streamed out of the archive, compressed or not: an EventStream."""

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                found = {name.removesuffix(".npy"): _member(archive, name) for name in names}
                members = {name: member for name, member in found.items() if not member.dtype.hasobject}
                said = _said_size(archive, members.pop(SIZE_MEMBER, None))
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
            raise EventFileError(f"{path}: not a whole .npz archive of numbers ({error})") from None
        self._sources = _sources(members, str(path))
        self._n_events = self._sources["t"][0].shape[0]
        self.sensor_size = self._settle_size(said, sensor_size)

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
            for source in dict.fromkeys(self._sources.values()):
                streams[source] = stack.enter_context(_open_at(self.path, archive, *source))
            for start in range(0, self._n_events, PACKET_EVENTS):
                count = min(PACKET_EVENTS, self._n_events - start)
                place = f"{self.path}: events {start} to {start + count - 1}"
                rows = {source: _read(stream, source[0], count, place) for source, stream in streams.items()}
                columns = {column: self._column(rows, column) for column in self._sources}
                events = columns_to_events(columns, place, self.faults)
                if len(events):
                    yield events

    def _column(self, rows: dict[tuple[_Member, int | None], NDArray[Any]], column: str) -> NDArray[Any]:
        source = self._sources[column]
        member, part = source
        if member.dtype.names or (part is None and len(member.shape) == 2):
            return _pick(rows[source], _layout(member.dtype, member.shape, member.name)[column])
        return rows[source]


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


def _pick(rows: NDArray[Any], key: str | int) -> NDArray[Any]:
    column: NDArray[Any] = rows[key] if isinstance(key, str) else rows[:, key]
    return column


def _sources(members: dict[str, _Member], place: str) -> dict[str, tuple[_Member, int | None]]:
    """Per column the member it is in, and which of the member's own columns it is where those lie one after the other."""
    tables = {name: m for name, m in members.items() if m.dtype.names or len(m.shape) == 2}
    if len(tables) == 1 or "events" in tables:
        member = tables["events"] if "events" in tables else next(iter(tables.values()))
        _layout(member.dtype, member.shape, f"{place}: {member.name}")
        by_column = member.fortran and len(member.shape) == 2
        return {column: (member, number if by_column else None) for number, column in enumerate(COLUMN_NAMES)}
    names = find_columns([name for name, m in members.items() if len(m.shape) == 1], f"{place}: arrays")
    found = {column: members[name] for column, name in names.items()}
    lengths = {column: m.shape[0] for column, m in found.items()}
    if len(set(lengths.values())) != 1 or not lengths["t"]:
        raise EventFileError(f"{place}: the arrays' lengths are {lengths}, expected four alike and above 0")
    return {column: (m, None) for column, m in found.items()}


def _member(archive: zipfile.ZipFile, name: str) -> _Member:
    """Read the header of one array; ValueError if it has none."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
        return _Member(name, dtype, shape, fortran, stream.tell())


def _said_size(archive: zipfile.ZipFile, member: _Member | None) -> SensorSize | None:
    if member is None:
        return None
    with archive.open(member.name) as stream:
        size = np.load(io.BytesIO(stream.read(_SKIP_BYTES)), allow_pickle=False)
    if size.shape != (2,) or size.dtype.kind not in "iu":
        raise ValueError(f"{SIZE_MEMBER} is {size.dtype} {size.shape}, expected whole numbers W, H")
    return SensorSize(int(size[0]), int(size[1]))


def _open_at(path: Path, archive: zipfile.ZipFile, member: _Member, part: int | None) -> IO[bytes]:
    """The member's bytes from its first item on, or from that of its column `part`."""
    ahead = member.offset + (part or 0) * member.shape[0] * member.dtype.itemsize
    try:
        stream = archive.open(member.name)
        while ahead > 0:
            ahead -= len(stream.read(min(ahead, _SKIP_BYTES))) or ahead
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise EventFileError(f"{path}: {member.name} is corrupt ({error})") from None
    return stream


def _read(stream: IO[bytes], member: _Member, count: int, place: str) -> NDArray[Any]:
    """The next `count` rows, or items of one column, of a member."""
    width = member.shape[1] if len(member.shape) == 2 and not member.fortran else 1
    wanted = count * width * member.dtype.itemsize
    try:
        data = stream.read(wanted)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise EventFileError(f"{place}: {member.name} is corrupt ({error})") from None
    if len(data) < wanted:
        raise EventFileError(f"{place}: {member.name} ends early: {len(data)} of {wanted} bytes")
    items = np.frombuffer(data, member.dtype)
    return items.reshape(count, width) if width > 1 else items
