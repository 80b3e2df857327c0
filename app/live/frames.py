"""Video as a source: frames from a grabber, made into events by the simulator."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from threading import Condition
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.app.live.sources import NO_EVENTS, POLL_S, Pacer, Packet
from evburst.data.errors import SourceError
from evburst.data.events import Events, Faults, SensorSize
from evburst.data.simulation.scenes.street import StreetScene
from evburst.data.simulation.sensor import EventSimulator, SimulatorConfig, grey_of, log_intensity
from evburst.data.simulation.upsample import MotionUpsampler

LONGEST_GAP_US = 1_000_000
"""Pictures further apart than this make no events."""

_SHORTEST_STEP_US = 10_000


class Frame(NamedTuple):
    """One picture.

    Attributes:
        grey: `(h, w)` uint8, of any size.
        t_us: when it was taken.
        due_s: when it could be had, on time.perf_counter's clock.
    """

    grey: NDArray[np.uint8]
    t_us: int
    due_s: float


class Grabber(Protocol):
    """Where frames come from.

    Attributes:
        name: for people.
        kind: of the events, as in LiveSource.
        finite: whether it ends by itself.
        ahead: frames are known before their time (a file), so that events can be handed out when they would have happened.
    """

    name: str
    kind: str
    finite: bool
    ahead: bool

    def open(self) -> None:
        """Get hold of the device; SourceError where there is none."""
        ...

    def read(self) -> Frame | None:
        """The next frame; None where none came within POLL_S. EOFError: the end. SourceError: the device has gone."""
        ...

    def close(self) -> None:
        """Let go of the device; may be called twice."""
        ...


class FakeCamera:
    """The shipped camera without a camera: drives through this project's drawn street, lap after lap.

    Args:
        size: (W, H) px of its pictures.
        frames_per_s: its rate.
        dies_after: how many seconds it lives each time it has been opened; without end once the list is used up.
        lap_s: length of one drive.
    """

    finite, ahead, name, kind = False, False, "fake camera", "drawn"

    def __init__(
        self, size: SensorSize, frames_per_s: float = 30.0, dies_after: tuple[float, ...] = (), lap_s: float = 6.0
    ) -> None:
        self._size, self._step_us, self._lap = size, 1e6 / frames_per_s, max(round(lap_s * frames_per_s), 1)
        self._lives = list(dies_after)
        self._scene, self._drawn = StreetScene(size, 3), dict[int, NDArray[np.uint8]]()
        self._opened_s: float | None = None
        self._dies_s, self._frames = float("inf"), 0

    def open(self) -> None:
        """See Grabber."""
        self._opened_s = None

    def read(self) -> Frame | None:
        """See Grabber."""
        if self._opened_s is None:
            self._opened_s, self._frames = time.perf_counter(), 0
            self._dies_s = self._opened_s + self._lives.pop(0) if self._lives else float("inf")
        t_us = round(self._frames * self._step_us)
        grey = self._picture(self._frames % self._lap)
        due_s = self._opened_s + t_us * 1e-6
        time.sleep(max(due_s - time.perf_counter(), 0))
        if time.perf_counter() >= self._dies_s:
            raise SourceError(f"{self.name}: has been unplugged")
        # Pictures that this machine was too slow to draw are not made up for, as with a camera.
        self._frames = max(self._frames + 1, int((time.perf_counter() - self._opened_s) * 1e6 / self._step_us))
        return Frame(grey, t_us, due_s)

    def _picture(self, number: int) -> NDArray[np.uint8]:
        """Of a lap, drawn in the first one and kept: drawing takes longer than a camera's picture."""
        if number not in self._drawn:
            self._drawn[number] = grey_of(self._scene.render(round(number * self._step_us))).round().astype(np.uint8)
        return self._drawn[number]

    def close(self) -> None:
        """See Grabber."""


class PushedFrames:
    """Frames that somebody else brings (the page's own camera); the newest two wait, older ones are dropped."""

    finite, ahead, kind = False, False, "simulated"

    def __init__(self, name: str) -> None:
        self.name = name
        self._frames: deque[Frame] = deque(maxlen=2)
        self._arrived = Condition()

    def open(self) -> None:
        """See Grabber."""

    def push(self, grey: NDArray[np.uint8]) -> None:
        """Take a picture of now; returns at once, and may be called from any thread."""
        now_s = time.perf_counter()
        with self._arrived:
            self._frames.append(Frame(grey, round(1e6 * now_s), now_s))
            self._arrived.notify()

    def read(self) -> Frame | None:
        """See Grabber."""
        with self._arrived:
            if not self._frames:
                self._arrived.wait(POLL_S)
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        """See Grabber."""
        with self._arrived:
            self._frames.clear()


