"""How an origin is reached: attempts in their order, and what a failed one means. No socket is opened."""

from __future__ import annotations

import errno
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from bookkeeping import A6, S6, T6, A, B, Books, C, S, T, U

from fewports import dial
from fewports.address import Destination, Origin, PortSpace
from fewports.budget import Budget
from fewports.dial import ROUTES_FRESH, DialPlan, Meaning, To, routes
from fewports.errors import NoUsableSource
from fewports.events import SourceSetAside
from fewports.gated import Bound
from fewports.kernel.facts import LocalAddress
from fewports.ledger.account import Want
from fewports.source import NETWORK_CANDIDATES, SET_ASIDE, Sources

HERE = Origin("https", "api.example.com", 443)
B6 = Destination("2001:db8:a::2", 443)
LOOP, LOOP6 = Destination("127.0.0.1", 80), Destination("::1", 80)


class Host:
    """What facts.py says of a host: its addresses, and what the kernel would choose to reach a destination."""

    def __init__(self) -> None:
        self.chooses: dict[str, str] = {}
        self.addresses: list[LocalAddress] = []
        self.unreachable: set[tuple[str, str]] = set()
        self.asked = 0

    def route_source(self, destination: Destination) -> str:
        self.asked += 1
        default = S6 if ":" in destination.address else S
        if (found := self.chooses.get(destination.address, default)) == "":
            raise failure(errno.ENETUNREACH)
        return found

    def local_addresses(self) -> tuple[LocalAddress, ...]:
        return tuple(self.addresses)

    def reaches(self, source: str, destination: Destination) -> bool:
        same = (":" in source) == (":" in destination.address)
        return same and (source, destination.address) not in self.unreachable


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    found = Host()
    for name in ("route_source", "local_addresses", "reaches"):
        monkeypatch.setattr(dial.facts, name, getattr(found, name))
    routes.forget()
    yield found
    routes.forget()


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def plan(
    books: Books, *destinations: Destination, sources: Sources | None = None, port: int = 0, origin: Origin = HERE
) -> DialPlan:
    to = To(origin, books.ledger, sources or Sources([S, T]), port=port)
    return DialPlan(to, destinations or [A], books.clock.now)


def ends(wants: list[Want]) -> list[tuple[str, Destination]]:
    return [(want.space.source, want.space.destination) for want in wants]


def order(of: DialPlan, books: Books) -> list[Destination]:
    return [want.space.destination for want in of.wants(books.clock.now)]


# The order of attempts.


def test_families_take_turns() -> None:
    """Attempts alternate between IPv6 and IPv4, beginning with the family that name resolution put first."""
    books, sources = Books(9), Sources([S, S6])
    for _ in range(5):
        six_first = order(plan(books, A6, B6, A, B, C, sources=sources), books)
        four_first = order(plan(books, A, A6, B, B6, C, sources=sources), books)

        assert ["6" if ":" in each.address else "4" for each in six_first] == list("64644")
        assert ["6" if ":" in each.address else "4" for each in four_first] == list("46464")


def test_the_least_used_destination_comes_first() -> None:
    """Connections are spread over the addresses of a name: the one with the fewest ports held is tried first."""
    books = Books(90)
    for to, number in ((A, 3), (B, 1), (C, 2)):
        for _ in range(number):
            books.take(books.want(S, to))

    assert order(plan(books, A, B, C, sources=Sources([S])), books) == [B, C, A]


def test_connections_spread_evenly() -> None:
    """Connections that stay open are as many to each address of a name, and from each source."""
    books = Books(90)
    for _ in range(12):
        found = plan(books, A, B, C)
        books.take(*found.wants(books.clock.now))
    held = {(source, to): books.ledger.held(PortSpace(source, to)) for source in (S, T) for to in (A, B, C)}

    assert set(held.values()) == {2}


def test_names_in_turn_use_all_their_addresses() -> None:
    """Two names that are asked for in turn, with connections that leave nothing, use all their addresses."""
    books = Books(9)
    seen: Counter[Destination] = Counter()
    for _ in range(60):
        for name in ((A, B), (C, Destination("203.0.113.4", 443))):
            seen[order(plan(books, *name, sources=Sources([S])), books)[0]] += 1

    assert len(seen) == 4
    assert min(seen.values()) > 5


def test_a_destination_is_tried_once() -> None:
    """An address that name resolution gave twice is one destination."""
    books = Books(9)

    assert order(plan(books, A, B, A, A, sources=Sources([S])), books).count(A) == 1


