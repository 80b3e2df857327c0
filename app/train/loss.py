"""The training loss: the network's own, with the sparsity and rounding of the schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evburst.app.train.config import ScheduleConfig
from evburst.models.activation_regulariser import round_and_measure

_THRESHOLDS = (0.25, 0.65)
"""Range of the rounding's threshold, which is drawn for every layer and step."""
_TURNS = 4
"""A step measures the density of every `_TURNS`-th layer, because it takes a third of the time of a step to measure all."""


class ScheduledLoss(nn.Module):
    """The network's loss as a forward pass, as DistributedDataParallel requires, with the schedule's sparsity and rounding.

    Args:
        network: a network in training; hooks on its ReLUs round and measure activations if the schedule asks for it.
        schedule: strength of sparsity and rounding.
        amp: compute the network in bfloat16.

    Attributes:
        names: names of the parts of the loss.
    """

    def __init__(self, network: Any, schedule: ScheduleConfig, amp: bool) -> None:
        super().__init__()
        self.network, self._schedule, self._amp = network, schedule, amp
        self.names: tuple[str, ...] = (*network.loss_names, *(("sparsity",) if schedule.sparsity else ()))
        self._density: list[Tensor] = []
        self._total_cost = self._layer = self._turn = 0
        self._rng = np.random.default_rng()
        self._rounds = False
        self._sparsity = 0.0
        if schedule.sparsity or schedule.rounding:
            for module in {m for m in network.modules() if isinstance(m, nn.ReLU)}:
                module.register_forward_hook(lambda _, __, out: self._activation(out))

    def begin(self, step: int, progress: float, rank: int = 0) -> None:
        """Draw the randomness of a step, which depends on its number and the process only.

        Args:
            step: number of the step, from 0.
            progress: its position in the run, 0 to 1.
            rank: number of the process, which has its own dropout; rounding and sparsity are the same in all processes.
        """
        self._rng = np.random.default_rng([self._schedule.seed, step])
        torch.manual_seed(int(np.random.default_rng([self._schedule.seed, step, rank]).integers(2**63)))
        self._rounds = bool(self._rng.random() < progress * self._schedule.rounding)
        self._sparsity = progress * self._schedule.sparsity
        self._turn = step % _TURNS

    def forward(self, x: Tensor, boxes: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """Return the parts of the loss, summed over the batch; see `Batch` for the arguments."""
        self._density.clear()
        self._total_cost = self._layer = 0
        parts: Tensor = self.network.loss(x, boxes, labels, index, self._amp)
        if not self._schedule.sparsity:
            return parts
        dense = sum(self._density, parts.new_zeros(())) * (_TURNS / max(self._total_cost, 1))
        return torch.cat([parts, self._sparsity * dense[None] * len(x)])

    def _activation(self, out: Tensor) -> Tensor:
        cost = out.numel() * out.shape[1]  # the fan-out of a spike is roughly proportional to the layer's channels
        measured = bool(self._schedule.sparsity) and self._layer % _TURNS == self._turn
        self._total_cost += cost
        self._layer += 1
        if not (measured or self._rounds):
            return out
        out, density = round_and_measure(out, self._rng.uniform(*_THRESHOLDS) if self._rounds else 0.0)
        if measured:
            self._density.append(density * cost)
        return out
