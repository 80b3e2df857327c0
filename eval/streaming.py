"""Latency-aware (streaming) evaluation: at each label's time, the most recent result that is finished by then counts.

Windows end every `step_us`, the first one `window_us` after the recording's start. A detector that is idle takes the latest
complete window that it has not yet processed, and is busy for `latency_us`; windows that ended in the meantime are skipped (Li,
Wang and Ramanan, "Towards Streaming Perception", ECCV 2020).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOTHING_YET = -1


def processed_windows(
    last_us: int, start_us: int, window_us: int, latency_us: int, step_us: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ends of the windows that are processed, and the times at which their results are finished: `(n,)` each.

    Args:
        last_us: no window that ends later is processed.
        start_us: the recording's start.
        window_us: length of a window.
        latency_us: time from the start of processing (a window's end, or when the detector becomes idle) to the result.
        step_us: time from the end of one window to the end of the next; None: the length.
    """
    step_us = step_us or window_us
    ends, finished = [], []
    end = now = start_us + window_us
    while end <= last_us:
        ends.append(end)
        finished.append(now + latency_us)
        # Idle again: take the latest complete window, or wait for the next one if that was just processed.
        newest = end + (finished[-1] - end) // step_us * step_us
        end = newest if newest > end else end + step_us
        now = max(finished[-1], end)
    return np.array(ends, np.int64), np.array(finished, np.int64)


def newest_results(
    times_us: NDArray[np.int64], ends_us: NDArray[np.int64], finished_us: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the end of the window whose result is the latest at each time `(n,)`; NOTHING_YET before the first result.

    `ends_us` and `finished_us` are from `processed_windows`.
    """
    latest = np.searchsorted(finished_us, times_us, "right") - 1
    return np.where(latest < 0, NOTHING_YET, np.append(ends_us, NOTHING_YET)[latest])
