"""Live view in an OpenCV window; requires a display."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from threading import Lock

import cv2
import numpy as np
from numpy.typing import NDArray

from evburst.app.inference import WindowResult
from evburst.app.live.frames import FrameSource
from evburst.app.live.networks import Prepared
from evburst.app.live.pipeline import LivePipeline
from evburst.app.live.sources import RecordingSource
from evburst.app.outputs.render import Renderer, beside
from evburst.data.errors import ConfigError
from evburst.data.extras import pip_install

_LOG = logging.getLogger(__name__)

_TITLE = "evburst live: Space pauses, left and right seek, p shows the source, s saves a picture, q ends"

_SEEK_S = 5.0
_ARROWS = {0xFF51: -_SEEK_S, 0xFF53: _SEEK_S, 0xF702: -_SEEK_S, 0xF703: _SEEK_S, 0x250000: -_SEEK_S, 0x270000: _SEEK_S}
"""Seconds to seek by OpenCV's codes of the left and the right arrow: on X11, macOS and Windows."""

_OPEN_WINDOW = "import cv2\ntry: cv2.namedWindow('evburst')\nexcept cv2.error: pass"
_OPEN_WINDOW_S = 30.0


class LiveWindow:
    """A viewer with a desktop window. Call `turn` on the main thread, as OpenCV requires.

    Args:
        pipeline: the pipeline whose results are shown.

    Attributes:
        paused: while set, the picture stands still; see Viewer.

    Raises:
        ConfigError: there is no display, it cannot be used, or OpenCV was built without window support.
    """

    def __init__(self, pipeline: LivePipeline) -> None:
        if sys.platform.startswith("linux"):
            _check_display()
        self._pipeline = pipeline
        self._renderer = Renderer(pipeline.source.sensor_size, pipeline.network.classes, pipeline.network.name)
        self._lock = Lock()
        self._newest: tuple[WindowResult, Prepared] | None = None
        self._with_source, self.paused = False, False
        width, height = self._renderer.picture_size
        self._picture: NDArray[np.uint8] = np.zeros((height, width, 3), np.uint8)
        try:
            cv2.namedWindow(_TITLE, cv2.WINDOW_AUTOSIZE)
        except cv2.error:
            raise ConfigError(
                f"--window needs OpenCV with window support: {pip_install('window')}; or use --serve and a browser"
            ) from None
        if isinstance(pipeline.source, RecordingSource):
            pipeline.source.measure()
        pipeline.viewers.append(self)

    def show(self, result: WindowResult) -> None:
        """See Viewer."""
        with self._lock:
            self._newest = result, self._pipeline.shown

    def turn(self) -> bool:
        """Draw the newest result and handle keys; return False once the window is closed."""
        newest = None
        if not self.paused:
            with self._lock:
                newest, self._newest = self._newest, None
        if newest is not None:
            result, network = newest
            self._renderer.classes, self._renderer.network = network.classes, network.name
            self._picture = self._renderer.draw(result)
            source = self._pipeline.source
            if source.simulated:
                cv2.putText(
                    self._picture, "simulated events", (12, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (97, 200, 255), 1, cv2.LINE_AA
                )
            if self._with_source and isinstance(source, FrameSource) and source.picture is not None:
                self._picture = beside(source.picture, self._picture, self._renderer.scale)
        cv2.imshow(_TITLE, self._picture)
        code = cv2.waitKeyEx(10)
        # On X11 the upper 16 bits hold modifiers such as Num Lock.
        arrow = _ARROWS.get(code) or _ARROWS.get(code & 0xFFFF)
        key = code & 0xFF if arrow is None else -1
        if arrow is not None:
            self._seek_by(arrow)
        elif key == ord(" "):
            self.paused = not self.paused
        elif key == ord("p"):
            self._with_source = not self._with_source
        elif key == ord("s"):
            self._save()
        return key not in (ord("q"), 27) and cv2.getWindowProperty(_TITLE, cv2.WND_PROP_VISIBLE) >= 1

    def _save(self) -> None:
        """Save the picture in the working folder, named after the time; none that is there is replaced."""
        name, number = time.strftime("evburst_%Y%m%d_%H%M%S"), 1
        while os.path.lexists(path := f"{name}_{number}.png" if number > 1 else f"{name}.png"):
            number += 1
        if not cv2.imwrite(path, self._picture):
            _LOG.warning("%s: the picture cannot be saved in %s", path, os.getcwd())

    def _seek_by(self, seconds: float) -> None:
        """Seek a recording and end the pause; other sources, and one whose length is not known yet, continue unchanged."""
        source = self._pipeline.source
        if isinstance(source, RecordingSource) and source.duration_s is not None:
            source.seek(source.position_s + seconds)
            self.paused = False

    def close(self) -> None:
        """Close the window."""
        cv2.destroyAllWindows()


def _check_display() -> None:
    """Open a window in another process: where a display cannot be used, Qt, which OpenCV opens windows with, aborts."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not display:
        raise ConfigError("--window: there is no display here (DISPLAY is not set); use --serve and a browser instead")
    try:
        code = subprocess.run([sys.executable, "-c", _OPEN_WINDOW], capture_output=True, timeout=_OPEN_WINDOW_S).returncode
    except subprocess.TimeoutExpired:
        code = 1
    if code:
        raise ConfigError(
            f"--window: no window can be opened on the display {display}, which does not answer or may not be used by this "
            "user; use --serve and a browser instead"
        )
