"""Live sources: their clocks, their pace, their ends; and how packets become windows."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from evburst.app.config import load_config
from evburst.app.live import devices as devices_module
from evburst.app.live import frames as frames_module
from evburst.app.live import sources as sources_module
from evburst.app.live.addresses import is_address, masked
from evburst.app.live.cli import live_main
from evburst.app.live.devices import DeviceClock, NetworkSource, Relay, SensorSource
from evburst.app.live.frames import FakeCamera, FrameSource, GreyFrame, PushedFrames, fit
from evburst.app.live.pipeline import LiveConfig
from evburst.app.live.relay import NoStreamError, connect
from evburst.app.live.run import LiveRequest, open_source
from evburst.app.live.slicing import DropOldest, WindowAssembler
from evburst.app.live.sources import NO_EVENTS, LiveSource, Pacer, RecordingSource, recut
from evburst.app.live.video import CameraGrabber, VideoGrabber
from evburst.data.encoding import unpack
from evburst.data.errors import ConfigError, MissingPackageError, SourceError
from evburst.data.events import Events, Faults, SensorSize
from evburst.data.simulation.sensor import PRESETS, SimulatorConfig
from evburst.data.slicing import live_windows, windows_by_duration
from evburst.data.writers import write_events
from evburst.models.bundle import Bundle
from tests.conftest import make_events, random_events
from tests.event_files import aedat4_bytes

SIZE = SensorSize(64, 48)


class Clock:
    """In place of the module `time`: seconds pass while something sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all sources."""
    clock = Clock()
    for module in (devices_module, frames_module, sources_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def read_events(source: LiveSource, packets: int) -> Events:
    """What a source delivers in a number of packets, or until it ends."""
    parts = [NO_EVENTS]
    for _ in range(packets):
        packet = source.read()
        if packet is None:
            break
        parts.append(packet.events)
    return np.concatenate(parts)


# Windows


def assembled(*packets: tuple[list[int], int], window_us: int = 10) -> tuple[list[tuple[int, list[int]]], Faults]:
    """[(t0, times)] of the windows that packets (times, until) make, and what was left out."""
    faults = Faults()
    assembler = WindowAssembler(window_us, faults)
    windows = [w for times, until in packets for w in assembler.push(make_events(times), until, 0.0)]
    assert all(w.window.t1_us - w.window.t0_us == window_us for w in windows)
    return [(w.window.t0_us, w.window.words["t"].tolist()) for w in windows], faults


@pytest.mark.parametrize(
    ("packets", "windows", "late"),
    [
        ([([1, 9], 10)], [(0, [1, 9])], 0),
        ([([1, 9], 9)], [], 0),  # not everything before 10 has been delivered
        ([([1], 5), ([7, 10], 11)], [(0, [1, 7])], 0),  # 10 belongs to the next
        ([([1], 31)], [(0, [1]), (10, []), (20, [])], 0),  # windows without events are windows
        ([([], 25), ([27], 30)], [(20, [27])], 0),  # begins where the source does
        ([([12], 20), ([9, 21], 30)], [(10, [12]), (20, [21])], 1),  # too old for the window being collected
        ([([1], 10), ([], 5000), ([5003], 5010)], [(0, [1]), (5000, [5003])], 0),  # a clock that leaps
    ],
)
def test_windows_are_complete_when_the_source_says_so(
    packets: list[tuple[list[int], int]], windows: list[tuple[int, list[int]]], late: int
) -> None:
    found, faults = assembled(*packets)
    assert found == windows
    assert faults.late_events == late


def test_a_gap_to_a_time_far_ahead_is_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    far = 10**6  # 100,000 windows
    windows, faults = assembled(([1], 5), ([far + 2], far + 3), ([far + 4], far + 20))
    assert windows == [(0, [1]), (far, [far + 2, far + 4]), (far + 10, [])]
    assert faults.found() == {"long_silences": 1}
    assert caplog.messages == ["the clock of the source jumped ahead by 1.0 s: windows continue there"]


def test_random_packets_lose_nothing() -> None:
    events = random_events(5000, SIZE, 100_000, seed=1)
    cuts = np.sort(np.random.default_rng(0).integers(0, 5000, 40))
    packets = [(part["t"].tolist(), int(part["t"][-1])) for part in np.split(events, cuts) if len(part)]
    windows, faults = assembled(*packets, ([], 100_000), window_us=7_000)
    assert [t for _, times in windows for t in times] == [t for t in events["t"] if t < 98_000]
    assert faults == Faults()


def test_the_queue_drops_the_oldest_and_counts() -> None:
    queue: DropOldest[int] = DropOldest(2)
    for item in range(5):
        queue.put([item])
    queue.put([])
    assert (queue.dropped, queue.get(0), queue.get(0), queue.get(0.01)) == (3, 3, 4, None)
    queue.close()
    assert queue.finished


def test_items_that_arrive_together_are_kept_or_dropped_together() -> None:
    queue: DropOldest[int] = DropOldest(2)
    queue.put(range(5), dropped=7)
    queue.put([5])
    assert (queue.dropped, queue.get(0), queue.get(0)) == (7, 0, 1)
    queue.put([6, 7])
    assert (queue.dropped, [queue.get(0) for _ in range(4)]) == (10, [5, 6, 7, None])


# Replay


@pytest.mark.parametrize(("before_us", "window_us"), [(50, 100), (100, 50), (40, 70), (30, 30)])
def test_windows_are_recut_to_those_of_another_length(before_us: int, window_us: int) -> None:
    """Also where the clock was reset, and after a silence that was skipped."""
    rng = np.random.default_rng(1)
    once = np.sort(rng.integers(30, 2000, 150))
    runs = [make_events([*once.tolist(), *(once + 700_000_000).tolist()]), make_events((once // 3).tolist())]
    windows = [window for run in runs for window in windows_by_duration([run], before_us, Faults())]
    expected = [window for run in runs for window in windows_by_duration([run], window_us, Faults())]
    found = list(recut(iter(windows), window_us))
    assert [(window.t0_us, window.t1_us) for window in found] == [(window.t0_us, window.t1_us) for window in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(unpack(one), unpack(other))


def test_a_recording_is_played_at_its_own_pace_and_whole(tmp_path: Path, clock: Clock) -> None:
    events = random_events(4000, SIZE, 300_000)
    events["t"] += 2_000_000
    write_events(tmp_path / "a.dat", events, SIZE)
    source = RecordingSource(tmp_path / "a.dat", 50_000)
    source.open()
    source.read()
    started_s = clock.now_s
    rest = read_events(source, 1000)
    assert clock.now_s - started_s == pytest.approx(0.29)
    assert source.finite
    assert len(rest) >= 3800
    assert np.all(np.diff(rest["t"]) >= 0)
    assert rest["t"][-1] == events["t"][-1] - 2_000_000


@pytest.mark.usefixtures("clock")
def test_a_looped_recording_continues_in_time(tmp_path: Path) -> None:
    write_events(tmp_path / "a.dat", random_events(500, SIZE, 40_000), SIZE)
    source = RecordingSource(tmp_path / "a.dat", 20_000, loop=True)
    source.open()
    packets = [source.read() for _ in range(30)]
    events = np.concatenate([packet.events for packet in packets if packet])
    assert not source.finite
    assert len(events) == 1500
    assert np.all(np.diff(events["t"]) >= 0)
    assert [k for k, packet in enumerate(packets) if packet and packet.cut] == [10, 20]
    assert not any(packet.restarted for packet in packets if packet)


def seekable(path: Path, **settings: object) -> RecordingSource:
    """A looped recording with windows of 20 ms, opened, once its length is known."""
    source = RecordingSource(path, 20_000, loop=True, **settings)  # type: ignore[arg-type]
    source.open()
    source.measure()
    deadline = time.perf_counter() + 60
    while source.duration_s is None:
        assert time.perf_counter() < deadline
        time.sleep(0.001)
    return source


@pytest.mark.parametrize("name", ["a.dat", "a.npz", "a.csv"])
def test_a_recording_is_sought(tmp_path: Path, name: str) -> None:
    events = random_events(4000, SIZE, 300_000)
    events["t"] += 2_000_000
    write_events(tmp_path / name, events, SIZE)
    source = seekable(tmp_path / name, sensor_size=SIZE, speed=1000)
    assert source.duration_s == pytest.approx(0.3)
    source.read()
    for wanted_s, found_s in ((0.2, 0.2), (0.055, 0.04), (-5.0, 0.0), (99.0, 0.28)):
        source.seek(wanted_s)
        assert source.position_s == pytest.approx(min(max(wanted_s, 0.0), 0.28))
        first = source.read()
        assert first is not None
        assert first.restarted
        assert source.position_s == pytest.approx(found_s)
        packets = [source.read() for _ in range(4)]
        assert not any(packet is None or packet.restarted for packet in packets)
        window = np.concatenate([first.events, *(packet.events for packet in packets if packet)])
        start_us = 2_000_000 + round(1e6 * found_s)
        expected = events[(events["t"] >= start_us) & (events["t"] < start_us + 20_000)]
        assert np.array_equal(window["t"] + start_us, expected["t"])
        assert np.array_equal(window[["x", "y", "p"]], expected[["x", "y", "p"]])
    source.read()
    assert source.position_s == 0  # looped
    source.close()


def test_the_lost_time_of_a_slow_machine_is_kept_over_a_seek(tmp_path: Path) -> None:
    write_events(tmp_path / "a.dat", random_events(500, SIZE, 100_000), SIZE)
    source = seekable(tmp_path / "a.dat", speed=1000)
    source._pacer.behind_s = 2.5
    source.seek(0.05)
    source.read()
    assert source.behind_s == 2.5


def test_a_pipe_is_not_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_events(tmp_path / "a.dat", random_events(500, SIZE, 40_000), SIZE)
    monkeypatch.setattr(sources_module, "is_pipe", lambda path: True)
    source = RecordingSource(tmp_path / "a.dat", 20_000, loop=True)
    assert source.finite
    source.open()
    source.measure()
    with pytest.raises(ValueError, match="its length is not known"):
        source.seek(1.0)
    assert not source.hold()


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("packets", [1, 6, 9, 10])
def test_a_pipe_continues_in_windows_of_another_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packets: int) -> None:
    """Nothing is lost: what was played of a window that was not complete is played again."""
    events = random_events(4000, SIZE, 300_000)
    events["t"] += 2_010_000
    write_events(tmp_path / "a.dat", events, SIZE)
    monkeypatch.setattr(sources_module, "is_pipe", lambda path: True)
    source = RecordingSource(tmp_path / "a.dat", 20_000, loop=True)
    source.open()
    before = read_events(source, packets)
    source.set_window(50_000)
    complete_us = 2_000_000 + 20_000 * (packets // 5)
    begin_us = complete_us // 50_000 * 50_000
    first = source.read()
    assert first is not None
    assert first.restarted
    after = np.concatenate([first.events, read_events(source, 1000)])
    after["t"] += begin_us
    np.testing.assert_array_equal(after, events[events["t"] >= complete_us])
    assert source.read() is None
    assert len(before) == np.count_nonzero(events["t"] < 2_000_000 + 4_000 * packets)


@pytest.mark.parametrize("name", ["a.dat", "a.csv"])
@pytest.mark.parametrize(("packets", "expected_s"), [(0, 2.0), (1, 2.0), (13, 2.0), (15, 2.05), (17, 2.05), (80, 2.3)])
def test_a_recording_continues_in_windows_of_another_length(tmp_path: Path, name: str, packets: int, expected_s: float) -> None:
    """From the one that contains the start of the window being played; a position that is sought comes first."""
    events = random_events(4000, SIZE, 300_000)
    events["t"] += 2_010_000
    write_events(tmp_path / name, events, SIZE)
    source = seekable(tmp_path / name, sensor_size=SIZE, speed=1000)
    assert source.duration_s == pytest.approx(0.32)
    read_events(source, packets)
    source.set_window(50_000)
    assert source.duration_s == pytest.approx(0.35)
    for begin_us in (round(1e6 * expected_s), 2_100_000):
        packet = source.read()
        assert packet is not None
        assert packet.restarted
        window = np.concatenate([packet.events, read_events(source, 4)])
        expected = events["t"][(events["t"] >= begin_us) & (events["t"] < begin_us + 50_000)]
        assert np.array_equal(window["t"] + begin_us, expected)
        source.set_window(20_000)
        source.set_window(50_000)
        source.seek(0.11)
    source.close()


def test_the_length_is_measured_only_if_somebody_may_seek(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[RecordingSource] = []
    # Private: the start of the thread that measures.
    monkeypatch.setattr(RecordingSource, "_start_measuring", lambda source: started.append(source))
    write_events(tmp_path / "a.dat", random_events(500, SIZE, 40_000), SIZE)
    source, other = (RecordingSource(tmp_path / "a.dat", 20_000) for _ in range(2))
    source.open()
    assert started == []
    source.measure()
    source.measure()
    assert started == [source]
    source.close()
    source.open()
    assert started == [source, source]  # the pass ended with the source
    other.measure()
    assert len(started) == 2
    other.open()
    assert started[2:] == [other]


def test_a_held_recording_continues_where_it_stood(tmp_path: Path, clock: Clock) -> None:
    write_events(tmp_path / "a.dat", random_events(4000, SIZE, 300_000), SIZE)
    source = RecordingSource(tmp_path / "a.dat", 50_000)
    source.open()
    assert source.hold()  # before its first packet
    first, began_s = source.read(), clock.now_s
    for _ in range(30):
        assert source.hold()
    second = source.read()
    assert first is not None
    assert second is not None
    assert second.due_s - first.due_s == pytest.approx(3.01)
    assert clock.now_s - began_s == pytest.approx(3.01)
    assert second.until_us == 20_000
    assert source.behind_s == 0


@pytest.mark.parametrize(("speed", "slices"), [(1.0, 5), (0.1, 5), (0.01, 50)])
def test_a_packet_in_slow_motion_takes_a_tenth_of_a_second_at_most(clock: Clock, speed: float, slices: int) -> None:
    pacer = Pacer(50_000, speed)
    pacer.give(NO_EVENTS, 50_000)
    times_s = [clock.now_s]
    while not pacer.empty:
        pacer.next()
        times_s.append(clock.now_s)
    assert len(times_s) == slices + 1
    assert np.diff(times_s).max() <= 0.1 + 1e-9


def test_a_pacer_says_when_packets_were_due_and_gives_lost_time_back(clock: Clock) -> None:
    pacer = Pacer(50_000)
    pacer.give(make_events([0, 9_999, 10_000]), 20_000)
    first, second = pacer.next(), pacer.next()
    assert [len(first.events), len(second.events), pacer.empty] == [2, 1, True]
    assert second.due_s - first.due_s == pytest.approx(0.01, abs=1e-6)
    clock.sleep(0.7)
    pacer.give(NO_EVENTS, 30_000)
    late = pacer.next()
    assert pacer.behind_s == pytest.approx(0.69)
    assert late.due_s == clock.now_s


def test_the_silence_of_a_pipe_delays_nothing_that_follows(clock: Clock) -> None:
    pacer = Pacer(50_000, waits=True)
    pacer.give(NO_EVENTS, 50_000)
    began_s = clock.now_s
    while not pacer.empty:
        pacer.next()
    clock.sleep(3)  # until the next event, with which three seconds of windows become complete
    for k in range(1, 61):
        pacer.give(NO_EVENTS, 50_000 * (k + 1))
        while not pacer.empty:
            assert pacer.next().due_s == clock.now_s
    assert (clock.now_s - began_s, pacer.behind_s) == (pytest.approx(3.05), 0)
    pacer.give(NO_EVENTS, 3_100_000)
    while not pacer.empty:
        pacer.next()
    assert clock.now_s - began_s == pytest.approx(3.1)


@pytest.mark.usefixtures("clock")
def test_another_scene_begins_where_windows_were_skipped(tmp_path: Path) -> None:
    events = random_events(500, SIZE, 40_000)
    late = events.copy()
    late["t"] += 700_000_000
    write_events(tmp_path / "a.dat", np.concatenate([events, late]), SIZE)
    source = RecordingSource(tmp_path / "a.dat", 20_000)
    source.open()
    packets = [packet for packet in (source.read() for _ in range(20)) if packet]
    assert [k for k, packet in enumerate(packets) if packet.cut] == [10]
    assert packets[-1].until_us == 80_000


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("loop", [False, True])
def test_a_recording_that_is_opened_again_continues_where_it_was(tmp_path: Path, loop: bool) -> None:
    events = random_events(4000, SIZE, 100_000)
    write_events(tmp_path / "a.dat", events, SIZE)
    source = RecordingSource(tmp_path / "a.dat", 20_000, loop=loop)
    for k in range(5):
        source.open()
        source._pacer.behind_s += 0.5
        found = read_events(source, 5)
        assert len(found) == np.count_nonzero(events["t"] // 20_000 == k)
        source.close()
    assert (source.behind_s, source.passed) == (2.5, 4000)
    source.open()
    again = source.read()
    assert (again is not None and again.cut) if loop else again is None
    source.open()  # once it has ended, from its beginning
    assert loop or len(read_events(source, 100)) == 4000


# Video


class Frames:
    """A grabber of given pictures at given times."""

    name, finite, ahead, kind = "frames", True, False, "simulated"

    def __init__(self, pictures: list[np.ndarray], step_us: int) -> None:
        self._pictures, self._step_us, self._next = pictures, step_us, 0

    def open(self) -> None:
        self._next = 0

    def read(self) -> GreyFrame | None:
        if self._next == len(self._pictures):
            raise EOFError
        self._next += 1
        return GreyFrame(self._pictures[self._next - 1], self._next * self._step_us, time.perf_counter())

    def close(self) -> None:
        pass


def drive(frames: int = 8, **camera: object) -> list[np.ndarray]:
    """Pictures of the shipped fake camera."""
    fake = FakeCamera(SIZE, frames_per_s=500)
    fake.open()
    return [frame.grey for frame in (fake.read() for _ in range(frames)) if frame]


def test_simulated_events_are_the_same_every_time_and_spread_in_time() -> None:
    source = FrameSource(Frames(drive(), 20_000), SIZE, SimulatorConfig(), 50_000)
    source.open()
    first = read_events(source, 20)
    source.open()
    np.testing.assert_array_equal(read_events(source, 20), first)
    assert len(first) > 50
    assert len(np.unique(first["t"])) > 0.3 * len(first)
    assert np.all((first["t"] >= 20_000) & (first["t"] < 160_000))


def test_a_lower_contrast_threshold_gives_more_events() -> None:
    counts, pictures = [], drive()
    for threshold in (0.5, 0.25, 0.12):
        source = FrameSource(Frames(pictures, 20_000), SIZE, SimulatorConfig(), 50_000)
        source.open()
        before = read_events(source, 2)
        source.set_contrast(threshold)
        counts.append(len(before) + len(read_events(source, 20)))
    assert counts[0] < counts[1] < counts[2]


def test_the_threshold_of_off_events_stays_above_its_least() -> None:
    source = FrameSource(Frames(drive(2), 20_000), SIZE, SimulatorConfig(threshold_on=0.4, threshold_off=0.05), 50_000)
    source.set_contrast(0.05)
    assert (source._config.threshold_on, source._config.threshold_off) == (0.05, 0.01)


def test_after_a_gap_the_sensor_begins_anew() -> None:
    """A cut after three seconds is no motion: it makes no events."""
    dark, bright = np.full((48, 64), 20, np.uint8), np.full((48, 64), 200, np.uint8)
    source = FrameSource(Frames([dark, bright, bright], 3_000_000), SIZE, SimulatorConfig(shot_hz=0), 50_000)
    source.open()
    packets = [packet for packet in (source.read() for _ in range(3)) if packet]
    assert sum(len(packet.events) for packet in packets) == 0
    assert [packet.cut for packet in packets] == [False, True, True]  # no window covers the time in between


@pytest.mark.parametrize("shape", [(48, 64), (480, 640), (30, 40), (100, 64), (48, 200), (7, 5)])
def test_pictures_of_any_shape_cover_the_sensor(shape: tuple[int, int]) -> None:
    picture = np.full(shape, 77, np.uint8)
    fitted = fit(picture, SIZE)
    assert fitted.shape == (48, 64)
    assert (fitted == 77).all()


def video(path: Path, frames: int, rate: float) -> Path:
    """A short video of the drawn street."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, tuple(SIZE), False)
    for grey in drive(frames):
        writer.write(grey)
    writer.release()
    return path


