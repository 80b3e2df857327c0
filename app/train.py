"""Training a detector or a classifier: plain torch, EMA, cosine, resume after a kill, several processes, best checkpoint by
validation."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from evburst.app import console
from evburst.app.config import to_dict
from evburst.app.inference import Inference, run_dataset
from evburst.app.plots.training import Curves
from evburst.app.provenance import provenance
from evburst.app.scoring import SCORINGS, Score, Scoring, scoring_of
from evburst.data.classification import CLASSIFICATION
from evburst.data.datasets import Dataset
from evburst.data.datasets.augment import AugmentConfig, augment
from evburst.data.datasets.registry import DatasetConfig, Request, open_dataset
from evburst.data.datasets.selection import SELECT
from evburst.data.errors import ConfigError
from evburst.data.events import SensorSize
from evburst.data.files import make_folder, only_writer
from evburst.data.representations.voxel_grid import VoxelConfig, padded_size, voxel_batch
from evburst.models.activation_regulariser import round_and_measure
from evburst.models.bundle import load_tensors, save_tensors
from evburst.models.detectors import NetworkConfig, build_network, task_of_architecture, training_stride
from evburst.models.detectors.postprocess import PostConfig
from evburst.models.initialise import start_from
from evburst.models.tasks import Prediction, task_of

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleConfig:
    """How long and how fast to learn.

    Attributes:
        windows, val_windows: size of the training and validation sets; 0: all there are.
        epochs, batch: passes over the training set; windows per step, over all processes.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        learning_rate, weight_decay: warm-up over `warmup_steps`, then cosine to 2 %; no decay on biases and norms.
        warmup_steps: steps over which the learning rate rises linearly.
        plain_epochs: last epochs without mosaics, zoom, turning, shaking, stretched time and erased patches, on windows as
            they are.
        ema: decay of the weights' moving average, which is what is validated and saved.
        clip: largest gradient norm.
        amp: convolutions in bfloat16 where the device has matrix instructions for it.
        sparsity: weight of the activations' density in the loss (see `round_and_measure`): fewer active units are fewer spikes.
        rounding: share of steps in which activations are rounded to what burst neurons can emit (see `round_and_measure`), so
            that the network becomes robust to it; conversion itself stays free of training. Both grow evenly, from nothing at
            the first step to this at the last.
        seed: of weights, order and augmentation.
        workers: processes that simulate (0: as many as cores).
    """

    windows: int = 20480
    val_windows: int = 0
    epochs: int = 8
    batch: int = 16
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 300
    plain_epochs: int = 1
    ema: float = 0.999
    clip: float = 10.0
    amp: bool = True
    sparsity: float = 0.0
    rounding: float = 0.0
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """Settings of train.

    Attributes:
        name: name of the weights.
        out: output folder; an unfinished run found there is resumed.
        cache: folder of simulated windows.
        init: weights to start from: best.safetensors of another run, a converted file, or bundled weights by name ("": random).
        architecture, activation: kind of network and its activation, see evburst.models.detectors.NetworkConfig.
    """

    name: str = "street"
    out: str = "runs/train/street"
    cache: str = "runs/cache"
    init: str = ""
    architecture: str = "yolov8n"
    activation: str = "relu"
    data: DatasetConfig = field(default_factory=DatasetConfig)
    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def train(config: TrainConfig, show_progress: bool | None = None) -> Path:
    """Train (or resume, if the output folder holds an unfinished run) and return the best checkpoint's path.

    Under torchrun every process takes its share of each batch, and the first one validates and writes.
    """
    distributed = "RANK" in os.environ and not dist.is_initialized()
    if distributed:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    first = not dist.is_initialized() or dist.get_rank() == 0
    try:
        with only_writer(Path(config.out)) if first else nullcontext():
            trainer = Trainer(config, console.show_progress() if show_progress is None else show_progress)
            trainer.run()
    finally:
        if distributed:
            dist.destroy_process_group()
    return trainer.out / "best.safetensors"


def human_line(best: Path) -> str:
    """Two lines for the user: what the best epoch reached, and the command to type next."""
    _, record = load_tensors(best, "ann")
    scored = ", ".join(f"{name} {value:.1f}" for name, value in record["validation"].items() if name in _SHOWN)
    chosen = record["chosen_on"]
    sources = next(f"{chosen[kind]} {kind}" for kind in _SOURCES if kind in chosen)
    out = shlex.quote(f"{record['config']['name']}.safetensors")
    return (
        f"written   {best}: {scored} on the split {chosen['split']!r} ({chosen['windows']} windows, {sources}), "
        f"epoch {record['epoch']} (the best)\n"
        f"next      evburst convert --weights {shlex.quote(str(best))} --out {out}"
    )


def network_config(config: TrainConfig, classes: tuple[str, ...], size: SensorSize) -> NetworkConfig:
    """The network a run trains on data of these classes and this sensor."""
    width, height = padded_size(size, training_stride(config.architecture, size))
    return NetworkConfig(config.architecture, config.activation, config.voxel.channels, classes, (width, height))


class Trainer:
    """One run. State on disk: last.safetensors (to resume), best.safetensors (to convert), log.csv, curves.png, config.json."""

    def __init__(self, config: TrainConfig, show_progress: bool) -> None:
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.config, self.show_progress = config, show_progress and self.rank == 0
        self.out = Path(config.out)
        self._provenance = provenance()  # of the code that runs, not of what is committed by the time it ends
        s = config.schedule
        self.task = task_of_architecture(config.architecture)
        self.scoring: Scoring = SCORINGS[self.task]
        if self.rank == 0:
            make_folder(self.out)
        self.val, self.train = self._datasets()
        torch.manual_seed(s.seed)
        size = self.train.spec.sensor_size
        self.stride = training_stride(config.architecture, size)
        self.network_config = network_config(config, self.train.spec.classes, size)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network: Any = build_network(self.network_config)
        self.model: Any = network.to(self.device).to(memory_format=torch.channels_last)
        if config.init:
            some = [self.train[i].window for i in range(min(64, len(self.train)))]
            grids = torch.from_numpy(voxel_batch(some, config.voxel, size, self.stride))
            start_from(self.model, config.init, grids.to(self.device).float())
        self.ema = deepcopy(self.model).eval().requires_grad_(False)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer: torch.optim.Optimizer
        if s.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=s.learning_rate, momentum=0.9, nesterov=True)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=s.learning_rate)
        self._loss = _Loss(self.model, s, s.amp and _has_bfloat16(self.device))
        self._step: Any = nn.parallel.DistributedDataParallel(self._loss) if self.world > 1 else self._loss
        self.steps_per_epoch = len(self.train) // s.batch
        self.total_steps = self.steps_per_epoch * s.epochs
        self.epoch, self.best = 0, -1.0
        self._resume()
        if self.rank == 0:
            (self.out / "config.json").write_text(json.dumps({**to_dict(config), **self._provenance}, indent=1))
        self._curves = Curves(self.out, self._loss.names, self.scoring.figures) if self.rank == 0 else None

    def run(self) -> None:
        """All epochs that are left."""
        while self.epoch < self.config.schedule.epochs:
            started = time.perf_counter()
            loss = self._train_epoch()
            self.epoch += 1
            if self._curves is not None:
                scored, sources = validate(self.ema, self.val, self.config)
                self._curves.add(self.epoch, loss, scored, time.perf_counter() - started)
                if not scored.value < self.best:  # NaN without any object to find: the last epoch is kept
                    self.best = -1.0 if math.isnan(scored.value) else scored.value
                    self._save_best(scored, sources)
                self._save_last()
            if self.world > 1:
                dist.barrier()

    def _datasets(self) -> tuple[Dataset, Dataset]:
        """Validation and training windows; the first process makes what is missing, the others wait for it."""
        c, s = self.config, self.config.schedule
        if self.rank > 0:
            dist.barrier()
        found = []
        for split, n in ((SELECT, s.val_windows), ("train", s.windows)):
            with tqdm(desc=f"simulate {split}", unit="win", disable=not self.show_progress) as bar:
                progress = partial(_move_to, bar)
                request = Request(split, c.voxel.window_us, n, Path(c.cache), s.seed, s.workers, progress, task=self.task)
                found.append(open_dataset(c.data, request))
        if self.rank == 0 and self.world > 1:
            dist.barrier()
        return found[0], found[1]

    def _train_epoch(self) -> NDArray[np.float64]:
        s = self.config.schedule
        self.model.train()
        order = np.random.default_rng([s.seed, self.epoch]).permutation(len(self.train))
        batches = order[: self.steps_per_epoch * s.batch].reshape(-1, s.batch)
        total = np.zeros(len(self._loss.names))
        bar = tqdm(total=len(batches), desc=f"epoch {self.epoch}", disable=not self.show_progress)
        for number, (x, boxes, labels, index) in enumerate(self._prefetch(batches)):
            step = self.epoch * self.steps_per_epoch + number
            self._set_rate(step)
            self._loss.begin(step, step / self.total_steps)
            x = x.to(self.device)
            loss = self._step(x, boxes, labels.to(self.device), index.to(self.device))
            self.optimizer.zero_grad()
            (loss.sum() * self.world).backward()  # gradients are averaged over processes, losses are sums over the batch
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
            self.optimizer.step()
            self._update_ema(step)
            if self.world > 1:
                dist.all_reduce(loss := loss.detach())
            total += loss.detach().cpu().numpy() / s.batch
            bar.update()
            bar.set_postfix(loss=f"{total.sum() / (number + 1):.2f}")
        bar.close()
        return total / len(batches)

    def _prefetch(self, batches: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        with ThreadPoolExecutor(1) as pool:
            pending = [pool.submit(self._collate, batch) for batch in batches[:4]]
            for number in range(len(batches)):
                yield pending.pop(0).result()
                if number + 4 < len(batches):
                    pending.append(pool.submit(self._collate, batches[number + 4]))

    def _collate(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """This process's share of a batch: grids, boxes, labels, and the grid that each box belongs to."""
        c, size = self.config, self.train.spec.sensor_size
        change = c.augment
        if self.task == CLASSIFICATION:
            change = replace(change, mosaic=0.0)  # four windows have four classes
        if self.epoch >= c.schedule.epochs - c.schedule.plain_epochs:
            change = replace(change, mosaic=0.0, zoom=0.0, stretch=0.0, erase=0.0, rotate=0.0, shake=0.0)
        windows, found = [], []
        for i in batch[self.rank :: self.world]:
            rng = np.random.default_rng([c.schedule.seed, self.epoch, int(i)])
            others = rng.integers(0, len(self.train), 3).tolist() if change.mosaic else []
            window, boxes = augment([self.train[int(k)] for k in (i, *others)], size, change, rng)
            windows.append(window)
            found.append(boxes)
        grids = torch.from_numpy(voxel_batch(windows, c.voxel, size, self.stride))
        x = grids.contiguous(memory_format=torch.channels_last).float()  # here, beside the step that is being taken
        boxes_xyxy = torch.from_numpy(np.concatenate([f.boxes_xyxy for f in found]))
        labels = torch.from_numpy(np.concatenate([f.labels for f in found]))
        index = torch.from_numpy(np.concatenate([np.full(len(f), k) for k, f in enumerate(found)]))
        return x, boxes_xyxy, labels, index

    def _set_rate(self, step: int) -> None:
        s = self.config.schedule
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * min(1.0, (step + 1) / s.warmup_steps) * cosine

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        decay = self.config.schedule.ema * (1 - math.exp(-(step + 1) / 500))
        for mine, new in zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(new, 1 - decay)
            else:
                mine.copy_(new)

    def _save_best(self, scored: Score, sources: int) -> None:
        chosen_on = {
            "split": SELECT,
            "windows": len(self.val),
            _SOURCES[self.config.data.kind == "simulated"]: sources,
            "chosen": f"the epoch with the highest {self.scoring.unit}, of those up to this one",
        }
        record = {
            "config": to_dict(self.config),
            "network": asdict(self.network_config),
            "epoch": self.epoch,
            "validation": scored.record,
            "chosen_on": chosen_on,
            **self._provenance,
        }
        save_tensors(self.out / "best.safetensors", "ann", self.ema.state_dict(), record)

    def _save_last(self) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema/{k}": v.clone() for k, v in self.ema.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        tensors |= {f"optimizer/{i}/{k}": v for i, entry in state.items() for k, v in entry.items() if v is not None}
        record = {"epoch": self.epoch, "best": self.best}
        save_tensors(self.out / "last.safetensors", "training", tensors, record)

    def _refuse_other_settings(self) -> None:
        """Raise ConfigError if the unfinished run in the output folder was begun with other settings; more epochs are
        allowed."""
        try:
            before = _flat(json.loads((self.out / "config.json").read_text()))
        except (OSError, ValueError):
            return
        now = _flat(json.loads(json.dumps(to_dict(self.config))))
        changed = [name for name in now if name in before and before[name] != now[name] and name not in _MAY_CHANGE]
        if changed:
            what = ", ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in changed[:3])
            raise ConfigError(f"{self.out}: holds a run with other settings ({what}); use the same, or another --out")

    def _resume(self) -> None:
        path = self.out / "last.safetensors"
        if not path.exists():
            return
        self._refuse_other_settings()
        tensors, record = load_tensors(path, "training")
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
            _LOG.info("resuming %s at epoch %d", path, self.epoch)


