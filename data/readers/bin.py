"""N-Caltech101 and N-MNIST .bin (ATIS): 5-byte events without a header. Memory-mapped, decoded in packets.

An event is 40 bits, big-endian: x 8, y 8, p 1, t 23 bits in µs. x and y are kept as recorded, because labels refer to them. An
item with y = 240 is not an event but an overflow of the sensor's 13-bit clock (as in the datasets' own reader): 2**13 µs are
added from there on.

Repairs, counted in `BinFile.faults`:

- bytes after the last complete event are dropped (`truncated_bytes`);
- a fall of more than 2**22 µs that the next event confirms is a wrap of the 23-bit clock (8.39 s): 2**23 µs are added
  from there on (`time_wraps`, which also counts overflow items). A fall that it does not confirm is one late event;
- an event more than 2**22 µs ahead of both the previous and the next one has a corrupt time and is dropped (`time_glitches`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.errors import NoEventsError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.mapping import MappedWords
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile

EVENT_BYTES = 5
N_CALTECH101 = SensorSize(240, 180)
WRAP_US = 1 << 23
LEAP_US = 1 << 22
OVERFLOW_Y = 240
OVERFLOW_US = 1 << 13

_PLAUSIBLE_STEP_US = 100_000
_PLAUSIBLE_SHARE = 0.9


class BinFile(PacketFile):
    """A memory-mapped ATIS .bin recording; an EventStream.

    The file does not state the sensor's size: it is 240x180 (N-Caltech101) unless given (N-MNIST: 34x34).

    Attributes:
        raw: `(n, 5)` uint8: the file's complete events, mapped into memory.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        self.sensor_size = sensor_size or N_CALTECH101
        n_events, self.faults.truncated_bytes = divmod(path.stat().st_size, EVENT_BYTES)
        if n_events == 0:
            raise NoEventsError(f"{path}: holds only {self.faults.truncated_bytes} bytes; an event has {EVENT_BYTES}")
        self._mapped = MappedWords(path, np.uint8, 0, (n_events, EVENT_BYTES))
        self.raw: NDArray[np.uint8] = self._mapped.array

    def __len__(self) -> int:
        return len(self.raw)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        self._mapped.rewind()
        clock = np.array([0, -1], np.int64)
        for start in range(0, len(self.raw), PACKET_EVENTS):
            events = np.empty(min(PACKET_EVENTS, len(self.raw) - start), EVENT_DTYPE)
            columns = (events[name] for name in "txyp")
            kept, wraps, glitches = _decode(self.raw, start, start + len(events), clock, *columns)
            self._mapped.read_until(start + len(events))
            self.faults.time_wraps += wraps
            self.faults.time_glitches += glitches
            if kept:
                yield events[:kept]


def _is_bin(head: bytes, path: Path) -> bool:
    """Recognise a file by its suffix, and by event times that rise in small steps and y coordinates on the sensor."""
    if path.suffix.lower() != ".bin" or len(head) < EVENT_BYTES:
        return False
    raw = np.frombuffer(head, np.uint8, len(head) // EVENT_BYTES * EVENT_BYTES).reshape(-1, EVENT_BYTES)
    steps = np.diff(_times(raw)) % WRAP_US
    rising = len(steps) == 0 or float(np.mean(steps < _PLAUSIBLE_STEP_US)) >= _PLAUSIBLE_SHARE
    return rising and float(np.mean(raw[:, 1] <= OVERFLOW_Y)) >= _PLAUSIBLE_SHARE


@reader("bin", recognise=_is_bin, signature=False)
def open_bin(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> BinFile:
    """Open an N-Caltech101 or N-MNIST .bin file; see BinFile."""
    return BinFile(path, sensor_size)


def decode_reference(raw: NDArray[np.uint8]) -> tuple[Events, int, int]:
    """Reference implementation of the decoder, event by event: `(n, 5)` uint8 to (events, wraps and overflows, glitches)."""
    times = _times(raw).tolist()
    epoch, last, wraps, glitches = 0, -1, 0, 0
    kept: list[int] = []
    t_us: list[int] = []
    for i, (t, after) in enumerate(zip(times, [*times[1:], *times[-1:]], strict=True)):
        is_last, is_first = i == len(times) - 1, last < 0
        if raw[i, 1] == OVERFLOW_Y:
            epoch, wraps = epoch + OVERFLOW_US, wraps + 1
        elif not is_first and t > last + LEAP_US and t > after + LEAP_US:
            glitches += 1
        else:
            fell = last > t + LEAP_US
            if fell and (is_last or last > after + LEAP_US):
                epoch, wraps, fell = epoch + WRAP_US, wraps + 1, False
            last = last if fell else t
            kept.append(i)
            t_us.append(t + epoch)
    events = np.empty(len(kept), EVENT_DTYPE)
    events["t"] = t_us
    events["x"], events["y"], events["p"] = raw[kept, 0], raw[kept, 1], raw[kept, 2] >> 7
    return events, wraps, glitches


def _times(raw: NDArray[np.uint8]) -> NDArray[np.int64]:
    wide = raw.astype(np.int64)
    times: NDArray[np.int64] = (wide[:, 2] & 0x7F) << 16 | wide[:, 3] << 8 | wide[:, 4]
    return times


@njit(cache=True, nogil=True)
def _time(raw, i):  # type: ignore[no-untyped-def]
    return np.int64(raw[i, 2] & 0x7F) << 16 | np.int64(raw[i, 3]) << 8 | np.int64(raw[i, 4])


@njit(cache=True, nogil=True)
def _decode(raw, start, stop, clock, ts, xs, ys, ps):  # type: ignore[no-untyped-def]
    """Decode events [start, stop) into the columns and return (events kept, wraps and overflows, glitches).

    `clock` holds (epoch, last sound time) between calls.
    """
    kept, wraps, glitches = 0, 0, 0
    last_index = len(raw) - 1
    for i in range(start, stop):
        if raw[i, 1] == OVERFLOW_Y:
            clock[0] += OVERFLOW_US
            wraps += 1
            continue
        t = _time(raw, i)
        after = _time(raw, i + 1) if i < last_index else t
        if clock[1] >= 0 and t - clock[1] > LEAP_US and t - after > LEAP_US:
            glitches += 1
            continue
        fell = clock[1] - t > LEAP_US
        if fell and (i == last_index or clock[1] - after > LEAP_US):
            clock[0] += WRAP_US
            wraps += 1
            fell = False
        if not fell:
            clock[1] = t
        ts[kept], xs[kept], ys[kept], ps[kept] = t + clock[0], raw[i, 0], raw[i, 1], raw[i, 2] >> 7
        kept += 1
    return kept, wraps, glitches