class FrameSource:
    """A LiveSource whose events are simulated from frames, scaled to cover the sensor and cut to its size.

    Args:
        grabber: where the frames come from.
        sensor_size: (W, H) px of the simulated sensor.
        config: its properties.
        window_us: length of the windows that are wanted.
        upsample: put frames between frames, along the motion.
        seed: of the simulation.
        speed: of a file's clock; 0.1 plays it ten times slower.

    Attributes:
        picture: the newest frame as the sensor sees it, `(H, W)` uint8; None before the first.
    """

    simulated = True

    def __init__(
        self,
        grabber: Grabber,
        sensor_size: SensorSize,
        config: SimulatorConfig,
        window_us: int,
        upsample: bool = True,
        seed: int = 0,
        speed: float = 1.0,
    ) -> None:
        self.kind = grabber.kind
        self.picture: NDArray[np.uint8] | None = None
        self.name, self.finite, self.sensor_size, self.faults = grabber.name, grabber.finite, sensor_size, Faults()
        self.grabber, self._config, self._window_us, self._seed, self._speed = grabber, config, window_us, seed, speed
        self._upsampler = MotionUpsampler() if upsample else None
        self._sensor = self._new_sensor()
        self._last: tuple[NDArray[np.uint8], int] | None = None
        self._pacer: Pacer | None = None
        self._warm_up()

    @property
    def behind_s(self) -> float:
        """See LiveSource."""
        return self._pacer.behind_s if self._pacer else 0.0

    @property
    def contrast(self) -> float:
        """The present threshold of ON events."""
        return self._config.threshold_on

    def set_contrast(self, threshold: float) -> None:
        """Another contrast threshold from the next frame on, ON and OFF in their present proportion; from any thread."""
        scale = threshold / self._config.threshold_on
        off, mismatch = self._config.threshold_off * scale, self._config.mismatch * scale
        self._config = replace(self._config, threshold_on=threshold, threshold_off=off, mismatch=mismatch)

    def open(self) -> None:
        """See LiveSource."""
        self.grabber.open()
        self._sensor, self._last = self._new_sensor(), None
        self._pacer = Pacer(self._window_us, self._speed) if self.grabber.ahead else None

    def read(self) -> Packet | None:
        """See LiveSource."""
        if self._pacer is not None and not self._pacer.empty:
            return self._pacer.next()
        try:
            frame = self.grabber.read()
        except EOFError:
            return None
        if frame is None:
            return Packet(NO_EVENTS, None, time.perf_counter())
        self.picture = fit(frame.grey, self.sensor_size)
        events = self._simulate(self.picture, frame.t_us)
        if self._pacer is None:
            return Packet(events, frame.t_us, frame.due_s)
        self._pacer.give(events, frame.t_us)
        return Packet(NO_EVENTS, None, time.perf_counter()) if self._pacer.empty else self._pacer.next()

    def close(self) -> None:
        """See LiveSource."""
        self.grabber.close()

    def _simulate(self, grey: NDArray[np.uint8], t_us: int) -> Events:
        """Events since the frame before; none for the first frame, or after a gap, after which the sensor starts again."""
        before, before_us = self._last or (grey, t_us - 2 * LONGEST_GAP_US)
        if t_us <= before_us:
            return NO_EVENTS
        self._last = grey, t_us
        if t_us - before_us > LONGEST_GAP_US:
            self._sensor = self._new_sensor()
            return self._sensor.step(log_intensity(grey), t_us)
        if self._sensor.config is not self._config:
            self._sensor = self._new_sensor()
            self._sensor.step(log_intensity(before), before_us)
        most = (t_us - before_us) // _SHORTEST_STEP_US - 1
        between = self._upsampler.between(before, grey, most) if self._upsampler else []
        steps: list[NDArray[np.float32] | NDArray[np.uint8]] = [*between, grey]
        times = [before_us + (t_us - before_us) * (k + 1) // len(steps) for k in range(len(steps))]
        return np.concatenate([self._sensor.step(log_intensity(f), t) for f, t in zip(steps, times, strict=True)])

    def _new_sensor(self) -> EventSimulator:
        return EventSimulator(self.sensor_size, self._config, self._seed, parallel=False)

    def _warm_up(self) -> None:
        """Compile the kernels before the clock runs."""
        sensor = self._new_sensor()
        for t_us in (0, 1000):
            sensor.step(np.zeros((self.sensor_size.height, self.sensor_size.width), np.float32), t_us)


def fit(grey: NDArray[np.uint8], size: SensorSize) -> NDArray[np.uint8]:
    """A picture scaled so that it covers the sensor, and its middle cut out: `(H, W)` uint8."""
    height, width = grey.shape
    scale = max(size.width / width, size.height / height)
    if scale != 1:
        scaled = max(round(width * scale), size.width), max(round(height * scale), size.height)
        grey = cv2.resize(grey, scaled, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (grey.shape[0] - size.height) // 2, (grey.shape[1] - size.width) // 2
    return np.ascontiguousarray(grey[top : top + size.height, left : left + size.width])
