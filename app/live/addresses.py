"""Addresses of cameras and streams: recognise those that OpenCV can open, and mask passwords for display."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")  # a single letter is a drive
_STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "http", "https")


def is_address(text: str) -> bool:
    """Return whether the text begins with `scheme://` and so is not a file name."""
    return _SCHEME.match(text) is not None


def is_stream(text: str) -> bool:
    """Return whether the text is the address of a video stream, e.g. rtsp://camera/1."""
    scheme = _SCHEME.match(text)
    return scheme is not None and scheme[1].lower() in _STREAMS


def masked(address: str) -> str:
    """Return an address without user, password and query parameters, for display.

    A password may contain `/`, `?` or `@` that should have been written as %2F, %3F or %40; therefore everything up to the
    last `@` is masked. A text without `scheme://` is returned unchanged.
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return address
    rest = address[scheme.end() :]
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    location, question_mark, _ = re.sub(r"#.*", "", rest).partition("?")
    return scheme[0] + location + ("?***" if question_mark else "")
