"""Generate Gen1-like recordings for the benchmarks, of any length, as DAT or RAW, with identical bytes on every machine.

The sensor is 304x240 px; the rate is 1.5 million events/s on average and varies by half of that. Most events lie on or just
behind twelve drifting edges, one polarity at the front and the other behind; 8 % are uniform noise. Neighbouring events thus
share cache lines and counters, as in a recording of traffic, which uniformly random events would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.events import Events

WIDTH, HEIGHT = 304, 240
RATE_PER_S = 1_500_000
EDGES = 12
NOISE_SHARE = 0.08
PIECE = 1 << 20
HEADER = b"% Data file containing CD events.\n% Version 2\n% Height 240\n% Width 304\n\x0c\x08"


def write_recording(path: Path, n_events: int) -> None:
    """Write `n_events` as DAT version 2, in pieces of 2**20 events to bound memory."""
    rng = np.random.default_rng(7)
    edges = _Edges(rng)
    t_us = 0.0
    with path.open("wb") as file:
        file.write(HEADER)
        for start in range(0, n_events, PIECE):
            n = min(PIECE, n_events - start)
            words, t_us = _piece(rng, edges, n, t_us)
            file.write(words.tobytes())


class _Edges:
    """Nearly vertical line segments that drift across the sensor, each with its own length, slope and speed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.x0 = rng.uniform(0, WIDTH, EDGES)
        self.y0 = rng.uniform(0, HEIGHT - 40, EDGES)
        self.length = rng.uniform(30, 120, EDGES)
        self.slope = rng.uniform(-0.6, 0.6, EDGES)
        self.speed_px_s = rng.uniform(-150, 150, EDGES)


def _piece(rng: np.random.Generator, edges: _Edges, n: int, t_us: float) -> tuple[NDArray[np.uint32], float]:
    """Return `(n, 2)` DAT words of events after `t_us`, and the time of the last event."""
    rate_factor = 1 + 0.5 * np.sin(t_us / 1e6 * 2.1)
    t = t_us + np.cumsum(rng.exponential(1e6 / (RATE_PER_S * rate_factor), n))
    edge = rng.integers(0, EDGES, n)
    along = rng.uniform(0, 1, n) * edges.length[edge]
    behind = rng.exponential(1.5, n)
    direction = np.sign(edges.speed_px_s[edge])
    x = (edges.x0[edge] + edges.speed_px_s[edge] * t / 1e6 + edges.slope[edge] * along - direction * behind) % WIDTH
    y = np.minimum(edges.y0[edge] + along, HEIGHT - 1)
    noise = rng.random(n) < NOISE_SHARE
    x[noise], y[noise] = rng.uniform(0, WIDTH, noise.sum()), rng.uniform(0, HEIGHT, noise.sum())
    p = np.where(noise | (behind > 3), rng.integers(0, 2, n), (edge + (behind > 1.5)) % 2)
    words = np.empty((n, 2), "<u4")
    words[:, 0] = t
    words[:, 1] = np.minimum(x.astype(np.uint32), WIDTH - 1) | y.astype(np.uint32) << 14 | p.astype(np.uint32) << 28
    return words, float(t[-1])


ATIS_SIZE = 240, 180
ATIS_CLOCK_US = 1 << 23


def write_as(encoding: str, path: Path, packets: Iterable[Events]) -> None:
    """Write packets as "evt2", "evt3" or "bin"; every packet starts with a full time and position, independent of the last."""
    encoders: dict[str, Callable[[Events], NDArray[Any]]] = {"evt2": evt2_words, "evt3": evt3_words, "bin": atis_bytes}
    header = f"% evt {encoding[3:]}.0\n% format {encoding.upper()};height={HEIGHT};width={WIDTH}\n"
    with path.open("wb") as file:
        file.write(b"" if encoding == "bin" else f"{header}% geometry {WIDTH}x{HEIGHT}\n% end\n".encode())
        for events in packets:
            file.write(encoders[encoding](events).tobytes())


def evt2_words(events: Events) -> NDArray[np.uint32]:
    """Encode EVT2: one word per event, preceded by a TIME_HIGH word whenever the time's bits from 6 up change."""
    t, x, y, p = (events[name].astype(np.int64) for name in "txyp")
    high = t >> 6 & 0xFFFFFFF
    changed = _changes(high)
    return np.insert(p << 28 | (t & 63) << 22 | x << 11 | y, changed, 8 << 28 | high[changed]).astype("<u4")


def evt3_words(events: Events) -> NDArray[np.uint16]:
    """Encode EVT3 without vectors: per event those of TIME_HIGH, TIME_LOW and ADDR_Y that changed, and ADDR_X."""
    t, x, y, p = (events[name].astype(np.uint32) for name in "txyp")
    words = np.stack([8 << 12 | t >> 12 & 0xFFF, 6 << 12 | t & 0xFFF, y, 2 << 12 | p << 11 | x], 1).astype("<u2")
    needed = np.zeros(words.shape, bool)
    for column, value in enumerate((t >> 12, t, y)):
        needed[_changes(value), column] = True
    needed[:, 3] = True
    return words[needed]


def atis_bytes(events: Events) -> NDArray[np.uint8]:
    """Encode 5 bytes per event of an ATIS, for events on its 240x180 pixels and before the first wrap of its 23-bit clock."""
    width, height = ATIS_SIZE
    events = events[(events["x"] < width) & (events["y"] < height) & (events["t"] < ATIS_CLOCK_US)]
    t, p = events["t"], events["p"]
    return np.stack([events["x"], events["y"], p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF], 1).astype(np.uint8)


def _changes(values: NDArray[Any]) -> NDArray[np.intp]:
    """Return the indices of the first value and of all values that differ from their predecessor."""
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
