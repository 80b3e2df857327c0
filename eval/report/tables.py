"""Tables of a report: column heads and rows of text, shared by the HTML page and the Markdown file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evburst.data.text import number_of
from evburst.eval.bootstrap import Interval
from evburst.eval.class_results import ClassNetworkResult
from evburst.eval.coco import IOUS
from evburst.eval.energy import COST_TABLES, is_a_qnn
from evburst.eval.result_parts import LossInterval, MemoryEnergies, TableEnergies
from evburst.eval.results import NetworkResult, Results

NONE = "-"
_MARKDOWN = str.maketrans({"\\": r"\\", "|": r"\|"})
AnyNetwork = NetworkResult | ClassNetworkResult


@dataclass(frozen=True)
class Table:
    """`head` and `rows` of equal length; the first `texts` columns are text, the others are numbers."""

    head: list[str]
    rows: list[list[str]]
    texts: int = 1

    def markdown(self) -> str:
        """Format as Markdown."""
        lines = ["| " + " | ".join(cell.translate(_MARKDOWN) for cell in row) + " |" for row in (self.head, *self.rows)]
        return "\n".join([lines[0], "|---" * self.texts + "|---:" * (len(self.head) - self.texts) + "|", *lines[1:]])


def number(value: float | None, digits: int = 2) -> str:
    """Format a number, or a dash for None."""
    return NONE if value is None else f"{round(value, digits) + 0.0:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """Format a fraction in percent."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def interval(loss: LossInterval | Interval | None, digits: int = 2) -> str:
    """Format a loss with its interval: `0.85 [0.31, 1.40]`."""
    return NONE if loss is None else f"{number(loss.mean, digits)} {bounds(loss, digits)}".rstrip()


def bounds(loss: LossInterval | Interval, digits: int = 2) -> str:
    """Format the interval alone; empty if there is none."""
    return "" if loss.low is None or loss.high is None else f"[{number(loss.low, digits)}, {number(loss.high, digits)}]"


def bootstrap(loss: LossInterval) -> str:
    """Describe where the interval of a loss comes from, or that there is none."""
    units = number_of(loss.units, loss.unit)
    return f"no interval: {units} only" if loss.low is None else f"paired bootstrap, {loss.resamples:,} resamples of {units}"


def of_qnn(row: AnyNetwork, energies: TableEnergies | None = None) -> float | None:
    """Return the spiking network's energy relative to the QNN's; None for others, and beyond one timestep (`is_a_qnn`), where
    files of earlier versions hold a number.

    Args:
        row: the network.
        energies: some of its energies; None: those in INT8.
    """
    if row.energy is None or not is_a_qnn(row.energy.timesteps):
        return None
    return (energies or row.energy.tables["int8"]).of_qnn


