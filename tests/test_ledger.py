"""Who holds which port: the ledger, told the time and the kernel's word by hand."""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import statistics
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import pytest
from bookkeeping import A6, S6, A, B, Books, C, Caller, S, Sock, T, U

from fewports.address import Destination, Flow, PortSpace
from fewports.budget import Budget
from fewports.errors import BudgetExhausted, LeaseError
from fewports.events import (
    BudgetRefused,
    ConnectionOpened,
    Event,
    KernelRefused,
    Level,
    LevelCrossed,
    PortFreed,
    PortReserved,
    WaitEnded,
    WaitStarted,
)
from fewports.kernel.diag import State
from fewports.ledger import local
from fewports.ledger.account import Account, Lease, Waiter
from fewports.ledger.closings import OVERTIME, QUESTIONS
from fewports.ledger.lines import FIRST_PAUSE, LAST_PAUSE
from fewports.ledger.local import Ledger
from fewports.usage import Usage

SIX = PortSpace(S6, A6)


class Stored:
    """A pool as the ledger knows it."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def surrender(self, account: Account) -> None:
        return None


# Accounts.


def test_a_budget_is_what_can_be_held() -> None:
    """A budget of 3 gives 3 leases, and refuses the fourth in the name of the destination."""
    books = Books(3)
    leases = [books.take() for _ in range(3)]
    refuser = books.refuser()

    assert (refuser.scope, refuser.name, refuser.held, refuser.limit) == ("ledger", str(A), 3, 3)
    assert len({id(lease) for lease in leases}) == 3
    assert books.ledger.held(PortSpace(S, A)) == 3


def test_a_number_bounds_all_sources_together() -> None:
    """A budget in ports is for the destination, over all source addresses."""
    books = Books(3)
    books.take(books.want(S))
    books.take(books.want(T))
    books.take(books.want(U))

    assert books.refuser(books.want(S), books.want(T), books.want(U)).scope == "ledger"


@pytest.mark.parametrize("sources", [[S], [S, T], [S, T, U]])
def test_k_sources_give_k_times_a_percentage(sources: list[str]) -> None:
    """A budget in percent is of each source's range: K sources hold K times as many, exactly, per destination."""
    books = Books("40%", capacity=10)

    assert len(books.fill(*(books.want(source) for source in sources))) == 4 * len(sources)
    assert len(books.fill(*(books.want(source, B) for source in sources))) == 4 * len(sources)


def test_each_destination_has_its_own_space() -> None:
    """What one destination holds leaves the room of others as it was, IPv6 like IPv4."""
    books = Books(3)
    books.fill(books.want(S, A))

    assert len(books.fill(books.want(S, B))) == 3
    assert len(books.fill(books.want(S6, A6))) == 3


def test_ports_of_one_address_are_destinations_apart() -> None:
    """Two ports of one address are two destinations."""
    books = Books(3)
    books.fill(books.want(S, A))

    assert len(books.fill(books.want(S, Destination(A.address, 80)))) == 3


def test_the_range_bounds_each_space() -> None:
    """A number above the range is bounded by what the kernel has for each space, which says so as "range"."""
    books = Books(50, capacity=5)

    assert len(books.fill(books.want(S))) == 5
    refuser = books.refuser(books.want(S))

    assert (refuser.scope, refuser.name, refuser.limit) == ("range", f"{S} -> {A}", 5)
    assert len(books.fill(books.want(T))) == 5


def test_a_host_rule_bounds_all_its_addresses() -> None:
    """Under a host rule the addresses of a name share one account, from whatever source, and no other name's."""
    books = Books(Budget(50, rules={"api.example.com": 3}))
    wants = [books.want(S, A, host="api.example.com"), books.want(T, B, host="API.example.com.")]
    leases = [books.take(wants[0]), books.take(wants[1]), books.take(wants[1])]
    refuser = books.refuser(*wants)

    assert (refuser.name, refuser.held) == ("api.example.com", 3)
    books.take(books.want(S, A, host="other.example.com"))
    books.release(leases[0])
    books.take(wants[1])


def test_a_host_rule_in_percent_is_per_source() -> None:
    """A share for a host bounds each source apart, over all addresses of the host."""
    books = Books(Budget(50, rules={"api.example.com": "30%"}), capacity=10)
    one = [books.want(S, to, host="api.example.com") for to in (A, B)]
    other = [books.want(T, to, host="api.example.com") for to in (A, B)]

    assert len(books.fill(*one)) == 3
    assert books.refuser(*one).name == f"{S} -> api.example.com"
    assert len(books.fill(*other)) == 3


def test_a_network_rule_bounds_all_its_addresses() -> None:
    """Under a network rule its addresses share one account."""
    books = Books(Budget(50, rules={"203.0.113.0/24": 3}))

    assert len(books.fill(books.want(S, A), books.want(S, B))) == 3
    assert books.refuser(books.want(S, C)).name == "203.0.113.0/24"


def test_a_client_has_a_budget_within_the_ledgers() -> None:
    """A client's own budget bounds what that client holds, and its refusal is named as the client's."""
    books = Books(5)
    own = Budget(2)
    one = books.want(budget=own, client="one")
    other = books.want(budget=own, client="other")

    assert len(books.fill(one)) == 2
    assert (books.refuser(one).scope, books.refuser(one).name) == ("client", str(A))
    assert len(books.fill(other)) == 2
    assert len(books.fill()) == 1
    assert books.refuser(other).scope == "ledger"


def test_a_client_cannot_have_more_than_the_ledger() -> None:
    """A client's budget above the ledger's changes nothing: the ledger refuses, in its own name."""
    books = Books(2)
    want = books.want(budget=Budget(10), client="one")

    assert len(books.fill(want)) == 2
    assert books.refuser(want).scope == "ledger"


def test_a_clients_own_rules() -> None:
    """A client's budget has rules of its own."""
    books = Books(9)
    own = Budget(5, rules={"api.example.com": 1})

    assert len(books.fill(books.want(host="api.example.com", budget=own, client=1))) == 1
    assert len(books.fill(books.want(host="example.com", budget=own, client=1))) == 5


def test_a_client_may_bound_its_connections_over_all_destinations() -> None:
    """connections= bounds what is open at once, wherever it goes; a port in TIME_WAIT is no connection."""
    books = Books(50)
    own = Budget(connections=2)
    wants = [books.want(S, to, budget=own, client="one") for to in (A, B, C)]
    leases = [books.take(want) for want in wants[:2]]
    refuser = books.refuser(wants[2])

    assert (refuser.name, refuser.scope) == ("all destinations", "total")

    books.close(leases[0])
    leases.append(books.take(wants[2]))

    assert books.ledger.held(wants[0].space) == 1
    assert str(books.ledger.exhausted(refuser, books.clock.now)) == (
        "all destinations holds 2 of 2 connections (2 dialing): "
        "send fewer requests at once, allow a longer wait, or allow more connections"
    )


def test_who_waits_for_a_connection_is_served_when_one_is_closed() -> None:
    """Where the number of connections is bounded, closing one serves the first in line, TIME_WAIT or not."""
    books = Books(50)
    own = Budget(connections=1)
    here, there = (books.want(S, to, budget=own, client="one") for to in (A, B))
    lease = books.take(here)
    callers = [books.join(there), books.join(here)]
    books.close(lease)

    assert callers[0].lease
    assert not callers[1].lease

    books.ledger.orphan(callers[0].lease)
    books.later(0)

    assert callers[1].lease


def test_a_ledger_may_bound_its_connections_over_all_destinations() -> None:
    """connections= of a ledger's own budget bounds all its clients together."""
    books = Books(Budget(50, connections=2))

    assert len(books.fill(books.want(S, A, client="one"), books.want(S, B))) == 2
    assert books.refuser(books.want(S, C)).scope == "total"


def test_a_connection_that_gave_way_is_not_waited_for_twice() -> None:
    """Whose port is in TIME_WAIT is no connection any more: the next in line may look for another to close."""
    books = Books(50)
    own = Budget(connections=2)
    here, there = (books.want(S, to, budget=own, client="one") for to in (A, B))
    leases = [books.take(here) for _ in range(2)]
    for lease in leases:
        books.open(lease)
    first, second = books.join(there), books.join(there)
    promise = books.ledger.seek(first, [there], books.clock.now)
    books.ledger.found(promise, leases[0])
    books.close(leases[0])

    assert first.lease
    assert books.ledger.seek(second, [there], books.clock.now)


def test_who_was_promised_a_port_in_vain_looks_for_another() -> None:
    """Where a connection gave way and its port has not come free in a second, as many are woken, and only those."""
    books = Books(3)
    leases = [books.take() for _ in range(3)]
    want = leases[0].want
    callers = [books.join(want) for _ in range(5)]
    nudges = books.nudges
    for caller, lease in zip(callers, leases[:2], strict=False):
        books.ledger.found(books.ledger.seek(caller, [want], books.clock.now), lease)

    assert books.nudges == nudges + 1
    assert books.ledger.due() == books.clock.now + 1.0

    books.later(0.9)
    assert [caller.woken for caller in callers] == [0] * 5

    books.later(0.1)
    assert [caller.woken for caller in callers] == [1, 1, 0, 0, 0]
    assert books.ledger.seek(callers[0], [want], books.clock.now)

    for caller in callers:
        books.leave(caller)


