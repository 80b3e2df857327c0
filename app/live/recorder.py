"""Recorder of live events: a DAT file that is readable whenever writing stops."""

from __future__ import annotations

from pathlib import Path

from evburst.data.encoding import WRAP_US, pack
from evburst.data.errors import DataError
from evburst.data.events import Events, SensorSize
from evburst.data.readers.dat import dat_header


class LiveRecorder:
    """Writes events to a file in Prophesee DAT version 2, unbuffered and in whole events.

    Timestamps wrap at 2**32 µs (71.6 minutes), as in the sensors' own recordings; readers count the wraps and continue in 64
    bits.

    Args:
        path: the file.
        sensor_size: (W, H) px.
        max_bytes: file size at which recording stops; None for no limit.
        overwrite: replace an existing file.

    Raises:
        DataError: the file exists or cannot be written.
    """

    def __init__(self, path: Path, sensor_size: SensorSize, max_bytes: int | None = None, overwrite: bool = False) -> None:
        self.path, self.events, self._max_bytes = path, 0, max_bytes
        try:
            # Writing to an existing device or pipe overwrites nothing.
            self._file = path.open("wb" if overwrite or (path.exists() and not path.is_file()) else "xb")
            self._file.write(dat_header(sensor_size))
            self._file.flush()
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None

    @property
    def full(self) -> bool:
        """Whether the file has reached its maximum size."""
        return self._max_bytes is not None and self._file.tell() >= self._max_bytes

    def write(self, events: Events) -> None:
        """Append events.

        Raises:
            DataError: the file cannot be written, for example because the disk is full.
        """
        if not len(events) or self.full:
            return
        wrapped = events.copy()
        wrapped["t"] %= WRAP_US
        try:
            self._file.write(pack(wrapped).tobytes())
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self.path}: recording stopped ({error.strerror})") from None
        self.events += len(events)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()
