"""The process group of a job that torchrun started: rank, number of processes, barrier and exchange."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

_LONGEST_WAIT = timedelta(days=30)
"""The others wait while the first process simulates windows, reads recordings or validates, which can take hours. torch would
give up after 10 (nccl) or 30 minutes (gloo). If a process fails, torchrun ends the others at once."""


@contextmanager
def process_group(backend: str = "gloo") -> Iterator[tuple[int, int]]:
    """Yield (rank, number of processes), with a process group if torchrun started this process; (0, 1) otherwise.

    The group of a caller that has already joined one is used as it is.

    Args:
        backend: gloo exchanges data in main memory, such as boxes and counts, also between processes that compute on GPUs;
            nccl exchanges tensors between GPUs.
    """
    if dist.is_initialized():
        yield dist.get_rank(), dist.get_world_size()
        return
    if "RANK" not in os.environ:
        yield 0, 1
        return
    dist.init_process_group(backend, timeout=_LONGEST_WAIT)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def barrier(world: int) -> None:
    """Wait until all processes have reached this point."""
    if world > 1:
        dist.barrier()


def all_gather(content: bytes, world: int) -> list[bytes]:
    """Return the bytes that each process passes, in every process; `world` is their number."""
    if world == 1:
        return [content]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(lengths, torch.tensor([len(content)]))
    longest = max(int(n) for n in lengths)
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: len(content)] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    received = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(received, padded)
    return [tensor.numpy()[: int(n)].tobytes() for tensor, n in zip(received, lengths, strict=True)]
