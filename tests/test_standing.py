"""One caller in line, and those who stand behind it: decisions, without sockets and without waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from bookkeeping import A, B, Books, Caller, S
from faces import until
from support.servers import HttpServer
from test_crowd import at_once
from test_pool import Connection, Kept, dial
from urllib3.util import Timeout
from ways import Way

import fewports
from fewports.address import Origin
from fewports.aio.asyncio_sleep import AsyncioAlarm, Rings
from fewports.budget import Budget
from fewports.dial import To
from fewports.dialing import Dialing
from fewports.dialing import Limits as DialLimits
from fewports.errors import BudgetExhausted
from fewports.events import CloseReason
from fewports.ledger.account import Account, Lease, Want
from fewports.ledger.local import Ledger
from fewports.pool import Limits, PoolClosed
from fewports.sharing import PLACE
from fewports.source import Sources
from fewports.standing import FRESH, Floor, Standing, followed, lead

CROWD = 100


class Line:
    """Pools on one ledger, and the callers in line; the connections of a pool, which nobody but it closes."""

    def __init__(self, budget: int | Budget = 1) -> None:
        self.books = Books(budget)
        self.floor = Floor(lambda: self.books.clock.now, lambda ledger: True)
        self.outcomes: list[object] = []

    def stand(self, pool: Kept, *wants: Want, wait: float | None = None) -> Standing[Connection]:
        """Take a place in *pool*, and stand in line."""
        assert pool.take(self.books.clock.now)[0] is PLACE
        standing = Standing(Caller(pool), self.books.ledger, pool, self.floor)
        standing.begin(wants or [self.books.want()], wait, 0.0)
        return standing

    def end(self, standing: Standing[Connection]) -> object:
        """Have its caller go on with what was delivered."""
        assert standing.pause() <= 0
        outcome = standing.end(0.0)
        standing.leave(outcome)
        self.outcomes.append(outcome)
        return outcome


def woken(standing: Standing[Connection]) -> int:
    assert isinstance(standing.waiter, Caller)
    return standing.waiter.woken


def give_back(pool: Kept, connection: Connection) -> None:
    """Give back a connection, and close what has to be."""
    for other, reason in pool.give_back(connection, 0.0):
        other.end(reason)


# What a connection that passes from one to the next costs.


def test_one_wake_up_for_each_in_the_order_of_their_coming() -> None:
    """Connections pass through a line of 100 on 3 ports: each caller is woken once, in its turn, and nobody else is;
    the kernel is not asked, no connection is looked for, and the timer is told once."""
    line = Line(3)
    books, pool = line.books, Kept(Limits())
    connections = [dial(books, pool) for _ in range(3)]
    calls: list[str] = []
    for name in ("rivals", "seek", "found", "give_way", "refuser", "reserve"):
        setattr(books.ledger, name, counted(getattr(books.ledger, name), name, calls))
    crowd = [line.stand(pool) for _ in range(CROWD)]
    assert books.nudges == 1
    for number, standing in enumerate(crowd):
        assert [woken(other) for other in crowd] == [1] * number + [0] * (CROWD - number)
        connection = connections.pop(0)
        assert not pool.give_back(connection, 0.0)
        assert line.end(standing) is connection
        pool.adopted()
        connections.append(connection)

    assert calls == []
    assert books.kernel.questions == []
    assert books.nudges == 2  # nobody is left to serve
    assert [woken(standing) for standing in crowd] == [1] * CROWD
    assert pool.used == 3
    assert books.usages()[str(A)].waiting == 0


def counted(method: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        return method(*arguments, **keywords)

    return call


def test_who_is_first_is_found_without_passing_those_who_have_left() -> None:
    """Where most of a crowd have left from the front, who is first is found in one step, however many there were."""
    line = Line(1)
    books, pool = line.books, Kept(Limits())
    connection = dial(books, pool)
    crowd = [line.stand(pool) for _ in range(2000)]
    for standing in crowd[:-1]:
        standing.leave(None)
    account = books.want().accounts[-1]
    assert connection.lease

    assert books.ledger.first_in_line(connection.lease) is crowd[-1].waiter
    assert list(account.line) == [crowd[-1].waiter]


# Whose turn it is.


@pytest.mark.parametrize("other", [A, B])
def test_who_waits_for_another_destination_has_its_turn(other: Any) -> None:
    """In a line for one budget over two destinations, or pools, connections go to who is next there; where the next one
    waits elsewhere, a connection gives way to it, although others of its own pool wait."""
    line = Line(Budget("50%", connections=2))
    books = line.books
    ours, theirs = Kept(Limits()), Kept(Limits())
    here, there = books.want(), books.want(S, other)
    one, two = dial(books, ours, here), dial(books, ours, here)
    first, rival, second = line.stand(ours, here), line.stand(theirs, there), line.stand(ours, here)
    assert [woken(standing) for standing in (first, rival, second)] == [0, 0, 0]

    give_back(ours, one)
    assert line.end(first) is one
    assert [woken(standing) for standing in (first, rival, second)] == [1, 0, 0]

    give_back(ours, two)
    assert two.ended is CloseReason.GAVE_WAY
    lease = line.end(rival)
    assert isinstance(lease, Lease)
    assert lease.space.destination == other
    assert [woken(standing) for standing in (first, rival, second)] == [1, 1, 0]

    give_back(ours, one)
    assert line.end(second) is one


def test_each_who_comes_has_an_idle_connection_of_others_closed() -> None:
    """Two idle connections of another pool, which one promise kept open, are closed for the two who stand in line."""
    line = Line(Budget("50%", connections=2))
    books = line.books
    ours, theirs = Kept(Limits()), Kept(Limits())
    idle = [dial(books, theirs, books.want(S, B)) for _ in range(2)]
    for connection in idle:
        give_back(theirs, connection)
    first, second = line.stand(ours), line.stand(ours)

    assert [connection.ended for connection in idle] == [CloseReason.GAVE_WAY] * 2
    assert [isinstance(line.end(standing), Lease) for standing in (first, second)] == [True, True]


# Whom to follow.


def test_who_comes_later_follows_who_waits() -> None:
    """What one waits for is what the next may wait for: while somebody is in line, and for ten seconds."""
    line = Line(1)
    books, pool = line.books, Kept(Limits())
    want = books.want()
    dial(books, pool)
    pool.lead = lead([want], 0.0)
    assert followed(pool, 0.0) is None
    standing = line.stand(pool)

    assert followed(pool, 0.0) == (want,)
    assert followed(pool, FRESH) is None
    standing.leave(None)
    assert followed(pool, 0.0) is None


def test_nobody_follows_where_who_finds_no_port_is_refused() -> None:
    """A budget that refuses at once lets nobody wait behind others, be it the ledger's or the client's."""
    books = Books(Budget(2, when_full="refuse"))
    plain = Books(2)

    assert lead([books.want()], 0.0) is None
    assert lead([plain.want(budget=Budget(1, when_full="refuse"), client="face")], 0.0) is None
    assert lead([plain.want(budget=Budget(1), client="other")], 0.0)


# Every way out.


def test_the_time_is_over() -> None:
    """Who has waited as long as it may is told by whose limit, and stands in no line any more."""
    line = Line(1)
    books, pool = line.books, Kept(Limits())
    connection = dial(books, pool)
    standing = line.stand(pool, wait=2.0)
    assert standing.pause() == 2.0
    books.clock.advance(1.5)
    assert standing.pause() == 0.5
    books.clock.advance(0.5)
    assert standing.pause() == 0.0
    with pytest.raises(BudgetExhausted) as caught:
        standing.end(1.0)
    standing.leave(None)

    assert (caught.value.usage.account, caught.value.usage.budget, caught.value.waited) == (str(A), 1, 3.0)
    assert not pool.crowded
    assert books.usages()[str(A)].waiting == 0
    give_back(pool, connection)
    assert len(pool) == 1


def test_the_budget_bounds_the_wait() -> None:
    """The wait ends when the budget says so, whatever longer time is given."""
    line = Line(Budget(1, wait=4))
    pool = Kept(Limits())
    dial(line.books, pool)

    assert line.stand(pool, wait=9.0).pause() == 4.0


def test_what_comes_while_its_caller_leaves_goes_back() -> None:
    """A connection, or a lease, that was delivered to who is gone by then is the next one's, or is kept."""
    line = Line(1)
    books, pool = line.books, Kept(Limits())
    connection = dial(books, pool)
    first, second = line.stand(pool), line.stand(pool)
    give_back(pool, connection)
    assert first.waiter.outcome is connection
    first.leave(None)
    assert line.end(second) is connection
    third, fourth = line.stand(pool), line.stand(pool)
    connection.end(CloseReason.DONE)
    assert isinstance(third.waiter.outcome, Lease)
    third.leave(None)

    assert isinstance(line.end(fourth), Lease)