_SHOWN = ("ap", "ap50", "top1", "top5")
_SOURCES = ("recordings", "pictures")
"""What windows come from: recordings, or pictures from which they are simulated."""
_MAY_CHANGE = ("out", "cache", "data.root", "schedule.epochs", "schedule.workers")
"""Settings that a resumed run may have otherwise."""


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


class _Loss(nn.Module):
    """The network's loss as a forward pass, which is what DistributedDataParallel wraps; with what the schedule asks of
    activations."""

    def __init__(self, network: Any, schedule: ScheduleConfig, amp: bool) -> None:
        super().__init__()
        self.network, self._schedule, self._amp = network, schedule, amp
        self.names: tuple[str, ...] = (*network.loss_names, *(("sparsity",) if schedule.sparsity else ()))
        self._density: list[Tensor] = []
        self._cost: list[int] = []
        self._rng = np.random.default_rng()
        self._rounds = False
        self._sparsity = 0.0
        if schedule.sparsity or schedule.rounding:
            for module in {m for m in network.modules() if isinstance(m, nn.ReLU)}:
                module.register_forward_hook(lambda _, __, out: self._activation(out))

    def begin(self, step: int, progress: float) -> None:
        """Draw what happens in this step, at this share of the whole run: the same whenever it is taken."""
        self._rng = np.random.default_rng([self._schedule.seed, step])
        self._rounds = bool(self._rng.random() < progress * self._schedule.rounding)
        self._sparsity = progress * self._schedule.sparsity

    def forward(self, x: Tensor, boxes: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        self._density.clear()
        self._cost.clear()
        parts: Tensor = self.network.loss(x, boxes, labels, index, self._amp)
        if not self._schedule.sparsity:
            return parts
        cost = torch.tensor(self._cost, dtype=torch.float32, device=parts.device)
        dense = (torch.stack(self._density) * cost).sum() / cost.sum()
        return torch.cat([parts, self._sparsity * dense[None] * len(x)])

    def _activation(self, out: Tensor) -> Tensor:
        if not (self._schedule.sparsity or self._rounds):
            return out
        out, density = round_and_measure(out, self._rng.uniform(*_THRESHOLDS) if self._rounds else 0.0)
        self._density.append(density)  # a spike reaches about as many weights as the layer has channels, times its kernel
        self._cost.append(out.numel() * out.shape[1])
        return out


_THRESHOLDS = (0.25, 0.65)
"""Of the rounding: drawn for every layer and step."""


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices of it; other CPUs are faster in float32, even those with AVX-512's bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    return bool(capabilities.get("amx_bf16"))


def _move_to(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


class _Validated:
    """A network in training as what `Inference` runs."""

    def __init__(self, model: Any, amp: bool, stride: int) -> None:
        self.classes, self.stride, self._task = model.head_spec.classes, stride, task_of(model.head_spec)
        self._model, self._device = model, next(model.parameters()).device
        self._amp = amp and _has_bfloat16(self._device)

    @torch.no_grad()
    def detect(
        self, grids: NDArray[np.uint8], sensor_size: SensorSize, t_us: Sequence[int]
    ) -> tuple[Sequence[Prediction], None]:
        """See GridNetwork: boxes scored from 0.001, at most 100."""
        x = torch.from_numpy(grids).to(self._device).float().contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._amp):
            maps = self._model(x)
        return self._task.decode(maps, self._model.head_spec, PostConfig(score=0.001), sensor_size, t_us), None

    def dense_macs(self, height: int, width: int) -> int:
        """See GridNetwork: energy is of no interest in training."""
        return 0


def validate(model: Any, windows: Dataset, config: TrainConfig) -> tuple[Score, int]:
    """Return the COCO AP (score from 0.001, at most 100 boxes) or top-1 of a network over labelled windows, and the number of
    pictures or recordings that these come from."""
    network = _Validated(model, config.schedule.amp, training_stride(config.architecture, windows.spec.sensor_size))
    inference = Inference(network, config.voxel, windows.spec.sensor_size, spiking=False)
    results = run_dataset(inference, windows)
    score = scoring_of(model.head_spec).score
    return score(results.labels, results.predictions, results.names, windows.spec.classes), len(set(results.names))