def test_a_video_is_played_at_its_own_rate(tmp_path: Path, clock: Clock) -> None:
    source = FrameSource(VideoGrabber(video(tmp_path / "a.avi", 7, 20.0)), SIZE, SimulatorConfig(), 50_000)
    source.open()
    source.read()
    started_s, until = clock.now_s, 0
    while (packet := source.read()) is not None:
        until = max(until, packet.until_us or 0)
    assert until == 300_000
    assert clock.now_s - started_s == pytest.approx(0.3)


@pytest.mark.usefixtures("clock")
def test_a_video_is_played_by_opencv_up_to_4_12(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log level is set by another function than that of later versions."""
    levels = list[int]()
    monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    monkeypatch.delattr(cv2.utils, "logging", raising=False)
    grabber = VideoGrabber(video(tmp_path / "a.avi", 3, 20.0))
    grabber.open()
    assert grabber.read() is not None
    grabber.close()
    assert set(levels) == {0}


def test_a_video_is_played_at_another_speed(tmp_path: Path) -> None:
    source = FrameSource(VideoGrabber(video(tmp_path / "a.avi", 4, 20.0)), SIZE, SimulatorConfig(), 50_000, speed=0.5)
    source.open()
    packets = []
    while (packet := source.read()) is not None:
        packets.append(packet)
    timed = [packet for packet in packets if packet.until_us is not None]
    assert timed[-1].until_us == 150_000
    assert timed[-1].due_s - timed[0].due_s == pytest.approx(2e-6 * (timed[-1].until_us - timed[0].until_us), abs=1e-6)


def test_a_video_is_held_and_a_camera_is_not(tmp_path: Path, clock: Clock) -> None:
    source = FrameSource(VideoGrabber(video(tmp_path / "a.avi", 4, 20.0)), SIZE, SimulatorConfig(), 50_000)
    source.open()
    began_s = clock.now_s
    assert source.hold()
    assert clock.now_s == pytest.approx(began_s + 0.1)
    camera = FrameSource(FakeCamera(SIZE), SIZE, SimulatorConfig(), 50_000)
    camera.open()
    assert not camera.hold()


def test_a_looped_video_continues_in_time(tmp_path: Path) -> None:
    grabber = VideoGrabber(video(tmp_path / "a.avi", 3, 20.0), loop=True)
    grabber.open()
    times = [frame.t_us for frame in (grabber.read() for _ in range(7)) if frame]
    assert times == [0, 50_000, 100_000, 150_000, 200_000, 250_000, 300_000]
    assert not grabber.finite


@pytest.mark.usefixtures("clock")
def test_a_video_that_starts_again_is_another_scene(tmp_path: Path) -> None:
    """The jump from its last picture to its first is no motion: it makes no events, and each lap makes the same ones."""
    grabber = VideoGrabber(video(tmp_path / "a.avi", 3, 20.0), loop=True)
    source = FrameSource(grabber, SIZE, SimulatorConfig(leak_hz=0.0, shot_hz=0.0), 10_000)
    source.open()
    laps: list[list[tuple[int, int, int, int]]] = [[]]
    while len(laps) < 4:
        packet = source.read()
        assert packet is not None
        if packet.cut:
            laps.append([])
        laps[-1] += [(int(t) - 150_000 * (len(laps) - 1), int(x), int(y), int(p)) for t, x, y, p in packet.events.tolist()]
    assert laps[0] == laps[1] == laps[2] != []


class Capture:
    """OpenCV's VideoCapture of three pictures, with a rate and times of its own."""

    rate, times_ms = 25.0, (0.0, 40.0, 80.0)

    def __init__(self, *_: object) -> None:
        self._next = 0

    def open(self, *_: object) -> bool:
        self._next = 0
        return True

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, what: int) -> float:
        return self.rate if what == cv2.CAP_PROP_FPS else self.times_ms[self._next - 1]

    def set(self, *_: object) -> None:
        pass

    def read(self) -> tuple[bool, np.ndarray | None]:
        self._next += 1
        return (True, np.zeros((48, 64), np.uint8)) if self._next <= len(self.times_ms) else (False, None)

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("rate", "times_ms", "expected_us"),
    [
        (25.0, (0.0, 40.0, 80.0), [0, 40_000, 80_000]),
        (25.0, (0.0, 10.0, 90.0), [0, 10_000, 90_000]),  # of a varying rate
        (25.0, (0.0, 0.0, 0.0), [0, 40_000, 80_000]),  # a file without times
        (0.0, (0.0, 0.0, 0.0), [0, 40_000, 80_000]),  # neither
        (float("nan"), (0.0, 50.0, 100.0), [0, 50_000, 100_000]),
        (90_000.0, (0.0, 33.0, 66.0), [0, 33_000, 66_000]),  # the clock's rate instead of the pictures'
        (-1.0, (0.0, float("nan"), float("inf")), [0, 40_000, 80_000]),
        (float("inf"), (0.0, 5.0, 3.0), [0, 5_000, 45_000]),
    ],
)
def test_frame_rates_that_are_missing_or_odd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: float, times_ms: tuple[float, ...], expected_us: list[int]
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr(Capture, "rate", rate)
    monkeypatch.setattr(Capture, "times_ms", times_ms)
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    grabber = VideoGrabber(tmp_path / "a.mp4")
    grabber.open()
    assert [frame.t_us for frame in (grabber.read() for _ in range(3)) if frame] == expected_us
    assert (grabber.note is None) == (rate == 25.0)


