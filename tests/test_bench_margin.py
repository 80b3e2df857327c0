"""The bench of the margin of silence: its table, and a network as it is for a margin of 0."""

from __future__ import annotations

import pytest
import torch

from bench.margin import EVENTS, relative_operations, table
from bench.quiet import scattered
from evburst.app.convert.conversion import with_margin
from evburst.models.bundle import Bundle


def test_the_table_is_of_the_figures() -> None:
    shares = {str(n): 0.1 * k for k, n in enumerate(EVENTS)}
    row = {"margin": 0.3, "ap": 31.04, "lost_ap": 1.98, "energy_int8": 0.1512, "operations": shares, "time": shares}
    assert table([{"weights": "street", "windows": 514, "rows": [row]}]).splitlines()[2] == (
        "| `street` | 514 | 0.3 | 31.0 | 2.0 | 15.1 % | 0 % | 10 % | 20 % | 30 % | 0 % | 10 % | 20 % | 30 % |"
    )


@pytest.mark.slow
def test_few_events_take_fewer_operations_with_a_margin() -> None:
    bundle = Bundle.load("street")
    assert with_margin(bundle, (64, 96), 0.0) is bundle
    busy = scattered(3000, bundle, 64, 96)
    without, half = (relative_operations(with_margin(bundle, (64, 96), margin), busy) for margin in (0.0, 0.5))
    assert half["1"] < without["1"]
    assert half["10"] < without["10"] < 1
    assert torch.equal(busy, scattered(3000, bundle, 64, 96))
