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
from tests.event_files import SAMPLE, SIZE, collect

pytest.importorskip("rosbags")
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

EPOCH_S = 1_700_000_000
KIND = "dvs_msgs/msg/EventArray"
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
    store.register(get_types_from_msg("std_msgs/Header header\nuint8[] events\n", "event_camera_msgs/msg/EventPacket"))
    return store


def message(events: Events, ros1: bool, frame: str = "cam", size: SensorSize | None = SIZE, kind: str = KIND) -> bytes:
    """An array of events, as the library serialises it."""
    store, width, height = types(ros1), *(size or (0, 0))
    of = store.types
    time = of["builtin_interfaces/msg/Time"]
    stamp = {"stamp": time(1, 2), "frame_id": frame} | ({"seq": 7} if ros1 else {})
    each = [
        of[kind.replace("Array", "")](int(x), int(y), time(EPOCH_S + int(t) // 10**6, int(t) % 10**6 * 1000), bool(p))
        for t, x, y, p in events.tolist()
    ]
    array = of[kind](of["std_msgs/msg/Header"](**stamp), height, width, each)
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


@pytest.mark.parametrize("kind", rosbag.MESSAGES)
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
    path = write(tmp_path, "bag", {"/packets": ("event_camera_msgs/msg/EventPacket", [bytes(20)])})
    with pytest.raises(EventFileError, match="event_camera_msgs/EventPacket, which are not read: record RAW"):
        open_events(path)
    path.unlink()
    with pytest.raises(EventFileError, match=r"no topic of dvs_msgs/EventArray; found (none|/else)"):
        open_events(write(tmp_path, "bag", {}))


@pytest.mark.parametrize("storage", ["bag", "mcap"])
def test_no_event(tmp_path: Path, storage: str) -> None:
    empty = message(SAMPLE[:0], storage == "bag")
    with pytest.raises(NoEventsError, match="topic /e is empty: no event"):
        open_events(write(tmp_path, storage, {"/e": (KIND, [empty, empty])}))


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


def test_messages_that_are_cut_anywhere_are_refused() -> None:
    for ros1, decode in ((True, rosbag.decode_ros1), (False, rosbag.decode_ros2)):
        whole = message(SAMPLE, ros1)
        assert decode(whole) is not None
        assert [decode(whole[:n]) for n in range(len(whole) - 3 * (not ros1))] == [None] * (len(whole) - 3 * (not ros1))
    padded = rosbag.decode_ros2(message(SAMPLE, False) + bytes(3))
    assert padded is not None
    assert len(padded.events) == len(SAMPLE)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_file_that_is_cut(tmp_path: Path, storage: str) -> None:
    messages = [message(np.concatenate([SAMPLE] * 40), storage in ("bag", "lz4"))] * 20
    path = write(tmp_path, storage, {"/e": (KIND, messages)})
    content = path.read_bytes()
    for share in (0.05, 0.5, 0.95):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(EventFileError):
            collect(open_events(path))
