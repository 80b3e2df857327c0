"""Reading from pipes: `evburst events info <(zcat events.csv.gz)`, `... | evburst detect --events /dev/stdin`.

A pipe can be read only once and only forwards. Its first bytes determine the format, so `Pipe` keeps them for the reader.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from evburst.data.errors import EventFileError

WAIT_S = 3.0
"""Time after which a pipe without a writer is given up."""

_POLL_S = 0.05
_READ_BYTES = 1 << 16


class Pipe:
    """A pipe, open for reading.

    Args:
        path: the pipe.
        head_bytes: number of bytes to read into `head` at once; fewer if the pipe ends before.

    Attributes:
        head: the first bytes; `read` returns them again.

    Raises:
        EventFileError: the pipe cannot be opened, has no writer, or is empty.
    """

    def __init__(self, path: Path, head_bytes: int) -> None:
        self.path = path
        self.head = self._buffered = b""
        self._descriptor = -1
        try:
            # Without O_NONBLOCK, opening would block until there is a writer, which may never come.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise EventFileError(f"{path}: cannot be read ({error.strerror})") from None
        data = self._first()
        while data and len(self.head) < head_bytes:
            self.head += data
            data = self._read()
        self.head = self._buffered = self.head + data
        if not self.head:
            is_unnamed = self._is_unnamed()
            self.close()
            if is_unnamed:
                raise EventFileError(f"{path}: the pipe is empty (0 bytes)")
            raise EventFileError(f"{path}: a pipe, not a regular file, and nothing was written into it for {WAIT_S:g} s")

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, or fewer if the pipe ends before."""
        parts, missing = [], size
        while missing:
            data, self._buffered = self._buffered[:missing], self._buffered[missing:]
            data = data or self._read(missing)
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes as soon as there are some; none at the end. Like io.BufferedReader.read1."""
        self._buffered = self._buffered or self._read(size)
        data, self._buffered = self._buffered[:size], self._buffered[size:]
        return data

    def close(self) -> None:
        """Close the pipe; has no effect the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def _first(self) -> bytes:
        """Wait for the first bytes; returns none at the end of an unnamed pipe, or if a named one has no writer for `WAIT_S`.

        A writer that exists may take longer.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                select.select([self._descriptor], [], [])
                continue
            if data or self._is_unnamed() or time.monotonic() > deadline:
                return data
            time.sleep(_POLL_S)

    def _is_unnamed(self) -> bool:
        """Whether it is a pipe between two programs, whose writer has had it since before; False where that is not known."""
        try:
            return os.readlink(f"/proc/self/fd/{self._descriptor}").startswith("pipe:")
        except OSError:
            return False

    def _read(self, size: int = _READ_BYTES) -> bytes:
        """Wait for data and return some bytes; none at the end."""
        while True:
            select.select([self._descriptor], [], [])
            try:
                return os.read(self._descriptor, size)
            except BlockingIOError:
                continue
