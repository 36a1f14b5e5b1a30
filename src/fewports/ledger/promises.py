"""Ports that are about to come free because a connection gives way: never more of them than callers who need one.

Called by a ledger under its lock. State: the promises, in the order of their making. Whose port it becomes is the
line's business: what counts is how many wait for an account, and how many ports are on their way to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import inf

from .account import Account, Lease, Waiter, Want, full_accounts

ACKNOWLEDGED = 1.0  # seconds in which a peer acknowledges our FIN; then the port is free, or the peer is gone


class Promise:
    """A port on its way to these accounts: that of *lease*; without one, it is being looked for.

    While it was being looked for it may have ``counted``, and ``others`` may have been sent away because of it.
    """

    __slots__ = ("accounts", "counted", "lease", "others", "until")

    def __init__(self, accounts: Iterable[Account], lease: Lease | None, now: float) -> None:
        self.accounts = frozenset(accounts)
        self.lease = lease
        self.until = now + ACKNOWLEDGED
        self.counted = False
        self.others: list[Waiter] = []

    def comes(self, account: Account) -> bool:
        """Say whether *account* has yet to see it: one that counts connections does so when that is closed."""
        return account.keeps or self.lease is None or self.lease.state < Lease.RELEASED


class Promises:
    """Say who may have a connection closed, for a ledger that knows which leases still hold their port.

    *nudge* is called when next_due() has come nearer.
    """

    def __init__(self, holds: Callable[[Lease], bool], nudge: Callable[[], object]) -> None:
        self._holds = holds
        self._nudge = nudge
        self._all: list[Promise] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def short(self, account: Account, waiter: Waiter | None = None) -> bool:
        """Say whether more callers need a port of *account* than are on their way, *waiter* among them."""
        coming = 0
        for promise in self._pending():
            if account in promise.accounts and promise.comes(account):
                coming += 1
                promise.counted = True
        if waiter is not None and waiter not in account.waiters and not waiter.decided:
            coming -= 1
        if coming < 0 or not account.waiters or account.first() is None:
            return coming < 0
        # Not the set of the waiters: when most of ten thousand have left, it takes as long to find the first.
        for other in account.line:
            coming -= not other.decided
            if coming < 0:
                return True
        return False

    def seek(self, waiter: Waiter, wants: Sequence[Want], now: float) -> Promise | None:
        """Let *waiter* look for a connection to close, unless one of *wants* is on its way or free."""
        if waiter.decided:
            return None
        before = self.next_due()
        for want in wants:
            full = full_accounts([want], now)
            if not any(self.short(account, waiter) for account in full):
                for promise in self._all:
                    if promise.lease is None and not promise.accounts.isdisjoint(full):
                        promise.others.append(waiter)
                return None
        promise = Promise(full_accounts(wants, now), None, now)
        self._make(promise, before)
        return promise

    def give(self, lease: Lease, now: float) -> bool:
        """Let the connection of *lease* give way, if somebody in line for its accounts needs it."""
        before = self.next_due()
        if not any(account.waiters and self.short(account) for account in lease.accounts):
            return False
        self._make(Promise(lease.accounts, lease, now), before)
        return True

    def found(self, promise: Promise, lease: Lease | None) -> list[Waiter]:
        """Note whose port it is that seek() let be looked for; None if there is none: then return who is to look again.

        A connection may have become idle meanwhile where the one who looked had been already, and its owner was told
        that a port is on its way.
        """
        if lease is not None:
            promise.accounts = frozenset(lease.accounts)
            promise.lease = lease
            return []
        if promise in self._all:
            self._all.remove(promise)
        if not promise.counted:
            return []
        again = dict.fromkeys(other for other in promise.others if not other.decided)
        for account in promise.accounts:
            again.update(dict.fromkeys(account.foremost(1)))
        return list(again)

    def next_due(self) -> float:
        """Return when late() may have something to say; inf for never."""
        return self._all[0].until if self._all else inf

    def late(self, now: float) -> Counter[Account]:
        """Give up those that were not kept in time; return how many ports each account waits for in vain."""
        late = [promise for promise in self._pending() if promise.until <= now]
        self._all = [promise for promise in self._all if promise.until > now]
        return Counter(account for promise in late for account in promise.accounts)

    def _make(self, promise: Promise, before: float) -> None:
        self._all.append(promise)
        if self._all[0].until < before:
            self._nudge()

    def _pending(self) -> list[Promise]:
        if self._all:
            self._all = [promise for promise in self._all if promise.lease is None or self._holds(promise.lease)]
        return self._all
