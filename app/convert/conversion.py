"""The conversion of one network, step by step: calibration, distillation and measurement."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evburst.app.config import build
from evburst.app.convert.checkpoints import blended, read_ann, trained_size
from evburst.app.convert.config import ConvertConfig
from evburst.app.convert.data import ConversionData
from evburst.app.convert.descent import Showings, descend, fresh_batches, rate_of
from evburst.app.convert.scores import Measurement, measure_labelled, measure_unlabelled, operations_per_image, score
from evburst.app.plots.conversion import draw_course
from evburst.app.runs import pick_device
from evburst.app.scoring import scoring_of
from evburst.app.train.config import TrainConfig
from evburst.data.boxes import Detections
from evburst.data.datasets import Dataset
from evburst.data.datasets.selection import SELECT
from evburst.data.errors import ConfigError
from evburst.data.files import make_folder
from evburst.data.representations.voxel_grid import blocked_size
from evburst.eval.energy import COST_TABLES, HEADLINE, share_of_dense
from evburst.models.bundle import Bundle
from evburst.models.detector import GridDetector
from evburst.models.detectors.postprocess import SCORED
from evburst.models.graph import Runner
from evburst.models.layout import input_stride
from evburst.models.spiking.adaptive import least_tau
from evburst.models.spiking.convert.calibrate import Choice, Targets, calibrate, record_targets
from evburst.models.spiking.convert.distil import Descent, Distillation, refuse_memory
from evburst.models.spiking.convert.margin import keep_margin
from evburst.models.spiking.convert.scales import parameters_of, without_unused_scales
from evburst.models.spiking.cost import dense_macs, is_pruned
from evburst.models.spiking.network import SpikingParameters
from evburst.models.tasks import task_of

_LOG = logging.getLogger(__name__)
_ADAPTIVE_WINDOWS = 128
_ADAPTIVE_LOSS = 0.3
"""Points of AP or top-1 that stopping early may lose."""


class Conversion:
    """The network, its data, and the steps of its conversion.

    Args:
        config: the settings.

    Attributes:
        graph, head, trained: the folded ANN, its head and its training record.
        data: the windows.
        grids: calibration grids `(N, 2 * bins, H, W)` float32.
        sensor_size: (W, H) px of the calibration data.
        record: record of the networks that are measured; it decides in what blocks of pixels they see large sensors.

    Raises:
        EvburstError: the weights or the data cannot be used.
    """

    def __init__(self, config: ConvertConfig) -> None:
        self.config = config
        self.graph, self.head, self.trained = read_ann(config.weights)
        if config.distils:
            refuse_memory(self.graph)
        self.task, self.scoring = task_of(self.head), scoring_of(self.head)
        self.settings = build(TrainConfig, self.trained["config"])
        seen = trained_size(self.trained)
        self.record = {"training": {"sensor_size": list(seen) if seen else None}}
        self.data = ConversionData(config, self.settings, self.head, input_stride(self.graph, self.head), seen)
        calibration = self.data.windows("train", config.calibration_windows)
        self.grids = self.data.grids(calibration, range(len(calibration)))
        self.sensor_size = calibration.spec.sensor_size
        strides = self.head.strides
        self.graph, self.head = without_unused_scales(self.graph, self.head, self.grids)
        if config.blend_with:  # perhaps a bundled file, from which unused scales have been left out
            other, head, _ = read_ann(config.blend_with)
            self.graph = blended(self.graph, without_unused_scales(other, head, self.grids)[0], config.blend)
        if self.head.strides != strides:
            _LOG.info("of the strides %s the network uses %s; the others are left out", list(strides), list(self.head.strides))

    @cached_property
    def targets(self) -> Targets:
        """The ANN's currents for the calibration grids."""
        confidence = self.task.confidence(Runner(self.graph)(self.grids), self.head)
        return record_targets(self.graph, self.grids, confidence)

    @cached_property
    def tuning(self) -> Dataset:
        """The windows of the split "select", on which choices are made."""
        return self.data.windows(SELECT, self.config.tuning_windows)

    @cached_property
    def tuning_score(self) -> float:
        """The ANN's AP or top-1 on `tuning`."""
        return score(self.unconverted, self.tuning, ann=True)[0].value

    @cached_property
    def unconverted(self) -> Bundle:
        """The ANN as a bundle."""
        return Bundle(self.graph, self.graph, SpikingParameters(1, {}, {}), self.head, self.settings.voxel, self.record)

    def beside(self, name: str) -> Path:
        """Return the path of a file beside the weights file, and make its folder."""
        out = Path(self.config.out)
        make_folder(out.parent)
        return beside(out, name)

    def continued(self, bundle: Bundle) -> Bundle:
        """Return a converted network with the scales that are used; raise ConfigError if its weights cannot be the ANN's."""
        if self.config.distils and not self.config.advanced_weights and is_pruned(bundle.spiking) and not is_pruned(self.graph):
            raise ConfigError("advanced_weights=false takes the ANN's weights, but this network is pruned: leave it out")
        spiking = bundle.spiking.reading_out(self.graph.outputs)
        parameters = parameters_of(spiking, bundle.parameters)
        return replace(bundle, graph=self.graph, spiking=spiking, parameters=parameters, head=self.head)

    def calibrated(self, choices: dict[str, Choice] | Choice) -> Bundle:
        """Return the network with these choices, calibrated layer by layer."""
        spiking, parameters = calibrate(self.graph, self.targets, self.config.timesteps, choices, self.config.level)
        return Bundle(self.graph, spiking, parameters, self.head, self.settings.voxel, self.record)

    def distilled(self, bundle: Bundle, share: float | None) -> tuple[Bundle, list[dict[str, float]]]:
        """Continue calibration by gradient descent; return the network and the rows of NAME_descent.csv.

        Args:
            bundle: the network to start from.
            share: limit on its energy, as a share of the dense ANN's; None: no limit, or with `continues` its present energy.
        """
        c, batch, device = self.config, self.config.advanced_batch, pick_device("auto")
        steps = -(-c.advanced_windows // batch)
        operations = None if share is None else share / self.share_per_operation()
        if operations is None and c.continues:
            operations = self.measured(bundle).operations
        descent = Descent(steps, operations, c.burst, c.noise, c.advanced_rate * rate_of(batch), c.advanced_weights, c.prune)
        learning = Distillation(self.graph, bundle.spiking, bundle.parameters, self.head, descent, device)

        def learned() -> Bundle:
            spiking, parameters = learning.network()
            return replace(bundle, spiking=spiking, parameters=parameters)

        def check() -> Measurement:
            return self.measured(learned())

        files, every = self.beside("descent"), c.tuning_every // batch
        batches = partial(self._fresh_batches, batch * steps)
        try:
            course = descend(learning, batches, check, files, self._identity(bundle, descent), every, batch)
        except torch.OutOfMemoryError:
            message = f"advanced_batch: {batch} windows per step do not fit into the memory of the GPU; set fewer"
            raise ConfigError(message) from None
        draw_course(course.rows, self.share_per_operation(), self.scoring.unit, self.beside("descent.png"))
        return learned(), course.rows

    def share_of(self, bundle: Bundle) -> float:
        """Return the energy that a network takes on the calibration grids, as a share of the dense ANN's."""
        return operations_per_image(bundle, self.grids) * self.share_per_operation()

    def finish(self) -> None:
        """Delete what a descent is resumed from, and its windows, once its result has been used."""
        self.beside("descent.safetensors").unlink(missing_ok=True)
        self.data.discard_all()

    def with_margin(self, bundle: Bundle) -> Bundle:
        """Return the network with the margin of silence that is wanted."""
        return with_margin(bundle, (int(self.grids.shape[2]), int(self.grids.shape[3])), self.config.margin)

    def _fresh_batches(self, windows: int, done: int) -> Iterator[Tensor]:
        """Yield batches of training windows. Recordings have no other showings: all windows are used, in another order."""
        data = self.data

        def opened(n: int, showing: int) -> Dataset:
            return data.windows("train", n if data.fresh else 0, showing, once=data.fresh)

        source = Showings(opened, data.counts, data.discard, data.fresh)
        return fresh_batches(source, windows, done, self.config.advanced_batch)

    def measured(self, bundle: Bundle) -> Measurement:
        """Measure a network on the split "select"."""
        if not self.config.unlabelled:
            return measure_labelled(bundle, self.tuning, self.tuning_score)
        n, batch = len(self.tuning), self.config.advanced_batch
        batches = (self.data.grids(self.tuning, range(i, min(i + batch, n))) for i in range(0, n, batch))
        return measure_unlabelled(bundle, self.graph, batches)

    def _identity(self, bundle: Bundle, descent: Descent) -> str:
        """Return a digest of the networks that a descent starts from and learns from, and of its settings."""
        c = self.config
        settings = [c.advanced_batch, c.root, c.seed, c.tuning_windows, c.tuning_every, c.unlabelled, c.sensor_size, c.reading]
        parameters = bundle.parameters
        digest = hashlib.sha256(f"{asdict(descent)} {settings} {parameters.timesteps}".encode())
        for tensors in (self.graph.tensors, bundle.spiking.tensors, parameters.readout_shift):
            for _, tensor in sorted(tensors.items()):
                digest.update(tensor.numpy().tobytes())
        for _, layer in sorted(parameters.neurons.items()):
            digest.update(f"{layer.phi} {layer.ceiling} {layer.negative_slope} {layer.takes_back}".encode())
            digest.update(layer.theta.numpy().tobytes() + layer.shift.numpy().tobytes())
        return digest.hexdigest()

    def adaptive(self, bundle: Bundle) -> dict[str, Any]:
        """Return the agreement at which `--adaptive` may stop and the mean timesteps it then needs, as a part of the record;
        empty at T = 1, without labels, and if stopping loses more than _ADAPTIVE_LOSS at any agreement."""
        if bundle.parameters.timesteps == 1 or self.config.unlabelled:
            return {}
        windows = self.data.windows(SELECT, min(len(self.tuning), _ADAPTIVE_WINDOWS))
        detector = GridDetector(bundle, SCORED, engine="reference")
        size, labels, names, steps = windows.spec.sensor_size, [], [], []
        block = self.data.block(size)
        for i, item in enumerate(windows[i] for i in range(len(windows))):
            predictions = detector.step_by_step(self.data.counts(windows, [i]).numpy(), blocked_size(size, block))
            steps.append([p.scaled(block, *size) if block > 1 and isinstance(p, Detections) else p for p in predictions])
            labels.append(item.boxes)
            names.append(item.name)

        def value(predictions: list[Any]) -> float:
            return self.scoring.score(labels, predictions, names, self.head.classes).value

        found = least_tau(steps, value, _ADAPTIVE_LOSS, self.task.settled)
        if found is None:
            return {}
        tau, used = found
        return {"adaptive": {"tau": tau, "mean_timesteps": round(used, 2), "windows": len(windows), "max_loss": _ADAPTIVE_LOSS}}

    def divergence(self, bundle: Bundle) -> dict[str, Any]:
        """Return the divergence from the ANN and the energy on held-out windows, as a part of the record; empty with labels."""
        if not self.config.unlabelled:
            return {}
        measurement = self.measured(bundle)
        share = round(measurement.operations * self.share_per_operation(), 4)
        return {"divergence": {"mean": measurement.divergence, "energy_of_ann": share, "windows": len(self.tuning)}}

    def share_per_operation(self) -> float:
        """Return the energy of one synaptic operation as a share of the dense ANN's energy per window."""
        macs = sum(dense_macs(self.graph, *self.grids.shape[1:]).values())
        return share_of_dense(1, macs, COST_TABLES[HEADLINE])


def with_margin(bundle: Bundle, size: tuple[int, int], margin: float) -> Bundle:
    """Return a network with a margin, in silence of grids of a size (H, W); unchanged for 0."""
    if not margin:
        return bundle
    spiking, parameters = keep_margin(bundle.spiking, bundle.parameters, size, margin)
    return replace(bundle, spiking=spiking, parameters=parameters)


def beside(weights: Path, name: str) -> Path:
    """Return the path of a file beside a weights file."""
    return weights.with_name(f"{weights.stem}_{name}")
