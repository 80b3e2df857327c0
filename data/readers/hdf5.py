"""HDF5 in the layouts of RVT, DSEC, event_utils, v2e and Metavision, read in slices.

- `events/{t,x,y,p}`, or `ts`, `xs`, `ys`, `ps`: four columns; `events` as one table: fields t, x, y, p, or `(n, 4)` in the
  order t x y p (v2e) or that of `ReadOptions.columns`.
- `CD/events` (Metavision: Prophesee's SDK): one table, compressed with ECF (ecf.py) and in µs. The attribute `geometry` of the
  file states the sensor's size. `CD/indexes` locates events by time and is not needed here.
- `t_offset` (DSEC), if present, is added to every time. `events/width` and `events/height` (RVT) state the sensor's size;
  DSEC does not state it (its sensors are 640x480). `ms_to_idx` (DSEC) locates events by time and is not needed here.
- In RVT's files times occasionally fall back: such events are kept here, and dropped and counted by the windows.

An HDF5 file can refer to other files: external links, external storage, virtual data sets. Unless `ReadOptions.allow_external`
is set they are rejected, before any of these files is opened. So are data sets that declare more than the file holds (HDF5
would return zeros), and chunks that are too large to decompress.

HDF5 keeps no checksums unless the writer asked for them, so a wrong value in an otherwise intact file goes unnoticed. The HDF5
library itself can crash on a corrupt file, which Python code cannot prevent (about 1 in 20,000 of `bench/fuzz_readers.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import PACKET_EVENTS, Events, SensorSize
from evburst.data.extras import pip_install, require
from evburst.data.readers import ecf, reader
from evburst.data.readers.columns import (
    SAMPLE_EVENTS,
    Unit,
    column_places,
    columns_to_events,
    find_columns,
    judge_order,
    judge_times,
    pick_column,
    refuse_columns,
    to_microseconds,
    unit_in_name,
)
from evburst.data.readers.hdf5_items import check_dataset, find_item, hdf5_file, scalar
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, library_errors, settle_size

SIGNATURE = b"\x89HDF\r\n\x1a\n"
METAVISION = "/CD/events"
_MAX_OFFSET = 1 << 60
_Place = tuple[str, str | int | None]
"""Location of a column: a data set, and a field or column of it (None: the whole data set)."""


class Hdf5File(PacketFile):
    """An HDF5 recording; an EventStream. The file is open only while it is being read.

    Attributes:
        time_unit: unit of the times in the file.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> None:
        super().__init__(path)
        self._options = options
        self._h5py = require("h5py", "hdf5", f"{path}: this format")
        if find_spec("hdf5plugin"):
            require("hdf5plugin", "hdf5", f"{path}: this format")  # Registers the blosc filter with the HDF5 library.
        with library_errors(f"{path}: not a complete HDF5 file"), hdf5_file(self._h5py, path) as file:
            self._places = self._locate_columns(file)
            self._n_events = self._count_events(file)
            self._unit, self._offset_us, self._offset_ns = self._clock(file)
            stated_size = self._read_size(file, "events") or self._read_size(file, "/") or _geometry(file)
        self.time_unit = self._unit.name
        self.sensor_size = settle_size(path, stated_size, sensor_size, self.packets)

    def __len__(self) -> int:
        return self._n_events

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a chunk is corrupt, or compressed with a filter that is not installed.
        """
        with ExitStack() as stack:
            with library_errors(f"{self.path}: not a complete HDF5 file"):
                file = stack.enter_context(hdf5_file(self._h5py, self.path))
            for start in range(0, self._n_events, PACKET_EVENTS):
                stop = min(start + PACKET_EVENTS, self._n_events)
                place = f"{self.path}: events {start} to {stop - 1}"
                columns = self._read(file, start, stop)
                if self._offset_ns:
                    columns["t"] = columns["t"].astype(np.int64) + self._offset_ns
                events = columns_to_events(columns, place, self.faults, self._unit)
                events["t"] += self._offset_us
                if len(events):
                    yield events

    def _locate_columns(self, file: Any) -> dict[str, _Place]:
        """Locate the columns t, x, y and p."""
        name = "/events" if self._item(file, METAVISION) is None or "events" in file else METAVISION
        events, place = self._item(file, name), f"{self.path}: group {name[1:]!r}"
        if isinstance(events, self._h5py.Group):
            refuse_columns(self._options, place)
            return {column: (f"{name}/{field}", None) for column, field in find_columns(list(events), place).items()}
        if not isinstance(events, self._h5py.Dataset):
            raise self._no_events(file)
        if events.dtype.names and events.ndim == 1:
            refuse_columns(self._options, place)
            return {column: (name, field) for column, field in find_columns(events.dtype.names, place).items()}
        if events.ndim != 2:
            raise EventFileError(f"{place} is {events.dtype} {events.shape}; expected a group or a table (n, 4) of t x y p")
        return {column: (name, number) for column, number in column_places(self._options, events.shape[1], place).items()}

    def _no_events(self, file: Any) -> EventFileError:
        names = list(file)
        data = self._item(file, "data")
        if isinstance(data, self._h5py.Dataset) and data.ndim > 2:
            frames = f"frames computed from events, {data.shape}"
            return EventFileError(f"{self.path}: {frames}: use the recording they were computed from")
        return EventFileError(f"{self.path}: no group 'events'; found {', '.join(names)[:200] or 'nothing'}")

    def _item(self, group: Any, name: str) -> Any:
        return find_item(self._h5py, group, name, self._options.allow_external)

    def _dataset(self, file: Any, name: str) -> Any:
        dataset = self._item(file, name)
        if not isinstance(dataset, self._h5py.Dataset):
            raise EventFileError(f"{self.path}: {name} is not a data set")
        return dataset

    def _count_events(self, file: Any) -> int:
        """Return the number of events; raises EventFileError unless all columns are complete and of equal length."""
        lengths = {}
        for column, (name, key) in self._places.items():
            dataset = self._dataset(file, name)
            if key is None and dataset.ndim != 1:
                raise EventFileError(f"{self.path}: {name} is {dataset.shape}, expected one number per event")
            check_dataset(dataset, str(self.path), self._options.allow_external)
            lengths[column] = len(dataset)
        if len(set(lengths.values())) != 1:
            raise EventFileError(f"{self.path}: the columns' lengths differ: {lengths}")
        if lengths["t"] == 0:
            raise NoEventsError(f"{self.path}: {self._places['t'][0].lstrip('/')} is empty: no event")
        return lengths["t"]

    def _clock(self, file: Any) -> tuple[Unit, int, int]:
        """Return the unit of the times, and what to add to them: in microseconds, or if they are nanoseconds, in these."""
        sample = self._read(file, 0, min(SAMPLE_EVENTS, self._n_events))
        name, key = self._places["t"]
        if isinstance(key, int):
            judge_order(self.path, list(sample.values()), dict(zip(sample, range(4), strict=True)), self._options)
        defined = name == METAVISION
        named = "us" if defined else unit_in_name(key if isinstance(key, str) else name.rpartition("/")[2])
        unit = judge_times(self.path, sample, self._options, named, doubted=not defined)
        item = self._item(file, "t_offset")
        if item is None:
            return unit, 0, 0
        place = f"{self.path}: t_offset"
        offset = scalar(item[()], place)
        if not 0 <= offset < _MAX_OFFSET:
            raise EventFileError(f"{place} is {offset}, which is not a valid time")
        if unit.name == "ns":
            return unit, 0, round(offset)
        return unit, int(to_microseconds(np.array([offset]), Unit(unit.name), place)[0]), 0

    def _read(self, file: Any, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return the columns of events [start, stop)."""
        filters = "" if find_spec("hdf5plugin") else f"; if it is blosc-compressed: {pip_install('hdf5')}"
        rows: dict[str, NDArray[Any]] = {}
        for name in {name for name, _ in self._places.values()}:
            with library_errors(f"{self.path}: {name} from event {start} cannot be read{filters}"):
                dataset = self._dataset(file, name)
                rows[name] = ecf.read_rows(dataset, start, stop) if ecf.is_compressed(dataset) else dataset[start:stop]
        return {column: pick_column(rows[name], key) for column, (name, key) in self._places.items()}

    def _read_size(self, file: Any, name: str) -> str | None:
        """Return the sensor size in data sets or attributes `width` and `height` of an item, or None."""
        item, sides = self._item(file, name), list[str]()
        if item is None:
            return None
        for side in ("width", "height"):
            dataset = self._item(item, side)
            value = dataset[()] if isinstance(dataset, self._h5py.Dataset) else item.attrs.get(side)
            if value is None:
                return None
            sides.append(str(scalar(value, f"{self.path}: {side}")))
        return "x".join(sides)


def _geometry(file: Any) -> str | None:
    """Return the sensor size as Metavision states it, or None."""
    value = file.attrs.get("geometry")
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else None


@reader("hdf5", recognise=lambda head, path: head.startswith(SIGNATURE), suffixes=(".h5", ".hdf5"), defined=False)
def open_hdf5(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> Hdf5File:
    """Open an HDF5 file of one of the layouts above; see Hdf5File."""
    return Hdf5File(path, sensor_size, options)
