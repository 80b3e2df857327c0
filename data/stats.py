"""Spike and operation counts of a network run; the interface between networks (models) and energy estimates (eval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_COUNTS = ("spikes", "synaptic_ops", "graded_ops")


@dataclass(frozen=True)
class LayerStats:
    """Counts of one source of spikes, for N images, summed over the timesteps.

    Attributes:
        name: the layer.
        kind: "input" (events), "neuron" (burst neurons) or "pool" (a max-pool that forwards spikes).
        neurons: number of neurons; 0 unless kind is "neuron".
        timesteps: T.
        spikes: `(N,)` float64; a burst of 3 counts as 3.
        synaptic_ops: `(N,)` float64; synaptic operations that these spikes cause, borders taken into account.
        graded_ops: `(N,)` float64; the same, but a burst counts once.
        active: `(N,)` float64; neuron-timesteps with at least one spike, for "neuron" layers; None if not counted.
    """

    name: str
    kind: Literal["input", "neuron", "pool"]
    neurons: int
    timesteps: int
    spikes: NDArray[np.float64]
    synaptic_ops: NDArray[np.float64]
    graded_ops: NDArray[np.float64]
    active: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SpikeStats:
    """Counts of all layers of a run, and the operations of the ANN with the same weights.

    Attributes:
        layers: all sources of spikes.
        dense_macs: multiply-accumulates of the ANN for one image, by convolution.
    """

    layers: tuple[LayerStats, ...]
    dense_macs: dict[str, int]

    @property
    def spikes_per_neuron(self) -> NDArray[np.float64]:
        """Mean spikes per neuron over all timesteps of an image, `(N,)`; a burst of 3 counts as 3."""
        neurons = [layer for layer in self.layers if layer.kind == "neuron"]
        return np.sum([layer.spikes for layer in neurons], 0) / sum(layer.neurons for layer in neurons)  # type: ignore[no-any-return]

    def of_image(self, index: int) -> SpikeStats:
        """Return the counts of one image of the batch."""
        layers = []
        for layer in self.layers:
            counts = {name: getattr(layer, name)[index : index + 1] for name in _COUNTS}
            active = None if layer.active is None else layer.active[index : index + 1]
            layers.append(replace(layer, **counts, active=active))
        return SpikeStats(tuple(layers), self.dense_macs)

    @staticmethod
    def concatenate(parts: Sequence[SpikeStats]) -> SpikeStats:
        """Concatenate the counts of several batches of one network along N."""
        layers = []
        for of_one_layer in zip(*(part.layers for part in parts), strict=True):
            counts = {name: np.concatenate([getattr(layer, name) for layer in of_one_layer]) for name in _COUNTS}
            active_counts = [layer.active for layer in of_one_layer if layer.active is not None]
            active = np.concatenate(active_counts) if len(active_counts) == len(of_one_layer) else None
            layers.append(replace(of_one_layer[0], **counts, active=active))
        return SpikeStats(tuple(layers), parts[0].dense_macs)


@dataclass(frozen=True)
class ActivityStats:
    """Operations and activations of the ANN, for N images, by convolution.

    Attributes:
        dense_macs: multiply-accumulates for one image, without products with padding.
        effective_macs: multiply-accumulates whose input is not zero; `(N,)` float64 for every convolution.
        active: `(N,)` float64; nonzero activations after a ReLU.
        units: number of activations after a ReLU in one image.
    """

    dense_macs: dict[str, int]
    effective_macs: dict[str, NDArray[np.float64]]
    active: NDArray[np.float64]
    units: int

    def of_image(self, index: int) -> ActivityStats:
        """Return the counts of one image of the batch."""
        effective = {name: counts[index : index + 1] for name, counts in self.effective_macs.items()}
        return replace(self, effective_macs=effective, active=self.active[index : index + 1])

    @staticmethod
    def concatenate(parts: Sequence[ActivityStats]) -> ActivityStats:
        """Concatenate the counts of several batches of one network along N."""
        first = parts[0]
        effective = {name: np.concatenate([part.effective_macs[name] for part in parts]) for name in first.effective_macs}
        return replace(first, effective_macs=effective, active=np.concatenate([part.active for part in parts]))


@dataclass(frozen=True)
class ConvMemory:
    """Memory sizes of one convolution, in words.

    Attributes:
        name: the convolution.
        macs: its dense multiply-accumulates.
        inputs, weights, outputs, biases: number of words of each.
    """

    name: str
    macs: int
    inputs: int
    weights: int
    outputs: int
    biases: int


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
