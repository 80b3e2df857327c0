"""The training loop in plain torch: moving average of the weights, cosine schedule, resuming, several processes.

The best epoch is chosen on the split "select" (data/datasets/selection.py), from which the network does not learn.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from evburst.app.config import setting_names, to_dict
from evburst.app.outputs.folder import write_json
from evburst.app.plots.training import LOGS, Curves
from evburst.app.processes import barrier
from evburst.app.provenance import provenance
from evburst.app.scoring import SCORINGS, Scoring
from evburst.app.train.batches import Batches
from evburst.app.train.config import ScheduleConfig, TrainConfig
from evburst.app.train.loss import ScheduledLoss
from evburst.app.train.validation import Validation, has_bfloat16, validate
from evburst.app.train.windows import EpochWindows, open_split
from evburst.data.datasets import Dataset
from evburst.data.datasets.selection import SELECT
from evburst.data.errors import ConfigError, DataError
from evburst.data.files import make_folder, read_json
from evburst.data.representations.voxel_grid import padded_size, voxel_batch
from evburst.models.architectures import NetworkConfig, build_network, task_of_architecture, training_stride
from evburst.models.bundle import load_tensors, read_kind, save_tensors
from evburst.models.initialise import start_from

_LOG = logging.getLogger(__name__)

BEST, LAST, SETTINGS = "best.safetensors", "last.safetensors", "config.json"
FILES = (BEST, LAST, SETTINGS, *LOGS)
"""What a run writes."""

SOURCES = ("recordings", "pictures")
"""What windows come from: recordings, or pictures from which recordings are simulated."""

_MAY_CHANGE = ("name", "out", "cache", "data.root", "schedule.epochs", "schedule.workers", "schedule.loaders")
"""Settings that may differ when a run is resumed."""


class Trainer:
    """One run, in one process.

    Its files are last.safetensors (to resume from), best.safetensors (to convert), log.csv, curves.png and config.json.

    Args:
        config: settings of the run.
        show_progress: whether to show progress bars; only the first process shows any.

    Attributes:
        model: the network.
        ema: moving average of its weights, which is validated and saved.
        epoch: number of complete epochs.
        best: highest validation score so far; -1 before the first epoch.

    Raises:
        EvburstError: the data or the initial weights cannot be used, or the output folder holds a run with other settings;
            `run` also raises it if the training diverges.
    """

    def __init__(self, config: TrainConfig, show_progress: bool) -> None:
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.config, self.show_progress = config, show_progress and self.rank == 0
        self.out = Path(config.out)
        self._provenance = provenance()  # of the code that runs, which may differ from what is committed when the run ends
        s = config.schedule
        self.task = task_of_architecture(config.architecture)
        self.scoring: Scoring = SCORINGS[self.task]
        if self.rank == 0:
            make_folder(self.out)
        self.val, self.train, self._windows = self._datasets()
        self._data = {"root": config.data.root, "identity": _identity(self.val, self.train)}
        torch.manual_seed(s.seed)
        size = self.train.spec.sensor_size
        self.stride = training_stride(config.architecture, size)
        width, height = padded_size(size, self.stride)
        self.network_config = NetworkConfig(
            config.architecture, config.activation, config.voxel.channels, self.train.spec.classes, (width, height)
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self._initial_network()
        self.ema = deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = _optimizer(self.model, s)
        self._loss = ScheduledLoss(self.model, s, s.amp and has_bfloat16(self.device))
        self._step: Any = nn.parallel.DistributedDataParallel(self._loss) if self.world > 1 else self._loss
        self._batches = Batches(
            self._windows, len(self.train), config, self.task, self.stride, self.rank, self.world, self._windows.begin
        )
        self.total_steps = len(self._batches) * s.epochs
        self.epoch, self.best = 0, -1.0
        self._resume()
        if self.rank == 0:
            write_json(self.out / SETTINGS, {**to_dict(config), **self._provenance})
        self._curves = Curves(self.out, self._loss.names, self.scoring.figures) if self.rank == 0 else None

    def run(self) -> None:
        """Run the remaining epochs."""
        while self.epoch < self.config.schedule.epochs:
            started = time.perf_counter()
            loss = self._train_epoch()
            self._refuse_divergence(loss)
            self.epoch += 1
            if self._curves is not None:
                result = validate(self.ema, self.val, self.config.voxel, self.stride, self.config.schedule.amp)
                self._curves.add(self.epoch, loss, result.score, time.perf_counter() - started)
                value = result.score.value
                if math.isnan(value) and self.epoch == 1:
                    _LOG.warning("%s: the split 'select' has no object to find, so that the last epoch is kept", self.out)
                if not value < self.best:
                    self.best = -1.0 if math.isnan(value) else value
                    self._save_best(result)
                self._save_last()
            barrier(self.world)

    def _datasets(self) -> tuple[Dataset, Dataset, EpochWindows]:
        """Open windows to validate on and to learn from; the first process simulates missing ones while the others wait."""
        s = self.config.schedule
        if self.rank > 0:
            barrier(self.world)
        opened = [
            open_split(self.config, self.task, split, n, self.show_progress)
            for split, n in ((SELECT, s.val_windows), ("train", s.windows))
        ]
        if self.rank == 0:
            barrier(self.world)
        return opened[0], opened[1], EpochWindows(self.config, self.task, opened[1], self.rank, self.world)

    def _initial_network(self) -> Any:
        """Build the network, with the weights of `init` if there are any."""
        network: Any = build_network(self.network_config)
        network = network.to(self.device).to(memory_format=torch.channels_last)
        if self.config.init:
            windows = [self.train[i].window for i in range(min(64, len(self.train)))]
            grids = voxel_batch(windows, self.config.voxel, self.train.spec.sensor_size, self.stride)
            start_from(network, self.config.init, torch.from_numpy(grids).to(self.device).float())
        return network

    def _train_epoch(self) -> NDArray[np.float64]:
        """Train for one epoch; return the mean parts of the loss per window."""
        s = self.config.schedule
        self.model.train()
        total, steps = torch.zeros(len(self._loss.names), device=self.device), len(self._batches)
        bar = tqdm(total=steps, desc=f"epoch {self.epoch}", disable=not self.show_progress)
        for number, (x, boxes, labels, index) in enumerate(self._batches.of_epoch(self.epoch)):
            step = self.epoch * steps + number
            self._set_rate(step)
            self._loss.begin(step, step / self.total_steps, self.rank)
            x = x.to(self.device, non_blocking=True).to(memory_format=torch.channels_last).float()
            loss = self._step(x, boxes, labels.to(self.device), index.to(self.device))
            self.optimizer.zero_grad()
            (loss.sum() * self.world).backward()  # gradients are averaged over processes, losses are sums over the batch
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
            self.optimizer.step()
            self._update_ema(step)
            if self.world > 1:
                dist.all_reduce(loss := loss.detach())
            total += loss.detach() / s.batch
            bar.update()
            if not bar.disable:
                bar.set_postfix(loss=f"{total.sum().item() / (number + 1):.2f}")
        bar.close()
        return total.double().cpu().numpy() / steps

    def _refuse_divergence(self, loss: NDArray[np.float64]) -> None:
        """Raise DataError if an epoch ended with infinite numbers or NaN, before anything of it is saved."""
        numbers = (tensor for tensor in self.ema.state_dict().values() if tensor.is_floating_point())
        if not np.isfinite(loss).all() or not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
            rate = self.config.schedule.learning_rate
            raise DataError(
                f"{self.out}: epoch {self.epoch + 1} diverged (its loss or weights are not finite) and is not kept; set a "
                f"learning rate below {rate:g} (schedule.learning_rate)"
            )

    def _set_rate(self, step: int) -> None:
        s = self.config.schedule
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        warmup = max(min(s.warmup_steps, self.total_steps // 5), 1)
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * min(1.0, (step + 1) / warmup) * cosine

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        decay = self.config.schedule.ema * (1 - math.exp(-(step + 1) / 500))
        pairs = list(zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True))
        averaged = [(mine, new) for mine, new in pairs if mine.is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in averaged], [new for _, new in averaged], 1 - decay)
        for mine, new in pairs:
            if not mine.is_floating_point():
                mine.copy_(new)

    def _save_best(self, result: Validation) -> None:
        chosen_on = {
            "split": SELECT,
            "windows": result.windows,
            SOURCES[self.config.data.kind == "simulated"]: result.sources,
            "chosen": f"the epoch with the highest {self.scoring.unit}, of those up to this one",
        }
        record = {
            "config": to_dict(self.config),
            "network": asdict(self.network_config),
            "sensor_size": list(self.train.spec.sensor_size),
            "epoch": self.epoch,
            "validation": result.score.record,
            "chosen_on": chosen_on,
            **self._provenance,
        }
        save_tensors(self.out / BEST, "ann", self.ema.state_dict(), record)

    def _save_last(self) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema/{k}": v.clone() for k, v in self.ema.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        tensors |= {f"optimizer/{i}/{k}": v for i, entry in state.items() for k, v in entry.items() if v is not None}
        record = {"epoch": self.epoch, "best": self.best, "network": asdict(self.network_config), "data": self._data}
        save_tensors(self.out / LAST, "training", tensors, record)

    def _resume(self) -> None:
        """Continue the unfinished run in the output folder, if there is one."""
        path = self.out / LAST
        if not path.exists():
            return
        _refuse_other_settings(self.config, self.out)
        tensors, record = load_tensors(path, "training")
        _refuse_other_network(self.network_config, record, self.out)
        self.epoch, self.best = record["epoch"], record["best"]
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.ema.load_state_dict(parts["ema"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.rank == 0:
            _warn_of_other_data(record.get("data", self._data), self._data, self.out)
            if self.epoch >= self.config.schedule.epochs:
                _LOG.warning("%s: the run is complete: nothing is trained; use another --out for a new one", self.out)
            else:
                _LOG.info("resuming %s at epoch %d", path, self.epoch)


def is_training(out: Path) -> bool:
    """Return whether a folder contains a training run of evburst, finished or not."""
    return {"schedule", "commit"} <= read_json(out / SETTINGS).keys() or read_kind(out / LAST) == "training"


def _optimizer(model: nn.Module, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if schedule.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=decayed[0].is_cuda)


def _identity(*datasets: Dataset) -> str:
    """Return a digest that changes if the files or the labels of data sets change."""
    identities = [part.identity for dataset in datasets for part in dataset.parts()]
    return hashlib.sha256("\n".join(identities).encode()).hexdigest()


def _warn_of_other_data(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Warn if the files in the same folder are not those of the run in the output folder."""
    if before["root"] == now["root"] and before["identity"] != now["identity"]:
        text = "%s: recordings or labels in %r have changed, or were written again, since the last epoch; continued with them"
        _LOG.warning(text, out, now["root"])


