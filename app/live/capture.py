"""Capture, the first thread of a live run: reads the source, reopens it after failures, and shifts its clock to the run's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import NamedTuple

from evburst.app.live.frames import FrameSource
from evburst.app.live.networks import Prepared
from evburst.app.live.soundness import Soundness
from evburst.app.live.sources import LiveSource, Packet, RecordingSource, check_size
from evburst.data.errors import EvburstError, SourceError
from evburst.data.events import Events

_RETRY_S = 0.5


class Captured(NamedTuple):
    """Events on the run's clock.

    Attributes:
        events: sorted by time; may be empty.
        until_us: all events before this instant have been captured.
        due_s: as in `Packet`.
        cut: whether they do not continue what was captured before.
        network: the network that they are for.
    """

    events: Events
    until_us: int
    due_s: float
    cut: bool
    network: Prepared


class Capture:
    """Reads packets from a source, which may be exchanged during the run for one of the same sensor size.

    Args:
        source: source of the events; it has been opened and closed once, so that its sensor size is known.
        network: returns the present network; a recording is played in windows of its length.
        put: receives what was captured; it may block.
        is_held: returns whether a replay is to stand still.
        notify: called with a line of text when the source is lost or returns, or if its events do not fit its sensor.

    Attributes:
        soundness: judges the events.
        source: the source; another one is opened before the next packet is read.
        status: its state: "starting", "running", "waiting for NAME: REASON" or "ended".
        lost: number of times it was lost; one that can be opened again but delivers nothing has not returned.
        used: the sources that have been opened, in order.
        started_s: when the run started, on the clock of `time.perf_counter`.
    """

    def __init__(
        self,
        source: LiveSource,
        network: Callable[[], Prepared],
        put: Callable[[Captured], None],
        is_held: Callable[[], bool],
        notify: Callable[[str], None],
    ) -> None:
        self.source, self.status, self.lost = source, "starting", 0
        self.used: list[LiveSource] = []
        self.started_s = time.perf_counter()
        self._size, self._network = source.sensor_size, network
        self._put, self._is_held, self._notify = put, is_held, notify
        self.soundness = Soundness(notify)
        self._reasons: dict[LiveSource, set[str]] = {}  # of sources that are lost, which may not be the present one
        self._until_us = 0

    def run(self, stop: Event) -> None:
        """Read the source until it ends or `stop` is set.

        Raises:
            EvburstError: a source cannot be used; a file's events do not fit its sensor or are not in order.
        """
        source: LiveSource | None = None
        shift_us: int | None = None
        is_first = True
        while not stop.is_set():
            try:
                next_source, network = self.source, self._network()
                window_us = network.inference.voxel.window_us
                if isinstance(next_source, RecordingSource):
                    next_source.set_window(window_us)
                if source is not next_source:
                    _close(source)
                    shift_us = None
                    next_source.open()
                    source = next_source
                    check_size(self._size, source.sensor_size)
                    if source not in self._reasons:
                        self.status = "running"
                    if source not in self.used:
                        self.used.append(source)
                if self._is_held() and isinstance(source, RecordingSource | FrameSource) and source.hold():
                    continue
                packet = source.read()
            except (EvburstError, OSError) as error:
                # Whatever keeps a source from being opened again may pass, e.g. a recording was moved away.
                if not isinstance(error, SourceError) and (is_first or shift_us is not None):
                    raise
                _close(source)
                source = None
                self._note_loss(next_source, error)
                if self.source is next_source:
                    stop.wait(_RETRY_S)
                continue
            if packet is None:
                self.status = "ended"
                break
            is_first = False
            self.soundness.add(source, packet.events)
            if packet.until_us is None:
                continue
            self._note_return(source)
            fresh = shift_us is None or packet.restarted
            if shift_us is None or fresh:
                # A replay may have been held, or in slow motion: after a seek, the run's clock continues where it was.
                is_sought = shift_us is not None and isinstance(source, RecordingSource)
                shift_us = self._clock_shift_us(packet, packet.until_us, window_us, self._until_us if is_sought else None)
            packet.events["t"] += shift_us
            self._until_us = packet.until_us + shift_us
            self._put(Captured(packet.events, self._until_us, packet.due_s, fresh or packet.cut, network))
        _close(source)
        self.soundness.judge(self.source)

    def _note_loss(self, source: LiveSource, error: EvburstError | OSError) -> None:
        """Set the status; count a source that is lost once, and notify once of every reason why it does not return."""
        reason = str((isinstance(error, OSError) and error.strerror) or error)
        place, separator, rest = reason.partition(": ")
        if separator and source.name in (place, Path(place).name):
            reason = rest
        self.status = f"waiting for {source.name}: {reason}"
        if source not in self._reasons:
            self.lost += 1
            self._reasons[source] = set()
        if reason not in self._reasons[source]:
            self._reasons[source].add(reason)
            self._notify(self.status)

    def _note_return(self, source: LiveSource) -> None:
        """Note that a source delivers; if it was lost, set the status and notify."""
        if self._reasons.pop(source, None) is not None:
            self.status = "running"
            self._notify(f"{source.name} is back")

    def _clock_shift_us(self, packet: Packet, until_us: int, window_us: int, begin_us: int | None) -> int:
        """Return the offset from the source's clock to the run's, in whole windows so that window boundaries are kept.

        Args:
            packet: the first packet; it is moved to `begin_us`, or without that to the time that has passed.
            until_us: its `until_us`.
            window_us: length of a window.
            begin_us: on the run's clock, rounded up to whole windows.
        """
        first_us = int(packet.events["t"][0]) if len(packet.events) else until_us
        if begin_us is None:
            begin_us = max(round(1e6 * (packet.due_s - self.started_s)) - (until_us - first_us), self._until_us)
        return (-(-begin_us // window_us) - first_us // window_us) * window_us


def _close(source: LiveSource | None) -> None:
    if source is not None:
        source.close()
