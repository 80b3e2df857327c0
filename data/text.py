"""Text for people."""

from __future__ import annotations


def number_of(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 window`, `1,200 windows`; the plural has an s unless it is given."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
