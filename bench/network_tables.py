"""Tables of the bundled networks that join several results files: of `evburst evaluate`, of training, of other benches."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench import inference, real
from bench.contenders import TIMESTEPS
from evburst.data.errors import DataError
from evburst.eval.bootstrap import Interval
from evburst.eval.energy import COST_TABLES
from evburst.eval.report import collect
from evburst.eval.report.tables import Table, interval, number, of_qnn, percent
from evburst.eval.results import NetworkResult, Results, read_results
from evburst.models.bundle import Bundle
from evburst.models.spiking.network import SpikingParameters

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
DETECTORS = ("street", "caltech6", "caltech6-ssd")
"""All of one timestep, so that each is the same network as a quantised one."""
CLASSIFIERS = ("nmnist", "dvs128-objects", "caltech101")
TRAINED_QNN = "street-16-levels"
"""Results of the network of configs/convert_street_qnn.yaml, whose weights do not come with evburst."""
OTHER_DRIVES = "-other-drives"
"""Suffix of results on windows without those of a drive that training has seen other frames of."""


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def _files(names: tuple[str, ...]) -> list[collect.File]:
    return collect.find([RESULTS / name for name in names]).files


def evaluation(names: tuple[str, ...], title: str) -> str:
    """A table of `evburst results`, of these weights."""
    return next(one.table for one in collect.summary_tables(_files(names)) if one.title == title).markdown()


def window_times() -> dict[tuple[str, str], str]:
    """ms per window by weights and network: "ann" and "int8" in their fastest runtime; "qnn", the spiking network at T = 1
    where no spikes are counted; "snn T", the spiking network in the fastest engine that counts every spike."""
    times: dict[tuple[str, str], str] = {}
    for path in sorted(RESULTS.glob("inference*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        ms = {name: result["ms"] for name, result in record["results"].items() if "ms" in result}
        found = {"ann": ms[inference.baseline(record["results"])], "int8": _fastest(ms, "(openvino|onnxruntime) int8.*")}
        found["qnn"] = _fastest(ms, "snn .* T=1 uncounted")
        found |= {f"snn {steps}": _fastest(ms, rf"snn (reference|int8) T={steps}") for steps in TIMESTEPS}
        times |= {(record["weights"], name): f"{value:.1f}" for name, value in found.items() if value is not None}
    return times


def _fastest(ms: dict[str, float], names: str) -> float | None:
    """The shortest time of the networks whose names match; None if there is none."""
    return min((value for name, value in ms.items() if re.fullmatch(names, name)), default=None)


@cache
def _bundle(weights: str) -> Bundle:
    return Bundle.load(weights)


def _parameters(weights: str) -> SpikingParameters:
    return _bundle(weights).parameters


def _limits(weights: str) -> Counter[int]:
    """Number of layers with each burst limit."""
    return Counter(int(layer.burst_limits.max()) for layer in _parameters(weights).neurons.values())


def levels(weights: str) -> int:
    """Levels of an activation of the network as a quantised one, in the layers with the most."""
    return 1 + max(_limits(weights))


def _detectors(names: tuple[str, ...] = DETECTORS) -> Iterator[Results]:
    for name in names:
        results = read_results(RESULTS / name / "results.json")
        if isinstance(results, Results):
            yield results


class _Account(NamedTuple):
    """Scores of a spiking network as cells, and energies as shares of the dense ANN's: of an ANN that skips zeros, of the QNN
    that the network is at T = 1, and of the network."""

    scores: list[str]
    arithmetic: dict[str, float]
    with_memory: dict[str, float]


def _account(results: Results) -> _Account:
    snn = results.results[1]
    if snn.energy is None or snn.memory is None or snn.memory.alternatives is None:
        raise DataError(f"{results.weights}: results.json lacks the energy with memory traffic; run evburst evaluate again")
    e, memory = snn.energy.tables["int8"], snn.memory
    with_memory = {name: one.total_pj / memory.alternatives["ann"].total_pj for name, one in memory.alternatives.items()}
    spent = {"ann_zero_skipping": e.ann_zero_skipping_pj, "qnn": e.qnn_pj, "snn": e.snn_pj}
    return _Account(
        [number(snn.ap, 1), number(snn.ap50, 1), interval(snn.ap_loss, 1)],
        {name: (pj or 0) / e.ann_pj for name, pj in spent.items()},
        with_memory | {"snn": memory.share_of_ann},
    )


def headline() -> str:
    """The README's table: `street`, and the network with 16 levels, on drives that training has not seen."""
    (trained,) = _detectors((TRAINED_QNN + OTHER_DRIVES,))
    (results,) = _detectors(("street" + OTHER_DRIVES,))
    ann, int8, *others = _networks(results, read("int8_ann" + OTHER_DRIVES))
    found, few = _account(trained), _recorded_levels(trained)
    rows = [
        [f"QNN, {few} levels, energy unlimited", *found.scores, *_qnn_cells(found, TRAINED_QNN), "-"],
        [f"SNN, the same, up to {few - 1} spikes", *found.scores, *_snn_cells(found), "-"],
    ]
    return Table(_NETWORKS_HEAD, [ann, int8, *rows, *others], 1).markdown()


