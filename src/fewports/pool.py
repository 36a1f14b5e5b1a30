"""Which request gets which connection, who waits, and what must close. Pure: it touches no socket.

State: the idle connections, the one used last at the right end; the retired ones, which are no longer
handed out and wait for the peer to close them; the number in use; the seats on those that many use at
once (sharing.py); and the line. A connection that one has for itself is nowhere in here. Methods return
what must be closed, and the caller does it.

Long, because each of them looks at the line.
"""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar
from weakref import WeakSet

from .errors import FewportsError
from .events import CloseReason, ConnectionRetired
from .ledger.account import Account, Lead, Lease, Waiter
from .sharing import ALONE, NEEDS, PLACE, Need, Place, Sharing

IDLE_LIMIT = 55.0  # seconds; just below the 60 and 75 s after which common servers close
AGE_LIMIT = 1800.0  # seconds; long enough to cost nothing, short enough to follow a changed DNS record
AGE_JITTER = 0.1  # share by which ages differ, so that connections of one burst do not all end at once
SURPLUS_LIMIT = 10.0  # seconds for which a burst's surplus is kept: to discard it costs a port for 60 s
RETIREMENT = 30.0  # seconds for the peer to close first and to pay the TIME_WAIT
MARGIN = 1.0  # seconds before the server's time is over in which a request may not arrive in time


class PoolClosed(FewportsError):
    """The pool was closed; nothing can be taken from it."""


class Pooled(Protocol):
    """What a pool knows of a connection.

    It carries *capacity* requests at once if it is *shared*; once it is *spent* it takes no more.
    """

    idle_since: float
    expires: float

    @property
    def shared(self) -> bool: ...

    @property
    def capacity(self) -> int: ...

    @property
    def spent(self) -> bool: ...

    @property
    def lease(self) -> Lease | None: ...

    def give_way(self) -> None: ...

    def disown(self) -> None: ...


C = TypeVar("C", bound=Pooled)
Ending = tuple[C, CloseReason]


def kept_until(expires: float, limit: int, now: float) -> float:
    """Return until when a connection is kept whose server keeps it for *limit* seconds more, as it just said."""
    # RFC 9112 leaves "Keep-Alive: timeout=" to RFC 2068, section 19.7.1. A request must arrive before that.
    return min(expires, now + max(limit - MARGIN, limit / 2))


class Limits(NamedTuple):
    """*kept* connections stay for *idle* seconds without use, none lives longer than *age* seconds.

    More than *bound* are never in use at once (None: any number; the budget bounds them).
    """

    kept: int = 10
    bound: int | None = None
    idle: float = IDLE_LIMIT
    age: float = AGE_LIMIT


pools: WeakSet[Pool] = WeakSet()  # type: ignore[type-arg]


