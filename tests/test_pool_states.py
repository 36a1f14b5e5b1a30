"""Pools that share a ledger, against a model, over any order of calls: hypothesis looks for one that breaks a promise.

The requests here do what dialing.py and the faces do, step by step and without sockets: take, dial, wait, adopt, give
back, fail, give up. FEWPORTS_EXAMPLES=5000 looks further, at random.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter

from bookkeeping import A, B, Books, Caller, S, Sock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_pool import Connection, Endings

from fewports.budget import Budget
from fewports.events import CloseReason
from fewports.ledger.account import Lease, Want
from fewports.pool import RETIREMENT, SURPLUS_LIMIT, Limits, Pool, PoolClosed
from fewports.sharing import PLACE

IDLE, AGE = 20.0, 100.0


class Shelf(Pool[Connection]):
    """A pool of one client and destination."""

    def __init__(self, books: Books, name: str, limits: Limits, want: Want) -> None:
        super().__init__(limits, chance=lambda: 0.0)
        self.name, self.want = name, want


class Request(Caller):
    """One that needs a connection of *pool*: where it is, and what it holds."""

    def __init__(self, pool: Shelf) -> None:
        super().__init__(pool)
        self.pool = pool
        self.state = "new"  # for a place | for a port | dialing | using | over
        self.seen = 0  # how often it had been woken when it last looked
        self.connection: Connection | None = None
        self.port: Lease | None = None
        self.sock = Sock()

    @property
    def waits(self) -> bool:
        return self.state.startswith("for")

    @property
    def places(self) -> int:
        """How many places of the pool this one accounts for."""
        got = self.outcome is PLACE or isinstance(self.outcome, Connection)
        if self.waits:
            return (self.state == "for a port") + got
        return self.state in ("dialing", "using")


class PoolMachine(RuleBasedStateMachine):
    """Requests of three clients, time, and the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.connections: list[Connection] = []

    @initialize(
        budget=st.sampled_from([1, 2, 3, "30%", Budget(5, rules={"203.0.113.0/24": 3}), Budget(3, dialing=1)]),
        own=st.sampled_from([None, Budget(1), Budget(2)]),
        bound=st.sampled_from([None, 1, 2]),
    )
    def begin(self, budget: int | str | Budget, own: Budget | None, bound: int | None) -> None:
        self.books = Books(budget, capacity=10)
        self.ledger, self.clock = self.books.ledger, self.books.clock
        limits = Limits(kept=2, idle=IDLE, age=AGE)
        self.pools = [
            Shelf(self.books, "one", limits, self.books.want(S, A)),
            Shelf(self.books, "two", limits._replace(bound=bound), self.books.want(S, A, budget=own, client="two")),
            Shelf(self.books, "three", limits, self.books.want(S, B, budget=own, client="two")),
        ]

    # What a request does.

    @rule(which=st.integers(0, 2), number=st.integers(1, 3))
    def ask(self, which: int, number: int) -> None:
        for _ in range(number):
            request = Request(self.pools[which])
            try:
                found, endings = request.pool.take(self.clock.now)
            except PoolClosed:
                return
            self.end(endings)
            self.requests.append(request)
            if found is PLACE:
                self.dial(request)
            elif isinstance(found, Connection):
                self.use(request, found)
            else:
                request.state = "for a place"
                self.end(request.pool.join(request, self.clock.now, place=True))

    def dial(self, request: Request) -> None:
        request.state = "for a port"
        wants = [request.pool.want]
        while (refused := self.ledger.reserve(request, wants, self.clock.now)) and self.reclaim(request):
            pass
        if not refused:
            self.collect(request)
            return
        try:
            self.end(request.pool.join(request, self.clock.now, place=False))
        except PoolClosed:
            self.stop(request)
            return
        if not request.decided:
            self.ledger.join(request, wants, self.clock.now)
            self.reclaim(request)

    def reclaim(self, request: Request) -> bool:
        """As Dialing._reclaim() does it."""
        for account, holders in self.ledger.rivals([request.pool.want], self.clock.now):
            for holder in holders:
                assert isinstance(holder, Shelf)
                if victim := holder.surrender(account, idle=holder is not request.pool):
                    victim.give_way()
                    return True
        return False

    @precondition(lambda self: self.decided())
    @rule(who=st.integers(0, 100))
    def look(self, who: int) -> None:
        """A caller sees what it got."""
        waiting = self.decided()
        self.collect(waiting[who % len(waiting)])

    def collect(self, request: Request) -> None:
        outcome = request.outcome
        if request.state == "for a place":
            request.pool.leave(request)
            if outcome is None:
                request.state = "over"
            elif isinstance(outcome, Connection):
                self.use(request, outcome)
            else:
                again = Request(request.pool)
                self.requests[self.requests.index(request)] = again
                self.dial(again)
            return
        if isinstance(outcome, Connection):
            request.pool.adopted()
            request.pool.leave(request)
            self.use(request, outcome)
            self.ledger.leave(request, self.clock.now, served=True)
        elif isinstance(outcome, Lease):
            request.pool.leave(request)
            request.state, request.port = "dialing", outcome
            outcome.socket = weakref.ref(request.sock)
        else:
            self.stop(request)

    def stop(self, request: Request) -> None:
        """As Dialing._leave() does it, and the face after it."""
        outcome = request.leave()
        request.pool.leave(request)
        if isinstance(outcome, Connection):
            self.end(request.pool.give_back(outcome, self.clock.now))
        elif outcome is PLACE:
            request.pool.drop_place()
        had_place = request.state != "for a place"
        request.state = "over"
        self.ledger.leave(request, self.clock.now, served=False)
        if had_place:
            request.pool.drop_place()

    def use(self, request: Request, connection: Connection) -> None:
        request.state, request.connection = "using", connection

        assert connection.ended is None
        assert sum(other.connection is connection for other in self.requests if other.state == "using") <= 1

    @precondition(lambda self: self.waiting())
    @rule(who=st.integers(0, 100))
    def give_up(self, who: int) -> None:
        """A time-out or a KeyboardInterrupt ends a wait, perhaps in the moment of being served."""
        waiting = self.waiting()
        self.stop(waiting[who % len(waiting)])

    @precondition(lambda self: self.dialing())
    @rule(who=st.integers(0, 100), how=st.sampled_from(["opens", "opens", "fails", "refused"]))
    def dial_ends(self, who: int, how: str) -> None:
        dialing = self.dialing()
        request = dialing[who % len(dialing)]
        lease = request.port
        assert lease
        if how == "opens":
            self.books.open(lease)
            lease.socket = None
            connection = Connection(self.books, lease, request.pool.expiry(self.clock.now))
            self.connections.append(connection)
            self.use(request, connection)
        elif how == "fails":
            self.books.release(lease)
            request.state = "over"
            request.pool.drop_place()
        else:
            self.ledger.refused(lease, self.clock.now)
            again = Request(request.pool)
            again.ticket = request.ticket
            self.requests[self.requests.index(request)] = again
            self.dial(again)

    @precondition(lambda self: self.using())
    @rule(who=st.integers(0, 100))
    def give_back(self, who: int) -> None:
        using = self.using()
        request = using[who % len(using)]
        assert request.connection
        request.state = "over"
        self.end(request.pool.give_back(request.connection, self.clock.now))

    @precondition(lambda self: self.using())
    @rule()
    def give_all_back(self) -> None:
        for request in self.using():
            assert request.connection
            request.state = "over"
            self.end(request.pool.give_back(request.connection, self.clock.now))

    @precondition(lambda self: self.using())
    @rule(who=st.integers(0, 100))
    def break_off(self, who: int) -> None:
        """A connection ends in use; its place goes back without it."""
        using = self.using()
        request = using[who % len(using)]
        assert request.connection
        request.state = "over"
        request.connection.end(CloseReason.DONE)
        request.pool.drop_place()

    # The timer and the operator.

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, SURPLUS_LIMIT, IDLE, RETIREMENT, AGE]))
    def pass_time(self, seconds: float) -> None:
        for request in self.decided() if seconds > 1 else ():
            self.collect(request)  # nobody looks at a port for long before using it: that would be taken for lost
        self.ledger.advance(self.clock.advance(seconds))
        for pool in self.pools:
            due = pool.due()
            self.end(pool.expire(self.clock.now))
            after = pool.due()

            assert after is None or after > self.clock.now
            assert due is None or due > self.clock.now or after != due

    @rule(who=st.integers(0, 100))
    def second_look(self, who: int) -> None:
        """The timer takes a quiet connection out, to see whether the peer has closed it, and it has not."""
        quiet = [(pool, connection) for pool in self.pools for connection in pool.quiet()]
        if quiet:
            pool, connection = quiet[who % len(quiet)]
            assert pool.remove(connection)
            self.end(pool.restore(connection, self.clock.now))

    @precondition(lambda self: not self.pools[1].closed)
    @rule(one_of=st.integers(0, 9))
    def close(self, one_of: int) -> None:
        if one_of == 0:
            self.end(self.pools[1].close())

    # The model.

    def waiting(self) -> list[Request]:
        return [request for request in self.requests if request.waits]

    def decided(self) -> list[Request]:
        return [request for request in self.waiting() if request.decided]

    def dialing(self) -> list[Request]:
        return [request for request in self.requests if request.state == "dialing"]

    def using(self) -> list[Request]:
        return [request for request in self.requests if request.state == "using"]

    def end(self, endings: Endings) -> None:
        for connection, reason in endings:
            connection.end(reason)

    def hear(self) -> None:
        """Whoever was woken without an outcome looks whether an idle connection stands in its way now."""
        while heard := [each for each in self.waiting() if each.seen < each.woken and not each.decided]:
            for request in heard:
                request.seen = request.woken
                if request.state == "for a port" and not request.decided:
                    self.reclaim(request)
        self.requests = [request for request in self.requests if request.state != "over"]

    # The promises.

    @invariant()
    def every_connection_is_in_one_place(self) -> None:
        self.hear()
        places: Counter[Connection] = Counter()
        for pool in self.pools:
            places.update(pool.quiet())
        for request in self.requests:
            if request.state == "using" and request.connection:
                places[request.connection] += 1
            elif request.waits and isinstance(request.outcome, Connection):
                places[request.outcome] += 1
        living = [connection for connection in self.connections if connection.ended is None]

        assert places == Counter(living)
        for pool in self.pools:
            assert all(connection.lease and connection.lease.idle for connection in pool.quiet())
        assert sum(connection.lease.idle for connection in living if connection.lease) == sum(
            len(pool.quiet()) for pool in self.pools
        )
        self.connections = living

    @invariant()
    def places_are_counted(self) -> None:
        for pool in self.pools:
            mine = [request for request in self.requests if request.pool is pool]

            assert pool.used == sum(request.places for request in mine)
            if pool.limits.bound is not None:
                to_adopt = sum(each.state == "for a port" and isinstance(each.outcome, Connection) for each in mine)
                assert pool.used - to_adopt <= pool.limits.bound

    @invariant()
    def ports_are_counted(self) -> None:
        granted = sum(isinstance(request.outcome, Lease) for request in self.waiting())
        held = len(self.connections) + len(self.dialing()) + granted

        assert len(self.ledger._leases) == held

    @invariant()
    def nobody_waits_beside_an_idle_connection(self) -> None:
        for pool in self.pools:
            waiting = [each for each in self.waiting() if each.pool is pool and not each.decided]

            assert set(waiting) == {waiter for waiter in pool._line if not waiter.decided}
            assert not waiting or not len(pool)
            if any(each.state == "for a place" for each in waiting):
                assert pool.limits.bound is not None
                assert pool.used >= pool.limits.bound

    @invariant()
    def nobody_waits_for_a_port_that_idles(self) -> None:
        for request in self.waiting():
            if request.decided or request.state != "for a port":
                continue
            assert request.lines
            for account in request.lines:
                for pool in self.pools:
                    idle = [] if pool is request.pool else list(pool._idle)
                    quiet = idle + [connection for _, connection in pool._retired]
                    assert not any(each.lease and account in each.lease.accounts for each in quiet)

    @invariant()
    def a_closed_pool_is_empty(self) -> None:
        for pool in self.pools:
            if pool.closed:
                assert not pool.quiet()
                assert not pool._line

    def teardown(self) -> None:
        """When all is given back, and time has passed, nothing is held."""
        if not hasattr(self, "books"):
            return
        for request in self.waiting():
            self.stop(request)
        for request in self.dialing():
            assert request.port
            self.books.release(request.port)
            request.pool.drop_place()
        for request in self.using():
            assert request.connection
            self.end(request.pool.give_back(request.connection, self.clock.now))
        for _ in range(3):
            self.pass_time(AGE)

        assert self.ledger.usage(self.clock.now) == []
        assert not self.ledger._full
        assert all((pool.used, len(pool), len(pool._line)) == (0, 0, 0) for pool in self.pools)


examples = os.environ.get("FEWPORTS_EXAMPLES")
TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=int(examples or 100),
    stateful_step_count=50,
    deadline=None,
    derandomize=examples is None,
    suppress_health_check=list(HealthCheck),
)
