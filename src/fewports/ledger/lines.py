"""Who waits for which port, and who is served when one comes free. Called by a ledger under its lock.

State: the accounts with somebody in line, and those for which the kernel had no port. The line itself,
first come first served, is kept by each account.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ..events import Event
from .account import NOWHERE, Account, Waiter, Want, full_accounts

FIRST_PAUSE, LAST_PAUSE = 0.02, 1.0  # seconds; a connect that finds no port scans the range: up to 5.6 ms

Serve = Callable[[Waiter, Sequence[Want], float], Account | None]


class Lines:
    """The lines of all accounts of a ledger.

    *serve* gives a waiter a port, or says which account is full; *out* takes those to be woken once the
    lock is free; *nudge* is called when something may be due earlier.
    """

    def __init__(self, serve: Serve, out: deque[Waiter | Event], nudge: Callable[[], object]) -> None:
        self._serve = serve
        self._out = out
        self._nudge = nudge
        self.full: set[Account] = set()  # accounts with somebody in line
        self.blocked: set[Account] = set()  # and those that are left alone for a moment

    def join(self, waiter: Waiter, full: Sequence[Account]) -> None:
        """Put *waiter* in the lines of those accounts that are *full*, and keep it waiting."""
        for account in full:
            if account not in waiter.lines:
                if not account.waiters:
                    account.alone = frozenset((account,))
                waiter.lines = waiter.lines | account.alone if waiter.lines else account.alone
                account.enter(waiter)
                if account not in self.full:
                    self.full.add(account)
                    self._nudge()

    def leave(self, waiter: Waiter) -> None:
        """Take *waiter* out of all lines."""
        for account in waiter.lines:
            self._leave(waiter, account)
        waiter.lines = NOWHERE

    def grant(self, accounts: Sequence[Account], now: float) -> None:
        """Serve those in line for any of *accounts* in the order of their coming, while there is room."""
        while self._grant_one(accounts, now):
            pass

    def refuse(self, account: Account, now: float) -> None:
        """Leave *account* alone for a moment, because the kernel had no port for it."""
        account.backoff = min(LAST_PAUSE, account.backoff * 2 or FIRST_PAUSE)
        account.blocked_until = now + account.backoff
        self.blocked.add(account)

    def admit(self, account: Account, number: int, now: float) -> None:
        """Let so many callers try where the kernel had no port; the space is free again when no more wait.

        Each success admits two more, so that one free port does not make a hundred of them scan the range.
        """
        self._unblock(account)
        account.backoff = 0.0
        for _ in range(number):
            if not self._grant_one((account,), now):
                break
        if account.waiters:
            account.blocked_until = now + LAST_PAUSE
            self.blocked.add(account)

    def probe(self, now: float) -> None:
        """Where the pause is over, let one caller find out whether the kernel has a port; others wait for its news."""
        for account in list(self.blocked):
            if account.blocked_until <= now:
                backoff = account.backoff
                self.admit(account, 1, now)
                account.backoff = backoff

    def waiters(self) -> set[Waiter]:
        """Return all who wait."""
        return {waiter for account in self.full for waiter in account.waiters}

    def _grant_one(self, accounts: Sequence[Account], now: float) -> bool:
        """Serve the first in line whom no other account keeps waiting; say whether there was one."""
        while True:
            free = [account for account in accounts if account.waiters and not account.full(now)]
            waiter = min((first for account in free if (first := account.first())), default=None)
            if waiter is None:
                return False
            if not self._serve(waiter, waiter.wants, now):
                self.leave(waiter)
                self._out.append(waiter)
                return True
            # Another account keeps it waiting: it stands in the line of that one, at its old place. It is
            # woken, because there may be an idle connection to close; due() may have come nearer as well.
            for account in waiter.lines.intersection(free):
                account.line.popleft()  # who comes first of all is first in each
                self._leave(waiter, account)
            waiter.lines = waiter.lines.difference(free)
            self.join(waiter, full_accounts(waiter.wants, now))
            self._out.append(waiter)
            self._nudge()

    def _leave(self, waiter: Waiter, account: Account) -> None:
        account.leave(waiter)
        if not account.waiters:
            account.alone = NOWHERE
            self.full.discard(account)
            if account.blocked_until and not account.backoff:
                self._unblock(account)  # it was for those in line alone, one after the other

    def _unblock(self, account: Account) -> None:
        account.blocked_until = 0.0
        self.blocked.discard(account)