def test_a_promise_that_is_late_is_not_forgotten_before_the_timer_comes() -> None:
    """Who relied on it is woken also where a newcomer looked for a connection at the moment at which it was due."""
    books = Books(2)
    leases = [books.take() for _ in range(2)]
    want = leases[0].want
    first = books.join(want)
    books.ledger.found(books.ledger.seek(first, [want], books.clock.now), leases[0])
    books.clock.advance(1.0)
    newcomer = books.join(want)
    books.ledger.found(books.ledger.seek(newcomer, [want], books.clock.now), leases[1])
    books.later(0.001)

    assert first.woken == 1
    assert books.ledger.seek(first, [want], books.clock.now)

    for caller in (first, newcomer):
        books.leave(caller)


def test_who_has_an_outcome_is_not_woken_in_place_of_another() -> None:
    """A promise that was not kept is news for who waits, not for who is served and about to leave the line."""
    books = Books(2)
    leases = [books.take() for _ in range(2)]
    want = leases[0].want
    first, second = books.join(want), books.join(want)
    books.ledger.found(books.ledger.seek(first, [want], books.clock.now), leases[0])
    assert first.deliver("a connection of its own pool")
    books.later(1.0)

    assert (first.woken, second.woken) == (0, 1)

    for caller in (first, second):
        books.leave(caller)


def test_what_became_idle_during_a_search_in_vain_is_looked_for_again() -> None:
    """Who gave a connection back meanwhile was told that a port is on its way already; now it is not."""
    books = Books(1)
    lease = books.take()
    want = lease.want
    caller = books.join(want)
    promise = books.ledger.seek(caller, [want], books.clock.now)
    assert promise
    assert books.ledger.first_in_line(lease) is None
    books.ledger.found(promise, None)
    assert caller.woken == 1

    again = books.ledger.seek(caller, [want], books.clock.now)
    assert again
    books.ledger.found(again, None)
    assert caller.woken == 1  # nobody was told so meanwhile
    assert books.ledger.first_in_line(lease) is caller

    books.leave(caller)


def test_who_relied_on_a_search_in_vain_looks_itself() -> None:
    """It may find a connection where the other had no reason to look."""
    books = Books(1)
    here, there = (books.take(books.want(to=to)).want for to in (A, B))
    served, first = books.join(here), books.join(here)
    promises = [books.ledger.seek(caller, [here], books.clock.now) for caller in (served, first)]
    assert served.deliver("a connection of its own pool")
    second = books.join(here, there)
    assert books.ledger.seek(second, [here, there], books.clock.now) is None
    for promise in promises:
        assert promise
        books.ledger.found(promise, None)

    assert second.woken
    assert books.ledger.seek(second, [here, there], books.clock.now)

    for caller in (served, first, second):
        books.leave(caller)


def test_the_first_want_with_room_is_served() -> None:
    """Of several ports that would do the first that can be had is given."""
    books = Books("20%", capacity=10)
    wants = [books.want(source) for source in (S, T, U)]

    assert [lease.space.source for lease in books.fill(*wants)] == [S, S, T, T, U, U]


# Leases.


def test_a_lease_is_released_once() -> None:
    """The second release of a lease raises, and gives nothing back twice."""
    books = Books(3)
    lease, other = books.take(), books.take()
    books.release(lease)
    with pytest.raises(LeaseError, match="was released before: a lease has one owner, who releases it once"):
        books.release(lease)

    assert books.ledger.held(PortSpace(S, A)) == 1
    books.release(other)


def test_released_twice_with_time_wait() -> None:
    """A second release that would leave a TIME_WAIT raises, too, and leaves none."""
    books = Books(3)
    lease = books.take()
    books.close(lease)
    with pytest.raises(LeaseError, match="was released before"):
        books.close(lease)

    assert books.usages()[str(A)].held == 1


def test_a_connection_is_opened_once() -> None:
    """A lease whose connection stands, or that was given back, cannot be opened."""
    books = Books(3)
    lease, other = books.take(), books.take()
    books.open(lease)
    books.release(other)
    for spent in (lease, other):
        with pytest.raises(LeaseError, match="cannot be opened"):
            books.open(spent)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 3, active=1)


def test_repr_of_a_lease() -> None:
    """A lease prints its space or flow and its state."""
    books = Books(3)
    lease = books.take()

    assert repr(lease) == f"<Lease {S} -> {A} dialing>"
    flow = books.open(lease)
    assert repr(lease) == f"<Lease {flow} open>"
    books.release(lease)
    assert repr(lease) == f"<Lease {flow} released>"


def test_a_peer_that_closes_first_frees_the_port_at_once() -> None:
    """A release without TIME_WAIT gives the port to the next caller, and asks nobody."""
    books = Books(1)
    lease = books.take()
    books.open(lease)
    books.release(lease)

    books.take()
    assert books.kernel.questions == []


# TIME_WAIT.


def test_time_wait_counts_until_it_is_due() -> None:
    """A port in TIME_WAIT counts against the budget for as long as the kernel holds it, and not longer."""
    books = Books(1)
    flow = books.close(books.take())
    books.clock.advance(59.9)

    assert books.refuser().held == 1
    books.clock.advance(0.1)
    books.take()
    assert books.events.of(PortFreed) == [PortFreed(flow)]


def test_the_kernel_is_asked_before_a_refusal() -> None:
    """A port believed in TIME_WAIT that the kernel says is free is given at once."""
    books = Books(1)
    flow = books.close(books.take(), keeps=0)

    books.take()
    assert books.kernel.questions == [flow]


def test_the_kernel_is_not_asked_while_there_is_room() -> None:
    """Neither a close nor a reservation that can be served costs a question."""
    books = Books(9)
    for _ in range(4):
        books.close(books.take())
    books.take()

    assert books.kernel.questions == []


def test_a_refusal_says_when_the_next_port_is_due() -> None:
    """What the kernel says is still held is refused, with the time until the first of them leaves TIME_WAIT."""
    books = Books(3)
    for remaining in (50.0, 20.0, 30.0):
        books.close(books.take(), keeps=remaining)
    error = books.ledger.exhausted(books.refuser(), books.clock.now)

    assert error.next_due == pytest.approx(20.0)
    assert str(error) == (
        f"{A} holds 3 of 3 ports (3 in TIME_WAIT; next in 20.0 s): reuse connections, or raise the budget"
    )


def test_the_kernel_is_asked_once_when_it_names_the_time() -> None:
    """A flow in TIME_WAIT is not asked about again before its time."""
    books = Books(1)
    flow = books.close(books.take(), keeps=40.0)
    books.refuser()
    books.clock.advance(39.9)
    books.refuser()

    assert books.kernel.questions == [flow]


def test_who_waits_gets_a_port_when_time_wait_ends() -> None:
    """A caller in line is served in the moment in which the kernel lets go, which due() names."""
    books = Books(1)
    books.close(books.take(), keeps=40.0)
    caller = books.join()
    books.later(0)

    assert books.ledger.due() == pytest.approx(books.clock.now + 40)
    books.later(39.9)
    assert caller.outcome is None
    books.later(0.1)
    assert caller.lease
    assert caller.woken == 1
    books.leave(caller)


def test_a_port_that_can_be_reused_early() -> None:
    """With tcp_tw_reuse the hold is shorter and runs from the beginning of TIME_WAIT, whose row stays longer."""
    books = Books(1, hold=1.0)
    books.close(books.take(), keeps=59.5)

    assert books.ledger._closings.next_of(books.refuser(), books.clock.now) == pytest.approx(0.5)
    books.clock.advance(0.51)
    assert books.take()


def test_a_port_whose_hold_is_over_is_free_though_its_row_stays() -> None:
    """With tcp_tw_reuse a port that is past its hold is free in spite of its TIME_WAIT."""
    books = Books(1, hold=1.0)
    books.close(books.take(), keeps=58.9)

    assert books.take()


def test_fin_wait_is_asked_about_again_after_growing_pauses() -> None:
    """A close that the peer has not acknowledged may end at any moment: asked soon, then less often."""
    books = Books(1)
    flow = books.close(books.take(), keeps=None, state=State.FIN_WAIT1)
    caller = books.join()
    times = []
    begin = books.clock.now
    while books.clock.now - begin < 10:
        books.later(0)
        due = books.ledger.due()
        assert due is not None
        times.append(books.clock.now - begin)
        books.clock.now = due
    pauses = [after - before for before, after in itertools.pairwise(times)]

    assert pauses[0] == pytest.approx(0.001)
    assert all(after >= before for before, after in itertools.pairwise(pauses))
    assert pauses[-1] == pytest.approx(1.0)
    assert len(books.kernel.questions) < 25
    books.kernel.let_go(flow)
    books.later(1.0)
    assert caller.lease
    books.leave(caller)