_NETWORKS_HEAD = ["network", "AP", "AP50", "AP lost [95 %]", "arithmetic", "with memory traffic", "ms"]


def other_networks() -> str:
    """The same of `caltech6`, for docs/results.md."""
    (results,) = _detectors(("caltech6",))
    return Table(_NETWORKS_HEAD, _networks(results, read("int8_ann")), 1).markdown()


def _networks(results: Results, eight_bits: dict[str, Any]) -> list[list[str]]:
    """ANN, ANN in 8 bits, QNN and spiking network of a weights file of one timestep."""
    name, found, times = results.weights or "", _account(results), window_times()
    ann, measured = results.results[0], eight_bits["weights"][name]
    quantised, loss, many = measured["networks"]["int8"], measured["int8_of_ann"]["ap"], levels(name)
    eight = [f"{quantised['ap']:.1f}", f"{quantised['ap50']:.1f}", interval(Interval(**loss), 1)]
    zeros = [percent(share["ann_zero_skipping"]) for share in (found.arithmetic, found.with_memory)]
    return [
        ["ANN", number(ann.ap, 1), number(ann.ap50, 1), *["-"] * 3, times[name, "ann"]],
        ["ANN, INT8", *eight, *zeros, times[name, "int8"]],
        [f"QNN, {many} levels, bundled", *found.scores, *_qnn_cells(found, name), times[name, "qnn"]],
        [f"**SNN, the same, up to {many - 1} spikes**", *found.scores, *_snn_cells(found), times[name, "snn 1"]],
    ]


def _qnn_cells(found: _Account, weights: str) -> list[str]:
    """Its shares of the dense ANN; in parentheses if it multiplies by shifts, at no cost, and additions."""
    share = found.arithmetic["qnn"]
    added = share * _of_multiplications(weights)["qnn_signed"]
    return [f"{percent(share)} ({percent(added)})", percent(found.with_memory["qnn"])]


def _snn_cells(found: _Account) -> list[str]:
    return [percent(found.arithmetic["snn"]), percent(found.with_memory["snn"])]


def _of_multiplications(weights: str) -> dict[str, float]:
    """Energy of bench/bursts.py's ways to meet a weight, relative to multiplications of 8 by 8 bits."""
    energy = read("bursts")["weights"][weights]["energy_pj"]
    return {name: pj / energy["qnn"] for name, pj in energy.items()}


def multipliers() -> str:
    """The spiking network's arithmetic relative to that of the same network as a QNN, by how the QNN multiplies.

    A narrow multiplication costs in proportion to the bits of an activation; additions have their full width.
    """
    costs, rows = COST_TABLES["int8"], []
    for results in _detectors((*DETECTORS, TRAINED_QNN)):
        name, share, ways = results.weights or "", of_qnn(results.results[1]), _of_multiplications(results.weights or "")
        bits = _bits(_recorded_levels(results) if name == TRAINED_QNN else levels(name))
        of_additions = ways["snn"] / ways["qnn_signed"]
        cells = [f"{read('bursts')['weights'][name]['spikes_per_burst']:.2f}", percent(share)]
        cells += [f"{percent((share or 0) * costs.mac_pj / _narrow_pj(bits))} ({bits} bits)", percent(of_additions)]
        rows.append([f"`{name}`", *cells, f"{of_additions - 1:.2f}"])
    head = ["weights", "spikes per burst", "of QNN, 8 by 8 bits", "8 bits by those of an activation", "shifts and additions"]
    return Table([*head, "break-even: a shift in additions"], rows, 1).markdown()


def _bits(levels: int) -> int:
    return math.ceil(math.log2(levels))


def _narrow_pj(bits: int) -> float:
    """Energy of a multiply-accumulate in pJ whose multiplication is 8 bits by fewer."""
    costs = COST_TABLES["int8"]
    return (costs.mac_pj - costs.ac_pj) * bits / 8 + costs.ac_pj


