"""Files mapped into memory, whose pages are given back once read: a 10 GB recording needs no more memory than a short one.

Pages of a mapped file count as the process's own memory until the system takes them away, which it does only when memory
is short. So a reader that passes over a file says how far it has come; a page that is needed again is read again. The last
megabytes stay, because threads may not have binned them yet: a page read again after it was given back is given back no more.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_RELEASE_BYTES = _KEPT_BYTES = 16 << 20


class MappedWords:
    """The words of a file, read-only.

    Args:
        path: the file.
        dtype: of a word.
        offset: bytes before the first word.
        shape: of the array of words.

    Attributes:
        array: the words; a view of the map.
    """

    def __init__(self, path: Path, dtype: DTypeLike, offset: int, shape: tuple[int, ...]) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape))
        self.array: NDArray[Any] = np.frombuffer(self._map, dtype, count, offset).reshape(shape)
        self._offset = offset
        self._row_bytes = self.array.nbytes // len(self.array)
        self._released = 0

    def rewind(self) -> None:
        """A new pass over the file begins."""
        self._released = 0

    def read_until(self, row: int) -> None:
        """What lies before this row of `array` has been read; its pages are given back, some megabytes at a time."""
        end = (self._offset + row * self._row_bytes - _KEPT_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
        if end - self._released >= _RELEASE_BYTES and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, self._released, end - self._released)
            self._released = end
