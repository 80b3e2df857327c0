"""Signals: where the spikes that an operation reads come from.

A *source* holds the spike counts of one node (input, neurons, max-pool, upsampling). A *signal* is a list of parts of
sources, each placed at a channel of the signal. Slices and concatenations move parts; an addition unites them, because a
convolution is linear and can read the summands one after the other, with the same weights and each summand's own
thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Source:
    """Spike counts of one node, summed over time or not; compared by identity.

    Attributes:
        name: of the node.
        shape: (C, H, W).
        theta: `(C,)` float32, the scale of a count.
        limit: largest count.
        constant: whether it is the same at every timestep.
    """

    name: str
    shape: tuple[int, int, int]
    theta: NDArray[np.float32]
    limit: int
    constant: bool = False


@dataclass(frozen=True)
class SignalPart:
    """Channels [first, first + channels) of a source, which are channels [at, at + channels) of a signal."""

    source: Source
    first: int
    at: int
    channels: int

    def within(self, start: int, stop: int) -> SignalPart | None:
        """Return the piece of it in channels [start, stop) of the signal, placed relative to `start`; None if there is none."""
        low, high = max(self.at, start), min(self.at + self.channels, stop)
        return SignalPart(self.source, self.first + low - self.at, low - start, high - low) if low < high else None


Signal = list[SignalPart]


@dataclass(frozen=True)
class Read:
    """Everything that a convolution reads from one source: channels [first, first + channels). Parts may overlap; their
    weights add up."""

    source: Source
    first: int
    channels: int
    parts: Signal

    def weights(self, weight: NDArray[np.float64], values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """The weights `(O, channels, kh, kw)` that counts of these channels are multiplied by.

        Args:
            weight: `(O, C, kh, kw)` of the convolution.
            values: `(C,)` further factors.
        """
        total = np.zeros((len(weight), self.channels, *weight.shape[2:]))
        for part in self.parts:
            start, read = part.first - self.first, slice(part.at, part.at + part.channels)
            scale = self.source.theta[part.first : part.first + part.channels].astype(np.float64)
            scale = scale if values is None else scale * values[read]
            total[:, start : start + part.channels] += weight[:, read] * scale[:, None, None]
        return total


def reads(signal: Signal) -> list[Read]:
    """Group a signal by source."""
    by_source: dict[Source, Signal] = {}
    for part in signal:
        by_source.setdefault(part.source, []).append(part)
    result = []
    for source, parts in by_source.items():
        first, last = min(part.first for part in parts), max(part.first + part.channels for part in parts)
        result.append(Read(source, first, last - first, parts))
    return result


def whole(source: Source) -> Signal:
    """All channels of a source."""
    return [SignalPart(source, 0, 0, source.shape[0])]


def disjoint(signal: Signal) -> bool:
    """Whether no channel of a signal is a sum."""
    taken = sorted((part.at, part.channels) for part in signal)
    return all(at + channels <= following for (at, channels), (following, _) in pairwise(taken))
