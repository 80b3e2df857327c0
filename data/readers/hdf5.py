"""HDF5 as RVT and DSEC lay it out: `events/{t,x,y,p}`, read in slices.

`t_offset` (DSEC), where present, is added to every time. `events/width` and `events/height` (RVT) say the sensor's size;
DSEC does not say it (its sensors are 640x480). `ms_to_idx` (DSEC) finds an event by its time; reading in order needs none.
In RVT's files times fall back now and then: such events are kept here, and left out and counted by the windows.

HDF5 keeps no checksums unless the writer asked for them, so that a wrong value in a whole file goes unseen. And the HDF5
library itself can crash on a corrupt file, which no Python code can prevent (about 1 in 20,000 of `bench/fuzz_readers.py`'s).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from evburst.data.errors import EventFileError
from evburst.data.events import PACKET_EVENTS, Events, SensorSize
from evburst.data.extras import require
from evburst.data.readers import reader
from evburst.data.readers.packets import PacketFile, columns_to_events, find_columns, library_errors, settle_size

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_OFFSET_US = 1 << 60


class Hdf5File(PacketFile):
    """An HDF5 recording: an EventStream. The file is open only while it is being read.

    Attributes:
        t_offset_us: added to the times in the file.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        self._h5py = require("h5py", "hdf5", f"{path}: this format")
        if find_spec("hdf5plugin"):
            require("hdf5plugin", "hdf5", f"{path}: this format")  # Registers the blosc filter with the HDF5 library.
        with library_errors(f"{path}: not a whole HDF5 file"), self._h5py.File(path, "r") as file:
            self._names = self._find(file)
            group = file["events"]
            lengths = {column: len(group[name]) for column, name in self._names.items()}
            for name in self._names.values():
                _check_chunks(group[name])
            self._n_events = lengths["t"]
            self.t_offset_us = int(file["t_offset"][()]) if "t_offset" in file else 0
            said = _size_in(group) or _size_in(file)
        if len(set(lengths.values())) != 1:
            raise EventFileError(f"{path}: the columns' lengths differ: {lengths}")
        if self._n_events == 0:
            raise EventFileError(f"{path}: events/t is empty: no event")
        if not 0 <= self.t_offset_us < _MAX_OFFSET_US:
            raise EventFileError(f"{path}: t_offset is {self.t_offset_us} µs, which is no time")
        self.sensor_size = settle_size(path, said, sensor_size, self.packets)

    def __len__(self) -> int:
        return self._n_events

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a chunk is corrupt, or compressed by a filter that is not installed.
        """
        with self._h5py.File(self.path, "r") as file:
            for start in range(0, self._n_events, PACKET_EVENTS):
                stop = min(start + PACKET_EVENTS, self._n_events)
                place = f"{self.path}: events {start} to {stop - 1}"
                columns = {column: self._read(file, f"/events/{name}", start, stop) for column, name in self._names.items()}
                events = columns_to_events(columns, place, self.faults)
                events["t"] += self.t_offset_us
                if len(events):
                    yield events

    def _read(self, file: Any, name: str, start: int, stop: int) -> Any:
        filters = "" if find_spec("hdf5plugin") else '; if it is blosc-compressed: pip install "evburst[hdf5]"'
        with library_errors(f"{self.path}: {name} from event {start} cannot be read{filters}"):
            return file[name][start:stop]

    def _find(self, file: Any) -> dict[str, str]:
        group = file.get("events")
        if not isinstance(group, self._h5py.Group):
            if "CD" in file:
                raise EventFileError(f"{self.path}: Prophesee's own HDF5 layout, which needs their codec; export RAW or DAT")
            raise EventFileError(f"{self.path}: no group 'events'; it has {', '.join(file) or 'nothing'}")
        names = [name for name, item in group.items() if isinstance(item, self._h5py.Dataset) and item.ndim == 1]
        return find_columns(names, f"{self.path}: group 'events'")


def _is_hdf5(head: bytes, path: Path) -> bool:
    return head.startswith(SIGNATURE)


@reader("hdf5", recognise=_is_hdf5, suffixes=(".h5", ".hdf5"))
def open_hdf5(path: Path, sensor_size: SensorSize | None = None) -> Hdf5File:
    """Open an HDF5 file of RVT's or DSEC's layout; see Hdf5File."""
    return Hdf5File(path, sensor_size)


def _check_chunks(dataset: Any) -> None:
    """ValueError if chunks are missing: HDF5 would hand out zeros for them."""
    if dataset.chunks:
        there, wanted = dataset.id.get_num_chunks(), -(-len(dataset) // dataset.chunks[0])
        if there < wanted:
            raise ValueError(f"{dataset.name} has {there} of its {wanted} chunks")


def _size_in(group: Any) -> str | None:
    """Datasets or attributes `width` and `height` of a group."""
    for source in (group, group.attrs):
        if "width" in source and "height" in source:
            width, height = (np.asarray(source[name][()] if source is group else source[name]) for name in ("width", "height"))
            return f"{width.item()}x{height.item()}"
    return None
