"""Stop and go: the clock of a scene, or of an object in it, which stands still at times."""

from __future__ import annotations

import numpy as np

RAMP_S = 0.5
"""Time in which something brakes before it stands, and starts afterwards; its speed changes linearly."""
_MOVES_S, _STANDS_S = (0.3, 1.0), (0.6, 3.0)
_DRAWN_S = 60.0

Stops = tuple[tuple[float, float], ...]
"""Intervals (from, to) in s during which something stands; at least twice RAMP_S apart."""


def clock(t_s: float, stops: Stops) -> float:
    """Return the time as it passes for something that stands during `stops`."""
    lost = 0.0
    for start, stop in stops:
        before, after = np.clip(t_s - start + RAMP_S, 0, RAMP_S), np.clip(stop + RAMP_S - t_s, 0, RAMP_S)
        lost += before**2 / (2 * RAMP_S) + np.clip(t_s - start, 0, stop - start)
        lost += (RAMP_S**2 - after**2) / (2 * RAMP_S)
    return t_s - float(lost)


def draw_stops(rng: np.random.Generator) -> Stops:
    """Draw the stops of the first minute: 0.6 to 3 s each, with 0.3 to 1 s of full speed in between."""
    stops: list[tuple[float, float]] = []
    start = rng.uniform(*_MOVES_S)
    while start < _DRAWN_S:
        stops.append((start, start + rng.uniform(*_STANDS_S)))
        start = stops[-1][1] + 2 * RAMP_S + rng.uniform(*_MOVES_S)
    return tuple(stops)
