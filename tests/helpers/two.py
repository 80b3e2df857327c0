"""`python tests/helpers/two.py COMMAND ...` is `evburst COMMAND ...` in two processes, as torchrun starts them.

They are forked from one that has imported what takes seconds. That torchrun itself starts them is shown by a slow test of
test_app_batch.py.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from evburst.app.cli import main
from tests.helpers import tiny  # noqa: F401  (registers the family)
from tests.helpers.simulation import simulated_here

WORLD = 2


def as_rank(rank: int, port: int) -> int:
    """The command as one of the processes; its exit code."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{WORLD}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    with simulated_here():
        return main(sys.argv[1:])


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(WORLD):
        children.append(os.fork())
        if not children[-1]:
            sys.exit(as_rank(rank, port))
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
