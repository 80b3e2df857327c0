"""A reader for an invented format, .evrec: a line `EVREC WIDTHxHEIGHT`, then events of 13 bytes each (t, x, y, p).

Importing this module registers the format, so that `open_events` and all commands can read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evburst.data.errors import EventFileError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, SensorSize
from evburst.data.readers import DEFAULT_OPTIONS, ReadOptions, reader
from evburst.data.readers.packets import PacketFile, settle_size

MAGIC = b"EVREC "
_MAX_LINE_BYTES = 64


class EvrecFile(PacketFile):
    """An EventStream of a memory-mapped .evrec recording."""

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            line = file.readline(_MAX_LINE_BYTES)
        if not line.startswith(MAGIC) or not line.endswith(b"\n"):
            raise EventFileError(f"{path}: does not begin with a line EVREC WIDTHxHEIGHT")
        # Bytes after the last whole event are a fault, counted and reported, not an error.
        count, self.faults.truncated_bytes = divmod(path.stat().st_size - len(line), EVENT_DTYPE.itemsize)
        if not count:
            raise EventFileError(f"{path}: contains no events")
        self._events = np.memmap(path, EVENT_DTYPE, "r", len(line), (count,))
        stated_size = line.removeprefix(MAGIC).decode("ascii", "replace").strip()
        self.sensor_size = settle_size(path, stated_size, sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """Yield the events in file order, at most PACKET_EVENTS at a time."""
        for start in range(0, len(self._events), PACKET_EVENTS):
            yield np.array(self._events[start : start + PACKET_EVENTS])


@reader("evrec", recognise=lambda head, path: head.startswith(MAGIC), suffixes=(".evrec",))
def open_evrec(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> EvrecFile:
    """Open an .evrec file (see EvrecFile); `options` are not used because the format defines units and columns."""
    return EvrecFile(path, sensor_size)