def test_videos_that_make_no_events_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="contains only one picture"):
        VideoGrabber(video(tmp_path / "one.avi", 1, 20.0))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((48, 64), np.uint8))
    with pytest.raises(SourceError, match="contains only one picture"):
        VideoGrabber(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_bytes(b"film")
    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    monkeypatch.setattr(Capture, "times_ms", (0.0, 2000.0, 4000.0))
    with pytest.raises(SourceError, match="2 s apart, too far to simulate events"):
        VideoGrabber(tmp_path / "a.mp4")
    monkeypatch.setattr(Capture, "times_ms", ())
    with pytest.raises(SourceError, match="contains no picture"):
        VideoGrabber(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="neither a video file nor a camera"):
        VideoGrabber(tmp_path)


def test_drives_are_no_addresses() -> None:
    assert [is_address(text) for text in ("rtsp://camera/1", "C://clips/a.mp4", r"C:\clips\a.mp4")] == [True, False, False]


@pytest.mark.parametrize("place", ["rtsp://me:word@camera:554/1", "/dev/video1", 1])
def test_streams_and_devices_are_opened_as_cameras(monkeypatch: pytest.MonkeyPatch, place: str | int) -> None:
    opened = []

    def capture(*args: object) -> Capture:
        opened.append(args[0])
        return Capture()

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    grabber = CameraGrabber(place)
    with pytest.raises(SourceError, match="is not open"):
        grabber.read()
    grabber.open()
    assert opened == [place]
    assert [grabber.read() is not None for _ in range(3)] == [True] * 3
    with pytest.raises(SourceError, match="no more pictures") as gone:
        grabber.read()
    assert "word" not in f"{gone.value}{grabber.name}"
    assert not grabber.ahead
    assert not grabber.finite


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:pass@host:554/1", "rtsp://***@host:554/1"),
        ("rtsp://admin:p@ss/w#r?d@host/1", "rtsp://***@host/1"),
        ("RTSP://admin@host/1?user=a&pwd=b#c", "RTSP://***@host/1?***"),
        ("http://host/video?password=x@y", "http://***@y"),
        ("rtsp://host/1", "rtsp://host/1"),
        ("tcp://[::1]:7777", "tcp://[::1]:7777"),
        ("films/a@b?.mp4", "films/a@b?.mp4"),
        ("", ""),
    ],
)
def test_addresses_are_shown_without_passwords(address: str, shown: str) -> None:
    assert masked(address) == shown


