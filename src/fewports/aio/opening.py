"""A connection on its way that may carry all who wait: it goes on when who began it leaves, while there are others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from .seam import Loop

T = TypeVar("T")


class Opening(Generic[T]):
    """*work*, in a task of its own. *settle* is given what comes of it where nobody waits any more: None if nothing."""

    def __init__(self, loop: Loop, work: Callable[[], Awaitable[T]], settle: Callable[[T | None], object]) -> None:
        self._loop = loop
        self._work = work
        self._settle = settle
        self._alarm = loop.alarm()
        self._begun = self._done = self._left = False
        self.cancel: Callable[[], object]
        self._outcome: T | None = None
        self._error: BaseException | None = None

    async def result(self, leave: Callable[[], bool], never: Callable[[], object]) -> T:
        """Wait for the end of the work. When this is cancelled, *leave* says whether it is to go on.

        *never* is called where it did not even begin.
        """
        self.cancel = self._loop.spawn(self._run)
        try:
            await self._alarm.wait(None)
        except BaseException:
            self._left = True
            wanted = leave()
            if not self._begun:
                self.cancel()
                never()
                self._settle(None)
            elif self._done:
                self._settle(self._outcome)
            elif not wanted:
                self.cancel()
            raise
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    async def _run(self) -> None:
        if self._left:
            return
        self._begun = True
        try:
            self._outcome = await self._work()
        except Exception as error:
            self._error = error
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._done = True
            if self._left:
                self._settle(self._outcome)
            else:
                self._alarm.wake()
