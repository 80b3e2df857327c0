"""Measured joules: counters that wrap, counters that are not there, and the arithmetic of rounds, on files made up for it."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from bench import joules
from bench.joules import Counter, main, measure, nvml_counters, powercap_counters, summed


def zone(root: Path, name: str, microjoules: int, wraps: int = 1_000_000) -> Path:
    """A powercap zone."""
    folder = root / f"intel-rapl:{len(list(root.iterdir())) if root.exists() else 0}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_and_memory_are_read_and_cores_are_not_counted_twice(tmp_path: Path) -> None:
    for name in ("package-0", "core", "dram", "psys"):
        zone(tmp_path / "cap", name, 2_500_000)
    found, why = powercap_counters(tmp_path / "cap")
    assert ([counter.name for counter in found], why) == (["package-0", "dram"], "")
    assert found[0].read() == 2.5


def test_a_counter_that_starts_again_continues(tmp_path: Path) -> None:
    file = zone(tmp_path / "cap", "package-0", 900_000)
    ((counter,), _) = powercap_counters(tmp_path / "cap")
    before = counter.read()
    file.write_text("100000\n")
    assert counter.since(before) == pytest.approx(0.2)


def test_what_cannot_be_read_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "virtual machines usually hide them" in powercap_counters(tmp_path / "none")[1]
    file = zone(tmp_path / "cap", "package-0", 1)
    file.unlink()
    file.mkdir()  # reading fails, for root as well
    assert "cannot be read" in powercap_counters(tmp_path / "cap")[1]
    assert nvml_counters("libnothing.so") == ([], "NVML: the NVIDIA driver's library is not installed")
    monkeypatch.setattr(joules, "powercap_counters", lambda: powercap_counters(tmp_path / "none"))
    assert main(["--device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("error: energy cannot be measured: ")


def test_rounds_are_summed_and_idle_is_taken_off() -> None:
    rows = [{"joules": 4.0, "windows": 10, "seconds": 1.0}, {"joules": 6.0, "windows": 10, "seconds": 1.0}]
    found = summed(rows, idle_watts=2.0)
    assert found["mj_per_window"] == pytest.approx(500)
    assert found["mj_per_window_above_idle"] == pytest.approx(300)
    assert (found["mj_lowest_round"], found["mj_highest_round"]) == (pytest.approx(400), pytest.approx(600))
    assert (found["watts"], found["ms_per_window"]) == (5.0, 100.0)


def test_a_whole_run_with_a_made_up_counter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ticks = count()
    monkeypatch.setattr(joules, "counters", lambda device: [Counter("made up", lambda: float(next(ticks)))])
    assert main(["--windows", "2", "--rounds", "1", "--seconds", "0.01"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("counters made up; idle ")
    assert "modelled (45 nm, int8): dense ANN 0.216 mJ" in out


def test_work_is_repeated_for_the_time_asked() -> None:
    done: list[int] = []
    readings = iter((1.0, 3.5))
    spent, windows, seconds = measure([Counter("a", lambda: next(readings))], lambda: done.append(1) or 7, 0.001)  # type: ignore[func-returns-value]
    assert (spent, windows) == ({"a": 2.5}, 7 * len(done))
    assert seconds >= 0.001