def test_each_source_to_each_destination() -> None:
    """What would do is every usable source to every destination, the best source first."""
    books = Books(9)
    books.take(books.want(S, A))

    assert ends(plan(books).wants(books.clock.now)) == [(T, A), (S, A)]


def test_what_is_being_tried_is_left_out() -> None:
    """In a race destinations that are on their way are not tried a second time."""
    books = Books(9)
    found = plan(books, A, B, sources=Sources([S]))

    assert found.more(0)
    assert found.more(1)
    assert not found.more(2)
    assert ends(found.wants(books.clock.now, [A])) == [(S, B)]
    assert found.wants(books.clock.now, [A, B]) == []
    assert found.error is None


def test_charged_by_name_and_client() -> None:
    """A port is charged to the rule of the host's name, and to the budget of the client."""
    books = Books(Budget(9, rules={HERE.host: 5}))
    own = Budget(2)
    to = To(HERE, books.ledger, Sources([S]), own, "client")
    (want,) = DialPlan(to, [A], books.clock.now).wants(books.clock.now)

    assert [(account.scope, account.name, account.limit) for account in want.accounts[1:]] == [
        ("ledger", HERE.host, 5),
        ("client", str(A), 2),
    ]


def test_only_sources_that_fit() -> None:
    """A destination without a source of its IP version is left out where others are left."""
    books = Books(9)
    found = plan(books, A6, A, sources=Sources([S]))

    assert ends(found.wants(books.clock.now)) == [(S, A)]
    assert not found.more(1)


# How a source is bound.


def test_how_sources_are_bound() -> None:
    """A source that the user chose is bound; one of a network may be foreign; the kernel's own choice is not bound."""
    books = Books(9)

    assert plan(books).bound == Bound(chosen=True)
    assert plan(books, sources=Sources("auto")).bound == Bound(chosen=True)
    assert plan(books, sources=Sources("198.51.100.0/24")).bound == Bound(chosen=True, foreign=True)
    assert plan(books, sources=Sources("system")).bound == Bound()
    assert plan(books, sources=Sources("system"), port=5000).bound == Bound(port=5000)
    assert plan(books, port=5000).bound == Bound(chosen=True, port=5000)


# What the kernel chooses.


def test_the_kernels_choice(host: Host) -> None:
    """Without sources of the user's the space is that of the source which the kernel will choose."""
    books = Books(9)
    host.chooses[B.address] = T
    found = plan(books, A, B, sources=Sources("system"))

    assert set(ends(found.wants(books.clock.now))) == {(S, A), (T, B)}


def test_the_kernels_choice_is_remembered(host: Host) -> None:
    """The kernel is asked once in 10 s for a destination."""
    books, sources = Books(9), Sources("system")
    for _ in range(5):
        plan(books, sources=sources).wants(books.clock.now)
    assert host.asked == 1
    books.clock.advance(ROUTES_FRESH)
    plan(books, sources=sources).wants(books.clock.now)

    assert host.asked == 2


def test_no_route(host: Host) -> None:
    """A destination to which there is no route is left out; if no other is left, the kernel's error says why."""
    books = Books(9)
    host.chooses[A.address] = ""
    found = plan(books, A, B, sources=Sources("system"))
    alone = plan(books, A, sources=Sources("system"))

    assert ends(found.wants(books.clock.now)) == [(S, B)]
    assert alone.wants(books.clock.now) == []
    assert isinstance(alone.error, OSError)
    assert alone.error.errno == errno.ENETUNREACH


def test_auto_uses_addresses_of_the_same_scope(host: Host) -> None:
    """With "auto" a destination is reached from all addresses of its scope that have a route to it."""
    books, sources = Books(9), Sources("auto")
    host.addresses = [
        LocalAddress("127.0.0.1", "lo", "host", 8),
        LocalAddress("127.0.0.2", "lo", "host", 8),
        LocalAddress("::1", "lo", "host", 128),
        LocalAddress(S, "eth0", "global", 24),
        LocalAddress(T, "eth1", "global", 24),
        LocalAddress(U, "eth2", "global", 24),
        LocalAddress(S6, "eth0", "global", 64),
        LocalAddress("fe80::5%2", "eth0", "link", 64),
    ]
    host.unreachable = {(U, A.address)}
    link = Destination("fe80::1%2", 443)

    def reached(to: Destination) -> set[str]:
        return {source for source, _ in ends(plan(books, to, sources=sources).wants(books.clock.now))}

    assert reached(A) == {S, T}
    assert reached(B) == {S, T, U}
    assert reached(A6) == {S6}
    assert reached(link) == {"fe80::5%2"}
    assert reached(LOOP) == {"127.0.0.1", "127.0.0.2"}
    assert reached(LOOP6) == {"::1"}