def test_a_closed_pool_sends_its_callers_away() -> None:
    """Who stands in line when the pool is closed is told so."""
    line = Line(1)
    pool = Kept(Limits())
    dial(line.books, pool)
    standing = line.stand(pool)
    pool.close()

    assert standing.pause() == 0.0
    with pytest.raises(PoolClosed):
        standing.end(0.0)


def test_a_ledger_that_nobody_watches() -> None:
    """Where no thread can be started, who waits sees to the ledger itself, five times a second."""
    line = Line(1)
    books, pool = line.books, Kept(Limits())
    watched: list[Ledger] = []
    line.floor = line.floor._replace(watch=lambda ledger: watched.append(ledger) or len(watched) > 2)  # type: ignore[func-returns-value]
    connection = dial(books, pool)
    standing = line.stand(pool)

    assert [standing.pause() for _ in range(3)] == [0.2, 0.2, 30.0]
    assert connection.lease
    books.ledger.orphan(connection.lease, time_wait=False)
    books.ledger.advance(0.0)
    assert isinstance(line.end(standing), Lease)


def test_a_lease_goes_from_the_line_to_dialing() -> None:
    """A lease that came of a stand in line is dialled with at once, and released once if that fails."""
    assert dialled_with(A) == ([A], 0)


def test_a_lease_for_what_the_name_no_longer_means() -> None:
    """It goes back, and another port is taken for what the name means now."""
    assert dialled_with(B) == ([B], 1)


