"""One caller in line: in the ledger's for a port, in its pool's for a connection that comes free. Waits for nothing.

Whichever comes first is the outcome, in the order of their coming, over all pools and destinations under one budget.
Who comes while others of its pool stand in line can stand behind them and wait for what they wait for (``Lead``): no
name is looked up for it, no port tried, and while its turn does not come it costs as little as waiting for a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar, cast

from .events import CloseReason
from .ledger.account import Account, Lead, Lease, Waiter, Want
from .ledger.local import Ledger
from .pool import Pool, PoolClosed, Pooled

UNWATCHED = 0.2  # seconds between two looks of who waits for a ledger that nobody watches

FRESH = 10.0  # seconds for which what one waits for is good enough for others: a name may come to mean another address


class Endable(Pooled, Protocol):
    """A pooled connection as it is ended."""

    def end(self, reason: CloseReason) -> None: ...


C = TypeVar("C", bound=Endable)


class Floor(NamedTuple):
    """What the floor that waits lends: the time, and who watches a ledger for those who wait."""

    clock: Callable[[], float]
    watch: Callable[[Ledger], bool]  # False: it cannot now


def lead(wants: Sequence[Want], now: float) -> Lead | None:
    """Return what others may follow who come while somebody waits for *wants*; None: who comes is to ask itself."""
    if any(account.budget.refuses for want in wants for account in want.accounts):
        return None
    return Lead(tuple(wants), now + FRESH)


def followed(pool: Pool[C], now: float) -> Sequence[Want] | None:
    """Return what to wait for behind those who stand in line, if there are any."""
    lead = pool.lead
    if lead is None or lead.until <= now or not pool.crowded or pool.merges:
        return None
    return lead.wants


class Turn(NamedTuple):
    """What came of a stand in line that ended with a lease, for who dials now and may have to wait again."""

    lease: Lease
    ticket: int
    waited: float


class Standing(Generic[C]):
    """The stand of *waiter* in both lines, from begin() to leave(), which comes last on every way out."""

    __slots__ = ("_began", "_deadline", "_floor", "_ledger", "_paused", "_pool", "_refuser", "_watched", "waiter")

    def __init__(self, waiter: Waiter, ledger: Ledger, pool: Pool[C] | None, floor: Floor) -> None:
        self.waiter = waiter
        self._ledger = ledger
        self._pool = pool
        self._floor = floor
        self._watched = True
        self._paused = False
        self._began = self._deadline = 0.0
        self._refuser: Account | None = None

    def begin(self, wants: Sequence[Want], wait: float | None, waited: float, refuser: Account | None = None) -> None:
        """Join the lines, for *wait* seconds at most and as long as the budget says, *waited* taken off."""
        waiter, pool, ledger = self.waiter, self._pool, self._ledger
        self._began = now = self._floor.clock()
        if pool is not None:
            for connection, reason in pool.join(waiter, now, place=False):
                connection.end(reason)
        if not waiter.decided:
            if (standing := ledger.join(waiter, wants, now)) is None:
                return  # served
            self._refuser = refuser = refuser or standing
            limit = refuser.budget.wait
            self._deadline = now + (limit if wait is None else min(limit, wait)) - waited
            self._watched = self._floor.watch(ledger)
            if self._contested() and not waiter.decided:
                self._reclaim(now)  # who became idle in between saw nobody in line

    def pause(self) -> float:
        """Return for how long to wait before this is asked again; nothing or less: it is over."""
        waiter = self.waiter
        if waiter.decided:
            return 0.0
        if self._paused:
            if not self._watched:  # no thread could be started
                self._ledger.advance(self._floor.clock())
                self._watched = self._floor.watch(self._ledger)
            if not waiter.decided:
                # Another account keeps us waiting now, or a port that was promised has not come: the ledger woke us.
                self._reclaim(self._floor.clock())
            if waiter.decided:
                return 0.0
        self._paused = True
        left = self._deadline - self._floor.clock()
        return left if self._watched else min(left, UNWATCHED)

    def waited(self) -> float:
        return self._floor.clock() - self._began

    def turn(self, lease: Lease) -> Turn:
        return Turn(lease, self.waiter.ticket, self.waited())

    def end(self, waited: float) -> Lease | C:
        """Accept no more; return what was delivered. Raises BudgetExhausted or PoolClosed."""
        waiter, now = self.waiter, self._floor.clock()
        # First of all it is passed over in every line: what comes free now is for others.
        if not waiter.decided and waiter.leave() is None:
            refuser = self._ledger.refuser(waiter.wants, now) or self._refuser
            assert refuser is not None
            if self._pool is not None:
                self._pool.leave(waiter)
            raise self._ledger.exhausted(refuser, now, waited + now - self._began)
        outcome = waiter.outcome
        if outcome is None:
            raise PoolClosed("the pool was closed while a request waited for a connection")
        return outcome  # type: ignore[return-value]

    def leave(self, used: object) -> None:
        """Leave both lines; give back what was delivered, unless it is *used*."""
        leave(self.waiter, self._ledger, self._pool, used, self._floor.clock())

    def _contested(self) -> bool:
        """Say whether a connection may be closed for us: others keep some, or we keep some that have retired."""
        pool = self._pool
        if pool is None or pool.retiring:
            return True
        for account in self.waiter.lines:  # noqa: SIM110 - for each request that waits
            if len(account.holders) != 1 or pool not in account.holders:
                return True
        return False

    def _reclaim(self, now: float) -> None:
        reclaim(self.waiter, self.waiter.wants, self._ledger, self._pool, now)


def leave(waiter: Waiter, ledger: Ledger, pool: Pool[C] | None, used: object, now: float) -> None:
    """Take *waiter* out of all lines; give back what was delivered, unless it is *used*, or a socket has it."""
    outcome = waiter.leave()
    if pool is not None and (outcome is None or isinstance(outcome, Lease)):
        pool.leave(waiter)
    elif pool is not None and outcome is not used:
        for connection, reason in pool.give_back(cast(C, outcome), now):
            connection.end(reason)
    ledger.leave(waiter, now, served=used is not None, keeps=used is outcome)


def reclaim(waiter: Waiter, wants: Sequence[Want], ledger: Ledger, pool: Pool[C] | None, now: float) -> bool:
    """Have one idle connection of another pool give way to *waiter*, unless the port of one is on its way."""
    # What is idle in its own pool is its own as it is: join() finds it. What is retired is not.
    rivals = [
        (account, holder)
        for account, holders in ledger.rivals(wants, now)
        for holder in holders
        if holder is not pool or pool.retiring
    ]
    if not rivals or (promise := ledger.seek(waiter, wants, now)) is None:
        return False
    victim = lease = None
    try:
        for account, holder in rivals:
            if victim := holder.surrender(account, idle=holder is not pool):
                lease = victim.lease
                return True
        return False
    finally:
        ledger.found(promise, lease)
        if victim:
            victim.give_way()
