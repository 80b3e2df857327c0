"""The newest finished result, against a clock that ticks."""

from __future__ import annotations

import numpy as np
import pytest

from evburst.eval.streaming import NOTHING_YET, newest_results, processed_windows


def newest(times: np.ndarray, *clock: int) -> list[int]:
    """The newest results of a detector with this start, window, latency and step."""
    return newest_results(times, *processed_windows(int(times.max(initial=clock[0])), *clock)).tolist()


def ticking(times: np.ndarray, start: int, window: int, latency: int, step: int) -> list[int]:
    """Tick by tick: finish what is due, then take the newest complete window if free and it is a new one."""
    last = int(times.max())
    in_force, busy_with, done_at, latest_taken = NOTHING_YET, None, 0, NOTHING_YET
    seen = {}
    for now in range(start, last + 1):
        if busy_with is not None and now >= done_at:
            in_force, busy_with = busy_with, None
        complete = start + window + (now - start - window) // step * step
        if busy_with is None and now >= start + window and complete > latest_taken:
            busy_with, done_at, latest_taken = complete, now + latency, complete
        seen[now] = in_force
    return [seen.get(int(t), NOTHING_YET) for t in times]


@pytest.mark.parametrize("seed", range(60))
def test_equals_a_ticking_clock(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, window, latency = int(rng.integers(0, 50)), int(rng.integers(2, 12)), int(rng.integers(1, 40))
    times = np.sort(rng.integers(start, start + 150, 20))
    assert newest(times, start, window, latency) == ticking(times, start, window, latency, window)
    step = int(rng.integers(1, window + 1))
    assert newest(times, start, window, latency, step) == ticking(times, start, window, latency, step)


def test_a_fast_detector_is_late_by_its_latency_and_a_slow_one_skips_windows() -> None:
    times = np.array([50_000, 69_999, 70_000, 120_000])
    assert newest(times, 0, 50_000, 20_000) == [NOTHING_YET, NOTHING_YET, 50_000, 100_000]
    assert newest(times, 0, 50_000, 20_000, 10_000) == [NOTHING_YET, NOTHING_YET, 50_000, 90_000]
    slow = newest(np.array([169_999, 170_000, 290_000]), 0, 50_000, 120_000)
    assert slow == [NOTHING_YET, 50_000, 150_000]
    assert newest(np.zeros(0, np.int64), 0, 50_000, 20_000) == []
