"""Recorders of live events: DAT files that are readable whenever writing stops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

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

    Attributes:
        events: number of events written.
        stopped: why recording stopped by itself; empty if it did not.

    Raises:
        DataError: the file exists or cannot be written.
    """

    def __init__(self, path: Path, sensor_size: SensorSize, max_bytes: int | None = None, overwrite: bool = False) -> None:
        self.path, self.events, self.stopped, self._max_bytes = path, 0, "", max_bytes
        header = dat_header(sensor_size)
        self._size = len(header)
        try:
            # Writing to an existing device or pipe overwrites nothing.
            mode = "wb" if overwrite or (path.exists() and not path.is_file()) else "xb"
            # Without a buffer, which would keep what a full disk refused, and fail again when it is closed.
            self._file = path.open(mode, buffering=0)
            try:
                self._append(header)
            except OSError:
                self._file.close()
                if mode == "xb":
                    path.unlink()
                raise
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None

    def write(self, events: Events) -> None:
        """Append events.

        Raises:
            DataError: recording has stopped, because the file is full or cannot be written, e.g. on a full disk; the events
                are not in the file.
        """
        if not len(events):
            return
        if self._max_bytes is not None and self._size >= self._max_bytes:
            raise self._stop(f"it reached its limit of {self._max_bytes / 2**30:.3g} GiB")
        wrapped = events.copy()
        wrapped["t"] %= WRAP_US
        content = pack(wrapped).tobytes()
        try:
            self._append(content)
        except OSError as error:
            with suppress(OSError):  # of a device or a pipe
                self._file.truncate(self._size)
            raise self._stop(str(error.strerror)) from None
        self._size += len(content)
        self.events += len(events)

    def _append(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _stop(self, reason: str) -> DataError:
        self.stopped = reason
        return DataError(f"{self.path}: recording stopped ({reason})")

    def close(self) -> None:
        """Close the file; may be called twice."""
        self._file.close()


class Recorders:
    """The recorders of a run, for its threads.

    Args:
        notify: called with a line of text when a recording stops by itself.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify = notify
        self._recorders: list[LiveRecorder] = []
        self._lock = Lock()

    def add(self, recorder: LiveRecorder) -> None:
        """Record every window from now on, including dropped ones."""
        with self._lock:
            self._recorders.append(recorder)

    def end(self, recorder: LiveRecorder) -> None:
        """Stop recording and close the file."""
        with self._lock:
            if recorder in self._recorders:
                self._recorders.remove(recorder)
            recorder.close()

    def write(self, events: Events) -> None:
        """Append events to every recording; one that cannot be written ends."""
        with self._lock:
            for recorder in list(self._recorders):
                try:
                    recorder.write(events)
                except DataError as error:
                    self._recorders.remove(recorder)
                    recorder.close()
                    self._notify(f"warning: {error}")

    def close(self) -> None:
        """Close all recordings."""
        with self._lock:
            for recorder in self._recorders:
                recorder.close()
            self._recorders.clear()
