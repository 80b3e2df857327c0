"""Rounding and density of activations in one function equal separate torch operations, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evburst.models.activation_regulariser import ROUNDING_LEVELS, round_and_measure


def density(activation: Tensor) -> Tensor:
    return (activation.mean((0, 2, 3)) ** 2 / (activation.square().mean((0, 2, 3)) + 1e-12)).mean()


def rounded(activation: Tensor, threshold: float, measured: Tensor) -> Tensor:
    measured = measured.detach()
    typical = (measured.square().mean((0, 2, 3)) + 1e-12) / (measured.mean((0, 2, 3)) + 1e-9)
    theta = (threshold * typical + 1e-9)[:, None, None]
    clipped = torch.minimum(activation, ROUNDING_LEVELS * theta)
    return clipped + (theta * (activation.detach() / theta + 0.5).floor().clamp(max=ROUNDING_LEVELS) - clipped).detach()


def activations(seed: int, channels_last: bool) -> Tensor:
    """Half of the units silent, one channel wholly."""
    a = torch.randn(6, 5, 7, 9, generator=torch.Generator().manual_seed(seed)).relu_()
    a[:, 3] = 0
    return a.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4])
def test_values_and_gradients_are_those_of_single_operations(threshold: float, every: int, channels_last: bool) -> None:
    weights = torch.randn(6, 5, 7, 9, generator=torch.Generator().manual_seed(1))
    results = []
    for fused in (True, False):
        a = activations(0, channels_last).requires_grad_()
        b = a * 1.0  # as inside a network, not a leaf
        if fused:
            out, share = round_and_measure(b, threshold, every)
        else:
            out, share = (rounded(b, threshold, b[::every]) if threshold else b), density(b[::every])
        ((out * weights).sum() + 300 * share).backward()
        assert a.grad is not None
        results.append((out.detach(), share.detach(), a.grad))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_density_is_the_share_of_active_units_at_any_scale() -> None:
    active = torch.zeros(4, 3, 5, 5)
    active[:, 0, 0] = 2.0  # a fifth of the units of channel 0
    active[:, 1] = 0.01  # all of channel 1; none of channel 2
    share = round_and_measure(active, 0.0, every=1)[1].item()
    assert share == pytest.approx((0.2 + 1.0 + 0.0) / 3, rel=1e-3)
    assert round_and_measure(100 * active, 0.0, every=1)[1].item() == pytest.approx(share, rel=1e-3)


def test_rounded_activations_are_multiples_of_a_threshold_and_pass_gradients_below_the_largest() -> None:
    activation = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out, _ = round_and_measure(activation, 0.1, every=1)
    typical = (activation**2).mean((0, 2, 3)) / activation.mean((0, 2, 3))
    spikes = out / (0.1 * typical)[:, None, None]
    torch.testing.assert_close(spikes, spikes.round().clamp(0, 8), rtol=0, atol=1e-3)
    out.sum().backward()
    assert activation.grad is not None
    below = activation < 8 * 0.1 * typical[:, None, None]
    assert below.any()
    assert not below.all()
    torch.testing.assert_close(activation.grad, below.float())
