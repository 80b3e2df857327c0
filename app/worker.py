"""A thread that works ahead of the one that needs the results."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

_T = TypeVar("_T")


class Worker:
    """Calls functions one after the other in a thread that does not keep the program alive.

    A program waits at its end for the threads of concurrent.futures, and so for ever for one that reads a silent source.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._tasks = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Call a function after those submitted before; the future receives its result or exception."""
        future = Future[_T]()
        self._tasks.put((future, call))
        return future

    def end(self, wait: bool) -> None:
        """End the thread after the calls submitted so far, unless their futures are cancelled; with `wait`, wait for that."""
        self._tasks.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
