"""What the package offers to tests of code on it: it must do as the real thing does."""

from __future__ import annotations

import pytest
from support.listeners import listen

import fewports
from fewports.address import Destination, Flow, PortSpace
from fewports.budget import Budget
from fewports.events import ConnectionOpened, LevelCrossed, PortReserved
from fewports.kernel.diag import State
from fewports.ledger.account import Lease, Waiter
from fewports.testing import RANGE, Captured, ManualClock, ScriptedKernel, occupied, small_ledger

THERE = "203.0.113.1:443"
FLOW = Flow("192.0.2.1", 40000, Destination("203.0.113.1", 443))


def ask(kernel: ScriptedKernel, flow: Flow = FLOW) -> tuple[State, float | None] | None:
    assert kernel.referee.ask is not None
    row = kernel.referee.ask(flow)
    return None if row is None else (row.state, row.remaining)


def test_the_clock_stands_until_it_is_moved() -> None:
    """A clock tells the same time until somebody moves it on."""
    clock = ManualClock(5.0)

    assert clock() == clock() == 5.0
    assert clock.advance(2.5) == 7.5
    assert clock() == 7.5


def test_the_clock_does_not_go_back() -> None:
    """A step back is refused, and changes nothing."""
    clock = ManualClock(5.0)
    with pytest.raises(ValueError, match=r"does not go back by 1 s"):
        clock.advance(-1)

    assert clock() == 5.0


def test_captured_events_are_in_their_order() -> None:
    """All that a ledger emits is kept, and can be asked for by kind."""
    ledger, captured = small_ledger(), Captured()
    ledger.subscribe(captured)
    with occupied(ledger, THERE, 2):
        pass

    assert [type(event) for event in captured[:2]] == [PortReserved, ConnectionOpened]
    assert len(captured.of(PortReserved)) == len(captured.of(ConnectionOpened)) == 2
    assert len(captured) > 4  # the levels that were crossed, too
    assert {type(event) for event in captured} == {PortReserved, ConnectionOpened, LevelCrossed}


def test_a_scripted_kernel_has_let_go_of_what_it_was_not_told_to_keep() -> None:
    """A flow is free until keep() is called for it; every question is noted."""
    kernel = ScriptedKernel(ManualClock())

    assert ask(kernel) is None
    assert kernel.questions == [FLOW]
    assert not kernel.holds(FLOW)
    assert kernel.questions == [FLOW]  # to look is not to ask


def test_a_scripted_kernel_keeps_a_flow_for_its_time() -> None:
    """What is kept is held for so many seconds, counted down; let_go() ends it before."""
    clock = ManualClock()
    kernel = ScriptedKernel(clock)
    kernel.keep(FLOW, 10.0)
    clock.advance(4.0)

    assert ask(kernel) == (State.TIME_WAIT, 6.0)
    clock.advance(6.0)
    assert ask(kernel) is None
    kernel.keep(FLOW, 10.0)
    kernel.let_go(FLOW)
    assert not kernel.holds(FLOW)


def test_a_scripted_kernel_may_be_late() -> None:
    """With late= a flow is held for longer than the kernel said, as its coarse timers do."""
    clock = ManualClock()
    kernel = ScriptedKernel(clock)
    kernel.keep(FLOW, 10.0, late=0.5)
    clock.advance(10.25)

    assert ask(kernel) == (State.TIME_WAIT, 0.0)
    clock.advance(0.25)
    assert ask(kernel) is None


def test_a_scripted_kernel_keeps_without_end() -> None:
    """With seconds=None a flow is held until let_go(), and the kernel names no time."""
    clock = ManualClock()
    kernel = ScriptedKernel(clock)
    kernel.keep(FLOW, None, State.FIN_WAIT1)
    clock.advance(1e6)

    assert ask(kernel) == (State.FIN_WAIT1, None)


def test_a_ledger_believes_its_scripted_kernel() -> None:
    """A port is given again when the scripted kernel says so, and a changed range counts from then on."""
    clock = ManualClock()
    kernel = ScriptedKernel(clock, capacity=2)
    ledger = small_ledger("100%", kernel=kernel)
    space = PortSpace(FLOW.source, FLOW.destination)
    with occupied(ledger, THERE, 2, now=clock()):
        waiter = Waiter(int)
        assert ledger.reserve(waiter, [ledger.want(space, clock())], clock()) is not None
    kernel.capacity = 3
    with occupied(ledger, THERE, 3, now=clock()):
        assert ledger.held(space) == 3

    assert ledger.held(space) == 0


