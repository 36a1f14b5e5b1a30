"""What urllib3 calls ``pool.pool``, for whoever looks into it or takes connections from it."""

from __future__ import annotations

import queue
import weakref
from time import monotonic
from typing import TYPE_CHECKING

from .connection import HTTPConnection

if TYPE_CHECKING:
    from .pool import HTTPConnectionPool


class Shelf:
    """What urllib3 calls ``pool.pool``: the places that are left, as a queue of connections and Nones."""

    def __init__(self, pool: HTTPConnectionPool, maxsize: int) -> None:
        self._pool = weakref.ref(pool)
        self.maxsize = maxsize

    def qsize(self) -> int:
        pool = self._pool()
        if pool is not None:
            pool.home.regain(monotonic())
        return min(self.maxsize, max(0, self.maxsize - pool.home.used)) if pool else 0

    def empty(self) -> bool:
        return self.qsize() == 0

    def full(self) -> bool:
        return self.qsize() == self.maxsize

    def get(self, block: bool = True, timeout: float | None = None) -> HTTPConnection | None:
        """Take a place: with a connection if one is idle. Raises queue.Empty."""
        pool = self._pool()
        if pool is None or pool.home.closed or self.qsize() == 0:
            raise queue.Empty
        return pool.take(timeout)

    def get_nowait(self) -> HTTPConnection | None:
        return self.get(block=False)

    @property
    def queue(self) -> list[HTTPConnection | None]:
        """The places as a list, the next one last."""
        pool = self._pool()
        idle = pool.home.quiet() if pool else []
        return [*[None] * (self.qsize() - len(idle)), *(found for found in idle if isinstance(found, HTTPConnection))]

    def put(self, item: HTTPConnection | None, block: bool = True, timeout: float | None = None) -> None:
        """Give a place back. Raises queue.Full."""
        pool = self._pool()
        if pool is None or self.full():
            raise queue.Full
        pool.give_back(item)
