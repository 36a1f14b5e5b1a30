"""How a task of trio sleeps until somebody wakes it, or its time is over."""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Generator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .trio_loop import TrioLoop

FEW = 64  # sleepers for whom nothing is tidied
TICK = 1.0  # seconds after which the task that wakes them ends, if there are none: a new one takes 20 us


class Rings:
    """When sleepers are to be woken at the latest, with one task that sees to it for all.

    Ten thousand may sleep, and nearly all are woken before: a cancel scope each would cost more than all else.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._all: list[tuple[float, int, TrioPause]] = []  # a heap; those that were woken drop out at the top
        self._many = FEW
        self._scope: trio.CancelScope | None = None  # of the task
        self._begun = False

    def add(self, pause: TrioPause, due: float) -> None:
        """Ring *pause* at *due* (monotonic)."""
        sleepers = self._all
        while sleepers and sleepers[0][2].done():
            heapq.heappop(sleepers)
        if len(sleepers) >= self._many:
            self._all = sleepers = [entry for entry in sleepers if not entry[2].done()]
            heapq.heapify(sleepers)
            self._many = max(FEW, 2 * len(sleepers))
        heapq.heappush(sleepers, (due, next(self._numbers), pause))
        if not self._begun:
            self._begun = True
            trio.lowlevel.spawn_system_task(self._run, name="fewports clock")
        elif self._scope is not None and sleepers[0][2] is pause:
            self._scope.deadline = min(self._scope.deadline, _trio_time(due))

    def ring(self, pause: TrioPause) -> None:
        """Wake who sleeps on *pause*."""
        if not pause.done():
            pause.set_result(None)
        while self._all and self._all[0][2].done():
            heapq.heappop(self._all)

    async def _run(self) -> None:
        """Wake whose time is over, until nobody sleeps."""
        try:
            while self._all:
                with trio.CancelScope(deadline=_trio_time(min(self._all[0][0], monotonic() + TICK))) as self._scope:
                    await trio.sleep_forever()
                self._scope = None
                now = monotonic()
                while self._all and (self._all[0][0] <= now or self._all[0][2].done()):
                    pause = heapq.heappop(self._all)[2]
                    if not pause.done():
                        pause.set_result(None)
        finally:
            self._begun, self._scope = False, None


def _trio_time(due: float) -> float:
    return trio.current_time() + max(0.0, due - monotonic())


class TrioAlarm:
    """See Alarm."""

    __slots__ = ("_loop", "_pause", "_woken")

    def __init__(self, loop: TrioLoop) -> None:
        self._loop = loop
        self._pause: TrioPause | None = None
        self._woken = False

    def wake(self) -> None:
        if self._loop.here:
            self._ring()
        else:
            with contextlib.suppress(trio.RunFinishedError):
                self._loop.token.run_sync_soon(self._ring)

    def wait(self, seconds: float | None) -> TrioPause:
        pause = self._pause = TrioPause()
        if self._woken:
            self._woken = False
            pause.set_result(None)
        elif seconds is not None and seconds != inf:
            self._loop.rings.add(pause, monotonic() + seconds)
        return pause

    def _ring(self) -> None:
        pause = self._pause
        if pause is None or pause.done():
            self._woken = True
        else:
            self._loop.rings.ring(pause)


class TrioPause:
    """See Pause."""

    __slots__ = ("_done", "_task")

    def __init__(self) -> None:
        self._done = False
        self._task: trio.lowlevel.Task | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: None, /) -> None:
        self._done = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def __await__(self) -> Generator[Any, Any, None]:
        if not self._done:
            self._task = trio.lowlevel.current_task()
            yield from trio.lowlevel.wait_task_rescheduled(self._leave).__await__()

    def _leave(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        self._done = True  # nobody sleeps any more
        return trio.lowlevel.Abort.SUCCEEDED
