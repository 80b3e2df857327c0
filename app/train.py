"""Training a detector on simulated windows: plain torch, EMA, cosine, resume after a kill, best checkpoint by validation AP."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from app.config import to_dict
from app.provenance import provenance
from data.boxes import Detections
from data.datasets.simulated import SimulatedConfig, SimulatedWindows
from data.events import SensorSize
from data.representations.voxel_grid import VoxelConfig, padded_size
from eval.coco import AveragePrecision, average_precision
from models.checkpoint import load_tensors, save_tensors
from models.detectors.postprocess import PostConfig, decode
from models.detectors.yolo import Yolo, YoloConfig


@dataclass(frozen=True)
class ScheduleConfig:
    """How long and how fast to learn.

    Attributes:
        windows, val_windows: size of the training and validation sets.
        epochs, batch: passes over the training set; windows per step.
        learning_rate, weight_decay: of AdamW; warm-up over `warmup_steps`, then cosine to 2 %.
        ema: decay of the weights' moving average, which is what is validated and saved.
        clip: largest gradient norm.
        amp: convolutions in bfloat16.
        seed: of weights, order and augmentation.
        workers: processes that simulate (0: as many as cores).
    """

    windows: int = 20480
    val_windows: int = 768
    epochs: int = 8
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    warmup_steps: int = 300
    ema: float = 0.999
    clip: float = 10.0
    amp: bool = True
    seed: int = 0
    workers: int = 0


@dataclass(frozen=True)
class TrainConfig:
    """Everything `train.py` can be told."""

    name: str = "street"
    out: str = "runs/train/street"
    cache: str = "runs/cache"
    model: YoloConfig = field(default_factory=YoloConfig)
    data: SimulatedConfig = field(default_factory=SimulatedConfig)
    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


def train(config: TrainConfig, show_progress: bool | None = None) -> Path:
    """Train (or resume, if the output folder holds an unfinished run) and return the best checkpoint's path."""
    trainer = Trainer(config, sys.stderr.isatty() if show_progress is None else show_progress)
    trainer.run()
    return trainer.out / "best.safetensors"


class Trainer:
    """One run. State on disk: last.safetensors (to resume), best.safetensors (to convert), log.csv, config.json."""

    def __init__(self, config: TrainConfig, show_progress: bool) -> None:
        self.config, self.show_progress = config, show_progress
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self._provenance = provenance()  # of the code that runs, not of what is committed by the time it ends
        (self.out / "config.json").write_text(json.dumps({**to_dict(config), **self._provenance}, indent=1))
        s = config.schedule
        torch.manual_seed(s.seed)
        data = (config.data, config.voxel)
        bar = tqdm(total=s.windows + s.val_windows, desc="simulate", unit="win", disable=not show_progress)
        common: dict[str, Any] = {"cache": Path(config.cache), "seed": s.seed, "workers": s.workers}
        self.val = SimulatedWindows(*data, "val", s.val_windows, progress=lambda n: bar.update(n - bar.n), **common)
        self.train = SimulatedWindows(*data, "train", s.windows, progress=lambda n: bar.update(n - bar.n), **common)
        bar.close()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Yolo(config.model).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = deepcopy(self.model).eval().requires_grad_(False)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=s.learning_rate)
        self.steps_per_epoch = len(self.train) // s.batch
        self.total_steps = self.steps_per_epoch * s.epochs
        self.epoch, self.best_ap = 0, -1.0
        self._resume()

    def run(self) -> None:
        """All epochs that are left."""
        while self.epoch < self.config.schedule.epochs:
            started = time.perf_counter()
            loss = self._train_epoch()
            self.epoch += 1
            scored = validate(self.ema, self.val, self.config)
            self._log(loss, scored, time.perf_counter() - started)
            if scored.ap >= self.best_ap:
                self.best_ap = scored.ap
                self._save_best(scored)
            self._save_last()

    def _train_epoch(self) -> NDArray[np.float64]:
        s = self.config.schedule
        self.model.train()
        order = np.random.default_rng([s.seed, self.epoch]).permutation(len(self.train))
        batches = order[: self.steps_per_epoch * s.batch].reshape(-1, s.batch)
        total = np.zeros(3)
        bar = tqdm(total=len(batches), desc=f"epoch {self.epoch}", disable=not self.show_progress)
        for number, (x, boxes, labels, index) in enumerate(self._prefetch(batches)):
            step = self.epoch * self.steps_per_epoch + number
            self._set_rate(step)
            x = x.to(self.device, memory_format=torch.channels_last)
            loss = self.model.loss(x, boxes, labels.to(self.device), index.to(self.device), s.amp)
            self.optimizer.zero_grad()
            loss.sum().backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
            self.optimizer.step()
            self._update_ema(step)
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
        rngs = [np.random.default_rng([self.config.schedule.seed, self.epoch, int(i)]) for i in batch]
        pairs = [augment(*self.train[int(i)], rng) for i, rng in zip(batch, rngs, strict=True)]
        x = pad([grid for grid, _ in pairs])
        boxes = torch.from_numpy(np.concatenate([found.boxes_xyxy for _, found in pairs]))
        labels = torch.from_numpy(np.concatenate([found.labels for _, found in pairs]))
        index = torch.from_numpy(np.concatenate([np.full(len(f), k) for k, (_, f) in enumerate(pairs)]))
        return x, boxes, labels, index

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

    def _log(self, loss: NDArray[np.float64], scored: AveragePrecision, seconds: float) -> None:
        per_class = {f"ap50_{name}": round(v["ap50"], 2) for name, v in scored.per_class.items()}
        names = ("box", "cls", "dfl")
        row = {"epoch": self.epoch, **{n: round(float(v), 4) for n, v in zip(names, loss, strict=True)}}
        row |= {"ap": round(scored.ap, 2), "ap50": round(scored.ap50, 2), **per_class, "seconds": round(seconds)}
        log = self.out / "log.csv"
        new = not log.exists()
        with log.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(json.dumps(row), file=sys.stderr, flush=True)

    def _save_best(self, scored: AveragePrecision) -> None:
        record = {"config": to_dict(self.config), "epoch": self.epoch, "validation": asdict(scored), **self._provenance}
        save_tensors(self.out / "best.safetensors", "ann", self.ema.state_dict(), record)

    def _save_last(self) -> None:
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema/{k}": v.clone() for k, v in self.ema.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        tensors |= {f"optimizer/{i}/{k}": v for i, entry in state.items() for k, v in entry.items()}
        record = {"epoch": self.epoch, "best_ap": self.best_ap}
        save_tensors(self.out / "last.safetensors", "training", tensors, record)

    def _resume(self) -> None:
        path = self.out / "last.safetensors"
        if not path.exists():
            return
        tensors, record = load_tensors(path, "training")
        self.epoch, self.best_ap = record["epoch"], record["best_ap"]
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
        print(f"resuming {path} at epoch {self.epoch}", file=sys.stderr)