def test_fin_wait_becomes_time_wait() -> None:
    """When the peer's FIN has come, the port is due when the kernel says."""
    books = Books(1)
    flow = books.close(books.take(), keeps=None, state=State.FIN_WAIT1)
    books.refuser()
    books.clock.advance(5)
    books.kernel.keep(flow, 60.0)
    error = books.ledger.exhausted(books.refuser(), books.clock.now)

    assert error.next_due == pytest.approx(60.0)


def test_asked_at_the_release() -> None:
    """A release that asks frees what the kernel has let go of, and knows when to expect the rest."""
    books = Books(2)
    gone, held = books.take(), books.take()
    books.open(gone)
    books.kernel.keep(books.open(held), 25.0)
    for lease in (gone, held):
        books.ledger.release(lease, books.clock.now, time_wait=True, ask=True)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 2, time_wait=1)
    books.take()
    assert books.ledger._closings.next_of(books.refuser(), books.clock.now) == pytest.approx(25.0)


def test_overtime_counts_where_ports_are_short() -> None:
    """A port past its time that the kernel still holds counts on, for 2 s at most, where ports are short."""
    books = Books(1)
    flow = books.close(books.take())
    books.kernel.keep(flow, 40.0, late=0.5)
    caller = books.join()
    books.later(40)
    for _ in range(4):
        books.later(0.1)

        assert caller.outcome is None
    books.later(0.1)
    books.later(0.1)
    assert caller.lease
    books.leave(caller)


def test_overtime_has_an_end() -> None:
    """A port that the kernel never lets go of is believed free 2 s after its time: connect() will tell."""
    books = Books(1)
    books.kernel.keep(books.close(books.take()), 40.0, late=1000.0)
    caller = books.join()
    begin = books.clock.now
    while not caller.lease:
        due = books.ledger.due()
        assert due is not None
        books.later(max(0.001, due - books.clock.now))
        assert books.clock.now - begin < 40 + OVERTIME + 1
    books.leave(caller)


def test_a_port_whose_time_is_over_is_asked_about_where_ports_are_plenty_too() -> None:
    """A port past the time that the kernel named counts for as long as the kernel holds it."""
    books = Books(9)
    flow = books.close(books.take(), keeps=70.0)
    books.later(60.0)
    assert books.usages()[str(A)].time_wait == 1
    books.kernel.keep(flow, 10.0, late=0.3)
    books.later(10.0)
    assert books.ledger.held(books.want().space) == 1
    books.later(0.2)
    assert books.ledger.held(books.want().space) == 1
    books.later(0.2)

    assert books.usages() == {}


def test_a_caller_whose_clock_is_old() -> None:
    """Who waited for his turn asks with the time of before: what he learns of a port frees it no earlier."""
    books = Books(1)
    books.close(books.take(), keeps=40.0)
    before = books.clock.now
    books.clock.advance(5.0)
    assert books.ledger.reserve(Caller(), [books.want()], before)
    books.ledger.configure(budget=9)
    books.later(34.9)

    assert books.usages()[str(A)].time_wait == 1
    books.later(0.1)
    books.later(0.1)
    assert books.usages() == {}


@pytest.mark.parametrize("budget", [9, 1])
@pytest.mark.parametrize("state", [State.FIN_WAIT1, State.LAST_ACK, State.ESTABLISHED])
def test_a_port_that_the_kernel_keeps_for_longer_than_a_minute(budget: int, state: State) -> None:
    """What a vanished peer, or a copy of the descriptor, makes the kernel keep counts, be ports short or plenty."""
    books = Books(budget)
    flow = books.close(books.take(), keeps=None, state=state)
    for _ in range(10):
        books.later(61.0)
        assert books.usages()[str(A)].time_wait == 1
    books.kernel.let_go(flow)
    books.later(61.0)

    assert books.usages() == {}


@pytest.mark.parametrize("asks", ["take", "reserve", "join", "advance"])
def test_the_kernel_is_asked_when_a_minute_is_over(asks: str) -> None:
    """Whoever calls first after the time has the kernel asked, and no port is given out before it has answered."""
    books = Books(3)
    kept, gone = books.close(books.take(), keeps=None, state=State.FIN_WAIT1), books.close(books.take())
    books.kernel.let_go(gone)
    books.clock.advance(60.0)
    if asks == "take":
        assert books.ledger.take(Lease(books.ledger, books.want(), None, books.clock.now), books.clock.now)
    elif asks == "reserve":
        books.take()
    elif asks == "join":
        books.ledger.join(Caller(), [books.want()], books.clock.now)
    else:
        books.later(0.0)
        books.take()

    assert books.kernel.questions == [kept, gone]
    books.take()
    assert books.refuser().held == 3


def test_a_question_that_cannot_be_put_frees_nothing() -> None:
    """A port about which the kernel gives no answer counts on, and is asked about again."""
    books = Books(9)
    books.close(books.take(), keeps=0)
    answers = books.ledger._closings._referee.ask
    asked = []

    def out_of_descriptors(flow: Flow) -> None:
        asked.append(flow)
        raise OSError(errno.EMFILE, "too many open files")

    books.ledger._closings._referee = books.kernel.referee._replace(ask=out_of_descriptors)
    books.clock.advance(60.0)
    books.ledger.advance(books.clock.now)
    assert books.ledger.held(books.want().space) == 1
    books.ledger._closings._referee = books.kernel.referee._replace(ask=answers)
    books.later(0.2)

    assert len(asked) == 1
    assert books.usages() == {}


def test_a_kernel_that_cannot_be_asked() -> None:
    """Where the kernel answers no questions the clock alone counts."""
    books = Books(1, asked=False)
    books.close(books.take())
    books.clock.advance(59.9)
    assert books.refuser()

    books.clock.advance(0.1)
    assert books.take()


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("ask", [True, False])
def test_what_is_over_is_forgotten(asked: bool, ask: bool) -> None:
    """Many connections one after the other leave nothing behind in the account, however they were closed."""
    books = Books(9, asked=asked)
    books.take()
    for _ in range(200):
        lease = books.take()
        books.kernel.keep(books.open(lease), 1.0)
        books.ledger.release(lease, books.clock.now, time_wait=True, ask=ask)
        books.later(61)
    account = books.want().accounts[0]

    closings = books.ledger._closings
    assert len(account.kept) + len(account.fresh) + len(account.questions) < 10
    assert len(closings._queue) + len(closings._heap) + len(closings._by_flow) < 10


def test_questions_are_bounded() -> None:
    """Before one answer the kernel is asked about 64 ports at most; the next caller has the others asked about."""
    books = Books(100, capacity=1000)
    leases = books.fill()
    flows = [books.close(lease) for lease in leases]
    books.refuser()

    assert len(books.kernel.questions) == QUESTIONS
    books.kernel.let_go(flows[-1])
    books.take()
    assert len(books.kernel.questions) == 100


def test_a_refusal_with_20_000_in_time_wait_is_quick() -> None:
    """With 20,000 ports in TIME_WAIT a refusal, questions to the kernel included, takes less than a millisecond."""
    books = Books(Budget(20_000, when_full="refuse"), capacity=28_232)
    for number in range(20_000):
        lease = books.take()
        books.kernel.keep(books.open(lease), 30.0)
        books.ledger.release(lease, books.clock.now, time_wait=True)
        if number % 100 == 0:
            books.clock.advance(0.01)
    want, taken = books.want(), []
    for _ in range(400):  # by then all of them have been asked about
        began = time.thread_time()
        refuser = books.ledger.reserve(Caller(), [want], books.clock.now)
        assert refuser is not None
        error = books.ledger.exhausted(refuser, books.clock.now)
        taken.append(time.thread_time() - began)

    assert statistics.median(taken) < 0.001
    assert error.usage.time_wait == 20_000
    assert error.next_due == pytest.approx(28.0)  # the first was closed 2 s ago
    assert len(books.kernel.questions) == 20_000


def test_many_questions_hide_none() -> None:
    """A port that is to be asked about is not forgotten behind others of which all is known."""
    books = Books(Budget(100, rules={"203.0.113.0/24": 71}), capacity=70)
    flows = [books.close(lease) for lease in books.fill(books.want(S, A))]
    flows.append(books.close(books.take(books.want(S, B))))
    books.join(books.want(S, A), books.want(S, C))
    books.later(0)
    due = books.ledger.due()

    assert len(books.kernel.questions) == QUESTIONS
    assert due is not None
    assert due <= books.clock.now
    books.later(0)
    assert set(books.kernel.questions) == set(flows)


