"""live.py: the pipeline with the shipped fake camera, its totals, its recordings, its command line."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from evburst.app.detect import DetectConfig
from evburst.app.inference import BinnedWindow, WindowResult
from evburst.app.live import desktop
from evburst.app.live import pipeline as pipeline_module
from evburst.app.live.broadcast import Broadcaster, encode
from evburst.app.live.builder import Builder
from evburst.app.live.cli import live_main
from evburst.app.live.desktop import LiveWindow
from evburst.app.live.frames import FakeCamera, FrameSource
from evburst.app.live.networks import Prepared, prepare
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.recorder import LiveRecorder
from evburst.app.live.recording_settings import OF_RECORDINGS
from evburst.app.live.run import human_summary, summary
from evburst.app.live.sources import Packet, RecordingSource
from evburst.app.live.totals import LatencyHistogram
from evburst.data.errors import ConfigError, DataError, SourceError
from evburst.data.events import EventWindow, Faults, SensorSize
from evburst.data.readers import open_events
from evburst.data.simulation.sensor import SimulatorConfig
from evburst.data.writers import write_events
from tests.conftest import ROOT, make_events, random_events
from tests.helpers.waiting import wait_until

SIZE = SensorSize(64, 48)
CONFIG = LiveConfig(DetectConfig(ann=True, window_ms=20.0))


class Watcher:
    """A viewer that keeps the starts and the numbers of events of windows, and the sums of their grids."""

    paused = None

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.binned: list[int] = []

    def show(self, result: WindowResult) -> None:
        self.seen.append((result.t0_us, result.events))
        self.binned.append(int(result.grid.sum()))


def viewer(show: Callable[[WindowResult], None]) -> SimpleNamespace:
    """A viewer of one function that nobody looks at."""
    return SimpleNamespace(show=show, paused=None)


def camera(*dies_after: float) -> FrameSource:
    """The fake camera, small and fast."""
    return FrameSource(FakeCamera(SIZE, 100.0, dies_after), SIZE, SimulatorConfig(shot_hz=5), 20_000, upsample=False)


def run_until(pipeline: LivePipeline, windows: int) -> None:
    """Start, wait for that many windows, stop."""
    pipeline.start()
    while pipeline.figures.windows < windows and time.perf_counter() - pipeline.started_s < 90:
        pipeline.wait(0.02)
    pipeline.stop()


def test_boxes_are_predicted_ahead_in_every_window() -> None:
    """The same function as in recordings: the time of the boxes is that of the window's end and the lead."""
    pipeline, times = LivePipeline(camera(), LiveConfig(replace(CONFIG.detect, lead_ms=30.0))), list[int]()
    pipeline.viewers.append(viewer(lambda result: times.append(result.detections.t_us - result.t1_us)))
    broadcaster = Broadcaster(pipeline)
    pipeline.viewers.append(broadcaster)
    run_until(pipeline, 3)
    assert set(times) == {30_000}
    shown = broadcaster._newest[1]
    assert shown is not None
    message = encode(shown, SIZE, with_picture=False)
    header = json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])
    assert (header["t_us"], broadcaster.about()["lead_ms"]) == (shown.result.t1_us, 30)
    assert summary(pipeline, 1.0)["lead_ms"] == 30


def test_windows_come_in_order_without_gaps_and_are_counted() -> None:
    watcher = Watcher()
    pipeline = LivePipeline(camera(), CONFIG)
    pipeline.viewers.append(watcher)
    run_until(pipeline, 8)
    starts = [t0 for t0, _ in watcher.seen]
    assert len(starts) >= 8
    assert all(later > earlier and (later - earlier) % 20_000 == 0 for earlier, later in pairwise(starts))
    assert sum(n for _, n in watcher.seen) == sum(watcher.binned) == pipeline.figures.events > 0
    missing = (starts[-1] - starts[0]) // 20_000 + 1 - len(starts)
    assert pipeline.dropped >= missing
    result = summary(pipeline, 1.0)
    assert (result["windows"], result["simulated"], result["source_lost"]) == (len(starts), True, 0)
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"] <= result["latency_ms"]["max"]
    json.dumps(result)


def test_when_late_the_oldest_windows_are_dropped() -> None:
    """Each run lasts until two more windows are dropped: what is run next is newer than everything that was dropped before."""
    pipeline, done = LivePipeline(camera(), CONFIG), Event()
    quick, before_the_first, shown = pipeline.inference.run, list[int](), list[tuple[int, int]]()

    def slow(batch: Sequence[BinnedWindow], size: int = 0) -> list[WindowResult]:
        before = pipeline.dropped
        before_the_first.append(before)
        wait_until(lambda: done.is_set() or pipeline.dropped > before + 1)
        return quick(batch, size)

    pipeline.inference.run = slow  # type: ignore[method-assign]
    pipeline.viewers.append(viewer(lambda result: shown.append((result.t0_us, pipeline.dropped))))
    pipeline.start()
    wait_until(lambda: len(shown) >= 8)
    done.set()
    pipeline.stop()
    assert pipeline.dropped >= 16
    for k, ((_, dropped), (t0_us, _)) in enumerate(pairwise(shown), 1):
        assert (t0_us - shown[0][0]) // 20_000 >= k + dropped - before_the_first[0]


