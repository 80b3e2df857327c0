"""Scores of tracks: known figures of made-up tracks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.tracks import SEGMENT_US, WINDOW_US, Pairs, differences, figures
from evburst.data.boxes import Detections


def pairs(swapped_after: int) -> Pairs:
    """Two objects over 80 windows, found exactly; from a window on, their track numbers are swapped."""
    boxes = np.array([[0, 0, 10, 10], [50, 50, 70, 90]], np.float32)
    truth = Detections(boxes, np.ones(2, np.float32), np.zeros(2, np.int64), 0, np.array([1, 2]))
    numbers = [np.array([2, 1]) if window >= swapped_after else np.array([1, 2]) for window in range(80)]
    found = [replace(truth, t_us=(k + 1) * WINDOW_US, track_ids=ids) for k, ids in enumerate(numbers)]
    return [(replace(truth, t_us=one.t_us), one) for one in found]


def test_figures_and_intervals_of_swapped_tracks() -> None:
    pytest.importorskip("trackeval")
    right, wrong = figures([pairs(80)]), figures([pairs(40)])
    assert [right[name] for name in ("HOTA", "MOTA", "IDF1", "switches")] == [100, 100, 100, 0]
    assert [wrong[name] for name in ("DetA", "IDF1", "switches")] == [100, 50, 2]
    assert 80 * WINDOW_US == 2 * SEGMENT_US
    apart = differences({"a": {"right": [pairs(80)], "late": [pairs(60)], "same": [pairs(80)]}}, "right")
    assert list(apart) == ["late", "same"]
    assert all(values == [0, 0, 0] for values in apart["same"]["a"].values())
    difference, low, high = apart["late"]["a"]["IDF1"]  # half of the second segment's
    assert (difference, high) == (-25, 0)
    assert low == -50