def test_a_new_connection_on_an_old_flow() -> None:
    """If the kernel gives out the port of a flow believed in TIME_WAIT, it was free: it is not counted twice."""
    books = Books(3)
    flow = books.close(books.take())
    books.open(books.take(), flow.port)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 3, active=1)
    assert books.events.of(PortFreed) == [PortFreed(flow)]


def test_a_flow_that_was_reused_is_released_again() -> None:
    """A flow that is closed twice holds its port once, until the second hold is over."""
    books = Books(3)
    flow = books.close(books.take())
    books.clock.advance(30)
    lease = books.take()
    books.open(lease, flow.port)
    books.close(lease)
    books.later(31)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 3, time_wait=1)
    books.later(30)
    assert books.usages() == {}


# The kernel's refusal.


def test_a_space_that_the_kernel_refused_is_left_alone() -> None:
    """After connect() found no port newcomers are refused for a moment, though the budget has room."""
    books = Books(9)
    books.ledger.refused(books.take(), books.clock.now)

    assert books.refuser().held == 0
    assert books.events.of(KernelRefused) == [KernelRefused(PortSpace(S, A))]
    books.clock.advance(FIRST_PAUSE)
    assert books.take()


def test_another_space_goes_on() -> None:
    """Other sources and destinations are not affected by the kernel's refusal."""
    books = Books(9)
    books.ledger.refused(books.take(), books.clock.now)

    assert books.take(books.want(S), books.want(T)).space.source == T
    books.take(books.want(S, B))


def test_the_error_says_that_others_hold_the_ports() -> None:
    """A refusal in spite of room is explained by other programs."""
    books = Books(9)
    books.ledger.refused(books.take(), books.clock.now)
    error = books.ledger.exhausted(books.refuser(), books.clock.now)

    assert "holds 0 of" in str(error)
    assert "the kernel has no port left: other programs hold them; add a source address" in str(error)


def test_pauses_after_refusals_grow() -> None:
    """Each refusal in a row doubles the pause, up to 1 s; a connection that opens ends the series."""
    books = Books(9)
    account = books.want().accounts[0]
    pauses = []
    for _ in range(8):
        books.ledger.refused(books.take(), books.clock.now)
        pauses.append(account.blocked_until - books.clock.now)
        books.clock.now = account.blocked_until

    assert pauses == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, LAST_PAUSE, LAST_PAUSE])
    books.open(books.take())
    books.ledger.refused(books.take(), books.clock.now)
    assert account.blocked_until - books.clock.now == pytest.approx(FIRST_PAUSE)


def test_one_caller_at_a_time_finds_out() -> None:
    """When the pause is over the first in line tries; the others wait for its news."""
    books = Books(9)
    books.ledger.refused(books.take(), books.clock.now)
    callers = [books.join() for _ in range(3)]
    books.later(FIRST_PAUSE)

    assert [bool(caller.lease) for caller in callers] == [True, False, False]
    books.refuser()
    books.later(0.5)
    assert not callers[1].lease
    for caller in callers:
        books.leave(caller)


def test_nobody_overtakes_who_is_to_find_out() -> None:
    """When the pause is over newcomers are refused as long as somebody waits, though the timer may be late."""
    books = Books(9)
    books.ledger.refused(books.take(), books.clock.now)
    caller = books.join()
    books.clock.advance(FIRST_PAUSE)

    books.refuser()
    books.later(0)
    assert caller.lease


def test_good_news_serve_the_whole_line() -> None:
    """When the first caller's connection opens, all who wait are served, in order, as far as the budget goes."""
    books = Books(3)
    books.ledger.refused(books.take(), books.clock.now)
    callers = [books.join() for _ in range(4)]
    books.later(FIRST_PAUSE)
    assert callers[0].lease
    books.open(callers[0].lease)

    assert [bool(caller.lease) for caller in callers] == [True, True, True, False]
    assert all(caller.woken for caller in callers[:3])


def test_bad_news_keep_the_line_waiting() -> None:
    """When the first caller is refused, it stands first again, and is tried first after a longer pause."""
    books = Books(3)
    books.ledger.refused(books.take(), books.clock.now)
    first, second = books.join(), books.join()
    books.later(FIRST_PAUSE)
    assert first.lease
    books.ledger.refused(first.lease, books.clock.now)
    books.leave(first)
    again = first.again()
    books.ledger.join(again, [books.want()], books.clock.now)
    books.later(2 * FIRST_PAUSE)

    assert isinstance(again.outcome, Lease)
    assert not second.lease
    books.leave(again)
    books.leave(second)


def test_no_news_are_not_waited_for() -> None:
    """If the caller who was to find out says nothing, the next one tries after 1 s."""
    books = Books(9)
    books.ledger.refused(books.take(), books.clock.now)
    callers = [books.join() for _ in range(2)]
    books.later(FIRST_PAUSE)
    books.later(LAST_PAUSE)

    assert callers[1].lease


def test_a_port_of_ours_that_comes_free_unblocks() -> None:
    """A port that we give back is one that the kernel has: who waits need not wait for the pause to end."""
    books = Books(9)
    held = books.take()
    books.open(held)
    books.ledger.refused(books.take(), books.clock.now)
    caller = books.join()
    books.release(held)

    assert caller.lease


@pytest.mark.parametrize("budget", [2, "20%"])
def test_a_refusal_nudges_the_timer(budget: int | str) -> None:
    """A refusal brings due() nearer for those who waited already, so the timer is told."""
    books = Books(budget, capacity=10)
    leases = books.fill()
    books.join()
    before = books.nudges
    books.ledger.refused(leases[0], books.clock.now)

    assert books.ledger.due() == pytest.approx(books.clock.now + FIRST_PAUSE)
    assert books.nudges > before


def test_who_cannot_be_probed_holds_up_nobody() -> None:
    """If the first in line of a blocked space is kept by its own budget, the next one finds out."""
    books = Books(9)
    own = Budget(1)
    books.take(books.want(S, A, budget=own, client=1))
    books.ledger.refused(books.take(), books.clock.now)
    first, second = books.join(books.want(budget=own, client=1)), books.join()
    books.later(FIRST_PAUSE)

    assert not first.lease
    assert second.lease


def test_a_blocked_space_at_its_limit() -> None:
    """A blocked space that is full, too, is served by the ports that come free."""
    books = Books(2)
    leases = books.fill()
    books.ledger.refused(leases.pop(), books.clock.now)
    caller, other = books.join(), books.join()
    books.later(FIRST_PAUSE)

    assert caller.lease
    books.later(LAST_PAUSE)
    assert not other.lease
    books.release(leases.pop())
    assert other.lease


# The line.


def test_first_come_first_served() -> None:
    """Ports go to those in line in the order in which they came."""
    books = Books(2)
    leases = books.fill()
    callers = [books.join() for _ in range(4)]
    books.release(leases[0])
    books.release(leases[1])

    assert [bool(caller.lease) for caller in callers] == [True, True, False, False]
    assert callers[0].lease
    books.release(callers[0].lease)
    assert [caller.woken for caller in callers] == [1, 1, 1, 0]


def test_a_newcomer_overtakes_nobody() -> None:
    """A port that comes free goes to who waits, not to who asks just then."""
    books = Books(1)
    lease = books.take()
    caller = books.join()
    books.release(lease)

    books.refuser()
    assert caller.lease


def test_ports_found_free_go_to_the_line_first() -> None:
    """If a newcomer's question finds a port free, it goes to who has waited for longer."""
    books = Books(1)
    flow = books.close(books.take(), keeps=50.0)
    caller = books.join()
    books.later(0)
    books.kernel.let_go(flow)
    books.clock.advance(60)
    refused = books.reserve()

    assert isinstance(refused, Account)
    assert caller.lease


def test_joining_finds_what_came_free_in_between() -> None:
    """Who joins while there is room is served at once, and never waits."""
    books = Books(1)
    lease = books.take()
    books.refuser()
    books.release(lease)
    caller = books.join()

    assert caller.lease
    assert books.usages()[str(A)].waiting == 0
    books.leave(caller)


def test_who_waits_for_either_of_two() -> None:
    """A caller that two spaces would do for takes whichever comes first, and then waits for neither."""
    books = Books("20%", capacity=10)
    for_s, for_t = books.fill(books.want(S)), books.fill(books.want(T))
    caller = books.join(books.want(S), books.want(T))
    behind = books.join(books.want(S))

    assert books.usages()[f"{S} -> {A}"].waiting == 2
    books.release(for_t[0])
    assert caller.lease
    assert caller.lease.space.source == T
    assert books.usages()[f"{S} -> {A}"].waiting == 1
    books.release(for_s[0])
    assert behind.lease


def test_two_accounts_are_in_order() -> None:
    """Callers of two destinations under one rule stand in one line; first come first served."""
    books = Books(Budget(9, rules={"203.0.113.0/24": 2}))
    leases = books.fill(books.want(S, A))
    first, second = books.join(books.want(S, B)), books.join(books.want(S, A))
    books.release(leases[0])

    assert first.lease
    assert not second.lease


