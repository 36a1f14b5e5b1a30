"""The ledger against a model, over any order of calls: hypothesis looks for one that breaks a promise.

The model knows who holds a lease, which flows are closed and not yet seen to be freed, and who waits; it computes by
itself what each account should hold. The timer is simulated: it sleeps for as long as due() said when it last looked,
unless it is nudged, so that a wake-up that nobody gives is found. FEWPORTS_EXAMPLES=5000 looks further, at random.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from typing import NamedTuple
from unittest import mock

from bookkeeping import A, B, Books, Caller, S, Sock, T
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fewports.address import Destination, Flow, PortSpace
from fewports.budget import Budget
from fewports.events import PortFreed
from fewports.kernel.diag import State
from fewports.ledger import local
from fewports.ledger.account import Account, Lease, Want
from fewports.ledger.closings import TIME_WAIT
from fewports.ledger.lines import LAST_PAUSE

CAPACITY = 6
WATCHFUL = 1.2  # seconds within which whoever waits gets a port that the kernel has let go of: the longest pause is 1 s

BUDGETS = [
    Budget(3),
    Budget("50%"),
    Budget(4, dialing=2),
    Budget(9, rules={"203.0.113.0/24": 3, "one.example": 2}),
    Budget(5, rules={"one.example": "34%"}, dialing=1),
    Budget(1),
]
CLIENTS = {"": None, "x": Budget(2), "y": Budget(3, rules={"one.example": 1}, dialing=1)}
Key = tuple[str, str, str]


class Spec(NamedTuple):
    """A port that would do, as the model names it."""

    source: str
    to: Destination
    host: str
    client: str


class Closed(NamedTuple):
    """A closed flow that is not yet seen to be freed."""

    spec: Spec
    at: float
    watched: bool


class Fate(NamedTuple):
    """What the kernel does with a closed flow: hold it for so many seconds, and some more than it says."""

    seconds: float | None
    state: State
    late: float = 0.0


# Few that differ in much, so that they meet in some account, and the line of each is long.
SPECS = [
    Spec(S, A, "one.example", ""),
    Spec(S, A, "one.example", ""),
    Spec(S, A, "one.example", "x"),
    Spec(T, A, "one.example", ""),
    Spec(S, B, "one.example", ""),
    Spec(S, A, "two.example", "y"),
]
specs = st.sampled_from(SPECS)
choices = st.lists(specs, min_size=1, max_size=2, unique=True)
fates = st.sampled_from(
    [
        None,
        Fate(60.0, State.TIME_WAIT),
        Fate(60.0, State.TIME_WAIT, 0.4),
        Fate(7.0, State.TIME_WAIT),
        Fate(60.0, State.FIN_WAIT2),
        Fate(None, State.FIN_WAIT1),
    ]
)
whom = st.integers(0, 1000)
times = st.sampled_from([0.001, 0.02, 0.3, 1.1, 5.0, 30.0, 61.0])


def charges(spec: Spec, budget: Budget, capacity: int) -> dict[Key, int]:
    """Say what a port is charged to, and the limit of each: budget.py and the ledger, written once more."""
    found: dict[Key, int] = {}
    plain = budget.uniform and budget.limit.share is not None
    if not plain:
        found["range", f"{spec.source} -> {spec.to}", ""] = capacity
    own = CLIENTS[spec.client]
    for scope, rules, owner in (("ledger", budget, ""), ("client", own, spec.client)):
        if rules is None:
            continue
        named = spec.host in rules._hosts
        name = spec.host if named else "203.0.113.0/24" if rules._networks else str(spec.to)
        limit = rules._hosts[spec.host].limit if named else next(iter(rules._networks.values()), rules).limit
        if limit.share is not None:
            name = f"{spec.source} -> {name}"
        found[scope, name, owner] = limit.of(capacity)
    return found


def pace(spec: Spec, budget: Budget) -> tuple[Key, int] | None:
    own = CLIENTS[spec.client]
    for rules, owner in ((own, spec.client), (budget, "")):
        if rules is not None and rules.dialing:
            return ("pace", f"dialing to {spec.to}", owner), rules.dialing
    return None


class LedgerMachine(RuleBasedStateMachine):
    """Callers, connections, the kernel, the operator and the timer, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books(BUDGETS[0], capacity=CAPACITY)
        self.ledger, self.clock, self.kernel = self.books.ledger, self.books.clock, self.books.kernel
        self.patch = mock.patch.object(local, "monotonic", self.clock)
        self.patch.start()
        self.ledger.nudge = self.kick
        self.watched = False
        self.alarm = 0.0  # when the timer wakes up
        self.leases: dict[Lease, Spec] = {}
        self.socks: dict[Lease, Sock] = {}
        self.orphans: list[tuple[Lease, bool, bool]] = []
        self.closed: dict[Flow, Closed] = {}
        self.ends: dict[Flow, float | None] = {}  # when the kernel says that it lets go
        self.gone: dict[Flow, float] = {}  # since when it has
        self.lines: dict[Caller, list[Spec]] = {}  # who stands in line, or has left it without saying so
        self.served: list[Caller] = []
        self.last_held: dict[Key, int] = {}
        self.seen = 0

    @initialize(budget=st.sampled_from(BUDGETS), hold=st.sampled_from([60.0, 1.0]))
    def begin(self, budget: Budget, hold: float) -> None:
        self.ledger.configure(budget)
        self.kernel.hold = hold

    # The parts that callers play.

    def wants(self, chosen: list[Spec]) -> list[Want]:
        return [
            self.ledger.want(PortSpace(s.source, s.to), self.clock.now, s.host, CLIENTS[s.client], s.client)
            for s in chosen
        ]

    @rule(chosen=choices, waits=st.booleans())
    def reserve(self, chosen: list[Spec], waits: bool) -> None:
        caller = Caller()
        wants = self.wants(chosen)
        self.settle()
        before = self.undecided()
        refuser = self.ledger.reserve(caller, wants, self.clock.now)
        if caller.lease:
            self.own(caller.lease, self.spec_of(caller.lease, chosen))
            for other in before:
                # Who has waited for the same is served first.
                assert len(chosen) > 1 or self.lines[other] != chosen or other.decided
        else:
            assert refuser is not None
            assert caller.outcome is None
            if waits:
                self.join(chosen, caller)

    @rule(chosen=choices)
    def join_at_once(self, chosen: list[Spec]) -> None:
        self.join(chosen, Caller())

    @rule(spec=specs, opens=st.booleans(), behind=st.integers(0, 3))
    def crowd(self, spec: Spec, opens: bool, behind: int) -> None:
        """Callers take all that there is, and some stand in line for more."""
        while True:
            caller = Caller()
            if self.ledger.reserve(caller, self.wants([spec]), self.clock.now):
                break
            assert caller.lease
            self.settle()
            self.own(caller.lease, spec)
            if opens:
                self.books.open(caller.lease)
        for _ in range(behind):
            self.join([spec], Caller())

    def join(self, chosen: list[Spec], caller: Caller) -> None:
        self.lines[caller] = chosen
        self.ledger.join(caller, self.wants(chosen), self.clock.now)
        self.watched = True
        self.kick()

    @precondition(lambda self: self.lines)
    @rule(who=whom)
    def get_a_connection(self, who: int) -> None:
        """A pool hands an idle connection to somebody in line."""
        caller = self.pick(list(self.lines), who)
        had = caller.outcome
        delivered = caller.deliver(self)

        assert delivered is (had is None or had is self)

    @precondition(lambda self: self.lines)
    @rule(who=whom, uses=st.booleans())
    def leave(self, who: int, uses: bool) -> None:
        """A caller takes what it got, or gives up."""
        self.leave_line(self.pick(list(self.lines), who), uses)

    def leave_line(self, caller: Caller, uses: bool) -> None:
        lease = caller.lease
        if lease and uses:
            self.give_socket(lease)
        elif lease:
            self.leases.pop(lease, None)  # it goes back
        self.served = [other for other in self.served if other is not caller]
        self.lines.pop(caller)
        self.ledger.leave(caller, self.clock.now, served=uses)

    @precondition(lambda self: self.dialling())
    @rule(who=whom, again=st.booleans())
    def open(self, who: int, again: bool) -> None:
        """A connection stands, on a new port or on one that the kernel has let go of."""
        self.opens(self.pick(self.dialling(), who), who if again else None)

    def opens(self, lease: Lease, again: int | None) -> None:
        old = [flow for flow in self.closed if flow.space == lease.space and not self.kernel.holds(flow)]
        flow = self.books.open(lease, self.pick(old, again).port if again is not None and old else None)
        self.closed.pop(flow, None)
        self.forget(flow)

    @precondition(lambda self: self.in_use())
    @rule(who=whom, time_wait=st.booleans(), ask=st.booleans(), fate=fates)
    def release(self, who: int, time_wait: bool, ask: bool, fate: Fate | None) -> None:
        self.close(self.pick(self.in_use(), who), time_wait, ask, fate)

    @precondition(lambda self: self.in_use())
    @rule(some=st.lists(fates, min_size=1, max_size=3), ask=st.booleans(), seconds=times)
    def close_all(self, some: list[Fate | None], ask: bool, seconds: float) -> None:
        """A burst is over, and time passes."""
        for number, lease in enumerate(self.in_use()):
            if lease.state == Lease.DIALING:
                self.opens(lease, None)
            self.close(lease, True, ask, some[number % len(some)])
            self.settle()
        self.pass_time(seconds)

    def close(self, lease: Lease, time_wait: bool, ask: bool, fate: Fate | None) -> None:
        spec = self.leases.pop(lease)
        del self.socks[lease]
        flow = lease.flow
        if flow and time_wait:
            self.decide(flow, fate)
            row = self.kernel._row(flow)
            early = TIME_WAIT - self.kernel.hold
            over = row is None or (row.state == State.TIME_WAIT and early and (row.remaining or 0) <= early)
            if not (ask and over):
                self.closed[flow] = Closed(spec, self.clock.now, False)
        self.ledger.release(lease, self.clock.now, time_wait=time_wait, ask=ask)

    @precondition(lambda self: self.in_use())
    @rule(who=whom, time_wait=st.booleans(), watch=st.booleans(), fate=fates)
    def orphan(self, who: int, time_wait: bool, watch: bool, fate: Fate | None) -> None:
        """A connection is left to the garbage collector, or to somebody whom the ledger does not know."""
        lease = self.pick(self.in_use(), who)
        del self.socks[lease]
        if lease.flow:
            self.decide(lease.flow, Fate(None, State.ESTABLISHED) if watch else fate)
        self.orphans.append((lease, time_wait, watch))
        self.ledger.orphan(lease, time_wait=time_wait, watch=watch)

    @precondition(lambda self: self.dialling())
    @rule(who=whom)
    def be_refused(self, who: int) -> None:
        """connect() finds no port: other programs hold them."""
        lease = self.pick(self.dialling(), who)
        del self.leases[lease], self.socks[lease]
        self.ledger.refused(lease, self.clock.now)

    # The kernel, the operator, and time.

    @precondition(lambda self: self.closed)
    @rule(who=whom, fate=fates)
    def change_its_mind(self, who: int, fate: Fate | None) -> None:
        """The kernel lets go of a flow, or a peer acknowledges our FIN."""
        flow = self.pick(list(self.closed), who)
        row = self.kernel._row(flow)
        if row and row.state != State.TIME_WAIT:
            self.decide(flow, fate)
        elif row:
            self.decide(flow, None)

    @rule(budget=st.sampled_from(BUDGETS))
    def configure(self, budget: Budget) -> None:
        self.settle()
        self.ledger.configure(budget)
        self.last_held = dict(self.expected()[0])

    @rule(capacity=st.sampled_from([4, CAPACITY, 8]))
    def resize(self, capacity: int) -> None:
        self.settle()
        self.kernel.capacity = capacity
        self.wants([Spec(S, A, "", "")])
        self.last_held = dict(self.expected()[0])

    @rule()
    def look(self) -> None:
        """Somebody asks for the usage: it is what the model says."""
        usages = {(u.scope, u.account, u.held, u.dialing) for u in self.ledger.usage(self.clock.now) if u.held}
        self.settle()
        held, dialing, _ = self.expected()

        assert usages == {(key[0], key[1], number, dialing[key]) for key, number in held.items() if number}

    @rule(seconds=times)
    def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        rounds = 0
        self.use_what_was_served(seconds)
        while self.watched and self.alarm <= end:
            self.clock.now = max(self.clock.now, self.alarm)
            self.run_timer()
            self.use_what_was_served(seconds)
            rounds += 1

            assert rounds < 500, "the timer runs in circles"
        self.clock.now = end
        self.settle()
        self.nobody_waits_in_vain()

    def use_what_was_served(self, seconds: float) -> None:
        """Nobody looks at a port for long before using it: that would be taken for lost."""
        self.settle()
        for caller in list(self.served) if seconds > 5 else ():
            self.leave_line(caller, True)

    # The timer, as sync/timer.py runs it.

    def kick(self) -> None:
        self.alarm = self.clock.now

    def run_timer(self) -> None:
        self.ledger.advance(self.clock.now)
        due = self.ledger.due()
        if due is None:
            self.watched = False
        else:
            self.alarm = max(self.clock.now + 0.001, min(due, self.clock.now + 60))

    # The model.

    def pick(self, of: list, who: int):  # type: ignore[no-untyped-def, type-arg]
        return of[who % len(of)]

    def undecided(self) -> list[Caller]:
        return [caller for caller in self.lines if not caller.decided]

    def in_use(self) -> list[Lease]:
        return [lease for lease in self.socks if lease in self.leases]

    def dialling(self) -> list[Lease]:
        return [lease for lease in self.in_use() if lease.state == Lease.DIALING]

    def spec_of(self, lease: Lease, chosen: list[Spec]) -> Spec:
        want = lease.want
        return Spec(want.space.source, want.space.destination, want.host, str(want.client))

    def own(self, lease: Lease, spec: Spec) -> None:
        self.leases[lease] = spec
        self.give_socket(lease)

    def give_socket(self, lease: Lease) -> None:
        self.socks[lease] = sock = Sock()
        lease.socket = weakref.ref(sock)

    def decide(self, flow: Flow, fate: Fate | None) -> None:
        self.forget(flow)
        if fate is None:
            self.kernel.let_go(flow)
            self.gone[flow] = self.clock.now
            return
        self.kernel.keep(flow, *fate[:2], late=fate.late)
        self.ends[flow] = None if fate.seconds is None else self.clock.now + fate.seconds
        if fate.seconds is not None:
            self.gone[flow] = self.clock.now + fate.seconds + fate.late

    def forget(self, flow: Flow) -> None:
        self.ends.pop(flow, None)
        self.gone.pop(flow, None)

    def settle(self) -> None:
        """Take over what the ledger did since: orphans given back, ports freed, callers served."""
        for orphan in list(self.orphans):
            lease, time_wait, watch = orphan
            if lease.state >= Lease.RELEASED:
                self.orphans.remove(orphan)
                spec = self.leases.pop(lease)
                if lease.flow and time_wait:
                    self.closed[lease.flow] = Closed(spec, self.clock.now, watch)
        for event in self.books.events[self.seen :]:
            if isinstance(event, PortFreed):
                self.freed(event.flow)
        self.seen = len(self.books.events)
        for caller, chosen in self.lines.items():
            if caller.lease and caller not in self.served:
                self.served.append(caller)
                self.leases[caller.lease] = self.spec_of(caller.lease, chosen)

                assert caller.woken or not caller.lines
                for other in self.undecided():
                    assert len(chosen) > 1 or self.lines[other] != chosen or caller.ticket < other.ticket

    def freed(self, flow: Flow) -> None:
        was = self.closed.pop(flow, None)
        if was is None:
            return  # a new connection had its port, and the model knew
        now, end = self.clock.now, self.ends.get(flow)
        early = TIME_WAIT - self.kernel.hold
        over = end is not None and now >= end - early - 1e-6

        assert not self.kernel.holds(flow) or over or (not was.watched and now >= was.at + self.kernel.hold - 1e-6)

    def expected(self) -> tuple[Counter[Key], Counter[Key], dict[Key, int]]:
        """Compute what each account holds, how much of it is being dialled, and its limit."""
        held: Counter[Key] = Counter()
        dialing: Counter[Key] = Counter()
        limits: dict[Key, int] = {}
        budget = self.ledger.budget
        for lease, spec in self.leases.items():
            found = charges(spec, budget, self.kernel.capacity)
            limits |= found
            held.update(found.keys())
            if lease.state == Lease.DIALING:
                dialing.update(found.keys())
                if bound := pace(spec, budget):
                    limits |= [bound]
                    held[bound[0]] += 1
                    dialing[bound[0]] += 1
        for closed in self.closed.values():
            found = charges(closed.spec, budget, self.kernel.capacity)
            limits |= found
            held.update(found.keys())
        return held, dialing, limits

    def accounts(self) -> dict[Key, Account]:
        found = {}
        for key, account in self.ledger._accounts.items():
            owner = str(key[1] or "") if account.scope in ("client", "pace") else ""
            found[account.scope, account.name, owner] = account
        return found

    def nobody_waits_in_vain(self) -> None:
        """Whoever waits for a port that the kernel has let go of has it soon."""
        now = self.clock.now
        for account in self.ledger._lines.blocked & self.ledger._full:
            assert account.blocked_until >= now - 0.002, "nobody finds out whether the kernel has a port again"
        closings = self.ledger._closings._by_flow
        for caller in self.undecided():
            for account in caller.lines:
                for flow in self.closed:
                    closing = closings.get(flow)
                    if closing is None or account not in closing.accounts or self.kernel.holds(flow):
                        continue
                    since = self.gone[flow]
                    if closing.final:
                        since = max(since, closing.due)

                    assert now - since < WATCHFUL, (flow, closing.final, closing.due, since, now)

    # The promises.

    @invariant()
    def counts_are_exact(self) -> None:
        self.settle()
        held, dialing, limits = self.expected()
        accounts = self.accounts()

        assert {key: account.held for key, account in accounts.items() if account.held} == dict(+held)
        for key, account in accounts.items():
            usage = account.usage()
            assert usage.held == held[key]
            assert usage.dialing == dialing[key]
            if key in limits:
                assert account.limit == limits[key]
            assert account.held <= max(account.limit, self.last_held.get(key, 0))
        self.last_held = dict(held)

    @invariant()
    def lines_are_exact(self) -> None:
        accounts = set(self.accounts().values())
        for account in accounts | self.ledger._full:
            assert account.waiters == {caller for caller in self.lines if account in caller.lines}
            assert (account in self.ledger._full) == bool(account.waiters)
            # The kernel's refusal is never taken for granted for longer than a second.
            assert account.blocked_until <= self.clock.now + LAST_PAUSE
            if account.first():
                # An account has a line only while it is full.
                assert account.full(self.clock.now)

    @invariant()
    def nobody_waits_for_what_there_is(self) -> None:
        now = self.clock.now
        for caller in self.undecided():
            assert caller.lines <= set(self.accounts().values())
            for want in caller.wants:
                all_of_it = {*want.accounts, want.pace} - {None}

                assert any(account.full(now) for account in all_of_it if account)
                assert any(account.full(now) for account in caller.lines & all_of_it)  # it stands where it is told

    def teardown(self) -> None:
        """When all is given back, and time has passed, nothing is held and nobody waits."""
        try:
            self.settle()
            for lease in self.in_use():
                self.ledger.release(lease, self.clock.now)
            for caller in self.lines:
                self.ledger.leave(caller, self.clock.now, served=False)
            for flow in [*self.closed, *(lease.flow for lease, _, _ in self.orphans if lease.flow)]:
                self.kernel.let_go(flow)
            for _ in range(3):
                self.clock.advance(70)
                usages = self.ledger.usage(self.clock.now)

            assert usages == []
            assert not self.ledger._full
            assert not self.ledger._leases
            assert not self.ledger._closings._by_flow
            assert not self.ledger._closings.watched
            assert all(not account.held and not account.waiters for account in self.accounts().values())
        finally:
            self.patch.stop()


examples = os.environ.get("FEWPORTS_EXAMPLES")
TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=int(examples or 100),
    stateful_step_count=50,
    deadline=None,
    derandomize=examples is None,
    suppress_health_check=list(HealthCheck),
)
