"""live.py: the pipeline with the shipped fake camera, its totals, its recordings, its command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from evburst.app.cli import live_main
from evburst.app.detect import DetectConfig
from evburst.app.inference import BinnedWindow, Inference, WindowResult
from evburst.app.live.desktop import LiveWindow
from evburst.app.live.frames import FakeCamera, FrameSource
from evburst.app.live.pipeline import LiveConfig, LivePipeline
from evburst.app.live.recorder import LiveRecorder
from evburst.app.live.run import summary
from evburst.app.live.totals import LatencyHistogram
from evburst.data.errors import DataError
from evburst.data.events import EventWindow, SensorSize
from evburst.data.readers import open_events
from evburst.data.simulation.sensor import SimulatorConfig

from tests.conftest import ROOT, make_events

SIZE = SensorSize(64, 48)
CONFIG = LiveConfig(DetectConfig(ann=True, window_ms=20.0))


class Watcher:
    """A viewer that keeps what it is shown, after a pause."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.seen: list[tuple[int, int]] = []
        self.latencies_ms: list[float] = []
        self._pause_s = pause_s

    def show(self, result: WindowResult, window: EventWindow) -> None:
        time.sleep(self._pause_s)
        self.seen.append((window.t0_us, len(window)))
        self.latencies_ms.append(result.latency_ms)


def camera(*dies_after: float) -> FrameSource:
    """The fake camera, small and fast."""
    return FrameSource(FakeCamera(SIZE, 100.0, dies_after), SIZE, SimulatorConfig(shot_hz=5), 20_000, upsample=False)


def run_until(pipeline: LivePipeline, windows: int) -> float:
    """Start, wait for so many windows, stop; returns the seconds between."""
    pipeline.start()
    while pipeline.figures.windows < windows and time.perf_counter() - pipeline.started_s < 90:
        pipeline.wait(0.02)
    seconds = time.perf_counter() - pipeline.started_s
    pipeline.stop()
    return seconds


def test_windows_come_in_order_without_gaps_and_are_counted() -> None:
    watcher = Watcher()
    pipeline = LivePipeline(camera(), CONFIG)
    pipeline.viewers.append(watcher)
    run_until(pipeline, 8)
    starts = [t0 for t0, _ in watcher.seen]
    assert len(starts) >= 8
    assert all(later > earlier and (later - earlier) % 20_000 == 0 for earlier, later in pairwise(starts))
    assert sum(n for _, n in watcher.seen) == pipeline.figures.events > 0
    missing = (starts[-1] - starts[0]) // 20_000 + 1 - len(starts)
    assert pipeline.dropped >= missing
    result = summary(pipeline, 1.0)
    assert (result["windows"], result["simulated"], result["source_lost"]) == (len(starts), True, 0)
    assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"] <= result["latency_ms"]["max"]
    json.dumps(result)


def test_when_late_the_oldest_windows_are_dropped_and_latency_stays_bounded() -> None:
    """A network four times too slow: without dropping, the 25th window would be 1.5 s late; so it is as late as the first ones."""
    watcher = Watcher()
    pipeline = LivePipeline(camera(), CONFIG)
    quick, slowest_s = pipeline.inference.run, [0.0]

    def slow(batch: Sequence[BinnedWindow], size: int = 0) -> list[WindowResult]:
        began = time.perf_counter()
        time.sleep(0.08)
        results = quick(batch, size)
        slowest_s[0] = max(slowest_s[0], time.perf_counter() - began)
        return results

    pipeline.inference.run = slow  # type: ignore[method-assign]
    pipeline.viewers.append(watcher)
    seconds = run_until(pipeline, 25)
    n, dropped = pipeline.figures.windows, pipeline.dropped
    assert dropped > n >= 25
    assert 0.5 * seconds / 0.02 <= n + dropped <= seconds / 0.02 + 2
    assert max(watcher.latencies_ms[-5:]) < 3000 * slowest_s[0] + 300


def test_a_source_that_dies_is_waited_for_and_resumed() -> None:
    lines: list[str] = []
    watcher = Watcher()
    pipeline = LivePipeline(camera(0.15, 0.15), CONFIG, lines.append)
    pipeline.viewers.append(watcher)
    pipeline.start()
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline and not (pipeline.lost == 2 and pipeline.status == "running"):
        time.sleep(0.02)
    shown = len(watcher.seen)
    while time.perf_counter() < deadline and len(watcher.seen) < shown + 3:
        time.sleep(0.02)
    pipeline.stop()
    assert [line.split(":")[0] for line in lines] == ["waiting for fake camera", "fake camera is back"] * 2
    assert "has been unplugged" in lines[0]
    assert len(watcher.seen) >= shown + 3
    starts = [t0 for t0, _ in watcher.seen]
    assert starts == sorted(set(starts))
    assert starts[-1] > 1_000_000  # the run's clock has gone on through both gaps


def test_what_a_thread_dies_of_ends_the_run() -> None:
    pipeline = LivePipeline(camera(), CONFIG)

    def broken(*_: object) -> list[WindowResult]:
        raise RuntimeError("unforeseen")

    pipeline.inference.run = broken  # type: ignore[method-assign]
    pipeline.start()
    with pytest.raises(RuntimeError, match="unforeseen"):
        pipeline.wait(5)
    pipeline.stop()
    assert not any(thread.is_alive() for thread in pipeline._threads)


