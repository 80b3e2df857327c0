"""Columns t, x, y, p of text, NumPy and HDF5 files: identification, unit of time, and plausibility.

Such files state little about themselves, and a wrong guess looks like a valid recording, only a thousand times longer. What is
not stated is inferred from the first events (`judge_times`, `judge_order`). If no sensor can have recorded the result, an error
names the option that corrects it; if it is merely unusual, the logger "evburst" emits a warning.

    unit is stated             by --time-unit (doubted only in a warning), or in the time's name: t_ns, "timestamp [us]", time_s
    times with fractions       seconds, if that makes at least 10 events/s
    whole numbers              microseconds, even if they are written as floats (0.0, 281.0)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import ConfigError, EventFileError
from evburst.data.events import EVENT_DTYPE, Events, Faults
from evburst.data.notices import warn_once
from evburst.data.readers.options import COLUMNS, IGNORED, ReadOptions

COLUMN_NAMES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs", "x_pos", "x_px", "col", "column"),
    "y": ("y", "ys", "y_pos", "y_px", "row"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on", "on/off", "on_off", "sign"),
}
"""Names of the four columns in files, in lower case; a unit may follow the name of the time."""

UNIT_NAMES = {
    "s": "s", "sec": "s", "secs": "s", "second": "s", "seconds": "s",
    "ms": "ms", "msec": "ms", "millisecond": "ms", "milliseconds": "ms",
    "us": "us", "usec": "us", "µs": "us", "μs": "us", "microsecond": "us", "microseconds": "us",
    "ns": "ns", "nsec": "ns", "nanosecond": "ns", "nanoseconds": "ns",
}  # fmt: skip
MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
"""Length of each unit in microseconds."""

UNIT_SYMBOLS = {"s": "s", "ms": "ms", "us": "µs", "ns": "ns"}

SAMPLE_EVENTS = 1 << 16
"""Number of events at the beginning that are used for inference."""

MAX_ITEM_BYTES = 1 << 8
"""Maximum size of one event with all its fields: 256 MB per packet."""

MAX_TIME_US = 1 << 62
"""Largest time of an event, so that differences of times fit into 64 bits."""
_MAX_COORDINATE = np.iinfo(np.uint16).max
_NAME_AND_UNIT = re.compile(r"(.*?)[\s_.\[(]+([a-zµμ]+)[\])]?")
_MIN_EVENTS = 1000
_MIN_FRACTIONAL_EVENTS = 100
_MAX_PER_S, _MIN_PER_S = 1e9, 1.0
_MANY_PER_S, _FEW_PER_S = 1e8, 1e3
_MANY_PER_PIXEL_S, _FEW_PER_PIXEL_S = 1e3, 1e-2
_MIN_PER_S_FOR_SECONDS = 10.0
_LATEST_US = 1e17
_ASK_UNIT = "if the times are not {unit}, pass --time-unit s, ms, us or ns"


class Unit(NamedTuple):
    """Unit of a recording's times.

    Attributes:
        name: "s", "ms", "us" or "ns".
        stated: whether the caller or the column's name states the unit; otherwise it was inferred from the first events.
    """

    name: str
    stated: bool = True


MICRO = Unit("us")


def find_columns(names: Sequence[str], place: str) -> dict[str, str]:
    """Map t, x, y and p to the matching `names`, e.g. {"t": "timestamp_us", ...}; of several, to the first in COLUMN_NAMES.

    Raises:
        EventFileError: one of them is missing.
    """
    found = _known(names)
    missing = [column for column in COLUMN_NAMES if column not in found]
    twice = [name for name in found.values() if sum(other.strip().lower() == name.strip().lower() for other in names) > 1]
    if twice:
        raise EventFileError(f"{place}: two columns are called {twice[0]}; rename one of them")
    if missing:
        raise EventFileError(f"{place}: no column {', '.join(missing)}; found {', '.join(names)[:200] or 'none'}")
    return found


def has_columns(names: Sequence[str]) -> bool:
    """Whether `find_columns` would find t, x, y and p."""
    return len(_known(names)) == len(COLUMN_NAMES)


def _known(names: Sequence[str]) -> dict[str, str]:
    lower = {name.strip().lower(): name for name in names}
    found = {column: lower[alias] for column, aliases in COLUMN_NAMES.items() for alias in reversed(aliases) if alias in lower}
    if "t" not in found:
        found.update(("t", name) for text, name in lower.items() if unit_in_name(text))
    return found


def unit_in_name(name: str) -> str | None:
    """Return the unit in the name of a time column ("t_ns", "timestamp [us]", "Time (s)"), or None."""
    match = _NAME_AND_UNIT.fullmatch(name.strip().lower())
    return UNIT_NAMES.get(match[2]) if match and match[1] in COLUMN_NAMES["t"] else None


def column_places(options: ReadOptions, n_columns: int, place: str) -> dict[str, int]:
    """Return the indices of the columns t, x, y, p among `n_columns` unnamed ones.

    Raises:
        EventFileError: there are fewer than four, or --columns names a different number of columns.
    """
    order = options.column_order or list(COLUMNS)
    if options.columns and len(order) != n_columns:
        raise EventFileError(
            f"{place} has {n_columns} columns, --columns {options.columns} names {len(order)}; "
            f"'{IGNORED}' stands for a column to ignore"
        )
    if n_columns < len(COLUMNS):
        raise EventFileError(f"{place} has {n_columns} columns, expected t x y p")
    return {column: order.index(column) for column in COLUMNS}


def pick_column(rows: NDArray[Any], key: str | int | None) -> NDArray[Any]:
    """Return a field or a column of rows; for None the rows themselves."""
    column: NDArray[Any] = rows if key is None else rows[key] if isinstance(key, str) else rows[:, key]
    return column


def refuse_columns(options: ReadOptions, place: str) -> None:
    """Raise ConfigError if --columns was given although the columns have names."""
    if options.columns:
        raise ConfigError(f"{place}: the columns have names; leave --columns {options.columns} out")


def columns_to_events(columns: Mapping[str, NDArray[Any]], place: str, faults: Faults, unit: Unit = MICRO) -> Events:
    """Convert columns t, x, y, p to EVENT_DTYPE (a copy).

    Times are converted to microseconds. Coordinates and polarity may have any integer type, or be floats that are whole
    numbers; p may be bool, {0, 1} or {-1, 1}. Coordinates that do not fit into 16 bits are dropped and counted in
    `faults.outside_sensor`; other events outside the sensor are kept, as in every format, and counted by the representation.

    Args:
        columns: four `(n,)` arrays.
        place: the file and the range of events, for error messages, e.g. "a.npy: events 0 to 99".
        faults: counts the dropped events.
        unit: unit of the times.

    Raises:
        EventFileError: a column is not numeric, a coordinate is not whole, a time is not in [0, 2**62] µs, or a polarity
            is none of -1, 0, 1.
    """
    for name, column in columns.items():
        if column.ndim != 1:
            raise EventFileError(f"{place}: {name} is {column.shape}, expected one number per event")
        if column.dtype.kind not in ("iufb" if name == "p" else "iuf"):
            raise EventFileError(f"{place}: {name} is {column.dtype}, expected numbers")
    t = to_microseconds(columns["t"], unit, place)
    x, y, p = (_whole(columns[name], name, place) for name in "xyp")
    wrong = (p != 1) & (p != 0) & (p != -1) if p.dtype.kind == "i" else p > 1
    if wrong.any():
        index = int(np.argmax(wrong))
        raise EventFileError(f"{place}: polarity {p[index]} at index {index} of these; expected 0 and 1, or -1 and 1")
    events = np.empty(len(t), EVENT_DTYPE)
    events["t"], events["x"], events["y"], events["p"] = t, x.astype(np.uint16), y.astype(np.uint16), p > 0
    fits = (x >= 0) & (x <= _MAX_COORDINATE) & (y >= 0) & (y <= _MAX_COORDINATE)
    if not fits.all():
        faults.outside_sensor += int(len(fits) - fits.sum())
        events = events[fits]
    return events


def to_microseconds(t: NDArray[Any], unit: Unit, place: str) -> NDArray[Any]:
    """Convert times to whole microseconds, rounded (integer nanoseconds: rounded down); returns µs integers unchanged.

    Raises:
        EventFileError: a time is NaN, negative, or beyond 2**62 µs.
    """
    if not len(t):
        return t.astype(np.int64)
    low, high = t.min(), t.max()
    factor = MICROSECONDS[unit.name]
    if not (low >= 0 and float(high) * factor <= MAX_TIME_US):
        symbol = UNIT_SYMBOLS[unit.name]
        if low < 0:
            raise EventFileError(
                f"{place}: a time of {low} {symbol}: negative; add an offset to all times, or name the columns (--columns) if "
                "another one is t"
            )
        if np.isnan(high):
            raise EventFileError(f"{place}: a time is not a number (nan); leave such events out")
        raise EventFileError(
            f"{place}: times from {low} to {high} {symbol}: too late for a recording; name the columns (--columns) if another "
            "one is t"
        )
    if t.dtype.kind == "f":
        if unit == Unit("us", stated=False) and (np.rint(t) != t).any():
            raise EventFileError(f"{place}: times have fractions, unlike the preceding ones; {_ASK_UNIT.format(unit='µs')}")
        return np.rint(t.astype(np.float64) * factor).astype(np.int64)
    if unit.name == "ns":
        return (t if t.dtype.itemsize > 1 else t.astype(np.int64)) // 1000
    return t if unit.name == "us" else t.astype(np.int64) * int(factor)


def judge_times(
    path: Path, columns: Mapping[str, NDArray[Any]], options: ReadOptions, named: str | None, *, doubted: bool = True
) -> Unit:
    """Determine the unit of a recording's times from its first events; warns or raises if the result is implausible.

    An implausible unit is an error, even if the column's name states it, since names survive conversions; if the caller states
    it, a warning.

    Args:
        path: the file.
        columns: t, x, y, p of the first events, `(n,)`.
        options: if `time_unit` is not "auto", it is returned.
        named: the unit in the column's name, or None.
        doubted: whether that unit may be wrong; it is not in files of evburst's own writers.

    Raises:
        EventFileError: the caller does not state the unit, it is doubted, and the one assumed gives an event rate that no
            sensor reaches.
    """
    stated = named if options.time_unit == "auto" else options.time_unit
    t = columns["t"]
    if any(column.ndim != 1 or column.dtype.kind not in "iufb" for column in columns.values()):
        return Unit(stated) if stated else MICRO  # Not numbers; `columns_to_events` will raise.
    finite = t[np.isfinite(t)] if t.dtype.kind == "f" else t
    fractions = t.dtype.kind == "f" and bool((np.rint(finite) != finite).any())
    unit = Unit(stated) if stated else Unit("s" if fractions else "us", stated=False)
    coarse_us = float(np.spacing(finite.max())) * MICROSECONDS[unit.name] if t.dtype.kind == "f" and len(finite) else 0
    if coarse_us > 1:
        warn_once(
            f"{path}: times are {t.dtype}, which rounds them to multiples of {coarse_us:g} us here; store them as integers or "
            "float64"
        )
    try:
        _judge_rate(path, finite, columns, unit)
    except EventFileError as error:
        if options.time_unit == "auto" and doubted:
            raise
        warn_once(str(error))
    return unit


def _judge_rate(path: Path, t: NDArray[Any], columns: Mapping[str, NDArray[Any]], taken: Unit) -> None:
    n, unit = len(t), taken.name
    if not n:
        return
    ask = _ASK_UNIT.format(unit=UNIT_SYMBOLS[unit])
    # The extremes are ignored, because a clock reset or a single corrupt time says nothing about the unit.
    ordered = np.sort(t)
    low, high = ordered[n // 50], ordered[-1 - n // 50]
    latest_us = float(high) * MICROSECONDS[unit]
    late = f"{path}: times up to {high}, which in {unit} is {latest_us / 3.15e13:.0f} years; {ask}"
    if n < _MIN_FRACTIONAL_EVENTS:  # too few to judge, because single ones may be corrupt
        if float(ordered[n // 2]) * MICROSECONDS[unit] > _LATEST_US:
            warn_once(late)
        return
    if latest_us > _LATEST_US:
        raise EventFileError(late)
    span_s = (float(high) - float(low)) * MICROSECONDS[unit] * 1e-6
    if (n < _MIN_EVENTS and unit == "us") or span_s == 0:
        return
    rate = 0.96 * n / span_s
    least = _MIN_PER_S if taken.stated or unit != "s" else _MIN_PER_S_FOR_SECONDS
    found = f"{path}: {n} events in {span_s:g} s, {rate:.3g} per second"
    fall = int(np.argmax(t[:-1].astype(float) - t[1:].astype(float)))
    if rate < least and (float(t[fall]) - float(t[fall + 1])) * MICROSECONDS[unit] * 1e-6 > span_s / 2:
        raise EventFileError(
            f"{path}: the times fall from {t[fall]} to {t[fall + 1]} at event {fall + 1}: were recordings put one behind the "
            "other, or was the clock reset? cut the file there"
        )
    if not least <= rate <= _MAX_PER_S:
        raise EventFileError(f"{found}, which no sensor records; {ask}")
    per_pixel = rate / _pixels(columns)
    if rate > _MANY_PER_S or per_pixel > _MANY_PER_PIXEL_S:
        warn_once(f"{found}, are unusually many; {ask}")
    elif rate < _FEW_PER_S or per_pixel < _FEW_PER_PIXEL_S:
        warn_once(f"{found}, are unusually few; {ask}")
    elif taken == Unit("us", stated=False) and (ordered[-1] > ordered[0]) and not (ordered % 1000).any():
        warn_once(f"{path}: every time is a multiple of 1000; {ask}")


def judge_order(path: Path, columns: Sequence[NDArray[Any]], places: Mapping[str, int], options: ReadOptions) -> None:
    """Raise EventFileError if the first events show that unnamed columns are not in the order t x y p.

    Args:
        path: the file.
        columns: all columns of the first events, `(n,)` each.
        places: index of the columns used as t, x, y and p.
        options: if `columns` was given, it is not questioned.
    """
    if options.columns or len(columns[0]) < 2:
        return
    t, p = columns[places["t"]], columns[places["p"]]
    if len(columns) > len(COLUMNS):
        if not _is_polarity(p):
            raise EventFileError(
                f"{path}: {len(columns)} columns without names, the fourth of which is no polarity: pass --columns, "
                f"'{IGNORED}' for a column to pass over, e.g. {','.join([IGNORED] * (len(columns) - 4))},t,x,y,p"
            )
        return
    # A few events may be out of order; in many, that is only plausible if no other column is sorted.
    if _is_polarity(p) and (len(t) < _MIN_FRACTIONAL_EVENTS or not _falls(t).any()):
        return
    polarities = [k for k, column in enumerate(columns) if _is_polarity(column)]
    # Times rise; if several columns do, the time is the one with the largest value.
    candidates = [k for k, column in enumerate(columns) if k not in polarities and column.max() > column.min()]
    rising = [k for k in candidates if not _falls(columns[k]).any()]
    if len(polarities) != 1 or not rising:
        return
    order = [""] * len(columns)
    order[polarities[0]], order[max(rising, key=lambda k: float(columns[k].max()))] = "p", "t"
    order[order.index("")] = "x"
    order[order.index("")] = "y"
    if order != list(COLUMNS):
        raise EventFileError(
            f"{path}: the columns are not t,x,y,p but look like {','.join(order)}: pass --columns {','.join(order)}"
        )


def _falls(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where a column is smaller than in the row before."""
    falls: NDArray[np.bool_] = column[1:] < column[:-1]
    return falls


def _is_polarity(column: NDArray[Any]) -> bool:
    return column.dtype.kind == "b" or bool(np.isin(column, (-1, 0, 1)).all())


def _pixels(columns: Mapping[str, NDArray[Any]]) -> float:
    """Return the area of the events' bounding box in pixels, at least 1."""
    sides = [float(columns[axis].max()) - float(columns[axis].min()) + 1 for axis in "xy"]
    return max(sides[0] * sides[1], 1.0)


def _whole(values: NDArray[Any], name: str, place: str) -> NDArray[Any]:
    """Convert a column of whole numbers to an integer (or bool) array."""
    if values.dtype.kind != "f":
        return values
    whole = np.rint(values) == values
    if not whole.all():
        index = int(np.argmin(whole))
        hint = "" if name == "p" else ": pixels are whole numbers; round undistorted coordinates"
        raise EventFileError(f"{place}: {name} is {values[index]} at index {index} of these{hint}")
    integers: NDArray[np.int64] = np.clip(values, -(1 << 31), 1 << 31).astype(np.int64)
    return integers
