"""AEDAT 2.0 (jAER): lines of text that begin with '#', then pairs of big-endian uint32: address and time in microseconds.

The meaning of the address bits depends on the camera's chip, which newer headers name (`# AEChip: ...DVS128`):

    DVS128      x bits 1-7, y bits 8-14, bit 0 is 0 for ON; higher bits mark special events
    DAVIS       x bits 12-21, y bits 22-30, bit 11 is 1 for ON; bit 10 marks special events, bit 31 frames and IMU

Both count x from the right and y from the bottom, as jAER's own decoders document (`DVS128.Extractor`,
`DavisEventExtractor`); this reader converts them to the top-left corner. Older headers, such as those of CIFAR10-DVS, name no
chip. Then it follows from the sensor size that the caller passes, or from the addresses: if none exceeds 15 bits, it is a
DVS128. CIFAR10-DVS was recorded by a camera on its side; its events are not rotated.

Repairs, counted in `faults`: bytes after the last complete event are dropped (`truncated_bytes`); a fall of more than 2**31 µs
that the next event confirms is a clock wrap, and 2**32 µs are added from there on (`time_wraps`; see clock.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, SensorSize
from evburst.data.readers import reader
from evburst.data.readers.clock import new_clock, unwrap
from evburst.data.readers.header import CONTROL
from evburst.data.readers.mapping import MappedWords
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, settle_size

MAGIC = b"#!AER-DAT2"
EVENT_BYTES = 8
_MAX_HEADER_BYTES = 1 << 22
_PROBED_EVENTS = 1 << 14
_CHIP = re.compile(rb"^#\s*AEChip:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class AddressLayout:
    """Bit positions in an address.

    Attributes:
        x_shift, y_shift: lowest bits of x and of y.
        x_mask, y_mask: masks of x and y after shifting.
        p_shift: bit of the polarity.
        on: value of that bit for ON.
        special: mask of the bits that mark addresses which are not events.
    """

    x_shift: int
    x_mask: int
    y_shift: int
    y_mask: int
    p_shift: int
    on: int
    special: int


DVS128 = AddressLayout(1, 0x7F, 8, 0x7F, 0, 0, 0xFFFF8000)
DAVIS = AddressLayout(12, 0x3FF, 22, 0x1FF, 11, 1, 0x80000400)
CHIPS = {
    "dvs128": (SensorSize(128, 128), DVS128),
    "tmpdiff128": (SensorSize(128, 128), DVS128),
    "davis128": (SensorSize(128, 128), DAVIS),
    "davis208": (SensorSize(208, 192), DAVIS),
    "davis240": (SensorSize(240, 180), DAVIS),
    "davis346": (SensorSize(346, 260), DAVIS),
    "davis640": (SensorSize(640, 480), DAVIS),
}
"""Size and address layout by the beginning of the chip's name, in lower case."""


class Aedat2File(PacketFile):
    """A memory-mapped AEDAT 2.0 recording; an EventStream.

    Attributes:
        chip: beginning of the chip's name, a key of CHIPS.
        offset: number of bytes before the first event.
        words: `(n, 2)` big-endian uint32: address and time.
        skipped_events: number of special events, frames and IMU samples so far.
    """

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        header = read_header(path)
        self.offset = len(header)
        n_events, self.faults.truncated_bytes = divmod(path.stat().st_size - self.offset, EVENT_BYTES)
        if n_events <= 0:
            raise NoEventsError(f"{path}: no event after the header, which ends at byte {self.offset}")
        self._mapped = MappedWords(path, ">u4", self.offset, (n_events, 2))
        self.words: NDArray[np.uint32] = self._mapped.array
        self.skipped_events = 0
        self.chip = _chip(path, header, self.words[:_PROBED_EVENTS, 0].astype(np.uint32), sensor_size)
        size, self._layout = CHIPS[self.chip]
        self._mapped.check()
        self.sensor_size = settle_size(path, str(size), sensor_size, self.packets)

    def __len__(self) -> int:
        return len(self.words)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets."""
        self._mapped.rewind()
        clock = new_clock()
        for start in range(0, len(self.words), PACKET_EVENTS):
            # One more time, which confirms or contradicts that of the last event.
            words = self.words[start : start + PACKET_EVENTS + 1].astype(np.uint32)
            count = min(PACKET_EVENTS, len(self.words) - start)
            times = np.empty(count, np.int64)
            self.faults.time_wraps += int(unwrap(np.ascontiguousarray(words[:, 1]), clock, times))
            events = decode_addresses(words[:count, 0], times, self._layout, self.sensor_size)
            self._mapped.read_until(start + count)
            self.skipped_events += count - len(events)
            if len(events):
                yield events


@reader("aedat2", recognise=lambda head, path: head.startswith(MAGIC), suffixes=(".aedat",))
def open_aedat2(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> Aedat2File:
    """Open an AEDAT 2.0 file; see Aedat2File."""
    return Aedat2File(path, sensor_size)


def read_header(path: Path) -> bytes:
    """Return the lines of text before the first event.

    Raises:
        EventFileError: they are not those of AEDAT 2.0, or the header does not end.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    if not head.startswith(MAGIC):
        version = (
            head[:14].split(b"\r")[0].split(b"\n")[0].decode("latin-1") if head.startswith(b"#!AER-DAT") else "no AEDAT header"
        )
        raise EventFileError(f"{path}: {version}; supported are AEDAT 2.0, 3.1 and 4")
    ending = b"\r\n" if b"\r\n" in head[:64] else b"\n"
    offset = 0
    while head[offset : offset + 1] == b"#" and (end := head.find(ending, offset)) >= 0:
        # The first address may begin with the byte of '#' as well, but is not a line of text.
        if offset and CONTROL.search(head, offset, end):
            break
        offset = end + len(ending)
    return head[:offset]


def decode_addresses(addresses: NDArray[np.uint32], t: NDArray[np.int64], layout: AddressLayout, size: SensorSize) -> Events:
    """Return the events among addresses `(n,)` with their times, as EVENT_DTYPE; x or y outside the sensor become 65535."""
    is_event = (addresses & np.uint32(layout.special)) == 0
    addresses = addresses[is_event]
    events = np.empty(len(addresses), EVENT_DTYPE)
    events["t"] = t[is_event]
    # Counted from the other side; coordinates outside become negative and wrap to the largest values, outside of any sensor.
    events["x"] = (size.width - 1 - (addresses >> layout.x_shift & layout.x_mask).astype(np.int64)) & 0xFFFF
    events["y"] = (size.height - 1 - (addresses >> layout.y_shift & layout.y_mask).astype(np.int64)) & 0xFFFF
    events["p"] = (addresses >> layout.p_shift & 1) == layout.on
    return events


def _chip(path: Path, header: bytes, addresses: NDArray[np.uint32], given: SensorSize | None) -> str:
    """Determine the chip from the header, else from the addresses, else from the given size."""
    named = _CHIP.search(header)
    if named:
        name = named[1].decode("latin-1").rpartition(".")[2]
        for chip in CHIPS:
            if name.lower().startswith(chip):
                return chip
        raise EventFileError(f"{path}: the chip {name[:60]!r} is unknown (known: {', '.join(CHIPS)})")
    if not (addresses & np.uint32(DVS128.special)).any():
        return "dvs128"
    for chip, (size, layout) in CHIPS.items():
        if given == size and layout is DAVIS:
            return chip
    sizes = ", ".join(f"{size} ({chip})" for chip, (size, layout) in CHIPS.items() if layout is DAVIS)
    raise EventFileError(f"{path}: the header does not name the chip; pass its size with --sensor-size: {sizes}")
