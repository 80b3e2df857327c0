"""Text for people."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x80-\x9f]")


def number_of(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 window`, `1,200 windows`; the plural has an s unless it is given."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def without_controls(text: str) -> str:
    """Escape the characters that a terminal would obey; names of files may have any.

    Line breaks and tabs stay, and so does DEL, which terminals ignore and JSON does not escape.
    """
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)