def test_settings_act_while_it_runs() -> None:
    config = LiveConfig(DetectConfig(window_ms=20.0))
    pipeline = LivePipeline(camera(), config)
    pipeline.start()
    pipeline.set_score(0.9)
    pipeline.set_timesteps(2)
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline and pipeline.timesteps != 2:
        time.sleep(0.02)
    assert pipeline.timesteps == 2
    assert pipeline.detector(pipeline.inference).post.score == 0.9
    pipeline.paused = True
    counts = [-1, -2]
    while time.perf_counter() < deadline and counts[-1] != counts[-2]:  # what was queued is still worked off
        time.sleep(0.5)
        counts.append(pipeline.figures.windows)
    assert counts[-1] == counts[-2]
    pipeline.stop()


def test_settings_are_whole_before_a_window_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = LivePipeline(camera(), LiveConfig(DetectConfig(window_ms=20.0)))
    pipeline.set_score(0.9)
    pipeline.set_timesteps(2)
    scores = []
    warm_up = Inference.warm_up

    def watched(inference: Inference, window: EventWindow) -> None:
        scores.append(pipeline.detector(inference).post.score)
        warm_up(inference, window)

    monkeypatch.setattr(Inference, "warm_up", watched)
    pipeline._apply_settings()
    assert scores == [0.9]
    assert pipeline.timesteps == 2


def test_a_recording_holds_all_windows_also_the_dropped_ones(tmp_path: Path) -> None:
    pipeline = LivePipeline(camera(), replace(CONFIG, queue_windows=1))
    quick = pipeline.inference.run
    pipeline.inference.run = lambda *args: (time.sleep(0.1), quick(*args))[1]  # type: ignore[method-assign]
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    pipeline.record(recorder)
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


def test_a_recording_goes_on_past_71_minutes_and_stops_at_its_limit(tmp_path: Path) -> None:
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE, most_bytes=80)
    recorder.write(make_events([2**32 - 2, 2**32 + 5]))
    recorder.write(make_events([2**32 + 6]))
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
    assert (code, out.split()[0]) == (0, "fake")


def test_a_recording_ends_by_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recorder = LiveRecorder(tmp_path / "a.dat", SIZE)
    recorder.write(make_events(list(range(0, 400_000, 100)), 5, 6, 1))
    recorder.close()
    code, out, _ = live(capsys, "--events", tmp_path / "a.dat", "--realtime", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["windows"] + result["dropped"] == 8
    assert not result["simulated"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no source: pass one of"),
        (["--camera", "front"], "expected a number"),
        (["--camera", "77"], "camera 77: cannot be opened"),
        (["--video", "gone.mp4"], "no such file"),
        (["--events", "a.dat"], "add --realtime"),
        (["--stream", "127.0.0.1"], "tcp://HOST:PORT"),
        (["--camera", "fake", "--preset", "dvs"], "known: dvs346"),
        (["--camera", "fake", "--seconds", "0"], "seconds must be"),
        (["--camera", "fake", "--weights", "strete"], "bundled: caltech6"),
        (["--camera", "fake", "--headless", "--serve"], "--headless shows nothing"),
        (["--camera", "fake", "--set", "queue_window=1"], "did you mean 'queue_windows'"),
        (["--camera", "fake", "--record", "gone/o.dat"], "cannot be written"),
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


def test_a_missing_server_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, _, err = live(capsys, "--camera", "fake", "--sensor-size", "64x48", "--ann", "--serve", "127.0.0.1:0")
    assert code == 1
    assert 'pip install "evburst[live]"' in err


def test_a_window_needs_a_display(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    code, _, err = live(capsys, "--camera", "fake", "--sensor-size", "64x48", "--ann", "--window")
    assert code == 1
    assert "there is no display here" in err
    assert "--serve" in err


def test_the_window_draws_pauses_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """With OpenCV's window functions replaced: keys come from a list."""
    keys, shown = [-1] * 3 + [ord(" "), ord(" "), ord("q")], []
    monkeypatch.setenv("DISPLAY", ":0")
    for name, fake in {
        "namedWindow": lambda *_: None,
        "imshow": lambda _, picture: shown.append(picture),
        "waitKey": lambda _: time.sleep(0.1) or keys.pop(0),
        "getWindowProperty": lambda *_: 1.0,
        "destroyAllWindows": lambda: None,
    }.items():
        monkeypatch.setattr(cv2, name, fake)
    pipeline = LivePipeline(camera(), CONFIG)
    window = LiveWindow(pipeline)
    pipeline.start()
    deadline = time.perf_counter() + 60
    while time.perf_counter() < deadline and not pipeline.figures.windows:
        time.sleep(0.02)
    turns = 1
    while window.turn():
        turns += 1
        assert pipeline.paused == (len(keys) == 2)
    pipeline.stop()
    window.close()
    assert (turns, len(shown)) == (6, 6)
    assert shown[-1].any()


def test_ctrl_c_closes_everything_and_says_what_was_done(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "live.py", "--camera", "fake", "--sensor-size", "64x48", "--ann", "--json"]
    process = subprocess.Popen(
        [*command, "--record", tmp_path / "o.dat"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background has it ignored
    )
    deadline = time.perf_counter() + 120
    while time.perf_counter() < deadline and (not (tmp_path / "o.dat").exists() or (tmp_path / "o.dat").stat().st_size < 5000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"stopped\n")
    assert json.loads(out)["windows"] > 0
    assert sum(len(packet) for packet in open_events(tmp_path / "o.dat").packets()) > 0
