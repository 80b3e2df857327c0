"""What a spiking network did, in plain numbers: the seam between networks (models) and energy accounts (eval)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


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
    """

    name: str
    kind: Literal["input", "neuron", "pool"]
    neurons: int
    timesteps: int
    spikes: NDArray[np.float64]
    synaptic_ops: NDArray[np.float64]
    graded_ops: NDArray[np.float64]


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
