"""Bags of ROS 1 (`.bag`) and ROS 2 (`.mcap`, `.db3`), read by the library `rosbags`, message by message.

The messages are those of ros_messages.py; other topics are skipped. Times are absolute in EventArray (ROS time), and those of
the sensor in EventPacket. Not read are messages that a ROS 2 recorder compressed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from evburst.data.errors import EventFileError, NoEventsError
from evburst.data.events import EVENT_DTYPE, PACKET_EVENTS, Events, SensorSize
from evburst.data.extras import require
from evburst.data.readers import evt_kernels as kernels
from evburst.data.readers import reader
from evburst.data.readers.columns import Unit, columns_to_events
from evburst.data.readers.evt import count_faults
from evburst.data.readers.options import DEFAULT_OPTIONS, ReadOptions
from evburst.data.readers.packets import PacketFile, library_errors, settle_size, split_packet
from evburst.data.readers.ros_messages import Array, Packet, decode_array, decode_packet, packet_columns

MAGIC_ROS1, MAGIC_MCAP, MAGIC_SQLITE = b"#ROSBAG V2.0", b"\x89MCAP0\r\n", b"SQLite format 3\0"
DECODERS = {
    "dvs_msgs/msg/EventArray": decode_array,
    "prophesee_event_msgs/msg/EventArray": decode_array,
    "event_camera_msgs/msg/EventPacket": decode_packet,
    "event_array_msgs/msg/EventArray": decode_packet,
}
ENCODINGS = ("evt3", "libcaer", "libcaer_cmp", "mono")


class BagFile(PacketFile):
    """The single topic of events in a bag; an EventStream."""

    def __init__(self, path: Path, sensor_size: SensorSize | None = None) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            self._ros1 = file.read(len(MAGIC_ROS1)) == MAGIC_ROS1
        self._reader = require("rosbags.rosbag1" if self._ros1 else "rosbags.rosbag2", "ros", f"{path}: this format").Reader
        with self._opened() as bag:
            self._topic, kind = self._find_topic(bag)
            self._decode = DECODERS[kind]
            first = next((one for one in self._messages_in(bag) if one.width and one.height), None)
        stated = f"{first.width}x{first.height}" if first else None
        self.sensor_size = settle_size(path, stated, sensor_size, self.packets)

    def packets(self) -> Iterator[Events]:
        """See EventStream.packets.

        Raises:
            EventFileError: a message is corrupt, or a packet has an encoding that is not read.
            NoEventsError: there is no event.
        """
        count, state = 0, kernels.new_state()
        for message in self._messages():
            for events in self._events(message, state, f"{self.path}: from event {count} on"):
                count += len(events)
                yield from split_packet(events)
        if count == 0:
            raise NoEventsError(f"{self.path}: topic {self._topic} is empty: no event")

    def _events(self, message: Array | Packet, state: Any, place: str) -> Iterator[Events]:
        """Yield the events of a message, at most PACKET_EVENTS at a time; `state` is that of an EVT3 decoder."""
        if isinstance(message, Array):
            yield columns_to_events(message.columns, place, self.faults, Unit("ns"))
        elif message.encoding != "evt3":
            yield columns_to_events(packet_columns(message), place, self.faults, Unit("ns"))
        else:
            words, start = np.frombuffer(message.data, "<u2", len(message.data) // 2), 0
            while start < len(words):
                events, counts = np.empty(PACKET_EVENTS, EVENT_DTYPE), kernels.new_counts()
                columns = [events[name] for name in "txyp"]
                start, n = (int(value) for value in kernels.decode_evt3(words, start, state, counts, *columns))
                count_faults("EVT3", counts, self.faults)
                yield events[:n]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the bag with the library, whose errors are converted."""
        if not self._ros1 and self.path.suffix == ".db3" and set("#?%") & set(str(self.path)):
            raise EventFileError(f"{self.path}: a database (.db3) whose path contains #, ? or % cannot be opened: rename it")
        with library_errors(f"{self.path}: not a complete bag"), self._reader(self.path) as bag:
            yield bag

    def _find_topic(self, bag: Any) -> tuple[str, str]:
        """Return the topic of the events and its type of messages; raises EventFileError unless there is exactly one."""
        topics: dict[str, str] = {connection.topic: connection.msgtype for connection in bag.connections}
        found = sorted(topic for topic, kind in topics.items() if kind in DECODERS)
        if not found:
            kinds = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(topics.items())[:10])
            raise EventFileError(f"{self.path}: no topic of EventArray or EventPacket; found {kinds or 'none'}")
        if len(found) > 1:
            several = f"events of several topics ({', '.join(found)})"
            out = "one.bag" if self._ros1 else "one"  # bags of ROS 2 are folders
            command = f"rosbags-convert --src {self.path} --dst {out} --include-topic {found[0]}"
            raise EventFileError(f"{self.path}: {several}: write one of them to a bag of its own: {command}")
        return found[0], topics[found[0]]

    def _messages(self) -> Iterator[Array | Packet]:
        """Open the bag and decode the messages of the topic."""
        with self._opened() as bag:
            yield from self._messages_in(bag)

    def _messages_in(self, bag: Any) -> Iterator[Array | Packet]:
        chosen = [connection for connection in bag.connections if connection.topic == self._topic]
        for number, (_, _, content) in enumerate(bag.messages(chosen)):
            place, message = f"{self.path}: {self._topic}: message {number}", self._decode(bytes(content), self._ros1)
            if message is None:
                raise EventFileError(f"{place} is corrupt, or has other fields")
            if isinstance(message, Packet) and message.encoding not in ENCODINGS:
                raise EventFileError(f"{place} has the encoding {message.encoding!r}; read are {', '.join(ENCODINGS)}")
            yield message


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
