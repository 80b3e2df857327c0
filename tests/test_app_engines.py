"""`evburst engines`: engines are measured once, measured again where asked to, and shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from evburst.app import engines
from evburst.app.cli import main
from evburst.models.runtime import ENGINES, MEASURED_TIMESTEPS, Times, choose, measured, measurements_file, remember
from tests.conftest import in_new_process


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
def test_times_that_cannot_be_stored_are_shown_but_auto_does_not_know_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "file").touch()
    monkeypatch.setenv("EVBURST_CACHE", str(file))
    assert main(["engines"]) == 0
    out, err = capsys.readouterr()
    assert measured() == {}
    assert "engines.json cannot be written, so that `auto` does not know these times: set EVBURST_CACHE" in err
    assert out.splitlines()[2].split()[:4] == ["reference", "2.00", "2.00", "1.00"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"int8": [NaN, 1]}', '{"int8": [-1, 1]}', '{"int8": ["x", 1]}'])
def test_a_damaged_file_of_times_counts_as_none(content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    assert remember({"1": {"int8": Times(2, 1)}})
    assert measured() == {"1": {"int8": Times(2, 1)}}
    whole = measurements_file().read_text()
    measurements_file().write_text(
        content if content.startswith("[") else json.dumps(json.loads(whole) | {"ms": {"1": json.loads(content)}})
    )
    assert measured() == {}


def test_a_measurement_is_a_time_for_each_engine() -> None:
    times = engines.measure(["reference"], 2, rounds=1)
    assert list(times) == ["reference"]
    assert times["reference"].counted == times["reference"].uncounted > 0
    if not ENGINES["onnx"].available("cpu"):
        counted, uncounted = engines.measure(["onnx"], 1, rounds=1)["onnx"]
        assert counted != uncounted


def test_auto_leaves_out_engines_that_another_one_counts_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where every window is counted, int8 would run them all, whatever was measured of onnx."""
    if any(ENGINES[name].available("cpu") for name in ("int8", "onnx")):
        pytest.skip("needs int8 and onnx")
    monkeypatch.setenv("EVBURST_CACHE", str(tmp_path))
    remember({"1": {"int8": Times(2, 2), "onnx": Times(1, 1)}})
    assert choose("auto") == choose("auto", count_every=2) == "onnx"
    assert choose("auto", count_every=1) == "int8"


_LOADS = """
import sys
from evburst.models.runtime.exported import import_onnxruntime, import_openvino
{imported}
print("openvino_telemetry" in sys.modules)
"""


def test_onnxruntime_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    in_new_process(_LOADS.format(imported="import_onnxruntime()"), HOME=str(tmp_path), XDG_CACHE_HOME="")
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name] == []


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """A package in its place, which imports telemetry as OpenVINO does: if it is there."""
    (tmp_path / "openvino.py").write_text("try:\n    import openvino_telemetry\nexcept ImportError:\n    print('a stub')\n")
    (tmp_path / "openvino_telemetry.py").write_text("print('reported')\n")
    code = _LOADS.format(imported="import_openvino(); import openvino_telemetry")
    assert in_new_process(code, PYTHONPATH=str(tmp_path)).splitlines() == ["a stub", "reported", "True"]
