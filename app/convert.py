"""From a trained network to a weights file of burst neurons: the steps behind convert.py.

Fold, measure each layer's sensitivity, choose burst limits and thresholds on the Pareto frontier, calibrate, learn, check,
save. What is learned comes from the split "train", what is chosen from "select" (data/datasets/selection.py), what is
reported from "val". Beside the weights file lie NAME_sensitivity.npz (resumes, and lets another point be picked),
NAME_frontier.csv and .png, NAME_report.json and .png, and of advanced calibration NAME_descent.csv and .png (see
descent.py).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from evburst.app.batch import find_recordings
from evburst.app.checkpoints import blended, read_ann, read_converted
from evburst.app.config import build
from evburst.app.console import show_progress
from evburst.app.conversion_scores import compare_with_ann, score, score_detector
from evburst.app.descent import BATCH, Checked, descend, fresh_batches
from evburst.app.outputs.paths import refuse_overwriting
from evburst.app.plots.conversion import draw_course, draw_frontier, draw_report, load_table, save_table, write_frontier
from evburst.app.provenance import provenance
from evburst.app.scoring import SCORINGS, scoring_of
from evburst.app.train import TrainConfig
from evburst.app.unlabelled import compare_without_labels
from evburst.data.datasets import Dataset, DatasetSpec
from evburst.data.datasets.recorded import Reading, unlabelled_windows
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.datasets.selection import SELECT
from evburst.data.errors import ConfigError, DataError
from evburst.data.events import SensorSize
from evburst.data.files import make_folder, only_writer
from evburst.data.representations.voxel_grid import voxel_batch
from evburst.eval.energy import COST_TABLES, HEADLINE
from evburst.models.bundle import DetectorBundle, find_weights
from evburst.models.detector import Detector
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.graph import Runner
from evburst.models.spiking.adaptive import least_tau
from evburst.models.spiking.convert.allocate import Frontier, pareto_frontier
from evburst.models.spiking.convert.calibrate import LEVELS, Choice, Targets, calibrate, record_targets
from evburst.models.spiking.convert.distil import Descent, Distillation
from evburst.models.spiking.convert.report import conversion_report
from evburst.models.spiking.convert.sensitivity import SensitivityTable, default_choices, measure
from evburst.models.spiking.cost import dense_macs
from evburst.models.spiking.network import SpikingParameters
from evburst.models.tasks import CLASSIFICATION, task_of

_TRAINING = ("config", "epoch", "validation", "chosen_on", "commit", "machine")
UNLABELLED = "recordings without labels"
_PATHS = ("root", "out", "weights", "blend_with", "init")
_LOG = logging.getLogger(__name__)
_SEEDS_APART = 1_000_000
_SEARCH_ROUNDS = 6
_ADAPTIVE_WINDOWS = 128
_ADAPTIVE_LOSS = 0.3


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of convert.

    Attributes:
        weights: best.safetensors of a training run, a file that was converted before, or bundled weights by name.
        blend_with: another such file, of the network that this one was fine-tuned from, to average with.
        blend: share of `weights` in the mean of both, which is often better than either (Wortsman et al., "Robust
            fine-tuning of zero-shot models", CVPR 2022).
        out: the weights file to write.
        root: folder of the data to calibrate on; "" for the one the network was trained with.
        unlabelled: the folder holds recordings of any format, without labels. The network is fitted to them, and an eighth of
            their windows is held out to measure its divergence from the ANN; its loss cannot be measured.
        sensor_size: WIDTHxHEIGHT of the sensor of such recordings, if they do not state it.
        timesteps: timesteps T.
        phi_max: most spikes of a neuron in one timestep.
        level: level of calibration (models/spiking/convert/calibrate.py); advanced adjusts the weights as well. It keeps to
            the budget, or after another choice to the energy that this was expected to cost.
        continues: go on with advanced calibration from `weights` as they are, a file that was converted before: its timesteps,
            burst limits and thresholds, and its energy unless there is a budget.
        thresholds: "error", of the least squared error, or "typical", in units of each channel's typical activation, as
            training with `schedule.rounding` rounds to: for networks that were trained so.
        signed: neurons that take back, by negative spikes, what they fired too early: of use from T = 2 on.
        budget: energy per window, as a share of the dense ANN's (INT8, per spike), that the choice may cost; None: no search.
        burst: mean spikes of a burst, weighted by fan-out, that advanced calibration shall come down to: a third of it is the
            energy against the same network as a quantised one that skips zeros (INT8). None: as many as it likes.
        max_loss: instead of a budget: points of AP, or of a classifier's top-1, that may be lost on windows of the split
            "select", by light calibration: the gradient descent of the advanced one comes after the choice.
        compress: instead: divergence from the ANN, summed over layers, that the cheapest choice may have.
        pick: instead: number of a point of the frontier, as in NAME_frontier.csv.
        calibration_windows: windows of the training split to calibrate on.
        sensitivity_windows: of those, for measuring sensitivities.
        advanced_windows: windows of the training split that advanced calibration learns from, each once, without labels
            (models/spiking/convert/distil.py); 0: not at all. Simulated ones are fresh showings, however many.
        advanced_rate: factor on the rate of that.
        advanced_weights: whether weights learn, too, besides thresholds and shifts; without, the weights file is a third
            smaller.
        tuning_windows: windows of the split "select" on which `max_loss` and the progress of advanced calibration are measured;
            0: every picture once.
        tuning_every: windows of advanced calibration after which that is done, and its state saved.
        check_windows: windows of the validation split (of recordings with a class: the test split) to measure on; 0: all,
            -1: none.
        seed: of which windows are shown; added to that of the training.
        cache: folder of simulated windows.
        note: free text for the record, e.g. where the pictures come from.
    """

    weights: str
    out: str
    root: str = ""
    unlabelled: bool = False
    sensor_size: str | None = None
    blend_with: str = ""
    blend: float = 0.5
    timesteps: int = 1
    phi_max: int = 8
    level: Literal["none", "light", "advanced"] = "light"
    continues: bool = False
    thresholds: Literal["error", "typical"] = "error"
    signed: bool = False
    budget: float | None = None
    burst: float | None = None
    max_loss: float | None = None
    compress: float | None = None
    pick: int | None = None
    calibration_windows: int = 64
    sensitivity_windows: int = 32
    advanced_windows: int = 1024
    advanced_rate: float = 1.0
    advanced_weights: bool = True
    tuning_windows: int = 0
    tuning_every: int = 1024
    check_windows: int = 0
    seed: int = 0
    cache: str = "runs/cache"
    note: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.timesteps <= 64 or not 1 <= self.phi_max <= 255:
            raise ValueError("timesteps must be 1 to 64 and phi_max 1 to 255")
        if not 0 <= self.blend <= 1:
            raise ValueError("blend must be 0 to 1")
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        if self.thresholds not in ("error", "typical"):
            raise ValueError("thresholds must be error or typical")
        if sum(x is not None for x in self._wishes) > 1:
            raise ValueError("budget, max_loss, compress and pick are four ways of choosing one point: give one")
        if self.continues and (self.max_loss, self.compress, self.pick) != (None, None, None):
            raise ValueError(
                "continue leaves burst limits and thresholds as they are: of the choices only a budget goes with it"
            )
        if self.unlabelled and (not self.root or self.max_loss is not None):
            raise ValueError(
                "unlabelled recordings need their folder (--calibration), and cannot have max_loss, which needs labels"
            )
        if self.tuning_every < BATCH or self.advanced_rate <= 0 or (self.burst or 2.0) <= 1:
            raise ValueError(f"tuning_every must be at least {BATCH}, advanced_rate positive and burst above 1")

    @property
    def searches(self) -> bool:
        """Whether burst limits and thresholds are chosen layer by layer."""
        return any(x is not None for x in self._wishes)

    @property
    def uniform(self) -> Choice:
        """The choice for all layers, without a search."""
        return Choice(self.phi_max, signed=self.signed, typical=self.thresholds == "typical")

    @property
    def _wishes(self) -> tuple[float | None, ...]:
        return self.budget, self.max_loss, self.compress, self.pick


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Fold, choose, calibrate, measure, save; returns the record that is saved with the weights."""
    inputs = [find_weights(name) for name in (config.weights, config.blend_with) if name]
    out = Path(config.out)
    refuse_overwriting(out, inputs, overwrite=True)
    with only_writer(out.parent, out.name):
        return _convert(config, out)


def human_line(config: ConvertConfig, record: dict[str, Any]) -> str:
    """What a conversion came to, for a person: a line."""
    line = f"written   {config.out}: T = {record['conversion']['timesteps']}"
    if (found := record["conversion"].get("divergence")) is not None:
        energy = f"at {100 * found['energy_of_ann']:.1f} % of the dense ANN's energy ({HEADLINE.upper()})"
        where = f"on {found['windows']} windows held out, {energy}"
        return f"{line}; divergence from the ANN {found['mean']:.3g} {where}; the loss is unknown, because there are no labels"
    if (check := record.get("check")) is None:
        return f"{line}; its loss was not measured; `evburst evaluate --weights {config.out} --both` does so"
    loss, share = check["loss"], 100 * check["snn"]["energy_of_ann"][HEADLINE]
    bounds = "" if loss["low"] is None else f" [{loss['low']:.2f}, {loss['high']:.2f}]"
    unit = next(scoring.unit for scoring in SCORINGS.values() if scoring.figures[0] in check["ann"])
    return (
        f"{line}; loses {loss['mean']:.2f}{bounds} {unit} on {check['windows']} windows of the split {check['split']!r}, "
        f"at {share:.1f} % of the dense ANN's energy ({HEADLINE.upper()})"
    )


def _windows_to_check(run: Conversion, config: ConvertConfig) -> Dataset:
    """Windows for the check after the conversion; DataError says how to do without."""
    try:
        return run.windows("val", config.check_windows)
    except DataError as error:
        raise DataError(f"{error}; the converted network is checked on it: --set check_windows=-1 leaves that out") from None


def _convert(config: ConvertConfig, out: Path) -> dict[str, Any]:
    started = time.perf_counter()
    run = Conversion(config)
    reported = (
        None if config.check_windows < 0 or config.unlabelled else _windows_to_check(run, config)
    )  # first, lest it is missing at the end
    if config.continues:
        bundle = read_converted(config.weights)
        found: dict[str, Any] = {"continued_from": bundle.record["conversion"]}
    else:
        choices, found = run.choose() if config.searches else (config.uniform, {})
        bundle = run.calibrated(choices)
    if (config.level == "advanced" or config.continues) and config.advanced_windows:
        bundle, found["descent"] = run.distilled(bundle, config.budget or found.get("expected_share"))
    seconds = time.perf_counter() - started
    report = conversion_report(bundle.graph, bundle.spiking, bundle.parameters, run.grids[: config.sensitivity_windows])
    run.beside("report.json").write_text(json.dumps(report.to_dict(), indent=1))
    draw_report(report, run.beside("report.png"))
    _LOG.info(report.table())
    record = {
        "dataset": UNLABELLED if config.unlabelled else run.settings.name,
        "sensor_size": list(run.sensor_size),
        "training": {k: _portable(run.trained[k]) for k in _TRAINING if k in run.trained},
        "conversion": {
            **_portable(asdict(config)),
            "timesteps": bundle.parameters.timesteps,
            "chosen_on": UNLABELLED if config.unlabelled else SELECT,
            "network_trained_on_select": not chosen_on_select(run.trained),
            **found,
            **run.adaptive(bundle),
            **run.divergence(bundle),
            "seconds": round(seconds, 1),
            **provenance(),
        },
    }
    if reported is not None:
        record["check"] = compare_with_ann(bundle, reported)
    replace(bundle, record=record).save(out)
    return record


def chosen_on_select(trained: dict[str, Any]) -> bool:
    """Whether a training chose its epoch on the split "select" and so did not learn from it; older records hold only the name
    of the split."""
    chosen = trained.get("chosen_on")
    return bool((chosen.get("split") if isinstance(chosen, dict) else chosen) == SELECT)


def _learned(bundle: DetectorBundle, learning: Distillation) -> DetectorBundle:
    spiking, parameters = learning.network()
    return replace(bundle, spiking=spiking, parameters=parameters)


class Conversion:
    """The network, its calibration grids, and what is done with them; see ConvertConfig."""

    def __init__(self, config: ConvertConfig) -> None:
        self.config = config
        self.graph, self.head, self.trained = read_ann(config.weights)
        self.task, self.scoring = task_of(self.head), scoring_of(self.head)
        if config.blend_with:
            self.graph = blended(self.graph, read_ann(config.blend_with)[0], config.blend)
        self.settings, self.stride = build(TrainConfig, self.trained["config"]), max(self.head.strides)
        calibration = self.windows("train", config.calibration_windows)
        self.grids = self._grids(calibration, range(len(calibration)))
        self.sensor_size = calibration.spec.sensor_size

    @property
    def _classes(self) -> tuple[str, ...]:
        """Of a classifier: recordings of others are left out. A detector's data say their classes themselves."""
        return self.head.classes if self.task.name == CLASSIFICATION else ()

    @cached_property
    def targets(self) -> Targets:
        """What the ANN does with the calibration windows."""
        confidence = self.task.confidence(Runner(self.graph)(self.grids), self.head)
        return record_targets(self.graph, self.grids, confidence)

    @cached_property
    def tuning(self) -> Dataset:
        """Windows that choices are made on."""
        return self.windows(SELECT, self.config.tuning_windows)

    @cached_property
    def tuning_score(self) -> float:
        """The ANN's AP or top-1 on them."""
        return score(self.unconverted, self.tuning, ann=True)[0].value

    def windows(self, split: str, n: int, showing: int = 0) -> Dataset:
        """Windows of the data that the network was trained on, or of the root given instead.

        Args:
            split: e.g. "val".
            n: how many; 0: all.
            showing: of simulated data, another number shows the same pictures with other motion and noise.
        """
        c, s = self.config, self.settings
        if c.unlabelled:
            return self._own_recordings(split, n)
        data: DatasetConfig = replace(s.data, root=c.root) if c.root else s.data
        with tqdm(desc=f"windows of {split}", unit="win", disable=showing > 0 or not show_progress()) as bar:
            progress = _absolute(bar)
            seed = s.schedule.seed + _SEEDS_APART * c.seed + showing
            request = Request(
                split, s.voxel.window_us, n, Path(c.cache), seed, progress=progress, task=self.task.name, classes=self._classes
            )
            opened = open_dataset(data, request)
        left_out = getattr(opened, "left_out", ())
        if left_out and showing == 0:
            _LOG.info(
                "split %r: pictures of %s are left out; data.simulated does not name these sets", split, ", ".join(left_out)
            )
        return opened

    def _own_recordings(self, split: str, n: int) -> Dataset:
        """Windows of recordings without labels, see `unlabelled`."""
        size = SensorSize.parse(self.config.sensor_size) if self.config.sensor_size else None
        reading = Reading(self.settings.voxel.window_us, size, cache=Path(self.config.cache))
        spec = DatasetSpec(UNLABELLED, self.head.classes, size or SensorSize(1, 1), "", {})
        return unlabelled_windows(find_recordings([self.config.root]), spec, reading, split, n)

    def beside(self, what: str) -> Path:
        """A file beside the weights file."""
        out = Path(self.config.out)
        make_folder(out.parent)
        return out.with_name(f"{out.stem}_{what}")

    def calibrated(self, choices: dict[str, Choice] | Choice) -> DetectorBundle:
        """The detector with these choices, calibrated layer by layer."""
        spiking, parameters = calibrate(self.graph, self.targets, self.config.timesteps, choices, self.config.level)
        return DetectorBundle(self.graph, spiking, parameters, self.head, self.settings.voxel, {})

    @cached_property
    def unconverted(self) -> DetectorBundle:
        """The detector before anything was added to it."""
        return DetectorBundle(self.graph, self.graph, SpikingParameters(1, {}, {}), self.head, self.settings.voxel, {})

    def distilled(self, bundle: DetectorBundle, share: float | None) -> tuple[DetectorBundle, list[dict[str, float]]]:
        """What was calibrated, nearer to the ANN, and its course.

        Args:
            bundle: to start from.
            share: of the ANN's energy, that it shall learn to do with; None: as much as it likes, or if it continues, as it
                does now.
        """
        c, steps = self.config, -(-self.config.advanced_windows // BATCH)
        operations = None if share is None else share / self.share_per_operation()
        if operations is None and c.continues:
            operations = self._checked(bundle).operations
        descent = Descent(steps, operations, c.burst, c.advanced_rate, c.advanced_weights)
        learning = Distillation(self.graph, bundle.spiking, bundle.parameters, self.head, descent)
        now: Callable[[], DetectorBundle] = lambda: _learned(bundle, learning)  # noqa: E731
        every = max(1, c.tuning_every // BATCH)
        # Recordings have no other showings: all windows are used, in another order.
        simulated = self.settings.data.kind == "simulated" and not c.unlabelled
        opened: Callable[[int, int], Dataset] = lambda n, showing: self.windows("train", n if simulated else 0, showing)  # noqa: E731
        batches: Callable[[int], Iterator[Tensor]] = lambda done: fresh_batches(opened, self._grids, BATCH * steps, done)  # noqa: E731
        check: Callable[[], Checked] = lambda: self._checked(now())  # noqa: E731
        course = descend(learning, batches, check, self.beside("descent"), self._identity(bundle, descent), every)
        draw_course(course.rows, self.share_per_operation(), self.scoring.unit, self.beside("descent.png"))
        return now(), course.rows

    def _checked(self, bundle: DetectorBundle) -> Checked:
        """Measure a network on the split "select"."""
        if self.config.unlabelled:
            n = len(self.tuning)
            batches = (self._grids(self.tuning, range(k, min(k + BATCH, n))) for k in range(0, n, BATCH))
            return compare_without_labels(bundle, self.graph, batches)
        scored, stats = score_detector(Detector(bundle, PostConfig(score=0.001)), self.tuning)
        layers = [layer for batch in stats for layer in batch.layers]
        spent, graded = (sum(float(getattr(x, what).sum()) for x in layers) for what in ("synaptic_ops", "graded_ops"))
        return Checked(self.tuning_score - scored.value, spent / len(self.tuning), spent / max(graded, 1.0))

    def _identity(self, bundle: DetectorBundle, descent: Descent) -> str:
        """Identity of a descent: where it starts and how it continues."""
        digest = hashlib.sha256(
            f"{asdict(descent)} {self.config.root} {self.config.seed} {self.config.tuning_windows}".encode()
        )
        for _, tensor in sorted(bundle.spiking.tensors.items()):
            digest.update(tensor.numpy().tobytes())
        for _, layer in sorted(bundle.parameters.neurons.items()):
            digest.update(layer.theta.numpy().tobytes() + layer.shift.numpy().tobytes())
        return digest.hexdigest()

    def adaptive(self, bundle: DetectorBundle) -> dict[str, Any]:
        """The threshold from which `--adaptive` may stop, and the mean timesteps it needs."""
        if bundle.parameters.timesteps == 1 or self.config.unlabelled:
            return {}
        windows = self.windows(SELECT, min(len(self.tuning), _ADAPTIVE_WINDOWS))
        detector = Detector(bundle, PostConfig(score=0.001), engine="reference")
        size, labels, names, steps = windows.spec.sensor_size, [], [], []
        for item in (windows[i] for i in range(len(windows))):
            grid = voxel_batch([item.window], bundle.voxel, size, bundle.stride)
            steps.append(detector.step_by_step(grid, size))
            labels.append(item.boxes)
            names.append(item.name)
        value: Callable[[list[Any]], float] = lambda found: self.scoring.score(labels, found, names, self.head.classes).value  # noqa: E731
        tau, used = least_tau(steps, value, _ADAPTIVE_LOSS, self.task.settled)
        return {"adaptive": {"tau": tau, "mean_timesteps": round(used, 2), "windows": len(windows), "max_loss": _ADAPTIVE_LOSS}}

    def divergence(self, bundle: DetectorBundle) -> dict[str, Any]:
        """For recordings without labels: divergence from the ANN and energy on windows held out."""
        if not self.config.unlabelled:
            return {}
        checked = self._checked(bundle)
        share = round(checked.operations * self.share_per_operation(), 4)
        return {"divergence": {"mean": checked.divergence, "energy_of_ann": share, "windows": len(self.tuning)}}

    def choose(self) -> tuple[dict[str, Choice], dict[str, Any]]:
        """A point of the frontier, and the record of the search."""
        frontier = pareto_frontier(self.table())
        share = frontier.cost * self.share_per_operation()
        index, tried = self._point(frontier, share)
        write_frontier(frontier, share, self.beside("frontier.csv"))
        draw_frontier(frontier, share, index, tried, self.scoring.unit, self.beside("frontier.png"))
        return frontier.point(index), {"point": index, "expected_share": round(float(share[index]), 4), "tried": tried}

    def _point(self, frontier: Frontier, share: np.ndarray) -> tuple[int, list[dict[str, float]]]:
        c = self.config
        if c.pick is not None:
            if not 0 <= c.pick < len(frontier):
                raise ConfigError(f"pick {c.pick}: the frontier has points 0 to {len(frontier) - 1}")
            return c.pick, []
        if c.budget is not None:
            if share[0] > c.budget:
                cheapest = f"the cheapest choice costs {share[0]:.4f} of the dense ANN's energy ({HEADLINE.upper()})"
                raise ConfigError(f"budget {c.budget:g}: {cheapest}; give a higher budget or fewer timesteps")
            return frontier.within_budget(c.budget / self.share_per_operation()), []
        if c.compress is not None:
            return frontier.within_tolerance(c.compress), []
        return self._cheapest_within_loss(frontier, share, float(c.max_loss or 0.0))

    def _cheapest_within_loss(
        self, frontier: Frontier, share: np.ndarray, max_loss: float
    ) -> tuple[int, list[dict[str, float]]]:
        """Halve the interval of (log) cost between what loses too much and what does not."""
        low, high = np.log(share[0]), np.log(share[-1])
        best, tried = len(frontier) - 1, []
        for _ in tqdm(range(_SEARCH_ROUNDS), desc="search", disable=not show_progress()):
            middle = int(np.clip(np.searchsorted(share, np.exp((low + high) / 2)), 0, len(frontier) - 1))
            scored, operations = score(self.calibrated(frontier.point(middle)), self.tuning)
            lost = self.tuning_score - scored.value
            tried.append({"share": float(operations * self.share_per_operation()), "lost_ap": round(lost, 2), "point": middle})
            if lost <= max_loss:
                best, high = middle, np.log(share[middle])
            else:
                low = np.log(share[middle])
        return best, tried

    def table(self) -> SensitivityTable:
        """Measured, or read if the same network was measured before."""
        c, path = self.config, self.beside("sensitivity.npz")
        grids, choices = self.grids[: c.sensitivity_windows], default_choices(c.phi_max, c.signed, c.uniform.typical)
        batches = [grids[i : i + 8] for i in range(0, len(grids), 8)]
        start = load_table(path, self.graph, c.timesteps, choices)
        layers = sum(node.op == "relu" for node in self.graph.nodes)
        done = start.batches if start else 0
        with tqdm(total=layers * len(batches), initial=layers * done, desc="sensitivity", disable=not show_progress()) as bar:
            save: Callable[[SensitivityTable], None] = lambda table: save_table(path, table, self.graph, c.timesteps)  # noqa: E731
            return measure(self.graph, self.head, batches, c.timesteps, choices, start, save, bar.update)

    def share_per_operation(self) -> float:
        """Energy of one synaptic operation as a share of the ANN's energy per window."""
        table = COST_TABLES[HEADLINE]
        macs = sum(dense_macs(self.graph, *self.grids.shape[1:]).values())
        return table.ac_pj / (macs * table.mac_pj)

    def _grids(self, windows: Dataset, index: Sequence[int]) -> Tensor:
        items = [windows[i].window for i in index]
        return torch.from_numpy(voxel_batch(items, self.settings.voxel, windows.spec.sensor_size, self.stride)).float()


def _absolute(bar: Any) -> Callable[[int], object]:
    return lambda done: bar.update(done - bar.n)


def _portable(value: Any) -> Any:
    """A record without this machine's folders: paths keep their last part."""
    if isinstance(value, dict):
        return {k: Path(v).name if k in _PATHS and v else _portable(v) for k, v in value.items() if k != "cache"}
    return value
