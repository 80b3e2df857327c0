"""Video that browsers, notebooks and file managers play: H.264 in an mp4, encoded by PyAV."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import DataError

_CRF, _PRESET = "23", "ultrafast"
_TICKS_PER_S = 90_000
_MOST_FRAMES = 25
"""Frames of a fragment: what a killed run may lose."""


class _File(io.FileIO):
    """A file that is written, and remembers why it could not be: PyAV does not tell.

    Attributes:
        failure: the first error; None if there was none.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it."""
        try:
            left = memoryview(data)
            while len(left):
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = self.failure or error
            raise
        return len(data)


class VideoFile:
    """An mp4 that grows frame by frame. Until `close` it is fragmented, so that a killed run leaves a video that plays.

    Args:
        path: the file, replaced if it exists.
        size: (width, height) px of a frame, both even.
        frames_per_s: pace; None: each frame has a duration of its own.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], frames_per_s: float | None) -> None:
        self._path, self._at, self._durations = path, 0, dict[int, int]()
        try:
            # A Python file, not a name: FFmpeg and OpenCV cannot open names that are not UTF-8.
            self._file = _File(path, "wb")
            flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
            self._container = av.open(self._file, "w", format="mp4", options=flags)
            rate = Fraction(frames_per_s or _MOST_FRAMES).limit_denominator(100_000)
            # Frames in order (bf 0): where they wait for later ones, the first is shown late in a fragmented file.
            options = {"crf": _CRF, "preset": _PRESET, "bf": "0"}
            self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        except (OSError, av.FFmpegError) as error:
            raise DataError(f"{path}: cannot be written as H.264 video ({error}); --no-video skips the video") from None
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = max(1, min(round(rate), _MOST_FRAMES))
        if frames_per_s is None:
            self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)

    def write(self, picture: NDArray[np.uint8], seconds: float = 0.0) -> None:
        """Append one frame, `(height, width, 3)` uint8 BGR, to be shown for so long if frames have durations of their own."""
        frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
        if seconds:
            frame.pts, frame.time_base = self._at, Fraction(1, _TICKS_PER_S)
            self._durations[self._at] = max(round(seconds * _TICKS_PER_S), 1)
            self._at += self._durations[self._at]
        self._encode(frame)

    def close(self) -> None:
        """Finish the file."""
        try:
            self._encode(None)
        finally:
            try:
                self._container.close()
                self._file.close()
            except (OSError, av.FFmpegError) as error:
                raise self._failed(error) from None

    def _failed(self, error: Exception) -> DataError:
        failure = self._file.failure
        return DataError(f"{self._path}: cannot be written ({failure.strerror if failure else error})")

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                packet.duration = self._durations.pop(packet.pts, packet.duration)
                self._container.mux(packet)
        except (OSError, av.FFmpegError) as error:
            raise self._failed(error) from None