def test_auto_falls_back_to_the_kernels_choice(host: Host) -> None:
    """If none of the host's addresses is of the destination's scope, "auto" takes the one that the kernel would."""
    books = Books(9)
    host.addresses = [LocalAddress("127.0.0.1", "lo", "host", 8)]

    assert ends(plan(books, sources=Sources("auto")).wants(books.clock.now)) == [(S, A)]


# What a failure means: facts/kernel.md, section 10.


def first_fails(books: Books, of: DialPlan, call: str, number: int) -> tuple[Meaning, PortSpace]:
    """Have the first attempt fail in this way."""
    space = of.wants(books.clock.now)[0].space
    return of.failed(space, call, failure(number), books.clock.now), space


def test_no_port_in_connect_is_back_pressure() -> None:
    """EADDRNOTAVAIL from connect() says that the ports are taken: nothing is set aside, nothing is given up."""
    books = Books(9)
    found = plan(books)

    assert first_fails(books, found, "connect", errno.EADDRNOTAVAIL)[0] is Meaning.PORTS
    assert len(found.wants(books.clock.now)) == 2
    assert found.error is None
    assert books.events == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EADDRNOTAVAIL, "it is no address of this host"),
        (errno.EADDRINUSE, "other programs hold its ports for all destinations at once, by bind() without"),
        (errno.EACCES, "Permission denied"),
    ],
)
def test_a_failed_bind_is_the_sources(number: int, reason: str) -> None:
    """What bind() refuses is set aside for all destinations, and the others carry on."""
    books, sources = Books(9), Sources([S, T])
    found = plan(books, A, B, sources=sources)
    meaning, (source, _) = first_fails(books, found, "bind", number)
    other = T if source == S else S

    assert meaning is Meaning.ANOTHER
    assert {each for each, _ in ends(found.wants(books.clock.now))} == {other}
    assert {each for each, _ in ends(plan(books, C, sources=sources).wants(books.clock.now))} == {other}
    (event,) = books.events.of(SourceSetAside)
    assert (event.source, event.destination, event.seconds) == (source, None, SET_ASIDE)
    assert event.reason.startswith(reason)


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EINVAL])
def test_no_route_from_a_source(number: int) -> None:
    """ENETUNREACH and EINVAL from connect() set a chosen source aside for this destination alone."""
    books, sources = Books(9), Sources([S, T])
    found = plan(books, A, sources=sources)
    meaning, (source, _) = first_fails(books, found, "connect", number)
    other = T if source == S else S

    assert meaning is Meaning.ANOTHER
    assert ends(found.wants(books.clock.now)) == [(other, A)]
    assert len(plan(books, B, sources=sources).wants(books.clock.now)) == 2
    assert books.events.of(SourceSetAside) == [SourceSetAside(source, str(A), "it has no route there", SET_ASIDE)]


def test_a_source_is_reported_once() -> None:
    """Many attempts that fail for the same source are one event."""
    books, sources = Books(9), Sources([S, T])
    for _ in range(3):
        found = plan(books, sources=sources)
        found.failed(PortSpace(S, A), "bind", failure(errno.EADDRNOTAVAIL), books.clock.now)

    assert len(books.events.of(SourceSetAside)) == 1


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("connect", errno.ECONNREFUSED),
        ("connect", errno.EHOSTUNREACH),
        ("connect", errno.EACCES),
        ("connect", errno.ETIMEDOUT),
        ("connect", errno.ECONNRESET),
        ("setsockopt", errno.ENOPROTOOPT),
        ("socket", errno.EAFNOSUPPORT),
    ],
)
def test_a_failed_connect_is_the_destinations(call: str, number: int) -> None:
    """What else fails is the destination's: it is given up, its sources are not, and others are tried."""
    books = Books(9)
    found = plan(books, A, B)
    meaning, (_, failed) = first_fails(books, found, call, number)

    assert meaning is Meaning.ANOTHER
    assert {to for _, to in ends(found.wants(books.clock.now))} == {A, B} - {failed}
    assert books.events == []
    assert isinstance(found.error, OSError)
    assert found.error.errno == number


def test_a_timeout_is_the_destinations() -> None:
    """An attempt that took too long gives its destination up."""
    books = Books(9)
    found = plan(books)

    assert found.failed(PortSpace(S, A), "connect", TimeoutError("timed out"), books.clock.now) is Meaning.ANOTHER
    assert found.wants(books.clock.now) == []
    assert isinstance(found.error, TimeoutError)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_what_no_attempt_can_overcome(number: int) -> None:
    """Without descriptors or memory no attempt can succeed."""
    books = Books(9)

    assert first_fails(books, plan(books, A, B), "socket", number)[0] is Meaning.FATAL


