"""In which type a network is trained."""

from __future__ import annotations

import pytest
import torch

from evburst.app.train import precision
from evburst.app.train.precision import prefers_bfloat16, seconds_per_convolution

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def undecided() -> None:
    prefers_bfloat16.cache_clear()


def decided(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], milliseconds: dict[torch.dtype, float]) -> bool:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(precision, "seconds_per_convolution", milliseconds.__getitem__)
    return prefers_bfloat16(CPU)


@pytest.mark.parametrize(("milliseconds", "prefers"), [(5.0, True), (9.0, False), (40.0, False)])
def test_a_cpu_with_instructions_for_it_is_timed(monkeypatch: pytest.MonkeyPatch, milliseconds: float, prefers: bool) -> None:
    times = {torch.float32: 10.0, torch.bfloat16: milliseconds}
    assert decided(monkeypatch, {"avx512_bf16": True, "cpu_name": "some"}, times) is prefers


def test_a_cpu_without_them_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not decided(monkeypatch, {"avx512_bf16": False, "avx2": True}, {})


def test_a_network_on_the_cpu_decides_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decided(monkeypatch, {"avx512_bf16": True}, {torch.float32: 10.0, torch.bfloat16: 5.0})
    monkeypatch.setattr(precision, "seconds_per_convolution", lambda kind: pytest.fail("timed again"))
    assert prefers_bfloat16(CPU)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_timing_leaves_the_threads_as_they_were(kind: torch.dtype) -> None:
    before = torch.get_num_threads()
    assert 0 < seconds_per_convolution(kind) < 60
    assert torch.get_num_threads() == before
