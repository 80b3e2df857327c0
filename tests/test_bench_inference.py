"""Turns of bench/inference.py: a peer that takes too long or rejects the network is reported and does not end the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import inference
from bench.contenders import Contender, contenders
from bench.inference import QUANTISED, baseline, measure, table
from evburst.models.bundle import Bundle
from evburst.models.runtime import ENGINES
from evburst.models.spiking.network import SpikingNetwork

GRID = torch.zeros(1)


def endless(grid: torch.Tensor) -> None:
    while True:
        pass


def missing() -> Contender:
    raise ImportError("no module named openvino")


def rejecting() -> Contender:
    raise RuntimeError("a layer is silent\nin calibration")


BUILD: dict[str, Callable[[], Contender]] = {
    "ann": lambda: Contender(lambda grid: None),
    "openvino": missing,
    "spikingjelly T=1": lambda: Contender(lambda grid: None),
    "spikingjelly T=4": lambda: Contender(endless),
    "spikingjelly T=16": rejecting,
}


def test_peers_are_stopped_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_REST_S", 0)
    found = measure(list(BUILD), BUILD, GRID, 2, 0.2)
    assert list(found) == list(BUILD)
    assert found["ann"]["runs"] == found["spikingjelly T=1"]["runs"] == 6
    assert found["openvino"] == {"ended": "skipped: no module named openvino"}
    assert found["spikingjelly T=4"] == {"ended": "stopped after 0.2 s"}
    assert found["spikingjelly T=16"] == {"ended": "rejected: RuntimeError: a layer is silent"}


def test_rounds_end_with_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inference, "_REST_S", 0)
    assert measure(["ann"], BUILD, GRID, 9, 1.0, total_s=0.0)["ann"]["runs"] == 3
    assert "stopped after 1 of 9 rounds" in capsys.readouterr().err


def test_a_run_of_several_windows_is_divided_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_REST_S", 0)
    clock = iter(range(99))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    build: dict[str, Callable[[], Contender]] = {
        f"of {n}": lambda n=n: Contender(lambda grid: None, windows=n) for n in (1, 10)
    }
    found = measure(list(build), build, GRID, 1, 1.0)
    assert (found["of 1"]["ms"], found["of 10"]["ms"]) == (1000, 100)


def test_auto_counts_in_the_windows_in_which_detect_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.load("nmnist")
    monkeypatch.setattr("evburst.app.engines.ensure_measured", lambda: None)
    monkeypatch.setattr("evburst.models.runtime.choose", lambda *_: "reference")
    monkeypatch.setitem(ENGINES, "reference", replace(ENGINES["reference"], count_every=3))
    runs = list[str]()
    monkeypatch.setattr(SpikingNetwork, "run", lambda *_: runs.append("counted"))
    monkeypatch.setattr(SpikingNetwork, "run_uncounted", lambda *_: runs.append("uncounted"))
    contender = contenders(bundle, GRID)["snn auto T=1"]()
    contender.run(GRID)
    assert (contender.windows, runs) == (3, ["counted", "uncounted", "uncounted"])


def test_our_own_errors_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="silent"):
        measure(["int8"], {"int8": rejecting}, GRID, 1, 1.0)


def test_ratios_are_to_the_fastest_float_network_and_to_the_quantised_one() -> None:
    def times(ms: float, **further: Any) -> dict[str, Any]:
        return {"ms": ms, "fastest_ms": ms - 1, "cpu_ms": 2 * ms, "runs": 3, **further}

    results = {"ann": times(20.0), "openvino": times(10.0), QUANTISED: times(4.0), "snn int8 T=1": times(5.0)}
    results |= {"spikingjelly T=4": {"ended": "stopped after 9 s"}}
    assert baseline(results) == "openvino"
    lines = table(results).splitlines()
    assert lines[0] == f"| network | ms | fastest | ms / openvino | ms / {QUANTISED} | cpu ms | note |"
    assert lines[5] == "| snn int8 T=1 | 5.0 | 4.0 | 0.50 | 1.25 | 10.0 |  |"
    assert lines[6] == "| spikingjelly T=4 |  |  |  |  |  | stopped after 9 s |"
