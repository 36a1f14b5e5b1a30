"""Who is to be woken at the latest when. Reads no clock.

Ten thousand may sleep at once, as long as the same budget says, and nearly all are woken before, the first first: so
they stand in a row, in the order of their times, and those who come out of that order in a heap.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from math import inf
from typing import Generic, Protocol, TypeVar

FEW = 64  # sleepers for whom nothing is tidied


class Sleeper(Protocol):
    """One who sleeps until it is done."""

    def done(self) -> bool: ...


S = TypeVar("S", bound=Sleeper)


class Sleepers(Generic[S]):
    """The sleepers of one loop; those that were woken drop out at the front."""

    def __init__(self) -> None:
        self._row: deque[S] = deque()
        self._times: deque[float] = deque()  # of those in the row
        self._rest: list[tuple[float, int, S]] = []
        self._numbers = itertools.count()
        self._many = FEW

    def __len__(self) -> int:
        return len(self._row) + len(self._rest)

    def add(self, sleeper: S, due: float) -> None:
        """Take in one who sleeps until *due*."""
        if not self._times or due >= self._times[-1]:
            self._times.append(due)
            self._row.append(sleeper)
        else:
            heapq.heappush(self._rest, (due, next(self._numbers), sleeper))
        if len(self._row) + len(self._rest) > self._many:
            self._drop_done()

    def tidy(self) -> None:
        """Drop those at the front who were woken."""
        row, rest = self._row, self._rest
        while row and row[0].done():
            row.popleft()
            self._times.popleft()
        while rest and rest[0][2].done():
            heapq.heappop(rest)

    def due(self) -> float:
        """Return when the next is to be woken; inf for never."""
        self.tidy()
        due = self._times[0] if self._times else inf
        return min(due, self._rest[0][0]) if self._rest else due

    def late(self, now: float) -> list[S]:
        """Take out those who are to be woken, in the order of their times."""
        late = []
        while (due := self.due()) <= now:
            if self._rest and self._rest[0][0] == due:
                late.append(heapq.heappop(self._rest)[2])
            else:
                self._times.popleft()
                late.append(self._row.popleft())
        return late

    def _drop_done(self) -> None:
        left = [(due, sleeper) for due, sleeper in zip(self._times, self._row, strict=True) if not sleeper.done()]
        self._times = deque(due for due, _ in left)
        self._row = deque(sleeper for _, sleeper in left)
        self._rest = [entry for entry in self._rest if not entry[2].done()]
        heapq.heapify(self._rest)
        self._many = max(FEW, 2 * len(self))
