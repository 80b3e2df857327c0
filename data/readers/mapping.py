"""Files mapped into memory, whose pages are given back once read: a 10 GB recording needs no more memory than a short one.

Pages of a mapped file count as the process's own memory until the system takes them away, which it does only when memory
is short. So a reader that passes over a file says how far it has come; a page that is needed again is read again. The last
megabytes stay, because threads may not have binned them yet: a page read again after it was given back is given back no more.

Small files are read whole instead. A mapped file that becomes shorter is an error, not the process's end: see `shrinking`.
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
from evburst.data.readers.shrinking import MapGuard

_RELEASE_BYTES = _KEPT_BYTES = 16 << 20
_READ_WHOLE_BYTES = 1 << 20


class MappedWords:
    """The words of a file, read-only.

    Args:
        path: the file.
        dtype: of a word.
        offset: bytes before the first word.
        shape: of the array of words.
        order: "C" or "F", how the array lies in the file.

    Attributes:
        array: the words; a view of the map.

    Raises:
        EventFileError: the file cannot be read or mapped, or has become shorter.
    """

    def __init__(self, path: Path, dtype: DTypeLike, offset: int, shape: tuple[int, ...], order: str = "C") -> None:
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
        self.array: NDArray[Any] = words.reshape(shape, order="F" if order == "F" else "C")
        self._row_bytes = max(self.array.nbytes // len(self.array), 1)
        self.rewind()

    def _mapped(self, descriptor: int) -> mmap.mmap:
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        address = np.frombuffer(self._map, np.uint8, 1).ctypes.data
        self._guard = MapGuard(address, len(self._map))
        # Views of the map may outlive this object: the guard goes with the map itself.
        weakref.finalize(self._map, self._guard.release)
        return self._map

    def rewind(self) -> None:
        """A new pass over the file begins."""
        self._released, self._next_row = 0, self._row_of(_RELEASE_BYTES)

    def check(self) -> None:
        """Raise EventFileError if the file has become shorter since it was opened: what was read of it may be zeros."""
        if self._map is not None and self._guard is not None and (self._guard.hit or self._map.size() < self._end):
            raise self._shortened(self._map.size())

    def read_until(self, row: int) -> None:
        """What lies before this row of `array` has been read; its pages are given back, some megabytes at a time."""
        self.check()
        self.release_until(row)

    def release_until(self, row: int) -> None:
        """`read_until` where `check` was just called."""
        if row < self._next_row or self._map is None or not hasattr(self._map, "madvise"):
            return
        end = (self._offset + row * self._row_bytes - _KEPT_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, self._released, end - self._released)
        self._released, self._next_row = end, self._row_of(end + _RELEASE_BYTES)

    def _row_of(self, end: int) -> int:
        """The first row at which pages up to byte `end` can be given back."""
        return -(-(end + _KEPT_BYTES - self._offset) // self._row_bytes)

    def _shortened(self, size: int) -> EventFileError:
        return EventFileError(f"{self._path}: was shortened while it was read: {size} bytes of the {self._end} at its opening")
