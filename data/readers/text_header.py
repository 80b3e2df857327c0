"""What stands before the first event of a text: names of columns, the sensor's size, comments."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from evburst.data.errors import EventFileError
from evburst.data.readers.columns import COLUMN_NAMES, column_places, find_columns, refuse_columns, unit_in_name
from evburst.data.readers.options import ReadOptions

METAVISION_ORDER = "x,y,p,t"
POLARITY_WORDS = {b"true": b"1", b"on": b"1", b"false": b"0", b"off": b"0"}

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NUMBER = re.compile(rb"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
_SIZE = re.compile(r"(geometry|sensor[ _]?size|resolution)[\s:=(]*(\d+)[\s,xX*]+(\d+)", re.IGNORECASE)
_MARKS = (b"#", b"%")


@dataclass
class TextHeader:
    """Where the events of a text begin and how their lines are made.

    Attributes:
        start: byte of the first event.
        n_lines: lines before it.
        first: the first event's line, as it is in the file.
        names: of the columns; empty if there are none.
        size: "WxH" if the text says it, or None.
        metavision: the text is a CSV of Prophesee's tools, whose columns are x,y,p,t.
        separator: between the columns; None for white space.
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
        """The first event's fields."""
        return split_fields(self.first)

    def places(self, path: Path, options: ReadOptions) -> dict[str, int]:
        """Numbers of the columns t, x, y, p.

        Raises:
            EventFileError: there are too few or they have other names.
            ConfigError: --columns was given for columns with names.
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
        """The unit that the time's name says, or None."""
        return unit_in_name(find_columns(self.names, "")["t"]) if self.names else None


def parse_text_header(path: Path, head: bytes) -> TextHeader:
    """The header in a text's first bytes.

    Raises:
        EventFileError: there is no line of numbers, or the line before it names no columns.
    """
    if b"\0" in head.partition(b"\n")[0]:
        raise EventFileError(f"{path}: not text: its first line holds zero bytes; was the file written to its end?")
    header = TextHeader(len(_BYTE_ORDER_MARK) if head.startswith(_BYTE_ORDER_MARK) else 0)
    for line in head[header.start :].splitlines(keepends=True):
        is_comment = line.startswith(_MARKS)
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
    raise EventFileError(f"{path}: no line of numbers 't x y p' within its first {len(head)} bytes")


def find_separator(line: bytes) -> str | None:
    """The mark that makes at least four fields of a line: ';', tab or ','; None means white space."""
    return next((mark for mark in ";\t," if line.count(mark.encode()) >= len(COLUMN_NAMES) - 1), None)


def split_fields(line: bytes) -> list[bytes]:
    """A line's fields without white space and quotes around them."""
    mark = find_separator(line)
    if mark is None and b"," in line and b" " not in line.strip():
        mark = ","
    return [field.strip().strip(b"\"'") for field in line.split(mark.encode() if mark else None)]


def count_numbers(fields: list[bytes]) -> int:
    """How many of the fields are numbers."""
    return sum(_NUMBER.fullmatch(field) is not None for field in fields)


def is_text(head: bytes, path: Path) -> bool:
    """Printable, and one of its first three lines that are neither blank nor comments holds four columns, three of them numbers."""
    if len(head.translate(None, _CONTROL)) < len(head):
        return False
    lines = [
        line for line in head.removeprefix(_BYTE_ORDER_MARK)[:4096].splitlines() if line.strip() and not line.startswith(_MARKS)
    ]
    return any(_is_event(split_fields(line)) for line in lines[:3])


_CONTROL = bytes(set(range(32)) - set(b"\t\r\n"))


def _is_event(fields: list[bytes]) -> bool:
    words = sum(field.lower() in POLARITY_WORDS for field in fields)
    return count_numbers(fields) + min(words, 1) >= len(COLUMN_NAMES)


def _is_size(fields: list[bytes]) -> bool:
    """Whether a line is nothing but width and height, as the first line of E2VID's texts."""
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _read_line(path: Path, header: TextHeader, line: bytes, fields: list[bytes], is_comment: bool) -> None:
    texts = [field.decode("utf-8", "replace") for field in fields]
    said = _SIZE.search(line.decode("utf-8", "replace")) if is_comment else None
    if said:
        header.size = "x".join(side.lstrip("0") or "0" for side in said.groups()[1:])
        header.metavision |= line.startswith(b"%geometry:")
    elif is_comment:
        if _names_columns(texts):
            header.names = texts
    elif any(texts):
        if header.names:
            raise EventFileError(f"{path}: no line of numbers 't x y p' behind the names in line {header.n_lines}")
        find_columns(texts, f"{path}: line {header.n_lines + 1}")
        header.names = texts


def _names_columns(texts: list[str]) -> bool:
    try:
        find_columns(texts, "")
    except EventFileError:
        return False
    return True
