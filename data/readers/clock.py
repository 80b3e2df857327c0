"""Clocks of 32 bits in µs, which start again after 71.6 minutes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit

_CONFIRMING = 16
"""Number of successive times far ahead that are no glitch."""
_NEAR_US = 60_000_000
"""Times around a wrap that are out of order, and those before and after a glitch, are no further apart."""


def new_clock() -> NDArray[np.int64]:
    """Return the state that `unwrap` needs before the first event."""
    return np.array([0, -1, 0, 0], np.int64)


@njit(cache=True, nogil=True)
def unwrap(raw, clock, out):  # type: ignore[no-untyped-def]
    """Write times without wraps to `out` and return the number of wraps.

    A time that is ahead of the last sound one by more than half a period is a glitch, unless a number of times near it follow:
    then the sensor was silent for so long.

    Args:
        raw: `(n,)` uint32 times; may have one more than `out`, used only to confirm the last one.
        clock: `(4,)` int64: epoch, last sound raw time (-1: none), last time far ahead of it, number of successive such times.
        out: `(n,)` int64.
    """
    wraps = 0
    half = np.int64(1) << 31
    for i in range(len(out)):
        now = np.int64(raw[i])
        after = np.int64(raw[i + 1]) if i + 1 < len(raw) else now
        if clock[1] - now > half and clock[1] - after > half:
            clock[0] += np.int64(1) << 32
            wraps += 1
            clock[1] = now
        elif abs(clock[1] - now) <= half or clock[1] < 0:
            clock[1] = now
            clock[3] = 0
        elif now > clock[1]:
            clock[3] = clock[3] + 1 if clock[3] > 0 and abs(now - clock[2]) <= half else 1
            clock[2] = now
            if clock[3] == _CONFIRMING:
                clock[1] = now
                clock[3] = 0
        out[i] = now + clock[0]
    return wraps


def new_unordered_clock() -> NDArray[np.int64]:
    """Return the state that `unwrap_unordered` needs before the first event."""
    return np.array([0, -1, 0, -1], np.int64)


@njit(cache=True, nogil=True)
def unwrap_unordered(raw, clock, out):  # type: ignore[no-untyped-def]
    """Write times without wraps to `out`, of a file whose events need not be in order of time.

    A fall by more than half a period is a wrap, unless it ends a glitch: a few times far ahead. A rise by nearly a period goes
    back before the last wrap; a smaller one, of more than half a period, is a silence.

    Args:
        raw: `(n,)` uint32 times.
        clock: `(4,)` int64: epoch, last raw time (-1: none), raw time before the last rise by more than half a period, number
            of times since then (-1: none).
        out: `(n,)` int64.
    """
    period, half = np.int64(1) << 32, np.int64(1) << 31
    for i in range(len(raw)):
        now = np.int64(raw[i])
        step = now - clock[1] if clock[1] >= 0 else np.int64(0)
        if step < -half:
            since = now - clock[2]
            if not (0 <= clock[3] < _CONFIRMING and -_NEAR_US <= since <= _NEAR_US):
                clock[0] += period
            clock[3] = -1
        elif step > period - 2 * _NEAR_US and clock[0] > 0:
            clock[0] -= period
        elif step > half:
            clock[2] = clock[1]
            clock[3] = 0
        if clock[3] >= 0:
            clock[3] += 1
        clock[1] = now
        out[i] = now + clock[0]
