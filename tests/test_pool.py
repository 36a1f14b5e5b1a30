"""Which request gets which connection: the pool, with connections that are no sockets."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence
from math import inf

import pytest
from bookkeeping import A, B, Books, Caller, S

from fewports.budget import Budget
from fewports.events import CloseReason, ConnectionRetired
from fewports.ledger.account import Lease, Want
from fewports.pool import (
    AGE_JITTER,
    AGE_LIMIT,
    IDLE_LIMIT,
    PLACE,
    RETIREMENT,
    SURPLUS_LIMIT,
    Limits,
    Pool,
    PoolClosed,
    pools,
)


class Connection:
    """A connection as the pool knows it; *name* tells it from others."""

    numbers = itertools.count(1)
    shared = spent = False
    capacity = 1

    def __init__(self, books: Books | None = None, lease: Lease | None = None, expires: float = inf) -> None:
        self.books = books
        self.lease = lease
        self.expires = expires
        self.idle_since = 0.0
        self.number = next(self.numbers)
        self.ended: CloseReason | None = None

    def end(self, reason: CloseReason) -> None:
        assert self.ended is None
        self.ended = reason
        if self.books and self.lease:
            self.books.release(self.lease)

    def give_way(self) -> None:
        self.end(CloseReason.GAVE_WAY)

    def disown(self) -> None:
        self.ended = CloseReason.DROPPED

    def __repr__(self) -> str:
        return f"<Connection {self.number}>"


Kept = Pool[Connection]
Endings = Sequence[tuple[Connection, CloseReason]]


def use(pool: Kept, now: float = 0.0, connection: Connection | None = None) -> Connection:
    """Take a place for a new connection."""
    found, endings = pool.take(now)

    assert (found, list(endings)) == (PLACE, [])
    return connection or Connection()


def take(pool: Kept, now: float = 0.0) -> Connection:
    found, endings = pool.take(now)

    assert isinstance(found, Connection)
    assert not endings
    return found


def keep(pool: Kept, *connections: Connection, now: float = 0.0) -> None:
    """Use new connections at once, and give them back idle."""
    for connection in connections:
        use(pool, now, connection)
    for connection in connections:
        assert not pool.give_back(connection, now)


def dial(books: Books, pool: Kept, *wants: Want) -> Connection:
    """Take a place and a port, and open a connection."""
    use(pool)
    lease = books.take(*wants, holder=pool)
    books.open(lease)
    return Connection(books, lease)


def wait(books: Books, pool: Kept, *wants: Want) -> Caller:
    """Take a place, find no port, and stand in line for either."""
    caller = Caller(pool)
    assert pool.take(books.clock.now)[0] is PLACE
    assert not pool.join(caller, books.clock.now, place=False)
    books.ledger.join(caller, wants or [books.want()], books.clock.now)
    return caller


# What is kept, and for how long.


def test_an_empty_pool_gives_a_place() -> None:
    """Where nothing is idle there is a place for a new connection."""
    pool = Kept(Limits())
    use(pool)

    assert pool.used == 1
    assert len(pool) == 0


def test_the_connection_used_last_is_taken_first() -> None:
    """Few connections are kept warm, and the others grow old."""
    pool = Kept(Limits())
    first, second = Connection(), Connection()
    keep(pool, first, second)

    assert [take(pool), take(pool)] == [second, first]
    assert pool.used == 2


def test_nothing_is_handed_out_twice() -> None:
    """A connection in use is nowhere in the pool."""
    pool = Kept(Limits())
    connection = Connection()
    keep(pool, connection)
    take(pool)

    assert pool.take(0.0)[0] is PLACE
    assert pool.quiet() == []
    assert not pool.remove(connection)


def test_take_now_takes_what_can_be_used_at_once() -> None:
    """Of no idle connection, one that is too old, and one beyond the bound, take() tells what there is instead."""
    pool = Kept(Limits(bound=2))

    assert (pool.take_now(0.0), pool.used) == (None, 0)
    old, young = Connection(expires=2.0), Connection()
    keep(pool, young, old)
    assert (pool.take_now(3.0), pool.used) == (None, 0)
    assert [pool.take_now(1.0), pool.take_now(1.0), pool.used] == [old, young, 2]
    pool.add_place()
    pool.give_back(young, 1.0)
    assert (pool.take_now(1.0), pool.used) == (None, 2)


def test_an_idle_connection_is_marked_on_its_lease() -> None:
    """Whether a connection is idle stands on its lease, where the usage finds it."""
    books = Books(3)
    pool = Kept(Limits())
    connection = dial(books, pool)
    pool.give_back(connection, 0.0)

    assert books.usages()[str(A)].idle == 1
    take(pool)
    assert books.usages()[str(A)].active == 1


def test_idle_for_too_long() -> None:
    """A connection is kept for 55 s without use; then it is retired, and 30 s later it is to be closed."""
    pool = Kept(Limits())
    connection = Connection()
    keep(pool, connection, now=100.0)

    assert pool.due() == 100.0 + IDLE_LIMIT
    assert pool.expire(100.0 + IDLE_LIMIT - 0.1) == []
    assert len(pool) == 1
    retired = 100.0 + IDLE_LIMIT
    assert pool.expire(retired) == []
    assert len(pool) == 0
    assert pool.due() == retired + RETIREMENT
    assert pool.expire(retired + RETIREMENT - 0.1) == []
    assert pool.expire(retired + RETIREMENT) == [(connection, CloseReason.IDLE)]
    assert pool.due() is None


def test_a_retired_connection_is_not_handed_out() -> None:
    """A connection near its end waits for the peer to close it; requests get another."""
    pool = Kept(Limits())
    connection = Connection()
    keep(pool, connection)
    pool.expire(IDLE_LIMIT)

    assert pool.take(IDLE_LIMIT)[0] is PLACE
    assert pool.quiet() == [connection]


def test_retirement_is_an_event() -> None:
    """Subscribers learn that a connection is no longer handed out."""
    books = Books(3)
    pool = Kept(Limits())
    connection = dial(books, pool)
    pool.give_back(connection, 0.0)
    pool.expire(IDLE_LIMIT)

    assert connection.lease
    assert connection.lease.flow
    assert books.events.of(ConnectionRetired) == [ConnectionRetired(connection.lease.flow)]
    assert books.usages()[str(A)].idle == 1


def test_use_begins_the_idle_time_anew() -> None:
    """A connection that is used now and then stays."""
    pool = Kept(Limits())
    connection = Connection()
    keep(pool, connection)
    for now in (50.0, 100.0, 150.0):
        assert pool.expire(now) == []
        assert take(pool, now) is connection
        pool.give_back(connection, now)

    assert pool.due() == 150.0 + IDLE_LIMIT


def test_surplus_is_kept_for_a_short_time() -> None:
    """Beyond the number to be kept, those that were idle longest are retired after 10 s."""
    pool = Kept(Limits(kept=2))
    connections = [Connection() for _ in range(5)]
    keep(pool, *connections)

    assert pool.due() == SURPLUS_LIMIT
    pool.expire(SURPLUS_LIMIT)
    assert len(pool) == 2
    assert take(pool, SURPLUS_LIMIT) is connections[4]
    assert take(pool, SURPLUS_LIMIT) is connections[3]
    assert pool.expire(SURPLUS_LIMIT + RETIREMENT) == [(each, CloseReason.IDLE) for each in connections[:3]]


def test_surplus_is_never_kept_for_longer_than_the_rest() -> None:
    """An idle limit below 10 s holds for the surplus, too."""
    pool = Kept(Limits(kept=1, idle=3.0))
    keep(pool, Connection(), Connection())

    assert pool.due() == 3.0


def test_a_burst_finds_its_surplus() -> None:
    """The surplus of a burst serves the next one."""
    pool = Kept(Limits(kept=2))
    connections = [Connection() for _ in range(5)]
    keep(pool, *connections)

    assert {take(pool, 9.0) for _ in range(5)} == set(connections)


def test_the_maximum_age_has_jitter() -> None:
    """Ages differ by up to 10 %, so that the connections of one burst do not all end at once."""
    assert Kept(Limits(), chance=lambda: 0.0).expiry(5.0) == 5.0 + AGE_LIMIT
    assert Kept(Limits(), chance=lambda: 1.0).expiry(5.0) == 5.0 + AGE_LIMIT * (1 - AGE_JITTER)
    assert Kept(Limits(age=10.0), chance=lambda: 0.5).expiry(0.0) == 9.5


def test_too_old_when_given_back() -> None:
    """A connection past its age is not kept."""
    pool = Kept(Limits())
    connection = use(pool, connection=Connection(expires=20.0))

    assert list(pool.give_back(connection, 20.0)) == [(connection, CloseReason.AGE)]
    assert pool.used == 0


@pytest.mark.parametrize("bound", [None, 5])
def test_too_old_when_taken(bound: int | None) -> None:
    """Connections past their age are not handed out but closed, and a younger one is taken."""
    pool = Kept(Limits(bound=bound))
    young, old = Connection(expires=100.0), Connection(expires=20.0)
    keep(pool, young, old)
    found, endings = pool.take(20.0)

    assert found is young
    assert list(endings) == [(old, CloseReason.AGE)]
    assert pool.used == 1


def test_too_old_while_idle() -> None:
    """A connection that reaches its age while idle is retired then, and closed for its age."""
    pool = Kept(Limits())
    connection = Connection(expires=20.0)
    keep(pool, connection)

    assert pool.due() == 20.0
    pool.expire(20.0)
    assert pool.expire(20.0 + RETIREMENT) == [(connection, CloseReason.AGE)]


def test_an_age_reached_in_retirement_is_no_reason() -> None:
    """A connection that was idle for too long is closed for that, whatever its age meanwhile."""
    pool = Kept(Limits())
    connection = Connection(expires=IDLE_LIMIT + 1)
    keep(pool, connection)
    pool.expire(IDLE_LIMIT)

    assert pool.expire(IDLE_LIMIT + RETIREMENT) == [(connection, CloseReason.IDLE)]


def test_removed_when_the_peer_closed() -> None:
    """The timer takes out what the peer has closed, idle or retired, once."""
    pool = Kept(Limits())
    idle, retired = Connection(), Connection()
    keep(pool, retired)
    pool.expire(IDLE_LIMIT)
    keep(pool, idle, now=IDLE_LIMIT)

    assert set(pool.quiet()) == {idle, retired}
    assert pool.remove(idle)
    assert pool.remove(retired)
    assert not pool.remove(idle)
    assert pool.quiet() == []


def test_restored_after_a_second_look() -> None:
    """What was taken out for nothing is idle again, or goes to who has joined the line meanwhile."""
    pool = Kept(Limits())
    connection = Connection()
    keep(pool, connection)
    pool.remove(connection)
    pool.restore(connection, 5.0)

    assert (len(pool), pool.used) == (1, 0)
    pool.remove(connection)
    caller = Caller()
    pool.join(caller, 6.0, place=False)
    pool.restore(connection, 6.0)
    assert caller.outcome is connection
    assert caller.woken == 1


# The line and the bound.


def test_a_connection_given_back_goes_to_who_waits() -> None:
    """A connection goes from hand to hand while somebody waits, first come first served."""
    pool = Kept(Limits())
    connection = use(pool)
    callers = [Caller(), Caller()]
    for caller in callers:
        use(pool)
        pool.join(caller, 0.0, place=False)
    pool.give_back(connection, 1.0)

    assert [caller.outcome for caller in callers] == [connection, None]
    assert [caller.woken for caller in callers] == [1, 0]
    assert len(pool) == 0
    pool.adopted()
    assert pool.used == 2
    pool.give_back(connection, 2.0)
    assert callers[1].outcome is connection


def test_joining_finds_what_came_back_in_between() -> None:
    """Who joins while a connection is idle gets it at once."""
    pool = Kept(Limits())
    use(pool)
    keep(pool, connection := Connection())
    caller = Caller()
    pool.join(caller, 0.0, place=False)

    assert caller.outcome is connection
    assert pool.used == 2
    pool.adopted()
    assert pool.used == 1


def test_who_was_served_elsewhere_takes_no_connection() -> None:
    """A caller who got a port before is passed over; the connection goes to the next, or stays idle."""
    pool = Kept(Limits())
    connection = use(pool)
    served, waiting = Caller(), Caller()
    pool.join(served, 0.0, place=False)
    pool.join(waiting, 0.0, place=False)
    served.deliver("a port")
    pool.give_back(connection, 0.0)

    assert waiting.outcome is connection
    assert served.outcome == "a port"
    pool.give_back(connection, 0.0)
    assert len(pool) == 1


def test_joining_too_late_leaves_the_connection_idle() -> None:
    """A caller who was served before it joined leaves everything as it is."""
    books = Books(3)
    pool = Kept(Limits())
    connection = dial(books, pool)
    pool.give_back(connection, 0.0)
    caller = Caller()
    caller.deliver("a port")
    pool.join(caller, 0.0, place=False)

    assert (pool.used, len(pool)) == (0, 1)
    assert books.usages()[str(A)].idle == 1


def test_leaving_the_line() -> None:
    """Who has left is given nothing; to leave twice, or without having joined, is no error."""
    pool = Kept(Limits())
    connection = use(pool)
    caller = Caller()
    pool.join(caller, 0.0, place=False)
    pool.leave(caller)
    pool.leave(caller)
    pool.give_back(connection, 0.0)

    assert caller.outcome is None
    assert len(pool) == 1


def test_who_comes_again_keeps_its_place() -> None:
    """A caller whose port was of no use stands before those who came after it."""
    pool = Kept(Limits())
    connection = use(pool)
    first, second = Caller(), Caller()
    again = first.again()
    pool.join(second, 0.0, place=False)
    pool.join(again, 0.0, place=False)
    pool.give_back(connection, 0.0)

    assert again.outcome is connection
    assert second.outcome is None


def test_a_bound_is_never_exceeded() -> None:
    """With a bound of 2 the third caller gets nothing until a place or a connection comes back."""
    pool = Kept(Limits(bound=2))
    connection = use(pool)
    use(pool)

    assert pool.take(0.0) == (None, [])
    by_place, by_connection = Caller(), Caller()
    pool.join(by_place, 0.0, place=True)
    pool.join(by_connection, 0.0, place=True)
    pool.drop_place()
    assert by_place.outcome is PLACE
    pool.give_back(connection, 0.0)
    assert by_connection.outcome is connection
    assert pool.used == 2
    assert [by_place.woken, by_connection.woken] == [1, 1]


def test_idle_connections_are_no_places() -> None:
    """What is idle counts for no bound: it is taken, not dialled."""
    pool = Kept(Limits(bound=1))
    connection = Connection()
    keep(pool, connection)

    assert take(pool) is connection
    assert pool.take(0.0)[0] is None
    pool.give_back(connection, 0.0)
    caller = Caller()
    pool.join(caller, 0.0, place=True)
    assert caller.outcome is connection


def test_a_connection_that_ends_frees_its_place() -> None:
    """A connection given back too old gives its place to who waits for one."""
    pool = Kept(Limits(bound=1))
    connection = use(pool, connection=Connection(expires=10.0))
    caller = Caller()
    pool.join(caller, 0.0, place=True)

    assert list(pool.give_back(connection, 10.0)) == [(connection, CloseReason.AGE)]
    assert caller.outcome is PLACE
    assert pool.used == 1


def test_a_place_is_for_who_needs_one() -> None:
    """A caller who has a place and waits for a connection or a port is not given a second place."""
    pool = Kept(Limits(bound=2))
    use(pool)
    has_one, needs_one = Caller(), Caller()
    pool.join(has_one, 0.0, place=False)
    use(pool)
    pool.join(needs_one, 0.0, place=True)
    pool.drop_place()

    assert has_one.outcome is None
    assert needs_one.outcome is PLACE


def test_a_waiter_that_adopts_gives_its_place_on() -> None:
    """Who waited with a place and got a connection needs one place only; the other serves the next."""
    pool = Kept(Limits(bound=2))
    connection = use(pool)
    has_one, needs_one = Caller(), Caller()
    use(pool)
    pool.join(has_one, 0.0, place=False)
    pool.join(needs_one, 0.0, place=True)
    pool.give_back(connection, 0.0)
    assert has_one.outcome is connection
    assert needs_one.outcome is None
    pool.adopted()

    assert needs_one.outcome is PLACE
    assert pool.used == 2


# Closing.


def test_close_sends_everybody_away() -> None:
    """A closed pool returns all that is idle or retired, wakes who waits, and refuses."""
    pool = Kept(Limits())
    idle, retired, used = Connection(), Connection(), Connection()
    keep(pool, retired)
    pool.expire(IDLE_LIMIT)
    use(pool, IDLE_LIMIT, used)
    keep(pool, idle, now=IDLE_LIMIT)
    pool.remove(idle)
    caller, served = Caller(), Caller()
    pool.join(caller, IDLE_LIMIT, place=False)
    pool.join(served, IDLE_LIMIT, place=False)
    served.deliver("a port")
    pool.restore(idle, IDLE_LIMIT)
    late = Caller()
    pool.join(late, IDLE_LIMIT, place=False)

    assert caller.outcome is idle
    assert pool.close() == [(retired, CloseReason.POOL_CLOSED)]
    assert late.decided
    assert late.outcome is None
    assert late.woken == 1
    assert served.outcome == "a port"
    for refused in (lambda: pool.take(0.0), lambda: pool.join(Caller(), 0.0, place=False)):
        with pytest.raises(PoolClosed, match="the pool is closed: make a new one"):
            refused()


def test_what_comes_back_to_a_closed_pool() -> None:
    """A connection in use when the pool was closed is closed when it comes back."""
    pool = Kept(Limits())
    connection = use(pool)
    pool.close()

    assert list(pool.give_back(connection, 0.0)) == [(connection, CloseReason.POOL_CLOSED)]
    assert pool.used == 0
    assert pool.close() == []


def test_emptied_pools_go_on() -> None:
    """empty() returns what nobody uses; the pool can be used as before."""
    pool = Kept(Limits())
    connection = Connection()
    keep(pool, connection)

    assert pool.empty() == [(connection, CloseReason.POOL_CLOSED)]
    keep(pool, Connection())
    assert len(pool) == 1


def test_emptied_for_good() -> None:
    """At exit nothing is kept any more, but last requests can be made, and those in line are served."""
    pool = Kept(Limits())
    pool.empty(for_good=True)
    connection = use(pool)
    caller = Caller()
    pool.join(caller, 0.0, place=False)

    assert not pool.give_back(connection, 0.0)
    assert caller.outcome is connection
    assert list(pool.give_back(connection, 0.0)) == [(connection, CloseReason.POOL_CLOSED)]


def test_forget_starts_clean() -> None:
    """A forked child has none of its parent's connections."""
    pool = Kept(Limits(bound=1))
    use(pool)
    pool._lock.acquire()
    pool.forget()

    use(pool)
    assert pool.quiet() == []


