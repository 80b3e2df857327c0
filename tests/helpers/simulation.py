"""Windows simulated in the test's own process and four at a time, where a test is not about the processes that simulate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import cv2
import numba
import pytest

from evburst.data.datasets import simulated

BLOCK = 4
"""Windows in a block, all of which are simulated when one is needed; 64 outside the tests."""


class Here:
    """In place of ProcessPoolExecutor: starting a process costs more than the tests' windows do."""

    map = staticmethod(map)

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


@contextmanager
def simulated_here() -> Iterator[None]:
    """Simulate in this process; what that sets for a process of its own is restored."""
    threads, cv2_threads = numba.get_num_threads(), cv2.getNumThreads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "ProcessPoolExecutor", Here)
        patch.setattr(simulated, "_BLOCK", BLOCK)  # private: no user has a reason to set it
        yield
    numba.set_num_threads(threads)
    cv2.setNumThreads(cv2_threads)
