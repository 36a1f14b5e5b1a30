"""How to reach an origin: attempts as data, and what a failed one means. Opens no socket, waits for nothing.

State of a plan: the destinations that may still answer, and the last failure. Failures of sources are
kept by Sources, which outlive the plan.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from enum import Enum, auto
from typing import NamedTuple, cast

from .address import Destination, Origin, PortSpace, family_of, is_loopback, sockaddr
from .budget import Budget
from .errors import NoUsableSource
from .events import SourceSetAside
from .gated import Bound, CallFailed, Recipe, SocketName, recipe
from .kernel import facts
from .ledger.account import Account, Want
from .ledger.local import Ledger
from .source import NETWORK_CANDIDATES, SET_ASIDE, Held, Sources

ATTEMPT_DELAY = 0.25  # seconds; Connection Attempt Delay of RFC 8305, section 5
ROUTES_FRESH = 10.0  # seconds for which the kernel's choice of a source is remembered
_BY_SYSTEM = Bound()
_NONE: frozenset[PortSpace] = frozenset()


class Meaning(Enum):
    """What a failed attempt says."""

    ANOTHER = auto()  # this destination or source will not do; another may
    PORTS = auto()  # the kernel has no port left in this space: back-pressure, not a failure
    FATAL = auto()  # no attempt can succeed


class To(NamedTuple):
    """Where a face connects to, with what it was configured with.

    *client* stands for the face that has a *budget* of its own.
    """

    origin: Origin
    ledger: Ledger
    sources: Sources
    budget: Budget | None = None
    client: object = None
    port: int = 0  # the source port, where the user insists on one


class Routes:
    """Remember which local addresses reach a destination, for the sources "system" and "auto"."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], tuple[float, list[str]]] = {}  # another object once it was forgotten

    def local(self, sources: Sources, destination: Destination, now: float) -> Sequence[str]:
        """Return the addresses to choose from, where *sources* are given as a word.

        Raises OSError where the kernel has no route.
        """
        if sources.word is None:
            return ()
        key = (sources.word, destination.address)
        if (known := self.known.get(key)) and known[0] > now:
            return known[1]
        if len(self.known) > 10_000:
            self.known.clear()
        found = [facts.route_source(destination)]
        if sources.word == "auto":
            found = _auto(destination) or found
        self.known[key] = now + ROUTES_FRESH, found
        return found

    def forget(self) -> None:
        """Ask again: an address is gone."""
        self.known = {}


routes = Routes()


class Way(NamedTuple):
    """All that a connection needs where nothing is to be chosen: one destination, the source that the system chooses.

    Good until a time, and while the routes and the ports are those that it was worked out from.
    """

    until: float
    known: object
    ports: facts.PortRange
    want: Want
    recipe: Recipe
    name: SocketName  # of the destination


def way_to(to: To, destination: Destination, now: float) -> Way | None:
    """Return the one way to *destination*, or None where there is a choice, or no route: DialPlan knows more."""
    if to.port or to.sources.word != "system":
        return None
    ledger, ports = to.ledger, facts.port_range(now)
    key = (destination, to.origin.host, to.budget, to.client)
    way = cast("Way | None", ledger.ways.get(key))
    if way is not None and way.until > now and way.known is routes.known and way.ports is ports:
        return way
    known = routes.known
    try:
        (source,) = routes.local(to.sources, destination, now)
        needs = recipe(source, _BY_SYSTEM, ports)
        name = sockaddr(destination.address, destination.port)
    except (OSError, CallFailed):
        return None
    want = ledger.want(PortSpace(source, destination), now, to.origin.host, to.budget, to.client)
    until, _ = known.get(("system", destination.address), (now, ()))  # gone again if another thread said so just now
    way = Way(until, known, ports, want, needs, name)
    ledger.ways[key] = way
    return way


