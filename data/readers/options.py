"""What a caller may say about a recording that the file itself does not say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from evburst.data.errors import ConfigError

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
TIME_UNITS: tuple[str, ...] = get_args(TimeUnit)
COLUMNS = ("t", "x", "y", "p")
PASSED_OVER = "-"


@dataclass(frozen=True)
class ReadOptions:
    """How to read a recording.

    Attributes:
        time_unit: unit of the times of text, NumPy and HDF5 files. "auto" takes the one that a column's name says
            ("t_ns"), else seconds where times have fractions, else microseconds, and refuses rates no sensor has.
            The other formats define their unit: there "us" and "auto" are the same and anything else is an error.
        columns: order of unnamed columns, e.g. "x,y,p,t"; "-" stands for a column to pass over. Empty: as the file's
            header says, else t,x,y,p.
        allow_external: follow HDF5 external links, external storage and virtual data sets, which read other files.

    Raises:
        ConfigError: a unit that is none, or columns that are not t, x, y and p, each once.
    """

    time_unit: TimeUnit = "auto"
    columns: str = ""
    allow_external: bool = False

    def __post_init__(self) -> None:
        if self.time_unit not in TIME_UNITS:
            raise ConfigError(f"--time-unit {self.time_unit!r} is unknown (known: {', '.join(TIME_UNITS)})")
        named = [name for name in self.column_order if name != PASSED_OVER]
        if self.columns and sorted(named) != sorted(COLUMNS):
            raise ConfigError(
                f"--columns {self.columns!r}: name t, x, y and p once each in the order of the file, e.g. x,y,p,t; "
                f"'{PASSED_OVER}' for a column to pass over"
            )

    @property
    def column_order(self) -> list[str]:
        """`columns` as a list of names; empty where nothing was said."""
        return [name.strip().lower() for name in self.columns.split(",")] if self.columns else []


DEFAULT_OPTIONS = ReadOptions()
