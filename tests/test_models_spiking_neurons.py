"""Burst neurons: the equations, by hand and against the fused kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evburst.models.graph import activation
from evburst.models.spiking.neurons import NeuronLayer, burst_scan, burst_scan_fused, steady_counts


def layer(theta: list[float], phi: int, shift: float = 0.0, **kind: Any) -> NeuronLayer:
    return NeuronLayer(torch.tensor(theta), torch.full((len(theta),), shift), phi, **kind)


@pytest.mark.parametrize(
    ("current", "phi", "counts"),
    [
        (0.0, 4, [0, 0, 0, 0]),
        (1.0, 4, [1, 1, 1, 1]),  # one threshold per step
        (0.4, 4, [0, 1, 0, 1]),  # v: .5 -> .9 | 1.3 fires | .7 | 1.1 fires
        (2.6, 4, [3, 2, 3, 2]),  # bursts: 3.1 leaves .1 | 2.7 leaves .7 | 3.3 leaves .3 | 2.9
        (9.0, 4, [4, 4, 4, 4]),  # the burst limit holds
        (9.0, 1, [1, 1, 1, 1]),  # phi = 1 is the ordinary neuron
        (-1.0, 4, [0, 0, 0, 0]),  # never a negative spike
    ],
)
def test_counts_by_hand(current: float, phi: int, counts: list[int]) -> None:
    out = burst_scan(torch.full((1, 1, 1, 1, 1), current), layer([1.0], phi), 4)
    assert out.flatten().tolist() == counts


@pytest.mark.parametrize(
    ("currents", "counts"),
    [
        ([1.0] * 4, [1, 1, 1, 1]),  # above zero as without a slope
        ([-0.4] * 4, [0, 0, 0, 0]),  # the sum is -1.6, a quarter of it rounds to 0
        ([-1.0] * 4, [0, 0, -1, 0]),  # a quarter of the sum: -.25 | -.5 rounds up | -.75 fires | -1
        ([-9.0] * 4, [-2, -2, -3, -2]),  # bursts: -2.25 | -4.5 rounds up | -6.75 | -9
        ([-40.0] * 4, [-4, -4, -4, -4]),  # the burst limit holds below, too
        ([3.0, -3.0, 0.0, 4.0], [3, -3, 0, 4]),  # what was fired too early is taken back
    ],
)
def test_negative_counts_by_hand(currents: list[float], counts: list[int]) -> None:
    out = burst_scan(torch.tensor(currents).reshape(4, 1, 1, 1, 1), layer([1.0], 4, negative_slope=0.25), 4)
    assert out.flatten().tolist() == counts


def test_a_relu_takes_back_what_it_fired_too_early() -> None:
    """In whatever order current arrives, the sum is that of a steady current; neurons that cannot take back keep an error."""
    uneven = torch.tensor([6.0, -4.0, 3.0, -3.0]).reshape(4, 1, 1, 1, 1)
    out = burst_scan(uneven, layer([1.0], 8, takes_back=True), 4).flatten().tolist()
    assert out == [6, -4, 3, -3]
    assert burst_scan(uneven, layer([1.0], 8), 4).flatten().tolist() == [6, 0, 0, 0]


@pytest.mark.parametrize("theta", [0.3, 0.75, 1.2, 2.5, 5.9])
@pytest.mark.parametrize("timesteps", [1, 3])
def test_a_ceiling_is_never_passed_and_reached_to_within_a_threshold(theta: float, timesteps: int) -> None:
    spec = layer([theta], 255, ceiling=6.0)
    out = burst_scan(torch.linspace(-10, 90, 301).reshape(1, 1, 1, 1, -1), spec, timesteps).sum(0) * theta / timesteps
    assert 6 - theta < float(out.max()) <= 6 + 1e-4


@pytest.mark.parametrize("kind", [{}, {"ceiling": 2.0}, {"negative_slope": 0.1}, {"takes_back": True}])
@pytest.mark.parametrize(("timesteps", "phi"), [(1, 8), (4, 3)])
def test_steady_counts_are_those_of_a_constant_current(kind: dict[str, Any], timesteps: int, phi: int) -> None:
    current = torch.linspace(-9, 9, 901).reshape(1, 1, 1, -1)
    spec = layer([0.29], phi, **kind)
    expected = burst_scan(current[None], spec, timesteps).sum(0)
    assert (
        steady_counts(activation(current, **{k: v for k, v in kind.items() if k != "takes_back"}), spec, timesteps) != expected
    ).sum() <= 3  # rounding at a level's edge


@pytest.mark.parametrize("timesteps", [1, 2, 4, 7])
@pytest.mark.parametrize("phi", [1, 3, 8])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (16, 20)])
@pytest.mark.parametrize(
    "kind", [{}, {"ceiling": 1.0}, {"negative_slope": 0.3}, {"takes_back": True}, {"takes_back": True, "ceiling": 1.0}]
)
def test_fused_kernel_equals_the_specification(
    timesteps: int, phi: int, static: bool, size: tuple[int, int], kind: dict[str, Any]
) -> None:
    g = torch.Generator().manual_seed(timesteps * 100 + phi)
    current = torch.randn((1 if static else timesteps, 2, 3, *size), generator=g)
    spec = NeuronLayer(torch.rand(3, generator=g) + 0.1, torch.randn(3, generator=g) * 0.1, phi, **kind)
    fan_out = torch.randint(1, 900, (3, *size), generator=g).float()
    counts = burst_scan(current, spec, timesteps)
    out, totals = burst_scan_fused(current, spec, timesteps, fan_out)
    assert torch.equal(out, counts * spec.theta[:, None, None])
    assert torch.equal(totals, reference_totals(counts, fan_out))


@settings(deadline=None)
@given(
    currents=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    theta=st.floats(2**-6, 8, width=32),
    shift=st.floats(-2, 2, width=32),
    phi=st.integers(1, 12),
    timesteps=st.integers(1, 6),
    kind=st.sampled_from([{}, {"ceiling": 6.0}, {"negative_slope": 0.1}, {"takes_back": True}]),
)
def test_fused_kernel_equals_the_specification_on_any_current(
    currents: list[float], theta: float, shift: float, phi: int, timesteps: int, kind: dict[str, Any]
) -> None:
    current = torch.tensor(currents).reshape(1, 1, 1, 1, -1)
    spec = layer([theta], phi, shift, **kind)
    fan_out = torch.arange(1.0, len(currents) + 1).reshape(1, 1, -1)
    counts = burst_scan(current, spec, timesteps)
    out, totals = burst_scan_fused(current, spec, timesteps, fan_out)
    assert torch.equal(out, counts * theta)
    assert torch.equal(totals, reference_totals(counts, fan_out))


def reference_totals(counts: Tensor, fan_out: Tensor) -> Tensor:
    """Spikes, operations, graded operations, active neuron-timesteps per image."""
    counts = counts.double().abs()
    rows = [counts, counts * fan_out, (counts > 0) * fan_out, (counts > 0).double()]
    return torch.stack([row.sum((0, 2, 3, 4)) for row in rows], 1)
