"""Live sources whose sensor size is wrong, or whose events are not in order of time."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evburst.app.cli import detect_main
from evburst.app.live.cli import live_main
from evburst.app.live.soundness import Soundness
from evburst.app.live.sources import RecordingSource
from evburst.data.errors import EventFileError, SensorSizeError
from evburst.data.events import Events, SensorSize
from tests.conftest import make_events, random_events
from tests.event_files import fed
from tests.helpers.waiting import wait_until

SIZE = SensorSize(64, 48)


def text_of(events: Events) -> bytes:
    """Events as lines t x y p."""
    return b"".join(b"%d %d %d %d\n" % tuple(event) for event in events.tolist())


def with_outside(count: int, share: float, duration_us: int = 200_000) -> Events:
    """Events of which a share lies on the right of the sensor."""
    events = random_events(count, SIZE, duration_us)
    events["x"][:: round(1 / share)] += SIZE.width
    return events


def live(capsys: pytest.CaptureFixture[str], path: Path, *flags: str) -> tuple[int, str]:
    """Exit code and errors of a live run of windows of 20 ms at high speed."""
    args = ["--events", str(path), "--ann", "--window-ms", "20", "--sensor-size", str(SIZE), *flags]
    return live_main(args), capsys.readouterr().err


@pytest.mark.parametrize(("count", "share", "is_refused"), [(40_000, 0.5, True), (300, 0.2, True), (40_000, 0.09, False)])
def test_a_file_of_a_larger_sensor_is_an_error_as_in_detect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, share: float, is_refused: bool
) -> None:
    """A large file ends early, a small one is judged at its end."""
    path = tmp_path / "a.csv"
    path.write_bytes(text_of(with_outside(count, share)))
    code, err = live(capsys, path, "--speed", "10")
    assert code == is_refused
    advice = f"events lie outside {SIZE}: pass the sensor's true size"
    lines = re.findall(rf"^error: a.csv: (\d+) of (\d+) {advice}", err, re.MULTILINE)
    assert len(lines) == is_refused
    if is_refused:
        assert int(lines[0][1]) == count or 10_000 <= int(lines[0][1]) < 20_000
        detect_main(["--events", str(path), "--ann", "--sensor-size", str(SIZE), "--out", str(tmp_path / "o")])
        assert advice in capsys.readouterr().err


def test_a_file_that_is_not_in_order_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = random_events(4000, SIZE, 400_000)
    (tmp_path / "a.csv").write_bytes(text_of(np.concatenate([events[2000:], events[:2000]])))
    code, err = live(capsys, tmp_path / "a.csv", "--speed", "10")
    assert code == 1
    assert "error: a.csv: 2000 of 4000 events are older than a window before them: the file is not in order of time" in err


def test_a_pipe_continues_with_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pipe.csv"
    writer = fed(path, text_of(with_outside(30_000, 0.5)))
    code, err = live(capsys, path)
    writer.join(60)
    assert code == 0
    advice = r"events lie outside 64x48 and are ignored: pass the sensor's true size \(--sensor-size\)"
    assert re.findall(r"warning: pipe.csv: (\d+) % of the " + advice, err) == ["50"]


def source(**settings: Any) -> Any:
    """A source that is not a file."""
    return SimpleNamespace(**{"name": "evk4", "simulated": False, "sensor_size": SIZE, **settings})


def test_a_sensor_is_warned_of_once_when_there_are_enough_events() -> None:
    lines: list[str] = []
    soundness = Soundness(lines.append)
    for _ in range(9):
        soundness.add(source(), with_outside(1000, 0.25))
        soundness.add(source(simulated=True), with_outside(1000, 1))  # the page's camera
    assert lines == []
    for _ in range(3):
        soundness.add(source(), with_outside(1000, 0.25))
    assert soundness.warning.startswith(
        "evk4: 25 % of the events lie outside 64x48 and are ignored: correct at its sender the size"
    )
    assert lines == [f"warning: {soundness.warning}"]


def test_a_source_of_few_events_is_judged_at_the_end() -> None:
    lines: list[str] = []
    soundness = Soundness(lines.append)
    soundness.add(source(), make_events([1, 2, 3]))
    soundness.judge(source())
    assert lines == []
    soundness.add(source(), with_outside(2, 1))
    soundness.judge(source())
    assert len(lines) == 1


def test_late_events_before_a_position_that_was_sought_do_not_count(tmp_path: Path) -> None:
    """Text is read from its beginning up to it, as often as it is sought."""
    events = random_events(20_000, SIZE, 1_000_000)
    late = events[-1000:].copy()
    late["t"] = 5
    (tmp_path / "a.csv").write_bytes(text_of(np.concatenate([events[:12_000], late, events[12_000:]])))
    played = RecordingSource(tmp_path / "a.csv", 20_000, SIZE, speed=1000)
    played.open()
    played.measure()
    wait_until(lambda: played.duration_s is not None)
    soundness = Soundness(lambda line: None)
    while (packet := played.read()) is not None:
        soundness.add(played, packet.events)
    assert (played.passed, played.late) == (20_000, 1000)
    for _ in range(9):
        played.open()
        played.seek(0.9)
        for _ in range(10):
            packet = played.read()
            assert packet is not None
            soundness.add(played, packet.events)
    assert played.late == 1000
    assert played.faults.late_events == 10_000
    soundness.judge(played)


@pytest.mark.parametrize(("name", "error"), [("size", SensorSizeError), ("order", EventFileError)])
def test_a_file_is_judged_without_end(tmp_path: Path, name: str, error: type[Exception]) -> None:
    """One that starts again for ever, as with a page."""
    events = with_outside(3000, 0.5) if name == "size" else random_events(3000, SIZE, 200_000)
    if name == "order":
        events = np.concatenate([events[1500:], events[:1500]])
    (tmp_path / "a.csv").write_bytes(text_of(events))
    played = RecordingSource(tmp_path / "a.csv", 20_000, SIZE, loop=True, speed=1000)
    played.open()
    soundness = Soundness(lambda line: None)

    def play() -> None:
        while (packet := played.read()) is not None:
            soundness.add(played, packet.events)

    with pytest.raises(error):
        play()
