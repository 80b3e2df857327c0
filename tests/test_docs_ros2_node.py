"""docs/examples/ros2_node.py beside stand-ins that have the fields of the published messages and, like rclpy, check types."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import ROOT, SAMPLE

from evburst import Detector
from evburst.data import readers
from evburst.data.events import EventArray

CD = np.dtype({"names": ["x", "y", "p", "t"], "formats": ["<u2", "<u2", "i1", "<i4"], "offsets": [0, 2, 4, 8], "itemsize": 12})
"""Events as event_camera_py returns them."""
STAMP_US = 1_700_000_000_000_000
EXAMPLE = str(ROOT / "docs" / "examples" / "ros2_node.py")


class Message:
    """A message whose fields keep their types, as generated ROS messages do."""

    FIELDS: ClassVar[dict[str, Callable[[], Any]]] = {}

    def __init__(self, **values: Any) -> None:
        for name, make in self.FIELDS.items():
            object.__setattr__(self, name, make())
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        assert type(value) is type(getattr(self, name)), f"{type(self).__name__}.{name}: {type(value).__name__}"
        object.__setattr__(self, name, value)


def message(name: str, **fields: Callable[[], Any]) -> type[Message]:
    return type(name, (Message,), {"FIELDS": fields})


Time = message("Time", sec=int, nanosec=int)
Header = message("Header", stamp=Time, frame_id=str)
Point = message("Point2D", x=float, y=float)
Pose = message("Pose2D", position=Point, theta=float)
Box = message("BoundingBox2D", center=Pose, size_x=float, size_y=float)
Hypothesis = message("ObjectHypothesis", class_id=str, score=float)
WithPose = message("ObjectHypothesisWithPose", hypothesis=Hypothesis)
Detection2D = message("Detection2D", header=Header, results=list, bbox=Box, id=str)
Detection2DArray = message("Detection2DArray", header=Header, detections=list)


class Decoder:
    """Stands for event_camera_py's decoder: the bytes of a packet are the events."""

    def decode(self, packet: Any) -> None:
        self._events = np.frombuffer(packet.events, CD)

    def get_cd_events(self) -> np.ndarray:
        return self._events


class Context:
    """Stands for rclpy's context, which SIGINT and SIGTERM end."""

    def __init__(self) -> None:
        self.ended = False

    def ok(self) -> bool:
        return not self.ended


class ExternalShutdownException(Exception):  # noqa: N818 rclpy's name
    """Raised by rclpy's spin after SIGTERM."""


class Node:
    """Stands for rclpy's node: keeps what is published, and lets the test call the callbacks."""

    def __init__(self, name: str) -> None:
        self.context = Context()
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.published: list[Any] = []
        self.errors: list[str] = []

    def declare_parameter(self, name: str, value: Any) -> Any:
        return SimpleNamespace(value=value)

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        assert (kind, topic) == (Detection2DArray, "detections")
        return SimpleNamespace(publish=self._publish)

    def _publish(self, sent: Any) -> None:
        if self.context.ended:
            raise RuntimeError("Failed to publish: publisher's context is invalid")  # rclpy's RCLError
        self.published.append(sent)

    def create_subscription(self, kind: type, topic: str, callback: Callable[[Any], None], qos: Any) -> None:
        self.callbacks[topic] = callback

    def get_logger(self) -> Any:
        return SimpleNamespace(error=self.errors.append)


@pytest.fixture
def rclpy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands for ROS's packages; returns that of rclpy."""
    modules: dict[str, dict[str, Any]] = {
        "rclpy": {"init": lambda: None, "try_shutdown": lambda: None},
        "rclpy.executors": {"ExternalShutdownException": ExternalShutdownException},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {"qos_profile_sensor_data": object()},
        "builtin_interfaces": {},
        "builtin_interfaces.msg": {"Time": Time},
        "event_camera_msgs": {},
        "event_camera_msgs.msg": {"EventPacket": object},
        "event_camera_py": {"Decoder": Decoder},
        "dvs_msgs": {"__spec__": object()},
        "dvs_msgs.msg": {"EventArray": object},
        "vision_msgs": {},
        "vision_msgs.msg": {
            "Detection2D": Detection2D, "Detection2DArray": Detection2DArray, "ObjectHypothesisWithPose": WithPose
        },
    }  # fmt: skip
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(ROOT / "docs" / "examples")
    return sys.modules["rclpy"]


@pytest.fixture
def node(rclpy: ModuleType) -> Any:
    """The example's node."""
    return runpy.run_path(EXAMPLE)["DetectionNode"]()


