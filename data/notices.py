"""Warnings about data that are opened several times, once for each split or pass."""

from __future__ import annotations

import logging

_LOG = logging.getLogger(__name__)
_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning unless this process has logged the same one."""
    if message not in _warned:
        _warned.add(message)
        _LOG.warning("%s", message)
