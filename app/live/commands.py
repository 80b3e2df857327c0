"""Commands of the page's clients that concern all of them: change settings, seek, record, use the page's camera."""

from __future__ import annotations

import logging
import math
import secrets
import struct
import time
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any, TypeVar

import numpy as np

from evburst.app.live.broadcast import weights_choices
from evburst.app.live.frames import FrameSource, PushedFrames
from evburst.app.live.pipeline import LivePipeline
from evburst.app.live.recorder import LiveRecorder
from evburst.app.live.sources import LiveSource, RecordingSource
from evburst.data.errors import EvburstError
from evburst.data.text import number_of
from evburst.models.layout import TIMESTEP_LIMITS

_LOG = logging.getLogger(__name__)
T = TypeVar("T")

PAGE_CAMERA = "the page's camera"
MAX_RECORDING_BYTES = 1 << 30

_LIMITS = {"score": (0.01, 0.99), "timesteps": TIMESTEP_LIMITS, "contrast": (0.05, 1.0), "position": (0.0, 1e9)}
PICTURE_HEADER = struct.Struct("<4sHH")
"""Of the picture of a page's camera: `EVB1`, W and H."""


class RefusedError(Exception):
    """A client's message is malformed or cannot be executed now; the text is sent to the client."""


class Commands:
    """Executes the clients' commands. Thread-safe.

    Args:
        pipeline: the pipeline to control.
        folder: where recordings are kept until they are downloaded.

    Attributes:
        run: random name of this run, which tells a page that reconnects whether the server was restarted.
    """

    def __init__(self, pipeline: LivePipeline, folder: Path) -> None:
        self._pipeline, self._folder = pipeline, folder
        self._initial_source: LiveSource = pipeline.source
        self._weights = weights_choices(pipeline.config.detect.weights)
        self._lock = Lock()
        self._recorder: LiveRecorder | None = None
        self._finished: LiveRecorder | None = None
        self._is_downloaded = False
        self._camera_client: object | None = None
        self._pushed: PushedFrames | None = None
        self.run = secrets.token_hex(8)

    def state(self, client: object = None) -> dict[str, Any]:
        """Return the state that a client receives twice a second and after every command, in JSON types."""
        pipeline, wanted = self._pipeline, self._pipeline.wanted
        source, recorder, finished = pipeline.source, self._recorder, self._finished
        if recorder is not None and recorder.stopped:  # by itself; the next command ends it
            recorder, finished = None, recorder
        uses_page_camera = isinstance(source, FrameSource) and isinstance(source.grabber, PushedFrames)
        waits_for_page = uses_page_camera and self._camera_client is None
        return {
            "status": f"waiting for {PAGE_CAMERA}" if waits_for_page else pipeline.capture.status,
            "source": source.name,
            "kind": source.kind,
            "simulated": source.simulated,
            "has_picture": isinstance(source, FrameSource),
            "score": wanted.post.score,
            "timesteps": None if wanted.ann else wanted.timesteps or pipeline.network.timesteps,
            "wanted": {"network": "ann" if wanted.ann else "snn", "weights": Path(wanted.weights).stem},
            "preparing": pipeline.preparing,
            "problem": pipeline.problem,
            "warning": pipeline.capture.soundness.warning,
            "contrast": round(source.contrast, 3) if isinstance(source, FrameSource) else None,
            "position_s": round(source.position_s, 3) if isinstance(source, RecordingSource) else None,
            "duration_s": source.duration_s if isinstance(source, RecordingSource) else None,
            "page_camera": self._camera_client is not None,
            "own_camera": client is not None and self._camera_client is client,
            "recording": None if recorder is None else recorder.events,
            "recorded": finished is not None,
            "recording_stopped": "" if finished is None or recorder is not None else finished.stopped,
            "windows": pipeline.figures.windows,
            "dropped": pipeline.dropped,
        }

    def execute(self, client: object, command: object) -> dict[str, Any]:
        """Execute one command and return the state after it.

        Raises:
            RefusedError: the command is malformed or cannot be executed now.
        """
        if not isinstance(command, dict) or len(command) != 1:
            raise RefusedError('expected {"set": {name: value}} or {"do": name}')
        with self._lock:
            self._end_stopped()
            try:
                if isinstance(command.get("set"), dict):
                    for name, value in command["set"].items():
                        self._set(name, value)
                elif isinstance(command.get("do"), str):
                    self._do(client, command["do"])
                else:
                    raise RefusedError('expected {"set": {name: value}} or {"do": name}')
            except EvburstError as error:
                raise RefusedError(str(error)) from None
            return self.state(client)

    def accept_picture(self, client: object, data: bytes) -> None:
        """Accept a picture of a client's camera: `EVB1`, W and H (16 bits each, little-endian), then W * H grey bytes.

        Raises:
            RefusedError: the picture is malformed or not of the sensor's size, or the client's camera is not in use.
        """
        pushed = self._pushed
        if pushed is None or self._camera_client is not client:
            raise RefusedError("this page's camera is not in use")
        width, height = self._pipeline.source.sensor_size
        if len(data) != PICTURE_HEADER.size + width * height or PICTURE_HEADER.unpack_from(data) != (b"EVB1", width, height):
            raise RefusedError(f"expected EVB1, {width}, {height} and {width * height} grey bytes")
        pushed.push(np.frombuffer(data, np.uint8, offset=PICTURE_HEADER.size).reshape(height, width))

    def open_finished(self) -> tuple[IO[bytes], int] | None:
        """Open the latest complete recording; return the file and its size in bytes, or None if there is none."""
        with self._lock:
            self._end_stopped()
            if self._finished is None:
                return None
            return self._finished.path.open("rb"), self._finished.path.stat().st_size

    def note_download(self, file: IO[bytes]) -> None:
        """Note that a file of `open_finished` has been sent to its end."""
        with self._lock:
            if self._finished is not None and Path(file.name) == self._finished.path:
                self._is_downloaded = True

    def leave(self, client: object) -> None:
        """Handle a client's disconnection: stop using its camera."""
        with self._lock:
            if self._camera_client is client:
                self._camera_off()

    def close(self) -> None:
        """End the recording if there is one; warn if the latest was not downloaded, because the server deletes it."""
        with self._lock:
            self._stop_recording()
            if self._finished is not None and self._finished.events and not self._is_downloaded:
                events = number_of(self._finished.events, "event")
                _LOG.warning("the recording made on the page (%s) was not downloaded and is deleted", events)

    def _set(self, name: object, value: object) -> None:
        if name == "network":
            self._pipeline.set_network(ann=_chosen(name, value, {"ann": True, "snn": False}))
        elif name == "weights":
            self._pipeline.set_network(weights=_chosen(name, value, self._weights))
        else:
            self._set_number(name, value)

    def _set_number(self, name: object, value: object) -> None:
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if name not in _LIMITS or isinstance(value, bool) or not is_number:
            raise RefusedError(f"settings are {', '.join(_LIMITS)}, each a number; network and weights")
        low, high = _LIMITS[str(name)]
        number = min(max(typing.cast(float, value), low), high)  # clamps integers too large for a float as well
        if name == "score":
            self._pipeline.set_score(float(number))
        elif name == "timesteps":
            if self._pipeline.wanted.ann:
                raise RefusedError("the ANN has no timesteps")
            self._pipeline.set_network(timesteps=round(number))
        elif name == "position":
            self._seek(float(number))
        elif isinstance(self._pipeline.source, FrameSource):
            self._pipeline.source.set_contrast(float(number))
        else:
            raise RefusedError("contrast applies to simulated events only; these come from a sensor")

    def _seek(self, position_s: float) -> None:
        source = self._pipeline.source
        if not isinstance(source, RecordingSource):
            raise RefusedError("only a recording can be sought")
        try:
            source.seek(position_s)
        except ValueError as error:
            raise RefusedError(str(error)) from None

    def _do(self, client: object, name: str) -> None:
        actions: dict[str, Callable[[], None]] = {
            "record": self._record,
            "stop": self._stop_recording,
            "camera_on": lambda: self._camera_on(client),
            "camera_off": lambda: self._release_camera(client),
        }
        if name not in actions:
            raise RefusedError(f"commands are {', '.join(actions)}")
        actions[name]()

    def _record(self) -> None:
        if self._recorder is not None:
            return
        path = self._folder / f"{time.time_ns()}.dat"
        self._recorder = LiveRecorder(path, self._pipeline.source.sensor_size, MAX_RECORDING_BYTES)
        self._pipeline.recorders.add(self._recorder)

    def _end_stopped(self) -> None:
        if self._recorder is not None and self._recorder.stopped:
            self._stop_recording()

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._pipeline.recorders.end(self._recorder)
            self._finished, self._recorder = self._recorder, None
            self._is_downloaded = False
            for path in self._folder.glob("*.dat"):
                if path != self._finished.path:
                    # A running download keeps its file open, so its content survives the deletion; Windows deletes it later.
                    with suppress(PermissionError):
                        path.unlink()

    def _camera_on(self, client: object) -> None:
        if self._camera_client not in (None, client):
            raise RefusedError("another page's camera is in use")
        initial = self._initial_source
        if isinstance(initial, RecordingSource) and initial.is_pipe:
            raise RefusedError(f"{initial.name}: a pipe can be read only once, so that it could not continue after a camera")
        if isinstance(initial, FrameSource) and isinstance(initial.grabber, PushedFrames):
            self._pushed = initial.grabber
        else:
            self._pushed = PushedFrames(PAGE_CAMERA)
            config, window_us = self._pipeline.config, self._pipeline.inference.voxel.window_us
            source = FrameSource(self._pushed, initial.sensor_size, config.simulator, window_us, config.upsample)
            self._pipeline.use(source)
        self._camera_client = client

    def _release_camera(self, client: object) -> None:
        if self._camera_client is not client:
            raise RefusedError("this page's camera is not in use")
        self._camera_off()

    def _camera_off(self) -> None:
        self._camera_client = self._pushed = None
        self._pipeline.use(self._initial_source)


def _chosen(name: str, value: object, choices: Mapping[str, T]) -> T:
    if not isinstance(value, str) or value not in choices:
        raise RefusedError(f"{name}: choices are {', '.join(choices)}")
    return choices[value]
