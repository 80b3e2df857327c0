"""Own sinks: where their files may be, and what a sink has to have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evburst.app.cli import detect_main
from evburst.app.detect import DetectConfig, detect_file
from evburst.app.inference import WindowResult
from evburst.app.outputs.sinks import SINKS, RunInfo, sink
from evburst.data.errors import ConfigError
from tests.conftest import SAMPLE


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Sinks are registered for one test."""
    before = dict(SINKS)
    yield
    SINKS.clear()
    SINKS.update(before)


class Own:
    """Writes the number of windows."""

    def __init__(self, path: Path, run: RunInfo) -> None:
        self._path, self._windows = path, 0

    def write(self, result: WindowResult) -> None:
        self._windows += 1

    def close(self) -> None:
        self._path.write_text(str(self._windows))


@pytest.mark.parametrize(
    "file", ["../own.txt", "a/../../own.txt", "/tmp/own.txt", "C:own.txt", "..\\own.txt", "\\own.txt", "..", ".", "", "a\0b", 5]
)
def test_a_file_outside_the_run_s_folder_is_refused(file: Any) -> None:
    with pytest.raises(ConfigError, match=r"sink 'own': its file .* is not inside the run's folder; .* such as own\.csv"):
        sink("own", file)(Own)
    assert "own" not in SINKS


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("summary.json", "summary.json"),
        ("./Summary.JSON", "summary.json"),
        ("summary.*", "summary.json"),
        ("*", "summary.json"),
        ("summary.json/own.txt", "summary.json"),
        ("summary.csv", "summary.csv"),
        (".evburst.lock", ".evburst.lock"),
    ],
)
def test_a_file_that_every_run_writes_is_refused(file: str, own: str) -> None:
    with pytest.raises(ConfigError, match=f"may be {own}, which evburst writes; give it another name"):
        sink("own", file)(Own)


@pytest.mark.parametrize("file", ["detections.jsonl", "./detections.jsonl", "Detections.jsonl", "*.jsonl"])
def test_two_sinks_of_a_run_may_not_write_the_same_file(tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier run has written stays. In a run without the other one, the name is free."""
    sink("own", file)(Own)
    out = tmp_path / "out"
    detect_file(SAMPLE, out, DetectConfig(max_windows=1, sinks=("jsonl",)))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    message = f"sinks: jsonl (detections.jsonl) and own ({file}) may write the same file; leave one out"
    with pytest.raises(ConfigError) as caught:
        DetectConfig(sinks=("jsonl", "own"))
    assert str(caught.value) == message
    run = ["--events", str(SAMPLE), "--out", str(out), "--max-windows", "2", "--sinks", "jsonl,own"]
    assert detect_main(run) == 1
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert DetectConfig(sinks=("own", "bbox")).sinks == ("own", "bbox")


def test_a_sink_in_a_folder_beside_another_one(tmp_path: Path) -> None:
    sink("own", "crops/own.txt")(Own)
    detect_file(SAMPLE, tmp_path / "out", DetectConfig(max_windows=2, sinks=("crops", "own")))
    assert (tmp_path / "out" / "crops" / "own.txt").read_text() == "2"


@pytest.mark.parametrize(("methods", "missing"), [("write", "close"), ("close", "write"), ("", "write and close")])
def test_a_class_that_lacks_a_method_is_refused(tmp_path: Path, methods: str, missing: str) -> None:
    """What a function returns is looked at when a run opens it."""
    own = type("Own", (), dict.fromkeys(filter(None, [methods]), lambda *_: None))
    with pytest.raises(ConfigError, match=rf"sink 'own': Own has no {missing}; see docs/extending\.md#a-sink"):
        sink("own", "own.txt")(own)
    assert "own" not in SINKS
    sink("own", "own.txt")(lambda path, run: own())
    with pytest.raises(ConfigError, match=rf"sink 'own': Own has no {missing}; see docs/extending\.md#a-sink"):
        detect_file(SAMPLE, tmp_path, DetectConfig(max_windows=1, sinks=("own",)))


def test_what_is_no_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sink 'own': expected a function or a class, received str; see docs/extending\.md"):
        sink("own", "own.txt")("Own")  # type: ignore[arg-type]


def test_the_help_names_every_sink() -> None:
    assert DetectConfig.__doc__ is not None
    (line,) = (line for line in DetectConfig.__doc__.splitlines() if line.strip().startswith("sinks: "))
    assert f"summary.json: {', '.join(SINKS)};" in line
