"""Which connections of a pool carry many requests at once, who has a seat, and whether one more may be opened.

A part of the pool, under the pool's lock. While it is not known whether the peer speaks HTTP/2, or known that it does,
connections are opened one at a time: what is being opened may carry all who wait.

State: ``seats``, the connections on which somebody has a seat, and how many; those without are idle, or nowhere.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, Protocol, TypeVar

MOST_ABREAST = 16  # opened at once, after failures in a row: vain attempts neither hold up others nor take many ports
MOST_TURNS = 10  # after which nobody is held up
TURN = 30.0  # seconds to wait for what others open, where who finds no port is refused at once


class Place:
    """The right to use one connection more; given where there is a bound, and where there is none."""


class Need(NamedTuple):
    """What somebody in line needs: a *place*, or has one; to be told to *open* a connection, or does so already."""

    place: bool
    open: bool


NEEDS = {(place, opens): Need(place, opens) for place in (True, False) for opens in (True, False)}  # of many alike
PLACE = Place()
ALONE = Place()  # while it opens one, others wait for what comes of that: opened(), not_opened()


class Shareable(Protocol):
    """A connection as seen from here: it carries *capacity* requests at once if it is *shared*."""

    expires: float

    @property
    def shared(self) -> bool: ...

    @property
    def capacity(self) -> int: ...


C = TypeVar("C", bound=Shareable)


class Search:
    """How long one caller waits for what others open, or for a seat.

    For what they open as long as its own would take at most, *connect*, not counting the wait for a seat before; for a
    seat, where there are any, as long as for a *port*. After that turn it opens one itself, or waits for another turn
    where many are being opened.
    """

    def __init__(self, connect: float | None, port: float, now: float) -> None:
        self._connect = connect
        self._port = port
        self._turn = port or TURN
        self._began = self._since = now
        self._seatless = now  # since when there are no seats to wait for
        self._rode = False  # there were some when this was asked last
        self.turns = 0  # that are over

    def pause(self, now: float, riding: bool) -> float:
        """Return for how long to wait; *riding*: there are seats, all of them taken."""
        self._look(now, riding)
        pause = self._since + self._turn - now
        if self._connect is not None and not riding:
            pause = min(pause, self._seatless + self._connect - now)
        return max(0.0, pause)

    def late(self, now: float, riding: bool) -> bool:
        """Say whether the time to connect is over."""
        self._look(now, riding)
        return self._connect is not None and not riding and now - self._seatless >= self._connect

    def turned(self, now: float) -> bool:
        """Say whether the wait was long enough to open another, each time once."""
        if now - self._since < self._turn:
            return False
        self._since = now
        self.turns += 1
        return True

    def left(self, now: float, riding: bool) -> tuple[float | None, float]:
        """Return the times to connect, and to wait for a port."""
        self._look(now, riding)
        if riding:
            return self._connect, max(0.0, self._port - (now - self._began))
        return None if self._connect is None else max(0.001, self._connect - (now - self._seatless)), self._port

    def _look(self, now: float, riding: bool) -> None:
        if riding or self._rode:
            self._seatless = now  # at the earliest
        self._rode = riding


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
        self._yielding.discard(connection)
        if connection in self.seats:
            del self.seats[connection]
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

    def insist(self, turns: int) -> bool:
        """Have one more opened beside those that take too long, for who waits for the *turns*-th time."""
        # Twice as many each time: to a host that does not answer, where nobody has a time-out, all come in the end.
        if self.opening >= MOST_ABREAST << min(turns - 1, MOST_TURNS):
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
