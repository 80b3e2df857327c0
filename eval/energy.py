"""Energy of a spiking network and of the three networks it is compared with, computed from operation counts only.

    dense ANN           every multiply-accumulate of the network x MAC          (products with padding left out)
    zero-skipping ANN   multiply-accumulates whose input is not zero x MAC
    zero-skipping QNN   the spiking network's own activations sent as numbers: every burst x its fan-out x MAC
    SNN                 every spike x its fan-out x AC                           (a burst of 3 is 3 accumulates: "per spike")

The QNN is the same network on hardware with small multipliers. At one timestep a burst is a quantised activation, and a burst
whose count is sent with one event (a "graded" spike) is multiplied by the weight, so both cost one MAC. SNN / QNN is therefore
(accumulates per burst) x AC / MAC: adding instead of multiplying saves energy only if bursts have few spikes.

Each of these networks but the dense ANN can skip what equals silence instead of zeros: then only the difference of a count (or
of an activation) from its value in a window without events is sent and paid for. Those operations beyond silence stand beside
the plain ones (`BeyondSilence`, docs/method.md#silence-as-the-reference).

All values are means over the windows that were run; those of the SNN and the QNN over the windows whose spikes were counted,
which are all of them or every N-th (`RunConfig.count_every`). Idle windows, which are not run, have no energy in any network
here and are counted separately. Energies per operation: 45 nm, Horowitz, "Computing's energy problem", ISSCC 2014. Weights have
8 bits, so INT8 is the headline format. Memory traffic is modelled separately (evburst.eval.memory).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evburst.data.errors import ConfigError
from evburst.data.stats import ActivityStats, LayerStats, SpikeStats


@dataclass(frozen=True)
class CostTable:
    """Energy of one operation in pJ.

    Attributes:
        name: number format.
        mac_pj: energy of a multiply-accumulate.
        ac_pj: energy of an accumulate.
    """

    name: str
    mac_pj: float
    ac_pj: float


COST_TABLES = {
    "int8": CostTable("int8", 0.3, 0.1),
    "fp16": CostTable("fp16", 1.5, 0.4),
    "fp32": CostTable("fp32", 4.6, 0.9),
}
"""INT8: an 8-bit product (0.2 pJ) and a 32-bit addition (0.1 pJ)."""

HEADLINE = "int8"
"""The number format used where a single figure is shown."""

ACCOUNT = (
    "per spike: a burst of 3 counts 3; means over the windows that were run (of the SNN: over the counted_windows among them), "
    "idle ones left out of both sides"
)

EXCLUDED = (
    "memory traffic",
    "neuron updates",
    "pooling (comparisons and averages)",
    "binning, box decoding and NMS (the same for both networks)",
)


def is_a_qnn(timesteps: float | None) -> bool:
    """Return whether a spiking network with this (mean) number of timesteps is a quantised network: only at 1.

    A QNN takes one pass. Beyond one timestep, `qnn_pj` is the energy of several passes, and a share of it would flatter the
    spiking network.
    """
    return timesteps == 1


@dataclass(frozen=True)
class Energies:
    """Energy per window in pJ in one number format; None: not measured.

    Attributes:
        table: energies per operation.
        snn_pj: SNN, per spike.
        qnn_pj: the same network as a zero-skipping QNN, which equals the SNN with graded spikes.
        ann_zero_skipping_pj: ANN without products with 0.
        ann_pj: dense ANN.
        timesteps: mean T of the SNN.
    """

    table: CostTable
    snn_pj: float | None
    qnn_pj: float | None
    ann_zero_skipping_pj: float | None
    ann_pj: float
    timesteps: float | None

    @property
    def ratio(self) -> float | None:
        """SNN / dense ANN."""
        return _ratio(self.snn_pj, self.ann_pj)

    def as_dict(self) -> dict[str, Any]:
        """Return the energies as in results; `of_ann`, `of_ann_zero_skipping` and `of_qnn` are the SNN's ratio to each.

        The last is None unless `is_a_qnn`.
        """
        energies = {name: getattr(self, name) for name in ("snn_pj", "qnn_pj", "ann_zero_skipping_pj", "ann_pj")}
        shares = {
            "of_ann": self.ratio,
            "of_ann_zero_skipping": _ratio(self.snn_pj, self.ann_zero_skipping_pj),
            "of_qnn": _ratio(self.snn_pj, self.qnn_pj) if is_a_qnn(self.timesteps) else None,
        }
        return {**energies, "ratio": self.ratio, **shares}


def share_of_dense(synaptic_ops: float, dense_macs: float, table: CostTable) -> float:
    """Return the energy of accumulates as a share of the dense ANN's, both of one window."""
    return synaptic_ops * table.ac_pj / (dense_macs * table.mac_pj)


