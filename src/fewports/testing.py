"""What tests of code on fewports need: time moved by hand, events kept, a kernel whose word is yours, ports taken.

Opens no socket and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from .address import Destination, Flow, PortSpace
from .budget import Budget
from .events import Event
from .kernel.diag import Row, State
from .ledger.account import Lease, Waiter
from .ledger.closings import TIME_WAIT, Referee
from .ledger.local import Ledger

E = TypeVar("E")

SMALL_BUDGET = 3  # ports: the smallest with all three levels
RANGE = 100  # ports of a scripted kernel
SOURCES = {4: "192.0.2.1", 6: "2001:db8::1"}  # for documentation: RFC 5737, RFC 3849


class ManualClock:
    """A clock that stands until it is moved. Call it for the time, in seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on and return the new time; raise ValueError for a step back."""
        if seconds < 0:
            raise ValueError(f"time does not go back by {-seconds} s")
        self.now += seconds
        return self.now


class Captured(list[Event]):
    """All events, in their order: ``captured = Captured(); ledger.subscribe(captured)``."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return those of one *kind*."""
        return [event for event in self if isinstance(event, kind)]


class ScriptedKernel:
    """What a ledger believes of the system: *capacity* ports in the range, TIME_WAIT for *hold* seconds.

    Both may be changed at any time. A closed flow is free unless keep() was called for it. One that cannot
    be asked (*asked* false) leaves the ledger to its clock.
    """

    def __init__(
        self, clock: ManualClock, capacity: int = RANGE, hold: float = TIME_WAIT, *, asked: bool = True
    ) -> None:
        self.capacity = capacity
        self.hold = hold
        self.questions: list[Flow] = []  # all that it was asked
        self.referee = Referee(lambda now: self.capacity, lambda *flow: self.hold, self._ask if asked else None)
        self._clock = clock
        self._kept: dict[Flow, tuple[State, float | None, float]] = {}

    def keep(
        self, flow: Flow, seconds: float | None = TIME_WAIT, state: State = State.TIME_WAIT, *, late: float = 0.0
    ) -> None:
        """Hold *flow* for so many seconds (None: without end), and for *late* more than it says."""
        until = None if seconds is None else self._clock() + seconds
        self._kept[flow] = state, until, late

    def let_go(self, flow: Flow) -> None:
        """Forget *flow*: its port is free."""
        self._kept.pop(flow, None)

    def holds(self, flow: Flow) -> bool:
        """Say whether *flow* is held now."""
        return self._row(flow) is not None

    def _ask(self, flow: Flow) -> Row | None:
        self.questions.append(flow)
        return self._row(flow)

    def _row(self, flow: Flow) -> Row | None:
        state, until, late = self._kept.get(flow, (State.CLOSE, 0.0, 0.0))
        if until is not None and until + late <= self._clock():
            return None
        return Row(state, flow, None if until is None else max(0.0, until - self._clock()), 0, 0)


def small_ledger(
    budget: int | str | Budget = SMALL_BUDGET, *, kernel: ScriptedKernel | None = None, when_full: str = "refuse"
) -> Ledger:
    """Return a ledger of its own with a small budget, which refuses when it is full.

    It asks *kernel*; without one, and so for real connections, the system's own.
    """
    if not isinstance(budget, Budget):
        budget = Budget(budget, when_full=when_full)
    return Ledger(budget, referee=kernel.referee if kernel else None)


@contextmanager
def occupied(
    ledger: Ledger, destination: str, ports: int, *, source: str = "", host: str = "", now: float = 0.0
) -> Iterator[list[Lease]]:
    """Hold *ports* ports to *destination* (``address:port``) while the block lasts; connect nothing.

    As if connections from *source* were open; a budget in percent is per source. Raises BudgetExhausted if
    there are not so many.
    """
    where = Destination.parse(destination)
    space = PortSpace(source or SOURCES[6 if ":" in where.address else 4], where)
    leases: list[Lease] = []
    try:
        for number in range(ports):
            waiter = Waiter(_nobody)
            if refuser := ledger.reserve(waiter, [ledger.want(space, now, host)], now):
                raise ledger.exhausted(refuser, now)
            lease = waiter.outcome
            assert isinstance(lease, Lease)
            leases.append(lease)
            ledger.opened(lease, Flow(space.source, number + 1, where), now)
        yield leases
    finally:
        for lease in leases:
            ledger.release(lease, now)


def _nobody() -> None:
    """Wake nobody: the waiter is not in line."""
