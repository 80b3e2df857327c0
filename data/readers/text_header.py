"""The header of event recordings in text form: column names, sensor size, comments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.readers.columns import COLUMN_NAMES, column_places, find_columns, refuse_columns, unit_in_name
from evburst.data.readers.options import ReadOptions

METAVISION_ORDER = "x,y,p,t"
POLARITY_WORDS = {b"true": b"1", b"on": b"1", b"false": b"0", b"off": b"0"}

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NUMBER = re.compile(rb"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_SIZE = re.compile(r"(geometry|sensor[ _]?size|resolution)[\s:=(]*(\d+)[\s,xX*]+(\d+)", re.IGNORECASE)
_COMMENT_MARKS = (b"#", b"%")


@dataclass
class TextHeader:
    """Header of a text file and layout of its lines.

    Attributes:
        start: byte offset of the first event.
        n_lines: number of lines before it.
        first: the first event's line, unchanged.
        names: column names; empty if there are none.
        size: sensor size as "WxH", or None if not stated.
        metavision: whether the file is a CSV of Prophesee's tools, whose columns are x,y,p,t.
        separator: column separator; None for white space.
    """

    start: int = 0
    n_lines: int = 0
    first: bytes = b""
    names: list[str] = field(default_factory=list)
    size: str | None = None
    metavision: bool = False
    separator: str | None = None

    @property
    def fields(self) -> list[bytes]:
        """Fields of the first event."""
        return split_fields(self.first)

    def places(self, path: Path, options: ReadOptions) -> dict[str, int]:
        """Return the indices of the columns t, x, y, p.

        Raises:
            EventFileError: there are too few columns, or they have unknown names.
            ConfigError: --columns was given although the columns have names.
        """
        n_columns = len(self.fields)
        if not self.names:
            if self.metavision and not options.columns:
                options = ReadOptions(columns=METAVISION_ORDER)
            return column_places(options, n_columns, f"{path}: the first event")
        refuse_columns(options, str(path))
        found = {column: self.names.index(name) for column, name in find_columns(self.names, str(path)).items()}
        if len(self.names) == n_columns:
            return found
        raise EventFileError(f"{path}: the header names {len(self.names)} columns, the first event has {n_columns}")

    @property
    def unit(self) -> str | None:
        """Unit in the name of the time column, or None."""
        return unit_in_name(find_columns(self.names, "")["t"]) if self.names else None


def parse_text_header(path: Path, head: bytes) -> TextHeader:
    """Parse the header in a text file's first bytes.

    Raises:
        EventFileError: there is no line of numbers (NoEventsError: only column names), or the line before it does not contain
            column names.
    """
    if b"\0" in head.partition(b"\n")[0]:
        raise EventFileError(f"{path}: not text: its first line holds zero bytes; was the file written to its end?")
    header = TextHeader(len(_BYTE_ORDER_MARK) if head.startswith(_BYTE_ORDER_MARK) else 0)
    for line in head[header.start :].splitlines(keepends=True):
        is_comment = line.startswith(_COMMENT_MARKS)
        fields = split_fields(line.lstrip(b"#%"))
        if not is_comment and _is_size(fields) and header.size is None and not header.names:
            header.size = b"x".join(fields).decode()
        elif not is_comment and count_numbers(fields):
            header.first, header.separator = line, find_separator(line)
            return header
        else:
            _read_line(path, header, line, fields, is_comment)
        header.start += len(line)
        header.n_lines += 1
    error = NoEventsError if header.names else EventFileError
    raise error(f"{path}: no line of numbers 't x y p' within its first {len(head)} bytes")


def find_separator(line: bytes) -> str | None:
    """Return the separator that splits a line into at least four fields: ';', tab or ','; None for white space."""
    return next((separator for separator in ";\t," if line.count(separator.encode()) >= len(COLUMN_NAMES) - 1), None)


def split_fields(line: bytes) -> list[bytes]:
    """Split a line into fields, without surrounding white space and quotes."""
    separator = find_separator(line)
    if separator is None and b"," in line and b" " not in line.strip():
        separator = ","
    return [field.strip().strip(b"\"'") for field in line.split(separator.encode() if separator else None)]


def count_numbers(fields: list[bytes]) -> int:
    """Return how many of the fields are numbers."""
    return sum(_NUMBER.fullmatch(field) is not None for field in fields)


def is_text(head: bytes, path: Path) -> bool:
    """Return whether the bytes are printable and one of the first three lines with data contains an event.

    Blank lines and comments are not counted; an event has four columns, three of them numbers.
    """
    if len(head.translate(None, _CONTROL)) < len(head):
        return False
    lines = [
        line
        for line in head.removeprefix(_BYTE_ORDER_MARK)[:4096].splitlines()
        if line.strip() and not line.startswith(_COMMENT_MARKS)
    ]
    return any(_is_event(split_fields(line)) for line in lines[:3])


_CONTROL = bytes(set(range(32)) - set(b"\t\r\n"))


def _is_event(fields: list[bytes]) -> bool:
    words = sum(field.lower() in POLARITY_WORDS for field in fields)
    return count_numbers(fields) + min(words, 1) >= len(COLUMN_NAMES)


def _is_size(fields: list[bytes]) -> bool:
    """Return whether a line consists of width and height only, as the first line of E2VID's text files."""
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _read_line(path: Path, header: TextHeader, line: bytes, fields: list[bytes], is_comment: bool) -> None:
    words = [field.decode("utf-8", "replace") for field in fields]
    size_match = _SIZE.search(line.decode("utf-8", "replace")) if is_comment else None
    if size_match:
        header.size = "x".join(side.lstrip("0") or "0" for side in size_match.groups()[1:])
        header.metavision |= line.startswith(b"%geometry:")
    elif is_comment:
        if _names_columns(words):
            header.names = words
    elif any(words):
        if header.names:
            raise EventFileError(f"{path}: no line of numbers 't x y p' after the column names in line {header.n_lines}")
        find_columns(words, f"{path}: line {header.n_lines + 1}")
        header.names = words


def _names_columns(words: list[str]) -> bool:
    try:
        find_columns(words, "")
    except EventFileError:
        return False
    return True
