"""Conversion of events in memory, in the layouts that are in common use, to EVENT_DTYPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from io import IOBase
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import DataError
from evburst.data.events import EVENT_DTYPE, Events
from evburst.data.readers.columns import MAX_TIME_US, MICRO, Unit, find_columns, to_microseconds, unit_in_name

_NAMES = ("t", "x", "y", "p")
_NUMBERS = "biuf"
"""Kinds of NumPy's types of numbers."""


def as_events(events: Any) -> Events:
    """Convert events to an EVENT_DTYPE array, sorted by time.

    Args:
        events: a structured array with fields t, x, y, p, or named otherwise as in files (`COLUMN_NAMES` of
            evburst.data.readers.columns); an `(n, 4)` array with columns t, x, y, p, or a list of such rows; a mapping from
            names to columns (a dict, a data frame); or a sequence of the four columns in this order. Times are whole
            microseconds unless their name (`t_ns`) or their type (datetime64, timedelta64) states another unit; polarities are
            0 and 1, -1 and 1, or booleans.

    Returns:
        A new array, or `events` itself if it already has this dtype and is sorted.

    Raises:
        DataError: another shape, four lists of four numbers or a list of four such arrays (rows or columns; arrays in a tuple
            are columns), columns of different lengths, fractional or missing values, negative coordinates, times that are
            2**62 µs or more from 0, datetime objects, other polarities, or a masked array.
    """
    _refuse_files(events)
    _refuse_mask(events)
    if isinstance(events, np.ndarray) and events.dtype == EVENT_DTYPE and events.ndim == 1:
        if (highest := events["p"].max(initial=0)) > 1:
            raise DataError(f"events: polarity {highest} in an array of bytes; expected 0 and 1")
        return _sorted(events)
    columns = [_column(name, column) for name, column in zip(_NAMES, _columns(events), strict=True)]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in zip(_NAMES, columns, strict=True))
        raise DataError(f"events: columns of different lengths ({lengths})")
    out = np.empty(len(columns[0]), EVENT_DTYPE)
    for name, column in zip(_NAMES, columns, strict=True):
        out[name] = column
    return _sorted(out)


def _columns(events: Any) -> Sequence[Any]:
    """Return the columns t, x, y, p of any supported layout."""
    if isinstance(events, np.ndarray) and events.dtype.names:
        return _named(events, events.dtype.names)
    if isinstance(events, Mapping) or hasattr(events, "columns"):
        return _named(events, list(events if isinstance(events, Mapping) else events.columns))
    if isinstance(events, tuple | list) and len(events) == len(_NAMES):
        shapes = {_array(column).shape for column in events}
        plain = all(isinstance(column, tuple | list) for column in events)
        if shapes == {(len(_NAMES),)} and (plain or isinstance(events, list)):
            raise DataError("events: four lists of four numbers may be rows or columns; pass an array of rows, or a dict")
        if all(len(shape) == 1 for shape in shapes):
            return events
    if hasattr(events, "__next__"):
        raise DataError("events: an iterator; join its chunks to one array, or pass a source of events (an EventStream)")
    array = _array(events)
    if array.shape == (0,):  # a list of no rows
        return [array] * len(_NAMES)
    if array.ndim == 2 and array.shape[1] == len(_NAMES):
        return list(array.T)
    raise DataError(
        f"events: expected fields or four columns t, x, y, p, received {type(events).__name__} of shape {array.shape}"
    )


def _named(events: Any, names: Sequence[Any]) -> list[Any]:
    """Return the columns t, x, y, p of events whose columns have names; times are converted to microseconds."""
    found = find_columns([str(name) for name in names], "events")
    by_text = {str(name): name for name in names}
    try:
        columns = [events[by_text[found[name]]] for name in _NAMES]
    except (TypeError, KeyError) as error:
        kind, reason = type(events).__name__, str(error).partition("\n")[0]
        raise DataError(f"events: the columns of a {kind} cannot be read ({reason}); pass them as a dict") from None
    unit = unit_in_name(found["t"])
    if unit not in (None, MICRO.name) and _array(columns[0]).dtype.kind in _NUMBERS:
        _refuse_mask(columns[0])
        columns[0] = to_microseconds(_array(columns[0]), Unit(str(unit)), "events")
    return columns


