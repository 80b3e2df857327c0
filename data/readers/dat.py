"""Prophesee DAT: `%` header, event type and size bytes, then 8-byte events. Memory-mapped; windows are read in one pass.

An event consists of two little-endian uint32: t in µs; and x, y, p packed (version 2: 14 + 14 + 1 bits from bit 0 upwards;
version 1, of old sensors: 9 + 8 + 1). The event type byte is 0x00 (2D, Gen1) or 0x0C (CD). The 32-bit clock wraps after 71.6
minutes.

Repairs, all counted in `DatFile.faults`:

- bytes after the last complete event are dropped (`truncated_bytes`);
- a fall of more than 2**31 µs that the next event confirms is a clock wrap: 2**32 µs are added from there on (`time_wraps`);
- an event older than the current window is dropped (`late_events`); events may be out of order inside a window;
- an event beyond the current window, or beyond its first second, has a corrupt time if it is more than a second ahead of one
  of the next eight events. It is dropped (`time_glitches`), so that a flipped bit cannot end the recording; except if the
  clock wraps in between, and the next eight do not continue from the time before;
- the empty windows of a silence of ten minutes or more are skipped (`long_silences`).

`windows(..., start_us)` skips the preceding part without reading it. An event alone does not reveal how often the clock has
wrapped before it, so a binary search would fail. Instead, the times of 4096 events spread evenly over the file are scanned.
Less than 2^30 µs (18 minutes) must pass from one to the next, possibly over a wrap; if this does not hold, or a time is not
sound, every event in between is read. The result equals that of reading from the beginning, provided that time does not run
backwards by more than a second and no 4096th part of the file spans more than 71 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit
from evburst.data.encoding import WRAP_US, unpack
from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import PACKET_EVENTS, Events, EventWindow, Faults, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.clock import new_unordered_clock, unwrap_unordered
from evburst.data.readers.header import MAX_HEADER_BYTES, header_fields, is_dat, split_lines
from evburst.data.readers.mapping import MappedWords
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import MAX_WINDOW_EVENTS, settle_size, too_many_in_window
from evburst.data.slicing import GLITCH_EVENTS, GLITCH_US, Mark, next_start, window_start, windows_from

EVENT_TYPES = {0x00: "2D", 0x0C: "CD"}
EVENT_BYTES = 8
SEEK_PROBES = 4096
SEEK_STEP_US = 1 << 30
SEEK_MARGIN_US = 1_000_000
_PACKET_WINDOW_US = 1_000_000
_MAX_SECOND_EVENTS = 8 * MAX_WINDOW_EVENTS
"""Most events of a second in `packets`, which holds none of them but those that it has to repair."""
_FEW_JUMPS = 16

_GOOD, _LATE, _GLITCH = 0, 1, 2


class DatFile:
    """A memory-mapped DAT recording; an EventStream.

    Attributes:
        path: the file.
        sensor_size: (W, H) px.
        version: 1 or 2, the packing of coordinates.
        words: `(n, 2)` uint32 memory map of the events as stored in the file.
        faults: counts of what was repaired so far.
    """

    finite = True

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        self.path = path
        header, offset = read_header(path)
        self.version = _version(header)
        self.faults = Faults()
        n_events, self.faults.truncated_bytes = divmod(path.stat().st_size - offset, EVENT_BYTES)
        if n_events == 0:
            raise NoEventsError(f"{path}: no event after the header, which ends at byte {offset}")
        self._mapped = MappedWords(path, "<u4", offset, (n_events, 2))
        self.words: NDArray[np.uint32] = self._mapped.array
        stated_size = f"{header['width']}x{header['height']}" if {"width", "height"} <= header.keys() else None
        self.sensor_size = settle_size(path, stated_size, sensor_size, self.packets)

    def __len__(self) -> int:
        return len(self.words)

    def windows(self, window_us: int, start_us: int | None = None) -> Iterator[EventWindow]:
        """Yield consecutive windows [k*window_us, (k+1)*window_us), from that of the first event to that of the last.

        Each event is read once and nothing is copied, except the events of windows from which some were dropped. With
        `start_us`, reading begins a little more than a second before it.

        Raises:
            ValueError: window_us is not positive, or longer than the clock's 2**32 µs.
        """
        return windows_from(map(itemgetter(1), self._pass(window_us, start_us, MAX_WINDOW_EVENTS)), start_us)

    def marked_windows(self, window_us: int) -> Iterator[tuple[Mark, EventWindow]]:
        """Yield all windows, each with the mark from which it was read; see `windows_after`."""
        return self._pass(window_us, None, MAX_WINDOW_EVENTS)

    def windows_after(self, mark: Mark, window_us: int, phase_us: int) -> Iterator[EventWindow]:
        """Yield windows on phase_us + k * window_us, from the one with the mark's event on; it lacks events before the mark.

        `faults` is not changed, because the pass that created the marks has already counted the faults found here.
        """
        return (window for _, window in self._read(mark, window_us, phase_us, Faults(), MAX_WINDOW_EVENTS))

    def _pass(self, window_us: int, start_us: int | None, most: int) -> Iterator[tuple[Mark, EventWindow]]:
        """Yield windows of up to `most` events from `start_us` on, and some before; releases the pages that were read."""
        if not 0 < window_us <= WRAP_US:
            raise ValueError(f"window_us must be positive and at most 2**32, received {window_us}")
        self._mapped.rewind()
        epoch, start = 0, _first_sound(self.words)
        self.faults.time_glitches += start
        if start_us is not None:
            target = start_us // window_us * window_us - SEEK_MARGIN_US
            start, epoch = _seek(self.words, start, target, len(self.words) // SEEK_PROBES + 1)
            self.faults.time_wraps += epoch // WRAP_US
        self._mapped.check()
        begin = Mark(int(start), int(epoch), int(self.words[start, 0]) + int(epoch))
        for mark, window in self._read(begin, window_us, 0, self.faults, most):
            self._mapped.release_until(mark.number)
            yield mark, window
        self._mapped.check()

    def _read(self, mark: Mark, window_us: int, phase_us: int, faults: Faults, most: int) -> Iterator[tuple[Mark, EventWindow]]:
        """Yield windows from the one with the mark's event on, each with the mark of the first event at or after its start."""
        t0 = window_start(mark.t_us, window_us, phase_us)
        while mark.number < len(self.words):
            start, epoch, t1 = mark.number, mark.epoch_us, t0 + window_us
            words = self.words[: start + most + 1]
            stop, next_epoch, next_us, is_sound = _find_window_end(words, start, epoch, t0, t1)
            self._mapped.check()
            if stop - start > most:
                raise too_many_in_window(self.path, t0, window_us)
            if is_sound:
                yield mark, EventWindow(t0, t1, self.words[start:stop], epoch, self.version)
            else:
                yield mark, self._repaired(start, stop, epoch, t0, t1, faults)
            faults.time_wraps += (next_epoch - epoch) // WRAP_US
            mark, t0 = Mark(stop, next_epoch, next_us), next_start(t1, next_us, window_us, phase_us, faults)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets. Repairs are made second by second: an event older than the current second is dropped."""
        for _, window in self._pass(_PACKET_WINDOW_US, None, _MAX_SECOND_EVENTS):
            for start in range(0, len(window), PACKET_EVENTS):
                words = window.words[start : start + PACKET_EVENTS]
                yield unpack(EventWindow(window.t0_us, window.t1_us, words, window.epoch_us, window.version))

    def unsorted(self) -> Iterator[Events]:
        """Yield all events in file order, with their times as they are, except that wraps of the clock are undone.

        If times jump to and fro by more than half a period of the clock, the file is not in order of time, and nothing shows
        where the clock has wrapped: then they are as in the file.
        """
        clock, wraps = new_unordered_clock(), not self._jumps()
        for start in range(0, len(self.words), PACKET_EVENTS):
            events = unpack(EventWindow(0, WRAP_US, self.words[start : start + PACKET_EVENTS], 0, self.version))
            if wraps:
                times = np.empty(len(events), np.int64)
                unwrap_unordered(np.ascontiguousarray(self.words[start : start + PACKET_EVENTS, 0]), clock, times)
                events["t"] = times
            yield events
        self._mapped.check()

    def _jumps(self) -> bool:
        """Return whether successive times both rise and fall by more than half a period of the clock, and more than now and
        then."""
        rises = falls = 0
        for start in range(0, len(self.words), PACKET_EVENTS):
            steps = np.diff(self.words[start : start + PACKET_EVENTS + 1, 0].astype(np.int64))
            rises += int(np.count_nonzero(steps > WRAP_US // 2))
            falls += int(np.count_nonzero(steps < -WRAP_US // 2))
        return min(rises, falls) > _FEW_JUMPS

    def _repaired(self, start: int, stop: int, epoch: int, t0: int, t1: int, faults: Faults) -> EventWindow:
        """Return the window's sound events, copied, with times relative to t0 (so that a wrap inside it does not matter)."""
        words = np.empty((stop - start, 2), np.uint32)
        kept, late, glitches = _copy_sound(self.words, start, stop, epoch, t0, t1, words)
        faults.late_events += late
        faults.time_glitches += glitches
        return EventWindow(t0, t1, words[:kept], t0, self.version)


