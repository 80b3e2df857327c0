"""The text header that Prophesee's DAT and RAW files share: `% keyword value` lines, followed by binary data.

If `% end` is on a line of its own, everything before it is header, whatever its bytes. Older RAW files have no such line, and
their binary data may start with the byte of `%`. There, a line belongs to the header if it is text (no control characters, in
UTF-8 or any 8-bit encoding), if it starts with an ASCII keyword, or if a later line in the same sequence does so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

MAX_HEADER_BYTES = 1 << 16
RAW_KEYWORDS = frozenset({"evt", "format"})
"""A RAW file states its encoding under one of these keywords; a DAT file has neither."""
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
"""A byte that no line of text contains."""

_END = re.compile(rb"^%[ \t]*end[ \t]*\r?\n", re.MULTILINE | re.IGNORECASE)
_TEXT_EVENT = re.compile(rb"[-+.\d\"']+[ \t]*[,; \t]|[A-Za-z\"' \t]+[,;]")
_KEYWORD = re.compile(rb"%[ \t]*[A-Za-z][A-Za-z0-9_.-]+[ \t:=]")


def parse_header(head: bytes) -> tuple[dict[str, str], int]:
    """Return the header's fields (keywords in lower case) and the offset of the first byte after it; see above.

    Values are decoded as UTF-8 if possible, otherwise as Latin-1.
    """
    end = _find_end(head) if head.startswith(b"%") else None
    lines = head[: end.end()].splitlines(keepends=True) if end else _header_lines(head)
    offset = end.end() if end else sum(map(len, lines))
    return header_fields(lines), offset


@lru_cache(maxsize=2)
def _find_end(head: bytes) -> re.Match[bytes] | None:
    """Find the line `% end`; cached, because several recognisers examine the same bytes."""
    return _END.search(head)


def split_lines(head: bytes) -> tuple[list[bytes], int]:
    """Return all complete lines that begin with `%`, including line ends, and the offset of the first byte after them."""
    lines, offset = [], 0
    while head[offset : offset + 1] == b"%" and (end := head.find(b"\n", offset)) >= 0:
        lines.append(head[offset : end + 1])
        offset = end + 1
    return lines, offset


def decode_text(text: bytes) -> str:
    """Decode bytes of unknown encoding as UTF-8 if possible, otherwise as Latin-1."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def is_raw(head: bytes, path: Path | None = None) -> bool:
    """Return whether a file's first bytes are the header of a RAW recording (EVT2, EVT2.1, EVT3, EVT4, ...)."""
    return not RAW_KEYWORDS.isdisjoint(parse_header(head)[0])


def is_dat(head: bytes, path: Path | None = None) -> bool:
    """Return whether a file's first bytes are a `%` header other than that of a RAW recording.

    A file that begins with the byte of `%` by chance (an N-Caltech101 event at x = 37) has no complete line of text. Events
    in text form may follow a comment that begins with `%`, and are excluded.
    """
    _, offset = parse_header(head)
    return offset > 0 and not is_raw(head, path) and not _TEXT_EVENT.match(head, offset)


def header_fields(lines: list[bytes]) -> dict[str, str]:
    """Return the values of `% keyword value` lines by keyword in lower case; the last one wins if a keyword is repeated."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(b"%"):
            keyword, _, value = decode_text(line[1:]).strip().partition(" ")
            fields[keyword.lower()] = value.strip()
    return fields


def _header_lines(head: bytes) -> list[bytes]:
    """Return the sequence's lines up to the last one that certainly belongs to the header."""
    lines, _ = split_lines(head)
    while lines and not _is_header(lines[-1]):
        lines.pop()
    return lines


def _is_header(line: bytes) -> bool:
    """Return whether a line that begins with `%` is text, and not binary data that resembles it."""
    if _KEYWORD.match(line):
        return True
    if CONTROL.search(line.rstrip(b"\r\n")):
        return False
    try:
        line.decode()
    except UnicodeDecodeError:
        return line.startswith((b"% ", b"%\t"))
    return True