def test_who_is_kept_by_another_account_lets_others_pass() -> None:
    """If the first in line cannot use the port that came free, the next one gets it; it keeps its place elsewhere."""
    books = Books(2)
    own = Budget(1)
    of_client = books.want(budget=own, client=1)
    mine = books.take(of_client)
    other = books.take()
    first, second, third = books.join(of_client), books.join(), books.join()
    books.release(other)

    assert not first.lease
    assert second.lease
    books.release(mine)
    assert first.lease
    assert not third.lease


def test_a_place_in_line_is_kept_across_accounts() -> None:
    """Who moves to the line of another account stands there by the time of its coming."""
    books = Books(Budget(2, rules={"203.0.113.0/24": 3}))
    own = Budget(1)
    of_client = books.want(S, A, budget=own, client=1)
    mine = books.take(of_client)
    others = books.fill(books.want(S, B))
    early = books.join(of_client)
    late = books.join(books.want(S, B))
    books.release(mine)

    assert early.lease
    assert not late.lease
    books.release(others[0])
    assert late.lease


def test_who_moves_to_another_line_is_told() -> None:
    """A waiter who changes lines is woken, and the timer nudged: there may be idle connections to close there."""
    books = Books(2)
    own = Budget(1)
    of_client = books.want(budget=own, client=1)
    books.take(of_client)
    other = books.take()
    first = books.join(of_client)
    books.take(books.want(S, B, budget=own, client=1))
    nudges = books.nudges
    books.release(other)

    assert not first.lease
    assert first.lines == {of_client.accounts[-1]}
    assert first.woken == 1
    assert books.nudges > nudges


def test_again_keeps_the_place() -> None:
    """A caller whose port was of no use stands where it stood."""
    books = Books(1)
    lease = books.take()
    first, second = books.join(), books.join()
    books.release(lease)
    assert first.lease
    spent = first.lease
    again = first.again()
    books.ledger.join(again, [books.want()], books.clock.now)
    books.release(spent)

    assert isinstance(again.outcome, Lease)
    assert not second.lease


def test_leaving_gives_back_a_crossed_grant() -> None:
    """A lease that was given to a caller in the moment of its leaving goes to the next in line."""
    books = Books(1)
    lease = books.take()
    first, second = books.join(), books.join()
    books.release(lease)
    assert first.lease
    books.leave(first)

    assert second.lease
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 1, dialing=1)


def test_leaving_without_a_grant() -> None:
    """A caller who leaves unserved is given nothing any more."""
    books = Books(1)
    lease = books.take()
    first, second = books.join(), books.join()
    books.leave(first)
    books.release(lease)

    assert not first.lease
    assert first.woken == 0
    assert second.lease


def test_leaving_after_using_the_lease() -> None:
    """A lease that became a connection stays with who had it, when the place in line is given up."""
    books = Books(1)
    lease = books.take()
    caller = books.join()
    books.release(lease)
    assert caller.lease
    books.open(caller.lease)
    books.leave(caller, served=True)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 1, active=1)


def test_who_got_a_connection_never_also_holds_a_lease() -> None:
    """A caller whom its pool gave a connection is passed over, though it still stands in line."""
    books = Books(1)
    lease = books.take()
    first, second = books.join(), books.join()
    connection = object()

    assert first.deliver(connection)
    books.release(lease)
    assert first.outcome is connection
    assert second.lease
    books.leave(first, served=True)
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 1, dialing=1)


def test_who_got_a_lease_takes_no_connection() -> None:
    """Of two deliveries the first counts, and the second is told so."""
    books = Books(1)
    caller = books.join()
    lease = caller.lease

    assert lease
    assert not caller.deliver(object())
    assert caller.leave() is lease


def test_many_who_left_do_not_lengthen_the_line() -> None:
    """Callers who leave from the middle of the line are dropped in time, not kept until their turn."""
    books = Books(1)
    books.take()
    books.join()
    account = books.refuser()
    for _ in range(500):
        books.leave(books.join())

    assert len(account.line) < 60
    assert account.waiting == 1


def test_waiting_is_counted_per_account() -> None:
    """A caller counts as waiting with each account that keeps it, and with none once it has left."""
    books = Books(1)
    own = Budget(1)
    want = books.want(budget=own, client=1)
    books.take(want)
    caller = books.join(want)

    assert {name: usage.waiting for name, usage in books.usages().items()} == {str(A): 1, f"{A} of client": 1}
    books.leave(caller)
    assert {usage.waiting for usage in books.usages().values()} == {0}


def test_who_waits_longest_for_the_port_of_a_lease() -> None:
    """first_in_line() names who has waited longest among all accounts of a lease."""
    books = Books(2)
    own = Budget(1)
    of_client = books.want(budget=own, client=1)
    lease = books.take(of_client)
    other = books.take()

    assert books.ledger.first_in_line(lease) is None
    first, second = books.join(of_client), books.join()
    assert books.ledger.first_in_line(lease) is first
    assert books.ledger.first_in_line(other) is first
    books.leave(first)
    assert books.ledger.first_in_line(lease) is second
    assert lease.wanted


def test_rivals_name_who_holds_what_is_short() -> None:
    """For each account that keeps a caller there is told which pools hold its ports."""
    books = Books(2)
    one, other = Stored("one"), Stored("other")
    leases = [books.take(holder=one), books.take(holder=other)]
    (account, holders), *_ = books.ledger.rivals([books.want()], books.clock.now)

    assert account.name == str(A)
    assert set(holders) == {one, other}
    books.release(leases[0])
    books.take(holder=other)
    assert [holders for _, holders in books.ledger.rivals([books.want()], books.clock.now)] == [[other]]


def test_refuser_names_the_account_or_nobody() -> None:
    """refuser() says who keeps a caller from being served now."""
    books = Books(1)

    assert books.ledger.refuser([books.want()], books.clock.now) is None
    lease = books.take()
    account = books.ledger.refuser([books.want()], books.clock.now)
    assert account
    assert account.name == str(A)
    books.release(lease)
    assert books.ledger.refuser([books.want()], books.clock.now) is None


# Pace.


def test_pace_bounds_what_is_dialled_at_once() -> None:
    """With dialing=2 only two connections to a destination are on their way at once, from all sources."""
    books = Books(Budget(9, dialing=2))
    first = books.take(books.want(S))
    books.take(books.want(T))
    refuser = books.refuser(books.want(S), books.want(U))

    assert (refuser.scope, refuser.name) == ("pace", f"dialing to {A}")
    books.take(books.want(S, B))
    books.open(first)
    books.take(books.want(U))


def test_pace_is_no_port() -> None:
    """A full pace is no full budget, and the refusal says what it is."""
    books = Books(Budget(9, dialing=1))
    books.take()
    error = books.ledger.exhausted(books.refuser(), books.clock.now)

    assert "too many connections are being dialled at once; wait longer, or raise dialing=" in str(error)


@pytest.mark.parametrize("ending", ["open", "release", "refused", "orphan"])
def test_pace_goes_on_when_a_dial_ends(ending: str) -> None:
    """However a dial ends, the next in line begins."""
    books = Books(Budget(9, dialing=1))
    lease = books.take()
    callers = [books.join(), books.join()]
    if ending == "open":
        books.open(lease)
    elif ending == "release":
        books.release(lease)
    elif ending == "refused":
        books.ledger.refused(lease, books.clock.now)
        books.later(FIRST_PAUSE)
    else:
        books.ledger.orphan(lease)
        books.later(0)

    assert [bool(caller.lease) for caller in callers] == [True, False]


def test_pace_goes_on_when_a_dial_leaves_time_wait() -> None:
    """A connection that stood without anybody's notice may leave a TIME_WAIT; the next in line begins all the same."""
    books = Books(Budget(9, dialing=1))
    lease = books.take()
    caller = books.join()
    lease.flow = Flow(S, 50000, A)
    books.kernel.keep(lease.flow)
    books.ledger.release(lease, books.clock.now, time_wait=True)

    assert caller.lease
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 9, dialing=1, time_wait=1)


def test_a_clients_own_pace() -> None:
    """A client whose budget names a pace is bound by it, and not by the ledger's."""
    books = Books(Budget(9, dialing=1))
    own = Budget(5, dialing=2)
    want = books.want(budget=own, client=1)

    assert len(books.fill(want)) == 2
    assert len(books.fill()) == 1
    plain = books.want(budget=Budget(5), client=2)
    assert books.refuser(plain).scope == "pace"


def test_pace_and_budget_are_waited_for_in_turn() -> None:
    """A caller kept by the pace, and then by the budget, is served when both have room."""
    books = Books(Budget(2, dialing=1))
    open_lease = books.take()
    books.open(open_lease)
    dialled = books.take()
    first, second = books.join(), books.join()
    books.open(dialled)

    assert not first.lease
    books.release(open_lease)
    assert first.lease
    books.open(first.lease)
    books.release(dialled)
    assert second.lease


# Levels.