@reader("dat", recognise=is_dat, suffixes=(".dat",))
def open_dat(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> DatFile:
    """Open a Prophesee DAT file; see DatFile."""
    return DatFile(path, sensor_size)


def read_header(path: Path) -> tuple[dict[str, str], int]:
    """Return the header's `% key value` lines (keys in lower case) and the byte offset of the first event.

    Raises:
        EventFileError: there is no `%` line, or the event type and size bytes are not those of a DAT file.
    """
    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    # The event type after the header never equals '%', so every line that begins with it is header, whatever its bytes.
    lines, offset = split_lines(head)
    if head[offset : offset + 1] == b"%":
        raise EventFileError(f"{path}: the header does not end within {len(head)} bytes: not a DAT file")
    if offset == 0:
        raise EventFileError(f"{path}: no '%' header: not a Prophesee DAT file")
    if len(head) < offset + 2:
        raise EventFileError(f"{path}: the file ends after the header: event type and size are missing at byte {offset}")
    event_type, event_bytes = head[offset], head[offset + 1]
    if event_type not in EVENT_TYPES or event_bytes != EVENT_BYTES:
        raise EventFileError(
            f"{path}: event type 0x{event_type:02X} of {event_bytes} bytes at byte {offset}: "
            f"not a DAT file of 2D (0x00) or CD (0x0C) events of 8 bytes"
        )
    return header_fields(lines), offset + 2


def dat_header(sensor_size: SensorSize) -> bytes:
    """Return the header of a DAT version 2 file of type 0x0C (CD): everything before the first event."""
    text = f"% Data file containing CD events.\n% Version 2\n% Height {sensor_size.height}\n% Width {sensor_size.width}\n"
    return text.encode() + bytes([0x0C, EVENT_BYTES])


def _version(header: dict[str, str]) -> int:
    text = header.get("version", "2").partition(".")[0]
    return 1 if text == "1" else 2


@njit(cache=True, nogil=True)
def _classify(words, i, epoch, t0, trusted_until, previous):  # type: ignore[no-untyped-def]
    """Return (kind, epoch, t) of event i, given the epoch before it and the start of the current window.

    Times from `trusted_until` on are checked against later events. `previous` is the last sound raw time (-1: none).
    """
    n = len(words)
    raw = np.int64(words[i, 0])
    t = raw + epoch
    if previous - raw > WRAP_US // 2:
        confirmed = i + 1 == n or np.int64(words[i + 1, 0]) < WRAP_US // 2
        if confirmed:
            return _GOOD, epoch + WRAP_US, t + WRAP_US
        return _LATE, epoch, t
    if t < t0:
        return _LATE, epoch, t
    if t < trusted_until:
        return _GOOD, epoch, t
    wrapped = False
    for k in range(i + 1, min(i + 1 + GLITCH_EVENTS, n)):
        later = np.int64(words[k, 0])
        if np.int64(words[k - 1, 0]) - later > WRAP_US // 2:
            wrapped = True
        continues_before = previous >= 0 and 0 <= later - previous <= GLITCH_US
        if raw - later > GLITCH_US and (continues_before or not wrapped):
            return _GLITCH, epoch, t
    return _GOOD, epoch, t


@njit(cache=True, nogil=True)
def _first_sound(words):  # type: ignore[no-untyped-def]
    """Return the index of the first event with a sound time."""
    for i in range(len(words)):
        if _classify(words, i, 0, 0, 0, -1)[0] == _GOOD:
            return i
    return 0


@njit(cache=True, nogil=True)
def _seek(words, first, t_us, stride):  # type: ignore[no-untyped-def]
    """Return (index, epoch) of `first` or of a sound event before all events at or after t_us. Probes every `stride` events."""
    found, epoch, last = first, 0, np.int64(words[first, 0])
    if last >= t_us:
        return found, epoch
    for probe in range(first + stride, len(words), stride):
        candidate, candidate_epoch = found, epoch
        # Nine in a row, because one corrupt time among them may look sound if examined alone.
        begin = probe - min(GLITCH_EVENTS, stride - 1)
        kind, _, t = _classify(words, begin, epoch, last, last, last - epoch)
        if kind != _GOOD or t - last > SEEK_STEP_US:
            begin = probe - stride + 1
        for i in range(begin, probe + 1):
            kind, next_epoch, t = _classify(words, i, epoch, last, last, last - epoch)
            if kind == _GOOD:
                if t >= t_us:
                    return candidate, candidate_epoch
                found, epoch, last = i, next_epoch, t
    return found, epoch


@njit(cache=True, nogil=True)
def _find_window_end(words, start, epoch, t0, t1):  # type: ignore[no-untyped-def]
    """Return (index, epoch, t) of the first sound event at or after t1, and whether all before it are sound and of one epoch.

    Event `start` must be sound and of `epoch`. If there is no such event, the result is (n, epoch, t1).
    """
    is_sound = True
    n = len(words)
    previous = np.int64(words[start, 0])
    if previous + epoch >= t1:
        return start, epoch, previous + epoch, is_sound
    trusted_until = min(t1, t0 + GLITCH_US)
    i = start + 1
    while i < n:
        raw = np.int64(words[i, 0])
        if raw >= previous and raw + epoch < trusted_until:
            previous = raw
            i += 1
            continue
        kind, next_epoch, t = _classify(words, i, epoch, t0, trusted_until, previous)
        if kind == _GOOD and t >= t1:
            return i, next_epoch, t, is_sound
        is_sound &= kind == _GOOD and next_epoch == epoch
        if kind == _GOOD:
            epoch, previous = next_epoch, raw
        i += 1
    return n, epoch, t1, is_sound


@njit(cache=True, nogil=True)
def _copy_sound(words, start, stop, epoch, t0, t1, out):  # type: ignore[no-untyped-def]
    """Copy the sound events of [start, stop) to `out`, with times relative to t0; returns (kept, late, glitches)."""
    late, glitches = 0, 0
    trusted_until = min(t1, t0 + GLITCH_US)
    previous = np.int64(words[start, 0])
    out[0, 0], out[0, 1] = np.uint32(previous + epoch - t0), words[start, 1]
    kept = 1
    for i in range(start + 1, stop):
        kind, next_epoch, t = _classify(words, i, epoch, t0, trusted_until, previous)
        if kind == _GOOD:
            epoch, previous = next_epoch, np.int64(words[i, 0])
            out[kept, 0], out[kept, 1] = np.uint32(t - t0), words[i, 1]
            kept += 1
        elif kind == _LATE:
            late += 1
        else:
            glitches += 1
    return kept, late, glitches
