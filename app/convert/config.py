"""Settings of convert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from evburst.data.datasets.registry import MAX_SEED
from evburst.data.errors import require_all, require_within
from evburst.data.readers import ReadOptions
from evburst.models.layout import PHI_LIMITS, TIMESTEP_LIMITS
from evburst.models.spiking.convert.calibrate import LEVELS, Choice
from evburst.models.spiking.cost import SPARSE


@dataclass(frozen=True)
class ConvertConfig:
    """Settings of convert.

    Attributes:
        weights: best.safetensors of a training run, a converted file, or bundled weights by name.
        blend_with: a second such file, of the network that the first one was fine-tuned from; the conversion starts from the
            mean of both, which is often better than either (Wortsman et al., "Robust fine-tuning of zero-shot models",
            CVPR 2022).
        blend: weight of `weights` in that mean, 0 to 1.
        out: weights file to write.
        root: folder of the data to calibrate on; "": the folder that the network was trained on.
        unlabelled: the calibration folder contains recordings of any readable format, without labels. An eighth of their
            windows is held out to measure the divergence from the ANN; the loss cannot be measured.
        sensor_size: WIDTHxHEIGHT of the sensor of such recordings, if files do not state it.
        reading: unit of time and order of columns of such recordings, if files do not state them; as in training unless set.
        timesteps: timesteps T.
        phi_max: maximum spikes of a neuron in one timestep.
        level: level of calibration; advanced adjusts the weights as well. It keeps to the budget, or without one to the energy
            expected of the chosen point.
        continues: continue advanced calibration of `weights`, a converted file: timesteps, burst limits and thresholds start
            from its own, and its energy is kept unless there is a budget.
        thresholds: "error" for the least squared error, or "typical" for multiples of each channel's typical activation, for
            networks trained with `schedule.rounding`.
        signed: neurons can take back, by negative spikes, what they fired too early; useful from T = 2 on.
        budget: maximum energy per window, as a share of the dense ANN's (INT8, per spike); None: no search.
        burst: mean spikes per burst, weighted by fan-out, that advanced calibration aims at; a third of it is the energy
            relative to a quantised network that skips zeros (INT8). None: no limit.
        noise: limit that advanced calibration sets to what scattered events cost, in operations beyond silence. 1 allows few of
            them a tenth of a training window's operations, and those of a noisy sensor a quarter. None: no limit.
        prune: least share of the weights that are zero after advanced calibration, the smallest of every output channel; above
            an eighth of a convolution's weights, zeros cost no energy. None: such zeros stay.
        max_loss: instead of a budget: points of AP, or of a classifier's top-1, that may be lost on the split "select". The
            choice is made with light calibration, before the gradient descent of advanced.
        compress: instead: maximum divergence from the ANN, summed over layers; the cheapest point within it is chosen.
        pick: instead: number of a point of the frontier, as in NAME_frontier.csv.
        calibration_windows: windows of the split "train" for calibration; 0: all.
        sensitivity_windows: how many of those are used to measure sensitivities.
        advanced_windows: windows of the split "train" for the gradient descent of advanced calibration, each used once and
            without labels; 0: no descent. Simulated windows are always fresh.
        advanced_batch: windows per step of the descent. Learning rates grow with its square root. Two is fastest on a CPU; with
            a GPU, 32.
        advanced_rate: factor on the learning rate of the descent.
        advanced_weights: whether weights learn besides thresholds and shifts; without them, the weights file is a third
            smaller.
        margin: by how many thresholds, up to 0.5, a neuron's current in a window without events stays away from another number
            of spikes, so that few events change few neurons; the last step but for scores.
        tuning_windows: windows of the split "select" on which `max_loss` and the progress of advanced calibration are measured;
            0: every picture once.
        tuning_every: windows of advanced calibration between two such measurements; its state is saved at each.
        calibrate_scores: whether the scores of a YOLO detector are mapped, as the last step, so that a score is the fraction of
            boxes that are correct; the maps are fitted on the split "select" and folded into the weights.
            Without effect for SSD, for classifiers and for recordings without labels.
        check_windows: windows of the split "val" (for recordings with a class "test") on which the result is measured;
            0: all, -1: none.
        seed: selects which windows are simulated; added to the training's seed.
        cache: folder of simulated windows.
        note: free text for the record, e.g. the source of the pictures.
    """

    weights: str
    out: str
    root: str = ""
    unlabelled: bool = False
    sensor_size: str | None = None
    reading: ReadOptions = field(default_factory=ReadOptions)
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
    noise: float | None = None
    prune: float | None = None
    max_loss: float | None = None
    compress: float | None = None
    pick: int | None = None
    calibration_windows: int = 64
    sensitivity_windows: int = 32
    advanced_windows: int = 1024
    advanced_batch: int = 2
    advanced_rate: float = 1.0
    advanced_weights: bool = True
    margin: float = 0.0
    tuning_windows: int = 0
    tuning_every: int = 1024
    calibrate_scores: bool = True
    check_windows: int = 0
    seed: int = 0
    cache: str = "runs/cache"
    note: str = ""

    def __post_init__(self) -> None:
        points = self.max_loss, self.compress, self.pick
        kept = tuple(getattr(ConvertConfig, name) for name in ("timesteps", "phi_max", "thresholds", "signed"))
        require_within(self, timesteps=TIMESTEP_LIMITS, phi_max=PHI_LIMITS, blend=(0, 1), margin=(0, 0.5), seed=(0, MAX_SEED))
        checks = {
            f"level must be one of {', '.join(LEVELS)}": self.level in LEVELS,
            "thresholds must be error or typical": self.thresholds in ("error", "typical"),
            "budget, max_loss, compress and pick each choose a point: give at most one of them": sum(
                x is not None for x in self._criteria
            )
            <= 1,
            "budget must be a share above 0 and up to 1, for instance 0.15 for 15 %": self.budget is None
            or 0 < self.budget <= 1,
            "continue keeps the burst limits and thresholds: of budget, max_loss, compress and pick it takes budget only": not (
                self.continues
            )
            or points == (None, None, None),
            "continue keeps T, burst limits, thresholds and signs: leave out timesteps, phi_max, thresholds and signed": not (
                self.continues
            )
            or (self.timesteps, self.phi_max, self.thresholds, self.signed) == kept,
            "continue without a descent keeps the energy: leave the budget out, or set advanced_windows above 0": not (
                self.continues and self.budget is not None
            )
            or self.distils,
            "continue is advanced calibration: leave level out": not self.continues or self.level != "none",
            "burst and noise are limits of the gradient descent: add --level advanced, with advanced_windows above 0": (
                self.burst is None and self.noise is None
            )
            or self.distils,
            "unlabelled needs the folder of the recordings (--calibration)": not self.unlabelled or bool(self.root),
            "max_loss needs labels: with unlabelled recordings, give a budget or compress instead": not self.unlabelled
            or self.max_loss is None,
            "advanced_batch must be positive": self.advanced_batch > 0,
            "tuning_every must be at least advanced_batch": self.tuning_every >= self.advanced_batch,
            "advanced_rate must be positive": self.advanced_rate > 0,
            f"prune must be above {SPARSE:g}, because fewer zeros save nothing, and below 1": self.prune is None
            or SPARSE < self.prune < 1,
            "prune is a part of the gradient descent: add --level advanced, with advanced_windows above 0": self.prune is None
            or self.distils,
            "prune changes weights: leave out advanced_weights=false": self.prune is None or self.advanced_weights,
            "burst must be above 1": self.burst is None or self.burst > 1,
            "noise must be positive": self.noise is None or self.noise > 0,
            "calibration_windows, advanced_windows and tuning_windows must not be negative": min(
                self.calibration_windows, self.advanced_windows, self.tuning_windows
            )
            >= 0,
            "sensitivity_windows must be positive": self.sensitivity_windows > 0,
            "check_windows must be at least -1": self.check_windows >= -1,
        }
        require_all(checks, self)

    @property
    def searches(self) -> bool:
        """Whether burst limits and thresholds are chosen layer by layer."""
        return any(x is not None for x in self._criteria)

    @property
    def distils(self) -> bool:
        """Whether the calibration is followed by a gradient descent."""
        return (self.level == "advanced" or self.continues) and self.advanced_windows > 0

    @property
    def uniform(self) -> Choice:
        """The choice of every layer if there is no search."""
        return Choice(self.phi_max, signed=self.signed, typical=self.thresholds == "typical")

    @property
    def _criteria(self) -> tuple[float | None, ...]:
        """The settings by which a point of the frontier is chosen."""
        return self.budget, self.max_loss, self.compress, self.pick
