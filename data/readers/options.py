"""Options for reading recordings whose format leaves the unit of time or the order of columns open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evburst.data.errors import ConfigError

TIME_UNITS = ("auto", "s", "ms", "us", "ns")
COLUMNS = ("t", "x", "y", "p")
IGNORED = "-"


@dataclass(frozen=True)
class ReadOptions:
    """How to read a recording.

    Attributes:
        time_unit: unit of the times in text, NumPy and HDF5 files. "auto" uses the unit in a column's name ("t_ns"), else
            seconds if times have fractions, else microseconds, and rejects event rates that no sensor reaches.
            The other formats define their unit: for them "us" and "auto" mean the same and anything else is an error.
        columns: order of unnamed columns, e.g. "x,y,p,t"; "-" stands for a column to ignore. Empty: as in the file's
            header, else t,x,y,p.
        allow_external: follow HDF5 external links, external storage and virtual data sets, which read other files.

    Raises:
        ConfigError: the unit is unknown, or the columns are not t, x, y and p, each once.
    """

    time_unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    columns: str = ""
    allow_external: bool = False

    def __post_init__(self) -> None:
        if self.time_unit not in TIME_UNITS:
            raise ConfigError(f"--time-unit {self.time_unit!r} is unknown (known: {', '.join(TIME_UNITS)})")
        names = [name for name in self.column_order if name != IGNORED]
        if self.columns and sorted(names) != sorted(COLUMNS):
            raise ConfigError(
                f"--columns {self.columns!r}: name t, x, y and p once each in the order of the file, e.g. x,y,p,t; "
                f"'{IGNORED}' for a column to ignore"
            )

    @property
    def column_order(self) -> list[str]:
        """Return `columns` as a list of names; empty if not set."""
        return [name.strip().lower() for name in self.columns.split(",")] if self.columns else []


DEFAULT_OPTIONS = ReadOptions()