def crossings(books: Books) -> list[tuple[str, str, str, int]]:
    return [(e.account, e.before.name, e.after.name, e.held) for e in books.events.of(LevelCrossed)]


@pytest.mark.parametrize(("budget", "warning", "critical"), [(10, 6, 8), (3, 2, 3), (35, 21, 28), (7, 5, 6)])
def test_levels_are_crossed_once_each_way(budget: int, warning: int, critical: int) -> None:
    """60 % is a warning and 80 % critical; each is told once on the way up and once on the way down."""
    books = Books(budget, capacity=1000)
    leases = books.fill()
    for lease in leases:
        books.release(lease)

    assert crossings(books) == [
        (str(A), "NORMAL", "WARNING", warning),
        (str(A), "WARNING", "CRITICAL", critical),
        (str(A), "CRITICAL", "WARNING", critical - 1),
        (str(A), "WARNING", "NORMAL", warning - 1),
    ]


def test_levels_of_a_budget_of_one() -> None:
    """A budget so small that both levels are one crosses them in one step."""
    books = Books(1)
    books.release(books.take())

    assert crossings(books) == [(str(A), "NORMAL", "CRITICAL", 1), (str(A), "CRITICAL", "NORMAL", 0)]


def test_time_wait_counts_for_the_level() -> None:
    """Closing with TIME_WAIT changes no level: the port is still held."""
    books = Books(1)
    books.close(books.take())

    assert crossings(books) == [(str(A), "NORMAL", "CRITICAL", 1)]


def test_the_range_has_no_level() -> None:
    """Levels are of budgets; the range is what the kernel has."""
    books = Books(50, capacity=5)
    books.fill()

    assert crossings(books) == []


def test_a_clients_level() -> None:
    """A client's budget crosses levels of its own."""
    books = Books(50)
    books.fill(books.want(budget=Budget(2), client=1))

    assert [event.budget for event in books.events.of(LevelCrossed)] == [2]
    assert books.events.of(LevelCrossed)[0].after is Level.CRITICAL


def test_pressed_above_the_warning_level() -> None:
    """A lease is pressed where ports are short: above 60 %, while somebody waits, or while the kernel has none."""
    books = Books(10)
    leases = [books.take() for _ in range(5)]

    assert not leases[0].pressed
    leases.append(books.take())
    assert leases[0].pressed
    books.release(leases.pop())
    assert not leases[0].pressed
    books.ledger.refused(leases.pop(), books.clock.now)
    assert leases[0].pressed


# Usage, events, errors.


def test_usage_tells_the_states_apart() -> None:
    """Dialing, active, idle, TIME_WAIT and waiting are counted apart; held is all but the waiting."""
    books = Books(6)
    leases = books.fill()
    for lease in leases[1:]:
        books.open(lease)
    leases[1].idle = leases[2].idle = True
    books.close(leases[5])
    books.join()
    usage = books.usages()[str(A)]

    assert usage == Usage(str(A), "ledger", 6, dialing=1, active=2, idle=2, time_wait=1, waiting=1)
    assert usage.held == 6


def test_usage_has_all_accounts_in_use() -> None:
    """Each account that holds ports or keeps somebody waiting has a Usage; the others have none."""
    books = Books(Budget(5, dialing=3), capacity=10)
    books.take(books.want(budget=Budget(2), client=1))
    books.release(books.take(books.want(S, B)))

    assert sorted((usage.scope, usage.account, usage.budget, usage.held) for usage in books.ledger.usage(0.0)) == [
        ("client", str(A), 2, 1),
        ("ledger", str(A), 5, 1),
        ("pace", f"dialing to {A}", 3, 1),
        ("range", f"{S} -> {A}", 10, 1),
    ]


def test_a_plain_percentage_has_one_account_a_space() -> None:
    """Where the budget is a share of each space, one account says all: no second one for the range."""
    books = Books("50%", capacity=10)
    books.take()

    assert books.ledger.usage(books.clock.now) == [Usage(f"{S} -> {A}", "ledger", 5, dialing=1)]


def test_usage_asks_the_kernel() -> None:
    """Who asks for the usage gets what is true now: ports that the kernel has let go of are not in it."""
    books = Books(9)
    books.close(books.take(), keeps=0)
    books.close(books.take(), keeps=30.0)

    assert books.usages()[str(A)].time_wait == 1


def test_usage_reads_the_clock_itself() -> None:
    """usage() may be called without a time."""
    ledger = Ledger(3)

    assert ledger.usage() == []


def test_usage_prints_what_is_held() -> None:
    """A Usage prints the account, what it holds and in which states, leaving out what is zero."""
    usage = Usage("10.0.0.5 -> 203.0.113.9:443", "ledger", 500, active=12, idle=3, time_wait=485)

    assert str(usage) == "10.0.0.5 -> 203.0.113.9:443 holds 500 of 500 ports (12 active, 3 idle, 485 in TIME_WAIT)"
    assert str(Usage("a", "ledger", 5)) == "a holds 0 of 5 ports"


def test_exhausted_carries_the_numbers() -> None:
    """BudgetExhausted has the usage, the time until the next port, and the time waited; it is also an event."""
    books = Books(2)
    books.open(books.take())
    books.close(books.take(), keeps=42.0)
    error = books.ledger.exhausted(books.refuser(), books.clock.now, 1.5)

    assert isinstance(error, BudgetExhausted)
    assert error.usage == Usage(str(A), "ledger", 2, active=1, time_wait=1)
    assert error.next_due == pytest.approx(42.0)
    assert error.waited == 1.5
    assert "after 1.5 s in line" in str(error)
    assert books.events.of(BudgetRefused) == [BudgetRefused(error.usage)]


def test_exhausted_names_the_clients_budget() -> None:
    """A refusal by a client's own budget says so."""
    books = Books(9)
    want = books.want(budget=Budget(1), client=1)
    books.open(books.take(want))

    assert str(books.ledger.exhausted(books.refuser(want), 0.0)) == (
        f"{A} holds 1 of 1 ports (1 active) of this client's own budget: "
        "send fewer requests at once, allow a longer wait, or raise the budget"
    )


def test_events_of_a_connection() -> None:
    """A port's life is told in order: reserved, opened, freed."""
    books = Books(9)
    lease = books.take()
    books.clock.advance(0.25)
    flow = books.open(lease)
    books.close(lease)
    books.later(60)

    assert books.events == [PortReserved(PortSpace(S, A)), ConnectionOpened(flow, 0.25), PortFreed(flow)]


def test_events_of_a_wait() -> None:
    """A wait is told when it begins, with the account's usage, and when it ends, with its length."""
    books = Books(1)
    lease = books.take()
    books.events.clear()
    served, unserved = books.join(), books.join()
    books.clock.advance(2)
    books.release(lease)
    books.leave(served, served=True)
    books.clock.advance(1)
    books.leave(unserved)
    waits = [event for event in books.events if isinstance(event, (WaitStarted, WaitEnded))]

    assert waits == [
        WaitStarted(Usage(str(A), "ledger", 1, dialing=1, waiting=1)),
        WaitStarted(Usage(str(A), "ledger", 1, dialing=1, waiting=2)),
        WaitEnded(2.0, True),
        WaitEnded(3.0, False),
    ]


def test_a_wait_that_did_not_begin_does_not_end() -> None:
    """Who is served while joining has not waited: neither event is told."""
    books = Books(1)
    caller = books.join()
    books.leave(caller)

    assert [event for event in books.events if isinstance(event, (WaitStarted, WaitEnded))] == []


def test_a_wait_over_several_ports_is_one() -> None:
    """A caller who stands in line again after a port of no use has waited once."""
    books = Books(1)
    lease = books.take()
    caller = books.join()
    books.release(lease)
    assert caller.lease
    spent, again = caller.lease, caller.again()
    books.ledger.join(again, [books.want()], books.clock.now)
    books.clock.advance(1)
    books.release(spent)
    books.leave(again, served=True)

    assert len(books.events.of(WaitStarted)) == 1
    assert books.events.of(WaitEnded) == [WaitEnded(1.0, True)]


def test_events_are_told_without_the_lock() -> None:
    """A subscriber may use the ledger itself."""
    books = Books(1)
    seen: list[int] = []
    books.ledger.subscribe(lambda event: seen.append(len(books.ledger.usage(books.clock.now))))
    books.release(books.take())

    assert seen


def test_unsubscribed() -> None:
    """Who has unsubscribed is told nothing more, and others are."""
    books = Books(3)
    seen: list[Event] = []
    end = books.ledger.subscribe(seen.append)
    books.take()
    end()
    books.take()

    assert len(seen) == 1
    assert len(books.events) >= 2
    assert books.ledger.heard


@dataclass
class Recorder:
    """A subscriber as users write them: a dataclass, which has no hash."""

    seen: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.seen.append(event)
        raise ValueError("broken")