def test_pushed_pictures_wait_two_at_most() -> None:
    frames = PushedFrames("page")
    for value in range(4):
        frames.push(np.full((2, 2), value, np.uint8))
    assert [int(frame.grey[0, 0]) for frame in (frames.read(), frames.read()) if frame] == [2, 3]
    assert frames.read() is None


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), (b"text", "not a video")])
def test_unusable_videos_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        VideoGrabber(tmp_path / "a.mp4")


# Devices


def test_a_device_clock_continues_in_a_silence(clock: Clock) -> None:
    device = DeviceClock(Faults())
    assert device.packet(NO_EVENTS).until_us is None
    assert device.packet(make_events([7_000_000])).until_us == 7_000_001
    assert device.packet(NO_EVENTS).until_us == 7_000_001
    clock.sleep(0.08)
    assert device.packet(NO_EVENTS).until_us == 7_060_001  # 20 ms are left for events on their way


@pytest.mark.usefixtures("clock")
def test_a_device_clock_follows_a_reset_but_no_disorder(caplog: pytest.LogCaptureFixture) -> None:
    device = DeviceClock(faults := Faults())
    device.packet(make_events(range(9_000_000, 9_000_012)))
    for times in ([8_995_000, 9_000_020], [3], [4] * 7 + [9_000_030]):  # disorder, then single times that are wrong
        assert not device.packet(make_events(times)).restarted
    assert (device.packet(NO_EVENTS).until_us, faults, caplog.messages) == (9_000_031, Faults(), [])
    # The reset may lie inside a packet, or its first events may come in a few small ones.
    packet = device.packet(make_events([9_000_040, *range(10)]))
    assert (packet.events["t"].tolist(), packet.until_us, packet.restarted) == (list(range(10)), 10, True)
    device.packet(make_events(range(5_000_000, 5_000_012)))
    packets = [device.packet(make_events([20, 21])) for _ in range(5)]
    assert [packet.restarted for packet in packets] == [False] * 4 + [True]
    assert (packets[-1].until_us, faults.found()) == (22, {"clock_resets": 2})
    back = [message.partition(":")[0] for message in caplog.messages]
    assert back == ["the clock of the source jumped back by 9.0 s", "the clock of the source jumped back by 5.0 s"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("packet_events", [1, 3, 20])
def test_a_device_clock_goes_by_the_rule_of_recordings(packet_events: int) -> None:
    times = [9_000_000 + 100 * k for k in range(60)]
    times[20] += 10**12  # a single time that is wrong
    times[40:] = [2_000_000 + 100 * k for k in range(20)]
    times[50:] = [8_000_000 + 100 * k for k in range(10)]
    device, faults = DeviceClock(live := Faults()), Faults()
    packets = [device.packet(make_events(times[i : i + packet_events])) for i in range(0, 60, packet_events)]
    expected = list(live_windows(iter([make_events(times)]), 1_000_000, faults))
    assert live == faults == Faults(clock_resets=1, time_glitches=1)
    assert sum(packet.restarted for packet in packets) == 1
    delivered = {int(t) for packet in packets for t in packet.events["t"]}
    assert delivered == {int(t) for window in expected for t in window.words["t"]}
    assert max(packet.until_us for packet in packets) < 10_000_000
    assert packets[-1].until_us == 8_000_901


class Driver:
    """neuromorphic-drivers with one camera: events, a silence, then it is pulled out."""

    prophesee_evk4 = SimpleNamespace(Properties=lambda: SimpleNamespace(width=64, height=48), Configuration=lambda: None)

    def __init__(self) -> None:
        self.closed = 0

    def open(self, configuration: object, iterator_timeout: float) -> Driver:
        self._packets = iter([self._packet(), None])
        return self

    def __next__(self) -> tuple[object, object]:
        try:
            return None, next(self._packets)
        except StopIteration:
            raise RuntimeError("LIBUSB_ERROR_NO_DEVICE\nmore") from None

    def _packet(self) -> object:
        events = np.zeros(3, [("t", "<u8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")])
        events["t"], events["x"], events["on"] = [10, 11, 12], [1, 2, 3], [True, False, True]
        return SimpleNamespace(polarity_events=events)

    def close(self) -> None:
        self.closed += 1


def test_a_sensor_is_read_and_its_loss_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "neuromorphic_drivers", driver)  # type: ignore[arg-type]
    source = SensorSource("evk4")
    assert source.sensor_size == SIZE
    source.open()
    packet = source.read()
    assert packet is not None
    assert packet.events.tolist() == [(10, 1, 0, 1), (11, 2, 0, 0), (12, 3, 0, 1)]
    assert packet.until_us == 13
    assert len(read_events(source, 1)) == 0
    with pytest.raises(SourceError, match=r"evk4: the camera was disconnected \(LIBUSB_ERROR_NO_DEVICE\)"):
        source.read()
    source.close()
    source.close()
    assert driver.closed == 1


