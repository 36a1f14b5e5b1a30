"""What the tests of the ledger, the pool and the plan stand on: a ledger with its clock and its kernel, no socket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fewports.address import Destination, Flow, PortSpace
from fewports.budget import Budget
from fewports.kernel.diag import State
from fewports.ledger.account import Account, Holder, Lease, Waiter, Want
from fewports.ledger.local import Ledger
from fewports.testing import Captured, ManualClock, ScriptedKernel
from fewports.usage import Usage

A, B, C = (Destination(f"203.0.113.{number}", 443) for number in (1, 2, 3))
S, T, U = "192.0.2.1", "192.0.2.2", "192.0.2.3"
A6 = Destination("2001:db8:a::1", 443)
S6, T6 = "2001:db8:5::1", "2001:db8:5::2"


class Caller(Waiter):
    """A caller in line that counts how often it was woken."""

    def __init__(self, holder: Holder | None = None) -> None:
        self.woken = 0
        super().__init__(self._wake, holder)

    def _wake(self) -> None:
        self.woken += 1

    @property
    def lease(self) -> Lease | None:
        return self.outcome if isinstance(self.outcome, Lease) else None


class Sock:
    """What owns a lease, as the ledger looks at it."""

    def __init__(self) -> None:
        self.number = 7
        self.passing = False

    def fileno(self) -> int:
        return self.number


class Books:
    """A ledger, the clock it is told, and the kernel it asks."""

    def __init__(
        self,
        budget: int | str | Budget = 3,
        *,
        capacity: int = 100,
        hold: float = 60.0,
        asked: bool = True,
    ) -> None:
        self.clock = ManualClock()
        self.kernel = ScriptedKernel(self.clock, capacity, hold, asked=asked)
        self.ledger = Ledger(budget, referee=self.kernel.referee)
        self.events = Captured()
        self.ledger.subscribe(self.events)
        self.nudges = 0
        self.ledger.nudge = self._nudge
        self._ports: Iterator[int] = itertools.count(40000)

    def _nudge(self) -> None:
        self.nudges += 1

    def want(
        self,
        source: str = S,
        to: Destination = A,
        *,
        host: str = "",
        budget: Budget | None = None,
        client: object = None,
    ) -> Want:
        return self.ledger.want(PortSpace(source, to), self.clock.now, host, budget, client)

    def reserve(self, *wants: Want, holder: Holder | None = None) -> Lease | Account:
        """Ask for a port for any of *wants*: a lease, or who refuses."""
        waiter = Caller(holder)
        refuser = self.ledger.reserve(waiter, wants or [self.want()], self.clock.now)
        if refuser is not None:
            assert waiter.outcome is None
            return refuser
        assert waiter.lease is not None
        return waiter.lease

    def take(self, *wants: Want, holder: Holder | None = None) -> Lease:
        lease = self.reserve(*wants, holder=holder)

        assert isinstance(lease, Lease), lease
        return lease

    def refuser(self, *wants: Want) -> Account:
        account = self.reserve(*wants)

        assert isinstance(account, Account), account
        return account

    def fill(self, *wants: Want) -> list[Lease]:
        """Take all that can be had."""
        leases = []
        while isinstance(lease := self.reserve(*wants), Lease):
            leases.append(lease)
        return leases

    def open(self, lease: Lease, port: int | None = None) -> Flow:
        flow = Flow(lease.space.source, port or next(self._ports), lease.space.destination)
        self.ledger.opened(lease, flow, self.clock.now)
        return flow

    def close(self, lease: Lease, *, keeps: float | None = 60.0, state: State = State.TIME_WAIT) -> Flow:
        """Close the connection of *lease* with TIME_WAIT to come; the kernel keeps it if *keeps* is not 0."""
        flow = lease.flow or self.open(lease)
        if keeps != 0:
            self.kernel.keep(flow, keeps, state)
        self.ledger.release(lease, self.clock.now, time_wait=True)
        return flow

    def release(self, lease: Lease) -> None:
        self.ledger.release(lease, self.clock.now)

    def join(self, *wants: Want, holder: Holder | None = None) -> Caller:
        caller = Caller(holder)
        self.ledger.join(caller, wants or [self.want()], self.clock.now)
        return caller

    def leave(self, caller: Waiter, *, served: bool = False) -> None:
        self.ledger.leave(caller, self.clock.now, served=served)

    def later(self, seconds: float) -> None:
        """Let time pass, and the timer of the ledger do its work at the end of it."""
        self.ledger.advance(self.clock.advance(seconds))

    def usages(self) -> dict[str, Usage]:
        """Return the use of all accounts but the ranges, by name; a client's under ``name of client``."""
        found = {}
        for usage in self.ledger.usage(self.clock.now):
            if usage.scope != "range":
                found[usage.account + (" of client" if usage.scope == "client" else "")] = usage
        return found
