"""The process group of a job that torchrun started: rank, number of processes and barrier."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


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
    dist.init_process_group(backend)
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def barrier(world: int) -> None:
    """Wait until all processes have reached this point."""
    if world > 1:
        dist.barrier()