def test_all_pools_are_known_while_they_live() -> None:
    """Fork and exit find the pools that there are; those of no use are not kept alive by that."""
    pool = Kept(Limits())

    assert pool in pools
    number = len(pools)
    del pool
    gc.collect()
    assert len(pools) == number - 1


def test_an_empty_pool_is_true() -> None:
    """A pool without idle connections is a pool all the same."""
    assert Kept(Limits())


def test_repr_is_for_the_operator() -> None:
    """A pool prints what is in use, idle, retired and waited for."""
    pool = Kept(Limits())
    keep(pool, Connection(), Connection())
    pool.expire(IDLE_LIMIT)
    use(pool, IDLE_LIMIT)
    pool.join(Caller(), IDLE_LIMIT, place=False)

    assert repr(pool) == "<Pool 1 in use, 0 idle, 2 retired, 1 waiting>"
    pool.close()
    assert repr(pool).startswith("<Pool closed")


# Rivals: other pools that wait for a port that this one holds.


def test_an_idle_connection_is_surrendered() -> None:
    """Asked by somebody who is short of ports, a pool gives up the connection that was idle for longest."""
    books = Books(3)
    pool = Kept(Limits())
    first, second, other = dial(books, pool), dial(books, pool), dial(books, pool, books.want(S, B))
    for connection in (other, first, second):
        pool.give_back(connection, 0.0)
    account = books.want().accounts[-1]

    assert pool.surrender(account) is first
    assert pool.surrender(account) is second
    assert pool.surrender(account) is None
    assert pool.quiet() == [other]
    assert first.lease
    assert not first.lease.idle


