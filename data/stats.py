"""What a spiking network did, in plain numbers: the seam between networks (models) and energy accounts (eval)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_COUNTS = ("spikes", "synaptic_ops", "graded_ops")


@dataclass(frozen=True)
class LayerStats:
    """One source of spikes, over N images and all timesteps.

    Attributes:
        name: the layer.
        kind: "input" (events), "neuron" (burst neurons) or "pool" (a max-pool passing spikes on).
        neurons: neurons of the layer; 0 unless kind is "neuron".
        timesteps: T.
        spikes: `(N,)` float64; a burst of 3 counts 3.
        synaptic_ops: `(N,)` float64; weights reached by those spikes, borders taken into account.
        graded_ops: `(N,)` float64; the same with a burst counted once.
        active: `(N,)` float64; neuron-timesteps with at least one spike, of "neuron" layers; None where they were not counted.
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
    """All layers of one run, and what the ordinary network of the same weights would compute.

    Attributes:
        layers: every source of spikes.
        dense_macs: multiply-accumulates of the ANN for one image, convolution by convolution.
    """

    layers: tuple[LayerStats, ...]
    dense_macs: dict[str, int]

    @property
    def spikes_per_neuron(self) -> NDArray[np.float64]:
        """`(N,)`: mean spikes of a neuron over all timesteps of one image (bursts with multiplicity)."""
        neurons = [layer for layer in self.layers if layer.kind == "neuron"]
        return np.sum([layer.spikes for layer in neurons], 0) / sum(layer.neurons for layer in neurons)  # type: ignore[no-any-return]

    def of_image(self, index: int) -> SpikeStats:
        """Those of one image of the batch."""
        layers = []
        for layer in self.layers:
            counts = {name: getattr(layer, name)[index : index + 1] for name in _COUNTS}
            active = None if layer.active is None else layer.active[index : index + 1]
            layers.append(replace(layer, **counts, active=active))
        return SpikeStats(tuple(layers), self.dense_macs)

    @staticmethod
    def concatenate(parts: Sequence[SpikeStats]) -> SpikeStats:
        """The runs of one network on several batches as one run."""
        layers = []
        for same in zip(*(part.layers for part in parts), strict=True):
            counts = {name: np.concatenate([getattr(layer, name) for layer in same]) for name in _COUNTS}
            counted = [layer.active for layer in same if layer.active is not None]
            active = np.concatenate(counted) if len(counted) == len(same) else None
            layers.append(replace(same[0], **counts, active=active))
        return SpikeStats(tuple(layers), parts[0].dense_macs)


@dataclass(frozen=True)
class ActivityStats:
    """What the ordinary network computed, over N images, convolution by convolution.

    Attributes:
        dense_macs: multiply-accumulates for one image, products with padding left out.
        effective_macs: `(N,)` float64 for every convolution; those whose input is not zero.
        active: `(N,)` float64; activations after a ReLU that are not zero.
        units: activations after a ReLU, of one image.
    """

    dense_macs: dict[str, int]
    effective_macs: dict[str, NDArray[np.float64]]
    active: NDArray[np.float64]
    units: int

    def of_image(self, index: int) -> ActivityStats:
        """Those of one image of the batch."""
        effective = {name: counts[index : index + 1] for name, counts in self.effective_macs.items()}
        return replace(self, effective_macs=effective, active=self.active[index : index + 1])

    @staticmethod
    def concatenate(parts: Sequence[ActivityStats]) -> ActivityStats:
        """The runs of one network on several batches as one run."""
        first = parts[0]
        effective = {name: np.concatenate([part.effective_macs[name] for part in parts]) for name in first.effective_macs}
        return replace(first, effective_macs=effective, active=np.concatenate([part.active for part in parts]))


@dataclass(frozen=True)
class ConvMemory:
    """One convolution's memories, in words.

    Attributes:
        name: the convolution.
        macs: its dense multiply-accumulates.
        inputs, weights, outputs, biases: words.
    """

    name: str
    macs: int
    inputs: int
    weights: int
    outputs: int
    biases: int


@dataclass(frozen=True)
class MemoryGeometry:
    """What is kept where.

    Attributes:
        convs: every convolution.
        reach: for every source of spikes, by convolution: the weights that one spike of each of its positions reaches there.
    """

    convs: tuple[ConvMemory, ...]
    reach: dict[str, dict[str, float]]
