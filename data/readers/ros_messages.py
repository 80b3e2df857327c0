"""Messages of ROS that hold events, decoded from their bytes in a bag.

EventArray (dvs_msgs, prophesee_event_msgs): a header, uint32 `height` and `width` of the sensor (0: not stated), and events of
uint16 x, uint16 y, time ts, bool polarity.

EventPacket (event_camera_msgs; before, event_array_msgs/EventArray): a header, uint32 `height` and `width`, uint64 `seq` and
`time_base`, string `encoding`, bool `is_bigendian`, uint8[] `events`. Encodings, numbers little-endian and bits from the lowest
on:

    evt3           the words of a RAW file, whose decoding continues from message to message; no `time_base`
    mono           u64 per event: 32 bits of ns after `time_base`, 16 of x, 15 of y, 1 of polarity
    libcaer        u32 of 1 unused bit, polarity, 15 of y, 15 of x, then i32 of µs after `time_base` (ns), which wraps at 2^31
    libcaer_cmp    u16 of 12 bits and a code. 0: bits 12-23, 1: bits 0-11 of the time in µs after `time_base` (µs). 2: x. 3: an
                   event, y and in the highest of the 12 bits polarity. 4: the same of the first event of a run. 5: of the next
                   eight y of the run, those with an event

In ROS 1 all fields follow each other without gaps; in ROS 2 (CDR) each number lies at a multiple of its size.
Sources: the definitions of these messages; https://github.com/ros-event-camera/event_camera_msgs and event_camera_codecs there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data._numba import njit

_FIELDS = ("x", "y", "s", "ns", "p")
_TYPES = ["<u2", "<u2", "<u4", "<u4", "u1"]
_EVENT = np.dtype({"names": _FIELDS, "formats": _TYPES, "offsets": [0, 2, 4, 8, 12], "itemsize": 13})
_ALIGNED = np.dtype({"names": _FIELDS, "formats": _TYPES, "offsets": [0, 2, 6, 10, 14], "itemsize": 16})
"""An event of an array in ROS 2, but the first, which begins at a multiple of four; these begin two bytes before one."""


class Array(NamedTuple):
    """An EventArray.

    Attributes:
        width, height: sensor size in px, or 0.
        columns: `(n,)` each: t in ns, x, y, p.
    """

    width: int
    height: int
    columns: dict[str, NDArray[Any]]


class Packet(NamedTuple):
    """An EventPacket.

    Attributes:
        width, height: sensor size in px.
        encoding: of `data`.
        time_base: ns, for some encodings.
        data: the encoded events.
    """

    width: int
    height: int
    encoding: str
    time_base: int
    data: bytes


class _Fields:
    """The fields of a message, read one after the other; beyond its end they are 0.

    Args:
        message: the whole message.
        ros1: whether it is of ROS 1; else it is CDR.

    Attributes:
        body: what positions count from.
        at: position of the next field.
    """

    def __init__(self, message: bytes, ros1: bool) -> None:
        self._ros1, self.at = ros1, 0
        self.body = message if ros1 else message[4:]
        self.readable = ros1 or message[:2] == b"\0\1"  # little-endian CDR without parameters
        if ros1:
            self.number()  # the header's number
        self.number(), self.number()  # its time
        self.text()

    def number(self, size: int = 4) -> int:
        if not self._ros1:
            self.at += -self.at % size
        self.at += size
        return int.from_bytes(self.body[self.at - size : self.at], "little")

    def text(self) -> str:
        n = self.number()
        self.at += n
        return self.body[self.at - n : self.at].rstrip(b"\0").decode(errors="replace")

    def ends_after(self, size: int) -> bool:
        """Whether the message ends that many bytes further on; CDR may be padded."""
        return self.readable and 0 <= len(self.body) - self.at - size <= (0 if self._ros1 else 3)


def decode_array(message: bytes, ros1: bool) -> Array | None:
    """Decode an EventArray; None if the message has another form."""
    fields = _Fields(message, ros1)
    height, width, n = fields.number(), fields.number(), fields.number()
    if not fields.ends_after(13 * n if ros1 else 16 * n - 3 if n else 0):
        return None
    if ros1 or not n:
        events = np.frombuffer(fields.body, _EVENT, n, fields.at)
    else:
        events = np.empty(n, _EVENT)
        events[0] = np.frombuffer(fields.body, _EVENT, 1, fields.at)[0]
        others = np.frombuffer(fields.body + b"\0", _ALIGNED, n - 1, fields.at + 14)
        for name in _FIELDS:
            events[name][1:] = others[name]
    times = events["s"].astype(np.int64) * 1_000_000_000 + events["ns"]
    return Array(width, height, {"t": times} | {name: events[name] for name in "xyp"})


_HALF_PERIOD = 1 << 30
"""Half a turn of libcaer's clock, which has 31 bits, in µs."""
_LAST_US = (1 << 62) // 1000
"""Latest time in µs that is taken for one."""