def test_a_slow_camera_loses_no_window() -> None:
    """Each of its pictures completes twelve windows."""
    source = FrameSource(FakeCamera(SIZE, 4.0), SIZE, SimulatorConfig(shot_hz=5), 20_000, upsample=False)
    pipeline, watcher = LivePipeline(source, CONFIG), Watcher()
    pipeline.viewers.append(watcher)
    run_until(pipeline, 40)
    starts = [t0 for t0, _ in watcher.seen]
    assert (pipeline.dropped, set(np.diff(starts))) == (0, {20_000})


def test_a_source_that_dies_is_waited_for_and_resumed() -> None:
    lines: list[str] = []
    watcher = Watcher()
    pipeline = LivePipeline(camera(0.15, 0.15), CONFIG, lines.append)
    pipeline.viewers.append(watcher)
    pipeline.start()
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline and not (pipeline.capture.lost == 2 and pipeline.capture.status == "running"):
        time.sleep(0.02)
    shown = len(watcher.seen)
    while time.perf_counter() < deadline and len(watcher.seen) < shown + 3:
        time.sleep(0.02)
    pipeline.stop()
    assert [line.split(":")[0] for line in lines] == ["waiting for fake camera", "fake camera is back"] * 2
    assert "was unplugged" in lines[0]
    assert len(watcher.seen) >= shown + 3
    starts = [t0 for t0, _ in watcher.seen]
    assert starts == sorted(set(starts))
    assert starts[-1] > 1_000_000  # the run's clock has gone on through both gaps


class Stream:
    """A source that is lost once it has delivered a packet, and does not return while `gone` is set."""

    simulated, finite, behind_s, kind, sensor_size = False, False, 0.0, "measured", SIZE

    def __init__(self, name: str) -> None:
        self.name, self.faults, self.gone, self.opened = name, Faults(), Event(), 0

    def open(self) -> None:
        self.opened += 1
        if self.gone.is_set():
            raise SourceError(f"{self.name}: cannot connect")

    def read(self) -> Packet:
        time.sleep(0.01)
        if self.gone.is_set():
            raise SourceError(f"{self.name}: the stream has ended")
        return Packet(make_events([]), round(1e6 * time.perf_counter()), time.perf_counter())

    def close(self) -> None:
        pass


def test_a_camera_in_place_of_a_lost_stream_is_not_taken_for_it() -> None:
    """Its loss is reported once, also if it is tried again after the camera; each line names its source once."""
    lines: list[str] = []
    stream, other = Stream("tcp://a:1"), Stream("the page's camera")
    pipeline = LivePipeline(stream, CONFIG, lines.append)
    pipeline.start()
    wait_until(lambda: pipeline.capture.status == "running")
    stream.gone.set()
    wait_until(lambda: len(lines) == 2)
    pipeline.use(other)
    wait_until(lambda: pipeline.capture.status == "running")
    tried = stream.opened
    pipeline.use(stream)
    wait_until(lambda: stream.opened > tried and pipeline.capture.status.startswith("waiting"))
    lost = ["waiting for tcp://a:1: the stream has ended", "waiting for tcp://a:1: cannot connect"]
    assert (lines, pipeline.capture.status) == (lost, lost[1])
    stream.gone.clear()
    wait_until(lambda: pipeline.capture.status == "running")
    pipeline.stop()
    assert lines == [*lost, "tcp://a:1 is back"]
    assert pipeline.capture.lost == 1


def test_a_source_that_opens_and_delivers_nothing_is_still_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evburst.app.live.capture._RETRY_S", 0.01)
    lines: list[str] = []
    stream = Stream("tcp://a:1")
    pipeline, read, silent = LivePipeline(stream, CONFIG, lines.append), stream.read, Event()

    def nothing() -> Packet | None:
        if silent.is_set():
            raise SourceError("tcp://a:1: no packet")
        return read()

    stream.read = nothing  # type: ignore[method-assign]
    pipeline.start()
    wait_until(lambda: pipeline.capture.status == "running")
    silent.set()
    wait_until(lambda: stream.opened > 5)
    assert (pipeline.capture.lost, lines, pipeline.capture.status) == (1, ["waiting for tcp://a:1: no packet"], lines[0])
    silent.clear()
    wait_until(lambda: pipeline.capture.status == "running")
    pipeline.stop()
    assert lines[1:] == ["tcp://a:1 is back"]


def test_a_source_that_is_lost_while_it_is_exchanged_is_named_itself() -> None:
    lines: list[str] = []
    stream, other = Stream("tcp://a:1"), Stream("the page's camera")
    pipeline = LivePipeline(stream, CONFIG, lines.append)

    def read() -> Packet:
        pipeline.use(other)
        raise SourceError("tcp://a:1: the stream has ended")

    stream.read = read  # type: ignore[method-assign]
    pipeline.start()
    wait_until(lambda: pipeline.capture.status == "running" and other.opened)
    pipeline.stop()
    assert lines == ["waiting for tcp://a:1: the stream has ended"]


