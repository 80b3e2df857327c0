"""A recording written as it happens: a DAT file that is readable whenever the writing stops."""

from __future__ import annotations

from pathlib import Path

from evburst.data.encoding import pack
from evburst.data.errors import DataError
from evburst.data.events import Events, SensorSize
from evburst.data.readers.dat import dat_header

DAT_TIMES_US = 1 << 32


class LiveRecorder:
    """Prophesee DAT version 2. Whole events go to the system with every `write`, nothing is held back.

    Times beyond 2**32 µs (71.6 minutes) wrap, as sensors' own recordings do; readers count the wraps and continue in 64 bits.

    Args:
        path: the file.
        sensor_size: (W, H) px.
        most_bytes: the file grows no larger than this; None for no limit.
        overwrite: an existing file is replaced.

    Raises:
        DataError: the file cannot be written, or exists.
    """

    def __init__(self, path: Path, sensor_size: SensorSize, most_bytes: int | None = None, overwrite: bool = False) -> None:
        self.path, self.events, self._most_bytes = path, 0, most_bytes
        try:
            # A device or a pipe exists and is none the worse for it.
            self._file = path.open("wb" if overwrite or (path.exists() and not path.is_file()) else "xb")
            self._file.write(dat_header(sensor_size))
            self._file.flush()
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._most_bytes is not None and self._file.tell() >= self._most_bytes

    def write(self, events: Events) -> None:
        """Append events.

        Raises:
            DataError: the disk is full, or gone.
        """
        if not len(events) or self.full:
            return
        wrapped = events.copy()
        wrapped["t"] %= DAT_TIMES_US
        try:
            self._file.write(pack(wrapped).tobytes())
            self._file.flush()
        except OSError as error:
            raise DataError(f"{self.path}: recording stopped ({error.strerror})") from None
        self.events += len(events)

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()
