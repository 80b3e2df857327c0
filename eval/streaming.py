"""Latency-aware (streaming) evaluation: at the time of a label, what counts is the newest result that is finished by then.

Windows end every `window_us` from the recording's start on. A detector that is free takes the newest window that is complete,
unless it has had that one, and is busy for `latency_us`; windows that ended in the meantime are skipped (Li, Wang and Ramanan,
"Towards Streaming Perception", ECCV 2020).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NOTHING_YET = -1


def newest_results(times_us: NDArray[np.int64], start_us: int, window_us: int, latency_us: int) -> NDArray[np.int64]:
    """The end of the window whose result is in force at each time; NOTHING_YET before the first result.

    Args:
        times_us: `(n,)` times on the recording's clock.
        start_us: the recording's start.
        window_us: a window's length, and the time between two of them.
        latency_us: time from a window's end, or from when the detector is free, to its result.
    """
    last = int(times_us.max(initial=start_us))
    ends, finished = [], []
    now = start_us + window_us
    end = now
    while end <= last:
        ends.append(end)
        finished.append(now + latency_us)
        # Free again: the newest complete window, or the next one if that is the one just done.
        newest = start_us + (finished[-1] - start_us) // window_us * window_us
        end = newest if newest > end else end + window_us
        now = max(finished[-1], end)
    in_force = np.searchsorted(np.array(finished, np.int64), times_us, "right") - 1
    return np.where(in_force < 0, NOTHING_YET, np.array([*ends, NOTHING_YET], np.int64)[in_force])
