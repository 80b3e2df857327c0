"""Frames through OpenCV: of a webcam, a video stream, or a video file."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.app.live.addresses import is_address, masked
from evburst.app.live.frames import LONGEST_GAP_US, Frame
from evburst.data.errors import SourceError

_HIGHEST_RATE, _ASSUMED_RATE = 1000, 25
_STREAM_TIMEOUTS = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000]


class CameraGrabber:
    """A webcam or a video stream, through OpenCV.

    Args:
        place: number of a webcam, its device file (/dev/video1), or the address of a stream (rtsp://...), which is shown masked.
    """

    finite, ahead, kind = False, False, "simulated"

    def __init__(self, place: int | str) -> None:
        self.name = f"camera {place}" if isinstance(place, int) else masked(place)
        self._place = place
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        """See Grabber."""
        _silence_opencv()
        if isinstance(self._place, str) and is_address(self._place):
            capture = cv2.VideoCapture(self._place, cv2.CAP_FFMPEG, _STREAM_TIMEOUTS)
            hint = "does not answer, or OpenCV cannot read it; are address, user and password right?"
        else:
            capture = cv2.VideoCapture(self._place)
            hint = "is it plugged in, and free? (--camera 0 is the first)"
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{self.name}: cannot be opened; {hint}")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture = capture

    def read(self) -> Frame | None:
        """See Grabber."""
        if self._capture is None:
            raise SourceError(f"{self.name}: is not open")
        good, picture = self._capture.read()
        if not good:
            raise SourceError(f"{self.name}: gives no more pictures")
        now_s = time.perf_counter()
        return Frame(_grey(picture), round(1e6 * now_s), now_s)

    def close(self) -> None:
        """See Grabber."""
        if self._capture is not None:
            self._capture.release()


class VideoGrabber:
    """A video file at its own pace.

    Args:
        path: the file.
        loop: begin again at its end.

    Attributes:
        note: what was assumed of the file, to be said; None: nothing.

    Raises:
        SourceError: no such file, not a video, or one whose pictures make no events: one picture, or more than a second apart.
    """

    ahead, kind = True, "simulated"

    def __init__(self, path: Path, loop: bool = False) -> None:
        self.name, self.finite, self._path = path.name, not loop, path
        self.note: str | None = None
        self._capture = cv2.VideoCapture()
        self._step_us, self._frames, self._t_us, self._lap_us = 0.0, 0, 0, 0
        self._check()

    def open(self) -> None:
        """See Grabber."""
        if not self._path.exists():
            raise SourceError(f"{self._path}: no such file")
        if not self._path.is_file():
            raise SourceError(f"{self._path}: neither a video file nor a camera")
        _silence_opencv()
        if not self._capture.open(str(self._path)):
            raise SourceError(f"{self._path}: not a video that OpenCV can read")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate <= _HIGHEST_RATE:  # also NaN
            self.note = (
                f"{self.name}: says {rate:g} frames per second; its frames' own times are used, or {_ASSUMED_RATE} a second"
            )
        self._step_us = 1e6 / (rate if 0 < rate <= _HIGHEST_RATE else _ASSUMED_RATE)
        self._frames, self._t_us, self._lap_us = 0, 0, 0

    def read(self) -> Frame | None:
        """See Grabber."""
        good, picture = self._capture.read()
        if not good and not self.finite and self._frames:
            self._lap_us, self._frames = round(self._t_us + self._step_us), 0
            self._capture.open(str(self._path))
            good, picture = self._capture.read()
        if not good:
            raise EOFError
        self._t_us = self._lap_us + self._time_us()
        self._frames += 1
        return Frame(_grey(picture), self._t_us, 0.0)

    def close(self) -> None:
        """See Grabber."""
        self._capture.release()

    def _time_us(self) -> int:
        """Of the frame just read, since the first: the file's own, where it has one that moves on (its rate may vary)."""
        if not self._frames:
            return 0
        before_us, own_us = self._t_us - self._lap_us, 1000 * self._capture.get(cv2.CAP_PROP_POS_MSEC)
        return round(own_us if before_us < own_us < float("inf") else before_us + self._step_us)

    def _check(self) -> None:
        self.open()
        try:
            first, second = self.read(), self._second()
            if first is None or second is None:
                raise SourceError(f"{self._path}: holds one picture; events come of what changes between pictures")
            apart_s = (second.t_us - first.t_us) * 1e-6
            if apart_s > LONGEST_GAP_US * 1e-6:
                raise SourceError(
                    f"{self._path}: its pictures are {apart_s:.3g} s apart, too far to simulate events between them "
                    f"(at most {LONGEST_GAP_US * 1e-6:g} s); play it faster, e.g. ffmpeg -i {self.name} -vf setpts=PTS/{apart_s * 25:.0f}"
                )
        except EOFError:
            raise SourceError(f"{self._path}: holds no picture that OpenCV can read") from None
        finally:
            self.close()

    def _second(self) -> Frame | None:
        try:
            good, picture = self._capture.read()
            return Frame(_grey(picture), self._time_us(), 0.0) if good else None
        finally:
            self._frames = 0


def _silence_opencv() -> None:
    """What it prints where a device or file cannot be opened, our errors say in one line."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if picture.ndim == 2:
        return picture
    grey: NDArray[np.uint8] = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return grey