def _array(values: Any) -> NDArray[Any]:
    """Return values as an array; raise DataError for those without a shape, and for tensors on a GPU and the like."""
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError("events: rows or columns of different lengths; expected t, x, y and p of each event") from None
    except (TypeError, RuntimeError) as error:
        raise DataError(f"events: NumPy cannot read a {type(values).__name__}: {str(error).partition(chr(10))[0]}") from None


def _refuse_files(events: Any) -> None:
    """Raise DataError for names, contents and handles of files, for open recordings, and for lists of them."""
    one = events[0] if isinstance(events, tuple | list) and events else events
    if isinstance(one, str | bytes | bytearray | PathLike | IOBase) or hasattr(type(one), "packets") or hasattr(one, "read"):
        raise DataError(
            f"events: expected fields or four columns t, x, y, p, received {type(events).__name__}; a recording is passed by "
            "its path (str or Path), or opened, to `stream`, one at a time"
        )


def _refuse_mask(events: Any) -> None:
    """Raise DataError for a masked array, whose mask would be ignored."""
    if isinstance(events, np.ma.MaskedArray):
        raise DataError("events: a masked array; pass plain arrays of the events to use")


def _column(name: str, column: Any) -> NDArray[Any]:
    """Return a column as integers, after checking its range."""
    _refuse_mask(column)
    values = _array(column)
    if name == "t" and _has_unit(values):
        if np.isnat(values).any():
            raise DataError("events: column t has a time that is missing (NaT)")
        values = values.astype(f"{values.dtype.kind}8[us]").astype(np.int64)
    if values.dtype.kind == "O" and values.size and isinstance(values.flat[0], datetime):
        raise DataError(
            f"events: column {name} holds datetime objects, as times with a time zone do; convert them to NumPy's datetime64, "
            "in pandas t.dt.tz_convert(None), or to whole microseconds"
        )
    if values.ndim != 1 or values.dtype.kind not in _NUMBERS:
        raise DataError(f"events: column {name}: expected a list of numbers, received {values.dtype} of shape {values.shape}")
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.floor(values))).all():
        unit = "microseconds; times in another unit need a name that states it, such as t_s" if name == "t" else "numbers"
        raise DataError(f"events: column {name} has fractions or NaN; expected whole {unit}")
    if not len(values):
        return values
    low, high = int(values.min()), int(values.max())
    if low < np.iinfo(np.int64).min or high > np.iinfo(np.int64).max:
        raise DataError(f"events: {name} = {high if high > 0 else low} does not fit into 64 bits")
    if name == "t" and values.dtype.kind == "f" and np.spacing(values.max()) > 1:
        raise DataError(f"events: column t is {values.dtype}, which holds no whole microseconds up to {high}; pass integers")
    values = values.astype(np.int64)
    if name == "p":
        if low < -1 or high > 1:
            raise DataError(f"events: polarity {low if low < -1 else high}; expected 0 and 1, or -1 and 1")
        return values > 0
    if name in ("x", "y") and (low < 0 or high > np.iinfo(np.uint16).max):
        raise DataError(f"events: {name} = {low if low < 0 else high}; expected a pixel of the sensor")
    return values


def _has_unit(times: Any) -> bool:
    """Return whether times are of NumPy's types datetime64 or timedelta64, which state their unit."""
    dtype = _array(times).dtype
    return dtype.kind in "mM" and np.datetime_data(dtype)[0] != "generic"


def _sorted(events: Events) -> Events:
    """Return events sorted by time, after checking that differences of their times fit into 64 bits."""
    t = events["t"]
    if not (t[1:] >= t[:-1]).all():
        events = events[np.argsort(t, kind="stable")]
        t = events["t"]
    if len(t) and not -MAX_TIME_US < t[0] <= t[-1] < MAX_TIME_US:
        raise DataError(f"events: times from {t[0]} to {t[-1]} µs; expected less than 2**62 µs from 0")
    return events
