"""Packed events: one event in 8 bytes, as DAT files and the simulator's cache hold them. The only place with bit masks.

A window's events are either structured (`EVENT_DTYPE`) or packed: `(n, 2)` uint32, the first word a time in µs that
`EventWindow.epoch_us` is added to, the second one x, y and p from bit 0. Seen as one little-endian uint64, the time is the
low half. Two versions differ in the bits of a coordinate: 14 and 14 (version 2, what we write), 9 and 8 (version 1, old sensors).

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
"""Length of the 32-bit clock of packed times."""

_COORDINATE_BITS = {1: (9, 8), 2: (14, 14)}


class WordFields(NamedTuple):
    """Where x, y and p lie in an event's 64-bit word; uint64 each.

    Attributes:
        x_mask, y_mask: of a coordinate, once shifted down.
        y_shift, p_shift: bits below y and p. x lies above the time's 32 bits.
    """

    x_mask: Any
    y_mask: Any
    y_shift: Any
    p_shift: Any


def words_64(packed: Packed) -> NDArray[np.uint64]:
    """Packed events as one word each, `(n,)` uint64; a view."""
    return packed.view(np.uint64)[:, 0]


def pack(events: Events) -> Packed:
    """Events (t in [0, 2**32), x and y below 2**14) as packed events of version 2."""
    return pack_columns(*(events[name] for name in "txyp"))


def pack_columns(t: ArrayLike, x: ArrayLike, y: ArrayLike, p: ArrayLike) -> Packed:
    """The same from columns of whole numbers, `(n,)` each."""
    x, y, p = (np.asarray(column).astype(np.uint32) for column in (x, y, p))
    return np.stack([np.asarray(t).astype("<u4"), x | y << 14 | p << 28], 1).astype("<u4")


def pack_relative(window: EventWindow) -> Packed:
    """A window's events as packed events of version 2 with times relative to its start; its own words where they are that."""
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
    """A window's events as EVENT_DTYPE (a copy)."""
    events = np.empty(len(window), EVENT_DTYPE)
    if is_packed(window):
        _unpack(words_64(window.words), window.epoch_us, window.version, *(events[name] for name in "txyp"))
    else:
        events[:] = window.words
    return events


def columns(window: EventWindow) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]:
    """t, x, y, p of a window's events, `(n,)` each: views of structured events, copies of packed ones."""
    if not is_packed(window):
        return window.words["t"], window.words["x"], window.words["y"], window.words["p"]
    x_bits, y_bits = _COORDINATE_BITS[window.version]
    place = window.words[:, 1]
    return (
        window.words[:, 0].astype(np.int64) + window.epoch_us,
        (place & ((1 << x_bits) - 1)).astype(np.uint16),
        (place >> x_bits & ((1 << y_bits) - 1)).astype(np.uint16),
        (place >> (x_bits + y_bits) & 1).astype(np.uint8),
    )


def is_packed(window: EventWindow) -> bool:
    """Whether the window's events are packed; otherwise they are structured."""
    return window.words.dtype != EVENT_DTYPE


@njit(inline="always")
def word_fields(version):  # type: ignore[no-untyped-def]
    """The places of x, y and p in the words of a version: WordFields. For kernels: made outside, it takes longer to hand over."""
    x_bits, y_bits = (9, 8) if version == 1 else (14, 14)
    x_mask, y_mask = np.uint64((1 << x_bits) - 1), np.uint64((1 << y_bits) - 1)
    return WordFields(x_mask, y_mask, np.uint64(32 + x_bits), np.uint64(32 + x_bits + y_bits))


@njit(inline="always")
def time_of(word):  # type: ignore[no-untyped-def]
    """The 32-bit time of an event's uint64 word, as int64."""
    return np.int64(word & np.uint64(0xFFFFFFFF))


@njit(inline="always")
def x_of(word, fields):  # type: ignore[no-untyped-def]
    """The x of an event's uint64 word, as uint64."""
    return (word >> np.uint64(32)) & fields.x_mask


@njit(inline="always")
def y_of(word, fields):  # type: ignore[no-untyped-def]
    """The y of an event's uint64 word, as uint64."""
    return (word >> fields.y_shift) & fields.y_mask


@njit(inline="always")
def p_of(word, fields):  # type: ignore[no-untyped-def]
    """The polarity of an event's uint64 word, as uint64."""
    return (word >> fields.p_shift) & np.uint64(1)


@njit(inline="always")
def word_of(t, x, y, p):  # type: ignore[no-untyped-def]
    """The uint64 word of version 2 of an event (t in [0, 2**32), x and y in [0, 2**14), p 0 or 1; any integer type)."""
    return np.uint64(t) | np.uint64(x) << np.uint64(32) | np.uint64(y) << np.uint64(46) | np.uint64(p) << np.uint64(60)


@njit(cache=True, nogil=True)
def _unpack(words, epoch, version, t, x, y, p):  # type: ignore[no-untyped-def]
    """Write the columns of words `(n,)` uint64."""
    fields = word_fields(version)
    for i in range(len(words)):
        word = words[i]
        t[i] = time_of(word) + epoch
        x[i], y[i], p[i] = x_of(word, fields), y_of(word, fields), p_of(word, fields)
