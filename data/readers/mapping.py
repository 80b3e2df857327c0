"""Memory-mapped files whose pages are released after reading, so that a 10 GB recording needs no more memory than a short one.

Pages of a mapped file count as memory of the process until the system takes them away, which it does only when memory is
short. So a reader reports its progress through the file, and earlier pages are released; they are read again if needed. The
last few megabytes are kept, because other threads may not have binned them yet and a page is released only once.

Small files are read completely instead. If a mapped file is shortened, an error is raised instead of a crash:
see `sigbus_guard`.
"""

from __future__ import annotations

import math
import mmap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from evburst.data.errors import EventFileError
from evburst.data.readers.sigbus_guard import MapGuard

_RELEASE_BYTES = _KEPT_BYTES = 16 << 20
_READ_WHOLE_BYTES = 1 << 20


class MappedWords:
    """The words of a file, read-only.

    Args:
        path: the file.
        dtype: data type of a word.
        offset: bytes before the first word.
        shape: shape of the array of words.
        fortran: whether the file has them in column-major order.

    Attributes:
        array: the words, as a view of the map.

    Raises:
        EventFileError: the file cannot be read or mapped, or was shortened.
    """

    def __init__(self, path: Path, dtype: DTypeLike, offset: int, shape: tuple[int, ...], fortran: bool = False) -> None:
        self._path, self._offset = path, offset
        count = math.prod(shape)
        self._end = offset + count * np.dtype(dtype).itemsize
        self._map: mmap.mmap | None = None
        self._guard: MapGuard | None = None
        try:
            with path.open("rb") as file:
                memory = file.read(self._end) if self._end <= _READ_WHOLE_BYTES else self._mapped(file.fileno())
        except (OSError, ValueError, MemoryError, OverflowError) as error:
            raise EventFileError(
                f"{path}: {self._end} bytes cannot be mapped into memory ({error}); is the address space limited (ulimit -v)?"
            ) from None
        if len(memory) < self._end:
            raise self._shortened(len(memory))
        words = np.frombuffer(memory, dtype, count, offset)
        self.array: NDArray[Any] = words.reshape(shape, order="F" if fortran else "C")
        self._row_bytes = max(self.array.nbytes // len(self.array), 1)
        self.rewind()

    def _mapped(self, descriptor: int) -> mmap.mmap:
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        address = np.frombuffer(self._map, np.uint8, 1).ctypes.data
        self._guard = MapGuard(address, len(self._map))
        # Views of the map may outlive this object, so the guard lives as long as the map itself.
        weakref.finalize(self._map, self._guard.release)
        return self._map

    def rewind(self) -> None:
        """Begin a new pass over the file."""
        self._released, self._next_row = 0, self._row_of(_RELEASE_BYTES)

    def check(self) -> None:
        """Raise EventFileError if the file was shortened since it was opened, so that the data read may be zeros."""
        if self._map is not None and self._guard is not None and (self._guard.hit or self._map.size() < self._end):
            raise self._shortened(self._map.size())

    def read_until(self, row: int) -> None:
        """Release the pages before this row of `array`, some megabytes at a time."""
        self.check()
        self.release_until(row)

    def release_until(self, row: int) -> None:
        """`read_until` where `check` was just called."""
        if row < self._next_row or self._map is None or not hasattr(self._map, "madvise"):
            return
        released, end = self._released, (self._offset + row * self._row_bytes - _KEPT_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > released:  # a pass by another thread may be further on
            self._map.madvise(mmap.MADV_DONTNEED, released, end - released)
            self._released, self._next_row = end, self._row_of(end + _RELEASE_BYTES)

    def _row_of(self, end: int) -> int:
        """The first row at which pages up to byte `end` can be given back."""
        return -(-(end + _KEPT_BYTES - self._offset) // self._row_bytes)

    def _shortened(self, size: int) -> EventFileError:
        return EventFileError(f"{self._path}: was shortened while it was read: {size} of its {self._end} bytes are left")
