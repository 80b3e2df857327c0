"""Judges whether the events of a live source fit its sensor and are in order, by the rules of runs through recordings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evburst.app.live.sources import LiveSource, RecordingSource
from evburst.app.runs import JUDGED_FROM
from evburst.data.events import OUTSIDE_LIMIT, Events, check_order, check_sensor_size


class Soundness:
    """Counts events outside the sensor, and late ones of a file. A file that has too many is an error, as in `detect`.

    Other sources continue, with one warning if too many events lie outside.

    Args:
        notify: called with the warning.

    Attributes:
        warning: the warning; empty without one.
    """

    def __init__(self, notify: Callable[[str], None]) -> None:
        self._notify, self.warning = notify, ""
        self._inside = self._outside = 0

    def add(self, source: LiveSource, events: Events) -> None:
        """Count a packet's events; judge the source if there are enough.

        Raises:
            SensorSizeError, EventFileError: too many events of a file lie outside the sensor, or are late.
        """
        if source.simulated:
            return
        outside = int(np.count_nonzero((events["x"] >= source.sensor_size.width) | (events["y"] >= source.sensor_size.height)))
        self._inside, self._outside = self._inside + len(events) - outside, self._outside + outside
        self.judge(source, JUDGED_FROM)

    def judge(self, source: LiveSource, at_least: int = 0) -> None:
        """Judge the source by what has been counted, if that is a number of events; raises errors like `add`."""
        is_judged = not source.simulated and self._inside + self._outside >= at_least
        if isinstance(source, RecordingSource) and not source.is_pipe:
            if is_judged:
                check_sensor_size(source.name, source.sensor_size, self._inside, self._outside)
            if source.passed + source.late >= at_least:
                check_order(source.name, source.passed, source.late)
        elif is_judged and not self.warning and self._outside > OUTSIDE_LIMIT * (self._inside + self._outside):
            self._warn(source)

    def _warn(self, source: LiveSource) -> None:
        share = f"{100 * self._outside / (self._inside + self._outside):.0f} % of the events"
        if isinstance(source, RecordingSource):
            advice = "pass the sensor's true size (--sensor-size)"
        else:
            advice = "correct at its sender the size that it states, or the coordinates"
        self.warning = f"{source.name}: {share} lie outside {source.sensor_size} and are ignored: {advice}"
        self._notify(f"warning: {self.warning}")
