"""The newest finished result, against a clock that ticks."""

from __future__ import annotations

import numpy as np
import pytest

from evburst.eval.streaming import NOTHING_YET, newest_results


def ticking(times: np.ndarray, start: int, window: int, latency: int) -> list[int]:
    """Tick by tick: finish what is due, then take the newest complete window if free and it is a new one."""
    last = int(times.max())
    in_force, busy_with, done_at, latest_taken = NOTHING_YET, None, 0, NOTHING_YET
    seen = {}
    for now in range(start, last + 1):
        if busy_with is not None and now >= done_at:
            in_force, busy_with = busy_with, None
        newest = start + (now - start) // window * window
        if busy_with is None and newest > start and newest > latest_taken:
            busy_with, done_at, latest_taken = newest, now + latency, newest
        seen[now] = in_force
    return [seen.get(int(t), NOTHING_YET) for t in times]


@pytest.mark.parametrize("seed", range(60))
def test_equals_a_ticking_clock(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, window, latency = int(rng.integers(0, 50)), int(rng.integers(2, 12)), int(rng.integers(1, 40))
    times = np.sort(rng.integers(start, start + 150, 20))
    assert newest_results(times, start, window, latency).tolist() == ticking(times, start, window, latency)


def test_a_fast_detector_is_late_by_its_latency_and_a_slow_one_skips_windows() -> None:
    times = np.array([50_000, 69_999, 70_000, 120_000])
    assert newest_results(times, 0, 50_000, 20_000).tolist() == [NOTHING_YET, NOTHING_YET, 50_000, 100_000]
    slow = newest_results(np.array([169_999, 170_000, 290_000]), 0, 50_000, 120_000)
    assert slow.tolist() == [NOTHING_YET, 50_000, 150_000]
    assert newest_results(np.zeros(0, np.int64), 0, 50_000, 20_000).tolist() == []
