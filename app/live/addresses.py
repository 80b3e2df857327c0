"""Addresses of cameras and streams: which ones OpenCV opens as a stream, and how they are shown without their passwords."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_STREAMS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "http", "https")


def is_address(text: str) -> bool:
    """Whether it begins with `scheme://`, so is no file name."""
    return _SCHEME.match(text) is not None


def is_stream(text: str) -> bool:
    """Whether it is the address of a video stream, e.g. rtsp://camera/1."""
    scheme = _SCHEME.match(text)
    return scheme is not None and scheme[1].lower() in _STREAMS


def masked(address: str) -> str:
    """An address as it may be shown: without user, password and parameters.

    A password may hold any character, also `/`, `?` or `@` that should have been written as %2F, %3F or %40, so all up to the last
    `@` is left out. A text without `scheme://` is returned as it is.
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return address
    rest = address[scheme.end() :]
    if "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    place, question, _ = re.sub(r"#.*", "", rest).partition("?")
    return scheme[0] + place + ("?***" if question else "")
