"""Validation of a network in training, on the windows on which its best epoch is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evburst.app.dataset_runs import run_dataset
from evburst.app.inference import Inference
from evburst.app.scoring import Score, scoring_of
from evburst.data.datasets import Dataset
from evburst.data.events import SensorSize
from evburst.data.representations.voxel_grid import VoxelConfig
from evburst.models.detectors.postprocess import SCORED
from evburst.models.tasks import Prediction, task_of


class Validation(NamedTuple):
    """Result of `validate`.

    Attributes:
        score: AP (COCO; boxes scored from 0.001, at most 100) or top-1.
        windows: number of windows.
        sources: number of pictures or recordings that the windows come from.
    """

    score: Score
    windows: int
    sources: int


def validate(model: Any, windows: Dataset, voxel: VoxelConfig, stride: int, amp: bool) -> Validation:
    """Score a network on labelled windows.

    Args:
        model: the network.
        windows: the windows.
        voxel: how they are binned.
        stride: the sides of the grids are multiples of it.
        amp: compute in bfloat16 where the device has matrix instructions for it.
    """
    network = _NetworkInTraining(model, amp, stride)
    results = run_dataset(Inference(network, voxel, windows.spec.sensor_size, spiking=False), windows)
    score = scoring_of(model.head_spec).score(results.labels, results.predictions, results.names, windows.spec.classes)
    return Validation(score, len(windows), len(set(results.names)))


class _NetworkInTraining:
    """A network in training as a GridNetwork (app/inference.py)."""

    has_memory = False

    def __init__(self, model: Any, amp: bool, stride: int) -> None:
        self.classes, self.stride, self._task = model.head_spec.classes, stride, task_of(model.head_spec)
        self._model, self._device = model, next(model.parameters()).device
        self._amp = amp and has_bfloat16(self._device)

    @torch.no_grad()
    def detect(
        self, grids: NDArray[np.uint8], sensor_size: SensorSize, t_us: Sequence[int]
    ) -> tuple[Sequence[Prediction], None]:
        """See GridNetwork; operations are not counted."""
        x = torch.from_numpy(grids).to(self._device).float().contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._amp):
            maps = self._model(x)
        return self._task.decode(maps, self._model.head_spec, SCORED, sensor_size, t_us), None

    def dense_macs(self, height: int, width: int) -> int:
        """See GridNetwork; 0, because training reports no energy."""
        return 0


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix instructions for bfloat16. AVX-512's instructions for it make convolutions faster as well,
    but hardly a whole training."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    return bool(capabilities.get("amx_bf16"))