@pytest.mark.parametrize(
    ("make", "module", "package"),
    [
        (lambda: SensorSource("evk4"), "neuromorphic_drivers", "neuromorphic-drivers>=0.18"),
        (lambda: NetworkSource("tcp://localhost:1"), "dv_processing", "dv-processing>=2.0"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, make: object, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf'needs {module}: pip install "{package}"$'):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "address", ["127.0.0.1:7777", "tcp://", "tcp://host", "udp://host:1", "tcp://host:99999", "tcp://[::1:5"]
)
def test_stream_addresses_are_checked(address: str) -> None:
    with pytest.raises(ConfigError, match="tcp://HOST:PORT"):
        NetworkSource(address)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "no stream within"),
        (b"\x40", "no stream within"),
        (b"\x40\x00\x00\x00IOHE", "no stream within"),
        (b"HTTP/1.1 400 Bad Request", "does not use DV's"),
        (b"\x01\x00\x00\x00", "does not use DV's"),
        (None, "closed the connection"),
    ],
)
def test_a_peer_that_stalls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, answer: bytes | None, message: str) -> None:
    if message == "no stream within":
        monkeypatch.setattr(devices_module, "HEADER_TIMEOUT_S", 0.5)
    with served(answer) as port, pytest.raises(SourceError, match=f"tcp://x: .*{message}"):
        Relay("127.0.0.1", port, "tcp://x")


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"\x40\x00\x00\x00IOHE", "no stream within 0.1 s"), (b"HTTP/1.1 400", "does not use DV's"), (None, "closed the conn")],
)
def test_the_relay_checks_the_header(answer: bytes | None, message: str) -> None:
    with served(answer) as port, pytest.raises(NoStreamError, match=message):
        connect("127.0.0.1", port, 0.1)
    with pytest.raises(NoStreamError, match="cannot connect"):
        connect("127.0.0.1", free_port(), 0.1)


