"""Boxes that are used late: which are in force."""

from __future__ import annotations

from bench.late import in_force
from evburst.eval.streaming import processed_windows


def test_boxes_in_force_are_the_newest_finished_ones() -> None:
    moments = in_force(1_000_000, *processed_windows(1_000_000, 0, 50_000, 12_000, 25_000))
    assert [t for t, _ in moments] == list(range(115_000, 1_000_001, 15_000))
    assert all(end % 25_000 == 0 and 12_000 <= t - end < 37_000 for t, end in moments)
    slow = in_force(1_000_000, *processed_windows(1_000_000, 0, 50_000, 60_000, 50_000))  # some windows are skipped
    assert all(60_000 <= t - end < 170_000 for t, end in slow)
