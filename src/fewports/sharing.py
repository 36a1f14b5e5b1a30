"""Which connections of a pool carry many requests at once, who has a seat, and whether one more may be opened.

A part of the pool, under the pool's lock. While it is not known whether the peer speaks HTTP/2, or known that it does,
connections are opened one at a time: what is being opened may carry all who wait.

State: ``seats``, the connections on which somebody has a seat, and how many; those without are idle, or nowhere.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

MOST_ABREAST = 1024  # opened at once, after ten failures in a row: none waits long for others' vain attempts


class Shareable(Protocol):
    """A connection as seen from here: it carries *capacity* requests at once if it is *shared*."""

    expires: float

    @property
    def shared(self) -> bool: ...

    @property
    def capacity(self) -> int: ...


C = TypeVar("C", bound=Shareable)


class Sharing(Generic[C]):
    """The seats of one pool. *merges*: what is opened may carry all who wait."""

    def __init__(self, merges: bool) -> None:
        self.merges = merges
        self.seats: dict[C, int] = {}
        self.opening = 0
        self._abreast = 1
        self._yielding: set[C] = set()  # somebody else is to have their ports: no more seats

    def seat(self, now: float) -> C | None:
        """Take a seat on a connection that is in use."""
        for connection, taken in self.seats.items():
            if taken < connection.capacity and connection.expires > now and connection not in self._yielding:
                self.seats[connection] = taken + 1
                return connection
        return None

    def board(self, connection: C) -> None:
        """Take the first seat on *connection*, if it has any."""
        if connection.shared:
            self.seats[connection] = 1

    def leave(self, connection: C) -> bool:
        """Give a seat back; say whether it was the last one taken."""
        left = self.seats.get(connection, 1) - 1
        if left > 0:
            self.seats[connection] = left
            return False
        self.seats.pop(connection, None)
        self._yielding.discard(connection)
        return True

    def drain(self, connection: C) -> None:
        """Give no more seats on *connection*, so that it comes to be without use."""
        self._yielding.add(connection)

    def open_one(self) -> bool:
        """Have one more opened, if that is to be."""
        if self.opening >= self._abreast:
            return False
        self.opening += 1
        return True

    def opened(self, connection: C | None) -> None:
        """Learn what came of it: None for a connection that carries one request at a time."""
        self.opening = max(0, self.opening - 1)
        self._abreast = 1
        self.merges = connection is not None
        if connection is not None:
            self.seats[connection] = 1

    def introduce(self, connection: C) -> None:
        """Learn of a shared connection that was opened without leave."""
        self.merges = True
        self.seats[connection] = 1

    def not_opened(self, *, failed: bool) -> None:
        """Learn that nothing came of it. After a failure twice as many may try at once."""
        self.opening = max(0, self.opening - 1)
        if failed:
            self._abreast = min(2 * self._abreast, MOST_ABREAST)