def trained_qnn() -> str:
    """The network that was trained as a quantised one, beside the bundled one, each as a QNN and as a spiking network."""
    rows = []
    for results in _detectors((TRAINED_QNN, "street")):
        trained, found, name = results.weights == TRAINED_QNN, _account(results), results.weights or ""
        count, share = _recorded_levels(results) if trained else levels(name), found.arithmetic["qnn"]
        narrow = share * _narrow_pj(_bits(count)) / COST_TABLES["int8"].mac_pj
        added = share * _of_multiplications(name)["qnn_signed"]
        text = "without a limit" if trained else "bundled"
        prices = [percent(share), percent(narrow), percent(added), percent(found.with_memory["qnn"])]
        rows.append([f"QNN, {count} levels, {text}", *found.scores, *prices])
        spent, with_memory = _snn_cells(found)
        rows.append([f"SNN, the same, up to {count - 1} spikes", *found.scores, spent, "-", "-", with_memory])
    head = ["`street`", "AP", "AP50", "AP lost [95 %]", "arithmetic, of ANN", "8 bits by those of an activation"]
    return Table([*head, "shifts and additions", "with memory traffic"], rows, 1).markdown()


def _recorded_levels(results: Results) -> int:
    return 1 + int((results.weights_record or {})["conversion"]["phi_max"])


def burst_limits() -> str:
    """Levels and bits of the activations of all weights, for docs/models.md."""
    rows = []
    for name in (*DETECTORS, *CLASSIFIERS):
        layers = _limits(name)
        limits = sorted(layers, reverse=True)
        cells = [
            f"`{name}`",
            f"{_parameters(name).timesteps}",
            ", ".join(f"{limit}: {layers[limit]}" for limit in limits),
            ", ".join(f"{limit + 1}" for limit in limits),
            ", ".join(f"{_bits(limit + 1)}" for limit in limits),
        ]
        rows.append(cells)
    return Table(["weights", "T", "burst limit phi: layers", "levels", "bits of an activation"], rows, 5).markdown()


def cards() -> str:
    """Score and energy of all weights at their default T, for docs/models.md."""
    head = "weights | parameters | dense MACs | measured on | score | ANN | SNN | lost [95 %] | of dense ANN | of QNN"
    rows = []
    for _, results in _files((*DETECTORS, *CLASSIFIERS)):
        timesteps = _parameters(results.weights or "").timesteps
        ann = next(row for row in results.results if row.model == "ann")
        snn = next(row for row in results.results if row.timesteps == timesteps)
        if isinstance(ann, NetworkResult) and isinstance(snn, NetworkResult):
            scores, loss, unit = (ann.ap, snn.ap), snn.ap_loss, f"{results.windows:,} windows"
        else:
            scores, loss, unit = (ann.top1, snn.top1), snn.top1_loss, f"{ann.recordings:,} recordings"
        e = snn.energy
        parameters = sum(tensor.numel() for tensor in _bundle(results.weights or "").graph.tensors.values())
        cells = [
            f"`{results.weights}`",
            f"{parameters / 1e6:.2f} M",
            f"{e.dense_macs / 1e6:,.0f} M" if e else "-",
            f"{results.dataset} {results.split}, {unit}",
            "AP" if unit.endswith("windows") else "top-1",
        ]
        cells += [*(f"{score:.1f}" for score in scores), interval(loss, 1), percent(e and e.of_ann), percent(of_qnn(snn))]
        rows.append(cells)
    return Table(head.split(" | "), rows, 10).markdown()


def epochs() -> str:
    """AP of `street` by epoch, for docs/results.md."""
    with (RESULTS / "street" / "training.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = (("AP", "ap"), ("AP50", "ap50"), ("AP50, car", "ap50_car"), ("AP50, pedestrian", "ap50_pedestrian"))
    cells = [[name, *(f"{float(row[column]):.1f}" for row in rows)] for name, column in columns]
    return Table(["epoch", *(row["epoch"] for row in rows)], cells, 1 + len(rows)).markdown()


def street_card() -> str:
    """AP and found objects by class, and boxes on real sensors, of `street`, for docs/models.md."""
    networks = read("street/results")["results"]
    rows = []
    for name in networks[0]["per_class"]:
        precisions = [one["per_class"][name] for one in networks]
        rows.append([f"simulated val, `{name}`: AP, AP50", *(f"{ap['ap']:.1f}, {ap['ap50']:.1f}" for ap in precisions)])
    first = networks[0]["details"]["confusion"]
    for k, name in enumerate(first["rows"][:-1]):
        counts = [one["details"]["confusion"]["counts"] for one in networks]
        cells = [f"{found[k][k]} of {sum(found[k])}, {sum(row[k] for row in found) - found[k][k]}" for found in counts]
        rows.append([f"simulated val, `{name}`, score of at least {first['score']}: found, other boxes", *cells])
    head, ruler, *others = real.table([read(f"real_street_{network}") for network in ("ann", "snn")]).splitlines()
    return "\n".join([head.replace("recording", "measured on"), ruler, *(f"| {' | '.join(row)} |" for row in rows), *others])