@contextmanager
def served(*answers: bytes | None) -> Iterator[int]:
    """The port of a server that answers each connection with bytes and then nothing; None: it closes the connection."""
    peers = list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                peer, _ = server.accept()
                peers.append(peer)
                peer.sendall(answer or b"")
                if answer is None:
                    peer.close()

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(60)
        assert not thread.is_alive()
    for peer in peers:
        peer.close()


def header(size: SensorSize) -> bytes:
    """The header of a DV stream: that of a file without its first line."""
    return aedat4_bytes([], size).partition(b"\n")[2]


class Reader:
    """In place of dv-processing's reader, it waits for the header as long as it takes, and events do not come."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), 30)
        try:
            content = self._socket.recv(int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "little"), socket.MSG_WAITALL)
        except TimeoutError:
            raise RuntimeError("waited for the header for ever") from None
        sides = re.findall(rb'key="size[XY]" type="int">(\d+)<', content)
        if not sides:
            raise RuntimeError("reader.hpp(3): dv::read()\nRuntimeError: No streams available!\nStacktrace:\n 0# 0x3")
        self._size = tuple(int(side) for side in sides)

    def getEventResolution(self) -> tuple[int, ...]:  # noqa: N802
        return self._size

    def getNextEventBatch(self) -> None:  # noqa: N802
        return None

    def isRunning(self) -> bool:  # noqa: N802
        self._socket.setblocking(False)
        try:
            return bool(self._socket.recv(1))
        except BlockingIOError:
            return True

    def __del__(self) -> None:
        self._socket.close()


@pytest.fixture
def dv(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Reader` in place of dv-processing."""
    monkeypatch.setitem(sys.modules, "dv_processing", SimpleNamespace(io=SimpleNamespace(NetworkReader=Reader)))