def test_what_a_thread_dies_of_ends_the_run() -> None:
    pipeline = LivePipeline(camera(), CONFIG)

    def broken(*_: object) -> list[WindowResult]:
        raise RuntimeError("unforeseen")

    pipeline.inference.run = broken  # type: ignore[method-assign]
    pipeline.start()
    with pytest.raises(RuntimeError, match="unforeseen"):
        pipeline.wait(5)
    pipeline.stop()
    assert not any(thread.is_alive() for thread in pipeline._threads)  # private: of all threads, those of this pipeline


def test_settings_act_while_it_runs() -> None:
    config = LiveConfig(DetectConfig(window_ms=20.0))
    pipeline = LivePipeline(camera(), config)
    pipeline.start()
    pipeline.set_score(0.9)
    pipeline.set_network(timesteps=2)
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline and pipeline.network.timesteps != 2:
        time.sleep(0.02)
    assert pipeline.network.timesteps == 2
    assert pipeline.network.detector.post.score == 0.9
    pipeline.stop()


def recording(path: Path) -> RecordingSource:
    """100 windows of 20 ms, of which window k holds 100 + k events, played in a loop."""
    times = np.concatenate([np.linspace(20_000 * k, 20_000 * k + 19_999, 100 + k).astype(int) for k in range(100)])
    write_events(path, make_events(times), SIZE)
    source = RecordingSource(path, 20_000, loop=True)
    source.open()
    source.measure()
    wait_until(lambda: source.duration_s == 2.0)
    source.close()
    return source


def sought_run(path: Path, stood_s: float = 0.0) -> tuple[list[tuple[int, int]], LivePipeline]:
    """Start and events of the windows of a run with a seek, and the run; `stood_s` seconds before the seek count as a pause."""
    watcher, source = Watcher(), recording(path)
    pipeline = LivePipeline(source, CONFIG)
    pipeline.viewers.append(watcher)
    pipeline.start()
    wait_until(lambda: len(watcher.seen) >= 2)
    pipeline.capture.started_s -= stood_s
    source.seek(1.63)
    wait_until(lambda: any(events >= 181 for _, events in watcher.seen))
    pipeline.stop()
    return watcher.seen, pipeline


def test_after_a_seek_windows_are_those_of_the_recording(tmp_path: Path) -> None:
    """No window mixes events from before and after the seek, and the run's clock continues."""
    seen, pipeline = sought_run(tmp_path / "a.dat")
    starts, counts = zip(*seen, strict=True)
    assert list(starts) == sorted(set(starts))
    sought = next(k for k, count in enumerate(counts) if count >= 181)
    assert all(100 <= count < 150 for count in counts[:sought])
    assert list(counts[sought:]) == sorted(counts[sought:])
    assert sum(counts) == pipeline.figures.events  # the totals count what was played


def test_a_seek_leaves_out_the_time_in_which_a_recording_stood_still(tmp_path: Path) -> None:
    """The run's clock continues, so that there is no hole in what is recorded."""
    seen, _ = sought_run(tmp_path / "a.dat", stood_s=1000.0)
    starts = [t0 for t0, _ in seen]
    assert starts == sorted(set(starts))
    assert max(later - earlier for earlier, later in pairwise(starts)) < 500_000_000


