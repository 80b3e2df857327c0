"""Frame grabbers for webcams, video streams and video files, through OpenCV."""

from __future__ import annotations

import os
import time
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.app.live.addresses import is_address, masked
from evburst.app.live.frames import LONGEST_GAP_US, GreyFrame
from evburst.data.errors import SourceError

_MAX_FPS, _DEFAULT_FPS = 1000, 25
_SILENT, _FFMPEG_QUIET = 0, "-8"  # log levels
_STREAM_TIMEOUTS = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 5000, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 5000]


class CameraGrabber:
    """A webcam or a video stream, read through OpenCV.

    Args:
        device: number of a webcam, its device file (/dev/video1), or the address of a stream (rtsp://...).
    """

    finite, ahead, kind = False, False, "simulated"

    def __init__(self, device: int | str) -> None:
        self.name = f"camera {device}" if isinstance(device, int) else masked(device)
        self._device = device
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        """See Grabber."""
        _silence_opencv()
        if isinstance(self._device, str) and is_address(self._device):
            capture = cv2.VideoCapture(self._device, cv2.CAP_FFMPEG, _STREAM_TIMEOUTS)
            hint = "the server does not answer or OpenCV cannot read the stream; check address, user and password"
        else:
            capture = cv2.VideoCapture(self._device)
            hint = "is it plugged in and not in use by another program? (--camera 0 is the first camera)"
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{self.name}: cannot be opened; {hint}")
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._capture = capture

    def read(self) -> GreyFrame | None:
        """See Grabber."""
        if self._capture is None:
            raise SourceError(f"{self.name}: is not open")
        succeeded, picture = self._capture.read()
        if not succeeded:
            raise SourceError(f"{self.name}: delivers no more pictures")
        now_s = time.perf_counter()
        return GreyFrame(_grey(picture), round(1e6 * now_s), now_s)

    def close(self) -> None:
        """See Grabber."""
        if self._capture is not None:
            self._capture.release()


class VideoGrabber:
    """A video file, played in real time.

    Args:
        path: the file.
        loop: start again at the end.

    Attributes:
        note: a warning about an assumption made for this file, or None.

    Raises:
        SourceError: the file does not exist, is not a video, or cannot give events because it has only one picture or its
            pictures are more than a second apart.
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
        if not 0 < rate <= _MAX_FPS:  # also true of NaN
            self.note = (
                f"{self.name}: implausible frame rate {rate:g} fps; using its frames' timestamps, or else {_DEFAULT_FPS} fps"
            )
        self._step_us = 1e6 / (rate if 0 < rate <= _MAX_FPS else _DEFAULT_FPS)
        self._frames, self._t_us, self._lap_us = 0, 0, 0

    def read(self) -> GreyFrame | None:
        """See Grabber."""
        succeeded, picture = self._capture.read()
        cut = not succeeded and not self.finite and self._frames > 0
        if cut:
            self._lap_us, self._frames = round(self._t_us + self._step_us), 0
            self._capture.open(str(self._path))
            succeeded, picture = self._capture.read()
        if not succeeded:
            raise EOFError
        self._t_us = self._lap_us + self._time_us()
        self._frames += 1
        return GreyFrame(_grey(picture), self._t_us, 0.0, cut)

    def close(self) -> None:
        """See Grabber."""
        self._capture.release()

    def _time_us(self) -> int:
        """Return the time of the frame just read, since the first frame.

        It is the file's timestamp if that increases, because the frame rate may vary, and otherwise follows from the rate.
        """
        if not self._frames:
            return 0
        previous_us, stamp_us = self._t_us - self._lap_us, 1000 * self._capture.get(cv2.CAP_PROP_POS_MSEC)
        return round(stamp_us if previous_us < stamp_us < float("inf") else previous_us + self._step_us)

    def _check(self) -> None:
        self.open()
        try:
            first, second = self.read(), self._read_second()
            if first is None or second is None:
                raise SourceError(f"{self._path}: contains only one picture; simulating events requires at least two")
            step_s = (second.t_us - first.t_us) * 1e-6
            if step_s > LONGEST_GAP_US * 1e-6:
                raise SourceError(
                    f"{self._path}: its pictures are {step_s:.3g} s apart, too far to simulate events between them "
                    f"(at most {LONGEST_GAP_US * 1e-6:g} s); "
                    f"speed it up, e.g. ffmpeg -i {self.name} -vf setpts=PTS/{step_s * 25:.0f}"
                )
        except EOFError:
            raise SourceError(f"{self._path}: contains no picture that OpenCV can read") from None
        finally:
            self.close()

    def _read_second(self) -> GreyFrame | None:
        try:
            succeeded, picture = self._capture.read()
            return GreyFrame(_grey(picture), self._time_us(), 0.0) if succeeded else None
        finally:
            self._frames = 0


def _silence_opencv() -> None:
    """Turn off messages of OpenCV and its FFmpeg about what cannot be opened; our errors replace them.

    FFmpeg's level is read once, when the first video is opened; one that the user has set in the environment is kept.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _FFMPEG_QUIET)
    if hasattr(cv2, "setLogLevel"):  # up to OpenCV 4.12
        cv2.setLogLevel(_SILENT)
    else:
        cv2.utils.logging.setLogLevel(_SILENT)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if picture.ndim == 2:
        return picture
    grey: NDArray[np.uint8] = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    return grey