class Pool(Generic[C]):
    """Keep connections of one origin. *merges*: they may turn out to be shared ones."""

    def __init__(self, limits: Limits, *, merges: bool = False, chance: Callable[[], float] = random.random) -> None:
        self.limits = limits
        self.may_share = merges
        self._chance = chance
        self._sharing: Sharing[C] = Sharing(merges)
        self.forget()
        pools.add(self)

    def forget(self) -> None:
        """Start clean, with no connection: in a forked child they are the parent's."""
        self._lock = threading.Lock()
        self._idle: deque[C] = deque()
        self._retired: deque[tuple[float, C]] = deque()
        self._line: OrderedDict[Waiter, Need] = OrderedDict()
        self._placed = 0  # of them have a place
        self.lead: Lead | None = None  # what one of those waits for who stand in line for a port
        shared = list(self._sharing.seats)
        self._sharing = Sharing(self.may_share)
        self.used = 0
        # Places whose users are gone; filled where no lock may be taken. Without a bound nobody misses them.
        self.lost: deque[None] | None = None if self.limits.bound is None else deque()
        self.closed = False  # refuses
        self.keeps = True
        self.abandoned = False  # whoever would close it is gone; the timer does
        for connection in shared:
            connection.disown()

    def expiry(self, now: float) -> float:
        """Return when a connection opened *now* has reached its maximum age."""
        return now + self.limits.age * (1 - AGE_JITTER * self._chance())

    def take(self, now: float) -> tuple[C | Place | None, Sequence[Ending[C]]]:
        """Return a connection, or the place for a new one, or None: then join the line.

        It is one that was idle, or a shared one with a seat on it. Raises PoolClosed.
        """
        return self._take_whole(NEEDS[True, True], now)

    def take_now(self, now: float) -> C | None:
        """Return the connection that was used last, or one with a seat; None if there is none: see take()."""
        taken: C | None = None
        try:
            with self._lock:
                idle, bound = self._idle, self.limits.bound
                if self.closed or (bound is not None and self.used >= bound):
                    return None
                found = self._sharing.seat(now) if self._sharing.seats else None
                if found is None:
                    if not idle or idle[-1].expires <= now or idle[-1].capacity <= 0:
                        return None
                    found = idle.pop()
                    if found.shared:
                        self._sharing.board(found)
                self.used += 1  # with the next line: a signal handler gets no turn in between
                taken = found
                if lease := found.lease:
                    lease.idle = False
                return found
        except BaseException:
            self._untake(taken, NEEDS[True, True])
            raise

    def retake(self, now: float) -> tuple[C | Place | None, Sequence[Ending[C]]]:
        """Do as take() for who has a place already: adopted() after a connection."""
        return self._take_whole(NEEDS[False, True], now)

    def join(self, waiter: Waiter, now: float, *, place: bool, opens: bool | None = None) -> list[Ending[C]]:
        """Have *waiter* served with a connection or, where it needs one, with a place.

        Where it is told to open a connection (*opens*; by default if it needs a place), it gets PLACE or ALONE for
        that. Raises PoolClosed.
        """
        need = NEEDS[place, place if opens is None else opens]
        with self._lock:
            found, endings = self._take(need, now)
            if found is None:
                behind = self._line and next(reversed(self._line)).ticket > waiter.ticket
                self._line[waiter] = need
                self._placed += not need.place
                if behind:  # it comes again, and has waited for longer
                    self._line = OrderedDict(sorted(self._line.items()))
            elif not waiter.deliver(found):
                self._undo(found, need)
        return endings

    def leave(self, waiter: Waiter) -> None:
        """Take *waiter* out of the line; what it was given is its own to give back."""
        with self._lock:
            self._drop(waiter)

    def give_back(self, connection: C, now: float) -> Sequence[Ending[C]]:
        """Hand *connection*, clean at a request boundary, to who is next, or keep it idle."""
        lease = connection.lease
        if connection.shared and not self._give_back_seat(connection, now):
            return ()
        with self._lock:
            plain = self.keeps and not self._line and connection.expires > now and not connection.spent
            if plain:
                self.used -= 1
                connection.idle_since = now
                if lease:
                    lease.idle = True
                self._idle.append(connection)
        endings = () if plain else self._give_back(connection, lease, now)
        # Looked at again after it became idle: who joined the line in between has looked here before.
        if lease and lease.idle and lease.wanted and self._rival(lease) and self.remove(connection):
            if lease.ledger.give_way(lease, now):
                endings = (*endings, (connection, CloseReason.GAVE_WAY))
            else:  # another connection gave way in between
                endings = (*endings, *self.restore(connection, now))
        return endings

    def _give_back_seat(self, connection: C, now: float) -> bool:
        """Give back one of several seats; say whether it was the last, and the place is still to be given back."""
        woken: list[Waiter] = []
        lease = connection.lease
        rival = lease.ledger.first_in_line(lease) if lease and lease.wanted else None
        with self._lock:
            last = self._sharing.leave(connection)
            if not last and self.used:
                self.used -= 1
                if rival and rival.holder is not self and ((first := self._first()) is None or rival < first):
                    self._sharing.drain(connection)
                self._serve(woken, now)
        for waiter in woken:
            waiter.wake()
        return last

    def _give_back(self, connection: C, lease: Lease | None, now: float) -> Sequence[Ending[C]]:
        """Give back where somebody waits, or the connection is not to be kept."""
        rival = lease.ledger.first_in_line(lease) if lease and lease.wanted else None
        endings: list[Ending[C]] = []
        woken: list[Waiter] = []
        with self._lock:
            self.used -= 1
            connection.idle_since = now
            if self.closed:
                endings.append((connection, CloseReason.POOL_CLOSED))
            elif connection.expires <= now:
                endings.append((connection, CloseReason.AGE))
            elif connection.spent:
                endings.append((connection, CloseReason.PEER_CLOSED))
            elif rival and rival.holder is not self and ((first := self._first()) is None or rival < first):
                endings.append((connection, CloseReason.GAVE_WAY))
            elif self._hand_over(connection, woken):
                pass
            elif not self.keeps:
                endings.append((connection, CloseReason.POOL_CLOSED))
            else:
                if lease:
                    lease.idle = True
                self._idle.append(connection)
            self._serve(woken, now)
        for waiter in woken:
            waiter.wake()
        gives_way = bool(endings) and endings[0][1] is CloseReason.GAVE_WAY
        if lease and gives_way and not lease.ledger.give_way(lease, now):
            return self.restore(connection, now)  # another connection gave way in between
        return endings

    def add_place(self) -> None:
        """Count one place more, which somebody will give back although he never got it."""
        with self._lock:
            self.used += 1

    def drop_place(self) -> None:
        """Give back the place of a connection that is closed, or was never made."""
        woken: list[Waiter] = []
        with self._lock:
            self.used = max(0, self.used - 1)  # after a KeyboardInterrupt two may see to the same place
            self._serve(woken)
        for waiter in woken:
            waiter.wake()

    def regain(self, now: float) -> None:
        """Serve the line with the places that are lost."""
        if not self.lost:
            return
        woken: list[Waiter] = []
        with self._lock:
            self._regain()
            self._serve(woken, now)
        for waiter in woken:
            waiter.wake()

    def opened(self, connection: C | None, now: float) -> None:
        """Tell who waits what came of ALONE: a shared *connection*, with a seat for who opened it, or a plain one."""
        woken: list[Waiter] = []
        with self._lock:
            self._sharing.opened(connection)
            self._serve(woken, now, anyway=True)
        for waiter in woken:
            waiter.wake()

    def introduce(self, connection: C, now: float) -> None:
        """Let others share *connection*, on which somebody has the first seat, who was not told to open one."""
        woken: list[Waiter] = []
        with self._lock:
            self._sharing.introduce(connection)
            self._serve(woken, now)
        for waiter in woken:
            waiter.wake()

    def insist(self, turns: int) -> Place | None:
        """Return leave to open a connection, although others do, for who has waited so often; None: wait again."""
        with self._lock:
            if not self._sharing.merges:
                return PLACE
            return ALONE if self._sharing.insist(turns) else None

    def not_opened(self, *, failed: bool) -> None:
        """Let the next try to open a connection: nothing came of ALONE."""
        woken: list[Waiter] = []
        with self._lock:
            self._sharing.not_opened(failed=failed)
            self._serve(woken)
        for waiter in woken:
            waiter.wake()

    def widened(self, now: float) -> None:
        """Serve the line: a shared connection carries more than before, or takes no more at all."""
        if not self._line:
            return
        woken: list[Waiter] = []
        with self._lock:
            self._serve(woken, now)
        for waiter in woken:
            waiter.wake()

    def leave_seat(self, connection: C, now: float) -> Sequence[Ending[C]]:
        """Give back a seat on a shared connection, but not the place."""
        self.add_place()
        return self.give_back(connection, now)

    def adopted(self) -> None:
        """Note that a connection given to a waiter lives on in the place that the waiter had."""
        self.drop_place()

    def surrender(self, account: Account, *, idle: bool = True) -> C | None:
        """Take out the connection that was idle for longest and is charged to *account*.

        Only a retired one, if *idle* is false.
        """
        with self._lock:
            for connection in [connection for _, connection in self._retired] + (list(self._idle) if idle else []):
                if (lease := connection.lease) and account in lease.accounts:
                    self._remove(connection)
                    return connection
        return None

    def remove(self, connection: C) -> bool:
        """Take *connection* out, if it is idle or retired."""
        with self._lock:
            return self._remove(connection)

    def restore(self, connection: C, now: float) -> Sequence[Ending[C]]:
        """Put back what remove() took out, or hand it to who has joined the line since."""
        self.add_place()
        return self.give_back(connection, now)

    @property
    def crowded(self) -> bool:
        """Say whether somebody is in line."""
        return bool(self._line)

    @property
    def retiring(self) -> bool:
        """Say whether some connections wait for their peers to close them."""
        return bool(self._retired)

    def quiet(self) -> list[C]:
        """Return the connections that nobody uses."""
        with self._lock:
            return [*self._idle, *(connection for _, connection in self._retired)]

    @property
    def merges(self) -> bool:
        """Say whether what is being opened may carry all who wait."""
        return self._sharing.merges

    def riding(self) -> list[C]:
        """Return the shared connections that are in use."""
        with self._lock:
            return list(self._sharing.seats)

    def due(self) -> float | None:
        """Return when expire() should next be called; None: nothing is idle or shared, nobody wants a place."""
        with self._lock:
            times = [deadline for deadline, _ in self._retired]
            if self._sharing.seats or (self._line and self.limits.bound is not None):
                times.append(inf)
            surplus = len(self._idle) - self.limits.kept
            for position, connection in enumerate(self._idle):
                times.append(min(connection.expires, connection.idle_since + self._patience(position < surplus)))
        return min(times, default=None)

    def expire(self, now: float) -> list[Ending[C]]:
        """Retire what was idle for too long or is too old; return what was retired for long enough."""
        endings: list[Ending[C]] = []
        retired: list[Lease] = []
        with self._lock:
            while self._retired and self._retired[0][0] <= now:
                deadline, connection = self._retired.popleft()
                aged = connection.expires <= deadline - RETIREMENT
                endings.append((connection, CloseReason.AGE if aged else CloseReason.IDLE))
            surplus = len(self._idle) - self.limits.kept
            for position, connection in enumerate(list(self._idle)):
                patience = self._patience(position < surplus)
                if connection.idle_since + patience <= now or connection.expires <= now:
                    self._idle.remove(connection)
                    self._retired.append((now + RETIREMENT, connection))
                    if connection.lease:
                        retired.append(connection.lease)
        for lease in retired:
            if lease.flow:
                lease.ledger.emit(ConnectionRetired(lease.flow))
        return endings

    def empty(self, *, for_good: bool = False) -> list[Ending[C]]:
        """Return all that nobody uses, to be closed; with *for_good* nothing is kept from now on."""
        with self._lock:
            self.keeps = self.keeps and not for_good
            return self._empty()

    def close(self) -> list[Ending[C]]:
        """Refuse from now on, send away who waits, and return all that is to be closed."""
        with self._lock:
            self.closed = True
            self.keeps = False
            endings = self._empty()
            waiting = [waiter for waiter in self._line if waiter.deliver(None)]
            self._line.clear()
            self._placed = 0
        for waiter in waiting:
            waiter.wake()
        return endings

    def __len__(self) -> int:
        return len(self._idle) + len(self._sharing.seats)

    def __bool__(self) -> bool:
        return True  # an empty pool is a pool all the same

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.used} in use, {len(self._idle)} idle"
        return f"<Pool {state}, {len(self._retired)} retired, {len(self._line)} waiting>"

    def _take_whole(self, need: Need, now: float) -> tuple[C | Place | None, Sequence[Ending[C]]]:
        found: C | Place | None = None
        try:
            with self._lock:
                found, endings = self._take(need, now)
            return found, endings
        except BaseException:
            self._untake(found, need)
            raise

    def _untake(self, found: C | Place | None, need: Need) -> None:
        if found is not None:  # what a signal handler kept from its taker
            with self._lock:
                self._undo(found, need)

    # Below: the lock is held, except in _rival.

    def _take(self, need: Need, now: float) -> tuple[C | Place | None, list[Ending[C]]]:
        if self.closed:
            raise PoolClosed("the pool is closed: make a new one")
        endings: list[Ending[C]] = []
        if self.lost and not self._line:  # else they are for who is in line
            self._regain()
        if need.place and self.limits.bound is not None and self.used >= self.limits.bound:
            return None, endings
        found = self._sharing.seat(now) if self._sharing.seats else None
        if found is None and self._idle:
            found = self._find_idle(now, endings)
        if found is not None:
            self.used += 1
            return found, endings
        return self._take_place(need), endings

    def _regain(self) -> None:
        while self.lost:
            self.lost.popleft()
            self.used = max(0, self.used - 1)

    def _find_idle(self, now: float, endings: list[Ending[C]]) -> C | None:
        full: list[C] = []
        found = None
        while self._idle and found is None:
            connection = self._idle.pop()
            lease = connection.lease
            if connection.shared and connection.capacity <= 0 and not connection.spent:
                full.append(connection)
                continue
            if lease:
                lease.idle = False
            if connection.expires <= now:
                endings.append((connection, CloseReason.AGE))
            elif connection.spent:
                endings.append((connection, CloseReason.PEER_CLOSED))
            else:
                found = connection
                self._sharing.board(connection)
        self._idle.extend(reversed(full))
        return found

    def _take_place(self, need: Need) -> Place | None:
        if not need.open:
            return None
        if self._sharing.merges and not self._sharing.open_one():
            return None
        if need.place:
            self.used += 1
        return ALONE if self._sharing.merges else PLACE

    def _empty(self) -> list[Ending[C]]:
        endings = [(connection, CloseReason.POOL_CLOSED) for connection in self._idle]
        endings += [(connection, CloseReason.POOL_CLOSED) for _, connection in self._retired]
        self._idle.clear()
        self._retired.clear()
        return endings

    def _undo(self, found: C | Place, need: Need) -> None:
        if need.place or not isinstance(found, Place):
            self.used -= 1
        if found is ALONE:
            self._sharing.not_opened(failed=False)
        elif not isinstance(found, Place) and (not found.shared or self._sharing.leave(found)):
            if found.lease:
                found.lease.idle = True
            self._idle.append(found)

    def _first(self) -> Waiter | None:
        while self._line:
            waiter = next(iter(self._line))
            if not waiter.decided:
                return waiter
            self._drop(waiter)
        return None

    def _drop(self, waiter: Waiter) -> None:
        need = self._line.pop(waiter, None)
        if need is not None and not need.place:
            self._placed -= 1

    def _hand_over(self, connection: C, woken: list[Waiter]) -> bool:
        """Give *connection* to the first in line."""
        if connection.capacity <= 0:
            return False
        while waiter := self._first():
            self._drop(waiter)
            if waiter.deliver(connection):
                self.used += 1
                self._sharing.board(connection)
                woken.append(waiter)
                return True
        return False

    def _serve(self, woken: list[Waiter], now: float = 0.0, *, anyway: bool = False) -> None:
        """Give who is in line the seats, the places and the leave to open that there are."""
        sharing, bound = self._sharing, self.limits.bound
        if sharing.merges or sharing.seats or anyway or (bound is not None and self.used < bound):
            while self._line and self._serve_one(woken, now):
                pass

    def _serve_one(self, woken: list[Waiter], now: float) -> bool:
        full = self.limits.bound is not None and self.used >= self.limits.bound
        if full and not self._placed:
            return False
        for waiter, need in self._line.items():
            if full and need.place:
                continue
            found: C | Place | None = self._sharing.seat(now)
            if found is not None:
                self.used += 1
            elif (found := self._take_place(need)) is None:
                if need.open:
                    return False  # there is nothing for the others either
                continue
            self._drop(waiter)
            if waiter.deliver(found):
                woken.append(waiter)
            else:
                self._undo(found, need)
            return True
        return False

    def _remove(self, connection: C) -> bool:
        removed = False
        if connection in self._idle:
            self._idle.remove(connection)
            removed = True
        for entry in self._retired:
            if entry[1] is connection:
                self._retired.remove(entry)
                removed = True
                break
        if removed and connection.lease:
            connection.lease.idle = False
        return removed

    def _patience(self, surplus: bool) -> float:
        return min(SURPLUS_LIMIT, self.limits.idle) if surplus else self.limits.idle

    def _rival(self, lease: Lease) -> bool:
        """Say whether somebody is to have the port of *lease* who is not one of ours."""
        rival = lease.ledger.first_in_line(lease)
        return rival is not None and rival.holder is not self