def test_no_route_to_what_the_kernel_chose(host: Host) -> None:
    """Where the kernel chose the source, ENETUNREACH is the destination's."""
    books = Books(9)
    found = plan(books, A, sources=Sources("system"))

    assert first_fails(books, found, "connect", errno.ENETUNREACH)[0] is Meaning.ANOTHER
    assert found.wants(books.clock.now) == []
    assert isinstance(found.error, OSError)


def test_a_second_chance_for_the_kernels_choice(host: Host) -> None:
    """If the address that the kernel chose is gone when it is bound, the kernel is asked again, once for each."""
    books = Books(9)
    found = plan(books, A, sources=Sources("system"))

    assert first_fails(books, found, "bind", errno.EADDRNOTAVAIL)[0] is Meaning.ANOTHER
    host.chooses[A.address] = T
    assert ends(found.wants(books.clock.now)) == [(T, A)]
    assert first_fails(books, found, "bind", errno.EADDRNOTAVAIL)[0] is Meaning.ANOTHER
    assert ends(found.wants(books.clock.now)) == [(T, A)]
    assert first_fails(books, found, "bind", errno.EADDRNOTAVAIL)[0] is Meaning.ANOTHER
    assert found.wants(books.clock.now) == []
    assert isinstance(found.error, OSError)
    assert books.events == []


def test_auto_asks_again_when_an_address_is_gone(host: Host) -> None:
    """With "auto" an address that cannot be bound is set aside, and the host's addresses are looked up anew."""
    books, sources = Books(9), Sources("auto")
    host.addresses = [LocalAddress(S, "eth0", "global", 24)]
    found = plan(books, A, sources=sources)
    first_fails(books, found, "bind", errno.EADDRNOTAVAIL)
    host.addresses = [LocalAddress(T, "eth0", "global", 24)]

    assert ends(found.wants(books.clock.now)) == [(T, A)]


# When nothing is left.


def test_no_usable_source_names_each_and_why() -> None:
    """When the last source has failed, the error names each of them with its reason, from the first request on."""
    books, sources = Books(9), Sources([S, T, S6])
    found = plan(books, A, sources=sources)
    found.failed(PortSpace(S, A), "bind", failure(errno.EADDRNOTAVAIL), books.clock.now)
    found.failed(PortSpace(T, A), "connect", failure(errno.ENETUNREACH), books.clock.now)

    assert found.wants(books.clock.now) == []
    assert isinstance(found.error, NoUsableSource)
    assert found.error.destination == str(A)
    assert found.error.reasons == {
        S: "it is no address of this host",
        T: "it has no route there",
        S6: "it is of the other IP version",
    }
    assert str(found.error).endswith("check sources= against `ip address`")


def test_no_usable_source_while_they_are_set_aside() -> None:
    """Requests that come while all sources are set aside have the same error, and later ones try again."""
    books, sources = Books(9), Sources([S])
    plan(books, sources=sources).failed(PortSpace(S, A), "bind", failure(errno.EADDRNOTAVAIL), books.clock.now)
    later = plan(books, sources=sources)

    assert later.wants(books.clock.now) == []
    assert isinstance(later.error, NoUsableSource)
    books.clock.advance(SET_ASIDE)
    assert ends(plan(books, sources=sources).wants(books.clock.now)) == [(S, A)]


@pytest.mark.parametrize("first", [A, A6])
def test_what_a_destination_answered_counts_for_more(first: Destination) -> None:
    """If one destination was tried and failed, its error says more than the lack of a source for another."""
    books = Books(9)
    found = plan(books, *((A, A6) if first == A else (A6, A)), sources=Sources([S]))
    found.wants(books.clock.now)
    found.failed(PortSpace(S, A), "connect", failure(errno.ECONNREFUSED), books.clock.now)

    assert found.wants(books.clock.now) == []
    assert isinstance(found.error, ConnectionRefusedError)
    assert {type(error) for error in found.errors} == {NoUsableSource, ConnectionRefusedError}


def test_the_last_error_counts() -> None:
    """Of several destinations that failed, the last error is told; all are kept."""
    books = Books(9)
    found = plan(books, A, B, sources=Sources([S]))
    found.failed(PortSpace(S, A), "connect", failure(errno.ECONNREFUSED), books.clock.now)
    found.failed(PortSpace(S, B), "connect", failure(errno.EHOSTUNREACH), books.clock.now)

    assert isinstance(found.error, OSError)
    assert found.error.errno == errno.EHOSTUNREACH
    assert [error.errno for error in found.errors if isinstance(error, OSError)] == [
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
    ]


