"""What errors say: whose limit, how much, what to do; and that they survive a trip to another process."""

from __future__ import annotations

import pickle

import pytest

import fewports
from fewports.errors import BudgetExhausted, FewportsError, InvalidOption, LeaseError, NoUsableSource
from fewports.usage import Usage

SPACE = "10.0.0.5 -> 203.0.113.9:443"
HOST = "203.0.113.9:443"


def exhausted(account: str, scope: str, budget: int, **numbers: int) -> str:
    return str(BudgetExhausted(Usage(account, scope, budget, **numbers)))


def test_a_full_budget_says_all() -> None:
    """The message names the account, the numbers of each state, when the next port is due, and what to do."""
    usage = Usage(SPACE, "ledger", 500, active=12, idle=3, time_wait=485)
    error = BudgetExhausted(usage, next_due=4.21, waited=30.04)

    assert str(error) == (
        "10.0.0.5 -> 203.0.113.9:443 holds 500 of 500 ports (12 active, 3 idle, 485 in TIME_WAIT; next in 4.2 s)"
        " after 30.0 s in line: reuse connections, or add a source address"
    )


def test_what_is_zero_is_left_out() -> None:
    """States without ports, a wait too short to tell and a due time that nobody knows are not in the message."""
    error = BudgetExhausted(Usage(SPACE, "ledger", 2, idle=2), waited=0.04)

    assert str(error) == f"{SPACE} holds 2 of 2 ports (2 idle): allow a longer wait, or add a source address"


@pytest.mark.parametrize(
    ("account", "numbers", "advice"),
    [
        (SPACE, {"time_wait": 4}, "reuse connections, or add a source address"),
        (HOST, {"time_wait": 4}, "reuse connections, or raise the budget"),
        (HOST, {"active": 3, "idle": 1}, "send fewer requests at once, allow a longer wait, or raise the budget"),
        (SPACE, {"active": 4}, "send fewer requests at once, allow a longer wait, or add a source address"),
        (HOST, {"active": 2, "idle": 2}, "allow a longer wait, or raise the budget"),
        (HOST, {"dialing": 4}, "allow a longer wait, or raise the budget"),
        (SPACE, {"active": 1}, "the kernel has no port left: other programs hold them; add a source address"),
    ],
)
def test_the_advice_fits_the_numbers(account: str, numbers: dict[str, int], advice: str) -> None:
    """What to do depends on what holds the ports, and on whether the limit is that of a source address."""
    assert exhausted(account, "ledger", 4, **numbers).endswith(f": {advice}")


def test_whose_limit_it_is() -> None:
    """A client's own budget and the bound on dialing are named as such."""
    own = exhausted(HOST, "client", 4, active=4)
    pace = exhausted(f"dialing to {HOST}", "pace", 2, dialing=2)

    assert "4 of 4 ports (4 active) of this client's own budget: " in own
    assert pace.startswith(f"dialing to {HOST} holds 2 of 2 ports (2 dialing): too many connections are being dialled")
    assert pace.endswith("or raise dialing=")


def test_no_source_says_why_for_each() -> None:
    """Each source address is in the message with its reason."""
    error = NoUsableSource(HOST, {"10.0.0.5": "it is no address of this host", "::1": "it is of the other IP version"})

    assert str(error) == (
        f"no usable source address for {HOST} (10.0.0.5: it is no address of this host; "
        "::1: it is of the other IP version): check sources= against `ip address`"
    )


def test_the_facts_are_attributes() -> None:
    """A program reads the numbers without parsing a message."""
    usage = Usage(SPACE, "ledger", 3, time_wait=3)
    budget, source = BudgetExhausted(usage, next_due=1.5, waited=2.0), NoUsableSource(HOST, {"::1": "gone"})

    assert (budget.usage, budget.next_due, budget.waited) == (usage, 1.5, 2.0)
    assert (source.destination, source.reasons) == (HOST, {"::1": "gone"})


@pytest.mark.parametrize(
    "error",
    [
        BudgetExhausted(Usage(SPACE, "ledger", 3, time_wait=3), next_due=1.5, waited=2.0),
        BudgetExhausted(Usage(HOST, "client", 1, active=1)),
        NoUsableSource(HOST, {"::1": "gone"}),
        InvalidOption("a budget of 0 ports would refuse every connection; give at least 1"),
        LeaseError("it was released before"),
    ],
    ids=repr,
)
def test_errors_can_be_pickled(error: FewportsError) -> None:
    """An error that a worker process raises arrives as it was, numbers and message included."""
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("kind", [BudgetExhausted, NoUsableSource, InvalidOption, LeaseError])
def test_the_family(kind: type[Exception]) -> None:
    """All have one root, and none is an OSError, which urllib3 would take for a reason to dial again."""
    assert issubclass(kind, FewportsError)
    assert not issubclass(kind, OSError)


def test_what_else_they_are() -> None:
    """A bad option is a ValueError and a misused lease a RuntimeError, for code that knows no better."""
    assert issubclass(InvalidOption, ValueError)
    assert issubclass(LeaseError, RuntimeError)


def test_the_usual_ones_are_at_the_top() -> None:
    """What a caller catches is found without knowing the module."""
    names = (fewports.FewportsError, fewports.BudgetExhausted, fewports.NoUsableSource)

    assert names == (FewportsError, BudgetExhausted, NoUsableSource)
