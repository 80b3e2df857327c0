"""Live source that simulates events from the frames of a camera or a video."""

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
from evburst.data.simulation.sensor import LEAST_THRESHOLD, EventSimulator, SimulatorConfig, grey_of, log_intensity
from evburst.data.simulation.upsample import MotionUpsampler

LONGEST_GAP_US = 1_000_000
"""Longest time between two frames from which events are simulated."""

_SHORTEST_STEP_US = 10_000
_LAP_S = 6.0
"""Duration of one loop of the fake camera."""


class GreyFrame(NamedTuple):
    """A grey frame with its times.

    Attributes:
        grey: `(h, w)` uint8, of any size.
        t_us: time of exposure, on the grabber's clock.
        due_s: earliest time at which the frame was available, on time.perf_counter's clock.
        cut: whether another scene begins with it, because a video starts again.
    """

    grey: NDArray[np.uint8]
    t_us: int
    due_s: float
    cut: bool = False


class Grabber(Protocol):
    """A source of frames.

    Attributes:
        name: name shown to the user.
        kind: kind of the events, as in LiveSource.
        finite: whether it ends by itself.
        ahead: whether frames are available before their time (a file), so that their events can be paced by the clock.
    """

    name: str
    kind: str
    finite: bool
    ahead: bool

    def open(self) -> None:
        """Open the device; raise SourceError if that fails."""
        ...

    def read(self) -> GreyFrame | None:
        """Return the next frame, or None after POLL_S without one; raise EOFError at the end, SourceError on a failure."""
        ...

    def close(self) -> None:
        """Close the device; may be called twice."""
        ...


class FakeCamera:
    """A simulated camera for tests and demonstrations, which drives through the drawn street scene in a loop.

    Args:
        size: (W, H) px of its frames.
        frames_per_s: frame rate, Hz.
        dies_after: seconds until the camera fails, for each time it is opened; it does not fail once the list is used up.
    """

    finite, ahead, name, kind = False, False, "fake camera", "drawn"

    def __init__(self, size: SensorSize, frames_per_s: float = 30.0, dies_after: tuple[float, ...] = ()) -> None:
        self._step_us, self._lap = 1e6 / frames_per_s, max(round(_LAP_S * frames_per_s), 1)
        self._lives = list(dies_after)
        self._scene, self._drawn = StreetScene(size, 3), dict[int, NDArray[np.uint8]]()
        self._opened_s: float | None = None
        self._dies_s, self._frames = float("inf"), 0

    def open(self) -> None:
        """See Grabber."""
        self._opened_s = None

    def read(self) -> GreyFrame | None:
        """See Grabber."""
        if self._opened_s is None:
            self._opened_s, self._frames = time.perf_counter(), 0
            self._dies_s = self._opened_s + self._lives.pop(0) if self._lives else float("inf")
        t_us = round(self._frames * self._step_us)
        grey = self._draw(self._frames % self._lap)
        due_s = self._opened_s + t_us * 1e-6
        time.sleep(max(due_s - time.perf_counter(), 0))
        if time.perf_counter() >= self._dies_s:
            raise SourceError(f"{self.name}: was unplugged")
        # As with a real camera, frames that this machine was too slow to draw are skipped.
        self._frames = max(self._frames + 1, int((time.perf_counter() - self._opened_s) * 1e6 / self._step_us))
        return GreyFrame(grey, t_us, due_s)

    def _draw(self, number: int) -> NDArray[np.uint8]:
        """Return a frame of the loop; it is cached after the first loop because drawing is slower than the frame rate."""
        if number not in self._drawn:
            self._drawn[number] = grey_of(self._scene.render(round(number * self._step_us))).round().astype(np.uint8)
        return self._drawn[number]

    def close(self) -> None:
        """See Grabber."""


