"""How a task of asyncio sleeps until somebody wakes it, or its time is over."""

from __future__ import annotations

import contextlib
from asyncio import AbstractEventLoop, Future, TimerHandle, _get_running_loop
from collections.abc import Awaitable
from math import inf
from time import monotonic

from .sleepers import Sleepers

SLACK = 0.001  # seconds by which a timer of the loop may be early


class Rings:
    """Wake sleepers whose time is over, with one timer of the loop for all: one each would cost more than all else."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.loop = loop
        self.sleepers: Sleepers[Future[None]] = Sleepers()
        self._timer: TimerHandle | None = None
        self._due = inf  # when it comes

    def add(self, future: Future[None], due: float) -> None:
        """Ring *future* at *due* (monotonic)."""
        self.sleepers.add(future, due)
        if due < self._due:
            self._arm(due)

    def ring(self, future: Future[None]) -> None:
        """Wake who sleeps on *future*."""
        ring(future)
        self.sleepers.tidy()

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = self.loop.call_at(self.loop.time() + max(0.0, due - monotonic()), self._on_time)

    def _on_time(self) -> None:
        self._timer, self._due = None, inf
        for future in self.sleepers.late(monotonic() + SLACK):
            ring(future)
        if self.sleepers:
            self._arm(self.sleepers.due())


class AsyncioAlarm:
    """See Alarm."""

    __slots__ = ("_future", "_rings", "_woken")

    def __init__(self, rings: Rings) -> None:
        self._rings = rings
        self._future: Future[None] | None = None
        self._woken = False

    def wake(self) -> None:
        rings, future = self._rings, self._future
        here = _get_running_loop() is rings.loop
        if here and future is not None and not future.done():
            rings.ring(future)
            return
        self._woken = True  # before the look at the future, as wait() does it the other way round
        if not here and (future := self._future) is not None:
            with contextlib.suppress(RuntimeError):  # it is closed, and nobody waits any more
                rings.loop.call_soon_threadsafe(rings.ring, future)

    def wait(self, seconds: float | None) -> Awaitable[None]:
        # Ten thousand may wait: without a coroutine, as there is nothing to see to afterwards. Who was woken from
        # another thread may be woken once more the next time.
        future = self._future = self._rings.loop.create_future()
        if self._woken:
            self._woken = False
            future.set_result(None)
        elif seconds is not None and seconds != inf:
            self._rings.add(future, monotonic() + seconds)
        return future


def ring(future: Future[None]) -> None:
    if not future.done():
        future.set_result(None)
