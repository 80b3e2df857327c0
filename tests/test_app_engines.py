"""`evburst engines`: engines are measured once, measured again where asked to, and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evburst.app import engines
from evburst.app.cli import main
from evburst.models.runtime import ENGINES, MEASURED_TIMESTEPS, Times, measured


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[str], int]]:
    """Nothing has been measured yet; what is from now on, without being measured."""
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    made: list[tuple[list[str], int]] = []

    def measure(names: Sequence[str], timesteps: int) -> dict[str, Times]:
        made.append((list(names), timesteps))
        return {name: Times(timesteps + k + 1.0, timesteps + k) for k, name in enumerate(names)}

    monkeypatch.setattr(engines, "measure", measure)
    return made


def test_engines_are_measured_once_and_again_where_asked_to(
    measurements: list[tuple[list[str], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in ENGINES if not ENGINES[name].available("cpu")]
    assert main(["engines", "--json"]) == 0
    out, err = capsys.readouterr()
    rows = {row["engine"]: row for row in json.loads(out)}
    assert rows.keys() == ENGINES.keys()
    for k, name in enumerate(names):
        mean = 1 / ENGINES[name].count_every
        expected = {str(t): {"counted": t + k + 1.0, "uncounted": t + k, "mean": t + k + mean} for t in MEASURED_TIMESTEPS}
        assert rows[name]["ms"] == expected
        assert rows[name]["count_every"] == ENGINES[name].count_every
    assert [t for row in rows.values() for t in row["auto"]] == list(MEASURED_TIMESTEPS)
    assert measurements == [(names, timesteps) for timesteps in MEASURED_TIMESTEPS]
    assert f"measuring engines once on this machine: {', '.join(names)}" in err
    assert main(["engines"]) == 0
    out, err = capsys.readouterr()
    assert (out.splitlines()[1].split()[0], err, len(measurements)) == ("engine", "", len(MEASURED_TIMESTEPS))
    assert main(["engines", "--measure"]) == 0
    assert len(measurements) == 2 * len(MEASURED_TIMESTEPS)


def test_a_single_engine_is_measured_too(
    measurements: list[tuple[list[str], int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("evburst.models.runtime.find_spec", lambda name: None)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert main(["engines"]) == 0
    assert measurements == [(["reference"], timesteps) for timesteps in MEASURED_TIMESTEPS]
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " ".join(rows["reference"].split()) == "reference 2.00 2.00 1.00 5.00 5.00 4.00 auto for T=1 and T=4"
    assert "needs the package onnx" in rows["onnx"]
    assert "measured" in rows


@pytest.mark.usefixtures("measurements")
def test_times_that_cannot_be_stored_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.setenv("EVBURST_CACHE", str(file))
    assert main(["engines"]) == 0
    out, err = capsys.readouterr()
    assert measured() == {}
    assert "engines.json cannot be written, so that the measurements are lost: set EVBURST_CACHE" in err
    assert out.splitlines()[2].split("  ")[-1].startswith("not measured")
    assert len(out.splitlines()) == len(ENGINES) + 2


def test_a_measurement_is_a_time_for_each_engine() -> None:
    times = engines.measure(["reference"], 2, rounds=1)
    assert list(times) == ["reference"]
    assert times["reference"].counted == times["reference"].uncounted > 0
    if not ENGINES["onnx"].available("cpu"):
        counted, uncounted = engines.measure(["onnx"], 1, rounds=1)["onnx"]
        assert counted != uncounted