@dataclass(frozen=True)
class BeyondSilence:
    """Operations beyond silence per window, mean over the windows that were run; None: not measured.

    Attributes:
        synaptic_ops: accumulates of the SNN: every spike of a difference counts.
        graded_ops: MACs of the QNN: every difference counts once.
        spikes: spikes of the neurons' differences.
        effective_macs: MACs of the ANN whose input differs from its value in silence.
    """

    synaptic_ops: float | None = None
    graded_ops: float | None = None
    spikes: float | None = None
    effective_macs: float | None = None


@dataclass(frozen=True)
class EnergyReport:
    """Operation counts per window, mean over the windows whose spikes were counted; None: not measured.

    Attributes:
        windows: number of windows that were run.
        counted_windows: number of windows among them whose spikes were counted; 0 for the ANN.
        idle_windows: number of windows that were not; no other value here includes them.
        dense_macs: multiply-accumulates of the ANN.
        synaptic_ops: accumulates of the SNN; every spike of a burst counts.
        graded_ops: the same with a burst counted once, which gives the MACs of the QNN.
        spikes: spikes of neurons; a burst of 3 counts as 3.
        spikes_per_neuron: the same per neuron, over all timesteps.
        spikes_per_active_neuron: spikes of a neuron in a timestep in which it fires; None for engines that do not count bursts.
        neuron_updates: neurons x timesteps.
        timesteps: mean T.
        effective_macs: MACs of the ANN whose input is not zero.
        active_share: fraction of the ANN's activations after a ReLU that are not zero.
        activity_windows: number of windows on which the last two were measured.
        beyond_silence: the operations that differences from silence would cost.
        excluded: operations that these counts do not include.
    """

    windows: int
    idle_windows: int
    dense_macs: int
    counted_windows: int = 0
    synaptic_ops: float | None = None
    graded_ops: float | None = None
    spikes: float | None = None
    spikes_per_neuron: float | None = None
    spikes_per_active_neuron: float | None = None
    neuron_updates: float | None = None
    timesteps: float | None = None
    effective_macs: float | None = None
    active_share: float | None = None
    activity_windows: int = 0
    beyond_silence: BeyondSilence = BeyondSilence()
    excluded: tuple[str, ...] = EXCLUDED

    @property
    def mean_burst(self) -> float | None:
        """Accumulates per burst, events and max-pools included: mean spikes per burst, weighted by fan-out."""
        return _ratio(self.synaptic_ops, self.graded_ops)

    def energies(self, table: str = HEADLINE) -> Energies:
        """Return the energies in a number format of COST_TABLES."""
        return self._energies(self, table)

    def energies_beyond_silence(self, table: str = HEADLINE) -> Energies:
        """Return the energies of operations beyond silence; that of the dense ANN is the plain one."""
        return self._energies(self.beyond_silence, table)

    def _energies(self, counts: EnergyReport | BeyondSilence, table: str) -> Energies:
        if table not in COST_TABLES:
            raise ConfigError(f"energy table {table!r} is unknown (known: {', '.join(COST_TABLES)})")
        costs = COST_TABLES[table]
        return Energies(
            costs,
            _times(counts.synaptic_ops, costs.ac_pj),
            _times(counts.graded_ops, costs.mac_pj),
            _times(counts.effective_macs, costs.mac_pj),
            self.dense_macs * costs.mac_pj,
            self.timesteps,
        )