def augment(grid: NDArray[np.uint8], boxes: Detections, rng: np.random.Generator) -> tuple[NDArray[np.uint8], Detections]:
    """Mirror left and right, swap polarities, blank a patch: what leaves a window a possible window."""
    channels, height, width = grid.shape
    if rng.random() < 0.5:
        grid = grid[:, :, ::-1]
        mirrored = boxes.boxes_xyxy.copy()
        mirrored[:, [0, 2]] = width - boxes.boxes_xyxy[:, [2, 0]]
        boxes = Detections(mirrored, boxes.scores, boxes.labels, boxes.t_us)
    if rng.random() < 0.1:
        grid = np.concatenate([grid[channels // 2 :], grid[: channels // 2]])
    if rng.random() < 0.2:
        h, w = (rng.uniform(0.08, 0.3, 2) * [height, width]).astype(int)
        y, x = int(rng.integers(height - h)), int(rng.integers(width - w))
        grid = grid.copy()
        grid[:, y : y + h, x : x + w] = 0
    return grid, boxes


def pad(grids: list[NDArray[np.uint8]], stride: int = 32) -> Tensor:
    """Stack grids into `(N, C, H, W)` float32, zero-padded at the right and the bottom to the stride."""
    channels, height, width = grids[0].shape
    padded_w, padded_h = padded_size(SensorSize(width, height), stride)
    out = np.zeros((len(grids), channels, padded_h, padded_w), np.float32)
    for target, grid in zip(out, grids, strict=True):
        target[:, :height, :width] = grid
    return torch.from_numpy(out)


@torch.no_grad()
def validate(model: Yolo, windows: SimulatedWindows, config: TrainConfig) -> AveragePrecision:
    """COCO AP (score from 0.001, at most 100 boxes) of a network over labelled windows."""
    device = next(model.parameters()).device
    post = PostConfig(score=0.001)
    labels, predictions = [], []
    for first in range(0, len(windows), 16):
        pairs = [windows[i] for i in range(first, min(first + 16, len(windows)))]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.schedule.amp):
            maps = model(pad([grid for grid, _ in pairs]).to(device))
        labels += [found for _, found in pairs]
        predictions += decode(maps, model.head_spec, post, windows.spec.sensor_size, [0] * len(pairs))
    return average_precision(labels, predictions, windows.spec.classes)