def test_a_broken_subscriber_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """What a subscriber raises is logged once, reaches no caller, and keeps no other from being told."""
    books = Books(9)
    broken, other = Recorder(), Recorder()
    books.ledger.subscribe(broken)
    books.ledger.subscribe(other)
    with caplog.at_level(logging.ERROR, "fewports"):
        for _ in range(3):
            books.take()

    assert len(broken.seen) == len(other.seen) == len(books.events) == 3
    assert [record.getMessage().count("this is logged once") for record in caplog.records] == [1, 1]
    assert caplog.records[0].exc_info


def test_a_subscriber_that_is_interrupted() -> None:
    """A KeyboardInterrupt in a subscriber passes on, and leaves nobody in line without its wake-up call."""
    books = Books(1)
    lease = books.take()
    caller = books.join()

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    end = books.ledger.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        books.release(lease)
    end()
    books.later(0)

    assert caller.lease
    assert caller.woken == 1


def test_repr_is_for_the_operator() -> None:
    """A ledger prints how many spaces it has, and what is held, in TIME_WAIT, and waited for."""
    books = Books(3)
    books.take(books.want(S, B))
    books.close(books.take())
    books.fill()
    caller = books.join()

    assert repr(books.ledger) == "<Ledger 2 spaces, 4 held, 1 in TIME_WAIT, 1 waiting>"
    assert repr(caller.wants[0].accounts[1]) == f"<Account {A} (ledger) 3 of 3 held, 1 waiting>"


def test_repr_while_others_use_the_ledger() -> None:
    """A ledger can be printed at any time."""
    books = Books(9)
    over = threading.Event()

    def use() -> None:
        number = 0
        while not over.is_set():
            number += 1
            books.release(books.take(books.want(S, Destination(f"198.51.100.{number % 200}", 443))))

    thread = threading.Thread(target=use)
    thread.start()
    try:
        for _ in range(300):
            assert repr(books.ledger).startswith("<Ledger ")
    finally:
        over.set()
        thread.join()


# Orphans, watched leases, lost ones.


def test_an_orphan_is_given_back_by_the_next_call() -> None:
    """A lease given back from a finalizer is seen to by whoever calls next."""
    books = Books(1)
    lease = books.take()
    books.ledger.orphan(lease)

    assert books.take() is not lease


def test_an_orphan_with_time_wait() -> None:
    """The port of a connection that was dropped counts for as long as the kernel holds it."""
    books = Books(1)
    lease = books.take()
    flow = books.open(lease)
    books.kernel.keep(flow, 20.0)
    books.ledger.orphan(lease)

    assert books.ledger._closings.next_of(books.refuser(), books.clock.now) == pytest.approx(20.0)


def test_an_orphan_without_time_wait() -> None:
    """A connection that was dropped and leaves nothing frees its port at once."""
    books = Books(1)
    lease = books.take()
    books.kernel.keep(books.open(lease), 20.0)
    books.ledger.orphan(lease, time_wait=False)

    assert books.take()


def test_an_orphan_that_was_released_is_no_error() -> None:
    """A finalizer that comes late finds nothing to do."""
    books = Books(1)
    lease = books.take()
    books.release(lease)
    books.ledger.orphan(lease)

    assert books.take()
    assert books.refuser()


def test_an_orphan_nudges_the_timer_while_somebody_waits() -> None:
    """No lock can be taken in a finalizer, so the timer is told to serve the line."""
    books = Books(1)
    lease = books.take()
    caller = books.join()
    before = books.nudges
    books.ledger.orphan(lease)

    assert books.nudges > before
    books.later(0)
    assert caller.lease


@dataclass(eq=False)
class Owner:
    """Gives its lease back when it is garbage-collected, as a socket does."""

    ledger: Ledger
    lease: Lease

    def __post_init__(self) -> None:
        weakref.finalize(self, self.ledger.orphan, self.lease).atexit = False


def test_a_finalizer_under_the_lock() -> None:
    """A finalizer that runs while the same thread holds the ledger's lock neither blocks nor loses the port."""
    books = Books(2)
    owner = Owner(books.ledger, books.take())
    books.fill()
    caller = books.join()
    with books.ledger._lock:
        del owner
        gc.collect()
    books.later(0)

    assert caller.lease


def test_a_watched_lease_counts_as_open() -> None:
    """The port of a socket in unknown hands counts as active until the kernel shows its end."""
    books = Books(2)
    lease = books.take()
    flow = books.open(lease)
    books.kernel.keep(flow, None, State.ESTABLISHED)
    books.ledger.orphan(lease, watch=True)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 2, active=1)
    books.later(500)
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 2, active=1)
    books.kernel.let_go(flow)
    assert books.usages() == {}
    assert books.events.of(PortFreed) == [PortFreed(flow)]


def test_a_watched_lease_becomes_time_wait() -> None:
    """When its unknown owner closes a connection first, the port counts as TIME_WAIT for as long as that lasts."""
    books = Books(1)
    lease = books.take()
    flow = books.open(lease)
    books.kernel.keep(flow, None, State.ESTABLISHED)
    books.ledger.orphan(lease, watch=True)
    books.refuser()
    books.kernel.keep(flow, 30.0)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 1, time_wait=1)
    assert books.ledger._closings.next_of(books.refuser(), books.clock.now) == pytest.approx(30.0)
    books.kernel.let_go(flow)
    books.later(30.5)
    assert books.take()


def test_who_waits_for_a_watched_lease() -> None:
    """While somebody waits the kernel is asked about watched ports again and again, at most every second."""
    books = Books(1)
    lease = books.take()
    flow = books.open(lease)
    books.kernel.keep(flow, None, State.ESTABLISHED)
    books.ledger.orphan(lease, watch=True)
    caller = books.join()
    for _ in range(30):
        due = books.ledger.due()
        assert due is not None
        books.later(max(0.0, due - books.clock.now))
    books.kernel.let_go(flow)
    books.later(1.0)

    assert caller.lease


def test_a_watched_lease_where_the_kernel_cannot_be_asked() -> None:
    """Where nobody can say when a socket in unknown hands is closed, its port counts as a closed one."""
    books = Books(1, asked=False)
    lease = books.take()
    books.open(lease)
    books.ledger.orphan(lease, watch=True)
    books.refuser()
    books.clock.advance(59)
    books.refuser()
    books.clock.advance(1.0)

    assert books.take()


def test_a_lease_whose_owner_is_gone_is_found() -> None:
    """A lease that its owner never gave back, as after a KeyboardInterrupt, is given back after a second."""
    books = Books(1)
    lease = books.take()
    books.kernel.keep(books.open(lease), 500.0)
    sock = Sock()
    lease.socket = weakref.ref(sock)
    books.later(10)

    assert books.usages()[str(A)].active == 1
    sock.number = -1
    books.later(1)
    books.later(1)
    assert books.usages()[str(A)].time_wait == 1
    books.release(lease)
    assert books.usages()[str(A)].held == 1


def test_a_lease_whose_descriptor_moves_is_not_lost() -> None:
    """While the descriptor passes to another object the lease is not taken for lost."""
    books = Books(1)
    lease = books.take()
    books.open(lease)
    sock = Sock()
    sock.passing, sock.number = True, -1
    lease.socket = weakref.ref(sock)
    for _ in range(5):
        books.later(1)

    assert books.usages()[str(A)].active == 1


def test_a_lease_that_no_socket_ever_had() -> None:
    """A lease whose taker died before it had a socket is given back after a minute."""
    books = Books(1)
    books.take()
    books.later(59)

    assert books.usages()[str(A)].dialing == 1
    books.later(2)
    books.later(2)
    assert books.usages() == {}


# configure().


def test_configure_counts_what_is_held() -> None:
    """Ports held, closing and being dialled count against a new budget, and nobody loses one."""
    books = Books(5)
    dialled, opened, closed = books.take(), books.take(), books.take()
    books.open(opened)
    books.close(closed)
    books.ledger.configure(4)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 4, dialing=1, active=1, time_wait=1)
    books.take()
    books.refuser()
    books.release(dialled)
    books.release(opened)
    books.later(60)
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 4, dialing=1)


def test_configure_may_lower_the_budget() -> None:
    """Under a lower budget all that is held stays held, and newcomers are refused until it fits."""
    books = Books(4)
    leases = books.fill()
    books.ledger.configure(2)
    for lease in leases[:2]:
        books.refuser()
        books.release(lease)

    books.refuser()
    books.release(leases[2])
    assert books.take()


def test_configure_may_raise_the_budget() -> None:
    """A higher budget serves the line, in order, and wakes those served."""
    books = Books(1)
    books.take()
    callers = [books.join() for _ in range(3)]
    books.ledger.configure(3)

    assert [bool(caller.lease) for caller in callers] == [True, True, False]
    assert all(caller.woken for caller in callers[:2])
    assert books.usages()[str(A)].waiting == 1


