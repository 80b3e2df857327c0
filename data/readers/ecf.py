"""ECF, the compression of Prophesee's HDF5 recordings (the HDF5 filter 0x8ECF), decoded chunk by chunk.

Source: the behaviour of the published codec (https://github.com/prophesee-ai/hdf5_ecf, version 1.0.1). All numbers are
little-endian. A chunk consists of:

    u32      number of events, times 4, plus the form of the coordinates in the two lowest bits
    u64      time of the first event
    times    bytes: step in the high, number of events in the low four bits; 15 events: the number follows as u16. Step 15: the
             low bits are four bits of a longer step instead, the lowest first, which ends before the next byte with another
             step; that byte's step is added to it
    form 2, 3    packed events of 24 bits in u32, from the highest bit on: 1 unused, y (11), x (11), p (1)
    form 1       rows, then packed events of 12 bits in u16, from the highest bit on: x (11), p (1)
    form 0       rows, columns, polarities
    packed       four events in three numbers: the first in the highest bits of the first number, the last in the lowest of the
                 third; of the others, the low bits are the rest of a number, the high bits the highest of the next one
    rows         u16: y in the high 11, number of events in the low 5 bits; 31: the number follows as u16
    columns      u16: x in the high 11 bits; from the highest of the others on, a set bit k is another event at x + 1 + k
    polarities   bytes: p in the highest bit, number of events in the others; 127: the number follows as u16
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.errors import EventFileError

FILTER = 0x8ECF
ROW = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")], align=True)
"""An event as Metavision's recordings declare it."""

MOST_EVENTS = 65_535
"""Largest number of events in a chunk."""


def is_compressed(dataset: Any) -> bool:
    """Return whether an HDF5 data set is compressed with ECF."""
    filters = dataset.id.get_create_plist()
    return FILTER in [filters.get_filter(k)[0] for k in range(filters.get_nfilters())]


def read_rows(dataset: Any, start: int, stop: int) -> NDArray[Any]:
    """Return events [start, stop) of a data set, as ROW.

    Raises:
        EventFileError: a chunk is corrupt; or the data set is not as Metavision writes it.
    """
    place, size = f"{dataset.file.filename}: {dataset.name}", dataset.chunks[0]
    if dataset.id.get_create_plist().get_nfilters() != 1 or dataset.dtype != ROW:
        raise EventFileError(f"{place} is compressed with ECF, but has other columns than Metavision's, or further filters")
    parts = []
    for first in range(start // size * size, stop, size):
        without_filter, chunk = dataset.id.read_direct_chunk((first,))
        rows = np.frombuffer(chunk, dataset.dtype) if without_filter else decode(chunk)
        if rows is None or len(rows) < min(size, len(dataset) - first):
            raise EventFileError(f"{place}: the compressed chunk from event {first} on is corrupt")
        parts.append(rows[max(start - first, 0) : min(size, stop - first)])
    return np.concatenate(parts)


def decode(chunk: bytes) -> NDArray[Any] | None:
    """Return the events of a chunk, `(n,)` ROW; None if it is corrupt."""
    data = np.frombuffer(chunk, np.uint8)
    head = int.from_bytes(chunk[:4], "little")
    n = head >> 2
    if len(chunk) < 12 or n > MOST_EVENTS:
        return None
    rows = np.empty(n, ROW)
    at = _decode_times(data, 4, rows["t"])
    if head & 2:
        at = _decode_packed(data, at, 4, True, rows["x"], rows["y"], rows["p"])
    else:
        at = _decode_runs(data, at, 2, 5, rows["y"])
        if head & 1:
            at = _decode_packed(data, at, 2, False, rows["x"], rows["y"], rows["p"])
        else:
            at = _decode_columns(data, at, rows["x"])
            at = _decode_runs(data, at, 1, 7, rows["p"])
    return rows if at >= 0 else None


@njit(cache=True, nogil=True)
def _number(data, at, size):  # type: ignore[no-untyped-def]
    """The number in `size` bytes from index `at` on; -1 if they are not all there."""
    if at < 0 or at + size > len(data):
        return np.int64(-1)
    value = np.int64(0)
    for k in range(size):
        value |= np.int64(data[at + k]) << (8 * k)
    return value


@njit(cache=True, nogil=True)
def _decode_times(data, at, times):  # type: ignore[no-untyped-def]
    """Decode the times; each of these functions returns the index of what follows, or -1 if the chunk is corrupt."""
    time, at, i = _number(data, at, 8), at + 8, 0
    digits = 0
    while i < len(times):
        value = _number(data, at, 1)
        if value < 0 or digits > 15:
            return -1
        step, n = value >> 4, value & 15
        at += 1
        if step == 15:
            time += n << (4 * digits)
            digits += 1
            continue
        digits = 0
        time += step
        if n == 15:
            n = _number(data, at, 2)
            at += 2
        if n < 0 or i + n > len(times):
            return -1
        times[i : i + n] = time
        i += n
    return at


@njit(cache=True, nogil=True)
def _decode_runs(data, at, size, bits, values):  # type: ignore[no-untyped-def]
    """Decode runs of equal values: numbers of `size` bytes, whose lowest `bits` bits are the length."""
    i, longest = 0, (1 << bits) - 1
    while i < len(values):
        value = _number(data, at, size)
        n = value & longest
        at += size
        if value >= 0 and n == longest:
            n = _number(data, at, 2)
            at += 2
        if value < 0 or n < 0 or i + n > len(values):
            return -1
        values[i : i + n] = value >> bits
        i += n
    return at


@njit(cache=True, nogil=True)
def _decode_columns(data, at, columns):  # type: ignore[no-untyped-def]
    """Decode columns; bits beyond the last event mean nothing."""
    i = 0
    while i < len(columns):
        value = _number(data, at, 2)
        if value < 0:
            return -1
        at += 2
        columns[i] = value >> 5
        i += 1
        for k in range(5):
            if value & (16 >> k) and i < len(columns):
                columns[i] = (value >> 5) + 1 + k
                i += 1
    return at


@njit(cache=True, nogil=True)
def _decode_packed(data, at, size, with_rows, columns, rows, polarities):  # type: ignore[no-untyped-def]
    """Decode packed events, four in three numbers of `size` bytes."""
    quarter = 2 * size
    for i in range(0, len(columns), 4):
        first, second, third = _number(data, at, size), _number(data, at + size, size), _number(data, at + 2 * size, size)
        if first < 0 or third < 0:
            return -1
        at += 3 * size
        for j in range(min(4, len(columns) - i)):
            if j == 0:
                value = first >> quarter
            elif j == 1:
                value = first & (1 << quarter) - 1 | second >> 2 * quarter << quarter
            elif j == 2:
                value = second & (1 << 2 * quarter) - 1 | third >> 3 * quarter << 2 * quarter
            else:
                value = third & (1 << 3 * quarter) - 1
            polarities[i + j] = value & 1
            columns[i + j] = value >> 1 & 2047
            if with_rows:
                rows[i + j] = value >> 12 & 2047
    return at
