"""Energy with memory traffic, an analytical model: Lemaire et al., "An Analytical Estimation of Spiking Neural Networks Energy
Efficiency", ICONIP 2022 (arXiv 2210.13107). Independent of `evburst.eval.energy`, which excludes memory.

Every convolution has its own memories for inputs, weights, biases, and potentials or outputs; nothing is reused between
accesses. An access to an SRAM of b bits costs 1.09e-5 b + 13.2 pJ (45 nm; their fit to Horowitz's values for 8 kB, 32 kB
and 1 MB).

    ANN: each MAC reads an input and a weight; each output reads a bias and is written.
    ANN or QNN that skips zeros (not in the paper): the same, with only those MACs whose input is not zero.
    Dense ANN with the zeros of a pruned network (not in the paper): the same, with only those MACs whose weight is not zero.
    SNN: each spike is written once and read by every convolution it goes to, through a queue; for each weight it reaches, that
         weight is read and the potential is read and written; each timestep reads a bias and reads and writes every potential.

Addressing is not counted, nor what it takes to find the inputs that are not zero. The fan-out of a spike is exact (borders
included); its distribution over several convolutions is the layer's mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evburst.data.stats import ActivityStats, MemoryGeometry, SpikeStats
from evburst.eval.energy import COST_TABLES, CostTable, is_a_qnn
from evburst.eval.result_parts import MemoryEnergies

MODEL = (
    "Lemaire et al., ICONIP 2022: one SRAM per layer and kind of data, 1.09e-5 pJ per bit it holds + 13.2 pJ per access, no "
    "reuse between accesses; addressing left out. An upper estimate for every network; not comparable with the table above."
)
WORD_BITS = {"fp32": 32, "fp16": 16, "int8": 8}
QUEUE_WORDS = 2048
"""Capacity of a layer's queue in spikes, of one word each."""


def access_pj(words: int, bits: int) -> float:
    """Return the energy of one access to a memory of `words` words."""
    return 1.09e-5 * words * bits + 13.2


def ann_memory(geometry: MemoryGeometry, table: CostTable, macs: Mapping[str, float] | None = None) -> MemoryEnergies:
    """Estimate the energy of the dense ANN, or of a network that skips zeros.

    Args:
        geometry: sizes of the network.
        table: energies per operation.
        macs: multiply-accumulates by convolution, mean over the windows; None: all of them, the dense ANN.
    """
    bits = WORD_BITS[table.name]
    operations = weights = signals = 0.0
    for conv in geometry.convs:
        count = conv.macs if macs is None else macs[conv.name]
        operations += count * table.mac_pj + conv.outputs * table.ac_pj
        weights += count * access_pj(conv.weights, bits) + conv.outputs * access_pj(conv.biases, bits)
        signals += count * access_pj(conv.inputs, bits) + conv.outputs * access_pj(conv.outputs, bits)
    return MemoryEnergies(operations, weights, 0.0, signals, operations + weights + signals)


def snn_memory(stats: SpikeStats, geometry: MemoryGeometry, table: CostTable, timesteps: float) -> MemoryEnergies:
    """Estimate the energy of the spiking network, with every spike of a burst counted separately.

    Args:
        stats: counts of the network, of windows over which means are taken.
        geometry: sizes of the network.
        table: energies per operation.
        timesteps: mean T of these windows.
    """
    bits = WORD_BITS[table.name]
    convs = {conv.name: conv for conv in geometry.convs}
    operations = weights = potentials = signals = 0.0
    for layer in stats.layers:
        fan_out = geometry.fan_out.get(layer.name, {})
        reached, spikes, total = float(layer.synaptic_ops.mean()), float(layer.spikes.mean()), sum(fan_out.values())
        operations += (reached + spikes * (layer.kind == "neuron")) * table.ac_pj
        signals += spikes * (1 + len(fan_out)) * access_pj(QUEUE_WORDS, bits)
        for name, part in fan_out.items():
            weights += reached * part / total * access_pj(convs[name].weights, bits)
            potentials += 2 * reached * part / total * access_pj(convs[name].outputs, bits)
    for conv in geometry.convs:
        updates = timesteps * conv.outputs
        operations += updates * table.ac_pj
        weights += updates * access_pj(conv.biases, bits)
        potentials += 2 * updates * access_pj(conv.outputs, bits)
    return MemoryEnergies(operations, weights, potentials, signals, operations + weights + potentials + signals)


def qnn_macs(stats: SpikeStats, geometry: MemoryGeometry) -> dict[str, float]:
    """Return the multiply-accumulates by convolution of the same network as a QNN: one for every burst and weight it reaches.

    A burst that reaches a neuron without a convolution is counted with the convolutions of its layer.
    """
    macs = dict.fromkeys((conv.name for conv in geometry.convs), 0.0)
    for layer in stats.layers:
        fan_out = geometry.fan_out.get(layer.name, {})
        bursts, total = float(layer.graded_ops.mean()), sum(fan_out.values())
        for name, part in fan_out.items():
            macs[name] += bursts * part / total
    return macs


def memory_figures(
    stats: SpikeStats | ActivityStats,
    activity: ActivityStats | None,
    geometry: MemoryGeometry,
    table: str,
    timesteps: float | None = None,
) -> dict[str, Any]:
    """Return the energy with memory traffic of a network and of its alternatives, in JSON types.

    Args:
        stats: counts of the network, of windows over which means are taken.
        activity: counts of the ANN; None: the zero-skipping ANN is left out.
        geometry: sizes of the network.
        table: number format.
        timesteps: mean T of the windows of `stats`, if it differs between them; None: the T of its layers.

    Returns:
        The fields of `evburst.eval.result_parts.Memory`; among the alternatives is "qnn" at one timestep only (`is_a_qnn`),
        and "ann_pruned" for a pruned network only.
    """
    costs = COST_TABLES[table]
    others = {"ann": ann_memory(geometry, costs)}
    kept = {conv.name: float(conv.kept_macs) for conv in geometry.convs}
    if any(kept[conv.name] < conv.macs for conv in geometry.convs):
        others["ann_pruned"] = ann_memory(geometry, costs, kept)
    if activity is not None:
        effective = {name: float(counts.mean()) for name, counts in activity.effective_macs.items()}
        others["ann_zero_skipping"] = ann_memory(geometry, costs, effective)
    network = others["ann"]
    if isinstance(stats, SpikeStats):
        mean = timesteps or max(layer.timesteps for layer in stats.layers)
        network = snn_memory(stats, geometry, costs, mean)
        if is_a_qnn(mean):
            others["qnn"] = ann_memory(geometry, costs, qnn_macs(stats, geometry))
    return {
        "model": MODEL,
        **asdict(network),
        "share_of_ann": network.total_pj / others["ann"].total_pj,
        "alternatives": {name: asdict(one) for name, one in others.items()},
    }
