"""Text: one event per line, `t x y p` separated by commas, semicolons, tabs or spaces, streamed in blocks.

- A first line of names ("timestamp,x,y,polarity", also after a '#') says the order of the columns; without one it is t x y p.
  Further columns are passed over, but every line has as many as the first: one that has not is two lines run together.
  Lines that begin with '#' are comments before the first event only; blank lines are passed over.
- Times are whole microseconds. If the first one is written with a decimal point, all are seconds, as in `events.txt` of the
  DAVIS recordings.
- p may be 0 and 1, or -1 and 1.
- A last line that lacks its end and cannot be read is a cut, counted in `truncated_bytes`; any other such line is an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from evburst.data.errors import EventFileError
from evburst.data.events import Events, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.packets import COLUMN_NAMES, PacketFile, columns_to_events, find_columns, settle_size, split_packets
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 22
_MAX_HEADER_BYTES = 1 << 16
_NUMBER = re.compile(rb"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_MAX_SECONDS = 1 << 33
_MAX_COORDINATE = 1 << 31
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CONTROL = bytes(set(range(32)) - set(b"\t\r\n"))


class TextFile(PacketFile):
    """A recording written as text: an EventStream.

    Attributes:
        seconds: times are seconds instead of microseconds.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            head = file.read(_MAX_HEADER_BYTES)
        names, self._start, self._header_lines, first_line = _read_header(path, head)
        first = _fields(first_line)
        self._n_columns = len(first)
        self._order = _column_numbers(path, names, self._n_columns)
        self._separator = _separator(first_line)
        self.seconds = any(mark in first[self._order["t"]] for mark in b".eE")
        self.sensor_size = settle_size(path, None, sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a line cannot be read; says which.
        """
        line, count = self._header_lines + 1, 0
        for block, is_last in self._blocks():
            columns = self._parse(block, line, is_last)
            n_events = len(columns["t"])
            if n_events:
                place = f"{self.path}: events {count} to {count + n_events - 1}, from line {line}"
                yield from split_packets([columns_to_events(columns, place, self.faults)])
            count += n_events
            line += block.count(b"\n")
        if count == 0:
            raise EventFileError(f"{self.path}: no event in the whole file")

    def _blocks(self) -> Iterator[tuple[bytes, bool]]:
        """Whole lines, a few MB at a time; the last block may lack the end of its last line."""
        with self.path.open("rb") as file:
            file.seek(self._start)
            rest = b""
            while data := file.read(BLOCK_BYTES):
                data = rest + data
                cut = data.rfind(b"\n") + 1
                if cut:
                    yield data[:cut], False
                rest = data[cut:]
            if rest:
                yield rest, True

    def _parse(self, block: bytes, first_line: int, is_last: bool) -> dict[str, NDArray[np.int64]]:
        lines = block.splitlines()
        try:
            return self._columns(lines)
        except ValueError as error:
            number, text = self._first_bad(lines)
            if is_last and number == len(lines) - 1:
                self.faults.truncated_bytes = len(block.splitlines(keepends=True)[-1])
                return self._columns(lines[:-1])
            raise EventFileError(
                f"{self.path}: line {first_line + number} is {text[:60]!r}; expected numbers t x y p ({error})"
            ) from None

    def _columns(self, lines: list[bytes]) -> dict[str, NDArray[np.int64]]:
        """Raises ValueError where a line is not of numbers."""
        order = [self._order[column] for column in COLUMN_NAMES]
        if not any(line.strip() for line in lines):
            return {column: np.empty(0, np.int64) for column in COLUMN_NAMES}
        mark = self._separator.encode() if self._separator else None
        if not {len(line.split(mark)) for line in lines} <= {0, 1, self._n_columns}:  # 0 or 1: a blank line
            raise ValueError(f"{self._n_columns} columns as in the first line")
        types = np.dtype([("t", np.float64 if self.seconds else np.int64), ("x", "f8"), ("y", "f8"), ("p", "f8")])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy reads '1.5' as the integer 1 and only warns.
            try:
                rows = np.loadtxt(lines, types, None, self._separator, usecols=order, ndmin=1, encoding="latin-1")
            except DeprecationWarning:
                raise ValueError("a time is no whole number of microseconds") from None
        columns = {column: rows[column] if column == "t" else _whole(rows[column], column) for column in COLUMN_NAMES}
        if self.seconds:
            if not (np.abs(rows["t"]) < _MAX_SECONDS).all():
                raise ValueError("a time is no number of seconds")
            columns["t"] = np.rint(rows["t"] * 1e6).astype(np.int64)
        return columns

    def _first_bad(self, lines: list[bytes]) -> tuple[int, str]:
        """Index and text of the first line that cannot be read, found by halves."""
        low, high = 0, len(lines)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                self._columns(lines[low:middle])
            except ValueError:
                high = middle
            else:
                low = middle
        return low, lines[low].decode("latin-1")


def _is_text(head: bytes, path: Path) -> bool:
    """Printable, and one of its first two lines that are neither blank nor comments holds four numbers."""
    if len(head.translate(None, _CONTROL)) < len(head):
        return False
    lines = [line for line in head.removeprefix(_BYTE_ORDER_MARK).splitlines() if line.strip() and not line.startswith(b"#")]
    return any(_numbers(_fields(line)) >= len(COLUMN_NAMES) for line in lines[:2])


@reader("csv", recognise=_is_text, suffixes=(".csv", ".txt"), signature=False)
def open_text(path: Path, sensor_size: SensorSize | None = None) -> TextFile:
    """Open a text file; see TextFile."""
    return TextFile(path, sensor_size)


def _whole(values: NDArray[np.float64], name: str) -> NDArray[np.int64]:
    if not ((np.abs(values) < _MAX_COORDINATE) & (np.rint(values) == values)).all():
        raise ValueError(f"{name} is no whole number")
    return values.astype(np.int64)


def _separator(line: bytes) -> str | None:
    """',' or ';' where there is one; None means white space."""
    return next((mark for mark in ",;" if mark.encode() in line), None)


def _fields(line: bytes) -> list[bytes]:
    mark = _separator(line)
    return [field.strip() for field in line.split(mark.encode() if mark else None)]


def _numbers(fields: list[bytes]) -> int:
    return sum(_NUMBER.fullmatch(field) is not None for field in fields)


def _read_header(path: Path, head: bytes) -> tuple[list[str], int, int, bytes]:
    """(names of the columns, byte and number of lines before the first event, the first event's line).

    Raises:
        EventFileError: there is no line of numbers, or the line before it names no columns.
    """
    names: list[str] = []
    start = len(_BYTE_ORDER_MARK) if head.startswith(_BYTE_ORDER_MARK) else 0
    for number, line in enumerate(head[start:].splitlines(keepends=True)):
        fields = _fields(line.lstrip(b"#"))
        if not line.startswith(b"#") and _numbers(fields):
            return names, start, number, line
        texts = [field.decode("latin-1").strip("\"'") for field in fields]
        if not line.startswith(b"#"):
            if any(texts):
                if names:
                    break
                find_columns(texts, f"{path}: line {number + 1}")
                names = texts
        elif _names_columns(texts):
            names = texts
        start += len(line)
    raise EventFileError(f"{path}: no line of numbers 't x y p' within its first {len(head)} bytes")


def _names_columns(texts: list[str]) -> bool:
    lower = {text.lower() for text in texts}
    return all(lower & set(aliases) for aliases in COLUMN_NAMES.values())


def _column_numbers(path: Path, names: list[str], n_columns: int) -> dict[str, int]:
    if names:
        found = {column: names.index(name) for column, name in find_columns(names, str(path)).items()}
        if len(names) == n_columns:
            return found
        raise EventFileError(f"{path}: the header names {len(names)} columns, the first event has {n_columns}")
    if n_columns < len(COLUMN_NAMES):
        raise EventFileError(f"{path}: the first event has {n_columns} columns, expected t x y p")
    return dict(zip(COLUMN_NAMES, range(4), strict=True))
