"""Video that browsers, notebooks and file managers play: H.264 in an mp4, encoded by PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import DataError

_CRF = "20"
_MOST_FRAMES = 25
"""Frames of a fragment: what a killed run may lose."""


class VideoFile:
    """An mp4 that grows frame by frame. Until `close` it is fragmented, so that a killed run leaves a video that plays.

    Args:
        path: the file, replaced if it exists.
        size: (width, height) px of a frame, both even.
        frames_per_s: pace.

    Raises:
        DataError: it cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], frames_per_s: float) -> None:
        self._path = path
        try:
            # A Python file, not a name: FFmpeg and OpenCV cannot open names that are not UTF-8.
            self._file = path.open("wb", buffering=0)
            options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
            self._container = av.open(self._file, "w", format="mp4", options=options)
            rate = Fraction(frames_per_s).limit_denominator(100_000)
            self._stream = self._container.add_stream("libx264", rate=rate, options={"crf": _CRF, "preset": "veryfast"})
        except (OSError, av.FFmpegError) as error:
            raise DataError(f"{path}: cannot be written as H.264 video ({error}); --no-video leaves it out") from None
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.gop_size = max(1, min(round(frames_per_s), _MOST_FRAMES))

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Append one frame, `(height, width, 3)` uint8 BGR."""
        self._encode(av.VideoFrame.from_ndarray(picture, format="bgr24"))

    def close(self) -> None:
        """Finish the file."""
        try:
            self._encode(None)
        finally:
            try:
                self._container.close()
                self._file.close()
            except (OSError, av.FFmpegError) as error:
                raise DataError(f"{self._path}: cannot be written ({error})") from None

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (OSError, av.FFmpegError) as error:
            raise DataError(f"{self._path}: cannot be written ({error})") from None