class EnergyTotals:
    """Accumulates the counts of a run window by window, in constant memory.

    Args:
        dense_macs: multiply-accumulates of the ANN for one window.
    """

    def __init__(self, dense_macs: int) -> None:
        self._dense_macs = dense_macs
        self._windows = self._idle = self._spiking = self._active = 0
        self._sums = np.zeros(2)  # neuron updates, timesteps; with adaptive timesteps they differ from window to window
        self._bursts: float | None = 0.0
        self._activity = np.zeros(2)  # effective MACs, active share
        self._example: SpikeStats | None = None
        self._by_layer: NDArray[np.float64] | None = None  # synaptic ops, graded ops and spikes of its layers
        # Beyond silence; None as soon as a window was not counted so.
        self._beyond: NDArray[np.float64] | None = np.zeros(3)  # synaptic ops, graded ops, spikes
        self._beyond_macs: float | None = 0.0

    def add(self, stats: SpikeStats) -> None:
        """Count windows that the spiking network ran."""
        layers, n = stats.layers, len(stats.layers[0].spikes)
        self._add_layers(stats, _summed([(layer.synaptic_ops, layer.graded_ops, layer.spikes) for layer in layers]))
        neurons = stats.neurons
        updates = sum(layer.neurons * layer.timesteps for layer in neurons)
        self._sums += (n * updates, n * max(layer.timesteps for layer in layers))
        active = [layer.active for layer in neurons if layer.active is not None]
        bursts = float(np.concatenate([*active, np.empty(0)]).sum()) if len(active) == len(neurons) else None
        self._bursts = _both(self._bursts, bursts)
        self._beyond = _both(self._beyond, _beyond_silence(stats))
        self._windows += n
        self._spiking += n

    def merge(self, other: EnergyTotals) -> None:
        """Count the windows of other totals of the same network."""
        self._windows += other._windows
        self._idle += other._idle
        self._spiking += other._spiking
        self._active += other._active
        self._sums += other._sums
        self._activity += other._activity
        self._bursts = _both(self._bursts, other._bursts)
        self._beyond = _both(self._beyond, other._beyond)
        self._beyond_macs = _both(self._beyond_macs, other._beyond_macs)
        if other._example is not None and other._by_layer is not None:
            self._add_layers(other._example, other._by_layer)

    def _add_layers(self, example: SpikeStats, counts: NDArray[np.float64]) -> None:
        self._example, self._by_layer = example, counts if self._by_layer is None else self._by_layer + counts

    def mean_stats(self) -> SpikeStats | None:
        """Return the mean counts of every layer over the counted windows, as those of one image; None if there are none."""
        if self._example is None or self._by_layer is None:
            return None
        means = self._by_layer / self._spiking
        layers = [
            LayerStats(layer.name, layer.kind, layer.neurons, layer.timesteps, own[2:3], own[0:1], own[1:2])
            for layer, own in zip(self._example.layers, means, strict=True)
        ]
        return SpikeStats(tuple(layers), self._example.dense_macs)

    def add_uncounted(self, windows: int) -> None:
        """Count windows that were run without counting spikes, by the ANN or by the spiking network."""
        self._windows += windows

    def add_idle(self, windows: int = 1) -> None:
        """Count windows that were not run."""
        self._idle += windows

    def add_activity(self, activity: ActivityStats) -> None:
        """Count the ANN's effective operations, in windows already counted by another method, or in a sample of them."""
        effective = sum(float(counts.sum()) for counts in activity.effective_macs.values())
        self._activity += (effective, float(activity.active.sum()) / activity.units)
        self._active += len(activity.active)
        beyond = activity.macs_beyond_silence
        macs = None if beyond is None else sum(float(counts.sum()) for counts in beyond.values())
        self._beyond_macs = _both(self._beyond_macs, macs)

    def report(self) -> EnergyReport:
        """Return the means so far."""
        report = EnergyReport(self._windows, self._idle, self._dense_macs, self._spiking)
        n = self._spiking
        if n and self._example is not None and self._by_layer is not None:
            ops, graded, spikes = _over_layers(self._by_layer, self._example)
            updates, steps = (self._sums / n).tolist()
            report = replace(
                report,
                synaptic_ops=ops / n,
                graded_ops=graded / n,
                spikes=spikes / n,
                spikes_per_neuron=spikes / n / max(sum(layer.neurons for layer in self._example.neurons), 1),
                spikes_per_active_neuron=spikes / self._bursts if self._bursts else None,
                neuron_updates=updates,
                timesteps=steps,
            )
        if self._active:
            effective, share = (self._activity / self._active).tolist()
            report = replace(report, effective_macs=effective, active_share=share, activity_windows=self._active)
        return replace(report, beyond_silence=self._report_beyond_silence())

    def _report_beyond_silence(self) -> BeyondSilence:
        """Return the means of operations beyond silence so far."""
        macs = self._beyond_macs / self._active if self._active and self._beyond_macs is not None else None
        if not self._spiking or self._beyond is None:
            return BeyondSilence(effective_macs=macs)
        ops, graded, spikes = (self._beyond / self._spiking).tolist()
        return BeyondSilence(ops, graded, spikes, macs)