def test_a_lease_that_the_ledger_has_taken_back() -> None:
    """Where it took more than a minute to look up the name, the ledger has given the port to others: another is taken,
    and counted."""
    assert dialled_with(A, after=(61.0, 63.0)) == ([A], 1)


def dialled_with(destination: Any, *, after: Sequence[float] = ()) -> tuple[list[Any], int]:
    """Dial *destination* with a lease for A, after the ledger has looked round at those times; return where it connects
    to, and how many ports went back before that."""
    line = Line(1)
    books, pool = line.books, Kept(Limits())
    connection = dial(books, pool)
    standing = line.stand(pool)
    connection.end(CloseReason.DONE)
    lease = line.end(standing)
    assert isinstance(lease, Lease)
    turn = standing.turn(lease)
    released = sum(1 for account in lease.accounts if lease not in account.leases)
    assert released == 0
    for seconds in after:
        books.ledger.advance(books.clock.now + seconds)
    to = To(Origin("http", "name", 80), books.ledger, Sources([S]))
    limits = DialLimits(turn=turn)
    dialing: Dialing[Connection] = Dialing(to, [destination], limits, lambda: None, line.floor, pool=pool)
    assert dialing.plan.goes(destination)
    brought = dialing._brought()
    went_back = int(lease.state != Lease.DIALING)
    assert (brought is lease) == (went_back == 0)
    found = brought or dialing._best(0.0)
    assert isinstance(found, Lease)
    dialing._leave(None)
    assert found.state == Lease.RELEASED
    assert sum(account.held for account in accounts(books)) == 0
    return [found.space.destination], went_back