class Tally(NamedTuple):
    """Where the ports to one destination are counted, for a number of sources: in the sets of their accounts."""

    local: Sequence[str]  # what Routes said
    accounts: list[Account]
    by_source: Mapping[str, tuple[Sized, Sized]]
    all: tuple[Sized, ...]


class DialPlan:
    """Order the ports that would do for one connection, and learn from what fails."""

    __slots__ = ("_chances", "_left", "_tried", "bound", "error", "errors", "to")

    def __init__(self, to: To, destinations: Iterable[Destination], now: float) -> None:
        self.to = to
        chosen = to.sources.word != "system"
        self.bound = Bound(chosen, to.port, to.sources.foreign) if chosen or to.port else _BY_SYSTEM
        self.error: Exception | None = None
        self.errors: list[Exception] = []  # why each destination was given up; error is the last that counts
        self._tried = 0  # sources that failed
        self._chances: frozenset[PortSpace] = _NONE  # spaces whose system-chosen source failed once
        self._left = list(destinations)
        if len(self._left) > 1:
            self._left = self._spread(list(dict.fromkeys(self._left)), now)

    def wants(self, now: float, flying: Iterable[Destination] = ()) -> list[Want]:
        """Return what would do, the best first, without the destinations that are being tried already.

        Empty when nothing is left to try; ``error`` then says why.
        """
        return list(self._wants(now, flying))

    def best(self, now: float, flying: Iterable[Destination] = ()) -> list[Want]:
        """Return the first of wants() alone: 60 destinations and 30 sources make 2,000, of which one is used."""
        return list(itertools.islice(self._wants(now, flying), 1))

    def _wants(self, now: float, flying: Iterable[Destination]) -> Iterator[Want]:
        to = self.to
        for destination in tuple(self._left):
            if destination in flying:
                continue
            try:
                local = routes.local(to.sources, destination, now)
            except OSError as error:
                self._drop(destination, error)
                continue
            if to.sources.word == "system":
                candidates = local
            else:
                held = self._held(destination, local, now)
                candidates = to.sources.candidates(destination, to.origin, held, now, local)
            if not candidates:
                reasons = to.sources.reasons(destination, now, local)
                self._drop(destination, NoUsableSource(str(destination), reasons))
            for source in candidates:
                yield self._want(source, destination, now)

    @property
    def common(self) -> bool:
        """Say whether another caller of the same pool may wait for the same: not where each gets other sources."""
        return not (self.bound.foreign or self.to.port)

    def goes(self, destination: Destination) -> bool:
        """Say whether *destination* is one of those that may still answer."""
        return destination in self._left

    def more(self, flying: int) -> bool:
        """Say whether there are destinations besides the ones that are being tried."""
        return len(self._left) > flying

    def failed(self, space: PortSpace, call: str, error: OSError, now: float) -> Meaning:
        """Learn from a failed attempt; the same errno means different things from different calls."""
        number = error.errno
        if call == "connect" and number == errno.EADDRNOTAVAIL and not self.to.port:
            return Meaning.PORTS
        if number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM) or self.to.port:
            if self.to.port and call == "connect" and number != errno.EADDRNOTAVAIL:
                self._drop(space.destination, error)
                return Meaning.ANOTHER
            return Meaning.FATAL
        if call == "bind":
            self._source_failed(space, None, error, _bind_reason(error), now)
        elif call == "connect" and number in (errno.ENETUNREACH, errno.EINVAL) and self.bound.chosen:
            # ENETUNREACH: no route from there (or at all); EINVAL: a loopback address to another host.
            self._source_failed(space, space.destination, error, "it has no route there", now)
        else:
            self._drop(space.destination, error)
        return Meaning.ANOTHER

    def _source_failed(
        self, space: PortSpace, destination: Destination | None, error: OSError, reason: str, now: float
    ) -> None:
        sources = self.to.sources
        if sources.word is not None:
            routes.forget()
        if sources.word == "system":
            # The kernel chose an address that is gone by now; it will not choose it again.
            if space in self._chances:
                self._drop(space.destination, error)
            self._chances |= {space}
            return
        self._tried += 1
        if sources.foreign and self._tried >= NETWORK_CANDIDATES:
            # It has addresses without end, and they share one route: the others would fail alike.
            self._drop(space.destination, NoUsableSource(str(space.destination), {str(sources.network): reason}))
        if sources.set_aside(space.source, destination, reason, now):
            where = str(destination) if destination else None
            self.to.ledger.emit(SourceSetAside(space.source, where, reason, SET_ASIDE))

    def _drop(self, destination: Destination, error: Exception) -> None:
        if destination in self._left:
            self._left.remove(destination)
        self.errors.append(error)
        if not isinstance(self.error, OSError) or isinstance(error, OSError):
            self.error = error

    def _spread(self, destinations: list[Destination], now: float) -> list[Destination]:
        """Order the destinations: families in turn (RFC 8305, section 4), the least used first in each."""
        first = ":" in destinations[0].address  # the family; to ask for it by name costs more than all the rest
        turn = random.getrandbits(16)  # not a count: two names asked for in turn would each see every second number
        families = []
        for same in (True, False):
            group = [destination for destination in destinations if ((":" in destination.address) == first) == same]
            if group:
                group = group[turn % len(group) :] + group[: turn % len(group)]
                families.append(sorted(group, key=lambda destination: self._load(destination, now)))
        ordered = itertools.chain.from_iterable(itertools.zip_longest(*families))
        return [destination for destination in ordered if destination is not None]

    def _load(self, destination: Destination, now: float) -> int:
        sources = self.to.sources
        if sources.addresses and (tally := cast("Tally | None", self.to.ledger.ways.get((destination, sources)))):  # noqa: SIM102
            if tally.accounts and tally.accounts[0].limit:  # as _tally() does, for each of 60 addresses
                return sum(map(len, tally.all))
        try:
            local = routes.local(self.to.sources, destination, now)
        except OSError:
            return 0
        return sum(map(len, self._tally(destination, local, now).all))

    def _held(self, destination: Destination, local: Sequence[str], now: float) -> Held:
        if self.to.sources.network is not None:
            held = self.to.ledger.held
            return lambda source: held(PortSpace(source, destination))
        by_source = self._tally(destination, local, now).by_source
        return lambda source: sum(map(len, by_source[source]))

    def _tally(self, destination: Destination, local: Sequence[str], now: float) -> Tally:
        """Find out once where the ports to *destination* are counted: it is asked for each source and connection."""
        ledger, sources = self.to.ledger, self.to.sources
        key = (destination, sources)
        tally = cast("Tally | None", ledger.ways.get(key))
        if tally is not None and tally.local is local and all(account.limit for account in tally.accounts[:1]):
            return tally
        addresses = [source for source in sources.addresses or local if family_of(source) == destination.family]
        accounts = [self._want(source, destination, now).accounts[0] for source in addresses]
        by_source = {
            source: (account.leases, account.kept) for source, account in zip(addresses, accounts, strict=True)
        }
        tally = Tally(local, accounts, by_source, tuple(itertools.chain.from_iterable(by_source.values())))
        ledger.ways[key] = tally
        return tally

    def _want(self, source: str, destination: Destination, now: float) -> Want:
        to = self.to
        return to.ledger.want(PortSpace(source, destination), now, to.origin.host, to.budget, to.client)


def _auto(destination: Destination) -> list[str]:
    """Return the host's own addresses of the destination's scope that have a route to it."""
    scope = "host" if destination.loopback else "link" if "%" in destination.address else "global"
    return [
        local.address
        for local in facts.local_addresses()
        if (is_loopback(local.address) if scope == "host" else local.scope == scope)
        and facts.reaches(local.address, destination)
    ]


def _bind_reason(error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "it is no address of this host"
    if error.errno == errno.EADDRINUSE:
        return "other programs hold its ports for all destinations at once, by bind() without IP_BIND_ADDRESS_NO_PORT"
    return error.strerror or str(error)
