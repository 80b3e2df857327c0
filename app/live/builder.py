"""Networks prepared while another one runs: loading and warming up takes seconds, and inference must not wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Thread
from typing import Generic, TypeVar

Wish = TypeVar("Wish")
Built = TypeVar("Built")

QUIET_S = 0.2
"""How long wishes must rest before one is built: a slider that is being moved builds once."""

LONGEST_S = 5.0
"""Wishes that never rest are built this often."""


class Builder(Generic[Wish, Built]):
    """Builds what is wished for, on a thread of its own; of several wishes the newest counts.

    Args:
        build: makes one; called on the builder's thread.
        fail: is told what the building of the newest wish ended with, on that thread.
        quiet_s, longest_s: see QUIET_S and LONGEST_S.
    """

    def __init__(
        self,
        build: Callable[[Wish], Built],
        fail: Callable[[Exception], None],
        quiet_s: float = QUIET_S,
        longest_s: float = LONGEST_S,
    ) -> None:
        self._build, self._fail, self._quiet_s, self._longest_s = build, fail, quiet_s, longest_s
        self._changed = Condition()
        self._wishes: list[Wish] = []
        self._wished_s, self._first_s = 0.0, 0.0
        self._built: list[Built] = []
        self._building, self._closed = False, False
        self._thread: Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being built, or waits to be built or taken."""
        with self._changed:
            return self._building or bool(self._wishes or self._built)

    def want(self, wish: Wish) -> None:
        """Have this built, instead of what was wished for before; returns at once."""
        with self._changed:
            self._wished_s = time.perf_counter()
            if not self._wishes:
                self._first_s = self._wished_s
            self._wishes = [wish]
            if self._thread is None:
                self._thread = Thread(target=self._work, name="builder", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take(self) -> Built | None:
        """What has been built since the last time, the newest; None where nothing has."""
        if not self._built:
            return None
        with self._changed:
            built, self._built = self._built, []
        return built[-1]

    def close(self) -> None:
        """Build nothing more; what is being built is not waited for."""
        with self._changed:
            self._closed = True
            self._wishes = []
            self._changed.notify_all()

    def _work(self) -> None:
        while (wish := self._next()) is not None:
            try:
                built = self._build(wish[0])
            except Exception as error:
                self._done([])
                if not self._wishes:
                    self._fail(error)
            else:
                self._done([built])

    def _next(self) -> list[Wish] | None:
        """The newest wish, once it has rested; None at the end."""
        with self._changed:
            while not self._closed:
                due_s = min(self._wished_s + self._quiet_s, self._first_s + self._longest_s)
                wait_s = due_s - time.perf_counter()
                if self._wishes and wait_s <= 0:
                    wish, self._wishes, self._building = self._wishes, [], True
                    return wish
                self._changed.wait(wait_s if self._wishes else None)
        return None

    def _done(self, built: list[Built]) -> None:
        with self._changed:
            self._building = False
            if not self._closed:
                self._built = built or self._built