def _refuse_other_settings(config: TrainConfig, out: Path) -> None:
    """Raise ConfigError if the run in the output folder has other settings, except those in _MAY_CHANGE, or unknown ones."""
    path = out / SETTINGS
    try:
        before = _flat(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError):
        raise ConfigError(
            f"{path}: cannot be read, so the settings of the run in {out} are unknown; use another --out"
        ) from None
    now = _flat(json.loads(json.dumps(to_dict(config))))
    if (root := before.get("data.root")) != now["data.root"]:
        _LOG.warning("%s: begun with the data in %r, continued with those in %r", out, root, now["data.root"])
    changed = [name for name in now if name in before and before[name] != now[name] and name not in _MAY_CHANGE]
    if changed:
        differences = ", ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in changed[:3])
        raise ConfigError(f"{out}: contains a run with other settings ({differences}); use the same settings or another --out")


def _refuse_other_network(config: NetworkConfig, record: dict[str, Any], out: Path) -> None:
    """Raise ConfigError if the data require another network than that of the run in the output folder."""
    now = json.loads(json.dumps(asdict(config)))
    before = record.get("network", now)
    changed = [f"{name} was {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        raise ConfigError(
            f"{out}: contains a run on other data, which its network does not fit ({'; '.join(changed)}); use the same data "
            "or another --out"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name; a mapping that is the value of one setting stays whole."""
    sections = {name.rpartition(".")[0] for name in setting_names(TrainConfig)}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if prefix + name in sections else {prefix + name: value}
    return flat
