"""Packed events: one event in 8 bytes, as in DAT files and in the simulator's cache. All bit masks are in this module.

A window's events are either structured (`EVENT_DTYPE`) or packed: `(n, 2)` uint32. The first word is a time in µs, relative
to `EventWindow.epoch_us`; the second holds x, y and p from bit 0 upwards. Viewed as one little-endian uint64, the time is
the low half. Two versions differ in the number of bits per coordinate: 14 and 14 (version 2, which we write), or 9 and 8
(version 1, used by old sensors).

Kernels read packed events without unpacking them: `word_fields`, `time_of`, `x_of`, `y_of` and `p_of` are inlined into them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evburst.data._numba import njit
from evburst.data.events import EVENT_DTYPE, Events, EventWindow

Packed = NDArray[np.uint32]
"""Packed events, `(n, 2)` uint32."""

WRAP_US = 1 << 32
"""Period of the 32-bit clock of packed times."""

_BITS_1, _BITS_2 = (9, 8), (14, 14)
"""Bits of x and y in version 1 and in version 2."""


class WordFields(NamedTuple):
    """Positions of x, y and p in an event's 64-bit word; uint64 each.

    Attributes:
        x_mask, y_mask: masks of the coordinates after shifting.
        y_shift, p_shift: shifts of y and p. x starts at bit 32, above the time.
    """

    x_mask: Any
    y_mask: Any
    y_shift: Any
    p_shift: Any


def words_64(packed: Packed) -> NDArray[np.uint64]:
    """View packed events as one word each, `(n,)` uint64."""
    return packed.view(np.uint64)[:, 0]


def pack(events: Events) -> Packed:
    """Pack events (t in [0, 2**32), x and y below 2**14) as version 2."""
    return pack_columns(*(events[name] for name in "txyp"))


def pack_columns(t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike) -> Packed:
    """Pack columns of integers, `(n,)` each; otherwise as `pack`."""
    x, y, p = (np.asarray(column).astype(np.uint32) for column in (x, y, p))
    return np.stack([np.asarray(t).astype("<u4"), x | y << 14 | p << 28], 1).astype("<u4")


def pack_relative(window: EventWindow) -> Packed:
    """Pack a window's events as version 2 with times relative to its start; returns its own words if they already are."""
    if not is_packed(window) or window.version != 2:
        events = unpack(window)
        events["t"] -= window.t0_us
        return pack(events)
    if window.epoch_us == window.t0_us:
        return window.words
    words: Packed = window.words.copy()
    words[:, 0] += np.uint32((window.epoch_us - window.t0_us) % WRAP_US)
    return words


def unpack(window: EventWindow) -> Events:
    """Return a window's events as EVENT_DTYPE (a copy)."""
    events = np.empty(len(window), EVENT_DTYPE)
    if is_packed(window):
        _unpack(words_64(window.words), window.epoch_us, window.version, *(events[name] for name in "txyp"))
    else:
        events[:] = window.words
    return events


def columns(window: EventWindow) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]:
    """Return t, x, y, p of a window's events, `(n,)` each: views of structured events, copies of packed ones."""
    if not is_packed(window):
        return window.words["t"], window.words["x"], window.words["y"], window.words["p"]
    x_bits, y_bits = _BITS_1 if window.version == 1 else _BITS_2
    coordinates = window.words[:, 1]
    return (
        window.words[:, 0].astype(np.int64) + window.epoch_us,
        (coordinates & ((1 << x_bits) - 1)).astype(np.uint16),
        (coordinates >> x_bits & ((1 << y_bits) - 1)).astype(np.uint16),
        (coordinates >> (x_bits + y_bits) & 1).astype(np.uint8),
    )


def is_packed(window: EventWindow) -> bool:
    """Return whether the window's events are packed; otherwise they are structured."""
    return window.words.dtype != EVENT_DTYPE


@njit(inline="always")
def word_fields(version):  # type: ignore[no-untyped-def]
    """Return the positions of x, y and p in the words of a version, as WordFields.

    Kernels call it instead of taking WordFields as an argument, because passing them takes longer.
    """
    x_bits, y_bits = _BITS_1 if version == 1 else _BITS_2
    x_mask, y_mask = np.uint64((1 << x_bits) - 1), np.uint64((1 << y_bits) - 1)
    return WordFields(x_mask, y_mask, np.uint64(32 + x_bits), np.uint64(32 + x_bits + y_bits))


@njit(inline="always")
def time_of(word):  # type: ignore[no-untyped-def]
    """Return the 32-bit time of an event's uint64 word, as int64."""
    return np.int64(word & np.uint64(0xFFFFFFFF))


@njit(inline="always")
def x_of(word, fields):  # type: ignore[no-untyped-def]
    """Return the x of an event's uint64 word, as uint64."""
    return (word >> np.uint64(32)) & fields.x_mask


@njit(inline="always")
def y_of(word, fields):  # type: ignore[no-untyped-def]
    """Return the y of an event's uint64 word, as uint64."""
    return (word >> fields.y_shift) & fields.y_mask


@njit(inline="always")
def p_of(word, fields):  # type: ignore[no-untyped-def]
    """Return the polarity of an event's uint64 word, as uint64."""
    return (word >> fields.p_shift) & np.uint64(1)


@njit(inline="always")
def word_of(t, x, y, p):  # type: ignore[no-untyped-def]
    """Return the version 2 uint64 word of an event (any integer type; t in [0, 2**32), x and y in [0, 2**14), p 0 or 1)."""
    return np.uint64(t) | np.uint64(x) << np.uint64(32) | np.uint64(y) << np.uint64(46) | np.uint64(p) << np.uint64(60)


@njit(cache=True, nogil=True)
def _unpack(words, epoch, version, t, x, y, p):  # type: ignore[no-untyped-def]
    """Decode words `(n,)` uint64 into the columns t, x, y, p."""
    fields = word_fields(version)
    for i in range(len(words)):
        word = words[i]
        t[i] = time_of(word) + epoch
        x[i], y[i], p[i] = x_of(word, fields), y_of(word, fields), p_of(word, fields)
