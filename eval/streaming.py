"""Latency-aware (streaming) evaluation: at each label's time, the most recent result that is finished by then counts.

Windows end every `window_us` after the recording's start. A detector that is idle takes the latest complete window that it has
not yet processed, and is busy for `latency_us`; windows that ended in the meantime are skipped (Li, Wang and Ramanan, "Towards
Streaming Perception", ECCV 2020).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOTHING_YET = -1


def newest_results(times_us: NDArray[np.int64], start_us: int, window_us: int, latency_us: int) -> NDArray[np.int64]:
    """Return the end of the window whose result is the latest at each time; NOTHING_YET before the first result.

    Args:
        times_us: `(n,)` times on the recording's clock.
        start_us: the recording's start.
        window_us: length of a window, and time between two windows.
        latency_us: time from the start of processing (a window's end, or when the detector becomes idle) to the result.
    """
    last = int(times_us.max(initial=start_us))
    ends, finished = [], []
    now = start_us + window_us
    end = now
    while end <= last:
        ends.append(end)
        finished.append(now + latency_us)
        # Idle again: take the latest complete window, or wait for the next one if that was just processed.
        newest = start_us + (finished[-1] - start_us) // window_us * window_us
        end = newest if newest > end else end + window_us
        now = max(finished[-1], end)
    latest = np.searchsorted(np.array(finished, np.int64), times_us, "right") - 1
    return np.where(latest < 0, NOTHING_YET, np.array([*ends, NOTHING_YET], np.int64)[latest])