@pytest.mark.usefixtures("dv")
def test_a_peer_that_stalls_when_a_stream_is_reopened_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(header(SIZE), b"") as port:
        source = NetworkSource(f"tcp://127.0.0.1:{port}")
        source.open()
        assert source.sensor_size == SIZE
        assert len(read_events(source, 1)) == 0
        source.close()
        source.close()
        monkeypatch.setattr(devices_module, "HEADER_TIMEOUT_S", 0.5)
        with pytest.raises(SourceError, match=rf"tcp://127.0.0.1:{port}: connected, but no stream within 0.5 s"):
            source.open()


@pytest.mark.usefixtures("dv")
def test_a_stream_of_another_sensor_size_is_refused() -> None:
    with served(header(SIZE), header(SensorSize(640, 480)), header(SIZE)) as port:
        source = NetworkSource(f"tcp://127.0.0.1:{port}")
        source.open()
        source.close()
        with pytest.raises(SourceError, match=r"^the sensor is now 640x480, not 64x48; restart evburst$"):
            source.open()
        assert source.sensor_size == SIZE
        source.open()
        source.close()


@pytest.mark.usefixtures("dv")
def test_the_end_of_a_stream_is_relayed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = NetworkSource(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        thread = Thread(target=source.open)
        thread.start()
        peer, _ = server.accept()
        peer.sendall(header(SIZE))
        thread.join(60)
        peer.close()
        with pytest.raises(SourceError, match="the stream has ended"):
            read_events(source, 1000)
        source.close()


@pytest.mark.usefixtures("dv")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"size", b"side", r"not a stream that dv-processing can read \(No streams available!\)$"),
        (b"IOHE", b"IOHF", "the server does not use DV's network protocol$"),
    ],
)
def test_a_header_of_wrong_content_is_no_question_of_the_connection(old: bytes, new: bytes, message: str) -> None:
    with served(header(SIZE).replace(old, new)) as port:
        source = NetworkSource(f"tcp://127.0.0.1:{port}")
        with pytest.raises(SourceError, match=rf"^tcp://127.0.0.1:{port}: {message}"):
            source.open()


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".org"])
@pytest.mark.usefixtures("dv")
def test_what_cannot_be_the_name_of_a_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--stream tcp://{host}:7777: '{host}' is not the name of a host$"):
        NetworkSource(f"tcp://{host}:7777")