def main_table(results: Results) -> Table:
    """Tabulate AP, energy and latency of every network."""
    rows = results.results
    head = ["network", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    table = [[r.label, *(number(v) for v in (r.ap, r.ap50, r.ap75, r.ap_small, r.ap_medium, r.ap_large))] for r in rows]
    if any(r.energy for r in rows):
        head += ["µJ per window", "of dense ANN", "of QNN", "p50, ms", "p99, ms"]
        for cells, r in zip(table, rows, strict=True):
            e, ms = r.energy, r.latency_ms or {}
            energies = (headline_pj(r), e.ratio, of_qnn(r, e)) if e else (None, None, None)
            cells += [micro(energies[0]), percent(energies[1]), percent(energies[2])]
            cells += [number(ms.get("p50"), 1), number(ms.get("p99"), 1)]
    return Table(head, table)


def loss_table(results: Results) -> Table | None:
    """Tabulate the AP that every spiking network loses against the ANN; None if there is no pair."""
    rows = [r for r in results.results if r.ap_loss]
    if not rows:
        return None
    table = [[r.label, interval(r.ap_loss), interval(r.ap50_loss)] for r in rows]
    within = " [95 % interval]" if any(r.ap_loss and r.ap_loss.low is not None for r in rows) else ""
    return Table(["against the ANN", f"AP lost{within}", f"AP50 lost{within}"], table)


def iou_table(results: Results) -> Table:
    """Tabulate AP by IoU of every network, and the loss at each IoU."""
    rows = [[r.label, *(number(r.ap_by_iou[iou], 1) for iou in IOUS)] for r in results.results]
    for r in results.results:
        if r.ap_loss_by_iou:
            rows.append([f"lost by {r.label}", *(number(r.ap_loss_by_iou[iou].mean, 1) for iou in IOUS)])
    return Table(["AP at IoU", *IOUS], rows)


def class_table(rows: Sequence[NetworkResult]) -> Table:
    """Tabulate AP and AP50 of every class and network."""
    head = ["class", *(f"{key}, {r.label}" for key in ("AP", "AP50") for r in rows)]
    values = [
        [name, *(number(getattr(r.per_class[name], key), 1) for key in ("ap", "ap50") for r in rows)]
        for name in rows[0].per_class
    ]
    return Table(head, values)


def size_table(row: NetworkResult) -> Table | None:
    """Tabulate AP by object size, and recall."""
    if row.details is None:
        return None
    sizes, recalls = row.details.ap_by_size, row.details.recall_50
    table = [
        [
            name,
            *(number(sizes[name][size], 1) for size in ("small", "medium", "large")),
            number(None if recalls[name] is None else 100 * (recalls[name] or 0), 1),
        ]
        for name in sizes
    ]
    return Table([f"{row.label}, by size", "AP small", "AP medium", "AP large", "recall at IoU 0.5"], table)


def energy_table(rows: Iterable[AnyNetwork]) -> Table:
    """Tabulate the four energies in every number format, INT8 first."""
    pairs = ((row, row.energy.tables) for row in rows if row.energy)
    return Table(["µJ per window", *_ENERGY_HEAD], _energy_rows(pairs))


def silence_table(rows: Iterable[AnyNetwork]) -> Table | None:
    """Tabulate the energies of operations beyond silence; None where they were not counted."""
    pairs = [(row, row.energy.beyond_silence.tables) for row in rows if row.energy and row.energy.beyond_silence]
    return Table(["µJ per window, beyond silence", *_ENERGY_HEAD], _energy_rows(pairs)) if pairs else None


_ENERGY_HEAD = ["dense ANN", "zero-skipping ANN", "zero-skipping QNN", "SNN, per spike"]
_ENERGY_HEAD += ["SNN / dense ANN", "/ zero-skipping ANN", "/ zero-skipping QNN"]


def _energy_rows(pairs: Iterable[tuple[AnyNetwork, dict[str, TableEnergies]]]) -> list[list[str]]:
    """Format a row for every network and number format."""
    rows = []
    for row, by_format in pairs:
        for name in COST_TABLES:
            e = by_format[name]
            cells = [micro(pj) for pj in (e.ann_pj, e.ann_zero_skipping_pj, e.qnn_pj, e.snn_pj)]
            shares = [percent(share) for share in (e.of_ann, e.of_ann_zero_skipping, of_qnn(row, e))]
            rows.append([f"{row.label}, {name.upper()}", *cells, *shares])
    return rows


def count_table(rows: Iterable[AnyNetwork]) -> Table:
    """Tabulate the counts behind the energies of spiking networks."""
    head = [
        "per window",
        "accumulates, M",
        "bursts' MACs, M",
        "spikes per burst",
        "spikes per neuron",
        "neuron updates, M",
        "T",
    ]
    table = []
    for row in rows:
        e = row.energy
        if e and e.synaptic_ops is not None:
            millions = [number(None if v is None else v / 1e6, 1) for v in (e.synaptic_ops, e.graded_ops, e.neuron_updates)]
            per = [number(e.mean_burst), number(e.spikes_per_neuron)]
            table.append([row.label, *millions[:2], *per, millions[2], number(e.timesteps, 1)])
    return Table(head, table)


def memory_table(rows: Iterable[AnyNetwork]) -> Table:
    """Tabulate energies according to the model with memory traffic."""
    head = ["µJ per window", "operations", "weights and biases", "potentials", "inputs and outputs", "total", "of the ANN's"]
    head += ["of the QNN's"]
    rows, table = list(rows), []
    for row in rows:
        if m := row.memory:
            others = (m.alternatives or {}) if row.model == "snn" else {}
            qnn = others["qnn"].total_pj if "qnn" in others else None
            table.append([*_memory_cells(row.label, m), percent(m.share_of_ann), percent(qnn and m.total_pj / qnn)])
            titles = {
                "ann_pruned": _ALTERNATIVES["ann_pruned"],
                "ann_zero_skipping": _ALTERNATIVES["ann_zero_skipping"],
                "qnn": f"{row.label} as a {_ALTERNATIVES['qnn']}",
            }
            for name, title in titles.items():
                if name in others and title not in (cells[0] for cells in table):
                    other = others[name]
                    shares = percent(other.total_pj / others["ann"].total_pj), percent(qnn and other.total_pj / qnn)
                    table.append([*_memory_cells(title, other), *shares])
    return Table(head, table)


def _memory_cells(name: str, m: MemoryEnergies) -> list[str]:
    return [name, *(micro(pj) for pj in (m.operations_pj, m.weights_pj, m.potentials_pj, m.signals_pj, m.total_pj))]


def memory_traffic_rows(row: AnyNetwork) -> list[list[str]]:
    """Format a row for a spiking network and each of its alternatives: arithmetic, memory traffic and sum in µJ, and the
    spiking network's share of the first and of the last; none if alternatives were not measured."""
    m = row.memory
    if m is None or row.model != "snn" or m.alternatives is None:
        return []
    networks = {_ALTERNATIVES[name]: one for name, one in m.alternatives.items()} | {row.label: m}
    return [
        [
            name,
            *(micro(pj) for pj in (one.operations_pj, one.total_pj - one.operations_pj, one.total_pj)),
            *(percent(share) for share in (m.operations_pj / one.operations_pj, m.total_pj / one.total_pj)),
        ]
        for name, one in networks.items()
    ]


_ALTERNATIVES = {
    "ann": "dense ANN",
    "ann_pruned": "dense ANN with the same zeros",
    "ann_zero_skipping": "zero-skipping ANN",
    "qnn": "zero-skipping QNN",
}


def latency_table(rows: Iterable[AnyNetwork]) -> Table:
    """Tabulate latencies, throughput, and AP of the results that are available in time."""
    head = ["network", "p50, ms", "p90, ms", "p99, ms", "windows/s", "streaming AP", "offline AP", "age of a result, ms"]
    rows = list(rows)
    leads = any(row.timing and row.timing.streaming and row.timing.streaming.lead_ms for row in rows)
    head += ["boxes ahead by, ms"] * leads
    table = []
    for row in rows:
        if row.timing and row.latency_ms:
            s = row.timing.streaming
            rest = [number(s.streaming_ap), number(s.offline_ap), number(s.mean_age_ms, 1)] if s else [NONE] * 3
            rest += [number(s.lead_ms, 1) if s else NONE] * leads
            latency = [number(row.latency_ms[q], 1) for q in ("p50", "p90", "p99")]
            table.append([row.label, *latency, number(row.timing.windows_per_s, 1), *rest])
    return Table(head, table)


def neurobench_table(rows: Iterable[AnyNetwork]) -> Table:
    """Tabulate NeuroBench's complexity metrics."""
    head = ["network", "footprint, MB", "connection sparsity", "activation sparsity"]
    head += ["dense, M", "effective MACs, M", "effective ACs, M"]
    table = []
    for row in rows:
        if m := row.neurobench:
            shares = [percent(m.connection_sparsity, 2), percent(m.activation_sparsity, 2)]
            counts = [number(v / 1e6, 1) for v in (m.dense_synops, m.effective_macs, m.effective_acs)]
            table.append([row.label, number(m.footprint_bytes / 1e6, 1), *shares, *counts])
    return Table(head, table)


def headline_pj(row: AnyNetwork) -> float | None:
    """Return a network's energy per window in the headline format."""
    if row.energy is None:
        return None
    return row.energy.ann_pj if row.energy.snn_pj is None else row.energy.snn_pj


def micro(pj: float | None) -> str:
    """Format pJ as µJ."""
    return NONE if pj is None else number(pj / 1e6, 0 if pj >= 100e6 else 1)
