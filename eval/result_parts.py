"""Parts of a results.json that a detector's and a classifier's have in common."""

from __future__ import annotations

from dataclasses import dataclass

STRICT = {"extra": "forbid", "allow_inf_nan": False}
"""pydantic's settings for every class of a results.json."""


@dataclass(frozen=True)
class Provenance:
    """Commit of this project ("+changes": with uncommitted changes), package versions, processor."""

    __pydantic_config__ = STRICT
    commit: str
    versions: dict[str, str]
    machine: str


@dataclass(frozen=True)
class LossInterval:
    """ANN minus SNN in percentage points of AP, see `evburst.eval.bootstrap.Interval`; `unit`: "picture", "recording", or
    "group" (of recordings that depend on each other)."""

    __pydantic_config__ = STRICT
    mean: float
    low: float | None
    high: float | None
    resamples: int
    units: int
    unit: str


@dataclass(frozen=True)
class TableEnergies:
    """Four energies per window in one number format and the SNN's ratio to each, see `evburst.eval.energy.Energies`."""

    __pydantic_config__ = STRICT
    snn_pj: float | None
    qnn_pj: float | None
    ann_zero_skipping_pj: float | None
    ann_pj: float
    ratio: float | None
    of_ann: float | None
    of_ann_zero_skipping: float | None
    of_qnn: float | None


@dataclass(frozen=True)
class EnergyBeyondSilence(TableEnergies):
    """Energies of operations beyond silence in the headline format and in every format, and the counts, see
    `evburst.eval.energy.BeyondSilence`."""

    tables: dict[str, TableEnergies]
    synaptic_ops: float | None
    graded_ops: float | None
    spikes: float | None
    effective_macs: float | None


@dataclass(frozen=True)
class Energy(TableEnergies):
    """Energies in the headline format and in every format, and the counts, see `evburst.eval.energy.EnergyReport`.

    Files of earlier versions lack `beyond_silence` and `counted_windows`.
    """

    table: str
    account: str
    tables: dict[str, TableEnergies]
    mean_burst: float | None
    windows: int
    idle_windows: int
    dense_macs: int
    synaptic_ops: float | None
    graded_ops: float | None
    spikes: float | None
    spikes_per_neuron: float | None
    spikes_per_active_neuron: float | None
    neuron_updates: float | None
    timesteps: float | None
    effective_macs: float | None
    active_share: float | None
    activity_windows: int
    excluded: tuple[str, ...]
    snn_pj_percentiles: dict[str, float] | None
    beyond_silence: EnergyBeyondSilence | None = None
    counted_windows: int | None = None


@dataclass(frozen=True)
class MemoryEnergies:
    """Energy per window in pJ according to the model of `evburst.eval.memory`, mean over the windows.

    Attributes:
        operations_pj: arithmetic, biases and resets included.
        weights_pj: reading weights and biases.
        potentials_pj: reading and writing membrane potentials; 0 for ANN and QNN.
        signals_pj: reading inputs and writing outputs.
        total_pj: their sum.
    """

    __pydantic_config__ = STRICT
    operations_pj: float
    weights_pj: float
    potentials_pj: float
    signals_pj: float
    total_pj: float


@dataclass(frozen=True)
class Memory(MemoryEnergies):
    """The same of this network, with the model, its share of the dense ANN, and its alternatives: "ann", "ann_zero_skipping",
    at T = 1 "qnn", and of a pruned network "ann_pruned", the dense ANN with the same zeros. Files of earlier versions lack
    `alternatives`."""

    model: str
    share_of_ann: float
    alternatives: dict[str, MemoryEnergies] | None = None


@dataclass(frozen=True)
class NeuroBench:
    """NeuroBench's complexity metrics (`evburst.eval.neurobench`), means over the windows.

    Attributes:
        footprint_bytes: size of parameters and buffers at run time.
        connection_sparsity: fraction of weights that are zero.
        activation_sparsity: fraction of activations (or neuron-timesteps) that are zero; None if not counted.
        dense_synops: number of operations without sparsity.
        effective_macs, effective_acs: operations whose input is not zero.
    """

    __pydantic_config__ = STRICT
    footprint_bytes: int
    connection_sparsity: float
    activation_sparsity: float | None
    dense_synops: float
    effective_macs: float
    effective_acs: float


@dataclass(frozen=True)
class Streaming:
    """AP of the results that are available at each label's time, and of windows that end at the label's time ("offline").

    Boxes that count as available are predicted for `lead_ms` after the end of their window. A window ends every `stride_ms`;
    None: windows do not overlap.
    """

    __pydantic_config__ = STRICT
    latency_ms: float
    mean_age_ms: float | None
    frames: int
    streaming_ap: float | None
    streaming_ap50: float | None
    offline_ap: float | None
    offline_ap50: float | None
    lead_ms: float = 0.0
    stride_ms: float | None = None


@dataclass(frozen=True)
class NetworkTiming:
    """Windows per second in batches, latency-aware AP, and the latency of every timed window."""

    __pydantic_config__ = STRICT
    windows_per_s: float
    streaming: Streaming | None
    latencies_ms: tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """Energy of one source of spikes, or of one convolution of the ANN; mean over the windows.

    Attributes:
        name, kind: the layer; kind is "input", "neuron", "pool", "memory" or "conv".
        spikes: number of spikes, a burst of 3 counted as 3; 0 for "conv".
        operations: accumulates (for "conv", multiply-accumulates).
        graded_operations: the same with a burst counted once (for "conv", with zeros skipped).
        neuron_updates: neurons x timesteps.
        pj: energy of the operations.
    """

    __pydantic_config__ = STRICT
    name: str
    kind: str
    spikes: float
    operations: float
    graded_operations: float
    neuron_updates: int
    pj: float


@dataclass(frozen=True)
class RunTiming:
    """Timing of the whole evaluation: seconds, number of processes, threads of each, and the date (ISO 8601, UTC)."""

    __pydantic_config__ = STRICT
    wall_s: float
    processes: int
    threads: int
    date: str


def in_blocks(downsample: int) -> str:
    """Return what is added to the name of data whose pixels the networks saw in blocks; nothing for single pixels."""
    return f", blocks of {downsample}x{downsample} px" if downsample > 1 else ""
