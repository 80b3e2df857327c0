"""The process group of a job that torchrun started: rank, number of processes and barrier."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """Yield (rank, number of processes), with a process group if torchrun started this process; (0, 1) otherwise.

    The backend is gloo, also for processes that compute on GPUs, because only boxes and counts in main memory are exchanged.
    """
    if "RANK" not in os.environ:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def barrier(world: int) -> None:
    """Wait until all processes have reached this point."""
    if world > 1:
        dist.barrier()
