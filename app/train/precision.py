"""In which type a network is trained."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TRIALS = 5
_GAIN = 1.2
"""How many times faster bfloat16 must be on a CPU to be used. Where it is not slower by far, it is faster by more than that."""


@cache
def prefers_bfloat16(device: torch.device) -> bool:
    """Whether a device convolves faster in bfloat16 than in float32. GPUs do that have instructions for it; of CPUs that have
    some, not all do, so these are timed, for some hundredths of a second."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
    if not any(has for name, has in capabilities.items() if name.endswith("bf16")):
        return False
    return seconds_per_convolution(torch.float32) > _GAIN * seconds_per_convolution(torch.bfloat16)


def seconds_per_convolution(kind: torch.dtype) -> float:
    """Time a convolution on one core of the CPU, forward and backward, as it is common in detectors; the least of a few
    trials. One core, because several would wait for whatever else the machine does."""

    def values(*shape: int) -> Tensor:
        return torch.rand(shape).to(kind).contiguous(memory_format=torch.channels_last).requires_grad_()

    x, weight, times = values(4, 64, 32, 40), values(64, 64, 3, 3), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + _TRIALS):
            began = time.perf_counter()
            torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), (x, weight))
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:])
