"""The process group of a job of several processes."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from evburst.app.processes import process_group


def test_processes_wait_as_long_as_the_first_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process may simulate or validate for hours; torch's own limits are 10 and 30 minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with process_group() as (rank, world):
        assert (rank, world) == (0, 1)
        backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert backend.options._timeout >= timedelta(days=1)