def events_of(seconds: float) -> EventArray:
    stream = readers.open_events(SAMPLE)
    events = next(stream.packets())
    return EventArray(events[events["t"] < 1e6 * seconds], stream.sensor_size)


def stamp(t_us: int) -> Any:
    return Time(sec=t_us // 1_000_000, nanosec=1000 * (t_us % 1_000_000))


def packet(events: Any, size: Any, shift_us: int, first_us: int) -> Any:
    """An EventPacket whose events are those given, on a 32-bit clock shifted by `shift_us`."""
    raw = np.zeros(len(events), CD)
    for name in ("x", "y", "p"):
        raw[name] = events[name]
    raw["t"] = (events["t"] + shift_us).astype(np.uint32).view(np.int32)
    header = Header(stamp=stamp(STAMP_US + int(events["t"][0]) - first_us if len(events) else STAMP_US), frame_id="camera")
    return SimpleNamespace(header=header, width=size.width, height=size.height, events=raw.tobytes())


def expected(array: EventArray, shift_us: int = 0) -> list[Any]:
    events = array.events.copy()
    events["t"] += shift_us
    return list(Detector("street", score=0.3).stream(EventArray(events, array.sensor_size)))


@pytest.mark.parametrize(
    "shifts_us",
    [(0, 0), ((1 << 31) - 100_000, (1 << 31) - 100_000), (5_000_000, 0), (3_000_000_000, 0)],
    ids=["plain", "the clock of the events begins again", "the camera is reset", "the camera is reset after half an hour"],
)
def test_packets_give_the_boxes_of_the_recording(node: Any, shifts_us: tuple[int, int]) -> None:
    array = events_of(0.25)
    first_us = int(array.events["t"][0])
    for k, part in enumerate(np.array_split(array.events, 9)):
        node.callbacks["events"](packet(part, array.sensor_size, shifts_us[k > 3], first_us))
        node.callbacks["events"](packet(part[:0], array.sensor_size, 0, first_us))
    node.close()
    results = expected(array, STAMP_US - first_us)
    assert node.errors == []
    assert sum(len(one.detections) for one in results) > 2
    for one, sent in zip(results, node.published, strict=True):
        assert sent.header.stamp.sec * 1_000_000 + sent.header.stamp.nanosec // 1000 == one.t1_us
        assert sent.header.frame_id == "camera"
        found = one.detections
        assert [d.results[0].hypothesis.class_id for d in sent.detections] == [("car", "pedestrian")[k] for k in found.labels]
        assert [d.results[0].hypothesis.score for d in sent.detections] == found.scores.tolist()
        boxes = [(d.bbox.center.position.x, d.bbox.center.position.y, d.bbox.size_x, d.bbox.size_y) for d in sent.detections]
        x0, y0, x1, y1 = found.boxes_xyxy.astype(np.float64).T
        np.testing.assert_allclose(np.array(boxes).reshape(-1, 4), np.c_[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])


def test_arrays_of_dvs_msgs_are_taken_too(node: Any) -> None:
    array = events_of(0.15)
    for part in np.array_split(array.events, 3):
        events = [
            SimpleNamespace(ts=stamp(STAMP_US + int(t)), x=int(x), y=int(y), polarity=bool(p)) for t, x, y, p in part.tolist()
        ]
        size = array.sensor_size
        header = Header(stamp=events[0].ts, frame_id="dvs")
        node.callbacks["dvs_events"](SimpleNamespace(header=header, width=size.width, height=size.height, events=events))
    node.close()
    assert node.errors == []
    results = expected(array, STAMP_US)
    assert len(results) == len(node.published) == 3
    assert [len(one.detections) for one in results] == [len(sent.detections) for sent in node.published]
    assert node.published[0].header.stamp.sec == results[0].t1_us // 1_000_000


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ExternalShutdownException])
def test_signals_end_the_node_without_an_error(rclpy: ModuleType, raised: type[BaseException]) -> None:
    """At both, rclpy has ended the context, so that nothing can be published any more, and then raises in `spin`."""
    nodes = []

    def spin(node: Any) -> None:
        nodes.append(node)
        array = events_of(0.12)
        node.callbacks["events"](packet(array.events, array.sensor_size, 0, int(array.events["t"][0])))
        node.context.ended = True
        raise raised

    rclpy.spin = spin  # type: ignore[attr-defined]
    runpy.run_path(EXAMPLE, run_name="__main__")
    assert not nodes[0]._thread.is_alive()
    assert nodes[0].errors == []
