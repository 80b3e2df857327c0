"""Decoders for the words of Prophesee RAW files: EVT2 and EVT2.1 (one kernel), EVT3 and EVT4.

A kernel reads complete words from `start` on until they end or the columns might overflow, and returns the index of the next
word and the number of events. The decoder's memory is in `state`, so that a file can be decoded in pieces of any size; what it
drops is added to `counts`.

Word types, from bit 28 of an EVT2 or EVT4 word and of the control half of an EVT2.1 word, and from bit 12 of an EVT3 word:

    EVT2, EVT2.1    0 OFF, 1 ON: t bits 0-5, x, y (6 + 11 + 11 bits)    8 TIME_HIGH: t bits 6-33
                    EVT2.1 adds 32 bits, in which a set bit k is an event at (x + k, y)
    EVT3            0 ADDR_Y    2 ADDR_X: polarity, x: an event    3 VECT_BASE_X: polarity, x
                    4 VECT_12, 5 VECT_8: a set bit k is an event at base x + k; base x then increases by 12 or 8
                    6 TIME_LOW: t bits 0-11    8 TIME_HIGH: t bits 12-23
    EVT4            10 OFF, 11 ON: as in EVT2    14 TIME_HIGH: t bits 6-33
                    12 VECTOR OFF, 13 VECTOR ON: the next word has no type; a set bit k in it is an event at (x + k, y)

Time: `high` is the time without its low bits, extended over wraps. One flipped bit in a time word would displace all events
up to the next time word or, taken for a wrap, all that follow. So a time word is ignored if the next one lies at most a
second after the previous time and this one is not between the two; the very first is ignored if it is later than the two
that follow. A step of one is accepted without this check. A fall of more than half the range is a wrap; a smaller fall that
the next time word does not contradict is accepted too, and time runs backwards.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit

HIGH, TIME, ROW, BASE, POLARITY = range(5)
"""Indices into `state`: time without the low bits (-1: unknown), and for EVT3 t in µs, y, base x (-1: unknown), p."""

UNTIMED, UNPLACED, CONTRADICTED, WRAPS = range(16, 20)
"""Indices into `counts`; those below 16 count the words of each type that hold neither events nor time."""

EVT2_LOW_BITS, EVT2_HIGH_BITS = 6, 28
NO_VECTOR = 16
"""Stands for the type of vectors where words have none."""
EVT3_LOW_BITS, EVT3_HIGH_BITS = 12, 12
FOLLOWS_US = 1_000_000
MAX_EVENTS_PER_WORD = 32
FAR_X = 1 << 15
"""Limit of base x in a run of vectors without a new base: outside of any sensor, and far from the uint16 limit."""


def new_state() -> NDArray[np.int64]:
    """Return the state before the first word, with nothing known."""
    return np.array([-1, -1, -1, -1, 0], np.int64)


def new_counts() -> NDArray[np.int64]:
    """Return counters at zero."""
    return np.zeros(20, np.int64)


@njit(cache=True, nogil=True, inline="always")
def _extended(high, new, high_bits):  # type: ignore[no-untyped-def]
    """Return the time word `new` on the clock of `high`, which does not wrap."""
    if high < 0:
        return new
    half = np.int64(1) << (high_bits - 1)
    before = high & (2 * half - 1)
    return high - before + new + (2 * half if before - new > half else 0)


@njit(cache=True, nogil=True, inline="always")
def _is_corrupt(high, new, second, third, high_bits, low_bits):  # type: ignore[no-untyped-def]
    """Return whether the two time words after `new` (-1: none) show that it is corrupt."""
    mask = (np.int64(1) << high_bits) - 1
    if high < 0:
        behind = ((second - new) & mask) > mask >> 1 and ((third - new) & mask) > mask >> 1
        return third >= 0 and behind
    ahead = (second - high) & mask
    return second >= 0 and ahead <= FOLLOWS_US >> low_bits and ((new - high) & mask) > ahead


@njit(cache=True, nogil=True, inline="always")
def _after(high, new, second, third, high_bits, low_bits, counts):  # type: ignore[no-untyped-def]
    """Return `high` after the time word `new`, which the next two (-1: none) may show to be corrupt."""
    if _is_corrupt(high, new, second, third, high_bits, low_bits):
        counts[CONTRADICTED] += 1
        return high
    extended = _extended(high, new, high_bits)
    counts[WRAPS] += high >= 0 and extended >> high_bits > high >> high_bits
    return extended


@njit(cache=True, nogil=True, inline="always")
def _put(word, high, valid, p, n, ts, xs, ys, ps):  # type: ignore[no-untyped-def]
    """Write the event of each bit of `valid` of an EVT2 or EVT4 word from index `n` on; return the index after them."""
    t = (high << EVT2_LOW_BITS) | np.int64((word >> np.uint32(22)) & np.uint32(63))
    x, y = (word >> np.uint32(11)) & np.uint32(2047), word & np.uint32(2047)
    while valid:
        if valid & np.uint32(1):
            ts[n], xs[n], ys[n], ps[n] = t, x, y, p
            n += 1
        valid >>= np.uint32(1)
        x += np.uint32(1)
    return n


@njit(cache=True, nogil=True)
def _next_time_evt2(words, control, time, vector, i):  # type: ignore[no-untyped-def]
    """Return index and value of the first time word at or after i; the value is -1 if there is none.

    `time` is its type. Words of the types `vector` and `vector + 1` are followed by one without a type; `vector` is even.
    """
    while i < len(words):
        kind = words[i, control] >> np.uint32(28)
        if kind == time:
            return i, np.int64(words[i, control] & np.uint32(0xFFFFFFF))
        i += 2 if kind >> 1 == vector >> 1 else 1
    return i, np.int64(-1)


@njit(cache=True, nogil=True)
def _high_evt2(words, control, time, vector, i, high, counts):  # type: ignore[no-untyped-def]
    """Return `high` after the time word i of EVT2, EVT2.1 or EVT4; other arguments as for `_next_time_evt2`."""
    new = np.int64(words[i, control] & np.uint32(0xFFFFFFF))
    second = third = np.int64(-1)
    if high < 0 or ((new - high) & 0xFFFFFFF) > 1:
        k, second = _next_time_evt2(words, control, time, vector, i + 1)
        if high < 0:
            k, third = _next_time_evt2(words, control, time, vector, k + 1)
    return _after(high, new, second, third, EVT2_HIGH_BITS, EVT2_LOW_BITS, counts)


@njit(cache=True, nogil=True)
def _next_time_evt3(words, i):  # type: ignore[no-untyped-def]
    """Return index and value of the first time word at or after i; the value is -1 if there is none."""
    for k in range(i, len(words)):
        if words[k] >> 12 == 8:
            return k, np.int64(words[k] & 0xFFF)
    return len(words), np.int64(-1)


@njit(cache=True, nogil=True)
def decode_evt2(words, control, start, state, counts, ts, xs, ys, ps):  # type: ignore[no-untyped-def]
    """Decode EVT2 `(n, 1)` or EVT2.1 `(n, 2)` uint32 words; column `control` holds type, t, x and y."""
    n_words, halves = words.shape
    last_start = len(ts) - (1 if halves == 1 else 32)
    high = state[HIGH]
    valid = np.uint32(1)
    n, i = 0, start
    while i < n_words and n <= last_start:
        word = words[i, control]
        kind = word >> np.uint32(28)
        if kind <= 1:
            if halves == 2:
                valid = words[i, 1 - control]
            if high < 0:
                counts[UNTIMED] += _count_bits(valid)
            else:
                n = _put(word, high, valid, kind, n, ts, xs, ys, ps)
        elif kind == 8:
            high = _high_evt2(words, control, 8, NO_VECTOR, i, high, counts)
        else:
            counts[kind] += 1
        i += 1
    state[HIGH] = high
    return i, n


@njit(cache=True, nogil=True)
def decode_evt3(words, start, state, counts, ts, xs, ys, ps):  # type: ignore[no-untyped-def]
    """Decode EVT3 `(n,)` uint16 words."""
    last_start = len(ts) - 12
    high, t, y, base, p = state[HIGH], state[TIME], state[ROW], state[BASE], state[POLARITY]
    n, i = 0, start
    while i < len(words) and n <= last_start:
        word = np.int64(words[i])
        kind, value = word >> 12, word & 0xFFF
        if kind == 2:
            if t >= 0 and y >= 0:
                ts[n], xs[n], ys[n], ps[n] = t, value & 2047, y, value >> 11
                n += 1
            else:
                counts[UNTIMED if t < 0 else UNPLACED] += 1
        elif kind == 0:
            y = value & 2047
        elif kind == 3:
            base, p = value & 2047, value >> 11
        elif kind == 4 or kind == 5:
            width = 12 if kind == 4 else 8
            valid = value if kind == 4 else value & 0xFF
            if t >= 0 and y >= 0 and base >= 0:
                x = base
                while valid:
                    if valid & 1:
                        ts[n], xs[n], ys[n], ps[n] = t, x, y, p
                        n += 1
                    valid >>= 1
                    x += 1
            else:
                counts[UNTIMED if t < 0 else UNPLACED] += _count_bits(np.uint32(valid))
            base = min(base + width, FAR_X) if base >= 0 else base
        elif kind == 6:
            if high >= 0:
                t = (high << EVT3_LOW_BITS) | value
        elif kind == 8:
            second = third = np.int64(-1)
            if high < 0 or ((value - high) & 0xFFF) > 1:
                k, second = _next_time_evt3(words, i + 1)
                if high < 0:
                    k, third = _next_time_evt3(words, k + 1)
            extended = _after(high, value, second, third, EVT3_HIGH_BITS, EVT3_LOW_BITS, counts)
            # The current low bits belong to the previous period; the next TIME_LOW brings new ones.
            t = extended << EVT3_LOW_BITS if extended != high else t
            high = extended
        else:
            counts[kind] += 1
        i += 1
    state[HIGH], state[TIME], state[ROW], state[BASE], state[POLARITY] = high, t, y, base, p
    return i, n


@njit(cache=True, nogil=True)
def decode_evt4(words, start, state, counts, ts, xs, ys, ps):  # type: ignore[no-untyped-def]
    """Decode EVT4 `(n, 1)` uint32 words; a vector at the end of the file, without its bits, counts as a word without use."""
    last_start = len(ts) - 32
    high = state[HIGH]
    n, i = 0, start
    while i < len(words) and n <= last_start:
        word = words[i, 0]
        kind = word >> np.uint32(28)
        if 10 <= kind <= 13 and i + kind // 12 < len(words):
            valid = np.uint32(1)
            if kind >= 12:
                i += 1
                valid = words[i, 0]
            if high < 0:
                counts[UNTIMED] += _count_bits(valid)
            else:
                n = _put(word, high, valid, kind & np.uint32(1), n, ts, xs, ys, ps)
        elif kind == 14:
            high = _high_evt2(words, 0, 14, 12, i, high, counts)
        else:
            counts[kind] += 1
        i += 1
    state[HIGH] = high
    return i, n


@njit(cache=True, nogil=True)
def _count_bits(valid):  # type: ignore[no-untyped-def]
    """Return the number of set bits."""
    count = np.int64(0)
    while valid:
        count += np.int64(valid & np.uint32(1))
        valid >>= np.uint32(1)
    return count
