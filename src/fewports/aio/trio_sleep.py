"""How a task of trio sleeps until somebody wakes it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from math import inf
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from .trio_loop import TrioLoop


class TrioAlarm:
    """See Alarm."""

    __slots__ = ("_event", "_loop")

    def __init__(self, loop: TrioLoop) -> None:
        self._loop = loop
        self._event = trio.Event()

    def wake(self) -> None:
        if self._loop.here:
            self._event.set()
        else:
            with contextlib.suppress(trio.RunFinishedError):
                self._loop.token.run_sync_soon(self._event.set)

    async def wait(self, seconds: float | None) -> None:
        if seconds is None or seconds == inf:
            await self._event.wait()
        else:
            with trio.move_on_after(max(0.0, seconds)):
                await self._event.wait()
        if self._event.is_set():
            self._event = trio.Event()


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
        return trio.lowlevel.Abort.SUCCEEDED