def decode_packet(message: bytes, ros1: bool) -> Packet | None:
    """Decode an EventPacket; None if the message has another form, or its data are big-endian."""
    fields = _Fields(message, ros1)
    height, width = fields.number(), fields.number()
    _, time_base = fields.number(8), fields.number(8)
    encoding, is_bigendian, n = fields.text(), fields.number(1), fields.number()
    if is_bigendian or not fields.ends_after(n) or time_base > _LAST_US * (1 if encoding == "libcaer_cmp" else 1000):
        return None
    return Packet(width, height, encoding, time_base, fields.body[fields.at : fields.at + n])


def packet_columns(packet: Packet) -> dict[str, NDArray[Any]]:
    """Decode the events of a packet in an encoding other than evt3: t in ns, x, y, p, each `(n,)`.

    An incomplete event at the end is left out.
    """
    if packet.encoding == "libcaer_cmp":
        words = np.frombuffer(packet.data, "<u2", len(packet.data) // 2)
        codes = words >> 12
        events = np.empty((4, np.count_nonzero(codes == 3) + 8 * np.count_nonzero(codes == 5)), np.int64)
        t, x, y, p = events[:, : _decode_compressed(words, events)]
        return {"t": 1000 * (t + packet.time_base), "x": x, "y": y, "p": p}
    words = np.frombuffer(packet.data, "<u8", len(packet.data) // 8)
    if packet.encoding == "mono":
        times = packet.time_base + (words & 0xFFFFFFFF).astype(np.int64)
        return {"t": times, "x": words >> 32 & 0xFFFF, "y": words >> 48 & 0x7FFF, "p": words >> 63}
    low = (words >> 32).astype(np.int64)
    steps = np.diff(low, prepend=low[:1])
    wraps = np.cumsum((steps < -_HALF_PERIOD).astype(np.int64) - (steps > _HALF_PERIOD))
    return {
        "t": packet.time_base + 1000 * (low + (wraps << 31)),
        "x": words >> 17 & 0x7FFF,
        "y": words >> 2 & 0x7FFF,
        "p": words >> 1 & 1,
    }


@njit(cache=True, nogil=True)
def _decode_compressed(words, out):  # type: ignore[no-untyped-def]
    """Decode libcaer_cmp to t in µs after the packet's base, x, y, p: `(4, n)` int64; returns the number of events."""
    n, high, low, x, y, polarity = 0, np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for word in words:
        code, value = word >> 12, np.int64(word & 4095)
        if code == 0:
            high = value << 12
        elif code == 1:
            low = value
        elif code == 2:
            x = value & 2047
        elif code == 3:
            out[0, n], out[1, n], out[2, n], out[3, n] = high | low, x, value & 2047, value >> 11
            n += 1
        elif code == 4:
            y, polarity = value & 2047, value >> 11
        elif code == 5:
            for k in range(8):
                if value >> k & 1:
                    out[0, n], out[1, n], out[2, n], out[3, n] = high | low, x, y + k, polarity
                    n += 1
            y += 8
    return n
