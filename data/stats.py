"""Spike and operation counts of a network run; the interface between networks (models) and energy estimates (eval)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

COUNTS = ("spikes", "synaptic_ops", "graded_ops")
"""Counts of a layer that every engine makes."""

BEYOND_SILENCE = tuple(f"{name}_beyond_silence" for name in COUNTS)
"""The same of differences from silence, which an engine may leave out (docs/method.md#silence-as-the-reference)."""

OPTIONAL_COUNTS = ("active", *BEYOND_SILENCE)
"""All counts of a layer that are None for engines that do not make them."""


class LayerStats(NamedTuple):
    """Counts of one source of spikes, for N images, summed over the timesteps.

    Attributes:
        name: the layer.
        kind: "input" (events), "neuron" (burst neurons), "pool" (a max-pool that forwards spikes) or "memory" (spikes that are
            passed on, or held since an earlier window).
        neurons: number of neurons; 0 unless kind is "neuron".
        timesteps: T.
        spikes: `(N,)` float64; a burst of 3 counts as 3.
        synaptic_ops: `(N,)` float64; synaptic operations that these spikes cause, borders taken into account.
        graded_ops: `(N,)` float64; the same, but a burst counts once.
        active: `(N,)` float64; neuron-timesteps with at least one spike, for "neuron" layers; None if not counted.
        spikes_beyond_silence: `(N,)` float64; `spikes` of a layer that emits the differences from its counts in silence; None
            if not counted. Likewise `synaptic_ops_beyond_silence` and `graded_ops_beyond_silence`.
    """

    name: str
    kind: Literal["input", "neuron", "pool", "memory"]
    neurons: int
    timesteps: int
    spikes: NDArray[np.float64]
    synaptic_ops: NDArray[np.float64]
    graded_ops: NDArray[np.float64]
    active: NDArray[np.float64] | None = None
    spikes_beyond_silence: NDArray[np.float64] | None = None
    synaptic_ops_beyond_silence: NDArray[np.float64] | None = None
    graded_ops_beyond_silence: NDArray[np.float64] | None = None

    def of_image(self, index: int) -> LayerStats:
        """Return the counts of one image of the batch."""
        return merged([self], lambda counts: counts[0][index : index + 1])


def merged(parts: Sequence[LayerStats], merge: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]]) -> LayerStats:
    """Merge the counts of one layer.

    Args:
        parts: counts of the same layer.
        merge: applied to each kind of count of all parts. Optional counts that a part lacks become None.
    """
    counts: dict[str, NDArray[np.float64] | None] = {name: merge([getattr(part, name) for part in parts]) for name in COUNTS}
    for name in OPTIONAL_COUNTS:
        known = [counted for part in parts if (counted := getattr(part, name)) is not None]
        counts[name] = merge(known) if len(known) == len(parts) else None
    return parts[0]._replace(**counts)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class SpikeStats:
    """Counts of all layers of a run, and the operations of the ANN with the same weights.

    Attributes:
        layers: all sources of spikes.
        dense_macs: multiply-accumulates of the ANN for one image, by convolution.
    """

    layers: tuple[LayerStats, ...]
    dense_macs: dict[str, int]

    @property
    def neurons(self) -> list[LayerStats]:
        """The layers of neurons."""
        return [layer for layer in self.layers if layer.kind == "neuron"]

    @property
    def spikes_per_neuron(self) -> NDArray[np.float64]:
        """Mean spikes per neuron over all timesteps of an image, `(N,)`; a burst of 3 counts as 3."""
        return np.sum([layer.spikes for layer in self.neurons], 0) / sum(layer.neurons for layer in self.neurons)  # type: ignore[no-any-return]

    def of_image(self, index: int) -> SpikeStats:
        """Return the counts of one image of the batch."""
        if len(self.layers[0].spikes) == 1 and index in (0, -1):
            return self
        return SpikeStats(tuple(layer.of_image(index) for layer in self.layers), self.dense_macs)

    @staticmethod
    def concatenate(parts: Sequence[SpikeStats]) -> SpikeStats:
        """Concatenate the counts of several batches of one network along N."""
        layers = (merged(of_one_layer, np.concatenate) for of_one_layer in zip(*(part.layers for part in parts), strict=True))
        return SpikeStats(tuple(layers), parts[0].dense_macs)


@dataclass(frozen=True, eq=False)
class ActivityStats:
    """Operations and activations of the ANN, for N images, by convolution.

    Attributes:
        dense_macs: multiply-accumulates for one image, without products with padding.
        effective_macs: multiply-accumulates whose input is not zero; `(N,)` float64 for every convolution.
        active: `(N,)` float64; nonzero activations after a ReLU.
        units: number of activations after a ReLU in one image.
        macs_beyond_silence: multiply-accumulates whose input differs from its value in silence; `(N,)` float64 for every
            convolution; None if not counted.
    """

    dense_macs: dict[str, int]
    effective_macs: dict[str, NDArray[np.float64]]
    active: NDArray[np.float64]
    units: int
    macs_beyond_silence: dict[str, NDArray[np.float64]] | None = None

    def of_image(self, index: int) -> ActivityStats:
        """Return the counts of one image of the batch."""
        return _merged_activity([self], lambda counts: counts[0][index : index + 1])

    @staticmethod
    def concatenate(parts: Sequence[ActivityStats]) -> ActivityStats:
        """Concatenate the counts of several batches of one network along N."""
        return _merged_activity(parts, np.concatenate)


def _merged_activity(
    parts: Sequence[ActivityStats], merge: Callable[[list[NDArray[np.float64]]], NDArray[np.float64]]
) -> ActivityStats:
    """Merge counts of one network, like `merged`."""
    effective = {name: merge([part.effective_macs[name] for part in parts]) for name in parts[0].effective_macs}
    known = [part.macs_beyond_silence for part in parts if part.macs_beyond_silence is not None]
    beyond = {name: merge([part[name] for part in known]) for name in known[0]} if len(known) == len(parts) else None
    active = merge([part.active for part in parts])
    return replace(parts[0], effective_macs=effective, active=active, macs_beyond_silence=beyond)


@dataclass(frozen=True)
class ConvMemory:
    """Memory sizes of one convolution, in words.

    Attributes:
        name: the convolution.
        macs: its dense multiply-accumulates.
        inputs, weights, outputs, biases: number of words of each.
        kept_macs: multiply-accumulates with weights that are not zero; `macs` unless it is pruned.
    """

    name: str
    macs: int
    inputs: int
    weights: int
    outputs: int
    biases: int
    kept_macs: int


@dataclass(frozen=True)
class MemoryGeometry:
    """Memory sizes and fan-out of a network.

    Attributes:
        convs: all convolutions.
        fan_out: for every source of spikes, by target convolution: the number of
            weights that are reached there if each of its positions spikes once.
    """

    convs: tuple[ConvMemory, ...]
    fan_out: dict[str, dict[str, float]]
