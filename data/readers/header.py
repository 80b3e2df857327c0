"""The text header that Prophesee's DAT and RAW files share: `% keyword value` lines, then binary data.

Where `% end` stands on a line of its own, everything before it is header, whatever bytes it has. Older RAW files have no
such line, and their binary data may begin with the byte of `%`. There, a line is header if it is text (no control
characters, in UTF-8 or any 8-bit encoding), if it begins with an ASCII keyword, or if a later line of the same chain is one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

MAX_HEADER_BYTES = 1 << 16
RAW_KEYWORDS = frozenset({"evt", "format"})
"""A RAW file names its encoding in one of these; a DAT file has neither."""

_END = re.compile(rb"^%[ \t]*end[ \t]*\r?\n", re.MULTILINE | re.IGNORECASE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_TEXT_EVENT = re.compile(rb"[-+.\d\"']+[ \t]*[,; \t]|[A-Za-z\"' \t]+[,;]")
_KEYWORD = re.compile(rb"%[ \t]*[A-Za-z][A-Za-z0-9_.-]+[ \t:=]")


def parse_header(head: bytes) -> tuple[dict[str, str], int]:
    """The header's fields (keywords in lower case) and the offset of the first byte after it; see above.

    A value is UTF-8 where it can be, else Latin-1.
    """
    end = _find_end(head) if head.startswith(b"%") else None
    lines = head[: end.end()].splitlines(keepends=True) if end else _header_lines(head)
    offset = end.end() if end else sum(map(len, lines))
    return _fields(lines), offset


@lru_cache(maxsize=2)
def _find_end(head: bytes) -> re.Match[bytes] | None:
    """The line `% end`; remembered, because several recognisers look at the same bytes."""
    return _END.search(head)


def split_lines(head: bytes) -> tuple[list[bytes], int]:
    """All whole lines that begin with `%`, with their ends, and the offset of the first byte after them."""
    lines, offset = [], 0
    while head[offset : offset + 1] == b"%" and (end := head.find(b"\n", offset)) >= 0:
        lines.append(head[offset : end + 1])
        offset = end + 1
    return lines, offset


def decode_text(text: bytes) -> str:
    """Bytes of an unknown encoding as text: UTF-8 where they are, else Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def is_raw(head: bytes, path: Path | None = None) -> bool:
    """Whether a file's first bytes are the header of a RAW recording (EVT2, EVT2.1, EVT3, ...)."""
    return not RAW_KEYWORDS.isdisjoint(parse_header(head)[0])


def is_dat(head: bytes, path: Path | None = None) -> bool:
    """Whether a file's first bytes are a `%` header, but not that of a RAW recording.

    A file that begins with the byte of `%` by chance (an N-Caltech101 event at x = 37) has no whole line of text; events
    written as text may follow a comment that begins so.
    """
    _, offset = parse_header(head)
    return offset > 0 and not is_raw(head, path) and not _TEXT_EVENT.match(head, offset)


def header_fields(lines: list[bytes]) -> dict[str, str]:
    """Values of `% keyword value` lines by keyword in lower case; of a repeated one the last."""
    return _fields(lines)


def _fields(lines: list[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(b"%"):
            keyword, _, value = decode_text(line[1:]).strip().partition(" ")
            fields[keyword.lower()] = value.strip()
    return fields


def _header_lines(head: bytes) -> list[bytes]:
    """The chain's lines up to the last one that is header beyond doubt."""
    lines, _ = split_lines(head)
    while lines and not _is_header(lines[-1]):
        lines.pop()
    return lines


def _is_header(line: bytes) -> bool:
    """Whether a line that begins with `%` is text, and no binary data that looks like it."""
    if _KEYWORD.match(line):
        return True
    if _CONTROL.search(line.rstrip(b"\r\n")):
        return False
    try:
        line.decode()
    except UnicodeDecodeError:
        return line.startswith((b"% ", b"%\t"))
    return True