PEER = """
import sys, time
import dv_processing as dv
writer = dv.io.NetworkWriter("127.0.0.1", int(sys.argv[1]), dv.io.Stream.EventStream(0, "events", "test", (64, 48)))
print("up", flush=True)
t = 1_700_000_000_000_000
while True:
    store = dv.EventStore()
    for k in range(10):
        store.push_back(t + 50 * k, k, 2 * k, k % 2 == 0)
    t += 1000
    writer.writeEvents(store)
    time.sleep(0.001)
"""


def test_a_network_stream_of_the_real_library_dies_and_returns() -> None:
    pytest.importorskip("dv_processing")
    port = free_port()
    source = NetworkSource(f"tcp://127.0.0.1:{port}")
    with pytest.raises(SourceError, match="cannot connect"):
        source.open()
    for _ in range(2):
        peer = subprocess.Popen([sys.executable, "-c", PEER, str(port)], stdout=subprocess.PIPE)
        try:
            assert peer.stdout is not None
            peer.stdout.readline()
            source.open()
            assert source.sensor_size == SIZE
            events = read_events(source, 40)
        finally:
            peer.kill()
            peer.communicate()
        assert len(events) >= 100
        assert np.all(np.diff(events["t"]) >= 0)
        assert set(events["x"].tolist()) == set(range(10))
        assert ((events["x"] % 2 == 0) == events["p"]).all()
        with pytest.raises(SourceError):
            read_events(source, 10_000)
        source.close()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_camera_has_the_sensor_of_the_weights(tmp_path: Path) -> None:
    """Also of weights that were trained on data of one's own, unless they do not state it."""
    bundle, path = Bundle.load("caltech6"), tmp_path / "own.safetensors"
    for record, size in (({"dataset": "mine", "sensor_size": [96, 64]}, (96, 64)), ({"dataset": "mine"}, None)):
        replace(bundle, record=record).save(path)
        config = load_config(LiveConfig, None, [f"detect.weights={path}"])
        if size is None:
            with pytest.raises(ConfigError, match="do not state their sensor size: pass --sensor-size"):
                open_source(LiveRequest(("camera", "fake")), config)
        else:
            assert open_source(LiveRequest(("camera", "fake")), config).sensor_size == size


def test_the_help_names_the_sensors_and_presets_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """It names them without importing the modules that define them."""
    with pytest.raises(SystemExit, match="0"):
        live_main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"--sensor {{{','.join(devices_module.SENSORS)}}}" in shown
    assert f"thresholds and noise are simulated: {', '.join(PRESETS)}" in shown
