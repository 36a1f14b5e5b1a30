"""Who holds which port, in this process. Decides; never waits, dials or reads a clock.

State, all under one plain lock: the accounts, each with its leases; the closings, ports that outlive
their connection, in a heap by the time at which the kernel lets go; and a line per full account.
An account has a line only while it is full, so whoever finds room may take it without looking.

Long, because all its verbs take one lock; the nouns that it guards (accounts, closings, lines) have files of their own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from math import inf
from time import monotonic
from weakref import WeakSet

from ..address import Flow, PortSpace
from ..budget import Budget
from ..errors import BudgetExhausted, LeaseError
from ..events import (
    BudgetRefused,
    ConnectionClosed,
    ConnectionOpened,
    Emit,
    Event,
    KernelRefused,
    LevelCrossed,
    PortFreed,
    PortReserved,
    WaitEnded,
    WaitStarted,
)
from ..source import Sources
from ..usage import Usage
from .account import GRACE, Account, Closing, Holder, Lease, Waiter, Want, full_accounts
from .accounts import Accounts
from .closings import QUESTIONS, Closings, Referee, kernel_referee, system_capacity
from .hook import Hook
from .lines import Lines
from .promises import Promise, Promises

_DIALING, _OPEN, _RELEASED = Lease.DIALING, Lease.OPEN, Lease.RELEASED
CACHED_WANTS = 10_000  # spaces whose accounts are remembered although they hold no port

ledgers: WeakSet[Ledger] = WeakSet()


class Ledger:
    """Count ports, and refuse more than the budget allows.

    *budget* bounds each destination; *sources* are used by faces that are given none. All that share
    a ledger share its ports. Safe for threads and event loops alike.
    """

    def __init__(
        self,
        budget: int | str | Budget | None = None,
        *,
        sources: Iterable[str] | str | Sources | None = None,
        referee: Referee | None = None,
    ) -> None:
        self.budget = Budget.of(budget)
        self.sources = Sources.of(sources)
        self._referee = referee or kernel_referee()
        self.nudge: Callable[[], object] = lambda: None  # called when due() may have come nearer; takes no lock
        self._hook = Hook()
        self._reset()
        ledgers.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        # Says whether a call is going on: it may be one that the garbage collector interrupted, to call us.
        self.busy: Callable[[], bool] = self._lock.locked
        self._accounts = Accounts(self.budget, 0)
        self._wants: dict[tuple[PortSpace, str, Budget | None, object], Want] = {}
        self.ways: dict[Hashable, object] = {}  # what dialing has worked out from wants; dropped with them
        self._leases: set[Lease] = set()
        self._closings = Closings(self._referee)
        self._promises = Promises(self._holds, lambda: self.nudge())
        self._reaped = 0.0
        self._orphans: deque[tuple[Lease, bool, bool]] = deque()  # given back where no lock may be taken
        self._out: deque[Waiter | Event] = deque()  # to be done once the lock is free
        self._lines = Lines(self._serve, self._out, lambda: self.nudge())
        self._full = self._lines.full  # accounts with somebody in line

    # What users call.

    def usage(self, now: float | None = None) -> list[Usage]:
        """Return the use of each account that holds ports or keeps somebody waiting."""
        # The clock is read here and in configure() alone: people call them without one.
        self.advance(monotonic() if now is None else now, thorough=True)
        with self._lock:
            return [account.usage() for account in self._accounts.values() if account.held or account.waiting]

    def held(self, space: PortSpace) -> int:
        """Return the ports held in *space*."""
        account = self._accounts.of(space)
        return account.held if account else 0

    def subscribe(self, emit: Emit) -> Callable[[], None]:
        """Have *emit* called with each event; return what ends that.

        What it raises is logged, once, and reaches no request.
        """
        return self._hook.subscribe(emit)

    def configure(
        self,
        budget: int | str | Budget | None = None,
        sources: Iterable[str] | str | Sources | None = None,
    ) -> None:
        """Replace the budget or the sources; ports held already stay held, and count against the new one."""
        new_budget = None if budget is None else Budget.of(budget)
        new_sources = None if sources is None else Sources.of(sources)
        with self._lock:
            if new_sources is not None:
                self.sources = new_sources
            if new_budget is not None:
                self.budget = new_budget
                self._charge_anew(monotonic())
        if self._out:
            self._act()

    # What dialing calls.

    def want(
        self, space: PortSpace, now: float, host: str = "", budget: Budget | None = None, client: object = None
    ) -> Want:
        """Name what a port of *space* would be charged to.

        *budget* is the own one of *client*, the face that asks, if it has one.
        """
        if (capacity := self._referee.capacity(now)) != self._accounts.capacity:
            self._resize(capacity, now)
        key = (space, host, budget, client)
        if (want := self._wants.get(key)) is not None:
            return want
        with self._lock:
            if len(self._wants) >= CACHED_WANTS:
                self._wants.clear()
                self.ways.clear()
            want = self._wants[key] = self._accounts.want(space, host, budget, client)
        return want

    def take(self, lease: Lease, now: float) -> bool:
        """Let *lease* begin if its space has room; asks nobody, and keeps no place in line.

        What reserve() does for a caller who has not waited yet, at half its price.
        """
        # want(), which comes before, has seen to the system's own range; a referee may be of another mind by now.
        capacity = self._referee.capacity
        if capacity is not system_capacity and (ports := capacity(now)) != self._accounts.capacity:
            self._resize(ports, now)
        unsure: list[Closing] = []
        with self._lock:
            if self._orphans or self._closings.next_due() <= now:
                unsure = self._catch_up(now)
            if not lease.want.accounts[0].limit:
                lease.want = self._accounts.same(lease.want)
            taken = self._refuser(lease.want, now) is None
            if taken:
                self._book(lease)
        if self._out:
            self._act()
        self._ask(unsure, now)
        return taken

    def give_up(self, lease: Lease, now: float) -> None:
        """Take back a lease from take(), which may have been broken off, unless a socket owns it."""
        with self._lock:
            if lease.state == Lease.DIALING and lease.socket is None:
                self._release(lease, now, None)
        if self._out:
            self._act()

    def reserve(self, waiter: Waiter, wants: Sequence[Want], now: float, *, ask: bool = True) -> Account | None:
        """Deliver a lease for the first of *wants* that has room, or return an account that is full.

        With *ask*, it asks the kernel, before it refuses, whether ports believed in TIME_WAIT are still held.
        """
        while True:
            with self._lock:
                wants = self._current(wants)
                questions = self._catch_up(now)
                refuser = self._serve(waiter, wants, now)
                if refuser and ask:
                    questions += self._closings.questions(full_accounts(wants, now), now)
            if self._out:
                self._act()
            if not self._ask(questions, now) or not refuser:
                return refuser

    def join(self, waiter: Waiter, wants: Sequence[Want], now: float) -> Account | None:
        """Put *waiter* in line for the first of *wants* to have room; it keeps its place if it had one.

        Returns an account that is full; None: it was served at once.
        """
        unsure: list[Closing] = []
        with self._lock:
            waiter.wants = self._current(wants)
            if self._orphans or self._closings.next_due() <= now:
                unsure = self._catch_up(now)
            full = full_accounts(waiter.wants, now)
            refuser = full[0] if full and len(waiter.wants) == 1 else self._serve(waiter, waiter.wants, now)
            if refuser and not waiter.decided:
                self._lines.join(waiter, full)
                if waiter.joined is None:
                    waiter.joined = now
                    if self._hook.emits:
                        self._out.append(WaitStarted(refuser.usage()))
        if self._out:
            self._act()
        if unsure:
            self._ask(unsure, now)
        return refuser

    def leave(self, waiter: Waiter, now: float, *, served: bool, keeps: bool = False) -> None:
        """Take *waiter* out of all lines; a lease that it was given and did not use goes back, unless it *keeps* it."""
        outcome = waiter.leave()
        with self._lock:
            self._lines.leave(waiter)
            if isinstance(outcome, Lease) and outcome.state == _DIALING and outcome.socket is None and not keeps:
                self._release(outcome, now, None)
            if waiter.joined is not None and self._hook.emits:
                self._out.append(WaitEnded(now - waiter.joined, served))
        if self._out:
            self._act()
        if waiter.joined is not None and not self._full:
            self.nudge()  # nobody is left to serve

    def opened(self, lease: Lease, flow: Flow, now: float) -> None:
        """Note that the connection of *lease* stands."""
        with self._lock:
            if lease.state != _DIALING:
                raise LeaseError(f"{lease!r} cannot be opened")
            if former := self._closings.of(flow):
                self._free(former, now)  # the kernel gave us this port: nothing holds it any more
            lease.flow = flow
            lease.state = _OPEN
            space, pace = lease.want.accounts[0], lease.want.pace
            if pace:
                pace.leases.discard(lease)
            if space.backoff or space.blocked_until:
                self._lines.admit(space, 2, now)
            if self._full:
                self._lines.grant((space, pace) if pace else (space,), now)
            if self._hook.emits:
                self._out.append(ConnectionOpened(flow, now - lease.reserved))
        if self._out:
            self._act()

    def release(self, lease: Lease, now: float, *, time_wait: bool = False, ask: bool = False) -> None:
        """Give back the port of *lease*; raise LeaseError if that was done before.

        With *time_wait* it counts until the kernel lets go of it; with *ask* the kernel is asked at
        once. Call it after the socket was closed.
        """
        closing = None
        if time_wait and lease.flow is not None:
            closing = self._closings.make(lease.flow, lease.want, now)
            if ask and self._closings.ask(closing, now):
                closing = None
        with self._lock:
            self._release(lease, now, closing)
        if self._out:
            self._act()
        if closing and self._full:
            self.nudge()

    def refused(self, lease: Lease, now: float) -> None:
        """Give back *lease*, because connect() found no free port: others hold them all.

        The space is left alone for a moment, then one caller at a time tries again.
        """
        with self._lock:
            space = lease.accounts[0]
            self._lines.refuse(space, now)
            if self._hook.emits:
                self._out.append(KernelRefused(lease.space))
            self._release(lease, now, None, unblock=False)
        if self._out:
            self._act()
        if self._full:
            self.nudge()

    def orphan(
        self, lease: Lease, *, time_wait: bool = True, watch: bool = False, closed: ConnectionClosed | None = None
    ) -> None:
        """Give back *lease* from a finalizer, where no lock may be taken: the next call sees to it, and emits *closed*.

        With *watch* its socket may still be open, under another owner: the kernel is asked about it.
        """
        if closed and self._hook.emits:
            self._out.append(closed)
        self._orphans.append((lease, time_wait, watch))
        if self._full:
            self.nudge()

    def exhausted(self, account: Account, now: float, waited: float = 0.0) -> BudgetExhausted:
        """Make the error that says what *account* holds, and emit that somebody was refused."""
        with self._lock:
            usage = account.usage()
            due = self._closings.next_of(account, now)
        self.emit(BudgetRefused(usage))
        return BudgetExhausted(usage, next_due=due, waited=waited)

    def first_in_line(self, lease: Lease) -> Waiter | None:
        """Return who has waited longest for a port that closing this connection would free, and is not on its way."""
        found, promises = None, self._promises
        with self._lock:
            for account in lease.want.accounts:
                if account.waiters and (first := account.first()) and (found is None or first < found):
                    found = first if not promises or promises.short(account) else found
        return found

    def give_way(self, lease: Lease, now: float) -> bool:
        """Note that the connection of *lease* is closed for who is in line; False if enough are already."""
        with self._lock:
            return self._promises.give(lease, now)

    def seek(self, waiter: Waiter, wants: Sequence[Want], now: float) -> Promise | None:
        """Return what found() must be told of a connection that gives way to *waiter*, or None if none is to."""
        with self._lock:
            return self._promises.seek(waiter, self._current(wants), now)

    def found(self, promise: Promise, lease: Lease | None) -> None:
        """Note whose port it is that seek() let be looked for; None if there is none."""
        with self._lock:
            self._out.extend(self._promises.found(promise, lease))
        if self._out:
            self._act()

    def rivals(self, wants: Sequence[Want], now: float) -> list[tuple[Account, list[Holder]]]:
        """Return, for each account that keeps *wants* from being served, who may give up an idle connection."""
        with self._lock:
            return [(account, list(account.holders)) for account in full_accounts(self._current(wants), now)]

    def refuser(self, wants: Sequence[Want], now: float) -> Account | None:
        """Return an account that keeps *wants* from being served."""
        with self._lock:
            return next(iter(full_accounts(self._current(wants), now)), None)

    # What the timer calls.

    def due(self) -> float | None:
        """Return when advance() should next be called: None while nobody waits."""
        with self._lock:
            if not self._full:
                return None
            times = [account.next_question() for account in self._full]
            times += [account.blocked_until for account in self._lines.blocked]
            return min(*times, self._closings.next_due(), self._promises.next_due())

    def advance(self, now: float, *, thorough: bool = False) -> None:
        """Free what is due, ask the kernel where somebody waits (or, *thorough*, everywhere), serve the line."""
        with self._lock:
            questions = self._catch_up(now, inf if thorough else QUESTIONS)
            self._lines.probe(now)
            for account, number in self._promises.late(now).items():
                self._out.extend(account.foremost(number))  # who look for another connection to close
            leases = list(self._leases) if now >= self._reaped + GRACE else []
            questions += self._closings.questions(self._full, now)
            if thorough:
                questions += self._closings.questions(list(self._accounts.values()), now)
                questions += self._closings.watched
        if self._out:
            self._act()
        self._ask(questions, now)
        if leases:
            self._reap(leases, now)

    @property
    def heard(self) -> bool:
        """Say whether anybody subscribed."""
        return bool(self._hook.emits)

    def emit(self, event: Event) -> None:
        """Tell the subscribers; no lock may be held."""
        self._hook.emit(event)

    def forget(self) -> list[Lease]:
        """Start clean in a forked child; return the leases whose sockets the parent goes on using."""
        leases = list(self._leases)
        for lease in leases:
            lease.state = Lease.LEFT_BEHIND
        self._reset()
        return leases

    def __repr__(self) -> str:
        with self._lock:
            usages = [account.usage() for key, account in self._accounts.items() if key[0] == "range" and account.held]
            waiting = len(self._lines.waiters())
        held = sum(usage.held for usage in usages)
        time_wait = sum(usage.time_wait for usage in usages)
        return f"<Ledger {len(usages)} spaces, {held} held, {time_wait} in TIME_WAIT, {waiting} waiting>"

    # Below: the lock is held, except in _act, _ask and _reap.

    def _holds(self, lease: Lease) -> bool:
        return lease.state < _RELEASED or (lease.flow is not None and self._closings.of(lease.flow) is not None)

    def _serve(self, waiter: Waiter, wants: Sequence[Want], now: float) -> Account | None:
        """Deliver a lease and return None, or return an account that is full."""
        refuser: Account | None = None
        for want in wants:
            if full := self._refuser(want, now):
                refuser = refuser or full
                continue
            lease = Lease(self, want, waiter.holder, now)
            if waiter.deliver(lease):
                self._book(lease)
                if waiter.lines:
                    self._lines.leave(waiter)
            return None
        return refuser

    def _refuser(self, want: Want, now: float) -> Account | None:
        for account in want.accounts:
            if account.full(now):
                return account
        pace = want.pace
        return pace if pace and pace.held >= pace.limit else None

    def _book(self, lease: Lease) -> None:
        self._leases.add(lease)
        self._enter(lease, crossing=True)
        if self._hook.emits:
            self._out.append(PortReserved(lease.space))

    def _enter(self, lease: Lease, crossing: bool) -> None:
        """Charge *lease* to its accounts, and see to their levels if it may be *crossing* one."""
        holder = lease.holder
        for account in lease.want.accounts:
            account.leases.add(lease)
            if holder is not None:
                account.holders[holder] = account.holders.get(holder, 0) + 1
            if crossing and len(account.leases) + len(account.kept) >= account.rises:
                self._crossed(account)
        if (pace := lease.want.pace) and lease.state == _DIALING:
            pace.leases.add(lease)

    def _release(self, lease: Lease, now: float, closing: Closing | None, *, unblock: bool = True) -> None:
        if lease.state >= _RELEASED:
            if lease.state == Lease.LEFT_BEHIND:
                return
            raise LeaseError(f"{lease!r} was released before: a lease has one owner, who releases it once")
        if closing:
            closing.want = lease.want  # configure() may have come since it was made
            self._closings.add(closing)
        self._unbook(lease)
        lease.state = _RELEASED
        if not closing:
            self._came_free(lease.want, now, unblock)
        elif self._full:
            self._lines.grant(lease.want.passing, now)

    def _unbook(self, lease: Lease) -> None:
        holder = lease.holder
        for account in lease.want.accounts:
            if lease in account.leases:  # else it was broken off by a KeyboardInterrupt before it got there
                account.leases.remove(lease)
                if holder is not None and (left := account.holders.pop(holder, 1) - 1) > 0:
                    account.holders[holder] = left
        if pace := lease.want.pace:
            pace.leases.discard(lease)
        self._leases.discard(lease)

    def _free(self, closing: Closing, now: float) -> None:
        if closing.done:
            return
        self._closings.end(closing)
        if self._hook.emits:
            self._out.append(PortFreed(closing.flow))
        self._came_free(closing.want, now)

    def _came_free(self, want: Want, now: float, unblock: bool = True) -> None:
        """See to levels, blocks and lines after a port came free."""
        accounts = want.accounts
        for account in accounts:
            if len(account.leases) + len(account.kept) <= account.falls:
                self._crossed(account)
        if unblock and accounts[0].blocked_until:
            self._lines.admit(accounts[0], 1, now)
        if want.pace:
            accounts = (*accounts, want.pace)
        if self._full:
            self._lines.grant(accounts, now)

    def _reap(self, leases: list[Lease], now: float) -> None:
        """Give back what its owner never will. Takes the lock itself, for as little as can be."""
        self._reaped = now
        lost = [lease for lease in leases if lease.lost(now)]
        if not lost:
            return
        with self._lock:
            for lease in lost:
                if lease.state < Lease.RELEASED:
                    closing = self._closings.make(lease.flow, lease.want, now) if lease.flow else None
                    self._release(lease, now, closing)
                    lease.state = Lease.LEFT_BEHIND  # should the owner come back after all, it is not told off
        if self._out:
            self._act()

    def _catch_up(self, now: float, most: float = QUESTIONS) -> list[Closing]:
        """See to what came while nobody called; return what the kernel is to be asked about once the lock is free."""
        while self._orphans:
            self._adopt(*self._orphans.popleft(), now)
        unsure: list[Closing] = []
        if self._closings.next_due() <= now:
            for closing in self._closings.over(now, unsure, most):
                self._free(closing, now)
        return unsure

    def _adopt(self, lease: Lease, time_wait: bool, watch: bool, now: float) -> None:
        if lease.state >= Lease.RELEASED:
            return
        closing = self._closings.make(lease.flow, lease.want, now) if time_wait and lease.flow else None
        if closing and watch and self._referee.ask:
            self._unbook(lease)
            lease.state = Lease.RELEASED
            self._closings.watch(closing)
            self._lines.grant(closing.want.passing, now)
        else:
            self._release(lease, now, closing)

    def _ask(self, questions: list[Closing], now: float) -> bool:
        """Ask the kernel about each of *questions*; say whether a port came free. Takes the lock itself."""
        if not questions:
            return False
        questions = list(dict.fromkeys(questions))
        free = [self._closings.ask(closing, now) for closing in questions]
        with self._lock:
            for closing, gone in zip(questions, free, strict=True):
                if gone:
                    self._free(closing, now)
                elif not closing.done:
                    self._closings.note(closing)
        if self._out:
            self._act()
        return any(free)

    def _crossed(self, account: Account) -> None:
        before = account.mark_level()
        if before is not account.level and self._hook.emits and account.scope != "range":
            self._out.append(LevelCrossed(account.name, before, account.level, account.held, account.limit))

    def _resize(self, capacity: int, now: float) -> None:
        with self._lock:
            self._accounts.capacity = capacity
            for account in list(self._accounts.values()):
                account.limit = account.rule.of(capacity)
                self._crossed(account)
            self._lines.grant(list(self._full), now)
        if self._out:
            self._act()

    def _charge_anew(self, now: float) -> None:
        """Charge all that is held, and all who wait, to the accounts of a new budget."""
        waiters = {waiter for account in self._full for waiter in account.line if not waiter.decided}
        for waiter in waiters:
            self._lines.leave(waiter)
        for account in list(self._accounts.values()):
            account.limit = 0
        self._accounts = Accounts(self.budget, self._accounts.capacity)
        self._wants.clear()
        self.ways.clear()
        for lease in self._leases:
            lease.want = self._accounts.same(lease.want)
            self._enter(lease, crossing=False)
        self._closings.charge_anew(self._accounts.same)
        for account in list(self._accounts.values()):
            account.mark_level()
        for waiter in sorted(waiters):
            waiter.wants = [self._accounts.same(want) for want in waiter.wants]
            if self._serve(waiter, waiter.wants, now):
                self._lines.join(waiter, full_accounts(waiter.wants, now))
            self._out.append(waiter)
        self.nudge()

    def _current(self, wants: Sequence[Want]) -> Sequence[Want]:
        """Return *wants* with the accounts of now: the first of them may have been named before configure()."""
        return wants if wants[0].accounts[0].limit else [self._accounts.same(want) for want in wants]

    def _act(self) -> None:
        while self._out:
            try:
                item = self._out.popleft()  # one by one: after a KeyboardInterrupt the next call does the rest
            except IndexError:  # another thread did it
                return
            if isinstance(item, Waiter):
                item.wake()
            else:
                self.emit(item)