class PushedFrames:
    """A grabber whose frames are pushed by another thread (the page's camera); it buffers the newest two."""

    finite, ahead, kind = False, False, "simulated"

    def __init__(self, name: str) -> None:
        self.name = name
        self._frames: deque[GreyFrame] = deque(maxlen=2)
        self._arrived = Condition()

    def open(self) -> None:
        """See Grabber."""

    def push(self, grey: NDArray[np.uint8]) -> None:
        """Add a frame taken now; return at once. May be called from any thread."""
        now_s = time.perf_counter()
        with self._arrived:
            self._frames.append(GreyFrame(grey, round(1e6 * now_s), now_s))
            self._arrived.notify()

    def read(self) -> GreyFrame | None:
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
    """A LiveSource whose events are simulated from frames that are scaled and cropped to the sensor.

    Args:
        grabber: source of the frames.
        sensor_size: (W, H) px of the simulated sensor.
        config: properties of the simulated sensor.
        window_us: window length, by which a file is paced.
        upsample: interpolate frames along the motion.
        speed: playback speed of a file; 0.1 plays it ten times slower.

    Attributes:
        picture: newest frame at the sensor's size, `(H, W)` uint8; None before the first.
    """

    simulated = True

    def __init__(
        self,
        grabber: Grabber,
        sensor_size: SensorSize,
        config: SimulatorConfig,
        window_us: int,
        upsample: bool = True,
        speed: float = 1.0,
    ) -> None:
        self.kind = grabber.kind
        self.picture: NDArray[np.uint8] | None = None
        self.name, self.finite, self.sensor_size, self.faults = grabber.name, grabber.finite, sensor_size, Faults()
        self.grabber, self._config, self._window_us, self._speed = grabber, config, window_us, speed
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
        """Contrast threshold of ON events."""
        return self._config.threshold_on

    def set_contrast(self, threshold: float) -> None:
        """Set the ON threshold from the next frame on and scale the OFF threshold with it, which cannot fall below its least
        value. May be called from any thread."""
        scale = threshold / self._config.threshold_on
        off, mismatch = max(self._config.threshold_off * scale, LEAST_THRESHOLD), self._config.mismatch * scale
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
        cut = frame.cut or (self._last is not None and frame.t_us - self._last[1] > LONGEST_GAP_US)
        events = self._simulate(self.picture, frame.t_us, cut)
        if self._pacer is None:
            return Packet(events, frame.t_us, frame.due_s, cut=cut)
        self._pacer.give(events, frame.t_us)
        packet = Packet(NO_EVENTS, None, time.perf_counter()) if self._pacer.empty else self._pacer.next()
        return packet._replace(cut=cut)

    def hold(self) -> bool:
        """Let a video file stand still for POLL_S and return True; return False at once for a camera."""
        if self._pacer is None:
            return False
        self._pacer.hold()
        return True

    def close(self) -> None:
        """See LiveSource."""
        self.grabber.close()

    def _simulate(self, grey: NDArray[np.uint8], t_us: int, cut: bool) -> Events:
        """Simulate the events since the previous frame. The first frame, or one after a cut, restarts the sensor instead."""
        previous, previous_us = self._last or (grey, t_us - 1)
        if t_us <= previous_us:
            return NO_EVENTS
        is_first, self._last = self._last is None, (grey, t_us)
        if is_first or cut:
            self._sensor = self._new_sensor()
            return self._sensor.step(log_intensity(grey), t_us)
        if self._sensor.config is not self._config:
            self._sensor = self._new_sensor()
            self._sensor.step(log_intensity(previous), previous_us)
        max_inserted = (t_us - previous_us) // _SHORTEST_STEP_US - 1
        inserted = self._upsampler.between(previous, grey, max_inserted) if self._upsampler else []
        steps: list[NDArray[np.float32] | NDArray[np.uint8]] = [*inserted, grey]
        times = [previous_us + (t_us - previous_us) * (k + 1) // len(steps) for k in range(len(steps))]
        return np.concatenate([self._sensor.step(log_intensity(f), t) for f, t in zip(steps, times, strict=True)])

    def _new_sensor(self) -> EventSimulator:
        return EventSimulator(self.sensor_size, self._config, parallel=False)

    def _warm_up(self) -> None:
        """Compile the simulator's kernels before the run starts."""
        sensor = self._new_sensor()
        for t_us in (0, 1000):
            sensor.step(np.zeros((self.sensor_size.height, self.sensor_size.width), np.float32), t_us)


def fit(grey: NDArray[np.uint8], size: SensorSize) -> NDArray[np.uint8]:
    """Scale a picture to cover the sensor and crop its centre; returns `(H, W)` uint8."""
    height, width = grey.shape
    scale = max(size.width / width, size.height / height)
    if scale != 1:
        scaled = max(round(width * scale), size.width), max(round(height * scale), size.height)
        grey = cv2.resize(grey, scaled, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (grey.shape[0] - size.height) // 2, (grey.shape[1] - size.width) // 2
    return np.ascontiguousarray(grey[top : top + size.height, left : left + size.width])