def test_another_network_is_prepared_while_the_present_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inference continues while a new network is being built, and windows binned for the old one are run by the old one."""
    pipeline, gate = LivePipeline(camera(), LiveConfig(DetectConfig(window_ms=20.0, timesteps=1))), Event()
    prepare = pipeline_module.prepare

    def slow(*args: Any) -> Prepared:
        assert gate.wait(60)
        return prepare(*args)

    monkeypatch.setattr(pipeline_module, "prepare", slow)
    pipeline.start()
    pipeline.set_score(0.9)
    pipeline.set_network(ann=True)
    wait_until(lambda: pipeline.network.detect.post.score == 0.9)
    shown = pipeline.figures.windows
    wait_until(lambda: pipeline.figures.windows > shown + 5)
    assert pipeline.preparing
    assert pipeline.network.timesteps == 1
    gate.set()
    wait_until(lambda: pipeline.network.timesteps is None)
    assert pipeline.network.detector.post.score == 0.9
    pipeline.set_network(ann=False, weights="caltech6", timesteps=2)
    wait_until(lambda: len(pipeline.shown.classes) == 6)
    assert pipeline.shown.name == "SNN T=2"
    assert pipeline.config.detect.weights == "caltech6"
    pipeline.stop()
    json.dumps(summary(pipeline, 1.0))


def test_a_summary_covers_the_windows_of_all_networks() -> None:
    """Also if their windows differ in length."""
    pipeline = LivePipeline(camera(), CONFIG)
    for weights, window_us in (("street", 20_000), ("caltech6", 40_000)):
        pipeline.network = prepare(DetectConfig(weights=weights, ann=True, window_ms=window_us / 1000), SIZE, Faults())
        inference = pipeline.network.inference
        for count in (0, 300):
            window = EventWindow(0, window_us, random_events(count, SIZE, window_us))
            (result,) = inference.run([inference.bin(window, inference.new_grid())])
            pipeline.figures.add(result, pipeline.network)
    found = summary(pipeline, 1.0)
    assert [found[name] for name in ("windows", "idle_windows", "events", "events_per_s")] == [4, 2, 600, 5000]
    assert (found["window_ms"], found["weights"], found["network_changes"]) == (None, "caltech6", 1)
    first, *_, changed, energy = human_summary(found).splitlines()
    assert first == "fake camera: 1.0 s, 4 windows, 0 dropped; 5,000 simulated events per second"
    assert changed == "network   changed 1 time; energy is that of the last 2 windows (ANN, weights caltech6)"
    assert found["energy"]["windows"] + found["energy"]["idle_windows"] == 2
    assert energy.startswith("energy ")


def test_a_summary_names_no_network_that_has_not_run() -> None:
    """One that is ready when the run ends has no window in it."""
    pipeline = LivePipeline(camera(), CONFIG)
    window = EventWindow(0, 20_000, random_events(300, SIZE, 20_000))
    (result,) = pipeline.inference.run([pipeline.inference.bin(window, pipeline.inference.new_grid())])
    pipeline.figures.add(result, pipeline.network)
    pipeline.network = prepare(DetectConfig(weights="caltech6", timesteps=2, window_ms=40.0), SIZE, Faults())
    found = summary(pipeline, 1.0)
    assert [found[name] for name in ("window_ms", "weights", "network", "timesteps")] == [20, "street", "ann", None]
    assert found["network_changes"] == 0
    assert "network " not in human_summary(found)


def test_a_network_that_cannot_be_prepared_leaves_the_present_one() -> None:
    lines: list[str] = []
    pipeline = LivePipeline(camera(), CONFIG, lines.append)
    pipeline.start()
    pipeline.set_network(weights="gone.safetensors")
    wait_until(lambda: bool(pipeline.problem))
    assert "gone.safetensors" in pipeline.problem
    assert pipeline.wanted.weights == "street"
    assert lines[0].startswith("warning: ")
    shown = pipeline.figures.windows
    wait_until(lambda: pipeline.figures.windows > shown)
    pipeline.stop()


def test_of_many_wishes_the_newest_is_built() -> None:
    built: list[int] = []
    started, gate, failed = Event(), Event(), list[Exception]()

    def build(wish: int) -> int:
        started.set()
        assert gate.wait(60)
        if wish < 0:
            raise ConfigError("negative")
        built.append(wish)
        return wish

    builder = Builder[int, int](build, failed.append, quiet_s=0.0)
    assert builder.take() is None
    builder.request(1)
    assert started.wait(60)
    for wish in range(2, 1000):
        builder.request(wish)
    gate.set()
    wait_until(lambda: built == [1, 999])
    wait_until(lambda: builder.take() == 999)
    assert not builder.busy
    builder.request(-1)
    wait_until(lambda: bool(failed))
    assert isinstance(failed[0], ConfigError)
    builder.close()
    builder.request(5)
    assert built == [1, 999]


def test_wishes_that_do_not_rest_are_not_built_one_by_one() -> None:
    built: list[int] = []
    builder = Builder[int, None](built.append, lambda error: None, quiet_s=3600.0, longest_s=3600.0)
    for wish in range(1000):
        builder.request(wish)
    assert built == []
    builder.close()


def test_a_recording_holds_all_windows_also_the_dropped_ones(tmp_path: Path) -> None:
    pipeline = LivePipeline(camera(), replace(CONFIG, queue_windows=1))
    quick = pipeline.inference.run
    pipeline.inference.run = lambda *args: (time.sleep(0.1), quick(*args))[1]  # type: ignore[method-assign]
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    pipeline.recorders.add(recorder)
    run_until(pipeline, 4)
    stream = open_events(tmp_path / "a.dat")
    events = np.concatenate(list(stream.packets()))
    assert stream.sensor_size == SIZE
    assert len(events) == recorder.events > pipeline.figures.events > 0
    assert np.all(np.diff(events["t"]) >= 0)
    assert stream.faults.found() == {}


@pytest.mark.parametrize("cut", [0, 3])
def test_a_recording_is_readable_without_having_been_closed(tmp_path: Path, cut: int) -> None:
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    recorder.write(make_events([5, 6, 7], 1, 2, 1))
    content = (tmp_path / "a.dat").read_bytes()
    (tmp_path / "b.dat").write_bytes(content[: len(content) - cut])
    events = np.concatenate(list(open_events(tmp_path / "b.dat").packets()))
    assert events["t"].tolist() == [5, 6, 7][: 3 - bool(cut)]
    recorder.close()


def test_a_recording_on_a_full_disk_keeps_the_events_before_and_ends_no_run(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # a file that may not grow further stands in for a full disk
    pipeline, lines = LivePipeline(camera(), CONFIG, lambda line: lines.append(line)), list[str]()
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    recorder.write(make_events([5, 6, 7], 1, 2, 1))
    size = (tmp_path / "a.dat").stat().st_size
    pipeline.recorders.add(recorder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        pipeline.recorders.write(make_events(list(range(8, 20)), 1, 2, 1))
        pipeline.recorders.end(recorder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [line.partition("recording stopped ")[2] for line in lines] == [f"({os.strerror(errno.EFBIG)})"]
    assert (recorder.stopped, recorder.events) == (os.strerror(errno.EFBIG), 3)
    assert (tmp_path / "a.dat").stat().st_size == size
    assert np.concatenate(list(open_events(tmp_path / "a.dat").packets()))["t"].tolist() == [5, 6, 7]


def test_a_recording_that_cannot_begin_leaves_no_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(DataError, match=r"a\.dat: cannot be written"):
            LiveRecorder(tmp_path / "a.dat", SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "a.dat").exists()
    LiveRecorder(tmp_path / "a.dat", SIZE).close()


def test_a_recording_continues_past_71_minutes_and_stops_at_its_limit(tmp_path: Path) -> None:
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE, max_bytes=80)
    recorder.write(make_events([2**32 - 2, 2**32 + 5]))
    assert recorder.stopped == ""
    with pytest.raises(DataError, match=r"recording stopped \(it reached its limit"):
        recorder.write(make_events([2**32 + 6]))
    assert recorder.stopped
    recorder.close()
    events = np.concatenate(list(open_events(tmp_path / "a.dat").packets()))
    assert events["t"].tolist() == [2**32 - 2, 2**32 + 5]
    with pytest.raises(DataError, match="cannot be written"):
        LiveRecorder(tmp_path / "gone" / "a.dat", SIZE)


def test_latency_quantiles_are_within_a_percent() -> None:
    histogram = LatencyHistogram()
    assert histogram.quantile_ms(0.5) is None
    values = np.random.default_rng(0).lognormal(3, 1, 20_000)
    for value in values:
        histogram.add(float(value))
    for share in (0.5, 0.9, 0.99):
        assert histogram.quantile_ms(share) == pytest.approx(np.quantile(values, share), rel=0.01)


def test_a_recording_overwrites_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"old")
    (tmp_path / "link.dat").symlink_to(tmp_path / "nowhere.dat")
    for name in ("a.dat", "link.dat"):
        with pytest.raises(DataError, match="cannot be written"):
            LiveRecorder(tmp_path / name, SIZE)
    assert (tmp_path / "a.dat").read_bytes() == b"old"
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE, overwrite=True)
    recorder.write(make_events([1]))
    recorder.close()
    assert open_events(tmp_path / "a.dat").sensor_size == SIZE
    LiveRecorder(Path(os.devnull), SIZE).close()


def write_video(path: Path, frames: int, rate: float) -> Path:
    """Frames of noise as motion JPEG."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, tuple(SIZE), False)
    for k in range(frames):
        writer.write(np.random.default_rng(k).integers(0, 255, (SIZE.height, SIZE.width), np.uint8))
    writer.release()
    return path


