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
    names = [name for name in ENGINES if name not in ("reference", "cuda") and not ENGINES[name].available("cpu")]
    if len(names) < 2:
        pytest.skip("one engine or none: nothing to choose between")
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


@pytest.mark.usefixtures("measurements")
def test_a_single_engine_is_not_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("evburst.models.runtime.find_spec", lambda name: None)
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert main(["engines"]) == 0
    assert measured() == {}
    assert capsys.readouterr().err == ""


def test_a_measurement_is_a_time_for_each_engine() -> None:
    times = engines.measure(["reference"], 2, rounds=1)
    assert list(times) == ["reference"]
    assert times["reference"].counted == times["reference"].uncounted > 0
    if not ENGINES["onnx"].available("cpu"):
        counted, uncounted = engines.measure(["onnx"], 1, rounds=1)["onnx"]
        assert counted != uncounted
