"""Build networks on a background thread: loading and warm-up take seconds, and inference must not wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Thread
from typing import Generic, TypeVar

Request = TypeVar("Request")
Built = TypeVar("Built")

QUIET_S = 0.2
"""Debounce time: a request is built after this time without a newer one, so that dragging a slider builds once."""

LONGEST_S = 5.0
"""Longest delay of a build while newer requests keep arriving."""


class Builder(Generic[Request, Built]):
    """Builds the newest request on a background thread.

    Args:
        build: builds a request; called on the builder's thread.
        fail: called on that thread with the exception if building fails and there is no newer request.
        quiet_s, longest_s: see QUIET_S and LONGEST_S.
    """

    def __init__(
        self,
        build: Callable[[Request], Built],
        fail: Callable[[Exception], None],
        quiet_s: float = QUIET_S,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._build, self._fail, self._quiet_s, self._longest_s = build, fail, quiet_s, longest_s
        self._changed = Condition()
        self._requests: list[Request] = []
        self._newest_s, self._first_s = 0.0, 0.0
        self._built: list[Built] = []
        self._building, self._closed = False, False
        self._thread: Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether a build is pending, running, or finished but not yet taken."""
        with self._changed:
            return self._building or bool(self._requests or self._built)

    def request(self, request: Request) -> None:
        """Schedule a build, replacing earlier requests; return at once."""
        with self._changed:
            self._newest_s = time.perf_counter()
            if not self._requests:
                self._first_s = self._newest_s
            self._requests = [request]
            if self._thread is None:
                self._thread = Thread(target=self._work, name="builder", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take(self) -> Built | None:
        """Return the newest result built since the last call, or None."""
        if not self._built:
            return None
        with self._changed:
            built, self._built = self._built, []
        return built[-1]

    def close(self) -> None:
        """Drop pending requests and stop the thread; a running build is not waited for."""
        with self._changed:
            self._closed = True
            self._requests = []
            self._changed.notify_all()

    def _work(self) -> None:
        while (request := self._next()) is not None:
            try:
                built = self._build(request[0])
            except Exception as error:
                self._done([])
                if not self._requests:
                    self._fail(error)
            else:
                self._done([built])

    def _next(self) -> list[Request] | None:
        """Wait until a request is due and return it as a list of one; None after `close`."""
        with self._changed:
            while not self._closed:
                due_s = min(self._newest_s + self._quiet_s, self._first_s + self._longest_s)
                wait_s = due_s - time.perf_counter()
                if self._requests and wait_s <= 0:
                    request, self._requests, self._building = self._requests, [], True
                    return request
                self._changed.wait(wait_s if self._requests else None)
        return None

    def _done(self, built: list[Built]) -> None:
        with self._changed:
            self._building = False
            if not self._closed:
                self._built = built or self._built
