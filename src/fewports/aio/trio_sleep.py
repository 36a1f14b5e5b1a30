"""How a task of trio sleeps until somebody wakes it, or its time is over."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import trio

from .sleepers import Sleepers

if TYPE_CHECKING:
    from .trio_loop import TrioLoop

TICK = 1.0  # seconds after which the task that wakes them ends, if there are none: a new one takes 20 us


class Rings:
    """Wake sleepers whose time is over, with one task for all: a cancel scope each would cost more than all else."""

    def __init__(self) -> None:
        self.sleepers: Sleepers[TrioPause] = Sleepers()
        self._scope: trio.CancelScope | None = None  # of the task
        self._due = inf  # when it looks, if it sleeps
        self._begun = False

    def add(self, pause: TrioPause, due: float) -> None:
        """Ring *pause* at *due* (monotonic)."""
        self.sleepers.add(pause, due)
        if not self._begun:
            self._begun = True
            trio.lowlevel.spawn_system_task(self._run, name="fewports clock")
        elif self._scope is not None and due < self._due:
            self._due = due
            self._scope.deadline = _trio_time(due)

    def ring(self, pause: TrioPause) -> None:
        """Wake who sleeps on *pause*."""
        if not pause.done():
            pause.set_result(None)
        self.sleepers.tidy()

    async def _run(self) -> None:
        """Wake whose time is over, until nobody sleeps."""
        try:
            while self.sleepers:
                self._due = min(self.sleepers.due(), monotonic() + TICK)
                with trio.CancelScope(deadline=_trio_time(self._due)) as self._scope:
                    await trio.sleep_forever()
                self._scope = None
                for pause in self.sleepers.late(monotonic()):
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