# Command line


def live(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of live.py."""
    code = live_main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_the_command_prints_its_figures_and_writes_a_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--camera", "fake", "--sensor-size", "64x48", "--headless", "--seconds", "1", "--record", tmp_path / "o.dat"]
    code, out, _ = live(capsys, *flags, "--json", "--timesteps", "1", "--score", "0.2", "--preset", "gen1")
    result = json.loads(out)
    assert code == 0
    assert (result["source"], result["timesteps"], result["sensor_size"]) == ("fake camera", 1, [64, 48])
    assert result["windows"] > 0
    assert result["events_per_s"] > 0
    assert 0 < result["energy"]["ratio"] < 1
    assert {"windows", "dropped", "latency_ms", "events_per_s", "energy"} <= result.keys()
    assert open_events(tmp_path / "o.dat").sensor_size == SIZE
    code, out, _ = live(capsys, *flags[:-2])
    assert (code, out.split()[0], "recorded " in out) == (0, "fake", False)
    code, out, _ = live(capsys, *flags[:-1], tmp_path / "p.dat")
    (line,) = (line for line in out.splitlines() if line.startswith("recorded"))
    count = sum(map(len, open_events(tmp_path / "p.dat").packets()))
    assert (code, line) == (0, f"recorded  {count:,} events")


def test_a_recording_that_stops_early_is_an_error_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run continues, prints its figures, and keeps what was recorded."""
    resource = pytest.importorskip("resource")  # a file that may not grow further stands in for a full disk
    limits, path = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "o.dat"
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        flags = ["--camera", "fake", "--sensor-size", "64x48", "--headless", "--seconds", "1", "--record", path, "--json"]
        code, out, err = live(capsys, *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    result = json.loads(out)
    assert (code, result["recording_stopped"], result["windows"] > 1) == (1, os.strerror(errno.EFBIG), True)
    assert f"recording stopped early ({os.strerror(errno.EFBIG)}); it holds the first" in err
    assert sum(map(len, open_events(path).packets())) == result["recorded_events"] < result["events_per_s"]


def test_a_recording_of_another_suffix_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.csv"
    assert live_main(["--camera", "fake", "--headless", "--seconds", "1", "--record", str(out)]) == 1
    assert f"--record {out}: recordings are DAT files" in capsys.readouterr().err
    assert not out.exists()


def test_a_recording_ends_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    recorder.write(make_events(list(range(0, 400_000, 100)), 5, 6, 1))
    recorder.close()
    code, out, _ = live(capsys, "--events", tmp_path / "a.dat", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["windows"] + result["dropped"] == 8
    assert not result["simulated"]


@pytest.mark.parametrize("through", ["itself", "symlink", "hard link", "other spelling", "folder link"])
def test_a_run_does_not_record_onto_its_own_source(tmp_path: Path, capsys: pytest.CaptureFixture[str], through: str) -> None:
    source = tmp_path / "a.dat"
    recorder = LiveRecorder(source, SIZE)
    recorder.write(make_events(list(range(0, 100_000, 100)), 5, 6, 1))
    recorder.close()
    before, out = source.read_bytes(), tmp_path / "b.dat"
    if through == "itself":
        out = source
    elif through == "symlink":
        out.symlink_to(source)
    elif through == "hard link":
        os.link(source, out)
    elif through == "other spelling":
        out = tmp_path / ".." / tmp_path.name / "a.dat"
    else:
        (tmp_path / "folder").symlink_to(tmp_path)
        out = tmp_path / "folder" / "a.dat"
    for flags in ([], ["--overwrite"]):
        code, _, err = live(capsys, "--events", source, "--record", out, *flags)
        assert (code, "which this run reads" in err) == (1, True)
        assert source.read_bytes() == before


def test_a_run_overwrites_a_recording_only_where_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "o.dat").write_bytes(b"old")
    flags = ["--camera", "fake", "--sensor-size", "64x48", "--ann", "--seconds", "3", "--record", tmp_path / "o.dat"]
    code, _, err = live(capsys, *flags)
    assert (code, "--overwrite" in err, (tmp_path / "o.dat").read_bytes()) == (1, True, b"old")
    assert live(capsys, *flags, "--overwrite")[0] == 0
    assert open_events(tmp_path / "o.dat").sensor_size == SIZE


@pytest.mark.parametrize(
    ("given", "instead"),
    [("track=true", "evburst detect"), ("classes=[car]", "evburst detect"), ("window_events=5", "--window-ms"),
     ("stride_ms=5", "--window-ms"), ("batch=4", ""), ("start_s=3", "is sought on the page"), ("max_windows=2", "--seconds"),
     ("slow=3", "--speed"), ("fps=5", "--speed"), ("sinks=[jsonl]", "--record"), ("overwrite=true", "--overwrite")],
)  # fmt: skip
def test_settings_of_recordings_are_refused(given: str, instead: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, value = given.partition("=")
    flag = f"--detect.{name.replace('_', '-')}"
    for args in (["--set", f"detect.{given}"], [flag] if value == "true" else [flag, value.strip("[]")]):
        code, _, err = live(capsys, "--camera", "fake", "--headless", "--seconds", 1, *args)
        assert code == 1
        assert f"live detection has no detect.{name}" in err
        assert "; settings of recordings have to be left out" in err
        assert instead in err


def test_the_help_states_the_timesteps_that_live_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        live_main(["--help"])
    assert "timesteps T of the spiking network (1 to 64; default: 1)" in " ".join(capsys.readouterr().out.split())


def test_the_help_lists_no_setting_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        live_main(["--help"])
    out = capsys.readouterr().out
    assert "--detect.idle-events" in out
    assert not [name for name in OF_RECORDINGS if re.search(rf"detect\.{name.replace('_', '-')}(?![\w-])", out)]


def test_a_recording_is_read_as_the_settings_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path := tmp_path / "a.csv").write_text("t,x,y,p\n" + "".join(f"{t},5,5,1\n" for t in range(151)))
    flags = ["--events", path, "--json", "--sensor-size", "32x32", "--set", "detect.reading.time_unit=ms"]
    code, out, _ = live(capsys, *flags)
    result = json.loads(out)
    assert (code, result["windows"] + result["dropped"]) == (0, 4)


def test_a_source_that_ends_before_the_first_window_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "a.avi", 2, 25.0)
    flags = ["--video", tmp_path / "a.avi", "--sensor-size", "64x48", "--ann", "--record", tmp_path / "o.dat"]
    code, out, err = live(capsys, *flags)
    assert (code, out) == (1, "")
    assert not (tmp_path / "o.dat").exists()
    assert err == "error: a.avi: ended before its first window of 50 ms was complete; nothing was detected\n"


def test_a_run_of_idle_windows_has_no_energy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_events(tmp_path / "a.dat", make_events(list(range(0, 200_000, 100)), 5, 6, 1), SIZE)
    for network in ([], ["--ann"]):
        flags = ["--events", tmp_path / "a.dat", "--realtime", "--set", "detect.idle_events=1000000", *network]
        code, out, _ = live(capsys, *flags)
        assert code == 0
        assert [line for line in out.splitlines() if line.startswith("energy")] == ["energy    none: every window is idle"]


@pytest.mark.parametrize("flags", [["--record"], ["--overwrite", "--record"]])
def test_a_run_that_cannot_start_records_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    pytest.importorskip("fastapi")
    out = tmp_path / "keep.dat"
    before = [b"old"] if "--overwrite" in flags else []
    for content in before:
        out.write_bytes(content)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        code, _, err = live(capsys, "--camera", "fake", "--sensor-size", "64x48", "--ann", "--serve", address, *flags, out)
    assert (code, address in err) == (1, True)
    assert [path.read_bytes() for path in tmp_path.glob("*.dat")] == before


def test_a_recording_is_played_slowly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    recorder.write(make_events(list(range(0, 200_000, 100)), 5, 6, 1))
    recorder.close()
    flags = ["--events", tmp_path / "a.dat", "--realtime", "--ann", "--json"]
    code, out, _ = live(capsys, *flags, "--speed", "0.25")
    result = json.loads(out)
    assert (code, result["windows"] + result["dropped"], result["kind"]) == (0, 4, "recorded")
    assert result["seconds"] > 0.7


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_address_that_does_not_answer_is_one_line_without_its_password(scheme: str) -> None:
    """Nobody listens at port 9 of this machine. In a process of its own, because FFmpeg decides once what it prints."""
    command = [sys.executable, "-m", "evburst", "live", "--ann", "--video", f"{scheme}://admin:sec/ret@127.0.0.1:9/1?pwd=other"]
    environment = {name: value for name, value in os.environ.items() if name != "OPENCV_FFMPEG_LOGLEVEL"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: {scheme}://***@127.0.0.1:9/1?***: cannot be opened")
    for secret in ("admin", "sec", "ret@", "other"):
        assert secret not in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no source: pass one of"),
        (["--camera", "front"], "expected a number"),
        (["--camera", "77"], "camera 77: cannot be opened"),
        (["--video", "gone.mp4"], "no such file"),
        (["--events", "a.dat"], "a.dat: no such file"),
        (["--stream", "127.0.0.1"], "tcp://HOST:PORT"),
        (["--camera", "fake", "--preset", "dvs"], "known: dvs346"),
        (["--events", "a.dat", "--preset", "dvs346"], "--preset: events come from a real sensor"),
        (["--camera", "fake", "--seconds", "0"], "seconds must be"),
        (["--camera", "fake", "--weights", "strete"], "bundled: caltech101, caltech6"),
        (["--camera", "fake", "--headless", "--serve"], "--headless contradicts --serve"),
        (["--camera", "fake", "--set", "queue_window=1"], "did you mean 'queue_windows'"),
        (["--video", "rtsp://127.0.0.1:9/none", "--record", "gone/o.dat"], "there is no folder gone; create it first"),
        (["--camera", "fake", "--record", "."], "is a folder"),
        (["--camera", "fake", "--speed", "0.5"], "only a recording"),
        (["--video", "a.mp4", "--speed", "0"], "--speed 0: expected"),
        (["--video", "gopher://me:pass@host/1"], "--video gopher://***@host/1: expected a file"),
        (["--stream", "udp://me:pass@host:1"], "--stream udp://***@host:1: write it as"),
        (["--camera", "fake", "--serve", "127.0.0.1:0", "--root-path", "x"], "write it as /FOLDER"),
        (["--camera", "fake", "--serve", "127.0.0.1:0", "--allow-host", "http://x"], "expected a name"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_1(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    code, out, err = live(capsys, *args)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_serve_alone_waits_for_the_pages_camera(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    flags = ["--serve", "127.0.0.1:0", "--seconds", "0.3", "--sensor-size", "64x48", "--ann", "--json"]
    code, out, err = live(capsys, *flags)
    result = json.loads(out)
    assert code == 0
    assert (result["source"], result["windows"]) == ("the page's camera", 0)
    assert err.startswith("page: http://127.0.0.1:")


def test_a_missing_server_is_named_with_its_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, err = live(capsys, "--camera", "fake", "--sensor-size", "64x48", "--ann", "--serve", "127.0.0.1:0")
    assert code == 1
    assert 'needs fastapi: pip install "fastapi>=' in err


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    code, _, err = live(capsys, "--camera", "fake", "--sensor-size", "64x48", "--ann", "--window")
    assert code == 1
    assert "there is no display here" in err
    assert "--serve" in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Only there is a display named by a variable")
@pytest.mark.parametrize("opening", [None, "raise SystemExit(1)", "import time; time.sleep(60)"], ids=["none", "ends", "hangs"])
def test_a_window_needs_a_display_that_answers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], opening: str | None
) -> None:
    """Qt and GTK end the process that tries to open a window on another one."""
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":4077")
    if opening:  # private: what a display does that was lost
        monkeypatch.setattr(desktop, "_OPEN_WINDOW", opening)
        monkeypatch.setattr(desktop, "_OPEN_WINDOW_S", 1.0)
    code, _, err = live(capsys, "--camera", "fake", "--sensor-size", "64x48", "--ann", "--window")
    assert code == 1
    # OpenCV's headless build opens no windows anywhere.
    assert "no window can be opened on the display :4077" in err or (
        opening is None and "needs OpenCV with window support" in err
    )
    assert "--serve" in err


def window_functions(monkeypatch: pytest.MonkeyPatch, keys: list[int]) -> list[np.ndarray]:
    """Replace OpenCV's window functions: keys come from a list, pictures go to the list that is returned."""
    shown: list[np.ndarray] = []
    monkeypatch.setattr(desktop, "_check_display", lambda: None)  # private: asks the real OpenCV
    for name, fake in {
        "namedWindow": lambda *_: None,
        "imshow": lambda _, picture: shown.append(picture),
        "waitKeyEx": lambda _: time.sleep(0.1) or keys.pop(0),
        "getWindowProperty": lambda *_: 1.0,
        "destroyAllWindows": lambda: None,
    }.items():
        monkeypatch.setattr(cv2, name, fake)
    return shown


def test_the_window_draws_pauses_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenCV's window functions replaced."""
    keys = [-1] * 3 + [ord(" "), ord(" "), ord("q")]
    shown = window_functions(monkeypatch, keys)
    pipeline = LivePipeline(camera(), CONFIG)
    window = LiveWindow(pipeline)
    pipeline.start()
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline and not pipeline.figures.windows:
        time.sleep(0.02)
    turns = 1
    while window.turn():
        turns += 1
        assert window.paused == (len(keys) == 2)
        if window.paused:
            windows = pipeline.figures.windows
            wait_until(lambda windows=windows: pipeline.figures.windows > windows + 1)  # type: ignore[misc]
    pipeline.stop()
    window.close()
    assert (turns, len(shown)) == (6, 6)
    assert np.array_equal(shown[3], shown[4])
    assert not np.array_equal(shown[4], shown[5])
    assert shown[-1].any()


def test_arrows_seek_a_recording_by_five_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = recording(tmp_path / "a.dat")
    arrows = {0xFF53: 5.0, 0x10FF51: 0.0, 0xF703: 5.0, 0x250000: 0.0}  # X11, with Num Lock, macOS, Windows
    window_functions(monkeypatch, [*arrows, 0xFF53])
    window = LiveWindow(LivePipeline(source, CONFIG))
    source.duration_s = 60.0
    source.seek(0.0)
    positions = [source.position_s for _ in arrows if window.turn()]
    assert positions == list(arrows.values())
    source.duration_s = None
    assert window.turn()
    assert source.position_s == 0.0


def test_a_saved_picture_replaces_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "evburst_now")
    window_functions(monkeypatch, [ord("s")] * 4)
    window = LiveWindow(LivePipeline(recording(tmp_path / "a.dat"), CONFIG))
    for _ in range(3):
        window.turn()
    names = ["evburst_now.png", "evburst_now_2.png", "evburst_now_3.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    monkeypatch.setattr(cv2, "imwrite", lambda *_: False)
    window.turn()
    assert f"evburst_now_4.png: the picture cannot be saved in {tmp_path}" in caplog.text


def test_the_window_shows_the_source_beside_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = window_functions(monkeypatch, [ord("p"), -1, ord("p"), -1])
    pipeline = LivePipeline(camera(), CONFIG)
    window = LiveWindow(pipeline)
    run_until(pipeline, 2)
    newest, source = window._newest, pipeline.source
    assert newest is not None
    assert isinstance(source, FrameSource)
    assert source.picture is not None
    for _ in range(4):
        window._newest = newest
        window.turn()
    plain, both = shown[0], shown[1]
    assert [picture.shape[1] for picture in shown] == [plain.shape[1], both.shape[1], both.shape[1], plain.shape[1]]
    scale = window._renderer.scale
    width, height = SIZE.width * scale, SIZE.height * scale
    assert np.array_equal(both[:, width:], plain)
    drawn = cv2.resize(both[:height, :width, 0], tuple(SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(drawn.astype(int) - source.picture).mean() < 12


@pytest.mark.parametrize(
    "name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow), pytest.param("SIGHUP", marks=pytest.mark.slow)]
)
def test_a_signal_closes_everything_and_says_what_was_done(tmp_path: Path, name: str) -> None:
    pytest.importorskip("fastapi")
    number = getattr(signal, name)
    command = [sys.executable, ROOT / "live.py", "--camera", "fake", "--sensor-size", "64x48", "--ann", "--json"]
    process = subprocess.Popen(
        [*command, "--record", tmp_path / "o.dat", "--serve", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a suite in the background has it ignored
    )
    deadline = time.perf_counter() + 120
    while time.perf_counter() < deadline and (not (tmp_path / "o.dat").exists() or (tmp_path / "o.dat").stat().st_size < 5000):
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (0, b"stopped")
    assert json.loads(out)["windows"] > 0
    assert sum(len(packet) for packet in open_events(tmp_path / "o.dat").packets()) > 0
    assert not list(tmp_path.glob("evburst_live_*"))
