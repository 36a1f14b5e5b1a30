"""What a ledger counts with: accounts, leases, ports that outlive their connection, places in line.

Nothing here takes a lock. Account, Lease and Closing change under the lock of their ledger alone; a
Waiter's outcome is decided by one atomic dict operation, so that pools and ledgers can race for it.
All numbers are sizes of sets: a KeyboardInterrupt between two steps can leave no count out of step.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import ReferenceType

from ..address import Flow, PortSpace
from ..budget import Budget, Limit
from ..events import Level
from ..usage import Usage

if TYPE_CHECKING:
    from .local import Ledger

LEFT = object()  # the outcome of a waiter that went away
GRACE = 1.0  # seconds in which an owner that is just closing gives its lease back by itself
_NORMAL = Level.NORMAL
NOWHERE: frozenset[Account] = frozenset()
_tickets = itertools.count(1)


class Holder(Protocol):
    """Who keeps connections open and can be asked to give one up: a pool."""

    def surrender(self, account: Account, *, idle: bool = True) -> Closable | None:
        """Take out an idle connection charged to *account*, if there is one; without *idle*, a retired one."""
        ...


class Closable(Protocol):
    """A connection that a holder gave up."""

    @property
    def lease(self) -> Lease | None: ...

    def give_way(self) -> None:
        """Close it, in the way that frees its port at once."""
        ...


class Descriptor(Protocol):
    """What owns a lease: a socket. *passing* while its descriptor is on the way to another object."""

    passing: bool

    def fileno(self) -> int: ...


class Account:
    """One limit and what is charged to it: leases, and the ports of closed connections.

    Which leases are being dialled, and which connections are idle, is counted when somebody asks.
    """

    __slots__ = (
        "__weakref__",
        "alone",
        "backoff",
        "blocked_until",
        "budget",
        "falls",
        "fresh",
        "holders",
        "keeps",
        "kept",
        "leases",
        "level",
        "limit",
        "line",
        "name",
        "questions",
        "rises",
        "rule",
        "scope",
        "waiters",
        "watched",
    )

    def __init__(self, name: str, scope: str, rule: Limit, budget: Budget, capacity: int) -> None:
        self.name = name
        self.scope = scope
        self.rule = rule
        self.budget = budget  # says whether to wait when this account is full
        self.keeps = scope != "total"  # counts ports that outlive their connection, too
        self.leases: set[Lease] = set()
        self.kept: set[Closing] = set()
        self.holders: dict[Holder, int] = {}
        # What the kernel is to be asked about: for the first time, in the order of the closes, and again, a heap by
        # the time for it. Those that were asked about elsewhere drop out at the front.
        self.fresh: deque[Closing] = deque()
        self.questions: list[tuple[float, Closing]] = []
        self.watched: set[Closing] = set()
        self.line: deque[Waiter] = deque()  # by ticket; who has left is dropped at the front
        self.waiters: set[Waiter] = set()
        self.alone = NOWHERE  # while somebody waits: this one, for the many who stand in no other line
        self.blocked_until = 0.0  # the kernel had no port for this space: not tried before then
        self.backoff = 0.0
        self.level = Level.NORMAL
        self.limit = rule.of(capacity)  # 0 after configure(): whoever still names this account is refused
        self.mark_level()

    @property
    def held(self) -> int:
        """The ports that the limit bounds: being dialled, open, or in TIME_WAIT."""
        return len(self.leases) + len(self.kept)

    @property
    def waiting(self) -> int:
        return len(self.waiters)

    def mark_level(self) -> Level:
        """Find the level of what is held now, and when it changes next; return the one before."""
        before = self.level
        warning, critical = (ceil(self.limit * level.value) for level in (Level.WARNING, Level.CRITICAL))
        held = self.held if self.keeps else 0  # no ports of its own are short, however many connections there are
        if held >= critical:
            self.level, self.falls, self.rises = Level.CRITICAL, critical - 1, self.limit + 1
        elif held >= warning:
            self.level, self.falls, self.rises = Level.WARNING, warning - 1, critical
        else:
            self.level, self.falls, self.rises = Level.NORMAL, -1, warning
        return before

    def full(self, now: float) -> bool:
        """Say whether a newcomer is refused: there is no port, or the kernel had none just now."""
        if len(self.leases) + len(self.kept) >= self.limit:
            return True
        return self.blocked_until > 0 and (self.blocked_until > now or bool(self.waiters))

    @property
    def pressed(self) -> bool:
        """Say whether ports are short: above the warning level, or somebody waits."""
        return self.level is not _NORMAL or bool(self.waiters) or self.blocked_until > 0

    def first(self) -> Waiter | None:
        """Return who is first in line, after dropping those who have left."""
        line = self.line
        while line:
            waiter = line[0]
            if not waiter._box:  # decided, in one step less: each connection that comes back asks
                return waiter
            line.popleft()
        return None

    def foremost(self, number: int) -> list[Waiter]:
        """Return so many of those first in line who wait for an outcome."""
        return list(itertools.islice((waiter for waiter in self.line if not waiter.decided), number))

    def enter(self, waiter: Waiter) -> None:
        """Let *waiter* stand in line, at the place of its ticket."""
        self.waiters.add(waiter)
        if not self.line or self.line[-1].ticket < waiter.ticket:
            self.line.append(waiter)
        else:
            bisect.insort(self.line, waiter)  # it stood in another line before

    def next_question(self) -> float:
        """Return when the kernel is to be asked about a port of this account; inf for never."""
        self.tidy()
        first = self.fresh[0].ask_at if self.fresh else inf
        return min(first, self.questions[0][0]) if self.questions else first

    def pop_question(self) -> Closing:
        """Take out what next_question() is about."""
        if self.fresh and not (self.questions and self.questions[0][0] < self.fresh[0].ask_at):
            return self.fresh.popleft()
        return heapq.heappop(self.questions)[1]

    def tidy(self) -> None:
        """Drop questions without need."""
        while self.fresh and not self.fresh[0].fresh:
            self.fresh.popleft()
        if len(self.fresh) > 2 * len(self.kept) + 16:
            self.fresh = deque(closing for closing in self.fresh if closing.fresh)
        while self.questions and self.questions[0][1].ask_at != self.questions[0][0]:
            heapq.heappop(self.questions)
        if len(self.questions) > 2 * len(self.kept) + 16:
            kept = (closing for closing in self.kept if closing.ask_at < inf and not closing.fresh)
            self.questions = [(closing.ask_at, closing) for closing in kept]
            heapq.heapify(self.questions)

    def leave(self, waiter: Waiter) -> None:
        """Let *waiter* go, who has an outcome, and drop those callers who left from the middle."""
        self.waiters.discard(waiter)
        if len(self.line) > 2 * len(self.waiters) + 16:
            self.line = deque(other for other in self.line if not other.decided)

    def usage(self) -> Usage:
        idle = dialing = 0
        for lease in self.leases:
            if lease.idle:
                idle += 1
            elif lease.state == Lease.DIALING:
                dialing += 1
        active = len(self.leases) - idle - dialing + len(self.watched)
        time_wait = len(self.kept) - len(self.watched)
        return Usage(self.name, self.scope, self.limit, dialing, active, idle, time_wait, len(self.waiters))

    def __repr__(self) -> str:
        return f"<Account {self.name} ({self.scope}) {self.held} of {self.limit} held, {self.waiting} waiting>"


class Lease:
    """The right to hold one port of a space. One owner, released once.

    ``idle`` is the owner's mark and may be set without a lock; the rest belongs to the ledger.
    """

    __slots__ = ("flow", "holder", "idle", "ledger", "missed", "reserved", "socket", "state", "want")

    DIALING, OPEN, RELEASED, LEFT_BEHIND = range(4)

    def __init__(self, ledger: Ledger, want: Want, holder: Holder | None, now: float) -> None:
        self.ledger = ledger
        self.want = want
        self.holder = holder
        self.reserved = now
        self.state = Lease.DIALING
        self.idle = False
        self.flow: Flow | None = None
        self.socket: ReferenceType[Descriptor] | None = None
        self.missed: float | None = None  # since when its owner seems to be gone

    @property
    def space(self) -> PortSpace:
        return self.want.space

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self.want.accounts

    @property
    def pressed(self) -> bool:
        """Say whether the port had better be free at once when its connection is closed."""
        for account in self.want.accounts:
            if account.waiters or account.level is not _NORMAL or account.blocked_until:
                return True
        return False

    @property
    def wanted(self) -> bool:
        """Say whether somebody waits for a port that this one would make room for. Takes no lock."""
        for account in self.want.accounts:  # noqa: SIM110 - asked for each request; any() costs four times as much
            if account.waiters:
                return True
        return False

    def lost(self, now: float) -> bool:
        """Say whether its owner has gone without giving it back, as a KeyboardInterrupt in the middle of it does."""
        sock = self.socket() if self.socket else None
        if self.socket is None:
            gone = self.state == Lease.DIALING and now - self.reserved > 60 * GRACE
        else:
            gone = sock is None or (sock.fileno() < 0 and not sock.passing)
        if not gone:
            self.missed = None
        elif self.missed is None:
            self.missed = now
        return self.missed is not None and now - self.missed >= GRACE

    def __repr__(self) -> str:
        state = ("dialing", "open", "released", "left behind")[self.state]
        return f"<Lease {self.flow or self.space} {state}>"


class Closing:
    """A port that outlives its connection, until the kernel lets go of it.

    ``fresh`` until it is asked about for the first time, or over. ``watched`` are those whose socket has an
    owner that we do not know: they still count as open.
    """

    __slots__ = ("ask_at", "done", "due", "final", "flow", "fresh", "overtime", "pause", "want", "watched")

    def __init__(self, flow: Flow, want: Want, due: float, ask_at: float) -> None:
        self.flow = flow
        self.want = want
        self.due = due
        self.ask_at = ask_at  # inf: the kernel has named the time, or cannot be asked
        self.fresh = True
        self.pause = 0.001  # seconds between two questions; doubled each time
        self.overtime = 0.0  # seconds past its time for which the kernel was seen to keep it
        self.final = self.watched = self.done = False

    @property
    def accounts(self) -> tuple[Account, ...]:
        return self.want.accounts

    def __lt__(self, other: Closing) -> bool:
        return self.due < other.due

    def learn(self, due: float, now: float, final: bool) -> None:
        """Take what the kernel said: free at *due*; unless that is final, ask again after a pause."""
        self.fresh = False
        self.due = due
        self.final = final
        self.ask_at = inf if final else now + self.pause
        self.pause = min(1.0, self.pause * 2)


class Want(NamedTuple):
    """One port that would do: its space and all that it is charged to.

    The last three are what the accounts were chosen by: the host name, and the client with a budget of
    its own.
    """

    space: PortSpace
    accounts: tuple[Account, ...]
    pace: Account | None
    host: str
    client: object
    budget: Budget | None

    @property
    def passing(self) -> list[Account]:
        """The accounts that have room again although the port outlives its connection."""
        passing = [account for account in self.accounts if not account.keeps]
        return [*passing, self.pace] if self.pace else passing


class Lead(NamedTuple):
    """What somebody in line waits for, which those who come after until *until* may wait for, too."""

    wants: tuple[Want, ...]
    until: float


class Waiter:
    """A caller in line. The first outcome wins: a lease, a connection, or having left.

    *wake* is called from any thread once there is an outcome; and without one, so that the caller looks for an idle
    connection to close, where another account keeps it waiting from now on: see ``decided``.
    """

    __slots__ = ("_box", "holder", "joined", "lines", "ticket", "wake", "wants")

    def __init__(self, wake: Callable[[], object], holder: Holder | None = None) -> None:
        self.wake = wake
        self.holder = holder
        self.ticket = next(_tickets)  # in the order of their coming, over all pools and ledgers
        self.joined: float | None = None
        self.wants: Sequence[Want] = ()
        self.lines: frozenset[Account] = NOWHERE
        self._box: dict[str, object] = {}

    @property
    def decided(self) -> bool:
        return bool(self._box)

    def deliver(self, outcome: object) -> bool:
        """Offer an outcome; False if there is another already. The caller then keeps what it offered."""
        # dict.setdefault is one atomic step for str keys: of two deliveries, one wins.
        return self._box.setdefault("outcome", outcome) is outcome

    def leave(self) -> object | None:
        """Accept no more; return what was delivered before, which must be used or given back."""
        outcome = self._box.setdefault("outcome", LEFT)
        return None if outcome is LEFT else outcome

    @property
    def outcome(self) -> object | None:
        return self._box.get("outcome")

    def again(self) -> Waiter:
        """Return one with the same place in line, for when what was delivered was of no use."""
        other = Waiter(self.wake, self.holder)
        other.ticket = self.ticket
        other.joined = self.joined
        return other

    def __lt__(self, other: Waiter) -> bool:
        return self.ticket < other.ticket


def full_accounts(wants: Sequence[Want], now: float) -> list[Account]:
    """Return the accounts that keep *wants* from being served, each once."""
    if len(wants) == 1 and (want := wants[0]).pace is None:
        return [account for account in want.accounts if account.full(now)]
    full: dict[Account, None] = {}
    for want in wants:
        blockers = [account for account in want.accounts if account.full(now)]
        if not blockers and want.pace and want.pace.full(now):
            blockers = [want.pace]
        full.update(dict.fromkeys(blockers))
    return list(full)
