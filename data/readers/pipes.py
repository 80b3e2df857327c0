"""Pipes, which can be read forward once: `evburst events info <(zcat events.csv.gz)`, `... | evburst detect --events /dev/stdin`.

A pipe's first bytes say its format; they stay in `Pipe` for the reader. One process opens a pipe once, and reads it once.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from evburst.data.errors import EventFileError

WAIT_S = 3.0
"""How long a pipe may have no writer before it is given up."""

_POLL_S = 0.05
_READ_BYTES = 1 << 16


class Pipe:
    """A pipe, open for reading.

    Args:
        path: the pipe.
        head_bytes: read at once into `head`, or less if there is no more.

    Attributes:
        head: the first bytes; `read` begins with them.

    Raises:
        EventFileError: it cannot be opened, nobody writes into it, or nothing was written.
    """

    def __init__(self, path: Path, head_bytes: int) -> None:
        self.path = path
        self.head = self._waiting = b""
        self._descriptor = -1
        try:
            # Without O_NONBLOCK, opening waits for a writer, which may never come.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise EventFileError(f"{path}: cannot be read ({error.strerror})") from None
        data = self._first()
        while data and len(self.head) < head_bytes:
            self.head += data
            data = self._read()
        self.head = self._waiting = self.head + data
        if not self.head:
            self.close()
            raise EventFileError(f"{path}: a pipe, not a regular file, and nothing was written into it for {WAIT_S:g} s")

    def read(self, size: int) -> bytes:
        """The next bytes, `size` unless the pipe ends before."""
        parts, missing = [], size
        while missing:
            data, self._waiting = self._waiting[:missing], self._waiting[missing:]
            data = data or self._read(missing)
            if not data:
                break
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def close(self) -> None:
        """Close it; does nothing the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()

    def _first(self) -> bytes:
        """The first bytes; none if there is no writer for `WAIT_S`. One that is there may take its time."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                data = os.read(self._descriptor, _READ_BYTES)
            except BlockingIOError:
                select.select([self._descriptor], [], [])
                continue
            if data or time.monotonic() > deadline:
                return data
            time.sleep(_POLL_S)

    def _read(self, size: int = _READ_BYTES) -> bytes:
        """Some bytes as soon as there are any; none at the end."""
        while True:
            select.select([self._descriptor], [], [])
            try:
                return os.read(self._descriptor, size)
            except BlockingIOError:
                continue