def test_configure_keeps_the_order_of_the_line() -> None:
    """Callers who waited in several lines stand in the new ones by the time of their coming."""
    books = Books(1)
    leases = [*books.fill(books.want(S, A)), *books.fill(books.want(S, B))]
    callers = [books.join(books.want(S, A if number % 2 else B)) for number in range(4)]
    books.ledger.configure(Budget(9, rules={"203.0.113.0/24": 2}))
    for lease in leases:
        books.release(lease)

    assert [bool(caller.lease) for caller in callers] == [True, True, False, False]


def test_configure_changes_what_is_counted_together() -> None:
    """From ports per destination to a share per source and back: all is charged to the accounts of the new rule."""
    books = Books(4, capacity=10)
    leases = [books.take(books.want(source, to)) for source in (S, T) for to in (A, B)]
    books.close(leases[0])
    books.ledger.configure("50%")

    assert {(usage.account, usage.held) for usage in books.ledger.usage(books.clock.now)} == {
        (f"{source} -> {to}", 1) for source in (S, T) for to in (A, B)
    }
    books.ledger.configure(Budget(9, rules={"203.0.113.0/24": 5}))
    assert books.usages()["203.0.113.0/24"].held == 4
    books.take(books.want(S, C))
    books.refuser()


def test_configure_keeps_clients_apart() -> None:
    """A client's own budget is not changed by the ledger's."""
    books = Books(5)
    want = books.want(budget=Budget(2), client=1)
    books.fill(want)
    books.ledger.configure(9)

    assert books.refuser(books.want(budget=want.budget, client=1)).scope == "client"
    assert books.usages()[str(A)].held == 2


def test_configure_keeps_the_pace() -> None:
    """What is being dialled counts for a new pace."""
    books = Books(9)
    leases = [books.take(), books.take()]
    books.ledger.configure(Budget(9, dialing=2))

    assert books.refuser().scope == "pace"
    books.open(leases[0])
    assert books.take()


def test_configure_watched_and_orphaned() -> None:
    """Ports in unknown hands, and those given back just now, are charged anew as well."""
    books = Books(5)
    watched, orphan = books.take(), books.take()
    flow = books.open(watched)
    books.kernel.keep(flow, None, State.ESTABLISHED)
    books.ledger.orphan(watched, watch=True)
    books.later(0)
    books.ledger.orphan(orphan)
    books.ledger.configure(4)

    assert books.usages()[str(A)] == Usage(str(A), "ledger", 4, active=1)
    books.kernel.let_go(flow)
    assert books.usages() == {}


def test_configure_while_the_kernel_refuses() -> None:
    """A new budget begins without the memory of a refusal, and nobody is left behind in an old line."""
    books = Books(5)
    books.ledger.refused(books.take(), books.clock.now)
    caller = books.join()
    books.ledger.configure(6)

    assert caller.lease
    for _ in range(3):
        books.later(LAST_PAUSE)
    assert {usage.waiting for usage in books.usages().values()} == {0}


def test_configure_between_wanting_and_reserving() -> None:
    """A caller who named its accounts before configure() is charged to those after it."""
    books = Books(5)
    stale = [books.want()]
    books.ledger.configure(2)
    callers = [Caller() for _ in range(3)]
    books.ledger.reserve(callers[0], stale, books.clock.now)
    books.ledger.join(callers[1], stale, books.clock.now)
    books.ledger.join(callers[2], stale, books.clock.now)

    assert [bool(caller.lease) for caller in callers] == [True, True, False]
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 2, dialing=2, waiting=1)
    books.refuser()
    assert callers[0].lease
    books.release(callers[0].lease)
    assert callers[2].lease


def test_configure_in_the_middle_of_a_release() -> None:
    """A port whose connection is closed while configure() runs is charged to the new accounts, and freed from them."""
    books = Books(5)
    lease = books.take()
    books.open(lease)
    hold = books.kernel.referee.hold

    def during(source: str, destination: str, now: float) -> float:
        books.ledger.configure(4)
        return hold(source, destination, now)

    books.ledger._closings._referee = books.kernel.referee._replace(hold=during)
    books.ledger.release(lease, books.clock.now, time_wait=True)

    assert [usage.time_wait for usage in books.ledger.usage(books.clock.now) if usage.scope == "ledger"] in ([1], [])
    books.later(100)
    assert books.usages() == {}


def test_configure_sources() -> None:
    """configure() sets the sources of faces that have none of their own, and leaves the budget."""
    ledger = Ledger(3)
    ledger.configure(sources=[S, T])

    assert ledger.sources.addresses == (S, T)
    assert str(ledger.budget.limit) == "3"


def test_configure_tells_levels_from_then_on() -> None:
    """After configure() levels are crossed by the new limit."""
    books = Books(100)
    leases = [books.take() for _ in range(5)]
    books.ledger.configure(10)
    books.events.clear()
    leases.append(books.take())
    books.release(leases.pop())

    assert crossings(books) == [(str(A), "NORMAL", "WARNING", 6), (str(A), "WARNING", "NORMAL", 5)]


# The range, the cache, fork.


def test_a_range_that_shrinks() -> None:
    """When the operator makes the range smaller, shares are of the new one."""
    books = Books("50%", capacity=10)
    leases = books.fill()
    books.kernel.capacity = 4
    books.refuser()
    for lease in leases[:3]:
        books.release(lease)

    assert len(books.fill()) == 0
    books.release(leases[3])
    assert len(books.fill()) == 1


def test_a_range_that_grows() -> None:
    """When the range becomes larger, those in line are served before newcomers."""
    books = Books("50%", capacity=4)
    books.fill()
    callers = [books.join() for _ in range(3)]
    books.kernel.capacity = 8
    books.refuser()

    assert [bool(caller.lease) for caller in callers] == [True, True, False]


def test_a_cache_that_overflows_keeps_accounts_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts in use stay the same when the cache of wants is emptied; those of no use are forgotten."""
    monkeypatch.setattr(local, "CACHED_WANTS", 10)
    books = Books(2)
    lease = books.take()
    books.close(books.take())
    caller = books.join()
    for number in range(200):
        books.release(books.take(books.want(S, Destination(f"198.51.100.{number}", 443))))
    gc.collect()

    assert len(books.ledger._wants) <= 10
    assert len(books.ledger._accounts) < 30
    assert books.usages()[str(A)] == Usage(str(A), "ledger", 2, dialing=1, time_wait=1, waiting=1)
    books.refuser()
    books.release(lease)
    assert caller.lease
    books.refuser()


def test_forget_starts_clean() -> None:
    """A forked child holds nothing, and what the parent's threads do with inherited leases is no error there."""
    books = Books(2)
    opened, dialled = books.take(), books.take()
    books.open(opened)
    books.join()
    left = books.ledger.forget()

    assert set(left) == {opened, dialled}
    assert books.usages() == {}
    assert repr(opened).endswith("left behind>")
    books.release(opened)
    books.ledger.release(dialled, books.clock.now, time_wait=True)
    books.ledger.orphan(opened)
    assert len(books.fill()) == 2


def test_forget_with_the_lock_held() -> None:
    """The fork may have happened while another thread held the lock: the child has one of its own."""
    books = Books(2)
    books.take()
    books.ledger._lock.acquire()
    books.ledger.forget()

    assert books.take()


# Threads.


def test_exact_under_threads() -> None:
    """16 threads that take, wait for and give back ports never hold more than the budget, and end with none."""
    books = Books(Budget(5, dialing=3))
    ledger, clock = books.ledger, time.monotonic
    most, failures = [0], []

    def work() -> None:
        try:
            for number in range(60):
                bell = threading.Event()
                waiter = Waiter(bell.set)
                wants = [ledger.want(PortSpace(S if number % 2 else T, A), 0.0)]
                if ledger.reserve(waiter, wants, clock()):
                    ledger.join(waiter, wants, clock())
                    # Who stands in another line from now on is woken too, without an outcome.
                    while not waiter.decided:
                        assert bell.wait(10)
                        bell.clear()
                lease = waiter.outcome
                assert isinstance(lease, Lease)
                ledger.opened(lease, Flow(S, 1000 + id(lease) % 60000, A), clock())
                most[0] = max(most[0], wants[0].accounts[1].held)
                ledger.release(lease, clock())
                ledger.leave(waiter, clock(), served=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert 0 < most[0] <= 5
    assert books.usages() == {}
    assert not books.ledger._full


def timed(work: Callable[[], object], rounds: int = 200) -> float:
    best = inf
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(rounds):
            work()
        best = min(best, time.perf_counter() - begin)
    return best / rounds


def test_the_cost_of_a_reservation_does_not_grow() -> None:
    """Reserve and release cost about the same with 5000 ports held and 1000 in TIME_WAIT as with none."""
    books = Books(20_000, capacity=30_000)
    want = books.want()
    empty = timed(lambda: books.release(books.take(want)))
    for _ in range(5000):
        books.open(books.take(want))
    for _ in range(1000):
        books.close(books.take(want))
    full = timed(lambda: books.release(books.take(want)))

    assert full < 5 * empty