def test_no_source_of_the_ip_version() -> None:
    """A destination that no source can reach by its IP version says so."""
    books = Books(9)
    found = plan(books, A6, sources=Sources([S, T]))

    assert found.wants(books.clock.now) == []
    assert isinstance(found.error, NoUsableSource)
    assert set(found.error.reasons) == {S, T}


def test_a_network_that_is_not_routed() -> None:
    """Of a network a number of addresses are tried, not 2 to the 64; then it is what cannot be used."""
    books = Books(9)
    found = plan(books, A6, sources=Sources("2001:db8:5::/64"))
    attempts = 0
    while wants := found.wants(books.clock.now):
        found.failed(wants[0].space, "bind", failure(errno.EADDRNOTAVAIL), books.clock.now)
        attempts += 1

        assert attempts <= NETWORK_CANDIDATES
    assert isinstance(found.error, NoUsableSource)
    assert found.error.reasons["2001:db8:5::/64"] == "it is no address of this host"


# A source port that the user insists on.


def test_an_explicit_port_that_is_held() -> None:
    """With a source port of the user's a bind() that fails is his to know: no other source is tried."""
    books = Books(9)
    found = plan(books, port=5000)

    assert first_fails(books, found, "bind", errno.EADDRINUSE)[0] is Meaning.FATAL
    assert first_fails(books, found, "bind", errno.EADDRNOTAVAIL)[0] is Meaning.FATAL


def test_an_explicit_port_whose_flow_is_held() -> None:
    """With a source port of the user's EADDRNOTAVAIL from connect() is no back-pressure: to wait would not help."""
    books = Books(9)

    assert first_fails(books, plan(books, port=5000), "connect", errno.EADDRNOTAVAIL)[0] is Meaning.FATAL


def test_an_explicit_port_to_another_destination() -> None:
    """With a source port of the user's another destination is tried where the first one does not answer."""
    books = Books(9)
    found = plan(books, A, B, port=5000, sources=Sources([S]))
    meaning, (_, failed) = first_fails(books, found, "connect", errno.ECONNREFUSED)

    assert meaning is Meaning.ANOTHER
    assert ends(found.wants(books.clock.now)) == [(S, B if failed == A else A)]


def test_routes_are_not_remembered_without_end(host: Host) -> None:
    """Destinations without end leave no trace without end."""
    books, sources = Books(9), Sources("system")
    for number in range(11_000):
        routes.local(sources, Destination(f"10.{number // 250}.{number % 250}.1", 443), books.clock.now)

    assert len(routes.known) <= 10_001


def test_sources_of_both_versions_reach_both() -> None:
    """With sources of both IP versions a name with both is reached by both, each from its own."""
    books = Books(9)
    found = plan(books, A6, A, sources=Sources([S, S6, T6]))

    assert Counter(source for source, _ in ends(found.wants(books.clock.now))) == {S6: 1, T6: 1, S: 1}


def test_a_connection_among_many_addresses_is_cheap() -> None:
    """With 61 addresses and 32 sources it costs little more to find the best port than with one of each."""
    sources = [f"192.0.2.{number}" for number in range(1, 33)]
    there = [Destination(f"203.0.113.{number}", 443) for number in range(1, 62)]
    books = Books(1000)

    def taken(destinations: list[Destination], local: list[str]) -> float:
        to = To(HERE, books.ledger, Sources(local))
        times = []
        for _ in range(41):
            began = time.thread_time()
            (best,) = DialPlan(to, destinations, books.clock.now).best(books.clock.now)
            times.append(time.thread_time() - began)
            books.take(best)
        return statistics.median(times)

    assert taken(there, sources) - taken(there[:1], sources[:1]) < 0.0005


def test_the_best_is_the_first_of_all() -> None:
    """What is tried first is the same whether all that would do is listed or not: the fewest held."""
    books = Books(1000)
    sources = [S, T, U]
    for source in sources:
        for destination in (A, B, C):
            if (source, destination) != (T, B):
                books.take(books.want(source, destination))
    to = To(HERE, books.ledger, Sources(sources))
    (best,) = DialPlan(to, [A, B, C], books.clock.now).best(books.clock.now)

    assert best.space == PortSpace(T, B)
    assert DialPlan(to, [A, B, C], books.clock.now).wants(books.clock.now)[0] == best
    assert books.ledger.configure(2000) is None  # other accounts count from now on
    books.take(best)
    books.take(books.want(T, B))
    (best,) = DialPlan(to, [A, B, C], books.clock.now).best(books.clock.now)
    assert best.space != PortSpace(T, B)