def test_retired_connections_are_surrendered_first() -> None:
    """What is no longer handed out is given up before what still is."""
    books = Books(3)
    pool = Kept(Limits())
    retired, idle = dial(books, pool), dial(books, pool)
    pool.give_back(retired, 0.0)
    pool.expire(IDLE_LIMIT)
    pool.give_back(idle, IDLE_LIMIT)
    account = books.want().accounts[-1]

    assert pool.surrender(account) is retired
    assert pool.surrender(account) is idle


def test_only_retired_connections_stand_in_the_way_of_their_own_pool() -> None:
    """A caller of the pool itself has a retired connection closed, for it would not be handed out; an idle one not."""
    books = Books(3)
    pool = Kept(Limits())
    retired, idle = dial(books, pool), dial(books, pool)
    pool.give_back(retired, 0.0)
    pool.expire(IDLE_LIMIT)
    pool.give_back(idle, IDLE_LIMIT)
    account = books.want().accounts[-1]

    assert pool.surrender(account, idle=False) is retired
    assert pool.surrender(account, idle=False) is None
    assert len(pool) == 1


def test_a_connection_that_becomes_idle_gives_way() -> None:
    """If another pool waits for its port, a connection of which nobody here has need is closed, not kept."""
    books = Books(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    connection = dial(books, ours)
    rival = wait(books, theirs)

    assert list(ours.give_back(connection, 0.0)) == [(connection, CloseReason.GAVE_WAY)]
    assert len(ours) == 0
    assert ours.used == 0
    connection.give_way()
    assert rival.lease


def test_a_rival_that_waited_longer_comes_first() -> None:
    """Of two who wait, one here and one in another pool, the one who came first is served."""
    books = Books(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    connection = dial(books, ours)
    rival, own = wait(books, theirs), wait(books, ours)

    assert list(ours.give_back(connection, 0.0)) == [(connection, CloseReason.GAVE_WAY)]
    assert own.outcome is None
    connection.give_way()
    assert rival.lease


def test_a_rival_that_came_later_waits() -> None:
    """A connection is handed over in its own pool while somebody there has waited for longer."""
    books = Books(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    connection = dial(books, ours)
    own, rival = wait(books, ours), wait(books, theirs)

    assert not ours.give_back(connection, 0.0)
    assert own.outcome is connection
    assert rival.outcome is None


def test_a_rival_that_has_left_is_none() -> None:
    """A rival who gave up holds up nobody, and costs no connection."""
    books = Books(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    connection = dial(books, ours)
    rival, own = wait(books, theirs), wait(books, ours)
    rival.leave()

    assert not ours.give_back(connection, 0.0)
    assert own.outcome is connection


def test_who_waits_for_another_account_takes_no_connection() -> None:
    """Connections do not give way to who waits for ports that they do not hold."""
    books = Books(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    connection = dial(books, ours)
    dial(books, theirs, books.want(S, B))
    wait(books, theirs, books.want(S, B))

    assert not ours.give_back(connection, 0.0)
    assert len(ours) == 1


def test_own_callers_are_no_rivals() -> None:
    """A caller of the pool itself gets the connection as it is."""
    books = Books(1)
    pool = Kept(Limits())
    connection = dial(books, pool)
    own = wait(books, pool)

    assert not pool.give_back(connection, 0.0)
    assert own.outcome is connection


def test_a_rival_that_joins_in_the_last_moment() -> None:
    """A rival who joined after the connection was idle, and before the second look, is seen."""
    books = Books(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    connection = dial(books, ours)
    lease = connection.lease
    assert lease
    joined: list[Caller] = []

    class Late(Connection):
        """Has the rival join in the moment in which it becomes idle."""

        @property
        def idle_since(self) -> float:
            return 0.0

        @idle_since.setter
        def idle_since(self, value: float) -> None:
            if lease.state == Lease.OPEN and ours.used == 0 and not joined:
                joined.append(wait(books, theirs))

    late = Late(books, lease)

    assert list(ours.give_back(late, 0.0)) == [(late, CloseReason.GAVE_WAY)]
    assert joined


def test_budget_of_a_client() -> None:
    """A connection gives way to a rival of another client only where both are charged to the account that is full."""
    books = Books(2)
    own = Budget(1)
    ours, theirs = Kept(Limits()), Kept(Limits())
    mine = books.want(budget=own, client=1)
    connection = dial(books, ours, mine)
    other = dial(books, theirs)
    own_caller = wait(books, theirs, books.want(budget=own, client=2))

    assert list(theirs.give_back(other, 0.0)) == []
    assert own_caller.outcome is other
    assert not ours.give_back(connection, 0.0)
