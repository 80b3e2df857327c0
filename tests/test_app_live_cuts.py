"""Live detection where the source jumps, returns as another one, or blocks: nothing is carried over, and nothing waits."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evburst.app.detect import DetectConfig
from evburst.app.inference import WindowResult
from evburst.app.library import Detector
from evburst.app.live.broadcast import Broadcaster
from evburst.app.live.frames import FakeCamera, FrameSource
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.run import summary
from evburst.app.live.sources import Packet, RecordingSource
from evburst.data.events import SensorSize
from evburst.data.filters import FiltersConfig
from evburst.data.readers import open_events
from evburst.data.simulation.sensor import SimulatorConfig
from evburst.data.writers import write_events
from tests.conftest import ROOT, random_events
from tests.event_files import fed
from tests.helpers.waiting import wait_until

SIZE = SensorSize(64, 48)
CONFIG = LiveConfig(DetectConfig(ann=True, window_ms=20.0))
WINDOW_US = 50_000


class Replay(RecordingSource):
    """A looped recording, played as fast as inference allows, so that no window is dropped.

    After `seek_after` windows, it is sought at `seek_s`.
    """

    def __init__(self, path: Path, seek_after: int = 0, seek_s: float = 0.0) -> None:
        super().__init__(path, WINDOW_US, loop=True, speed=1000.0)
        self.open()
        self.measure()
        wait_until(lambda: self.duration_s is not None)
        self.close()
        self.finished, self.done = lambda: 0, Event()
        self._packets, self._seek_after, self._seek_s = 0, seek_after, seek_s

    def read(self) -> Packet | None:
        while self._packets > 5 * (self.finished() + 10) and not self.done.is_set():  # five packets are a window
            time.sleep(0.001)
        if self._seek_after and self._packets == 5 * self._seek_after:
            self.seek(self._seek_s)
        self._packets += 1
        return super().read()


def results_of(source: Replay, count: int, **settings: Any) -> list[WindowResult]:
    """The first results of a live run."""
    pipeline, results = LivePipeline(source, LiveConfig(DetectConfig(**settings), queue_windows=100)), list[WindowResult]()
    source.finished = lambda: len(results)
    pipeline.viewers.append(SimpleNamespace(show=results.append, paused=None))
    pipeline.start()
    wait_until(lambda: len(results) >= count or pipeline.wait(0))
    source.done.set()
    pipeline.stop()
    assert pipeline.dropped == 0
    return results[:count]


def assert_equal(found: list[WindowResult], expected: list[WindowResult]) -> None:
    """Results are the same window for window, apart from the clock."""
    assert len(found) == len(expected)
    shift_us = found[0].t0_us - expected[0].t0_us
    boxes = 0
    for one, other in zip(found, expected, strict=True):
        assert (one.t0_us - shift_us, one.events, one.spikes) == (other.t0_us, other.events, other.spikes)
        assert one.detections.t_us - shift_us == other.detections.t_us
        np.testing.assert_array_equal(one.detections.boxes_xyxy, other.detections.boxes_xyxy)
        np.testing.assert_array_equal(one.detections.scores, other.detections.scores)
        boxes += len(other.detections)
    assert boxes > 0


CARRIED = [{}, {"memory": True}, {"lead_ms": 100.0}, {"filters": {"background_us": 3000}}]
"""Settings that carry something from window to window, after those that do not."""


@pytest.mark.parametrize("settings", CARRIED, ids=["plain", "memory", "lead", "filter"])
def test_after_a_seek_results_are_those_of_detection_from_there(settings: dict[str, Any]) -> None:
    path = ROOT / "data" / "samples" / "street_td.dat"
    detector = Detector("street", timesteps=1, start_s=0.5, max_windows=12, **settings)
    expected = list(detector.stream(path))
    found = results_of(Replay(path, 30, 0.5), 42, timesteps=1, **_config(settings))
    assert_equal(found[30:], expected)


@pytest.mark.parametrize("settings", CARRIED, ids=["plain", "memory", "lead", "filter"])
def test_a_recording_that_starts_again_is_detected_as_the_first_time(tmp_path: Path, settings: dict[str, Any]) -> None:
    stream = open_events(ROOT / "data" / "samples" / "street_td.dat")
    events = np.concatenate([packet[packet["t"] < 600_000] for packet in stream.packets()])
    write_events(tmp_path / "a.dat", events, stream.sensor_size)
    found = results_of(Replay(tmp_path / "a.dat"), 24, timesteps=1, **_config(settings))
    assert [result.t0_us - found[0].t0_us for result in found] == [k * WINDOW_US for k in range(24)]  # the clock continues
    assert_equal(found[12:], found[:12])


def test_after_weights_with_longer_windows_results_are_those_of_detection(tmp_path: Path) -> None:
    """Of every lap, which has an odd number of the shorter windows and begins at an odd one; the run's clock continues."""
    stream = open_events(ROOT / "data" / "samples" / "street_td.dat")
    events = np.concatenate([packet[(packet["t"] >= 150_000) & (packet["t"] < 800_000)] for packet in stream.packets()])
    write_events(tmp_path / "a.dat", events, stream.sensor_size)
    lap = [(result.events, result.spikes) for result in Detector("caltech6", timesteps=1).stream(tmp_path / "a.dat")]
    assert (len(lap), sum(count for count, _ in lap)) == (7, len(events))
    source, results = Replay(tmp_path / "a.dat"), list[WindowResult]()
    pipeline = LivePipeline(source, LiveConfig(DetectConfig(timesteps=1), queue_windows=100))
    source.finished = lambda: len(results)

    def show(result: WindowResult) -> None:
        results.append(result)
        if len(results) == 4:
            pipeline.set_network(weights="caltech6")

    pipeline.viewers.append(SimpleNamespace(show=show, paused=None))
    pipeline.start()
    wait_until(lambda: sum(result.t1_us - result.t0_us == 100_000 for result in results) >= 20 or pipeline.wait(0))
    source.done.set()
    pipeline.stop()
    assert source.duration_s == pytest.approx(0.7)
    starts = [result.t0_us for result in results]
    assert starts == sorted(set(starts))
    longer = [result for result in results if result.t1_us - result.t0_us == 100_000]
    assert longer == results[-len(longer) :]
    assert [result.t0_us - longer[0].t0_us for result in longer] == [100_000 * k for k in range(len(longer))]
    found = [(result.events, result.spikes) for result in longer]
    first = lap.index(found[0])
    assert found == [lap[(first + k) % 7] for k in range(len(found))]


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a Detector as those of DetectConfig."""
    return {name: FiltersConfig(**value) if name == "filters" else value for name, value in settings.items()}


class Changing(FrameSource):
    """The fake camera, which is unplugged once and returns as another one, until `is_other` is cleared."""

    def __init__(self) -> None:
        super().__init__(FakeCamera(SIZE, 100.0, (0.15,)), SIZE, SimulatorConfig(shot_hz=5), 20_000, upsample=False)
        self.is_other, self._openings = True, 0

    def open(self) -> None:
        super().open()
        self._openings += 1
        self.sensor_size = SensorSize(640, 480) if self.is_other and self._openings > 1 else SIZE


def test_a_source_that_returns_with_another_sensor_size_is_refused() -> None:
    lines, source = list[str](), Changing()
    pipeline = LivePipeline(source, CONFIG, lines.append)
    broadcaster = Broadcaster(pipeline)
    pipeline.viewers.append(broadcaster)
    pipeline.start()
    refused = "waiting for fake camera: the sensor is now 640x480, not 64x48; restart evburst"
    wait_until(lambda: pipeline.capture.status == refused)
    assert broadcaster.about()["sensor_size"] == [64, 48]
    assert pipeline.network.inference.sensor_size == SIZE
    source.is_other = False
    wait_until(lambda: pipeline.capture.status == "running")
    shown = pipeline.figures.windows
    wait_until(lambda: pipeline.figures.windows > shown)
    pipeline.stop()
    assert pipeline.capture.lost == 1
    assert "was unplugged" in lines[0]
    assert lines[1:] == [refused, "fake camera is back"]


def test_a_recording_that_is_gone_after_another_source_is_waited_for(tmp_path: Path) -> None:
    path, lines = tmp_path / "a.csv", list[str]()
    write_events(path, random_events(20_000, SIZE, 400_000), SIZE)
    recording = RecordingSource(path, 20_000, SIZE, loop=True)
    pipeline = LivePipeline(recording, CONFIG, lines.append)
    pipeline.start()
    wait_until(lambda: pipeline.figures.windows > 0)
    other = FrameSource(FakeCamera(SIZE, 100.0), SIZE, SimulatorConfig(), 20_000, upsample=False)
    pipeline.use(other)
    wait_until(lambda: other.picture is not None)
    path.rename(tmp_path / "b.csv")
    pipeline.use(recording)
    wait_until(lambda: pipeline.capture.status.startswith("waiting for a.csv: ") or pipeline.wait(0))
    (tmp_path / "b.csv").rename(path)
    wait_until(lambda: pipeline.capture.status == "running" or pipeline.wait(0))
    shown = pipeline.figures.windows
    wait_until(lambda: pipeline.figures.windows > shown)
    pipeline.stop()
    assert lines[1:] == ["a.csv is back"]
    recording.faults.late_events, recording._pacer.behind_s = 3, 1.5
    pipeline.use(other)  # the figures of the recording stay in the summary
    pipeline.capture.used.append(FrameSource(FakeCamera(SIZE, 100.0), SIZE, SimulatorConfig(), 20_000))  # a camera used again
    found = summary(pipeline, 1.0)
    assert (found["source"], found["kind"], found["simulated"]) == ("a.csv, fake camera", "recorded, drawn", True)
    assert (found["faults"]["late_events"], found["source_behind_s"]) == (3, 1.5)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_is_silent_does_not_keep_a_run_from_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_events(tmp_path / "a.csv", random_events(20_000, SIZE, 400_000), SIZE)
    released = Event()
    writer = fed(tmp_path / "pipe", (tmp_path / "a.csv").read_bytes(), released)
    pipeline = LivePipeline(RecordingSource(tmp_path / "pipe", 20_000, SIZE, loop=True), CONFIG)
    pipeline.start()
    wait_until(lambda: pipeline.figures.windows + pipeline.dropped >= 19)  # of 20, the last of which is not complete
    pipeline.stop()
    capture, *others = pipeline._threads  # private: of all threads, those of this pipeline
    assert not any(thread.is_alive() for thread in others)
    with monkeypatch.context() as patched:
        patched.setattr(Thread, "join", lambda *_: pytest.fail("waited for a second time"))
        pipeline.stop()
    released.set()
    writer.join(60)
    capture.join(60)
    assert not capture.is_alive()