def test_a_kernel_that_cannot_be_asked() -> None:
    """With asked=False the ledger has nothing but its clock."""
    clock = ManualClock()
    kernel = ScriptedKernel(clock, hold=30.0, asked=False)
    ledger = small_ledger(1, kernel=kernel)
    waiter = Waiter(int)
    want = ledger.want(PortSpace(FLOW.source, FLOW.destination), clock())
    assert ledger.reserve(waiter, [want], clock()) is None
    lease = waiter.outcome
    assert isinstance(lease, Lease)
    ledger.opened(lease, FLOW, clock())
    ledger.release(lease, clock(), time_wait=True)

    assert kernel.referee.ask is None
    assert ledger.reserve(Waiter(int), [want], clock.advance(29.9)) is not None
    again = Waiter(int)
    assert ledger.reserve(again, [want], clock.advance(0.2)) is None


def test_a_small_ledger_refuses_the_fourth() -> None:
    """By default there are three ports to each destination, and whoever asks for one more is told at once."""
    ledger = small_ledger()
    with occupied(ledger, THERE, 3), occupied(ledger, "203.0.113.2:443", 3):
        with pytest.raises(fewports.BudgetExhausted) as raised, occupied(ledger, THERE, 1):
            raise AssertionError("a fourth port of three")

        assert str(raised.value).startswith(f"{THERE} holds 3 of 3 ports (3 active): ")
        assert raised.value.waited == 0


@pytest.mark.parametrize(("budget", "limit"), [(7, 7), ("50%", RANGE // 2), (Budget(9, wait=1), 9)], ids=str)
def test_a_small_ledger_with_another_budget(budget: int | str | Budget, limit: int) -> None:
    """The budget is a number, a percentage of the scripted range or a Budget, which stays what it is."""
    kernel = ScriptedKernel(ManualClock())
    ledger = small_ledger(budget, kernel=kernel)
    with occupied(ledger, THERE, limit), pytest.raises(fewports.BudgetExhausted), occupied(ledger, THERE, 1):
        raise AssertionError("one port more than the budget")

    assert ledger.budget.refuses is not isinstance(budget, Budget)


def test_real_connections_through_a_small_ledger() -> None:
    """Without a scripted kernel a small ledger serves real sockets, and refuses the one too many."""
    ledger = small_ledger(1)
    with (
        listen(["127.0.0.1"])[0] as listener,
        fewports.create_connection(listener.getsockname(), ledger=ledger),
    ):
        with pytest.raises(fewports.BudgetExhausted):
            fewports.create_connection(listener.getsockname(), ledger=ledger)

        assert [usage.active for usage in ledger.usage() if usage.scope == "ledger"] == [1]


@pytest.mark.parametrize(
    ("where", "source"), [(THERE, "192.0.2.1"), ("[2001:db8:a::1]:443", "2001:db8::1"), (THERE, "10.0.0.5")]
)
def test_occupied_ports_are_open_connections(where: str, source: str) -> None:
    """Occupied ports count as active, each with a flow of its own, and are given back at the end."""
    ledger = small_ledger()
    with occupied(ledger, where, 3, source=source if source == "10.0.0.5" else "") as leases:
        assert {str(lease.space) for lease in leases} == {f"{source} -> {where}"}
        assert len({lease.flow for lease in leases}) == 3
        assert [usage.active for usage in ledger.usage(0.0) if usage.scope == "ledger"] == [3]

    assert ledger.usage(0.0) == []


def test_occupied_gives_back_what_it_took_before_it_failed() -> None:
    """If there are not so many ports, none of them stays taken."""
    ledger = small_ledger()
    with pytest.raises(fewports.BudgetExhausted), occupied(ledger, THERE, 4):
        raise AssertionError("four ports of three")

    assert ledger.usage(0.0) == []


def test_occupied_counts_for_its_host() -> None:
    """With host= the ports are charged to the rule for that name."""
    ledger = small_ledger(Budget(3, rules={"api.test": 1}, when_full="refuse"))
    with (
        occupied(ledger, THERE, 1, host="api.test"),
        pytest.raises(fewports.BudgetExhausted) as raised,
        occupied(ledger, "203.0.113.2:443", 1, host="api.test"),
    ):
        raise AssertionError("a second port of one")

    assert raised.value.usage.account == "api.test"
