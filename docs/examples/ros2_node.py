"""A ROS 2 node that detects objects in the events of a camera; an example that was tested beside stand-ins, never run in ROS.

    python ros2_node.py --ros-args -r events:=/event_camera/events -p weights:=street

Subscribes to `events` (event_camera_msgs/EventPacket, decoded by event_camera_py) and, where dvs_msgs is installed, to
`dvs_events` (dvs_msgs/EventArray); publishes `detections` (vision_msgs/Detection2DArray) for every window, stamped with its
end. Windows are cut on ROS's clock, which a reset of the camera does not change. Needs arrivals.py beside it.
"""

from __future__ import annotations

from importlib.util import find_spec
from threading import Thread
from typing import Any

import numpy as np
import rclpy
from arrivals import Arrivals
from builtin_interfaces.msg import Time
from event_camera_msgs.msg import EventPacket
from event_camera_py import Decoder
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

from evburst import Detector, EvburstError

_CLOCK_US = 1 << 32
"""Times of event_camera_py are 32-bit microseconds, which begin again after this."""
_RESET_US = 1_000_000
"""The sensor's clock was reset if it and ROS's differ by this much more or less than before."""


class DetectionNode(Node):
    """Receives events in ROS's thread, and detects and publishes in one of its own."""

    def __init__(self) -> None:
        super().__init__("evburst")
        weights = self.declare_parameter("weights", "street").value
        score = self.declare_parameter("score", 0.3).value
        self._detector = Detector(weights, score=score, track=self.declare_parameter("track", False).value)
        self._decoder, self._arrivals, self._thread = Decoder(), None, None
        self._frame_id, self._last_us, self._offset_us = "", 0, 0
        self._publisher = self.create_publisher(Detection2DArray, "detections", 10)
        self.create_subscription(EventPacket, "events", self.receive_packet, qos_profile_sensor_data)
        if find_spec("dvs_msgs"):
            from dvs_msgs.msg import EventArray

            self.create_subscription(EventArray, "dvs_events", self.receive_array, qos_profile_sensor_data)

    def receive_packet(self, message: Any) -> None:
        """Take the events of an EventPacket, whose times are on the sensor's clock."""
        self._decoder.decode(message)
        events = self._decoder.get_cd_events()
        if not len(events):
            return
        t = np.unwrap(np.append(self._last_us, events["t"].astype(np.int64)), period=_CLOCK_US)[1:]
        self._last_us = int(t[-1])
        self._put(message, {"t": t, "x": events["x"], "y": events["y"], "p": events["p"]})

    def receive_array(self, message: Any) -> None:
        """Take the events of an EventArray, whose times are ROS's."""
        if message.events:
            columns = zip(*((_microseconds(e.ts), e.x, e.y, e.polarity) for e in message.events), strict=True)
            self._put(message, dict(zip("txyp", map(np.array, columns), strict=True)))

    def _put(self, message: Any, events: dict[str, Any]) -> None:
        offset_us = _microseconds(message.header.stamp) - int(events["t"][0])
        if self._arrivals is None or abs(offset_us - self._offset_us) > _RESET_US:
            self._offset_us = offset_us
        if self._arrivals is None:  # the first message states the size of the sensor
            self._arrivals = Arrivals(message.width, message.height)
            self._frame_id = message.header.frame_id
            self._thread = Thread(target=self._detect)
            self._thread.start()
        self._arrivals.put({**events, "t": events["t"] + self._offset_us})

    def _detect(self) -> None:
        try:
            for result in self._detector.stream(self._arrivals):
                if not self.context.ok():  # after SIGINT or SIGTERM, rclpy publishes nothing
                    break
                self._publisher.publish(self._message(result))
        except EvburstError as error:
            self.get_logger().error(str(error))

    def _message(self, result: Any) -> Any:
        """The boxes of a window: centre and size in pixels, the class's name, the score, and the number of the track."""
        found, message = result.detections, Detection2DArray()
        seconds, rest_us = divmod(result.t1_us, 1_000_000)
        message.header.stamp, message.header.frame_id = Time(sec=seconds, nanosec=1000 * rest_us), self._frame_id
        numbers = found.track_ids if found.track_ids is not None else np.zeros(len(found), np.int64)
        rows = zip(found.boxes_xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), numbers.tolist(), strict=True)
        for (x0, y0, x1, y1), score, label, number in rows:
            one, guess = Detection2D(header=message.header, id=str(number) if number else ""), ObjectHypothesisWithPose()
            guess.hypothesis.class_id, guess.hypothesis.score = self._detector.classes[label], score
            one.results.append(guess)
            one.bbox.center.position.x, one.bbox.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
            one.bbox.size_x, one.bbox.size_y = x1 - x0, y1 - y0
            message.detections.append(one)
        return message

    def close(self) -> None:
        """End the thread; the last window is published if ROS still runs."""
        if self._arrivals is not None and self._thread is not None:
            self._arrivals.close()
            self._thread.join()


def _microseconds(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000 + int(stamp.nanosec) // 1000


if __name__ == "__main__":
    rclpy.init()
    node = DetectionNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):  # SIGINT, SIGTERM
        pass
    finally:
        node.close()
        rclpy.try_shutdown()