def accounts(books: Books) -> list[Account]:
    return list(books.ledger._accounts.values())


# What it costs those who wait.


@pytest.mark.parametrize("name", ["threads", "asyncio", "trio"])
def test_a_name_is_looked_up_for_who_dials_and_not_for_who_waits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 at once on a budget of 2, those who follow others in line have nothing looked up for them."""
    asked: list[object] = []

    def getaddrinfo(host: object, port: Any, *_: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    way = Way(name)

    async def case() -> None:
        with HttpServer() as server:
            url = server.url.replace("127.0.0.1", "name.test") + "/slow?s=0.02"
            async with way.manager(budget=2) as http:
                await way.all([lambda: http.get(url)] * 3)  # the third leads
                before = len(asked)
                busy = [lambda: http.get(url)] * 3

                async def late() -> Any:
                    await way.sleep(0.01)
                    return await http.get(url)

                results = await way.all([*busy, *[late] * 37])
                assert {getattr(result, "status", result) for result in results} == {200}
                assert len(asked) - before <= 3
            assert server.stats()["accepted"] == 2

    way.run(case)


def test_one_timer_of_the_loop_for_all_who_sleep() -> None:
    """Of 1,000 tasks that sleep for a minute at most and are woken before, the loop has one timer; nothing is left."""

    async def case() -> None:
        loop = asyncio.get_running_loop()
        timers: list[float] = []
        call_at = loop.call_at
        loop.call_at = lambda when, *arguments: (timers.append(when), call_at(when, *arguments))[1]  # type: ignore
        rings = Rings(loop)
        alarms = [AsyncioAlarm(rings) for _ in range(1000)]
        sleepers = [asyncio.ensure_future(alarm.wait(60.0)) for alarm in alarms]
        assert len(timers) == 1
        for alarm in alarms:
            alarm.wake()
        await asyncio.gather(*sleepers)

        assert len(timers) == 1
        assert not rings.sleepers

    asyncio.run(case())


@pytest.mark.parametrize("name", ["asyncio", "uvloop", "trio"])
def test_each_wakes_at_its_own_time(name: str) -> None:
    """Those who sleep for different times wake in their order, whoever came first; who was woken before, before."""
    way = Way(name)

    async def case() -> None:
        from fewports.aio.seam import here

        loop = here()
        began, order = monotonic(), []

        async def sleep(seconds: float) -> None:
            alarm = loop.alarm()
            if seconds == 0.0:
                alarm.wake()
            await alarm.wait(seconds or 60.0)
            order.append((seconds, monotonic() - began >= seconds - 0.002))

        await way.all([lambda s=s: sleep(s) for s in (0.06, 0.02, 0.0, 0.04)])  # type: ignore[misc]

        assert order == [(0.0, True), (0.02, True), (0.04, True), (0.06, True)]

    way.run(case)


def test_a_manager_with_a_budget_serves_a_crowd_on_its_ports() -> None:
    """400 requests at once on 10 ports are all served, in the order of their coming, on exactly 10 connections."""
    done: list[int] = []

    async def case() -> None:
        with HttpServer() as server:
            async with fewports.AsyncPoolManager(budget=10, ledger=fewports.Ledger()) as http:

                async def once(number: int) -> None:
                    await http.request("GET", server.url)
                    done.append(number)

                async with asyncio.TaskGroup() as group:
                    for number in range(400):
                        group.create_task(once(number))
            assert server.stats()["accepted"] == 10

    asyncio.run(case())

    assert sorted(done) == list(range(400))
    assert max(abs(number - place) for place, number in enumerate(done)) < 20  # ten are answered at once


def test_threads_get_the_connection_as_it_is() -> None:
    """Of 200 requests of 20 threads on 4 ports, a thread that waits behind others makes no connection of its own to
    take over what comes back; a total time-out, of which the wait is a part, is seen to by connect() as before."""
    with HttpServer() as server, fewports.PoolManager(budget=4, ledger=fewports.Ledger()) as http:
        pool: Any = http.connection_from_url(server.url)
        assert at_once(20, lambda _: [http.request("GET", server.url + "/slow?s=0.002") for _ in range(10)]) == []
        before = pool.num_connections
        assert at_once(20, lambda _: [http.request("GET", server.url + "/slow?s=0.002") for _ in range(10)]) == []
        straight = pool.num_connections - before
        patient = Timeout(total=5)
        assert at_once(20, lambda _: [http.request("GET", server.url, timeout=patient) for _ in range(10)]) == []

        assert straight <= 40  # those who found nobody in line to follow
        assert server.stats()["accepted"] == 4
        assert server.stats()["requests"] == 600
        assert pool.home.used == 0


@pytest.mark.parametrize("url", ["/close", "/slow?s=0.002"])
def test_a_turn_that_came_of_the_line_is_used_or_given_back(url: str) -> None:
    """Where each response is the last of its connection, those in line get ports; those who never use theirs, as their
    request is refused, give it back: nothing is held afterwards."""
    book = fewports.Ledger()
    with HttpServer() as server, fewports.PoolManager(budget=3, ledger=book, retries=False) as http:

        def work(index: int) -> None:
            for number in range(8):
                bad = {"headers": {"Bad\nName": "x"}} if (index + number) % 4 == 0 else {}
                with contextlib.suppress(ValueError):
                    http.request("GET", server.url + url, **bad)

        assert at_once(24, work) == []
        assert http.connection_from_url(server.url).home.used == 0  # type: ignore[attr-defined]
        assert sum(usage.waiting + usage.dialing + usage.active for usage in book.usage()) == 0


class Interrupted(BaseException):
    """What a signal handler may raise anywhere."""


@pytest.mark.parametrize("step", ["turn", "leave"])
def test_a_lease_is_not_lost_with_who_is_interrupted_behind_the_line(step: str) -> None:
    """An exception that comes between the end of the wait and the dial gives back the port that it waited for."""
    book = fewports.Ledger()
    interrupted: list[BaseException] = []

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is getattr(Standing, step).__code__:
            raise Interrupted

    with HttpServer() as server, fewports.PoolManager(budget=1, ledger=book, retries=False) as http:

        def follow() -> None:
            sys.setprofile(interrupt)
            try:
                http.request("GET", server.url)
            except Interrupted as error:
                interrupted.append(error)

        def waiting() -> int:
            return max(usage.waiting for usage in book.usage())

        held = http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
        leads = threading.Thread(target=http.request, args=("GET", server.url + "/close"))
        follows = threading.Thread(target=follow)
        for number, thread in enumerate((leads, follows), 1):
            thread.start()
            assert until(lambda number=number: waiting() == number)  # type: ignore[misc]
        held.close()
        leads.join()
        follows.join()

        assert len(interrupted) == 1
        assert http.request("GET", server.url, pool_timeout=2.0).status == 200
        assert http.connection_from_url(server.url).home.used == 0  # type: ignore[attr-defined]


def test_a_full_budget_is_told_to_who_follows() -> None:
    """Who waits behind others for as long as it may gets the error that the first gets, and leaves nothing behind."""
    book = fewports.Ledger()
    with HttpServer() as server, fewports.PoolManager(budget=1, ledger=book, retries=False) as http:
        held = http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
        raised = at_once(6, lambda _: http.request("GET", server.url, pool_timeout=0.3))

        assert [type(error).__name__ for error in raised] == ["BudgetExhausted"] * 6
        held.read()
        assert http.request("GET", server.url).status == 200
        assert sum(usage.waiting for usage in book.usage()) == 0
        assert http.connection_from_url(server.url).home.used == 0  # type: ignore[attr-defined]
