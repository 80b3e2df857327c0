"""Settings of train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from evburst.data.datasets.augment import AugmentConfig
from evburst.data.datasets.registry import MAX_SEED, DatasetConfig
from evburst.data.errors import SettingValueError, require_all, require_within
from evburst.data.representations.voxel_grid import VoxelConfig


@dataclass(frozen=True)
class ScheduleConfig:
    """Length and rate of training.

    Attributes:
        windows: windows of the split "train" per epoch; 0: all.
        passes: passes over these windows in an epoch, each with other augmentation; 0: one, or as many as it takes until an
            epoch of few windows has shown 512, or `windows` of them.
        fresh: simulate new windows for every epoch, while the network learns from those of the epoch before. Only simulated
            windows can be fresh.
        val_windows: windows of the split "select" on which every epoch is validated; 0: all.
        epochs: number of epochs; each ends with a validation.
        batch: windows per step, over all processes.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        learning_rate: peak learning rate; it falls as a cosine to 2 % of this.
        weight_decay: weight decay; biases and norms have none.
        warmup_steps: steps over which the learning rate rises linearly, at most a fifth of all steps.
        plain_epochs: number of final epochs without mosaics, zoom, rotation, shaking, stretched time and erased patches.
        ema: decay of the weights' moving average, which is validated and saved.
        clip: maximum norm of the gradient.
        amp: convolve in bfloat16 where the device has matrix instructions for it.
        sparsity: weight of the activations' density in the loss (see `round_and_measure`); fewer active units cause fewer
            spikes.
        rounding: share of steps in which activations are rounded to the levels of burst neurons (see `round_and_measure`), so
            that the network tolerates it; conversion itself needs no training. Both this and `sparsity` grow linearly from 0
            at the first step to their value at the last.
        seed: seed of weights, order and augmentation.
        workers: processes that simulate; 0: one per core.
        loaders: processes that prepare batches; 0: one thread, which is enough for a CPU.
    """

    windows: int = 20480
    passes: int = 0
    fresh: bool = False
    val_windows: int = 0
    epochs: int = 8
    batch: int = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
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
    loaders: int = 0

    def __post_init__(self) -> None:
        counts = (
            self.windows, self.passes, self.val_windows, self.warmup_steps, self.plain_epochs, self.workers, self.loaders,
        )  # fmt: skip
        require_within(self, seed=(0, MAX_SEED))
        checks = {
            "epochs and batch must be positive": min(self.epochs, self.batch) > 0,
            "learning_rate and clip must be positive": min(self.learning_rate, self.clip) > 0,
            "windows, passes, val_windows, warmup_steps, plain_epochs, workers and loaders must not be negative": min(counts)
            >= 0,
            "weight_decay must not be negative": self.weight_decay >= 0,
            "sparsity and rounding must not be negative": min(self.sparsity, self.rounding) >= 0,
            "ema must be at least 0 and below 1": 0 <= self.ema < 1,
        }
        require_all(checks, self)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of train.

    Attributes:
        name: name of the weights; empty: that of the output folder.
        out: output folder; an unfinished run in it is resumed.
        cache: folder of simulated windows.
        init: weights to start from: best.safetensors of another run, a converted file, or bundled weights by name; "": random.
        architecture: kind of network, see evburst.models.architectures.NetworkConfig.
        activation: its activation function, see there.
    """

    name: str = ""
    out: str = "runs/train/street"
    cache: str = "runs/cache"
    init: str = ""
    architecture: str = "yolov8n"
    activation: str = "relu"
    data: DatasetConfig = field(default_factory=DatasetConfig)
    voxel: VoxelConfig = field(default_factory=VoxelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if not self.out:
            raise SettingValueError("out is empty: name a folder; is a shell variable unset?")
