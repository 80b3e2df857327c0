"""Bags of ROS, written by the library that reads them: both versions, every storage; topics, sizes and corrupt messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evburst.data.errors import EventFileError, NoEventsError, SensorSizeError
from evburst.data.events import Events, SensorSize
from evburst.data.readers import open_events, rosbag
from evburst.data.readers.ros_messages import Packet, decode_array, decode_packet, packet_columns
from tests.event_files import SAMPLE, SIZE, collect, encode_evt3, encode_mono, rows

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

EPOCH_S = 1_700_000_000
KIND = "dvs_msgs/msg/EventArray"
ARRAYS = (KIND, "prophesee_event_msgs/msg/EventArray")
PACKET = "event_camera_msgs/msg/EventPacket"
PACKETS = (PACKET, "event_array_msgs/msg/EventArray")
STORAGES = ["bag", "lz4", "mcap", "db3"]
Topics = dict[str, tuple[str, Sequence[bytes]]]


@cache
def types(ros1: bool) -> Any:
    """The message types, as their packages define them."""
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)
    time = "time" if ros1 else "builtin_interfaces/Time"
    for package in ("dvs_msgs", "prophesee_event_msgs"):
        event = f"uint16 x\nuint16 y\n{time} ts\nbool polarity\n"
        store.register(get_types_from_msg(event, f"{package}/msg/Event"))
        array = f"std_msgs/Header header\nuint32 height\nuint32 width\n{package}/Event[] events\n"
        store.register(get_types_from_msg(array, f"{package}/msg/EventArray"))
    packet = "std_msgs/Header header\nuint32 height\nuint32 width\nuint64 seq\nuint64 time_base\nstring encoding\n"
    for kind in PACKETS:
        store.register(get_types_from_msg(f"{packet}bool is_bigendian\nuint8[] events\n", kind))
    return store


def header(ros1: bool, frame: str) -> Any:
    """A header with a frame of this name."""
    of = types(ros1).types
    stamp = {"stamp": of["builtin_interfaces/msg/Time"](1, 2), "frame_id": frame} | ({"seq": 7} if ros1 else {})
    return of["std_msgs/msg/Header"](**stamp)


def packet(encoding: str, data: bytes, ros1: bool, base: int = 0, big: bool = False, kind: str = PACKET) -> bytes:
    """An EventPacket, as the library serialises it."""
    store, content = types(ros1), np.frombuffer(data, np.uint8)
    message = store.types[kind](header(ros1, "cam"), SIZE.height, SIZE.width, 3, base, encoding, big, content)
    return bytes((store.serialize_ros1 if ros1 else store.serialize_cdr)(message, kind))


def message(events: Events, ros1: bool, frame: str = "cam", size: SensorSize | None = SIZE, kind: str = KIND) -> bytes:
    """An array of events, as the library serialises it."""
    store, width, height = types(ros1), *(size or (0, 0))
    of = store.types
    time = of["builtin_interfaces/msg/Time"]
    each = [
        of[kind.replace("Array", "")](int(x), int(y), time(EPOCH_S + int(t) // 10**6, int(t) % 10**6 * 1000), bool(p))
        for t, x, y, p in events.tolist()
    ]
    array = of[kind](header(ros1, frame), height, width, each)
    return bytes((store.serialize_ros1 if ros1 else store.serialize_cdr)(array, kind))


def write(folder: Path, storage: str, topics: Topics) -> Path:
    """A bag with messages of several topics in turn, and one topic more; returns the file."""
    ros1 = storage in ("bag", "lz4")
    path = folder / ("a.bag" if ros1 else "recorded")
    if ros1:
        writer: Any = rosbag1.Writer(path)
        if storage == "lz4":
            writer.set_compression(rosbag1.Writer.CompressionFormat.LZ4)
    else:
        plugin = rosbag2.StoragePlugin.MCAP if storage == "mcap" else rosbag2.StoragePlugin.SQLITE3
        writer = rosbag2.Writer(path, version=9, storage_plugin=plugin)
    with writer:
        known = {topic: writer.add_connection(topic, kind, typestore=types(ros1)) for topic, (kind, _) in topics.items()}
        known["/else"] = writer.add_connection("/else", "std_msgs/msg/Header", typestore=types(ros1))
        count = max((len(messages) for _, messages in topics.values()), default=0)
        for k in range(count):
            writer.write(known["/else"], k, bytes(16))
            for topic, (_, messages) in topics.items():
                if k < len(messages):
                    writer.write(known[topic], k, messages[k])
    return path if ros1 else next(path.glob(f"*.{storage}"))


def absolute(events: Events) -> Events:
    """The events in ROS time."""
    moved = events.copy()
    moved["t"] += EPOCH_S * 10**6
    return moved


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("storage", STORAGES)
def test_every_storage(tmp_path: Path, storage: str, kind: str) -> None:
    """Messages of none to five events, whose headers have other lengths."""
    ros1 = storage in ("bag", "lz4")
    parts = [SAMPLE[:0], SAMPLE[:1], SAMPLE[1:3], SAMPLE[3:], SAMPLE[:0]]
    messages = [message(part, ros1, k * "c", kind=kind) for k, part in enumerate(parts)]
    stream = open_events(write(tmp_path, storage, {"/dvs/events": (kind, messages)}))
    assert stream.sensor_size == SIZE
    assert [len(packet) for packet in stream.packets()] == [1, 2, 2]
    assert collect(stream).tolist() == absolute(SAMPLE).tolist()


@pytest.mark.parametrize("storage", STORAGES)
def test_the_size_may_be_missing(tmp_path: Path, storage: str) -> None:
    path = write(tmp_path, storage, {"/e": (KIND, [message(SAMPLE, storage in ("bag", "lz4"), size=None)])})
    with pytest.raises(SensorSizeError, match="pass --sensor-size 32x24"):
        open_events(path)
    assert open_events(path, SensorSize(40, 30)).sensor_size == SensorSize(40, 30)


def test_topics(tmp_path: Path) -> None:
    one = [message(SAMPLE, True)]
    path = write(tmp_path, "bag", {"/left": (KIND, one), "/right": (KIND, one)})
    with pytest.raises(
        EventFileError, match=r"several topics \(/left, /right\).*rosbags-convert --src .*--include-topic /left"
    ):
        open_events(path)
    path.unlink()
    with pytest.raises(EventFileError, match=r"no topic of EventArray or EventPacket; found (none|/else)"):
        open_events(write(tmp_path, "bag", {}))


@pytest.mark.parametrize("storage", ["bag", "mcap"])
def test_no_event(tmp_path: Path, storage: str) -> None:
    empty = message(SAMPLE[:0], storage == "bag")
    with pytest.raises(NoEventsError, match="topic /e is empty: no event"):
        collect(open_events(write(tmp_path, storage, {"/e": (KIND, [empty, empty])})))


@pytest.mark.parametrize("storage", ["bag", "mcap"])
@pytest.mark.parametrize(
    "change",
    [lambda m: m[:-1], lambda m: m + bytes(9), lambda m: m[:20], lambda m: m[:4] + bytes([255] * 12) + m[16:]],
    ids=["cut", "longer", "header", "name"],
)
def test_corrupt_messages_are_named(tmp_path: Path, storage: str, change: Callable[[bytes], bytes]) -> None:
    good = message(SAMPLE, storage == "bag")
    path = write(tmp_path, storage, {"/e": (KIND, [good, change(good)])})
    with pytest.raises(EventFileError, match="/e: message 1 is corrupt, or has other fields"):
        collect(open_events(path))


def encode_libcaer(events: Events, base_ns: int) -> bytes:
    """Packets of the encoding "libcaer"."""
    t, x, y, p = (events[name].astype(np.uint64) for name in "txyp")
    return (1 | p << 1 | y << 2 | x << 17 | (t - base_ns // 1000) % 2**31 << 32).astype("<u8").tobytes()


def encode_compressed(events: Events, base_us: int) -> bytes:
    """Packets of the encoding "libcaer_cmp": every second event as a run of one."""
    words = []
    for k, (t, x, y, p) in enumerate(events.tolist()):
        time = t - base_us
        words += [time >> 12, 1 << 12 | time & 4095, 2 << 12 | x]
        words += [4 << 12 | p << 11 | y - 3, 5 << 12 | 1 << 3] if k % 2 and y > 2 else [3 << 12 | p << 11 | y]
    return np.array(words, "<u2").tobytes()


@pytest.mark.parametrize("kind", PACKETS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("encoding", rosbag.ENCODINGS)
def test_packets_in_every_encoding(tmp_path: Path, encoding: str, storage: str, kind: str) -> None:
    ros1, base = storage in ("bag", "lz4"), 1_000_000
    if encoding == "evt3":  # the second message begins in the middle of an event's words
        words = encode_evt3(SAMPLE)
        data = [words[:14], b"", words[14:]]
    elif encoding == "libcaer_cmp":
        base = 700
        data = [encode_compressed(part, base) for part in (SAMPLE[:2], SAMPLE[:0], SAMPLE[2:])]
    else:
        encode = encode_mono if encoding == "mono" else encode_libcaer
        data = [encode(part, base) for part in (SAMPLE[:2], SAMPLE[:0], SAMPLE[2:])]
    stream = open_events(write(tmp_path, storage, {"/e": (kind, [packet(encoding, d, ros1, base, kind=kind) for d in data])}))
    assert stream.sensor_size == SIZE
    assert collect(stream).tolist() == SAMPLE.tolist()


def test_times_of_libcaer_wrap_within_a_packet() -> None:
    late = rows((2**31 - 5, 1, 2, 1), (2**31 + 3, 3, 4, 0), (2**31 + 3, 5, 6, 0))
    columns = packet_columns(Packet(9, 9, "libcaer", 4000, encode_libcaer(late, 0)))
    assert columns["t"].tolist() == (1000 * late["t"] + 4000).tolist()


def test_times_of_libcaer_that_fall_a_little_are_no_wrap() -> None:
    mixed = rows(*((2**31 + t, 3, 4, 1) for t in (-10, -9, -11, 1, -1, 2)))
    columns = packet_columns(Packet(9, 9, "libcaer", 4000, encode_libcaer(mixed, 0)))
    assert columns["t"].tolist() == (1000 * mixed["t"] + 4000).tolist()


@pytest.mark.parametrize(("encoding", "base"), [("mono", 2**64 - 1), ("libcaer", 2**62), ("libcaer_cmp", 2**60)])
def test_a_base_that_is_no_time_is_corrupt(tmp_path: Path, encoding: str, base: int) -> None:
    path = write(tmp_path, "bag", {"/e": (PACKETS[0], [packet(encoding, bytes(8), True, base, kind=PACKETS[0])])})
    with pytest.raises(EventFileError, match="message 0 is corrupt"):
        collect(open_events(path))


@pytest.mark.parametrize("name", ["a#b.db3", "a?b.db3", "a%20b.db3"])
def test_a_database_with_a_name_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, "db3", {"/e": (KIND, [message(SAMPLE, False)])})
    renamed = path.rename(path.with_name(name))
    with pytest.raises(EventFileError, match=r"contains #, . or % cannot be opened: rename it"):
        collect(open_events(renamed))


def test_runs_of_libcaer() -> None:
    """Runs follow each other, time stays, x stays."""
    words = [0 << 12 | 1, 1 << 12 | 5, 2 << 12 | 7, 4 << 12 | 1 << 11 | 20, 5 << 12 | 0b10000001, 5 << 12 | 0b10, 3 << 12 | 9]
    columns = packet_columns(Packet(9, 9, "libcaer_cmp", 100, np.array(words, "<u2").tobytes()))
    assert columns["t"].tolist() == [1000 * (4096 + 5 + 100)] * 4
    assert columns["x"].tolist() == [7] * 4
    assert columns["y"].tolist() == [20, 27, 29, 9]
    assert columns["p"].tolist() == [1, 1, 1, 0]


def test_packets_that_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, "bag", {"/e": (PACKET, [packet("trigger", bytes(8), True)])})
    with pytest.raises(EventFileError, match="/e: message 0 has the encoding 'trigger'; read are evt3, libcaer"):
        open_events(path)
    path.unlink()
    with pytest.raises(EventFileError, match="/e: message 0 is corrupt, or has other fields"):
        open_events(write(tmp_path, "bag", {"/e": (PACKET, [packet("mono", bytes(8), True, big=True)])}))


@pytest.mark.parametrize("ros1", [True, False])
def test_messages_that_are_cut_anywhere_are_refused(ros1: bool) -> None:
    for decode, whole in ((decode_array, message(SAMPLE, ros1)), (decode_packet, packet("mono", bytes(40), ros1))):
        assert decode(whole, ros1) is not None
        length = len(whole) - 3 * (not ros1)
        assert [decode(whole[:n], ros1) for n in range(length)] == [None] * length
    padded = decode_array(message(SAMPLE, False) + bytes(3), False)
    assert padded is not None
    assert len(padded.columns["t"]) == len(SAMPLE)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_file_that_is_cut(tmp_path: Path, storage: str) -> None:
    messages = [message(np.concatenate([SAMPLE] * 40), storage in ("bag", "lz4"))] * 20
    path = write(tmp_path, storage, {"/e": (KIND, messages)})
    content = path.read_bytes()
    for share in (0.05, 0.5, 0.95):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(EventFileError):
            collect(open_events(path))
