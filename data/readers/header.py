"""The text header that Prophesee's DAT and RAW files share: `% keyword value` lines, then binary data."""

from __future__ import annotations

from pathlib import Path

MAX_HEADER_BYTES = 1 << 16
RAW_KEYWORDS = frozenset({"evt", "format"})
"""A RAW file names its encoding in one of these; a DAT file has neither."""


def parse_header(head: bytes) -> tuple[dict[str, str], int]:
    """The header's fields (keywords in lower case) and the offset of the first byte after it.

    A line is `%`, text and a newline. The header ends after `% end`, before a line without `%`, and before a line with
    bytes that are no text: `% end` is optional, and binary data may begin with the byte of `%`.
    """
    fields: dict[str, str] = {}
    offset = 0
    while head[offset : offset + 1] == b"%":
        end = head.find(b"\n", offset)
        text = head[offset + 1 : max(end, 0)].decode("latin-1").strip()
        if end < 0 or not all(character.isprintable() or character == "\t" for character in text):
            break
        keyword, _, value = text.partition(" ")
        fields[keyword.lower()] = value.strip()
        offset = end + 1
        if keyword.lower() == "end":
            break
    return fields, offset


def is_raw(head: bytes, path: Path | None = None) -> bool:
    """Whether a file's first bytes are the header of a RAW recording (EVT2, EVT2.1, EVT3, ...)."""
    return not RAW_KEYWORDS.isdisjoint(parse_header(head)[0])


def is_dat(head: bytes, path: Path | None = None) -> bool:
    """Whether a file's first bytes are a `%` header, but not that of a RAW recording.

    A file that begins with the byte of `%` by chance (an N-Caltech101 event at x = 37) has no whole line of text.
    """
    _, offset = parse_header(head)
    return offset > 0 and not is_raw(head, path)
