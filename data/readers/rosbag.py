"""Bags of ROS 1 (`.bag`) and ROS 2 (`.mcap`, `.db3`) with arrays of events, read by the library `rosbags`, message by message.

The messages are dvs_msgs/EventArray and prophesee_event_msgs/EventArray, which have the same fields: a header, `height` and
`width` of the sensor (0: not stated), and events of uint16 x, uint16 y, time ts, bool polarity. In ROS 1, events follow each
other without gaps; in ROS 2 (CDR), each number lies at a multiple of its size. Times are absolute (ROS time).

Not read are event_camera_msgs/EventPacket, which hold the camera's own encoding, and messages that a ROS 2 recorder compressed
one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import Events, SensorSize
from evburst.data.extras import require
from evburst.data.readers import reader
from evburst.data.readers.columns import Unit, columns_to_events
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, library_errors, settle_size, split_packet

MAGIC_ROS1, MAGIC_MCAP, MAGIC_SQLITE = b"#ROSBAG V2.0", b"\x89MCAP0\r\n", b"SQLite format 3\0"
MESSAGES = ("dvs_msgs/msg/EventArray", "prophesee_event_msgs/msg/EventArray")
_ENCODED = "event_camera_msgs/msg/EventPacket"
_FIELDS = ("x", "y", "s", "ns", "p")
_TYPES = ["<u2", "<u2", "<u4", "<u4", "u1"]
_ROS1 = np.dtype({"names": _FIELDS, "formats": _TYPES, "offsets": [0, 2, 4, 8, 12], "itemsize": 13})
_ROS2 = np.dtype({"names": _FIELDS, "formats": _TYPES, "offsets": [0, 2, 6, 10, 14], "itemsize": 16})
"""An event; in ROS 2 only those after the first, which begin two bytes before a multiple of four (the first begins at one)."""


class Array(NamedTuple):
    """A message.

    Attributes:
        width, height: sensor size in px, or 0.
        events: `(n,)` x, y, s and ns (the two parts of the time), p.
    """

    width: int
    height: int
    events: NDArray[Any]


class BagFile(PacketFile):
    """The single topic of event arrays in a bag; an EventStream. Other topics are skipped."""

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            is_ros1 = file.read(len(MAGIC_ROS1)) == MAGIC_ROS1
        library = require("rosbags.rosbag1" if is_ros1 else "rosbags.rosbag2", "ros", f"{path}: this format")
        self._reader, self._decode = library.Reader, decode_ros1 if is_ros1 else decode_ros2
        with self._opened() as bag:
            self._topic = self._find_topic(bag)
        first = next((array for array in self._arrays() if len(array.events)), None)
        if first is None:
            raise self._no_events()
        stated = f"{first.width}x{first.height}" if first.width and first.height else None
        self.sensor_size = settle_size(path, stated, sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a message is corrupt.
        """
        count = 0
        for array in self._arrays():
            events, n = array.events, len(array.events)
            place = f"{self.path}: events {count} to {count + n - 1}"
            count += n
            columns = {name: events[name] for name in "xyp"}
            columns["t"] = events["s"].astype(np.int64) * 1_000_000_000 + events["ns"]
            yield from split_packet(columns_to_events(columns, place, self.faults, Unit("ns")))
        if count == 0:
            raise self._no_events()

    def _no_events(self) -> NoEventsError:
        return NoEventsError(f"{self.path}: topic {self._topic} is empty: no event")

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the bag with the library, whose errors are converted."""
        with library_errors(f"{self.path}: not a complete bag"), self._reader(self.path) as bag:
            yield bag

    def _find_topic(self, bag: Any) -> str:
        """Return the topic of the events; raises EventFileError unless there is exactly one."""
        topics: dict[str, str] = {connection.topic: connection.msgtype for connection in bag.connections}
        found = sorted(topic for topic, kind in topics.items() if kind in MESSAGES)
        if len(found) == 1:
            return found[0]
        if found:
            suffix = ".bag" if self._decode is decode_ros1 else ""  # bags of ROS 2 are folders
            one = f"rosbags-convert --src {self.path} --dst one{suffix} --include-topic {found[0]}"
            raise EventFileError(
                f"{self.path}: events of several topics ({', '.join(found)}): write one of them to a bag: {one}"
            )
        if _ENCODED in topics.values():
            raise EventFileError(
                f"{self.path}: events as event_camera_msgs/EventPacket, which are not read: record RAW instead"
            )
        kinds = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(topics.items())[:10])
        raise EventFileError(f"{self.path}: no topic of dvs_msgs/EventArray; found {kinds or 'none'}")

    def _arrays(self) -> Iterator[Array]:
        """Decode the messages of the topic."""
        with self._opened() as bag:
            chosen = [connection for connection in bag.connections if connection.topic == self._topic]
            for number, (_, _, message) in enumerate(bag.messages(chosen)):
                array = self._decode(bytes(message))
                if array is None:
                    raise EventFileError(f"{self.path}: {self._topic}: message {number} is corrupt, or has other fields")
                yield array


def decode_ros1(message: bytes) -> Array | None:
    """Decode an array of events of ROS 1; None if it has another form."""
    after_name = 16 + _number(message, 12)
    at = after_name + 12
    height, width, n = (_number(message, after_name + 4 * k) for k in range(3))
    if at + n * _ROS1.itemsize != len(message):
        return None
    return Array(width, height, np.frombuffer(message, _ROS1, n, at))


def decode_ros2(message: bytes) -> Array | None:
    """Decode an array of events of ROS 2, in CDR of little-endian numbers; None if it has another form."""
    body = message[4:]  # positions count from here
    after_name = -(-(12 + _number(body, 8)) // 4) * 4
    at = after_name + 12
    height, width, n = (_number(body, after_name + 4 * k) for k in range(3))
    size = at + (16 * n - 3 if n else 0)
    if message[:2] != b"\0\1" or not size <= len(body) <= size + 3:  # a message may be padded at its end
        return None
    events = np.empty(n, _ROS1)
    if n:
        events[0] = np.frombuffer(body, _ROS1, 1, at)[0]
        others = np.frombuffer(body + b"\0", _ROS2, n - 1, at + 14)
        for name in _FIELDS:
            events[name][1:] = others[name]
    return Array(width, height, events)


def _number(data: bytes, at: int) -> int:
    """The unsigned number of 32 bits at a position; 0 beyond the end."""
    return int.from_bytes(data[at : at + 4], "little")


@reader(
    "rosbag",
    recognise=lambda head, path: head.startswith((MAGIC_ROS1, MAGIC_MCAP)) or _is_database(head, path),
    suffixes=(".bag", ".mcap", ".db3"),
)
def open_rosbag(path: Path, sensor_size: SensorSize | None = None, options: ReadOptions = DEFAULT_OPTIONS) -> BagFile:
    """Open a bag; see BagFile."""
    return BagFile(path, sensor_size)


def _is_database(head: bytes, path: Path) -> bool:
    return head.startswith(MAGIC_SQLITE) and path.suffix.lower() == ".db3"