def energy_report(
    stats: SpikeStats | None = None, activity: ActivityStats | None = None, idle_windows: int = 0
) -> EnergyReport:
    """Return the counts of one run.

    Args:
        stats: counts of the spiking network; None: only the ANN ran.
        activity: counts of the ANN, in the same windows or a sample of them; None: the zero-skipping ANN is not measured.
        idle_windows: number of windows of the recording that were not run.

    Raises:
        ValueError: neither network ran.
    """
    ran = stats or activity
    if ran is None:
        raise ValueError("energy_report needs the counts of at least one network")
    totals = EnergyTotals(sum(ran.dense_macs.values()))
    if stats is not None:
        totals.add(stats)
    elif activity is not None:
        totals.add_uncounted(len(activity.active))
    if activity is not None:
        totals.add_activity(activity)
    totals.add_idle(idle_windows)
    return totals.report()


def energy_figures(report: EnergyReport, table: str = HEADLINE) -> dict[str, Any]:
    """Return a report in JSON types: energies in the headline format (pJ per window) and in every format, and the counts.

    `beyond_silence` holds the same of operations beyond silence; its shares compare with networks that also skip what equals
    silence, except for the dense ANN.
    """
    left_out = "excluded", "beyond_silence"
    return {
        **report.energies(table).as_dict(),
        "table": table,
        "account": ACCOUNT,
        "tables": {name: report.energies(name).as_dict() for name in COST_TABLES},
        "mean_burst": report.mean_burst,
        **{name: getattr(report, name) for name in EnergyReport.__dataclass_fields__ if name not in left_out},
        "excluded": list(report.excluded),
        "beyond_silence": {
            **report.energies_beyond_silence(table).as_dict(),
            "tables": {name: report.energies_beyond_silence(name).as_dict() for name in COST_TABLES},
            **asdict(report.beyond_silence),
        },
    }


def synaptic_ops(stats: SpikeStats) -> NDArray[np.float64]:
    """Synaptic operations of each image, `(N,)`: fan-outs of all spikes; a burst of 3 counts as 3."""
    return np.sum([layer.synaptic_ops for layer in stats.layers], 0)  # type: ignore[no-any-return]


def _over_layers(counts: NDArray[np.float64], stats: SpikeStats) -> list[float]:
    """Sum counts by layer `(layers, 3)` to synaptic operations, graded operations, and spikes of the neurons."""
    is_neuron = np.array([layer.kind == "neuron" for layer in stats.layers])
    return [*counts[:, :2].sum(0).tolist(), float(counts[is_neuron, 2].sum())]


def _beyond_silence(stats: SpikeStats) -> NDArray[np.float64] | None:
    """Synaptic and graded operations, and spikes of neurons, beyond silence, summed over the images; None: not counted."""
    rows = [
        (layer.synaptic_ops_beyond_silence, layer.graded_ops_beyond_silence, layer.spikes_beyond_silence)
        for layer in stats.layers
    ]
    if any(own is None for row in rows for own in row):
        return None
    return np.array(_over_layers(_summed(rows), stats))  # type: ignore[arg-type]


def _summed(rows: list[tuple[NDArray[np.float64], ...]]) -> NDArray[np.float64]:
    """Sum counts over the images: rows of k arrays `(N,)` become `(rows, k)`. In one go, because every window needs it."""
    flat = np.concatenate([own for row in rows for own in row])
    return flat.reshape(len(rows), len(rows[0]), -1).sum(-1)  # type: ignore[no-any-return]


def _both(a: Any, b: Any) -> Any:
    """The sum of two counts; None if one of them was not counted."""
    return None if a is None or b is None else a + b


def _times(count: float | None, pj: float) -> float | None:
    return None if count is None else count * pj


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
